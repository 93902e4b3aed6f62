//! Shared memory that the processes of a stopped tree have in common: what it holds is looked at once.

use super::pipeline::Hashes;
use crate::model::{Backing, PAGE_SIZE, PageRange, PageSet, Vma};
use std::collections::HashMap;

/// What stopped processes were found to hold of shared memory, by its place in that.
#[derive(Default)]
pub(super) struct SharedSeen {
    objects: HashMap<Object, Hashes>,
}

/// Path, device and inode: the kernel numbers what has no file system of its own in one row.
type Object = (String, (u32, u32), u64);

/// The memory that a mapping is of, and the place of its first page there. Only where it cannot be another one: System V
/// segments are numbered by IPC namespace, and files of some file systems have numbers that others have as well.
fn object(vma: &Vma) -> Option<(Object, u64)> {
    match &vma.backing {
        Backing::File {
            path,
            dev,
            inode,
            offset,
            ..
        } if vma.shared && vma.is_shared_memory() && !path.starts_with("/SYSV") => {
            Some(((path.clone(), *dev, *inode), *offset))
        }
        _ => None,
    }
}

/// The pages of a mapping among these.
fn within<'a>(vma: &Vma, pages: &'a PageSet) -> impl Iterator<Item = u64> + use<'a> {
    let range = vma.range;
    let after = pages
        .ranges()
        .iter()
        .filter_map(move |one| one.intersect(&range));
    after.flat_map(|range: PageRange| (range.start..range.end).step_by(PAGE_SIZE as usize))
}

impl SharedSeen {
    /// Those of the pages of a process that another one was found to have as `now` has them.
    pub(super) fn unchanged(&self, vmas: &[Vma], pages: &PageSet, now: &Hashes) -> PageSet {
        let mut found = Vec::new();
        for vma in vmas {
            let Some((object, offset)) = object(vma) else {
                continue;
            };
            let Some(seen) = self.objects.get(&object) else {
                continue;
            };
            let place = |addr: u64| addr - vma.range.start + offset;
            found.extend(within(vma, pages).filter(|addr| {
                let known = now.get(*addr);
                known.is_some() && known == seen.get(place(*addr))
            }));
        }
        PageSet::from_pages(found)
    }

    /// These pages of a stopped process were looked at, and are as `now` has them.
    pub(super) fn learn(&mut self, vmas: &[Vma], pages: &PageSet, now: &Hashes) {
        for vma in vmas {
            let Some((object, offset)) = object(vma) else {
                continue;
            };
            let seen = self.objects.entry(object).or_default();
            for addr in within(vma, pages) {
                if let Some(hash) = now.get(addr) {
                    seen.insert(addr - vma.range.start + offset, hash);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Protection;

    const P: u64 = PAGE_SIZE;

    fn mapping(path: &str, start: u64, pages: u64, offset: u64) -> Vma {
        Vma {
            range: PageRange::new(start * P, (start + pages) * P),
            prot: Protection {
                read: true,
                write: true,
                exec: false,
            },
            shared: true,
            backing: Backing::File {
                path: path.into(),
                deleted: true,
                dev: (0, 1),
                inode: 7,
                offset: offset * P,
            },
            flags: Vec::new(),
            build_id: None,
        }
    }

    fn hashes(of: &[(u64, u128)]) -> Hashes {
        let mut all = Hashes::new();
        of.iter()
            .for_each(|(page, hash)| all.insert(page * P, *hash));
        all
    }

    #[test]
    fn what_one_process_holds_another_one_holds_at_its_own_place() {
        let mut seen = SharedSeen::default();
        let first = [mapping("/dev/zero", 10, 4, 0)];
        let all = |vmas: &[Vma]| vmas.iter().map(|v| v.range).collect::<PageSet>();
        let now = hashes(&[(10, 1), (11, 2), (12, 3), (13, 4)]);
        seen.learn(&first, &all(&first), &now);
        // Pages 1 to 3 of the memory, at other addresses; one is known otherwise, and one not at all.
        let second = [mapping("/dev/zero", 100, 3, 1)];
        let known = hashes(&[(100, 2), (101, 9)]);
        let same = seen.unchanged(&second, &all(&second), &known);
        assert_eq!(same, PageSet::from_pages(vec![100 * P]));
        // What only looks like the same memory.
        for other in [
            mapping("/memfd:x", 100, 3, 1),
            mapping("/SYSV00000000", 100, 3, 1),
            Vma {
                shared: false,
                ..mapping("/dev/zero", 100, 3, 1)
            },
        ] {
            let other = [other];
            seen.learn(&other, &all(&other), &known);
            assert!(
                seen.unchanged(&other, &all(&other), &hashes(&[(100, 3)]))
                    .is_empty()
            );
        }
    }
}
