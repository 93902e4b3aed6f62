//! Pages of a listed snapshot, for a target that fetches them.

use super::clone_send::send_pages;
use super::types::hex_option;
use super::{Result, SessionError};
use crate::codec::encode_fast;
use crate::image::PageSource;
use crate::model::{PAGE_SIZE, Page, SnapshotId};
use crate::store::Snapshot;
use crate::sys::monotonic_ns;
use crate::wire::Link;
use serde::Serialize;

/// Bytes of pages in one message, about: whoever waits for a page waits for what is in front of it.
const PIECE: usize = 32 << 10;

/// What a target has fetched of a snapshot that was listed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Fetched {
    /// Pages.
    pub pages: u64,
    /// Those of them that were fetched behind its first instruction.
    pub behind: u64,
    /// From the order to bring it back to the last page, in nanoseconds.
    pub took_ns: u64,
    /// The snapshot there, now that it has all of its pages.
    #[serde(serialize_with = "hex_option")]
    pub target_id: Option<SnapshotId>,
}

/// Answers a target.
pub(super) struct Answering<'a> {
    snapshot: &'a Snapshot,
    begun: u64,
    pub(super) fetched: Fetched,
}

impl<'a> Answering<'a> {
    pub(super) fn new(snapshot: &'a Snapshot) -> Self {
        Self {
            snapshot,
            begun: monotonic_ns(),
            fetched: Fetched::default(),
        }
    }

    /// Sends pages, in this order.
    pub(super) fn send(&mut self, link: &mut Link, addrs: &[u64], runs: bool) -> Result<()> {
        let pages = self.read(link, addrs)?;
        send_pages(link, &pages, PIECE, &mut |page, out| {
            encode_fast(page, None, out)
        })?;
        self.fetched.pages += addrs.len() as u64;
        self.fetched.behind += u64::from(runs) * addrs.len() as u64;
        self.fetched.took_ns = monotonic_ns() - self.begun;
        Ok(())
    }

    fn read(&self, link: &Link, addrs: &[u64]) -> Result<Vec<Page>> {
        let table = self.snapshot.page_table()?;
        if let Some(addr) = addrs.iter().find(|addr| table.get(**addr).is_none()) {
            let why = format!("wants page {addr:#x}, which the snapshot does not have");
            return Err(link.breach(why).into());
        }
        let mut places: Vec<(u64, usize)> = addrs.iter().copied().zip(0..).collect();
        places.sort_unstable();
        if places.windows(2).any(|pair| pair[0].0 == pair[1].0) {
            return Err(link.breach("wants a page twice at once").into());
        }
        let ascending: Vec<u64> = places.iter().map(|(addr, _)| *addr).collect();
        let mut pages = vec![[0; PAGE_SIZE as usize]; addrs.len()];
        let mut read = 0;
        self.snapshot.read_pages(&ascending, &mut |addr, page| {
            if let Ok(at) = ascending.binary_search(&addr) {
                pages[places[at].1] = *page;
                read += 1;
            }
        })?;
        match read == addrs.len() {
            true => Ok(pages),
            false => Err(SessionError::Remote(
                "pages of the snapshot here cannot be read: look at it with verify".into(),
            )),
        }
    }
}
