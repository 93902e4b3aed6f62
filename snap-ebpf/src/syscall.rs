//! System calls that change mappings, or write user memory without a fault that the CPU takes.
//!
//! At the exit of a call `pt_regs` still holds its arguments, so one program sees both ends.

use crate::kernel::{self, Kptr, field};
use crate::{config, maps};
use aya_ebpf::helpers::bpf_probe_read_kernel;
use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use snap_common::{EventKind, SyscallClass, flag};

/// `PTRACE_POKETEXT` and `PTRACE_POKEDATA` (include/uapi/linux/ptrace.h).
const PTRACE_POKES: [u64; 2] = [4, 5];
/// `TS_COMPAT` (arch/x86/include/asm/thread_info.h).
const TS_COMPAT: u32 = 2;

const MAPPING: u8 = SyscallClass::Mapping as u8;
const DIRECT_READ: u8 = SyscallClass::DirectRead as u8;
const REMOTE_WRITE: u8 = SyscallClass::RemoteWrite as u8;
const PTRACE: u8 = SyscallClass::Ptrace as u8;

/// Arguments: registers, return value.
#[btf_tracepoint(function = "sys_exit")]
pub fn sys_exit(ctx: BtfTracePointContext) -> i32 {
    let regs: Kptr = ctx.arg(0);
    let nr: u64 = field(regs, config::off_regs_nr());
    let class = config::syscall_class(nr);
    if class == SyscallClass::Ignore as u8 {
        return 0;
    }
    let task = kernel::current();
    let own = kernel::tgid(task);
    let args = || {
        [
            field(regs, config::off_regs_arg0()),
            field(regs, config::off_regs_arg1()),
            field(regs, config::off_regs_arg2()),
            field(regs, config::off_regs_arg3()),
            ctx.arg::<u64>(1),
        ]
    };
    let pid = || kernel::pid(task);

    if class == REMOTE_WRITE || class == PTRACE {
        let result: i64 = ctx.arg(1);
        let request: u64 = field(regs, config::off_regs_arg0());
        let writes = class == REMOTE_WRITE || PTRACE_POKES.contains(&request);
        if own != config::own_tgid() && writes && result >= 0 {
            // The target is named in the caller's pid namespace, and may be a thread: whoever it
            // is, every tracked process takes it as its own.
            let header = maps::header(EventKind::Hazard, flag::ANY_TARGET, own, pid(), nr as u32);
            maps::emit(header, args());
        }
        return 0;
    }

    // A vfork child changes its parent's mappings.
    let owner = kernel::mm_tgid(field::<Kptr>(task, config::off_task_mm()));
    let tgid = if owner == 0 { own } else { owner };
    if !maps::tracked(tgid) {
        return 0;
    }
    let compat = if config::has_compat() != 0
        && field::<u32>(task, config::off_task_status()) & TS_COMPAT != 0
    {
        flag::COMPAT
    } else {
        0
    };
    if class == DIRECT_READ && !opened_direct(task, field(regs, config::off_regs_arg0())) {
        return 0;
    }
    let kind = if class == MAPPING { EventKind::Mapping } else { EventKind::Hazard };
    maps::emit(maps::header(kind, compat, tgid, pid(), nr as u32), args());
    0
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
