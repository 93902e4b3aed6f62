//! What can go wrong with the probes.

use std::io;

/// Why the probes are not there. Everything else in ksnap works without them.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProbeError {
    /// The kernel refuses bpf() to this user.
    #[error(
        "{call} was refused: {source}. Run as root, or with CAP_BPF and CAP_PERFMON; in a \
         container these must be granted from outside"
    )]
    NotPermitted {
        /// The call that was refused.
        call: String,
        /// What the kernel answered.
        #[source]
        source: io::Error,
    },
    /// ksnap runs in a PID namespace, where the ids that the programs see mean something else.
    #[error(
        "ksnap runs in a PID namespace of its own ({namespace}), so the process ids that the \
         kernel's events carry are not the ones it sees. Run ksnap on the host, or give its \
         container the host's PID namespace"
    )]
    PidNamespace {
        /// What /proc/self/ns/pid refers to.
        namespace: String,
    },
    /// The kernel does not describe its own types.
    #[error(
        "cannot read the kernel's type information from {path}: {source}. It needs a kernel built \
         with CONFIG_DEBUG_INFO_BTF=y, and /sys mounted"
    )]
    NoBtf {
        /// The file.
        path: &'static str,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
    /// The kernel's type information is malformed or of a version this build does not know.
    #[error(
        "the kernel's type information in {path} cannot be understood: {detail}. Please report \
         the kernel's version together with this message"
    )]
    BadBtf {
        /// The file.
        path: &'static str,
        /// What is wrong with it.
        detail: String,
    },
    /// A struct or field that the programs read is not in this kernel.
    #[error(
        "this kernel has no field {name}, which ksnap's programs read. This build of ksnap does \
         not know this kernel's layout; a newer one may"
    )]
    MissingField {
        /// `struct.field`
        name: String,
    },
    /// Something that the programs cannot do without is not in this kernel.
    #[error("this kernel lacks {what}: {detail}. {remedy}")]
    KernelLacks {
        /// The feature.
        what: String,
        /// How that was found out.
        detail: String,
        /// What to do.
        remedy: &'static str,
    },
    /// The embedded object was built from other sources than this program.
    #[error(
        "the embedded eBPF object has ABI version {found}, this ksnap speaks {expected}. \
         Rebuild it: cargo xtask build-ebpf"
    )]
    AbiMismatch {
        /// Version in the object.
        found: u32,
        /// Version of this program.
        expected: u32,
    },
    /// The embedded object is damaged.
    #[error("the embedded eBPF object is damaged: {detail}. Rebuild it: cargo xtask build-ebpf")]
    BadObject {
        /// What is wrong with it.
        detail: String,
    },
    /// The kernel refused a step for another reason.
    #[error(
        "{call} on {target} failed: {detail}. `ksnap doctor` tells what this kernel offers; \
         ksnap works without the probes, with full scans"
    )]
    Kernel {
        /// The step.
        call: &'static str,
        /// Program or map.
        target: String,
        /// The kernel's answer, with the verifier's last words where there are any.
        detail: String,
    },
}

impl ProbeError {
    /// True when more privilege would help.
    pub fn is_not_permitted(&self) -> bool {
        matches!(self, Self::NotPermitted { .. })
    }
}
