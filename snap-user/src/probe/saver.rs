//! Pages that the probes save before their first write, while they wait to be copied.

use super::error::ProbeError;
use super::marks::Marks;
use super::probes::{map_error, take};
use crate::model::Page;
use aya::Ebpf;
use aya::maps::{Array, HashMap, MapData, MapError, RingBuf};
use snap_common::{
    BEGUN, BREAK, COPIED_TO, Chunk, LOSSES, LOST, Loss, SavedPage, Tracked, WINDOW, chunk_key,
};
use std::collections::BTreeMap;
use std::mem::offset_of;

/// Update an entry that is there, and only that (`BPF_EXIST`, include/uapi/linux/bpf.h).
const IF_THERE: u64 = 2;

const _: () = assert!(WINDOW == 0 && COPIED_TO == 1 && BREAK == 2);

/// Time in which pages of a process are saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// No two have the same.
    pub number: u64,
    heap_end: u64,
}

/// A page as it was when it was awaited.
#[derive(Clone, Copy, Debug)]
pub struct Saved<'a> {
    /// The window that it was saved for.
    pub window: u64,
    /// Of several for one page the one with the lowest is right.
    pub order: u64,
    /// Its process.
    pub tgid: u32,
    /// Its address.
    pub page: u64,
    /// Its content.
    pub bytes: &'a Page,
}

/// The maps of the part of the probes that saves pages.
pub struct Saver {
    awaited: HashMap<MapData, u64, Chunk>,
    saved: RingBuf<MapData>,
    counts: Array<MapData, u64>,
    /// Chunks of each process with an open window.
    open: BTreeMap<u32, Vec<u64>>,
    last: u64,
    received: u64,
}

/// How often pages were lost, by [`Loss`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Losses([u64; Loss::ALL.len()]);

impl Losses {
    /// The reasons for which there are more than there were.
    pub fn since(&self, earlier: &Self) -> Vec<Loss> {
        let grown = |why: &Loss| self.0[*why as usize] > earlier.0[*why as usize];
        Loss::ALL.into_iter().filter(grown).collect()
    }
}

/// Every page that was begun to be saved has been received or is lost. Other losses are of pages that nobody began to
/// save, and make up for none.
fn is_drained(received: u64, losses: &Losses, begun: u64) -> bool {
    let lost = losses.0[Loss::Full as usize] + losses.0[Loss::Unreadable as usize];
    received + lost >= begun
}

impl Saver {
    pub(super) fn new(ebpf: &mut Ebpf) -> Result<Self, ProbeError> {
        Ok(Self {
            awaited: HashMap::try_from(take(ebpf, "AWAITED")?).map_err(map_error("AWAITED"))?,
            saved: RingBuf::try_from(take(ebpf, "SAVED")?).map_err(map_error("SAVED"))?,
            counts: Array::try_from(take(ebpf, "COUNTS")?).map_err(map_error("COUNTS"))?,
            open: BTreeMap::new(),
            last: 0,
            received: 0,
        })
    }

    /// From now on the first write to each of these pages saves it. `heap_end`: where its heap ends.
    pub(super) fn open(
        &mut self,
        tracked: &mut HashMap<MapData, u32, Tracked>,
        tgid: u32,
        pages: &Marks,
        heap_end: Option<u64>,
    ) -> Result<Window, ProbeError> {
        self.close(tracked, tgid)?;
        let mut keys = Vec::new();
        let entered = pages.chunks().try_for_each(|(at, chunk)| {
            let key = chunk_key(tgid, at);
            keys.push(key);
            self.awaited.insert(key, chunk, 0)
        });
        self.open.insert(tgid, keys);
        entered.map_err(map_error("AWAITED"))?;
        self.last += 1;
        let heap_end = heap_end.unwrap_or(u64::MAX);
        tell(tracked, tgid, [self.last, 0, heap_end])?;
        let window = Window {
            number: self.last,
            heap_end,
        };
        Ok(window)
    }

    /// Pages below `addr` have been copied.
    pub(super) fn copied_to(
        tracked: &mut HashMap<MapData, u32, Tracked>,
        tgid: u32,
        window: Window,
        addr: u64,
    ) -> Result<(), ProbeError> {
        tell(tracked, tgid, [window.number, addr, window.heap_end])
    }

    /// Nothing is saved any more.
    pub(super) fn close(
        &mut self,
        tracked: &mut HashMap<MapData, u32, Tracked>,
        tgid: u32,
    ) -> Result<(), ProbeError> {
        let Some(chunks) = self.open.remove(&tgid) else {
            return Ok(());
        };
        let told = tell(tracked, tgid, Tracked::default());
        for key in chunks {
            // Not there: it was never entered.
            let _ = self.awaited.remove(&key);
        }
        told
    }

    /// Hands over what was saved since the last call.
    pub(super) fn drain(&mut self, mut handle: impl FnMut(Saved<'_>)) {
        while let Some(record) = self.saved.next() {
            self.received += 1;
            if let Some(saved) = decode(&record) {
                handle(saved);
            }
        }
    }

    /// Every page that was to be saved has been handed over or is lost.
    pub(super) fn is_drained(&self) -> Result<bool, ProbeError> {
        // In this order: what begins in between is counted as not there yet.
        let losses = self.losses()?;
        Ok(is_drained(self.received, &losses, self.count(BEGUN)?))
    }

    /// Pages that could not be saved, since the probes were loaded.
    pub(super) fn lost(&self) -> Result<u64, ProbeError> {
        self.count(LOST)
    }

    /// The same, each time for one reason.
    pub(super) fn losses(&self) -> Result<Losses, ProbeError> {
        let mut losses = Losses::default();
        for (count, index) in losses.0.iter_mut().zip(LOSSES..) {
            *count = self.count(index)?;
        }
        Ok(losses)
    }

    fn count(&self, index: u32) -> Result<u64, ProbeError> {
        self.counts.get(&index, 0).map_err(map_error("COUNTS"))
    }
}

/// By index: [`WINDOW`], [`COPIED_TO`], [`BREAK`].
fn tell(
    tracked: &mut HashMap<MapData, u32, Tracked>,
    tgid: u32,
    value: Tracked,
) -> Result<(), ProbeError> {
    match tracked.insert(tgid, value, IF_THERE) {
        // It has ended.
        Err(MapError::SyscallError(e)) if e.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        done => done.map_err(map_error("TRACKED")),
    }
}

fn decode(record: &[u8]) -> Option<Saved<'_>> {
    let word = |at: usize| -> Option<u64> {
        let bytes = record.get(at..at + 8)?;
        Some(u64::from_ne_bytes(bytes.try_into().ok()?))
    };
    let at = offset_of!(SavedPage, tgid);
    let tgid = record.get(at..at + 4)?;
    let at = offset_of!(SavedPage, bytes);
    Some(Saved {
        window: word(offset_of!(SavedPage, window))?,
        order: word(offset_of!(SavedPage, order))?,
        page: word(offset_of!(SavedPage, page))?,
        tgid: u32::from_ne_bytes(tgid.try_into().ok()?),
        bytes: record.get(at..)?.first_chunk()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_began_to_save_makes_up_for_no_record_that_is_missing() {
        let losses = |why: Loss| {
            let mut losses = Losses::default();
            losses.0[why as usize] = 1;
            losses
        };
        assert!(is_drained(3, &Losses::default(), 3));
        for why in Loss::ALL {
            let is_of_a_page = matches!(why, Loss::Full | Loss::Unreadable);
            assert_eq!(is_drained(2, &losses(why), 3), is_of_a_page, "{why:?}");
            assert_eq!(losses(why).since(&Losses::default()), [why]);
        }
    }

    #[test]
    fn a_record_is_decoded_whole_or_not_at_all() {
        let mut record = Vec::new();
        for word in [7_u64, 8, 0x9000, 11] {
            record.extend(word.to_ne_bytes());
        }
        record.extend([3; 4096]);
        let saved = decode(&record).unwrap();
        assert_eq!(
            (saved.window, saved.order, saved.page, saved.tgid),
            (7, 8, 0x9000, 11)
        );
        assert_eq!(saved.bytes, &[3; 4096]);
        record.pop();
        assert!(decode(&record).is_none());
    }
}
