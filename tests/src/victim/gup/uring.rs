//! io_uring reads, into ordinary memory or into registered (pinned) buffers. One request at a time.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Result, bail, ensure};

use super::super::fault::os_error;
use super::super::mem::Mapping;
use super::super::page::PAGE;
use super::{Source, Way};

// include/uapi/linux/io_uring.h
const OFF_SQ_RING: i64 = 0;
const OFF_SQES: i64 = 0x1000_0000;
const FEAT_SINGLE_MMAP: u32 = 1;
const ENTER_GETEVENTS: u32 = 1;
const REGISTER_BUFFERS: u32 = 0;
const OP_READ_FIXED: u8 = 4;
const OP_READ: u8 = 22;
const ENTRIES: u32 = 4;

#[repr(C)]
#[derive(Default)]
struct Params {
    sq_entries: u32,
    cq_entries: u32,
    flags: u32,
    sq_thread_cpu: u32,
    sq_thread_idle: u32,
    features: u32,
    wq_fd: u32,
    reserved: [u32; 3],
    sq: Offsets,
    cq: Offsets,
}

/// Where in the ring's mapping things are. The last three differ between the two queues: flags, dropped, array
/// for submissions; overflow, entries, flags for completions.
#[repr(C)]
#[derive(Default)]
struct Offsets {
    head: u32,
    tail: u32,
    ring_mask: u32,
    ring_entries: u32,
    rest: [u32; 4],
    user_addr: u64,
}

#[repr(C)]
#[derive(Default)]
struct Sqe {
    opcode: u8,
    flags: u8,
    priority: u16,
    fd: i32,
    offset: u64,
    address: u64,
    len: u32,
    rw_flags: u32,
    user_data: u64,
    buffer: u16,
    personality: u16,
    splice_fd: i32,
    pad: [u64; 2],
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Cqe {
    user_data: u64,
    result: i32,
    flags: u32,
}

const _: () =
    assert!(size_of::<Params>() == 120 && size_of::<Sqe>() == 64 && size_of::<Cqe>() == 16);

/// A ring, and whether it reads into a registered buffer.
pub struct Uring {
    ring: OwnedFd,
    queues: Mapping,
    sqes: Mapping,
    params: Params,
    source: Source,
    fixed: bool,
    number: u64,
}

impl Uring {
    /// Makes a ring; with `register`, that memory is pinned and read into.
    pub fn open(source: &Source, register: Option<&Mapping>) -> Result<Self> {
        let mut params = Params::default();
        // SAFETY: params is valid for reading and writing.
        let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, ENTRIES, &raw mut params) };
        if fd < 0 {
            bail!(os_error("io_uring_setup"));
        }
        // SAFETY: just made, and owned by nobody else.
        let ring = unsafe { OwnedFd::from_raw_fd(fd as i32) };
        ensure!(
            params.features & FEAT_SINGLE_MMAP != 0,
            "this kernel's rings have two mappings"
        );
        let cqes_end = params.cq.rest[1] as usize + params.cq_entries as usize * size_of::<Cqe>();
        let array_end = params.sq.rest[2] as usize + params.sq_entries as usize * 4;
        let queues = map(&ring, cqes_end.max(array_end), OFF_SQ_RING)?;
        let sqes = map(
            &ring,
            params.sq_entries as usize * size_of::<Sqe>(),
            OFF_SQES,
        )?;
        if let Some(memory) = register {
            let piece = libc::iovec {
                iov_base: memory.at().cast(),
                iov_len: memory.len(),
            };
            // SAFETY: the memory outlives the ring: both end with the process.
            let result = unsafe {
                libc::syscall(
                    libc::SYS_io_uring_register,
                    ring.as_raw_fd(),
                    REGISTER_BUFFERS,
                    &raw const piece,
                    1,
                )
            };
            if result != 0 {
                bail!(os_error("io_uring_register of a buffer"));
            }
        }
        let (source, fixed) = (source.clone(), register.is_some());
        Ok(Self {
            ring,
            queues,
            sqes,
            params,
            source,
            fixed,
            number: 0,
        })
    }

    fn word(&self, offset: u32) -> &AtomicU32 {
        // SAFETY: the kernel gave the offset; it is aligned, inside the mapping, and shared with the kernel.
        unsafe { AtomicU32::from_ptr(self.queues.at().add(offset as usize).cast()) }
    }

    fn submit(&self, sqe: Sqe) -> Result<(), String> {
        let tail = self.word(self.params.sq.tail);
        let at = tail.load(Ordering::Relaxed);
        let slot = at & self.word(self.params.sq.ring_mask).load(Ordering::Relaxed);
        // SAFETY: slot < sq_entries; nobody reads the entry before the tail moves.
        unsafe { self.sqes.at().cast::<Sqe>().add(slot as usize).write(sqe) };
        self.word(self.params.sq.rest[2] + 4 * slot)
            .store(slot, Ordering::Relaxed);
        tail.store(at.wrapping_add(1), Ordering::Release);
        // The request is taken even if the wait is interrupted: the wait is its own call.
        match self.enter(1, 0) {
            1 => Ok(()),
            _ => Err(os_error("io_uring_enter to submit")),
        }
    }

    fn enter(&self, submit: u32, wait: u32) -> i64 {
        let none = std::ptr::null::<libc::sigset_t>();
        let flags = if wait > 0 { ENTER_GETEVENTS } else { 0 };
        // SAFETY: takes numbers and no signal set.
        unsafe {
            libc::syscall(
                libc::SYS_io_uring_enter,
                self.ring.as_raw_fd(),
                submit,
                wait,
                flags,
                none,
                0usize,
            )
        }
    }

    fn complete(&self) -> Result<Cqe, String> {
        let (head, tail) = (
            self.word(self.params.cq.head),
            self.word(self.params.cq.tail),
        );
        let at = head.load(Ordering::Relaxed);
        while tail.load(Ordering::Acquire) == at {
            if self.enter(0, 1) < 0
                && std::io::Error::last_os_error().raw_os_error() != Some(libc::EINTR)
            {
                return Err(os_error("io_uring_enter to wait"));
            }
        }
        let slot = at & self.word(self.params.cq.ring_mask).load(Ordering::Relaxed);
        let entries = self
            .queues
            .at()
            .wrapping_add(self.params.cq.rest[1] as usize)
            .cast::<Cqe>();
        // SAFETY: slot < cq_entries, and the entry is this side's until the head moves.
        let entry = unsafe { entries.add(slot as usize).read() };
        head.store(at.wrapping_add(1), Ordering::Release);
        Ok(entry)
    }
}

impl Way for Uring {
    fn put(
        &mut self,
        at: *mut u8,
        first: usize,
        pages: usize,
        version: usize,
    ) -> Result<(), String> {
        self.number += 1;
        self.submit(Sqe {
            opcode: if self.fixed { OP_READ_FIXED } else { OP_READ },
            fd: self.source.0.as_raw_fd(),
            offset: Source::offset(first, version) as u64,
            address: at as u64,
            len: (pages * PAGE) as u32,
            user_data: self.number,
            ..Sqe::default()
        })?;
        let done = self.complete()?;
        match (done.user_data == self.number, done.result) {
            (true, result) if result as usize == pages * PAGE => Ok(()),
            (true, result) => Err(format!("an io_uring read ended with {result}")),
            (false, _) => Err(format!(
                "the completion of read {} came for {}",
                done.user_data, self.number
            )),
        }
    }
}

fn map(ring: &OwnedFd, len: usize, offset: i64) -> Result<Mapping> {
    let flags = libc::MAP_SHARED | libc::MAP_POPULATE;
    Mapping::of_file(
        len,
        libc::PROT_READ | libc::PROT_WRITE,
        flags,
        ring.as_raw_fd(),
        offset,
    )
}
