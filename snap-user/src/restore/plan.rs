//! What has to be done to a live process so that it is what a snapshot says. Pure.

use super::files::{self, FileWorld, FilesPlan};
pub use super::mappings::MapOp;
use super::mappings::{difference, with_brk};
use super::state::{self, LimitsPlan, MemoryPlan, StatePlan, TimerIds};
use super::{RestoreError, Result};
use crate::model::{Backing, PageSet, ProcessState, RobustList, Rseq, ThreadState, Vma};

/// The steps from a live process to a snapshot's state, its page contents aside.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RestorePlan {
    /// Threads that the snapshot does not have.
    pub end_threads: Vec<i32>,
    /// Threads that only the snapshot has.
    pub start_threads: Vec<ThreadState>,
    /// Registrations with the kernel that threads have in both, but not the same.
    pub registrations: Vec<Registration>,
    /// New program break.
    pub brk: Option<u64>,
    /// Changes of mappings, to be made after the break is set.
    pub mappings: Vec<MapOp>,
    /// Descriptors and open files.
    pub files: FilesPlan,
    /// Attributes of the process and its threads.
    pub state: StatePlan,
    /// Resource limits, which come before and after all else.
    pub limits: LimitsPlan,
    /// Attributes of its memory.
    pub memory: MemoryPlan,
    /// What differs and stays as it is, a sentence each.
    pub notes: Vec<String>,
}

/// What a thread has registered with the kernel, where that differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    /// The thread.
    pub tid: i32,
    /// Its restartable sequences: to be taken back, and to be registered instead.
    pub rseq: Option<(Option<Rseq>, Option<Rseq>)>,
    /// The robust list to register.
    pub robust_list: Option<RobustList>,
}

impl Registration {
    fn between(target: &ThreadState, live: &ThreadState) -> Option<Self> {
        let rseq = (target.rseq != live.rseq).then_some((live.rseq, target.rseq));
        let robust_list = target
            .robust_list
            .filter(|list| Some(*list) != live.robust_list);
        (rseq.is_some() || robust_list.is_some()).then_some(Self {
            tid: target.tid,
            rseq,
            robust_list,
        })
    }
}

/// What of the world outside the two states a plan depends on.
pub trait World: FileWorld {
    /// Whether the file behind a mapping can be mapped again, or why not.
    fn can_map(&self, vma: &Vma) -> std::result::Result<(), String>;
    /// Whether a thread with this id can be made, or why not.
    fn can_start_thread(&self, tid: i32) -> std::result::Result<(), String>;
    /// How a timer comes to have its id again.
    fn timer_ids(&self) -> TimerIds;
}

impl RestorePlan {
    /// Address space whose content must be written anew because it is mapped anew.
    pub fn fresh(&self) -> PageSet {
        self.mappings
            .iter()
            .filter_map(|op| match op {
                MapOp::Map(vma) => Some(vma.range),
                MapOp::Unmap(_) | MapOp::Protect(..) => None,
            })
            .collect()
    }
}

/// Plans the way from `live` to `target`.
///
/// # Errors
/// [`RestoreError::Refused`] with everything that cannot be brought back.
pub fn plan<W: World>(
    target: &ProcessState,
    live: &ProcessState,
    world: &W,
) -> Result<RestorePlan> {
    let files = || files::plan(target, live, world, &files::Options::default());
    plan_with(target, live, world, files)
}

/// The same for one of several processes, whose open files have a plan of their own ([`files::Joint`]).
///
/// # Errors
/// As [`plan`].
pub fn plan_but_files<W: World>(
    target: &ProcessState,
    live: &ProcessState,
    world: &W,
) -> Result<RestorePlan> {
    plan_with(target, live, world, FilesPlan::default)
}

fn plan_with<W: World>(
    target: &ProcessState,
    live: &ProcessState,
    world: &W,
    files: impl FnOnce() -> FilesPlan,
) -> Result<RestorePlan> {
    let mut plan = RestorePlan::default();
    let mut reasons = Vec::new();
    if !same_program(target, live) {
        reasons.push(
            "it has replaced its program since (exec), was brought back since, or is another process with the same id: the snapshot can be restored, but not in place"
                .to_owned(),
        );
        return Err(RestoreError::Refused {
            pid: live.pid,
            reasons,
        });
    }
    threads(target, live, world, &mut plan, &mut reasons);
    let after = match target.mm.brk == live.mm.brk {
        true => live.vmas.clone(),
        false => {
            plan.brk = Some(target.mm.brk);
            with_brk(&live.vmas, live.mm.start_brk, target.mm.brk)
        }
    };
    plan.mappings = difference(&target.vmas, &after);
    for op in &plan.mappings {
        check_mapping(op, &after, world, &mut reasons);
    }
    plan.files = files();
    reasons.append(&mut plan.files.refusals);
    plan.notes.append(&mut plan.files.notes);
    if plan.end_threads.len() < live.threads.len() {
        plan.state = state::plan(target, live);
        reasons.append(&mut state::check_timers(target, live, world.timer_ids()));
        plan.limits = state::plan_limits(target, live);
        check_directory(target, live, world, &mut reasons);
        plan.memory = state::plan_memory(target, live, &plan.fresh());
        plan.notes.append(&mut plan.memory.after.notes);
    }
    reasons.append(&mut plan.state.refused);
    plan.notes.append(&mut plan.state.notes);
    if reasons.is_empty() {
        Ok(plan)
    } else {
        Err(RestoreError::Refused {
            pid: live.pid,
            reasons,
        })
    }
}

/// It goes back to its working directory late, when all else is done.
fn check_directory<W: World>(
    target: &ProcessState,
    live: &ProcessState,
    world: &W,
    reasons: &mut Vec<String>,
) {
    if target.cwd == live.cwd || target.cwd.ends_with(" (deleted)") {
        return;
    }
    // A path outside the root directory is refused anyway.
    let Some(path) = state::inside(&target.attributes.root, &target.cwd) else {
        return;
    };
    let is_directory = |look: files::Look| look.content.mode & libc::S_IFMT == libc::S_IFDIR;
    if !world.look(&path).is_ok_and(is_directory) {
        reasons.push(format!(
            "its working directory {} is gone: make it again first",
            target.cwd
        ));
    }
}

fn same_program(target: &ProcessState, live: &ProcessState) -> bool {
    let layout = |s: &ProcessState| {
        (
            s.start_time,
            s.mm.start_stack,
            s.mm.arg_start,
            s.mm.start_code,
        )
    };
    layout(target) == layout(live)
}

fn threads(
    target: &ProcessState,
    live: &ProcessState,
    world: &dyn World,
    plan: &mut RestorePlan,
    reasons: &mut Vec<String>,
) {
    let has = |state: &ProcessState, tid: i32| state.threads.iter().any(|t| t.tid == tid);
    plan.end_threads = live
        .threads
        .iter()
        .map(|t| t.tid)
        .filter(|tid| !has(target, *tid))
        .collect();
    // A thread may have been in the middle of its start, or it is another one with the same id.
    plan.registrations = live
        .threads
        .iter()
        .filter_map(|now| {
            let then = target.threads.iter().find(|t| t.tid == now.tid)?;
            Registration::between(then, now)
        })
        .collect();
    for thread in target.threads.iter().filter(|t| !has(live, t.tid)) {
        match world.can_start_thread(thread.tid) {
            Ok(()) => plan.start_threads.push(thread.clone()),
            Err(why) => {
                let tid = thread.tid;
                reasons.push(format!(
                    "thread {tid} has ended since and cannot be made again: {why}"
                ));
            }
        }
    }
    if let Some(maker) = state::worker(target, live)
        && !plan.start_threads.is_empty()
        && !state::can_clone(maker)
    {
        reasons.push(format!(
            "threads that have ended since cannot be made again: thread {} is scheduled by deadlines, and such a thread makes no other (sched(7))",
            maker.tid
        ));
    }
    if plan.end_threads.len() == live.threads.len() {
        reasons.push("none of the snapshot's threads is left to work in".to_owned());
    }
    if target.threads.iter().any(|t| t.tid == target.pid) && !has(live, live.pid) {
        reasons.push("its first thread has ended, and only the others go on".to_owned());
    }
}

fn check_mapping(op: &MapOp, live: &[Vma], world: &dyn World, reasons: &mut Vec<String>) {
    match op {
        MapOp::Map(vma) => match &vma.backing {
            Backing::Special(name) => {
                reasons.push(format!("the kernel's [{name}] at {} has moved", vma.range));
            }
            Backing::File { path, .. } => {
                if let Err(why) = world.can_map(vma) {
                    reasons.push(format!("mapping {} of {path} is gone: {why}", vma.range));
                }
            }
            Backing::Anonymous { .. } | Backing::Heap | Backing::Stack => {}
        },
        MapOp::Unmap(range) => {
            let special = live
                .iter()
                .any(|v| v.is_special() && v.range.intersect(range).is_some());
            if special {
                reasons.push(format!(
                    "the kernel's own mapping at {range} was not there before"
                ));
            }
        }
        MapOp::Protect(..) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{PageRange, Protection};

    struct Free;

    impl World for Free {
        fn can_map(&self, _: &Vma) -> std::result::Result<(), String> {
            Ok(())
        }
        fn can_start_thread(&self, _: i32) -> std::result::Result<(), String> {
            Ok(())
        }
        fn timer_ids(&self) -> TimerIds {
            TimerIds::Chosen
        }
    }

    impl FileWorld for Free {
        fn look(&self, _: &str) -> std::result::Result<files::Look, String> {
            Err("no files".into())
        }
        fn process(&self, _: i32) -> Option<u64> {
            None
        }
        fn pipe(&self, _: (u64, u64)) -> Option<String> {
            None
        }
        fn connections(
            &self,
            all: &[(&crate::model::Socket, u64)],
        ) -> Vec<std::result::Result<(), String>> {
            vec![Ok(()); all.len()]
        }
    }

    struct Tight;

    impl FileWorld for Tight {
        fn look(&self, path: &str) -> std::result::Result<files::Look, String> {
            Free.look(path)
        }
        fn process(&self, pid: i32) -> Option<u64> {
            Free.process(pid)
        }
        fn pipe(&self, identity: (u64, u64)) -> Option<String> {
            Free.pipe(identity)
        }
        fn connections(
            &self,
            all: &[(&crate::model::Socket, u64)],
        ) -> Vec<std::result::Result<(), String>> {
            Free.connections(all)
        }
    }

    impl World for Tight {
        fn can_map(&self, _: &Vma) -> std::result::Result<(), String> {
            Err("it has no name any more".into())
        }
        fn can_start_thread(&self, _: i32) -> std::result::Result<(), String> {
            Err("the id is taken".into())
        }
        fn timer_ids(&self) -> TimerIds {
            TimerIds::Chosen
        }
    }

    fn state(tids: &[i32]) -> ProcessState {
        ProcessState {
            pid: 10,
            threads: tids
                .iter()
                .map(|&tid| ThreadState {
                    tid,
                    ..Default::default()
                })
                .collect(),
            ..Default::default()
        }
    }

    fn mapping(shared: bool) -> Vma {
        Vma {
            range: PageRange::new(0x1000, 0x2000),
            prot: Protection {
                read: true,
                write: true,
                exec: false,
            },
            shared,
            backing: Backing::File {
                path: "/memfd:x".into(),
                deleted: true,
                dev: (0, 1),
                inode: 5,
                offset: 0,
            },
            flags: Vec::new(),
            build_id: None,
        }
    }

    #[test]
    fn nothing_to_do_for_equal_states() {
        let state = state(&[10, 11]);
        assert_eq!(plan(&state, &state, &Free).unwrap(), RestorePlan::default());
    }

    #[test]
    fn a_working_directory_that_is_gone_is_refused() {
        let mut target = state(&[10]);
        target.cwd = "/gone".into();
        let RestoreError::Refused { reasons, .. } =
            plan(&target, &state(&[10]), &Free).unwrap_err()
        else {
            panic!("refused");
        };
        assert_eq!(
            reasons,
            ["its working directory /gone is gone: make it again first"]
        );
    }

    #[test]
    fn threads_come_and_go() {
        let plan = plan(&state(&[10, 11]), &state(&[10, 12]), &Free).unwrap();
        assert_eq!(plan.end_threads, [12]);
        assert_eq!(plan.start_threads[0].tid, 11);
    }

    #[test]
    fn registrations_made_since_are_taken_back_and_others_made_again() {
        let rseq = |addr| {
            Some(Rseq {
                addr,
                size: 32,
                signature: 1,
                flags: 0,
            })
        };
        let list = RobustList { head: 8, len: 24 };
        let (mut target, mut live) = (state(&[10, 11, 12]), state(&[10, 11, 12]));
        (target.threads[1].rseq, live.threads[1].rseq) = (None, rseq(64));
        target.threads[2].rseq = rseq(128);
        target.threads[2].robust_list = Some(list);
        // It goes back to where it registers one itself.
        live.threads[0].robust_list = Some(list);
        let plan = plan(&target, &live, &Free).unwrap();
        let [one, other] = &plan.registrations[..] else {
            panic!("{plan:?}")
        };
        assert_eq!((one.tid, one.rseq), (11, Some((rseq(64), None))));
        assert_eq!((other.tid, other.rseq), (12, Some((None, rseq(128)))));
        assert_eq!((one.robust_list, other.robust_list), (None, Some(list)));
    }

    #[test]
    fn a_refusal_lists_everything() {
        let mut target = state(&[10, 11]);
        target.vmas = vec![mapping(true)];
        let error = plan(&target, &state(&[10]), &Tight)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("thread 11") && error.contains("the id is taken"),
            "{error}"
        );
        assert!(
            error.contains("/memfd:x") && error.contains("nothing was touched"),
            "{error}"
        );
    }

    #[test]
    fn another_program_is_refused() {
        let mut live = state(&[10]);
        live.mm.start_stack = 77;
        assert!(
            plan(&state(&[10]), &live, &Free)
                .unwrap_err()
                .to_string()
                .contains("exec")
        );
    }
}
