//! No mechanism at all: every page counts as dirty, and its content decides.

use super::survey::{self, Survey};
use super::{Result, Since, Tracker, TrackerKind};
use crate::model::{PageSet, Vma};
use crate::sys::Pagemap;

pub(super) struct Hash {
    pagemap: Pagemap,
    scans: bool,
    refused: PageSet,
}

impl Hash {
    pub(super) fn new(mut pagemap: Pagemap) -> Self {
        let scans = pagemap.can_scan();
        Self {
            pagemap,
            scans,
            refused: PageSet::new(),
        }
    }
}

impl Tracker for Hash {
    fn kind(&self) -> TrackerKind {
        TrackerKind::Hash
    }

    fn rearm(
        &mut self,
        _vmas: &[Vma],
        _since: &Since,
        watched: &mut dyn FnMut(),
    ) -> Result<Option<PageSet>> {
        watched();
        Ok(None)
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
        Ok(Survey::from_scan(
            &scan,
            vmas,
            examined,
            &self.refused,
            |_| true,
        ))
    }

    fn refused(&self) -> &PageSet {
        &self.refused
    }
}
