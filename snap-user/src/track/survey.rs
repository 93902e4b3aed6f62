//! What a look at the page tables of a stopped process tells.

use crate::model::{PageRange, PageSet, Vma};
use crate::sys::{MayHold, PageInfo, ScanResult};

/// The state of the private mappings within an area.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// What was looked at.
    pub examined: PageSet,
    /// Pages that have content of their own.
    pub own: PageSet,
    /// Those of them that may have changed.
    pub dirty: PageSet,
}

/// Mappings whose pages are tracked and stored by page table: private and not the kernel's.
pub(super) fn private(vmas: &[Vma]) -> impl Iterator<Item = &Vma> {
    vmas.iter().filter(|v| !v.shared && !v.is_special())
}

/// The regions of a scan that lie in private mappings, with the mapping of each.
pub(super) fn in_private<'a>(
    scan: &'a ScanResult,
    vmas: &'a [Vma],
) -> impl Iterator<Item = (PageRange, PageInfo, &'a Vma)> + 'a {
    let mut first = 0;
    scan.iter().flat_map(move |(range, info)| {
        while vmas.get(first).is_some_and(|v| v.range.end <= range.start) {
            first += 1;
        }
        vmas[first..]
            .iter()
            .take_while(move |v| v.range.start < range.end)
            .filter(|v| !v.shared && !v.is_special())
            .filter_map(move |v| Some((v.range.intersect(range)?, *info, v)))
    })
}

impl Survey {
    /// Sorts a scan of `area` into a survey; `dirty` decides for a page with content of its own.
    pub(super) fn from_scan(
        scan: &ScanResult,
        vmas: &[Vma],
        examined: PageSet,
        refused: &PageSet,
        dirty: impl Fn(&PageInfo) -> bool,
    ) -> Self {
        let mut own = Vec::new();
        let mut changed = Vec::new();
        for (range, info, _) in in_private(scan, vmas).filter(|(_, info, _)| info.is_own()) {
            own.push(range);
            // What may not be there at all has no record of writes, nor has the page of zeroes, which reading
            // puts in the place of a page that was thrown away: the content tells.
            if dirty(&info) || info.ambiguous || info.maybe_zero {
                changed.push(range);
            }
        }
        let own = PageSet::from_ranges(own);
        let dirty = PageSet::from_ranges(changed).union(&own.intersect(refused));
        Self {
            examined,
            own,
            dirty,
        }
    }
}

/// The whole of the private mappings, or their part inside `area`.
pub(super) fn examined(vmas: &[Vma], area: Option<&PageSet>) -> PageSet {
    let all: PageSet = private(vmas).map(|v| v.range).collect();
    match area {
        None => all,
        Some(area) => all.intersect(area),
    }
}

/// As [`by_holding`], for each range of a set.
pub(super) fn by_holding_all<'a>(
    vmas: &'a [Vma],
    area: &'a PageSet,
) -> impl Iterator<Item = (PageRange, MayHold)> + 'a {
    area.ranges()
        .iter()
        .flat_map(|range| by_holding(vmas, *range))
}

/// Below this size a mapping is not worth a call of its own.
const APART: u64 = 2 << 20;

/// Cuts `area` where large private anonymous mappings begin and end, and says what each part may hold.
pub(super) fn by_holding(vmas: &[Vma], area: PageRange) -> Vec<(PageRange, MayHold)> {
    let mut parts: Vec<(PageRange, MayHold)> = Vec::new();
    let mut at = area.start;
    let first = vmas.partition_point(|v| v.range.end <= area.start);
    let anonymous = vmas[first..]
        .iter()
        .take_while(|v| v.range.start < area.end)
        .filter(|v| v.is_private_anonymous() && v.range.len() >= APART)
        .filter_map(|v| v.range.intersect(&area));
    for range in anonymous {
        match parts.last_mut() {
            Some((last, MayHold::Anonymous)) if last.end == range.start => last.end = range.end,
            _ => {
                if at < range.start {
                    parts.push((PageRange::new(at, range.start), MayHold::Files));
                }
                parts.push((range, MayHold::Anonymous));
            }
        }
        at = range.end;
    }
    if at < area.end {
        parts.push((PageRange::new(at, area.end), MayHold::Files));
    }
    parts
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::model::{Backing, PAGE_SIZE, Protection};

    /// A private mapping of anonymous memory.
    pub fn anonymous(range: PageRange) -> Vma {
        let backing = Backing::Anonymous { name: None };
        vma(range.start, range.len() / PAGE_SIZE, false, backing)
    }

    fn vma(start: u64, pages: u64, shared: bool, backing: Backing) -> Vma {
        Vma {
            range: PageRange::new(start, start + pages * PAGE_SIZE),
            prot: Protection {
                read: true,
                write: true,
                exec: false,
            },
            shared,
            backing,
            flags: Vec::new(),
            build_id: None,
        }
    }

    #[test]
    fn a_region_is_cut_at_mappings_and_shared_ones_are_passed_over() {
        let anon = || Backing::Anonymous { name: None };
        let vmas = [
            vma(0x1000, 2, false, anon()),
            vma(0x3000, 1, true, anon()),
            vma(0x4000, 1, false, Backing::Special("vdso".into())),
            vma(0x6000, 2, false, anon()),
        ];
        let info = PageInfo {
            present: true,
            written: true,
            ..Default::default()
        };
        let scan = vec![(PageRange::new(0x0, 0x8000), info)];
        let survey = Survey::from_scan(&scan, &vmas, examined(&vmas, None), &PageSet::new(), |i| {
            i.written
        });
        let want = [
            PageRange::new(0x1000, 0x3000),
            PageRange::new(0x6000, 0x8000),
        ];
        assert_eq!(survey.own.ranges(), want);
        assert_eq!(survey.dirty, survey.own);
        assert_eq!(survey.examined, survey.own);
    }

    #[test]
    fn an_area_is_cut_into_what_holds_only_anonymous_pages_and_the_rest() {
        let anon = || Backing::Anonymous { name: None };
        let big = APART / PAGE_SIZE;
        let vmas = [
            vma(0x1000, 1, false, anon()),
            vma(1 << 30, big, false, anon()),
            vma((1 << 30) + APART, big, false, Backing::Heap),
            vma(2 << 30, big, true, anon()),
            vma(3 << 30, big, false, anon()),
        ];
        let area = PageRange::new(0, (3 << 30) + APART / 2);
        let want = [
            (PageRange::new(0, 1 << 30), MayHold::Files),
            (
                PageRange::new(1 << 30, (1 << 30) + 2 * APART),
                MayHold::Anonymous,
            ),
            (
                PageRange::new((1 << 30) + 2 * APART, 3 << 30),
                MayHold::Files,
            ),
            (PageRange::new(3 << 30, area.end), MayHold::Anonymous),
        ];
        assert_eq!(by_holding(&vmas, area), want);
        assert_eq!(by_holding(&[], area), [(area, MayHold::Files)]);
    }

    #[test]
    fn clean_file_pages_and_zeroes_are_not_a_processes_own() {
        let file = Backing::File {
            path: "/x".into(),
            deleted: false,
            dev: (1, 1),
            inode: 1,
            offset: 0,
        };
        let vmas = [vma(0x1000, 3, false, file)];
        let page = |n: u64| PageRange::new(n * 0x1000, (n + 1) * 0x1000);
        let scan = vec![
            (
                page(1),
                PageInfo {
                    present: true,
                    file: true,
                    written: true,
                    ..Default::default()
                },
            ),
            (
                page(2),
                PageInfo {
                    present: true,
                    ..Default::default()
                },
            ),
            (
                page(3),
                PageInfo {
                    swapped: true,
                    ambiguous: true,
                    ..Default::default()
                },
            ),
        ];
        let survey = Survey::from_scan(&scan, &vmas, examined(&vmas, None), &PageSet::new(), |i| {
            i.written
        });
        assert_eq!(survey.own.ranges(), [PageRange::new(0x2000, 0x4000)]);
        assert_eq!(
            survey.dirty.ranges(),
            [page(3)],
            "what may not be there is looked at"
        );
    }
}
