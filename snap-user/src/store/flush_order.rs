//! Which snapshots a flush copies first, and of which numbers the other store knows.

use super::chain::Listing;
use super::meta::SnapshotMeta;
use std::collections::{BTreeMap, BTreeSet};

pub(super) fn will_have_set(
    have: &Listing,
    missing: &BTreeMap<u32, SnapshotMeta>,
) -> BTreeSet<u32> {
    have.by_seq.keys().chain(missing.keys()).copied().collect()
}

/// Ranges, first and last, without these numbers.
pub(super) fn without(ranges: &[(u32, u32)], numbers: &BTreeSet<u32>) -> Vec<(u32, u32)> {
    let mut left = Vec::new();
    for &(first, last) in ranges {
        let mut from = Some(first);
        for &number in numbers.range(first..=last) {
            match from {
                Some(from) if from < number => left.push((from, number - 1)),
                _ => {}
            }
            from = number.checked_add(1);
        }
        left.extend(from.filter(|from| *from <= last).map(|from| (from, last)));
    }
    left
}

/// In which order to copy: the chain of the newest first, then those of the others, each from its beginning.
///
/// What a snapshot needs is on its way to the root, as far as the other store does not have it. Where that way leads
/// through one that was removed, it may go on to any that is older: all of them come first then.
pub(super) fn order(
    missing: &BTreeMap<u32, SnapshotMeta>,
    is_there: &dyn Fn(u32) -> bool,
) -> Vec<u32> {
    let mut ordered = Vec::with_capacity(missing.len());
    let mut placed: BTreeSet<u32> = BTreeSet::new();
    for &newest in missing.keys().rev() {
        let mut chain: BTreeSet<u32> = BTreeSet::new();
        let mut next = Some(newest);
        while let Some(seq) = next
            && !placed.contains(&seq)
        {
            chain.insert(seq);
            let parent = missing[&seq].parent_seq;
            next = missing.contains_key(&parent).then_some(parent);
            if next.is_none() && parent != 0 && !is_there(parent) {
                let older = missing.range(..seq).map(|(older, _)| *older);
                chain.extend(older.filter(|older| !placed.contains(older)));
            }
        }
        placed.extend(&chain);
        ordered.extend(chain);
    }
    ordered
}

#[cfg(test)]
mod tests {
    use super::without;

    #[test]
    fn numbers_are_taken_out_of_ranges() {
        let of =
            |numbers: &[u32]| without(&[(1, 5), (9, u32::MAX)], &numbers.iter().copied().collect());
        assert_eq!(of(&[]), [(1, 5), (9, u32::MAX)]);
        assert_eq!(of(&[1, 3, 5, 7]), [(2, 2), (4, 4), (9, u32::MAX)]);
        assert_eq!(of(&[9, 10, u32::MAX]), [(1, 5), (11, u32::MAX - 1)]);
        assert_eq!(without(&[(2, 2)], &[2].into()), []);
    }
}
