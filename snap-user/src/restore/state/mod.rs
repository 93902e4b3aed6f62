//! Attributes of a process and its threads: from what they are to what they shall be.
//!
//! [`plan`] is pure: two states in, steps in their order out, with all that cannot be put back and all
//! that merely stays different. [`apply`] carries the steps out on a process that is held: most are
//! system calls that its threads run, the rest are calls about it. A rollback in place and a new process
//! take the same way.
//!
//! | file | what it plans |
//! |---|---|
//! | `process` | what all threads share |
//! | `thread` | what each thread has of its own |
//! | `credentials` | ids and capabilities |
//! | `limits` | resource limits, which come before and after all else |
//! | `memory` | advice, locks, names, guard pages, … of mappings |
//! | `timers` | interval timers and POSIX timers |

mod apply;
mod credentials;
mod limits;
mod memory;
mod plan;
mod process;
mod thread;
mod timers;

#[cfg(test)]
mod tests;

pub use apply::{Held, Runner, apply};
pub use limits::{LimitsPlan, plan_limits};
pub use memory::{MemoryPlan, plan_memory};
pub use plan::{Action, Arg, StatePlan, Step, can_clone, cloned_scheduling, plan, worker};
pub(super) use process::{inside, terminal_name};
pub use timers::{TimerIds, check as check_timers};
