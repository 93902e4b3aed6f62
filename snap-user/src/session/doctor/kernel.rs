//! Trackers and probes.

use super::{About, Check};
use crate::probe::{FaultSource, ProbeError, ProbeOptions, Probes};
use crate::track::{Support, TrackerKind, support};

const WP: About = About {
    name: "tracker_wp",
    title: "tracker wp (userfaultfd write protection, PAGEMAP_SCAN)",
    used_for: "finding written pages in time proportional to their number",
    without: "soft-dirty or hash take its place, and stops grow with the size of the process",
    how: "Linux 6.7 or newer with CONFIG_USERFAULTFD; in a container, a seccomp profile that allows userfaultfd",
};
const SOFT_DIRTY: About = About {
    name: "tracker_soft_dirty",
    title: "tracker soft-dirty (clear_refs, pagemap)",
    used_for: "finding written pages where the wp tracker does not work",
    without: "nothing, where the wp tracker works; else the hash tracker takes its place",
    how: "a kernel with CONFIG_MEM_SOFT_DIRTY; x86-64 distribution kernels mostly have it",
};
const HASH: About = About {
    name: "tracker_hash",
    title: "tracker hash (content of every page)",
    used_for: "finding written pages where no other tracker works",
    without: "nothing can be captured where no other tracker works",
    how: "nothing to do: it needs no help from the kernel",
};
const PROBES: About = About {
    name: "probes",
    title: "eBPF probes",
    used_for: "the fault log (which pages, threads and instructions write), mapping changes as they happen, and narrower scans inside the stop",
    without: "every stop scans the whole process; who writes what is not known",
    how: "run as root, or with CAP_BPF and CAP_PERFMON, on a kernel with CONFIG_DEBUG_INFO_BTF (Linux 6.1 or newer is tested); a container needs the host's PID namespace",
};
const FENTRY: About = About {
    name: "probe_fentry",
    title: "faults seen in handle_mm_fault (fentry)",
    used_for: "seeing also the pages that the kernel writes through get_user_pages (O_DIRECT, io_uring)",
    without: "faults come from tracepoints; a stop after such a write scans everything",
    how: "a kernel that can attach fentry programs (CONFIG_FUNCTION_TRACER with direct calls); some virtual machines and hardened kernels cannot",
};
const STOP_TIMES: About = About {
    name: "probe_stop_times",
    title: "stop time as the scheduler sees it",
    used_for: "the stop time that the process itself sees, in the profile",
    without: "the stop is timed by ksnap's own clock alone",
    how: "Linux 5.18 or newer, with the probes",
};

/// The check of a tracker.
pub(super) fn tracker_name(kind: TrackerKind) -> &'static str {
    about(kind).name
}

fn about(kind: TrackerKind) -> About {
    match kind {
        TrackerKind::WriteProtect => WP,
        TrackerKind::SoftDirty => SOFT_DIRTY,
        TrackerKind::Hash => HASH,
    }
}

pub(super) fn trackers() -> impl Iterator<Item = Check> {
    TrackerKind::ALL
        .into_iter()
        .map(|kind| match support(kind) {
            Support::Yes => about(kind).yes("passed its self-test"),
            Support::No(why) => about(kind).no(why),
            Support::Unknown(why) => about(kind).unknown(why),
        })
}

/// The smallest ring that the loader makes: nothing is attached, so nothing is written to it.
const RING_BYTES: u32 = 4096;

pub(super) fn probes() -> Vec<Check> {
    let options = ProbeOptions {
        ring_bytes: RING_BYTES,
        ..ProbeOptions::default()
    };
    let probes = match Probes::load(&options) {
        Ok(probes) => probes,
        Err(error) => {
            let dependent = "it needs the probes";
            return vec![
                refused(PROBES, &error),
                FENTRY.no(dependent),
                STOP_TIMES.no(dependent),
            ];
        }
    };
    let source = match probes.fault_source() {
        FaultSource::HandleMmFault => "handle_mm_fault",
        FaultSource::Tracepoints => "the page fault tracepoints",
    };
    vec![
        PROBES.yes(format!("loaded; faults come from {source}")),
        fentry(&probes, options),
        match probes.times_stops() {
            true => STOP_TIMES.yes("the sched_switch program loads"),
            false => STOP_TIMES.no("the sched_switch program does not load"),
        },
    ]
}

fn fentry(probes: &Probes, options: ProbeOptions) -> Check {
    if probes.fault_source() == FaultSource::HandleMmFault {
        return FENTRY.yes("attaches");
    }
    let only = ProbeOptions {
        fault_source: Some(FaultSource::HandleMmFault),
        ..options
    };
    match Probes::load(&only) {
        Ok(_) => FENTRY.unknown("attached at the second attempt only"),
        Err(error) => refused(FENTRY, &error),
    }
}

fn refused(about: About, error: &ProbeError) -> Check {
    match error {
        ProbeError::BadBtf { .. }
        | ProbeError::BadObject { .. }
        | ProbeError::AbiMismatch { .. } => about.unknown(error.to_string()),
        _ => about.no(error.to_string()),
    }
}
