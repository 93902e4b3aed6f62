//! Namespaces that a new process enters again, if they are still there (`namespaces(7)`, `setns(2)`).

use crate::model::{Clocks, ProcessState};
use crate::sys::{self, Sought, proc};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

/// Kinds of namespaces, with what they separate.
const SEPARATE: [(&str, &str); 6] = [
    ("net", "network"),
    ("ipc", "System V IPC"),
    ("uts", "host name"),
    ("cgroup", "control groups"),
    ("mnt", "mounts"),
    ("user", "users"),
];
/// Kinds that are not entered: its files are opened by ksnap, where that is; and whoever enters one of users has all
/// capabilities there, and none outside.
const STAYS: [&str; 2] = ["mnt", "user"];

/// Which network a new process is in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Network {
    /// The one that it was in, if that is still there; else ksnap's.
    #[default]
    Same,
    /// ksnap's.
    Shared,
    /// One of its own.
    Private,
}

/// Which namespaces a new process is in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Namespaces {
    /// One of users is made for it; from there no other can be entered.
    pub users: bool,
    /// Its network.
    pub network: Network,
    /// It enters none: those that it was in are another machine's.
    pub stays: bool,
}

/// Namespaces that a new process enters.
#[derive(Debug, Default)]
pub struct Entered {
    all: Vec<(&'static str, OwnedFd)>,
    /// Kinds of which it is in another one than it was.
    missed: Vec<&'static str>,
    /// What will differ, a sentence each.
    pub notes: Vec<String>,
}

impl Entered {
    /// Looks for those that a process was in, on the machine whose clocks these are. Those that are ksnap's own are none.
    pub fn find(
        wanted: &ProcessState,
        chosen: Namespaces,
        host: Option<&Clocks>,
    ) -> sys::Result<Self> {
        let own = std::process::id() as i32;
        let here = proc::namespaces(own)?;
        let ids = sys::namespace_ids(own);
        let mut entered = Self::default();
        for (kind, what) in SEPARATE {
            let is_made = match kind {
                "net" => chosen.network == Network::Private,
                "user" => chosen.users,
                _ => false,
            };
            let inode = match kind {
                "mnt" => wanted.attributes.mounts(),
                _ => wanted.attributes.namespace(kind),
            };
            let Some(inode) = inode.filter(|_| !is_made) else {
                continue;
            };
            // Those that a machine starts with have the same inode numbers each time, and other ids.
            let knows_ids = is_same_start(wanted, host) && !chosen.stays;
            let id = wanted.attributes.namespace_id(kind).filter(|_| knows_ids);
            let of_here = here.iter().find(|(name, _)| name == kind);
            let id_here = ids.iter().find(|(name, _)| *name == kind);
            let is_same_id = id.zip(id_here).is_none_or(|(id, here)| id == here.1);
            if of_here.is_none_or(|here| here.1 == inode && is_same_id) {
                continue;
            }
            match enter(wanted, (kind, inode), chosen, host) {
                Ok(found) => entered.all.push((kind, found)),
                Err(why) => {
                    entered.missed.push(kind);
                    entered.notes.push(format!(
                        "it was in another {kind} namespace ({what}) than ksnap is{why}, and is in ksnap's now"
                    ));
                }
            }
        }
        Ok(entered)
    }

    /// Runs `work` where the new process will be, as to namespaces of this kind.
    pub fn inside<T: Send>(&self, kind: &str, work: impl FnOnce() -> T + Send) -> sys::Result<T> {
        match self.all.iter().find(|(name, _)| *name == kind) {
            Some((_, namespace)) => sys::in_namespace(namespace.as_fd(), work),
            None => Ok(work()),
        }
    }

    /// Whether the new process is in the one of this kind that it was in.
    pub fn has(&self, kind: &str) -> bool {
        !self.missed.contains(&kind)
    }

    /// All of them.
    pub fn descriptors(&self) -> impl Iterator<Item = RawFd> {
        self.all.iter().map(|(_, fd)| fd.as_raw_fd())
    }
}

/// Finds one that a new process can enter, or says why there is none.
fn enter(
    wanted: &ProcessState,
    (kind, inode): (&str, u64),
    chosen: Namespaces,
    host: Option<&Clocks>,
) -> Result<OwnedFd, String> {
    let stays = chosen.stays || STAYS.contains(&kind);
    if stays || kind == "net" && chosen.network == Network::Shared {
        return Err(String::new());
    }
    let sought = sought(wanted, kind, inode, host)
        .ok_or(", of which it cannot be told whether it is there")?;
    let found = sys::find_namespace(sought).ok_or(", which is not there any more")?;
    if chosen.users {
        return Err(", which cannot be entered from a user namespace".into());
    }
    let tried = sys::in_namespace(found.as_fd(), || ());
    tried.map_err(|e| format!(", which cannot be entered ({})", e.source))?;
    Ok(found)
}

/// Whether the machine runs on since then.
fn is_same_start(wanted: &ProcessState, host: Option<&Clocks>) -> bool {
    let start = |clocks: &Clocks| clocks.boot;
    let then = wanted.clocks.as_ref().map(start);
    then.is_some() && then == host.map(start)
}

/// What is looked for, if the machine was not started anew since.
fn sought<'a>(
    wanted: &ProcessState,
    kind: &'a str,
    inode: u64,
    host: Option<&Clocks>,
) -> Option<Sought<'a>> {
    let then = wanted.clocks.filter(|_| is_same_start(wanted, host))?;
    let offset = wanted.attributes.time_offsets.unwrap_or_default()[1];
    Some(Sought {
        kind,
        inode,
        id: wanted.attributes.namespace_id(kind),
        at_ns: u64::try_from(then.boottime_ns.saturating_sub(offset)).ok()?,
    })
}

/// The namespaces in which a process of a tree was without its first process, which decides.
pub fn other_than(first: &ProcessState, other: &ProcessState) -> Vec<String> {
    let inode = |of: &ProcessState, kind| of.attributes.namespace(kind);
    let kinds = SEPARATE.into_iter();
    kinds
        .filter(|(kind, _)| inode(first, kind) != inode(other, kind))
        .map(|(kind, what)| {
            format!("it was in another {kind} namespace ({what}) than the first of the tree, and is in that one now")
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ProcessAttributes;

    const HERE: Clocks = Clocks {
        boot: [7; 16],
        monotonic_ns: 1000,
        boottime_ns: 1000,
    };

    /// One that was captured where this process is, in a network of this id.
    fn captured(boot: u8, id: u64) -> ProcessState {
        let mut attributes = ProcessAttributes {
            namespaces: proc::namespaces(std::process::id() as i32).unwrap(),
            ..ProcessAttributes::default()
        };
        attributes.set_namespace_id("net", id);
        ProcessState {
            attributes,
            clocks: Some(Clocks {
                boot: [boot; 16],
                ..HERE
            }),
            ..ProcessState::default()
        }
    }

    fn notes(wanted: &ProcessState, chosen: Namespaces) -> Vec<String> {
        Entered::find(wanted, chosen, Some(&HERE)).unwrap().notes
    }

    #[test]
    fn a_number_that_another_namespace_has_now_is_not_the_same_one() {
        let own = sys::namespace_ids(std::process::id() as i32);
        let same = Namespaces::default();
        let Some((_, id)) = own.into_iter().find(|(kind, _)| *kind == "net") else {
            // Before Linux 6.18 the inode number decides.
            return assert!(notes(&captured(7, 1), same).is_empty());
        };
        assert_eq!(notes(&captured(7, id), same), Vec::<String>::new());
        let other = notes(&captured(7, id + 1000), same);
        assert_eq!(other.len(), 1, "{other:?}");
        assert!(other[0].contains("not there any more"), "{other:?}");
        // They are given anew with each start of the machine, and on each machine.
        assert!(notes(&captured(8, id + 1000), same).is_empty());
        let stays = Namespaces {
            stays: true,
            ..same
        };
        assert!(notes(&captured(7, id + 1000), stays).is_empty());
    }

    #[test]
    fn one_of_another_start_is_not_looked_for() {
        let mut state = captured(8, 1);
        for (kind, inode) in &mut state.attributes.namespaces {
            if kind == "uts" {
                *inode += 1;
            }
        }
        let notes = notes(&state, Namespaces::default());
        assert_eq!(notes.len(), 1, "{notes:?}");
        assert!(notes[0].contains("cannot be told"), "{notes:?}");
    }
}
