//! What went to another machine, and what came from one.

use super::human::{bytes, clean, count, nanos};
use crate::session::{Cloned, Round, Served};

/// One line on a snapshot that was sent.
pub fn round(round: &Round) -> String {
    let stopped = if round.stopped { ", stopped" } else { "" };
    if round.target_id.is_none() {
        return format!(
            "{} listed{stopped}: {}, {} in {}",
            round.id.short(),
            count(round.pages, "page"),
            bytes(round.bytes),
            nanos(round.took_ns)
        );
    }
    format!(
        "{} sent{stopped}: {}, {} of them not there, {} in {}",
        round.id.short(),
        count(round.pages, "page"),
        round.sent_pages,
        bytes(round.bytes),
        nanos(round.took_ns)
    )
}

/// One line on a clone.
pub fn cloned(done: &Cloned) -> String {
    let rounds = count(done.rounds.len() as u64, "snapshot");
    let sent = format!("{rounds}, {} sent", bytes(done.bytes));
    let fetched = done.fetched.as_ref();
    let last = done.rounds.last().and_then(|round| round.target_id);
    let id = last.or(fetched.and_then(|fetched| fetched.target_id));
    let id = id.map_or_else(|| "what was fetched".into(), |id| id.short());
    let fetched = fetched.map_or_else(String::new, |fetched| {
        format!(
            "; {} fetched, {} of them behind its first instruction, in {}",
            count(fetched.pages, "page"),
            fetched.behind,
            nanos(fetched.took_ns)
        )
    });
    let Some(running) = &done.running else {
        return format!("stored on {} as {id}: {sent}", clean(&done.target));
    };
    let inside = match running.own_pid == running.pid {
        true => String::new(),
        false => format!(" ({} inside)", running.own_pid),
    };
    let down = match done.downtime_ns {
        Some(ns) => format!(", down for {}", nanos(ns)),
        None => String::new(),
    };
    let here = match (done.pid, done.ended) {
        (Some(pid), true) => format!("; process {pid} here has ended"),
        (Some(pid), false) => format!("; process {pid} here goes on"),
        (None, _) => String::new(),
    };
    format!(
        "process {}{inside} on {} goes on from {id}: {sent}{down}{fetched}{here}",
        running.pid,
        clean(&done.target)
    )
}

/// One line on what a server did.
pub fn served(served: &Served) -> String {
    match served {
        Served::Listening { address, key, .. } => format!("listening on {address}, with key {key}"),
        Served::Received {
            peer,
            id,
            seq,
            pid,
            comm,
            pages,
            sent_pages,
        } => format!(
            "{} (@{seq}) of process {pid} ({}) from {peer}: {}, {sent_pages} of them new",
            id.short(),
            clean(comm),
            count(*pages, "page")
        ),
        Served::Running {
            peer,
            id,
            pid,
            took_ns,
            notes,
            ..
        } => format!(
            "process {pid} goes on from {} for {peer}, after {}, {}",
            id.map_or_else(|| "what it fetches".to_owned(), |id| id.short()),
            nanos(*took_ns),
            match notes.len() {
                0 => "as it was".to_owned(),
                n => format!("with {}", count(n as u64, "difference")),
            }
        ),
        Served::Note { what } => clean(what),
        Served::Failed { peer, why } => format!("{peer}: {}", clean(why)),
    }
}
