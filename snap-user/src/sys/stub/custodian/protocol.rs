//! What ksnap and its child agree in: the words that the one says to the other, and in what order the child's descriptors
//! lie. The child's side allocates nothing.

use crate::sys::fd::memfd;
use crate::sys::{Result, SysError};
use std::io::{PipeReader, PipeWriter, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

/// ksnap is about to kill the processes: should ksnap end, the child does that, and keeps the sockets.
const INTENT: u8 = b'i';
/// The processes have ended, and the child has the sockets from then on.
const KEEP: u8 = b'k';
/// All has been undone.
const UNDONE: u8 = b'u';

/// What an empty memfd that the child holds is called, before the moment that tells one snapshot from another.
const MARK: &str = "ksnap-tcp-";

/// What ksnap says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Word {
    /// See [`INTENT`].
    Intent,
    /// See [`KEEP`].
    Keep,
    /// See [`UNDONE`].
    Undone,
}

impl Word {
    pub(super) fn say(self, tell: &mut PipeWriter) -> std::io::Result<()> {
        let byte = match self {
            Self::Intent => INTENT,
            Self::Keep => KEEP,
            Self::Undone => UNDONE,
        };
        tell.write_all(&[byte])
    }
}

/// What the child is left with when ksnap has said its last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// Nothing is left to be done.
    Undone,
    /// The sockets are its own.
    Keep,
    /// ksnap is gone, and may not have come to what it was about to do.
    LostIntending,
    /// ksnap is gone, and the processes run.
    Lost,
}

/// Hears ksnap out. `next` gives the next byte that it says, if it says any.
pub(super) fn hear(mut next: impl FnMut() -> Option<u8>) -> Told {
    let first = next();
    let intended = first == Some(INTENT);
    let last = if intended { next() } else { first };
    match last {
        Some(UNDONE) => Told::Undone,
        Some(_) => Told::Keep,
        None if intended => Told::LostIntending,
        None => Told::Lost,
    }
}

/// Copies of all that the child is to have, in the order in which it looks for them, and its channel among them. The child
/// knows descriptors by their numbers alone. So of the sockets those without `SO_REUSEADDR` come first, then what is
/// its own: the channel, its mark, the processes. Then come those with it.
pub(super) fn arrange(
    told: &PipeReader,
    processes: &[BorrowedFd<'_>],
    sockets: &[(OwnedFd, bool)],
    time_ns: u64,
) -> Result<(Vec<OwnedFd>, RawFd)> {
    let mut held: Vec<OwnedFd> = Vec::with_capacity(sockets.len() + processes.len() + 2);
    let mut place = |fd: BorrowedFd<'_>| -> Result<RawFd> {
        let above = held.last().map_or(3, |last| last.as_raw_fd() + 1);
        let copy = rustix::io::fcntl_dupfd_cloexec(fd, above)
            .map_err(|e| SysError::new("fcntl(F_DUPFD)", "sockets of a process", e))?;
        held.push(copy);
        Ok(held[held.len() - 1].as_raw_fd())
    };
    for (socket, _) in sockets.iter().filter(|(_, reuse)| !reuse) {
        place(socket.as_fd())?;
    }
    let channel = place(told.as_fd())?;
    place(memfd(&format!("{MARK}{time_ns}"))?.as_fd())?;
    for process in processes {
        place(*process)?;
    }
    for (socket, _) in sockets.iter().filter(|(_, reuse)| *reuse) {
        place(socket.as_fd())?;
    }
    Ok((held, channel))
}

/// The moment that a link of a custodian's descriptor tells, if it is that of its mark.
pub(super) fn moment(link: &str) -> Option<u64> {
    let mark = link.strip_prefix("/memfd:")?.strip_prefix(MARK)?;
    mark.split(' ').next()?.parse().ok()
}

/// The child's descriptors, as [`arrange`] has put them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arranged<'a> {
    without: &'a [RawFd],
    processes: &'a [RawFd],
    with: &'a [RawFd],
}

impl<'a> Arranged<'a> {
    pub(super) fn of(all: &'a [RawFd], channel: RawFd) -> Self {
        let split = all.iter().position(|fd| *fd == channel).unwrap_or(0);
        let (without, rest) = all.split_at(split);
        let rest = rest.get(2..).unwrap_or_default();
        let count = rest.iter().position(|fd| is_socket(*fd));
        let (processes, with) = rest.split_at(count.unwrap_or(rest.len()));
        Self {
            without,
            processes,
            with,
        }
    }

    /// The processes, as pidfds.
    pub(super) fn processes(&self) -> impl Iterator<Item = RawFd> + 'a {
        self.processes.iter().copied()
    }

    /// The sockets, each with its `SO_REUSEADDR`.
    pub(super) fn sockets(&self) -> impl Iterator<Item = (RawFd, i32)> + 'a {
        let without = self.without.iter().map(|fd| (*fd, 0));
        without.chain(self.with.iter().map(|fd| (*fd, 1)))
    }
}

/// Whether a descriptor is one of a socket.
fn is_socket(fd: RawFd) -> bool {
    let mut ty = 0i32;
    let mut len = size_of::<i32>() as libc::socklen_t;
    let (ty, len) = ((&raw mut ty).cast(), &raw mut len);
    // SAFETY: the value and its length are live locals of the size that is said.
    unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_TYPE, ty, len) == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::pidfd_open;
    use std::io::Read;

    #[test]
    fn what_is_said_is_what_is_heard() {
        use Word::{Intent, Keep, Undone};
        for (words, told) in [
            (&[][..], Told::Lost),
            (&[Intent], Told::LostIntending),
            (&[Keep], Told::Keep),
            (&[Intent, Keep], Told::Keep),
            (&[Undone], Told::Undone),
            (&[Intent, Undone], Told::Undone),
        ] {
            let (mut reader, mut writer) = std::io::pipe().unwrap();
            words.iter().for_each(|word| word.say(&mut writer).unwrap());
            drop(writer);
            let next = || {
                let mut byte = [0];
                (reader.read(&mut byte).unwrap() == 1).then_some(byte[0])
            };
            assert_eq!(hear(next), told, "{words:?}");
        }
    }

    #[test]
    fn what_is_arranged_is_found_again() {
        let (told, _tell) = std::io::pipe().unwrap();
        let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        let own = pidfd_open(std::process::id() as i32).unwrap();
        let cases = [&[][..], &[false], &[true], &[true, false, true, true]];
        for (reuse, count) in cases.into_iter().zip([1, 1, 3, 2]) {
            let sockets: Vec<(OwnedFd, bool)> = reuse
                .iter()
                .map(|reuse| (socket.as_fd().try_clone_to_owned().unwrap(), *reuse))
                .collect();
            let processes = vec![own.as_fd(); count];
            let (held, channel) = arrange(&told, &processes, &sockets, 77).unwrap();
            let all: Vec<RawFd> = held.iter().map(AsRawFd::as_raw_fd).collect();
            assert!(all.is_sorted(), "{all:?}");
            let arranged = Arranged::of(&all, channel);
            let mut found: Vec<i32> = arranged.sockets().map(|(_, reuse)| reuse).collect();
            found.sort_unstable();
            let mut expected: Vec<i32> = reuse.iter().map(|reuse| i32::from(*reuse)).collect();
            expected.sort_unstable();
            assert_eq!(found, expected);
            let link = |fd: RawFd| std::fs::read_link(format!("/proc/self/fd/{fd}")).unwrap();
            let link = |fd: RawFd| link(fd).to_string_lossy().into_owned();
            let processes: Vec<String> = arranged.processes().map(link).collect();
            assert_eq!(processes.len(), count);
            assert!(
                processes.iter().all(|p| p.contains("pidfd")),
                "{processes:?}"
            );
            let moments = all.iter().filter_map(|fd| moment(&link(*fd)));
            assert_eq!(moments.collect::<Vec<_>>(), [77]);
        }
    }
}
