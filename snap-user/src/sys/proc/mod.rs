//! /proc: what the kernel tells of a process in text.

mod attributes;
mod cpu;
mod family;
mod fdinfo;
mod fds;
mod maps;
mod status;
mod vdso;

pub use attributes::{
    TaskStatus, autogroup_nice, is_io_flusher, machine_check_kill, memory_policies, namespaces,
    number, task_status, text, time_offsets, timers, write,
};
pub use cpu::processor_features;
pub use family::children;
pub use fdinfo::{FdInfo, FileHandle};
pub use fds::{FdStat, FdTable};
pub use maps::{build_id, maps, vm_flags};
pub use status::{
    Stat, Status, auxv, available_memory, cmdline, cpu_time_ns, exe, idle_ns, is_alive,
    is_elsewhere, link, mm_fields, own_group, own_id, own_session, processes, stat, status,
    thread_count, threads,
};
pub use vdso::own_vdso;

use super::{Result, SysError};

pub(in crate::sys) fn read(path: String) -> Result<Vec<u8>> {
    std::fs::read(&path).map_err(|e| SysError::new("read", path, e))
}

pub(in crate::sys) fn bad(path: &str, what: &str) -> SysError {
    SysError::new(
        "read",
        path,
        std::io::Error::new(std::io::ErrorKind::InvalidData, format!("no {what} in it")),
    )
}
