//! get_user_pages, as seen by the lock it takes.
//!
//! Where a page is not writable yet, get_user_pages cannot take its lockless path: it takes the
//! address space's lock for reading first. Whoever does that inside a system call, or from another
//! process, may be about to write: O_DIRECT and zero-copy reads, process_vm_writev, ptrace pokes,
//! writes to /proc/PID/mem, registered buffers. Faults take the lock too, and have their own events.

use crate::kernel::{self, Kptr, field};
use crate::{config, maps, save};
use aya_ebpf::helpers::generated::bpf_task_pt_regs;
use aya_ebpf::macros::{btf_tracepoint, map};
use aya_ebpf::maps::PerCpuArray;
use aya_ebpf::programs::BtfTracePointContext;
use core::arch::asm;
use snap_common::{EventKind, Loss, SyscallClass, flag};

/// A fault in kernel mode that has not taken its lock yet.
#[repr(C)]
#[derive(Clone, Copy)]
struct Expected {
    tid: u64,
    time_ns: u64,
}

/// At most one for each CPU.
#[map]
static EXPECTED: PerCpuArray<Expected> = PerCpuArray::with_max_entries(1, 0);

/// How long a fault takes to its lock, at most. A fault that lasts longer, because the CPU was taken
/// away between the two, is reported although it need not be.
const FAULT_TO_LOCK_NS: u64 = 100_000;

/// Makes the next lock by this thread the fault's own.
#[inline(always)]
pub fn expect_fault(tid: u32) {
    if let Some(slot) = EXPECTED.get_ptr_mut(0) {
        // SAFETY: a valid map value, of this CPU alone.
        unsafe {
            *slot = Expected {
                tid: u64::from(tid),
                time_ns: maps::now(),
            }
        }
    }
}

/// True once for each expected fault.
#[inline(always)]
fn is_fault(tid: u32) -> bool {
    let Some(slot) = EXPECTED.get_ptr_mut(0) else {
        return false;
    };
    // SAFETY: a valid map value, of this CPU alone.
    let expected = unsafe { *slot };
    if expected.tid != u64::from(tid) {
        return false;
    }
    // SAFETY: as above.
    unsafe { (*slot).tid = 0 };
    maps::now() - expected.time_ns < FAULT_TO_LOCK_NS
}

/// Keeps the compiler from making one load of two: the verifier refuses arguments at an offset that is computed.
#[inline(always)]
fn apart(mut value: u64) -> u64 {
    // SAFETY: a register moved to itself. An empty line would have no place in the line information.
    unsafe { asm!("{0} = {0}", inout(reg) value) };
    value
}

/// Arguments: address space, in older kernels the path of its memcg, whether for writing.
#[btf_tracepoint(function = "mmap_lock_start_locking")]
pub fn mmap_lock_start_locking(ctx: BtfTracePointContext) -> i32 {
    let for_writing: u64 = if config::mm_lock_has_path() != 0 {
        apart(ctx.arg(2))
    } else {
        ctx.arg(1)
    };
    // Lock holders that write are mapping changes, which have their own events.
    if for_writing & 0xff != 0 {
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
    let tid = kernel::pid(task);
    let own_mm: Kptr = field(task, config::off_task_mm());
    if own_mm != mm {
        // A process that works on a second address space of its own is executing a program.
        if own != tgid {
            let header = maps::header(EventKind::MmLock, flag::REMOTE, tgid, tid, u32::MAX);
            maps::emit(header, [0; 5]);
            save::spoil_of(tgid, Loss::OtherLock);
        }
        return 0;
    }
    // SAFETY: `task` is the running task.
    let regs = unsafe { bpf_task_pt_regs(task.cast_mut().cast()) } as Kptr;
    // -1 unless in a system call.
    let nr: u64 = field(regs, config::off_regs_nr());
    let class = config::syscall_class(nr);
    let harmless = class == SyscallClass::Mapping as u8 || class == SyscallClass::NoPin as u8;
    if nr as i64 >= 0 && !harmless && !is_fault(tid) {
        maps::emit(
            maps::header(EventKind::MmLock, 0, tgid, tid, nr as u32),
            [0; 5],
        );
        save::spoil_of(tgid, Loss::OwnLock);
    }
    0
}
