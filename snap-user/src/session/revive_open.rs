//! What new processes inherit of ksnap: files and memory, each opened once.

use super::{Result, SessionError};
use crate::model::{Detail, FileKind, OpenFile, ProcessState};
use crate::restore::files::{self, Source};
use crate::restore::revive::{FileToOpen, MemoryObject, NewPlan, Opened};
use crate::sys;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

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

    /// Makes the memory that several of these processes share, unless it is there.
    pub(super) fn share<'a>(
        &mut self,
        all: impl IntoIterator<Item = (&'a ProcessState, &'a NewPlan)>,
        notes: &mut Vec<String>,
    ) -> Result<()> {
        let mut users: BTreeMap<(u64, u64), (usize, u64, &MemoryObject)> = BTreeMap::new();
        for (state, planned) in all {
            for object in &planned.objects {
                let len = length(object, state).max(object.len);
                let entry = users.entry(object.identity).or_insert((0, 0, object));
                entry.0 += 1;
                entry.1 = match &object.memfd {
                    // A descriptor tells how long it was, whatever is mapped.
                    Some(_) => entry.1.max(length(object, state)),
                    None => entry.1.max(len),
                };
            }
        }
        users.retain(|identity, _| !self.objects.contains_key(identity));
        for (identity, (count, len, object)) in users {
            let made = match &object.memfd {
                Some(name) => sys::memfd(name, len)?,
                None if count == 1 => continue,
                None => match sys::shared_memory(len) {
                    Ok(made) => made,
                    Err(e) if e.is_denied() => {
                        notes.push(format!(
                            "memory that processes share is a memfd now, since mappings may not be opened ({e})"
                        ));
                        sys::memfd("shared", len)?
                    }
                    Err(e) => return Err(e.into()),
                },
            };
            self.objects.insert(identity, Arc::new(made));
        }
        Ok(())
    }

    /// A descriptor of memory that is mapped is one of the very same memory.
    pub(super) fn lend(&self, files: &[OpenFile], sources: &mut [Source]) {
        let memory = files.iter().zip(sources);
        for (file, source) in memory.filter(|(file, _)| file.kind == FileKind::Memfd) {
            if let (Source::Make, Some(made)) = (&*source, self.objects.get(&identity(file))) {
                *source = Source::Own(made.as_raw_fd());
            }
        }
    }
}

/// How long memory was: as a descriptor of it tells, else as long as it is mapped.
pub(super) fn length(object: &MemoryObject, state: &ProcessState) -> u64 {
    let told = state.files.iter().find_map(|file| match &file.detail {
        Detail::Memfd(memfd) if identity(file) == object.identity => Some(memfd.size),
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
    commons.lend(&state.files, &mut planned.files.sources);
    Ok((opened, notes))
}

/// An open file's device and inode as mappings have them.
fn identity(file: &OpenFile) -> (u64, u64) {
    let (device, inode) = file.identity;
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    (u64::from(major) << 32 | u64::from(minor), inode)
}

fn open_file(file: &FileToOpen) -> Result<OwnedFd> {
    std::fs::File::options()
        .read(true)
        .write(file.write)
        .open(&file.path)
        .map(OwnedFd::from)
        .map_err(SessionError::io(format!("open {}", file.path)))
}
