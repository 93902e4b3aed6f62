//! Which open file each descriptor of a process refers to.
//!
//! An iterator over the descriptors of one process. It runs when user space reads its file, and hands over one record
//! for each: a look that costs a tenth of what the links in /proc do.

use crate::config::{off_file_inode, off_file_operations, off_inode_number};
use crate::kernel::{self, Kptr, field};
use crate::state::requested;
use aya_ebpf::bindings::seq_file;
use aya_ebpf::helpers::generated::bpf_seq_write;
use snap_common::FileRecord;

/// The context of an iterator over descriptors.
#[repr(C)]
struct Context {
    meta: Kptr,
    /// Null at the end.
    task: Kptr,
    fd: u32,
    _pad: u32,
    file: Kptr,
}

/// Called for each descriptor, and once at the end.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task_file")]
fn files(context: *const Context) -> i32 {
    // SAFETY: the kernel passes a context of this layout.
    let (meta, task) = unsafe { ((*context).meta, (*context).task) };
    // SAFETY: the same.
    let (fd, file) = unsafe { ((*context).fd, (*context).file) };
    if task.is_null() || file.is_null() {
        return 0;
    }
    // Threads may have tables of their own, which come apart: that of the first is what /proc shows.
    let pid = kernel::pid(task);
    if pid != kernel::tgid(task) || pid != requested() {
        return 0;
    }
    let inode = field::<Kptr>(file, off_file_inode());
    let record = FileRecord {
        fd: u64::from(fd),
        file: file as u64,
        inode: inode as u64,
        number: field(inode, off_inode_number()),
        operations: field(file, off_file_operations()),
    };
    let seq = field::<Kptr>(meta, 0) as *mut seq_file;
    // SAFETY: a live local of the length given.
    unsafe {
        bpf_seq_write(
            seq,
            (&raw const record).cast_mut().cast(),
            size_of::<FileRecord>() as u32,
        )
    };
    0
}
