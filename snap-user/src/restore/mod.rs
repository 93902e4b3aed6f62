//! Plan what to put back, then put it back.
//!
//! [`plan`] compares a snapshot's state with the live one and touches nothing; what it cannot bring
//! back, it refuses. [`apply`] carries the plan out on a process held in a job-control stop.

pub mod again;
mod apply;
mod apply_tree;
mod error;
pub mod fault;
pub mod files;
mod mappings;
mod memory;
mod plan;
pub mod revive;
pub mod state;
mod threads;
mod waits;

pub use apply::{Applied, apply};
pub use apply_tree::{Part, Renewed, TreeFiles, TreeInPlace};
pub use error::RestoreError;
pub use memory::{Content, Pages};
pub use plan::{MapOp, RestorePlan, World, plan, plan_but_files};
pub use state::TimerIds;
pub use threads::{DESCRIPTOR, can_choose as can_choose_ids, can_start as can_start_thread};

/// Result of this room.
pub type Result<T> = std::result::Result<T, RestoreError>;
