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
mod fault_cost;
mod fault_log;
mod hash;
mod kind;
mod self_test;
mod soft_dirty;
mod survey;
mod walk;
mod wp;

pub use attach::{Attached, attach};
pub use epoch::{Dirty, Epoch};
pub use error::TrackError;
pub use fault_cost::fault_cost_ns;
pub use fault_log::FaultLog;
pub use kind::{TrackerChoice, TrackerKind};
pub use self_test::{Support, support};
pub use survey::Survey;

use crate::model::{PageSet, Vma};

/// Result of this room.
pub type Result<T> = std::result::Result<T, TrackError>;

/// What events tell of the time since a tracker was last re-armed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Since {
    /// No mapping has changed.
    pub unchanged: bool,
    /// Nothing else was written; anything may have been where there is none.
    pub within: Option<PageSet>,
}

/// A look at one place costs as much as at so many pages, however few it has.
const PLACE_PAGES: u64 = 100;

impl Since {
    /// What a look there costs, as a number of pages. `None` if it has to be everywhere.
    fn cost(&self) -> Option<u64> {
        let places = |set: &PageSet| set.ranges().len() as u64;
        let within = self.within.as_ref();
        within.map(|set| set.pages() + PLACE_PAGES * places(set))
    }
}

/// A mechanism that finds written pages of private mappings.
pub trait Tracker: Send {
    /// Which one.
    fn kind(&self) -> TrackerKind;

    /// The pages with content of their own that were written since the last call, begun to be
    /// watched again. `None` for a mechanism that keeps no record of writes.
    ///
    /// The target may run meanwhile, unless [`Tracker::rearms_stopped`]. `watched` is called as soon as the kernel
    /// has done its part: a target that was stopped for it may go on.
    fn rearm(
        &mut self,
        vmas: &[Vma],
        since: &Since,
        watched: &mut dyn FnMut(),
    ) -> Result<Option<PageSet>>;

    /// The target is stopped, and [`Tracker::rearm`] with the same arguments comes next: what can be done on another
    /// processor until then may begin.
    fn begin(&mut self, _vmas: &[Vma], _since: &Since) {}

    /// Reading and resetting the record are two steps, so that the target has to be stopped for
    /// [`Tracker::rearm`].
    fn rearms_stopped(&self) -> bool {
        false
    }

    /// [`Tracker::rearm`] has the kernel flush translations once for each page table, which costs
    /// much less while the target is stopped.
    fn flushes_by_table(&self) -> bool {
        false
    }

    /// Each first write to a page after [`Tracker::rearm`] is a fault at that page, so that a log of faults
    /// is as good as a look at everything.
    fn every_write_faults(&self) -> bool {
        false
    }

    /// Looks at `area`, or at everything, and changes nothing. Exact only while the target is stopped.
    fn survey(&mut self, vmas: &[Vma], area: Option<&PageSet>) -> Result<Survey>;

    /// Tracking is going to begin anew: another tracker may take what belongs to one alone.
    fn let_go(&mut self) {}

    /// Mappings that this mechanism cannot watch; their pages count as dirty in every survey.
    fn refused(&self) -> &PageSet;
}
