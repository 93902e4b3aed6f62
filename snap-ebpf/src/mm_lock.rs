//! get_user_pages, as seen by the lock it takes.
//!
//! Where a page is not writable yet, get_user_pages cannot take its lockless path: it takes the
//! address space's lock for reading first. Whoever does that inside a system call, or from another
//! process, may be about to write: O_DIRECT and zero-copy reads, process_vm_writev, ptrace pokes,
//! writes to /proc/PID/mem, registered buffers. Faults taken in user mode also end up here at times;
//! those have their own programs.

use crate::kernel::{self, Kptr, field};
use crate::{config, maps};
use aya_ebpf::helpers::generated::bpf_task_pt_regs;
use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use snap_common::{EventKind, SyscallClass, flag};

/// Arguments: address space, whether for writing.
#[btf_tracepoint(function = "mmap_lock_start_locking")]
pub fn mmap_lock_start_locking(ctx: BtfTracePointContext) -> i32 {
    // Lock holders that write are mapping changes, which have their own events.
    if ctx.arg::<u64>(1) & 0xff != 0 {
        return 0;
    }
    let mm: Kptr = ctx.arg(0);
    let tgid = kernel::mm_tgid(mm);
    if !maps::tracked(tgid) {
        return 0;
    }
    let task = kernel::current();
    let own = kernel::tgid(task);
    if own == config::own_tgid() {
        return 0;
    }
    let own_mm: Kptr = field(task, config::off_task_mm());
    if own_mm != mm {
        let header = maps::header(EventKind::MmLock, flag::REMOTE, tgid, kernel::pid(task), u32::MAX);
        maps::emit(header, [0; 5]);
        return 0;
    }
    // SAFETY: `task` is the running task.
    let regs = unsafe { bpf_task_pt_regs(task.cast_mut().cast()) } as Kptr;
    // -1 unless in a system call.
    let nr: u64 = field(regs, config::off_regs_nr());
    if nr as i64 >= 0 && config::syscall_class(nr) != SyscallClass::Mapping as u8 {
        maps::emit(maps::header(EventKind::MmLock, 0, tgid, kernel::pid(task), nr as u32), [0; 5]);
    }
    0
}
