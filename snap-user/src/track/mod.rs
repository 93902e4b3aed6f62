//! Which pages changed since the last epoch?
//!
//! A [`Tracker`] is a mechanism of the kernel with three questions; [`Epoch`] adds what is known
//! from events (the fault log, mapping changes) and what a failed snapshot left behind.
//!
//! All of it is about private mappings. Shared ones change through other processes' page tables,
//! or through none at all, so that no mechanism sees every write: their content is compared.

mod attach;
mod epoch;
mod error;
mod fault_log;
mod hash;
mod kind;
mod self_test;
mod soft_dirty;
mod survey;
mod wp;

pub use attach::{Attached, attach};
pub use epoch::{Dirty, Epoch};
pub use error::TrackError;
pub use fault_log::FaultLog;
pub use kind::{TrackerChoice, TrackerKind};
pub use self_test::{Support, support};
pub use survey::Survey;

use crate::model::{PageSet, Vma};

/// Result of this room.
pub type Result<T> = std::result::Result<T, TrackError>;

/// A mechanism that finds written pages of private mappings.
pub trait Tracker {
    /// Which one.
    fn kind(&self) -> TrackerKind;

    /// While the target runs: the pages with content of their own that were written since the last
    /// call, atomically begun to be watched again. `None` for a mechanism that can only look while
    /// the target is stopped.
    fn rearm(&mut self, vmas: &[Vma]) -> Result<Option<PageSet>>;

    /// While the target is stopped: looks at `area`, or at everything.
    fn survey(&mut self, vmas: &[Vma], area: Option<&PageSet>) -> Result<Survey>;

    /// While the target is stopped, after a survey of everything: what was reported is not reported
    /// again unless written again. For a mechanism that re-arms in [`Tracker::rearm`], nothing.
    fn seal(&mut self) -> Result<()> {
        Ok(())
    }

    /// Mappings that this mechanism cannot watch; their pages count as dirty in every survey.
    fn refused(&self) -> &PageSet;
}
