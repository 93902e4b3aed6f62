//! Trackers and probes.

use super::{About, Check};
use crate::probe::{Outcome, features};
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

/// Stable names for the features of the probes, which have names for people only.
const PROBE_NAMES: [(&str, &str); 8] = [
    ("kernel type information (BTF)", "probe_btf"),
    ("kernel struct fields", "probe_fields"),
    ("eBPF programs on tracepoints", "probes"),
    ("fentry on handle_mm_fault", "probe_fentry"),
    ("mmap_lock tracepoint", "probe_page_lock"),
    ("sched_switch with task state", "probe_stop_times"),
    ("owner of an address space", "probe_mm_owner"),
    ("run-time statistics of programs", "probe_statistics"),
];

fn stable_name(feature: &str) -> &'static str {
    PROBE_NAMES
        .iter()
        .find(|(name, _)| *name == feature)
        .map_or("probe_other", |(_, stable)| stable)
}

pub(super) fn probes() -> impl Iterator<Item = Check> {
    features().into_iter().map(|feature| {
        let about = About {
            name: stable_name(feature.name),
            title: feature.name,
            used_for: feature.used_for,
            without: feature.without,
            how: feature.how_to_get,
        };
        match feature.outcome {
            Outcome::Supported => about.yes("works"),
            Outcome::Unsupported(why) => about.no(why),
            Outcome::Unknown(why) => about.unknown(why),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_feature_of_the_probes_has_a_stable_name() {
        for feature in features() {
            assert_ne!(stable_name(feature.name), "probe_other", "{}", feature.name);
        }
    }
}
