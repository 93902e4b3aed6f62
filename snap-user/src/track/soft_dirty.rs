//! Soft-dirty bits (Documentation/admin-guide/mm/soft-dirty.rst).

use super::survey::{self, Survey};
use super::{Result, Since, Tracker, TrackerKind};
use crate::model::{PageSet, Vma};
use crate::sys::{Pagemap, SoftDirtyBits};

pub(super) struct SoftDirty {
    bits: SoftDirtyBits,
    pagemap: Pagemap,
    scans: bool,
    refused: PageSet,
    cleared: bool,
}

impl SoftDirty {
    pub(super) fn new(bits: SoftDirtyBits, mut pagemap: Pagemap) -> Self {
        let scans = pagemap.can_scan();
        Self {
            bits,
            pagemap,
            scans,
            refused: PageSet::new(),
            cleared: false,
        }
    }
}

impl Tracker for SoftDirty {
    fn kind(&self) -> TrackerKind {
        TrackerKind::SoftDirty
    }

    fn rearm(
        &mut self,
        vmas: &[Vma],
        _since: &Since,
        watched: &mut dyn FnMut(),
    ) -> Result<Option<PageSet>> {
        let found = self.survey(vmas, None)?.dirty;
        self.bits.clear()?;
        watched();
        self.cleared = true;
        Ok(Some(found))
    }

    fn let_go(&mut self) {
        self.bits.let_go();
    }

    fn rearms_stopped(&self) -> bool {
        true
    }

    fn survey(&mut self, vmas: &[Vma], area: Option<&PageSet>) -> Result<Survey> {
        self.pagemap.look_for_swap();
        let examined = survey::examined(vmas, area);
        let mut scan = Vec::new();
        for (part, holds) in survey::by_holding_all(vmas, &examined) {
            scan.extend(match self.scans {
                true => self.pagemap.scan(part, holds)?,
                false => self.pagemap.read_entries(part)?,
            });
        }
        let cleared = self.cleared;
        Ok(Survey::from_scan(
            &scan,
            vmas,
            examined,
            &self.refused,
            |info| info.soft_dirty || !cleared,
        ))
    }

    /// A huge page stays whole: the first write to it makes all of it writable, and the other 511 pages are
    /// written without a fault. And khugepaged (Documentation/admin-guide/mm/transhuge.rst) makes a writable
    /// huge page of protected small ones at any time. The soft-dirty bits tell of both.
    fn every_write_faults(&self) -> bool {
        false
    }

    fn refused(&self) -> &PageSet {
        &self.refused
    }
}
