//! Everything but pages, read inside the stop.

use super::attributes::has_own_time;
use super::{CaptureError, Live, Result, Target, losses};
use crate::model::{
    Backing, Observed, ObservedThread, PendingSignal, ProcessState, Referent, ThreadState, Vma,
};
use crate::sys::ptrace::{self, Tid};
use crate::sys::{self, Frozen, arch, proc};
use std::collections::HashMap;

/// What others than this room know of a frozen process.
#[derive(Debug, Default)]
pub struct Told {
    /// Its program break.
    pub brk: Option<u64>,
    /// What the kernel itself knows of it, asked inside the stop.
    pub observed: Option<Observed>,
    /// What its descriptors refer to, asked inside the stop.
    pub open: Option<Vec<(i32, Referent)>>,
}

/// Reads the state of a frozen process. `vmas` are its mappings as read inside the stop.
pub fn frozen_state(
    frozen: &Frozen,
    target: &Target,
    live: &mut Live,
    vmas: &[Vma],
    told: Told,
) -> Result<ProcessState> {
    let mut state = bare_state(frozen, target, live, vmas, told)?;
    describe(&mut state, live);
    Ok(state)
}

/// As [`frozen_state`], but for what [`describe`] adds, of which nothing is read in the stop.
pub fn bare_state(
    frozen: &Frozen,
    target: &Target,
    live: &mut Live,
    vmas: &[Vma],
    told: Told,
) -> Result<ProcessState> {
    let pid = frozen.pid();
    let sys = |e| CaptureError::from_sys(pid, e);
    let stat = proc::stat(pid, None).map_err(sys)?;
    let mut mm = proc::mm_fields(&stat);
    mm.brk = current_brk(vmas, mm.start_brk, told.brk);

    let mut observed = told.observed;
    let mut unsupported = observed
        .as_mut()
        .map(|observed| std::mem::take(&mut observed.unsupported))
        .unwrap_or_default();
    let leader = frozen.threads()[0];
    let mut attributes =
        live.known
            .process(pid, leader, &stat, observed.as_ref(), &mut unsupported);
    attributes.memory = live.memory(vmas);
    attributes.root = proc::link(pid, "root").map_err(sys)?;
    let observed: HashMap<Tid, ObservedThread> = observed
        .into_iter()
        .flat_map(|observed| observed.threads)
        .map(|thread| (thread.tid, thread))
        .collect();
    let mut threads = Vec::with_capacity(frozen.threads().len());
    for (n, &tid) in frozen.threads().iter().enumerate() {
        threads.push(thread(
            pid,
            tid,
            n == 0,
            live,
            observed.get(&tid),
            &mut unsupported,
        )?);
    }
    let clocks = match has_own_time(&attributes.namespaces) {
        true => sys::clocks(attributes.time_offsets.unwrap_or_default()),
        false => {
            unsupported.push("its clocks: it has made a time namespace for its children, and the kernel tells the offsets of that alone".to_owned());
            None
        }
    };
    let (descriptors, files) = live.files.frozen(vmas, told.open.as_deref())?;
    unsupported.extend_from_slice(live.files.lost_connections());
    let mut state = ProcessState {
        pid,
        ppid: stat.ppid,
        start_time: stat.start_time,
        comm: stat.comm,
        exe: target.exe.clone(),
        cmdline: target.cmdline.clone(),
        cwd: proc::link(pid, "cwd").map_err(sys)?,
        threads,
        vmas: vmas.to_vec(),
        mm,
        auxv: live.auxv.clone(),
        descriptors,
        files,
        saved: Vec::new(),
        mapped: live.mapped.clone(),
        unsupported,
        attributes,
        clocks,
    };
    state.name_timer_threads();
    Ok(state)
}

/// Adds to the state what was known of the process before it was stopped, and names what cannot be saved of it.
pub fn describe(state: &mut ProcessState, live: &Live) {
    live.describe(&mut state.vmas);
    name_what_is_lost(&state.vmas, &mut state.unsupported);
    let lost = losses(state);
    state.unsupported.splice(0..0, lost);
}

/// The break to the byte where it is known and still fits the heap's mapping, else the end of that.
fn current_brk(vmas: &[Vma], start_brk: u64, known: Option<u64>) -> u64 {
    let end = vmas
        .iter()
        .filter(|v| v.backing == Backing::Heap)
        .map(|v| v.range.end)
        .max()
        .unwrap_or(start_brk);
    match known {
        Some(brk) if crate::model::page_up(brk) == end || end == start_brk => brk,
        _ => end,
    }
}

fn thread(
    pid: i32,
    tid: Tid,
    leader: bool,
    live: &mut Live,
    observed: Option<&ObservedThread>,
    unsupported: &mut Vec<String>,
) -> Result<ThreadState> {
    let sys = |e| CaptureError::from_sys(pid, e);
    let gp = ptrace::general(tid).map_err(sys)?;
    let Some(regs) = arch::Registers::from_prstatus(&gp) else {
        return Err(CaptureError::Refused {
            pid,
            why: format!("thread {tid} runs 32-bit code; only 64-bit programs are supported"),
        });
    };
    let mut pending = Vec::new();
    for shared in [false, true] {
        // The queue of the whole process is the same seen from each thread.
        if shared && !leader {
            continue;
        }
        if !shared && observed.is_some_and(|o| !o.pending) {
            continue;
        }
        for info in ptrace::pending(tid, shared).map_err(sys)? {
            let signo = i32::from_le_bytes(info[..4].try_into().expect("four bytes"));
            pending.push(PendingSignal {
                signo,
                shared,
                siginfo: info.to_vec(),
            });
        }
    }
    let rseq = observed.and_then(|o| o.rseq);
    let rseq = match rseq.map_or_else(|| ptrace::rseq(tid), Ok) {
        Ok(rseq) => rseq,
        Err(e) => {
            unsupported.push(format!(
                "thread {tid}: its restartable sequence is unknown ({e})"
            ));
            None
        }
    };
    let comm = match observed {
        Some(observed) => observed.comm.clone(),
        None => {
            let name = proc::text(pid, &format!("task/{tid}/comm")).unwrap_or_default();
            name.trim_end_matches('\n').to_owned()
        }
    };
    let continued = sys::continued_call(pid, tid, &regs);
    Ok(ThreadState {
        tid,
        own_tid: match live.is_elsewhere {
            true => proc::own_id(pid, tid).map_err(sys)?,
            false => tid,
        },
        comm,
        fp: ptrace::extended(tid).map_err(sys)?,
        sigmask: ptrace::sigmask(tid).map_err(sys)?,
        pending,
        rseq,
        robust_list: match observed {
            Some(observed) => observed.robust_list,
            None => ptrace::robust_list(tid).map_err(sys)?,
        },
        restart_syscall: continued.map(|call| call.nr),
        time_left_ns: continued
            .filter(|call| !call.is_guessed)
            .zip(observed)
            .and_then(|(call, o)| sys::time_left(call.nr, regs.arguments(), &o.deadlines)),
        attributes: live.known.thread(pid, tid, observed, unsupported)?,
        gp,
    })
}

fn name_what_is_lost(vmas: &[Vma], unsupported: &mut Vec<String>) {
    for vma in vmas {
        if vma.flags.iter().any(|f| f == "io" || f == "pf") && !vma.is_special() {
            unsupported.push(format!(
                "mapping {}: device memory is not captured",
                vma.range
            ));
        }
    }
}
