//! Locks: those of the open file, taken by ksnap, and those of the process, taken by itself.

use super::install::Room;
use super::make::Made;
use super::plan::FilesPlan;
use crate::model::{Descriptor, FileLock, LockKind, OpenFile, ProcessState};
use crate::sys::{self, Remote, SysError, fd as opened};
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd;

impl Made {
    /// Has process `pid` give back the locks that it is to have otherwise, by calls that a stopped thread of it runs: of
    /// several processes one may have had since what another one had then.
    ///
    /// # Errors
    /// The process is left in between.
    pub fn unlock_process(
        &self,
        remote: &mut Remote,
        pid: i32,
        plan: &FilesPlan,
    ) -> sys::Result<()> {
        if plan.unlock.is_empty() {
            return Ok(());
        }
        let room = Room::new(remote, pid)?;
        let mut each = plan.unlock.iter();
        let done = each.try_for_each(|fd| unlock(remote, &room, *fd));
        room.close(remote)?;
        done
    }
}

/// Plans the locks of a process from `now` to `wanted`. They belong to the process and the file, through whichever open
/// file they were taken. `has` says which descriptors refer to their open files in the end. Gives those by which it gives
/// back what it has, one for each file, and those whose locks it takes, one for each open file.
pub(super) fn plan(
    wanted: &ProcessState,
    now: &ProcessState,
    has: impl Fn(&Descriptor) -> bool,
) -> (Vec<i32>, Vec<i32>) {
    let (then, now) = (by_file(wanted), by_file(now));
    let (mut unlock, mut lock) = (Vec::new(), Vec::new());
    let mut unlocked = BTreeSet::new();
    let mut seen = BTreeSet::new();
    for (d, file) in wanted.open_files() {
        if !has(&d) || file.flags & libc::O_PATH as u32 != 0 {
            continue;
        }
        let held = now.get(&file.identity);
        if held.is_some_and(|held| then.get(&file.identity) != Some(held))
            && unlocked.insert(file.identity)
        {
            unlock.push(d.fd);
        }
        // Also where they are held: closing any descriptor of the file on the way, be it of a moment, drops all of them.
        if seen.insert(d.file) && of_process_in(file).next().is_some() {
            lock.push(d.fd);
        }
    }
    (unlock, lock)
}

/// The locks of a process, by the files that they are on.
fn by_file(state: &ProcessState) -> BTreeMap<(u64, u64), BTreeSet<FileLock>> {
    let mut all: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    for (_, file) in state.open_files() {
        for lock in of_process_in(file) {
            all.entry(file.identity).or_default().insert(*lock);
        }
    }
    all
}

fn of_process_in(file: &OpenFile) -> impl Iterator<Item = &FileLock> {
    let all = file.locks.iter();
    all.filter(|lock| lock.kind == LockKind::Posix)
}

/// Gives back the locks of an open file that it is to have otherwise. What two open files have, of one process or of
/// several, may have been the other way round: all of them give back before any takes.
pub(super) fn give_back(fd: impl AsFd, want: &OpenFile, have: &OpenFile) -> sys::Result<()> {
    for lock in only_in(have, want) {
        match lock.kind {
            LockKind::Posix => {}
            LockKind::Ofd => opened::unlock_ofd(&fd, lock)?,
            LockKind::Lease => opened::drop_lease(&fd)?,
            LockKind::Flock => {
                // Shared it stays, if it is to be held at all: nobody who waits for it comes in between.
                let stays = want.locks.iter().any(|l| l.kind == LockKind::Flock);
                opened::lock_flock(&fd, stays.then_some(false))?;
            }
        }
    }
    Ok(())
}

/// Takes the locks that an open file lacks. Those that others are in the way of are told, a sentence each.
pub(super) fn take(
    fd: impl AsFd,
    want: &OpenFile,
    have: Option<&OpenFile>,
    notes: &mut Vec<String>,
) -> sys::Result<()> {
    let nothing = OpenFile::default();
    let have = have.unwrap_or(&nothing);
    for lock in only_in(want, have) {
        let taken = match lock.kind {
            LockKind::Posix => continue,
            LockKind::Ofd => opened::lock_ofd(&fd, lock),
            LockKind::Flock => opened::lock_flock(&fd, Some(lock.write)),
            LockKind::Lease => opened::take_lease(&fd, lock.write),
        };
        match taken {
            Err(e) if is_in_use(&e) => {
                if lock.kind == LockKind::Flock && have.locks.iter().any(|l| l.kind == lock.kind) {
                    // What cannot become exclusive is given up on the way (flock(2)).
                    let _ = opened::lock_flock(&fd, Some(false));
                }
                tell(
                    notes,
                    match lock.kind {
                        LockKind::Lease => format!(
                            "{}: its lease is not taken again, since others have the file open now ({})",
                            want.link, e.source
                        ),
                        _ => format!(
                            "{}: another process holds a lock on it that was held here",
                            want.link
                        ),
                    },
                )
            }
            taken => taken?,
        }
    }
    Ok(())
}

/// Locks that the first has and the second has not. Those of one open file do not overlap.
fn only_in<'a>(one: &'a OpenFile, other: &'a OpenFile) -> impl Iterator<Item = &'a FileLock> {
    let mut all = one.locks.iter();
    std::iter::from_fn(move || all.find(|lock| !other.locks.contains(lock)))
}

/// Of several locks of a file once.
fn tell(notes: &mut Vec<String>, note: String) {
    if !notes.contains(&note) {
        notes.push(note);
    }
}

/// Others are in the way of what was to be taken.
fn is_in_use(e: &SysError) -> bool {
    matches!(e.errno(), Some(libc::EAGAIN | libc::EACCES | libc::EBUSY))
}

/// Lets the process take its locks on the file behind `fd`; those that others are in the way of are told. What it is not to
/// have it has given back before, by [`Made::unlock_process`]: of two open files of one file, giving back through one drops
/// what was taken through the other.
pub(super) fn of_process(
    remote: &mut Remote,
    room: &Room,
    fd: i32,
    want: &OpenFile,
    notes: &mut Vec<String>,
) -> sys::Result<()> {
    for lock in of_process_in(want) {
        match set(remote, room, fd, &opened::flock_bytes(lock, false)) {
            Err(e) if is_in_use(&e) => tell(
                notes,
                format!(
                    "descriptor {fd}: another process holds a lock on {} that was this one's",
                    want.link
                ),
            ),
            taken => taken?,
        }
    }
    Ok(())
}

fn unlock(remote: &mut Remote, room: &Room, fd: i32) -> sys::Result<()> {
    let all = FileLock::default();
    set(remote, room, fd, &opened::flock_bytes(&all, true))
}

fn set(remote: &mut Remote, room: &Room, fd: i32, bytes: &[u8]) -> sys::Result<()> {
    room.write(0, bytes)?;
    let args = [fd as u64, libc::F_SETLK as u64, room.at(0), 0, 0, 0];
    remote
        .call("fcntl(F_SETLK)", libc::SYS_fcntl, args)
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lock(kind: LockKind, start: u64) -> FileLock {
        FileLock {
            kind,
            write: true,
            start,
            end: Some(start + 1),
        }
    }

    /// Descriptors 3, 4 and so on, all of one file; each opened anew, with its locks.
    fn state(locks: &[&[FileLock]]) -> ProcessState {
        let file = |locks: &&[FileLock]| OpenFile {
            identity: (1, 5),
            locks: locks.to_vec(),
            ..OpenFile::default()
        };
        let descriptor = |file: u32| Descriptor {
            fd: 3 + file as i32,
            file,
            cloexec: false,
        };
        ProcessState {
            files: locks.iter().map(file).collect(),
            descriptors: (0..locks.len() as u32).map(descriptor).collect(),
            ..ProcessState::default()
        }
    }

    #[test]
    fn locks_of_a_process_are_compared_by_file_whatever_they_were_taken_through() {
        let [a, b] = [1, 2].map(|start| lock(LockKind::Posix, start));
        let then = state(&[&[a], &[b]]);
        let planned = |now: &[&[FileLock]]| plan(&then, &state(now), |_| true);
        // The same, in whichever order and through whichever: none is given up for a moment.
        for live in [&[&[a][..], &[b]][..], &[&[b], &[a]], &[&[], &[b, a]]] {
            assert_eq!(planned(live), (vec![], vec![3, 4]));
        }
        // Given back once, before both are taken.
        assert_eq!(planned(&[&[a], &[]]), (vec![3], vec![3, 4]));
        assert_eq!(planned(&[&[], &[]]), (vec![], vec![3, 4]));
        // What belongs to an open file is no business of the process.
        let ofd = lock(LockKind::Ofd, 1);
        let planned = plan(&state(&[&[ofd]]), &state(&[&[]]), |_| true);
        assert_eq!(planned, (vec![], vec![]));
    }

    #[test]
    fn a_descriptor_that_locks_nothing_gives_back_nothing() {
        let held = lock(LockKind::Posix, 1);
        let mut then = state(&[&[], &[], &[]]);
        then.files[0].flags = libc::O_PATH as u32;
        let planned = plan(&then, &state(&[&[held]]), |d| d.fd != 4);
        assert_eq!(planned, (vec![5], vec![]));
    }

    #[test]
    fn a_lock_that_is_to_be_shared_is_not_given_up_for_it() {
        let flock = |write| OpenFile {
            locks: vec![FileLock {
                kind: LockKind::Flock,
                write,
                ..FileLock::default()
            }],
            ..OpenFile::default()
        };
        let file = tempfile::NamedTempFile::new().unwrap();
        let other = std::fs::File::open(file.path()).unwrap();
        let mut notes = Vec::new();
        take(&file, &flock(true), None, &mut notes).unwrap();
        give_back(&file, &flock(false), &flock(true)).unwrap();
        assert!(opened::lock_flock(&other, Some(true)).is_err());
        take(&file, &flock(false), Some(&flock(true)), &mut notes).unwrap();
        opened::lock_flock(&other, Some(false)).unwrap();
        assert_eq!(notes, Vec::<String>::new());
        // In the way of it now.
        take(&file, &flock(true), Some(&flock(false)), &mut notes).unwrap();
        assert_eq!(notes.len(), 1, "{notes:?}");
    }

    #[test]
    fn what_cannot_become_exclusive_again_stays_shared() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let open = || std::fs::File::open(file.path()).unwrap();
        let (own, other, third) = (open(), open(), open());
        for fd in [&own, &other] {
            opened::lock_flock(fd, Some(false)).unwrap();
        }
        let with = |write| OpenFile {
            locks: vec![FileLock {
                write,
                ..lock(LockKind::Flock, 0)
            }],
            ..OpenFile::default()
        };
        let mut notes = Vec::new();
        take(&own, &with(true), Some(&with(false)), &mut notes).unwrap();
        assert_eq!(notes.len(), 1, "{notes:?}");
        opened::lock_flock(&other, None).unwrap();
        assert!(opened::lock_flock(&third, Some(true)).is_err());
        opened::lock_flock(&third, Some(false)).unwrap();
    }
}
