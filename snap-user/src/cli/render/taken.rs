//! One snapshot taken, one rollback done.

use super::human::{bytes, clean, count, nanos, processes};
use super::log::kind;
use crate::model::SnapshotId;
use crate::session::{KeptConnections, RolledBack, RolledBackTree, Taken, TakenTree};

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
    let mut lines = vec![tree_itself(tree)];
    lines.extend(
        tree.processes
            .iter()
            .map(|one| format!("  {} {}: {}", one.pid, clean(&one.comm), taken(&one.taken))),
    );
    lines
}

/// One line on a tree.
pub fn tree_in_short(tree: &TakenTree) -> String {
    format!(
        "{}, {} changed, {} stored",
        tree_itself(tree),
        count(tree.changed(), "page"),
        bytes(tree.file_bytes())
    )
}

fn tree_itself(tree: &TakenTree) -> String {
    let zombies = match tree.zombies {
        0 => String::new(),
        n => format!(" and {}", count(n as u64, "zombie")),
    };
    format!(
        "tree {} of {}{zombies}: stopped for {}",
        tree.id.short(),
        processes(tree.processes.len()),
        nanos(tree.stop_ns)
    )
}

/// A snapshot in a few words, where other processes have their share of the line.
pub fn short(pid: i32, seq: u32, stop_ns: u64) -> String {
    format!("{pid} @{seq} {}", nanos(stop_ns))
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
    lines.extend(first_notes(&done.notes));
    lines
}

/// A line on a tree that was rolled back, one on each of its processes, and those that a rollback of one would have.
pub fn rolled_back_tree(done: &RolledBackTree) -> Vec<String> {
    let mut lines = vec![format!(
        "tree of {} back at {}: stopped for {}",
        processes(done.processes.len()),
        done.to.short(),
        nanos(done.stop_ns)
    )];
    for one in &done.processes {
        let back = &one.back;
        lines.push(format!(
            "  {} {}: {} (@{}), {} written, {} thrown away",
            one.pid,
            clean(&one.comm),
            back.to.short(),
            back.seq,
            count(back.written, "page"),
            back.discarded
        ));
        lines.extend(first_notes(&back.notes).map(|note| format!("  {note}")));
    }
    if !done.made.is_empty() {
        lines.push(format!(
            "  made {} again that had ended since: {}",
            processes(done.made.len()),
            pids(&done.made)
        ));
    }
    if !done.ended.is_empty() {
        lines.push(format!(
            "  ended {} that the tree did not have: {}",
            processes(done.ended.len()),
            pids(&done.ended)
        ));
    }
    let still = done.processes.iter().filter(|one| one.back.stopped);
    let still: Vec<i32> = still.map(|one| one.pid).collect();
    if !still.is_empty() {
        lines.push(format!("  still stopped: kill -CONT {}", pids(&still)));
    }
    lines.extend(first_notes(&done.notes));
    lines
}

fn pids(all: &[i32]) -> String {
    let words: Vec<String> = all.iter().map(ToString::to_string).collect();
    words.join(" ")
}

/// A line on each of the first notes, and one on how many there are beside them.
fn first_notes(notes: &[String]) -> impl Iterator<Item = String> {
    let more = notes.len().saturating_sub(NOTES);
    let rest = (more > 0).then(|| format!("  … and {more} more of this kind (--json lists all)"));
    let shown = notes.iter().take(NOTES);
    shown.map(|note| format!("  {}", clean(note))).chain(rest)
}
