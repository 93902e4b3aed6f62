//! What /proc tells of a process besides memory and descriptors: ids, namespaces, and the like.

use super::{Result, SysError, bad, link, read};
use crate::model::{Credentials, MemoryPolicy, PosixTimer};
use std::collections::HashMap;

/// What `/proc/PID/task/TID/status` (`proc_pid_status(5)`) says of a thread's attributes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TaskStatus {
    /// Mode bits that new files do not get.
    pub umask: Option<u32>,
    /// Transparent huge pages are not forbidden to the process.
    pub huge_pages: Option<bool>,
    /// Ids and capabilities. The file does not have the securebits.
    pub credentials: Credentials,
    /// Seccomp mode.
    pub seccomp: u32,
    /// Number of filters (Linux 5.9).
    pub filters: u32,
    /// Speculation by store bypass and by indirect branches, in the terms of prctl(2).
    pub speculation: [Option<u32>; 2],
    /// Shadow stack.
    pub shadow_stack: bool,
    /// Signals that are ignored, and those that have a handler.
    pub dispositions: [u64; 2],
    /// Signals that wait, for the thread or for its process.
    pub pending: u64,
    /// Ids of the process and of the thread in their own namespace.
    pub own_ids: [i32; 2],
}

/// Reads the status of a thread.
pub fn task_status(pid: i32, tid: i32) -> Result<TaskStatus> {
    let path = format!("/proc/{pid}/task/{tid}/status");
    let text = read(path.clone())?;
    parse(&String::from_utf8_lossy(&text)).ok_or_else(|| bad(&path, "ids and capabilities"))
}

fn parse(text: &str) -> Option<TaskStatus> {
    let mut status = TaskStatus::default();
    let mut has_ids = false;
    let four = |value: &str| -> Option<[u32; 4]> {
        let mut words = value.split_ascii_whitespace().map(str::parse);
        let mut next = || words.next()?.ok();
        Some([next()?, next()?, next()?, next()?])
    };
    let hex = |value: &str| u64::from_str_radix(value, 16).ok();
    for line in text.lines() {
        let Some((key, value)) = line.split_once(':') else {
            continue;
        };
        let value = value.trim();
        let credentials = &mut status.credentials;
        match key {
            "Umask" => status.umask = u32::from_str_radix(value, 8).ok(),
            "THP_enabled" => status.huge_pages = Some(value == "1"),
            "Uid" => {
                credentials.uids = four(value)?;
                has_ids = true;
            }
            "Gid" => credentials.gids = four(value)?,
            "Groups" => {
                credentials.groups = value
                    .split_ascii_whitespace()
                    .map_while(|word| word.parse().ok())
                    .collect();
            }
            "CapInh" => credentials.capabilities[0] = hex(value)?,
            "CapPrm" => credentials.capabilities[1] = hex(value)?,
            "CapEff" => credentials.capabilities[2] = hex(value)?,
            "CapBnd" => credentials.capabilities[3] = hex(value)?,
            "CapAmb" => credentials.capabilities[4] = hex(value)?,
            "NoNewPrivs" => credentials.no_new_privs = value == "1",
            "Seccomp" => status.seccomp = value.parse().ok()?,
            "Seccomp_filters" => status.filters = value.parse().ok()?,
            "SigPnd" | "ShdPnd" => status.pending |= hex(value)?,
            "NStgid" => status.own_ids[0] = innermost(value)?,
            "NSpid" => status.own_ids[1] = innermost(value)?,
            "SigIgn" => status.dispositions[0] = hex(value)?,
            "SigCgt" => status.dispositions[1] = hex(value)?,
            "Speculation_Store_Bypass" => status.speculation[0] = Some(speculation(value)),
            "SpeculationIndirectBranch" => status.speculation[1] = Some(speculation(value)),
            "x86_Thread_features" => status.shadow_stack = value.contains("shstk"),
            _ => {}
        }
    }
    has_ids.then_some(status)
}

/// The last of the ids in nested namespaces.
fn innermost(value: &str) -> Option<i32> {
    value.split_ascii_whitespace().last()?.parse().ok()
}

/// The words of fs/proc/array.c. What a thread has not chosen itself counts as enabled.
fn speculation(words: &str) -> u32 {
    match words {
        "thread force mitigated" | "conditional force disabled" => libc::PR_SPEC_FORCE_DISABLE,
        "thread mitigated" | "conditional disabled" => libc::PR_SPEC_DISABLE,
        _ => libc::PR_SPEC_ENABLE,
    }
}

/// `PF_*` in the flags of a task's `stat` (include/linux/sched.h).
const PF_MCE_PROCESS: u64 = 0x80;
const PF_IO_FLUSHER: u64 = 0x0018_0000;
const PF_MCE_EARLY: u64 = 0x0800_0000;

/// `PR_GET_IO_FLUSHER` by the flags of a task.
pub fn is_io_flusher(flags: u64) -> bool {
    flags & PF_IO_FLUSHER == PF_IO_FLUSHER
}

/// `PR_MCE_KILL_GET` by the flags of a task.
pub fn machine_check_kill(flags: u64) -> u32 {
    match (flags & PF_MCE_PROCESS != 0, flags & PF_MCE_EARLY != 0) {
        (false, _) => libc::PR_MCE_KILL_DEFAULT as u32,
        (true, true) => libc::PR_MCE_KILL_EARLY as u32,
        (true, false) => libc::PR_MCE_KILL_LATE as u32,
    }
}

/// A file of `/proc/PID` that holds one number: in the base given, with or without `0x`.
pub fn number(pid: i32, name: &str, base: u32) -> Result<i64> {
    let path = format!("/proc/{pid}/{name}");
    let text = read(path.clone())?;
    let text = String::from_utf8_lossy(&text);
    let digits = text.trim();
    let digits = digits.strip_prefix("0x").unwrap_or(digits);
    i64::from_str_radix(digits, base).map_err(|_| bad(&path, "number"))
}

/// A file of `/proc/PID` as text.
pub fn text(pid: i32, name: &str) -> Result<String> {
    let bytes = read(format!("/proc/{pid}/{name}"))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Writes a file of `/proc/PID`.
pub fn write(pid: i32, name: &str, content: &str) -> Result<()> {
    let path = format!("/proc/{pid}/{name}");
    std::fs::write(&path, content).map_err(|e| SysError::new("write", path, e))
}

/// The namespaces that a process is in: each by name, with its inode number.
pub fn namespaces(pid: i32) -> Result<Vec<(String, u64)>> {
    let path = format!("/proc/{pid}/ns");
    let entries = std::fs::read_dir(&path).map_err(|e| SysError::new("open", &path, e))?;
    let mut found: Vec<(String, u64)> = entries
        .filter_map(|entry| {
            let name = entry.ok()?.file_name().into_string().ok()?;
            let target = link(pid, &format!("ns/{name}")).ok()?;
            let inode = target.split_once('[')?.1.strip_suffix(']')?;
            Some((name, inode.parse().ok()?))
        })
        .collect();
    found.sort_unstable();
    Ok(found)
}

/// Offsets of the monotonic and boot time of a process's children, in nanoseconds (`time_namespaces(7)`): its own, unless it has made
/// another time namespace for them.
pub fn time_offsets(pid: i32) -> Result<[i64; 2]> {
    let path = format!("/proc/{pid}/timens_offsets");
    let text = read(path.clone())?;
    let text = String::from_utf8_lossy(&text);
    let of = |clock: &str| {
        let mut words = text
            .lines()
            .find_map(|l| l.strip_prefix(clock))?
            .split_ascii_whitespace();
        let mut next = || words.next()?.parse::<i64>().ok();
        Some(next()? * 1_000_000_000 + next()?)
    };
    match (of("monotonic"), of("boottime")) {
        (Some(monotonic), Some(boot)) => Ok([monotonic, boot]),
        _ => Err(bad(&path, "offsets")),
    }
}

/// The POSIX timers of a process (`proc_pid_timers(5)`), ascending by id. The file does not tell what they
/// are set to, nor whose CPU time they count.
pub fn timers(pid: i32) -> Result<Vec<PosixTimer>> {
    let path = format!("/proc/{pid}/timers");
    let bytes = read(path.clone())?;
    let text = String::from_utf8_lossy(&bytes);
    let mut timers: Vec<PosixTimer> = Vec::new();
    for line in text.lines() {
        let Some((key, value)) = line.split_once(": ") else {
            continue;
        };
        if key == "ID" {
            timers.push(PosixTimer {
                id: value.trim().parse().map_err(|_| bad(&path, "id"))?,
                ..PosixTimer::default()
            });
            continue;
        }
        let timer = timers.last_mut().ok_or_else(|| bad(&path, "id"))?;
        let known = match key {
            "signal" => value.split_once('/').and_then(|(signo, value)| {
                timer.signo = signo.parse().ok()?;
                timer.value = u64::from_str_radix(value, 16).ok()?;
                Some(())
            }),
            "notify" => value.split_once('/').and_then(|(way, target)| {
                timer.notify = match way {
                    "signal" => libc::SIGEV_SIGNAL,
                    "none" => libc::SIGEV_NONE,
                    "thread" => libc::SIGEV_THREAD,
                    _ => return None,
                };
                let (what, id) = target.split_once('.')?;
                if what == "tid" {
                    timer.notify |= libc::SIGEV_THREAD_ID;
                    timer.thread = Some(id.parse().ok()?);
                }
                Some(())
            }),
            "ClockID" => value.trim().parse().ok().map(|clock| timer.clock = clock),
            _ => Some(()),
        };
        known.ok_or_else(|| bad(&path, "timer that can be understood"))?;
    }
    timers.sort_unstable_by_key(|timer| timer.id);
    Ok(timers)
}

/// Niceness of the autogroup that a process is in; `None` where there are none.
pub fn autogroup_nice(pid: i32) -> Option<i32> {
    let text = text(pid, "autogroup").ok()?;
    text.trim().rsplit_once(" nice ")?.1.parse().ok()
}

/// Policies of mappings by their first address (`/proc/PID/numa_maps`, `numa(7)`): those that are
/// not the default. Walks page tables: never inside the stop.
pub fn memory_policies(pid: i32) -> Result<HashMap<u64, MemoryPolicy>> {
    Ok(text(pid, "numa_maps")?
        .lines()
        .filter_map(mapping_policy)
        .collect())
}

fn mapping_policy(line: &str) -> Option<(u64, MemoryPolicy)> {
    let mut words = line.split_ascii_whitespace();
    let start = u64::from_str_radix(words.next()?, 16).ok()?;
    let policy = policy(words.next()?)?;
    (policy != MemoryPolicy::default()).then_some((start, policy))
}

/// `bind:0-1,3`, `prefer=static:2`, `default`, … (mpol_to_str in mm/mempolicy.c).
fn policy(text: &str) -> Option<MemoryPolicy> {
    let (head, nodes) = text.split_once(':').unwrap_or((text, ""));
    let (name, flags) = head.split_once('=').unwrap_or((head, ""));
    let mode = [
        "default",
        "prefer",
        "bind",
        "interleave",
        "local",
        "prefer (many)",
        "weighted interleave",
    ]
    .iter()
    .position(|known| *known == name)?;
    // MPOL_F_STATIC_NODES, MPOL_F_RELATIVE_NODES, MPOL_F_NUMA_BALANCING.
    let flags = flags.split('|').fold(0, |bits, flag| {
        bits | match flag {
            "static" => 1 << 15,
            "relative" => 1 << 14,
            "balancing" => 1 << 13,
            _ => 0,
        }
    });
    let mut words = Vec::new();
    for part in nodes.split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        for node in first.parse::<usize>().ok()?..=last.parse::<usize>().ok()? {
            if node >= 1024 {
                return None;
            }
            words.resize(words.len().max(node / 64 + 1), 0u64);
            words[node / 64] |= 1 << (node % 64);
        }
    }
    Some(MemoryPolicy {
        mode: mode as u32 | flags,
        nodes: words,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_ids_and_namespaces() {
        let pid = std::process::id() as i32;
        let status = task_status(pid, pid).unwrap();
        assert_eq!(status.credentials.uids[1], nix::unistd::geteuid().as_raw());
        assert_eq!(status.umask, Some(number_of_umask()));
        assert!(
            namespaces(pid)
                .unwrap()
                .iter()
                .any(|(name, _)| name == "pid")
        );
        assert!(number(pid, "coredump_filter", 16).unwrap() > 0);
        assert!(number(pid, "oom_score_adj", 10).is_ok());
    }

    fn number_of_umask() -> u32 {
        let text = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = text.lines().find_map(|l| l.strip_prefix("Umask:")).unwrap();
        u32::from_str_radix(line.trim(), 8).unwrap()
    }

    #[test]
    fn a_status_without_ids_is_refused() {
        assert_eq!(parse("Name:\tx\nUmask:\t0022\n"), None);
        let whole = "Uid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nGroups:\t9 10 \nCapEff:\t3f\nNoNewPrivs:\t1\n\
                     Speculation_Store_Bypass:\tthread force mitigated\n";
        let status = parse(whole).unwrap();
        assert_eq!(status.credentials.uids, [1, 2, 3, 4]);
        assert_eq!(status.credentials.groups, [9, 10]);
        assert_eq!(status.credentials.capabilities[2], 0x3f);
        assert!(status.credentials.no_new_privs);
        assert_eq!(status.speculation, [Some(8), None]);
    }

    #[test]
    fn memory_policies_of_every_form() {
        let of = |text| policy(text).unwrap();
        assert_eq!(of("default"), MemoryPolicy::default());
        assert_eq!(of("bind:0-1,65").nodes, [3, 2]);
        assert_eq!(of("bind:0-1,65").mode, 2);
        assert_eq!(of("prefer=static:2").mode, 1 | 1 << 15);
        assert_eq!(of("interleave=relative|balancing:0").mode, 3 | 3 << 13);
        assert_eq!(of("local").mode, 4);
        assert_eq!(policy("unheard of:0"), None);
        assert_eq!(
            mapping_policy("7f00 bind:0 anon=1 dirty=1 N0=1"),
            Some((0x7f00, of("bind:0")))
        );
        assert_eq!(mapping_policy("7f00 default anon=1"), None);
    }
}
