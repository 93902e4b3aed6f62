//! Durable snapshots by id.
//!
//! A store is a folder; a session (one watch of one process) is a folder in it; a snapshot is one immutable
//! file, published by rename after sync. Layout and locking rules are in `docs/format.md`.
//!
//! | file | what |
//! |---|---|
//! | `directory` | open or create a store; its sessions and snapshots |
//! | `described` | a session's description made anew from its snapshots |
//! | `session` | the one writer of a session |
//! | `pending` | a snapshot being written, up to its publication |
//! | `temp`, `buffer` | a file being written, before it has its name |
//! | `common` | pages that sessions have in common which are written side by side |
//! | `repeats`, `stored`, `earlier` | pages that the file being written has already, that the session has, and that other sessions have |
//! | `lender`, `loans`, `pack_loans` | a file that others borrow pages from; those that a snapshot or a pack borrows from, while it is written |
//! | `loan_file` | reads them, and says what they take |
//! | `head` | the page table that the next delta builds on, and when it gets a span |
//! | `headers` | the headers of a session in one file, for listings |
//! | `chain` | the page table of any snapshot, by jumps over its ancestors |
//! | `snapshot` | reads manifest and pages |
//! | `encoded` | reads pages as they are stored, many at a time |
//! | `durability` | when what is written is synced, and what a power failure may take |
//! | `pack` | what snapshots that are gone leave to those that stay |
//! | `retention` | which snapshots are kept: pure rules |
//! | `needs` | what kept snapshots need of those that go |
//! | `agreed` | what the writer of a session and its pruner agree on |
//! | `pruner`, `sweep` | removes snapshots, and nothing that others need; and the files that are left of them |
//! | `mixed` | marks of processes that a rollback has not made whole |
//! | `tags` | names that people give to snapshots; they protect them |
//! | `tree_record` | the bytes of their records |
//! | `trees` | which snapshots are of the processes of one tree; they stay together |
//! | `versions` | pages with the versions that they hold the changes to |
//! | `reference` | `latest~2`, prefixes and the like → id |
//! | `verify`, `diff` | check, compare |
//! | `flush`, `speed` | copies sessions into another store: from memory to the disk; how quickly it takes them |
//! | `flat` | a snapshot's pages in one file to map, for restores |
//! | `flat_care` | checks, counts and removes such files |
//! | `received`, `received_left` | pages that another machine sends, until their snapshot is published; what earlier attempts have left of them |
//! | `flat_ahead` | such a file, made while snapshots still come |
//! | `names` | file names, default folder |
//! | `seal` | sessions whose content only the holder of a key can read |
//! | `text`, `checked` | small files: read whole, published in one step; JSON with a checksum |
//! | `hostile` | decoders of the small files, for tests |
//! | `cache`, `files` | open files; the operating system behind a seam |

mod agreed;
mod buffer;
mod cache;
mod chain;
mod checked;
mod common;
mod described;
mod diff;
mod directory;
mod disk_file;
mod due;
mod durability;
mod earlier;
mod encoded;
mod error;
mod files;
mod flat;
mod flat_ahead;
mod flat_care;
mod flush;
mod flush_order;
mod head;
mod headers;
#[doc(hidden)]
pub mod hostile;
mod lender;
mod loan_file;
mod loans;
mod meta;
mod mixed;
mod names;
mod needs;
mod pack;
mod pack_loans;
mod pending;
mod pruner;
mod received;
mod received_left;
mod reference;
mod repeats;
mod retention;
mod seal;
mod session;
mod snapshot;
mod speed;
mod stored;
mod sweep;
mod tags;
mod temp;
mod text;
mod tree_record;
mod trees;
mod verify;
mod versions;

#[cfg(test)]
pub(crate) mod tests;

pub use crate::image::{
    EncodedBatch, Late, Location, Manifest, PageSink, PageSource, SessionId, SpanKind,
};
pub use diff::{PageChange, PageDiff};
pub use directory::{Store, marker_line};
pub use due::{Due, Outstanding};
pub use durability::{Durability, SYNC_INTERVAL};
pub use error::{Candidate, StoreError};
pub use files::{Disk, Files, LockGuard, Locking, ReadFile, Stamp, WriteFile};
pub use flat::{Flat, FlatPiece};
pub use flat_ahead::FlatAhead;
pub use flush::Flushed;
pub use meta::SnapshotMeta;
pub use mixed::Mixed;
pub use names::default_dir;
pub use pending::{PendingSnapshot, Published};
pub use pruner::{Plan, Pruned, Pruner};
pub use received::Received;
pub use retention::Rules;
pub use seal::{Identities, Keys, Recipients, SealedSession};
pub use session::{Continuation, Session, SessionInfo};
pub use snapshot::{Snapshot, StoredContent};
pub use speed::Speed;
pub use tags::Tag;
pub use tree_record::{decode as tree_from_text, encode as tree_to_text};
pub use verify::{Problem, Report};
