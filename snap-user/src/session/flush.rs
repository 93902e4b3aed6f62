//! `flush`: what lies in memory, to the disk, the newest first.

use super::sealing::left_out;
use super::{Result, SessionError};
use crate::store::{Due, Flushed, Speed, Store, StoreError};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a session is waited for that another flush writes, once all others are written.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often it is looked at.
const PAUSE: Duration = Duration::from_millis(100);

/// What a flush has to write, and how long that will take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FlushPlan {
    /// The store in memory.
    pub from: PathBuf,
    /// The store on the disk.
    pub to: PathBuf,
    /// Sessions with something to write, in the order in which they are written.
    pub sessions: Vec<FlushSession>,
    /// Snapshots to write.
    pub snapshots: u64,
    /// Bytes to write, about.
    pub bytes: u64,
    /// How many bytes a second become durable there, measured now; null where there is nothing to write, or where it
    /// could not be measured.
    pub bytes_per_second: Option<u64>,
    /// How long the flush will take at that speed, nanoseconds; 0 where that is not known.
    pub expected_ns: u64,
    /// What will not be written, and why; a sentence each.
    pub notes: Vec<String>,
    #[serde(skip)]
    due: Vec<Due>,
}

/// One session of a flush.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FlushSession {
    /// The session.
    pub session: String,
    /// Its process.
    pub pid: i32,
    /// The process's name.
    pub comm: String,
    /// Snapshots to write, or written.
    pub snapshots: u64,
    /// Bytes to write, or written.
    pub bytes: u64,
}

/// What a flush has written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FlushDone {
    /// The store in memory.
    pub from: PathBuf,
    /// The store on the disk.
    pub to: PathBuf,
    /// Sessions that were written.
    pub sessions: Vec<FlushSession>,
    /// Snapshots written.
    pub snapshots: u64,
    /// Bytes written.
    pub bytes: u64,
    /// How long it took, nanoseconds.
    pub took_ns: u64,
    /// What was not written, and why; a sentence each.
    pub notes: Vec<String>,
}

/// A flush that could write nothing.
#[derive(Debug)]
pub struct FlushFailed {
    /// What went wrong first.
    pub error: SessionError,
    /// What else was not written, and why; a sentence each.
    pub notes: Vec<String>,
}

impl<E: Into<SessionError>> From<E> for FlushFailed {
    fn from(error: E) -> Self {
        Self {
            error: error.into(),
            notes: Vec::new(),
        }
    }
}

fn described(due: &Due) -> FlushSession {
    FlushSession {
        session: due.session.to_string(),
        pid: due.info.pid,
        comm: due.info.comm.clone(),
        snapshots: due.snapshots,
        bytes: due.bytes,
    }
}

/// Why there is no store in memory in a folder.
fn why_nothing(dir: &Path) -> &'static str {
    match std::fs::read_dir(dir).map(|entries| entries.count()) {
        Ok(1..) => {
            "the folder holds other things, and no snapshots; KSNAP_RAM names another folder"
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => {
            "that is not a folder; KSNAP_RAM names one"
        }
        _ => {
            "nothing lies in memory there: `ksnap run`, `watch` and `snap` put snapshots there with --ram; \
             KSNAP_RAM names another folder"
        }
    }
}

/// What a flush would write; with `measured`, also how long it would take, which takes up to a second to find out.
pub fn plan_flush(from: &Path, to: &Path, measured: bool) -> Result<FlushPlan> {
    refuse_same(from, to)?;
    let source = match Store::open(from) {
        // It is not --store that says where that one is.
        Err(StoreError::NoStore { dir, .. }) => {
            let why = why_nothing(&dir).into();
            return Err(StoreError::NoStore { dir, why }.into());
        }
        opened => opened?,
    };
    let found = match Store::open(to) {
        Ok(target) => source.due(Some(&target))?,
        Err(StoreError::NoStore { .. }) => source.due(None)?,
        Err(error) => return Err(error.into()),
    };
    let due = found.sessions;
    let mut notes = found.notes;
    notes.extend(left_out(&source)?);
    let snapshots = due.iter().map(|due| due.snapshots).sum();
    let bytes = due.iter().map(|due| due.bytes).sum();
    // What cannot be measured can be written all the same.
    let speed = match measured && snapshots > 0 {
        true => Speed::measure(to).ok(),
        false => None,
    };
    Ok(FlushPlan {
        from: from.to_owned(),
        to: to.to_owned(),
        sessions: due.iter().map(described).collect(),
        snapshots,
        bytes,
        bytes_per_second: speed.map(|speed| speed.bytes_per_second),
        expected_ns: speed.map_or(0, |speed| speed.time_ns(snapshots, bytes)),
        notes,
        due,
    })
}

/// Writes what lies in memory to the disk: the session with the newest snapshot first, and of each the newest chain
/// first. `report` is told how many snapshots and bytes are durable by now.
///
/// A session that cannot be written is named, and does not keep the others from being written. One that another flush
/// writes comes last, and is waited for.
///
/// # Errors
/// Where nothing at all could be written. What was written until then stays, and the next flush goes on from there.
pub fn flush(
    plan: &FlushPlan,
    report: &mut dyn FnMut(u64, u64),
) -> std::result::Result<FlushDone, FlushFailed> {
    flush_within(plan, PATIENCE, report)
}

fn flush_within(
    plan: &FlushPlan,
    patience: Duration,
    report: &mut dyn FnMut(u64, u64),
) -> std::result::Result<FlushDone, FlushFailed> {
    let start = Instant::now();
    let mut flush = Flush {
        source: Store::open(&plan.from)?,
        target: Store::open_or_create(&plan.to)?,
        done: FlushDone {
            from: plan.from.clone(),
            to: plan.to.clone(),
            sessions: Vec::new(),
            snapshots: 0,
            bytes: 0,
            took_ns: 0,
            notes: plan.notes.clone(),
        },
        failed: None,
    };
    let mut busy: Vec<&Due> = Vec::new();
    for due in &plan.due {
        if !flush.session(due, true, report) {
            busy.push(due);
        }
    }
    let waiting = Instant::now();
    if !busy.is_empty() {
        // Those whose members are there; what goes wrong is told by the last time.
        flush.source.copy_trees(&flush.target);
    }
    while !busy.is_empty() {
        std::thread::sleep(PAUSE);
        let waits = waiting.elapsed() < patience;
        busy.retain(|due| !flush.session(due, waits, report));
    }
    flush
        .done
        .notes
        .extend(flush.source.copy_trees(&flush.target));
    flush.done.took_ns = start.elapsed().as_nanos() as u64;
    match flush.failed {
        Some((error, note)) if flush.done.snapshots == 0 => {
            let mut notes = flush.done.notes;
            // That one is the error.
            notes.remove(note);
            Err(FlushFailed { error, notes })
        }
        _ => Ok(flush.done),
    }
}

/// A flush under way.
struct Flush {
    source: Store,
    target: Store,
    done: FlushDone,
    /// What went wrong first, and which note says so.
    failed: Option<(SessionError, usize)>,
}

impl Flush {
    /// Writes one session. False where it should be tried again, because another ksnap writes it; only with `waits`.
    fn session(&mut self, due: &Due, waits: bool, report: &mut dyn FnMut(u64, u64)) -> bool {
        let (snapshots, bytes) = (self.done.snapshots, self.done.bytes);
        let mut so_far = Flushed::default();
        let outcome = self
            .source
            .flush_session(due.session, &self.target, &mut |now| {
                so_far = now.clone();
                report(snapshots + now.snapshots, bytes + now.bytes);
            });
        let written = match outcome {
            Ok(written) => written,
            Err(error) if waits && error.is_busy() => return false,
            Err(error) => {
                let (pid, note) = (due.info.pid, self.done.notes.len());
                self.done.notes.push(format!(
                    "session {} of process {pid} was not written to its end: {error}",
                    due.session
                ));
                self.failed.get_or_insert((error.into(), note));
                so_far
            }
        };
        self.done.snapshots += written.snapshots;
        self.done.bytes += written.bytes;
        self.done.notes.extend(written.notes);
        if written.snapshots > 0 {
            self.done.sessions.push(FlushSession {
                snapshots: written.snapshots,
                bytes: written.bytes,
                ..described(due)
            });
        }
        true
    }
}

pub(super) fn refuse_same(from: &Path, to: &Path) -> Result<()> {
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    match real(from) == real(to) {
        true => Err(SessionError::Usage(format!(
            "{} is the store in memory itself: name one on a disk with --to",
            to.display()
        ))),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ProcessTree, SnapshotId, TreeMember};
    use crate::store::Session;
    use crate::store::tests::support::{info, new_store, publish};
    use tempfile::TempDir;

    fn flush_all(from: &Store, to: &Store) -> FlushDone {
        let plan = plan_flush(from.dir(), to.dir(), false).expect("a plan");
        flush(&plan, &mut |_, _| {}).expect("flushed")
    }

    /// A store in memory with two sessions, of two snapshots each, and one on the disk that has the first of each; what
    /// keeps their folders; the sessions; and the second snapshots.
    fn half_flushed() -> ([TempDir; 2], [Store; 2], [Session; 2], [SnapshotId; 2]) {
        let ((memory_folder, memory), (disk_folder, disk)) = (new_store(), new_store());
        let mut sessions = [10, 11].map(|pid| memory.create_session(&info(pid)).expect("one"));
        for session in &mut sessions {
            publish(session, None, [], [(1, 7)]).expect("published");
        }
        assert_eq!(flush_all(&memory, &disk).snapshots, 2);
        let second = sessions.each_mut().map(|session| {
            let parent = session.head();
            let done = publish(session, parent, [], [(2, 8)]);
            done.expect("published").id
        });
        (
            [memory_folder, disk_folder],
            [memory, disk],
            sessions,
            second,
        )
    }

    #[test]
    fn a_session_that_another_flush_writes_is_waited_for_and_the_others_come_first() {
        let (_folders, [memory, disk], sessions, _) = half_flushed();
        // That of the newest snapshot.
        let held = disk.pruner(sessions[1].id()).expect("free");
        let plan = plan_flush(memory.dir(), disk.dir(), false).expect("a plan");
        let mut held = Some(held);
        let done = flush(&plan, &mut |snapshots, _| {
            assert_eq!(disk.list().expect("a listing").len() as u64, 2 + snapshots);
            held.take();
        });
        let done = done.expect("flushed");
        assert_eq!((done.snapshots, done.notes), (2, vec![]));
        let pids: Vec<i32> = done.sessions.iter().map(|one| one.pid).collect();
        assert_eq!(pids, [10, 11]);
    }

    #[test]
    fn trees_are_copied_though_nothing_else_is_due() {
        let (_memory, memory) = new_store();
        let (_disk, disk) = new_store();
        let mut session = memory.create_session(&info(10)).expect("a session");
        let root = publish(&mut session, None, [], [(1, 7)]).expect("published");
        assert_eq!(flush_all(&memory, &disk).snapshots, 1);
        memory.publish_tree(&tree(root.id)).expect("a tree");
        let done = flush_all(&memory, &disk);
        assert_eq!((done.snapshots, done.notes), (0, vec![]));
        assert_eq!(disk.tree(root.id).expect("readable"), Some(tree(root.id)));
    }

    #[test]
    fn a_long_flush_waits_as_long_as_a_short_one_and_trees_do_not_wait() {
        let (_folders, [memory, disk], sessions, roots) = half_flushed();
        memory.publish_tree(&tree(roots[0])).expect("a tree");
        let held = disk.pruner(sessions[1].id()).expect("free");
        let plan = plan_flush(memory.dir(), disk.dir(), false).expect("a plan");
        // Much more than it takes to see the tree and let go, also on a busy machine.
        let patience = Duration::from_secs(8);
        let other = disk.clone();
        // It goes on being held until the tree is there.
        let holding = std::thread::spawn(move || {
            let end = Instant::now() + 4 * patience;
            let is_there = || other.tree(roots[0]).expect("readable").is_some();
            while !is_there() && Instant::now() < end {
                std::thread::sleep(PAUSE);
            }
            std::thread::sleep(3 * PAUSE);
            drop(held);
        });
        let mut first = true;
        let done = flush_within(&plan, patience, &mut |_, _| {
            if std::mem::take(&mut first) {
                std::thread::sleep(patience);
            }
        });
        holding.join().expect("no panic");
        let done = done.expect("flushed");
        assert_eq!((done.snapshots, done.notes), (2, vec![]));
    }

    #[test]
    fn a_flush_that_writes_nothing_tells_of_all_that_was_to_be_written() {
        let (_folders, [memory, disk], sessions, _) = half_flushed();
        let plan = plan_flush(memory.dir(), disk.dir(), false).expect("a plan");
        let _held = sessions.map(|session| disk.pruner(session.id()).expect("free"));
        let failed = flush_within(&plan, Duration::ZERO, &mut |_, _| {});
        let failed = failed.expect_err("others write both");
        assert_eq!(failed.notes.len(), 1, "{failed:?}");
        for (said, due) in [failed.error.to_string(), failed.notes[0].clone()]
            .iter()
            .zip(&plan.sessions)
        {
            assert!(said.contains(&due.session), "{failed:?}");
        }
    }

    fn tree(root: SnapshotId) -> ProcessTree {
        ProcessTree {
            members: vec![TreeMember {
                id: root,
                pid: 10,
                parent: None,
                group: 10,
                session: 10,
                stopped: false,
                foreground: None,
            }],
            ..ProcessTree::default()
        }
    }

    #[test]
    fn a_flush_from_where_no_store_is_says_what_is_there_instead() {
        let (_disk, disk) = new_store();
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("file");
        let empty = folder.path().join("empty");
        let gone = folder.path().join("gone");
        std::fs::write(&file, "").expect("a file");
        std::fs::create_dir(&empty).expect("a folder");
        for (from, words) in [
            (folder.path(), "holds other things"),
            (&file, "not a folder"),
            (&empty, "nothing lies in memory"),
            (&gone, "nothing lies in memory"),
        ] {
            let error = plan_flush(from, disk.dir(), false).expect_err("no store");
            let error = error.to_string();
            assert!(
                error.contains(words) && error.contains("KSNAP_RAM"),
                "{error}"
            );
            assert!(!error.contains("--store"), "{error}");
        }
    }

    #[test]
    fn what_cannot_be_measured_is_planned_all_the_same() {
        let (_memory, memory) = new_store();
        let mut session = memory.create_session(&info(10)).expect("a session");
        publish(&mut session, None, [], [(1, 7)]).expect("published");
        // Nothing can be made there, not even a file without a name.
        let plan = plan_flush(memory.dir(), Path::new("/proc/none"), true).expect("a plan");
        assert_eq!(
            (plan.snapshots, plan.bytes_per_second, plan.expected_ns),
            (1, None, 0)
        );
    }
}
