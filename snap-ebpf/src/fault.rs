//! Write faults of tracked address spaces.

use crate::kernel::{self, Kptr, field};
use crate::{config, maps, mm_lock, save};
use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::macros::{btf_tracepoint, fentry};
use aya_ebpf::programs::{BtfTracePointContext, FEntryContext};
use snap_common::{EventKind, PAGE_SIZE, flag};

/// The page was present: a protection fault (arch/x86/include/asm/trap_pf.h).
const X86_PF_PROT: u64 = 1;
/// The fault was a write (arch/x86/include/asm/trap_pf.h).
const X86_PF_WRITE: u64 = 1 << 1;
/// The fault was a write (enum fault_flag, include/linux/mm_types.h).
const FAULT_FLAG_WRITE: u32 = 1;
/// The fault came from user mode (enum fault_flag, include/linux/mm_types.h).
const FAULT_FLAG_USER: u32 = 1 << 6;
/// Kernel addresses have the top bit set on every 64-bit architecture.
const KERNEL_HALF: u64 = 1 << 63;

/// A fault taken in user mode. Arguments: address, registers, error code.
#[btf_tracepoint(function = "page_fault_user")]
pub fn page_fault_user(ctx: BtfTracePointContext) -> i32 {
    if is_write(&ctx) {
        let task = kernel::current();
        let (own, tgid) = writer_and_owner(task);
        if let Some(tracked) = maps::of_tracked(tgid) {
            emit(&ctx, task, own, tgid, flag::USER);
            save::before_write(tracked, tgid, ctx.arg(0), true);
        }
    }
    0
}

/// A fault taken in kernel mode, such as copy_to_user into fresh memory. Arguments as above.
#[btf_tracepoint(function = "page_fault_kernel")]
pub fn page_fault_kernel(ctx: BtfTracePointContext) -> i32 {
    let task = kernel::current();
    let (own, tgid) = writer_and_owner(task);
    let Some(tracked) = maps::of_tracked(tgid) else {
        return 0;
    };
    // It takes the lock by which get_user_pages is known.
    mm_lock::expect_fault(kernel::pid(task));
    if is_write(&ctx) {
        emit(&ctx, task, own, tgid, 0);
        save::before_write(tracked, tgid, ctx.arg(0), true);
    }
    0
}

#[inline(always)]
fn is_write(ctx: &BtfTracePointContext) -> bool {
    ctx.arg::<u64>(2) & X86_PF_WRITE != 0
}

/// The process of the task, and the one that its address space belongs to: a vfork child writes
/// into its parent's memory.
#[inline(always)]
fn writer_and_owner(task: Kptr) -> (u32, u32) {
    let own = kernel::tgid(task);
    match kernel::mm_tgid(field::<Kptr>(task, config::off_task_mm())) {
        0 => (own, own),
        owner => (own, owner),
    }
}

#[inline(always)]
fn emit(ctx: &BtfTracePointContext, task: Kptr, own: u32, tgid: u32, flags: u16) {
    let address: u64 = ctx.arg(0);
    if address & KERNEL_HALF != 0 {
        return;
    }
    let regs: Kptr = ctx.arg(1);
    let present = if ctx.arg::<u64>(2) & X86_PF_PROT != 0 {
        flag::PRESENT
    } else {
        0
    };
    let remote = if tgid == own { 0 } else { flag::REMOTE };
    maps::emit_fault(
        maps::header(
            EventKind::Fault,
            flags | present | remote,
            tgid,
            kernel::pid(task),
            0,
        ),
        address & !(PAGE_SIZE - 1),
        field(regs, config::off_regs_ip()),
    );
}

/// Any fault, also those that get_user_pages takes on behalf of another process.
/// Arguments: vma, address, flags, registers (null without an exception).
#[fentry(function = "handle_mm_fault")]
pub fn handle_mm_fault(ctx: FEntryContext) -> i32 {
    let fault: u32 = ctx.arg(2);
    if fault & FAULT_FLAG_WRITE == 0 {
        return 0;
    }
    let ids = bpf_get_current_pid_tgid();
    let own = (ids >> 32) as u32;
    let vma: Kptr = ctx.arg(0);
    let mm: Kptr = field(vma, config::off_vma_mm());
    let owner = kernel::mm_tgid(mm);
    let tgid = if owner == 0 { own } else { owner };
    let Some(tracked) = maps::of_tracked(tgid) else {
        return 0;
    };
    let address: u64 = ctx.arg(1);
    let regs: Kptr = ctx.arg(3);
    let user = if fault & FAULT_FLAG_USER != 0 {
        flag::USER
    } else {
        0
    };
    let remote = if tgid == own { 0 } else { flag::REMOTE };
    maps::emit_fault(
        maps::header(EventKind::Fault, user | remote, tgid, ids as u32, 0),
        address & !(PAGE_SIZE - 1),
        field(regs, config::off_regs_ip()),
    );
    // Another process's memory cannot be read from here.
    let here = mm == field::<Kptr>(kernel::current(), config::off_task_mm());
    save::before_write(tracked, tgid, address, here);
    0
}
