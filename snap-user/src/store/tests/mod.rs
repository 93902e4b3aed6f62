//! Tests of the store as a whole.

mod access;
mod basics;
mod common;
mod common_pruned;
mod corruption;
mod durability;
mod earlier;
mod evolve;
mod faults;
mod files;
mod flat;
mod flat_ahead;
mod flush;
mod history;
mod many;
mod prune;
mod repeated;
mod retention;
mod seal;
mod seal_files;
mod seal_life;
pub(crate) mod support;
mod tags;
mod trees;
mod versions;
