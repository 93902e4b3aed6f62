//! The verbs.

mod diff;
mod doctor;
mod error;
mod log;
mod show;
mod types;
mod verify;

pub use diff::{
    Change, Comparison, DescriptorDiff, MappingDiff, MappingPages, PagesDiff, RegisterDiff,
    ThreadDiff, diff,
};
pub use doctor::{Check, Diagnosis, Outcome, doctor};
pub use error::{AuditPage, SessionError, Trouble};
pub use log::{LogEntry, find, log, store_dir};
pub use show::{Description, Mapping, Process, Thread, show};
pub use types::{
    DEFAULT_MEMORY, Ended, Options, Progress, RolledBack, Schedule, Summary, Taken, TrackerChoice,
    TrackerKind,
};
pub use verify::{Damage, Verification, verify};
