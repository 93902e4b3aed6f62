//! Linux AIO (io_submit): the read is done later, by whoever completes it.

use std::os::fd::AsRawFd;

use anyhow::{Result, bail};

use super::super::fault::os_error;
use super::super::page::PAGE;
use super::{Source, Way};

/// struct iocb, include/uapi/linux/aio_abi.h, little-endian.
#[repr(C)]
struct Iocb {
    data: u64,
    key: u32,
    rw_flags: u32,
    opcode: u16,
    priority: i16,
    fd: u32,
    buffer: u64,
    bytes: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    resfd: u32,
}

const _: () = assert!(size_of::<Iocb>() == 64);
const IOCB_CMD_PREAD: u16 = 0;

/// An AIO context.
pub struct Aio {
    context: libc::c_ulong,
    source: Source,
    number: u64,
}

impl Aio {
    /// Makes a context for one request at a time.
    pub fn open(source: &Source) -> Result<Self> {
        let mut context = 0;
        // SAFETY: the context is valid for writing.
        if unsafe { libc::syscall(libc::SYS_io_setup, 1, &raw mut context) } != 0 {
            bail!(os_error("io_setup"));
        }
        Ok(Self {
            context,
            source: source.clone(),
            number: 0,
        })
    }
}

impl Way for Aio {
    fn put(
        &mut self,
        at: *mut u8,
        first: usize,
        pages: usize,
        version: usize,
    ) -> Result<(), String> {
        self.number += 1;
        let mut iocb = Iocb {
            data: self.number,
            key: 0,
            rw_flags: 0,
            opcode: IOCB_CMD_PREAD,
            priority: 0,
            fd: self.source.0.as_raw_fd() as u32,
            buffer: at as u64,
            bytes: (pages * PAGE) as u64,
            offset: Source::offset(first, version) as i64,
            reserved: 0,
            flags: 0,
            resfd: 0,
        };
        let list = [&raw mut iocb];
        // SAFETY: the request and the pages that it names live until its event is here, below.
        if unsafe { libc::syscall(libc::SYS_io_submit, self.context, 1, list.as_ptr()) } != 1 {
            return Err(os_error("io_submit"));
        }
        // struct io_event: data, object, result, second result.
        let mut event = [0i64; 4];
        loop {
            // SAFETY: one event fits; no time-out.
            let got = unsafe {
                let none = std::ptr::null::<libc::timespec>();
                libc::syscall(
                    libc::SYS_io_getevents,
                    self.context,
                    1,
                    1,
                    event.as_mut_ptr(),
                    none,
                )
            };
            match got {
                1 => break,
                // This call is one that the kernel does not restart after a stop.
                -1 if std::io::Error::last_os_error().raw_os_error() == Some(libc::EINTR) => {}
                _ => return Err(os_error("io_getevents")),
            }
        }
        match (event[0] as u64 == self.number, event[2]) {
            (true, result) if result == (pages * PAGE) as i64 => Ok(()),
            (true, result) => Err(format!("an AIO read ended with {result}")),
            (false, _) => Err(format!(
                "the event of AIO read {} came for {}",
                event[0], self.number
            )),
        }
    }
}
