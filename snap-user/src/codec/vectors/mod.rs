//! Bit markers: a page as what its vectors and words are in relation to what is known already.
//!
//! Known are the page's previous version (all zeroes for a page that is stored by itself) and the part of the
//! page in front. `docs/codec.md` describes the bytes.

mod codes;
mod context;
mod decode;
mod encode;

pub(super) use decode::decode;
pub(super) use encode::{Encoder, LONGEST};
