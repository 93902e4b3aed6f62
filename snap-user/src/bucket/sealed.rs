//! An index or a tree, sealed: what lists and removes snapshots can be read, and all else only with the key. In it is the
//! object as it would be in plain.

use super::bytes::Fields;
use super::header::{Common, INDEX_HEADER_LEN, MAGIC, no_version};
use super::index::MAX_INDEX;
use super::key::{PlacedKey, TAG, random};
use super::name::{KeyName, Kin, SnapshotName};
use super::tree::is_tree;
use super::{
    BucketError, BucketKey, ChunkName, ChunkRef, Index, IndexHeader, MAX_CHUNK, MAX_CHUNKS,
    MAX_PAGES, Result, TreeHead, TreeHeader,
};
use crate::image::SessionId;
use crate::model::SnapshotId;
use std::collections::HashSet;

/// An index and a tree begin in the same way. Who knows of neither kind that is sealed refuses it.
pub(super) const SEALED_VERSION: u16 = 3;
/// Of each chunk: name, length.
const REF: usize = 36;
/// The sealed header of what is in it.
const FRONT: usize = INDEX_HEADER_LEN + TAG;
/// Where the checksum of the header is.
const SUM: usize = INDEX_HEADER_LEN - 4;

/// What anybody can read of a sealed snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    header: [u8; INDEX_HEADER_LEN],
    front: [u8; FRONT],
    /// How it is named.
    pub name: SnapshotName,
    /// The key that opens it.
    pub key: KeyName,
    /// Pages, of all of its processes.
    pub pages: u64,
    /// Bytes of its chunks.
    pub chunk_bytes: u64,
    /// The chunks that it needs, each once, and their lengths.
    pub chunks: Vec<(ChunkName, u32)>,
    salt: [u8; 32],
    rest_len: u64,
}

/// What the header of a snapshot says that was sealed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Front {
    /// It is of one process.
    Process(IndexHeader),
    /// It is of a tree of processes.
    Tree(TreeHeader),
}

impl Front {
    /// What it is of.
    pub fn common(&self) -> &Common {
        match self {
            Self::Process(header) => &header.common,
            Self::Tree(header) => &header.common,
        }
    }
}

/// The numbers of the clear header.
struct Clear {
    chunks: u32,
    table: [u8; 32],
    envelope: Envelope,
}

impl Clear {
    /// Looks at the header of an object of `len` bytes, which begins so.
    fn decode(object: &str, bytes: &[u8], len: u64) -> Result<Self> {
        let corrupt = |why: &str| BucketError::corrupt(object, why);
        let header = bytes
            .first_chunk::<INDEX_HEADER_LEN>()
            .filter(|header| is_sealed(*header))
            .ok_or_else(|| corrupt("it does not begin as a sealed snapshot does"))?;
        let (summed, sum) = header.split_at(SUM);
        if crc32c::crc32c(summed).to_le_bytes() != sum {
            return Err(corrupt("the checksum of its header does not match"));
        }
        let mut fields = Fields::new(&header[10..]);
        let (zero, header_len) = (fields.u16(), fields.u32());
        let id = SnapshotId(fields.array());
        let session = SessionId(fields.array());
        let time_ns = fields.u64();
        let kin = Kin(fields.array());
        let chunks = fields.u32();
        let (pages, chunk_bytes, rest_len) = (fields.u64(), fields.u64(), fields.u64());
        let key = KeyName(fields.array());
        let salt = fields.array();
        let table = fields.array();
        let rest: [u8; 68] = fields.array();
        let bounded = chunks <= MAX_CHUNKS
            && pages <= MAX_PAGES
            && (TAG as u64..=MAX_INDEX).contains(&rest_len);
        if zero != 0 || header_len as usize != INDEX_HEADER_LEN || rest != [0; 68] || !bounded {
            return Err(no_version(object));
        }
        let envelope = Envelope {
            header: *header,
            front: [0; FRONT],
            name: SnapshotName {
                time_ns,
                kin,
                session,
                id,
            },
            key,
            pages,
            chunk_bytes,
            chunks: Vec::new(),
            salt,
            rest_len,
        };
        let clear = Self {
            chunks,
            table,
            envelope,
        };
        let said = clear.head_len() + rest_len;
        match said == len {
            true => Ok(clear),
            false => Err(corrupt(&format!(
                "{len} bytes, {said} according to its header"
            ))),
        }
    }

    fn head_len(&self) -> u64 {
        (INDEX_HEADER_LEN + FRONT) as u64 + u64::from(self.chunks) * REF as u64
    }
}

/// Whether an object that begins so is a sealed snapshot.
pub(super) fn is_sealed(bytes: &[u8]) -> bool {
    bytes.starts_with(&MAGIC) && bytes.get(8..10) == Some(&SEALED_VERSION.to_le_bytes())
}

impl Envelope {
    /// How many bytes of an object of `len`, which begins so, have to be read to decode this.
    pub fn head_len(object: &str, bytes: &[u8], len: u64) -> Result<u64> {
        Ok(Clear::decode(object, bytes, len)?.head_len())
    }

    /// Looks at the beginning of an object of `len` bytes.
    pub fn decode(object: &str, bytes: &[u8], len: u64) -> Result<Self> {
        let corrupt = |why: &str| BucketError::corrupt(object, why);
        let mut clear = Clear::decode(object, bytes, len)?;
        let body = bytes.get(INDEX_HEADER_LEN..clear.head_len() as usize);
        let body = body.and_then(|body| body.split_first_chunk::<FRONT>());
        let (front, table) = body.ok_or_else(|| corrupt("it is cut"))?;
        if blake3::hash(table) != clear.table {
            return Err(corrupt(
                "the checksum of its table of chunks does not match",
            ));
        }
        let envelope = &mut clear.envelope;
        envelope.front = *front;
        envelope.chunks = table.as_chunks::<REF>().0.iter().map(chunk).collect();
        let lengths = || envelope.chunks.iter().map(|(_, len)| u64::from(*len));
        let ordered = envelope.chunks.is_sorted_by(|a, b| a.0 < b.0);
        let right = ordered
            && lengths().all(|len| len <= MAX_CHUNK)
            && lengths().sum::<u64>() == envelope.chunk_bytes;
        match right {
            true => Ok(clear.envelope),
            false => Err(corrupt("its table of chunks is not of this snapshot")),
        }
    }

    /// Where what is not clear is in the object, but for its header.
    pub fn rest(&self) -> std::ops::Range<u64> {
        let from = (INDEX_HEADER_LEN + FRONT + self.chunks.len() * REF) as u64;
        from..from + self.rest_len
    }

    /// Opens the header of what is in it.
    pub fn front(&self, object: &str, key: &BucketKey) -> Result<Front> {
        let (_, front) = self.opened_front(object, key)?;
        Ok(front)
    }

    fn opened_front(
        &self,
        object: &str,
        key: &BucketKey,
    ) -> Result<([u8; INDEX_HEADER_LEN], Front)> {
        let mut bytes = self.front;
        let sealer = key.for_snapshot(&self.salt);
        let plain = sealer.open(0, &self.header, &mut bytes);
        let plain = plain.and_then(|plain| plain.first_chunk::<INDEX_HEADER_LEN>().copied());
        let plain = plain.ok_or_else(|| altered(object))?;
        let front = match is_tree(&plain) {
            true => Front::Tree(TreeHeader::decode(object, &plain)?),
            false => {
                let len = INDEX_HEADER_LEN as u64 + self.rest_len - TAG as u64;
                Front::Process(IndexHeader::decode(object, &plain, len)?)
            }
        };
        let (common, name) = (front.common(), &self.name);
        let same = (common.id, common.session, common.time_ns, common.pages)
            == (name.id, name.session, name.time_ns, self.pages);
        match same {
            true => Ok((plain, front)),
            false => Err(of_another(object)),
        }
    }

    /// Opens all of it; `rest` is what is behind the table of chunks. Gives what processes of a tree have in common, and the
    /// index of each process, the first one first.
    pub fn open(
        &self,
        object: &str,
        key: &BucketKey,
        mut rest: Vec<u8>,
    ) -> Result<(Option<TreeHead>, Vec<Index>)> {
        let (header, front) = self.opened_front(object, key)?;
        let sealer = key.for_snapshot(&self.salt);
        if sealer.open(1, &self.header, &mut rest).is_none() {
            return Err(altered(object));
        }
        rest.truncate(rest.len() - TAG);
        rest.splice(0..0, header);
        let (tree, indexes) = match front {
            Front::Process(_) => (None, vec![Index::decode(object, rest)?]),
            Front::Tree(_) => {
                let tree = TreeHead::decode(object, &rest, rest.len() as u64)?;
                let mut indexes = Vec::with_capacity(tree.members.len());
                // From the end, so that nothing is there twice.
                for member in tree.members.iter().rev() {
                    let bytes = rest.split_off(member.range().start as usize);
                    indexes.push(Index::decode(object, bytes)?);
                }
                indexes.reverse();
                (Some(tree), indexes)
            }
        };
        // What it does not name in clear a prune would delete.
        let named: HashSet<ChunkName> = self.chunks.iter().map(|(name, _)| *name).collect();
        let mut needed = indexes.iter().flat_map(|index| &index.chunks);
        match needed.all(|chunk| named.contains(&chunk.name)) {
            true => Ok((tree, indexes)),
            false => Err(of_another(object)),
        }
    }

    /// Seals an index or a tree, whose parts these are, one behind the other. `chunks` are those that it needs, each once,
    /// ascending. Gives its name and the parts of the object.
    ///
    /// # Errors
    /// When there is more of it than the format allows.
    pub fn seal(
        parts: Vec<Vec<u8>>,
        chunks: &[ChunkRef],
        key: &PlacedKey,
    ) -> Result<(SnapshotName, Vec<Vec<u8>>)> {
        Self::seal_with(parts, chunks, key, random()?)
    }

    /// `salt` is random: what is under the same one is sealed with the same key.
    pub(super) fn seal_with(
        parts: Vec<Vec<u8>>,
        chunks: &[ChunkRef],
        key: &PlacedKey,
        salt: [u8; 32],
    ) -> Result<(SnapshotName, Vec<Vec<u8>>)> {
        let total: usize = parts.iter().map(Vec::len).sum();
        let plain = parts.first().and_then(|part| part.first_chunk());
        let plain: [u8; INDEX_HEADER_LEN] = *plain.ok_or_else(|| no_version("an index"))?;
        let (common, _) = Common::decode("an index", &plain)?;
        let rest_len = total - INDEX_HEADER_LEN + TAG;
        let bounded = rest_len as u64 <= MAX_INDEX
            && chunks.len() <= MAX_CHUNKS as usize
            && common.pages <= MAX_PAGES;
        if !bounded {
            return Err(BucketError::TooLarge(format!(
                "sealed, the snapshot would need more than {MAX_INDEX} bytes besides its pages, more than {MAX_CHUNKS} chunks, or more than {MAX_PAGES} pages"
            )));
        }
        let mut table = Vec::with_capacity(chunks.len() * REF);
        for chunk in chunks {
            table.extend_from_slice(&chunk.name.0);
            table.extend_from_slice(&chunk.len.to_le_bytes());
        }
        let name = SnapshotName {
            kin: key.key.kin(&common.comm),
            ..common.name()
        };
        let chunk_bytes: u64 = chunks.iter().map(|chunk| u64::from(chunk.len)).sum();
        let mut head = Vec::with_capacity(INDEX_HEADER_LEN + FRONT + table.len());
        head.extend_from_slice(&MAGIC);
        head.extend_from_slice(&SEALED_VERSION.to_le_bytes());
        head.extend_from_slice(&[0; 2]);
        head.extend_from_slice(&(INDEX_HEADER_LEN as u32).to_le_bytes());
        head.extend_from_slice(&name.id.0);
        head.extend_from_slice(&name.session.0);
        head.extend_from_slice(&name.time_ns.to_le_bytes());
        head.extend_from_slice(&name.kin.0);
        head.extend_from_slice(&(chunks.len() as u32).to_le_bytes());
        head.extend_from_slice(&common.pages.to_le_bytes());
        head.extend_from_slice(&chunk_bytes.to_le_bytes());
        head.extend_from_slice(&(rest_len as u64).to_le_bytes());
        head.extend_from_slice(&key.name.0);
        head.extend_from_slice(&salt);
        head.extend_from_slice(blake3::hash(&table).as_bytes());
        head.resize(SUM, 0);
        head.extend_from_slice(&crc32c::crc32c(&head).to_le_bytes());
        let clear = head.clone();
        let sealer = key.key.for_snapshot(&salt);
        head.extend_from_slice(&plain);
        sealer.seal(0, &clear, &mut head, INDEX_HEADER_LEN);
        head.append(&mut table);
        let mut rest = Vec::with_capacity(rest_len);
        let mut skip = INDEX_HEADER_LEN;
        for part in parts {
            rest.extend_from_slice(&part[std::mem::take(&mut skip)..]);
        }
        sealer.seal(1, &clear, &mut rest, 0);
        Ok((name, vec![head, rest]))
    }
}

fn chunk(bytes: &[u8; REF]) -> (ChunkName, u32) {
    let mut fields = Fields::new(bytes);
    (ChunkName(fields.array()), fields.u32())
}

fn altered(object: &str) -> BucketError {
    BucketError::corrupt(object, "it was altered, or sealed with another key")
}

fn of_another(object: &str) -> BucketError {
    BucketError::corrupt(object, "what is sealed in it is another snapshot")
}

#[cfg(test)]
mod tests {
    use super::super::golden::{self, sealed};
    use super::*;

    fn decode(bytes: &[u8]) -> Result<Envelope> {
        Envelope::decode("s", bytes, bytes.len() as u64)
    }

    fn open(bytes: &[u8], key: &BucketKey) -> Result<(Option<TreeHead>, Vec<Index>)> {
        let envelope = decode(bytes)?;
        let rest = envelope.rest();
        envelope.open("s", key, bytes[rest.start as usize..].to_vec())
    }

    #[test]
    fn what_is_sealed_comes_back_as_it_was() {
        let key = golden::placed_key();
        for is_tree in [false, true] {
            let (name, bytes) = sealed(is_tree);
            let envelope = decode(&bytes).unwrap();
            assert_eq!((envelope.name, envelope.key), (name, key.name));
            assert_eq!(envelope.chunks.len(), 1);
            let front = envelope.front("s", &key.key).unwrap();
            assert_eq!(matches!(front, Front::Tree(_)), is_tree);
            assert_eq!(front.common().comm, "victim");
            let (tree, indexes) = open(&bytes, &key.key).unwrap();
            assert_eq!(tree.is_some(), is_tree);
            assert_eq!(indexes.len(), 1 + usize::from(is_tree));
            for index in &indexes {
                assert_eq!(index.entries().len(), 3);
                assert_eq!(index.manifest(), b"not read by the index");
            }
        }
    }

    #[test]
    fn nothing_but_sizes_times_and_names_can_be_read() {
        let (name, bytes) = sealed(true);
        assert_ne!(name.kin, Kin::of("victim"));
        let hash = blake3::hash(&[7; 4096]);
        let words: [&[u8]; 5] = [
            b"victim",
            b"not read",
            hash.as_bytes(),
            &4321u32.to_le_bytes(),
            &777_000u64.to_le_bytes(),
        ];
        for word in words {
            let seen = bytes.windows(word.len()).any(|part| part == word);
            assert!(!seen, "{word:?}");
        }
        // What is looked for is in it.
        let plain = golden::tree().1;
        let seen = |word: &[u8]| plain.windows(word.len()).any(|part| part == word);
        assert!(words.into_iter().all(seen));
    }

    #[test]
    fn damage_anywhere_is_seen_also_where_checksums_are_made_to_match() {
        let key = golden::placed_key().key;
        let (_, bytes) = sealed(true);
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert!(open(&damaged, &key).is_err(), "byte {at}");
            assert!(decode(&bytes[..at]).is_err(), "cut at {at}");
            match_checksums(&mut damaged);
            // What is made to match is as it was.
            if damaged != bytes {
                assert!(open(&damaged, &key).is_err(), "byte {at}, made to match");
            }
        }
    }

    /// Makes the table's hash and the header's checksum those of what is there.
    fn match_checksums(bytes: &mut [u8]) {
        let chunks = u32::from_le_bytes([bytes[60], bytes[61], bytes[62], bytes[63]]);
        let end = (INDEX_HEADER_LEN + FRONT).saturating_add(chunks as usize * REF);
        if let Some(table) = bytes.get(INDEX_HEADER_LEN + FRONT..end) {
            let hash = blake3::hash(table);
            bytes[152..184].copy_from_slice(hash.as_bytes());
        }
        let sum = crc32c::crc32c(&bytes[..SUM]).to_le_bytes();
        bytes[SUM..INDEX_HEADER_LEN].copy_from_slice(&sum);
    }

    #[test]
    fn another_key_opens_nothing_and_says_so() {
        let other = BucketKey::generate(&["age1a".into()], |_| Vec::new()).unwrap();
        let (_, bytes) = sealed(false);
        let envelope = decode(&bytes).unwrap();
        let error = envelope.front("s", &other).unwrap_err().to_string();
        assert!(error.contains("another key"), "{error}");
        assert!(open(&bytes, &other).is_err());
    }

    #[test]
    fn sizes_that_no_snapshot_has_are_refused_before_anything_is_asked_for() {
        // Chunks, pages, what is sealed.
        for (at, value) in [(60, 1u64 << 21), (64, 1 << 60), (80, 1 << 60), (80, 3)] {
            let (_, mut bytes) = sealed(false);
            let width = if at == 60 { 4 } else { 8 };
            bytes[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
            let sum = crc32c::crc32c(&bytes[..SUM]).to_le_bytes();
            bytes[SUM..INDEX_HEADER_LEN].copy_from_slice(&sum);
            let error = decode(&bytes).unwrap_err().to_string();
            assert!(error.contains("no version has"), "{error}");
        }
    }

    #[test]
    fn a_chunk_that_is_not_named_in_clear_is_not_needed_in_secret() {
        let key = golden::placed_key();
        let parts = vec![golden::tree().1];
        let (_, parts) = Envelope::seal(parts, &[], &key).unwrap();
        let error = open(&parts.concat(), &key.key).err().unwrap().to_string();
        assert!(error.contains("another snapshot"), "{error}");
    }

    #[test]
    fn the_same_snapshot_is_sealed_anew_each_time() {
        let key = golden::placed_key();
        let seal = || Envelope::seal(vec![golden::tree().1], &[], &key).unwrap();
        let (a, b) = (seal(), seal());
        assert!(a.0 == b.0 && a.1 != b.1);
    }
}
