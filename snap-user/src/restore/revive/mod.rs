//! A snapshot brought back as a new process.
//!
//! The same two steps as a rollback, from an empty address space: [`plan`] looks at the snapshot and the
//! world and touches nothing; [`Newborn`] carries the plan out on a stopped, traced process that is killed
//! whenever something fails, ksnap's own death included, until it is let go.
//!
//! | file | what |
//! |---|---|
//! | `plan` | what to map, open and make; every reason not to |
//! | `space` | the plan's mappings as system calls |
//! | `newborn` | the order of all steps |
//! | `vdso` | the kernel's own code, where that is another kernel's |
//! | `clocks` | where those go on that count from the machine's start |
//! | `namespaces` | which ones it enters again |
//! | `own_users` | what it begins with in a user namespace of its own |
//! | `threads` | what the kernel keeps for each thread |
//! | `attributes` | what is neither memory nor a descriptor |
//! | `below` | the same of one that a living process makes |
//! | `family` | in which order the processes of a tree are made |
//! | `graft` | one that a living process has made |
//! | `terminals` | the controlling terminals of their sessions |
//! | `tree` | the order of all steps for several processes |
//! | `release` | who fills their memory and watches over them, until they are free as one |

mod attributes;
mod below;
mod clocks;
mod family;
mod graft;
mod namespaces;
mod newborn;
mod own_users;
mod plan;
mod release;
mod space;
mod terminals;
mod threads;
mod tree;
mod vdso;

pub use attributes::{plan_attributes, plan_attributes_in_tree};
pub use below::plan_attributes_below;
pub use clocks::time_offsets;
pub use family::{Births, Birthstep, Kin, births};
pub use namespaces::{Entered, Namespaces, Network, other_than};
pub use newborn::{Newborn, Opened};
pub use plan::{FileToOpen, MemoryObject, NewMapping, NewPlan, Origin, Surroundings, plan};
pub use terminals::{Controlling, Had, Line, Lines, Terminals, terminals};
pub use tree::{Part, Roster, finish_tree, start_tree};
pub use vdso::OtherKernel;
