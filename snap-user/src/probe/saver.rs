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
    /// By [`Loss`], as they were when they were told of last.
    told: [u64; Loss::ALL.len()],
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
            told: [0; Loss::ALL.len()],
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
        let lost = self.lost()?;
        Ok(self.received + lost >= self.count(BEGUN)?)
    }

    /// Pages that could not be saved, since the probes were loaded.
    pub(super) fn lost(&self) -> Result<u64, ProbeError> {
        self.count(LOST)
    }

    /// Why, as far as it was not told before.
    pub(super) fn losses(&mut self) -> Result<Vec<Loss>, ProbeError> {
        let mut new = Vec::new();
        for (index, why) in (LOSSES..).zip(Loss::ALL) {
            let count = self.count(index)?;
            if std::mem::replace(&mut self.told[why as usize], count) != count {
                new.push(why);
            }
        }
        Ok(new)
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
