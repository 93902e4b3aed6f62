//! A user namespace of a new process's own (`user_namespaces(7)`): every capability, and one user.

use crate::model::{Credentials, ProcessState};
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

fn ids(of: &Credentials) -> ([u32; 4], [u32; 4], &[u32]) {
    (of.uids, of.gids, &of.groups)
}
