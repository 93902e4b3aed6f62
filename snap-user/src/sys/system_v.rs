//! System V shared memory (`shmctl(2)`).

/// Key and length in bytes of a segment of this IPC namespace; `None` where there is none with this id, or none that may
/// be looked at.
pub fn shared_segment(id: i32) -> Option<(u32, u64)> {
    // SAFETY: zeroed, the structure is valid; the call fills it.
    unsafe {
        let mut stat: libc::shmid_ds = std::mem::zeroed();
        if libc::shmctl(id, libc::IPC_STAT, &raw mut stat) != 0 {
            return None;
        }
        Some((stat.shm_perm.__key as u32, stat.shm_segsz as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_is_found_by_its_id_while_it_is_there() {
        // SAFETY: system calls without pointers, but for a null one that IPC_RMID does not look at.
        unsafe {
            let id = libc::shmget(libc::IPC_PRIVATE, 5000, libc::IPC_CREAT | 0o600);
            assert!(id >= 0, "{}", std::io::Error::last_os_error());
            assert_eq!(shared_segment(id), Some((0, 5000)));
            libc::shmctl(id, libc::IPC_RMID, std::ptr::null_mut());
            assert_eq!(shared_segment(id), None);
        }
    }
}
