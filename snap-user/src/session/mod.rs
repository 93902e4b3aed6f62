//! The verbs, each a short function over the other rooms, and the continuous scheduler.

mod audit;
mod control;
mod engine;
mod error;
mod events;
mod pipeline;
mod rollback;
mod run;
mod service;
mod snap;
mod types;
mod watch;
mod writer;

pub use engine::Engine;
pub use error::{AuditPage, SessionError, Trouble};
pub use rollback::rollback;
pub use run::run;
pub use snap::snap;
pub use types::*;
pub use watch::watch;

/// Result of this room.
pub type Result<T> = std::result::Result<T, SessionError>;
