//! The hash of everything that a snapshot has, by which both sides know that all of it has arrived.

use super::message::Offered;
use crate::model::PageRange;

/// Takes in what goes over a connection, in its order: pages, what is gone, process state.
#[derive(Clone, Default)]
pub struct Digest(blake3::Hasher);

impl Digest {
    /// Of nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Pages, ascending.
    pub fn pages(&mut self, pages: &[Offered]) {
        for page in pages {
            self.0.update(&page.addr.to_le_bytes());
            self.0.update(&page.hash);
        }
    }

    /// Ranges that are gone, ascending.
    pub fn dropped(&mut self, ranges: &[PageRange]) {
        for range in ranges {
            self.0.update(&range.start.to_le_bytes());
            self.0.update(&range.end.to_le_bytes());
        }
    }

    /// A part of the process state.
    pub fn state(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// BLAKE3 of all of it.
    pub fn finish(&self) -> [u8; 32] {
        *self.0.finalize().as_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_hash_of_what_went_over_in_whatever_pieces() {
        let page = |addr| Offered {
            addr,
            hash: [addr as u8; 32],
        };
        let range = PageRange::new(0x1000, 0x3000);
        let (mut whole, mut pieces) = (Digest::new(), Digest::new());
        whole.pages(&[page(0x1000), page(0x2000)]);
        pieces.pages(&[page(0x1000)]);
        pieces.pages(&[page(0x2000)]);
        for digest in [&mut whole, &mut pieces] {
            digest.dropped(&[range]);
        }
        whole.state(b"state");
        pieces.state(b"st");
        pieces.state(b"ate");
        assert_eq!(whole.finish(), pieces.finish());
        // As docs/protocol.md has it.
        let mut bytes = Vec::new();
        for addr in [0x1000u64, 0x2000] {
            bytes.extend_from_slice(&addr.to_le_bytes());
            bytes.extend_from_slice(&page(addr).hash);
        }
        bytes.extend_from_slice(&0x1000u64.to_le_bytes());
        bytes.extend_from_slice(&0x3000u64.to_le_bytes());
        bytes.extend_from_slice(b"state");
        assert_eq!(whole.finish(), *blake3::hash(&bytes).as_bytes());
    }
}
