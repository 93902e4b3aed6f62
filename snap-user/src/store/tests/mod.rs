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
mod faults_small;
mod files;
mod flat;
mod flat_ahead;
mod flipped;
mod flush;
mod history;
mod many;
mod prune;
mod retention;
mod seal;
mod seal_files;
mod seal_life;
mod small_disk;
pub(crate) mod support;
mod tags;
mod trees;
mod versions;
