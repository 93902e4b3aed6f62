//! System V shared memory (`shmctl(2)`).

/// Key and length in bytes of a segment of this IPC namespace; `None` where there is none with this id, or none that may
/// be looked at.
pub fn shared_segment(id: i32) -> Option<(u32, u64)> {
    stat(id).map(|stat| (stat.shm_perm.__key as u32, stat.shm_segsz as u64))
}

/// Processes that are attached to the segment; those that are so twice count twice.
pub fn attached_to_segment(id: i32) -> u64 {
    stat(id).map_or(0, |stat| stat.shm_nattch)
}

fn stat(id: i32) -> Option<libc::shmid_ds> {
    // SAFETY: zeroed, the structure is valid; the call fills it.
    unsafe {
        let mut stat: libc::shmid_ds = std::mem::zeroed();
        (libc::shmctl(id, libc::IPC_STAT, &raw mut stat) == 0).then_some(stat)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_is_found_by_its_id_while_it_is_there() {
        // SAFETY: system calls without pointers, but for null ones that say that there is nothing, and the address
        // of the segment, which nobody uses.
        unsafe {
            let id = libc::shmget(libc::IPC_PRIVATE, 5000, libc::IPC_CREAT | 0o600);
            assert!(id >= 0, "{}", std::io::Error::last_os_error());
            assert_eq!(shared_segment(id), Some((0, 5000)));
            assert_eq!(attached_to_segment(id), 0);
            let at = libc::shmat(id, std::ptr::null(), 0);
            assert_eq!(attached_to_segment(id), 1);
            libc::shmdt(at);
            libc::shmctl(id, libc::IPC_RMID, std::ptr::null_mut());
            assert_eq!(shared_segment(id), None);
        }
    }
}
