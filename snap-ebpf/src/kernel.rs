//! Reading kernel structs through pointers that the verifier knows the type of.
//!
//! A load through such a pointer is a plain instruction with an exception table entry: a null or
//! stale pointer reads as zero instead of faulting, and costs no helper call.

use crate::config;
use aya_ebpf::helpers::generated::bpf_get_current_task_btf;
use core::ffi::c_void;
use core::ptr;

/// A pointer into kernel memory.
pub type Kptr = *const c_void;

/// Loads a field of type `T` at `offset` bytes into the struct at `base`.
#[inline(always)]
pub fn field<T: Copy>(base: Kptr, offset: u32) -> T {
    // SAFETY: the verifier admits only loads that lie inside the struct `base` points to, and the
    // kernel handles a fault on it.
    unsafe { ptr::read_volatile(base.byte_add(offset as usize).cast::<T>()) }
}

/// The running task.
#[inline(always)]
pub fn current() -> Kptr {
    // SAFETY: no preconditions.
    unsafe { bpf_get_current_task_btf() as Kptr }
}

/// Thread id of a task.
#[inline(always)]
pub fn pid(task: Kptr) -> u32 {
    field(task, config::off_task_pid())
}

/// Process id of a task.
#[inline(always)]
pub fn tgid(task: Kptr) -> u32 {
    field(task, config::off_task_tgid())
}

/// The process that an address space belongs to; 0 when the kernel does not say.
#[inline(always)]
pub fn mm_tgid(mm: Kptr) -> u32 {
    if config::has_mm_owner() == 0 {
        return 0;
    }
    tgid(field::<Kptr>(mm, config::off_mm_owner()))
}
