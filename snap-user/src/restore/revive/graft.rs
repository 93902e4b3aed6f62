//! A new process that a living one has made: what it gets of ksnap, and how it comes to be held with the others.

use super::newborn::{Newborn, Opened};
use super::plan::NewPlan;
use super::{attributes, tree};
use crate::model::Descriptor;
use crate::restore::files::{FilesPlan, Made};
use crate::restore::{RestoreError, Result};
use crate::sys::{self, Frozen, Stub, StubCall};
use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

impl Newborn {
    /// As [`Newborn::adopt`], of a process that is no fork of ksnap: it is handed what it would have inherited.
    ///
    /// # Errors
    /// [`RestoreError::Unborn`]; nothing is left of the process then.
    pub fn adopt_grafted(mut stub: Stub, part: &tree::Part<'_>) -> Result<Self> {
        let pid = part.target.pid;
        hand_down(&mut stub, part.plan, part.opened).map_err(|source| RestoreError::Unborn {
            pid,
            step: "handing it what its mappings need",
            source,
        })?;
        Self::adopt(stub, part.plan, part.opened, pid)
    }

    /// Holds it as a rollback holds the others of its tree. Gives what differs, a sentence each.
    ///
    /// # Errors
    /// Nothing is left of it then.
    pub fn hold(self, stopped: bool) -> sys::Result<(Frozen, Vec<String>)> {
        Ok((self.stub.hold(stopped)?, self.notes))
    }
}

/// Gives the process descriptors of what it is to map, under the numbers that ksnap has them under, in place of its
/// parent's.
fn hand_down(stub: &mut Stub, plan: &NewPlan, opened: &Opened) -> sys::Result<()> {
    attributes::lift_limits(stub, &plan.limits)?;
    let all = [0, u32::MAX.into(), 0, 0, 0, 0];
    stub.run(&[StubCall::new(
        "close_range",
        "what it has of its parent",
        libc::SYS_close_range,
        all,
    )])?;
    let objects = opened.objects.iter().flatten();
    let all: BTreeMap<RawFd, &Arc<OwnedFd>> = opened
        .files
        .iter()
        .chain(objects)
        .chain(&opened.exe)
        .map(|file| (file.as_raw_fd(), file))
        .collect();
    let install = all.keys().zip(0..).map(|(fd, file)| Descriptor {
        fd: *fd,
        file,
        cloexec: false,
    });
    let plan = FilesPlan {
        install: install.collect(),
        ..FilesPlan::default()
    };
    let made = Made::of(all.into_values())?;
    let mut remote = stub.remote(0, stub.insn())?;
    made.install(&mut remote, stub.pid(), stub.pidfd(), &plan)
}
