//! Pages with the versions that they hold the changes to.
//!
//! A page that was stored as the changes to its version in an earlier snapshot is read from the last version that
//! stands alone, on through the changes. Versions are read in rounds, all pages together: file after file, each
//! from front to back, whatever the order of the pages.

use super::chain::SessionFiles;
use super::encoded::{Encoded, read_wanted};
use super::error::StoreError;
use crate::image::{IndexEntry, Location, MOST_VERSIONS};
use crate::model::{PAGE_SIZE, Page};
use std::path::PathBuf;

/// Pages whose encoded versions are held at a time. Each takes at most [`MOST_VERSIONS`] pages of memory, and
/// usually a few hundred bytes.
const CHUNK: usize = 2048;

/// One version of a page as it is stored.
struct Version {
    entry: IndexEntry,
    bytes: Vec<u8>,
    path: PathBuf,
}

impl Version {
    fn of(found: &Encoded<'_>) -> Self {
        Self {
            entry: found.entry,
            bytes: found.bytes.to_vec(),
            path: found.file.path().to_owned(),
        }
    }

    fn decode(&self, previous: Option<&Page>, page: &mut Page) -> Result<(), StoreError> {
        self.entry
            .decode_page(&self.bytes, previous, page)
            .map_err(StoreError::image(&self.path))
    }
}

/// A page whose versions are being gathered, the wanted one first.
struct Chain {
    addr: u64,
    versions: Vec<Version>,
}

impl Chain {
    fn decode(&self) -> Result<Page, StoreError> {
        let mut page = [0; PAGE_SIZE as usize];
        let mut before = None;
        for version in self.versions.iter().rev() {
            version.decode(before.as_ref(), &mut page)?;
            before = Some(page);
        }
        Ok(page)
    }
}

/// Reads and decodes pages, `wanted` ascending: places, and the addresses to hand them over under.
pub(super) fn read_decoded(
    files: &SessionFiles,
    wanted: &[(Location, u64)],
    each: &mut dyn FnMut(u64, &Page),
) -> Result<(), StoreError> {
    for wanted in wanted.chunks(CHUNK) {
        let mut chains: Vec<Chain> = Vec::new();
        let mut round: Vec<(Location, u64)> = Vec::new();
        let mut page = [0; PAGE_SIZE as usize];
        read_wanted(files, wanted, &mut |found, addr| {
            let Some(previous) = found.previous()? else {
                found.decode(None, &mut page)?;
                each(addr, &page);
                return Ok(());
            };
            round.push((previous, chains.len() as u64));
            let versions = vec![Version::of(found)];
            chains.push(Chain { addr, versions });
            Ok(())
        })?;
        for _ in 1..MOST_VERSIONS {
            round.sort_unstable();
            let mut next = Vec::new();
            read_wanted(files, &round, &mut |found, number| {
                let previous = found.previous()?;
                let chain = &mut chains[number as usize];
                chain.versions.push(Version::of(found));
                match previous {
                    Some(previous) => next.push((previous, number)),
                    None => {
                        each(chain.addr, &chain.decode()?);
                        chain.versions = Vec::new();
                    }
                }
                Ok(())
            })?;
            round = next;
        }
        if let Some((_, number)) = round.first() {
            let chain = &chains[*number as usize];
            return Err(StoreError::corrupt(
                &chain.versions[0].path,
                "page",
                format!("{:#x}: changes to too many versions", chain.addr),
            ));
        }
    }
    Ok(())
}
