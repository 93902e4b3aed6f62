//! The headers of a session's snapshots in one file, so that listing many of them opens one and not all.
//!
//! It is made from the snapshot files alone and can be made again at any time: a record counts only as long as the
//! snapshot's file has the name, length and modification time that it says. A snapshot without a record is read itself.

use super::error::StoreError;
use super::files::{Files, Stamp};
use super::names::{self, TEMP_PREFIX};
use super::text::publish_bytes;
use crate::image::{HEADER_LEN, Header};
use crate::model::SnapshotId;
use std::collections::HashMap;
use std::io;
use std::path::Path;

/// Its name in the session's folder.
pub(super) const HEADERS_FILE: &str = "headers";
/// Header, length, modification time, checksum, padding.
const RECORD: usize = HEADER_LEN + 24;
const CRC_OFFSET: usize = HEADER_LEN + 16;
/// Longest file that is read: two million records.
const LONGEST: u64 = 2_000_000 * RECORD as u64;

/// A header and the file that it was read from.
#[derive(Clone, Debug)]
struct Record {
    header: Header,
    stamp: Stamp,
}

/// What the file says, by sequence number.
#[derive(Debug, Default)]
pub(super) struct Headers {
    records: HashMap<u32, Record>,
    /// Records that are damaged.
    pub(super) damaged: u64,
    /// Records in the file.
    pub(super) count: u64,
}

impl Headers {
    /// Reads the file of a session; without one nothing is known. One that cannot be read counts as a damaged record.
    pub(super) fn read(files: &dyn Files, dir: &Path) -> Self {
        let read = || -> io::Result<Vec<u8>> {
            let file = files.open(&dir.join(HEADERS_FILE))?;
            let mut bytes = vec![0; file.len()?.min(LONGEST) as usize];
            file.read_exact_at(&mut bytes, 0)?;
            Ok(bytes)
        };
        match read() {
            Ok(bytes) => Self::decode(&bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::default(),
            Err(_) => Self {
                damaged: 1,
                count: 1,
                ..Self::default()
            },
        }
    }

    /// What the bytes of the file say.
    pub(super) fn decode(bytes: &[u8]) -> Self {
        let mut headers = Self::default();
        for raw in bytes.chunks(RECORD) {
            headers.count += 1;
            match decode(raw) {
                // Of several the last one counts.
                Some(record) => _ = headers.records.insert(record.header.seq, record),
                None => headers.damaged += 1,
            }
        }
        headers
    }

    /// The header of a snapshot, if what is known of it is still so.
    pub(super) fn get(
        &self,
        files: &dyn Files,
        dir: &Path,
        seq: u32,
        id: SnapshotId,
    ) -> Option<Header> {
        let record = self.records.get(&seq)?;
        let path = dir.join(names::snapshot_file(seq, id));
        let same = record.header.id == id && files.stat(&path).is_ok_and(|s| s == record.stamp);
        same.then(|| record.header.clone())
    }

    /// All of them, in any order.
    pub(super) fn all(&self) -> impl Iterator<Item = &Header> {
        self.records.values().map(|record| &record.header)
    }

    /// Whether a rewrite would save reading: most of it is of snapshots that are gone, or missing.
    pub(super) fn is_stale(&self, snapshots: usize) -> bool {
        self.damaged > 0
            || self.count > 2 * snapshots as u64 + 64
            || self.records.len() + 64 < snapshots
    }
}

fn encode(header: &[u8; HEADER_LEN], stamp: Stamp) -> [u8; RECORD] {
    let mut record = [0; RECORD];
    record[..HEADER_LEN].copy_from_slice(header);
    record[HEADER_LEN..HEADER_LEN + 8].copy_from_slice(&stamp.len.to_le_bytes());
    record[HEADER_LEN + 8..CRC_OFFSET].copy_from_slice(&stamp.modified_ns.to_le_bytes());
    let crc = crc32c::crc32c(&record[..CRC_OFFSET]);
    record[CRC_OFFSET..CRC_OFFSET + 4].copy_from_slice(&crc.to_le_bytes());
    record
}

fn decode(raw: &[u8]) -> Option<Record> {
    let raw: &[u8; RECORD] = raw.try_into().ok()?;
    let number = |at: usize| u64::from_le_bytes(raw[at..at + 8].try_into().expect("8 bytes"));
    let crc = u32::from_le_bytes(raw[CRC_OFFSET..CRC_OFFSET + 4].try_into().expect("4 bytes"));
    if crc32c::crc32c(&raw[..CRC_OFFSET]) != crc || raw[CRC_OFFSET + 4..] != [0; 4] {
        return None;
    }
    let stamp = Stamp {
        len: number(HEADER_LEN),
        modified_ns: number(HEADER_LEN + 8),
    };
    let header = Header::decode(&raw[..HEADER_LEN], stamp.len).ok()?;
    Some(Record { header, stamp })
}

/// Adds a snapshot that was just published. Failing is no harm: its header is read from its own file then.
pub(super) fn note(files: &dyn Files, dir: &Path, path: &Path, head: &[u8; HEADER_LEN]) {
    let list = dir.join(HEADERS_FILE);
    // Sealed it does not grow; a writer that finds it far behind makes it anew.
    if !files.can_append(&list) {
        return;
    }
    let noted = files
        .stat(path)
        .and_then(|stamp| files.append(&list, &encode(head, stamp)));
    if let Err(error) = noted {
        // Half a record would spoil those after it.
        let _ = files.remove_file(&list);
        tracing::debug!("{} is not in the list of headers: {error}", path.display());
    }
}

/// Makes the file anew from the snapshots themselves. Gives how many are in it.
pub(super) fn rebuild(
    files: &dyn Files,
    dir: &Path,
    snapshots: impl IntoIterator<Item = (u32, SnapshotId)>,
) -> Result<u64, StoreError> {
    let mut bytes = Vec::new();
    for (seq, id) in snapshots {
        let path = dir.join(names::snapshot_file(seq, id));
        let read = files.stat(&path).and_then(|stamp| {
            let mut head = [0; HEADER_LEN];
            files.open(&path)?.read_exact_at(&mut head, 0)?;
            Ok((stamp, head))
        });
        // What cannot be read has no record, and is found damaged or gone by whoever reads it.
        if let Ok((stamp, head)) = read
            && Header::decode(&head, stamp.len).is_ok_and(|h| (h.seq, h.id) == (seq, id))
        {
            bytes.extend_from_slice(&encode(&head, stamp));
        }
    }
    let temp = dir.join(format!("{TEMP_PREFIX}{HEADERS_FILE}"));
    publish_bytes(files, &temp, &dir.join(HEADERS_FILE), &bytes)?;
    Ok((bytes.len() / RECORD) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_flipped_bit_of_a_record_and_each_cut_is_found() {
        let golden = include_bytes!("../../tests/data/delta-v1.ksnap");
        let stamp = Stamp {
            len: golden.len() as u64,
            modified_ns: 7,
        };
        let record = encode(golden.first_chunk().expect("a header"), stamp);
        assert_eq!(decode(&record).expect("whole").stamp, stamp);
        for at in 0..RECORD {
            for bit in 0..8 {
                let mut changed = record;
                changed[at] ^= 1 << bit;
                assert!(decode(&changed).is_none(), "bit {bit} of byte {at}");
            }
            assert!(decode(&record[..at]).is_none(), "cut at {at}");
        }
    }
}
