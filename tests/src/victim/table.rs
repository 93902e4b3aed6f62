//! A table of self-describing pages with their generations kept elsewhere: a page that misses one write, or
//! comes back from another time than the rest of memory, is found.

use serde_json::{Value, json};

use super::page::{self, PAGE};
use super::rng::Rng;

/// Pages at `base`, each at the generation that `generations` says.
pub struct Table {
    base: *mut u8,
    salt: u64,
    generations: Vec<u64>,
    written: u64,
    swept: usize,
}

// SAFETY: the table is the only user of its memory, and moves between threads as a whole.
unsafe impl Send for Table {}

impl Table {
    /// Fills `pages` pages at `base` with generation 1.
    ///
    /// # Safety
    /// `base` is page-aligned and valid for reading and writing that many pages for as long as the table is
    /// used, and nothing else writes them.
    pub unsafe fn new(base: *mut u8, pages: usize, salt: u64) -> Self {
        let table = Self {
            base,
            salt,
            generations: vec![1; pages],
            written: 0,
            swept: 0,
        };
        for index in 0..pages {
            // SAFETY: index < pages; the caller vouches for the memory.
            unsafe { page::fill(table.at(index), salt, index as u64, 1) };
        }
        table
    }

    /// Takes over pages that already hold generation 1.
    ///
    /// # Safety
    /// As for [`Table::new`].
    pub unsafe fn adopt(base: *mut u8, pages: usize, salt: u64) -> Self {
        Self {
            base,
            salt,
            generations: vec![1; pages],
            written: 0,
            swept: 0,
        }
    }

    /// The page's generation.
    pub fn generation(&self, index: usize) -> u64 {
        self.generations[index]
    }

    /// How many pages were written since the start.
    pub const fn written(&self) -> u64 {
        self.written
    }

    /// How many pages there are.
    pub const fn pages(&self) -> usize {
        self.generations.len()
    }

    /// Where the page is.
    pub const fn at(&self, index: usize) -> *mut u64 {
        self.base.wrapping_add(index * PAGE).cast()
    }

    /// Verifies the page and writes its next generation.
    pub fn write(&mut self, index: usize) -> Result<(), String> {
        self.verify(index)?;
        self.rewrite(index);
        Ok(())
    }

    /// Writes the page's next generation, whatever it holds.
    pub fn rewrite(&mut self, index: usize) {
        self.generations[index] += 1;
        self.written += 1;
        let generation = self.generations[index];
        // SAFETY: `new`'s caller vouches for the memory.
        unsafe { page::fill(self.at(index), self.salt, index as u64, generation) };
    }

    /// Writes one random page, and verifies the next one of a sweep through the table.
    pub fn step(&mut self, rng: &mut Rng) -> Result<(), String> {
        self.write(rng.below(self.pages()))?;
        self.swept = (self.swept + 1) % self.pages();
        self.verify(self.swept)
    }

    /// Compares one page with its generation.
    pub fn verify(&self, index: usize) -> Result<(), String> {
        // SAFETY: `new`'s caller vouches for the memory.
        unsafe {
            page::verify(
                self.at(index),
                self.salt,
                index as u64,
                self.generations[index],
            )
        }
    }

    /// Compares every page, and the count of writes with the sum of generations.
    pub fn verify_all(&self) -> Result<(), String> {
        for index in 0..self.pages() {
            self.verify(index)?;
        }
        let sum: u64 = self
            .generations
            .iter()
            .map(|generation| generation - 1)
            .sum();
        match sum == self.written {
            true => Ok(()),
            false => Err(format!(
                "{} writes were counted, but the generations add up to {sum}",
                self.written
            )),
        }
    }

    /// An address that a test may overwrite to see the damage found.
    pub fn poke(&self) -> Value {
        poke(self.at(self.pages() / 2).wrapping_add(300).cast())
    }
}

/// Names 8 bytes in memory that a test may overwrite to see the damage found.
pub fn poke(at: *const u8) -> Value {
    json!({ "address": at as u64, "length": 8 })
}
