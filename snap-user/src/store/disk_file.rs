//! A file being written to the disk.

use super::buffer::{ALIGN, Block, WriteBuffer};
use super::files::WriteFile;
use crate::sys::WriteRing;
use rustix::fs::OFlags;
use rustix::io::Errno;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// Pieces shorter than this go through the page cache: on their own they are not worth a device's latency.
const LEAST_DIRECT: usize = 64 << 10;

/// How much of the beginning of these bytes direct I/O can move.
pub(super) fn direct_len(bytes: &[u8], offset: u64) -> usize {
    let aligned =
        offset.is_multiple_of(ALIGN as u64) && bytes.as_ptr().addr().is_multiple_of(ALIGN);
    let len = bytes.len() / ALIGN * ALIGN;
    if aligned && len >= LEAST_DIRECT {
        len
    } else {
        0
    }
}

/// Pieces that are under way at a time, beside the one that is being filled.
const BEHIND: u32 = 3;

/// A file whose large pieces go past the page cache, and while the next ones are made.
///
/// A snapshot is written once and most are never read: through the page cache it would push out what the machine
/// is working with, and finding it a fresh page for every 4 KiB costs the processors several times what the
/// write does.
#[derive(Debug)]
pub(super) struct DiskFile {
    file: File,
    direct: Option<File>,
    behind: Behind,
}

/// The pieces that are under way.
#[derive(Debug)]
enum Behind {
    /// There was none yet: the first piece may be the only one.
    Untried,
    Ring(Box<WriteRing<Block>>),
    /// None any more: the kernel has no io_uring for us, or nothing more is written.
    Never,
}

impl DiskFile {
    /// One that has just been made there.
    pub(super) fn new(file: File, path: &Path) -> Self {
        // A file system without direct I/O refuses the flag, here or at the first write.
        let direct = OpenOptions::new()
            .write(true)
            .custom_flags(OFlags::DIRECT.bits() as i32)
            .open(path)
            .ok();
        Self {
            file,
            direct,
            behind: Behind::Untried,
        }
    }

    /// Writes as much of the beginning of `bytes` as can go directly; says how much.
    fn write_direct(&mut self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        let Some(direct) = &self.direct else {
            return Ok(0);
        };
        let len = direct_len(bytes, offset);
        if len == 0 {
            return Ok(0);
        }
        let written = direct.write_at(&bytes[..len], offset);
        self.judge(written)
    }

    /// What a direct write that had this outcome has written. Where it did not work at all, the page cache will do.
    fn judge(&mut self, written: io::Result<usize>) -> io::Result<usize> {
        match written.as_ref().map_err(Errno::from_io_error) {
            Err(Some(Errno::INVAL)) => {
                self.direct = None;
                Ok(0)
            }
            // The kernel has called it off, or had no thread or memory for it.
            Err(Some(Errno::INTR | Errno::AGAIN | Errno::CANCELED)) => Ok(0),
            _ => written,
        }
    }

    /// Waits for a piece that is under way, and sees to the rest of it. Gives its buffer; `None`: there is none.
    fn settle_one(&mut self) -> io::Result<Option<WriteBuffer>> {
        let Behind::Ring(ring) = &mut self.behind else {
            return Ok(None);
        };
        let done = ring.wait().inspect_err(|_| self.behind = Behind::Never)?;
        let Some(done) = done else { return Ok(None) };
        let written = self.judge(done.result)?;
        let mut buffer = WriteBuffer::of_blocks(done.buffer, done.len);
        if written < done.len {
            let rest = &buffer.bytes()[written..];
            FileExt::write_all_at(&self.file, rest, done.offset + written as u64)?;
        }
        buffer.clear();
        Ok(Some(buffer))
    }

    /// Waits for all that is under way.
    fn settle(&mut self) -> io::Result<()> {
        while self.settle_one()?.is_some() {}
        Ok(())
    }

    /// The ring for a piece, where it can go that way.
    fn ring(&mut self, bytes: &[u8], offset: u64) -> Option<&mut WriteRing<Block>> {
        let direct = self.direct.as_ref()?;
        let is_whole = !bytes.is_empty() && direct_len(bytes, offset) == bytes.len();
        if matches!(self.behind, Behind::Untried) && is_whole && offset > 0 {
            let ring = direct
                .try_clone()
                .and_then(|file| WriteRing::new(file, BEHIND));
            self.behind = match ring {
                Ok(ring) => Behind::Ring(Box::new(ring)),
                Err(error) => {
                    tracing::debug!("no io_uring: {error}");
                    Behind::Never
                }
            };
        }
        match &mut self.behind {
            Behind::Ring(ring) if is_whole => Some(ring),
            _ => None,
        }
    }
}

impl WriteFile for DiskFile {
    fn write_all_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        // It may be the same place.
        self.settle()?;
        // After a short direct write the rest goes through the page cache, whose error then says why.
        let written = self.write_direct(bytes, offset)?;
        FileExt::write_all_at(&self.file, &bytes[written..], offset + written as u64)
    }

    fn write_behind(&mut self, mut buffer: WriteBuffer, offset: u64) -> io::Result<WriteBuffer> {
        let is_full = matches!(&self.behind, Behind::Ring(ring) if ring.is_full());
        let empty = match is_full {
            true => self.settle_one()?.unwrap_or_default(),
            false => WriteBuffer::default(),
        };
        if let Some(ring) = self.ring(buffer.bytes(), offset) {
            let (blocks, len) = buffer.into_blocks();
            match ring.write(blocks, len, offset) {
                Ok(()) => return Ok(empty),
                Err(blocks) => buffer = WriteBuffer::of_blocks(blocks, len),
            }
        }
        self.write_all_at(buffer.bytes(), offset)?;
        buffer.clear();
        Ok(buffer)
    }

    fn finish(&mut self) -> io::Result<()> {
        self.settle()?;
        // It may wait for a while until it is synced.
        (self.direct, self.behind) = (None, Behind::Never);
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        self.settle()?;
        // fdatasync(2) covers the length too; only times are left out. It also empties the device's cache, which
        // direct writes may still be in.
        self.file.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use super::super::buffer::ReadBuffer;
    use super::super::files::{Disk, Files};
    use super::*;
    use crate::small_disk::{Room, SmallDisk};

    #[test]
    fn large_and_small_pieces_of_one_file_read_back() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("file");
        let content: Vec<u8> = (0..2_500_001u32)
            .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
            .collect();
        let mut buffer = WriteBuffer::default();
        let mut file = DiskFile::new(File::create_new(&path).expect("a new file"), &path);
        let mut at = 0;
        while at < content.len() {
            let taken = buffer.extend(&content[at..]);
            buffer = file.write_behind(buffer, at as u64).expect("written");
            at += taken;
        }
        let is_behind = matches!(file.behind, Behind::Ring(_));
        let cannot = file.direct.is_none() || crate::sys::can_write_behind().is_err();
        assert!(is_behind || cannot);
        // Over what went past the page cache.
        file.write_all_at(b"head", 0).expect("written");
        file.sync().expect("synced");
        let mut want = content;
        want[..4].copy_from_slice(b"head");

        let file = Disk.open(&path).expect("the file");
        assert_eq!(file.len().expect("a length"), want.len() as u64);
        let mut buffer = ReadBuffer::default();
        for (start, len) in [
            (0, want.len()),
            (4096, 1 << 20),
            (8192, want.len() - 8192),
            (5, 100_000),
            (want.len() - 3, 3),
        ] {
            let bytes = buffer.bytes(len);
            file.read_exact_at(bytes, start as u64).expect("read");
            assert!(bytes == &want[start..start + len], "{start} {len}");
        }
        let past = buffer.bytes(1 << 20);
        assert!(file.read_exact_at(past, 2_000_896).is_err(), "past the end");
    }

    #[test]
    fn a_disk_that_is_full_is_told_at_the_end_at_the_latest() {
        let Some(disk) = SmallDisk::new() else { return };
        let mut file = Disk.create(&disk.path().join("file")).expect("a new file");
        file.write_all_at(b"head", 0).expect("written");
        disk.leave(Room {
            pages: 1000,
            files: 1,
        });
        let mut buffer = WriteBuffer::default();
        let mut at = 0;
        let told = loop {
            while !buffer.is_full() {
                buffer.extend(&[7; 4096]);
            }
            let len = buffer.bytes().len() as u64;
            match file.write_behind(buffer, at) {
                Ok(empty) => buffer = empty,
                Err(error) => break Some(error),
            }
            at += len;
            if at > 5 << 20 {
                break None;
            }
        };
        let told = told.or_else(|| file.finish().err()).expect("an error");
        assert_eq!(told.kind(), io::ErrorKind::StorageFull);
    }
}
