//! Tests of the store as a whole.

mod access;
mod basics;
mod corruption;
mod durability;
mod faults;
mod files;
mod flat_ahead;
mod flush;
mod history;
mod many;
mod prune;
mod support;
mod trees;
mod versions;
