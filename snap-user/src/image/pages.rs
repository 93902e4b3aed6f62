//! Where captured pages go and where restored pages come from.

use super::batch::EncodedBatch;
use crate::model::{Page, PageSet};

/// Takes the pages of one snapshot: a file, later a peer.
pub trait PageSink {
    /// What can go wrong.
    type Error: std::error::Error + Send + Sync + 'static;

    /// Takes a batch of encoded pages.
    fn append(&mut self, batch: &EncodedBatch) -> Result<(), Self::Error>;

    /// These pages of the parent are gone: drops them before any page of this snapshot is added.
    fn drop_ranges(&mut self, pages: &PageSet);

    /// These pages were gone when copy pass `before` began: drops them from the parent, and from what earlier
    /// passes of this snapshot appended or still will append.
    fn remove_pages(&mut self, pages: &PageSet, before: u32);
}

/// Gives the pages of one snapshot.
pub trait PageSource {
    /// What can go wrong.
    type Error: std::error::Error + Send + Sync + 'static;

    /// Reads one page. `false` when the snapshot has no page there.
    fn read_page(&self, addr: u64, page: &mut Page) -> Result<bool, Self::Error>;

    /// Reads these pages in whatever order is fastest and hands each one over; addresses without a page are
    /// passed over.
    fn read_pages(
        &self,
        addrs: &[u64],
        each: &mut dyn FnMut(u64, &Page),
    ) -> Result<(), Self::Error>;
}
