//! `restore` and `fork`: a snapshot brought back as new processes.

use super::revive_contents::{contents_to_write, only_own};
use super::revive_memory::Memory;
use super::types::hex;
use super::{Result, SessionError, revive_tree};
use crate::model::{
    Backing, Detail, FileKind, MappedFile, OpenFile, ProcessState, SnapshotId, SocketState, Vma,
    page_up,
};
use crate::restore::RestoreError;
use crate::restore::files::{self, Replacement, SavedContents, Source, System};
use crate::restore::revive::{
    FileToOpen, MemoryObject, NewPlan, Newborn, Opened, Surroundings, plan, plan_attributes,
};
use crate::store::{Snapshot, Store};
use crate::sys::{self, Birth, Released, arch, monotonic_ns, proc};
use serde::Serialize;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
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
    /// Which ids; if left out, the snapshot's, in a namespace of their own for several copies and for one
    /// that had a namespace before.
    pub pids: Option<Pids>,
    /// Fill all memory before the first instruction.
    pub eager: bool,
    /// Go on when a mapped file is another one than it was.
    pub allow_changed_files: bool,
    /// Refuse when anything would differ.
    pub strict: bool,
    /// A network namespace of its own for each process.
    pub network: bool,
    /// What its open files are to be made differently from.
    pub files: files::Options,
    /// Of a tree, its first process alone.
    pub alone: bool,
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
    let mut begun = monotonic_ns();
    let store = Store::open(dir)?;
    let id = store.resolve(reference, None)?;
    if let Some(tree) = store.tree(id)?.filter(|_| !options.alone) {
        return revive_tree::revive(&store, &tree, copies, options, each);
    }
    let snapshot = store.snapshot(id)?;
    let mut state = snapshot.manifest()?.state;
    let elsewhere = state.threads.iter().any(|t| t.own_id() != t.tid);
    let pids = options.pids.unwrap_or(match copies > 1 || elsewhere {
        true => Pids::Namespace,
        false => Pids::Same,
    });
    if pids != Pids::Same {
        only_own(&mut state);
    }
    check_processor(&state)?;
    let mut planned = plan(&state, &Here::new(options, pids, &state.mapped)?)?;
    (planned.attributes, planned.limits) = plan_attributes(&state)?;
    planned.notes.append(&mut planned.attributes.notes);
    let files = plan_files(&state, &mut planned, options)?;
    let contents = Arc::new(contents_to_write(
        &snapshot,
        &state,
        &planned.files,
        &files,
    )?);
    // Read, and so verified, before anything is started.
    let flat = store.flat(&snapshot)?;
    let memory = Memory::new(&flat, &state, &planned, options.eager)?;
    let job = Job {
        snapshot: &snapshot,
        state: &state,
        planned: &planned,
        memory: &memory,
        files: &files,
        contents: &contents,
        network: options.network,
        pids,
        strict: options.strict,
    };
    let mut all = Vec::new();
    let mut failed = None;
    for _ in 0..copies {
        match job.run(begun) {
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
    let death_signal = state
        .threads
        .first()
        .and_then(|t| t.attributes.parent_death_signal)
        .unwrap_or(0);
    for one in &mut all {
        // The others go on being filled, whatever became of this one.
        if let Err(e) = one.released.finish_loading(death_signal) {
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
    snapshot: &'a Snapshot,
    state: &'a ProcessState,
    planned: &'a NewPlan,
    memory: &'a Memory,
    files: &'a files::Options,
    contents: &'a Arc<SavedContents>,
    network: bool,
    pids: Pids,
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
        let (mut planned, files) = ((*planned).clone(), self.files.clone());
        let (mut opened, more) = open(state, &mut planned, files, &mut Commons::default())?;
        opened.contents = self.contents.clone();
        let planned = &planned;
        notes.extend(more);
        if self.strict && !notes.is_empty() {
            return Err(SessionError::Usage(format!(
                "process {} would differ from what it was, and --strict refuses that:\n  - {}",
                state.pid,
                notes.join("\n  - ")
            )));
        }
        let birth = Birth {
            pid: keep_ids.then_some(own_pid),
            namespace: self.pids == Pids::Namespace,
            network: self.network,
        };
        let lazy = self.memory.lazy.as_ref();
        let mut newborn = Newborn::start(birth, planned, &opened, lazy, own_pid)?;
        let change_files = self.pids == Pids::Same;
        let pages = self.memory.fill(&mut newborn, change_files, &mut notes)?;
        let (released, more) = newborn.finish(state, planned, &opened, keep_ids)?;
        let took_ns = monotonic_ns() - begun;
        notes.extend(more);
        Ok(Revived {
            id: self.snapshot.id(),
            seq: self.snapshot.header().seq,
            pid: released.pid,
            init: (released.child != released.pid).then_some(released.child),
            own_pid: if keep_ids { own_pid } else { released.pid },
            threads: state.threads.len(),
            pages,
            lazy_pages: self.memory.lazy_pages(),
            took_ns,
            notes,
            others: Vec::new(),
            released,
        })
    }
}

/// Plans descriptors and open files. Standard streams that were a terminal, or one end of a pipe or socket
/// whose other end was elsewhere, become ksnap's own.
fn plan_files(
    state: &ProcessState,
    planned: &mut NewPlan,
    options: &ReviveOptions,
) -> Result<files::Options> {
    let mut how = options.files.clone();
    how.allow_changed |= options.allow_changed_files;
    let ends = |inode: u64| {
        let same = |f: &&OpenFile| f.kind == FileKind::Pipe && f.identity.1 == inode;
        state.files.iter().filter(same).count()
    };
    for (descriptor, file) in state.open_files().filter(|(d, _)| (0..3).contains(&d.fd)) {
        let elsewhere = match (&file.detail, file.kind) {
            (Detail::Terminal(terminal), _) => terminal.master_of.is_none(),
            (_, FileKind::Pipe) => ends(file.identity.1) == 1,
            (Detail::Socket(socket), _) => socket.state == SocketState::Connected,
            _ => false,
        };
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

/// What several new processes inherit, each opened once.
#[derive(Debug, Default)]
pub(super) struct Commons {
    files: BTreeMap<(String, bool), Arc<OwnedFd>>,
    /// Memory by device and inode: of a memfd, or shared by several processes.
    pub(super) objects: BTreeMap<(u64, u64), Arc<OwnedFd>>,
}

impl Commons {
    fn open(&mut self, path: String, write: bool) -> Result<Arc<OwnedFd>> {
        match self.files.entry((path, write)) {
            Entry::Occupied(there) => Ok(there.get().clone()),
            Entry::Vacant(place) => {
                let path = place.key().0.clone();
                let opened = open_file(&FileToOpen { path, write })?;
                Ok(place.insert(Arc::new(opened)).clone())
            }
        }
    }

    /// The object behind mappings; `None` for one that the new process makes for itself.
    fn object(
        &mut self,
        object: &MemoryObject,
        state: &ProcessState,
    ) -> Result<Option<Arc<OwnedFd>>> {
        if let Some(there) = self.objects.get(&object.identity) {
            return Ok(Some(there.clone()));
        }
        let Some(name) = &object.memfd else {
            return Ok(None);
        };
        let made = Arc::new(sys::memfd(name, length(object, state))?);
        self.objects.insert(object.identity, made.clone());
        Ok(Some(made))
    }
}

/// How long memory was: as a descriptor of it tells, else as long as it is mapped.
pub(super) fn length(object: &MemoryObject, state: &ProcessState) -> u64 {
    let told = state.files.iter().find_map(|file| match &file.detail {
        Detail::Memfd(memfd) if is_object(file, object) => Some(memfd.size),
        _ => None,
    });
    told.unwrap_or(object.len)
}

/// Opens everything that the new process inherits.
pub(super) fn open(
    state: &ProcessState,
    planned: &mut NewPlan,
    options: files::Options,
    commons: &mut Commons,
) -> Result<(Opened, Vec<String>)> {
    let mut notes = Vec::new();
    let files = planned.files_to_open.iter();
    let files = files.map(|file| commons.open(options.mapped(&file.path), file.write));
    let files = files.collect::<Result<_>>()?;
    let objects = planned.objects.iter();
    let objects = objects.map(|object| commons.object(object, state));
    let objects: Vec<_> = objects.collect::<Result<_>>()?;
    let exe = match commons.open(options.mapped(&state.exe), false) {
        Ok(file) => Some(file),
        Err(e) => {
            notes.push(format!("/proc/PID/exe will not lead anywhere: {e}"));
            None
        }
    };
    let opened = Opened {
        files,
        objects,
        exe,
        options,
        contents: Arc::default(),
    };
    // A descriptor of memory that is mapped is one of the very same memory.
    for (object, made) in planned.objects.iter().zip(&opened.objects) {
        for (at, source) in planned.files.sources.iter_mut().enumerate() {
            if let (Some(made), true) = (made, is_object(&state.files[at], object))
                && *source == Source::Make
            {
                *source = Source::Own(made.as_raw_fd());
            }
        }
    }
    Ok((opened, notes))
}

/// Whether an open file is memory that is mapped as well.
pub(super) fn is_object(file: &OpenFile, object: &MemoryObject) -> bool {
    let (device, inode) = object.identity;
    let device = rustix::fs::makedev((device >> 32) as u32, device as u32);
    file.kind == FileKind::Memfd && file.identity == (device, inode)
}

fn open_file(file: &FileToOpen) -> Result<OwnedFd> {
    std::fs::File::options()
        .read(true)
        .write(file.write)
        .open(&file.path)
        .map(OwnedFd::from)
        .map_err(SessionError::io(format!("open {}", file.path)))
}

/// How a file differs from the one that was mapped, if it does. What a process has not written in its private mapping
/// comes from the file, so all of that must be what it was; what it has mapped shared is put back.
fn difference(
    vma: &Vma,
    path: &str,
    meta: &std::fs::Metadata,
    was: Option<&MappedFile>,
) -> Option<String> {
    if vma.build_id.is_some() && proc::build_id(path) != vma.build_id {
        return Some("another build id".into());
    }
    let Some(was) = was else {
        let device = (rustix::fs::major(meta.dev()), rustix::fs::minor(meta.dev()));
        let same = matches!(&vma.backing, Backing::File { dev, inode, .. } if (device, meta.ino()) == (*dev, *inode));
        return (vma.build_id.is_none() && !same).then(|| "another inode".into());
    };
    if meta.len() != was.size {
        return Some(format!("{} bytes instead of {}", meta.len(), was.size));
    }
    let mtime_ns = meta.mtime() * 1_000_000_000 + meta.mtime_nsec();
    // The same code may have been installed again.
    (vma.build_id.is_none() && mtime_ns != was.mtime_ns).then(|| "it has been written since".into())
}

/// Refuses a snapshot whose threads hold state that this processor has no place for.
pub(super) fn check_processor(state: &ProcessState) -> Result<()> {
    let here = arch::extended_features();
    for thread in &state.threads {
        let missing = arch::extended_in_use(&thread.fp) & !here;
        if missing != 0 {
            let names = arch::extended_names(missing);
            return Err(SessionError::Usage(format!(
                "thread {} uses {names}, which this processor or kernel does not have: the snapshot can only be brought back where it is there",
                thread.tid
            )));
        }
    }
    Ok(())
}

/// The machine that a new process is made on.
pub(super) struct Here<'a> {
    options: &'a ReviveOptions,
    pids: Pids,
    /// Files behind private mappings, as they were.
    mapped: &'a [MappedFile],
    /// What the kernel provides to every process: name, length, build id.
    kernel: Vec<(String, u64)>,
    vdso: Option<Vec<u8>>,
}

impl<'a> Here<'a> {
    pub(super) fn new(
        options: &'a ReviveOptions,
        pids: Pids,
        mapped: &'a [MappedFile],
    ) -> Result<Self> {
        let maps = proc::maps(std::process::id() as i32)?;
        let kernel = maps.iter().filter_map(|vma| match &vma.backing {
            Backing::Special(name) => Some((name.clone(), vma.range.len())),
            _ => None,
        });
        Ok(Self {
            options,
            pids,
            mapped,
            kernel: kernel.collect(),
            vdso: proc::own_vdso().map(|(_, id)| id.clone()),
        })
    }

    fn kernel_mapping(&self, name: &str, vma: &Vma) -> std::result::Result<(), String> {
        match self.kernel.iter().find(|(have, _)| have == name) {
            None => Err("this kernel has none".into()),
            Some((_, len)) if *len != vma.range.len() => Err(format!(
                "this kernel's has {len} bytes and the snapshot's {}: it was taken on another kernel",
                vma.range.len()
            )),
            Some(_) if name == "vdso" && vma.build_id.is_some() && vma.build_id != self.vdso => {
                Err("this kernel's has other code: the snapshot was taken on another kernel, and the program may be in the middle of it or remember places in it".into())
            }
            Some(_) => Ok(()),
        }
    }
}

impl Surroundings for Here<'_> {
    fn can_map(&self, vma: &Vma) -> std::result::Result<(), String> {
        let (path, deleted, dev, inode) = match &vma.backing {
            Backing::Special(name) => return self.kernel_mapping(name, vma),
            Backing::File {
                path,
                deleted,
                dev,
                inode,
                ..
            } => (path, *deleted, *dev, *inode),
            Backing::Anonymous { .. } | Backing::Heap | Backing::Stack => return Ok(()),
        };
        if deleted {
            return Err(
                "the file has no name any more, and only what the process changed of it is stored"
                    .into(),
            );
        }
        let path = &self.options.files.mapped(path);
        let meta = std::fs::metadata(path).map_err(|e| format!("it cannot be opened ({e})"))?;
        if self.options.allow_changed_files {
            return Ok(());
        }
        let was = |file: &&MappedFile| (file.dev, file.inode) == (dev, inode);
        let was = self.mapped.iter().find(was).filter(|_| !vma.shared);
        match difference(vma, path, &meta, was) {
            None => Ok(()),
            Some(what) => Err(format!(
                "the file is not what it was ({what}); --allow-changed-files takes it nevertheless"
            )),
        }
    }

    fn segment(&self, vma: &Vma) -> Option<i32> {
        let Backing::File {
            inode,
            offset: 0,
            path,
            ..
        } = &vma.backing
        else {
            return None;
        };
        let id = i32::try_from(*inode).ok()?;
        let (key, len) = sys::shared_segment(id)?;
        // As the kernel names it (ipc/shm.c).
        let same = *path == format!("/SYSV{key:08x}") && page_up(len) == vma.range.len();
        same.then_some(id)
    }

    fn can_start_thread(&self, tid: i32) -> std::result::Result<(), String> {
        match self.pids {
            Pids::New => Ok(()),
            Pids::Namespace if tid == 1 => {
                Err("process 1 of the new PID namespace is ksnap's own; use --pids new".into())
            }
            Pids::Namespace => Ok(()),
            Pids::Same => match proc::stat(tid, None) {
                Ok(stat) => Err(format!(
                    "its id is taken ({}); --pids namespace gives it the same id in a namespace of its own",
                    stat.comm
                )),
                Err(_) => Ok(()),
            },
        }
    }
}
