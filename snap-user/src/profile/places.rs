//! Page addresses counted by the mapping they lie in, while mappings come and go.

use crate::model::{Backing, PageRange, Vma};

/// Faults of one mapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub range: PageRange,
    pub name: String,
    pub count: u64,
    /// It is still mapped.
    pub mapped: bool,
}

/// What a mapping is called in reports.
pub fn name_of(vma: &Vma) -> String {
    match &vma.backing {
        Backing::Anonymous { name: None } => "[anonymous]".into(),
        Backing::Anonymous { name: Some(name) } => format!("[anon:{name}]"),
        Backing::Heap => "[heap]".into(),
        Backing::Stack => "[stack]".into(),
        Backing::Special(name) => format!("[{name}]"),
        Backing::File { path, deleted, .. } => {
            format!("{path}{}", if *deleted { " (deleted)" } else { "" })
        }
    }
}

/// Counts pages by mapping.
#[derive(Clone, Debug, Default)]
pub struct Places {
    /// Ascending, disjoint.
    mapped: Vec<Place>,
    /// Counts of mappings that are gone, at most [`Places::GONE`] of them.
    gone: Vec<Place>,
    /// Pages in no mapping known yet: the next map may have them. At most [`Places::PENDING`].
    pending: Vec<u64>,
    /// Pages whose mapping nobody will know.
    lost: u64,
    last: usize,
}

impl Places {
    const GONE: usize = 1024;
    const PENDING: usize = 64 * 1024;

    /// Counts a page.
    #[inline]
    pub fn add(&mut self, page: u64) {
        // Neighbours in time are mostly neighbours in space.
        if let Some(place) = self.mapped.get_mut(self.last)
            && place.range.contains(page)
        {
            place.count += 1;
            return;
        }
        self.look_up(page);
    }

    fn look_up(&mut self, page: u64) {
        let after = self.mapped.partition_point(|p| p.range.start <= page);
        match after.checked_sub(1).map(|at| (at, &mut self.mapped[at])) {
            Some((at, place)) if place.range.contains(page) => {
                place.count += 1;
                self.last = at;
            }
            _ if self.pending.len() < Self::PENDING => self.pending.push(page),
            _ => self.lost += 1,
        }
    }

    /// The mappings as they are now, ascending. Counts go over to the mapping of the same name
    /// that overlaps: it has grown, shrunk, or been split.
    pub fn update(&mut self, vmas: &[Vma]) {
        let same =
            |(place, vma): (&Place, &Vma)| place.range == vma.range && place.name == name_of(vma);
        if self.mapped.len() != vmas.len() || !self.mapped.iter().zip(vmas).all(same) {
            let fresh = vmas.iter().map(|vma| Place {
                range: vma.range,
                name: name_of(vma),
                count: 0,
                mapped: true,
            });
            let before = std::mem::replace(&mut self.mapped, fresh.collect());
            self.last = 0;
            before
                .into_iter()
                .filter(|p| p.count > 0)
                .for_each(|old| self.carry(old));
        }
        let pending = std::mem::take(&mut self.pending);
        for page in pending {
            self.add(page);
        }
        // Found in no map since: it was mapped and unmapped in between.
        self.lost += std::mem::take(&mut self.pending).len() as u64;
    }

    fn carry(&mut self, old: Place) {
        let from = self
            .mapped
            .partition_point(|p| p.range.end <= old.range.start);
        let heir = self.mapped[from..]
            .iter_mut()
            .take_while(|p| p.range.start < old.range.end)
            .find(|p| p.name == old.name);
        if let Some(heir) = heir {
            heir.count += old.count;
        } else if let Some(known) = self
            .gone
            .iter_mut()
            .find(|g| g.name == old.name && g.range.start == old.range.start)
        {
            known.count += old.count;
        } else if self.gone.len() < Self::GONE {
            self.gone.push(Place {
                mapped: false,
                ..old
            });
        } else {
            self.lost += old.count;
        }
    }

    /// Every mapping with a count, the highest first.
    pub fn top(&self, n: usize) -> Vec<Place> {
        let mut all: Vec<Place> = self
            .mapped
            .iter()
            .chain(&self.gone)
            .filter(|p| p.count > 0)
            .cloned()
            .collect();
        all.sort_by_key(|p| (std::cmp::Reverse(p.count), p.range.start));
        all.truncate(n);
        all
    }

    /// Pages that are counted to no mapping.
    pub fn unplaced(&self) -> u64 {
        self.lost + self.pending.len() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{PAGE_SIZE, Protection};
    use proptest::prelude::*;

    fn vma(start: u64, end: u64, backing: Backing) -> Vma {
        Vma {
            range: PageRange::new(start * PAGE_SIZE, end * PAGE_SIZE),
            prot: Protection::default(),
            shared: false,
            backing,
            flags: Vec::new(),
            build_id: None,
        }
    }

    fn anon() -> Backing {
        Backing::Anonymous { name: None }
    }

    #[test]
    fn counts_follow_a_heap_that_grows_and_stay_with_a_mapping_that_goes() {
        let mut places = Places::default();
        places.update(&[vma(10, 20, Backing::Heap), vma(30, 40, anon())]);
        for page in [10, 19, 35] {
            places.add(page * PAGE_SIZE);
        }
        places.add(25 * PAGE_SIZE);
        assert_eq!(places.unplaced(), 1);
        places.update(&[vma(10, 28, Backing::Heap)]);
        places.add(27 * PAGE_SIZE);
        let top: Vec<_> = places
            .top(9)
            .into_iter()
            .map(|p| (p.name, p.count, p.mapped))
            .collect();
        assert_eq!(
            top,
            [
                ("[heap]".to_owned(), 4, true),
                ("[anonymous]".to_owned(), 1, false)
            ]
        );
        assert_eq!(places.unplaced(), 0);
    }

    proptest! {
        #[test]
        fn no_page_is_counted_twice_or_forgotten(
            rounds in proptest::collection::vec(
                (proptest::collection::btree_set(0u64..64, 0..12), proptest::collection::vec(0u64..64, 0..60)),
                1..6,
            )
        ) {
            let mut places = Places::default();
            let mut added = 0;
            for (cuts, pages) in rounds {
                let cuts: Vec<u64> = cuts.into_iter().collect();
                let vmas: Vec<Vma> = cuts.as_chunks::<2>().0.iter()
                    .map(|c| vma(c[0], c[1], if c[0] % 2 == 0 { Backing::Heap } else { anon() })).collect();
                places.update(&vmas);
                for page in pages {
                    places.add(page * PAGE_SIZE);
                    added += 1;
                }
            }
            let placed: u64 = places.top(usize::MAX).iter().map(|p| p.count).sum();
            prop_assert_eq!(placed + places.unplaced(), added);
        }
    }
}
