//! A user namespace of a new process's own (`user_namespaces(7)`): every capability, and one user.

use crate::model::{Clocks, Credentials, ProcessState};
use crate::sys;

/// Gives the threads of a new process what they begin with there. Returns why they cannot become what is wanted.
pub(super) fn enter(wanted: &ProcessState, now: &mut ProcessState) -> sys::Result<Vec<String>> {
    let all = sys::all_capabilities()?;
    let mut refused = Vec::new();
    for (want, now) in wanted.threads.iter().zip(&mut now.threads) {
        let Some(has) = &mut now.attributes.credentials else {
            continue;
        };
        let want_ids = want.attributes.credentials.as_ref().map(ids);
        if want_ids.is_some_and(|want| want != ids(has)) {
            refused.push(format!(
                "thread {}: its user or groups are not those of this ksnap, and a user namespace that ksnap may make has no others; run ksnap as root",
                want.tid
            ));
        }
        // As the kernel sets them (create_user_ns in kernel/user_namespace.c).
        has.capabilities = [0, all, all, all, 0];
        has.securebits = Some(0);
    }
    Ok(refused)
}

/// The user namespace that a machine begins with (`PROC_USER_INIT_INO` in include/linux/proc_ns.h).
const INITIAL: u64 = 0xefff_fffd;

/// Why threads that were in another user namespace than this process is cannot be brought back in this one: what they may do
/// there they would be allowed outside of it. On another machine, or after another start, only what is no namespace at all
/// is outside.
pub(super) fn leave(wanted: &ProcessState) -> sys::Result<Vec<String>> {
    let (was, own) = (wanted.attributes.namespace("user"), sys::own_users());
    let start = |clocks: Clocks| clocks.boot;
    let is_same_start = wanted.clocks.map(start) == sys::clocks([0; 2]).map(start);
    let is_outside = was.is_some() && was != own && (is_same_start || own == Some(INITIAL));
    if !is_outside {
        return Ok(Vec::new());
    }
    let all = wanted.threads.iter();
    let with_rights = all.filter(|thread| {
        let credentials = thread.attributes.credentials.as_ref();
        // All but the bounding set.
        credentials.is_some_and(|c| [0, 1, 2, 4].iter().any(|set| c.capabilities[*set] != 0))
    });
    Ok(with_rights
        .map(|thread| {
            format!(
                "thread {}: it has capabilities in another user namespace, and here they would hold outside of that as well; run ksnap in that namespace (nsenter)",
                thread.tid
            )
        })
        .collect())
}

fn ids(of: &Credentials) -> ([u32; 4], [u32; 4], &[u32]) {
    (of.uids, of.gids, &of.groups)
}
