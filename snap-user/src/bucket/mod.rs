//! Snapshots in object storage: S3, Google Cloud Storage, Azure, or a folder. `docs/bucket.md` describes every byte, and
//! why several may write and remove at the same time without a lock.
//!
//! | file | what |
//! |---|---|
//! | `bytes` | numbers out of bytes, with a bound for each |
//! | `chunk` | many pages in one object, named by its content |
//! | `index` | one object for each snapshot: which page is where |
//! | `tree` | one object for each tree of processes, with the indexes of all |
//! | `indexes` | both of them, read |
//! | `key` | the key of sealed chunks, indexes and trees, and what is made of it |
//! | `sealed` | an index or a tree of which only what lists and removes it can be read |
//! | `doomed` | chunks that are going to be deleted, and that nobody may refer to any more |
//! | `leftovers` | what writers that were killed have left in a folder |
//! | `name` | how objects are named |
//! | `place` | a URL → a service, with the keys of the environment |
//! | `keys` | objects with keys, in and out |
//! | `service` | objects in and out, one at a time |
//! | `transfer` | many at a time |

mod bytes;
mod chunk;
mod doomed;
mod error;
#[cfg(test)]
mod golden;
mod header;
mod index;
mod indexes;
mod key;
mod keys;
mod leftovers;
mod name;
mod place;
mod sealed;
mod service;
mod transfer;
mod tree;

pub use chunk::{Chunk, ChunkBuilder, MAX_CHUNK, MAX_CHUNK_PAGES};
pub use doomed::{MAX_DOOMED, decode_doomed, encode_doomed};
pub use error::BucketError;
pub use header::{Common, INDEX_HEADER_LEN};
pub use index::{
    About, ChunkRef, Entry, Index, IndexBuilder, IndexHeader, MAX_CHUNKS, MAX_PAGES, decode_chunks,
};
pub use indexes::{Head, Whole};
pub use key::{BucketKey, MAX_KEY, PlacedKey};
pub use name::{ChunkName, DoomedName, KeyName, Kin, SnapshotName};
pub use sealed::{Envelope, Front};
pub use service::{Bucket, Object};
pub use transfer::Uploads;
pub use tree::{MAX_MEMBERS, Member, MemberIndex, TreeHead, TreeHeader, encode_tree};

/// Result of this room.
pub type Result<T> = std::result::Result<T, BucketError>;
