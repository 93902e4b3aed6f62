//! A list of snapshots.

use super::{Align, Style, Table, human};
use crate::model::SnapshotKind;
use crate::session::LogEntry;
use std::io::{self, Write};

/// Word for a kind.
pub fn kind(kind: SnapshotKind) -> &'static str {
    match kind {
        SnapshotKind::Base => "base",
        SnapshotKind::Delta => "delta",
    }
}

/// A table, oldest first.
pub fn write(out: &mut dyn Write, style: Style, entries: &[LogEntry]) -> io::Result<()> {
    let mut table = Table::new([
        ("seq", Align::Right),
        ("id", Align::Left),
        ("kind", Align::Left),
        ("when (UTC)", Align::Left),
        ("pid", Align::Right),
        ("command", Align::Left),
        ("stop", Align::Right),
        ("pages", Align::Right),
        ("stored", Align::Right),
        ("from", Align::Left),
    ]);
    for entry in entries {
        table.row([
            format!("@{}", entry.seq),
            entry.id.short(),
            kind(entry.kind).into(),
            human::utc(entry.time_ns),
            entry.pid.to_string(),
            entry.comm.clone(),
            human::nanos(entry.stop_ns),
            entry.stored_pages.to_string(),
            human::bytes(entry.file_bytes),
            match entry.branch {
                true => format!("@{}", entry.parent_seq),
                false => String::new(),
            },
        ]);
    }
    table.write(out, style, "")
}
