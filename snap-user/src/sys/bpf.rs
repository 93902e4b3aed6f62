//! `bpf(2)` where aya has no call for it: iterators over the tasks of one process.

use super::{Result, SysError};
use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

const BPF_LINK_CREATE: i32 = 28;
const BPF_ITER_CREATE: i32 = 33;
/// `BPF_TRACE_ITER` of `enum bpf_attach_type`.
const BPF_TRACE_ITER: u32 = 28;

/// `union bpf_iter_link_info`, its member for tasks (Linux 6.1), as long as the longest member.
#[repr(C)]
struct TaskInfo {
    tid: u32,
    pid: u32,
    pid_fd: u32,
    pad: u32,
}

/// `bpf_attr.link_create` of an iterator.
#[repr(C)]
struct LinkCreate {
    prog_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
    iter_info: u64,
    iter_info_len: u32,
    pad: u32,
}

/// `bpf_attr.iter_create`.
#[repr(C)]
struct IterCreate {
    link_fd: u32,
    flags: u32,
}

fn bpf<T>(name: &'static str, command: i32, attr: &T) -> Result<OwnedFd> {
    // SAFETY: `attr` is a live structure whose layout is that of the command, with its size; what
    // it points to lives as long. The kernel only reads it.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_ref(attr),
            size_of::<T>(),
        )
    };
    if fd < 0 {
        return Err(SysError::last(name, "an iterator over tasks"));
    }
    // SAFETY: a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Links an iterator program to the threads of process `pid`; before Linux 6.1, to all tasks.
pub fn task_iterator(program: BorrowedFd<'_>, pid: i32) -> Result<OwnedFd> {
    let info = TaskInfo {
        tid: 0,
        pid: pid as u32,
        pid_fd: 0,
        pad: 0,
    };
    let mut attr = LinkCreate {
        prog_fd: program.as_raw_fd() as u32,
        target_fd: 0,
        attach_type: BPF_TRACE_ITER,
        flags: 0,
        iter_info: std::ptr::from_ref(&info) as u64,
        iter_info_len: size_of::<TaskInfo>() as u32,
        pad: 0,
    };
    match bpf("bpf(BPF_LINK_CREATE)", BPF_LINK_CREATE, &attr) {
        Err(e) if matches!(e.errno(), Some(libc::EINVAL | libc::E2BIG)) => {
            (attr.iter_info, attr.iter_info_len) = (0, 0);
            bpf("bpf(BPF_LINK_CREATE)", BPF_LINK_CREATE, &attr)
        }
        done => done,
    }
}

/// A file whose reading runs a linked iterator once.
pub fn run_iterator(link: &OwnedFd) -> Result<File> {
    let attr = IterCreate {
        link_fd: link.as_raw_fd() as u32,
        flags: 0,
    };
    bpf("bpf(BPF_ITER_CREATE)", BPF_ITER_CREATE, &attr).map(File::from)
}
