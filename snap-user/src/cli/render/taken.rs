//! One snapshot taken, one rollback done.

use super::human::{bytes, clean, count, nanos};
use super::log::kind;
use crate::session::{RolledBack, Taken};

/// One line on a snapshot.
pub fn taken(taken: &Taken) -> String {
    let pages = &taken.costs.pages;
    format!(
        "{} {} (@{}): stopped for {}, {} changed, {} stored",
        kind(taken.kind),
        taken.id.short(),
        taken.seq,
        nanos(taken.costs.phases.stop_ns),
        count(pages.changed, "page"),
        bytes(taken.file_bytes)
    )
}

/// One line on a rollback, and one for each note.
pub fn rolled_back(done: &RolledBack) -> Vec<String> {
    let mut lines = vec![format!(
        "back at {} (@{}): {} written, {} thrown away, stopped for {}",
        done.to.short(),
        done.seq,
        count(done.written, "page"),
        done.discarded,
        nanos(done.stop_ns)
    )];
    lines.extend(done.notes.iter().map(|note| format!("  {}", clean(note))));
    lines
}
