//! The machine that a new process is made on: what it has for it, and what is not as it was.

use super::revive::{Pids, ReviveOptions};
use super::revive_contents::ReadPages;
use super::{Result, SessionError};
use crate::model::{Backing, Clocks, MappedFile, PageRange, PageSet, ProcessState, Vma, page_up};
use crate::restore::revive::{Entered, Namespaces, OtherKernel, Surroundings, time_offsets};
use crate::restore::{RestoreError, fault};
use crate::sys::{self, SysError, arch, proc};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

/// Longest code of a kernel that is looked at, in bytes: it has 8 KiB on today's kernels.
const MOST_CODE: u64 = 1 << 20;

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

/// Whether processes with these ids are to be in a user namespace of their own, since this ksnap may choose ids only there.
pub(super) fn take_own_users(pids: Pids) -> Result<bool> {
    match pids {
        Pids::New => Ok(false),
        Pids::Namespace => Ok(!sys::makes_namespaces()),
        Pids::Same if sys::chooses_ids(std::process::id() as i32) => Ok(false),
        Pids::Same => Err(SessionError::Usage(
            "choosing ids here takes CAP_CHECKPOINT_RESTORE: --pids namespace gives the process the ids that it had in a namespace of its own, --pids new gives it others".into(),
        )),
    }
}

/// Says what to do where a process could not be started in a user namespace of its own.
pub(super) fn without_own_users(error: RestoreError, users: bool) -> RestoreError {
    const REFUSED: [i32; 5] = [
        libc::EPERM,
        libc::EACCES,
        libc::ENOSPC,
        libc::ENOSYS,
        libc::EUSERS,
    ];
    match error {
        RestoreError::Unborn { pid, step, source }
            if users && source.errno().is_some_and(|e| REFUSED.contains(&e)) =>
        {
            let target = format!(
                "{}, in a user namespace (they may not be allowed: see user.max_user_namespaces and kernel.apparmor_restrict_unprivileged_userns, or do without one by --pids new)",
                source.target
            );
            let source = SysError { target, ..source };
            RestoreError::Unborn { pid, step, source }
        }
        other => other,
    }
}

/// What a user namespace of its own means for a process.
pub(super) const OWN_USERS: &str = "it is in a user namespace of its own, since only there an ordinary user may choose ids: files of other users are nobody's for it, it cannot become another user (sudo), and capabilities that it has hold only there";

/// The machine that a new process is made on.
pub(super) struct Here<'a> {
    options: &'a ReviveOptions,
    pids: Pids,
    /// Files behind private mappings, as they were.
    mapped: &'a [MappedFile],
    /// Names of what the kernel provides to every process.
    kernel: Vec<String>,
    entered: &'a Entered,
    other_kernel: Option<OtherKernel>,
}

impl<'a> Here<'a> {
    /// For what has no snapshot.
    pub(super) fn new(
        options: &'a ReviveOptions,
        pids: Pids,
        entered: &'a Entered,
    ) -> Result<Self> {
        Ok(Self::with(options, pids, entered, &own_maps()?))
    }

    /// For one process, whose snapshot has these pages.
    pub(super) fn of(
        options: &'a ReviveOptions,
        pids: Pids,
        entered: &'a Entered,
        state: &'a ProcessState,
        saved: &dyn ReadPages,
    ) -> Result<Self> {
        let maps = own_maps()?;
        Ok(Self {
            mapped: &state.mapped,
            other_kernel: other_kernel(state, saved, &maps)?,
            ..Self::with(options, pids, entered, &maps)
        })
    }

    fn with(options: &'a ReviveOptions, pids: Pids, entered: &'a Entered, maps: &[Vma]) -> Self {
        let kernel = maps.iter().filter_map(|vma| match &vma.backing {
            Backing::Special(name) => Some(name.clone()),
            _ => None,
        });
        Self {
            options,
            pids,
            mapped: &[],
            entered,
            kernel: kernel.collect(),
            other_kernel: None,
        }
    }
}

fn own_maps() -> Result<Vec<Vma>> {
    Ok(proc::maps(std::process::id() as i32)?)
}

/// How the clocks of this machine are outside of time namespaces.
fn host_clocks() -> Option<Clocks> {
    let mut host = sys::clocks([0, 0])?;
    if fault::number("KSNAP_OTHER_MACHINE").is_some() {
        host.boot = [0; 16];
    }
    Some(host)
}

/// The namespaces that a process enters again.
pub(super) fn namespaces(state: &ProcessState, chosen: Namespaces) -> Result<Entered> {
    Ok(Entered::find(state, chosen, host_clocks().as_ref())?)
}

/// The time namespace in which the clocks of a process go on, where ksnap's is not that. Where none can be made, what that
/// means is noted.
pub(super) fn time_namespace(
    state: &ProcessState,
    notes: &mut Vec<String>,
) -> Result<Option<OwnedFd>> {
    let Some(host) = host_clocks() else {
        return Ok(None);
    };
    let own = sys::own_time_offsets();
    // An older ksnap did not store its clocks.
    let had = state.attributes.time_offsets;
    if state.clocks.is_none() && had.is_some_and(|had| had != own) {
        notes.push(
            "it was in another time namespace (clocks) than ksnap is, and is in ksnap's now".into(),
        );
    }
    let Some(offsets) = time_offsets(state, &host, own) else {
        return Ok(None);
    };
    match sys::time_namespace(offsets) {
        Ok(made) => Ok(Some(made)),
        Err(e) => {
            let by = own[0].saturating_sub(offsets[0]);
            let (way, by) = match by < 0 {
                true => ("back", Duration::from_nanos(by.unsigned_abs())),
                false => ("ahead", Duration::from_nanos(by as u64)),
            };
            notes.push(format!(
                "its clocks that count from the machine's start (CLOCK_MONOTONIC) go {way} by {:.1} s: they can go on from where they were only in a time namespace ({e})",
                by.as_secs_f64()
            ));
            Ok(None)
        }
    }
}

/// The kernel here, if it has other code for programs than the one that a process was captured under.
fn other_kernel(
    state: &ProcessState,
    saved: &dyn ReadPages,
    maps: &[Vma],
) -> Result<Option<OtherKernel>> {
    let Some(vdso) = state.vmas.iter().find(|vma| vma.is_vdso()) else {
        return Ok(None);
    };
    let lengths = |all: &[(String, PageRange)]| -> Vec<(String, u64)> {
        all.iter()
            .map(|(name, range)| (name.clone(), range.len()))
            .collect()
    };
    let mappings = proc::kernel_mappings(maps);
    let own = proc::own_vdso();
    let was = proc::kernel_mappings(&state.vmas);
    let has_same_code =
        vdso.build_id.is_none() || vdso.build_id.as_ref() == own.map(|(_, build_id)| build_id);
    let is_same = lengths(&was) == lengths(&mappings) && has_same_code;
    if is_same && fault::number("KSNAP_OTHER_MACHINE").is_none() {
        return Ok(None);
    }
    if vdso.range.end <= vdso.range.start || vdso.range.len() > MOST_CODE {
        return Err(SessionError::Usage(format!(
            "the snapshot has a mapping [vdso] at {}, which no kernel makes",
            vdso.range
        )));
    }
    let mut former = Vec::new();
    let range = PageSet::from_ranges(vec![vdso.range]);
    saved.read_ranges(&range, &mut |_, page| former.extend_from_slice(page))?;
    match former.len() as u64 == vdso.range.len() {
        true => Ok(Some(OtherKernel {
            mappings,
            code: own.map(|(code, _)| code.clone()).unwrap_or_default(),
            former,
        })),
        false => Err(SessionError::Usage(
            "the snapshot was taken under another kernel, by a ksnap that did not store the code of that (vdso(7)): it can be brought back under that kernel".into(),
        )),
    }
}

impl Surroundings for Here<'_> {
    fn can_map(&self, vma: &Vma) -> std::result::Result<(), String> {
        let (path, deleted, dev, inode) = match &vma.backing {
            Backing::Special(name) => {
                let is_there = self.kernel.iter().any(|have| have == name);
                return is_there
                    .then_some(())
                    .ok_or_else(|| "this kernel has none".into());
            }
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
        // Another one has other segments by the same ids.
        if !self.entered.has("ipc") {
            return None;
        }
        let found = self.entered.inside("ipc", || sys::shared_segment(id));
        let (key, len) = found.ok().flatten()?;
        // As the kernel names it (ipc/shm.c).
        let same = *path == format!("/SYSV{key:08x}") && page_up(len) == vma.range.len();
        same.then_some(id)
    }

    fn other_kernel(&self) -> Option<&OtherKernel> {
        self.other_kernel.as_ref()
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
