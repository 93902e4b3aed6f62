//! Resource limits of any process: `prlimit(2)`, and `/proc/PID/limits` where that is denied.

use super::proc::{FdTable, bad, read};
use super::{Result, SysError};
use crate::model::Limit;
use rustix::process::{Resource, getrlimit};

/// Number of limits.
pub const LIMITS: usize = 16;

/// Names in `/proc/PID/limits`, by number (fs/proc/base.c).
const NAMES: [&str; LIMITS] = [
    "Max cpu time",
    "Max file size",
    "Max data size",
    "Max stack size",
    "Max core file size",
    "Max resident set",
    "Max processes",
    "Max open files",
    "Max locked memory",
    "Max address space",
    "Max file locks",
    "Max pending signals",
    "Max msgqueue size",
    "Max nice priority",
    "Max realtime priority",
    "Max realtime timeout",
];

/// Name of a limit by its number, as `getrlimit(2)` has it.
pub fn limit_name(number: usize) -> &'static str {
    const SYMBOLS: [&str; LIMITS] = [
        "RLIMIT_CPU",
        "RLIMIT_FSIZE",
        "RLIMIT_DATA",
        "RLIMIT_STACK",
        "RLIMIT_CORE",
        "RLIMIT_RSS",
        "RLIMIT_NPROC",
        "RLIMIT_NOFILE",
        "RLIMIT_MEMLOCK",
        "RLIMIT_AS",
        "RLIMIT_LOCKS",
        "RLIMIT_SIGPENDING",
        "RLIMIT_MSGQUEUE",
        "RLIMIT_NICE",
        "RLIMIT_RTPRIO",
        "RLIMIT_RTTIME",
    ];
    SYMBOLS.get(number).copied().unwrap_or("a limit")
}

/// All limits of a process, by number. Those of another user's process are read from its file.
pub fn limits(pid: i32) -> Result<Vec<Limit>> {
    let path = format!("/proc/{pid}/limits");
    let text = read(path.clone())?;
    parse(&String::from_utf8_lossy(&text)).ok_or_else(|| bad(&path, "limits"))
}

fn parse(text: &str) -> Option<Vec<Limit>> {
    let number = |word: &str| match word {
        "unlimited" => Some(u64::MAX),
        digits => digits.parse().ok(),
    };
    NAMES
        .iter()
        .map(|name| {
            let mut words = text
                .lines()
                .find_map(|line| line.strip_prefix(name))?
                .split_ascii_whitespace();
            Some(Limit {
                soft: number(words.next()?)?,
                hard: number(words.next()?)?,
            })
        })
        .collect()
}

/// Sets a limit of a process.
pub fn set_limit(pid: i32, number: usize, to: Limit) -> Result<()> {
    let new = libc::rlimit64 {
        rlim_cur: to.soft,
        rlim_max: to.hard,
    };
    // SAFETY: the kernel reads a live structure, and is given no place for the old value.
    let result = unsafe {
        libc::prlimit64(
            pid,
            number as libc::__rlimit_resource_t,
            &raw const new,
            std::ptr::null_mut(),
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(SysError::last("prlimit", format_args!("process {pid}"))),
    }
}

/// Open files beside those that are counted: what this program needs at any moment.
const SPARE: u64 = 64;

/// Lets this program have as many open files as its hard limit allows. Programs that it starts would have so many too.
pub fn raise_descriptors() -> Result<()> {
    let pid = std::process::id() as i32;
    let number = libc::RLIMIT_NOFILE as usize;
    match raised(limits(pid)?[number]) {
        Some(to) => set_limit(pid, number, to),
        None => Ok(()),
    }
}

/// As far as it may be; `None` where it is so already.
fn raised(now: Limit) -> Option<Limit> {
    let to = Limit {
        soft: now.hard,
        ..now
    };
    (to != now).then_some(to)
}

/// Whether this program can have so many open files more, and some to spare.
///
/// # Errors
/// `EMFILE`, with what to do.
pub fn may_open(more: usize) -> Result<()> {
    if more == 0 {
        return Ok(());
    }
    // Asked for by number, and not from the file of all limits: processes are stopped meanwhile.
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let open = FdTable::open(std::process::id() as i32)?.numbers()?.len();
    enough(open as u64, more as u64, limit)
}

fn enough(open: u64, more: u64, limit: u64) -> Result<()> {
    let needed = open + more + SPARE;
    match needed <= limit {
        true => Ok(()),
        false => Err(SysError::new(
            "open",
            format_args!(
                "{more} files at a time: ksnap would have {needed} of them, and may have {limit}; start it with a higher \
                 limit (ulimit -n {needed}, or LimitNOFILE= of its service)"
            ),
            std::io::Error::from_raw_os_error(libc::EMFILE),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command};

    /// A process whose limits nobody else sets meanwhile, as tests beside this one do with their own.
    struct Sleeper(Child);

    impl Sleeper {
        fn start() -> Self {
            Self(Command::new("sleep").arg("600").spawn().unwrap())
        }

        fn pid(&self) -> i32 {
            self.0.id() as i32
        }
    }

    impl Drop for Sleeper {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[test]
    fn every_limit_is_found_under_its_number() {
        let sleeper = Sleeper::start();
        let pid = sleeper.pid();
        let all = limits(pid).unwrap();
        assert_eq!(all.len(), LIMITS);
        for (number, limit) in all.iter().enumerate() {
            let mut old = libc::rlimit64 {
                rlim_cur: 0,
                rlim_max: 0,
            };
            // SAFETY: `old` is a live structure that the call fills.
            let got = unsafe {
                libc::prlimit64(
                    pid,
                    number as libc::__rlimit_resource_t,
                    std::ptr::null(),
                    &raw mut old,
                )
            };
            assert_eq!(got, 0);
            assert_eq!((limit.soft, limit.hard), (old.rlim_cur, old.rlim_max));
        }
    }

    #[test]
    fn too_many_open_files_are_refused_with_the_limit_that_would_do() {
        enough(10, 100, 10 + 100 + SPARE).unwrap();
        let error = enough(10, 100, 10 + 100 + SPARE - 1).unwrap_err();
        assert_eq!(error.errno(), Some(libc::EMFILE));
        assert!(error.to_string().contains("ulimit -n 174"), "{error}");
        // Not more than there can be.
        assert!(may_open(1 << 40).is_err());
    }

    #[test]
    fn the_limit_of_open_files_is_raised_as_far_as_it_may_be() {
        let limit = |soft, hard| Limit { soft, hard };
        assert_eq!(raised(limit(128, 4096)), Some(limit(4096, 4096)));
        assert_eq!(raised(limit(4096, 4096)), None);
        // Never lowered: it may be above nobody's need by now, and tests beside this one open files.
        raise_descriptors().unwrap();
        assert_eq!(
            raised(limits(std::process::id() as i32).unwrap()[libc::RLIMIT_NOFILE as usize]),
            None
        );
    }

    #[test]
    fn a_limit_is_set() {
        let sleeper = Sleeper::start();
        let pid = sleeper.pid();
        let was = limits(pid).unwrap()[libc::RLIMIT_CORE as usize];
        let to = Limit {
            soft: was.hard.min(4096),
            ..was
        };
        set_limit(pid, libc::RLIMIT_CORE as usize, to).unwrap();
        assert_eq!(limits(pid).unwrap()[libc::RLIMIT_CORE as usize], to);
    }
}
