//! Where a page's content is stored within a session.

use std::num::NonZeroU32;

/// Where a page's content is stored: the snapshot file by sequence number, the page by its place in that file's index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Location {
    /// Sequence number of the snapshot within the session, from 1.
    pub seq: NonZeroU32,
    /// Place in that snapshot's page index, from 0.
    pub slot: u32,
}

/// Bytes of a number without its leading zeroes.
fn len(number: u32) -> usize {
    4 - number.leading_zeros() as usize / 8
}

impl Location {
    /// The location, unless `seq` is 0, which names nothing.
    pub const fn new(seq: u32, slot: u32) -> Option<Self> {
        match NonZeroU32::new(seq) {
            Some(seq) => Some(Self { seq, slot }),
            None => None,
        }
    }

    /// Appends it: slot and sequence number without their leading zeroes, and a byte with the lengths of both.
    pub(super) fn put_behind(self, out: &mut Vec<u8>) {
        let (slot, seq) = (len(self.slot), len(self.seq.get()));
        out.extend_from_slice(&self.slot.to_le_bytes()[..slot]);
        out.extend_from_slice(&self.seq.get().to_le_bytes()[..seq]);
        out.push((slot | seq << 4) as u8);
    }

    /// Takes one from the end; gives what is before it.
    pub(super) fn take_from_behind(bytes: &[u8]) -> Option<(&[u8], Self)> {
        let (lens, bytes) = bytes.split_last()?;
        let (slot_len, seq_len) = (usize::from(lens & 0xf), usize::from(lens >> 4));
        let (bytes, seq) = bytes.split_at_checked(bytes.len().checked_sub(seq_len)?)?;
        let (bytes, slot) = bytes.split_at_checked(bytes.len().checked_sub(slot_len)?)?;
        let number = |part: &[u8]| {
            let mut number = [0; 4];
            number.get_mut(..part.len())?.copy_from_slice(part);
            Some(u32::from_le_bytes(number))
        };
        Some((bytes, Self::new(number(seq)?, number(slot)?)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_location_is_found_behind_the_bytes(
            seq in 1u32.., slot in any::<u32>(), shift in 0u32..32, before in proptest::collection::vec(any::<u8>(), 0..9),
        ) {
            let location = Location::new((seq >> shift).max(1), slot >> shift).expect("not 0");
            let mut bytes = before.clone();
            location.put_behind(&mut bytes);
            prop_assert!(bytes.len() <= before.len() + 9);
            prop_assert_eq!(Location::take_from_behind(&bytes), Some((&before[..], location)));
        }

        #[test]
        fn any_bytes_have_a_location_behind_them_or_not(bytes in proptest::collection::vec(any::<u8>(), 0..12)) {
            if let Some((before, _)) = Location::take_from_behind(&bytes) {
                prop_assert!(before.len() < bytes.len());
            }
        }
    }
}
