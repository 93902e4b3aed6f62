//! The verbs, each a short function over the other rooms, and the continuous scheduler.

mod audit;
mod control;
mod descriptor;
mod diff;
mod doctor;
mod engine;
mod error;
mod events;
mod flight;
mod inspect;
mod log;
mod open;
mod pipeline;
mod precopy;
mod profile;
mod rollback;
mod run;
mod service;
mod show;
mod snap;
mod types;
mod verify;
mod watch;
mod writer;

pub use crate::capture::Verdict;
pub use descriptor::OpenDescriptor;
pub use diff::{
    Change, Comparison, DescriptorDiff, MappingDiff, MappingPages, PagesDiff, RegisterDiff,
    ThreadDiff, diff,
};
pub use doctor::{Check, Diagnosis, Outcome, doctor};
pub use engine::Engine;
pub use error::{AuditPage, SessionError, Trouble};
pub use inspect::{Inspection, Judged, inspect, refuse_incomplete};
pub use log::{LogEntry, find, log, store_dir};
pub use profile::profile;
pub use rollback::rollback;
pub use run::run;
pub use show::{Description, Mapping, Process, Thread, show};
pub use snap::snap;
pub use types::*;
pub use verify::{Damage, Verification, verify};
pub use watch::watch;

/// Result of this room.
pub type Result<T> = std::result::Result<T, SessionError>;
