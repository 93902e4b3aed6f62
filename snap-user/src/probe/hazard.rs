//! Writes into user memory that no fault event announces.

use super::syscalls::{FUTEX_REQUEUE, FUTEX_WAIT, FUTEX_WAITV, FUTEX_WAKE};
use crate::model::PageRange;
use snap_common::{SystemEvent, flag};

/// How memory may have been written behind the fault programs' back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HazardKind {
    /// A read from a descriptor opened with O_DIRECT. The device may write a page after its
    /// write-protection was renewed, so the range given counts as dirty whatever a scan says.
    DirectRead,
    /// process_vm_writev by some process; its target is not known.
    RemoteWrite,
    /// A ptrace poke by some process; its target is not known.
    PtracePoke,
    /// io_uring in use. Lasting: the kernel writes and maps from then on without further calls.
    IoUring,
    /// Asynchronous I/O in use. Lasting until its completions were collected.
    Aio,
    /// Pages given to a pipe: what the pipe holds is not consistent with memory put back later.
    Vmsplice,
    /// A call on a futex that other processes may share, which is found by its page. Comes behind the call, or
    /// when a stop interrupts it: the page given has been made writable, and no more happens to it by the call.
    SharedFutex,
    /// Something took the lock that get_user_pages takes when it meets pages that are not writable
    /// yet. Comes before the write.
    PageLock {
        /// The system call that the thread was in; `None` when another process did it.
        syscall: Option<u32>,
    },
    /// A 32-bit system call by a 64-bit program, which may have done anything, mappings included.
    Compat,
}

impl HazardKind {
    /// True when writes may go on unseen long after the event: every later stop needs a full scan.
    pub fn is_lasting(self) -> bool {
        matches!(self, Self::IoUring | Self::Aio)
    }
}

/// Kind and range of a hazard event; `None` when the call failed and did nothing.
pub fn decode(event: &SystemEvent) -> Option<(HazardKind, Option<PageRange>)> {
    if event.header.flags & flag::COMPAT != 0 {
        return Some((HazardKind::Compat, None));
    }
    let [_, buffer, .., result] = event.args;
    let succeeded = (result as i64) >= 0;
    let nr = libc::c_long::from(event.header.nr);
    let kind = match nr {
        libc::SYS_futex
        | libc::SYS_restart_syscall
        | FUTEX_WAITV
        | FUTEX_WAKE
        | FUTEX_WAIT
        | FUTEX_REQUEUE => return futex(nr, event.args),
        libc::SYS_read | libc::SYS_pread64 => {
            // An error may come after part of the transfer; then the length asked for is the bound.
            let length = if succeeded { result } else { event.args[2] };
            let range = PageRange::covering(buffer, length);
            return (!range.is_empty()).then_some((HazardKind::DirectRead, Some(range)));
        }
        // One event for each buffer; no address when they are too many or cannot be read.
        libc::SYS_readv | libc::SYS_preadv | libc::SYS_preadv2 => {
            let range = (buffer != 0).then(|| PageRange::covering(buffer, event.args[2]));
            return Some((HazardKind::DirectRead, range));
        }
        libc::SYS_process_vm_writev => HazardKind::RemoteWrite,
        libc::SYS_ptrace => HazardKind::PtracePoke,
        libc::SYS_io_setup | libc::SYS_io_submit => HazardKind::Aio,
        libc::SYS_vmsplice => HazardKind::Vmsplice,
        _ => HazardKind::IoUring,
    };
    // Of a batch some may have worked; the rest does nothing when it fails.
    (succeeded || kind == HazardKind::IoUring).then_some((kind, None))
}

/// A call on futexes. Whether it worked does not matter: the page is looked up first.
fn futex(nr: libc::c_long, args: [u64; 5]) -> Option<(HazardKind, Option<PageRange>)> {
    /// `FUTEX_PRIVATE_FLAG` and `FUTEX2_PRIVATE` (include/uapi/linux/futex.h).
    const PRIVATE: u64 = libc::FUTEX_PRIVATE_FLAG as u64;
    const WORD: u64 = 4;
    let one = Some(PageRange::covering(args[0], WORD));
    let (flags, range) = match nr {
        FUTEX_WAITV => (0, None),
        FUTEX_REQUEUE => (0, None),
        FUTEX_WAKE | FUTEX_WAIT => (args[3], one),
        // The second address is not among the arguments that the event has.
        _ => match (args[1] & libc::FUTEX_CMD_MASK as u64) as libc::c_int {
            libc::FUTEX_REQUEUE
            | libc::FUTEX_CMP_REQUEUE
            | libc::FUTEX_WAKE_OP
            | libc::FUTEX_WAIT_REQUEUE_PI
            | libc::FUTEX_CMP_REQUEUE_PI
                if nr == libc::SYS_futex =>
            {
                (args[1], None)
            }
            // As far as a call that was restarted is one on a futex, it waits for one alone.
            _ => (args[1], one),
        },
    };
    (flags & PRIVATE == 0).then_some((HazardKind::SharedFutex, range))
}

/// System call of a lock event.
pub fn lock_syscall(nr: u32) -> Option<u32> {
    (nr != u32::MAX).then_some(nr)
}

#[cfg(test)]
mod tests {
    use super::*;
    use snap_common::{EventHeader, EventKind};

    fn event(nr: libc::c_long, args: [u64; 5]) -> SystemEvent {
        let header = EventHeader {
            kind: EventKind::Hazard as u16,
            flags: 0,
            tgid: 1,
            tid: 1,
            nr: nr as u32,
            time_ns: 0,
        };
        SystemEvent { header, args }
    }

    const EAGAIN: u64 = -11_i64 as u64;

    #[test]
    fn a_direct_read_covers_what_it_returned() {
        let (kind, range) =
            decode(&event(libc::SYS_pread64, [3, 0x1000, 0x8000, 0, 0x1001])).unwrap();
        assert_eq!(kind, HazardKind::DirectRead);
        assert_eq!(range, Some(PageRange::new(0x1000, 0x3000)));
    }

    #[test]
    fn a_failed_direct_read_covers_what_it_asked_for_and_an_empty_one_nothing() {
        let (_, range) = decode(&event(libc::SYS_read, [3, 0x1000, 0x2000, 0, EAGAIN])).unwrap();
        assert_eq!(range, Some(PageRange::new(0x1000, 0x3000)));
        assert_eq!(
            decode(&event(libc::SYS_read, [3, 0x1000, 0x2000, 0, 0])),
            None
        );
    }

    #[test]
    fn a_vectored_read_has_the_range_of_its_buffer_or_none_at_all() {
        let one = decode(&event(libc::SYS_preadv, [3, 0x1000, 0x2000, 0, 0x9000])).unwrap();
        assert_eq!(one.1, Some(PageRange::new(0x1000, 0x3000)));
        let unknown = decode(&event(libc::SYS_readv, [3, 0, 0, 0, 0x9000])).unwrap();
        assert_eq!(unknown, (HazardKind::DirectRead, None));
    }

    #[test]
    fn io_uring_and_aio_last_while_a_failed_setup_of_aio_is_nothing() {
        assert!(
            decode(&event(libc::SYS_io_uring_enter, [0; 5]))
                .unwrap()
                .0
                .is_lasting()
        );
        assert!(
            decode(&event(libc::SYS_io_submit, [0, 1, 0, 0, 1]))
                .unwrap()
                .0
                .is_lasting()
        );
        assert_eq!(
            decode(&event(libc::SYS_io_setup, [0, 0, 0, 0, EAGAIN])),
            None
        );
        assert!(!HazardKind::Vmsplice.is_lasting());
    }

    #[test]
    fn a_shared_futex_has_its_page_whatever_the_call_said_and_a_private_one_is_nothing() {
        const AT: u64 = 0x7000_1990;
        let page = Some((
            HazardKind::SharedFutex,
            Some(PageRange::new(0x7000_1000, 0x7000_2000)),
        ));
        let call = |nr, op: libc::c_int, rest| decode(&event(nr, [AT, op as u64, 0, rest, EAGAIN]));
        // What pthread_join(3) does.
        let join = libc::FUTEX_WAIT_BITSET | libc::FUTEX_CLOCK_REALTIME;
        assert_eq!(call(libc::SYS_futex, join, 0), page);
        assert_eq!(call(libc::SYS_restart_syscall, join, 0), page);
        assert_eq!(call(FUTEX_WAIT, 0, 2), page);
        let private = libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG;
        assert_eq!(call(libc::SYS_futex, private, 0), None);
        assert_eq!(call(libc::SYS_restart_syscall, private, 0), None);
        assert_eq!(call(FUTEX_WAKE, 0, 128 | 2), None);
        let unknown = Some((HazardKind::SharedFutex, None));
        assert_eq!(call(libc::SYS_futex, libc::FUTEX_CMP_REQUEUE, 0), unknown);
        assert_eq!(call(FUTEX_WAITV, 1, 0), unknown);
    }

    #[test]
    fn a_32_bit_call_is_reported_as_such_whatever_its_number() {
        let mut compat = event(libc::SYS_read, [0; 5]);
        compat.header.flags = flag::COMPAT;
        assert_eq!(decode(&compat), Some((HazardKind::Compat, None)));
    }
}
