//! Clocks that count from the machine's start, and time namespaces, in which they count from elsewhere
//! (`time_namespaces(7)`).

use super::{Result, SysError, proc};
use crate::model::Clocks;
use rustix::time::{ClockId, clock_gettime};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::OnceLock;

const SECOND: i64 = 1_000_000_000;

/// These clocks, as they are now for a process whose time namespace has these offsets: of monotonic and boot time, in
/// nanoseconds. `None` where it cannot be told which start of the machine they count from.
pub fn clocks(offsets: [i64; 2]) -> Option<Clocks> {
    static BOOT: OnceLock<Option<[u8; 16]>> = OnceLock::new();
    let boot = (*BOOT.get_or_init(boot_id))?;
    let now = |clock| {
        let time = clock_gettime(clock);
        time.tv_sec * SECOND + time.tv_nsec
    };
    let own = own_time_offsets();
    Some(Clocks {
        boot,
        monotonic_ns: now(ClockId::Monotonic) - own[0] + offsets[0],
        boottime_ns: now(ClockId::Boottime) - own[1] + offsets[1],
    })
}

/// Offsets of the time namespace that this process is in. It never enters another.
pub fn own_time_offsets() -> [i64; 2] {
    static OWN: OnceLock<[i64; 2]> = OnceLock::new();
    // A kernel without time namespaces has no such file.
    *OWN.get_or_init(|| proc::time_offsets(std::process::id() as i32).unwrap_or_default())
}

fn boot_id() -> Option<[u8; 16]> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let digits: String = text.trim().split('-').collect();
    let id = u128::from_str_radix(&digits, 16).ok()?;
    (digits.len() == 32).then(|| id.to_be_bytes())
}

/// Makes a time namespace with these offsets, which lives as long as the descriptor, or a process in it.
///
/// # Errors
/// EPERM without `CAP_SYS_ADMIN` or `CAP_SYS_TIME`, EINVAL where the kernel has none.
pub fn time_namespace(offsets: [i64; 2]) -> Result<OwnedFd> {
    // By a thread of its own: whoever makes one has children in it from then on.
    std::thread::scope(|scope| match scope.spawn(|| make(offsets)).join() {
        Ok(made) => made,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

fn make(offsets: [i64; 2]) -> Result<OwnedFd> {
    // SAFETY: a system call without pointers; it concerns this thread alone.
    if unsafe { libc::unshare(libc::CLONE_NEWTIME) } != 0 {
        return Err(SysError::last("unshare", "time"));
    }
    let own = rustix::thread::gettid().as_raw_nonzero();
    let [monotonic, boot] = offsets.map(|ns| (ns.div_euclid(SECOND), ns.rem_euclid(SECOND)));
    let text = format!(
        "monotonic {} {}\nboottime {} {}\n",
        monotonic.0, monotonic.1, boot.0, boot.1
    );
    proc::write(own.get(), "timens_offsets", &text)?;
    let path = format!("/proc/{own}/ns/time_for_children");
    let file = File::open(&path).map_err(|e| SysError::new("open", path, e))?;
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_are_those_of_the_namespace() {
        let here = clocks(own_time_offsets()).expect("a boot id");
        let other = own_time_offsets().map(|ns| ns + 5 * SECOND);
        let there = clocks(other).expect("a boot id");
        assert_eq!(here.boot, there.boot);
        assert!(there.monotonic_ns >= here.monotonic_ns + 5 * SECOND);
        assert!(there.boottime_ns >= here.boottime_ns + 5 * SECOND);
        assert!(here.monotonic_ns > 0 && here.boottime_ns >= here.monotonic_ns);
    }

    #[test]
    fn a_namespace_is_made_and_this_thread_stays_where_it_is() {
        let before = proc::link(std::process::id() as i32, "ns/time");
        let made = match time_namespace([-SECOND / 2, 3 * SECOND + 1]) {
            Err(e) if e.is_denied() => {
                return crate::skip::skip("time namespaces", "run the tests as root");
            }
            made => made.expect("a namespace"),
        };
        drop(made);
        let after = proc::link(std::process::id() as i32, "ns/time");
        assert_eq!(before.expect("one"), after.expect("one"));
        assert!(std::fs::read_link("/proc/thread-self/ns/time_for_children").is_ok());
    }
}
