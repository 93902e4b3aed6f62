//! The files behind mappings, as long as they are still the same.

use crate::model::{Backing, PAGE_SIZE, Page, Vma};
use crate::sys;
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};

/// Whether the file behind a mapping is still under its name: by its build id where one was recorded, else by
/// device and inode.
pub fn is_unchanged(vma: &Vma) -> bool {
    let Backing::File {
        path,
        deleted: false,
        dev,
        inode,
        ..
    } = &vma.backing
    else {
        return false;
    };
    match &vma.build_id {
        Some(id) => sys::proc::build_id(path).as_ref() == Some(id),
        None => std::fs::metadata(path).is_ok_and(|found| {
            let device = (
                rustix::fs::major(found.dev()),
                rustix::fs::minor(found.dev()),
            );
            found.is_file() && found.ino() == *inode && device == *dev
        }),
    }
}

/// The first page of an ELF file that is mapped from its beginning: debuggers tell by the build id in it which
/// file they need. Linux dumps it too (bit 4 of `coredump_filter`, `core(5)`).
pub(super) fn elf_header_page(vma: &Vma) -> Option<Page> {
    let Backing::File {
        path, offset: 0, ..
    } = &vma.backing
    else {
        return None;
    };
    // A device is never opened: that alone can have effects.
    if vma.shared || !vma.prot.read || path.starts_with("/dev/") || !is_unchanged(vma) {
        return None;
    }
    let file = File::open(path).ok()?;
    let mut page = [0; PAGE_SIZE as usize];
    let mut read = 0;
    while read < page.len() {
        match file.read_at(&mut page[read..], read as u64).ok()? {
            0 => break,
            more => read += more,
        }
    }
    page.starts_with(b"\x7fELF").then_some(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own_executable() -> Vma {
        let path = std::env::current_exe().expect("a path");
        let path = path.to_str().expect("UTF-8");
        let maps = sys::proc::maps(std::process::id() as i32).expect("own mappings");
        let is_first = |vma: &Vma| matches!(&vma.backing, Backing::File { path: p, offset: 0, .. } if p == path);
        maps.into_iter().find(is_first).expect("its first mapping")
    }

    #[test]
    fn a_file_is_taken_only_as_long_as_it_is_the_same() {
        let vma = own_executable();
        let Backing::File { path, .. } = &vma.backing else {
            unreachable!("it was chosen so")
        };
        let known = Vma {
            build_id: sys::proc::build_id(path),
            ..vma.clone()
        };
        assert!(known.build_id.is_some() && is_unchanged(&known));
        let page = elf_header_page(&known).expect("its header");
        assert_eq!(&page[1..4], b"ELF");
        let other = Vma {
            build_id: Some(vec![1; 20]),
            ..vma
        };
        assert!(!is_unchanged(&other) && elf_header_page(&other).is_none());
    }

    #[test]
    fn text_and_deleted_files_have_no_header_page() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("text");
        std::fs::write(&path, "just text").expect("written");
        let found = std::fs::metadata(&path).expect("metadata");
        let mut vma = own_executable();
        vma.build_id = None;
        let mut backing = Backing::File {
            path: path.to_str().expect("UTF-8").into(),
            deleted: false,
            dev: (
                rustix::fs::major(found.dev()),
                rustix::fs::minor(found.dev()),
            ),
            inode: found.ino(),
            offset: 0,
        };
        vma.backing = backing.clone();
        assert!(is_unchanged(&vma));
        assert!(elf_header_page(&vma).is_none());
        if let Backing::File { deleted, .. } = &mut backing {
            *deleted = true;
        }
        vma.backing = backing;
        assert!(!is_unchanged(&vma));
    }
}
