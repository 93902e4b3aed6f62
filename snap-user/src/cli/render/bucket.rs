//! What went to object storage, what came from there, and what is there.

use super::human::{bytes, clean, count, nanos, utc};
use super::{Align, Style, Table};
use crate::session::{BucketEntry, BucketPruning, Pulled, Pulling, Pushed, Pushing};
use std::io::{self, Write};

/// Of which process a snapshot is, and of how many others.
fn whose(pid: i32, comm: &str, processes: u32) -> String {
    let first = format!("process {pid} ({})", clean(comm));
    match processes {
        1 => first,
        n => format!("{first} and {} below it", n - 1),
    }
}

/// For how many keys it is sealed.
fn sealed(keys: &[String]) -> String {
    match keys.len() {
        0 => String::new(),
        n => format!(", sealed for {}", count(n as u64, "key")),
    }
}

/// While a push goes on.
pub fn pushing(pushing: &Pushing) -> String {
    format!(
        "{} of {} looked at, {} sent",
        pushing.done,
        count(pushing.pages, "page"),
        bytes(pushing.bytes)
    )
}

/// One line on a push.
pub fn pushed(done: &Pushed) -> String {
    format!(
        "{} of {} is in {}{}: {}, {} of them new; {} sent in {}",
        done.id.short(),
        whose(done.pid, &done.comm, done.processes),
        clean(&done.url),
        sealed(&done.sealed_for),
        count(done.pages, "page"),
        done.new_pages,
        bytes(done.sent_bytes),
        nanos(done.took_ns)
    )
}

/// While a pull goes on.
pub fn pulling(pulling: &Pulling) -> String {
    format!(
        "{} of {}, {}",
        pulling.done,
        count(pulling.chunks, "chunk"),
        bytes(pulling.bytes)
    )
}

/// One line on a pull.
pub fn pulled(done: &Pulled) -> String {
    let (id, stored) = (done.id.short(), done.stored_id.short());
    // Not `latest`: the store may have newer ones.
    let back = format!("; ksnap restore {stored} brings it back");
    if done.was_there {
        return match id == stored {
            true => format!("{id} is in the store already{back}"),
            false => format!("{id} is in the store already, as {stored}{back}"),
        };
    }
    format!(
        "{stored}: {id} of {}{}: {}, {} in {}{back}",
        whose(done.pid, &done.comm, done.processes),
        sealed(&done.sealed_for),
        count(done.pages, "page"),
        bytes(done.bytes),
        nanos(done.took_ns)
    )
}

/// What is sealed, and the key is missing.
const UNKNOWN: &str = "–";

fn known<T>(value: Option<T>, text: impl FnOnce(T) -> String) -> String {
    value.map_or_else(|| UNKNOWN.into(), text)
}

/// Of a tree how many processes it has.
fn processes(entry: &BucketEntry) -> String {
    match (entry.tree, entry.processes) {
        (Some(true), Some(processes)) => format!("tree of {processes}"),
        (Some(false), _) => "1".into(),
        _ => UNKNOWN.into(),
    }
}

fn command(entry: &BucketEntry) -> String {
    match (&entry.comm, entry.sealed) {
        (None, _) => "(sealed)".into(),
        (Some(comm), true) => format!("{comm} (sealed)"),
        (Some(comm), false) => comm.clone(),
    }
}

/// The snapshots in a bucket.
pub fn list(out: &mut dyn Write, style: Style, entries: &[BucketEntry]) -> io::Result<()> {
    let mut table = Table::new([
        ("id", Align::Left),
        ("when (UTC)", Align::Left),
        ("pid", Align::Right),
        ("command", Align::Left),
        ("processes", Align::Right),
        ("stop", Align::Right),
        ("pages", Align::Right),
        ("chunks", Align::Right),
    ]);
    for entry in entries {
        table.row([
            entry.id.short(),
            utc(entry.time_ns),
            known(entry.pid, |pid| pid.to_string()),
            command(entry),
            processes(entry),
            known(entry.stop_ns, nanos),
            entry.pages.to_string(),
            bytes(entry.chunk_bytes),
        ]);
    }
    table.write(out, style, "")
}

/// What is asked before snapshots are removed.
pub fn question(planned: &BucketPruning) -> String {
    format!(
        "Remove {} of {} from {}?",
        count(planned.removed.len() as u64, "snapshot"),
        planned.removed.len() as u64 + planned.kept,
        clean(&planned.url)
    )
}

/// What was removed from a bucket.
pub fn pruned(out: &mut dyn Write, done: &BucketPruning) -> io::Result<()> {
    for gone in &done.removed {
        writeln!(out, "{}  {}", gone.id.short(), utc(gone.time_ns))?;
    }
    let (removed, deleted) = match done.dry_run {
        true => ("would remove", "would delete"),
        false => ("removed", "deleted"),
    };
    let left = match done.deleted_leftovers {
        0 => String::new(),
        n => format!(" and {} of pushes that were killed", count(n, "file")),
    };
    writeln!(
        out,
        "{removed} {}, {} kept; {deleted} {}{left} ({}), {} wait for the grace time, {} ({}) are needed",
        count(done.removed.len() as u64, "snapshot"),
        done.kept,
        count(done.deleted_chunks, "chunk"),
        bytes(done.deleted_bytes),
        done.waiting_chunks,
        done.kept_chunks,
        bytes(done.kept_bytes)
    )
}
