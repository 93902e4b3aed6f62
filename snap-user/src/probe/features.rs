//! What of the probes this kernel offers to this user, for `ksnap doctor`.

use super::error::ProbeError;
use super::load::{self, Loaded, ProbeOptions};
use super::offsets::Kernel;
use super::probes::Probes;
use super::programs::FaultSource;

/// Whether something is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Tried, and it works.
    Supported,
    /// Tried, and it does not: why.
    Unsupported(String),
    /// Could not be tried: why.
    Unknown(String),
}

impl Outcome {
    /// True for [`Self::Supported`].
    pub fn is_supported(&self) -> bool {
        *self == Self::Supported
    }
}

/// One thing that the probes use.
#[derive(Clone, Debug)]
pub struct Feature {
    /// Its name.
    pub name: &'static str,
    /// Whether it is there.
    pub outcome: Outcome,
    /// What ksnap does with it.
    pub used_for: &'static str,
    /// What happens without it.
    pub without: &'static str,
    /// How to get it.
    pub how_to_get: &'static str,
}

const ROOT: &str = "run as root, or with CAP_BPF and CAP_PERFMON";
const SCANS: &str = "no fault log: every stop scans all of the target's memory";

/// Tries each feature. Loads the programs, attaches some for an instant, and leaves nothing behind.
pub fn features() -> Vec<Feature> {
    let kernel = Kernel::read();
    let loaded = load::load(&ProbeOptions {
        ring_bytes: 4096,
        ..ProbeOptions::default()
    });
    let mut features = vec![
        Feature {
            name: "kernel type information (BTF)",
            outcome: of(kernel.as_ref()),
            used_for: "finding the kernel's fields; one program object for all kernels",
            without: SCANS,
            how_to_get: "a kernel built with CONFIG_DEBUG_INFO_BTF=y, and /sys mounted",
        },
        Feature {
            name: "kernel struct fields",
            outcome: match &kernel {
                Ok(kernel) => of(kernel.globals().as_ref()),
                Err(_) => Outcome::Unknown("the kernel's types cannot be read".to_owned()),
            },
            used_for: "reading tasks, address spaces and files in the programs",
            without: SCANS,
            how_to_get: "a kernel from 6.1 on, or a newer ksnap",
        },
        Feature {
            name: "eBPF programs on tracepoints",
            outcome: of(loaded.as_ref()),
            used_for: "the fault log, mapping changes, forks and exits",
            without: SCANS,
            how_to_get: ROOT,
        },
    ];
    features.extend(optional(loaded));
    features
}

/// What can be told only once the programs are in the kernel.
fn optional(loaded: Result<Loaded, ProbeError>) -> [Feature; 5] {
    let unknown = || Outcome::Unknown("the programs could not be loaded".to_owned());
    let mut outcomes = [const { None }; 5];
    if let Ok(loaded) = loaded {
        let tracepoints = loaded.fault_source == FaultSource::Tracepoints;
        outcomes[0] = Some(match &loaded.fentry {
            // The tracepoint programs were accepted: this is not about privilege.
            Err(ProbeError::NotPermitted { source, .. }) => Outcome::Unsupported(format!(
                "this kernel does not let programs attach to functions: {source}"
            )),
            Err(error) => Outcome::Unsupported(error.to_string()),
            Ok(()) => Outcome::Supported,
        });
        outcomes[1] = Some(match (&loaded.page_lock, tracepoints) {
            (Err(_), false) => Outcome::Unknown("not needed beside fentry".to_owned()),
            (result, _) => of(result.as_ref()),
        });
        outcomes[2] = Some(of(loaded.stop_times.as_ref()));
        outcomes[3] = Some(match loaded.has_mm_owner {
            true => Outcome::Supported,
            false => Outcome::Unsupported("mm_struct has no field owner".to_owned()),
        });
        outcomes[4] = Some(match Probes::new(loaded) {
            Ok(mut probes) => of(probes.count_costs(true).as_ref()),
            Err(error) => Outcome::Unsupported(error.to_string()),
        });
    }
    let [fentry, page_lock, stop_times, owner, statistics] =
        outcomes.map(|outcome| outcome.unwrap_or_else(unknown));
    [
        Feature {
            name: "fentry on handle_mm_fault",
            outcome: fentry,
            used_for: "seeing every write fault, those by get_user_pages included",
            without: "the page fault tracepoints are used; after O_DIRECT reads, process_vm_writev, \
                      io_uring and the like the next stop scans everything",
            how_to_get: "a kernel with CONFIG_FUNCTION_TRACER and CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS",
        },
        Feature {
            name: "mmap_lock tracepoint",
            outcome: page_lock,
            used_for: "announcing get_user_pages where fentry does not work",
            without: "only the system calls known to use it are watched",
            how_to_get: "a kernel from 5.11 on with CONFIG_TRACING and CONFIG_MEMCG",
        },
        Feature {
            name: "sched_switch with task state",
            outcome: stop_times,
            used_for: "the stop as the target saw it",
            without: "stops are timed by ksnap's own clock",
            how_to_get: "a kernel from 5.18 on",
        },
        Feature {
            name: "owner of an address space",
            outcome: owner,
            used_for: "telling whose memory a vfork child or another process writes",
            without: "only writes by the process itself are seen",
            how_to_get: "a kernel with CONFIG_MEMCG=y",
        },
        Feature {
            name: "run-time statistics of programs",
            outcome: statistics,
            used_for: "the probes' own cost in the profile",
            without: "the probes' cost is not shown",
            how_to_get: "a kernel from 5.8 on, and CAP_SYS_ADMIN",
        },
    ]
}

fn of<T>(result: Result<T, &ProbeError>) -> Outcome {
    match result {
        Ok(_) => Outcome::Supported,
        // Refused for lack of privilege: the kernel may well be able to.
        Err(error) if error.is_not_permitted() => Outcome::Unknown(error.to_string()),
        Err(error) => Outcome::Unsupported(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_feature_says_what_to_do_and_unloaded_probes_leave_the_rest_unknown() {
        for feature in features() {
            for text in [
                feature.name,
                feature.used_for,
                feature.without,
                feature.how_to_get,
            ] {
                assert!(!text.is_empty(), "{feature:?}");
            }
        }
        let refused = || ProbeError::MissingField {
            name: "a.b".to_owned(),
        };
        for feature in optional(Err(refused())) {
            assert!(
                matches!(feature.outcome, Outcome::Unknown(_)),
                "{feature:?}"
            );
        }
    }

    #[test]
    fn lack_of_privilege_is_unknown_and_lack_of_a_field_is_unsupported() {
        let refused = ProbeError::NotPermitted {
            call: "bpf".to_owned(),
            source: std::io::Error::from_raw_os_error(libc::EPERM),
        };
        assert!(matches!(of::<()>(Err(&refused)), Outcome::Unknown(_)));
        let missing = ProbeError::MissingField {
            name: "a.b".to_owned(),
        };
        assert!(
            matches!(of::<()>(Err(&missing)), Outcome::Unsupported(text) if text.contains("a.b"))
        );
    }
}
