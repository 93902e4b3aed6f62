//! What a watch is of: one process, or a tree of them.

use super::control::{Also, Reply};
use super::keeper::Keeper;
use super::tree_engine::TreeEngine;
use super::types::{Progress, Taken};
use super::{Engine, Result, SessionError, TakenTree, Then, TrackerKind};
use crate::image::SessionId;
use crate::model::{Costs, SnapshotId, SnapshotKind};
use std::time::Duration;

/// What the loop of a watch needs to know of a snapshot.
pub(super) struct Price {
    pub(super) id: SnapshotId,
    pub(super) kind: SnapshotKind,
    pub(super) costs: Costs,
    pub(super) bytes: u64,
}

/// Something that is watched. All of its calls come from its tracer's thread.
pub(super) trait Subject {
    /// A snapshot of it.
    type Taken;

    /// What is said when the watching begins.
    fn attached(&self) -> Progress;

    /// Snapshots are to follow each other at this interval.
    fn pace(&mut self, every: Duration);

    /// Takes in what happened meanwhile.
    fn tick(&mut self) -> Result<()>;

    /// Takes a snapshot, which is on its way when this returns.
    fn begin(&mut self) -> Result<()>;

    /// A snapshot is on its way.
    fn is_busy(&self) -> bool;

    /// What became of the last snapshot, waiting until it is known. `None` if that was told before.
    fn settle(&mut self) -> Option<Result<Self::Taken>>;

    /// The same without waiting: `None` also while it is still on its way.
    fn try_settle(&mut self) -> Option<Result<Self::Taken>>;

    /// A rollback has left it on a mixed state.
    fn is_mixed(&self) -> bool;

    /// There is room for another snapshot.
    fn has_room(&self) -> bool;

    /// The watching ends in haste: what could be removed stays.
    fn leave(&self);

    /// Who removes snapshots of a session; `None` where that session is not written here.
    fn keeper(&self, session: Option<SessionId>) -> Option<&Keeper>;

    /// The keys for which its snapshots are sealed.
    fn recipients(&self) -> Result<Vec<String>>;

    /// The engine that a profile is made of; or why there is none.
    fn profiled(&mut self) -> std::result::Result<&mut Engine, String>;

    /// Why a request for a process, or for the tree below it, is not for this.
    fn refusal(&self, tree: bool, pid: Option<i32>) -> Option<String>;

    /// A snapshot that is asked for, from its beginning until it is stored.
    fn snap(&mut self, then: Then, also: Also) -> Result<Self::Taken>;

    /// Rolls it back.
    fn roll_back(&mut self, reference: &str) -> Result<(Progress, Reply)>;

    /// What a snapshot cost.
    fn price(taken: &Self::Taken) -> Price;

    /// How a snapshot is told.
    fn told(taken: Self::Taken) -> Progress;

    /// How a snapshot answers who asked for it.
    fn answer(taken: &Self::Taken) -> Reply;
}

impl Subject for Engine {
    type Taken = Taken;

    fn attached(&self) -> Progress {
        Progress::Attached {
            pid: self.target.pid,
            comm: self.target.comm.clone(),
            below: 0,
            tracker: self.tracker(),
            faults: self.fault_source(),
            notes: self.notes(),
        }
    }

    fn pace(&mut self, every: Duration) {
        Engine::pace(self, every);
    }

    fn tick(&mut self) -> Result<()> {
        Engine::tick(self)
    }

    fn begin(&mut self) -> Result<()> {
        self.snapshot()
    }

    fn is_busy(&self) -> bool {
        Engine::is_busy(self)
    }

    fn settle(&mut self) -> Option<Result<Taken>> {
        Engine::settle(self)
    }

    fn try_settle(&mut self) -> Option<Result<Taken>> {
        Engine::try_settle(self)
    }

    fn is_mixed(&self) -> bool {
        self.mixed
    }

    fn has_room(&self) -> bool {
        self.keeper.has_room()
    }

    fn leave(&self) {
        self.keeper.leave();
    }

    fn keeper(&self, session: Option<SessionId>) -> Option<&Keeper> {
        let own = session.is_none_or(|session| session == self.session());
        own.then_some(&self.keeper)
    }

    fn recipients(&self) -> Result<Vec<String>> {
        Engine::recipients(self)
    }

    fn profiled(&mut self) -> std::result::Result<&mut Engine, String> {
        Ok(self)
    }

    fn refusal(&self, tree: bool, pid: Option<i32>) -> Option<String> {
        let own = self.target.pid;
        match pid {
            // A way that was left by the watcher of a tree that was killed.
            Some(other) if other != own => Some(format!(
                "process {own} is watched here, and not process {other}: remove {other}.sock from the store's folder"
            )),
            _ => tree.then(|| {
                format!(
                    "process {own} is watched alone, not as a tree: leave --tree out, or end that watch and give it to a \
                     new one (ksnap watch {own} --tree)"
                )
            }),
        }
    }

    fn snap(&mut self, then: Then, also: Also) -> Result<Taken> {
        let usual = self.options;
        self.options.audit |= also.audit;
        self.options.files |= also.files;
        let begun = self.snapshot_then(then);
        self.options = usual;
        begun?;
        Engine::settle(self).unwrap_or_else(|| Err(nothing_taken()))
    }

    fn roll_back(&mut self, reference: &str) -> Result<(Progress, Reply)> {
        let done = self.rollback_to(reference)?;
        Ok((Progress::RolledBack(done.clone()), Reply::RolledBack(done)))
    }

    fn price(taken: &Taken) -> Price {
        Price {
            id: taken.id,
            kind: taken.kind,
            costs: taken.costs.clone(),
            bytes: taken.file_bytes,
        }
    }

    fn told(taken: Taken) -> Progress {
        Progress::Taken(taken)
    }

    fn answer(taken: &Taken) -> Reply {
        Reply::Taken(Box::new(taken.clone()))
    }
}

impl Subject for TreeEngine<'_> {
    type Taken = TakenTree;

    fn attached(&self) -> Progress {
        let first = self.first();
        let comm = first.map_or_else(String::new, |first| first.target.comm.clone());
        Progress::Attached {
            pid: self.root,
            comm,
            below: self.engines.len().saturating_sub(1) as u64,
            tracker: first.map_or(TrackerKind::Hash, Engine::tracker),
            faults: first.and_then(Engine::fault_source),
            notes: self.notes(),
        }
    }

    fn pace(&mut self, every: Duration) {
        self.set_pace(every);
    }

    fn tick(&mut self) -> Result<()> {
        self.take_in()
    }

    fn begin(&mut self) -> Result<()> {
        self.begin_snapshot(Then::GoOn)
    }

    fn is_busy(&self) -> bool {
        self.is_on_its_way()
    }

    fn settle(&mut self) -> Option<Result<TakenTree>> {
        self.land()
    }

    fn try_settle(&mut self) -> Option<Result<TakenTree>> {
        self.try_land()
    }

    fn is_mixed(&self) -> bool {
        self.engines.iter().any(|one| one.mixed)
    }

    fn has_room(&self) -> bool {
        self.engines.iter().all(|one| one.keeper.has_room())
    }

    fn leave(&self) {
        self.engines.iter().for_each(|one| one.keeper.leave());
    }

    fn keeper(&self, session: Option<SessionId>) -> Option<&Keeper> {
        match session {
            None => self.first().map(|first| &first.keeper),
            Some(session) => {
                let of_it = |one: &&Engine| one.session() == session;
                self.engines.iter().find(of_it).map(|one| &one.keeper)
            }
        }
    }

    fn recipients(&self) -> Result<Vec<String>> {
        match self.first() {
            Some(first) => first.recipients(),
            None => Err(self.is_changing()),
        }
    }

    fn profiled(&mut self) -> std::result::Result<&mut Engine, String> {
        Err(format!(
            "process {} is watched as a tree, of which no profile is made: end that watch first",
            self.root
        ))
    }

    fn refusal(&self, tree: bool, pid: Option<i32>) -> Option<String> {
        let root = self.root;
        (!tree || pid.is_some_and(|pid| pid != root)).then(|| {
            format!(
                "process {root} is watched with all of its descendants, as one tree: name it, and add --tree (ksnap \
                 snap {root} --tree, ksnap rollback {root} REF --tree)"
            )
        })
    }

    fn snap(&mut self, then: Then, also: Also) -> Result<TakenTree> {
        self.snapshot_with(then, also)
    }

    fn roll_back(&mut self, reference: &str) -> Result<(Progress, Reply)> {
        let done = TreeEngine::roll_back(self, reference)?;
        Ok((
            Progress::RolledBackTree(done.clone()),
            Reply::RolledBackTree(Box::new(done)),
        ))
    }

    fn price(taken: &TakenTree) -> Price {
        Price {
            id: taken.id,
            kind: taken.processes[0].taken.kind,
            costs: taken.costs(),
            bytes: taken.file_bytes(),
        }
    }

    fn told(taken: TakenTree) -> Progress {
        Progress::TakenTree(taken)
    }

    fn answer(taken: &TakenTree) -> Reply {
        Reply::TakenTree(Box::new(taken.clone()))
    }
}

/// Nothing was on its way that should have been.
pub(super) fn nothing_taken() -> SessionError {
    SessionError::Control {
        why: "took no snapshot".into(),
    }
}
