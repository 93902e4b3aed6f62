//! What an address space still lacks, and where the content of it is.

use super::pager::Piece;
use crate::model::{PAGE_SIZE, PageRange};
use std::collections::BTreeMap;

/// Missing memory. What touches each other in memory and in the image is one piece.
#[derive(Clone, Debug, Default)]
pub(super) struct Missing {
    /// By the first address: the end, and the offset of the content.
    pieces: BTreeMap<u64, (u64, u64)>,
}

fn piece((start, (end, offset)): (&u64, &(u64, u64))) -> Piece {
    Piece {
        range: PageRange {
            start: *start,
            end: *end,
        },
        offset: *offset,
    }
}

impl Missing {
    pub(super) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// The address space is gone: it lacks nothing any more.
    pub(super) fn clear(&mut self) {
        self.pieces.clear();
    }

    /// All pieces, ascending.
    pub(super) fn iter(&self) -> impl Iterator<Item = Piece> + '_ {
        self.pieces.iter().map(piece)
    }

    /// The piece that has an address.
    pub(super) fn at(&self, addr: u64) -> Option<Piece> {
        let last = self.pieces.range(..=addr).next_back().map(piece);
        last.filter(|piece| addr < piece.range.end)
    }

    /// Adds what is not in it.
    pub(super) fn insert(&mut self, added: Piece) {
        let Piece {
            range: PageRange { mut start, mut end },
            mut offset,
        } = added;
        let before = self.pieces.range(..start).next_back().map(piece);
        if let Some(before) =
            before.filter(|p| p.range.end == start && p.offset + p.range.len() == offset)
        {
            self.pieces.remove(&before.range.start);
            (start, offset) = (before.range.start, before.offset);
        }
        if let Some((after_end, after)) = self.pieces.get(&end).copied()
            && after == offset + (end - start)
        {
            self.pieces.remove(&end);
            end = after_end;
        }
        self.pieces.insert(start, (end, offset));
    }

    /// Takes a range out, and gives what was in it, ascending.
    pub(super) fn cut(&mut self, range: PageRange) -> Vec<Piece> {
        let first = self.pieces.range(..range.start).next_back().map(piece);
        let rest = self.pieces.range(range.start..range.end).map(piece);
        let touched: Vec<Piece> = first.into_iter().chain(rest).collect();
        let mut taken = Vec::new();
        for old in touched {
            let Some(inside) = old.range.intersect(&range) else {
                continue;
            };
            let PageRange { start, end } = old.range;
            self.pieces.remove(&start);
            if start < inside.start {
                self.pieces.insert(start, (inside.start, old.offset));
            }
            if inside.end < end {
                let offset = old.offset + (inside.end - start);
                self.pieces.insert(inside.end, (end, offset));
            }
            taken.push(Piece {
                range: inside,
                offset: old.offset + (inside.start - start),
            });
        }
        taken
    }

    /// Takes out of a range what `fill` has filled: of that whose content `is_there`, by its offset, it is called with
    /// each piece. What it gives back has to be tried again, with all that is behind it. `false` then.
    pub(super) fn fill(
        &mut self,
        range: PageRange,
        is_there: &dyn Fn(u64) -> bool,
        fill: &mut dyn FnMut(Piece) -> Result<(), Piece>,
    ) -> bool {
        let cut = self.cut(range).into_iter();
        let mut taken = cut.flat_map(|piece| runs(piece, is_there));
        while let Some((piece, there)) = taken.next() {
            if let Err(rest) = if there { fill(piece) } else { Err(piece) } {
                self.insert(rest);
                if there {
                    taken.for_each(|(piece, _)| self.insert(piece));
                    return false;
                }
            }
        }
        true
    }
}

/// A piece in parts that are there as a whole, or not at all.
fn runs(piece: Piece, is_there: &dyn Fn(u64) -> bool) -> Vec<(Piece, bool)> {
    let mut runs: Vec<(Piece, bool)> = Vec::new();
    for addr in piece.range.iter() {
        let offset = piece.offset + (addr - piece.range.start);
        let there = is_there(offset);
        match runs.last_mut() {
            Some((last, alike)) if *alike == there => last.range.end += PAGE_SIZE,
            _ => {
                let range = PageRange::new(addr, addr + PAGE_SIZE);
                runs.push((Piece { range, offset }, there));
            }
        }
    }
    runs
}

impl FromIterator<Piece> for Missing {
    fn from_iter<I: IntoIterator<Item = Piece>>(pieces: I) -> Self {
        let mut missing = Self::default();
        pieces.into_iter().for_each(|piece| missing.insert(piece));
        missing
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::PAGE_SIZE as P;

    fn range(start: u64, end: u64) -> PageRange {
        PageRange::new(start * P, end * P)
    }

    fn piece(start: u64, end: u64, offset: u64) -> Piece {
        Piece {
            range: range(start, end),
            offset: offset * P,
        }
    }

    fn all(missing: &Missing) -> Vec<Piece> {
        missing.iter().collect()
    }

    #[test]
    fn cutting_keeps_what_is_left_with_its_content() {
        let mut missing = Missing::from_iter([piece(10, 20, 100), piece(30, 40, 110)]);
        let taken = missing.cut(range(15, 32));
        assert_eq!(all(&missing), [piece(10, 15, 100), piece(32, 40, 112)]);
        assert_eq!(taken, [piece(15, 20, 105), piece(30, 32, 110)]);
        assert_eq!(missing.cut(range(15, 32)), []);
        missing.cut(range(12, 13));
        let left = [piece(10, 12, 100), piece(13, 15, 103), piece(32, 40, 112)];
        assert_eq!(all(&missing), left);
        assert_eq!(missing.at(14 * P), Some(piece(13, 15, 103)));
        assert_eq!(missing.at(15 * P), None);
    }

    #[test]
    fn what_is_put_back_is_one_piece_again_where_its_content_is_one() {
        let whole = piece(10, 20, 100);
        let mut missing = Missing::from_iter([whole]);
        let middle = missing.cut(range(13, 17));
        middle.into_iter().for_each(|piece| missing.insert(piece));
        assert_eq!(all(&missing), [whole]);
        // Neighbours in memory, and not in the image.
        let other = piece(20, 21, 50);
        missing.insert(other);
        assert_eq!(all(&missing), [whole, other]);
    }

    #[test]
    fn nothing_is_lost_behind_what_has_to_be_tried_again() {
        let pieces = [piece(10, 12, 100), piece(14, 16, 102), piece(18, 20, 104)];
        let mut missing = Missing::from_iter(pieces);
        let mut filled = Vec::new();
        let done = missing.fill(range(11, 19), &|_| true, &mut |given| {
            filled.push(given);
            match filled.len() {
                1 => Ok(()),
                // A part of it came.
                _ => Err(piece(15, 16, 103)),
            }
        });
        assert!(!done);
        assert_eq!(filled, [piece(11, 12, 101), piece(14, 16, 102)]);
        let left = [piece(10, 11, 100), piece(15, 16, 103), piece(18, 20, 104)];
        assert_eq!(all(&missing), left);
        assert!(missing.fill(range(0, 30), &|_| true, &mut |_| Ok(())));
        assert!(missing.is_empty());
    }

    #[test]
    fn what_has_not_come_stays_missing_and_the_rest_is_filled() {
        let mut missing = Missing::from_iter([piece(10, 16, 100), piece(20, 21, 106)]);
        let mut filled = Vec::new();
        let is_there = |offset| ![102 * P, 103 * P].contains(&offset);
        let done = missing.fill(range(0, 30), &is_there, &mut |given| {
            filled.push(given);
            Ok(())
        });
        assert!(done);
        let came = [piece(10, 12, 100), piece(14, 16, 104), piece(20, 21, 106)];
        assert_eq!(filled, came);
        assert_eq!(all(&missing), [piece(12, 14, 102)]);
    }
}
