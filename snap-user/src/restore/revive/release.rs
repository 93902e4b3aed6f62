//! Who fills the memory of new processes and watches over them, until they are free as one.

use super::newborn::Newborn;
use super::tree::Part;
use crate::restore::fault;
use crate::sys::{self, Guard, PidFd, Released, pidfd_open};

/// Has process 1 of their namespace, where they have one, fill what comes later of their memory.
pub(super) fn begin_filling(newborns: &mut [Newborn], step: &mut &'static str) -> sys::Result<()> {
    *step = "beginning to fill its memory";
    match newborns.iter().any(|newborn| newborn.is_lazy) {
        true => newborns[0].stub.run_init(),
        false => Ok(()),
    }
}

/// Has them ended if ksnap ends before all of them are free and have their memory, which is filled meanwhile. They have
/// their threads: the guard would have the id of one. `None` for one that lacks nothing: it is free in one moment.
pub(super) fn watch_over(
    newborns: &mut [Newborn],
    step: &mut &'static str,
) -> sys::Result<Option<Guard>> {
    *step = "watching over it";
    let lacking: Vec<_> = newborns
        .iter_mut()
        .filter_map(|n| n.lacking.take())
        .collect();
    if newborns.len() == 1 && lacking.is_empty() {
        return Ok(None);
    }
    let init = newborns[0].init();
    let init = init.map(|pid| Ok((pid, pidfd_open(pid)?))).transpose()?;
    let stubs = newborns.iter().map(|newborn| &newborn.stub);
    let mut wards: Vec<(i32, &PidFd)> = stubs.map(|stub| (stub.pid(), stub.pidfd())).collect();
    wards.extend(init.iter().map(|(pid, pidfd)| (*pid, pidfd)));
    Guard::over(&wards, lacking).map(Some)
}

/// Lets them go, one after the other. Children first, since all processes of a PID namespace of their own end with the
/// first of the tree.
pub(super) fn release(
    newborns: Vec<Newborn>,
    parts: &[Part<'_>],
    guard: Option<Guard>,
) -> sys::Result<Vec<(Released, Vec<String>)>> {
    let mut free = Vec::with_capacity(newborns.len());
    for (newborn, part) in newborns.into_iter().zip(parts).rev() {
        let Newborn { stub, notes, .. } = newborn;
        if part.stopped {
            stub.stop_when_free()?;
        }
        free.push((stub.release()?, notes));
        fault::point("release");
    }
    free.reverse();
    free[0].0.loading = guard.map_or(Ok(None), Guard::dismiss)?;
    Ok(free)
}
