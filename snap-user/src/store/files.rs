//! The operating system behind a seam, so that tests can make any operation fail.

use super::buffer::WriteBuffer;
use super::disk_file::{DiskFile, direct_len};
use rustix::fs::{FlockOperation, OFlags, flock};
use std::fmt::Debug;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

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
    /// Gives a file a second name, which must be free.
    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        let _ = (from, to);
        Err(io::ErrorKind::Unsupported.into())
    }
    /// How many names a file has.
    fn names_of(&self, path: &Path) -> io::Result<u64> {
        let _ = path;
        Ok(1)
    }
    /// Makes content and length of a file durable that somebody else may be writing.
    fn sync_file(&self, path: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove_file(&self, path: &Path) -> io::Result<()>;
    /// Removes an empty folder.
    fn remove_dir(&self, path: &Path) -> io::Result<()>;
    /// Makes renames, creations and removals in a folder durable.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    /// Length and modification time of a file.
    fn stat(&self, path: &Path) -> io::Result<Stamp>;
    /// Adds bytes to the end of a file, which is made, mode 0600, if it is not there.
    fn append(&self, path: &Path, bytes: &[u8]) -> io::Result<()>;
    /// Whether bytes can be added to this file once it is there.
    fn can_append(&self, path: &Path) -> bool {
        let _ = path;
        true
    }
    /// Names this boot of the kernel: what was written under another one may not have reached the disk. `None`
    /// where the kernel does not say.
    fn boot(&self) -> Option<String>;
    /// Whether a folder lies in memory. Where that cannot be found out it does not.
    fn is_in_memory(&self, dir: &Path) -> bool;
    /// Takes a writer's lock, without waiting; the file is made if it is not there.
    fn lock(&self, path: &Path) -> io::Result<Locking>;
}

/// What tells a file from the same file changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Length in bytes.
    pub len: u64,
    /// Modification time, nanoseconds since 1970.
    pub modified_ns: u64,
}

/// A file being written.
pub trait WriteFile: Send + Debug {
    /// Writes all of `bytes` at `offset`.
    fn write_all_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Writes what a buffer holds at `offset`, and gives an empty one. It may go on while more comes: what became of it is
    /// known when something else of the file is written, or it is finished or synced, and may be the error of that.
    fn write_behind(&mut self, mut buffer: WriteBuffer, offset: u64) -> io::Result<WriteBuffer> {
        self.write_all_at(buffer.bytes(), offset)?;
        buffer.clear();
        Ok(buffer)
    }
    /// Nothing more is written: whatever was held back is written now. Syncing does it as well.
    fn finish(&mut self) -> io::Result<()> {
        Ok(())
    }
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
    file: File,
}

impl Drop for LockGuard {
    fn drop(&mut self) {
        // Closed alone, it would be held on by a child that has just been started, until that executes its program.
        let _ = flock(&self.file, FlockOperation::Unlock);
    }
}

/// `TMPFS_MAGIC` and `RAMFS_MAGIC`, statfs(2).
const IN_MEMORY: [u64; 2] = [0x0102_1994, 0x8584_58f6];

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
        Ok(Box::new(DiskFile::new(file, path)))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn ReadFile>> {
        Ok(Box::new(DiskReader {
            file: File::open(path)?,
            path: path.to_owned(),
            direct: OnceLock::new(),
        }))
    }

    fn names(&self, dir: &Path) -> io::Result<Vec<String>> {
        std::fs::read_dir(dir)?
            .filter_map(|entry| entry.map(|e| e.file_name().into_string().ok()).transpose())
            .collect()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::hard_link(from, to)
    }

    fn names_of(&self, path: &Path) -> io::Result<u64> {
        Ok(std::fs::metadata(path)?.nlink())
    }

    fn sync_file(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_data()
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

    fn stat(&self, path: &Path) -> io::Result<Stamp> {
        let found = std::fs::metadata(path)?;
        Ok(Stamp {
            len: found.len(),
            modified_ns: (found.mtime() as u64)
                .wrapping_mul(1_000_000_000)
                .wrapping_add(found.mtime_nsec() as u64),
        })
    }

    fn append(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(path)?
            .write_all(bytes)
    }

    fn boot(&self) -> Option<String> {
        let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        Some(id.trim().to_owned())
    }

    fn is_in_memory(&self, dir: &Path) -> bool {
        // statfs(2); sign-extended on some architectures.
        rustix::fs::statfs(dir)
            .is_ok_and(|found| IN_MEMORY.contains(&(found.f_type as u64 & 0xffff_ffff)))
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
                Ok(Locking::Held(LockGuard { file }))
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

/// A file of which large pieces are read past the page cache, into which they were not written either.
#[derive(Debug)]
struct DiskReader {
    file: File,
    path: PathBuf,
    /// Opened with the first large read: a listing has none.
    direct: OnceLock<Option<File>>,
}

impl DiskReader {
    fn direct(&self) -> Option<&File> {
        let open = || {
            OpenOptions::new()
                .read(true)
                .custom_flags(OFlags::DIRECT.bits() as i32)
                .open(&self.path)
                .ok()
        };
        self.direct.get_or_init(open).as_ref()
    }
}

impl ReadFile for DiskReader {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        let read = match direct_len(bytes, offset) {
            0 => 0,
            len => self
                .direct()
                .and_then(|direct| direct.read_at(&mut bytes[..len], offset).ok())
                .unwrap_or(0),
        };
        // What direct I/O did not give, for whatever reason, the page cache gives or says why not.
        FileExt::read_exact_at(&self.file, &mut bytes[read..], offset + read as u64)
    }
}
