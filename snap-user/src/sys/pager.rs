//! Memory that comes when it is touched: userfaultfd(2) in its ordinary, missing-page mode.
//!
//! Every event that changes where missing content belongs (a fork, a moved, dropped or unmapped range) is
//! waited for by the kernel until it is read here, so that no page is filled where it does not belong any
//! more, and none that was thrown away comes back (Documentation/admin-guide/mm/userfaultfd.rst,
//! "Non-cooperative userfaultfd").

use super::file_map::Image;
use super::missing::Missing;
use super::{Result, SysError};
use crate::model::{PAGE_SIZE, PageRange, page_down};
use linux_raw_sys::general as raw;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;

const EVENTS: u64 = (raw::UFFD_FEATURE_EVENT_FORK
    | raw::UFFD_FEATURE_EVENT_REMAP
    | raw::UFFD_FEATURE_EVENT_REMOVE
    | raw::UFFD_FEATURE_EVENT_UNMAP) as u64;
/// Flags with which the process makes its descriptor. Not for user mode alone: system calls of the process
/// fault on its behalf.
pub const PAGER_FLAGS: u64 = libc::O_CLOEXEC as u64 | libc::O_NONBLOCK as u64;
/// Bytes around a touched page that come with it.
const AROUND: u64 = 64 << 10;
/// Bytes filled in one go while nothing is waited for.
const AT_ONCE: u64 = 512 << 10;

nix::ioctl_readwrite!(uffdio_api, 0xaa, 0x3f, raw::uffdio_api);
nix::ioctl_readwrite!(uffdio_register, 0xaa, 0x00, raw::uffdio_register);
nix::ioctl_readwrite!(uffdio_copy, 0xaa, 0x03, raw::uffdio_copy);
nix::ioctl_readwrite!(uffdio_zeropage, 0xaa, 0x04, raw::uffdio_zeropage);
nix::ioctl_read!(uffdio_wake, 0xaa, 0x02, raw::uffdio_range);

/// A piece of memory and where its content lies in a file, both on page boundaries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The memory.
    pub range: PageRange,
    /// Offset of its first byte in the file.
    pub offset: u64,
}

/// One address space, and what it still lacks.
#[derive(Debug)]
struct Space {
    uffd: OwnedFd,
    image: Arc<Image>,
    missing: Missing,
    /// What is filled first of what nobody has asked for; the last of them first.
    first: Vec<PageRange>,
    /// A process was born with it, and may be gone.
    born: bool,
    /// Touched pages that could not be given because something was changing, or because they have not come.
    waiting: Vec<u64>,
    /// Something was changing when it was looked at last. That it is over is told by nobody.
    changing: bool,
    /// Pages of it are not what they were, and cannot be given.
    damaged: bool,
}

/// Fills memory of processes from files: what is touched at once, the rest when asked to.
#[derive(Debug, Default)]
pub struct Pager {
    spaces: Vec<Space>,
    /// What was adopted is served for as long as anything is missing anywhere.
    keeps: bool,
    damaged: bool,
}

impl Pager {
    /// Serves what it adopts until nothing is missing anywhere: for descriptors that others have as well, since while
    /// one is open anywhere the kernel waits for an answer.
    pub fn keeping() -> Self {
        Self {
            spaces: Vec::new(),
            keeps: true,
            damaged: false,
        }
    }

    /// Takes over a descriptor that a process has made with [`PAGER_FLAGS`] and that [`arm`] has set up. `first` is what is
    /// filled before the rest of what nobody asks for, in this order.
    pub fn adopt(&mut self, uffd: OwnedFd, image: Image, pieces: &[Piece], first: &[PageRange]) {
        self.spaces.push(Space {
            uffd,
            image: Arc::new(image),
            missing: pieces.iter().copied().collect(),
            first: first.iter().rev().copied().collect(),
            born: false,
            waiting: Vec::new(),
            changing: false,
            damaged: false,
        });
    }

    /// Nothing is missing anywhere.
    pub fn is_done(&self) -> bool {
        self.spaces.iter().all(|space| space.missing.is_empty())
    }

    /// Descriptors that become readable when there is something to do.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.spaces.iter().map(|s| s.uffd.as_fd())
    }

    /// Descriptors of the images that they are filled from, as far as they are needed.
    pub fn images(&self) -> impl Iterator<Item = RawFd> {
        self.spaces.iter().filter_map(|s| s.image.descriptor())
    }

    /// Something that was to be given is not what it was: who waits gets nothing from then on, and has to be ended while
    /// this lives.
    pub fn is_damaged(&self) -> bool {
        self.damaged
    }

    /// Something that is waited for can be given a moment later, which no descriptor tells.
    pub fn is_to_be_tried_again(&self) -> bool {
        self.spaces.iter().any(|space| space.changing)
    }

    /// Does what is waited for, without waiting.
    pub fn serve(&mut self) {
        let mut born = Vec::new();
        for space in &mut self.spaces {
            while let Some(message) = next(&space.uffd) {
                born.extend(space.take(&message));
            }
            space.changing = false;
            for addr in std::mem::take(&mut space.waiting) {
                space.give(addr);
            }
            self.damaged |= space.damaged;
        }
        if self.damaged {
            // Whoever waits is not let go on: all descriptors stay open, those of children too, until all have ended.
            return self.spaces.append(&mut born);
        }
        if !born.is_empty() {
            // Whoever forks often has children that are gone: the kernel tells only when asked to fill.
            for space in self.spaces.iter_mut().filter(|space| space.born) {
                space.probe();
            }
            self.spaces.append(&mut born);
        }
        self.close();
    }

    /// Fills some of what nobody has asked for yet. `false` when all that is missing has not come.
    pub fn fill_some(&mut self) -> bool {
        let mut any = false;
        for space in &mut self.spaces {
            if self.damaged {
                return false;
            }
            any = space.fill_some();
            self.damaged |= space.damaged;
            if any {
                break;
            }
        }
        if self.damaged {
            return false;
        }
        self.close();
        any
    }

    /// Lets go of address spaces that lack nothing: from then on they are like any other.
    fn close(&mut self) {
        let keeps = self.keeps;
        self.spaces
            .retain(|space| keeps && !space.born || !space.missing.is_empty());
    }
}

/// Sets a fresh descriptor up so that touched pages of these ranges are asked for.
pub fn arm(uffd: BorrowedFd<'_>, ranges: &[PageRange]) -> Result<()> {
    let mut api = raw::uffdio_api {
        api: raw::UFFD_API as u64,
        features: EVENTS,
        ioctls: 0,
    };
    // SAFETY: `api` is a live structure of the kernel's layout.
    unsafe { uffdio_api(uffd.as_raw_fd(), &mut api) }
        .map_err(|e| SysError::new("UFFDIO_API", "userfaultfd", e))?;
    for range in ranges {
        let mut arg = raw::uffdio_register {
            range: raw::uffdio_range {
                start: range.start,
                len: range.len(),
            },
            mode: raw::UFFDIO_REGISTER_MODE_MISSING as u64,
            ioctls: 0,
        };
        // SAFETY: `arg` is a live structure of the kernel's layout.
        unsafe { uffdio_register(uffd.as_raw_fd(), &mut arg) }
            .map_err(|e| SysError::new("UFFDIO_REGISTER", range, e))?;
    }
    Ok(())
}

/// An event, in the words that matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Message {
    Touched(u64),
    Forked(i32),
    Moved { from: u64, to: u64, len: u64 },
    Dropped(u64, u64),
    Unknown,
}

fn next(uffd: &OwnedFd) -> Option<Message> {
    let mut bytes = [0u8; 32];
    // SAFETY: the buffer is live and has the length of `struct uffd_msg`.
    let got = unsafe { libc::read(uffd.as_raw_fd(), bytes.as_mut_ptr().cast(), bytes.len()) };
    (got == bytes.len() as isize).then(|| decode(&bytes))
}

/// `struct uffd_msg` (include/uapi/linux/userfaultfd.h).
fn decode(bytes: &[u8; 32]) -> Message {
    let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
    match u32::from(bytes[0]) {
        raw::UFFD_EVENT_PAGEFAULT => Message::Touched(word(16)),
        raw::UFFD_EVENT_FORK => Message::Forked(word(8) as i32),
        raw::UFFD_EVENT_REMAP => Message::Moved {
            from: word(8),
            to: word(16),
            len: word(24),
        },
        raw::UFFD_EVENT_REMOVE | raw::UFFD_EVENT_UNMAP => Message::Dropped(word(8), word(16)),
        _ => Message::Unknown,
    }
}

impl Space {
    /// Takes an event in. Returns the address space of a child.
    fn take(&mut self, message: &Message) -> Option<Space> {
        match *message {
            Message::Touched(addr) => self.give(page_down(addr)),
            Message::Forked(fd) => {
                return Some(Space {
                    // SAFETY: the kernel has just made it for this process, and nothing else owns it.
                    uffd: unsafe { OwnedFd::from_raw_fd(fd) },
                    image: Arc::clone(&self.image),
                    missing: self.missing.clone(),
                    first: Vec::new(),
                    born: true,
                    waiting: Vec::new(),
                    changing: false,
                    damaged: self.damaged,
                });
            }
            Message::Moved { from, to, len } => {
                let old = PageRange {
                    start: from,
                    end: from + len,
                };
                for piece in self.missing.cut(old) {
                    let start = piece.range.start - from + to;
                    self.missing.insert(Piece {
                        range: PageRange::new(start, start + piece.range.len()),
                        ..piece
                    });
                }
            }
            Message::Dropped(start, end) => drop(self.missing.cut(PageRange { start, end })),
            Message::Unknown => {}
        }
        None
    }

    /// Fills some of what nobody has asked for yet: what is to come first, then from its beginning.
    fn fill_some(&mut self) -> bool {
        while let Some(PageRange { start, end }) = self.first.pop() {
            let part = PageRange::new(start, end.min(start + AT_ONCE));
            if part.end < end {
                self.first.push(PageRange::new(part.end, end));
            }
            // Else all of it was touched, or has not come: then its turn is with the rest.
            let is_there = |addr: &u64| {
                let piece = self.missing.at(*addr);
                piece.is_some_and(|p| self.image.has(p.offset + (addr - p.range.start)))
            };
            if let Some(start) = part.iter().find(is_there) {
                self.copy(PageRange::new(start, part.end));
                return true;
            }
        }
        let Some(start) = self.first_there() else {
            return false;
        };
        let end = start + AT_ONCE;
        self.copy(PageRange { start, end });
        true
    }

    /// The first missing page that has come.
    fn first_there(&self) -> Option<u64> {
        let mut pieces = self.missing.iter();
        pieces.find_map(|Piece { range, offset }| {
            let there = |addr: &u64| self.image.has(offset + (addr - range.start));
            range.iter().find(there)
        })
    }

    /// Fills one page, to learn whether the address space is still there.
    fn probe(&mut self) {
        if let Some(start) = self.first_there() {
            let end = start + PAGE_SIZE;
            self.copy(PageRange { start, end });
        }
    }

    /// Gives a touched page its content, and its neighbours theirs.
    fn give(&mut self, addr: u64) {
        if self.damaged {
            // It waits until it is ended.
            return;
        }
        let Some(Piece { range, offset }) = self.missing.at(addr) else {
            return self.zero(addr);
        };
        let offset = offset + (addr - range.start);
        if !self.image.has(offset) {
            self.image.ask(offset);
            // Unless it came in between, whoever brings it says so.
            if !self.image.has(offset) {
                return self.waiting.push(addr);
            }
        }
        let around = PageRange {
            start: range.start.max(addr & !(AROUND - 1)),
            end: range.end.min((addr & !(AROUND - 1)) + AROUND),
        };
        if !self.copy(around) {
            if !self.damaged {
                self.try_again(addr);
            }
        } else {
            // Copying wakes those who wait for what was copied; the page may have been there.
            self.wake(addr);
        }
    }

    /// Copies missing content into a range. `false` when that has to be tried again.
    fn copy(&mut self, range: PageRange) -> bool {
        let (uffd, image) = (&self.uffd, &self.image);
        let (mut gone, mut damaged) = (false, false);
        let done = self
            .missing
            .fill(
                range,
                &|offset| image.has(offset),
                &mut |piece| match image.is_whole(&piece) {
                    true => copy(uffd, piece, image, &mut gone),
                    false => {
                        damaged = true;
                        Err(piece)
                    }
                },
            );
        self.damaged |= damaged;
        if gone {
            self.missing.clear();
        }
        done
    }

    fn try_again(&mut self, addr: u64) {
        self.waiting.push(addr);
        self.changing = true;
    }

    fn zero(&mut self, addr: u64) {
        let mut arg = raw::uffdio_zeropage {
            range: raw::uffdio_range {
                start: addr,
                len: PAGE_SIZE,
            },
            mode: 0,
            zeropage: 0,
        };
        // SAFETY: `arg` is a live structure of the kernel's layout.
        match unsafe { uffdio_zeropage(self.uffd.as_raw_fd(), &mut arg) } {
            Err(nix::Error::EAGAIN) => self.try_again(addr),
            Err(nix::Error::ESRCH) => self.missing.clear(),
            Err(_) => self.wake(addr),
            Ok(_) => {}
        }
    }

    fn wake(&self, addr: u64) {
        wake(&self.uffd, addr);
    }
}

/// Copies the content of a piece into the memory. What it gives back has to be tried again. `gone`: the address space is.
fn copy(
    uffd: &OwnedFd,
    piece: Piece,
    image: &Image,
    gone: &mut bool,
) -> std::result::Result<(), Piece> {
    let PageRange { start, end } = piece.range;
    let mut at = start;
    let mut most = u64::MAX;
    while at < end && !*gone {
        let offset = piece.offset + (at - start);
        let len = (end - at).min(most);
        let Some(bytes) = image.bytes().get(offset as usize..(offset + len) as usize) else {
            // Checked when the image was opened.
            return Ok(());
        };
        let mut arg = raw::uffdio_copy {
            dst: at,
            src: bytes.as_ptr() as u64,
            len,
            mode: 0,
            copy: 0,
        };
        // SAFETY: `arg` is a live structure of the kernel's layout; the source lies in the mapping
        // of the image, and the destination in another process, which the kernel checks.
        let result = unsafe { uffdio_copy(uffd.as_raw_fd(), &mut arg) };
        if arg.copy > 0 {
            at += arg.copy as u64;
            continue;
        }
        match result {
            // It is there already.
            Err(nix::Error::EEXIST) => {
                wake(uffd, at);
                at += PAGE_SIZE;
            }
            // Across a border between mappings, or the mapping is gone.
            Err(nix::Error::ENOENT) if len > PAGE_SIZE => most = PAGE_SIZE,
            Err(nix::Error::ENOENT) => at += PAGE_SIZE,
            Err(nix::Error::ESRCH) => *gone = true,
            // Something is changing, and its event comes first.
            _ => {
                let range = PageRange { start: at, end };
                return Err(Piece { range, offset });
            }
        }
    }
    Ok(())
}

fn wake(uffd: &OwnedFd, addr: u64) {
    let mut range = raw::uffdio_range {
        start: addr,
        len: PAGE_SIZE,
    };
    // SAFETY: `range` is a live structure of the kernel's layout. Nobody may be waiting.
    let _ = unsafe { uffdio_wake(uffd.as_raw_fd(), &mut range) };
}

#[cfg(test)]
mod tests;
