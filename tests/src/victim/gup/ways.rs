//! O_DIRECT reads, a helper process that writes into this one, and pages out of a pipe.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use anyhow::{Result, bail, ensure};

use super::super::fault::os_error;
use super::super::mem::Mapping;
use super::super::page::{self, PAGE};
use super::{MOST_AT_ONCE, SALT, Source, Way};

/// Reads past the page cache: the device writes into this process's pages.
pub struct Direct {
    source: Source,
    vectored: bool,
}

impl Direct {
    /// Demands that the file was opened with O_DIRECT.
    pub fn open(source: &Source) -> Result<Self> {
        // SAFETY: takes numbers only.
        let flags = unsafe { libc::fcntl(source.0.as_raw_fd(), libc::F_GETFL) };
        ensure!(
            flags & libc::O_DIRECT != 0,
            "the temporary folder's file system has no O_DIRECT"
        );
        Ok(Self {
            source: source.clone(),
            vectored: false,
        })
    }
}

impl Way for Direct {
    fn put(
        &mut self,
        at: *mut u8,
        first: usize,
        pages: usize,
        version: usize,
    ) -> Result<(), String> {
        let (fd, offset) = (
            self.source.0.as_raw_fd(),
            Source::offset(first, version) as i64,
        );
        self.vectored = !self.vectored;
        let pieces: Vec<libc::iovec> = match self.vectored {
            true => (0..pages)
                .map(|page| piece(at.wrapping_add(page * PAGE), 1))
                .collect(),
            false => vec![piece(at, pages)],
        };
        // SAFETY: the pieces are the caller's pages.
        let got = unsafe { libc::preadv(fd, pieces.as_ptr(), pieces.len() as i32, offset) };
        all("O_DIRECT read", got, pages)
    }
}

fn piece(at: *mut u8, pages: usize) -> libc::iovec {
    libc::iovec {
        iov_base: at.cast(),
        iov_len: pages * PAGE,
    }
}

fn all(call: &str, got: isize, pages: usize) -> Result<(), String> {
    match got {
        -1 => Err(os_error(call)),
        got if got as usize == pages * PAGE => Ok(()),
        got => Err(format!(
            "{call} gave {got} bytes instead of {}",
            pages * PAGE
        )),
    }
}

/// Pages written into a pipe, and spliced out of it into memory.
pub struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    buffer: Mapping,
}

impl Pipe {
    /// A pipe with room for one request (64 KiB by default, twice what is needed).
    pub fn open() -> Result<Self> {
        let (read, write) = pipe()?;
        Ok(Self {
            read,
            write,
            buffer: Mapping::private(MOST_AT_ONCE * PAGE)?,
        })
    }
}

impl Way for Pipe {
    fn put(
        &mut self,
        at: *mut u8,
        first: usize,
        pages: usize,
        version: usize,
    ) -> Result<(), String> {
        prepare(&self.buffer, first, pages, version);
        // SAFETY: the buffer holds that many pages.
        let wrote = unsafe {
            libc::write(
                self.write.as_raw_fd(),
                self.buffer.at().cast(),
                pages * PAGE,
            )
        };
        all("write to a pipe", wrote, pages)?;
        let mut done = 0;
        while done < pages * PAGE {
            let rest = libc::iovec {
                iov_base: at.wrapping_add(done).cast(),
                iov_len: pages * PAGE - done,
            };
            // SAFETY: the rest is inside the caller's pages. On the reading end, vmsplice copies to memory.
            match unsafe { libc::vmsplice(self.read.as_raw_fd(), &raw const rest, 1, 0) } {
                got @ 1.. => done += got as usize,
                0 => return Err("vmsplice found the pipe closed".to_owned()),
                _ => return Err(os_error("vmsplice")),
            }
        }
        Ok(())
    }
}

/// Fills the buffer's first pages with what the target's pages are to hold.
fn prepare(buffer: &Mapping, first: usize, pages: usize, version: usize) {
    for page in 0..pages {
        let at = buffer.at().wrapping_add(page * PAGE).cast();
        // SAFETY: the buffer has MOST_AT_ONCE pages, which `pages` never exceeds.
        unsafe { page::fill(at, SALT, (first + page) as u64, version as u64) };
    }
}

fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    // SAFETY: two descriptors are written to `ends`.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
        bail!(os_error("pipe2"));
    }
    // SAFETY: just made, and owned by nobody else.
    Ok(unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) })
}

/// What the helper is asked, and answers with the number alone.
#[repr(C)]
#[derive(Clone, Copy)]
struct Request {
    number: u64,
    at: u64,
    first: u64,
    pages: u64,
    version: u64,
}

/// A child process that writes into this one with process_vm_writev.
pub struct Helper {
    ask: OwnedFd,
    answer: OwnedFd,
    number: u64,
}

impl Helper {
    /// Forks the helper; there must not be any threads yet.
    pub fn start() -> Result<Self> {
        let ((asked, ask), (answer, answered)) = (pipe()?, pipe()?);
        // SAFETY: takes nothing.
        let parent = unsafe { libc::getpid() };
        // SAFETY: this process has one thread; the child runs `serve` and never returns.
        let child = match unsafe { libc::fork() } {
            -1 => bail!(os_error("fork")),
            0 => {
                // The child must see the end of requests when its parent ends.
                drop(ask);
                serve(parent, asked.as_raw_fd(), answered.as_raw_fd())
            }
            child => child,
        };
        // Where Yama restricts tracing, a child may write into its parent only if that says so.
        // SAFETY: takes numbers only; fails harmlessly where there is no Yama.
        unsafe { libc::prctl(libc::PR_SET_PTRACER, child as libc::c_ulong, 0, 0, 0) };
        Ok(Self {
            ask,
            answer,
            number: 0,
        })
    }
}

impl Way for Helper {
    fn put(
        &mut self,
        at: *mut u8,
        first: usize,
        pages: usize,
        version: usize,
    ) -> Result<(), String> {
        self.number += 1;
        let request = Request {
            number: self.number,
            at: at as u64,
            first: first as u64,
            pages: pages as u64,
            version: version as u64,
        };
        let size = size_of::<Request>();
        // SAFETY: the request is valid for its size.
        let wrote = unsafe { libc::write(self.ask.as_raw_fd(), (&raw const request).cast(), size) };
        if wrote != size as isize {
            return Err(os_error("ask the helper"));
        }
        let mut answer = [0u64; 2];
        // SAFETY: the answer is valid for its size.
        let got = unsafe { libc::read(self.answer.as_raw_fd(), answer.as_mut_ptr().cast(), 16) };
        match (got, answer) {
            (16, [number, 0]) if number == self.number => Ok(()),
            (16, [number, error]) if number == self.number => {
                let error = std::io::Error::from_raw_os_error(error as i32);
                Err(format!("the helper's process_vm_writev: {error}"))
            }
            (16, [number, _]) => Err(format!("the helper answers {number}, not {}", self.number)),
            (-1, _) => Err(os_error("read the helper's answer")),
            _ => Err("the helper has ended".to_owned()),
        }
    }
}

fn serve(parent: i32, asked: RawFd, answered: RawFd) -> ! {
    let finished = (|| -> Option<()> {
        let buffer = Mapping::private(MOST_AT_ONCE * PAGE).ok()?;
        loop {
            let mut request = Request {
                number: 0,
                at: 0,
                first: 0,
                pages: 0,
                version: 0,
            };
            let size = size_of::<Request>();
            // SAFETY: the request is valid for its size, and any bits are a valid one.
            let got = unsafe { libc::read(asked, (&raw mut request).cast(), size) };
            if got != size as isize {
                return None;
            }
            let pages = request.pages as usize;
            prepare(
                &buffer,
                request.first as usize,
                pages,
                request.version as usize,
            );
            let local = piece(buffer.at(), pages);
            let remote = piece(
                std::ptr::with_exposed_provenance_mut(request.at as usize),
                pages,
            );
            // SAFETY: the local piece is the buffer; the remote one is the parent's business.
            let wrote = unsafe {
                libc::process_vm_writev(parent, &raw const local, 1, &raw const remote, 1, 0)
            };
            let error = match wrote as usize == pages * PAGE {
                true => 0,
                false => std::io::Error::last_os_error()
                    .raw_os_error()
                    .unwrap_or(libc::EIO),
            };
            let answer = [request.number, error as u64];
            // SAFETY: the answer is valid for its size.
            if unsafe { libc::write(answered, answer.as_ptr().cast(), 16) } != 16 {
                return None;
            }
        }
    })();
    // SAFETY: ends the child; its parent is gone, or has read what went wrong.
    unsafe { libc::_exit(i32::from(finished.is_some())) }
}
