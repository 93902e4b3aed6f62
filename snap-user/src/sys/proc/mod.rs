//! /proc: what the kernel tells of a process in text.

mod attributes;
mod cpu;
mod family;
mod fdinfo;
mod fds;
mod maps;
mod mounts;
mod status;
mod vdso;

pub use attributes::{
    TaskStatus, autogroup_nice, is_io_flusher, machine_check_kill, memory_policies, namespaces,
    number, task_status, text, time_offsets, timers, write,
};
pub use cpu::processor_features;
pub use family::children;
pub use fdinfo::{FdInfo, FileHandle};
pub use fds::{FdStat, FdTable, SocketHolders, socket_holders};
pub use maps::{build_id, maps, vm_flags};
pub use mounts::see_same_mounts;
pub use status::{
    Stat, Status, auxv, available_memory, cmdline, cpu_time_ns, exe, idle_ns, is_alive,
    is_elsewhere, link, mm_fields, own_group, own_id, own_session, processes, stat, status,
    thread_count, threads,
};
pub use vdso::{kernel_mappings, own_vdso};

use super::{Result, SysError};
use std::fs::File;
use std::io::Read;

/// More than most of these files hold.
const ROOM: usize = 16 * 1024;

/// The whole file. The standard library asks for its size first, which is 0 here, and then begins with a few bytes:
/// a stopped process would wait for all of these calls.
pub(in crate::sys) fn read(path: String) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(ROOM);
    let whole = File::open(&path).and_then(|file| file.take(u64::MAX).read_to_end(&mut bytes));
    match whole {
        Ok(_) => Ok(bytes),
        Err(e) => Err(SysError::new("read", path, e)),
    }
}

pub(in crate::sys) fn bad(path: &str, what: &str) -> SysError {
    SysError::new(
        "read",
        path,
        std::io::Error::new(std::io::ErrorKind::InvalidData, format!("no {what} in it")),
    )
}
