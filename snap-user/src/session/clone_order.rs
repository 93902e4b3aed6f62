//! What becomes of a snapshot at another machine, once all of it is known there: it is brought back, and its source goes
//! on, or ends.

use super::clone::{CloneOptions, Cloned, RunsThere, What};
use super::clone_fetch::Answering;
use super::clone_source::{Held, Source};
use super::{Pids, Result, SessionError};
use crate::store::Snapshot;
use crate::wire::{self, Link, Message, Order, Running};

/// The other machine, which knows all of a snapshot.
pub(super) struct There<'a> {
    link: &'a mut Link,
    options: &'a CloneOptions,
    answering: Answering<'a>,
    what: What,
    runs: bool,
}

impl<'a> There<'a> {
    pub(super) fn new(
        link: &'a mut Link,
        options: &'a CloneOptions,
        snapshot: &'a Snapshot,
        what: What,
    ) -> Self {
        Self {
            link,
            options,
            answering: Answering::new(snapshot),
            what,
            runs: false,
        }
    }

    /// Has it brought back; waits until it runs.
    pub(super) fn order(&mut self) -> Result<RunsThere> {
        let options = self.options;
        self.link.send(&Message::Restore(Order {
            pids: match options.pids {
                _ if options.lazy => wire::Pids::Namespace,
                None => wire::Pids::Any,
                Some(Pids::Same) => wire::Pids::Same,
                Some(Pids::New) => wire::Pids::New,
                Some(Pids::Namespace) => wire::Pids::Namespace,
            },
            eager: options.eager,
            allow_changed_files: options.allow_changed_files,
            network: options.network,
        }))?;
        match self.receive()? {
            Message::Running(Running {
                pid,
                own_pid,
                took_ns,
                notes,
            }) => {
                self.runs = true;
                Ok(RunsThere {
                    pid,
                    own_pid,
                    took_ns,
                    notes,
                })
            }
            other => Err(self.link.unexpected(&other, "Running").into()),
        }
    }

    /// The process runs there. Here it ends, once the other one depends on nobody; or it goes on.
    pub(super) fn conclude(&mut self, held: Held, source: Source) -> Result<bool> {
        if !self.options.end {
            held.go_on();
            // It is followed no longer, however long what it was is fetched.
            drop(source);
            self.settled(What::Running)?;
            return Ok(false);
        }
        self.settled(What::Stopped)?;
        held.end()?;
        Ok(true)
    }

    /// Waits until what was brought back needs nobody any more.
    pub(super) fn settled(&mut self, what: What) -> Result<()> {
        self.what = what;
        match self.receive()? {
            Message::Settled => Ok(()),
            other => Err(self.link.unexpected(&other, "Settled").into()),
        }
    }

    /// What comes next, while pages are fetched.
    fn receive(&mut self) -> Result<Message> {
        let what = self.what;
        loop {
            let stall = self.link.stall();
            match self.link.receive(stall).map_err(|e| unsure(e, what))? {
                Message::Fetch(addrs) if self.options.lazy => {
                    let sent = self.answering.send(self.link, &addrs, self.runs);
                    sent.map_err(|e| match e {
                        SessionError::Wire(e) => unsure(e, what),
                        other => other,
                    })?;
                }
                message => return Ok(message),
            }
        }
    }

    /// Waits until a snapshot that was fetched is stored there. That it is not is said: the process runs all the same.
    pub(super) fn stored(self, cloned: &mut Cloned) {
        if !self.options.lazy {
            return;
        }
        // What became of the process is settled.
        let stall = self.link.stall();
        let stored = match self.link.receive(stall) {
            Ok(Message::Stored(stored)) => Ok(stored.id),
            Ok(other) => Err(self.link.unexpected(&other, "Stored").to_string()),
            Err(e) => Err(e.to_string()),
        };
        let mut fetched = self.answering.fetched;
        match stored {
            Ok(id) => fetched.target_id = Some(id),
            Err(why) => {
                if let Some(running) = &mut cloned.running {
                    let note =
                        format!("the snapshot that it goes on from is not stored there: {why}");
                    running.notes.push(note);
                }
            }
        }
        cloned.fetched = Some(fetched);
    }
}

/// Lost at a point where the other side may have done what it was told.
fn unsure(error: wire::WireError, what: What) -> SessionError {
    match error.is_lost() {
        false => error.into(),
        true => SessionError::Remote(format!(
            "{error}, while the other machine brought the process back. {}",
            what.left_unsure()
        )),
    }
}
