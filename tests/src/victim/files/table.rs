//! A descriptor table: many, shared, swapped, and at high numbers.

use super::Held;
use super::calls::*;

const MANY: i32 = 300;
const FIRST: i32 = 100;

struct Table {
    path: String,
    high: i32,
}

/// Each at a position of its own, every third one sharing that of the one before.
fn at(n: i32) -> i64 {
    i64::from(if n % 3 == 2 { n - 1 } else { n }) * 10
}

pub fn table() -> Done<Box<dyn Held>> {
    let path = in_folder("table");
    std::fs::write(&path, [1; 5000]).map_err(|e| e.to_string())?;
    for n in 0..MANY {
        let fd = match n % 3 {
            2 => dup(FIRST + n - 1)?,
            _ => open(&path, libc::O_RDONLY)?,
        };
        let flags = if n % 2 == 0 { libc::O_CLOEXEC } else { 0 };
        moved(fd, FIRST + n, flags)?;
        seek(FIRST + n, at(n), libc::SEEK_SET)?;
    }
    // SAFETY: zeroed is a valid limit, which the call fills.
    let limit = unsafe {
        let mut limit: libc::rlimit = std::mem::zeroed();
        must(
            "getrlimit",
            libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit),
        )?;
        limit.rlim_cur as i32
    };
    // The highest number that there is.
    let high = moved(open(&path, libc::O_RDONLY)?, limit - 1, 0)?;
    seek(high, 4321, libc::SEEK_SET)?;
    Ok(Box::new(Table { path, high }))
}

impl Held for Table {
    fn change(&mut self) -> Done {
        // The first two change places, then most of them go.
        let aside = dup(FIRST)?;
        // SAFETY: calls without pointers.
        unsafe {
            must("dup2", libc::dup2(FIRST + 1, FIRST))?;
            must("dup2", libc::dup2(aside, FIRST + 1))?;
        }
        close(aside)?;
        (2..MANY).try_for_each(|n| close(FIRST + n))?;
        close(self.high)?;
        // Others come, at numbers below and between.
        for n in [20, 21, FIRST + 7, FIRST + 8, FIRST + MANY + 5] {
            moved(open("/dev/null", libc::O_RDONLY)?, n, 0)?;
        }
        Ok(())
    }

    fn check(&mut self, changed: bool) -> Done {
        for n in [20, 21, FIRST + MANY + 5] {
            same(&format!("descriptor {n} is open"), is_open(n), changed)?;
        }
        same("the high one is open", is_open(self.high), !changed)?;
        if changed {
            same("first", position(FIRST)?, at(1))?;
            return same("second", position(FIRST + 1)?, at(0));
        }
        same("the high one", position(self.high)?, 4321)?;
        for n in 0..MANY {
            let fd = FIRST + n;
            same(&format!("position of {fd}"), position(fd)?, at(n))?;
            same(&format!("close on exec of {fd}"), cloexec(fd)?, n % 2 == 0)?;
        }
        // Shared where it was, and only there.
        seek(FIRST + 1, 77, libc::SEEK_SET)?;
        same("shared", position(FIRST + 2)?, 77)?;
        same("not shared", position(FIRST + 3)?, at(3))?;
        seek(FIRST + 2, at(1), libc::SEEK_SET)?;
        same(
            "path",
            std::fs::read_link(format!("/proc/self/fd/{FIRST}")).ok(),
            Some(self.path.clone().into()),
        )
    }
}
