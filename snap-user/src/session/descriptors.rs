//! How many files this program may have open.

use crate::sys;

/// Takes as many open files as ksnap may have: it holds all that a process has, more than once. What starts
/// another program does it behind that: it would find another limit than it was to have.
pub fn raise_descriptors() {
    // What does not suffice is refused where it lacks.
    if let Err(e) = sys::raise_descriptors() {
        tracing::debug!("{e}");
    }
}
