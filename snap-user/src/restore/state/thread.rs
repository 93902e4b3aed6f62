//! What each thread has of its own.

use super::credentials;
use super::plan::{Action, Arg, StatePlan, nodes};
use super::process::differ;
use crate::model::{AltStack, Scheduling, SeccompFilter, ThreadState};

const ARCH_SET_CPUID: u64 = 0x1012;
const PR_SET_IO_FLUSHER: u64 = 57;
const SECCOMP_SET_MODE_FILTER: u64 = 1;
/// Flags of `sched_setattr(2)`: set these clamps.
const UTIL_CLAMP: u64 = 0x20 | 0x40;
const SS_DISABLE: u32 = 2;

/// What a thread may do with the privileges that it has now.
pub(super) fn before_credentials(plan: &mut StatePlan, want: &ThreadState, now: &ThreadState) {
    let tid = want.tid;
    let (attributes, had) = (&want.attributes, &now.attributes);
    if let Some((to, _)) = differ(&attributes.scheduling, &had.scheduling) {
        plan.attempt(tid, "its scheduling", Action::Schedule(settable(to)));
    }
    if let Some((to, _)) = differ(&attributes.affinity, &had.affinity) {
        plan.attempt(tid, "its processors", Action::Affinity(to.clone()));
    }
    if let Some((to, _)) = differ(&attributes.io_priority, &had.io_priority) {
        plan.attempt(tid, "its I/O priority", Action::IoPriority(*to));
    }
    if let Some((to, _)) = differ(&attributes.timer_slack_ns, &had.timer_slack_ns) {
        let args = [libc::PR_SET_TIMERSLACK as u64, *to];
        plan.prctl(tid, "its timer slack", &args, false);
    }
    if let Some((to, _)) = differ(&attributes.personality, &had.personality) {
        let args = vec![Arg::Value((*to).into())];
        plan.call(tid, "its personality", libc::SYS_personality, args);
    }
    if let Some((to, _)) = differ(&attributes.alt_stack, &had.alt_stack) {
        let args = vec![Arg::Bytes(stack(to)), Arg::Value(0)];
        plan.call(tid, "its alternate stack", libc::SYS_sigaltstack, args);
    }
    if let Some(address) = attributes.clear_child_tid
        && had.clear_child_tid != Some(address)
    {
        let args = vec![Arg::Value(address)];
        plan.call(
            tid,
            "where its id is cleared",
            libc::SYS_set_tid_address,
            args,
        );
    }
    if want.comm != now.comm {
        let name = [want.comm.as_bytes(), b"\0"].concat();
        let args = vec![Arg::Value(libc::PR_SET_NAME as u64), Arg::Bytes(name)];
        plan.attempt(tid, "its name", Action::Call(libc::SYS_prctl, args));
    }
    if attributes.machine_check_kill != had.machine_check_kill {
        let args = [
            libc::PR_MCE_KILL as u64,
            libc::PR_MCE_KILL_SET as u64,
            attributes.machine_check_kill.into(),
            0,
            0,
        ];
        plan.prctl(tid, "what a memory error does", &args, false);
    }
    if attributes.io_flusher != had.io_flusher {
        let args = [PR_SET_IO_FLUSHER, u64::from(attributes.io_flusher), 0, 0, 0];
        plan.prctl(tid, "being an I/O flusher", &args, false);
    }
    if let Some((to, _)) = differ(&attributes.memory_policy, &had.memory_policy) {
        let mut args = vec![Arg::Value(to.mode.into())];
        args.extend(nodes(&to.nodes));
        let action = Action::Call(libc::SYS_set_mempolicy, args);
        plan.attempt(tid, "its memory policy", action);
    }
    if let Some((faults, _)) = differ(&attributes.tsc_faults, &had.tsc_faults) {
        let mode = match faults {
            true => libc::PR_TSC_SIGSEGV,
            false => libc::PR_TSC_ENABLE,
        };
        let args = [libc::PR_SET_TSC as u64, mode as u64, 0, 0, 0];
        plan.prctl(tid, "reading the time stamp counter", &args, true);
    }
    if let Some((faults, _)) = differ(&attributes.cpuid_faults, &had.cpuid_faults) {
        let args = vec![Arg::Value(ARCH_SET_CPUID), Arg::Value(u64::from(!faults))];
        let action = Action::Call(libc::SYS_arch_prctl, args);
        plan.attempt(tid, "use of the CPUID instruction", action);
    }
    for (kind, (to, had)) in attributes
        .speculation
        .iter()
        .zip(&had.speculation)
        .enumerate()
    {
        if let Some((to, had)) = differ(to, had) {
            match *had == libc::PR_SPEC_FORCE_DISABLE {
                true => plan.refused.push(format!(
                    "thread {tid} has forgone speculation for good (PR_SPEC_FORCE_DISABLE)"
                )),
                false => {
                    let args = [
                        libc::PR_SET_SPECULATION_CTRL as u64,
                        kind as u64,
                        (*to).into(),
                        0,
                        0,
                    ];
                    plan.prctl(tid, "its speculation", &args, false);
                }
            }
        }
    }
    if attributes.shadow_stack != had.shadow_stack {
        plan.refused.push(format!(
            "thread {tid} has turned its shadow stack on or off"
        ));
    }
}

/// The attributes as `sched_setattr(2)` takes them.
fn settable(to: &Scheduling) -> Scheduling {
    let clamped = !matches!((to.util_min, to.util_max), (0, 0) | (0, 1024));
    Scheduling {
        flags: to.flags | if clamped { UTIL_CLAMP } else { 0 },
        ..*to
    }
}

/// `stack_t`: address, flags, length.
fn stack(to: &AltStack) -> Vec<u8> {
    let flags = match to.size {
        0 => SS_DISABLE,
        _ => to.flags,
    };
    let mut bytes = to.sp.to_ne_bytes().to_vec();
    bytes.extend(u64::from(flags).to_ne_bytes());
    bytes.extend(to.size.to_ne_bytes());
    bytes
}

/// Filters while the thread may still install them, then its ids and capabilities.
pub(super) fn credentials(plan: &mut StatePlan, want: &ThreadState, now: &ThreadState) {
    let tid = want.tid;
    filters(plan, want, now);
    if let Some((to, had)) = differ(&want.attributes.credentials, &now.attributes.credentials) {
        credentials::plan(plan, tid, to, had);
    }
}

fn filters(plan: &mut StatePlan, want: &ThreadState, now: &ThreadState) {
    let tid = want.tid;
    let (want, now) = (&want.attributes, &now.attributes);
    if want.seccomp == now.seccomp {
        return;
    }
    let (Some(wanted), Some(had)) = (&want.seccomp.filters, &now.seccomp.filters) else {
        if want.seccomp.mode != now.seccomp.mode {
            plan.refused.push(format!(
                "thread {tid} was in seccomp mode {} and is in mode {}",
                want.seccomp.mode, now.seccomp.mode
            ));
        }
        return;
    };
    let Some(missing) = wanted
        .strip_prefix(had.as_slice())
        .filter(|_| now.seccomp.mode != 1)
    else {
        plan.refused.push(format!(
            "thread {tid} has installed system call filters since (seccomp), which cannot be removed"
        ));
        return;
    };
    let privileged = want.credentials.as_ref().is_some_and(|c| c.no_new_privs);
    if privileged && !now.credentials.as_ref().is_some_and(|c| c.no_new_privs) {
        let args = [libc::PR_SET_NO_NEW_PRIVS as u64, 1, 0, 0, 0];
        plan.prctl(tid, "no new privileges", &args, true);
    }
    for filter in missing {
        let args = vec![
            Arg::Value(SECCOMP_SET_MODE_FILTER),
            Arg::Value(filter.flags),
            program(filter),
        ];
        plan.call(tid, "a system call filter", libc::SYS_seccomp, args);
    }
    if want.seccomp.mode == 1 {
        // Takes every other call away; a tracer that may suspends it meanwhile.
        let args = [libc::PR_SET_SECCOMP as u64, 1, 0, 0, 0];
        plan.prctl(tid, "strict seccomp", &args, true);
    }
}

/// `struct sock_fprog` and the program behind it.
fn program(filter: &SeccompFilter) -> Arg {
    const HEAD: usize = 16;
    let mut bytes = vec![0; HEAD];
    bytes[..2].copy_from_slice(&((filter.program.len() / 8) as u16).to_ne_bytes());
    bytes.extend_from_slice(&filter.program);
    Arg::Pointing {
        bytes,
        pointer_at: 8,
        to: HEAD,
    }
}

/// The plan changes the thread's credentials: ones that are not known stay as they are.
pub(super) fn changes_credentials(want: &ThreadState, now: &ThreadState) -> bool {
    match (&want.attributes.credentials, &now.attributes.credentials) {
        (Some(want), Some(now)) => want != now,
        _ => false,
    }
}

/// What a change of credentials undoes, and what only a tracer sets.
pub(super) fn after_credentials(plan: &mut StatePlan, want: &ThreadState, now: &ThreadState) {
    let tid = want.tid;
    let changed = changes_credentials(want, now);
    if let Some(signal) = want.attributes.parent_death_signal
        && (changed || now.attributes.parent_death_signal != Some(signal))
    {
        let args = [libc::PR_SET_PDEATHSIG as u64, signal as u64];
        plan.prctl(tid, "the signal at its parent's end", &args, true);
    }
    let (to, had) = (
        want.attributes.syscall_dispatch,
        now.attributes.syscall_dispatch,
    );
    if let Some((to, _)) = differ(&to, &had) {
        let action = Action::Dispatch(*to);
        plan.step(tid, "dispatch of its system calls", action, true);
    }
}
