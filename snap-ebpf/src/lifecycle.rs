//! Processes and threads that come and go.

use crate::kernel::{self, Kptr, field};
use crate::{config, maps};
use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use aya_log_ebpf::debug;
use snap_common::{EventKind, flag};

/// Runs before the child does: its first write is seen. Arguments: parent, child.
#[btf_tracepoint(function = "sched_process_fork")]
pub fn sched_process_fork(ctx: BtfTracePointContext) -> i32 {
    let parent: Kptr = ctx.arg(0);
    let parent_tgid = kernel::tgid(parent);
    if !maps::tracked(parent_tgid) {
        return 0;
    }
    let child: Kptr = ctx.arg(1);
    let (child_tgid, child_pid) = (kernel::tgid(child), kernel::pid(child));
    let parent_pid = kernel::pid(parent);
    if child_tgid == parent_tgid {
        let header = maps::header(EventKind::ThreadStart, 0, parent_tgid, child_pid, 0);
        maps::emit(header, [u64::from(parent_pid), 0, 0, 0, 0]);
        debug!(
            &ctx,
            "process {}: thread {} started by {}", parent_tgid, child_pid, parent_pid
        );
        return 0;
    }
    maps::track(child_tgid);
    let mm = |task| field::<u64>(task, config::off_task_mm());
    let shares = if mm(parent) == mm(child) {
        flag::SHARES_MM
    } else {
        0
    };
    let header = maps::header(EventKind::Fork, shares, parent_tgid, parent_pid, 0);
    maps::emit(header, [u64::from(child_tgid), 0, 0, 0, 0]);
    debug!(&ctx, "process {}: forked {}", parent_tgid, child_tgid);
    0
}

/// Arguments: task, its thread id before the call, binary.
#[btf_tracepoint(function = "sched_process_exec")]
pub fn sched_process_exec(ctx: BtfTracePointContext) -> i32 {
    let task: Kptr = ctx.arg(0);
    let tgid = kernel::tgid(task);
    if !maps::tracked(tgid) {
        return 0;
    }
    let old_pid: u32 = ctx.arg(1);
    let header = maps::header(EventKind::Exec, 0, tgid, kernel::pid(task), 0);
    maps::emit(header, [u64::from(old_pid), 0, 0, 0, 0]);
    debug!(
        &ctx,
        "process {}: executed a program in thread {}", tgid, old_pid
    );
    0
}

/// Runs for each thread, after `signal->live` was lowered. Argument: task.
#[btf_tracepoint(function = "sched_process_exit")]
pub fn sched_process_exit(ctx: BtfTracePointContext) -> i32 {
    let task: Kptr = ctx.arg(0);
    let tgid = kernel::tgid(task);
    if !maps::tracked(tgid) {
        return 0;
    }
    let tid = kernel::pid(task);
    let signal: Kptr = field(task, config::off_task_signal());
    let last = field::<i32>(signal, config::off_signal_live()) == 0;
    let flags = if last { flag::LAST } else { 0 };
    maps::emit(maps::header(EventKind::Exit, flags, tgid, tid, 0), [0; 5]);
    if last {
        // The id may be used again by a stranger.
        maps::untrack(tgid);
        debug!(&ctx, "process {}: ended", tgid);
    } else {
        debug!(&ctx, "process {}: thread {} ended", tgid, tid);
    }
    0
}
