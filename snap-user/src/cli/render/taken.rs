//! One snapshot taken, one rollback done.

use super::human::{bytes, clean, count, nanos, processes};
use super::log::kind;
use crate::model::SnapshotId;
use crate::session::{KeptConnections, RolledBack, Taken, TakenTree};

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

/// What became of the connections of a process that was ended.
pub fn kept(kept: &KeptConnections, id: &SnapshotId) -> String {
    format!(
        "process {holder} holds {}, silent, until ksnap restore {} --tcp goes on with them; kill {holder} gives them up",
        count(kept.count.into(), "TCP connection"),
        id.short(),
        holder = kept.holder,
    )
}

/// A line on a tree, and one on each of its processes.
pub fn tree(tree: &TakenTree) -> Vec<String> {
    let zombies = match tree.zombies {
        0 => String::new(),
        n => format!(" and {}", count(n as u64, "zombie")),
    };
    let mut lines = vec![format!(
        "tree {} of {}{zombies}: stopped for {}",
        tree.id.short(),
        processes(tree.processes.len()),
        nanos(tree.stop_ns)
    )];
    lines.extend(
        tree.processes
            .iter()
            .map(|one| format!("  {} {}: {}", one.pid, clean(&one.comm), taken(&one.taken))),
    );
    lines
}

/// The same in a few words, where other processes have their share of the line.
pub fn short(pid: i32, taken: &Taken) -> String {
    let stop = nanos(taken.costs.phases.stop_ns);
    format!("{pid} @{} {stop}", taken.seq)
}

/// Notes printed at most: a server whose clients have gone has one for each connection.
const NOTES: usize = 8;

/// One line on a rollback, one where the process does not run, and one for each of the first notes.
pub fn rolled_back(pid: i32, done: &RolledBack) -> Vec<String> {
    let mut lines = vec![format!(
        "back at {} (@{}): {} written, {} thrown away, stopped for {}",
        done.to.short(),
        done.seq,
        count(done.written, "page"),
        done.discarded,
        nanos(done.stop_ns)
    )];
    if done.stopped {
        lines.push(format!("  it is still stopped: kill -CONT {pid}"));
    }
    let shown = done.notes.iter().take(NOTES);
    lines.extend(shown.map(|note| format!("  {}", clean(note))));
    if done.notes.len() > NOTES {
        let more = done.notes.len() - NOTES;
        lines.push(format!(
            "  … and {more} more of this kind (--json lists all)"
        ));
    }
    lines
}
