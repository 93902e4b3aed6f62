//! Copying ahead of the stop, while the target runs.

use super::Result;
use super::engine::{Engine, covered};
use super::pipeline::Hashes;
use super::staging::CHUNK;
use crate::capture::{self, CaptureError, compared_pages, irreplaceable};
use crate::model::{Costs, LEAF_PAGES, PAGE_SIZE, PageSet, Vma};
use crate::sys::{monotonic_ns, proc};

/// Rounds of copying ahead of a stop.
const MOST_ROUNDS: u32 = 12;
/// With fewer pages left, the stop follows: copying them inside it costs less than another round of
/// faults costs the target.
const FEW_PAGES: u64 = 300;

/// Pages that are inspected between two looks into the ring buffer, which must not overflow.
const PAGES_A_DRAIN: u32 = 8192;

/// What re-arming costs for each page table (2 MiB of address space) with written pages in it while
/// the target runs on another processor: the kernel flushes that processor's translations once for
/// each, by an interrupt that it waits for. A stopped target has no translations to flush.
const LIVE_TABLE_NS: u64 = 20_000;
/// What re-arming costs for each resident page, looked at by the walk.
const WALK_PAGE_NS: u64 = 2;
/// What re-arming costs for each written page.
const REARM_PAGE_NS: u64 = 20;
/// From here on a pause is worth its own price, for which every thread has to be stopped.
const PAUSE_PAYS_NS: u64 = 2_000_000;
/// No pause may take longer than this.
const LONGEST_PAUSE_NS: u64 = 2_000_000;

impl Engine {
    /// Copies pages as they are. What `now` knew of them does not hold any more.
    pub(super) fn copy(&mut self, pages: &PageSet, now: &mut Hashes) -> Result<PageSet> {
        pages.iter().for_each(|page| now.forget(page));
        self.unhashed = self.unhashed.union(pages);
        let pid = self.target.pid;
        let (pipeline, events, epoch) = (&mut self.pipeline, &mut self.events, &mut self.epoch);
        let gone = pipeline.copy(pid, pages, || events.drain(epoch));
        gone.map_err(|e| CaptureError::from_sys(pid, e).into())
    }

    /// Copies those pages whose content is not as `now` has it, and enters them there.
    pub(super) fn copy_changed(&mut self, pages: &PageSet, now: &mut Hashes) -> Result<PageSet> {
        let (pipeline, events, epoch) = (&mut self.pipeline, &mut self.events, &mut self.epoch);
        let mut since_drain = 0;
        Ok(capture::inspect(
            self.target.pid,
            pages,
            CHUNK,
            |addr, page, hash| {
                since_drain += 1;
                if since_drain == PAGES_A_DRAIN {
                    since_drain = 0;
                    events.drain(epoch);
                }
                if now.get(addr) != Some(hash) {
                    now.insert(addr, hash);
                    pipeline.put(addr, page, hash);
                }
            },
        )?)
    }

    /// Those of the pages that neither the parent has nor anyone has copied yet.
    pub(super) fn unknown(&self, pages: &PageSet, now: &Hashes) -> PageSet {
        let missing = |page: &u64| now.get(*page).is_none();
        let pages = pages.subtract(&self.unhashed);
        PageSet::from_pages(pages.iter().filter(missing).collect())
    }

    /// Copies ahead of the stop, in rounds, until little is left.
    pub(super) fn precopy(&mut self, costs: &mut Costs, now: &mut Hashes) -> Result<()> {
        let mut last = u64::MAX;
        for round in 0..MOST_ROUNDS {
            let start = monotonic_ns();
            let (vmas, found) = self.rearm(costs)?;
            let rearmed = monotonic_ns();
            self.cover(&vmas);
            let shared = match self.head {
                // Later their content is compared inside the stop, all of it.
                Some(_) => PageSet::new(),
                None if round == 0 => compared_pages(self.target.pid, &vmas),
                None => PageSet::new(),
            };
            let shared = match round {
                0 => shared.union(&self.unknown(&irreplaceable(&vmas), now)),
                _ => shared,
            };
            let Some(found) = found else {
                // Nothing is recorded: what there is now is copied, what has changed since the
                // parent, so that little is new inside the stop.
                let all = self.epoch.survey_all(&vmas)?.own.union(&shared);
                costs.pages.scanned += all.pages();
                self.copy_changed(&all, now)?;
                return Ok(());
            };
            let count = found.union(&shared).pages();
            costs.pages.scanned += count;
            costs.pages.dirty += count;
            costs.pages.copied += count;
            // By content, as inside the stop: what has not changed by then is not copied there again.
            self.copy_changed(&shared, now)?;
            let rest = found.subtract(&shared);
            match count <= self.pipeline.capacity() {
                true => {
                    self.copy(&rest, now)?;
                }
                // Not all of them fit the buffers: only those that have really changed are kept.
                false => {
                    self.copy_changed(&rest, now)?;
                }
            }
            self.events.drain(&mut self.epoch);
            let left = self.epoch.written_since_rearm();
            tracing::debug!(
                round,
                count,
                left,
                rearm_us = (rearmed - start) / 1000,
                copy_us = (monotonic_ns() - rearmed) / 1000,
                staged = self.pipeline.staged(),
                "copied ahead"
            );
            // Without a log, as many as this round found may be there again.
            let left = left.unwrap_or(count);
            if left < FEW_PAGES || left > last / 10 * 8 {
                return Ok(());
            }
            last = left;
        }
        Ok(())
    }

    /// Has the tracker watch everything again, and tells what was written since it last did.
    fn rearm(&mut self, costs: &mut Costs) -> Result<(Vec<Vma>, Option<PageSet>)> {
        self.events.drain(&mut self.epoch);
        let pause = self.epoch.tracker().rearms_stopped() || self.pause_pays();
        let mut vmas = self.maps()?;
        let stop = monotonic_ns();
        let mut frozen = match pause {
            true => Some(self.freeze()?),
            false => None,
        };
        self.events.drain(&mut self.epoch);
        if self.epoch.is_remapped() {
            vmas = self.maps()?;
        }
        let phases = &mut costs.phases;
        let found = self.epoch.precopy(&vmas, &mut || {
            if let Some(frozen) = frozen.take() {
                frozen.thaw();
                let pause = monotonic_ns() - stop;
                phases.pauses_ns += pause;
                phases.longest_pause_ns = phases.longest_pause_ns.max(pause);
            }
        })?;
        Ok((vmas, found))
    }

    /// Whether stopping the target shortly makes re-arming so much cheaper that it is worth it.
    fn pause_pays(&self) -> bool {
        if !self.epoch.tracker().flushes_by_table() || self.processors < 2 {
            return false;
        }
        let resident = proc::status(self.target.pid).map_or(0, |s| s.rss / PAGE_SIZE);
        let tables = resident.div_ceil(LEAF_PAGES as u64);
        let written = self.epoch.written_since_rearm().unwrap_or(resident);
        let live = written.min(tables) * LIVE_TABLE_NS;
        let stopped = resident * WALK_PAGE_NS + written * REARM_PAGE_NS;
        live >= PAUSE_PAYS_NS && stopped <= LONGEST_PAUSE_NS
    }

    pub(super) fn cover(&mut self, vmas: &[Vma]) {
        self.covered = self.covered.union(&covered(vmas));
        if let Some(profiling) = &mut self.profiling {
            profiling.recorder.mappings(vmas);
        }
    }
}
