//! `restore` and `fork`: a snapshot brought back as new processes.

use super::revive_contents::{ReadPages, contents_to_write, only_own};
use super::revive_here::{
    Here, OWN_USERS, check_processor, namespaces, take_own_users, time_namespace, without_own_users,
};
use super::revive_hot::written_last;
use super::revive_memory::{Memory, SegmentsInUse, Written, from_image};
use super::revive_open::{Commons, open};
use super::types::hex;
use super::{Result, SessionError, revive_tree};
use crate::model::{Detail, PageRange, ProcessState, SnapshotId, SocketState, ThreadState};
use crate::restore::files::{self, Replacement, SavedContents, System};
use crate::restore::revive::{
    Entered, Namespaces, Network, NewPlan, Newborn, plan, plan_attributes,
};
use crate::restore::{RestoreError, fault};
use crate::store::{Flat, Store};
use crate::sys::{self, Arrivals, Birth, Released, monotonic_ns};
use serde::Serialize;
use std::os::fd::AsRawFd;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;
use std::sync::Arc;

/// Which ids the new process and its threads have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pids {
    /// The snapshot's.
    Same,
    /// Whichever the kernel gives.
    New,
    /// The snapshot's, in a PID namespace of its own.
    Namespace,
}

/// How to bring a snapshot back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReviveOptions {
    /// Which ids; if left out, the snapshot's, in a namespace of their own for several copies, for one that
    /// had a namespace before, and where ids may not be chosen otherwise.
    pub pids: Option<Pids>,
    /// Fill all memory before the first instruction.
    pub eager: bool,
    /// Go on when a mapped file is another one than it was.
    pub allow_changed_files: bool,
    /// Refuse when anything would differ.
    pub strict: bool,
    /// Which network each process is in.
    pub network: Network,
    /// It comes from another machine, and enters none of the namespaces that it was in.
    pub stays: bool,
    /// What its open files are to be made differently from.
    pub files: files::Options,
    /// Of a tree, its first process alone.
    pub alone: bool,
}

impl ReviveOptions {
    /// The ids that as many copies of what has these threads get.
    pub(super) fn pids_for<'a>(
        &self,
        copies: u32,
        threads: impl IntoIterator<Item = &'a ThreadState>,
    ) -> Pids {
        let mut threads = threads.into_iter();
        let elsewhere = threads.any(|t| t.own_id() != t.tid);
        let may_choose = || sys::chooses_ids(std::process::id() as i32);
        self.pids
            .unwrap_or(match copies > 1 || elsewhere || !may_choose() {
                true => Pids::Namespace,
                false => Pids::Same,
            })
    }
}

/// A process that was brought back.
#[derive(Debug, Serialize)]
pub struct Revived {
    /// The snapshot.
    #[serde(serialize_with = "hex")]
    pub id: SnapshotId,
    /// Its sequence number.
    pub seq: u32,
    /// The new process, as seen from here.
    pub pid: i32,
    /// Process 1 of its own PID namespace.
    pub init: Option<i32>,
    /// The process's id in its own PID namespace.
    pub own_pid: i32,
    /// Threads made.
    pub threads: usize,
    /// Pages written into it before its first instruction.
    pub pages: u64,
    /// Pages that come when they are touched, or behind its first instruction.
    pub lazy_pages: u64,
    /// From the command to its first instruction, in nanoseconds.
    pub took_ns: u64,
    /// What differs from what it was, a sentence each.
    pub notes: Vec<String>,
    /// Of a tree, its other processes.
    pub others: Vec<RevivedMember>,
    #[serde(skip)]
    pub(super) released: Released,
}

/// A process of a tree that was brought back with its root.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct RevivedMember {
    /// The process, as seen from here.
    pub pid: i32,
    /// Its id in its own PID namespace.
    pub own_pid: i32,
    /// Its name.
    pub comm: String,
}

impl Revived {
    /// Waits until the process ends.
    pub fn wait(&self) -> Result<ExitStatus> {
        Ok(ExitStatus::from_raw(self.released.wait()?))
    }
}

/// Brings a snapshot back as `copies` new processes, one after the other. `each` has each of them as soon
/// as it runs; this returns when all of them can live without ksnap.
///
/// # Errors
/// What cannot be brought back is refused before anything is started; when a copy fails later, those
/// before it run on, and `each` has had them.
pub fn revive(
    dir: &Path,
    reference: &str,
    copies: u32,
    options: &ReviveOptions,
    each: &mut dyn FnMut(&Revived),
) -> Result<Vec<Revived>> {
    let prepared = Prepared {
        flat: None,
        is_wanted: &|| Ok(()),
    };
    revive_prepared(dir, reference, copies, options, prepared, each)
}

/// What whoever has a snapshot brought back has made ready for it.
pub(super) struct Prepared<'a> {
    /// Its flat image.
    pub(super) flat: Option<Flat>,
    /// Asked when all that takes long is done, and nothing is started yet. An error ends it there.
    pub(super) is_wanted: &'a dyn Fn() -> Result<()>,
}

/// As [`revive`], with what has been made ready.
pub(super) fn revive_prepared(
    dir: &Path,
    reference: &str,
    copies: u32,
    options: &ReviveOptions,
    prepared: Prepared<'_>,
    each: &mut dyn FnMut(&Revived),
) -> Result<Vec<Revived>> {
    let begun = monotonic_ns();
    let store = Store::open(dir)?;
    let id = store.resolve(reference, None)?;
    check_tcp(options)?;
    if let Some(tree) = store.tree(id)?.filter(|_| !options.alone) {
        return revive_tree::revive(&store, &tree, copies, options, prepared.is_wanted, each);
    }
    let snapshot = store.snapshot(id)?;
    let Prepared {
        mut flat,
        is_wanted,
    } = prepared;
    let material = Material {
        id,
        seq: snapshot.header().seq,
        state: snapshot.manifest()?.state,
        saved: &snapshot,
        flat: &mut || match flat.take() {
            Some(flat) => Ok(flat),
            None => Ok(store.flat(&snapshot)?),
        },
        first: &|| written_last(&store, &snapshot),
        arrivals: None,
        is_wanted,
    };
    revive_from(material, begun, copies, options, each)
}

/// What processes are brought back from.
pub(super) struct Material<'a> {
    pub(super) id: SnapshotId,
    pub(super) seq: u32,
    pub(super) state: ProcessState,
    /// Contents of files.
    pub(super) saved: &'a dyn ReadPages,
    /// Gives a flat image of the memory, once.
    pub(super) flat: &'a mut dyn FnMut() -> Result<Flat>,
    /// What comes first of the memory that nobody touches.
    pub(super) first: &'a dyn Fn() -> Vec<PageRange>,
    /// What of that has come, if some of it is still on its way.
    pub(super) arrivals: Option<Arc<Arrivals>>,
    /// Asked when all that takes long is done, and nothing is started yet. An error ends it there.
    pub(super) is_wanted: &'a dyn Fn() -> Result<()>,
}

/// As [`revive`], from what was `begun` to be looked for at this time.
pub(super) fn revive_from(
    material: Material<'_>,
    begun: u64,
    copies: u32,
    options: &ReviveOptions,
    each: &mut dyn FnMut(&Revived),
) -> Result<Vec<Revived>> {
    let Material {
        mut state, saved, ..
    } = material;
    let pids = options.pids_for(copies, &state.threads);
    if pids != Pids::Same {
        only_own(&mut state);
    }
    check_processor(&state)?;
    let users = take_own_users(pids)?;
    let chosen = Namespaces {
        users,
        network: options.network,
        stays: options.stays,
    };
    let entered = namespaces(&state, chosen)?;
    let here = Here::of(options, pids, &entered, &state, saved)?;
    let mut planned = plan(&state, &here)?;
    planned.notes.extend(entered.notes.iter().cloned());
    (planned.attributes, planned.limits) = plan_attributes(&state, users)?;
    planned.notes.append(&mut planned.attributes.notes);
    let files = plan_files(&state, &mut planned, options, &entered)?;
    check_network(&state, chosen)?;
    let contents = Arc::new(contents_to_write(saved, &state, &planned.files, &files)?);
    let written = &mut Written::default();
    let arrivals = material.arrivals;
    // Process 1 of a namespace fills what is touched.
    let nothing: &dyn Fn() -> Vec<PageRange> = &Vec::new;
    let first = match pids {
        Pids::Namespace => nothing,
        _ => material.first,
    };
    // Read, and so verified, before anything is started.
    let memory = from_image(material.flat, &mut |flat| {
        let arrivals = arrivals.clone();
        Memory::new(
            flat,
            arrivals,
            &state,
            &planned,
            first,
            options.eager,
            written,
        )
    })?;
    memory.wait_for_first()?;
    let job = Job {
        snapshot: (material.id, material.seq),
        state: &state,
        planned: &planned,
        memory: &memory,
        files: &files,
        contents: &contents,
        pids,
        chosen,
        entered: &entered,
        strict: options.strict,
    };
    (material.is_wanted)()?;
    make_copies(copies, begun, &mut |begun| job.run(begun), each)
}

/// Makes copies, one after the other, each from when it was `begun`, and waits until all memory is there: only then can
/// ksnap end.
///
/// # Errors
/// Of the first that fails; those before it go on.
pub(super) fn make_copies(
    copies: u32,
    mut begun: u64,
    make: &mut dyn FnMut(u64) -> Result<Revived>,
    each: &mut dyn FnMut(&Revived),
) -> Result<Vec<Revived>> {
    let mut all = Vec::new();
    let mut failed = None;
    for _ in 0..copies {
        match make(begun) {
            Ok(one) => {
                each(&one);
                all.push(one);
            }
            Err(e) => {
                failed = Some(e);
                break;
            }
        }
        begun = monotonic_ns();
    }
    fault::point("memory is coming");
    for one in &mut all {
        // The others go on being filled, whatever became of this one.
        if let Err(e) = one.released.finish_loading() {
            failed.get_or_insert(e.into());
        }
    }
    match failed {
        Some(e) => Err(e),
        None => Ok(all),
    }
}

/// What all copies have in common.
struct Job<'a> {
    /// Its name, and its number in its session.
    snapshot: (SnapshotId, u32),
    state: &'a ProcessState,
    planned: &'a NewPlan,
    memory: &'a Memory,
    files: &'a files::Options,
    contents: &'a Arc<SavedContents>,
    pids: Pids,
    chosen: Namespaces,
    entered: &'a Entered,
    strict: bool,
}

impl Job<'_> {
    fn run(&self, begun: u64) -> Result<Revived> {
        let Self { state, planned, .. } = self;
        let keep_ids = self.pids != Pids::New;
        let own_pid = state.threads[0].own_id();
        let mut notes = planned.notes.clone();
        notes.extend(state.unsupported.iter().cloned());
        if !keep_ids {
            notes.push("its ids are new: a C library that remembers its thread ids (glibc) remembers the old ones".into());
        }
        notes.extend(self.chosen.users.then(|| OWN_USERS.to_owned()));
        let (mut planned, files) = ((*planned).clone(), self.files.clone());
        let (mut opened, more) = open(state, &mut planned, files, &mut Commons::default())?;
        opened.contents = self.contents.clone();
        let planned = &planned;
        notes.extend(more);
        let time = time_namespace(state, &mut notes)?;
        if self.strict {
            refuse_differences(&format!("process {}", state.pid), &notes)?;
        }
        let time = time.as_ref().map(AsRawFd::as_raw_fd);
        let enters: Vec<_> = self.entered.descriptors().chain(time).collect();
        let birth = Birth {
            enters: &enters,
            pid: keep_ids.then_some(own_pid),
            namespace: self.pids == Pids::Namespace,
            users: self.chosen.users,
            network: self.chosen.network == Network::Private,
        };
        let lazy = self.memory.lazy.as_slice();
        let in_use = SegmentsInUse::of([self.memory], self.entered)?;
        let newborn = Newborn::start(birth, planned, &opened, lazy, own_pid);
        let mut newborn = newborn.map_err(|e| without_own_users(e, self.chosen.users))?;
        let change_files = self.pids == Pids::Same;
        let init = newborn.init();
        let filled = self
            .memory
            .fill(&mut newborn, init, change_files, &in_use, &mut notes)?;
        let (released, more) = newborn.finish(state, planned, &opened, keep_ids)?;
        let took_ns = monotonic_ns() - begun;
        notes.extend(more);
        Ok(Revived {
            id: self.snapshot.0,
            seq: self.snapshot.1,
            pid: released.pid,
            init: (released.child != released.pid).then_some(released.child),
            own_pid: if keep_ids { own_pid } else { released.pid },
            threads: state.threads.len(),
            pages: filled.pages,
            lazy_pages: filled.lazy_pages,
            took_ns,
            notes,
            others: Vec::new(),
            released,
        })
    }
}

/// Where connections are to go on.
fn check_tcp(options: &ReviveOptions) -> Result<()> {
    match options.files.tcp && options.network == Network::Private {
        true => Err(SessionError::Usage(
            "--tcp goes on with connections at their addresses, and --net private gives the process a network without any: leave one of them out".into(),
        )),
        false => Ok(()),
    }
}

/// Refuses sockets in a network of which this process may make none.
pub(super) fn check_network(state: &ProcessState, chosen: Namespaces) -> Result<()> {
    if !chosen.users || chosen.network != Network::Private {
        return Ok(());
    }
    let mut sockets = state.open_files().filter(|(_, file)| match &file.detail {
        // Pairs are in no network.
        Detail::Socket(socket) => {
            socket.state != SocketState::Connected || socket.peer_inode.is_none()
        }
        _ => false,
    });
    match sockets.next() {
        None => Ok(()),
        Some((descriptor, file)) => Err(SessionError::Usage(format!(
            "descriptor {} ({}): to make a socket in a network of the process's own takes root: leave --net private out, or run ksnap as root",
            descriptor.fd, file.link
        ))),
    }
}

/// For `--strict`, of what would differ.
pub(super) fn refuse_differences(what: &str, notes: &[String]) -> Result<()> {
    match notes.is_empty() {
        true => Ok(()),
        false => Err(SessionError::Usage(format!(
            "{what} would differ from what it was, and --strict refuses that:\n  - {}",
            notes.join("\n  - ")
        ))),
    }
}

/// Plans descriptors and open files. Standard streams that were a terminal, or one end of a pipe or socket
/// whose other end was elsewhere, become ksnap's own.
fn plan_files(
    state: &ProcessState,
    planned: &mut NewPlan,
    options: &ReviveOptions,
    entered: &Entered,
) -> Result<files::Options> {
    let mut how = options.files.clone();
    how.allow_changed |= options.allow_changed_files;
    for (descriptor, file) in state.open_files().filter(|(d, _)| (0..3).contains(&d.fd)) {
        let goes_on = how.tcp && file.has_connection();
        let elsewhere =
            !goes_on && files::is_from_elsewhere(&state.files, descriptor.file as usize);
        let fd = descriptor.fd;
        if elsewhere && !how.map_fds.contains_key(&fd) {
            how.map_fds.insert(fd, Replacement::Own(fd));
            planned.notes.push(format!(
                "descriptor {fd} ({}) is ksnap's own now",
                file.link
            ));
        }
    }
    let here = System {
        pid: std::process::id() as i32,
        entered: Some(entered),
    };
    let mut files = files::plan(state, &ProcessState::default(), &here, &how);
    if !files.refusals.is_empty() {
        return Err(RestoreError::Refused {
            pid: state.pid,
            reasons: files.refusals,
        }
        .into());
    }
    planned.notes.append(&mut files.notes);
    planned.files = files;
    Ok(how)
}
