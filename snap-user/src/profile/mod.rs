//! What it cost: what snapshots take from the process, and who dirties its memory.
//!
//! A [`Recorder`] is fed while snapshots go on and keeps a bounded amount of memory whatever
//! happens; a [`Report`] is what it knows, as plain data.

mod heavy;
mod places;
mod recorder;
mod report;
mod symbols;
mod text;
mod times;

pub use recorder::{Fault, Recorder};
pub use report::{
    FaultSource, HotInstruction, HotMapping, HotThread, Overhead, OverheadPart, PageStats,
    PhaseTimes, ProbeCost, Report, Size,
};
pub use symbols::{Symbol, symbolize};
pub use times::Times;
