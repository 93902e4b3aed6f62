//! A process and its descendants: who they are, and stopping all of them.

use super::Result;
use crate::capture::{CaptureError, is_ksnap};
use crate::model::Zombie;
use crate::sys::{Freeze, Frozen, Hold, SysError, proc};
use std::collections::BTreeSet;
use std::time::Duration;

/// How long a thread may take to stop. A vfork in progress takes as long as its child needs to execute something.
const TIMEOUT: Duration = Duration::from_millis(500);

/// A stopped process of a tree.
pub(super) struct Stopped {
    pub(super) pid: i32,
    /// Its parent, by its place among the members.
    pub(super) parent: Option<u32>,
    pub(super) frozen: Frozen,
}

/// What is stopped, parents before their children. It goes on when this is dropped, children first: a parent that runs
/// sees none of its children in a stop that is not its own.
pub(super) struct Herd<T>(pub(super) Vec<T>);

impl<T> Drop for Herd<T> {
    fn drop(&mut self) {
        while self.0.pop().is_some() {}
    }
}

/// A stopped tree.
pub(super) struct Family {
    /// Parents before their children.
    pub(super) members: Herd<Stopped>,
    pub(super) zombies: Vec<Zombie>,
    /// Who is left out, a sentence each.
    pub(super) notes: Vec<String>,
}

/// The process and its living descendants as they are just now, parents before their children; ksnaps aside.
pub fn look(root: i32) -> Result<Vec<i32>> {
    let mut found = vec![root];
    let mut seen = BTreeSet::from([root]);
    let mut next = 0;
    while next < found.len() {
        let parents = found[next..].to_vec();
        next = found.len();
        for (_, children) in proc::children(&parents) {
            let new = children.into_iter().filter(|pid| !is_ksnap(*pid));
            let living = new.filter(|pid| seen.insert(*pid) && proc::is_alive(*pid));
            found.extend(living);
        }
    }
    Ok(found)
}

/// Stops the process and all of its descendants. A stopped process makes no children: when none appears any more,
/// all of them are stopped.
///
/// # Errors
/// When one of them cannot be stopped; all of them run on then.
pub(super) fn freeze(root: i32, hold: Hold) -> Result<Family> {
    let mut family = Family {
        members: Herd(vec![Stopped {
            pid: root,
            parent: None,
            frozen: stop(root, hold).map_err(|e| CaptureError::from_sys(root, e))?,
        }]),
        zombies: Vec::new(),
        notes: Vec::new(),
    };
    let mut known = BTreeSet::from([root]);
    loop {
        let parents: Vec<i32> = family.members.0.iter().map(|m| m.pid).collect();
        let mut more = false;
        for (at, (_, children)) in proc::children(&parents).into_iter().enumerate() {
            for pid in children {
                if !known.insert(pid) {
                    continue;
                }
                more = true;
                if is_ksnap(pid) {
                    family.notes.push(format!(
                        "process {pid} is ksnap, and is left out of the tree with what it has started"
                    ));
                    continue;
                }
                match stop(pid, hold) {
                    Ok(frozen) => family.members.0.push(Stopped {
                        pid,
                        parent: Some(at as u32),
                        frozen,
                    }),
                    Err(_) if !proc::is_alive(pid) => {
                        family.zombies.extend(zombie(pid, at as u32));
                    }
                    Err(e) => return Err(CaptureError::from_sys(pid, e).into()),
                }
            }
        }
        if !more {
            return Ok(family);
        }
    }
}

fn stop(pid: i32, hold: Hold) -> std::result::Result<Frozen, SysError> {
    let options = Freeze {
        timeout: TIMEOUT,
        hold,
    };
    Frozen::freeze(pid, options)
}

/// What is left of a process that has ended; `None` when nothing is.
fn zombie(pid: i32, parent: u32) -> Option<Zombie> {
    let stat = proc::stat(pid, None).ok()?;
    Some(Zombie {
        pid,
        own_pid: proc::own_id(pid, pid).unwrap_or(pid),
        parent,
        group: proc::own_group(pid).ok()?,
        session: proc::own_session(pid).ok()?,
        // The wait status, for those who may trace it.
        status: stat.field(52) as i32,
        comm: stat.comm,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::process::{Command, Stdio};
    use std::time::Instant;

    #[test]
    fn what_is_stopped_goes_on_from_the_last_to_the_first() {
        struct One<'a>(i32, &'a RefCell<Vec<i32>>);
        impl Drop for One<'_> {
            fn drop(&mut self) {
                self.1.borrow_mut().push(self.0);
            }
        }
        let gone = RefCell::new(Vec::new());
        drop(Herd([1, 2, 3].map(|n| One(n, &gone)).into()));
        assert_eq!(*gone.borrow(), [3, 2, 1]);
    }

    #[test]
    fn all_descendants_are_stopped_and_zombies_are_told() {
        // What the shell becomes waits for no child. The first ends only then: before, the shell might wait for it.
        let ends = "while read c </proc/$PPID/comm && [ $c != cat ]; do :; done; exit 7";
        let script = format!("sh -c '{ends}' & sleep 1000 & sh -c 'sleep 1000; true' & exec cat");
        let mut shell = Command::new("sh")
            .args(["-c", &script])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let pid = shell.id() as i32;
        let end = Instant::now() + Duration::from_secs(60);
        let family = loop {
            assert!(Instant::now() < end, "they do not come to be so");
            match freeze(pid, Hold::Trace) {
                Ok(family) if family.members.0.len() == 4 && family.zombies.len() == 1 => {
                    break family;
                }
                Ok(_) => {}
                // On its way into its program it may take longer than is waited for.
                Err(e) => assert!(e.to_string().contains("does not stop"), "{e}"),
            }
            std::thread::yield_now();
        };
        assert_eq!(family.zombies[0].status, 7 << 8);
        assert_eq!(family.zombies[0].parent, 0);
        for member in &family.members.0 {
            assert_eq!(proc::stat(member.pid, None).unwrap().state, 't');
            let parent = member.parent.map(|at| family.members.0[at as usize].pid);
            let ppid = proc::stat(member.pid, None).unwrap().ppid;
            assert_eq!(ppid, parent.unwrap_or(std::process::id() as i32));
        }
        let pids: Vec<i32> = family.members.0.iter().map(|m| m.pid).collect();
        drop(family);
        for pid in pids {
            Command::new("kill")
                .args(["-9", &pid.to_string()])
                .status()
                .unwrap();
        }
        shell.wait().unwrap();
    }
}
