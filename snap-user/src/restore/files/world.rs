//! The system that a process lives in, asked by a plan.

use super::connections;
use super::plan::{FileWorld, Look};
use crate::model::{Regular, Socket};
use crate::restore::revive::Entered;
use crate::sys::{self, proc};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;

/// Paths as process `pid` sees them, and the processes of this system.
#[derive(Clone, Copy, Debug)]
pub struct System<'a> {
    /// The process.
    pub pid: i32,
    /// Namespaces that are entered by whom the plan is for, unless that is the process itself.
    pub entered: Option<&'a Entered>,
}

impl FileWorld for System<'_> {
    fn look(&self, path: &str) -> Result<Look, String> {
        let opened = sys::open_in_root(self.pid, path, libc::O_PATH as u32)
            .map_err(|e| e.source.to_string())?;
        let meta = std::fs::metadata(format!("/proc/self/fd/{}", opened.as_raw_fd()))
            .map_err(|e| e.to_string())?;
        Ok(Look {
            identity: (meta.dev(), meta.ino()),
            content: Regular {
                size: meta.size(),
                mtime_ns: meta.mtime() * 1_000_000_000 + meta.mtime_nsec(),
                mode: meta.mode(),
            },
        })
    }

    fn process(&self, pid: i32) -> Option<u64> {
        proc::stat(pid, None).ok().map(|stat| stat.start_time)
    }

    fn connections(&self, all: &[(&Socket, u64)]) -> Vec<Result<(), String>> {
        let check = || connections::check(all);
        let checked = match self.entered {
            Some(entered) => entered.inside("net", check),
            None => sys::in_network_of(self.pid, check),
        };
        checked.unwrap_or_else(|e| vec![Err(e.to_string()); all.len()])
    }

    fn pipe(&self, identity: (u64, u64)) -> Option<String> {
        let link = format!("pipe:[{}]", identity.1);
        proc::processes()
            .into_iter()
            .filter(|pid| *pid != self.pid)
            .find_map(|pid| {
                let table = proc::FdTable::open(pid).ok()?;
                let has = |fd: &i32| table.link(*fd).is_ok_and(|found| found == link);
                let fd = table.numbers().ok()?.into_iter().find(has)?;
                Some(format!("/proc/{pid}/fd/{fd}"))
            })
    }
}
