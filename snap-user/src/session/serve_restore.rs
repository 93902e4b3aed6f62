//! Brings a snapshot that was received back, while its source waits.

use super::revive::{Pids, ReviveOptions, Revived, revive};
use super::serve_link::alive;
use super::{Result, SessionError};
use crate::model::{ProcessState, SnapshotId};
use crate::restore::fault;
use crate::store::Store;
use crate::sys::proc;
use crate::wire::{self, Link, Message, Order, Running};
use std::path::PathBuf;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};

enum Said {
    Runs(Running),
    Over(Result<()>),
}

/// Brings a snapshot back, and tells the source when it runs, and when it needs this program no more.
pub(super) fn restore(
    link: &mut Link,
    store: &Store,
    id: SnapshotId,
    order: &Order,
) -> Result<Running> {
    let state = store.snapshot(id)?.manifest()?.state;
    let options = ReviveOptions {
        pids: pids(order.pids, &state),
        eager: order.eager,
        allow_changed_files: order.allow_changed_files,
        network: order.network,
        ..ReviveOptions::default()
    };
    let (say, said) = channel();
    let dir = store.dir().to_owned();
    // A thread of its own for as long as the process lives: it is its parent.
    std::thread::Builder::new()
        .name("ksnap-restore".into())
        .spawn(move || bring_back(dir, id, &options, &say))
        .map_err(SessionError::io("start a thread for a process"))?;
    fault::point("serve-restoring");
    let mut running = None;
    loop {
        match said.recv_timeout(alive(link)) {
            Ok(Said::Runs(runs)) => {
                link.send(&Message::Running(runs.clone()))?;
                running = Some(runs);
            }
            Ok(Said::Over(done)) => {
                done?;
                break;
            }
            Err(RecvTimeoutError::Timeout) => link.send(&Message::Alive)?,
            Err(RecvTimeoutError::Disconnected) => {
                return Err(SessionError::Remote(
                    "a thread of this server is lost".into(),
                ));
            }
        }
    }
    link.send(&Message::Settled)?;
    running.ok_or_else(|| SessionError::Remote("nothing was brought back".into()))
}

fn bring_back(dir: PathBuf, id: SnapshotId, options: &ReviveOptions, say: &Sender<Said>) {
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
    match revive(&dir, &id.to_string(), 1, options, &mut each) {
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
