//! A part of the mirror: versions of pages within a bound of memory.

use super::twins::Twins;
use crate::codec::Encoding;
use crate::image::Location;
use crate::model::Page;
use rustc_hash::FxHashMap;
use std::sync::Arc;

/// Below so many addresses the order of the round is not made anew.
const FEW: usize = 16;

/// A page that was encoded.
pub(super) struct Entered<'a> {
    pub(super) page: &'a Page,
    /// Of its content.
    pub(super) hash: u64,
    pub(super) pass: u32,
    pub(super) encoding: Encoding,
    /// Versions below it that reading it takes.
    pub(super) depth: usize,
}

/// A version that the store has.
pub(super) struct Stored {
    pub(super) page: Box<Page>,
    hash: u64,
    pub(super) at: Location,
    /// Versions below it that reading it takes.
    pub(super) depth: usize,
}

/// A version whose snapshot is not published.
pub(super) struct Fresh {
    page: Box<Page>,
    hash: u64,
    pass: u32,
    depth: usize,
}

#[derive(Default)]
pub(super) struct Held {
    pub(super) stored: Option<Stored>,
    pub(super) fresh: Option<Fresh>,
    /// Encoded since the hand came by.
    used: bool,
}

#[derive(Default)]
pub(super) struct Shard {
    pub(super) held: FxHashMap<u64, Held>,
    /// Addresses in the order in which the hand goes round; some may be gone.
    pub(super) round: Vec<u64>,
    hand: usize,
    /// The hand has gone round and found nothing to give up; so it will be until the snapshot is settled.
    full: bool,
    /// Pages in memory, and how many there may be.
    pub(super) pages: usize,
    most: usize,
    /// Memory of pages that are not held any more.
    free: Vec<Box<Page>>,
    /// What stored versions of all shards are.
    twins: Arc<Twins>,
    #[cfg(test)]
    pub(super) steps: usize,
}

impl Shard {
    /// Room for so many pages.
    pub(super) fn new(most: usize, twins: Arc<Twins>) -> Self {
        Self {
            most,
            twins,
            ..Self::default()
        }
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        for (addr, held) in &self.held {
            if let Some(stored) = &held.stored {
                self.twins.forget(stored.hash, *addr);
            }
        }
        *self = Self::new(self.most, Arc::clone(&self.twins));
    }

    /// Notes what a page is in the snapshot being encoded. The pass copied last counts.
    pub(super) fn enter(&mut self, addr: u64, entered: &Entered<'_>) {
        let Entered {
            page,
            hash,
            pass,
            encoding,
            depth,
        } = *entered;
        let earlier = self.held.get_mut(&addr).and_then(|held| {
            held.used = true;
            held.fresh.as_mut()
        });
        match earlier {
            Some(fresh) if fresh.pass > pass => return,
            // Next to nothing is known from a page of one word.
            Some(_) if matches!(encoding, Encoding::Zero | Encoding::Fill) => {
                let held = self.held.get_mut(&addr).expect("found above");
                let fresh = held.fresh.take().expect("found above");
                return self.give_back(fresh.page);
            }
            Some(fresh) => {
                fresh.page.copy_from_slice(page);
                (fresh.hash, fresh.pass) = (hash, pass);
                fresh.depth = depth;
                return;
            }
            None if matches!(encoding, Encoding::Zero | Encoding::Fill) => return,
            None => {}
        }
        let Some(memory) = self.take_memory(page) else {
            return;
        };
        if self.round.len() > 2 * self.held.len() + FEW {
            self.round = self.held.keys().copied().collect();
        }
        let round = &mut self.round;
        let held = self.held.entry(addr).or_insert_with(|| {
            round.push(addr);
            Held::default()
        });
        held.used = true;
        held.fresh = Some(Fresh {
            page: memory,
            hash,
            pass,
            depth,
        });
    }

    /// A copy of a page, if there is memory for it or it can be made.
    fn take_memory(&mut self, page: &Page) -> Option<Box<Page>> {
        if self.pages >= self.most {
            self.make_room();
        }
        if self.pages >= self.most {
            return None;
        }
        self.pages += 1;
        Some(match self.free.pop() {
            Some(mut memory) => {
                memory.copy_from_slice(page);
                memory
            }
            None => Box::new(*page),
        })
    }

    fn give_back(&mut self, page: Box<Page>) {
        self.full = false;
        self.pages -= 1;
        self.free.push(page);
    }

    /// Gives up a version that has not been used since the hand came by.
    fn make_room(&mut self) {
        if self.full {
            return;
        }
        // Twice round: the first time every page may have been used.
        for _ in 0..2 * self.round.len() {
            if self.round.is_empty() {
                return;
            }
            #[cfg(test)]
            {
                self.steps += 1;
            }
            self.hand %= self.round.len();
            let addr = self.round[self.hand];
            match self.held.get_mut(&addr) {
                None => {
                    self.round.swap_remove(self.hand);
                }
                // It is needed when the snapshot is published.
                Some(held) if held.fresh.is_some() => self.hand += 1,
                Some(held) if held.used => {
                    held.used = false;
                    self.hand += 1;
                }
                Some(_) => {
                    let held = self.held.remove(&addr).expect("found above");
                    self.round.swap_remove(self.hand);
                    if let Some(stored) = held.stored {
                        self.twins.forget(stored.hash, addr);
                        self.give_back(stored.page);
                    }
                    return;
                }
            }
        }
        self.full = true;
    }

    /// The next snapshot's parent has this page at `at`: keeps the version that is there, and no other. That is
    /// the fresh one if it is of copy pass `pass`.
    pub(super) fn settle(&mut self, addr: u64, at: Option<Location>, pass: Option<u32>) {
        self.full = false;
        let Some(held) = self.held.get_mut(&addr) else {
            return;
        };
        let (fresh, stored) = (held.fresh.take(), held.stored.take());
        let (mut unused, mut kept) = (Vec::new(), None);
        if let Some(fresh) = fresh {
            match at {
                Some(at) if pass == Some(fresh.pass) => {
                    self.twins.note(fresh.hash, addr);
                    kept = Some(Stored {
                        page: fresh.page,
                        hash: fresh.hash,
                        at,
                        depth: fresh.depth,
                    });
                }
                _ => unused.push(fresh.page),
            }
        }
        if let Some(stored) = stored {
            match kept {
                None if Some(stored.at) == at => kept = Some(stored),
                _ => {
                    let is_same = kept.as_ref().is_some_and(|kept| kept.hash == stored.hash);
                    if !is_same {
                        self.twins.forget(stored.hash, addr);
                    }
                    unused.push(stored.page);
                }
            }
        }
        match kept {
            Some(_) => held.stored = kept,
            // Its place in the round goes when the hand comes by.
            None => _ = self.held.remove(&addr),
        }
        unused.into_iter().for_each(|page| self.give_back(page));
    }
}
