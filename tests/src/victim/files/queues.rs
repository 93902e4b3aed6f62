//! Pipes and pairs of Unix sockets, with what is in them.

use super::Held;
use super::calls::*;

struct Pipe {
    /// Both ends open all the time.
    both: [i32; 2],
    /// Its writer is closed by the change.
    halved: [i32; 2],
    /// Closed by the change.
    closed: [i32; 2],
    /// Opened by the change.
    late: [i32; 2],
}

fn pipe_at(from: i32, flags: i32) -> Done<[i32; 2]> {
    let mut ends = [0; 2];
    // SAFETY: the array has room for the two.
    must("pipe2", unsafe { libc::pipe2(ends.as_mut_ptr(), flags) })?;
    Ok([
        moved(ends[0], from, flags & libc::O_CLOEXEC)?,
        moved(ends[1], from + 1, flags & libc::O_CLOEXEC)?,
    ])
}

const LARGE: i32 = 256 << 10;

fn capacity(fd: i32) -> Done<i32> {
    // SAFETY: a call without pointers.
    must("fcntl(F_GETPIPE_SZ)", unsafe {
        libc::fcntl(fd, libc::F_GETPIPE_SZ)
    })
}

fn long() -> Vec<u8> {
    (0..150_000u32)
        .flat_map(u32::to_le_bytes)
        .take(LARGE as usize - 4096)
        .collect()
}

/// Reads all and puts it back.
fn content(ends: [i32; 2]) -> Done<Vec<u8>> {
    let mut all = Vec::new();
    while ready(ends[0], libc::POLLIN)? {
        match read(ends[0], LARGE as usize)? {
            part if part.is_empty() => break,
            part => all.extend(part),
        }
    }
    if is_open(ends[1]) && !all.is_empty() {
        write(ends[1], &all)?;
    }
    Ok(all)
}

pub fn pipe() -> Done<Box<dyn Held>> {
    let pipe = Pipe {
        both: pipe_at(60, libc::O_NONBLOCK)?,
        halved: pipe_at(62, libc::O_CLOEXEC)?,
        closed: pipe_at(64, 0)?,
        late: [66, 67],
    };
    // SAFETY: a call without pointers.
    must("fcntl(F_SETPIPE_SZ)", unsafe {
        libc::fcntl(pipe.closed[0], libc::F_SETPIPE_SZ, LARGE)
    })?;
    write(pipe.both[1], b"before")?;
    write(pipe.halved[1], b"half")?;
    write(pipe.closed[1], &long())?;
    Ok(Box::new(pipe))
}

impl Held for Pipe {
    fn change(&mut self) -> Done {
        read(self.both[0], 3)?;
        write(self.both[1], b" and after")?;
        set_flags(self.both[0], 0)?;
        close(self.halved[1])?;
        close(self.closed[0])?;
        close(self.closed[1])?;
        pipe_at(self.late[0], 0)?;
        write(self.late[1], b"late")
    }

    fn check(&mut self, changed: bool) -> Done {
        let text: &[u8] = if changed { b"ore and after" } else { b"before" };
        same("content", content(self.both)?, text.to_vec())?;
        has_flag(self.both[0], libc::O_NONBLOCK, !changed)?;
        has_flag(self.both[1], libc::O_NONBLOCK, true)?;
        same("the writer is open", is_open(self.halved[1]), !changed)?;
        same(
            "one is open",
            is_open(self.closed[0]) && is_open(self.closed[1]),
            !changed,
        )?;
        same(
            "the late one is open",
            is_open(self.late[0]) || is_open(self.late[1]),
            changed,
        )?;
        if changed {
            return same(
                "content of the late one",
                content(self.late)?,
                b"late".to_vec(),
            );
        }
        same(
            "content of the half",
            content(self.halved)?,
            b"half".to_vec(),
        )?;
        same("close on exec", cloexec(self.halved[1])?, true)?;
        same("capacity", capacity(self.closed[1])?, LARGE)?;
        same("long content", content(self.closed)? == long(), true)
    }
}

struct Unix {
    /// Stream, datagram and seqpacket pairs that stay open.
    stream: [i32; 2],
    datagrams: [i32; 2],
    packets: [i32; 2],
    /// Closed by the change.
    closed: [i32; 2],
    /// One side of it is closed by the change.
    halved: [i32; 2],
    /// A direction of it is shut down.
    shut: [i32; 2],
}

fn pair_at(ty: i32, from: i32) -> Done<[i32; 2]> {
    let mut ends = [0; 2];
    // SAFETY: the array has room for the two.
    must("socketpair", unsafe {
        libc::socketpair(libc::AF_UNIX, ty, 0, ends.as_mut_ptr())
    })?;
    Ok([moved(ends[0], from, 0)?, moved(ends[1], from + 1, 0)?])
}

pub fn unix() -> Done<Box<dyn Held>> {
    let unix = Unix {
        stream: pair_at(libc::SOCK_STREAM, 60)?,
        datagrams: pair_at(libc::SOCK_DGRAM, 62)?,
        packets: pair_at(libc::SOCK_SEQPACKET, 64)?,
        closed: pair_at(libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 66)?,
        halved: pair_at(libc::SOCK_DGRAM, 68)?,
        shut: pair_at(libc::SOCK_STREAM, 70)?,
    };
    write(unix.stream[0], b"there ")?;
    write(unix.stream[0], b"it is")?;
    write(unix.stream[1], b"and back")?;
    for text in ["one", "two", "three"] {
        write(unix.datagrams[0], text.as_bytes())?;
        write(unix.packets[1], text.as_bytes())?;
    }
    write(unix.closed[1], &[7; 100_000])?;
    write(unix.halved[0], b"half")?;
    write(unix.shut[0], b"last words")?;
    // SAFETY: a call without pointers.
    must("shutdown", unsafe {
        libc::shutdown(unix.shut[0], libc::SHUT_WR)
    })?;
    let on: i32 = 1;
    // SAFETY: the value is live and as long as said.
    must("setsockopt", unsafe {
        libc::setsockopt(
            unix.closed[0],
            libc::SOL_SOCKET,
            libc::SO_PASSCRED,
            (&raw const on).cast(),
            4,
        )
    })?;
    Ok(Box::new(unix))
}

/// Reads all messages at one side and has the other side send them again.
fn messages(at: i32, other: i32) -> Done<Vec<Vec<u8>>> {
    let mut all = Vec::new();
    while ready(at, libc::POLLIN)? {
        match read(at, 200_000)? {
            part if part.is_empty() => break,
            part => all.push(part),
        }
    }
    if is_open(other) {
        all.iter().try_for_each(|message| write(other, message))?;
    }
    Ok(all)
}

fn texts(list: &[&str]) -> Vec<Vec<u8>> {
    list.iter().map(|text| text.as_bytes().to_vec()).collect()
}

impl Held for Unix {
    fn change(&mut self) -> Done {
        read(self.stream[1], 6)?;
        read(self.datagrams[1], 10)?;
        write(self.datagrams[0], b"four")?;
        read(self.packets[0], 10)?;
        read(self.packets[0], 10)?;
        for fd in [self.closed[0], self.closed[1], self.halved[1]] {
            close(fd)?;
        }
        read(self.shut[1], 100)?;
        // SAFETY: a call without pointers.
        must("shutdown", unsafe {
            libc::shutdown(self.shut[1], libc::SHUT_WR)
        })
        .map(drop)
    }

    fn check(&mut self, changed: bool) -> Done {
        let stream: &[u8] = if changed { b"it is" } else { b"there it is" };
        same(
            "stream",
            messages(self.stream[1], self.stream[0])?.concat(),
            stream.to_vec(),
        )?;
        same(
            "stream back",
            messages(self.stream[0], self.stream[1])?.concat(),
            b"and back".to_vec(),
        )?;
        let datagrams: &[&str] = if changed {
            &["two", "three", "four"]
        } else {
            &["one", "two", "three"]
        };
        same(
            "datagrams",
            messages(self.datagrams[1], self.datagrams[0])?,
            texts(datagrams),
        )?;
        let packets: &[&str] = if changed {
            &["three"]
        } else {
            &["one", "two", "three"]
        };
        same(
            "packets",
            messages(self.packets[0], self.packets[1])?,
            texts(packets),
        )?;
        for fd in [self.closed[0], self.closed[1], self.halved[1]] {
            same(&format!("descriptor {fd} is open"), is_open(fd), !changed)?;
        }
        if changed {
            return same(
                "the end of the shut one",
                read(self.shut[1], 10)?,
                Vec::new(),
            );
        }
        same(
            "a long stream",
            messages(self.closed[0], self.closed[1])?.concat(),
            vec![7; 100_000],
        )?;
        write(self.closed[0], b"x")?;
        same("the other way", read(self.closed[1], 10)?, b"x".to_vec())?;
        let (mut on, mut len) = (0i32, 4u32);
        // SAFETY: both are live, and the value as long as said.
        must("getsockopt", unsafe {
            libc::getsockopt(
                self.closed[0],
                libc::SOL_SOCKET,
                libc::SO_PASSCRED,
                (&raw mut on).cast(),
                &mut len,
            )
        })?;
        same("an option", on, 1)?;
        same(
            "half",
            messages(self.halved[1], self.halved[0])?,
            texts(&["half"]),
        )?;
        // Looked at only: nobody can send it again.
        let mut text = [0u8; 32];
        // SAFETY: the buffer is live and as long as said.
        let got = unsafe { libc::recv(self.shut[1], text.as_mut_ptr().cast(), 32, libc::MSG_PEEK) };
        same(
            "last words",
            text[..must("recv", got as i64)? as usize].to_vec(),
            b"last words".to_vec(),
        )?;
        write(self.shut[1], b"y")?;
        same("the open direction", read(self.shut[0], 10)?, b"y".to_vec())
    }
}
