//! The machine that a new process is made on: what it has for it, and what is not as it was.

use super::revive::{Pids, ReviveOptions};
use super::{Result, SessionError};
use crate::model::{Backing, MappedFile, ProcessState, Vma, page_up};
use crate::restore::revive::Surroundings;
use crate::sys::{self, arch, proc};
use std::os::unix::fs::MetadataExt;

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
    /// What the kernel provides to every process: name and length.
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
