//! Whether two descriptors share one open file description (`kcmp(2)`, Linux 3.5, `CONFIG_KCMP`).

use super::{Result, SysError};
use std::cmp::Ordering;

const KCMP_FILE: libc::c_int = 0;

/// Orders the open file descriptions of two descriptors of a process: equal when they share one.
///
/// # Errors
/// ENOSYS where the kernel was built without it, EBADF when one has been closed, EPERM.
pub fn compare_files(pid: i32, a: i32, b: i32) -> Result<Ordering> {
    compare_files_of((pid, a), (pid, b))
}

/// The same for descriptors of two processes, each with its number.
///
/// # Errors
/// ENOSYS where the kernel was built without it, EBADF when one has been closed, EPERM.
pub fn compare_files_of(a: (i32, i32), b: (i32, i32)) -> Result<Ordering> {
    // SAFETY: a system call without pointers.
    let result = unsafe {
        libc::syscall(
            libc::SYS_kcmp,
            a.0,
            b.0,
            KCMP_FILE,
            a.1 as libc::c_ulong,
            b.1 as libc::c_ulong,
        )
    };
    match result {
        0 => Ok(Ordering::Equal),
        1 => Ok(Ordering::Less),
        2 => Ok(Ordering::Greater),
        _ => Err(SysError::last(
            "kcmp",
            format_args!(
                "descriptors {} of process {} and {} of process {}",
                a.1, a.0, b.1, b.0
            ),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn a_duplicate_shares_and_a_second_opening_does_not() {
        let a = std::fs::File::open("/").unwrap();
        let b = a.try_clone().unwrap();
        let c = std::fs::File::open("/").unwrap();
        let compare = |x: &std::fs::File, y: &std::fs::File| {
            compare_files(std::process::id() as i32, x.as_raw_fd(), y.as_raw_fd()).unwrap()
        };
        assert_eq!(compare(&a, &b), Ordering::Equal);
        assert_ne!(compare(&a, &c), Ordering::Equal);
        assert_eq!(compare(&a, &c), compare(&c, &a).reverse());
    }
}
