//! A frozen process → its state and pages.

mod asked;
mod attributes;
mod contents;
mod copy;
mod error;
mod files;
mod live;
mod preflight;
mod shared;
mod state;

pub use contents::{Contents, Stamps, changed_files, saved_ranges, without_files};
pub use copy::inspect;
pub use error::CaptureError;
pub use files::{
    Connections, Files, Verdict, losses, mapping_verdict, take_connections, terminal_verdict,
    verdict,
};
pub use live::Live;
pub use preflight::{Target, is_ksnap, preflight};
pub use shared::{compared, compared_pages, irreplaceable};
pub use state::{Told, bare_state, describe, frozen_state};

/// Result of this room.
pub type Result<T> = std::result::Result<T, CaptureError>;
