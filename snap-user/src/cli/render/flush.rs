//! What a flush writes, and a store as a whole.

use super::human::{bytes, clean, count, nanos};
use crate::session::{FlushDone, FlushPlan, StoreDescription};
use std::io::{self, Write};
use std::path::Path;

fn shown(path: &Path) -> String {
    clean(&path.display().to_string())
}

/// One line, before it begins.
pub fn expectation(plan: &FlushPlan) -> String {
    if plan.snapshots == 0 {
        return format!("{} has all of it", shown(&plan.to));
    }
    let time = plan.bytes_per_second.map_or(String::new(), |speed| {
        format!(
            ": about {} at the {} a second measured now",
            nanos(plan.expected_ns),
            bytes(speed)
        )
    });
    format!(
        "{} of {}, {} to {}{time}",
        count(plan.snapshots, "snapshot"),
        count(plan.sessions.len() as u64, "session"),
        bytes(plan.bytes),
        shown(&plan.to),
    )
}

/// What would be written.
pub fn plan(out: &mut dyn Write, plan: &FlushPlan) -> io::Result<()> {
    for session in &plan.sessions {
        writeln!(
            out,
            "process {} {}: {}, {}",
            session.pid,
            clean(&session.comm),
            count(session.snapshots, "snapshot"),
            bytes(session.bytes)
        )?;
    }
    writeln!(out, "{}", expectation(plan))
}

/// One line, when it is over.
pub fn summary(done: &FlushDone) -> String {
    format!(
        "flushed {}, {} to {} in {}",
        count(done.snapshots, "snapshot"),
        bytes(done.bytes),
        shown(&done.to),
        nanos(done.took_ns)
    )
}

/// What was written.
pub fn done(out: &mut dyn Write, done: &FlushDone) -> io::Result<()> {
    writeln!(out, "{}", summary(done))
}

/// A store as a whole.
pub fn store(out: &mut dyn Write, store: &StoreDescription) -> io::Result<()> {
    let place = match store.in_memory {
        true => "in memory",
        false => "on a disk",
    };
    writeln!(out, "{} ({place})", shown(&store.dir))?;
    writeln!(
        out,
        "  holds   {} of {}, {}",
        count(store.snapshots, "snapshot"),
        count(store.sessions, "session"),
        bytes(store.bytes)
    )?;
    if store.flat_bytes > 0 {
        writeln!(
            out,
            "  cache   {} of flat images for restores, which `ksnap prune` clears",
            bytes(store.flat_bytes)
        )?;
    }
    if store.received_bytes > 0 {
        writeln!(
            out,
            "  left    {} of pages by transfers that were broken off",
            bytes(store.received_bytes)
        )?;
    }
    writeln!(
        out,
        "  room    {} of {} free",
        bytes(store.free),
        bytes(store.total)
    )?;
    if let Some(speed) = store.bytes_per_second {
        writeln!(
            out,
            "  writes  {} a second become durable on the disk",
            bytes(speed)
        )?;
    }
    if let Some(plan) = &store.flush {
        writeln!(out, "  flush   {}", expectation(plan))?;
    }
    Ok(())
}
