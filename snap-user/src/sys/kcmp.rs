//! Whether two descriptors share one open file description (`kcmp(2)`, Linux 3.5, `CONFIG_KCMP`).

use super::{Result, SysError};
use std::cmp::Ordering;

const KCMP_FILE: libc::c_int = 0;
const KCMP_VM: libc::c_int = 1;

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

/// Whether two processes have one memory, as behind vfork(2).
///
/// # Errors
/// ENOSYS where the kernel was built without it, ESRCH, EPERM.
pub fn share_memory(a: i32, b: i32) -> Result<bool> {
    // SAFETY: a system call without pointers.
    match unsafe { libc::syscall(libc::SYS_kcmp, a, b, KCMP_VM, 0, 0) } {
        0 => Ok(true),
        1 | 2 => Ok(false),
        _ => Err(SysError::last(
            "kcmp",
            format_args!("the memory of processes {a} and {b}"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn a_process_shares_memory_with_itself_and_with_no_other() {
        let own = std::process::id() as i32;
        assert!(share_memory(own, own).unwrap());
        let mut other = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        // A child of posix_spawn(3) lets its parent go on a moment before it has memory of its
        // own; with it comes the program.
        let program = |pid: i32| std::fs::read_link(format!("/proc/{pid}/exe")).unwrap();
        let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while program(other.id() as i32) == program(own) {
            assert!(std::time::Instant::now() < end, "it executes nothing");
            std::thread::yield_now();
        }
        let shared = share_memory(own, other.id() as i32);
        other.kill().unwrap();
        other.wait().unwrap();
        assert!(!shared.unwrap());
    }

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
