//! `inspect`: what of a process can be brought back, before anything is taken of it.

use super::descriptor::OpenDescriptor;
use super::events::{Events, LazyProbes};
use super::show::{name, perms};
use super::{Result, SessionError, family};
use crate::capture::{
    CaptureError, Live, Verdict, frozen_state, mapping_verdict, preflight, terminal_verdict,
    verdict,
};
use crate::model::ProcessState;
use crate::sys::{Freeze, Frozen, proc};
use serde::Serialize;
use std::time::Duration;

/// How long a thread may take to stop.
const TIMEOUT: Duration = Duration::from_millis(500);

/// What can be brought back of a process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Inspection {
    /// The process.
    pub pid: i32,
    /// Its name.
    pub comm: String,
    /// Its executable.
    pub exe: String,
    /// Descriptors, ascending.
    pub descriptors: Vec<Judged<OpenDescriptor>>,
    /// Mappings that cannot be brought back whole, ascending.
    pub mappings: Vec<Judged<Place>>,
    /// All mappings, those included.
    pub mapped: usize,
    /// The controlling terminal, where it has one.
    pub terminal: Option<Judged<ControllingTerminal>>,
    /// Threads.
    pub threads: usize,
    /// What a snapshot could not save, a sentence each.
    pub unsupported: Vec<String>,
}

/// A thing and what can be brought back of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Judged<T> {
    /// The thing.
    #[serde(flatten)]
    pub what: T,
    /// What can be brought back.
    #[serde(flatten)]
    pub verdict: Verdict,
}

/// A controlling terminal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ControllingTerminal {
    /// Its path, or its device number.
    pub name: String,
}

/// A mapping.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Place {
    /// First byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
    /// As in `/proc/PID/maps`.
    pub perms: String,
    /// File, or name in brackets.
    pub name: String,
}

/// Looks at a process, which stops for a moment, and judges all that it holds.
pub fn inspect(pid: i32) -> Result<Inspection> {
    let state = look(pid, &LazyProbes::new(true))?;
    Ok(judge(&state, &state))
}

/// The same for a process and its descendants, one after the other: what they share comes back with all of them.
pub fn inspect_tree(pid: i32) -> Result<Vec<Inspection>> {
    let states = look_at_tree(pid, true)?;
    let all = ProcessState {
        files: states.iter().flat_map(|s| s.files.clone()).collect(),
        ..ProcessState::default()
    };
    Ok(states.iter().map(|state| judge(state, &all)).collect())
}

/// Judges what a process holds, as one of those that `all` has the open files of.
fn judge(state: &ProcessState, all: &ProcessState) -> Inspection {
    let judged = |(descriptor, file)| Judged {
        what: OpenDescriptor::new(descriptor, file),
        verdict: verdict(all, file),
    };
    let mappings = state
        .vmas
        .iter()
        .filter_map(|vma| match mapping_verdict(vma) {
            Verdict::Whole => None,
            verdict => Some(Judged {
                what: Place {
                    start: vma.range.start,
                    end: vma.range.end,
                    perms: perms(vma),
                    name: name(vma),
                },
                verdict,
            }),
        });
    Inspection {
        pid: state.pid,
        comm: state.comm.clone(),
        exe: state.exe.clone(),
        descriptors: state.open_files().map(judged).collect(),
        mappings: mappings.collect(),
        mapped: state.vmas.len(),
        terminal: terminal_verdict(state, all).map(|(name, verdict)| Judged {
            what: ControllingTerminal { name },
            verdict,
        }),
        threads: state.threads.len(),
        unsupported: state.unsupported.clone(),
    }
}

fn look_at_tree(pid: i32, probes: bool) -> Result<Vec<ProcessState>> {
    // Loaded once for all of them.
    let probes = LazyProbes::new(probes);
    let mut states = Vec::new();
    for member in family::look(pid)? {
        match look(member, &probes) {
            Ok(state) => states.push(state),
            // It has ended meanwhile.
            Err(_) if member != pid && !proc::is_alive(member) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(states)
}

/// The state of a process as a snapshot would have it.
fn look(pid: i32, probes: &LazyProbes) -> Result<ProcessState> {
    let failed = |e| CaptureError::from_sys(pid, e);
    let target = preflight(pid)?;
    let mut events = Events::new(pid, probes);
    let mut live = Live::read(pid, events.observes())?;
    let options = Freeze {
        timeout: TIMEOUT,
        ..Freeze::default()
    };
    let frozen = Frozen::freeze(pid, options).map_err(failed)?;
    let vmas = proc::maps(pid).map_err(failed)?;
    live.ask(&frozen, &vmas, false);
    let told = events.told(frozen.threads()[0]);
    let state = frozen_state(&frozen, &target, &mut live, &vmas, told)?;
    frozen.thaw();
    Ok(state)
}

/// For those who want all or nothing. `probes` may help to look.
///
/// # Errors
/// [`CaptureError::Refused`] with all that a snapshot of the process would lack.
pub fn refuse_incomplete(pid: i32, probes: bool) -> Result<()> {
    refuse(pid, look(pid, &LazyProbes::new(probes))?.unsupported)
}

/// The same for a process and all of its descendants.
///
/// # Errors
/// [`CaptureError::Refused`] with all that a snapshot of the tree would lack.
pub fn refuse_incomplete_tree(pid: i32, probes: bool) -> Result<()> {
    let states = look_at_tree(pid, probes)?;
    let lacking = states.into_iter().flat_map(|state| {
        let pid = state.pid;
        let named = move |what: String| format!("process {pid}: {what}");
        state.unsupported.into_iter().map(named)
    });
    refuse(pid, lacking.collect())
}

fn refuse(pid: i32, lacking: Vec<String>) -> Result<()> {
    match lacking.is_empty() {
        true => Ok(()),
        false => Err(SessionError::Capture(CaptureError::Refused {
            pid,
            why: format!(
                "with --strict, nothing may be lost, and this would be: {}",
                lacking.join("; ")
            ),
        })),
    }
}
