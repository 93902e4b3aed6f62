//! The operating system behind a seam, so that tests can make any operation fail.

use rustix::fs::{FlockOperation, flock};
use std::fmt::Debug;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::Path;

/// File operations of a store. Every method is one operation that may fail on its own.
pub trait Files: Send + Sync + Debug {
    /// Makes a folder, mode 0700. Fails if it exists.
    fn create_dir(&self, path: &Path) -> io::Result<()>;
    /// Makes a file, mode 0600, to write to. Fails if it exists.
    fn create(&self, path: &Path) -> io::Result<Box<dyn WriteFile>>;
    /// Opens a file to read from.
    fn open(&self, path: &Path) -> io::Result<Box<dyn ReadFile>>;
    /// The names in a folder, in any order; names that are not UTF-8 are left out.
    fn names(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// Renames a file or folder, atomically.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove_file(&self, path: &Path) -> io::Result<()>;
    /// Removes an empty folder.
    fn remove_dir(&self, path: &Path) -> io::Result<()>;
    /// Makes renames, creations and removals in a folder durable.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    /// Takes a writer's lock, without waiting; the file is made if it is not there.
    fn lock(&self, path: &Path) -> io::Result<Locking>;
}

/// A file being written.
pub trait WriteFile: Send + Debug {
    /// Writes all of `bytes` at `offset`.
    fn write_all_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Makes content and length durable.
    fn sync(&mut self) -> io::Result<()>;
}

/// A file being read.
#[allow(
    clippy::len_without_is_empty,
    reason = "a length in bytes, not a collection"
)]
pub trait ReadFile: Send + Sync + Debug {
    /// Length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Fills `bytes` from `offset`.
    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()>;
}

/// What came of asking for a lock.
#[derive(Debug)]
pub enum Locking {
    /// Held until the guard is dropped, or the process ends.
    Held(LockGuard),
    /// Someone else holds it.
    Busy {
        /// The process id they left in it.
        pid: Option<i32>,
    },
}

/// A held lock.
#[derive(Debug)]
pub struct LockGuard {
    /// `flock(2)` goes with the open file description.
    _file: File,
}

/// The real file system.
#[derive(Clone, Copy, Debug, Default)]
pub struct Disk;

impl Files for Disk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        DirBuilder::new().mode(0o700).create(path)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn WriteFile>> {
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)?;
        Ok(Box::new(file))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn ReadFile>> {
        Ok(Box::new(File::open(path)?))
    }

    fn names(&self, dir: &Path) -> io::Result<Vec<String>> {
        std::fs::read_dir(dir)?
            .filter_map(|entry| entry.map(|e| e.file_name().into_string().ok()).transpose())
            .collect()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_dir(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn lock(&self, path: &Path) -> io::Result<Locking> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {
                // Only told to people: a writer that cannot leave its id still has the lock.
                let told = file
                    .set_len(0)
                    .and_then(|()| file.rewind())
                    .and_then(|()| writeln!(file, "{}", std::process::id()));
                if let Err(error) = told {
                    tracing::debug!("no process id in {}: {error}", path.display());
                }
                Ok(Locking::Held(LockGuard { _file: file }))
            }
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut text = String::new();
                let pid = file
                    .read_to_string(&mut text)
                    .ok()
                    .and_then(|_| text.trim().parse().ok());
                Ok(Locking::Busy { pid })
            }
            Err(error) => Err(error.into()),
        }
    }
}

impl WriteFile for File {
    fn write_all_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        FileExt::write_all_at(self, bytes, offset)
    }

    fn sync(&mut self) -> io::Result<()> {
        // fdatasync(2) covers the length too; only times are left out.
        self.sync_data()
    }
}

impl ReadFile for File {
    fn len(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, bytes, offset)
    }
}
