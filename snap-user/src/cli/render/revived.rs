//! A process that was brought back.

use super::human::{clean, count, nanos, processes};
use crate::session::Revived;

/// Notes printed at most.
const NOTES: usize = 8;

/// One line on it.
pub fn line(one: &Revived) -> String {
    let inside = match one.init {
        Some(init) => format!(" ({} inside, below {init})", one.own_pid),
        None => String::new(),
    };
    let tree = match one.others.len() {
        0 => String::new(),
        n => format!(", first of {},", processes(n + 1)),
    };
    format!(
        "process {}{inside}{tree} goes on from {} (@{}): {}, {}, after {}",
        one.pid,
        one.id.short(),
        one.seq,
        count(one.threads as u64, "thread"),
        count(one.pages, "page"),
        nanos(one.took_ns)
    )
}

/// What differs from what it was, the first of it.
pub fn notes(one: &Revived) -> Vec<String> {
    let shown = one.notes.iter().take(NOTES);
    let mut lines: Vec<String> = shown.map(|note| format!("  {}", clean(note))).collect();
    if one.notes.len() > NOTES {
        let more = one.notes.len() - NOTES;
        lines.push(format!("  … and {more} more (--json lists all)"));
    }
    lines
}
