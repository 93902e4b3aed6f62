//! Processes of a tree that have ended since, made again below those that live.
//!
//! [`plan`] is pure: who was there, and who is there now → the steps in their order, each by whoever can do it: a process
//! that lives makes its children by an injected call, a new one by its stub. [`Growth`] carries them out, and takes all
//! of it back where one fails.

mod grow;
mod plan;

pub use grow::{Grown, Growth, Hand, Remains};
pub use plan::{Again, Bystander, Front, Now, Regroup, plan};
