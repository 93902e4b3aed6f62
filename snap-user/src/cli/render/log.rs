//! A list of snapshots.

use super::{Align, Style, Table, graph, human};
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

/// A table, oldest first; with a graph of which follows which before it, if asked for.
pub fn write(
    out: &mut dyn Write,
    style: Style,
    entries: &[LogEntry],
    with_graph: bool,
) -> io::Result<()> {
    let graph = match with_graph {
        true => graph::rows(entries.iter().map(|entry| (entry.id, entry.parent))),
        false => entries.iter().map(|_| graph::Row::default()).collect(),
    };
    let mut table = Table::new([
        ("", Align::Left),
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
    for (entry, graph) in entries.iter().zip(graph) {
        table.row([
            graph.own,
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
        if let Some(branching) = graph.below {
            let mut cells: [String; 11] = Default::default();
            cells[0] = branching;
            table.row(cells);
        }
    }
    match with_graph {
        true => table.write(out, style, ""),
        false => table.without_first().write(out, style, ""),
    }
}
