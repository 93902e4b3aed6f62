//! One mapping with known contents, and the program break as another.

use serde_json::Value;

use super::super::fault::os_error;
use super::super::page::{self, PAGE};
use super::super::rng::Rng;
use super::super::table::poke;

const READ_WRITE: i32 = libc::PROT_READ | libc::PROT_WRITE;

/// A private anonymous mapping whose pages are numbered and counted; numbers stay with the contents when the
/// mapping moves or is cut.
pub struct Region {
    at: *mut u8,
    salt: u64,
    first: u64,
    generations: Vec<u64>,
    protection: i32,
}

// SAFETY: the region is the only user of its memory, and moves between threads as a whole.
unsafe impl Send for Region {}

impl Region {
    /// Maps new memory at exactly this address, which must be free, and fills it.
    pub fn create(at: *mut u8, pages: usize, salt: u64) -> Result<Self, String> {
        map(at, pages, libc::MAP_FIXED_NOREPLACE)?;
        let mut region = Self {
            at,
            salt,
            first: 0,
            generations: Vec::new(),
            protection: READ_WRITE,
        };
        region.extend(pages);
        Ok(region)
    }

    /// How many pages it has.
    pub fn pages(&self) -> usize {
        self.generations.len()
    }

    /// Unmaps all of it.
    pub fn unmap(self) -> Result<(), String> {
        self.unmap_part(0, self.pages())
    }

    /// Unmaps pages at the start.
    pub fn cut_head(&mut self, pages: usize) -> Result<(), String> {
        self.unmap_part(0, pages)?;
        self.at = self.page(pages).cast();
        self.first += pages as u64;
        self.generations.drain(..pages);
        Ok(())
    }

    /// Unmaps pages at the end.
    pub fn cut_tail(&mut self, pages: usize) -> Result<(), String> {
        self.unmap_part(self.pages() - pages, pages)?;
        self.generations.truncate(self.pages() - pages);
        Ok(())
    }

    /// Shrinks to so many pages with mremap.
    pub fn shrink(&mut self, pages: usize) -> Result<(), String> {
        self.remap(pages, 0, std::ptr::null_mut())?;
        self.generations.truncate(pages);
        Ok(())
    }

    /// Grows to so many pages with mremap, moving if the kernel likes; the new pages must be zero.
    pub fn grow(&mut self, pages: usize) -> Result<(), String> {
        let kept = self.protection;
        self.protect(READ_WRITE)?;
        self.remap(pages, libc::MREMAP_MAYMOVE, std::ptr::null_mut())?;
        for index in self.pages()..pages {
            // SAFETY: mremap made the page, and it is readable.
            unsafe { page::verify_zero(self.page(index)) }
                .map_err(|reason| format!("after growth: {reason}"))?;
        }
        self.extend(pages - self.pages());
        self.protect(kept)
    }

    /// Moves the whole region to another address.
    pub fn move_to(&mut self, at: *mut u8) -> Result<(), String> {
        self.remap(self.pages(), libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED, at)
    }

    /// Maps fresh memory over the same addresses, with new contents.
    pub fn replace(&mut self, salt: u64) -> Result<(), String> {
        let pages = self.pages();
        map(self.at, pages, libc::MAP_FIXED)?;
        *self = Self {
            at: self.at,
            salt,
            first: 0,
            generations: Vec::new(),
            protection: READ_WRITE,
        };
        // SAFETY: just mapped.
        unsafe { page::verify_zero(self.page(pages - 1)) }
            .map_err(|reason| format!("after MAP_FIXED: {reason}"))?;
        self.extend(pages);
        Ok(())
    }

    /// Changes the protection of the whole region.
    pub fn protect(&mut self, protection: i32) -> Result<(), String> {
        // SAFETY: the range is this region's own.
        match unsafe { libc::mprotect(self.at.cast(), self.pages() * PAGE, protection) } {
            0 => {
                self.protection = protection;
                Ok(())
            }
            _ => Err(os_error("mprotect")),
        }
    }

    /// Writes the next generation of a random page, if the region is writable.
    pub fn write(&mut self, rng: &mut Rng) -> Result<(), String> {
        if self.protection == READ_WRITE {
            let index = rng.below(self.pages());
            self.generations[index] += 1;
            self.fill(index);
        }
        Ok(())
    }

    /// Verifies the contents, if they are readable.
    pub fn verify(&self) -> Result<(), String> {
        if self.protection & libc::PROT_READ == 0 {
            return Ok(());
        }
        for (index, generation) in self.generations.iter().enumerate() {
            // SAFETY: the page is mapped and readable.
            unsafe {
                page::verify(
                    self.page(index),
                    self.salt,
                    self.first + index as u64,
                    *generation,
                )
            }?;
        }
        Ok(())
    }

    /// Verifies the contents even of an inaccessible region, by opening it for a moment.
    pub fn verify_hidden(&mut self) -> Result<(), String> {
        let kept = self.protection;
        if kept == libc::PROT_NONE {
            self.protect(libc::PROT_READ)?;
        }
        let result = self.verify();
        self.protect(kept)?;
        result
    }

    /// Each page's address and protection.
    pub fn layout(&self) -> impl Iterator<Item = (usize, i32)> + '_ {
        (0..self.pages()).map(|index| (self.page(index) as usize, self.protection))
    }

    /// An address that a test may overwrite.
    pub fn poke(&self) -> Value {
        poke(self.page(0).wrapping_add(300).cast())
    }

    fn page(&self, index: usize) -> *mut u64 {
        self.at.wrapping_add(index * PAGE).cast()
    }

    fn extend(&mut self, pages: usize) {
        for _ in 0..pages {
            self.generations.push(1);
            self.fill(self.pages() - 1);
        }
    }

    fn fill(&self, index: usize) {
        let number = self.first + index as u64;
        // SAFETY: the page is mapped, writable and this region's own.
        unsafe { page::fill(self.page(index), self.salt, number, self.generations[index]) };
    }

    fn unmap_part(&self, first: usize, pages: usize) -> Result<(), String> {
        // SAFETY: the range is this region's own, and is forgotten by the caller.
        match unsafe { libc::munmap(self.page(first).cast(), pages * PAGE) } {
            0 => Ok(()),
            _ => Err(os_error("munmap")),
        }
    }

    fn remap(&mut self, pages: usize, flags: i32, to: *mut u8) -> Result<(), String> {
        // SAFETY: the old range is this region's own; a fixed target is a free slot of the window.
        let at =
            unsafe { libc::mremap(self.at.cast(), self.pages() * PAGE, pages * PAGE, flags, to) };
        if at == libc::MAP_FAILED {
            return Err(os_error(&format!(
                "mremap of {} pages to {pages}, flags {flags}",
                self.pages()
            )));
        }
        self.at = at.cast();
        Ok(())
    }
}

fn map(at: *mut u8, pages: usize, fixed: i32) -> Result<(), String> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | fixed;
    // SAFETY: MAP_FIXED_NOREPLACE replaces nothing; MAP_FIXED is used on the caller's own region only.
    let got = unsafe { libc::mmap(at.cast(), pages * PAGE, READ_WRITE, flags, -1, 0) };
    match got == at.cast() {
        true => Ok(()),
        false => Err(os_error(&format!(
            "mmap of {pages} pages at {at:p}, which must be free or this victim's own"
        ))),
    }
}

/// Memory between two positions of the program break.
pub struct Break(Region);

impl Break {
    /// Takes a first page.
    pub fn new() -> Result<Self, String> {
        let here = sbrk(0)? as usize;
        sbrk((here.next_multiple_of(PAGE) - here) as isize)?;
        let at = sbrk(PAGE as isize)?;
        let mut region = Region {
            at,
            salt: 0x6272,
            first: 0,
            generations: Vec::new(),
            protection: READ_WRITE,
        };
        region.extend(1);
        Ok(Self(region))
    }

    /// How many pages are held.
    pub fn pages(&self) -> usize {
        self.0.pages()
    }

    /// Verifies, then grows or shrinks, or writes a page. If malloc has moved the break in the meantime, the
    /// memory below stays as it is.
    pub fn step(&mut self, rng: &mut Rng) -> Result<(), String> {
        self.0.verify()?;
        let end = self.0.page(self.pages());
        let ours = sbrk(0)?.cast() == end;
        match rng.below(3) {
            0 if ours && self.pages() < 256 => {
                let pages = 1 + rng.below(32);
                sbrk((pages * PAGE) as isize)?;
                for index in 0..pages {
                    let at = end.wrapping_add(index * PAGE / 8);
                    // SAFETY: the break has just moved over this page.
                    unsafe { page::verify_zero(at) }
                        .map_err(|reason| format!("after brk: {reason}"))?;
                }
                self.0.extend(pages);
            }
            1 if ours && self.pages() > 1 => {
                let pages = 1 + rng.below(self.pages() - 1);
                sbrk(-((pages * PAGE) as isize))?;
                let kept = self.pages() - pages;
                self.0.generations.truncate(kept);
            }
            _ => self.0.write(rng)?,
        }
        Ok(())
    }

    /// Verifies the contents.
    pub fn verify(&self) -> Result<(), String> {
        self.0
            .verify()
            .map_err(|reason| format!("program break: {reason}"))
    }
}

fn sbrk(by: isize) -> Result<*mut u8, String> {
    // SAFETY: memory is given back only by the victim that took it, with malloc's user at the gate.
    let at = unsafe { libc::sbrk(by) };
    match at as isize == -1 {
        true => Err(os_error("sbrk")),
        false => Ok(at.cast()),
    }
}
