//! Brings a snapshot that was received back, while its source waits.

use super::revive::{Pids, Prepared, ReviveOptions, Revived, revive_prepared};
use super::serve_link::{await_alive, lost, while_alive};
use super::{Result, SessionError};
use crate::model::{ProcessState, SnapshotId};
use crate::restore::fault;
use crate::restore::revive::Network;
use crate::store::{Flat, Store};
use crate::sys::proc;
use crate::wire::{self, Link, Message, Order, Running};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, OnceLock};

enum Said {
    Runs(Running),
    Over(Result<()>),
}

/// A snapshot that is to be brought back.
pub(super) struct Last {
    /// Its name.
    pub(super) id: SnapshotId,
    /// Its flat image, where one was made while it came.
    pub(super) flat: Option<Flat>,
}

/// Brings a snapshot back, and tells the source when it runs, and when it needs this program no more. `runs` is told
/// the first, whatever becomes of the connection.
pub(super) fn restore(
    link: &mut Link,
    store: &Store,
    last: Last,
    order: &Order,
    runs: &mut dyn FnMut(&Running),
) -> Result<()> {
    let state = while_alive(link, || -> Result<ProcessState> {
        Ok(store.snapshot(last.id)?.manifest()?.state)
    })??;
    let options = ReviveOptions {
        pids: pids(order.pids, &state),
        eager: order.eager,
        allow_changed_files: order.allow_changed_files,
        network: match order.network {
            true => Network::Private,
            false => Network::Shared,
        },
        stays: true,
        ..ReviveOptions::default()
    };
    let (say, said) = channel();
    let dir = store.dir().to_owned();
    let lost_source = Arc::new(OnceLock::new());
    let gone = Arc::clone(&lost_source);
    // A thread of its own for as long as the process lives: it is its parent.
    let thread = std::thread::Builder::new()
        .name("ksnap-restore".into())
        .spawn(move || bring_back(dir, last, &options, &gone, &say))
        .map_err(SessionError::io("start a thread for a process"))?;
    fault::point("serve-restoring");
    match follow(link, &said, &lost_source, runs)? {
        true => Ok(link.send(&Message::Settled)?),
        false => Err(match thread.join() {
            Err(panic) => lost(&*panic),
            Ok(()) => SessionError::Remote("nothing was brought back".into()),
        }),
    }
}

/// Hears a process out that is brought back, also when the source has gone: it may run all the same. `lost_source` is
/// told why it has. `false` when the thread that brings it back has ended without a word.
fn follow(
    link: &mut Link,
    said: &Receiver<Said>,
    lost_source: &OnceLock<String>,
    runs: &mut dyn FnMut(&Running),
) -> Result<bool> {
    let mut gone = None;
    loop {
        let next = match gone {
            Some(_) => said.recv().ok(),
            None => match await_alive(link, said) {
                Ok(next) => next,
                Err(e) => {
                    let _ = lost_source.set(e.to_string());
                    gone = Some(e);
                    continue;
                }
            },
        };
        match next {
            Some(Said::Runs(running)) => {
                runs(&running);
                if gone.is_none() {
                    gone = link.send(&Message::Running(running)).err().map(Into::into);
                    fault::point("serve-running");
                }
            }
            Some(Said::Over(done)) => {
                done?;
                return gone.map_or(Ok(true), Err);
            }
            None => return Ok(false),
        }
    }
}

fn bring_back(
    dir: PathBuf,
    last: Last,
    options: &ReviveOptions,
    lost_source: &OnceLock<String>,
    say: &Sender<Said>,
) {
    let mut begun = None;
    let mut each = |one: &Revived| {
        begun = Some(one.init.unwrap_or(one.pid));
        let _ = say.send(Said::Runs(Running {
            pid: one.pid,
            own_pid: one.own_pid,
            took_ns: one.took_ns,
            notes: one.notes.clone(),
        }));
    };
    let prepared = Prepared {
        flat: last.flat,
        // What takes long comes before anything is started, so that nothing is for a source that has gone meanwhile.
        is_wanted: &|| has_source(lost_source),
    };
    let reference = last.id.to_string();
    match revive_prepared(&dir, &reference, 1, options, prepared, &mut each) {
        Err(e) => {
            // Not all of its memory has come: the one at the source is going to go on.
            if let Some(pid) = begun.and_then(rustix::process::Pid::from_raw) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
            let _ = say.send(Said::Over(Err(e)));
        }
        Ok(all) => {
            let _ = say.send(Said::Over(Ok(())));
            for one in &all {
                if let Err(e) = one.wait() {
                    tracing::debug!("process {}: {e}", one.pid);
                }
            }
        }
    }
}

fn has_source(lost_source: &OnceLock<String>) -> Result<()> {
    match lost_source.get() {
        None => Ok(()),
        Some(why) => Err(SessionError::Remote(format!(
            "{why}. Nothing was brought back"
        ))),
    }
}

/// Which ids: the process's own where they are free, unless it says otherwise.
fn pids(wanted: wire::Pids, state: &ProcessState) -> Option<Pids> {
    match wanted {
        wire::Pids::Same => Some(Pids::Same),
        wire::Pids::New => Some(Pids::New),
        wire::Pids::Namespace => Some(Pids::Namespace),
        wire::Pids::Any => {
            let taken = |tid: i32| proc::stat(tid, None).is_ok();
            match state.threads.iter().any(|t| taken(t.own_id())) {
                true => Some(Pids::Namespace),
                false => None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::asleep::await_sleep;
    use crate::session::{Options, Then, TrackerChoice, TrackerKind, snap};
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    fn running() -> Running {
        Running {
            pid: 12,
            own_pid: 3,
            took_ns: 77,
            notes: Vec::new(),
        }
    }

    /// Both ends of a connection. The second one says often that it lives, and so finds out soon that the first is
    /// gone, and nobody takes the other for gone who is only slow.
    fn pair() -> (Link, Link) {
        Link::pair(Duration::from_secs(20))
    }

    /// Waits until that is known.
    fn await_loss(lost: &OnceLock<String>) {
        let end = Instant::now() + Duration::from_secs(60);
        while lost.get().is_none() {
            assert!(Instant::now() < end, "nobody sees that the source is gone");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn what_runs_is_told_also_when_its_source_has_gone() {
        // Before it runs, and before it depends on nobody.
        for early in [true, false] {
            let (mut source, mut target) = pair();
            let (say, said) = channel();
            let lost = Arc::new(OnceLock::new());
            let is_lost = Arc::clone(&lost);
            let bringing = std::thread::spawn(move || {
                if early {
                    drop(source);
                    await_loss(&is_lost);
                    say.send(Said::Runs(running())).unwrap();
                } else {
                    say.send(Said::Runs(running())).unwrap();
                    let heard = source.receive(Duration::from_secs(60)).unwrap();
                    assert!(matches!(heard, Message::Running(_)), "{heard:?}");
                    drop(source);
                    await_loss(&is_lost);
                }
                say.send(Said::Over(Ok(()))).unwrap();
            });
            let mut told = Vec::new();
            let done = follow(&mut target, &said, &lost, &mut |running| {
                told.push(running.pid);
            });
            assert!(matches!(done, Err(SessionError::Wire(_))), "{done:?}");
            assert_eq!(told, [12]);
            bringing.join().unwrap();
        }
    }

    #[test]
    fn a_failure_is_told_rather_than_that_the_source_has_gone() {
        let (source, mut target) = pair();
        drop(source);
        let (say, said) = channel();
        let lost = Arc::new(OnceLock::new());
        let is_lost = Arc::clone(&lost);
        std::thread::spawn(move || {
            await_loss(&is_lost);
            say.send(Said::Over(Err(SessionError::Usage("no room".into()))))
        });
        let none = &mut |_: &Running| panic!("nothing runs");
        let done = follow(&mut target, &said, &lost, none);
        assert!(matches!(done, Err(SessionError::Usage(_))), "{done:?}");
        let (_, said) = channel();
        let done = follow(&mut target, &said, &lost, none);
        assert!(matches!(done, Ok(false)), "{done:?}");
    }

    #[test]
    fn a_source_that_goes_before_anything_is_started_has_nothing_started() {
        if !rustix::process::geteuid().is_root() {
            return crate::skip::without_root("the right to choose ids");
        }
        let folder = tempfile::tempdir().unwrap();
        let mut sleeper = Command::new("sleep")
            .arg("600")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let taking = Options {
            tracker: TrackerChoice::Only(TrackerKind::Hash),
            probes: false,
            then: Then::Kill,
            ..Options::default()
        };
        let pid = sleeper.id() as i32;
        await_sleep(pid);
        let taken = snap(folder.path(), pid, &taking).unwrap();
        // Whoever ended it, this program, may have waited for it already.
        let _ = sleeper.wait();
        assert!(proc::stat(pid, None).is_err());
        let bring_back = |lost_source: &OnceLock<String>| {
            let (say, said) = channel();
            let last = Last {
                id: taken.id,
                flat: None,
            };
            std::thread::scope(|scope| {
                let dir = folder.path().to_owned();
                let options = ReviveOptions::default();
                scope.spawn(move || bring_back(dir, last, &options, lost_source, &say));
                let first = said.recv().unwrap();
                if let Said::Runs(running) = &first {
                    // It is waited for until it ends.
                    let process = rustix::process::Pid::from_raw(running.pid).unwrap();
                    let _ = rustix::process::kill_process(process, rustix::process::Signal::KILL);
                }
                first
            })
        };
        let lost_source = OnceLock::new();
        // One that has not gone gets it.
        let Said::Runs(running) = bring_back(&lost_source) else {
            panic!("it does not come back");
        };
        assert_eq!(running.pid, pid);
        lost_source.set("the source has gone".to_owned()).unwrap();
        match bring_back(&lost_source) {
            Said::Over(Err(error)) => {
                let error = error.to_string();
                assert!(error.contains("the source has gone"), "{error}");
                assert!(error.contains("Nothing was brought back"), "{error}");
            }
            Said::Over(Ok(())) => panic!("nobody waits for it"),
            Said::Runs(running) => panic!("process {} runs for nobody", running.pid),
        }
    }

    #[test]
    fn that_the_source_has_gone_is_told_to_those_who_prepare() {
        let (source, mut target) = pair();
        let (say, said) = channel();
        let lost_source = Arc::new(OnceLock::new());
        assert!(has_source(&lost_source).is_ok());
        let lost = Arc::clone(&lost_source);
        let preparing = std::thread::spawn(move || {
            drop(source);
            await_loss(&lost);
            say.send(Said::Over(has_source(&lost))).unwrap();
        });
        let done = follow(&mut target, &said, &lost_source, &mut |_| {
            panic!("nothing runs");
        });
        let error = done.expect_err("nobody waits for it");
        assert!(
            error.to_string().contains("Nothing was brought back"),
            "{error}"
        );
        preparing.join().unwrap();
    }
}
