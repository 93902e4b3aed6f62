//! `restore` and `fork`: a snapshot brought back as new processes.

use super::types::hex;
use super::{Result, SessionError};
use crate::image::PageSource;
use crate::model::{Backing, PAGE_SIZE, PageRange, ProcessState, SnapshotId, Vma};
use crate::restore::World;
use crate::restore::revive::{
    FileToOpen, NewPlan, Newborn, Opened, Origin, plan, prepare_descriptors,
};
use crate::store::{Snapshot, Store};
use crate::sys::{self, Birth, Released, arch, monotonic_ns, proc};
use serde::Serialize;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;

/// Pages gathered before they are written in one go.
const GATHERED: usize = 2048;

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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReviveOptions {
    /// Which ids.
    pub pids: Pids,
    /// Go on when a mapped file is another one than it was.
    pub allow_changed_files: bool,
    /// Refuse when anything would differ.
    pub strict: bool,
}

/// A process that was brought back.
#[derive(Clone, Debug, Serialize)]
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
    /// Pages written into it.
    pub pages: u64,
    /// From the command to its first instruction, in nanoseconds.
    pub took_ns: u64,
    /// What differs from what it was, a sentence each.
    pub notes: Vec<String>,
    #[serde(skip)]
    released: Option<Released>,
}

impl Revived {
    /// Waits until the process ends.
    pub fn wait(&self) -> Result<ExitStatus> {
        let released = self.released.expect("made here");
        Ok(ExitStatus::from_raw(released.wait()?))
    }
}

/// Brings a snapshot back as `copies` new processes, one after the other.
///
/// # Errors
/// What cannot be brought back is refused before anything is started; when a copy fails later, those
/// before it run on, and `each` has had them.
pub fn revive(
    dir: &Path,
    reference: &str,
    copies: u32,
    options: &ReviveOptions,
    each: &mut dyn FnMut(Revived),
) -> Result<()> {
    let mut begun = monotonic_ns();
    let store = Store::open(dir)?;
    let snapshot = store.snapshot(store.resolve(reference, None)?)?;
    let state = snapshot.manifest()?.state;
    check_processor(&state)?;
    let world = Here::new(options)?;
    let planned = plan(&state, &world)?;
    // Read, and so verified, before anything is started.
    snapshot.page_table()?;
    for _ in 0..copies {
        each(one(&snapshot, &state, &planned, options, begun)?);
        begun = monotonic_ns();
    }
    Ok(())
}

fn one(
    snapshot: &Snapshot,
    state: &ProcessState,
    planned: &NewPlan,
    options: &ReviveOptions,
    begun: u64,
) -> Result<Revived> {
    let keep_ids = options.pids != Pids::New;
    let mut notes = planned.notes.clone();
    notes.extend(state.unsupported.iter().cloned());
    if !keep_ids {
        notes.push("its ids are new: a C library that remembers its thread ids (glibc) remembers the old ones".into());
    }
    let (opened, more) = open(state, planned)?;
    notes.extend(more);
    if options.strict && !notes.is_empty() {
        return Err(SessionError::Usage(format!(
            "process {} would differ from what it was, and --strict refuses that:\n  - {}",
            state.pid,
            notes.join("\n  - ")
        )));
    }
    let birth = Birth {
        pid: keep_ids.then_some(state.pid),
        namespace: options.pids == Pids::Namespace,
    };
    let newborn = Newborn::start(birth, planned, &opened, state.pid)?;
    let pages = fill(snapshot, newborn.pid(), planned)?;
    let (released, more) = newborn.finish(state, planned, &opened, keep_ids)?;
    let took_ns = monotonic_ns() - begun;
    notes.extend(more);
    Ok(Revived {
        id: snapshot.id(),
        seq: snapshot.header().seq,
        pid: released.pid,
        init: (released.child != released.pid).then_some(released.child),
        own_pid: if keep_ids { state.pid } else { released.pid },
        threads: state.threads.len(),
        pages,
        took_ns,
        notes,
        released: Some(released),
    })
}

/// Opens everything that the new process inherits.
fn open(state: &ProcessState, planned: &NewPlan) -> Result<(Opened, Vec<String>)> {
    let (descriptors, mut notes) = prepare_descriptors(&state.resources);
    let files = planned.files.iter().map(open_file);
    let objects = planned.objects.iter().map(|object| {
        let name = object.memfd.as_ref()?;
        Some(sys::memfd(name, object.len))
    });
    let exe = FileToOpen {
        path: state.exe.clone(),
        write: false,
    };
    let opened = Opened {
        files: files.collect::<Result<_>>()?,
        objects: objects
            .map(Option::transpose)
            .collect::<std::result::Result<_, _>>()?,
        exe: match open_file(&exe) {
            Ok(file) => Some(file),
            Err(e) => {
                notes.push(format!("/proc/PID/exe will not lead anywhere: {e}"));
                None
            }
        },
        descriptors,
    };
    Ok((opened, notes))
}

fn open_file(file: &FileToOpen) -> Result<OwnedFd> {
    std::fs::File::options()
        .read(true)
        .write(file.write)
        .open(&file.path)
        .map(OwnedFd::from)
        .map_err(SessionError::io(format!("open {}", file.path)))
}

/// Writes the snapshot's pages into the new process. Returns how many.
fn fill(snapshot: &Snapshot, pid: i32, planned: &NewPlan) -> Result<u64> {
    let table = snapshot.page_table()?;
    let ranges = planned
        .mappings
        .iter()
        .filter(|m| !matches!(m.origin, Origin::Kernel(_)))
        .map(|m| m.vma.range);
    let addrs: Vec<u64> = ranges
        .flat_map(|range| table.range(range).map(|(addr, _)| addr))
        .collect();
    let mut gathered: Vec<(u64, usize)> = Vec::with_capacity(GATHERED);
    let mut bytes = Vec::with_capacity(GATHERED * PAGE_SIZE as usize);
    let mut failed = None;
    snapshot.read_pages(&addrs, &mut |addr, page| {
        gathered.push((addr, bytes.len()));
        bytes.extend_from_slice(page);
        if gathered.len() == GATHERED {
            if failed.is_none() {
                failed = write(pid, &mut gathered, &bytes).err();
            }
            gathered.clear();
            bytes.clear();
        }
    })?;
    if failed.is_none() {
        failed = write(pid, &mut gathered, &bytes).err();
    }
    match failed {
        Some(e) => Err(e.into()),
        None => Ok(addrs.len() as u64),
    }
}

/// Writes pages that came in any order.
fn write(pid: i32, gathered: &mut [(u64, usize)], bytes: &[u8]) -> sys::Result<()> {
    let in_order = gathered.is_sorted();
    gathered.sort_unstable();
    let mut ranges: Vec<PageRange> = Vec::new();
    for (addr, _) in gathered.iter() {
        match ranges.last_mut() {
            Some(last) if last.end == *addr => last.end += PAGE_SIZE,
            _ => ranges.push(PageRange::new(*addr, addr + PAGE_SIZE)),
        }
    }
    if in_order {
        return sys::write_ranges(pid, &ranges, bytes);
    }
    let sorted: Vec<u8> = gathered
        .iter()
        .flat_map(|(_, at)| &bytes[*at..*at + PAGE_SIZE as usize])
        .copied()
        .collect();
    sys::write_ranges(pid, &ranges, &sorted)
}

/// Refuses a snapshot whose threads hold state that this processor has no place for.
fn check_processor(state: &ProcessState) -> Result<()> {
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
struct Here<'a> {
    options: &'a ReviveOptions,
    /// What the kernel provides to every process: name, length, build id.
    kernel: Vec<(String, u64)>,
    vdso: Option<Vec<u8>>,
}

impl<'a> Here<'a> {
    fn new(options: &'a ReviveOptions) -> Result<Self> {
        let maps = proc::maps(std::process::id() as i32)?;
        let kernel = maps.iter().filter_map(|vma| match &vma.backing {
            Backing::Special(name) => Some((name.clone(), vma.range.len())),
            _ => None,
        });
        Ok(Self {
            options,
            kernel: kernel.collect(),
            vdso: proc::vdso_build_id(),
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

impl World for Here<'_> {
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
        let meta = std::fs::metadata(path).map_err(|e| format!("it cannot be opened ({e})"))?;
        let device = (rustix::fs::major(meta.dev()), rustix::fs::minor(meta.dev()));
        let same = (device, meta.ino()) == (dev, inode);
        let known = vma.build_id.is_some();
        let same_build = known && proc::build_id(path) == vma.build_id;
        if same_build || same && !known || self.options.allow_changed_files {
            return Ok(());
        }
        Err(format!(
            "the file is another one than it was{}; --allow-changed-files takes it nevertheless",
            if known { " (another build id)" } else { "" }
        ))
    }

    fn can_start_thread(&self, tid: i32) -> std::result::Result<(), String> {
        match self.options.pids {
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
