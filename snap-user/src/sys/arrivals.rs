//! Pages of an image that are still on their way: told between whoever brings them and whoever fills memory from them,
//! who may be a fork of it.
//!
//! Both have a bit for each page in memory that they share, and a pipe each way: numbers of pages that are waited for, and a
//! byte when some have come. When whoever brings them is gone, the second pipe ends, and then either everything has come
//! or it never will.

use super::{Result, SysError};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How often whoever waits for pages without a descriptor to wait on looks for them.
const OFTEN: Duration = Duration::from_micros(200);
/// Pages that it waits for at a time.
const AT_ONCE: usize = 4096;
/// Words in front of the bits: whether all have come, whether none come any more, whether the process is broken.
const HEAD: usize = 3;
const ALL: usize = 0;
const LOST: usize = 1;
const BROKEN: usize = 2;

/// Which pages of an image have come.
#[derive(Debug)]
pub struct Arrivals {
    shared: SharedWords,
    pages: u64,
    /// Out of it come the numbers that are put into the other one.
    asked: OwnedFd,
    asks: OwnedFd,
    told: OwnedFd,
    tells: OwnedFd,
}

/// What whoever fills memory hears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// Some may have come.
    More,
    /// All have.
    All,
    /// Not all have, and no more will.
    Lost,
}

impl Arrivals {
    /// For an image of so many pages, none of which has come.
    pub fn new(pages: u64) -> Result<Self> {
        let pipe = || {
            let flags = PipeFlags::CLOEXEC | PipeFlags::NONBLOCK;
            pipe_with(flags).map_err(|e| SysError::new("pipe2", "this process", e))
        };
        let ((asked, asks), (told, tells)) = (pipe()?, pipe()?);
        let words = pages.div_ceil(64) as usize;
        Ok(Self {
            // The bits of what has come, then of what has been asked for.
            shared: SharedWords::new(HEAD + 2 * words)?,
            pages,
            asked,
            asks,
            told,
            tells,
        })
    }

    fn arrived(&self, page: u64) -> Option<(&AtomicU64, u64)> {
        self.bit(HEAD, page)
    }

    fn wanted(&self, page: u64) -> Option<(&AtomicU64, u64)> {
        self.bit(HEAD + self.pages.div_ceil(64) as usize, page)
    }

    fn bit(&self, first: usize, page: u64) -> Option<(&AtomicU64, u64)> {
        (page < self.pages).then(|| {
            let word = &self.shared.words()[first + page as usize / 64];
            (word, 1 << (page % 64))
        })
    }

    fn is_set(&self, word: usize) -> bool {
        self.shared.words()[word].load(Ordering::Acquire) != 0
    }

    /// Whether a page has come. What lies outside of the image is not waited for.
    pub fn has(&self, page: u64) -> bool {
        self.arrived(page)
            .is_none_or(|(word, bit)| word.load(Ordering::Acquire) & bit != 0)
    }

    /// A page has come, and is in the image.
    pub fn put(&self, page: u64) {
        if let Some((word, bit)) = self.arrived(page) {
            word.fetch_or(bit, Ordering::Release);
        }
    }

    /// Has whoever fills memory look again.
    pub fn tell(&self) {
        // A full pipe is as good.
        let _ = rustix::io::write(&self.tells, &[0]);
    }

    /// All have come: nobody has to bring any more.
    pub fn end(&self) {
        self.shared.words()[ALL].store(1, Ordering::Release);
        self.tell();
    }

    /// No more will come.
    pub fn lose(&self) {
        self.shared.words()[LOST].store(1, Ordering::Release);
        self.tell();
    }

    /// The process that the pages are for has not come to its own end, but was killed, or cannot be filled.
    pub fn break_off(&self) {
        self.shared.words()[BROKEN].store(1, Ordering::Release);
    }

    /// Whether it has.
    pub fn is_broken_off(&self) -> bool {
        self.is_set(BROKEN)
    }

    /// Whether no more will come.
    pub fn is_lost(&self) -> bool {
        self.is_set(LOST)
    }

    /// Pages that have been asked for since, so many at most. The others wait in the pipe, and those who ask for more
    /// until there is room in it.
    pub fn asked_for(&self, most: usize) -> Vec<u64> {
        let mut bytes = vec![0u8; most * size_of::<u64>()];
        // Numbers are written whole, and so read whole (pipe(7)).
        let len = rustix::io::read(&self.asked, &mut bytes).unwrap_or(0);
        let numbers = bytes[..len].as_chunks().0.iter();
        numbers.map(|number| u64::from_le_bytes(*number)).collect()
    }

    /// Asks for a page, once. Where there is no room for that now, whoever asks again later does it.
    pub fn ask(&self, page: u64) {
        let Some((word, bit)) = self.wanted(page) else {
            return;
        };
        if word.fetch_or(bit, Ordering::AcqRel) & bit == 0
            && rustix::io::write(&self.asks, &page.to_le_bytes()).is_err()
        {
            word.fetch_and(!bit, Ordering::AcqRel);
        }
    }

    /// The descriptor that becomes readable when there is something to hear.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.told.as_fd()
    }

    /// The descriptors that whoever fills memory needs.
    pub fn descriptors(&self) -> [BorrowedFd<'_>; 2] {
        [self.told.as_fd(), self.asks.as_fd()]
    }

    /// What there is to hear, without waiting.
    pub fn hear(&self) -> Heard {
        let mut bytes = [0u8; 4096];
        let ended = loop {
            match rustix::io::read(&self.told, &mut bytes) {
                Ok(0) => break true,
                Ok(_) | Err(Errno::INTR) => {}
                Err(_) => break false,
            }
        };
        // Read behind the pipe: whoever ended it has said before how.
        match (self.is_set(ALL), ended || self.is_lost()) {
            (true, _) => Heard::All,
            (false, true) => Heard::Lost,
            (false, false) => Heard::More,
        }
    }

    /// Asks for pages and waits until all have come. `false` when they will not.
    pub fn wait_for(&self, pages: impl Iterator<Item = u64>) -> bool {
        let mut coming = pages.filter(|page| !self.has(*page));
        loop {
            let mut missing: Vec<u64> = coming.by_ref().take(AT_ONCE).collect();
            if missing.is_empty() {
                return true;
            }
            while !missing.is_empty() {
                if self.is_lost() {
                    return false;
                }
                for page in &missing {
                    self.ask(*page);
                }
                std::thread::sleep(OFTEN);
                missing.retain(|page| !self.has(*page));
            }
        }
    }
}

/// Zeroed words that a process shares with its forks.
#[derive(Debug)]
struct SharedWords {
    at: *const AtomicU64,
    len: usize,
}

// SAFETY: atomics, in a mapping that stays until the value is dropped.
unsafe impl Send for SharedWords {}
// SAFETY: the same.
unsafe impl Sync for SharedWords {}

impl SharedWords {
    fn new(len: usize) -> Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice, owned by the value.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len * size_of::<u64>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        match at == libc::MAP_FAILED {
            true => Err(SysError::last("mmap", "memory shared with a child")),
            false => Ok(Self {
                at: at.cast_const().cast(),
                len,
            }),
        }
    }

    fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping made above, aligned to pages, zeroed and of this length.
        unsafe { std::slice::from_raw_parts(self.at, self.len) }
    }
}

impl Drop for SharedWords {
    fn drop(&mut self) {
        // SAFETY: unmaps what `new` mapped; nothing refers to it any more.
        unsafe { libc::munmap(self.at as *mut _, self.len * size_of::<u64>()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_is_heard_once_and_what_comes_is_told() {
        let arrivals = Arrivals::new(100).unwrap();
        assert!(!arrivals.has(0) && !arrivals.has(99) && arrivals.has(100));
        for page in [7, 99, 7, 100] {
            arrivals.ask(page);
        }
        assert_eq!(arrivals.asked_for(1), [7]);
        assert_eq!(arrivals.asked_for(9), [99]);
        assert!(arrivals.asked_for(9).is_empty());
        arrivals.put(99);
        arrivals.tell();
        assert!(arrivals.has(99) && !arrivals.has(98) && !arrivals.has(35));
        assert_eq!(arrivals.hear(), Heard::More);
        arrivals.end();
        assert_eq!(arrivals.hear(), Heard::All);
        arrivals.lose();
        assert_eq!(arrivals.hear(), Heard::All);
    }

    #[test]
    fn more_than_fit_are_asked_for_again() {
        const PAGES: u64 = 50_000;
        let arrivals = std::sync::Arc::new(Arrivals::new(PAGES).unwrap());
        // Larger than a pipe.
        (0..PAGES).for_each(|page| arrivals.ask(page));
        let bringing = std::sync::Arc::clone(&arrivals);
        let thread = std::thread::spawn(move || {
            let mut left = PAGES;
            while left > 0 {
                for page in bringing.asked_for(1000) {
                    bringing.put(page);
                    left -= 1;
                }
                std::thread::yield_now();
            }
        });
        assert!(arrivals.wait_for(0..PAGES));
        thread.join().unwrap();
        assert!((0..PAGES).all(|page| arrivals.has(page)));
    }

    #[test]
    fn who_waits_for_what_does_not_come_is_told() {
        let arrivals = Arrivals::new(2).unwrap();
        arrivals.put(0);
        arrivals.lose();
        assert!(arrivals.wait_for(0..1));
        assert!(!arrivals.wait_for(0..2));
        assert_eq!(arrivals.hear(), Heard::Lost);
    }

    #[test]
    fn the_end_of_whoever_brings_them_is_their_end() {
        let mut arrivals = Arrivals::new(1).unwrap();
        let (_, end) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        drop(std::mem::replace(&mut arrivals.tells, end));
        assert_eq!(arrivals.hear(), Heard::Lost);
    }
}
