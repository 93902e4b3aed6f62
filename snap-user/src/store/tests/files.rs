//! Files that count, fail and lose power.

use crate::store::buffer::WriteBuffer;
use crate::store::{Disk, Files, Locking, ReadFile, Stamp, WriteFile};
use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

/// What is to go wrong. Operations that change something are numbered from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Plan {
    #[default]
    Nothing,
    /// This one operation fails with this errno; a write gets half of its bytes out first.
    Fail(u64, i32),
    /// The process dies in this operation: it and everything after it fails.
    Crash(u64),
}

/// What a file that is being written would come back as after a power cut.
#[derive(Debug, Default)]
struct Unsynced {
    durable_len: u64,
    overwritten: Vec<(u64, Vec<u8>)>,
}

#[derive(Debug, Default)]
struct State {
    plan: Plan,
    operations: u64,
    reads: u64,
    bytes_read: u64,
    opens: u64,
    boots: u64,
    /// New names of files that may still be open under the old one.
    moved: HashMap<PathBuf, PathBuf>,
    written: HashMap<PathBuf, Unsynced>,
    /// Files that cannot be opened, and the errno.
    unreadable: HashMap<PathBuf, i32>,
    /// Second names of files, and under which they were made.
    links: HashMap<PathBuf, PathBuf>,
    /// What the next listing of a folder says.
    old_names: HashMap<PathBuf, Vec<String>>,
    /// Renames whose folder is not synced yet, and what was there under the new name.
    renames: Vec<(PathBuf, PathBuf, Option<Vec<u8>>)>,
}

/// The real files, watched and made to fail. Syncs are only recorded, to be fast.
#[derive(Clone, Debug, Default)]
pub struct TestFiles(Arc<Mutex<State>>);

impl TestFiles {
    pub fn new(plan: Plan) -> Self {
        let files = Self::default();
        files.set_plan(plan);
        files
    }

    pub fn shared(&self) -> Arc<dyn Files> {
        Arc::new(self.clone())
    }

    pub fn set_plan(&self, plan: Plan) {
        self.state().plan = plan;
    }

    /// Operations so far that change something.
    pub fn operations(&self) -> u64 {
        self.state().operations
    }

    /// The crash has come.
    pub fn is_dead(&self) -> bool {
        let state = self.state();
        matches!(state.plan, Plan::Crash(at) if at <= state.operations)
    }

    /// Files opened, reads and bytes read since the last call.
    pub fn take_reads(&self) -> (u64, u64, u64) {
        let mut state = self.state();
        let counts = (state.opens, state.reads, state.bytes_read);
        (state.opens, state.reads, state.bytes_read) = (0, 0, 0);
        counts
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no test panics with the lock held")
    }

    /// Counts an operation; the error is the plan's.
    fn step(&self) -> io::Result<()> {
        let mut state = self.state();
        state.operations += 1;
        match state.plan {
            Plan::Fail(at, errno) if at == state.operations => {
                Err(io::Error::from_raw_os_error(errno))
            }
            Plan::Crash(at) if at <= state.operations => {
                Err(io::Error::other("the process is dead"))
            }
            _ => Ok(()),
        }
    }

    /// From now on opening this file fails with this errno, or does not any more.
    pub fn set_unreadable(&self, path: &Path, errno: Option<i32>) {
        let unreadable = &mut self.state().unreadable;
        match errno {
            Some(errno) => _ = unreadable.insert(path.to_owned(), errno),
            None => _ = unreadable.remove(path),
        }
    }

    /// The next listing of this folder is as old as now.
    pub fn keep_names(&self, dir: &Path) {
        let names = Disk.names(dir).expect("the folder can be listed");
        self.state().old_names.insert(dir.to_owned(), names);
    }

    /// The machine starts anew, after everything has reached the disk by itself.
    pub fn reboot(&self) {
        let mut state = self.state();
        state.boots += 1;
        state.renames.clear();
        state.written.clear();
    }

    /// As [`TestFiles::power_cut`], but names reached the disk before content.
    pub fn power_cut_keeping_names(&self) {
        self.state().renames.clear();
        self.power_cut();
    }

    /// Takes away all that was not made durable.
    pub fn power_cut(&self) {
        let mut state = self.state();
        state.boots += 1;
        let renames = std::mem::take(&mut state.renames);
        for (from, to, replaced) in renames.into_iter().rev() {
            fs::rename(&to, &from).expect("the rename can be undone");
            rename_keys(&mut state.written, &to, &from);
            if let Some(replaced) = replaced {
                fs::write(&to, replaced).expect("writable");
            }
        }
        for (path, unsynced) in std::mem::take(&mut state.written) {
            let Ok(file) = fs::OpenOptions::new().write(true).open(&path) else {
                continue;
            };
            for (at, bytes) in unsynced.overwritten.iter().rev() {
                file.write_all_at(bytes, *at).expect("writable");
            }
            file.set_len(unsynced.durable_len).expect("truncatable");
        }
    }
}

fn rename_keys(written: &mut HashMap<PathBuf, Unsynced>, from: &Path, to: &Path) {
    let moved: Vec<PathBuf> = written
        .keys()
        .filter(|path| path.starts_with(from))
        .cloned()
        .collect();
    for path in moved {
        let rest = path.strip_prefix(from).expect("it starts with it");
        let new = if rest.as_os_str().is_empty() {
            to.to_owned()
        } else {
            to.join(rest)
        };
        let unsynced = written.remove(&path).expect("listed above");
        written.insert(new, unsynced);
    }
}

impl Files for TestFiles {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.step()?;
        Disk.create_dir(path)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn WriteFile>> {
        self.step()?;
        drop(Disk.create(path)?);
        let file = fs::OpenOptions::new().read(true).write(true).open(path)?;
        let mut state = self.state();
        state.moved.remove(path);
        state.written.insert(path.to_owned(), Unsynced::default());
        drop(state);
        Ok(Box::new(Writing {
            file,
            path: path.to_owned(),
            files: self.clone(),
            lost: false,
            late: None,
        }))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn ReadFile>> {
        let mut state = self.state();
        state.opens += 1;
        if let Some(errno) = state.unreadable.get(path) {
            return Err(io::Error::from_raw_os_error(*errno));
        }
        drop(state);
        Ok(Box::new(Reading {
            inner: Disk.open(path)?,
            files: self.clone(),
        }))
    }

    fn names(&self, dir: &Path) -> io::Result<Vec<String>> {
        match self.state().old_names.remove(dir) {
            Some(names) => Ok(names),
            None => Disk.names(dir),
        }
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.step()?;
        // A folder replaces nothing but an empty one.
        let replaced = fs::read(to).ok();
        Disk.rename(from, to)?;
        let mut state = self.state();
        rename_keys(&mut state.written, from, to);
        state
            .renames
            .push((from.to_owned(), to.to_owned(), replaced));
        state.moved.insert(from.to_owned(), to.to_owned());
        if let Some(made) = state.links.remove(from) {
            state.links.insert(to.to_owned(), made);
        }
        Ok(())
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.step()?;
        Disk.link(from, to)?;
        self.state().links.insert(to.to_owned(), from.to_owned());
        Ok(())
    }

    fn names_of(&self, path: &Path) -> io::Result<u64> {
        Disk.names_of(path)
    }

    fn sync_file(&self, path: &Path) -> io::Result<()> {
        self.step()?;
        let durable_len = fs::metadata(path)?.len();
        let mut state = self.state();
        let made = state.links.get(path).map_or(path, |made| made);
        let now = state.moved.get(made).map_or(made, |now| now).to_owned();
        let durable = Unsynced {
            durable_len,
            overwritten: Vec::new(),
        };
        state.written.insert(now, durable);
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.step()?;
        Disk.remove_file(path)?;
        let mut state = self.state();
        state.written.remove(path);
        state.renames.retain(|(_, to, _)| to != path);
        Ok(())
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.step()?;
        Disk.remove_dir(path)?;
        self.state().renames.retain(|(_, to, _)| to != path);
        Ok(())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.step()?;
        self.state()
            .renames
            .retain(|(_, to, _)| to.parent() != Some(path));
        Ok(())
    }

    fn stat(&self, path: &Path) -> io::Result<Stamp> {
        Disk.stat(path)
    }

    fn append(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        // Half of it is there when it fails.
        if let Err(error) = self.step() {
            Disk.append(path, &bytes[..bytes.len() / 2])?;
            return Err(error);
        }
        Disk.append(path, bytes)
    }

    fn boot(&self) -> Option<String> {
        Some(format!("boot {}", self.state().boots))
    }

    /// Wherever the tests run.
    fn is_in_memory(&self, _dir: &Path) -> bool {
        false
    }

    fn lock(&self, path: &Path) -> io::Result<Locking> {
        self.step()?;
        Disk.lock(path)
    }
}

#[derive(Debug)]
struct Writing {
    file: fs::File,
    path: PathBuf,
    files: TestFiles,
    /// A sync failed: the kernel has dropped what it could not write, and says so only once.
    lost: bool,
    /// What a write behind has failed with.
    late: Option<io::Error>,
}

impl WriteFile for Writing {
    fn write_behind(&mut self, buffer: WriteBuffer, offset: u64) -> io::Result<WriteBuffer> {
        self.finish()?;
        self.late = self.write_all_at(buffer.bytes(), offset).err();
        Ok(WriteBuffer::default())
    }

    fn finish(&mut self) -> io::Result<()> {
        self.late.take().map_or(Ok(()), Err)
    }

    fn write_all_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.finish()?;
        let outcome = self.files.step();
        let bytes = if outcome.is_ok() {
            bytes
        } else {
            &bytes[..bytes.len() / 2]
        };
        {
            let mut state = self.files.state();
            if let Some(unsynced) = state.written.get_mut(&self.path) {
                let over = unsynced
                    .durable_len
                    .saturating_sub(offset)
                    .min(bytes.len() as u64);
                let mut old = vec![0; over as usize];
                FileExt::read_exact_at(&self.file, &mut old, offset)?;
                unsynced.overwritten.push((offset, old));
            }
        }
        FileExt::write_all_at(&self.file, bytes, offset)?;
        outcome
    }

    fn sync(&mut self) -> io::Result<()> {
        self.finish()?;
        if let Err(error) = self.files.step() {
            self.lost = true;
            return Err(error);
        }
        if self.lost {
            return Ok(());
        }
        let len = self.file.metadata()?.len();
        let durable = Unsynced {
            durable_len: len,
            overwritten: Vec::new(),
        };
        let mut state = self.files.state();
        let path = state.moved.get(&self.path).unwrap_or(&self.path).clone();
        state.written.insert(path, durable);
        Ok(())
    }
}

#[derive(Debug)]
struct Reading {
    inner: Box<dyn ReadFile>,
    files: TestFiles,
}

impl ReadFile for Reading {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        let mut state = self.files.state();
        state.reads += 1;
        state.bytes_read += bytes.len() as u64;
        drop(state);
        self.inner.read_exact_at(bytes, offset)
    }
}
