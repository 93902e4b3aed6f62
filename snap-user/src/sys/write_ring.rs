//! Writes that go on while whoever ordered them makes the next bytes: io_uring(7).

use io_uring::{IoUring, opcode, types};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;
use zerocopy::{Immutable, IntoBytes};

/// A write that is over.
#[derive(Debug)]
pub struct Written<B> {
    /// The buffer.
    pub buffer: Vec<B>,
    /// How many bytes of its beginning were to be written.
    pub len: usize,
    /// And where in the file.
    pub offset: u64,
    /// How many were, as of pwrite(2).
    pub result: io::Result<usize>,
}

struct UnderWay<B> {
    buffer: Vec<B>,
    len: usize,
    offset: u64,
}

/// Whether this process can have a ring.
///
/// # Errors
/// As of [`WriteRing::new`].
pub fn can_write_behind() -> io::Result<()> {
    IoUring::new(1).map(drop)
}

/// A bounded number of writes to a file that are under way. Dropped, it waits for them.
pub struct WriteRing<B> {
    ring: IoUring,
    /// Open for as long as an order may name it.
    file: File,
    slots: Vec<Option<UnderWay<B>>>,
}

impl<B> std::fmt::Debug for WriteRing<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let under_way = self.slots.iter().flatten().count();
        write!(f, "WriteRing({under_way} of {})", self.slots.len())
    }
}

impl<B: IntoBytes + Immutable> WriteRing<B> {
    /// Room for so many writes at a time.
    ///
    /// # Errors
    /// The kernel has no io_uring, or does not let this process have one (io_uring_setup(2), `kernel.io_uring_disabled`,
    /// seccomp(2) of a container).
    pub fn new(file: File, writes: u32) -> io::Result<Self> {
        Ok(Self {
            ring: IoUring::new(writes)?,
            file,
            slots: (0..writes).map(|_| None).collect(),
        })
    }

    /// There is no room for another write before one is over.
    pub fn is_full(&self) -> bool {
        self.slots.iter().all(Option::is_some)
    }

    /// Orders the first `len` bytes of a buffer to be written at an offset. It comes back from [`WriteRing::wait`].
    ///
    /// # Errors
    /// With the buffer, of which nothing is written: there is no room.
    ///
    /// # Panics
    /// The buffer is shorter.
    pub fn write(&mut self, buffer: Vec<B>, len: usize, offset: u64) -> Result<(), Vec<B>> {
        let Some(number) = self.slots.iter().position(Option::is_none) else {
            return Err(buffer);
        };
        let bytes = &buffer.as_slice().as_bytes()[..len];
        let Ok(count) = u32::try_from(len) else {
            return Err(buffer);
        };
        let fd = types::Fd(self.file.as_raw_fd());
        let order = opcode::Write::new(fd, bytes.as_ptr(), count)
            .offset(offset)
            .build()
            .user_data(number as u64);
        // SAFETY: the buffer's memory is the kernel's to read until the write is over. It stays where it is though the
        // `Vec` moves into its slot, nobody reaches it there, and it leaves the slot when the kernel has said that the
        // write is over, or never (`Drop`). The file is open for as long as the ring.
        let pushed = unsafe { self.ring.submission().push(&order) };
        if pushed.is_err() {
            return Err(buffer);
        }
        self.slots[number] = Some(UnderWay {
            buffer,
            len,
            offset,
        });
        // A call that was interrupted, or that the kernel had no memory for, has taken nothing: `wait` offers it again.
        if let Err(error) = self.ring.submit() {
            tracing::debug!("a write is ordered later: {error}");
        }
        Ok(())
    }
}

/// Between two attempts of a call that the kernel had no memory for, and how many there are in a row.
const PAUSE: Duration = Duration::from_millis(1);
const ATTEMPTS: u32 = 10_000;

/// EAGAIN and EBUSY, io_uring_enter(2).
fn is_passing(error: &io::Error) -> bool {
    let kind = error.kind();
    kind == io::ErrorKind::WouldBlock || kind == io::ErrorKind::ResourceBusy
}

impl<B> WriteRing<B> {
    /// Waits for any of the writes. `None`: none is under way.
    ///
    /// # Errors
    /// Nobody knows what becomes of them.
    pub fn wait(&mut self) -> io::Result<Option<Written<B>>> {
        let mut attempts = 0;
        while self.slots.iter().any(Option::is_some) {
            let Some(done) = self.ring.completion().next() else {
                match self.ring.submit_and_wait(1) {
                    // For want of memory, which those under way give back.
                    Err(error) if is_passing(&error) && attempts < ATTEMPTS => {
                        attempts += 1;
                        std::thread::sleep(PAUSE);
                    }
                    Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                    _ => {}
                }
                continue;
            };
            let slot = self.slots.get_mut(done.user_data() as usize);
            if let Some(write) = slot.and_then(Option::take) {
                return Ok(Some(Written {
                    buffer: write.buffer,
                    len: write.len,
                    offset: write.offset,
                    result: match done.result() {
                        error if error < 0 => Err(io::Error::from_raw_os_error(-error)),
                        written => Ok(written as usize),
                    },
                }));
            }
        }
        Ok(None)
    }
}

impl<B> Drop for WriteRing<B> {
    fn drop(&mut self) {
        while let Ok(Some(_)) = self.wait() {}
        for under_way in self.slots.iter_mut().filter_map(Option::take) {
            // The kernel may still read it.
            std::mem::forget(under_way.buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    fn ring(writes: u32) -> Option<(File, WriteRing<u64>)> {
        let file = tempfile::tempfile().expect("a temporary file");
        let again = file.try_clone().expect("a descriptor");
        match WriteRing::new(again, writes) {
            Ok(ring) => Some((file, ring)),
            Err(error) => {
                println!("skipped: no io_uring here: {error}");
                None
            }
        }
    }

    #[test]
    fn writes_are_done_when_they_come_back_or_the_ring_is_gone() {
        let Some((file, mut ring)) = ring(3) else {
            return;
        };
        assert!(ring.wait().expect("nothing to wait for").is_none());
        for n in 0..3u64 {
            ring.write(vec![n + 1; 1000], 8000, n * 8000).expect("room");
        }
        assert!(ring.is_full());
        assert_eq!(ring.write(vec![9], 8, 0), Err(vec![9]));
        let done = ring.wait().expect("known").expect("one of them");
        assert_eq!((done.result.expect("written"), done.len), (8000, 8000));
        assert_eq!(done.buffer, vec![done.offset / 8000 + 1; 1000]);
        // A part of a buffer.
        ring.write(vec![7; 1000], 80, 24_000).expect("room");
        drop(ring);
        let mut all = vec![0; 24_080];
        file.read_exact_at(&mut all, 0).expect("all of it");
        for n in 0..3u8 {
            let at = usize::from(n) * 8000;
            assert!(
                all[at..at + 8000]
                    .chunks(8)
                    .all(|word| word == [n + 1, 0, 0, 0, 0, 0, 0, 0])
            );
        }
        assert_eq!(file.metadata().expect("a file").len(), 24_080);
    }

    #[test]
    fn what_a_write_fails_with_comes_back_with_its_buffer() {
        let full = File::options()
            .write(true)
            .open("/dev/full")
            .expect("a device");
        let Ok(mut ring) = WriteRing::new(full, 1) else {
            return;
        };
        ring.write(vec![1u64; 512], 4096, 0).expect("room");
        let done = ring.wait().expect("known").expect("one");
        let error = done.result.expect_err("no room on the device");
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert_eq!(done.buffer, vec![1; 512]);
    }
}
