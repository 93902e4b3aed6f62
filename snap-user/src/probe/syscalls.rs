//! Which system calls the programs report, and as what.

use snap_common::{SYSCALL_TABLE, SyscallClass};

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
    set(&READ, SyscallClass::DirectRead);
    set(&READ_VECTOR, SyscallClass::DirectVector);
    set(&NO_PIN, SyscallClass::NoPin);
    set(&[libc::SYS_process_vm_writev], SyscallClass::RemoteWrite);
    set(&[libc::SYS_ptrace], SyscallClass::Ptrace);
    table
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
        let reported = table.iter().filter(|class| **class != 0).count();
        assert_eq!(
            reported,
            NO_PIN.len() + MAPPING.len() + HAZARD.len() + READ.len() + READ_VECTOR.len() + 2
        );
    }
}
