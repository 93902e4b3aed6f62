//! ksnap's eBPF programs. Each is filtered by the map of tracked processes as early as it can be:
//! what the rest of the system pays is the first few instructions.
//!
//! | file | programs |
//! |---|---|
//! | `fault` | write faults |
//! | `files` | which open files a process has, on request |
//! | `lifecycle` | fork, exec, exit |
//! | `syscall` | mapping changes, and writes that no fault announces |
//! | `mm_lock` | get_user_pages as seen by the lock it takes |
//! | `save` | the part of `fault` that copies a page before its first write |
//! | `state` | what no file of /proc tells of a process, on request |
//! | `stop` | how long ptrace stops last |
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod config;
mod fault;
mod files;
mod kernel;
mod lifecycle;
mod maps;
mod mm_lock;
mod save;
mod state;
mod stop;
mod syscall;

/// Read by the loader before anything else.
#[unsafe(no_mangle)]
#[unsafe(link_section = "ksnap_abi")]
static KSNAP_ABI_VERSION: u32 = snap_common::ABI_VERSION;

/// Tracing helpers are for GPL-compatible programs only.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
