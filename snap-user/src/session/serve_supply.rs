//! Pages of a listed snapshot on their way into the image that a process is filled from: what is there already, what is
//! asked for, and in which order.

use super::Result;
use super::serve_incoming::Incoming;
use crate::codec::Encoding;
use crate::model::{PAGE_SIZE, Page, PageSet};
use crate::store::{Flat, FlatAhead, Store};
use crate::sys::Arrivals;
use crate::wire::{Encoded, Offered};
use std::collections::VecDeque;
use std::sync::Arc;

/// Pages around one that is waited for which come with it.
const AROUND: usize = 16;

/// Of what is waited for, so many pages are looked at before others are heard.
const ASKED: usize = 64;
/// Pages written in one go.
const WRITTEN: usize = 256;

/// Tells of what comes. Whatever ends it before all has come is heard by those who wait.
struct Telling(Arc<Arrivals>);

impl Drop for Telling {
    fn drop(&mut self) {
        self.0.lose();
    }
}

/// A page by its hash.
type Content = ([u8; 32], Page);

/// The supply of pages for one process.
pub(super) struct Supply {
    pages: Vec<Offered>,
    /// Their places, in the order of their hashes: equal content is fetched once.
    by_hash: Vec<u32>,
    image: FlatAhead,
    telling: Telling,
    /// The place of the first page in the image.
    first: u64,
    /// What is there or has been asked for.
    begun: Vec<bool>,
    /// Places that come before the others.
    first_of_all: VecDeque<u32>,
    /// All pages in front of this one are begun.
    next: usize,
    /// What was asked for and has not come, in order.
    out: VecDeque<u32>,
    /// Places in the image that somebody waits for.
    waited_for: Vec<u64>,
    /// Pages that have not come.
    left: usize,
    /// Pages that were fetched.
    pub(super) fetched: u64,
}

impl Supply {
    /// Of these pages, which are ascending; those that are `wanted` come before the others.
    pub(super) fn new(
        store: &Store,
        pages: Vec<Offered>,
        wanted: &PageSet,
        incoming: &mut Incoming,
    ) -> Result<Self> {
        let image = store.flat_awaiting(pages.iter().map(|page| page.addr))?;
        let first = pages.first().and_then(|page| image.place(page.addr));
        let mut by_hash: Vec<u32> = (0..pages.len() as u32).collect();
        by_hash.sort_unstable_by_key(|place| pages[*place as usize].hash);
        let is_wanted = |place: &u32| wanted.contains(pages[*place as usize].addr);
        let first_of_all = (0..pages.len() as u32).filter(is_wanted).collect();
        let mut supply = Self {
            telling: Telling(Arc::new(Arrivals::new(image.pages())?)),
            first: first.unwrap_or(0),
            begun: vec![false; pages.len()],
            first_of_all,
            next: 0,
            out: VecDeque::new(),
            waited_for: Vec::new(),
            left: pages.len(),
            fetched: 0,
            pages,
            by_hash,
            image,
        };
        // It is known what these are.
        let zeroes = Encoded {
            encoding: Encoding::Zero,
            bytes: Vec::new(),
        };
        let mut page = [0; PAGE_SIZE as usize];
        let hash = *blake3::hash(&page).as_bytes();
        if !supply.alike(&hash).is_empty() && incoming.add(&hash, &zeroes, &mut page)? {
            supply.put(&[(hash, page)])?;
        }
        Ok(supply)
    }

    /// What tells of the pages that have come.
    pub(super) fn arrivals(&self) -> Arc<Arrivals> {
        Arc::clone(&self.telling.0)
    }

    /// The image, of which pages are missing.
    pub(super) fn image(&self) -> Result<Flat> {
        Ok(self.image.image()?)
    }

    /// All pages have come.
    pub(super) fn is_whole(&self) -> bool {
        self.left == 0
    }

    /// Pages that were asked for and have not come.
    pub(super) fn outstanding(&self) -> usize {
        self.out.len()
    }

    /// All has come: nobody has to wait any more. Gives the image and the pages that it has.
    pub(super) fn end(self) -> (FlatAhead, Vec<Offered>) {
        self.telling.0.end();
        (self.image, self.pages)
    }

    /// The places that have some content.
    fn alike(&self, hash: &[u8; 32]) -> std::ops::Range<usize> {
        let hash_of = |place: &u32| &self.pages[*place as usize].hash;
        let start = self.by_hash.partition_point(|place| hash_of(place) < hash);
        let len = self.by_hash[start..].partition_point(|place| hash_of(place) == hash);
        start..start + len
    }

    /// Some contents have come.
    fn put(&mut self, contents: &[Content]) -> Result<()> {
        let mut places: Vec<(u32, &Page)> = Vec::new();
        for (hash, page) in contents {
            let alike = &self.by_hash[self.alike(hash)];
            places.extend(alike.iter().map(|place| (*place, page)));
        }
        places.sort_unstable_by_key(|(place, _)| *place);
        let follows = |(a, _): &(u32, &Page), (b, _): &(u32, &Page)| a + 1 == *b;
        // Bounded: any number of places may have one content.
        let runs = places.chunk_by(follows);
        for run in runs.flat_map(|run| run.chunks(WRITTEN)) {
            let first = self.first + u64::from(run[0].0);
            // The image is zeroes where nothing has been written.
            if run
                .iter()
                .any(|(_, page)| page.iter().any(|byte| *byte != 0))
            {
                let bytes: Vec<u8> = run.iter().flat_map(|(_, page)| **page).collect();
                self.image.put(first, &bytes)?;
            }
            for ((place, _), in_image) in run.iter().zip(first..) {
                self.begun[*place as usize] = true;
                self.left -= usize::from(!self.telling.0.has(in_image));
                self.telling.0.put(in_image);
            }
        }
        let waiting = self.waited_for.len();
        self.waited_for.retain(|place| !self.telling.0.has(*place));
        if self.waited_for.len() < waiting {
            self.telling.0.tell();
        }
        Ok(())
    }

    /// Addresses of the pages to be fetched that somebody waits for, with those around them. What the target has of
    /// them is put in its place.
    pub(super) fn waited_for(&mut self, incoming: &mut Incoming) -> Result<Vec<u64>> {
        let mut wanted = Vec::new();
        for in_image in self.telling.0.asked_for(ASKED) {
            let place = in_image.saturating_sub(self.first) as usize;
            let first = place - place % AROUND;
            wanted.extend(first..(first + AROUND).min(self.pages.len()));
            self.waited_for.push(in_image);
        }
        self.begin(wanted, incoming)
    }

    /// Addresses of some pages to be fetched that nobody waits for yet: so many are looked at.
    pub(super) fn others(&mut self, most: usize, incoming: &mut Incoming) -> Result<Vec<u64>> {
        let wanted = self.first_of_all.len().min(most);
        let wanted: Vec<u32> = self.first_of_all.drain(..wanted).collect();
        let next = self.next;
        self.next = (next + most - wanted.len()).min(self.pages.len());
        let wanted = wanted.into_iter().map(|place| place as usize);
        self.begin(wanted.chain(next..self.next), incoming)
    }

    /// Sees to it that pages come, unless that has been done. Gives the addresses of those that have to be fetched.
    fn begin(
        &mut self,
        places: impl IntoIterator<Item = usize>,
        incoming: &mut Incoming,
    ) -> Result<Vec<u64>> {
        let mut fetch = Vec::new();
        let mut there = Vec::new();
        for place in places {
            if self.begun[place] {
                continue;
            }
            let Offered { addr, hash } = self.pages[place];
            for at in self.alike(&hash) {
                self.begun[self.by_hash[at] as usize] = true;
            }
            let mut page = [0; PAGE_SIZE as usize];
            if incoming.read(&hash, &mut page)? {
                there.push((hash, page));
            } else {
                self.out.push_back(place as u32);
                fetch.push(addr);
            }
        }
        self.put(&there)?;
        Ok(fetch)
    }

    /// Pages that were fetched have come. `false`: they are not those that were asked for.
    pub(super) fn take(&mut self, pages: &[Encoded], incoming: &mut Incoming) -> Result<bool> {
        let mut came = Vec::with_capacity(pages.len());
        for encoded in pages {
            let Some(place) = self.out.pop_front() else {
                return Ok(false);
            };
            let hash = self.pages[place as usize].hash;
            let mut page = [0; PAGE_SIZE as usize];
            if !incoming.add(&hash, encoded, &mut page)? {
                return Ok(false);
            }
            came.push((hash, page));
        }
        self.put(&came)?;
        self.fetched += came.len() as u64;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::super::serve_listed::tests::begin;
    use super::super::serve_room::Room;
    use super::*;
    use crate::wire::Link;
    use std::os::unix::fs::FileExt;
    use std::time::Duration;

    fn page(seed: u8) -> Page {
        let mut page = [seed; PAGE_SIZE as usize];
        page[0] = seed.wrapping_add(1);
        page
    }

    fn offered(pages: &[(u64, Page)]) -> Vec<Offered> {
        let offered = |(number, page): &(u64, Page)| Offered {
            addr: number * PAGE_SIZE,
            hash: *blake3::hash(page).as_bytes(),
        };
        pages.iter().map(offered).collect()
    }

    fn raw(page: &Page) -> Encoded {
        Encoded {
            encoding: Encoding::Raw,
            bytes: page.to_vec(),
        }
    }

    /// What comes over a connection into a store.
    fn incoming(store: &Store) -> Incoming {
        let (_source, mut target) = Link::pair(Duration::from_secs(20));
        incoming_from(store, &mut target)
    }

    /// The same over a connection from somebody who may come again.
    fn incoming_from(store: &Store, target: &mut Link) -> Incoming {
        let begin = begin();
        Incoming::new(store, &Arc::new(Room::new(None)), target, &begin).unwrap()
    }

    fn new_store() -> (Store, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open_or_create(&folder.path().join("store")).unwrap();
        (store, folder)
    }

    #[test]
    fn each_content_is_fetched_once_and_comes_to_all_its_places() {
        let (store, _folder) = new_store();
        let mut incoming = incoming(&store);
        let zeroes = [0; PAGE_SIZE as usize];
        let all = [
            (1, page(7)),
            (2, page(8)),
            (3, zeroes),
            (9, page(7)),
            (10, page(9)),
        ];
        let mut supply =
            Supply::new(&store, offered(&all), &PageSet::new(), &mut incoming).unwrap();
        let arrivals = supply.arrivals();
        let first = supply.first;
        assert!(arrivals.has(first + 2) && !arrivals.has(first));
        let fetch = supply.others(4, &mut incoming).unwrap();
        assert_eq!(fetch, [PAGE_SIZE, 2 * PAGE_SIZE]);
        assert_eq!(supply.outstanding(), 2);
        assert!(supply.take(&[raw(&page(7))], &mut incoming).unwrap());
        assert!(arrivals.has(first) && !arrivals.has(first + 1) && arrivals.has(first + 3));
        let fetch = supply.others(4, &mut incoming).unwrap();
        assert_eq!(fetch, [10 * PAGE_SIZE]);
        let rest = [raw(&page(8)), raw(&page(9))];
        assert!(!supply.is_whole());
        assert!(supply.take(&rest, &mut incoming).unwrap());
        assert!(supply.is_whole() && supply.fetched == 3);
        let image = supply.image().unwrap();
        for piece in &image.pieces {
            for (addr, offset) in piece.range.iter().zip((piece.offset..).step_by(4096)) {
                let mut there = [1; PAGE_SIZE as usize];
                image.file.read_exact_at(&mut there, offset).unwrap();
                let (_, page) = all.iter().find(|(n, _)| n * PAGE_SIZE == addr).unwrap();
                assert!(there == *page, "{addr:#x}");
            }
        }
    }

    #[test]
    fn what_is_waited_for_comes_first_with_what_is_around_it() {
        let (store, _folder) = new_store();
        let mut incoming = incoming(&store);
        let all: Vec<(u64, Page)> = (0..100).map(|n| (n, page(n as u8 + 1))).collect();
        let mut supply =
            Supply::new(&store, offered(&all), &PageSet::new(), &mut incoming).unwrap();
        assert_eq!(supply.others(2, &mut incoming).unwrap().len(), 2);
        let (arrivals, first) = (supply.arrivals(), supply.first);
        arrivals.ask(first + 50);
        arrivals.ask(first + 1);
        let fetch = supply.waited_for(&mut incoming).unwrap();
        let numbers: Vec<u64> = fetch.iter().map(|addr| addr / PAGE_SIZE).collect();
        let around: Vec<u64> = (48..64).chain(2..16).collect();
        assert_eq!(numbers, around);
        // What is asked for already is not asked for again.
        assert_eq!(supply.others(100, &mut incoming).unwrap().len(), 100 - 32);
        assert!(supply.others(100, &mut incoming).unwrap().is_empty());
    }

    #[test]
    fn pages_that_are_wanted_come_before_the_others() {
        let (store, _folder) = new_store();
        let mut incoming = incoming(&store);
        let all: Vec<(u64, Page)> = (0..10).map(|n| (n, page(n as u8 + 1))).collect();
        let wanted = PageSet::from_pages(vec![4 * PAGE_SIZE, 7 * PAGE_SIZE, 8 * PAGE_SIZE]);
        let mut supply = Supply::new(&store, offered(&all), &wanted, &mut incoming).unwrap();
        let mut others = |most| {
            let fetch = supply.others(most, &mut incoming).unwrap();
            fetch
                .iter()
                .map(|addr| addr / PAGE_SIZE)
                .collect::<Vec<_>>()
        };
        assert_eq!(others(2), [4, 7]);
        assert_eq!(others(3), [8, 0, 1]);
        assert_eq!(others(100), [2, 3, 5, 6, 9]);
    }

    #[test]
    fn what_an_earlier_attempt_left_is_not_fetched_again() {
        let (store, _folder) = new_store();
        let all: Vec<(u64, Page)> = (0..4).map(|n| (n, page(n as u8 + 1))).collect();
        let (_source, mut target) = Link::pair(Duration::from_secs(20));
        let mut first = incoming_from(&store, &mut target);
        let mut supply = Supply::new(&store, offered(&all), &PageSet::new(), &mut first).unwrap();
        assert_eq!(supply.others(3, &mut first).unwrap().len(), 3);
        let came = [raw(&page(1)), raw(&page(2))];
        assert!(supply.take(&came, &mut first).unwrap());
        drop((supply, first));
        let mut second = incoming_from(&store, &mut target);
        let mut supply = Supply::new(&store, offered(&all), &PageSet::new(), &mut second).unwrap();
        let fetch = supply.others(4, &mut second).unwrap();
        assert_eq!(fetch, [2 * PAGE_SIZE, 3 * PAGE_SIZE]);
        assert!(supply.arrivals().has(supply.first));
    }

    #[test]
    fn a_page_that_is_another_one_or_was_not_asked_for_is_not_taken() {
        let (store, _folder) = new_store();
        let mut incoming = incoming(&store);
        let all = [(1, page(7))];
        let mut supply =
            Supply::new(&store, offered(&all), &PageSet::new(), &mut incoming).unwrap();
        assert!(!supply.take(&[raw(&page(7))], &mut incoming).unwrap());
        assert_eq!(supply.others(1, &mut incoming).unwrap(), [PAGE_SIZE]);
        assert!(!supply.take(&[raw(&page(8))], &mut incoming).unwrap());
        assert!(!supply.is_whole() && !supply.arrivals().has(supply.first));
    }
}
