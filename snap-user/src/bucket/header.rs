//! What an index and a tree begin with. Both have the same fields at the same places, but for four numbers.

use super::bytes::{Fields, cut};
use super::index::About;
use super::name::{Kin, SnapshotName};
use super::{BucketError, ChunkRef, Result};
use crate::image::SessionId;
use crate::model::SnapshotId;

/// How both begin. The version behind it tells one from the other.
pub(super) const MAGIC: [u8; 8] = *b"\x89KSIDX\r\n";
/// Length of the header, in bytes. It can be read alone.
pub const INDEX_HEADER_LEN: usize = 256;
/// Longest command name, in bytes.
const COMM: usize = 64;
/// Bytes of magic and version.
const BEGIN: usize = 10;
/// Bytes of the checksum, which is the last.
const SUM: usize = 4;

/// What the first bytes of an index, or of a tree, say of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Common {
    /// ELF's number of the architecture.
    pub arch: u16,
    /// The snapshot; of a tree that of its first process, which names it.
    pub id: SnapshotId,
    /// The session of that, in the store that it was pushed from.
    pub session: SessionId,
    /// When that was taken, in nanoseconds since 1970.
    pub time_ns: u64,
    /// Its process id.
    pub pid: i32,
    /// Its command name, 64 bytes at most.
    pub comm: String,
    /// How long the process, or all of them, were stopped, in nanoseconds.
    pub stop_ns: u64,
    /// Pages, of all of them.
    pub pages: u64,
    /// Chunks that have these, each counted once.
    pub chunks: u32,
    /// Bytes of all of these chunks.
    pub chunk_bytes: u64,
}

impl Common {
    /// Of a snapshot with so many pages in these chunks.
    pub(super) fn new(about: &About<'_>, pages: u64, chunks: &[ChunkRef]) -> Self {
        Self {
            arch: about.arch,
            id: about.id,
            session: about.session,
            time_ns: about.time_ns,
            pid: about.pid,
            comm: cut(about.comm, COMM).to_owned(),
            stop_ns: about.stop_ns,
            pages,
            chunks: chunks.len() as u32,
            chunk_bytes: chunks.iter().map(|chunk| u64::from(chunk.len)).sum(),
        }
    }

    /// How the object is named.
    pub fn name(&self) -> SnapshotName {
        SnapshotName {
            time_ns: self.time_ns,
            kin: Kin::of(&self.comm),
            session: self.session,
            id: self.id,
        }
    }

    /// The header, with the four numbers that are a version's own.
    pub(super) fn encode(&self, version: u16, own: [u32; 4]) -> [u8; INDEX_HEADER_LEN] {
        let mut out = [0; INDEX_HEADER_LEN];
        let mut at = 0;
        let mut put = |bytes: &[u8]| {
            out[at..at + bytes.len()].copy_from_slice(bytes);
            at += bytes.len();
        };
        put(&MAGIC);
        put(&version.to_le_bytes());
        put(&self.arch.to_le_bytes());
        put(&(INDEX_HEADER_LEN as u32).to_le_bytes());
        put(&self.id.0);
        put(&self.session.0);
        put(&self.time_ns.to_le_bytes());
        put(&self.pid.to_le_bytes());
        put(&self.chunks.to_le_bytes());
        put(&self.pages.to_le_bytes());
        put(&self.chunk_bytes.to_le_bytes());
        put(&self.stop_ns.to_le_bytes());
        own.iter().for_each(|number| put(&number.to_le_bytes()));
        put(&(self.comm.len() as u32).to_le_bytes());
        put(self.comm.as_bytes());
        let (summed, sum) = out.split_at_mut(INDEX_HEADER_LEN - SUM);
        sum.copy_from_slice(&crc32c::crc32c(summed).to_le_bytes());
        out
    }

    /// Reads a header whose beginning has been looked at, and the four numbers.
    pub(super) fn decode(
        object: &str,
        header: &[u8; INDEX_HEADER_LEN],
    ) -> Result<(Self, [u32; 4])> {
        let corrupt = |why: &str| BucketError::corrupt(object, why);
        let (summed, sum) = header.split_at(INDEX_HEADER_LEN - SUM);
        if crc32c::crc32c(summed).to_le_bytes() != sum {
            return Err(corrupt("the checksum of its header does not match"));
        }
        let mut fields = Fields::new(&header[BEGIN..]);
        let arch = fields.u16();
        let header_len = fields.u32();
        let id = SnapshotId(fields.array());
        let session = SessionId(fields.array());
        let time_ns = fields.u64();
        let pid = fields.u32() as i32;
        let chunks = fields.u32();
        let pages = fields.u64();
        let chunk_bytes = fields.u64();
        let stop_ns = fields.u64();
        let own = [(); 4].map(|()| fields.u32());
        let comm_len = fields.u32() as usize;
        let comm: [u8; COMM] = fields.array();
        let comm = comm
            .get(..comm_len)
            .and_then(|comm| std::str::from_utf8(comm).ok());
        let Some(comm) = comm.filter(|_| header_len as usize == INDEX_HEADER_LEN) else {
            return Err(no_version(object));
        };
        let common = Self {
            arch,
            id,
            session,
            time_ns,
            pid,
            comm: comm.to_owned(),
            stop_ns,
            pages,
            chunks,
            chunk_bytes,
        };
        Ok((common, own))
    }
}

/// What is said of a header that nobody can have written.
pub(super) fn no_version(object: &str) -> BucketError {
    BucketError::corrupt(object, "its header has values that no version has")
}
