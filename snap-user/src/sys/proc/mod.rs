//! /proc: what the kernel tells of a process in text.

mod fdinfo;
mod fds;
mod maps;
mod status;

pub use fdinfo::{FdInfo, FileHandle};
pub use fds::{FdStat, FdTable, may_hold_locks};
pub use maps::{build_id, maps, vm_flags};
pub use status::{
    Stat, Status, auxv, cmdline, cpu_time_ns, exe, is_alive, link, mm_fields, processes, stat,
    status, threads,
};

use super::{Result, SysError};

pub(super) fn read(path: String) -> Result<Vec<u8>> {
    std::fs::read(&path).map_err(|e| SysError::new("read", path, e))
}

pub(super) fn bad(path: &str, what: &str) -> SysError {
    SysError::new(
        "read",
        path,
        std::io::Error::new(std::io::ErrorKind::InvalidData, format!("no {what} in it")),
    )
}
