//! Sessions whose content only the holder of a key can read.
//!
//! A sealed session has a key of its own, 32 random bytes, which lies in its folder as `key.age`: encrypted to those
//! who may read it. With it every file that says anything of the process is sealed, in blocks, so that any part of it
//! can be read alone. This is a layer between the store and the operating system: the rest of the store reads and
//! writes plain bytes. Byte by byte in `docs/format.md`.
//!
//! | file | what |
//! |---|---|
//! | `keys` | who may read: recipients, identities, the keys of sessions |
//! | `age_file` | other small things that they alone may read |
//! | `blocks` | plain bytes ↔ sealed blocks |
//! | `writer`, `reader` | one sealed file |
//! | `files` | which files of a store are sealed |
//! | `sessions` | what a store says of sealed sessions |
//! | `error` | what can go wrong |

mod age_file;
mod blocks;
mod error;
mod files;
mod keys;
mod reader;
mod sessions;
mod writer;

pub(super) use error::SealError;
pub(super) use files::{KEY_FILE, Sealing};
pub(super) use keys::SessionKey;
pub use keys::{Identities, Keys, Recipients};
pub use sessions::SealedSession;
pub(super) use sessions::told;
