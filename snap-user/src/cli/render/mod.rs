//! Data as text for people.

#[cfg(feature = "object-storage")]
pub mod bucket;
pub mod cloned;
pub mod diagnosis;
pub mod diff;
pub mod flush;
pub mod graph;
pub mod human;
pub mod inspection;
pub mod log;
pub mod revived;
pub mod show;
mod style;
pub mod summary;
mod table;
pub mod taken;

pub use style::Style;
pub use table::{Align, Table};
