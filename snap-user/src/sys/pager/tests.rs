//! Memory of this process itself, filled by another thread of it.

use super::*;
use std::os::unix::fs::FileExt;

/// Pages with this in them.
fn image_of(bytes: impl Iterator<Item = u8>) -> Image {
    let file = tempfile::tempfile().unwrap();
    let bytes: Vec<u8> = bytes.flat_map(|byte| [byte; PAGE_SIZE as usize]).collect();
    std::os::unix::fs::FileExt::write_all_at(&file, &bytes, 0).unwrap();
    Image::new(&file, &Arc::default(), None).unwrap()
}

/// New memory of this process, which stays, and all of which is missing.
fn missing_memory(pages: u64) -> (OwnedFd, PageRange) {
    let (flags, none) = (
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
        std::ptr::null_mut(),
    );
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let len = (pages * PAGE_SIZE) as usize;
    // SAFETY: a new mapping, which stays.
    let at = unsafe { libc::mmap(none, len, protection, flags, -1, 0) } as u64;
    // SAFETY: a system call without pointers; the descriptor is nobody else's.
    let uffd =
        unsafe { OwnedFd::from_raw_fd(libc::syscall(libc::SYS_userfaultfd, PAGER_FLAGS) as i32) };
    let range = PageRange::new(at, at + pages * PAGE_SIZE);
    arm(uffd.as_fd(), &[range]).unwrap();
    (uffd, range)
}

/// Whether these pages of memory that stays mapped, and that nobody writes, hold one byte each, counted from `first` on.
fn holds(range: PageRange, pages: std::ops::Range<u64>, first: u8) -> bool {
    let page = move |n: u64| (range.start + n * PAGE_SIZE) as *const u8;
    // SAFETY: as the caller says.
    let mut all = pages.map(|n| (n, unsafe { page(n).read_volatile() }));
    all.all(|(n, byte)| byte == first + n as u8)
}

/// Waits until there is something to do, a moment at most. `false` when there is nothing.
fn wait(pager: &Pager) -> bool {
    let own: Vec<_> = pager.descriptors().collect();
    let in_it = |fd| rustix::event::PollFd::new(fd, rustix::event::PollFlags::IN);
    let mut fds: Vec<_> = own.iter().map(in_it).collect();
    let moment = rustix::event::Timespec {
        tv_sec: 0,
        tv_nsec: 1_000_000,
    };
    rustix::event::poll(&mut fds, Some(&moment)).unwrap() > 0
}

/// A page that is touched while memory goes elsewhere is given when that is over, which the kernel tells nobody.
#[test]
fn what_is_touched_while_something_changes_comes() {
    const PAGES: u64 = 64;
    if !rustix::process::geteuid().is_root() {
        return crate::skip::without_root("the right to follow forks");
    }
    for _ in 0..20 {
        let (uffd, range) = missing_memory(PAGES);
        let mut pager = Pager::default();
        let image = image_of((0..PAGES).map(|n| n as u8 + 1));
        pager.adopt(uffd, image, &[Piece { range, offset: 0 }], &[]);
        let touching = std::thread::spawn(move || holds(range, 0..PAGES / 2, 1));
        let dropping = std::thread::spawn(move || {
            for n in PAGES / 2..PAGES {
                let page = (range.start + n * PAGE_SIZE) as *mut libc::c_void;
                // SAFETY: throws away memory that nobody reads.
                unsafe { libc::madvise(page, 4096, libc::MADV_DONTNEED) };
            }
        });
        let mut idle = 0;
        while !(touching.is_finished() && dropping.is_finished()) {
            // Whoever fills wakes for what is ready, and for what is to be tried again.
            if wait(&pager) || pager.is_to_be_tried_again() {
                pager.serve();
                idle = 0;
            }
            idle += 1;
            assert!(idle < 10_000, "nobody gives what was touched");
        }
        assert!(touching.join().unwrap());
        dropping.join().unwrap();
    }
}

#[test]
fn each_has_its_own_image_and_is_kept_until_the_last_lacks_nothing() {
    const PAGES: [u64; 2] = [20, 64];
    if !rustix::process::geteuid().is_root() {
        return crate::skip::without_root("the right to follow forks");
    }
    for keeps in [true, false] {
        let mut pager = match keeps {
            true => Pager::keeping(),
            false => Pager::default(),
        };
        let ranges = [0, 1].map(|n| {
            let (uffd, range) = missing_memory(PAGES[n]);
            let image = image_of((0..PAGES[n]).map(|page| page as u8 + 1 + 100 * n as u8));
            pager.adopt(uffd, image, &[Piece { range, offset: 0 }], &[]);
            range
        });
        // All of the first, nothing of the second.
        assert!(pager.fill_some());
        assert!(!pager.is_done());
        assert_eq!(pager.descriptors().count(), 1 + usize::from(keeps));
        // One page, with its neighbours.
        let touching = std::thread::spawn(move || holds(ranges[1], 30..31, 101));
        while !touching.is_finished() {
            wait(&pager);
            pager.serve();
        }
        assert!(touching.join().unwrap());
        while pager.fill_some() {}
        assert!(pager.is_done());
        assert_eq!(pager.descriptors().count(), 2 * usize::from(keeps));
        assert!(holds(ranges[0], 0..PAGES[0], 1) && holds(ranges[1], 0..PAGES[1], 101));
    }
}

/// Whoever asks for a page that is not what it was gets nothing, and the image counts no more.
#[test]
fn a_page_that_is_not_what_it_was_is_not_given() {
    const PAGES: u64 = 64;
    if !rustix::process::geteuid().is_root() {
        return crate::skip::without_root("the right to follow forks");
    }
    for bad in [None, Some(40)] {
        let (uffd, range) = missing_memory(PAGES);
        let file = tempfile::tempfile().unwrap();
        let pages = (0..PAGES).map(|n| [n as u8 + 1; PAGE_SIZE as usize]);
        let mut sums: Vec<u32> = pages.clone().map(|page| crc32c::crc32c(&page)).collect();
        let bytes: Vec<u8> = pages.flatten().collect();
        file.write_all_at(&bytes, 0).unwrap();
        if let Some(bad) = bad {
            sums[bad] ^= 1;
        }
        let image = Image::new(&file, &sums.into(), None).unwrap();
        let mut pager = Pager::default();
        pager.adopt(uffd, image, &[Piece { range, offset: 0 }], &[]);
        assert_eq!(pager.images().count(), 1);
        while pager.fill_some() {}
        assert_eq!(pager.is_damaged(), bad.is_some());
        let mut first = [0; 8];
        file.read_exact_at(&mut first, 0).unwrap();
        assert_eq!(first == [0; 8], bad.is_some());
        if bad.is_none() {
            assert!(holds(range, 0..PAGES, 1));
        }
    }
}

/// Nor does anybody who asked at the same time, for what lies beside it, or as the last thing that was missing.
#[test]
fn nobody_goes_on_who_waits_where_something_is_damaged() {
    const PAGES: u64 = 4;
    if !rustix::process::geteuid().is_root() {
        return crate::skip::without_root("the right to follow forks");
    }
    let (uffd, range) = missing_memory(PAGES);
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&[7; PAGES as usize * PAGE_SIZE as usize], 0)
        .unwrap();
    let image = Image::new(&file, &vec![0; PAGES as usize].into(), None).unwrap();
    let mut pager = Pager::default();
    pager.adopt(uffd, image, &[Piece { range, offset: 0 }], &[]);
    let touching: Vec<_> = (0..3)
        .map(|page| std::thread::spawn(move || holds(range, page..page + 1, 7)))
        .collect();
    while !pager.is_damaged() {
        wait(&pager);
        pager.serve();
    }
    for _ in 0..20 {
        std::thread::sleep(std::time::Duration::from_millis(5));
        pager.serve();
        assert!(!pager.fill_some());
    }
    assert!(touching.iter().all(|thread| !thread.is_finished()));
    assert_eq!(pager.descriptors().count(), 1);
    // Here they are let go of in the end.
    drop(pager);
    touching.into_iter().for_each(|thread| drop(thread.join()));
}

#[test]
fn what_is_to_come_first_does() {
    const PAGES: u64 = 512;
    if !rustix::process::geteuid().is_root() {
        return crate::skip::without_root("the right to follow forks");
    }
    let (uffd, range) = missing_memory(PAGES);
    let image = image_of((0..PAGES).map(|n| n as u8));
    let at = |page: u64| range.start + page * PAGE_SIZE;
    let first = [
        PageRange::new(at(400), at(402)),
        // More than is filled in one go.
        PageRange::new(at(10), at(10 + 200)),
        // Not its memory.
        PageRange::new(at(PAGES + 5), at(PAGES + 6)),
    ];
    let mut pager = Pager::default();
    pager.adopt(uffd, image, &[Piece { range, offset: 0 }], &first);
    let lacks = |pager: &Pager, page| pager.spaces[0].missing.at(at(page)).is_some();
    assert!(pager.fill_some());
    assert!(!lacks(&pager, 400) && !lacks(&pager, 401) && lacks(&pager, 10));
    assert!(pager.fill_some());
    assert!(!lacks(&pager, 10) && lacks(&pager, 209) && lacks(&pager, 0));
    assert!(pager.fill_some());
    assert!(!lacks(&pager, 209) && lacks(&pager, 210) && lacks(&pager, 0));
    assert!(pager.fill_some());
    assert!(!lacks(&pager, 0));
    while pager.fill_some() {}
    assert!(pager.is_done());
    assert!(holds(range, 0..PAGES, 0));
}

#[test]
fn events_are_told_apart() {
    let mut bytes = [0u8; 32];
    bytes[0] = 0x12;
    bytes[16..24].copy_from_slice(&0x7000u64.to_le_bytes());
    assert_eq!(decode(&bytes), Message::Touched(0x7000));
    bytes[0] = 0x14;
    bytes[8..16].copy_from_slice(&0x1000u64.to_le_bytes());
    bytes[24..32].copy_from_slice(&0x2000u64.to_le_bytes());
    let moved = Message::Moved {
        from: 0x1000,
        to: 0x7000,
        len: 0x2000,
    };
    assert_eq!(decode(&bytes), moved);
    bytes[0] = 0x15;
    assert_eq!(decode(&bytes), Message::Dropped(0x1000, 0x7000));
    bytes[0] = 0x77;
    assert_eq!(decode(&bytes), Message::Unknown);
}
