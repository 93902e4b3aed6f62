//! Counters of the most frequent keys of a stream, in bounded memory.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// Spreads a 64-bit key by one multiplication. The keys are addresses and thread ids of the
/// program being watched: at worst it slows its own profile down, to a bounded degree.
#[derive(Clone, Copy, Debug, Default)]
pub struct FastHash(u64);

impl Hasher for FastHash {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|b| self.write_u64(u64::from(*b)));
    }

    fn write_u64(&mut self, key: u64) {
        // The table takes its position from the low bits and its tag from the high ones.
        let mixed = (self.0 ^ key).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ (mixed >> 32);
    }
}

/// A key with how often it came: at least `count`, at most `count + error`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counted {
    pub key: u64,
    pub count: u64,
    pub error: u64,
}

/// Counts keys, and forgets rare ones when there are too many: of `n` keys counted in all, each
/// that came more than `2 n / capacity` times is still there. (The frequent-items algorithm of
/// Misra and Gries, with purging by the median.)
#[derive(Clone, Debug)]
pub struct HeavyHitters {
    counts: HashMap<u64, u64, BuildHasherDefault<FastHash>>,
    capacity: usize,
    /// The most that any key can have lost to purges.
    error: u64,
    total: u64,
}

impl HeavyHitters {
    /// Keeps at most `capacity` keys; at least 2.
    pub fn new(capacity: usize) -> Self {
        Self {
            counts: HashMap::with_capacity_and_hasher(
                capacity.max(2) + 1,
                BuildHasherDefault::default(),
            ),
            capacity: capacity.max(2),
            error: 0,
            total: 0,
        }
    }

    /// Counts a key.
    #[inline]
    pub fn add(&mut self, key: u64) {
        self.total += 1;
        *self.counts.entry(key).or_insert(0) += 1;
        if self.counts.len() > self.capacity {
            self.purge();
        }
    }

    /// Takes the median count off every key: half of them or more go, so that the next purge is
    /// at least as many additions away.
    #[cold]
    fn purge(&mut self) {
        let mut counts: Vec<u64> = self.counts.values().copied().collect();
        let middle = counts.len() / 2;
        let median = *counts.select_nth_unstable(middle).1;
        self.error += median;
        self.counts.retain(|_, count| {
            *count = count.saturating_sub(median);
            *count > 0
        });
    }

    /// Keys counted in all.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// The `n` most frequent, most frequent first.
    pub fn top(&self, n: usize) -> Vec<Counted> {
        let mut all: Vec<Counted> = self
            .counts
            .iter()
            .map(|(&key, &count)| Counted {
                key,
                count,
                error: self.error,
            })
            .collect();
        all.sort_unstable_by_key(|c| (std::cmp::Reverse(c.count), c.key));
        all.truncate(n);
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn keeps_every_true_heavy_hitter_and_bounds_its_count(
            // Few frequent keys among many rare ones, in random order.
            keys in proptest::collection::vec(prop_oneof![0u64..4, 0u64..2_000], 1..3_000),
            capacity in 4usize..64,
        ) {
            let mut counter = HeavyHitters::new(capacity);
            let mut exact: HashMap<u64, u64> = HashMap::new();
            for &key in &keys {
                counter.add(key);
                *exact.entry(key).or_default() += 1;
                prop_assert!(counter.counts.len() <= capacity);
            }
            let found: HashMap<u64, Counted> = counter.top(usize::MAX).into_iter().map(|c| (c.key, c)).collect();
            let bound = 2 * keys.len() as u64 / capacity as u64;
            for (key, count) in exact {
                match found.get(&key) {
                    Some(c) => prop_assert!(c.count <= count && count <= c.count + c.error),
                    None => prop_assert!(count <= bound, "{key} came {count} times and was lost"),
                }
            }
            prop_assert_eq!(counter.total(), keys.len() as u64);
        }
    }

    #[test]
    fn counts_exactly_while_there_is_room_and_orders_by_count() {
        let mut counter = HeavyHitters::new(8);
        for (key, times) in [(7, 3), (9, 5), (1, 1)] {
            (0..times).for_each(|_| counter.add(key));
        }
        let top: Vec<_> = counter
            .top(2)
            .iter()
            .map(|c| (c.key, c.count, c.error))
            .collect();
        assert_eq!(top, [(9, 5, 0), (7, 3, 0)]);
    }
}
