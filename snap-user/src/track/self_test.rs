//! Does a mechanism work on this kernel? Tried on this process itself: a version says little.

use super::TrackerKind;
use crate::model::{PAGE_SIZE, PageRange};
use crate::sys::{MayHold, Pagemap, ScratchMap, Userfaultfd, WpRegister, clear_soft_dirty};
use std::sync::OnceLock;

/// Outcome of a self-test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Support {
    /// It works.
    Yes,
    /// It does not, and why.
    No(String),
    /// The test itself could not be carried out.
    Unknown(String),
}

/// Whether a tracker works on this kernel and with these privileges. Tested once.
pub fn support(kind: TrackerKind) -> Support {
    static WP: OnceLock<Support> = OnceLock::new();
    static SOFT_DIRTY: OnceLock<Support> = OnceLock::new();
    match kind {
        TrackerKind::WriteProtect => WP.get_or_init(write_protect).clone(),
        TrackerKind::SoftDirty => SOFT_DIRTY.get_or_init(soft_dirty).clone(),
        TrackerKind::Hash => Support::Yes,
    }
}

fn me() -> i32 {
    std::process::id() as i32
}

const PAGES: u64 = 8;

fn page(map: &ScratchMap, n: u64) -> PageRange {
    let start = map.range().start + n * PAGE_SIZE;
    PageRange::new(start, start + PAGE_SIZE)
}

fn write_protect() -> Support {
    let test = || -> crate::sys::Result<Support> {
        let uffd = Userfaultfd::create()?;
        let mut pagemap = Pagemap::open(me())?;
        let mut map = ScratchMap::new(PAGES)?;
        for n in 0..PAGES {
            map.write(n, 1);
        }
        if uffd.register(map.range())? != WpRegister::Done {
            return Ok(Support::No("the kernel refuses to register memory".into()));
        }
        pagemap.scan_and_protect(map.range(), MayHold::Files)?;
        let clean = pagemap.scan(map.range(), MayHold::Files)?;
        map.write(2, 2);
        map.write(5, 2);
        map.discard(6)?;
        let written: Vec<PageRange> = pagemap
            .scan(map.range(), MayHold::Files)?
            .into_iter()
            .filter(|(_, info)| info.written && info.is_own())
            .map(|(range, _)| range)
            .collect();
        let there = pagemap
            .scan(page(&map, 6), MayHold::Files)?
            .iter()
            .any(|(_, info)| info.is_own());
        Ok(if clean.iter().any(|(_, info)| info.written) {
            Support::No("a page just protected reads as written".into())
        } else if written != [page(&map, 2), page(&map, 5)] {
            Support::No(format!(
                "two pages were written, and it reports {written:?}"
            ))
        } else if there {
            Support::No("a page that was thrown away reads as still there".into())
        } else {
            Support::Yes
        })
    };
    match test() {
        Ok(outcome) => outcome,
        Err(e) => match e.errno() {
            Some(libc::EINVAL | libc::ENOTTY | libc::ENOSYS) => {
                Support::No(format!("it needs Linux 6.7 ({e})"))
            }
            Some(libc::EPERM | libc::EACCES) => Support::No(format!("it is not permitted ({e})")),
            _ => Support::Unknown(e.to_string()),
        },
    }
}

/// A round trip: without `CONFIG_MEM_SOFT_DIRTY` clearing succeeds and changes nothing.
fn soft_dirty() -> Support {
    let test = || -> crate::sys::Result<Support> {
        let pagemap = Pagemap::open(me())?;
        let mut map = ScratchMap::new(PAGES)?;
        for n in 0..PAGES {
            map.write(n, 1);
        }
        clear_soft_dirty(me())?;
        let is_dirty = |n| -> crate::sys::Result<bool> {
            Ok(pagemap
                .read_entries(page(&map, n))?
                .iter()
                .any(|(_, info)| info.soft_dirty))
        };
        let cleared = !is_dirty(3)?;
        map.write(3, 2);
        let set = pagemap
            .read_entries(page(&map, 3))?
            .iter()
            .any(|(_, info)| info.soft_dirty);
        Ok(match (cleared, set) {
            (true, true) => Support::Yes,
            _ => Support::No("the kernel was built without CONFIG_MEM_SOFT_DIRTY".into()),
        })
    };
    match test() {
        Ok(outcome) => outcome,
        Err(e) if e.is_denied() => Support::No(format!("it is not permitted ({e})")),
        Err(e) => Support::Unknown(e.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_content_tracker_always_works_and_the_others_give_a_reason() {
        assert_eq!(support(TrackerKind::Hash), Support::Yes);
        for kind in TrackerKind::ALL {
            if let Support::No(why) | Support::Unknown(why) = support(kind) {
                assert!(why.len() > 10, "{kind}: {why}");
            }
        }
    }
}
