//! `watch`: snapshots of running processes, one after the other, until something ends it.
//!
//! Each process has a tracer thread, a session in the store and a socket of its own, and none waits for
//! another. They share the probes, and the memory for copied pages in equal parts.

use super::control;
use super::events::LazyProbes;
use super::service::{Command, Service};
use super::tree_engine::TreeEngine;
use super::watch::drive;
use super::{Ended, Engine, Options, Progress, Result, Schedule, SessionError, Summary};
use crate::capture::CaptureError;
use crate::store::{Store, StoreError};
use crate::sys::pidfd_open;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};

/// Reports that may wait for whoever prints them. What prints slower than snapshots are taken holds them up.
const REPORTS: usize = 64;

/// How the watching of one process went.
#[derive(Debug)]
pub struct Watched {
    /// The process.
    pub pid: i32,
    /// What was done, or why it could not be watched, or not to the end.
    pub outcome: Result<Summary>,
}

enum Report {
    Progress(i32, Box<Progress>),
    Over(Watched),
}

/// Watches processes, each until the schedule ends or it ends, and all until Ctrl-C. Reports what happens as
/// it does, with the process that it happens to. What comes of each is in the order of `pids`, each once.
///
/// # Errors
/// Only what concerns all of them; that one process cannot be watched is its own outcome.
pub fn watch(
    dir: &Path,
    pids: &[i32],
    schedule: &Schedule,
    options: &Options,
    report: &mut dyn FnMut(i32, &Progress),
) -> Result<Vec<Watched>> {
    let mut all: Vec<i32> = Vec::with_capacity(pids.len());
    pids.iter().for_each(|pid| {
        if !all.contains(pid) {
            all.push(*pid);
        }
    });
    let store = Store::open_or_create(dir)?;
    let options = Options {
        memory: options.memory / all.len().max(1) as u64,
        mirror: options.mirror / all.len().max(1) as u64,
        ..*options
    };
    let probes = LazyProbes::new(options.probes);
    let (reports, to_report) = sync_channel(REPORTS);
    let mut over = Vec::with_capacity(all.len());
    std::thread::scope(|scope| -> Result<()> {
        let mut tell: Vec<Sender<Command>> = Vec::with_capacity(all.len());
        for &pid in &all {
            let (send, commands) = channel();
            tell.push(send.clone());
            let reports = reports.clone();
            let (store, options, probes) = (&store, &options, &probes);
            let tracer = move || {
                let outcome = one(
                    store,
                    pid,
                    schedule,
                    options,
                    probes,
                    (send, &commands),
                    &mut |p| {
                        let _ = reports.send(Report::Progress(pid, Box::new(p.clone())));
                    },
                );
                let _ = reports.send(Report::Over(Watched { pid, outcome }));
            };
            let started = std::thread::Builder::new()
                .name(format!("ksnap-{pid}"))
                .spawn_scoped(scope, tracer);
            if let Err(e) = started {
                tell.iter()
                    .for_each(|tracer| stop(tracer, Ended::Interrupted));
                return Err(SessionError::io("start a thread")(e));
            }
        }
        drop(reports);
        for told in to_report {
            match told {
                Report::Progress(pid, progress) => report(pid, &progress),
                Report::Over(one) => {
                    // Those that were not yet listening when the signal came.
                    if let Ok(summary) = &one.outcome
                        && matches!(summary.ended, Ended::Interrupted | Ended::Terminated)
                    {
                        tell.iter().for_each(|tracer| stop(tracer, summary.ended));
                    }
                    over.push(one);
                }
            }
        }
        Ok(())
    })?;
    over.sort_by_key(|one| all.iter().position(|pid| *pid == one.pid));
    Ok(over)
}

fn stop(tracer: &Sender<Command>, ended: Ended) {
    let _ = tracer.send(Command::Stop(ended));
}

/// Watches one process, on its tracer's thread.
pub(super) fn one(
    store: &Store,
    pid: i32,
    schedule: &Schedule,
    options: &Options,
    probes: &LazyProbes,
    (send, commands): (Sender<Command>, &Receiver<Command>),
    report: &mut dyn FnMut(&Progress),
) -> Result<Summary> {
    // The lock tells the same, but a process that is just being stopped by its watcher looks as if a debugger
    // had it.
    if let Some(watcher) = control::connect(store.dir(), pid)? {
        return Err(StoreError::Locked {
            session: control::socket_path(store.dir(), pid),
            pid: watcher.pid(),
        }
        .into());
    }
    let pidfd = || pidfd_open(pid).map_err(|e| CaptureError::from_sys(pid, e));
    if options.tree {
        let mut tree = TreeEngine::attach(store, pid, options, probes)?;
        let _service = Service::start(store.dir(), pid, pidfd()?, false, send)?;
        tree.link();
        return drive(&mut tree, schedule, commands, report);
    }
    let mut engine = Engine::attach_sharing(store, pid, options, probes)?;
    let _service = Service::start(store.dir(), pid, pidfd()?, false, send)?;
    drive(&mut engine, schedule, commands, report)
}
