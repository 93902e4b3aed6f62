//! Which mappings to make, remove and protect so that one address space becomes another.

use crate::model::{Backing, PageRange, Protection, Vma};
use std::collections::HashSet;

/// A change of the address space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MapOp {
    /// Remove whatever is mapped there.
    Unmap(PageRange),
    /// Map this, over whatever is there. The range may be part of the snapshot's mapping.
    Map(Vma),
    /// Change the protection.
    Protect(PageRange, Protection),
}

/// Both are pieces of the same memory: only protection may differ.
fn same_memory(a: &Vma, b: &Vma) -> bool {
    if a.shared != b.shared {
        return false;
    }
    match (&a.backing, &b.backing) {
        (Backing::Special(x), Backing::Special(y)) => x == y,
        (
            Backing::File {
                dev, inode, offset, ..
            },
            Backing::File {
                dev: dev2,
                inode: inode2,
                offset: offset2,
                ..
            },
        ) => {
            (dev, inode) == (dev2, inode2)
                && offset.wrapping_sub(a.range.start) == offset2.wrapping_sub(b.range.start)
        }
        _ => a.is_private_anonymous() && b.is_private_anonymous(),
    }
}

/// The part of a mapping within `range`.
fn part(vma: &Vma, range: PageRange) -> Vma {
    let mut part = vma.clone();
    if let Backing::File { offset, .. } = &mut part.backing {
        *offset += range.start - vma.range.start;
    }
    part.range = range;
    part
}

/// The mappings as they will be once the program break is set to `brk`.
pub(super) fn with_brk(vmas: &[Vma], start_brk: u64, brk: u64) -> Vec<Vma> {
    let end = crate::model::page_up(brk);
    let heap_end = vmas
        .iter()
        .filter(|v| v.backing == Backing::Heap)
        .map(|v| v.range.end)
        .max();
    let now = heap_end.unwrap_or(crate::model::page_up(start_brk));
    let mut after: Vec<Vma> = Vec::with_capacity(vmas.len() + 1);
    for vma in vmas {
        if vma.backing == Backing::Heap && vma.range.end > end {
            if vma.range.start < end {
                after.push(part(
                    vma,
                    PageRange {
                        start: vma.range.start,
                        end,
                    },
                ));
            }
        } else {
            after.push(vma.clone());
        }
    }
    if end > now {
        after.push(Vma {
            range: PageRange { start: now, end },
            prot: Protection {
                read: true,
                write: true,
                exec: false,
            },
            shared: false,
            backing: Backing::Heap,
            flags: Vec::new(),
            build_id: None,
        });
        after.sort_by_key(|v| v.range.start);
    }
    after
}

fn at(vmas: &[Vma], addr: u64) -> Option<&Vma> {
    let after = vmas.partition_point(|v| v.range.start <= addr);
    vmas[..after].last().filter(|v| v.range.contains(addr))
}

/// Mappings to be made anew as a whole, by their first address, because a part of them is missing. The kernel
/// does not join the missing part to the one that is there once both are written, and mremap(2) refuses to take
/// two mappings for one.
fn mapped_anew(target: &[Vma], live: &[Vma]) -> HashSet<u64> {
    let is_whole = |want: &Vma| {
        let mut at_addr = want.range.start;
        while at_addr < want.range.end {
            match at(live, at_addr) {
                Some(have) if same_memory(want, have) => at_addr = have.range.end,
                _ => return false,
            }
        }
        true
    };
    target
        .iter()
        .filter(|v| !v.shared)
        .filter(|v| matches!(v.backing, Backing::Anonymous { .. } | Backing::File { .. }))
        .filter(|v| !is_whole(v))
        .map(|v| v.range.start)
        .collect()
}

/// What turns `live` into `target`, ascending. Pieces that differ in nothing bring no change.
pub(super) fn difference(target: &[Vma], live: &[Vma]) -> Vec<MapOp> {
    let mut cuts: Vec<u64> = target
        .iter()
        .chain(live)
        .flat_map(|v| [v.range.start, v.range.end])
        .collect();
    cuts.sort_unstable();
    cuts.dedup();
    let anew = mapped_anew(target, live);
    let mut ops: Vec<MapOp> = Vec::new();
    for pair in cuts.windows(2) {
        let range = PageRange {
            start: pair[0],
            end: pair[1],
        };
        let op = match (at(target, range.start), at(live, range.start)) {
            (None, None) => continue,
            (None, Some(_)) => MapOp::Unmap(range),
            (Some(want), None) => MapOp::Map(part(want, range)),
            (Some(want), Some(_)) if anew.contains(&want.range.start) => {
                MapOp::Map(part(want, range))
            }
            (Some(want), Some(have)) if !same_memory(want, have) => MapOp::Map(part(want, range)),
            (Some(want), Some(have)) if want.prot != have.prot => MapOp::Protect(range, want.prot),
            (Some(_), Some(_)) => continue,
        };
        if !ops.last_mut().is_some_and(|last| join(last, &op)) {
            ops.push(op);
        }
    }
    ops
}

/// Adds `next` to `last` when both are one piece of the same change.
fn join(last: &mut MapOp, next: &MapOp) -> bool {
    match (last, next) {
        (MapOp::Unmap(a), MapOp::Unmap(b)) if a.end == b.start => a.end = b.end,
        (MapOp::Protect(a, p), MapOp::Protect(b, q)) if a.end == b.start && p == q => a.end = b.end,
        (MapOp::Map(a), MapOp::Map(b))
            if a.range.end == b.range.start && a.prot == b.prot && same_memory(a, b) =>
        {
            a.range.end = b.range.end;
        }
        _ => return false,
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const P: u64 = crate::model::PAGE_SIZE;

    fn anon(start: u64, end: u64, write: bool) -> Vma {
        Vma {
            range: PageRange::new(start * P, end * P),
            prot: Protection {
                read: true,
                write,
                exec: false,
            },
            shared: false,
            backing: Backing::Anonymous { name: None },
            flags: Vec::new(),
            build_id: None,
        }
    }

    fn file(start: u64, end: u64, inode: u64, offset: u64) -> Vma {
        Vma {
            backing: Backing::File {
                path: format!("/f{inode}"),
                deleted: false,
                dev: (8, 1),
                inode,
                offset: offset * P,
            },
            ..anon(start, end, false)
        }
    }

    /// What each page is: nothing, or memory of some identity with a protection.
    type Space = Vec<Option<(bool, u64, u64, bool)>>;

    fn space(vmas: &[Vma]) -> Space {
        (0..40)
            .map(|n| {
                at(vmas, n * P).map(|v| match &v.backing {
                    Backing::File { inode, offset, .. } => {
                        (true, *inode, offset + (n * P - v.range.start), v.prot.write)
                    }
                    _ => (false, 0, 0, v.prot.write),
                })
            })
            .collect()
    }

    fn apply(live: &[Vma], ops: &[MapOp]) -> Space {
        let mut result = space(live);
        for op in ops {
            match op {
                MapOp::Unmap(range) => range.iter().for_each(|a| result[(a / P) as usize] = None),
                MapOp::Map(vma) => {
                    let new = space(std::slice::from_ref(vma));
                    vma.range
                        .iter()
                        .for_each(|a| result[(a / P) as usize] = new[(a / P) as usize]);
                }
                MapOp::Protect(range, prot) => {
                    for addr in range.iter() {
                        result[(addr / P) as usize].as_mut().expect("mapped").3 = prot.write;
                    }
                }
            }
        }
        result
    }

    fn any_space() -> impl Strategy<Value = Vec<Vma>> {
        let piece = (0u64..3, 1u64..5, 0u8..4, any::<bool>());
        proptest::collection::vec(piece, 0..8).prop_map(|pieces| {
            let mut at = 0;
            let mut vmas = Vec::new();
            for (gap, len, kind, write) in pieces {
                let (start, end) = (at + gap, at + gap + len);
                at = end;
                vmas.push(match kind {
                    0 | 1 => anon(start, end, write),
                    2 => file(start, end, 1, start),
                    _ => file(start, end, 2, 0),
                });
            }
            vmas
        })
    }

    proptest! {
        #[test]
        fn one_address_space_becomes_the_other(target in any_space(), live in any_space()) {
            prop_assert_eq!(apply(&live, &difference(&target, &live)), space(&target));
        }
    }

    #[test]
    fn nothing_differs_when_only_names_and_splits_do() {
        let mut named = anon(4, 8, true);
        named.backing = Backing::Heap;
        assert!(difference(&[anon(2, 8, true)], &[anon(2, 4, true), named]).is_empty());
    }

    #[test]
    fn a_mapping_of_which_a_part_is_missing_is_made_anew_in_one_piece() {
        let whole = anon(2, 8, true);
        let ops = difference(std::slice::from_ref(&whole), &[anon(2, 4, true)]);
        assert_eq!(ops, [MapOp::Map(whole)]);
    }

    #[test]
    fn the_break_grows_and_shrinks_the_heap_alone() {
        let heap = |start, end| Vma {
            backing: Backing::Heap,
            ..anon(start, end, true)
        };
        let live = [heap(4, 10), anon(12, 14, true)];
        assert_eq!(
            with_brk(&live, 4 * P, 6 * P + 5),
            [heap(4, 7), anon(12, 14, true)]
        );
        assert_eq!(with_brk(&live, 4 * P, 4 * P), [anon(12, 14, true)]);
        assert_eq!(
            with_brk(&live, 4 * P, 11 * P),
            [heap(4, 10), heap(10, 11), anon(12, 14, true)]
        );
        assert_eq!(with_brk(&[], 4 * P, 6 * P), [heap(4, 6)]);
    }
}
