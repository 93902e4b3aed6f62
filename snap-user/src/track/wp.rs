//! Asynchronous write protection: userfaultfd and `PAGEMAP_SCAN`.

use super::survey::{self, Survey};
use super::{Result, Tracker, TrackerKind};
use crate::model::{PageRange, PageSet, Vma};
use crate::sys::arch::USER_END;
use crate::sys::{Pagemap, Userfaultfd, WpRegister};

pub(super) struct WriteProtect {
    uffd: Userfaultfd,
    pagemap: Pagemap,
    refused: PageSet,
}

impl WriteProtect {
    /// `uffd` belongs to the memory that `pagemap` shows. Nothing is watched before the first rearm.
    pub(super) fn new(uffd: Userfaultfd, pagemap: Pagemap) -> Self {
        Self {
            uffd,
            pagemap,
            refused: PageSet::new(),
        }
    }
}

impl WriteProtect {
    /// All of them each time: a new mapping at an old address looks the same from outside.
    fn register(&mut self, vmas: &[Vma]) -> Result<()> {
        let mut refused = Vec::new();
        for vma in survey::private(vmas) {
            // One that is gone by now will be heard of; else memory was short, and nothing watches it. Of a page
            // of hugetlbfs neither the log nor the fault program tells more than the first write.
            if self.uffd.register(vma.range)? != WpRegister::Done {
                refused.push(vma.range);
            }
        }
        self.refused = PageSet::from_ranges(refused);
        Ok(())
    }
}

impl Tracker for WriteProtect {
    fn kind(&self) -> TrackerKind {
        TrackerKind::WriteProtect
    }

    fn rearm(
        &mut self,
        vmas: &[Vma],
        unchanged: bool,
        watched: &mut dyn FnMut(),
    ) -> Result<Option<PageSet>> {
        // Registering takes the lock that the target's page faults wait for.
        if !unchanged {
            self.register(vmas)?;
        }
        let mut scans = Vec::new();
        for (part, holds) in survey::by_holding(vmas, PageRange::new(0, USER_END)) {
            scans.push(self.pagemap.scan_and_protect(part, holds)?);
        }
        watched();
        // Whatever was protected is reported, also where `vmas` is out of date by now.
        let own = scans.into_iter().flatten();
        let own = own.filter(|(_, info)| info.is_own());
        Ok(Some(own.map(|(range, _)| range).collect()))
    }

    fn flushes_by_table(&self) -> bool {
        true
    }

    fn survey(&mut self, vmas: &[Vma], area: Option<&PageSet>) -> Result<Survey> {
        let examined = survey::examined(vmas, area);
        let area = match area {
            None => PageSet::from_ranges(vec![PageRange::new(0, USER_END)]),
            Some(_) => examined.clone(),
        };
        let mut scan = Vec::new();
        for (part, holds) in survey::by_holding_all(vmas, &area) {
            scan.extend(self.pagemap.scan(part, holds)?);
        }
        Ok(Survey::from_scan(
            &scan,
            vmas,
            examined,
            &self.refused,
            |info| info.written,
        ))
    }

    /// Transparent huge pages are split where they are written, those of hugetlbfs are refused, and khugepaged leaves protected pages alone.
    fn every_write_faults(&self) -> bool {
        true
    }

    fn refused(&self) -> &PageSet {
        &self.refused
    }
}
