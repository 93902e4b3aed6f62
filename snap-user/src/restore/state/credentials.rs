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
const NO_FIXUP: u32 = 1 << 2;
/// `SECBIT_KEEP_CAPS`: permitted ones survive giving up root; any thread may set it (`PR_SET_KEEPCAPS`).
const KEEP_CAPS: u32 = 1 << 4;
/// `SECBIT_NO_CAP_AMBIENT_RAISE`
const NO_AMBIENT: u32 = 1 << 6;
/// The bit beside each is locked for good.
const LOCKS: u32 = 0xaa;
/// `_LINUX_CAPABILITY_VERSION_3`
const VERSION: u32 = 0x2008_0522;
const INHERITABLE: usize = 0;
const PERMITTED: usize = 1;
const EFFECTIVE: usize = 2;
const BOUNDING: usize = 3;
const AMBIENT: usize = 4;

/// Plans the way of thread `tid` from `now` to `want`.
///
/// Where it may, it takes the effect of ids on capabilities away for the while. Without CAP_SETPCAP it can only
/// keep the permitted ones; it gets its effective and ambient ones again afterwards.
pub(super) fn plan(plan: &mut StatePlan, tid: i32, want: &Credentials, now: &Credentials) {
    let reasons = impossible(want, now);
    if !reasons.is_empty() {
        plan.refused
            .extend(reasons.iter().map(|why| format!("thread {tid}: {why}")));
        return;
    }
    let has = now.capabilities;
    let to = want.capabilities;
    let ids_change = ids_differ(want, now);
    let rights_change = to != has || differing_securebits(want, now).is_some();
    if ids_change || rights_change {
        let unfixed = ids_change && may_unfix(now);
        let keeps = ids_change && !unfixed && gives_up_root(want, now);
        // Everything it has, for what follows.
        if has[EFFECTIVE] != has[PERMITTED] {
            capset(plan, tid, has[INHERITABLE], has[PERMITTED], has[PERMITTED]);
        }
        let mut bits_now = now.securebits;
        if let (true, Some(bits)) = (may(now, CAP_SETPCAP), now.securebits) {
            let raises = to[AMBIENT] & !has[AMBIENT] != 0;
            let ambient = if raises { bits & !NO_AMBIENT } else { bits };
            let working = if unfixed { ambient | NO_FIXUP } else { ambient };
            if working != bits {
                securebits(plan, tid, working);
                bits_now = Some(working);
            }
        }
        if keeps {
            // Asking for what is so already fails where it is locked.
            if bits_now.is_none_or(|bits| bits & KEEP_CAPS == 0) {
                keep_caps(plan, tid, true);
            }
            bits_now = bits_now.map(|bits| bits | KEEP_CAPS);
        }
        if ids_change {
            let again = !unfixed && has[PERMITTED] != 0;
            ids(plan, tid, want, now, again.then_some(has));
        }
        // Within the bounding set as it is: what leaves that can still be inherited (capabilities(7)).
        if to[INHERITABLE] != has[INHERITABLE] {
            capset(plan, tid, to[INHERITABLE], has[PERMITTED], has[PERMITTED]);
        }
        let ambient_now = if keeps { 0 } else { has[AMBIENT] };
        ambient(plan, tid, to[AMBIENT], ambient_now & to[INHERITABLE]);
        for bit in bits(has[BOUNDING] & !to[BOUNDING]) {
            let args = [libc::PR_CAPBSET_DROP as u64, bit, 0, 0, 0];
            plan.prctl(tid, "its bounding set", &args, true);
        }
        match (want.securebits.or(now.securebits), bits_now) {
            (Some(to), Some(now)) if to == now => {}
            (Some(to), Some(now)) if to ^ now == KEEP_CAPS => {
                keep_caps(plan, tid, to & KEEP_CAPS != 0);
            }
            (Some(to), _) => securebits(plan, tid, to),
            (None, _) if keeps => keep_caps(plan, tid, false),
            (None, _) => {}
        }
        let [inheritable, permitted, effective, ..] = to;
        capset(plan, tid, inheritable, permitted, effective);
    }
    if want.no_new_privs && !now.no_new_privs {
        let args = [libc::PR_SET_NO_NEW_PRIVS as u64, 1, 0, 0, 0];
        plan.prctl(tid, "no new privileges", &args, true);
    }
}

fn may(now: &Credentials, capability: u64) -> bool {
    now.capabilities[PERMITTED] & capability != 0
}

fn ids_differ(want: &Credentials, now: &Credentials) -> bool {
    (want.uids, want.gids, &want.groups) != (now.uids, now.gids, &now.groups)
}

/// It may have changes of ids leave its capabilities alone.
fn may_unfix(now: &Credentials) -> bool {
    let locked = |bits: u32| bits & NO_FIXUP == 0 && bits & NO_FIXUP << 1 != 0;
    may(now, CAP_SETPCAP) && now.securebits.is_some_and(|bits| !locked(bits))
}

/// One of its ids is root's and none will be: the kernel takes its capabilities.
fn gives_up_root(want: &Credentials, now: &Credentials) -> bool {
    let fixed = now.securebits.is_none_or(|bits| bits & NO_FIXUP == 0);
    fixed && now.uids[..3].contains(&0) && !want.uids[..3].contains(&0)
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
    let may = |capability: u64| may(now, capability);
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
    let inherited = want.capabilities[INHERITABLE] & !has[INHERITABLE];
    let within = match may(CAP_SETPCAP) {
        true => has[BOUNDING],
        false => has[PERMITTED],
    };
    if inherited & !within != 0 {
        reasons.push(format!(
            "it may not make capabilities ({:#x}) inheritable again",
            inherited & !within
        ));
    }
    if let Some((to, had)) = differing_securebits(want, now) {
        let locks = had & LOCKS;
        if locks & !to != 0 || locks >> 1 & (to ^ had) != 0 {
            reasons.push("its securebits have been locked for good".to_owned());
        } else if (to ^ had) & !KEEP_CAPS != 0 && !may(CAP_SETPCAP) {
            reasons.push("its securebits cannot be changed without CAP_SETPCAP".to_owned());
        }
    }
    let bits = now.securebits.unwrap_or(0);
    let is_locked = |bit: u32| bits & bit << 1 != 0;
    let kept = bits & KEEP_CAPS != 0 || !is_locked(KEEP_CAPS);
    if ids_differ(want, now)
        && !may_unfix(now)
        && gives_up_root(want, now)
        && want.capabilities[PERMITTED] != 0
        && !kept
    {
        reasons.push(
            "it would lose its capabilities with root's ids, and may not keep them (SECBIT_KEEP_CAPS_LOCKED)"
                .to_owned(),
        );
    }
    let raised = want.capabilities[AMBIENT] & !has[AMBIENT] != 0;
    if raised && bits & NO_AMBIENT != 0 && (is_locked(NO_AMBIENT) || !may(CAP_SETPCAP)) {
        reasons.push("it may not raise ambient capabilities again".to_owned());
    }
    reasons
}

/// `again`: the capabilities that it has to claim once its user ids are others.
fn ids(
    plan: &mut StatePlan,
    tid: i32,
    want: &Credentials,
    now: &Credentials,
    again: Option<[u64; 5]>,
) {
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
        if let Some(has) = again {
            capset(plan, tid, has[INHERITABLE], has[PERMITTED], has[PERMITTED]);
        }
        if want.uids[3] != want.uids[1] {
            let args = values(&want.uids[3..]);
            plan.call(tid, "its user id for files", libc::SYS_setfsuid, args);
            // The capabilities about files come and go with that id.
            if let Some(has) = again {
                capset(plan, tid, has[INHERITABLE], has[PERMITTED], has[PERMITTED]);
            }
        }
    }
}

fn ambient(plan: &mut StatePlan, tid: i32, to: u64, had: u64) {
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

fn keep_caps(plan: &mut StatePlan, tid: i32, on: bool) {
    let args = [libc::PR_SET_KEEPCAPS as u64, u64::from(on), 0, 0, 0];
    plan.prctl(tid, "keeping capabilities without root's ids", &args, true);
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
