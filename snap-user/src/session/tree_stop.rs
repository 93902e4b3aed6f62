//! The processes of a tree in their stop, and from there until the tree is stored.

use super::engine::Engine;
use super::family::Stopped;
use super::kept::{Keeping, end_keeping};
use super::stop::{Ahead, Caught};
use super::tree_files::{Holder, shared_files};
use super::tree_shared::SharedSeen;
use super::tree_terminals::{Grouped, foreground, unread};
use super::{Result, SessionError, Taken, Then};
use crate::capture::{self, CaptureError, Connections};
use crate::model::{ProcessTree, SharedFile, SnapshotId, SnapshotKind, TreeMember, Zombie};
use crate::sys::{Custodian, SysError, proc};
use std::sync::Arc;

/// A process that was captured.
pub(super) struct Member {
    pub(super) pid: i32,
    pub(super) comm: String,
    /// Its parent, by its place among them.
    pub(super) parent: Option<u32>,
    pub(super) group: i32,
    pub(super) session: i32,
    /// It was in a job-control stop.
    pub(super) stopped: bool,
    pub(super) caught: Caught,
    /// What became of its snapshot, once that is known.
    pub(super) outcome: Option<Result<Taken>>,
}

/// Captures a stopped process, which stands until its member is dropped. `None` where it runs another program than was
/// prepared.
pub(super) fn catch(
    engine: &mut Engine,
    (kind, ahead): (SnapshotKind, Ahead),
    (stopped, stop): (Stopped, u64),
    connections: &Arc<Connections>,
    seen: &mut SharedSeen,
) -> Result<Option<Member>> {
    let pid = stopped.pid;
    let job_stopped = stopped.frozen.is_job_stopped();
    let failed = |e| SessionError::from(CaptureError::from_sys(pid, e));
    let group = proc::own_group(pid).map_err(failed)?;
    let session = proc::own_session(pid).map_err(failed)?;
    engine.live.files.set_connections(connections.clone());
    let caught = engine.stopped(kind, ahead, stopped.frozen, stop, (true, Some(seen)));
    engine.live.files.set_connections(Arc::default());
    let Ok(caught) = caught? else {
        engine.events.exec = true;
        return Ok(None);
    };
    Ok(Some(Member {
        pid,
        comm: engine.target().comm.clone(),
        parent: stopped.parent,
        group,
        session,
        stopped: job_stopped,
        caught,
        outcome: None,
    }))
}

/// What is between the processes of a tree.
#[derive(Default)]
pub(super) struct Relations {
    /// Open files that several share.
    pub(super) shared: Vec<Vec<SharedFile>>,
    /// The process group in the foreground of the terminal of each, where it leads a session.
    pub(super) foregrounds: Vec<Option<i32>>,
}

impl Relations {
    /// Looks at all of them while they stand; what cannot be saved is added to the notes.
    pub(super) fn look(flight: &mut Flight) -> Self {
        let members = &flight.members;
        let holders = members.iter().map(|member| Holder {
            pid: member.pid,
            files: &member.caught.files,
        });
        let holders: Vec<_> = holders.collect();
        let shared = shared_files(&holders, &mut flight.notes);
        flight.notes.extend(unread(&holders));
        let grouped = members.iter().map(|m| Grouped::of(m.pid, m.group));
        let zombies = flight.zombies.iter().map(|z| Grouped::of(z.pid, z.group));
        let grouped: Vec<Grouped> = grouped.chain(zombies).collect();
        let leads = |m: &Member| proc::own_id(m.pid, m.pid).is_ok_and(|own| own == m.session);
        let foregrounds = members
            .iter()
            .map(|m| leads(m).then(|| foreground(m.pid, &grouped)).flatten());
        Self {
            shared,
            foregrounds: foregrounds.collect(),
        }
    }
}

/// A tree from its stop until it is stored. Those that stand go on when this is dropped.
pub(super) struct Flight {
    then: Then,
    /// Who has their connections. Before them, so that it gives the sockets back before they go on.
    connections: Option<Custodian>,
    pub(super) time_ns: u64,
    pub(super) stop_ns: u64,
    /// Parents before their children.
    pub(super) members: Vec<Member>,
    pub(super) zombies: Vec<Zombie>,
    pub(super) relations: Relations,
    /// What is not saved, a sentence each.
    pub(super) notes: Vec<String>,
}

impl Flight {
    pub(super) fn new(then: Then, time_ns: u64, zombies: Vec<Zombie>, notes: Vec<String>) -> Self {
        Self {
            then,
            connections: None,
            time_ns,
            stop_ns: 0,
            members: Vec::new(),
            zombies,
            relations: Relations::default(),
            notes,
        }
    }

    /// Takes the connections of those that stand.
    pub(super) fn take_connections(&mut self, pids: &[i32]) -> Result<Arc<Connections>> {
        let (taken, custodian) = capture::take_connections(pids)?;
        self.connections = custodian;
        Ok(Arc::new(taken))
    }

    /// Lets all of them go on.
    pub(super) fn thaw(&mut self) {
        for member in &mut self.members {
            drop(member.caught.frozen.take());
        }
    }

    /// What is stored of it, with the snapshots of its processes in their order.
    pub(super) fn record(&self, ids: impl Iterator<Item = SnapshotId>) -> ProcessTree {
        let members = self.members.iter().zip(ids);
        let members = members
            .zip(&self.relations.foregrounds)
            .map(|((member, id), foreground)| TreeMember {
                id,
                pid: member.pid,
                parent: member.parent,
                group: member.group,
                session: member.session,
                stopped: member.stopped,
                foreground: *foreground,
            });
        ProcessTree {
            time_ns: self.time_ns,
            stop_ns: self.stop_ns,
            members: members.collect(),
            zombies: self.zombies.clone(),
            shared: self.relations.shared.clone(),
        }
    }

    /// They are stored: what becomes of them now. Where they end, children do first: process 1 of a PID namespace ends
    /// after all others there.
    ///
    /// # Errors
    /// The first of them; all have been let go all the same.
    pub(super) fn end(mut self) -> Result<Keeping> {
        let standing = self.members.iter_mut().rev();
        let standing = standing.filter_map(|m| m.caught.frozen.take());
        let signal = match self.then {
            Then::GoOn => return Ok(Keeping::default()),
            Then::Stop => libc::SIGSTOP,
            Then::Kill => libc::SIGKILL,
            Then::KillKeeping => return end_keeping(standing, self.connections.take()),
        };
        let failed: Vec<SysError> = standing
            .filter_map(|frozen| frozen.end_with(signal).err())
            .collect();
        match failed.into_iter().next() {
            None => Ok(Keeping::default()),
            Some(e) => Err(e.into()),
        }
    }
}
