//! Tests of the store as a whole.

mod access;
mod basics;
mod corruption;
mod faults;
mod files;
mod history;
mod prune;
mod support;
