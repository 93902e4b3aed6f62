//! Constants set by the loader before the object goes into the kernel.
//!
//! They live in .rodata, which the loader freezes: the verifier then knows their values, prunes the
//! branches they rule out, and checks each field access against the running kernel's types.

use core::ptr;
use snap_common::SYSCALL_TABLE;

macro_rules! constants {
    ($($(#[$doc:meta])* $name:ident: $kind:ty = $value:expr, $read:ident;)*) => {
        $(
            $(#[$doc])*
            #[unsafe(no_mangle)]
            static $name: $kind = $value;

            $(#[$doc])*
            #[inline(always)]
            pub fn $read() -> $kind {
                // SAFETY: a static; volatile, because the loader changes it after compilation.
                unsafe { ptr::read_volatile(&raw const $name) }
            }
        )*
    };
}

constants! {
    /// Process id of ksnap itself, whose own writes are not reported.
    OWN_TGID: u32 = 0, own_tgid;
    /// `O_DIRECT` of this architecture.
    O_DIRECT: u32 = 0, o_direct;
    /// Advice of madvise(2) that leaves the content of pages alone, a bit each.
    HARMLESS_ADVICE: u64 = 0, harmless_advice;
    /// Whether `mm_struct.owner` exists (`CONFIG_MEMCG`).
    HAS_MM_OWNER: u32 = 0, has_mm_owner;
    /// Whether `thread_info.status` tells a 32-bit system call (x86).
    HAS_COMPAT: u32 = 0, has_compat;
    /// Whether mmap_lock_start_locking passes a memcg path before its last argument.
    MM_LOCK_HAS_PATH: u32 = 0, mm_lock_has_path;

    /// `task_struct.tgid`
    OFF_TASK_TGID: u32 = 0, off_task_tgid;
    /// `task_struct.pid`
    OFF_TASK_PID: u32 = 0, off_task_pid;
    /// `task_struct.mm`
    OFF_TASK_MM: u32 = 0, off_task_mm;
    /// `task_struct.files`
    OFF_TASK_FILES: u32 = 0, off_task_files;
    /// `task_struct.signal`
    OFF_TASK_SIGNAL: u32 = 0, off_task_signal;
    /// `task_struct.thread_info.status`
    OFF_TASK_STATUS: u32 = 0, off_task_status;
    /// `signal_struct.live`
    OFF_SIGNAL_LIVE: u32 = 0, off_signal_live;
    /// `mm_struct.owner`
    OFF_MM_OWNER: u32 = 0, off_mm_owner;
    /// `vm_area_struct.vm_mm`
    OFF_VMA_MM: u32 = 0, off_vma_mm;
    /// `files_struct.fdt`
    OFF_FILES_FDT: u32 = 0, off_files_fdt;
    /// `fdtable.max_fds`
    OFF_FDT_MAX: u32 = 0, off_fdt_max;
    /// `fdtable.fd`
    OFF_FDT_FD: u32 = 0, off_fdt_fd;
    /// `file.f_flags`
    OFF_FILE_FLAGS: u32 = 0, off_file_flags;
    /// `file.f_inode`
    OFF_FILE_INODE: u32 = 0, off_file_inode;
    /// `file.f_op`
    OFF_FILE_OPERATIONS: u32 = 0, off_file_operations;
    /// `inode.i_ino`
    OFF_INODE_NUMBER: u32 = 0, off_inode_number;
    /// Instruction pointer in `pt_regs`
    OFF_REGS_IP: u32 = 0, off_regs_ip;
    /// System call number in `pt_regs`
    OFF_REGS_NR: u32 = 0, off_regs_nr;
    /// First four system call arguments in `pt_regs`
    OFF_REGS_ARG0: u32 = 0, off_regs_arg0;
    /// See [`off_regs_arg0`]
    OFF_REGS_ARG1: u32 = 0, off_regs_arg1;
    /// See [`off_regs_arg0`]
    OFF_REGS_ARG2: u32 = 0, off_regs_arg2;
    /// See [`off_regs_arg0`]
    OFF_REGS_ARG3: u32 = 0, off_regs_arg3;
}

/// The class of each system call.
#[unsafe(no_mangle)]
static SYSCALL_CLASS: [u8; SYSCALL_TABLE] = [0; SYSCALL_TABLE];

/// The class of system call `nr`; `Ignore` beyond the table.
#[inline(always)]
pub fn syscall_class(nr: u64) -> u8 {
    if nr >= SYSCALL_TABLE as u64 {
        return 0;
    }
    // SAFETY: in bounds by the test above.
    unsafe { ptr::read_volatile((&raw const SYSCALL_CLASS).cast::<u8>().add(nr as usize)) }
}

/// The effect of each system call.
#[unsafe(no_mangle)]
static SYSCALL_EFFECT: [u8; SYSCALL_TABLE] = [0; SYSCALL_TABLE];

/// The effect of system call `nr`; `None` beyond the table.
#[inline(always)]
pub fn syscall_effect(nr: u64) -> u8 {
    if nr >= SYSCALL_TABLE as u64 {
        return 0;
    }
    // SAFETY: in bounds by the test above.
    unsafe { ptr::read_volatile((&raw const SYSCALL_EFFECT).cast::<u8>().add(nr as usize)) }
}
