//! `/proc/PID/fdinfo/FD` (`proc_pid_fdinfo(5)`, and `Documentation/filesystems/proc.rst`, section 3.8).

use crate::model::{EpollWatch, Eventfd, Fanotify, FileLock, InotifyWatch, LockKind, Timerfd};

/// What it says, by kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FdInfo {
    /// File position in bytes.
    pub position: u64,
    /// Access mode and status flags, and `O_CLOEXEC` of the descriptor.
    pub flags: u32,
    /// Locks and leases held through the open file, and those of its process.
    pub locks: Vec<FileLock>,
    /// What an epoll instance watches.
    pub epoll: Vec<EpollWatch>,
    /// State of an eventfd.
    pub eventfd: Option<Eventfd>,
    /// State of a timer.
    pub timerfd: Option<Timerfd>,
    /// Signals of a signalfd.
    pub signalfd: Option<u64>,
    /// Process of a pidfd; -1 when it is gone.
    pub pidfd: Option<i32>,
    /// What an inotify instance watches, with the handle of each file for `open_by_handle_at(2)`.
    pub inotify: Vec<(InotifyWatch, FileHandle)>,
    /// A fanotify group.
    pub fanotify: Option<Fanotify>,
    /// Descriptors in the queue of a Unix socket.
    pub passed_descriptors: u32,
}

/// A `struct file_handle`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct FileHandle {
    /// Its type.
    pub ty: i32,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

impl FdInfo {
    /// Reads the text; `None` if it has no position or flags.
    pub fn parse(text: &str) -> Option<Self> {
        let mut info = Self::default();
        let (mut position, mut flags) = (None, None);
        let mut timer = [None::<u64>; 7];
        let mut event = Eventfd::default();
        for line in text.lines() {
            let Some((key, rest)) = line.split_once(':') else {
                continue;
            };
            let value = rest.trim();
            match key {
                "pos" => position = value.parse().ok(),
                "flags" => flags = u32::from_str_radix(value, 8).ok(),
                "lock" => info.locks.extend(lock(value)),
                "tfd" => info.epoll.extend(watch(line)),
                "eventfd-count" => {
                    event.count = u64::from_str_radix(value, 16).ok()?;
                    info.eventfd = Some(event);
                }
                "eventfd-id" => event.id = value.parse().unwrap_or(0),
                "eventfd-semaphore" => event.semaphore = value == "1",
                "clockid" => timer[0] = value.parse().ok(),
                "ticks" => timer[1] = value.parse().ok(),
                "settime flags" => timer[2] = u64::from_str_radix(value, 8).ok(),
                "it_value" => (timer[3], timer[4]) = pair(value),
                "it_interval" => (timer[5], timer[6]) = pair(value),
                "sigmask" => info.signalfd = u64::from_str_radix(value, 16).ok(),
                "Pid" => info.pidfd = value.parse().ok(),
                "scm_fds" => info.passed_descriptors = value.parse().unwrap_or(0),
                key if key.starts_with("inotify wd") => info.inotify.extend(inotify(line)),
                key if key.starts_with("fanotify") => {
                    let group = info.fanotify.get_or_insert_default();
                    match field(line, "flags:") {
                        Some(flags) if key == "fanotify flags" => {
                            group.flags = flags as u32;
                            group.event_flags = field(line, "event-flags:").unwrap_or(0) as u32;
                        }
                        _ => group.marks.push(line.to_owned()),
                    }
                }
                _ => {}
            }
        }
        if info.eventfd.is_some() {
            info.eventfd = Some(event);
        }
        if let [
            Some(clock),
            ticks,
            flags,
            Some(s),
            Some(ns),
            Some(every_s),
            Some(every_ns),
        ] = timer
        {
            info.timerfd = Some(Timerfd {
                clock: clock as i32,
                ticks: ticks.unwrap_or(0),
                settime_flags: flags.unwrap_or(0) as u32,
                value_ns: s.saturating_mul(1_000_000_000).saturating_add(ns),
                interval_ns: every_s
                    .saturating_mul(1_000_000_000)
                    .saturating_add(every_ns),
                expires_ns: None,
            });
        }
        info.position = position?;
        info.flags = flags?;
        Some(info)
    }
}

/// `(1, 2)`
fn pair(text: &str) -> (Option<u64>, Option<u64>) {
    let Some((a, b)) = text.trim_matches(['(', ')']).split_once(',') else {
        return (None, None);
    };
    (a.trim().parse().ok(), b.trim().parse().ok())
}

/// The hexadecimal number behind `name`, blanks skipped.
fn field(line: &str, name: &str) -> Option<u64> {
    let rest = line.split_once(name)?.1.trim_start();
    let end = rest.find(' ').unwrap_or(rest.len());
    u64::from_str_radix(&rest[..end], 16).ok()
}

fn watch(line: &str) -> Option<EpollWatch> {
    let fd = line.strip_prefix("tfd:")?.split_ascii_whitespace().next()?;
    Some(EpollWatch {
        fd: fd.parse().ok()?,
        events: field(line, "events:")? as u32,
        data: field(line, "data:")?,
        inode: field(line, "ino:").unwrap_or(0),
        device: field(line, "sdev:").unwrap_or(0),
    })
}

fn inotify(line: &str) -> Option<(InotifyWatch, FileHandle)> {
    let word = |name: &str| line.split_once(name)?.1.split_ascii_whitespace().next();
    let bytes = word("f_handle:").unwrap_or_default();
    let handle = FileHandle {
        ty: field(line, "fhandle-type:").unwrap_or(0) as i32,
        bytes: (0..bytes.len() / 2)
            .filter_map(|n| u8::from_str_radix(bytes.get(2 * n..2 * n + 2)?, 16).ok())
            .collect(),
    };
    let watch = InotifyWatch {
        wd: field(line, "wd:")? as i32,
        mask: field(line, "mask:")? as u32,
        inode: field(line, "ino:")?,
        device: field(line, "sdev:")?,
        path: None,
    };
    Some((watch, handle))
}

/// `1: POSIX  ADVISORY  WRITE 32645 fe:00:10010698 0 EOF`
fn lock(text: &str) -> Option<FileLock> {
    let mut words = text.split_ascii_whitespace().skip(1).peekable();
    // A request that waits for another one.
    if words.peek() == Some(&"->") {
        return None;
    }
    let kind = match words.next()? {
        "POSIX" => LockKind::Posix,
        "OFDLCK" => LockKind::Ofd,
        "FLOCK" => LockKind::Flock,
        "LEASE" => LockKind::Lease,
        _ => return None,
    };
    let (_, access, _pid, _file) = (words.next()?, words.next()?, words.next()?, words.next()?);
    Some(FileLock {
        kind,
        write: access == "WRITE",
        start: words.next()?.parse().ok()?,
        // Inclusive, as /proc prints it.
        end: match words.next()? {
            "EOF" => None,
            end => Some(end.parse::<u64>().ok()? + 1),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_line() {
        let text = "pos:\t17\nflags:\t02100002\nmnt_id:\t27\nino:\t5\n\
            lock:\t1: FLOCK  ADVISORY  WRITE 32645 fe:00:10010698 0 EOF\n\
            lock:\t2: POSIX  ADVISORY  READ 32645 fe:00:10010698 10 19\n\
            lock:\t2: -> POSIX  ADVISORY  READ 1 fe:00:10010698 10 19\n";
        let info = FdInfo::parse(text).unwrap();
        assert_eq!((info.position, info.flags), (17, 0o2_100_002));
        assert_eq!(info.locks.len(), 2);
        assert_eq!(info.locks[0].kind, LockKind::Flock);
        assert_eq!((info.locks[1].start, info.locks[1].end), (10, Some(20)));

        let timer = "pos:\t0\nflags:\t02\nclockid: 1\nticks: 4\nsettime flags: 01\n\
            it_value: (2, 500)\nit_interval: (0, 9)\n";
        let timer = FdInfo::parse(timer).unwrap().timerfd.unwrap();
        assert_eq!((timer.ticks, timer.settime_flags), (4, 1));
        assert_eq!((timer.value_ns, timer.interval_ns), (2_000_000_500, 9));

        let poll = "pos:\t0\nflags:\t02\n\
            tfd:       12 events:       1d data: ffffffff0000000c  pos:0 ino:3f sdev:9\n";
        let poll = FdInfo::parse(poll).unwrap();
        assert_eq!(
            poll.epoll,
            [EpollWatch {
                fd: 12,
                events: 0x1d,
                data: 0xffff_ffff_0000_000c,
                inode: 0x3f,
                device: 9
            }]
        );

        let event = "pos:\t0\nflags:\t02\neventfd-count:               1f\neventfd-id: 3\neventfd-semaphore: 1\n";
        let event = FdInfo::parse(event).unwrap().eventfd.unwrap();
        assert_eq!((event.count, event.id, event.semaphore), (31, 3, true));

        let watch = "pos:\t0\nflags:\t00\ninotify wd:c ino:3c4a7 sdev:fe00000 mask:2 ignored_mask:0 \
            fhandle-bytes:8 fhandle-type:1 f_handle:a7c4030000000000\n";
        let info = FdInfo::parse(watch).unwrap();
        let (watch, handle) = &info.inotify[0];
        assert_eq!((watch.wd, watch.mask, watch.inode), (12, 2, 0x3c4a7));
        assert_eq!(
            (handle.ty, &handle.bytes[..]),
            (1, &[0xa7, 0xc4, 3, 0, 0, 0, 0, 0][..])
        );

        assert_eq!(FdInfo::parse("flags:\t02\n"), None);
    }

    #[test]
    fn a_group_of_marks() {
        let text = "pos:\t0\nflags:\t02\nfanotify flags:10 event-flags:8000\n\
            fanotify ino:3c4a7 sdev:fe00000 mflags:0 mask:2 ignored_mask:0 fhandle-bytes:0 fhandle-type:1 f_handle:\n";
        let group = FdInfo::parse(text).unwrap().fanotify.unwrap();
        assert_eq!(
            (group.flags, group.event_flags, group.marks.len()),
            (0x10, 0x8000, 1)
        );
    }
}
