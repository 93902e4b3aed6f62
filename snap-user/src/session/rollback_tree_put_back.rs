//! The part of a tree's rollback that is inside the stop: what is there, all plans, and then their application.

use super::revive_memory::Filled;
use super::rollback::of_one_to_put_back;
use super::rollback_parts::{Found, Writing};
use super::rollback_tree::Member;
use super::rollback_tree_again::{Regrowth, ancestor, awaits_signal};
use super::rollback_tree_lost::{Lost, Supplies};
use super::rollback_tree_stop::{Standing, refuse};
use super::rollback_world::Live;
use super::tree_files::{HeldFile, Holder, held_files, shared_files};
use super::{Result, SessionError};
use crate::model::{PageSet, ProcessState, ProcessTree, SavedFile, SharedFile};
use crate::restore::again::{Growth, Regroup};
use crate::restore::files::{self, Joint, JointPlan, Made, Owner};
use crate::restore::revive::{self, NewPlan, Newborn};
use crate::restore::{
    Applied, Part, Renewed, RestoreError, RestorePlan, TreeFiles, TreeInPlace, fault,
    plan_but_files,
};
use crate::sys::Frozen;
use std::collections::BTreeSet;
use std::os::fd::AsFd;

/// What was done inside the stop.
pub(super) struct Done {
    /// For each that lived what came of it, the pages that may have been written, and notes.
    pub(super) each: Vec<(Applied, PageSet, Vec<String>)>,
    /// For each that was made again what it was filled with, and notes.
    pub(super) made: Vec<(Filled, Vec<String>)>,
    /// By place, whether a signal of a child's end is to wait for it.
    pub(super) keeps: Vec<bool>,
    pub(super) notes: Vec<String>,
}

/// All that is decided before anything is touched.
struct Plans {
    keeps: Vec<bool>,
    found: Vec<Found>,
    each: Vec<RestorePlan>,
    wanted: Joint,
    live: Joint,
    files: JointPlan,
    regrowth: Regrowth,
    supplies: Supplies,
    notes: Vec<String>,
}

/// Puts those that live back, and makes the others again. `standing` has all of them then.
///
/// # Errors
/// [`RestoreError::TreeHalfway`]: all that lived must stay stopped. Any other: nothing was changed.
pub(super) fn put_back(
    tree: &ProcessTree,
    lives: &[bool],
    (members, lost): (&mut [Member], &mut [Lost]),
    standing: &mut Standing,
) -> Result<Done> {
    let Plans {
        keeps,
        mut found,
        each,
        mut wanted,
        mut live,
        files,
        regrowth,
        supplies,
        mut notes,
    } = plan_all(tree, lives, (members, lost), standing)?;
    let writings = load_rest(members, &each, &mut found)?;
    let mut parts = Vec::with_capacity(members.len());
    for (n, frozen) in standing.members.0.iter_mut().enumerate() {
        let Member {
            place,
            engine,
            prepared,
        } = &members[n];
        parts.push(Part {
            place: *place,
            frozen,
            plan: &each[n],
            target: &prepared.target,
            live: &found[n].live,
            pages: writings[n].pages(prepared),
            changed: &writings[n].changed,
            process: engine.target().pidfd.as_fd(),
        });
    }
    let in_place = TreeInPlace::new(parts)?;
    let new = lost.iter().enumerate();
    let new: Vec<revive::Part<'_>> = new.map(|(n, one)| supplies.part(n, one)).collect();
    mark_all(members)?;
    let avoid = supplies.space();
    let mut growth = regrowth.growth(&avoid);
    let owners = owners(lives, members);
    let what = (&files, wanted.view(0));
    // The last thing that may be refused.
    let (mut newborns, made) = match make(&mut growth, regrowth.steps(), &new, what, &owners) {
        Ok(made) => made,
        Err(why) => {
            let root = tree.members[0].pid;
            growth.take_back().map_err(|e| {
                let why = format!("{e}, after {why}");
                in_place.not_begun(root, "taking back what was made", &why)
            })?;
            unmark_all(members);
            return Err(RestoreError::Refused {
                pid: root,
                reasons: vec![why],
            }
            .into());
        }
    };
    notes.extend(made.notes.iter().cloned());
    let mut filled = Vec::with_capacity(lost.len());
    for (n, newborn) in newborns.iter_mut().enumerate() {
        let mut more = supplies.notes(n).to_vec();
        let pages = supplies.fill(n, newborn, &mut more).map_err(|e| {
            let pid = new[n].target.pid;
            in_place.not_begun(pid, "filling its memory", &e)
        })?;
        filled.push((pages, more));
    }
    let renewed = newborns.into_iter().zip(lost.iter()).zip(new);
    let mut renewed: Vec<Renewed<'_>> = renewed
        .map(|((newborn, one), part)| Renewed {
            place: one.place,
            newborn,
            part,
        })
        .collect();
    let all = TreeFiles {
        wanted: &mut wanted,
        live: &mut live,
        plan: &files,
        made: &made,
    };
    let (applied, more) = in_place.apply(all, &mut renewed)?;
    notes.extend(more);
    let newborns = renewed.into_iter().map(|one| one.newborn).collect();
    join((tree, lives), lost, newborns, standing, &mut filled)?;
    let each = applied.into_iter().zip(writings).zip(each);
    let each = each.map(|((mut applied, writing), plan)| {
        let mut notes = plan.notes;
        notes.append(&mut applied.notes);
        (applied, writing.may_differ, notes)
    });
    Ok(Done {
        each: each.collect(),
        made: filled,
        keeps,
        notes,
    })
}

/// Refuses what cannot be done of any of them; touches nothing.
fn plan_all(
    tree: &ProcessTree,
    lives: &[bool],
    (members, lost): (&mut [Member], &[Lost]),
    standing: &mut Standing,
) -> Result<Plans> {
    let mut found = Vec::with_capacity(members.len());
    for (member, frozen) in members.iter_mut().zip(&mut standing.members.0) {
        let pid = member.pid();
        let looked = member.engine.look_stopped(frozen, &member.prepared);
        found.push(looked.map_err(|e| of_one_to_put_back(pid, e))?);
        // One that an earlier rollback has made again is the one that it was made as.
        member.prepared.target.start_time = member.engine.target().start_time;
    }
    let (mut refused, mut notes) = (Vec::new(), Vec::new());
    let mut then = members.iter().map(|m| &m.prepared.target);
    let mut gone = lost.iter().map(|one| &one.state);
    let states = lives.iter().map(|lives| match lives {
        true => then.next(),
        false => gone.next(),
    });
    let states: Vec<&ProcessState> = states.flatten().collect();
    let mut regrowth = Regrowth::plan(tree, &states, standing, &mut refused, &mut notes)?;
    let frozen = members.iter().map(|m| m.place).zip(&standing.members.0);
    let frozen: Vec<(usize, &Frozen)> = frozen.collect();
    regrowth.find_hands(&frozen, &states, &mut refused)?;
    let mut each = Vec::with_capacity(members.len());
    for (member, found) in members.iter().zip(&mut found) {
        if regrowth.sets_groups() {
            found.live.attributes.group = member.prepared.target.attributes.group;
        }
        each.push(plan_one(member, found, &mut refused)?);
    }
    let mut renewals: Vec<NewPlan> = Vec::with_capacity(lost.len());
    let mut makers = Vec::with_capacity(lost.len());
    for one in lost {
        let maker = ancestor(tree, lives, one.place);
        let maker = members.iter().position(|m| m.place == maker);
        let maker = &found[maker.expect("the first one lives")].live;
        renewals.push(one.plan(maker, &mut refused)?);
        makers.push(maker);
    }
    let nothing = ProcessState::default();
    let mut living = found.iter().map(|found| &found.live);
    let now = lives.iter().map(|lives| match lives {
        true => living.next(),
        false => Some(&nothing),
    });
    let now: Vec<&ProcessState> = now.flatten().collect();
    let damaged = |why: String| SessionError::Usage(format!("the tree is damaged: {why}"));
    let mut wanted = Joint::new(&states, &tree.shared).map_err(damaged)?;
    let mut live = Joint::new(&now, &shared_now(&now, &mut notes)).map_err(damaged)?;
    let world = Live {
        pid: tree.members[0].pid,
    };
    let mut files = wanted.plan_in_place(&mut live, &states, &now, &world);
    refused.append(&mut files.all.refusals);
    refuse(tree, refused)?;
    notes.append(&mut files.all.notes);
    let pairs = now.iter().copied().zip(states.iter().copied());
    let pairs = pairs.zip(lives).filter(|(_, lives)| **lives);
    let pairs: Vec<_> = pairs.map(|(pair, _)| pair).collect();
    let plans = (renewals, &makers[..]);
    let supplies = Supplies::open(lost, plans, &pairs, &wanted, &mut files, &mut notes);
    let supplies = supplies.map_err(|e| RestoreError::Refused {
        pid: tree.members[0].pid,
        reasons: vec![format!("what is to be made again: {e}")],
    })?;
    for (member, plan) in members.iter().zip(&mut each) {
        plan.files.clone_from(&files.members[member.place]);
    }
    Ok(Plans {
        keeps: states.iter().map(|state| awaits_signal(state)).collect(),
        found,
        each,
        wanted,
        live,
        files,
        regrowth,
        supplies,
        notes,
    })
}

/// Loads what is written into those that live.
fn load_rest(
    members: &mut [Member],
    plans: &[RestorePlan],
    found: &mut [Found],
) -> Result<Vec<Writing>> {
    let mut writings: Vec<Writing> = Vec::with_capacity(members.len());
    let mut seen = BTreeSet::new();
    for ((member, plan), found) in members.iter_mut().zip(plans).zip(found) {
        let loaded = member.engine.load_rest(plan, found, &mut member.prepared);
        let mut writing = loaded.map_err(|e| e.of_process(member.pid()))?;
        // Several may have a file, whose content is written once.
        writing
            .changed
            .retain(|file: &SavedFile| seen.insert(file.identity));
        writings.push(writing);
    }
    Ok(writings)
}

/// Those that live, by their places. Nobody asks for those of the others.
fn owners<'a>(lives: &[bool], members: &'a [Member]) -> Vec<Owner<'a>> {
    let of = |member: &'a Member| (member.pid(), member.engine.target().pidfd.as_fd());
    let mut living = members.iter();
    let all = lives.iter().map(|lives| match lives {
        true => living.next().unwrap_or(&members[0]),
        false => &members[0],
    });
    all.map(of).collect()
}

/// Makes those that have ended, as yet without content, and the open files that are not there. With an error those are
/// gone, and what their parents have done for them is to be taken back.
fn make(
    growth: &mut Growth<'_>,
    steps: &[Regroup],
    new: &[revive::Part<'_>],
    (files, wanted): (&JointPlan, &ProcessState),
    owners: &[Owner<'_>],
) -> std::result::Result<(Vec<Newborn>, Made), String> {
    let grown = growth.run(steps).map_err(|e| e.to_string())?;
    let mut newborns = Vec::with_capacity(new.len());
    for ((_, stub), part) in grown.into_iter().zip(new) {
        let newborn = Newborn::adopt_grafted(stub, part).map_err(|e| e.to_string())?;
        newborns.push(newborn);
    }
    let threads = new.iter().flat_map(|part| &part.target.threads);
    let options = files::Options {
        pids: threads.map(|thread| (thread.tid, thread.tid)).collect(),
        ..files::Options::default()
    };
    let made = files::make(&files.all, wanted, owners, &options);
    let made = made.map_err(|e| format!("an open file of the tree: {e}"))?;
    Ok((newborns, made))
}

/// Those that were made again are held with the others.
fn join(
    (tree, lives): (&ProcessTree, &[bool]),
    lost: &mut [Lost],
    newborns: Vec<Newborn>,
    standing: &mut Standing,
    filled: &mut [(Filled, Vec<String>)],
) -> Result<()> {
    let mut failed = None;
    for ((one, newborn), (_, notes)) in lost.iter_mut().zip(newborns).zip(filled) {
        let maker = tree.members[ancestor(tree, lives, one.place)].pid;
        let maker = standing.place_of(maker);
        let stopped = maker.is_some_and(|at| standing.members.0[at].is_job_stopped());
        match one.join(newborn, stopped) {
            Ok((frozen, more)) => {
                notes.extend(more);
                standing.members.0.insert(one.place, frozen);
            }
            Err(e) => {
                failed = Some((one.pid(), e));
                break;
            }
        }
    }
    let Some((pid, e)) = failed else {
        fault::point("those made again are held");
        return Ok(());
    };
    let back = standing.members.0.iter().map(Frozen::pid);
    Err(RestoreError::TreeHalfway {
        root: tree.members[0].pid,
        pid,
        step: "holding it with the others",
        why: e.to_string(),
        back: back.collect(),
        mixed: Vec::new(),
    }
    .into())
}

/// Plans one process, its files aside. What is refused is added to what others are refused for.
fn plan_one(member: &Member, found: &Found, refused: &mut Vec<String>) -> Result<RestorePlan> {
    let world = Live { pid: member.pid() };
    match plan_but_files(&member.prepared.target, &found.live, &world) {
        Ok(plan) => Ok(plan),
        Err(RestoreError::Refused { pid, reasons }) => {
            let named = |why: String| format!("process {pid}: {why}");
            refused.extend(reasons.into_iter().map(named));
            Ok(RestorePlan::default())
        }
        Err(e) => Err(e.into()),
    }
}

/// Open files that several of the stopped processes share now.
fn shared_now(now: &[&ProcessState], notes: &mut Vec<String>) -> Vec<Vec<SharedFile>> {
    let held: Vec<Vec<HeldFile>> = now.iter().map(|state| held_files(state)).collect();
    let holders = now.iter().zip(&held).map(|(state, files)| Holder {
        pid: state.pid,
        files,
    });
    shared_files(&holders.collect::<Vec<_>>(), notes)
}

/// From here on each of them is on a mixed state for whoever comes after a ksnap that died.
fn mark_all(members: &[Member]) -> Result<()> {
    for (n, member) in members.iter().enumerate() {
        if let Err(e) = member.engine.mark_mixed() {
            // Those that were marked before stay so.
            unmark_all(&members[..n]);
            return Err(e);
        }
    }
    Ok(())
}

/// Nothing of them has been touched after all.
fn unmark_all(members: &[Member]) {
    let marked = members.iter().filter(|m| !m.engine.mixed);
    marked.for_each(|m| m.engine.unmark_mixed());
}
