//! A remote peer: messages ↔ bytes, over TLS 1.3 with the keys of both sides pinned. `docs/protocol.md` describes
//! each message.
//!
//! | file | what |
//! |---|---|
//! | `bytes` | numbers, texts and lists ↔ bytes, with a bound for each |
//! | `message` | the messages |
//! | `digest` | the hash of everything that a snapshot has |
//! | `frame` | a message on a stream: length, type, body |
//! | `peer` | what a peer says of itself, and why two do not fit each other |
//! | `key` | public and private keys, and the folder that they are in |
//! | `tls` | who may talk: nobody whose key is not trusted |
//! | `timed` | a socket on which nothing takes for ever |
//! | `link` | a connection: messages in and out |

mod bytes;
mod digest;
mod error;
mod frame;
mod key;
mod link;
mod message;
mod peer;
mod timed;
mod tls;

pub use digest::Digest;
pub use error::WireError;
pub use frame::{MAX_BODY, encode_frame, read_frame};
#[doc(hidden)]
pub use key::trusted_in;
pub use key::{KeyPair, Keys, PublicKey, Trusted, default_dir};
pub use link::{Limit, Link, STALL, WAIT, address_of};
pub use message::{
    Begin, Encoded, MAX_OFFER, MAX_RANGES, MAX_STATE, Message, Offered, Order, Pids, Running,
    Stored,
};
pub use peer::{PROTOCOL, Peer};

/// Result of this room.
pub type Result<T> = std::result::Result<T, WireError>;
