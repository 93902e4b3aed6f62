//! `restore` and `fork` of a tree: all of its processes, or none.

use super::revive::{
    Pids, ReviveOptions, Revived, RevivedMember, check_network, make_copies, refuse_differences,
};
use super::revive_contents::{contents_to_write, only_own};
use super::revive_here::{
    Here, OWN_USERS, check_processor, namespaces, take_own_users, time_namespace, without_own_users,
};
use super::revive_hot::written_last;
use super::revive_kin::{born_in, kin, other_session};
use super::revive_memory::{Filled, Memory, SegmentsInUse, Written, from_image};
use super::revive_open::{Commons, open};
use super::revive_terminals::make_lines;
use super::{Result, SessionError};
use crate::model::{ProcessState, ProcessTree};
use crate::restore::RestoreError;
use crate::restore::files::{self, Joint, JointPlan, Replacement, SavedContents, System};
use crate::restore::revive::{
    Births, Controlling, Entered, Had, Kin, Namespaces, Network, NewPlan, Newborn, Opened, Part,
    Roster, Surroundings, births, finish_tree, other_than, plan, plan_attributes_in_tree,
    start_tree, terminals,
};
use crate::store::{Snapshot, Store};
use crate::sys::{self, Birth, monotonic_ns};
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsRawFd;
use std::sync::Arc;

/// A process of a tree, and the way back to it.
struct Member {
    snapshot: Snapshot,
    state: ProcessState,
    planned: NewPlan,
    memory: Memory,
    contents: Arc<SavedContents>,
    stopped: bool,
}

impl Member {
    /// Sentences, with the process that they are about.
    fn named(&self, notes: Vec<String>) -> impl Iterator<Item = String> {
        let pid = self.state.pid;
        let named = move |note| format!("process {pid}: {note}");
        notes.into_iter().map(named)
    }
}

/// What all copies of a tree have in common.
struct Job<'a> {
    tree: &'a ProcessTree,
    members: Vec<Member>,
    kin: Vec<Kin>,
    births: Births,
    /// Who begins the session of the first, in a namespace where nobody else is.
    ghost: Option<i32>,
    joint: Joint,
    files: JointPlan,
    /// Terminals that sessions take.
    terminals: Vec<Controlling>,
    options: files::Options,
    pids: Pids,
    chosen: Namespaces,
    entered: Entered,
    strict: bool,
    notes: Vec<String>,
}

/// Brings a tree back as `copies` new ones, one after the other. `is_wanted` is asked when all that takes long is done.
///
/// # Errors
/// What cannot be brought back of any process is refused before anything is started; when a copy fails later, those
/// before it run on.
pub(super) fn revive(
    store: &Store,
    tree: &ProcessTree,
    copies: u32,
    options: &ReviveOptions,
    is_wanted: &dyn Fn() -> Result<()>,
    each: &mut dyn FnMut(&Revived),
) -> Result<Vec<Revived>> {
    let begun = monotonic_ns();
    let mut job = Job::new(store, tree, copies, options)?;
    is_wanted()?;
    make_copies(copies, begun, &mut |begun| job.run(begun), each)
}

impl<'a> Job<'a> {
    fn new(
        store: &Store,
        tree: &'a ProcessTree,
        copies: u32,
        options: &ReviveOptions,
    ) -> Result<Self> {
        let mut loaded = Vec::with_capacity(tree.members.len());
        for member in &tree.members {
            let snapshot = store.snapshot(member.id)?;
            let state = snapshot.manifest()?.state;
            loaded.push((snapshot, state));
        }
        let threads = loaded.iter().flat_map(|(_, state)| &state.threads);
        let pids = options.pids_for(copies, threads);
        let users = take_own_users(pids)?;
        let mut refused = Vec::new();
        for (_, state) in &mut loaded {
            if pids != Pids::Same {
                only_own(state);
            }
            check_processor(state)?;
        }
        let chosen = Namespaces {
            users,
            network: options.network,
            stays: options.stays,
        };
        let entered = namespaces(&loaded[0].1, chosen)?;
        for (_, state) in &loaded {
            check_network(state, chosen)?;
        }
        let mut plans = Vec::with_capacity(loaded.len());
        for (snapshot, state) in &loaded {
            let here = Here::of(options, pids, &entered, state, snapshot)?;
            plans.push(plan_one(state, &here, users, &mut refused)?);
        }
        let namespace = |state: &ProcessState| {
            let all = &state.attributes.namespaces;
            all.iter()
                .find(|(name, _)| name == "pid")
                .map(|(_, id)| *id)
        };
        for (_, state) in &loaded {
            if namespace(state) != namespace(&loaded[0].1) {
                refused.push(format!(
                    "process {} is in another PID namespace than the first of the tree, and only one is made",
                    state.pid
                ));
            }
        }
        let here = Here::new(options, pids, &entered)?;
        for zombie in &tree.zombies {
            if let Err(why) = here.can_start_thread(zombie.own_pid) {
                refused.push(format!("process {}, which had ended: {why}", zombie.pid));
            }
        }
        let states: Vec<&ProcessState> = loaded.iter().map(|(_, state)| state).collect();
        let kin = kin(tree, &states);
        let is_outside = |id: i32| kin.iter().all(|one| one.pid != id);
        let session = kin[0].session;
        let ghost =
            (pids == Pids::Namespace && session > 1 && is_outside(session)).then_some(session);
        let born = born_in(pids, ghost, kin[0].group);
        let mut births = births(&kin, born);
        for (pid, group) in births.revived(&kin) {
            if let Err(why) = here.can_start_thread(group) {
                refused.push(format!(
                    "process {pid}: its process group {group}, whose first process had ended: {why}"
                ));
            }
        }
        let damaged = |why: String| SessionError::Usage(format!("the tree is damaged: {why}"));
        let mut joint = Joint::new(&states, &tree.shared).map_err(damaged)?;
        let mut notes = Vec::new();
        let (common, each) = file_options(&joint, options, &mut notes);
        let here = System {
            pid: std::process::id() as i32,
            entered: Some(&entered),
        };
        let mut files = joint.plan(&states, &here, &each);
        refused.append(&mut files.all.refusals);
        if !refused.is_empty() {
            return Err(RestoreError::Refused {
                pid: tree.members[0].pid,
                reasons: refused,
            }
            .into());
        }
        notes.append(&mut files.all.notes);
        notes.extend(entered.notes.iter().map(|note| format!("each: {note}")));
        for other in &states[1..] {
            let named = |note| format!("process {}: {note}", other.pid);
            notes.extend(other_than(states[0], other).into_iter().map(named));
        }
        if ghost.is_none() {
            let begun = births.revived(&kin).map(|(_, group)| group);
            let begun: Vec<i32> = begun.collect();
            let is_lost = |id: i32| is_outside(id) && !begun.contains(&id);
            notes.extend(other_session(pids, &kin[0], is_lost));
        }
        notes.append(&mut births.notes);
        let had: Vec<Had> = states.iter().zip(&tree.members).map(Had::of).collect();
        let line = match ghost {
            // In a session that nobody else is in.
            Some(_) => 0,
            None => sys::proc::stat(here.pid, None)?.field(7) as u32,
        };
        let sources = &files.all.sources;
        let mut terminals = terminals(&kin, &births, &had, line, joint.files(), sources);
        notes.append(&mut terminals.notes);
        notes.extend(users.then(|| format!("each: {OWN_USERS}")));
        if pids == Pids::New {
            notes.push("their ids are new: what the processes remember of each other's, and C libraries of their threads' (glibc), are the old ones".into());
        }
        let mut members = Vec::with_capacity(loaded.len());
        let mut written = Written::default();
        let paired = loaded.into_iter().zip(plans).enumerate();
        for (n, ((snapshot, state), mut planned)) in paired {
            let named = |text: String| format!("process {}: {text}", state.pid);
            notes.extend(planned.notes.drain(..).map(named));
            notes.extend(state.unsupported.iter().cloned().map(named));
            planned.files.sources = joint.sources(&files.all, n);
            let contents = contents_to_write(&snapshot, &state, &planned.files, &common)?;
            let first = || match pids {
                // Process 1 fills what is touched.
                Pids::Namespace => Vec::new(),
                _ => written_last(store, &snapshot),
            };
            let eager = options.eager;
            // Read, and so verified, before anything is started.
            let memory = from_image(&mut || Ok(store.flat(&snapshot)?), &mut |flat| {
                Memory::new(flat, None, &state, &planned, &first, eager, &mut written)
            })?;
            members.push(Member {
                memory,
                contents: Arc::new(contents),
                stopped: tree.members[n].stopped,
                snapshot,
                state,
                planned,
            });
        }
        Ok(Self {
            tree,
            members,
            kin,
            births,
            ghost,
            joint,
            files,
            terminals: terminals.all,
            options: common,
            pids,
            chosen,
            entered,
            strict: options.strict,
            notes,
        })
    }

    fn run(&mut self, begun: u64) -> Result<Revived> {
        let keep_ids = self.pids != Pids::New;
        let mut notes = self.notes.clone();
        let mut commons = Commons::default();
        let users = self.members.iter().map(|m| (&m.state, &m.planned));
        commons.share(users, &mut notes)?;
        let mut files = self.files.clone();
        commons.lend(self.joint.files(), &mut files.all.sources);
        let mut opened: Vec<Opened> = Vec::with_capacity(self.members.len());
        for member in &self.members {
            let mut planned = member.planned.clone();
            let (mut own, more) = open(
                &member.state,
                &mut planned,
                self.options.clone(),
                &mut commons,
            )?;
            own.contents = member.contents.clone();
            opened.push(own);
            notes.extend(member.named(more));
        }
        let root = &self.members[0];
        let time = time_namespace(&root.state, &mut notes)?;
        let offsets = |member: &&Member| member.state.attributes.time_offsets;
        let others = self
            .members
            .iter()
            .filter(|one| offsets(one) != offsets(&root));
        notes.extend(others.map(|one| {
            let pid = one.state.pid;
            format!("process {pid} was in another time namespace than the first of the tree, and is in that one now")
        }));
        if self.strict {
            refuse_differences(&format!("the tree of process {}", root.state.pid), &notes)?;
        }
        let own_ids = self.own_ids(keep_ids);
        let time = time.as_ref().map(AsRawFd::as_raw_fd);
        let enters: Vec<_> = self.entered.descriptors().chain(time).collect();
        let birth = Birth {
            pid: own_ids[0],
            namespace: self.pids == Pids::Namespace,
            users: self.chosen.users,
            network: self.chosen.network == Network::Private,
            enters: &enters,
        };
        let avoid: Vec<_> = self
            .members
            .iter()
            .flat_map(|m| m.planned.space())
            .collect();
        let states: Vec<&ProcessState> = self.members.iter().map(|m| &m.state).collect();
        let mut lines = make_lines(
            &self.terminals,
            self.joint.files(),
            &files.all.sources,
            &states,
            &mut notes,
        )?;
        let in_use = SegmentsInUse::of(self.members.iter().map(|m| &m.memory), &self.entered)?;
        let roster = Roster {
            kin: &self.kin,
            own_ids: &own_ids,
            births: &self.births,
            zombies: &self.tree.zombies,
            ghost: self.ghost,
        };
        let lazy = self.members.iter().filter_map(|m| m.memory.lazy.clone());
        let lazy: Vec<_> = lazy.collect();
        let stubs = start_tree(birth, roster, &mut lines, &avoid, &lazy);
        let stubs = stubs.map_err(|e| without_own_users(e, self.chosen.users))?;
        lines.lend(&mut files.all.sources);
        let others: Vec<RevivedMember> = stubs
            .iter()
            .zip(&self.members)
            .map(|(stub, member)| RevivedMember {
                pid: stub.pid(),
                own_pid: stub.threads()[0].own,
                comm: member.state.comm.clone(),
            })
            .collect();
        let change_files = self.pids == Pids::Same;
        let init = stubs[0].init();
        let mut filled = Filled::default();
        let mut newborns = Vec::with_capacity(self.members.len());
        let all = stubs.into_iter().zip(&self.members).zip(&opened);
        for ((stub, member), opened) in all {
            let pid = member.state.pid;
            let mut newborn = Newborn::adopt(stub, &member.planned, opened, pid)?;
            let mut more = Vec::new();
            let memory = &member.memory;
            filled += memory.fill(&mut newborn, init, change_files, &in_use, &mut more)?;
            notes.extend(member.named(more));
            newborns.push(newborn);
        }
        let members = self.members.iter().zip(&opened);
        let parts: Vec<Part<'_>> = members
            .map(|(member, opened)| Part {
                target: &member.state,
                plan: &member.planned,
                opened,
                stopped: member.stopped,
            })
            .collect();
        let mut free = finish_tree(
            newborns,
            &parts,
            &mut self.joint,
            &files,
            keep_ids,
            &mut notes,
        )?;
        let took_ns = monotonic_ns() - begun;
        for (member, (_, more)) in self.members.iter().zip(&mut free) {
            notes.extend(member.named(std::mem::take(more)));
        }
        let (released, _) = free.swap_remove(0);
        let mut others = others.into_iter();
        let first = others.next().expect("a tree has a root");
        Ok(Revived {
            id: root.snapshot.id(),
            seq: root.snapshot.header().seq,
            pid: released.pid,
            init: (released.child != released.pid).then_some(released.child),
            own_pid: first.own_pid,
            threads: self.members.iter().map(|m| m.state.threads.len()).sum(),
            pages: filled.pages,
            lazy_pages: filled.lazy_pages,
            took_ns,
            notes,
            others: others.collect(),
            released,
        })
    }

    /// Ids that the processes are to have in their PID namespace, zombies behind the others.
    fn own_ids(&self, keep: bool) -> Vec<Option<i32>> {
        let living = self.members.iter().map(|m| m.state.threads[0].own_id());
        let zombies = self.tree.zombies.iter().map(|zombie| zombie.own_pid);
        living.chain(zombies).map(|id| keep.then_some(id)).collect()
    }
}

/// Plans one process, its files aside. What is refused is added to what others are refused for.
fn plan_one(
    state: &ProcessState,
    here: &Here<'_>,
    users: bool,
    refused: &mut Vec<String>,
) -> Result<NewPlan> {
    let mut add = |outcome: std::result::Result<_, RestoreError>| match outcome {
        Err(RestoreError::Refused { pid, reasons }) => {
            let named = |why: String| format!("process {pid}: {why}");
            refused.extend(reasons.into_iter().map(named));
            Ok(None)
        }
        Err(e) => Err(e),
        Ok(plan) => Ok(Some(plan)),
    };
    let mut planned: NewPlan = add(plan(state, here))?.unwrap_or_default();
    match plan_attributes_in_tree(state, users) {
        Ok((mut attributes, limits)) => {
            planned.notes.append(&mut attributes.notes);
            (planned.attributes, planned.limits) = (attributes, limits);
        }
        Err(e) => drop(add(Err(e))?),
    }
    Ok(planned)
}

/// What the files of all are to be made differently from, and of each process. Standard streams whose other end is
/// elsewhere become ksnap's own; what the user replaces is meant for the root, and for those who share it.
fn file_options(
    joint: &Joint,
    options: &ReviveOptions,
    notes: &mut Vec<String>,
) -> (files::Options, Vec<files::Options>) {
    let mut common = options.files.clone();
    common.allow_changed |= options.allow_changed_files;
    let mut replaced: BTreeMap<u32, Replacement> = BTreeMap::new();
    for (fd, with) in std::mem::take(&mut common.map_fds) {
        if let Some(at) = joint.place(0, fd) {
            replaced.insert(at, with);
        }
    }
    let mut told = BTreeSet::new();
    for (fd, at) in joint.streams() {
        let goes_on = common.tcp && joint.files()[at as usize].has_connection();
        if goes_on || replaced.contains_key(&at) {
            continue;
        }
        replaced.insert(at, Replacement::Own(fd));
        if told.insert(at) {
            notes.push(format!(
                "descriptor {fd} ({}) is ksnap's own now",
                joint.files()[at as usize].link
            ));
        }
    }
    let each = joint.options(&common, &replaced);
    (common, each)
}
