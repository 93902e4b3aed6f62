//! Which system calls the programs report, and as what.

use snap_common::{Effect, SYSCALL_TABLE, SyscallClass};

/// `map_shadow_stack`, newer than some C libraries; the same number on every architecture.
pub const MAP_SHADOW_STACK: libc::c_long = 453;

const MAPPING: [libc::c_long; 12] = [
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_brk,
    libc::SYS_mprotect,
    libc::SYS_pkey_mprotect,
    libc::SYS_madvise,
    libc::SYS_process_madvise,
    libc::SYS_shmat,
    libc::SYS_shmdt,
    libc::SYS_remap_file_pages,
    MAP_SHADOW_STACK,
];

/// `mseal`, newer than some C libraries; the same number on every architecture.
const MSEAL: libc::c_long = 462;

/// Calls that change what is known of mappings besides where they are.
pub const DESCRIBING: [libc::c_long; 7] = [
    libc::SYS_mlock,
    libc::SYS_mlock2,
    libc::SYS_munlock,
    libc::SYS_mlockall,
    libc::SYS_munlockall,
    libc::SYS_mbind,
    MSEAL,
];

/// Calls after which the kernel may write user memory at any time.
const HAZARD: [libc::c_long; 6] = [
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_setup,
    libc::SYS_io_submit,
    libc::SYS_vmsplice,
];

/// `futex_wake` and its siblings, newer than some C libraries; the same numbers on every architecture.
pub const FUTEX_WAITV: libc::c_long = 449;
/// See [`FUTEX_WAITV`].
pub const FUTEX_WAKE: libc::c_long = 454;
/// See [`FUTEX_WAITV`].
pub const FUTEX_WAIT: libc::c_long = 455;
/// See [`FUTEX_WAITV`].
pub const FUTEX_REQUEUE: libc::c_long = 456;

/// Calls on futexes. One that other processes may share is found by its page, which get_user_pages makes
/// writable first; so do pthread_join(3) and whoever else waits for the end of a thread. A wait with a timeout
/// goes on after a stop by restart_syscall(2), with its arguments in their registers.
const FUTEX: [libc::c_long; 6] = [
    libc::SYS_futex,
    libc::SYS_restart_syscall,
    FUTEX_WAITV,
    FUTEX_WAKE,
    FUTEX_WAIT,
    FUTEX_REQUEUE,
];

/// Calls that fill memory from a descriptor, which get_user_pages does when that is open with O_DIRECT.
const READ: [libc::c_long; 2] = [libc::SYS_read, libc::SYS_pread64];

/// The same into a vector of buffers.
const READ_VECTOR: [libc::c_long; 3] = [libc::SYS_readv, libc::SYS_preadv, libc::SYS_preadv2];

/// Calls that lock the address space on their way, and whose effects have events of their own.
const NO_PIN: [libc::c_long; 6] = [
    libc::SYS_clone,
    libc::SYS_clone3,
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// The table for the object.
pub fn table() -> [u8; SYSCALL_TABLE] {
    let mut table = [SyscallClass::Ignore as u8; SYSCALL_TABLE];
    let mut set = |calls: &[libc::c_long], class: SyscallClass| {
        for call in calls {
            table[*call as usize] = class as u8;
        }
    };
    set(&MAPPING, SyscallClass::Mapping);
    // Not as mappings: some of them write memory through get_user_pages.
    set(&DESCRIBING, SyscallClass::Hazard);
    set(&HAZARD, SyscallClass::Hazard);
    set(&FUTEX, SyscallClass::Hazard);
    set(&READ, SyscallClass::DirectRead);
    set(&READ_VECTOR, SyscallClass::DirectVector);
    set(&NO_PIN, SyscallClass::NoPin);
    set(&[libc::SYS_process_vm_writev], SyscallClass::RemoteWrite);
    set(&[libc::SYS_ptrace], SyscallClass::Ptrace);
    table
}

/// The table of effects for the object.
pub fn effects() -> [u8; SYSCALL_TABLE] {
    let mut table = [Effect::None as u8; SYSCALL_TABLE];
    let mut set = |call: libc::c_long, effect: Effect| table[call as usize] = effect as u8;
    for call in MAPPING {
        set(call, Effect::All);
    }
    // Another protection changes neither content nor what a write to a protected page does.
    set(libc::SYS_mprotect, Effect::None);
    set(libc::SYS_pkey_mprotect, Effect::None);
    set(libc::SYS_munmap, Effect::Range);
    set(libc::SYS_mmap, Effect::Mmap);
    set(libc::SYS_mremap, Effect::Mremap);
    set(libc::SYS_madvise, Effect::Madvise);
    set(libc::SYS_brk, Effect::Brk);
    set(libc::SYS_execve, Effect::Exec);
    set(libc::SYS_execveat, Effect::Exec);
    table
}

/// Advice that leaves the content of pages alone, a bit each (madvise(2)).
pub fn harmless_advice() -> u64 {
    const HARMLESS: [libc::c_int; 16] = [
        libc::MADV_NORMAL,
        libc::MADV_RANDOM,
        libc::MADV_SEQUENTIAL,
        libc::MADV_WILLNEED,
        libc::MADV_DONTFORK,
        libc::MADV_DOFORK,
        libc::MADV_MERGEABLE,
        libc::MADV_UNMERGEABLE,
        libc::MADV_HUGEPAGE,
        libc::MADV_NOHUGEPAGE,
        libc::MADV_DONTDUMP,
        libc::MADV_DODUMP,
        libc::MADV_WIPEONFORK,
        libc::MADV_KEEPONFORK,
        libc::MADV_COLD,
        libc::MADV_PAGEOUT,
    ];
    HARMLESS.iter().fold(0, |bits, advice| bits | 1 << advice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_call_is_in_one_class_and_the_rest_is_ignored() {
        let table = table();
        assert_eq!(table[libc::SYS_mmap as usize], SyscallClass::Mapping as u8);
        assert_eq!(
            table[libc::SYS_read as usize],
            SyscallClass::DirectRead as u8
        );
        assert_eq!(table[libc::SYS_write as usize], SyscallClass::Ignore as u8);
        assert_eq!(table[libc::SYS_futex as usize], SyscallClass::Hazard as u8);
        let reported = table.iter().filter(|class| **class != 0).count();
        assert_eq!(
            reported,
            NO_PIN.len()
                + MAPPING.len()
                + DESCRIBING.len()
                + HAZARD.len()
                + FUTEX.len()
                + READ.len()
                + READ_VECTOR.len()
                + 2
        );
    }
}
