//! Which id a new process or thread gets, where the one that makes it may not choose it itself.

use super::{Result, SysError};
use std::io::{self, Write};

/// The id that was given last.
pub const LAST_PID: &str = "/proc/sys/kernel/ns_last_pid";

/// No id: the kernel looks at the privilege first, and then refuses the value, so that nothing is set.
const NO_ID: &[u8] = b"-1";

/// Whether this process may say which id comes next. That the file can be opened says nothing: everyone may.
pub fn can_choose_next_id() -> io::Result<()> {
    let mut file = std::fs::File::options().write(true).open(LAST_PID)?;
    match file.write_all(NO_ID) {
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => Ok(()),
        done => done,
    }
}

/// Has something made that gets this id, unless somebody else is quicker.
///
/// # Errors
/// That of `make`, or EPERM and the like where this process may not say which id comes next.
pub fn with_next_id<T>(id: i32, make: impl FnOnce() -> Result<T>) -> Result<T> {
    let before = std::fs::read_to_string(LAST_PID);
    std::fs::write(LAST_PID, (id - 1).to_string())
        .map_err(|e| SysError::new("write", LAST_PID, e))?;
    let made = make();
    // The ids that come next were others' a moment ago; and may be those of threads that are yet to be made.
    if let Ok(before) = before
        && let Err(e) = std::fs::write(LAST_PID, before.trim())
    {
        tracing::debug!("{LAST_PID}: {e}");
    }
    made
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asking_whether_an_id_can_be_chosen_moves_none() {
        let last = || {
            let text = std::fs::read_to_string(LAST_PID).unwrap_or_default();
            text.trim().parse::<i64>().unwrap_or_default()
        };
        // Others start processes meanwhile, come to the end of all ids, or choose one, but not every time. What was
        // asked for would show every time.
        let mut seen = Vec::new();
        let moved_none = (0..20).any(|_| {
            // One goes by: what was asked for the last time is not where the ids are now.
            let passes = std::process::Command::new("true").status();
            assert!(passes.unwrap().success());
            let before = last();
            let asked = can_choose_next_id();
            let after = last();
            let moved = after - before;
            seen.push((before, after, asked));
            (0..1000).contains(&moved)
        });
        assert!(moved_none, "{seen:?}");
    }
}
