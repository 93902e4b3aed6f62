//! Contents of files that the process writes, as pages of a snapshot.
//!
//! Each file has a terabyte of address space above all that processes have, so that its pages are stored, compared
//! and dropped as those of memory are. A file is read ahead of the stop, and again inside it only if its size or its
//! time of change says so.

use crate::model::{Descriptor, Detail};
use crate::model::{
    FILE_ROOM, FILE_SPACE, FileKind, OpenFile, PAGE_SIZE, Page, PageRange, PageSet, ProcessState,
    Regular, SavedFile, page_up,
};
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use xxhash_rust::xxh3::xxh3_128;

/// Pages read at a time.
const PIECE: usize = 256;
/// A file that changed less than this before it was read may change again without another time of change: clocks
/// of file systems tick.
const TICK_NS: i64 = 50_000_000;

/// A file, by device and inode.
type Identity = (u64, u64);

/// Size and time of change of each file when it was read last.
pub type Stamps = HashMap<Identity, (u64, i64)>;

/// Which file has which room, and how each one was when the head was taken.
#[derive(Clone, Debug, Default)]
pub struct Contents {
    rooms: HashMap<Identity, u64>,
    next: u64,
    stamps: Stamps,
}

impl Contents {
    /// Goes on from the files of the latest snapshot.
    pub fn after(saved: &[SavedFile]) -> Self {
        let rooms: HashMap<Identity, u64> = saved.iter().map(|f| (f.identity, f.start)).collect();
        let next = rooms
            .values()
            .max()
            .map_or(FILE_SPACE, |last| last + FILE_ROOM);
        Self {
            rooms,
            next,
            stamps: Stamps::new(),
        }
    }

    /// How files were when the head was taken.
    pub fn stamps(&self) -> &Stamps {
        &self.stamps
    }

    /// A snapshot with these is the head now.
    pub fn commit(&mut self, stamps: Stamps) {
        self.stamps = stamps;
    }

    /// Another snapshot is the head now: everything is read again.
    pub fn forget(&mut self, saved: &[SavedFile]) {
        for file in saved {
            self.rooms.insert(file.identity, file.start);
            self.next = self.next.max(file.start + FILE_ROOM);
        }
        self.stamps.clear();
    }

    /// Reads what has changed since `stamps` and hands each page with its hash to `take`. Gives all files whose
    /// contents belong to the snapshot, and a sentence for each that could not be read.
    pub fn read<'a>(
        &mut self,
        pid: i32,
        files: impl Iterator<Item = (Descriptor, &'a OpenFile)>,
        stamps: &mut Stamps,
        mut take: impl FnMut(u64, &Page, u128),
    ) -> (Vec<SavedFile>, Vec<String>) {
        let mut saved: Vec<SavedFile> = Vec::new();
        let mut failed = Vec::new();
        for (descriptor, file) in files {
            if !is_saved(file) || saved.iter().any(|known| known.identity == file.identity) {
                continue;
            }
            let start = *self.rooms.entry(file.identity).or_insert_with(|| {
                let start = self.next.max(FILE_SPACE);
                self.next = start + FILE_ROOM;
                start
            });
            match read_file(pid, descriptor.fd, file, start, stamps, &mut take) {
                Ok(one) => saved.push(one),
                Err(why) => {
                    stamps.remove(&file.identity);
                    failed.push(format!(
                        "the content of {} could not be saved: {why}",
                        file.link
                    ));
                }
            }
        }
        // What is not in the snapshot any more has to be read again when it comes back.
        let there: HashSet<Identity> = saved.iter().map(|one| one.identity).collect();
        stamps.retain(|identity, _| there.contains(identity));
        (saved, failed)
    }
}

/// Open for writing, or without a name by which it could be found again.
fn is_saved(file: &OpenFile) -> bool {
    file.kind == FileKind::Regular
        && file.flags & libc::O_PATH as u32 == 0
        && matches!(file.detail, Detail::Regular(_))
        && (file.is_writable() || file.deleted)
}

fn read_file(
    pid: i32,
    fd: i32,
    known: &OpenFile,
    start: u64,
    stamps: &mut Stamps,
    take: &mut impl FnMut(u64, &Page, u128),
) -> std::io::Result<SavedFile> {
    let file = File::open(format!("/proc/{pid}/fd/{fd}"))?;
    let meta = file.metadata()?;
    let now = Regular {
        size: meta.size(),
        mtime_ns: meta.mtime() * 1_000_000_000 + meta.mtime_nsec(),
        mode: meta.mode(),
    };
    if now.size >= FILE_ROOM {
        return Err(std::io::Error::other("it is larger than a terabyte"));
    }
    let saved = SavedFile {
        identity: known.identity,
        path: known.link.clone(),
        start,
        content: now,
    };
    let stamp = (now.size, now.mtime_ns);
    if stamps.get(&known.identity) == Some(&stamp) {
        return Ok(saved);
    }
    let began = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_nanos() as i64);
    let mut buffer = vec![0u8; PIECE * PAGE_SIZE as usize];
    let mut at = 0;
    while at < now.size {
        let want = ((now.size - at) as usize).min(buffer.len());
        let mut got = 0;
        while got < want {
            match file.read_at(&mut buffer[got..want], at + got as u64) {
                Ok(0) => break,
                Ok(more) => got += more,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        // Behind its end, and where it has been cut short meanwhile, zeroes.
        let whole = page_up(want as u64) as usize;
        buffer[got..whole].fill(0);
        for (n, page) in buffer[..whole].as_chunks().0.iter().enumerate() {
            take(start + at + n as u64 * PAGE_SIZE, page, xxh3_128(page));
        }
        at += whole as u64;
    }
    match began - now.mtime_ns > TICK_NS {
        true => drop(stamps.insert(known.identity, stamp)),
        false => drop(stamps.remove(&known.identity)),
    }
    Ok(saved)
}

/// The rooms of saved files, as far as they have content.
pub fn saved_ranges(saved: &[SavedFile]) -> PageSet {
    saved
        .iter()
        .filter(|file| file.content.size > 0)
        .map(|file| PageRange::new(file.start, file.start + page_up(file.content.size)))
        .collect()
}

/// Pages of memory among `pages`: all but those of files.
pub fn without_files(pages: &PageSet) -> PageSet {
    let memory = PageRange::new(0, FILE_SPACE);
    pages.intersect(&PageSet::from_ranges(vec![memory]))
}

/// Files of a state whose content differs from what is there now by size or time of change.
pub fn changed_files(
    state: &ProcessState,
    look: impl Fn(&SavedFile) -> Option<Regular>,
) -> Vec<&SavedFile> {
    let differs = |file: &&SavedFile| {
        look(file).is_none_or(|now| {
            (now.size, now.mtime_ns) != (file.content.size, file.content.mtime_ns)
        })
    };
    state.saved.iter().filter(differs).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::AsRawFd;

    fn open_file(file: &File) -> (Descriptor, OpenFile) {
        let meta = file.metadata().unwrap();
        let detail = Detail::Regular(Regular {
            size: meta.size(),
            mtime_ns: 0,
            mode: meta.mode(),
        });
        let open = OpenFile {
            kind: FileKind::Regular,
            flags: libc::O_RDWR as u32,
            identity: (meta.dev(), meta.ino()),
            detail,
            ..OpenFile::default()
        };
        (
            Descriptor {
                fd: file.as_raw_fd(),
                ..Descriptor::default()
            },
            open,
        )
    }

    #[test]
    fn a_file_is_read_once_and_again_when_it_changed() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[5; 10_000]).unwrap();
        let long_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(100);
        file.set_modified(long_ago).unwrap();
        let mut contents = Contents::default();
        let mut stamps = Stamps::new();
        let mut read = |file: &File, stamps: &mut Stamps| {
            let (descriptor, open) = open_file(file);
            let mut pages = Vec::new();
            let files = std::iter::once((descriptor, &open));
            let (saved, failed) =
                contents.read(std::process::id() as i32, files, stamps, |addr, page, _| {
                    pages.push((addr - FILE_SPACE, page[0], page[4095]));
                });
            assert!(failed.is_empty(), "{failed:?}");
            (saved, pages)
        };
        let (saved, pages) = read(&file, &mut stamps);
        assert_eq!(
            (saved[0].start, saved[0].content.size),
            (FILE_SPACE, 10_000)
        );
        assert_eq!(pages, [(0, 5, 5), (4096, 5, 5), (8192, 5, 0)]);
        assert_eq!(saved_ranges(&saved).pages(), 3);
        assert!(read(&file, &mut stamps).1.is_empty());
        // Just written: it may be written again in the same tick. Where others have the processor, not just any more.
        let tick = std::time::Duration::from_nanos(TICK_NS as u64);
        let in_time = (0..1000).any(|_| {
            file.write_all(&[6; 1]).unwrap();
            let written = std::time::Instant::now();
            let pages = [(); 2].map(|()| read(&file, &mut stamps).1.len());
            let in_time = written.elapsed() < tick / 2;
            assert!(!in_time || pages == [3, 3], "{pages:?}");
            in_time
        });
        assert!(in_time, "never read soon enough");
    }

    #[test]
    fn a_file_that_was_closed_meanwhile_is_read_again() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[5; 4096]).unwrap();
        let long_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(100);
        file.set_modified(long_ago).unwrap();
        let (descriptor, open) = open_file(&file);
        let mut contents = Contents::default();
        let mut stamps = Stamps::new();
        // A snapshot without it does not have its pages any more.
        for (is_open, pages) in [(true, 1), (true, 0), (false, 0), (true, 1)] {
            let files = std::iter::once((descriptor, &open)).filter(|_| is_open);
            let mut read = 0;
            contents.read(std::process::id() as i32, files, &mut stamps, |_, _, _| {
                read += 1;
            });
            assert_eq!(read, pages);
        }
    }

    #[test]
    fn rooms_stay_from_one_snapshot_to_the_next() {
        let saved = SavedFile {
            identity: (1, 7),
            start: FILE_SPACE + FILE_ROOM,
            ..SavedFile::default()
        };
        let contents = Contents::after(&[saved]);
        assert_eq!(contents.rooms[&(1, 7)], FILE_SPACE + FILE_ROOM);
        assert_eq!(contents.next, FILE_SPACE + 2 * FILE_ROOM);
    }
}
