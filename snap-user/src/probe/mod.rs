//! The eBPF programs as seen from user space: loads them, feeds them the running kernel's struct
//! offsets, turns their ring buffer into typed [`Event`]s, and reads what they cost.
//!
//! [`Probes`] is synchronous and meant for one thread; [`SharedProbes`] serves several watchers. Nothing is pinned: when the last descriptor
//! closes, also because ksnap was killed, every program detaches.

mod btf;
mod error;
mod event;
mod features;
mod hazard;
mod iterator;
mod load;
mod mapping;
mod marks;
mod object;
mod offsets;
mod probes;
mod programs;
mod queues;
mod saver;
mod shared;
mod state;
mod syscalls;

pub use error::ProbeError;
pub use event::Event;
pub use features::{Feature, Outcome, features};
pub use hazard::HazardKind;
pub use load::ProbeOptions;
pub use mapping::{MappingChange, MappingKind};
pub use marks::Marks;
pub use probes::{Drained, Probes, ProgramStats};
pub use programs::FaultSource;
pub use saver::{Losses, Saved, Window};
pub use shared::{SharedProbes, TrackedProcess};
