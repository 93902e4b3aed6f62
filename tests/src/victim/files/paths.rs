//! Files with names: regular ones, folders, devices, FIFOs.

use super::Held;
use super::calls::*;

const LINE: usize = 10;

struct Regular {
    path: String,
    /// Position 30, appending.
    appending: i32,
    /// Position 50, shared with the next one.
    shared: i32,
    twin: i32,
    /// The same file, a position of its own.
    own: i32,
    folder: i32,
    null: i32,
    random: i32,
    by_path: i32,
    /// Closed by the change.
    closed: i32,
    /// Gets another file in its place by the change.
    reused: i32,
    /// Opened by the change.
    late: i32,
}

pub fn regular() -> Done<Box<dyn Held>> {
    let path = in_folder("lines");
    let text: String = (0..100).map(|n| format!("line {n:04}\n")).collect();
    std::fs::write(&path, text).map_err(|e| e.to_string())?;
    let appending = open(&path, libc::O_RDWR | libc::O_APPEND | libc::O_CLOEXEC)?;
    let shared = open(&path, libc::O_RDONLY)?;
    let twin = dup(shared)?;
    set_cloexec(twin, true)?;
    let mut regular = Regular {
        appending,
        shared,
        twin,
        own: open(&path, libc::O_RDWR)?,
        folder: open(
            &folder().display().to_string(),
            libc::O_RDONLY | libc::O_DIRECTORY,
        )?,
        null: open("/dev/null", libc::O_WRONLY)?,
        random: open("/dev/urandom", libc::O_RDONLY)?,
        by_path: open(&path, libc::O_PATH)?,
        closed: moved(open(&path, libc::O_RDONLY)?, 70, libc::O_CLOEXEC)?,
        reused: moved(open(&path, libc::O_RDONLY)?, 71, 0)?,
        late: 72,
        path,
    };
    regular.set(false)?;
    Ok(Box::new(regular))
}

impl Regular {
    fn set(&mut self, changed: bool) -> Done {
        let by = if changed { 200 } else { 0 };
        seek(self.appending, 30 + by, libc::SEEK_SET)?;
        seek(self.shared, 50 + by, libc::SEEK_SET)?;
        seek(self.own, 70 + by, libc::SEEK_SET)?;
        if !changed {
            seek(self.closed, 90, libc::SEEK_SET)?;
            seek(self.reused, 110, libc::SEEK_SET)?;
        }
        Ok(())
    }

    fn line(&self, fd: i32, at: i64) -> Done {
        same(&format!("position of descriptor {fd}"), position(fd)?, at)?;
        let line = read(fd, LINE)?;
        seek(fd, at, libc::SEEK_SET)?;
        let wanted = format!("line {:04}\n", at / LINE as i64).into_bytes();
        same(&format!("content at {at} by descriptor {fd}"), line, wanted)
    }
}

impl Held for Regular {
    fn change(&mut self) -> Done {
        self.set(true)?;
        set_flags(self.appending, libc::O_NONBLOCK)?;
        set_cloexec(self.appending, false)?;
        set_cloexec(self.own, true)?;
        for fd in [self.closed, self.null, self.twin, self.folder, self.by_path] {
            close(fd)?;
        }
        // Another file under the same number.
        moved(open("/dev/zero", libc::O_RDWR)?, self.reused, 0)?;
        moved(open(&self.path, libc::O_RDONLY)?, self.late, 0).map(drop)
    }

    fn check(&mut self, changed: bool) -> Done {
        let by = if changed { 200 } else { 0 };
        self.line(self.appending, 30 + by)?;
        self.line(self.shared, 50 + by)?;
        self.line(self.own, 70 + by)?;
        has_flag(self.appending, libc::O_APPEND, !changed)?;
        has_flag(self.appending, libc::O_NONBLOCK, changed)?;
        same(
            "close on exec of appending",
            cloexec(self.appending)?,
            !changed,
        )?;
        same("close on exec of own", cloexec(self.own)?, changed)?;
        same("the late one is open", is_open(self.late), changed)?;
        same("random bytes", read(self.random, 16)?.len(), 16)?;
        for fd in [self.closed, self.null, self.twin, self.folder, self.by_path] {
            same(&format!("descriptor {fd} is open"), is_open(fd), !changed)?;
        }
        if changed {
            return same("zeroes", read(self.reused, 4)?, vec![0; 4]);
        }
        self.line(self.closed, 90)?;
        self.line(self.reused, 110)?;
        same("close on exec of closed", cloexec(self.closed)?, true)?;
        same("close on exec of twin", cloexec(self.twin)?, true)?;
        write(self.null, b"gone")?;
        // One position for both, and back.
        seek(self.twin, 0, libc::SEEK_SET)?;
        same(
            "position of the one that shares it",
            position(self.shared)?,
            0,
        )?;
        seek(self.shared, 50, libc::SEEK_SET)?;
        same(
            "access to the null device",
            flags(self.null)? & libc::O_ACCMODE,
            libc::O_WRONLY,
        )?;
        same(
            "path only",
            flags(self.by_path)? & libc::O_PATH,
            libc::O_PATH,
        )?;
        same(
            "a folder",
            flags(self.folder)? & libc::O_DIRECTORY,
            libc::O_DIRECTORY,
        )
    }
}

struct Fifo {
    path: String,
    reader: i32,
    writer: i32,
}

pub fn fifo() -> Done<Box<dyn Held>> {
    let path = in_folder("fifo");
    let name = format!("{path}\0");
    // SAFETY: the name is live and ends with a zero.
    must("mkfifo", unsafe {
        libc::mkfifo(name.as_ptr().cast(), 0o600)
    })?;
    let reader = open(&path, libc::O_RDONLY | libc::O_NONBLOCK)?;
    let writer = open(&path, libc::O_WRONLY)?;
    write(writer, b"through a name")?;
    Ok(Box::new(Fifo {
        path,
        reader,
        writer,
    }))
}

impl Held for Fifo {
    fn change(&mut self) -> Done {
        read(self.reader, 7)?;
        close(self.writer)
    }

    fn check(&mut self, changed: bool) -> Done {
        same("the writer is open", is_open(self.writer), !changed)?;
        has_flag(self.reader, libc::O_NONBLOCK, true)?;
        let text = read(self.reader, 100)?;
        let writer = if changed {
            open(&self.path, libc::O_WRONLY)?
        } else {
            self.writer
        };
        write(writer, &text)?;
        if changed {
            close(writer)?;
            return same("content", text, b" a name".to_vec());
        }
        has_flag(self.writer, libc::O_NONBLOCK, false)?;
        same("content", text, b"through a name".to_vec())
    }
}
