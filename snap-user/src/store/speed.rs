//! How quickly a folder takes what is written.

use super::buffer::WriteBuffer;
use super::error::StoreError;
use rustix::fs::OFlags;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

/// Most that is written to find out.
const MOST: u64 = 64 << 20;
/// And for how long.
const LONGEST: Duration = Duration::from_millis(300);
/// Small syncs that are timed.
const SYNCS: u32 = 4;

/// What was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Speed {
    /// Bytes that become durable in a second, in large writes.
    pub bytes_per_second: u64,
    /// How long it takes to make one small change durable, nanoseconds.
    pub sync_ns: u64,
}

impl Speed {
    /// How long so many files of so many bytes in all take, nanoseconds.
    pub fn time_ns(&self, files: u64, bytes: u64) -> u64 {
        let write = u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes_per_second.max(1));
        u64::try_from(write)
            .unwrap_or(u64::MAX)
            .saturating_add(files.saturating_mul(self.sync_ns))
    }

    /// Writes up to 64 MiB into a file without a name, which is gone afterwards, in a folder or the nearest one above
    /// it that is there.
    pub fn measure(dir: &Path) -> Result<Self, StoreError> {
        let there = dir
            .ancestors()
            .find(|above| above.is_dir())
            .unwrap_or(Path::new("."));
        measure(there).map_err(StoreError::io("measure the speed of writes to", there))
    }
}

fn unnamed(dir: &Path, more: OFlags) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .mode(0o600)
        .custom_flags((OFlags::TMPFILE | more).bits() as i32)
        .open(dir)
}

fn measure(dir: &Path) -> io::Result<Speed> {
    let file = unnamed(dir, OFlags::empty())?;
    // As snapshots are written, where the file system has direct I/O.
    let large = unnamed(dir, OFlags::DIRECT);
    let mut buffer = WriteBuffer::default();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    while !buffer.is_full() {
        // Not what a device could shrink.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        buffer.extend(&state.to_le_bytes());
    }
    let write = |file: &File| -> io::Result<(u64, Duration)> {
        let start = Instant::now();
        let mut written = 0;
        while written < MOST && start.elapsed() < LONGEST {
            file.write_all_at(buffer.bytes(), written)?;
            written += buffer.bytes().len() as u64;
        }
        file.sync_data()?;
        Ok((written, start.elapsed()))
    };
    let (written, took) = match large.and_then(|large| write(&large)) {
        Ok(done) => done,
        Err(_) => write(&file)?,
    };
    let start = Instant::now();
    for n in 0..SYNCS {
        file.write_all_at(&[n as u8; 512], MOST + u64::from(n) * 512)?;
        file.sync_data()?;
    }
    let per_second = u128::from(written) * 1_000_000_000 / took.as_nanos().max(1);
    Ok(Speed {
        bytes_per_second: u64::try_from(per_second).unwrap_or(u64::MAX).max(1),
        sync_ns: (start.elapsed() / SYNCS).as_nanos() as u64,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_measurement_leaves_nothing_behind_and_needs_no_folder_yet() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let speed = Speed::measure(&folder.path().join("a/b")).expect("writable");
        assert!(speed.bytes_per_second > 1, "{speed:?}");
        assert_eq!(
            std::fs::read_dir(folder.path()).expect("a folder").count(),
            0
        );
    }

    #[test]
    fn the_time_is_that_of_the_bytes_and_of_each_file() {
        let speed = Speed {
            bytes_per_second: 100 << 20,
            sync_ns: 1_000_000,
        };
        assert_eq!(speed.time_ns(0, 200 << 20), 2_000_000_000);
        assert_eq!(speed.time_ns(500, 0), 500_000_000);
        assert!(speed.time_ns(1, u64::MAX / 2) > 1 << 40);
    }
}
