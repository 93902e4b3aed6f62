//! Attributes of memory: advice, locks, names, keys, policies, guard pages, seals.

use super::plan::{Action, Arg, StatePlan, nodes, worker};
use crate::model::{Backing, PageRange, PageSet, ProcessState, Vma};
use crate::restore::apply::bits;

/// `MADV_GUARD_INSTALL` and `MADV_GUARD_REMOVE` (Linux 6.13).
const GUARD_INSTALL: i32 = 102;
const GUARD_REMOVE: i32 = 103;
const PR_SET_VMA: u64 = 0x5356_4d41;
const SYS_MSEAL: i64 = 462;
const MLOCK_ONFAULT: u64 = 1;

/// Advice by the flag of `VmFlags` that shows it: to give it, to take it back.
const ADVICE: [(&str, i32, Option<i32>); 6] = [
    ("hg", libc::MADV_HUGEPAGE, None),
    ("nh", libc::MADV_NOHUGEPAGE, None),
    ("dc", libc::MADV_DONTFORK, Some(libc::MADV_DOFORK)),
    ("dd", libc::MADV_DONTDUMP, Some(libc::MADV_DODUMP)),
    ("wf", libc::MADV_WIPEONFORK, Some(libc::MADV_KEEPONFORK)),
    ("mg", libc::MADV_MERGEABLE, Some(libc::MADV_UNMERGEABLE)),
];

/// The steps around the writing of pages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Before pages are written: once mappings are what they shall be.
    pub before: StatePlan,
    /// After they are written.
    pub after: StatePlan,
}

/// Plans the attributes of memory. `live` is what was mapped before mappings were changed, `fresh` what has
/// been mapped anew since, which has no attributes.
pub fn plan_memory(wanted: &ProcessState, live: &ProcessState, fresh: &PageSet) -> MemoryPlan {
    let mut plan = MemoryPlan::default();
    let Some(worker) = worker(wanted, live).map(|thread| thread.tid) else {
        return plan;
    };
    let mut seals = Vec::new();
    future_locks(&mut plan.after, worker, wanted, live);
    for piece in pieces(wanted, live, fresh) {
        advice(&mut plan.after, worker, &piece);
        lock(&mut plan.after, worker, &piece);
        name(&mut plan.after, worker, &piece);
        match (piece.wants("sl"), piece.has("sl")) {
            (true, false) => seals.push(piece.range),
            (false, true) => plan.after.notes.push(format!(
                "mapping {} has been sealed since, which cannot be undone",
                piece.range
            )),
            _ => {}
        }
    }
    keys(&mut plan.after, worker, wanted, live, fresh);
    policies(&mut plan.after, worker, wanted, live, fresh);
    guards(&mut plan, worker, wanted, live, fresh);
    for range in seals {
        let args = vec![
            Arg::Value(range.start),
            Arg::Value(range.len()),
            Arg::Value(0),
        ];
        let what = format!("the seal of {range}");
        plan.after
            .attempt(worker, what, Action::Call(SYS_MSEAL, args));
    }
    plan
}

/// A piece of memory with the same attributes all over.
struct Piece<'a> {
    range: PageRange,
    want: &'a Vma,
    /// What it is now; nothing when it has been mapped anew.
    have: Option<&'a Vma>,
}

impl Piece<'_> {
    fn wants(&self, flag: &str) -> bool {
        self.want.flags.iter().any(|f| f == flag)
    }

    fn has(&self, flag: &str) -> bool {
        self.have
            .is_some_and(|vma| vma.flags.iter().any(|f| f == flag))
    }
}

fn at(vmas: &[Vma], addr: u64) -> Option<&Vma> {
    let after = vmas.partition_point(|v| v.range.start <= addr);
    vmas[..after].last().filter(|v| v.range.contains(addr))
}

/// Memory whose attributes are known on both sides, and differ.
fn pieces<'a>(wanted: &'a ProcessState, live: &'a ProcessState, fresh: &PageSet) -> Vec<Piece<'a>> {
    let mut cuts: Vec<u64> = wanted
        .vmas
        .iter()
        .chain(&live.vmas)
        .flat_map(|v| [v.range.start, v.range.end])
        .chain(fresh.ranges().iter().flat_map(|r| [r.start, r.end]))
        .collect();
    cuts.sort_unstable();
    cuts.dedup();
    let mut pieces: Vec<Piece<'a>> = Vec::new();
    for pair in cuts.windows(2) {
        let range = PageRange {
            start: pair[0],
            end: pair[1],
        };
        let Some(want) = at(&wanted.vmas, range.start) else {
            continue;
        };
        let have = match fresh.contains(range.start) {
            true => None,
            false => at(&live.vmas, range.start),
        };
        // A mapping without any flags is one whose flags were not read.
        let unknown = want.flags.is_empty() || have.is_some_and(|have| have.flags.is_empty());
        if want.is_special() || unknown {
            continue;
        }
        let same = have.is_some_and(|have| {
            (&have.flags, anonymous_name(have)) == (&want.flags, anonymous_name(want))
        });
        if same {
            continue;
        }
        match pieces.last_mut() {
            Some(last)
                if last.range.end == range.start
                    && std::ptr::eq(last.want, want)
                    && last.have.map(std::ptr::from_ref) == have.map(std::ptr::from_ref) =>
            {
                last.range.end = range.end;
            }
            _ => pieces.push(Piece { range, want, have }),
        }
    }
    pieces
}

fn anonymous_name(vma: &Vma) -> Option<&str> {
    match &vma.backing {
        Backing::Anonymous { name } => name.as_deref(),
        _ => None,
    }
}

fn madvise(plan: &mut StatePlan, worker: i32, range: PageRange, advice: i32, essential: bool) {
    let args = vec![
        Arg::Value(range.start),
        Arg::Value(range.len()),
        Arg::Value(advice as u64),
    ];
    let what = format!("advice on {range}");
    plan.step(
        worker,
        what,
        Action::Call(libc::SYS_madvise, args),
        essential,
    );
}

fn advice(plan: &mut StatePlan, worker: i32, piece: &Piece<'_>) {
    let order = |wants: &dyn Fn(&str) -> bool| match (wants("sr"), wants("rr")) {
        (true, _) => libc::MADV_SEQUENTIAL,
        (_, true) => libc::MADV_RANDOM,
        _ => libc::MADV_NORMAL,
    };
    let want = order(&|flag| piece.wants(flag));
    if want != order(&|flag| piece.has(flag)) {
        madvise(plan, worker, piece.range, want, false);
    }
    for (flag, give, take) in ADVICE {
        match (piece.wants(flag), piece.has(flag), take) {
            (true, false, _) => madvise(plan, worker, piece.range, give, false),
            (false, true, Some(take)) => madvise(plan, worker, piece.range, take, false),
            // One piece of advice about huge pages can only be replaced by the other.
            (false, true, None) if !piece.wants("hg") && !piece.wants("nh") => {
                plan.notes.push(format!(
                    "advice about huge pages was given for {} since, which cannot be taken back",
                    piece.range
                ));
            }
            _ => {}
        }
    }
}

fn lock(plan: &mut StatePlan, worker: i32, piece: &Piece<'_>) {
    let range = piece.range;
    let locked = |wants: &dyn Fn(&str) -> bool| (wants("lo"), wants("lo") && wants("lf"));
    let want = locked(&|flag| piece.wants(flag));
    if want == locked(&|flag| piece.has(flag)) {
        return;
    }
    let mut args = vec![Arg::Value(range.start), Arg::Value(range.len())];
    let nr = match want {
        (false, _) => libc::SYS_munlock,
        (true, on_fault) => {
            args.push(Arg::Value(if on_fault { MLOCK_ONFAULT } else { 0 }));
            libc::SYS_mlock2
        }
    };
    let what = format!("the lock of {range} in memory");
    plan.attempt(worker, what, Action::Call(nr, args));
}

/// What mappings to come get (`mlockall(2)`). It can only be taken back together with the locks of all that
/// are there, which are then set again.
fn future_locks(plan: &mut StatePlan, worker: i32, wanted: &ProcessState, live: &ProcessState) {
    let (want, now) = (wanted.attributes.lock_future, live.attributes.lock_future);
    let (Some(want), Some(now)) = (want, now) else {
        return;
    };
    if want == now {
        return;
    }
    let what = "locking of mappings to come";
    if want != 0 {
        let args = vec![Arg::Value(want.into())];
        plan.attempt(worker, what, Action::Call(libc::SYS_mlockall, args));
        return;
    }
    plan.attempt(worker, what, Action::Call(libc::SYS_munlockall, Vec::new()));
    let has = |vma: &Vma, flag: &str| vma.flags.iter().any(|f| f == flag);
    for vma in wanted.vmas.iter().filter(|vma| has(vma, "lo")) {
        let args = vec![
            Arg::Value(vma.range.start),
            Arg::Value(vma.range.len()),
            Arg::Value(if has(vma, "lf") { MLOCK_ONFAULT } else { 0 }),
        ];
        let what = format!("the lock of {} in memory", vma.range);
        plan.attempt(worker, what, Action::Call(libc::SYS_mlock2, args));
    }
}

fn name(plan: &mut StatePlan, worker: i32, piece: &Piece<'_>) {
    if !matches!(piece.want.backing, Backing::Anonymous { .. }) {
        return;
    }
    let (want, have) = (
        anonymous_name(piece.want),
        piece.have.and_then(anonymous_name),
    );
    if want == have {
        return;
    }
    let name = match want {
        Some(name) => Arg::Bytes([name.as_bytes(), b"\0"].concat()),
        None => Arg::Value(0),
    };
    let args = vec![
        Arg::Value(PR_SET_VMA),
        Arg::Value(0),
        Arg::Value(piece.range.start),
        Arg::Value(piece.range.len()),
        name,
    ];
    let what = format!("the name of {}", piece.range);
    plan.attempt(worker, what, Action::Call(libc::SYS_prctl, args));
}

/// Ranges with a value each, where the other list has another; the value is the default where `wanted` has none.
fn changes<T: Clone + Default + PartialEq>(
    wanted: &[(PageRange, T)],
    live: &[(PageRange, T)],
    fresh: &PageSet,
) -> Vec<(PageRange, T)> {
    let mut changes = Vec::new();
    for (range, want) in wanted {
        let same: PageSet = live
            .iter()
            .filter(|(_, have)| have == want)
            .map(|(range, _)| *range)
            .collect();
        let all = PageSet::from_ranges(vec![*range]);
        let missing = all.subtract(&same.subtract(fresh));
        changes.extend(missing.ranges().iter().map(|r| (*r, want.clone())));
    }
    let covered: PageSet = wanted.iter().map(|(range, _)| *range).collect();
    let had: PageSet = live.iter().map(|(range, _)| *range).collect();
    let gone = had.subtract(&covered).subtract(fresh);
    changes.extend(gone.ranges().iter().map(|r| (*r, T::default())));
    changes
}

fn keys(
    plan: &mut StatePlan,
    worker: i32,
    wanted: &ProcessState,
    live: &ProcessState,
    fresh: &PageSet,
) {
    let (want, have) = (&wanted.attributes.memory.keys, &live.attributes.memory.keys);
    for (range, key) in changes(want, have, fresh) {
        let Some(vma) = at(&wanted.vmas, range.start) else {
            continue;
        };
        let args = vec![
            Arg::Value(range.start),
            Arg::Value(range.len()),
            Arg::Value(bits(vma.prot)),
            Arg::Value(key.into()),
        ];
        let what = format!("protection key {key} of {range}");
        plan.attempt(worker, what, Action::Call(libc::SYS_pkey_mprotect, args));
    }
}

fn policies(
    plan: &mut StatePlan,
    worker: i32,
    wanted: &ProcessState,
    live: &ProcessState,
    fresh: &PageSet,
) {
    let (want, have) = (
        &wanted.attributes.memory.policies,
        &live.attributes.memory.policies,
    );
    for (range, policy) in changes(want, have, fresh) {
        if at(&wanted.vmas, range.start).is_none() {
            continue;
        }
        let mut args = vec![
            Arg::Value(range.start),
            Arg::Value(range.len()),
            Arg::Value(policy.mode.into()),
        ];
        args.extend(nodes(&policy.nodes));
        args.push(Arg::Value(0));
        let what = format!("the memory policy of {range}");
        plan.attempt(worker, what, Action::Call(libc::SYS_mbind, args));
    }
}

fn guards(
    plan: &mut MemoryPlan,
    worker: i32,
    wanted: &ProcessState,
    live: &ProcessState,
    fresh: &PageSet,
) {
    let set = |state: &ProcessState| -> PageSet {
        state.attributes.memory.guards.iter().copied().collect()
    };
    let want = set(wanted);
    let mapped: PageSet = wanted.vmas.iter().map(|v| v.range).collect();
    let have = set(live).subtract(fresh).intersect(&mapped);
    for range in have.subtract(&want).ranges() {
        madvise(&mut plan.before, worker, *range, GUARD_REMOVE, true);
    }
    for range in want.subtract(&have).ranges() {
        madvise(&mut plan.after, worker, *range, GUARD_INSTALL, true);
    }
}

#[cfg(test)]
mod tests;
