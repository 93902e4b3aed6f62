//! Writing the contents of files back.

use super::super::Content;
use crate::model::{PAGE_SIZE, Page, ProcessState, SavedFile};
use crate::sys::{self, SysError, proc};
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::{Duration, UNIX_EPOCH};

/// Files whose content is to be written, and what.
#[derive(Debug, Default)]
pub struct SavedContents {
    /// The files.
    pub changed: Vec<SavedFile>,
    /// All of their pages.
    pub content: Content,
}

/// Writes the saved content of each file that `changed` names, through the descriptors that process `pid` has by now.
/// Gives the number of pages written. `content` must have all of their pages.
///
/// # Errors
/// The file is left in between.
pub fn write_back(
    pid: i32,
    wanted: &ProcessState,
    changed: &[SavedFile],
    content: &Content,
) -> sys::Result<u64> {
    let mut written = 0;
    for saved in changed {
        let through = wanted
            .open_files()
            .find(|(_, file)| file.identity == saved.identity)
            .map(|(descriptor, _)| descriptor.fd);
        let Some(fd) = through else { continue };
        written += write_file(pid, fd, saved, content)?;
    }
    Ok(written)
}

fn write_file(pid: i32, fd: i32, saved: &SavedFile, content: &Content) -> sys::Result<u64> {
    let failed = |call| move |e| SysError::new(call, &saved.path, e);
    let file = File::options()
        .read(true)
        .write(true)
        .open(format!("/proc/{pid}/fd/{fd}"))
        .map_err(failed("open"))?;
    let size = saved.content.size;
    if file.metadata().map_err(failed("fstat"))?.size() != size {
        file.set_len(size).map_err(failed("ftruncate"))?;
    }
    let mut written = 0;
    let mut live: Page = [0; PAGE_SIZE as usize];
    for at in (0..size).step_by(PAGE_SIZE as usize) {
        let len = ((size - at) as usize).min(live.len());
        let missing = || std::io::Error::other("a page of its content is not in the snapshot");
        let page = content
            .get(saved.start + at)
            .ok_or_else(missing)
            .map_err(failed("read"))?;
        file.read_exact_at(&mut live[..len], at)
            .map_err(failed("pread"))?;
        if live[..len] != page[..len] {
            file.write_all_at(&page[..len], at)
                .map_err(failed("pwrite"))?;
            written += 1;
        }
    }
    // So that a look at it tells that it is as it was.
    let changed = UNIX_EPOCH + Duration::from_nanos(saved.content.mtime_ns.max(0) as u64);
    file.set_modified(changed).map_err(failed("futimens"))?;
    Ok(written)
}

/// Size and time of change of a saved file now: through a descriptor that the process has, else by its path.
pub fn look_at(pid: i32, live: &ProcessState, saved: &SavedFile) -> Option<crate::model::Regular> {
    let table = proc::FdTable::open(pid).ok()?;
    let through = live
        .open_files()
        .find(|(_, file)| file.identity == saved.identity);
    let stat = match through {
        Some((descriptor, _)) => table.stat(descriptor.fd).ok()?,
        None => {
            use super::FileWorld;
            return super::System { pid, entered: None }
                .look(&saved.path)
                .ok()
                .map(|look| look.content);
        }
    };
    Some(crate::model::Regular {
        size: stat.size,
        mtime_ns: stat.mtime_ns,
        mode: stat.mode,
    })
}
