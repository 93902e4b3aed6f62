//! The programs in the object: which there are, what the kernel must have for each, loading one.

use super::error::ProbeError;
use super::offsets::Kernel;
use aya::programs::{BtfTracePoint, FEntry, Program, ProgramError};
use aya::sys::SyscallError;
use aya::{Btf, Ebpf};
use std::io;

/// Where write faults are seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultSource {
    /// `fentry/handle_mm_fault`: every fault, those taken by get_user_pages included.
    HandleMmFault,
    /// The `page_fault_user` and `page_fault_kernel` tracepoints: what the CPU takes itself.
    Tracepoints,
}

impl FaultSource {
    /// Its programs, by name.
    pub(super) fn programs(self) -> &'static [&'static str] {
        match self {
            Self::HandleMmFault => &[HANDLE_MM_FAULT],
            Self::Tracepoints => &["page_fault_user", "page_fault_kernel"],
        }
    }
}

/// The one program that is not on a tracepoint.
pub const HANDLE_MM_FAULT: &str = "handle_mm_fault";
/// Programs without which nothing can be tracked.
pub const LIFECYCLE: [&str; 5] = [
    "sched_process_fork",
    "sched_process_exec",
    "sched_process_exit",
    "sys_enter",
    "sys_exit",
];
/// Times ptrace stops.
pub const SCHED_SWITCH: &str = "sched_switch";
/// Sees get_user_pages by its lock.
pub const MM_LOCK: &str = "mmap_lock_start_locking";

/// Arguments a program reads from its tracepoint, at least.
fn arguments(name: &str) -> usize {
    match name {
        "sched_process_exit" => 1,
        "page_fault_user" | "page_fault_kernel" => 3,
        // Before 5.18 the state of the previous task was not passed.
        SCHED_SWITCH => 4,
        _ => 2,
    }
}

/// Checks that the kernel has what `name` attaches to.
pub fn check_hook(kernel: &Kernel, name: &str) -> Result<(), ProbeError> {
    let lacks = |detail: String| ProbeError::KernelLacks {
        what: format!("the hook {name}"),
        detail,
        remedy: "ksnap works without the probes, with full scans; a kernel of 6.1 or newer, built \
                 with CONFIG_FTRACE and CONFIG_DEBUG_INFO_BTF, has it",
    };
    if name == HANDLE_MM_FAULT {
        return match kernel.has_function(name)? {
            true => Ok(()),
            false => Err(lacks(
                "its type information has no such function".to_owned(),
            )),
        };
    }
    match kernel.tracepoint_args(name)? {
        None => Err(lacks(
            "its type information has no such tracepoint".to_owned(),
        )),
        Some(count) if count < arguments(name) => Err(lacks(format!(
            "the tracepoint passes {count} values, {} are needed",
            arguments(name)
        ))),
        Some(_) => Ok(()),
    }
}

/// Loads one program: the verifier's verdict.
pub fn load(ebpf: &mut Ebpf, name: &'static str, btf: &Btf) -> Result<(), ProbeError> {
    let refused = |error| from_program(error, "bpf(BPF_PROG_LOAD)", name);
    match program(ebpf, name)? {
        Program::BtfTracePoint(tracepoint) => tracepoint.load(name, btf).map_err(refused),
        Program::FEntry(entry) => entry.load(name, btf).map_err(refused),
        _ => Err(wrong_kind(name)),
    }
}

/// Attaches one program that was loaded. Nothing happens when it is attached.
pub fn attach(ebpf: &mut Ebpf, name: &'static str) -> Result<Link, ProbeError> {
    let refused = |error| from_program(error, "bpf(BPF_RAW_TRACEPOINT_OPEN)", name);
    match program(ebpf, name)? {
        Program::BtfTracePoint(tracepoint) => {
            let id = tracepoint.attach().map_err(refused)?;
            Ok(Link::Tracepoint(tracepoint.take_link(id).map_err(refused)?))
        }
        Program::FEntry(entry) => {
            let id = entry.attach().map_err(refused)?;
            Ok(Link::Entry(entry.take_link(id).map_err(refused)?))
        }
        _ => Err(wrong_kind(name)),
    }
}

/// A program that is attached for as long as this lives.
#[derive(Debug)]
#[expect(dead_code, reason = "held for their Drop, which detaches")]
pub enum Link {
    /// On a tracepoint.
    Tracepoint(<BtfTracePoint as LinkOf>::Link),
    /// At the entry of a function.
    Entry(<FEntry as LinkOf>::Link),
}

/// Names aya's link types.
pub trait LinkOf {
    /// What attaching gives.
    type Link: std::fmt::Debug;
}

impl LinkOf for BtfTracePoint {
    type Link = aya::programs::tp_btf::BtfTracePointLink;
}

impl LinkOf for FEntry {
    type Link = aya::programs::fentry::FEntryLink;
}

fn program<'e>(ebpf: &'e mut Ebpf, name: &str) -> Result<&'e mut Program, ProbeError> {
    ebpf.program_mut(name).ok_or_else(|| ProbeError::BadObject {
        detail: format!("it has no program {name}"),
    })
}

fn wrong_kind(name: &str) -> ProbeError {
    ProbeError::BadObject {
        detail: format!("its program {name} has an unexpected type"),
    }
}

/// Tells refusals from everything else, and cuts the verifier's log to its end.
pub(super) fn from_program(error: ProgramError, call: &'static str, name: &str) -> ProbeError {
    match error {
        // The verifier too says EACCES, and says why.
        ProgramError::LoadError {
            io_error,
            verifier_log,
        } if is_refusal(&io_error) && verifier_log.to_string().trim().is_empty() => {
            ProbeError::NotPermitted {
                call: format!("{call} for {name}"),
                source: io_error,
            }
        }
        ProgramError::SyscallError(SyscallError { io_error, .. }) if is_refusal(&io_error) => {
            ProbeError::NotPermitted {
                call: format!("{call} for {name}"),
                source: io_error,
            }
        }
        ProgramError::LoadError {
            io_error,
            verifier_log,
        } => {
            let log = verifier_log.to_string();
            let lines: Vec<&str> = log.lines().collect();
            let end = lines[lines.len().saturating_sub(VERIFIER_LINES)..].join("\n");
            let detail = if end.is_empty() {
                io_error.to_string()
            } else {
                format!("{io_error}; the verifier's last words:\n{end}")
            };
            ProbeError::Kernel {
                call,
                target: name.to_owned(),
                detail,
            }
        }
        other => ProbeError::Kernel {
            call,
            target: name.to_owned(),
            detail: chain(&other),
        },
    }
}

/// Lines of the verifier's log that go into a message.
const VERIFIER_LINES: usize = 8;

/// True for the two errors that mean "you may not".
pub fn is_refusal(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES))
}

/// An error with its causes in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.ends_with(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        cause = inner.source();
    }
    text
}
