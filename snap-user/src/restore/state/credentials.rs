//! Ids and capabilities of a thread (`credentials(7)`, `capabilities(7)`).
//!
//! A thread changes its own only, and gives up for good what it gives up. So the steps are planned on
//! what it may do at each of them.

use super::plan::{Arg, StatePlan};
use crate::model::Credentials;

const CAP_SETGID: u64 = 1 << 6;
const CAP_SETUID: u64 = 1 << 7;
const CAP_SETPCAP: u64 = 1 << 8;
/// `SECBIT_NO_SETUID_FIXUP`: capabilities survive a change of ids.
const KEEP: u32 = 1 << 2;
/// `_LINUX_CAPABILITY_VERSION_3`
const VERSION: u32 = 0x2008_0522;
const INHERITABLE: usize = 0;
const PERMITTED: usize = 1;
const EFFECTIVE: usize = 2;
const BOUNDING: usize = 3;
const AMBIENT: usize = 4;

/// Plans the way of thread `tid` from `now` to `want`.
pub(super) fn plan(plan: &mut StatePlan, tid: i32, want: &Credentials, now: &Credentials) {
    let reasons = impossible(want, now);
    if !reasons.is_empty() {
        plan.refused
            .extend(reasons.iter().map(|why| format!("thread {tid}: {why}")));
        return;
    }
    let has = now.capabilities;
    let may = |capability: u64| has[PERMITTED] & capability != 0;
    let ids_change = (want.uids, want.gids, &want.groups) != (now.uids, now.gids, &now.groups);
    let rights_change =
        want.capabilities != now.capabilities || differing_securebits(want, now).is_some();
    let keeps = ids_change && may(CAP_SETPCAP) && now.securebits.is_some();
    if ids_change || rights_change {
        // Everything it has, for what follows.
        if has[EFFECTIVE] != has[PERMITTED] {
            capset(plan, tid, has[INHERITABLE], has[PERMITTED], has[PERMITTED]);
        }
        if keeps {
            securebits(plan, tid, now.securebits.unwrap_or(0) | KEEP);
        }
    }
    if ids_change {
        ids(plan, tid, want, now);
    }
    if want.capabilities != now.capabilities || ids_change {
        for bit in bits(has[BOUNDING] & !want.capabilities[BOUNDING]) {
            let args = [libc::PR_CAPBSET_DROP as u64, bit, 0, 0, 0];
            plan.prctl(tid, "its bounding set", &args, true);
        }
        if want.capabilities[INHERITABLE] != has[INHERITABLE] {
            let inheritable = want.capabilities[INHERITABLE];
            capset(plan, tid, inheritable, has[PERMITTED], has[PERMITTED]);
        }
        ambient(plan, tid, want, now);
    }
    if keeps || differing_securebits(want, now).is_some() {
        let to = want.securebits.or(now.securebits).unwrap_or(0);
        securebits(plan, tid, to);
    }
    if ids_change || rights_change {
        let [inheritable, permitted, effective, ..] = want.capabilities;
        capset(plan, tid, inheritable, permitted, effective);
    }
    if want.no_new_privs && !now.no_new_privs {
        let args = [libc::PR_SET_NO_NEW_PRIVS as u64, 1, 0, 0, 0];
        plan.prctl(tid, "no new privileges", &args, true);
    }
}

fn differing_securebits(want: &Credentials, now: &Credentials) -> Option<(u32, u32)> {
    match (want.securebits, now.securebits) {
        (Some(want), Some(now)) if want != now => Some((want, now)),
        _ => None,
    }
}

/// Why the thread cannot become what is wanted; empty when it can.
fn impossible(want: &Credentials, now: &Credentials) -> Vec<String> {
    let mut reasons = Vec::new();
    let has = now.capabilities;
    let may = |capability: u64| has[PERMITTED] & capability != 0;
    if now.no_new_privs && !want.no_new_privs {
        reasons.push("it has given up new privileges for good (PR_SET_NO_NEW_PRIVS)".to_owned());
    }
    let reachable = |want: [u32; 4], now: [u32; 4]| want.iter().all(|id| now.contains(id));
    if want.uids != now.uids && !may(CAP_SETUID) && !reachable(want.uids, now.uids) {
        reasons.push(format!(
            "it has given up its user ids {:?}, has {:?}, and may not change them (CAP_SETUID)",
            want.uids, now.uids
        ));
    }
    if want.gids != now.gids && !may(CAP_SETGID) && !reachable(want.gids, now.gids) {
        reasons.push(format!(
            "it has given up its group ids {:?}, has {:?}, and may not change them (CAP_SETGID)",
            want.gids, now.gids
        ));
    }
    if want.groups != now.groups && !may(CAP_SETGID) {
        reasons.push(
            "its supplementary groups have changed, and it may not change them (CAP_SETGID)"
                .to_owned(),
        );
    }
    let lost = want.capabilities[PERMITTED] & !has[PERMITTED];
    if lost != 0 {
        reasons.push(format!("it has given up capabilities ({lost:#x}) for good"));
    }
    let lost = want.capabilities[BOUNDING] & !has[BOUNDING];
    if lost != 0 {
        reasons.push(format!(
            "capabilities ({lost:#x}) have left its bounding set for good"
        ));
    }
    let dropped = has[BOUNDING] & !want.capabilities[BOUNDING];
    if dropped != 0 && !may(CAP_SETPCAP) {
        reasons.push("its bounding set cannot be made smaller without CAP_SETPCAP".to_owned());
    }
    if differing_securebits(want, now).is_some() && !may(CAP_SETPCAP) {
        reasons.push("its securebits cannot be changed without CAP_SETPCAP".to_owned());
    }
    reasons
}

fn ids(plan: &mut StatePlan, tid: i32, want: &Credentials, now: &Credentials) {
    let values = |ids: &[u32]| ids.iter().map(|id| Arg::Value((*id).into())).collect();
    if want.groups != now.groups {
        let bytes: Vec<u8> = want.groups.iter().flat_map(|id| id.to_ne_bytes()).collect();
        let args = vec![Arg::Value(want.groups.len() as u64), Arg::Bytes(bytes)];
        plan.call(tid, "its supplementary groups", libc::SYS_setgroups, args);
    }
    if want.gids != now.gids {
        let args = values(&want.gids[..3]);
        plan.call(tid, "its group ids", libc::SYS_setresgid, args);
        // Follows the effective one, unless told otherwise.
        if want.gids[3] != want.gids[1] {
            let args = values(&want.gids[3..]);
            plan.call(tid, "its group id for files", libc::SYS_setfsgid, args);
        }
    }
    if want.uids != now.uids {
        let args = values(&want.uids[..3]);
        plan.call(tid, "its user ids", libc::SYS_setresuid, args);
        if want.uids[3] != want.uids[1] {
            let args = values(&want.uids[3..]);
            plan.call(tid, "its user id for files", libc::SYS_setfsuid, args);
        }
    }
}

fn ambient(plan: &mut StatePlan, tid: i32, want: &Credentials, now: &Credentials) {
    let (to, had) = (want.capabilities[AMBIENT], now.capabilities[AMBIENT]);
    let change = |raise: bool| match raise {
        true => libc::PR_CAP_AMBIENT_RAISE as u64,
        false => libc::PR_CAP_AMBIENT_LOWER as u64,
    };
    for bit in bits(to ^ had) {
        let raise = to >> bit & 1 != 0;
        let args = [libc::PR_CAP_AMBIENT as u64, change(raise), bit, 0, 0];
        plan.prctl(tid, "its ambient capabilities", &args, true);
    }
}

fn bits(word: u64) -> impl Iterator<Item = u64> {
    (0..64).filter(move |bit| word >> bit & 1 != 0)
}

fn securebits(plan: &mut StatePlan, tid: i32, to: u32) {
    let args = [libc::PR_SET_SECUREBITS as u64, to.into(), 0, 0, 0];
    plan.prctl(tid, "its securebits", &args, true);
}

/// `struct __user_cap_header_struct` for the caller, and two of `struct __user_cap_data_struct`.
fn capset(plan: &mut StatePlan, tid: i32, inheritable: u64, permitted: u64, effective: u64) {
    let head = [VERSION.to_ne_bytes(), 0u32.to_ne_bytes()].concat();
    let mut data = Vec::with_capacity(24);
    for shift in [0, 32] {
        for set in [effective, permitted, inheritable] {
            data.extend(((set >> shift) as u32).to_ne_bytes());
        }
    }
    let args = vec![Arg::Bytes(head), Arg::Bytes(data)];
    plan.call(tid, "its capabilities", libc::SYS_capset, args);
}
