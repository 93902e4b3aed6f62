//! What a rollback loads from its snapshot, ahead of the stop and in it.

use super::Result;
use super::engine::Engine;
use super::staging::CHUNK;
use crate::capture::{compared, inspect, saved_ranges};
use crate::image::PageSource;
use crate::model::{PAGE_SIZE, PageRange, PageSet, ProcessState, SavedFile, page_down};
use crate::restore::Content;
use crate::store::Snapshot;
use crate::sys::arch::Registers;
use crate::track::TrackerKind;

/// Rounds of loading what is written while loading.
const LOAD_ROUNDS: u32 = 5;
/// A round that loads fewer pages is the last.
const FEW_PAGES: usize = 8;

/// What is known and loaded before the stop.
#[derive(Default)]
pub(super) struct Ahead {
    /// Pages that are not as in the snapshot.
    pub(super) differing: PageSet,
    /// Pages of which the head has not what the snapshot has, however the process has them.
    pub(super) not_as_head: PageSet,
    pub(super) content: Content,
}

impl Engine {
    /// Loads the pages that differ between the snapshot that the process was last seen at and the one that it
    /// goes to.
    pub(super) fn load_differing(&mut self, snapshot: &Snapshot, ahead: &mut Ahead) -> Result<()> {
        let table = snapshot.page_table()?;
        ahead.differing = match self.head {
            Some(head) => PageSet::from_pages(self.store.snapshot(head)?.page_table()?.diff(table)),
            None => PageSet::from_pages(table.iter().map(|(addr, _)| addr).collect()),
        };
        ahead.not_as_head = ahead.differing.clone();
        let shared = held(
            snapshot,
            &compared(&self.maps()?).map(|v| v.range).collect(),
        )?;
        load(
            snapshot,
            &ahead.differing.union(&shared),
            &mut ahead.content,
        )
    }

    /// Nothing is known of what the process holds now: all of it is compared, from when its writes are tracked.
    pub(super) fn load_compared(&mut self, snapshot: &Snapshot, ahead: &mut Ahead) -> Result<()> {
        self.load_differing(snapshot, ahead)?;
        let tracker = self.epoch.tracker();
        if tracker.rearms_stopped() {
            return Ok(());
        }
        self.events.drain(&mut self.epoch);
        let vmas = self.maps()?;
        if self.epoch.precopy(&vmas, &mut || {})?.is_none() {
            // All pages are compared in the stop.
            return Ok(());
        }
        let own = self.epoch.survey_all(&vmas)?.own;
        let private: PageSet = vmas
            .iter()
            .filter(|v| !v.shared && !v.is_special())
            .map(|v| v.range)
            .collect();
        let there = held(snapshot, &private)?;
        load(snapshot, &there, &mut ahead.content)?;
        let mut same = Vec::new();
        let gone = inspect(
            self.target.pid,
            &there.intersect(&own),
            CHUNK,
            |addr, page, _| {
                if ahead.content.get(addr) == Some(page) {
                    same.push(addr);
                }
            },
        )?;
        let same = PageSet::from_pages(same).subtract(&gone);
        ahead.differing = ahead.differing.union(&there).union(&own).subtract(&same);
        Ok(())
    }

    /// Loads what the process writes meanwhile, until little is left for the stop. Looks without protecting
    /// pages again: those that it has written so far are going to be written once more.
    pub(super) fn load_written(&mut self, snapshot: &Snapshot, ahead: &mut Ahead) -> Result<()> {
        if self.epoch.tracker().kind() == TrackerKind::Hash {
            return Ok(());
        }
        for _ in 0..LOAD_ROUNDS {
            let before = ahead.content.len();
            self.events.drain(&mut self.epoch);
            let vmas = self.maps()?;
            let found = self.epoch.survey_all(&vmas)?.dirty;
            load(snapshot, &found, &mut ahead.content)?;
            if ahead.content.len() - before < FEW_PAGES {
                break;
            }
        }
        Ok(())
    }
}

/// All pages of a file's content.
pub(super) fn pages_of(snapshot: &Snapshot, saved: &SavedFile) -> Result<PageSet> {
    held(snapshot, &saved_ranges(std::slice::from_ref(saved)))
}

/// Where every thread writes all the time: what is loaded now need not be loaded in the stop.
pub(super) fn stack_tops(target: &ProcessState) -> PageSet {
    let pointers = target.threads.iter().filter_map(|thread| {
        let regs = Registers::from_prstatus(&thread.gp)?;
        Some(page_down(regs.sp()))
    });
    let around = |page: u64| PageRange {
        start: page.saturating_sub(2 * PAGE_SIZE),
        end: page.saturating_add(2 * PAGE_SIZE),
    };
    pointers.map(around).collect()
}

/// The pages that a snapshot has in an area.
pub(super) fn held(snapshot: &Snapshot, area: &PageSet) -> Result<PageSet> {
    let table = snapshot.page_table()?;
    let pages = area.ranges().iter().flat_map(|range| table.range(*range));
    Ok(PageSet::from_pages(pages.map(|(addr, _)| addr).collect()))
}

/// Those of the pages that the snapshot has and that are not loaded yet.
pub(super) fn missing(snapshot: &Snapshot, pages: &PageSet, content: &Content) -> Result<Vec<u64>> {
    let table = snapshot.page_table()?;
    let missing = |addr: &u64| content.get(*addr).is_none() && table.get(*addr).is_some();
    Ok(pages.iter().filter(missing).collect())
}

/// Loads those.
pub(super) fn load(snapshot: &Snapshot, pages: &PageSet, content: &mut Content) -> Result<()> {
    let missing = missing(snapshot, pages, content)?;
    content.reserve(missing.len());
    snapshot.read_pages(&missing, &mut |addr, page| content.insert(addr, page))?;
    Ok(())
}
