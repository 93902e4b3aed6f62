//! Copying ahead of the stop, while the target runs.

use super::Result;
use super::engine::{Engine, covered};
use super::pipeline::{CHUNK, Hashes};
use crate::capture::{self, compared_pages};
use crate::model::{Costs, PageSet, Vma};
use crate::sys::monotonic_ns;

/// Rounds of copying ahead of a stop.
const MOST_ROUNDS: u32 = 12;
/// A round that finds fewer pages is the last: copying them inside the stop costs less than another
/// round of faults costs the target.
const FEW_PAGES: u64 = 640;
impl Engine {
    pub(super) fn copy(&mut self, pages: &PageSet) -> Result<PageSet> {
        let pipeline = std::cell::RefCell::new(&mut self.pipeline);
        Ok(capture::copy(
            self.target.pid,
            pages,
            CHUNK,
            || pipeline.borrow_mut().buffer(),
            |copied| pipeline.borrow_mut().stage(copied),
        )?)
    }

    /// Copies those pages whose content is not as `now` has it, and enters them there.
    pub(super) fn copy_changed(&mut self, pages: &PageSet, now: &mut Hashes) -> Result<PageSet> {
        let pipeline = &mut self.pipeline;
        Ok(capture::inspect(
            self.target.pid,
            pages,
            CHUNK,
            |addr, page, hash| {
                if now.get(addr) != Some(hash) {
                    now.insert(addr, hash);
                    pipeline.put(addr, page, hash);
                }
            },
        )?)
    }

    /// Copies ahead of the stop, in rounds, until little is left.
    pub(super) fn precopy(&mut self, costs: &mut Costs, now: &mut Hashes) -> Result<()> {
        let mut last = u64::MAX;
        for round in 0..MOST_ROUNDS {
            let start = monotonic_ns();
            let stopped = match self.epoch.tracker().rearms_stopped() {
                true => Some(self.freeze()?),
                false => None,
            };
            self.events.drain(&mut self.epoch);
            let vmas = self.maps()?;
            let rearm = monotonic_ns();
            let found = self.epoch.precopy(&vmas)?;
            let rearmed = monotonic_ns();
            drop(stopped);
            self.cover(&vmas);
            let shared = match self.head {
                // Later their content is compared inside the stop, all of it.
                Some(_) => PageSet::new(),
                None if round == 0 => compared_pages(self.target.pid, &vmas),
                None => PageSet::new(),
            };
            let Some(found) = found else {
                // Nothing is recorded: what there is now is copied, what has changed since the
                // parent, so that little is new inside the stop.
                let all = self.epoch.survey_all(&vmas)?.own.union(&shared);
                costs.pages.scanned += all.pages();
                self.copy_changed(&all, now)?;
                return Ok(());
            };
            let pages = found.union(&shared);
            costs.pages.scanned += pages.pages();
            costs.pages.dirty += pages.pages();
            costs.pages.copied += pages.pages();
            self.copy_changed(&pages, now)?;
            let count = pages.pages();
            tracing::debug!(
                round,
                count,
                rearm_us = (rearmed - rearm) / 1000,
                copy_us = (monotonic_ns() - rearmed) / 1000,
                us = (monotonic_ns() - start) / 1000,
                staged = self.pipeline.staged(),
                "copied ahead"
            );
            if count < FEW_PAGES || count > last / 10 * 6 {
                return Ok(());
            }
            last = count;
        }
        Ok(())
    }

    pub(super) fn cover(&mut self, vmas: &[Vma]) {
        self.covered = self.covered.union(&covered(vmas));
        if let Some(profiling) = &mut self.profiling {
            profiling.recorder.mappings(vmas);
        }
    }
}
