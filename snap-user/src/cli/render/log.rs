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
    let day = one_day(entries);
    let when = day
        .as_ref()
        .map_or("when (UTC)".into(), |day| format!("{day} UTC"));
    let mut table = Table::new([
        ("", Align::Left),
        ("seq", Align::Right),
        ("id", Align::Left),
        ("kind", Align::Left),
        (when.as_str(), Align::Left),
        ("pid", Align::Right),
        ("command", Align::Left),
        ("stop", Align::Right),
        ("dirty", Align::Right),
        ("changed", Align::Right),
        ("stored", Align::Right),
        ("from", Align::Left),
    ]);
    let known = |pages: Option<u64>| pages.map_or("?".into(), |pages| pages.to_string());
    for (entry, graph) in entries.iter().zip(graph) {
        let time = human::utc(entry.time_ns);
        table.row([
            graph.own,
            format!("@{}", entry.seq),
            entry.id.short(),
            kind(entry.kind).into(),
            match &day {
                Some(_) => time.split(' ').next_back().unwrap_or_default().to_owned(),
                None => time,
            },
            entry.pid.to_string(),
            entry.comm.clone(),
            human::nanos(entry.stop_ns),
            known(entry.dirty_pages),
            known(entry.changed_pages),
            human::bytes(entry.file_bytes),
            match entry.branch {
                true => format!("@{}", entry.parent_seq),
                false => String::new(),
            },
        ]);
        if let Some(branching) = graph.below {
            let mut cells: [String; 12] = Default::default();
            cells[0] = branching;
            table.row(cells);
        }
    }
    if !entries.iter().any(|entry| entry.branch) {
        table = table.without_last();
    }
    match with_graph {
        true => table.write(out, style, ""),
        false => table.without_first().write(out, style, ""),
    }
}

/// The day of all of them, if it is one: then a line has room for more than that.
fn one_day(entries: &[LogEntry]) -> Option<String> {
    let day = |entry: &LogEntry| {
        human::utc(entry.time_ns)
            .split(' ')
            .next()
            .map(str::to_owned)
    };
    let first = entries.first().and_then(day)?;
    let same = |entry: &LogEntry| day(entry).as_deref() == Some(first.as_str());
    entries.iter().all(same).then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::SnapshotId;

    fn entry(seq: u32, time_ns: u64) -> LogEntry {
        LogEntry {
            id: SnapshotId([seq as u8; 16]),
            session: String::new(),
            seq,
            kind: SnapshotKind::Delta,
            parent: None,
            parent_seq: seq - 1,
            branch: false,
            time_ns,
            pid: 1_234_567,
            comm: "redis-server".into(),
            stop_ns: 593_000,
            pages: 17_184,
            dirty_pages: Some(258_000),
            changed_pages: Some(257_999),
            stored_pages: 12_345,
            data_bytes: 0,
            file_bytes: 1_023 << 20,
            path: "x".into(),
        }
    }

    fn lines(entries: &[LogEntry]) -> Vec<String> {
        let mut out = Vec::new();
        write(&mut out, Style::new(false), entries, false).expect("written");
        let text = String::from_utf8(out).expect("text");
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn dirty_and_changed_stand_beside_stored_within_a_hundred_columns() {
        // 2026-11-25 19:02:32.455 UTC.
        let time = 1_795_633_352_455_000_000;
        let mut entries = vec![entry(998, time), entry(999, time + 1_000_000)];
        let shown = lines(&entries);
        assert!(shown[0].contains("2026-11-25 UTC"), "{shown:?}");
        assert!(shown[0].contains("dirty  changed"), "{shown:?}");
        assert!(shown[2].contains("19:02:32.456"), "{shown:?}");
        assert!(shown[2].contains("258000   257999  1023 MiB"), "{shown:?}");
        assert!(
            shown.iter().all(|line| line.chars().count() <= 100),
            "{shown:?}"
        );
        // Of before that was recorded; of two days; behind a rollback.
        (entries[0].dirty_pages, entries[0].branch) = (None, true);
        entries[0].time_ns -= 86_400_000_000_000;
        let shown = lines(&entries);
        assert!(
            shown[0].ends_with("from") && shown[0].contains("when (UTC)"),
            "{shown:?}"
        );
        assert!(shown[1].contains("2026-11-24 19:02:32.455"), "{shown:?}");
        assert!(
            shown[1].contains("?   257999") && shown[1].ends_with("@997"),
            "{shown:?}"
        );
    }
}
