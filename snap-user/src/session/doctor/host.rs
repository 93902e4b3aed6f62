//! Limits and folders of this host.

use super::{About, Check};
use rustix::fs::{Access, access, statvfs};
use std::path::Path;

const YAMA_SCOPE: &str = "/proc/sys/kernel/yama/ptrace_scope";
/// Bit of CAP_SYS_PTRACE in the capability sets of `/proc/PID/status`.
const CAP_SYS_PTRACE: u32 = 19;

const YAMA: About = About {
    name: "trace_others",
    title: "trace processes that ksnap did not start (Yama)",
    used_for: "watch, snap and rollback of processes that are already running",
    without: "only processes started by `ksnap run` can be captured",
    how: "run as root, or set kernel.yama.ptrace_scope to 0",
};
const THREAD_IDS: About = About {
    name: "thread_ids",
    title: "choose the id of a new thread (ns_last_pid)",
    used_for: "bringing back threads that have ended since the snapshot",
    without: "a rollback that needs such a thread is refused, before anything is touched",
    how: "run as root, or with CAP_CHECKPOINT_RESTORE (Linux 5.9), with /proc/sys writable",
};
const STORE: About = About {
    name: "store",
    title: "a store that can be written",
    used_for: "keeping snapshots",
    without: "no snapshot can be kept",
    how: "name a folder of your own with --store or KSNAP_STORE",
};

const IO_URING: About = About {
    name: "io_uring",
    title: "writes that go on by themselves (io_uring)",
    used_for: "writing large snapshots while their next pages are encoded",
    without: "they are written piece by piece, which takes a little longer",
    how: "Linux 5.6 or newer with kernel.io_uring_disabled at 0; in a container, a seccomp profile that allows io_uring",
};

/// Which machine this is.
pub(super) struct Host {
    pub(super) kernel: String,
    pub(super) arch: String,
    pub(super) uid: u32,
}

pub(super) fn describe() -> Host {
    let name = rustix::system::uname();
    Host {
        kernel: name.release().to_string_lossy().into_owned(),
        arch: name.machine().to_string_lossy().into_owned(),
        uid: rustix::process::geteuid().as_raw(),
    }
}

/// Whether this process holds a capability.
fn has_capability(bit: u32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|set| u64::from_str_radix(set.trim(), 16).ok())
        .is_some_and(|set| set >> bit & 1 == 1)
}

/// What the modes are: Documentation/admin-guide/LSM/Yama.rst.
pub(super) fn yama() -> Check {
    let scope = match std::fs::read_to_string(YAMA_SCOPE) {
        Ok(text) => text.trim().to_owned(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return YAMA.yes("this kernel has no Yama; the usual rules of ptrace(2) hold");
        }
        Err(error) => return YAMA.unknown(format!("{YAMA_SCOPE}: {error}")),
    };
    let privileged = has_capability(CAP_SYS_PTRACE);
    match (scope.as_str(), privileged) {
        ("0", _) => YAMA.yes("kernel.yama.ptrace_scope is 0"),
        ("1" | "2", true) => YAMA.yes(format!(
            "kernel.yama.ptrace_scope is {scope}, and this user has CAP_SYS_PTRACE"
        )),
        ("1" | "2", false) => YAMA.no(format!(
            "kernel.yama.ptrace_scope is {scope}, and this user lacks CAP_SYS_PTRACE"
        )),
        ("3", _) => YAMA.no("kernel.yama.ptrace_scope is 3, until the next boot"),
        _ => YAMA.unknown(format!("kernel.yama.ptrace_scope is {scope}")),
    }
}

pub(super) fn thread_ids() -> Check {
    // No process has this id: pid_max is at most 4 Mi.
    match crate::restore::can_start_thread(i32::MAX, None) {
        Ok(()) => THREAD_IDS.yes("the id of the next thread can be set"),
        Err(why) => THREAD_IDS.no(why),
    }
}

pub(super) fn io_uring() -> Check {
    match crate::sys::can_write_behind() {
        Ok(()) => IO_URING.yes("a ring can be made"),
        Err(error) => IO_URING.no(format!("io_uring_setup: {error}")),
    }
}

pub(super) fn store(dir: Option<&Path>) -> Check {
    let Some(dir) = dir else {
        return STORE.no("nothing says where the store is");
    };
    // The nearest folder that is there decides whether the rest of the path can be made.
    let Some(there) = dir.ancestors().find(|path| path.exists()) else {
        return STORE.unknown(format!("{}: no part of the path exists", dir.display()));
    };
    if !there.is_dir() {
        return STORE.no(format!("{} is not a folder", there.display()));
    }
    if let Err(error) = access(there, Access::WRITE_OK | Access::EXEC_OK) {
        return STORE.no(format!("{}: {error}", there.display()));
    }
    let free = statvfs(there).map(|fs| (fs.f_bavail * fs.f_frsize) >> 20);
    let free = free.map_or(String::new(), |mib| format!(", {mib} MiB free"));
    match there == dir {
        true => STORE.yes(format!("{}{free}", dir.display())),
        false => STORE.yes(format!("{} will be made{free}", dir.display())),
    }
}
