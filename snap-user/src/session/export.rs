//! Writes a snapshot in a form that other tools read.

use super::log::{LogEntry, entry};
use super::{Result, SessionError};
use crate::export::{ExportError, is_unchanged, write_core};
use crate::model::{Backing, ProcessState};
use crate::store::Store;
use serde::Serialize;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// A core file that was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ExportedCore {
    /// The snapshot.
    pub snapshot: LogEntry,
    /// Where it is; what the descriptor given stands for is named by the caller.
    pub path: PathBuf,
    /// Threads in it.
    pub threads: u64,
    /// Memory segments.
    pub segments: u64,
    /// Pages in it.
    pub pages: u64,
    /// Length of the file; pages of zeroes are holes in it.
    pub bytes: u64,
    /// Bytes that were written.
    pub written: u64,
    /// The process's executable, if it is still the same file.
    pub exe: Option<PathBuf>,
}

/// Writes a snapshot as an ELF core to `path`, under a temporary name until it is whole. An existing file is
/// replaced only with `force`.
pub fn export_core(
    store: &Path,
    reference: &str,
    path: &Path,
    force: bool,
) -> Result<ExportedCore> {
    let name = path.display();
    match fs::metadata(path) {
        Ok(found) if !found.is_file() => {
            return Err(SessionError::Usage(format!(
                "{name} is no regular file: a core file has holes and cannot be streamed; name a file"
            )));
        }
        Ok(_) if !force => {
            return Err(SessionError::Usage(format!(
                "{name} exists: name another file, or replace it with --force"
            )));
        }
        _ => {}
    }
    let temp = temporary(path)
        .ok_or_else(|| SessionError::Usage(format!("{name} is no name of a file")))?;
    // Memory of the process: for its owner alone, whatever the umask.
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temp)
        .map_err(SessionError::io(format!("create {}", temp.display())))?;
    let written = core_into(store, reference, &file).and_then(|core| {
        fs::rename(&temp, path).map_err(SessionError::io(format!("rename to {name}")))?;
        Ok(ExportedCore {
            path: path.to_owned(),
            ..core
        })
    });
    if written.is_err() {
        // Nothing can be done about a failure here; the first error is the one to tell.
        let _ = fs::remove_file(&temp);
    }
    written
}

/// Writes a snapshot as an ELF core into an empty file without a name, in the folder for temporary files, or in memory
/// where the snapshot is sealed: for a debugger that is about to be started. Nothing of it is left when the last
/// descriptor is closed.
pub fn unnamed_core(store: &Path, reference: &str) -> Result<(File, ExportedCore)> {
    let opened = Store::open(store)?;
    // Once: a snapshot taken meanwhile may be the latest one, and sealed.
    let id = opened.resolve(reference, None)?;
    let session = opened.snapshot(id)?.header().session;
    let file = match opened.is_sealed(session)? {
        true => rustix::fs::memfd_create("ksnap-core", rustix::fs::MemfdFlags::CLOEXEC)
            .map_err(|e| SessionError::io("make a file in memory")(e.into()))?
            .into(),
        false => unnamed_file()?,
    };
    let core = core_into(store, &id.to_string(), &file)?;
    Ok((file, core))
}

fn unnamed_file() -> Result<File> {
    let folder = std::env::temp_dir();
    let temp = folder.join(format!(".ksnap-core-{}", std::process::id()));
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temp)
        .map_err(SessionError::io(format!("create {}", temp.display())))?;
    fs::remove_file(&temp).map_err(SessionError::io(format!("remove {}", temp.display())))?;
    Ok(file)
}

fn temporary(path: &Path) -> Option<PathBuf> {
    let mut name = OsString::from(".");
    name.push(path.file_name()?);
    name.push(format!(".ksnap-{}", std::process::id()));
    Some(path.with_file_name(name))
}

fn core_into(store: &Path, reference: &str, file: &File) -> Result<ExportedCore> {
    let store = Store::open(store)?;
    let entry = entry(&store, reference, None)?;
    let snapshot = store.snapshot(entry.id)?;
    let state = snapshot.manifest()?.state;
    let machine = snapshot.header().arch as u16;
    let core = write_core(&state, machine, snapshot.page_table()?, &snapshot, file)?;
    Ok(ExportedCore {
        snapshot: entry,
        path: PathBuf::new(),
        threads: state.threads.len() as u64,
        segments: core.segments,
        pages: core.pages,
        bytes: core.bytes,
        written: core.written,
        exe: executable(&state),
    })
}

/// The executable, as long as the file under its name is the one that the process ran.
fn executable(state: &ProcessState) -> Option<PathBuf> {
    let of_exe = |vma: &&crate::model::Vma| matches!(&vma.backing, Backing::File { path, .. } if *path == state.exe);
    let vma = state.vmas.iter().find(of_exe)?;
    is_unchanged(vma).then(|| PathBuf::from(&state.exe))
}

impl From<ExportError<crate::store::StoreError>> for SessionError {
    fn from(error: ExportError<crate::store::StoreError>) -> Self {
        match error {
            ExportError::Pages(error) => error.into(),
            ExportError::Write { call, source } => Self::Io {
                what: format!("{call} the core file"),
                source: full(source),
            },
            ExportError::Format { .. } => Self::Usage(error.to_string()),
        }
    }
}

/// Says what to do when there is no room.
fn full(source: io::Error) -> io::Error {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            io::Error::new(
                source.kind(),
                format!(
                    "{source}; name a file on another file system (for `ksnap gdb`: set TMPDIR)"
                ),
            )
        }
        _ => source,
    }
}
