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

impl Location {
    /// The location, unless `seq` is 0, which names nothing.
    pub const fn new(seq: u32, slot: u32) -> Option<Self> {
        match NonZeroU32::new(seq) {
            Some(seq) => Some(Self { seq, slot }),
            None => None,
        }
    }
}
