//! One object for each tree of processes: its record, and behind it the index of each member. Since it is one object, a tree
//! is there as a whole or not at all, and goes as one.

use super::bytes::Fields;
use super::header::{Common, INDEX_HEADER_LEN, MAGIC, no_version};
use super::index::{About, MAX_INDEX};
use super::name::SnapshotName;
use super::{BucketError, ChunkRef, MAX_PAGES, Result};
use crate::model::SnapshotId;
use std::ops::Range;

/// An index begins in the same way. The version tells that it is of a tree, so that who knows of none refuses it.
pub(super) const TREE_VERSION: u16 = 2;
const MEMBER: usize = 32;
/// Most processes of a tree.
pub const MAX_MEMBERS: u32 = 1 << 16;
/// Longest record of a tree, in bytes.
const MAX_RECORD: u32 = 1 << 28;

/// What the first bytes of a tree say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreeHeader {
    /// What it is of.
    pub common: Common,
    /// Processes.
    pub processes: u32,
    /// Bytes of the record.
    record_len: u32,
    members_crc: u32,
    record_crc: u32,
}

/// Where the index of a process of a tree is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its snapshot, in the store that it was pushed from.
    pub id: SnapshotId,
    /// Its pages.
    pub pages: u64,
    /// Where its index begins in the object.
    at: u64,
    /// Bytes of that.
    len: u64,
}

impl Member {
    /// The bytes of its index.
    pub(super) fn range(&self) -> Range<u64> {
        self.at..self.at + self.len
    }
}

/// All of a tree but the indexes of its members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreeHead {
    /// Its header.
    pub header: TreeHeader,
    /// Its processes, the first one first.
    pub members: Vec<Member>,
    /// How they belong together, as a store has it.
    pub record: Vec<u8>,
}

/// Whether an object that begins so is a tree, rather than the index of one process.
pub(super) fn is_tree(bytes: &[u8]) -> bool {
    bytes.starts_with(&MAGIC) && bytes.get(8..10) == Some(&TREE_VERSION.to_le_bytes())
}

impl TreeHeader {
    /// Bytes in front of the first index.
    pub fn head_len(&self) -> u64 {
        INDEX_HEADER_LEN as u64
            + u64::from(self.processes) * MEMBER as u64
            + u64::from(self.record_len)
    }

    fn encode(&self) -> [u8; INDEX_HEADER_LEN] {
        let own = [
            self.record_len,
            self.processes,
            self.members_crc,
            self.record_crc,
        ];
        self.common.encode(TREE_VERSION, own)
    }

    /// Reads a header.
    pub fn decode(object: &str, bytes: &[u8]) -> Result<Self> {
        let header = bytes
            .first_chunk::<INDEX_HEADER_LEN>()
            .filter(|header| is_tree(*header))
            .ok_or_else(|| BucketError::corrupt(object, "it does not begin as a tree does"))?;
        let (common, own) = Common::decode(object, header)?;
        let [record_len, processes, members_crc, record_crc] = own;
        let bounded = (1..=MAX_MEMBERS).contains(&processes)
            && record_len <= MAX_RECORD
            && common.pages <= MAX_PAGES;
        match bounded {
            true => Ok(Self {
                common,
                processes,
                record_len,
                members_crc,
                record_crc,
            }),
            false => Err(no_version(object)),
        }
    }
}

impl TreeHead {
    /// Looks at what is in front of the indexes of a tree, whose object has `len` bytes.
    pub fn decode(object: &str, bytes: &[u8], len: u64) -> Result<Self> {
        let corrupt = |why: &str| BucketError::corrupt(object, why);
        let header = TreeHeader::decode(object, bytes)?;
        let table = header.processes as usize * MEMBER;
        let rest = bytes.get(INDEX_HEADER_LEN..header.head_len() as usize);
        let (table, record) = rest.ok_or_else(|| corrupt("it is cut"))?.split_at(table);
        if crc32c::crc32c(table) != header.members_crc {
            return Err(corrupt(
                "the checksum of its table of processes does not match",
            ));
        }
        if crc32c::crc32c(record) != header.record_crc {
            return Err(corrupt(
                "the checksum of its record of processes does not match",
            ));
        }
        let (mut members, mut at) = (Vec::new(), header.head_len());
        for bytes in table.as_chunks::<MEMBER>().0 {
            let mut fields = Fields::new(bytes);
            let member = Member {
                id: SnapshotId(fields.array()),
                len: fields.u64(),
                pages: fields.u64(),
                at,
            };
            if member.len > MAX_INDEX || member.pages > MAX_PAGES {
                return Err(corrupt("a process of it has values that no version has"));
            }
            at += member.len;
            members.push(member);
        }
        if at != len {
            return Err(corrupt(&format!(
                "{len} bytes, {at} according to its table"
            )));
        }
        let pages = members.iter().map(|member| member.pages).sum::<u64>();
        match pages == header.common.pages && members[0].id == header.common.id {
            true => Ok(Self {
                record: record.to_vec(),
                members,
                header,
            }),
            false => Err(corrupt("its table of processes is of another tree")),
        }
    }
}

/// The index of a process, on its way into a tree.
#[derive(Debug)]
pub struct MemberIndex {
    /// Its snapshot.
    pub id: SnapshotId,
    /// Its pages.
    pub pages: u64,
    /// The index, in parts.
    pub parts: [Vec<u8>; 3],
}

/// The parts of the object for a tree, one behind the other, and its name. `about` is the first process, the `chunks` are
/// those of all, each once.
///
/// # Errors
/// When there is more of it than the format allows.
pub fn encode_tree(
    about: &About<'_>,
    record: Vec<u8>,
    chunks: &[ChunkRef],
    members: Vec<MemberIndex>,
) -> Result<(SnapshotName, Vec<Vec<u8>>)> {
    let pages = members.iter().map(|member| member.pages).sum();
    let bounded = pages <= MAX_PAGES
        && members.len() <= MAX_MEMBERS as usize
        && record.len() <= MAX_RECORD as usize;
    if !bounded {
        return Err(BucketError::TooLarge(format!(
            "the tree has more than {MAX_PAGES} pages or {MAX_MEMBERS} processes"
        )));
    }
    let mut table = Vec::with_capacity(members.len() * MEMBER);
    for member in &members {
        let len: u64 = member.parts.iter().map(|part| part.len() as u64).sum();
        table.extend_from_slice(&member.id.0);
        table.extend_from_slice(&len.to_le_bytes());
        table.extend_from_slice(&member.pages.to_le_bytes());
    }
    let header = TreeHeader {
        common: Common::new(about, pages, chunks),
        processes: members.len() as u32,
        record_len: record.len() as u32,
        members_crc: crc32c::crc32c(&table),
        record_crc: crc32c::crc32c(&record),
    };
    let mut head = header.encode().to_vec();
    head.append(&mut table);
    head.extend_from_slice(&record);
    let mut parts = vec![head];
    parts.extend(members.into_iter().flat_map(|member| member.parts));
    Ok((header.common.name(), parts))
}

#[cfg(test)]
mod tests {
    use super::super::golden;
    use super::*;

    fn tree() -> Vec<u8> {
        golden::tree().1
    }

    fn decode(bytes: &[u8]) -> Result<TreeHead> {
        TreeHead::decode("t", bytes, bytes.len() as u64)
    }

    #[test]
    fn a_tree_comes_back_and_damage_in_front_of_its_indexes_is_seen() {
        let bytes = tree();
        let head = decode(&bytes).unwrap();
        assert_eq!(head.members.len(), 2);
        assert_eq!(head.record, golden::RECORD);
        for at in 0..head.header.head_len() as usize {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert!(decode(&damaged).is_err(), "byte {at}");
            assert!(decode(&bytes[..at]).is_err(), "cut at {at}");
        }
        assert!(decode(&bytes[..bytes.len() - 1]).is_err());
    }

    #[test]
    fn sizes_that_no_tree_has_are_refused() {
        // Processes, then pages.
        for (at, value) in [(92, 0u64), (92, 1 << 31), (64, 1 << 60)] {
            let mut bytes = tree();
            let width = if at == 92 { 4 } else { 8 };
            bytes[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
            let sum = crc32c::crc32c(&bytes[..252]);
            bytes[252..256].copy_from_slice(&sum.to_le_bytes());
            let error = decode(&bytes).unwrap_err().to_string();
            assert!(error.contains("no version has"), "{error}");
        }
    }

    #[test]
    fn a_tree_that_is_too_large_is_refused_before_it_is_written() {
        let member = MemberIndex {
            id: SnapshotId([0; 16]),
            pages: MAX_PAGES + 1,
            parts: Default::default(),
        };
        let done = encode_tree(&golden::about(), Vec::new(), &[], vec![member]);
        assert!(matches!(done, Err(BucketError::TooLarge(_))));
    }
}
