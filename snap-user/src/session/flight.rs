//! A snapshot from the end of its stop until it is durable, or has failed.

use super::engine::Engine;
use super::writer::Settled;
use super::{Result, SessionError, Taken};
use crate::model::{PageSet, SnapshotKind};
use crate::store::StoreError;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};

/// A snapshot on its way to the disk.
pub(super) struct InFlight {
    pub(super) answer: Receiver<std::result::Result<Settled, StoreError>>,
    pub(super) kind: SnapshotKind,
    pub(super) time_ns: u64,
    pub(super) unsupported: Vec<String>,
    /// What it covers.
    pub(super) covered: PageSet,
    /// How the files were whose contents it has.
    pub(super) stamps: crate::capture::Stamps,
}

/// The last snapshot, until somebody asks for it.
pub(super) enum Flight {
    Writing(InFlight),
    Done(Box<Taken>),
}

impl Engine {
    /// What became of the last snapshot, waiting until it is known. `None` if that was told before.
    pub fn settle(&mut self) -> Option<Result<Taken>> {
        match self.flight.take()? {
            Flight::Done(taken) => Some(Ok(*taken)),
            Flight::Writing(flight) => {
                let answer = flight.answer.recv().ok();
                Some(self.land(flight, answer))
            }
        }
    }

    /// As [`Engine::settle`], without waiting: `None` also while it is still on its way.
    pub fn try_settle(&mut self) -> Option<Result<Taken>> {
        if let Flight::Writing(flight) = self.flight.as_ref()? {
            match flight.answer.try_recv() {
                Err(TryRecvError::Empty) => return None,
                answer => {
                    let Some(Flight::Writing(flight)) = self.flight.take() else {
                        return None;
                    };
                    return Some(self.land(flight, answer.ok()));
                }
            }
        }
        self.settle()
    }

    /// A snapshot is on its way.
    pub fn is_busy(&self) -> bool {
        matches!(self.flight, Some(Flight::Writing(_)))
    }

    fn land(
        &mut self,
        flight: InFlight,
        answer: Option<std::result::Result<Settled, StoreError>>,
    ) -> Result<Taken> {
        let settled = match answer {
            Some(Ok(settled)) => settled,
            failed => {
                // The next one copies all of it again.
                self.epoch.abort();
                self.covered = self.covered.union(&flight.covered);
                return Err(match failed {
                    Some(Err(e)) => e.into(),
                    _ => SessionError::Control {
                        why: "the writer thread died".into(),
                    },
                });
            }
        };
        self.epoch.commit();
        self.covered = flight.covered;
        self.contents.commit(flight.stamps);
        if let Some(profiling) = &mut self.profiling {
            profiling.recorder.snapshot(&settled.costs);
        }
        self.head = Some(settled.published.id);
        self.synced = true;
        let bytes = settled.published.bytes + settled.published.borrowed;
        self.keeper.published(flight.time_ns, bytes);
        let hashes = Arc::make_mut(&mut self.hashes);
        settled
            .removed
            .ranges()
            .iter()
            .for_each(|range| hashes.remove_range(*range));
        settled
            .hashes
            .iter()
            .for_each(|(addr, hash)| hashes.insert(*addr, *hash));
        Ok(Taken {
            id: settled.published.id,
            seq: settled.published.seq,
            kind: flight.kind,
            time_ns: flight.time_ns,
            costs: settled.costs,
            unsupported: flight.unsupported,
            file_bytes: settled.published.bytes,
            kept: None,
            notes: Vec::new(),
        })
    }
}
