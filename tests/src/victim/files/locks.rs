//! Locks of the process and of the open file.

use super::Held;
use super::calls::*;

struct Locks {
    path: String,
    /// The process's locks, and whole-file and open-file locks of this one.
    main: i32,
    /// Closed by the change.
    closed: i32,
}

fn range(ty: i32, start: i64, len: i64) -> libc::flock {
    libc::flock {
        l_type: ty as i16,
        l_whence: 0,
        l_start: start,
        l_len: len,
        l_pid: 0,
    }
}

fn lock(fd: i32, command: i32, ty: i32, start: i64, len: i64) -> Done {
    let wanted = range(ty, start, len);
    // SAFETY: the structure is live.
    must("fcntl(F_SETLK)", unsafe {
        libc::fcntl(fd, command, &wanted)
    })
    .map(drop)
}

fn flocked(path: &str) -> Done<bool> {
    let tried = std::process::Command::new("flock")
        .args(["--nonblock", path, "true"])
        .status()
        .map_err(|e| format!("flock(1): {e}"))?;
    Ok(!tried.success())
}

/// `/proc/self/fdinfo` shows the locks that are held through a descriptor: kind, access, first and last byte.
fn held(fd: i32) -> Done<Vec<String>> {
    let text =
        std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).map_err(|e| e.to_string())?;
    let words = |line: &str| -> Option<String> {
        let words: Vec<&str> = line.strip_prefix("lock:")?.split_whitespace().collect();
        Some([words[1], words[3], words[6], words[7]].join(" "))
    };
    let mut locks: Vec<String> = text.lines().filter_map(words).collect();
    locks.sort();
    Ok(locks)
}

pub fn locks() -> Done<Box<dyn Held>> {
    let (path, closed_path) = (in_folder("locked"), in_folder("locked-too"));
    std::fs::write(&path, [0; 1000]).map_err(|e| e.to_string())?;
    std::fs::write(&closed_path, [0; 1000]).map_err(|e| e.to_string())?;
    let main = moved(open(&path, libc::O_RDWR)?, 60, 0)?;
    let closed = moved(open(&closed_path, libc::O_RDWR)?, 61, 0)?;
    lock(main, libc::F_SETLK, libc::F_WRLCK, 100, 50)?;
    lock(main, libc::F_SETLK, libc::F_RDLCK, 200, 0)?;
    lock(closed, libc::F_OFD_SETLK, libc::F_WRLCK, 10, 10)?;
    lock(closed, libc::F_SETLK, libc::F_RDLCK, 500, 1)?;
    // SAFETY: a call without pointers.
    must("flock", unsafe { libc::flock(main, libc::LOCK_EX) })?;
    Ok(Box::new(Locks { path, main, closed }))
}

impl Held for Locks {
    fn change(&mut self) -> Done {
        lock(self.main, libc::F_SETLK, libc::F_UNLCK, 0, 0)?;
        lock(self.main, libc::F_SETLK, libc::F_WRLCK, 300, 5)?;
        // SAFETY: a call without pointers.
        must("flock", unsafe { libc::flock(self.main, libc::LOCK_UN) })?;
        close(self.closed)
    }

    fn check(&mut self, changed: bool) -> Done {
        same("it is open", is_open(self.closed), !changed)?;
        let list = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
        same(
            "another process is kept out",
            flocked(&self.path)?,
            !changed,
        )?;
        if changed {
            return same("locks", held(self.main)?, list(&["POSIX WRITE 300 304"]));
        }
        same(
            "locks",
            held(self.main)?,
            list(&[
                "FLOCK WRITE 0 EOF",
                "POSIX READ 200 EOF",
                "POSIX WRITE 100 149",
            ]),
        )?;
        same(
            "locks of the other",
            held(self.closed)?,
            list(&["OFDLCK WRITE 10 19", "POSIX READ 500 500"]),
        )
    }
}
