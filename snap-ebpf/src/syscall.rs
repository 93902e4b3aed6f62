//! System calls that change mappings, or write user memory without a fault that the CPU takes.
//!
//! At the exit of a call `pt_regs` still holds its arguments, so one program sees both ends.

use crate::kernel::{self, Kptr, field};
use crate::{config, maps, save};
use aya_ebpf::helpers::{bpf_probe_read_kernel, bpf_probe_read_user};
use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use snap_common::{Effect, EventKind, Loss, SyscallClass, flag};

/// `PTRACE_POKETEXT` and `PTRACE_POKEDATA` (include/uapi/linux/ptrace.h).
const PTRACE_POKES: [u64; 2] = [4, 5];
/// `TS_COMPAT` (arch/x86/include/asm/thread_info.h).
const TS_COMPAT: u32 = 2;
/// Buffers of a vectored read that are reported one by one.
const MAX_BUFFERS: u64 = 16;

/// `MAP_FIXED` (include/uapi/asm-generic/mman-common.h).
const MAP_FIXED: u64 = 0x10;
/// `MREMAP_FIXED` (include/uapi/linux/mman.h).
const MREMAP_FIXED: u64 = 2;

const RANGE: u8 = Effect::Range as u8;
const MMAP: u8 = Effect::Mmap as u8;
const MADVISE: u8 = Effect::Madvise as u8;
const MREMAP: u8 = Effect::Mremap as u8;
const BRK: u8 = Effect::Brk as u8;
const ALL: u8 = Effect::All as u8;
const EXEC: u8 = Effect::Exec as u8;

const MAPPING: u8 = SyscallClass::Mapping as u8;
const HAZARD: u8 = SyscallClass::Hazard as u8;
const DIRECT_READ: u8 = SyscallClass::DirectRead as u8;
const DIRECT_VECTOR: u8 = SyscallClass::DirectVector as u8;
const REMOTE_WRITE: u8 = SyscallClass::RemoteWrite as u8;
const PTRACE: u8 = SyscallClass::Ptrace as u8;

/// What the vectored calls take (`struct iovec`, include/uapi/linux/uio.h).
#[repr(C)]
#[derive(Clone, Copy)]
struct IoVec {
    base: u64,
    len: u64,
}

/// Arguments: registers, return value.
#[btf_tracepoint(function = "sys_exit")]
pub fn sys_exit(ctx: BtfTracePointContext) -> i32 {
    let regs: Kptr = ctx.arg(0);
    let task = kernel::current();
    let nr: u64 = field(regs, config::off_regs_nr());
    let class = config::syscall_class(nr);
    if config::has_compat() != 0 && field::<u32>(task, config::off_task_status()) & TS_COMPAT != 0 {
        on_compat(task, nr);
        return 0;
    }
    if class == SyscallClass::Ignore as u8 || class == SyscallClass::NoPin as u8 {
        return 0;
    }
    let call = Call {
        task,
        nr: nr as u32,
        args: [
            field(regs, config::off_regs_arg0()),
            field(regs, config::off_regs_arg1()),
            field(regs, config::off_regs_arg2()),
            field(regs, config::off_regs_arg3()),
            ctx.arg(1),
        ],
    };
    if class == REMOTE_WRITE || class == PTRACE {
        on_remote(&call, class);
        return 0;
    }
    let tgid = affected(task);
    if !maps::tracked(tgid) {
        return 0;
    }
    match class {
        MAPPING => call.emit(EventKind::Mapping, 0, tgid, call.args),
        DIRECT_READ if opened_direct(task, call.args[0]) => {
            call.emit(EventKind::Hazard, 0, tgid, call.args);
        }
        DIRECT_VECTOR if opened_direct(task, call.args[0]) => on_vector(&call, tgid),
        HAZARD => call.emit(EventKind::Hazard, 0, tgid, call.args),
        _ => {}
    }
    0
}

/// Arguments: registers, number.
#[btf_tracepoint(function = "sys_enter")]
pub fn sys_enter(ctx: BtfTracePointContext) -> i32 {
    let effect = config::syscall_effect(ctx.arg(1));
    if effect == Effect::None as u8 {
        return 0;
    }
    let task = kernel::current();
    let tgid = match effect == Effect::Exec as u8 {
        true => kernel::tgid(task),
        false => affected(task),
    };
    let Some(window) = save::window(tgid) else {
        return 0;
    };
    if config::has_compat() != 0 && field::<u32>(task, config::off_task_status()) & TS_COMPAT != 0 {
        save::spoil(Loss::Compat);
        return 0;
    }
    let regs: Kptr = ctx.arg(0);
    let start: u64 = field(regs, config::off_regs_arg0());
    let len: u64 = field(regs, config::off_regs_arg1());
    let third: u64 = field(regs, config::off_regs_arg2());
    let flags: u64 = field(regs, config::off_regs_arg3());
    let end = start.saturating_add(len);
    match effect {
        RANGE => save::before_change(&window, tgid, start, end),
        MMAP if flags & MAP_FIXED != 0 => save::before_change(&window, tgid, start, end),
        MADVISE if third >= 64 || config::harmless_advice() >> third & 1 == 0 => {
            save::before_change(&window, tgid, start, end);
        }
        MREMAP if flags & MREMAP_FIXED != 0 => save::spoil(Loss::Call),
        MREMAP => save::before_change(&window, tgid, start, end),
        // Zero asks where it ends.
        BRK if start != 0 => save::before_change(&window, tgid, start, window.heap_end),
        ALL | EXEC => save::spoil(Loss::Call),
        _ => {}
    }
    0
}

/// A call that returned.
struct Call {
    task: Kptr,
    nr: u32,
    /// Four arguments and the result.
    args: [u64; 5],
}

impl Call {
    #[inline(always)]
    fn emit(&self, kind: EventKind, flags: u16, tgid: u32, args: [u64; 5]) {
        maps::emit(
            maps::header(kind, flags, tgid, kernel::pid(self.task), self.nr),
            args,
        );
    }
}

/// The process whose memory the task works on: a vfork child changes its parent's.
#[inline(always)]
fn affected(task: Kptr) -> u32 {
    match kernel::mm_tgid(field::<Kptr>(task, config::off_task_mm())) {
        0 => kernel::tgid(task),
        owner => owner,
    }
}

/// The 32-bit ABI numbers and passes everything differently.
#[inline(always)]
fn on_compat(task: Kptr, nr: u64) {
    let tgid = affected(task);
    if maps::tracked(tgid) {
        let pid = kernel::pid(task);
        maps::emit(
            maps::header(EventKind::Hazard, flag::COMPAT, tgid, pid, nr as u32),
            [0; 5],
        );
    }
}

/// The target is named in the caller's pid namespace, and may be a thread: whoever it is, every
/// tracked process takes it as its own.
#[inline(always)]
fn on_remote(call: &Call, class: u8) {
    let writes = class == REMOTE_WRITE || PTRACE_POKES.contains(&call.args[0]);
    let own = kernel::tgid(call.task);
    if writes && (call.args[4] as i64) >= 0 && own != config::own_tgid() {
        call.emit(EventKind::Hazard, flag::ANY_TARGET, own, call.args);
    }
}

/// One event for each buffer, in place of the vector's address and length; an address of zero when
/// the buffers cannot be told.
#[inline(always)]
fn on_vector(call: &Call, tgid: u32) {
    let [fd, vector, count, _, result] = call.args;
    if count > MAX_BUFFERS {
        call.emit(EventKind::Hazard, 0, tgid, [fd, 0, 0, 0, result]);
        return;
    }
    for index in 0..MAX_BUFFERS {
        if index >= count {
            return;
        }
        let entry = (vector + index * size_of::<IoVec>() as u64) as *const IoVec;
        // SAFETY: the helper checks the address.
        match unsafe { bpf_probe_read_user(entry) } {
            Ok(IoVec { base, len }) => {
                call.emit(EventKind::Hazard, 0, tgid, [fd, base, len, 0, result]);
            }
            Err(_) => call.emit(EventKind::Hazard, 0, tgid, [fd, 0, 0, 0, result]),
        }
    }
}

/// True when descriptor `fd` of the task has `O_DIRECT` set.
#[inline(always)]
fn opened_direct(task: Kptr, fd: u64) -> bool {
    let fd = fd as u32;
    let files: Kptr = field(task, config::off_task_files());
    let table: Kptr = field(files, config::off_files_fdt());
    if fd >= field::<u32>(table, config::off_fdt_max()) {
        return false;
    }
    let array: u64 = field(table, config::off_fdt_fd());
    let slot = (array + u64::from(fd) * 8) as *const u64;
    // SAFETY: the helper checks the address.
    let Ok(file) = (unsafe { bpf_probe_read_kernel(slot) }) else {
        return false;
    };
    let flags = (file + u64::from(config::off_file_flags())) as *const u32;
    // SAFETY: the helper checks the address.
    unsafe { bpf_probe_read_kernel(flags) }.is_ok_and(|flags| flags & config::o_direct() != 0)
}
