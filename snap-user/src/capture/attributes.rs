//! Attributes of a process and its threads, from wherever they can be had cheapest.
//!
//! What changes seldom is read before the stop, and not at each. Inside the stop the probes tell what
//! no file of /proc shows, and system calls about other threads tell how those are scheduled.

use super::asked::Asked;
use super::{CaptureError, Result};
use crate::model::{
    Observed, ObservedThread, ProcessAttributes, Seccomp, SeccompFilter, ThreadAttributes, Vma,
};
use crate::sys::proc::{self, Stat};
use crate::sys::ptrace::{self, Tid};
use crate::sys::{self, Frozen, monotonic_ns};
use std::collections::HashMap;

/// Threads whose files are read inside the stop.
const FEW: usize = 16;
/// How long what changes seldom is believed, in nanoseconds.
const FRESH: u64 = 1_000_000_000;

/// Attributes as read before the stop.
#[derive(Debug, Default)]
pub(super) struct Known {
    process: ProcessAttributes,
    /// When what changes seldom was read.
    read_ns: Option<u64>,
    /// What the process itself has told, where the probes do not tell.
    asked: Asked,
    /// What files tell of threads, where the probes do not and there are many.
    threads: HashMap<Tid, ThreadAttributes>,
    /// Filters of each thread, with their number.
    filters: HashMap<Tid, (u32, Vec<SeccompFilter>)>,
}

impl Known {
    /// Reads again what may have changed.
    pub fn refresh(&mut self, pid: i32, probes: bool, vmas: &[Vma]) -> Result<()> {
        let sys = |e| CaptureError::from_sys(pid, e);
        let now = monotonic_ns();
        if self.read_ns.is_none_or(|then| now - then > FRESH) {
            self.read_ns = Some(now);
            let process = &mut self.process;
            process.namespaces = proc::namespaces(pid).map_err(sys)?;
            for (kind, id) in sys::namespace_ids(pid) {
                process.set_namespace_id(kind, id);
            }
            let own = own_mounts();
            // Nearly all processes are in ksnap's own.
            if own != process.namespace("mnt") {
                let is_same = proc::see_same_mounts(pid, std::process::id() as i32);
                process.mounts_like(own.filter(|_| is_same.unwrap_or(false)));
            }
            // Reads its files once, and not in the stop.
            let _ = sys::clocks([0; 2]);
            process.time_offsets = match has_own_time(&process.namespaces) {
                true => proc::time_offsets(pid).ok(),
                false => None,
            };
            process.cgroup = proc::text(pid, "cgroup").unwrap_or_default();
            process.autogroup_nice = proc::autogroup_nice(pid);
            process.login_uid = proc::number(pid, "loginuid", 10).ok().map(|id| id as u32);
            process.security_label = proc::text(pid, "attr/current").ok().map(String::into_bytes);
            process.memory_merge = proc::text(pid, "ksm_stat")
                .ok()
                .filter(|text| text.contains("ksm_merge_any:"))
                .map(|text| text.contains("ksm_merge_any: yes"));
        }
        self.threads.clear();
        if !probes {
            self.asked.refresh(pid, vmas)?;
            // Of few threads, inside the stop.
            let tids = proc::threads(pid).map_err(sys)?;
            for tid in tids.into_iter().skip(FEW) {
                // It may be gone.
                if let Ok(thread) = by_files(pid, tid) {
                    self.threads.insert(tid, thread);
                }
            }
        }
        Ok(())
    }

    /// Has the stopped process tell what only it can: all of it, or what a short stop has time for.
    pub fn ask(&mut self, frozen: &Frozen, vmas: &[Vma], time: bool) {
        self.asked.now(frozen, vmas, time);
    }

    /// Attributes that all threads share. `leader` is one that lives.
    pub fn process(
        &self,
        pid: i32,
        leader: Tid,
        stat: &Stat,
        observed: Option<&Observed>,
        unsupported: &mut Vec<String>,
    ) -> ProcessAttributes {
        let known = &self.process;
        let mut process = match observed {
            Some(observed) => ProcessAttributes {
                namespaces: known.namespaces.clone(),
                time_offsets: known.time_offsets,
                cgroup: known.cgroup.clone(),
                autogroup_nice: known.autogroup_nice,
                login_uid: known.login_uid,
                security_label: known.security_label.clone(),
                memory_merge: known.memory_merge,
                ..observed.process.clone()
            },
            None => known.clone(),
        };
        if observed.is_none() {
            process.limits = sys::limits(pid).unwrap_or_default();
            process.oom_score_adj = proc::number(pid, "oom_score_adj", 10)
                .ok()
                .map(|n| n as i32);
            process.coredump_filter = proc::number(pid, "coredump_filter", 16)
                .ok()
                .map(|n| n as u32);
            self.asked.add_process(&mut process, unsupported);
        }
        // The file of a thread has the shared ones too.
        if let Ok(status) = proc::task_status(pid, leader) {
            process.umask = process.umask.or(status.umask);
            process.huge_pages_disabled = status.huge_pages.map(|on| u32::from(!on));
        }
        process.group = stat.field(5) as i32;
        process.session = stat.field(6) as i32;
        process.terminal = stat.field(7) as u32;
        process
    }

    /// Attributes of a stopped thread.
    pub fn thread(
        &mut self,
        pid: i32,
        tid: Tid,
        observed: Option<&ObservedThread>,
        unsupported: &mut Vec<String>,
    ) -> Result<ThreadAttributes> {
        let sys = |e| CaptureError::from_sys(pid, e);
        let (mut thread, filters) = match observed {
            Some(observed) => (observed.attributes.clone(), Some(observed.filters)),
            None => {
                let mut thread = match self.threads.get(&tid) {
                    Some(thread) => thread.clone(),
                    None => by_files(pid, tid).map_err(sys)?,
                };
                self.asked.add_thread(tid, &mut thread, unsupported);
                (thread, None)
            }
        };
        if observed.is_some_and(|o| o.more_groups)
            && let (Some(credentials), Ok(status)) =
                (&mut thread.credentials, proc::task_status(pid, tid))
        {
            credentials.groups = status.credentials.groups;
        }
        thread.scheduling = Some(sys::scheduling(tid).map_err(sys)?);
        thread.affinity = Some(sys::affinity(tid).map_err(sys)?);
        thread.io_priority = sys::io_priority(tid).ok();
        if thread.syscall_dispatch.is_none() {
            // Kernels that cannot tell are those that a tracer cannot set it for either.
            thread.syscall_dispatch = ptrace::syscall_dispatch(tid).ok();
        }
        if thread.seccomp.mode == 2 {
            thread.seccomp.filters = self.filters(tid, filters, unsupported);
        }
        Ok(thread)
    }

    /// The filters of a thread that has as many as given: filters come, and never go.
    fn filters(
        &mut self,
        tid: Tid,
        count: Option<u32>,
        unsupported: &mut Vec<String>,
    ) -> Option<Vec<SeccompFilter>> {
        if let (Some((known, filters)), Some(count)) = (self.filters.get(&tid), count)
            && *known == count
        {
            return Some(filters.clone());
        }
        match ptrace::seccomp_filters(tid) {
            Ok(filters) => {
                let count = count.unwrap_or(filters.len() as u32);
                self.filters.insert(tid, (count, filters.clone()));
                Some(filters)
            }
            Err(e) => {
                unsupported.push(format!(
                    "thread {tid}: its system call filters cannot be read ({e}); reading them takes CAP_SYS_ADMIN"
                ));
                None
            }
        }
    }
}

/// What files tell of a thread.
fn by_files(pid: i32, tid: Tid) -> sys::Result<ThreadAttributes> {
    let status = proc::task_status(pid, tid)?;
    let flags = proc::stat(pid, Some(tid))?.flags;
    Ok(ThreadAttributes {
        credentials: Some(status.credentials),
        personality: proc::number(pid, &format!("task/{tid}/personality"), 16)
            .ok()
            .map(|n| n as u32),
        // Not under `task`, but a thread has a folder of its own.
        timer_slack_ns: proc::number(tid, "timerslack_ns", 10)
            .ok()
            .map(|n| n as u64),
        seccomp: Seccomp {
            mode: status.seccomp,
            filters: (status.seccomp != 2).then(Vec::new),
        },
        speculation: status.speculation,
        io_flusher: proc::is_io_flusher(flags),
        machine_check_kill: proc::machine_check_kill(flags),
        shadow_stack: status.shadow_stack,
        ..ThreadAttributes::default()
    })
}

/// The mount namespace of this process.
fn own_mounts() -> Option<u64> {
    let namespaces = proc::namespaces(std::process::id() as i32).ok()?;
    let mut mounts = namespaces.into_iter().filter(|(kind, _)| kind == "mnt");
    mounts.next().map(|(_, inode)| inode)
}

/// The time namespace of a process with these is that of its children: of no other does the kernel tell the offsets.
pub(super) fn has_own_time(namespaces: &[(String, u64)]) -> bool {
    let of = |name| {
        let found = namespaces.iter().find(|(n, _)| n == name);
        found.map(|(_, id)| *id)
    };
    of("time") == of("time_for_children")
}
