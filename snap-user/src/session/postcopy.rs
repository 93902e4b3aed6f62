//! Copying behind the stop, while the target runs on.
//!
//! In the stop every dirty page is protected again, and the target goes on before any of them is copied.
//! What it then writes to first, the probes save as it was; the rest is copied as it is. A change that they
//! cannot save (a large unmapping, get_user_pages) spoils the snapshot, which is then taken again, with
//! everything copied by the end of its stop.

use super::Result;
use super::engine::Engine;
use super::pipeline::Hashes;
use crate::capture::CaptureError;
use crate::model::{Costs, PAGE_SIZE, Page, PageSet, Vma};
use crate::probe::{Marks, Window};
use crate::sys::monotonic_ns;
use rustc_hash::FxHashMap;
use std::time::Duration;
use xxhash_rust::xxh3::xxh3_128;

/// Pages that are copied between two looks into the ring buffers, which must not overflow.
const PIECE: usize = 4096;
/// Protecting so many pages more in the stop costs it as much as the walk that finds them; the target had better
/// run meanwhile.
const MANY_WRITTEN: u64 = 40_000;
/// From so many pages on a walk through everything had better be over before the stop, which then looks only where
/// something was written since.
const LARGE_PROCESS: u64 = 32_768;
/// A walk through everything takes so long that the target writes anew to pages that it has passed. They are looked at
/// again, so often at most, while there are more than so many.
const LOOKS_AGAIN: u32 = 2;
const FEW_WRITTEN: u64 = 256;
/// How long the probes may take to finish what they have begun.
const PATIENCE: Duration = Duration::from_millis(200);
/// Snapshots that are copied in their stop after others were spoilt, at most.
const LONGEST_CAUTION: u32 = 64;

/// The probes save pages before they are written.
pub(super) struct Opened {
    window: Window,
    /// Pages lost by the probes before.
    lost: u64,
}

impl Opened {
    /// These are the pages that count.
    pub(super) fn of(self, pages: &PageSet) -> Awaited<'_> {
        Awaited {
            window: self.window,
            lost: self.lost,
            pages,
            saved: FxHashMap::default(),
        }
    }
}

/// Pages of a snapshot that wait to be copied.
pub(super) struct Awaited<'a> {
    window: Window,
    pages: &'a PageSet,
    /// As [`Opened`] has it.
    lost: u64,
    /// What they saved, by address: which of several counts.
    saved: FxHashMap<u64, u64>,
}

/// How often snapshots are spoilt.
#[derive(Debug, Default)]
pub(super) struct Caution {
    /// One was, and a second try may do better.
    spoilt: bool,
    /// Snapshots to copy in their stop before the next try.
    wait: u32,
    /// As many it will be after the next that is spoilt.
    next: u32,
}

impl Caution {
    /// Copying behind the stop is worth a try.
    pub(super) fn allows(&mut self) -> bool {
        let allowed = self.wait == 0;
        self.wait = self.wait.saturating_sub(1);
        allowed
    }

    fn spoilt(&mut self) {
        if !std::mem::replace(&mut self.spoilt, true) {
            return;
        }
        self.next = (self.next * 2).clamp(1, LONGEST_CAUTION);
        self.wait = self.next;
    }

    fn succeeded(&mut self) {
        self.spoilt = false;
        self.next /= 2;
    }
}

impl Engine {
    /// The probes and the tracker can do what that takes.
    pub(super) fn can_copy_behind(&self) -> bool {
        self.events.saves_pages() && self.epoch.tracker().every_write_faults()
    }

    /// Prepares for a snapshot that is copied behind its stop: the pages that are known to be dirty by now. `None` if
    /// it has to be copied ahead of the stop.
    pub(super) fn may_postcopy(&mut self, costs: &mut Costs) -> Result<Option<Marks>> {
        self.events.drain(&mut self.epoch);
        let written = self.epoch.written_since_rearm();
        let is_long = self.hashes.most_pages() > LARGE_PROCESS;
        let is_much = written.is_none_or(|pages| pages >= MANY_WRITTEN);
        if self.epoch.is_remapped() || is_long || is_much {
            let vmas = self.maps()?;
            self.epoch.protect_ahead(&vmas, &mut || {})?;
            self.cover(&vmas);
            self.protect_again(&vmas)?;
        }
        costs.pages.scanned += written.unwrap_or(0);
        if !self.epoch.can_protect() {
            return Ok(None);
        }
        if tracing::enabled!(tracing::Level::DEBUG) {
            // Before the stop, for whoever wants to know what spoilt it.
            self.losses = self.events.losses()?;
        }
        let mut marks = Marks::default();
        marks.add(self.epoch.found());
        Ok(Some(marks))
    }

    fn protect_again(&mut self, vmas: &[Vma]) -> Result<()> {
        for _ in 0..LOOKS_AGAIN {
            self.events.drain(&mut self.epoch);
            let written = self.epoch.written_since_rearm();
            if written.is_none_or(|pages| pages <= FEW_WRITTEN) {
                break;
            }
            let before = &self.hashes;
            let known = |page| before.get(page).is_some();
            self.epoch.protect_again(vmas, known, before.most_pages())?;
        }
        Ok(())
    }

    /// In the stop: from now on the target may run, and what is marked and not `gone` meanwhile, and `more`, be copied
    /// as it is now.
    pub(super) fn await_copy(
        &mut self,
        mut marks: Marks,
        gone: &PageSet,
        more: &PageSet,
    ) -> Result<Opened> {
        // Nobody could save a page that is not there.
        marks.remove(gone);
        marks.add(more);
        Ok(Opened {
            lost: self.events.saved_lost()?,
            window: self.events.open_window(&marks)?,
        })
    }

    /// Copies what is awaited. `false` if that has been spoilt.
    pub(super) fn postcopy(&mut self, mut awaited: Awaited<'_>, now: &mut Hashes) -> Result<bool> {
        let whole = self.copy_awaited(&mut awaited, now);
        let closed = self.events.close_window();
        let whole = whole? && closed.is_ok() && self.take_last(&mut awaited, now)?;
        match whole {
            true => self.caution.succeeded(),
            false => self.caution.spoilt(),
        }
        tracing::debug!(
            pages = awaited.pages.pages(),
            saved = awaited.saved.len(),
            whole,
            "copied behind the stop"
        );
        Ok(whole)
    }

    fn copy_awaited(&mut self, awaited: &mut Awaited<'_>, now: &mut Hashes) -> Result<bool> {
        // What does not fit the buffers is kept only where it has really changed.
        let fits = awaited.pages.pages() <= self.pipeline.capacity();
        if fits {
            awaited.pages.iter().for_each(|page| now.forget(page));
            self.unhashed = self.unhashed.union(awaited.pages);
        }
        let mut rest = awaited.pages.iter();
        loop {
            let piece: Vec<u64> = rest.by_ref().take(PIECE).collect();
            let Some(last) = piece.last().copied() else {
                return Ok(true);
            };
            let missing: Vec<u64> = piece
                .into_iter()
                .filter(|page| !awaited.saved.contains_key(page))
                .collect();
            let missing = PageSet::from_pages(missing);
            let gone = match fits {
                true => self.copy_as_is(&missing)?,
                false => self.copy_changed(&missing, now)?,
            };
            self.events.copied_to(awaited.window, last + PAGE_SIZE)?;
            self.take_saved(awaited, now)?;
            self.events.drain(&mut self.epoch);
            let saved = &awaited.saved;
            let is_lost = self.is_lost(awaited)?;
            let gone = gone.iter().filter(|page| !saved.contains_key(page)).count();
            if gone > 0 {
                tracing::debug!(gone, "copied in vain");
            }
            if is_lost || gone > 0 {
                return Ok(false);
            }
        }
    }

    fn copy_as_is(&mut self, pages: &PageSet) -> Result<PageSet> {
        let pid = self.target.pid;
        let gone = self.pipeline.copy(pid, pages, || {});
        gone.map_err(|e| CaptureError::from_sys(pid, e).into())
    }

    /// Takes what is under way when all is copied. `false` if something is missing.
    fn take_last(&mut self, awaited: &mut Awaited<'_>, now: &mut Hashes) -> Result<bool> {
        let deadline = monotonic_ns() + PATIENCE.as_nanos() as u64;
        while !self.take_saved(awaited, now)? {
            if monotonic_ns() > deadline {
                return Ok(false);
            }
            std::thread::sleep(Duration::from_micros(20));
        }
        Ok(!self.is_lost(awaited)?)
    }

    /// Whether the probes could not save all.
    fn is_lost(&self, awaited: &Awaited<'_>) -> Result<bool> {
        let lost = self.events.saved_lost()? - awaited.lost;
        if lost > 0 {
            // None: it was in a queue for this watcher.
            let why = self.events.losses()?.since(&self.losses);
            tracing::debug!(lost, ?why, "copied in vain");
        }
        Ok(lost > 0)
    }

    fn take_saved(&mut self, awaited: &mut Awaited<'_>, now: &mut Hashes) -> Result<bool> {
        let Awaited {
            window,
            pages,
            saved,
            ..
        } = awaited;
        let pipeline = &mut self.pipeline;
        let mut take = |page: u64, order: u64, bytes: &Page| {
            let earlier = saved.get(&page).is_some_and(|have| *have < order);
            if earlier || !pages.contains(page) {
                return;
            }
            saved.insert(page, order);
            let hash = xxh3_128(bytes);
            if now.get(page) != Some(hash) {
                now.insert(page, hash);
                pipeline.put(page, bytes, hash);
            }
        };
        Ok(self.events.drain_saved(|record| {
            if record.window == window.number {
                take(record.page, record.order, record.bytes);
            }
        })?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_more_is_spoilt_the_less_is_tried() {
        let mut caution = Caution::default();
        assert!(caution.allows());
        caution.spoilt();
        assert!(caution.allows(), "a second try");
        let mut tries = Vec::new();
        for _ in 0..4 {
            caution.spoilt();
            tries.push((0..).take_while(|_| !caution.allows()).count());
        }
        assert_eq!(tries, [1, 2, 4, 8]);
        (0..8).for_each(|_| caution.succeeded());
        caution.spoilt();
        assert!(caution.allows());
        caution.spoilt();
        assert!(!caution.allows());
        assert!(caution.allows());
    }
}
