//! How long ptrace stops last, as the stopped thread sees it: from leaving the CPU to running again.

use crate::kernel::{self, Kptr};
use crate::maps;
use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use core::arch::asm;
use core::ptr;
use snap_common::EventKind;

/// `__TASK_TRACED` (include/linux/sched.h).
const TASK_TRACED: u32 = 8;

/// Entries in the map of stops. While it is zero, a task that is switched in costs one load.
///
/// Not mangled: a mangled name has a hash of the folder that was built in.
#[unsafe(no_mangle)]
static mut STOPPED: u64 = 0;

/// Arguments: preempt, previous task, next task, state of the previous task.
#[btf_tracepoint(function = "sched_switch")]
pub fn sched_switch(ctx: BtfTracePointContext) -> i32 {
    let prev_state: u32 = ctx.arg(3);
    if prev_state & TASK_TRACED != 0 {
        let prev: Kptr = ctx.arg(1);
        on_stop(prev);
    }
    // SAFETY: an aligned word; a torn or late value is not possible on one word.
    if unsafe { ptr::read_volatile(&raw const STOPPED) } != 0 {
        let next: Kptr = ctx.arg(2);
        on_run(next);
    }
    0
}

/// Adds atomically, wrapping. core offers no atomics on this target, whose oldest version lacks
/// compare-and-swap; this instruction it always had.
#[inline(always)]
fn add(counter: *mut u64, value: u64) {
    // SAFETY: an aligned word in a map.
    unsafe {
        asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) counter, in(reg) value);
    }
}

#[inline(always)]
fn on_stop(task: Kptr) {
    if !maps::tracked(kernel::tgid(task)) {
        return;
    }
    // 1 = BPF_NOEXIST: the count follows the number of entries.
    if maps::STOPS
        .insert(&kernel::pid(task), &maps::now(), 1)
        .is_ok()
    {
        add(&raw mut STOPPED, 1);
    }
}

#[inline(always)]
fn on_run(task: Kptr) {
    let tid = kernel::pid(task);
    let Some(start) = maps::STOPS.get_ptr(&tid) else {
        return;
    };
    // SAFETY: a valid map value; only this thread's own switches write it.
    let start = unsafe { *start };
    if maps::STOPS.remove(&tid).is_ok() {
        add(&raw mut STOPPED, u64::MAX);
    }
    maps::emit(
        maps::header(EventKind::Stopped, 0, kernel::tgid(task), tid, 0),
        [start, 0, 0, 0, 0],
    );
}
