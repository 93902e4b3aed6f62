//! The kin of a tree that is brought back, and what it has from outside of it.

use super::revive::Pids;
use crate::model::{ProcessState, ProcessTree};
use crate::restore::revive::Kin;

/// Who is whose child, zombies behind the others, by the ids that they know.
pub(super) fn kin(tree: &ProcessTree, states: &[&ProcessState]) -> Vec<Kin> {
    let members = tree.members.iter().zip(states).map(|(member, state)| Kin {
        pid: state.threads.first().map_or(member.pid, |t| t.own_id()),
        parent: member.parent.map(|at| at as usize),
        session: member.session,
        group: member.group,
    });
    let zombies = tree.zombies.iter().map(|zombie| Kin {
        pid: zombie.own_pid,
        parent: Some(zombie.parent as usize),
        session: zombie.session,
        group: zombie.group,
    });
    members.chain(zombies).collect()
}

/// The group, as the processes number it, in which the first process is made; `group` is the one that it had.
pub(super) fn born_in(pids: Pids, ghost: Option<i32>, group: i32) -> i32 {
    match (ghost, pids) {
        (Some(session), _) => session,
        // ksnap's own has no id there (pid_namespaces(7): it is 0); nobody but process 1 can begin group 1.
        (None, Pids::Namespace) if group > 1 => 0,
        // What it had is taken for ksnap's.
        _ => group,
    }
}

/// What differs where the first process was in a session or group that began outside of the tree, and is not begun again.
pub(super) fn other_session(
    pids: Pids,
    first: &Kin,
    is_outside: impl Fn(i32) -> bool,
) -> Option<String> {
    // As the process numbers them: 0 where they began outside of its PID namespace (pid_namespaces(7)).
    let (own, group) = match pids {
        Pids::Namespace => (0, 0),
        _ => (
            nix::unistd::getsid(None).map_or(0, |id| id.as_raw()),
            nix::unistd::getpgrp().as_raw(),
        ),
    };
    let Kin {
        session,
        group: was,
        ..
    } = *first;
    match (is_outside(session), is_outside(was)) {
        (true, _) if session != own => Some(format!(
            "it was in session {session}, which began outside of the tree, and is in ksnap's ({own})"
        )),
        (_, true) if was != group => Some(format!(
            "it was in process group {was}, which began outside of the tree, and is in ksnap's ({group})"
        )),
        _ => None,
    }
}
