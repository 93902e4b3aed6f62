//! What all threads of a process share.

use super::plan::{Action, Arg, StatePlan};
use super::thread;
use crate::model::{ProcessAttributes, ProcessState, SignalAction, ThreadState};

/// `PR_SET_MDWE`, `PR_SET_MEMORY_MERGE` (include/uapi/linux/prctl.h).
const PR_SET_MDWE: u64 = 65;
const PR_SET_MEMORY_MERGE: u64 = 67;
/// `PR_SET_THP_DISABLE` with this flag forbids huge pages only where they are not advised.
const THP_EXCEPT_ADVISED: u32 = 3;

/// Both are known and differ: what is wanted, and what is.
pub(super) fn differ<'a, T: PartialEq>(
    wanted: &'a Option<T>,
    live: &'a Option<T>,
) -> Option<(&'a T, &'a T)> {
    match (wanted, live) {
        (Some(wanted), Some(live)) if wanted != live => Some((wanted, live)),
        _ => None,
    }
}

/// What takes privileges, and what takes none.
pub(super) fn shared(
    plan: &mut StatePlan,
    worker: i32,
    wanted: &ProcessState,
    live: &ProcessState,
) {
    let (want, now) = (&wanted.attributes, &live.attributes);
    unchangeable(plan, want, now);
    directories(plan, worker, wanted, live);
    if let Some((mask, _)) = differ(&want.umask, &now.umask) {
        let args = vec![Arg::Value((*mask).into())];
        plan.call(worker, "the umask", libc::SYS_umask, args);
    }
    if let (Some(want), Some(now)) = (&want.signals, &now.signals) {
        dispositions(plan, worker, want, now);
    }
    if let Some((adjustment, _)) = differ(&want.oom_score_adj, &now.oom_score_adj) {
        let action = Action::File("oom_score_adj", adjustment.to_string());
        plan.attempt(worker, "oom_score_adj", action);
    }
    if let Some((filter, _)) = differ(&want.coredump_filter, &now.coredump_filter) {
        let action = Action::File("coredump_filter", format!("{filter:#x}"));
        plan.step(worker, "what a core dump has", action, true);
    }
    if let Some((nice, _)) = differ(&want.autogroup_nice, &now.autogroup_nice) {
        let action = Action::File("autogroup", nice.to_string());
        plan.attempt(worker, "the niceness of its session", action);
    }
    if let Some((on, _)) = differ(&want.subreaper, &now.subreaper) {
        let args = [libc::PR_SET_CHILD_SUBREAPER as u64, u64::from(*on)];
        plan.prctl(worker, "being a subreaper", &args, true);
    }
    if let Some((mode, _)) = differ(&want.huge_pages_disabled, &now.huge_pages_disabled) {
        // The second argument says whether, the third is for flags.
        let flags = u64::from(*mode == THP_EXCEPT_ADVISED) << 1;
        let on = u64::from(*mode != 0);
        let args = [libc::PR_SET_THP_DISABLE as u64, on, flags, 0, 0];
        plan.prctl(worker, "whether huge pages are disabled", &args, true);
    }
    if let Some((on, _)) = differ(&want.memory_merge, &now.memory_merge) {
        let args = [PR_SET_MEMORY_MERGE, u64::from(*on), 0, 0, 0];
        plan.prctl(worker, "merging of equal pages", &args, false);
    }
    if let Some((want, now)) = differ(&want.membarrier, &now.membarrier) {
        for bit in (0..32).filter(|bit| want & !now & 1 << bit != 0) {
            let args = vec![Arg::Value(1 << bit), Arg::Value(0), Arg::Value(0)];
            plan.call(
                worker,
                "an intent of membarrier",
                libc::SYS_membarrier,
                args,
            );
        }
    }
    if let Some((denied, now)) = differ(&want.write_execute_denied, &now.write_execute_denied) {
        if now & !denied != 0 {
            plan.refused.push(
                "memory that was written may no longer be made executable (PR_SET_MDWE), which cannot be undone"
                    .to_owned(),
            );
        } else {
            let args = [PR_SET_MDWE, (*denied).into(), 0, 0, 0];
            plan.prctl(worker, "denial of writable code", &args, true);
        }
    }
}

/// A controlling terminal by its device number, for a sentence.
pub(in crate::restore) fn terminal_name(terminal: u32) -> String {
    match (terminal, crate::sys::fd::device_numbers(terminal)) {
        (0, _) => "no controlling terminal".into(),
        (_, (136, number)) => format!("the controlling terminal /dev/pts/{number}"),
        (_, (major, minor)) => {
            format!("the controlling terminal with device number {major}:{minor}")
        }
    }
}

/// What no process can change back.
fn unchangeable(plan: &mut StatePlan, want: &ProcessAttributes, now: &ProcessAttributes) {
    for (name, inode) in &want.namespaces {
        // What children will be in, not what it is in itself; and one with another id has another inode number.
        let own = !name.ends_with("_for_children") && !name.ends_with(":id");
        let moved = now.namespaces.iter().any(|(n, i)| n == name && i != inode);
        if own && moved {
            plan.refused
                .push(format!("it is in another {name} namespace"));
        }
    }
    if want.session != now.session {
        plan.notes.push(format!(
            "it was in session {} and is in session {}",
            want.session, now.session
        ));
    } else if want.terminal != now.terminal {
        plan.notes.push(format!(
            "it had {} and has {}",
            terminal_name(want.terminal),
            terminal_name(now.terminal)
        ));
    }
    if want.cgroup != now.cgroup {
        plan.notes.push(format!(
            "it was in control group {} and is in {}",
            want.cgroup.trim(),
            now.cgroup.trim()
        ));
    }
}

/// Path of a directory as the process itself names it: below its root.
pub(in crate::restore) fn inside(root: &str, path: &str) -> Option<String> {
    match root {
        "/" => Some(path.to_owned()),
        root => {
            let rest = path.strip_prefix(root)?;
            match rest.chars().next() {
                None => Some("/".to_owned()),
                Some('/') => Some(rest.to_owned()),
                Some(_) => None,
            }
        }
    }
}

fn path(text: String) -> Arg {
    Arg::Bytes([text.as_bytes(), b"\0"].concat())
}

fn directories(plan: &mut StatePlan, worker: i32, wanted: &ProcessState, live: &ProcessState) {
    let (root, now) = (&wanted.attributes.root, &live.attributes.root);
    if root != now {
        match (now.as_str(), root.as_str()) {
            ("/", to) if to.starts_with('/') => {
                let args = vec![path(to.to_owned())];
                plan.call(worker, "the root directory", libc::SYS_chroot, args);
            }
            _ => {
                plan.refused
                    .push(format!("its root directory was {root} and is {now}"));
                return;
            }
        }
    }
    if wanted.cwd != live.cwd || root != now {
        let gone = wanted.cwd.strip_suffix(" (deleted)");
        match (gone, inside(root, &wanted.cwd)) {
            (Some(gone), _) => plan.notes.push(format!(
                "its working directory {gone} had been removed, and it stays in {}",
                live.cwd
            )),
            (None, Some(cwd)) => {
                let what = format!("the working directory {}", wanted.cwd);
                plan.call(worker, what, libc::SYS_chdir, vec![path(cwd)]);
            }
            (None, None) => plan.refused.push(format!(
                "its working directory {} lies outside its root directory {root}",
                wanted.cwd
            )),
        }
    }
}

fn dispositions(plan: &mut StatePlan, worker: i32, want: &[SignalAction], now: &[SignalAction]) {
    for (n, (want, now)) in want.iter().zip(now).enumerate() {
        if want == now {
            continue;
        }
        // `struct kernel_sigaction`: handler, flags, restorer, mask.
        let words = [want.handler, want.flags, want.restorer, want.mask];
        let bytes = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let args = vec![
            Arg::Value(n as u64 + 1),
            Arg::Bytes(bytes),
            Arg::Value(0),
            Arg::Value(size_of::<u64>() as u64),
        ];
        let what = format!("how signal {} is dealt with", n + 1);
        plan.call(worker, what, libc::SYS_rt_sigaction, args);
    }
}

/// What a change of credentials undoes.
pub(super) fn after_credentials(
    plan: &mut StatePlan,
    worker: i32,
    wanted: &ProcessState,
    live: &ProcessState,
    pairs: &[(&ThreadState, ThreadState)],
) {
    let (want, now) = (&wanted.attributes, &live.attributes);
    let changed = pairs
        .iter()
        .any(|(want, now)| thread::changes_credentials(want, now));
    if let Some(dumpable) = want.dumpable
        && (changed || want.dumpable != now.dumpable)
    {
        match dumpable {
            0 | 1 => {
                let args = [libc::PR_SET_DUMPABLE as u64, dumpable.into()];
                plan.prctl(worker, "whether it may be dumped", &args, true);
            }
            // Only an exec makes it so.
            _ if now.dumpable == Some(dumpable) && !changed => {}
            _ => plan
                .notes
                .push("its core dumps were for root only (dumpable 2), and are not".to_owned()),
        }
    }
    if want.group != now.group && want.session == now.session {
        let args = vec![Arg::Value(0), Arg::Value(want.group as u64)];
        let action = Action::Call(libc::SYS_setpgid, args);
        plan.attempt(worker, format!("process group {}", want.group), action);
    }
}
