//! Locks of files in rollbacks: who holds one now, and who held it then.

use std::fs::File;
use std::os::fd::AsFd;

use anyhow::{Result, ensure};
use nix::fcntl::{FcntlArg, Flock, FlockArg, fcntl};
use serde_json::Value;
use tests::family::{Family, roll_back};
use tests::{Ksnap, require};

/// Rolls a process back without those below it.
fn alone(ksnap: &Ksnap, pid: i32, id: &str) -> Result<Value> {
    ksnap.roll_back(pid, id)
}

const IN_THE_WAY: &str = "another process holds a lock";

/// Processes that hold POSIX locks, among these (proc_locks(5)).
fn lockers(among: &[i32]) -> Result<Vec<i32>> {
    let locks = std::fs::read_to_string("/proc/locks")?;
    let words = locks.lines().map(|line| line.split_whitespace().collect());
    let posix = words.filter(|words: &Vec<&str>| words.get(1) == Some(&"POSIX"));
    let pids = posix.filter_map(|words| words.get(4)?.parse().ok());
    Ok(pids.filter(|pid| among.contains(pid)).collect())
}

/// The locks that belong to open files of a process, by kind (proc_pid_fdinfo(5)).
fn held_by_files(pid: i32) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
        let text = std::fs::read_to_string(entry?.path())?;
        let locks = text.lines().filter_map(|line| line.strip_prefix("lock:"));
        let kinds = locks.filter_map(|lock| lock.split_whitespace().nth(1));
        found.extend(kinds.filter(|kind| *kind != "POSIX").map(ToOwned::to_owned));
    }
    found.sort_unstable();
    Ok(found)
}

/// What each of the two holds.
fn held(family: &Family) -> Result<[Vec<String>; 2]> {
    Ok([held_by_files(family.root())?, held_by_files(family.child)?])
}

fn both() -> Vec<String> {
    vec!["FLOCK".into(), "OFDLCK".into()]
}

/// What one holds now another one held then: it is given back before it is taken.
#[test]
fn locks_go_back_to_those_who_held_them() -> Result<()> {
    require!(Root, Ksnap, Program("python3"));
    let mut family = Family::start()?;
    let both = [family.root(), family.child];
    let mut ids = Vec::new();
    for who in ["parent", "child", "nobody"] {
        family.say(&format!("lock {who}"))?;
        ids.push(family.capture()?);
    }
    for n in [0, 1, 0, 2, 1, 2] {
        let said = roll_back(&family.ksnap, family.root(), &ids[n])?;
        let holders = lockers(&both)?;
        let expected: Vec<i32> = both.get(n).copied().into_iter().collect();
        ensure!(holders == expected, "{n}: {holders:?}");
        ensure!(!said.to_string().contains("lock"), "{said}");
    }
    family.end()
}

/// Through which open file of a file a process has taken its locks is of no matter: by one of them it may lose all.
#[test]
fn a_process_keeps_the_locks_that_it_has_through_several_open_files() -> Result<()> {
    require!(Root, Ksnap, Program("python3"));
    let mut family = Family::start()?;
    let root = family.root();
    family.say("extra")?;
    family.say("ranges both")?;
    let id = family.capture()?;
    for go_back in [alone, roll_back] {
        for since in [
            &[][..],
            &["ranges none"],
            // Closed, with which all are lost, and taken again: they are lost once more when it is put back.
            &["over", "ranges both"],
            &["extra"],
        ] {
            for word in since {
                family.say(word)?;
            }
            let said = go_back(&family.ksnap, root, &id)?;
            let holders = lockers(&[root])?;
            ensure!(holders == [root, root], "{since:?}: {holders:?}");
            ensure!(!said.to_string().contains("lock"), "{since:?}: {said}");
        }
    }
    family.end()
}

/// The same of locks that belong to open files.
#[test]
fn locks_of_open_files_go_back_to_those_that_had_them() -> Result<()> {
    require!(Root, Ksnap, Program("python3"));
    let mut family = Family::start()?;
    let mut ids = Vec::new();
    for who in ["parent", "child", "nobody"] {
        family.say(&format!("hold {who}"))?;
        ids.push(family.capture()?);
    }
    let known = [(0, false), (1, false), (0, false), (2, false)];
    for (n, another) in known.into_iter().chain([(1, true), (0, true), (2, true)]) {
        if another {
            // A file that was opened since has them, and is closed.
            family.say("hold another")?;
        }
        let said = roll_back(&family.ksnap, family.root(), &ids[n])?;
        let mut expected = [Vec::new(), Vec::new()];
        if let Some(holder) = expected.get_mut(n) {
            *holder = both();
        }
        let found = held(&family)?;
        ensure!(found == expected, "{n}: {found:?}");
        ensure!(!said.to_string().contains("lock"), "{said}");
    }
    family.end()
}

/// A lock that is somebody else's by now stays so: that is said, and all the rest goes back.
#[test]
fn a_lock_that_another_process_has_taken_stays_with_it() -> Result<()> {
    require!(Root, Ksnap, Program("python3"));
    let mut family = Family::start()?;
    let root = family.root();
    family.say("fill one")?;
    family.say("hold parent")?;
    let id = family.capture()?;
    for go_back in [alone, roll_back] {
        family.say("hold nobody")?;
        family.say("fill other")?;
        let file = File::options()
            .read(true)
            .write(true)
            .open(family.place())?;
        let range = libc::flock {
            l_type: libc::F_WRLCK as i16,
            l_whence: libc::SEEK_SET as i16,
            l_start: 0,
            l_len: 1,
            l_pid: 0,
        };
        fcntl(file.as_fd(), FcntlArg::F_OFD_SETLK(&range))?;
        let Ok(file) = Flock::lock(file, FlockArg::LockExclusiveNonblock) else {
            anyhow::bail!("it cannot be locked");
        };
        let said = go_back(&family.ksnap, root, &id)?;
        ensure!(said.to_string().contains(IN_THE_WAY), "{said}");
        let found = held(&family)?;
        ensure!(found.concat().is_empty(), "{found:?}");
        ensure!(family.say("mine")?["mine"] == "one");
        drop(file);
        let said = go_back(&family.ksnap, root, &id)?;
        ensure!(!said.to_string().contains(IN_THE_WAY), "{said}");
        let found = held(&family)?;
        ensure!(found == [both(), Vec::new()], "{found:?}");
    }
    family.shows("one")?;
    family.end()
}
