//! Scalars of a process: `stat`, `status`, `auxv`, `cmdline`, links, its list of threads.

use super::{Result, SysError, bad, read};
use crate::model::{Auxv, MmFields};

/// Every process that /proc shows.
pub fn processes() -> Vec<i32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten();
    entries
        .filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok())
        .collect()
}

/// Threads of a process, the leader first.
pub fn threads(pid: i32) -> Result<Vec<i32>> {
    let path = format!("/proc/{pid}/task");
    let entries = std::fs::read_dir(&path).map_err(|e| SysError::new("open", &path, e))?;
    let mut tids: Vec<i32> = entries
        .filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    tids.sort_unstable_by_key(|&tid| (tid != pid, tid));
    Ok(tids)
}

/// How many threads a process has, those included that have ended and that nobody has waited for yet. Reading
/// `/proc/PID/task` may tell of fewer: it goes from thread to thread, and one that is gone by then leads nowhere.
pub fn thread_count(pid: i32) -> Result<usize> {
    // Field 20 of proc_pid_stat(5).
    Ok(stat(pid, None)?.field(20) as usize)
}

/// Some thread of the process lives and is not about to end.
pub fn is_alive(pid: i32) -> bool {
    let lives = |tid| stat(pid, Some(tid)).is_ok_and(|stat| !stat.is_exiting());
    let some_thread_lives = || threads(pid).is_ok_and(|tids| tids.into_iter().any(lives));
    // Twice: the only one that lives may take over the process's id between the listing and the look at
    // it (execve(2)), and is not found under its old one then.
    some_thread_lives() || some_thread_lives()
}

/// `/proc/PID/stat` or `/proc/PID/task/TID/stat` (`proc_pid_stat(5)`).
#[derive(Clone, Debug)]
pub struct Stat {
    /// Command name.
    pub comm: String,
    /// State letter.
    pub state: char,
    /// Parent.
    pub ppid: i32,
    /// `PF_*` flags of the task.
    pub flags: u64,
    /// Clock ticks since boot when it started.
    pub start_time: u64,
    fields: Vec<String>,
}

const PF_KTHREAD: u64 = 0x0020_0000;
const PF_EXITING: u64 = 0x0000_0004;

impl Stat {
    fn parse(text: &str) -> Option<Self> {
        let (head, rest) = text.rsplit_once(')')?;
        let (_, comm) = head.split_once('(')?;
        let fields: Vec<String> = rest.split_ascii_whitespace().map(str::to_owned).collect();
        let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
        Some(Self {
            comm: comm.to_owned(),
            state: fields.first()?.chars().next()?,
            ppid: number(4)? as i32,
            flags: number(9)?,
            start_time: number(22)?,
            fields,
        })
    }

    /// A field by its number in the manual page (3 and up); 0 where the kernel is too old to have it.
    pub fn field(&self, number: usize) -> u64 {
        self.fields
            .get(number - 3)
            .and_then(|f| f.parse().ok())
            .unwrap_or(0)
    }

    /// It has ended, or is on its way out: nothing can trace it any more.
    pub fn is_exiting(&self) -> bool {
        matches!(self.state, 'Z' | 'X') || self.flags & PF_EXITING != 0
    }

    /// A kernel thread: it has no memory of its own.
    pub fn is_kernel_thread(&self) -> bool {
        self.flags & PF_KTHREAD != 0
    }
}

/// Reads `/proc/PID/stat`; with `tid`, that of one thread.
pub fn stat(pid: i32, tid: Option<i32>) -> Result<Stat> {
    let path = match tid {
        Some(tid) => format!("/proc/{pid}/task/{tid}/stat"),
        None => format!("/proc/{pid}/stat"),
    };
    let text = read(path.clone())?;
    Stat::parse(&String::from_utf8_lossy(&text)).ok_or_else(|| bad(&path, "process state"))
}

/// CPU time that the process has used, all its threads and both modes together.
pub fn cpu_time_ns(pid: i32) -> Result<u64> {
    // The CPU clock of another process: clock_getcpuclockid(3) spells the id so.
    let clock = (!pid << 3) | 2;
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is a live structure that the call fills.
    if unsafe { libc::clock_gettime(clock, &mut time) } != 0 {
        return Err(SysError::last(
            "clock_gettime",
            format_args!("process {pid}"),
        ));
    }
    Ok(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
}

/// Time that processors had nothing to do since boot, all of them together, in nanoseconds
/// (`proc_stat(5)`, idle and iowait, in clock ticks).
pub fn idle_ns() -> Result<u64> {
    const PATH: &str = "/proc/stat";
    let text = std::fs::read_to_string(PATH).map_err(|e| SysError::new("read", PATH, e))?;
    // cpu user nice system idle iowait …
    let mut fields = text.split_whitespace().skip(4);
    let mut ticks = || fields.next().and_then(|f| f.parse::<u64>().ok());
    match (ticks(), ticks()) {
        (Some(idle), Some(iowait)) => Ok((idle + iowait) * TICK_NS),
        _ => Err(SysError::new(
            "read",
            PATH,
            std::io::Error::other("its first line has other fields"),
        )),
    }
}

/// Memory that can be had without swapping, in bytes (`proc_meminfo(5)`, `MemAvailable`).
pub fn available_memory() -> Result<u64> {
    const PATH: &str = "/proc/meminfo";
    let text = std::fs::read_to_string(PATH).map_err(|e| SysError::new("read", PATH, e))?;
    let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|l| l.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.map(|kib| kib << 10).ok_or_else(|| {
        let odd = std::io::Error::other("it has no line MemAvailable");
        SysError::new("read", PATH, odd)
    })
}

/// Length of a clock tick in /proc: USER_HZ is 100 on every architecture that ksnap runs on.
const TICK_NS: u64 = 10_000_000;

/// Lines of `/proc/PID/status` that are needed here.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// Who traces it; 0 for nobody.
    pub tracer: i32,
    /// Thread group.
    pub tgid: i32,
    /// Real, effective, saved, filesystem user id.
    pub uid: [u32; 4],
    /// Resident pages in bytes.
    pub rss: u64,
    /// Shadow stacks are on.
    pub shadow_stack: bool,
    /// Seccomp mode: 0 none, 1 strict, 2 filters.
    pub seccomp: u32,
}

/// Reads `/proc/PID/status` (`proc_pid_status(5)`).
pub fn status(pid: i32) -> Result<Status> {
    let text = read(format!("/proc/{pid}/status"))?;
    let text = String::from_utf8_lossy(&text);
    let mut status = Status::default();
    for line in text.lines() {
        let Some((key, value)) = line.split_once(':') else {
            continue;
        };
        let value = value.trim();
        let mut numbers = value
            .split_ascii_whitespace()
            .map_while(|w| w.parse::<u64>().ok());
        match key {
            "TracerPid" => status.tracer = numbers.next().unwrap_or(0) as i32,
            "Tgid" => status.tgid = numbers.next().unwrap_or(0) as i32,
            "Uid" => {
                for (slot, number) in status.uid.iter_mut().zip(numbers) {
                    *slot = number as u32;
                }
            }
            "VmRSS" => status.rss = numbers.next().unwrap_or(0) * 1024,
            "Seccomp" => status.seccomp = numbers.next().unwrap_or(0) as u32,
            "x86_Thread_features" => status.shadow_stack = value.contains("shstk"),
            _ => {}
        }
    }
    Ok(status)
}

/// Whether a process has a PID namespace other than ksnap's.
pub fn is_elsewhere(pid: i32) -> bool {
    let of = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/pid"));
    match (of(&pid.to_string()), of("self")) {
        (Ok(its), Ok(ours)) => its != ours,
        _ => false,
    }
}

/// The id of a thread in its own PID namespace (`NSpid` in proc_pid_status(5)).
pub fn own_id(pid: i32, tid: i32) -> Result<i32> {
    innermost(format!("/proc/{pid}/task/{tid}/status"), "NSpid:")
}

/// The process group of a process, as its own PID namespace numbers it (`NSpgid` in proc_pid_status(5)).
pub fn own_group(pid: i32) -> Result<i32> {
    innermost(format!("/proc/{pid}/status"), "NSpgid:")
}

/// The session of a process, numbered in the same way (`NSsid`).
pub fn own_session(pid: i32) -> Result<i32> {
    innermost(format!("/proc/{pid}/status"), "NSsid:")
}

/// The last of the ids on a line.
fn innermost(path: String, line: &str) -> Result<i32> {
    let text = read(path.clone())?;
    let text = String::from_utf8_lossy(&text);
    let ids = text.lines().find_map(|found| found.strip_prefix(line));
    ids.and_then(|ids| ids.split_ascii_whitespace().last()?.parse().ok())
        .ok_or_else(|| bad(&path, line))
}

/// Fields of the memory descriptor. The current break is not among those that /proc tells: the
/// caller fills it in.
pub fn mm_fields(stat: &Stat) -> MmFields {
    MmFields {
        start_code: stat.field(26),
        end_code: stat.field(27),
        start_stack: stat.field(28),
        start_data: stat.field(45),
        end_data: stat.field(46),
        start_brk: stat.field(47),
        brk: 0,
        arg_start: stat.field(48),
        arg_end: stat.field(49),
        env_start: stat.field(50),
        env_end: stat.field(51),
    }
}

/// The auxiliary vector without its closing null entry.
pub fn auxv(pid: i32) -> Result<Auxv> {
    let bytes = read(format!("/proc/{pid}/auxv"))?;
    let word = |b: &[u8]| u64::from_le_bytes(b.try_into().expect("eight bytes"));
    Ok(bytes
        .chunks_exact(16)
        .map(|pair| (word(&pair[..8]), word(&pair[8..])))
        .take_while(|pair| pair.0 != 0)
        .collect())
}

/// Arguments.
pub fn cmdline(pid: i32) -> Result<Vec<Vec<u8>>> {
    let bytes = read(format!("/proc/{pid}/cmdline"))?;
    let bytes = bytes.strip_suffix(b"\0").unwrap_or(&bytes);
    Ok(bytes.split(|&b| b == 0).map(<[u8]>::to_vec).collect())
}

/// Where a link of `/proc/PID` points (`exe`, `cwd`, `root`, `fd/N`, …).
pub fn link(pid: i32, name: &str) -> Result<String> {
    let path = format!("/proc/{pid}/{name}");
    let target = std::fs::read_link(&path).map_err(|e| SysError::new("readlink", path, e))?;
    Ok(target.to_string_lossy().into_owned())
}

/// Path of the executable.
pub fn exe(pid: i32) -> Result<String> {
    link(pid, "exe")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_name_may_hold_anything() {
        let mut line = "42 (a) b (c) S 7 1 1 0 -1 4194304".to_owned();
        for n in 10..=52 {
            line.push_str(&format!(" {n}"));
        }
        let stat = Stat::parse(&line).unwrap();
        assert_eq!(
            (stat.comm.as_str(), stat.state, stat.ppid),
            ("a) b (c", 'S', 7)
        );
        assert_eq!(
            (stat.start_time, stat.field(47), stat.field(99)),
            (22, 47, 0)
        );
    }

    #[test]
    fn this_process_is_readable() {
        let pid = std::process::id() as i32;
        assert_eq!(threads(pid).unwrap()[0], pid);
        assert!(thread_count(pid).unwrap() >= 1);
        assert!(status(pid).unwrap().rss > 0);
        assert!(mm_fields(&stat(pid, None).unwrap()).start_stack > 0);
        assert!(
            auxv(pid)
                .unwrap()
                .iter()
                .any(|(kind, value)| *kind == 6 && *value == 4096)
        );
        assert!(!cmdline(pid).unwrap()[0].is_empty());
        assert!(cpu_time_ns(pid).unwrap() > 0);
    }
}
