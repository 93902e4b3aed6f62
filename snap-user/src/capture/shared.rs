//! Shared mappings: memory that others may write behind this process's page tables.

use crate::model::{Backing, PAGE_SIZE, PageRange, PageSet, Vma, page_down, page_up};

/// Shared mappings whose content belongs into a snapshot. Not those of a real file that this
/// process cannot write: their content is the file's.
pub fn compared(vmas: &[Vma]) -> impl Iterator<Item = &Vma> {
    vmas.iter()
        .filter(|v| v.shared && !v.is_special() && !is_device(v))
        .filter(|v| v.prot.write || v.is_shared_memory())
}

/// Mappings that whoever brings the process back finds nowhere but in the snapshot: private ones of files that have no
/// name any more, and the kernel's code, since another kernel has other code, and programs remember places in it.
pub fn irreplaceable(vmas: &[Vma]) -> PageSet {
    let is_nameless = |vma: &Vma| {
        let deleted = matches!(&vma.backing, Backing::File { deleted: true, .. });
        !vma.shared && deleted && !is_device(vma)
    };
    vmas.iter()
        .filter(|vma| vma.is_vdso() || is_nameless(vma))
        .map(|vma| vma.range)
        .collect()
}

fn is_device(vma: &Vma) -> bool {
    vma.flags.iter().any(|f| f == "io" || f == "pf")
        || matches!(&vma.backing, Backing::File { path, .. }
            if path.starts_with("/dev/") && !vma.is_shared_memory() || path.starts_with("anon_inode:"))
}

/// The pages of [`compared`] mappings that have content: those that the file behind has data for,
/// where it can be asked, else all of them.
pub fn compared_pages(pid: i32, vmas: &[Vma]) -> PageSet {
    compared(vmas)
        .flat_map(|vma| data_ranges(pid, vma).unwrap_or_else(|| vec![vma.range]))
        .collect()
}

/// Holes of sparse shared memory are passed over: reading them would allocate them.
fn data_ranges(pid: i32, vma: &Vma) -> Option<Vec<PageRange>> {
    let Backing::File { offset, .. } = vma.backing else {
        return None;
    };
    let path = format!(
        "/proc/{pid}/map_files/{:x}-{:x}",
        vma.range.start, vma.range.end
    );
    let file = std::fs::File::open(path).ok()?;
    let end = offset + vma.range.len();
    let mut ranges = Vec::new();
    let mut at = offset;
    while at < end {
        let seek = |whence| rustix::fs::seek(&file, whence).ok();
        let Some(data) = seek(rustix::fs::SeekFrom::Data(at)).filter(|d| *d < end) else {
            break;
        };
        let hole = seek(rustix::fs::SeekFrom::Hole(data))
            .unwrap_or(end)
            .min(end);
        let address = |position: u64| position - offset + vma.range.start;
        ranges.push(PageRange {
            start: page_down(address(data)),
            end: page_up(address(hole)).min(vma.range.end),
        });
        at = hole.max(data + PAGE_SIZE);
    }
    Some(ranges)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Protection;

    fn vma(path: &str, shared: bool, write: bool) -> Vma {
        Vma {
            range: PageRange::new(0x1000, 0x2000),
            prot: Protection {
                read: true,
                write,
                exec: false,
            },
            shared,
            backing: Backing::File {
                path: path.into(),
                deleted: false,
                dev: (0, 1),
                inode: 1,
                offset: 0,
            },
            flags: Vec::new(),
            build_id: None,
        }
    }

    #[test]
    fn what_is_found_nowhere_else() {
        let gone = |shared| {
            let mut vma = vma("/srv/old", shared, true);
            if let Backing::File { deleted, .. } = &mut vma.backing {
                *deleted = true;
            }
            vma
        };
        assert_eq!(irreplaceable(&[gone(false)]).pages(), 1);
        assert!(irreplaceable(&[gone(true), vma("/srv/new", false, true)]).is_empty());
        let special = |name: &str| Vma {
            backing: Backing::Special(name.into()),
            ..gone(false)
        };
        assert_eq!(irreplaceable(&[special("vdso")]).pages(), 1);
        assert!(irreplaceable(&[special("vvar"), special("vsyscall")]).is_empty());
    }

    #[test]
    fn which_mappings_are_compared() {
        let is = |path, shared, write| compared(&[vma(path, shared, write)]).count() == 1;
        assert!(is("/dev/zero", true, true));
        assert!(is("/memfd:x", true, false));
        assert!(is("/srv/data", true, true));
        assert!(!is("/usr/lib/locale", true, false));
        assert!(!is("/srv/data", false, true));
        assert!(!is("/dev/dri/card0", true, true));
    }
}
