//! From the embedded object to programs that the kernel accepted.

use super::error::ProbeError;
use super::offsets::{Kernel, VMLINUX};
use super::programs::{
    self, FaultSource, HANDLE_MM_FAULT, LIFECYCLE, MM_LOCK, SCHED_SWITCH, chain, is_refusal,
};
use super::state::{Places, StateReader};
use super::{object, syscalls};
use crate::model::PAGE_SIZE;
use aya::maps::MapError;
use aya::sys::SyscallError;
use aya::{Btf, Ebpf, EbpfError, EbpfLoader};
use aya_log::EbpfLogger;
use std::fs;
use std::io;
use tracing_log::log;

/// The inode of the first PID namespace (PROC_PID_INIT_INO, include/linux/proc_ns.h).
const INIT_PID_NAMESPACE: &str = "pid:[4026531836]";

/// How to load the probes.
#[derive(Clone, Debug)]
pub struct ProbeOptions {
    /// Bytes of the ring buffer; rounded up to a power of two of at least one page.
    pub ring_bytes: u32,
    /// Where to see faults; `None`: the best that the kernel accepts.
    pub fault_source: Option<FaultSource>,
    /// Process whose own accesses to tracked memory are not reported.
    pub own_tgid: u32,
}

impl Default for ProbeOptions {
    fn default() -> Self {
        Self {
            ring_bytes: 8 << 20,
            fault_source: None,
            own_tgid: std::process::id(),
        }
    }
}

/// What loading found out.
pub struct Loaded {
    /// Programs and maps.
    pub ebpf: Ebpf,
    /// Where debug messages of the programs arrive, when somebody listens.
    pub logger: Option<EbpfLogger<&'static dyn log::Log>>,
    /// The source of faults.
    pub fault_source: FaultSource,
    /// Why not the better one.
    pub fentry: Result<(), ProbeError>,
    /// Whether stops are timed.
    pub stop_times: Result<(), ProbeError>,
    /// Whether the owner of an address space is known.
    pub has_mm_owner: bool,
    /// Whether get_user_pages is seen by its lock.
    pub page_lock: Result<(), ProbeError>,
    /// What the kernel knows of a process can be read.
    pub state: Result<StateReader, ProbeError>,
    /// Every program that was loaded, in the order of attaching.
    pub programs: Vec<&'static str>,
}

/// Loads everything; nothing is attached yet.
pub fn load(options: &ProbeOptions) -> Result<Loaded, ProbeError> {
    object::check(object::OBJECT)?;
    check_pid_namespace()?;
    let kernel = Kernel::read()?;
    let globals = kernel.globals()?;
    for name in LIFECYCLE {
        programs::check_hook(&kernel, name)?;
    }
    let btf = Btf::from_sys_fs().map_err(|error| ProbeError::BadBtf {
        path: VMLINUX,
        detail: chain(&error),
    })?;

    let level: u8 = if log::log_enabled!(log::Level::Debug) {
        aya_log::Level::Debug as u8
    } else {
        0
    };
    let o_direct = libc::O_DIRECT as u32;
    let (table, effects) = (syscalls::table(), syscalls::effects());
    let harmless_advice = syscalls::harmless_advice();
    let mut loader = EbpfLoader::new();
    loader
        .btf(Some(&btf))
        .map_max_entries("EVENTS", ring_bytes(options.ring_bytes))
        .override_global("SYSCALL_CLASS", table.as_slice(), true)
        .override_global("SYSCALL_EFFECT", effects.as_slice(), true)
        .override_global("HARMLESS_ADVICE", &harmless_advice, true)
        .override_global("OWN_TGID", &options.own_tgid, true)
        .override_global("O_DIRECT", &o_direct, true)
        .override_global(aya_log::LEVEL, &level, true);
    for (name, value) in &globals {
        loader.override_global(name, value, true);
    }
    let places = Places::find(&kernel);
    if let Ok(places) = &places {
        places.give(&mut loader);
    }
    let mut ebpf = loader.load(object::OBJECT).map_err(from_object)?;

    let mut loaded: Vec<&'static str> = Vec::new();
    for name in LIFECYCLE {
        programs::load(&mut ebpf, name, &btf)?;
        loaded.push(name);
    }
    let mut optional = |ebpf: &mut Ebpf, name: &'static str| -> Result<(), ProbeError> {
        programs::check_hook(&kernel, name)?;
        programs::load(ebpf, name, &btf)?;
        if name == HANDLE_MM_FAULT {
            // The kernel may accept the program and then refuse to attach it.
            programs::attach(ebpf, name).map(drop)?;
        }
        loaded.push(name);
        Ok(())
    };
    let mut all_of = |ebpf: &mut Ebpf, source: FaultSource| {
        source
            .programs()
            .iter()
            .try_for_each(|name| optional(ebpf, name))
    };
    let (fault_source, fentry) = match options.fault_source {
        Some(FaultSource::Tracepoints) => {
            all_of(&mut ebpf, FaultSource::Tracepoints)?;
            (FaultSource::Tracepoints, Err(not_asked_for()))
        }
        Some(FaultSource::HandleMmFault) => {
            all_of(&mut ebpf, FaultSource::HandleMmFault)?;
            (FaultSource::HandleMmFault, Ok(()))
        }
        None => match all_of(&mut ebpf, FaultSource::HandleMmFault) {
            Ok(()) => (FaultSource::HandleMmFault, Ok(())),
            Err(error) => {
                tracing::debug!("no fentry, using the page fault tracepoints: {error}");
                all_of(&mut ebpf, FaultSource::Tracepoints)?;
                (FaultSource::Tracepoints, Err(error))
            }
        },
    };
    let has_mm_owner = kernel.has_mm_owner()?;
    let page_lock = match fault_source {
        // Sees get_user_pages itself.
        FaultSource::HandleMmFault => Err(not_asked_for()),
        FaultSource::Tracepoints if has_mm_owner => optional(&mut ebpf, MM_LOCK),
        FaultSource::Tracepoints => Err(ProbeError::MissingField {
            name: "mm_struct.owner".to_owned(),
        }),
    };
    let stop_times = optional(&mut ebpf, SCHED_SWITCH);
    let state = places.and_then(|places| StateReader::load(&mut ebpf, &btf, &places));

    let logger = match level {
        0 => None,
        _ => EbpfLogger::init(&mut ebpf)
            .inspect_err(|error| tracing::debug!("no messages from the probes: {}", chain(error)))
            .ok(),
    };
    Ok(Loaded {
        ebpf,
        logger,
        fault_source,
        fentry,
        stop_times,
        has_mm_owner,
        page_lock,
        state,
        programs: loaded,
    })
}

fn not_asked_for() -> ProbeError {
    ProbeError::KernelLacks {
        what: "this program".to_owned(),
        detail: "not asked for".to_owned(),
        remedy: "Load the probes with other options",
    }
}

/// The kernel takes powers of two that are whole pages.
fn ring_bytes(asked: u32) -> u32 {
    asked.clamp(PAGE_SIZE as u32, 1 << 30).next_power_of_two()
}

/// Ids in events are those of the first PID namespace.
fn check_pid_namespace() -> Result<(), ProbeError> {
    match fs::read_link("/proc/self/ns/pid") {
        Ok(link) if link.as_os_str() != INIT_PID_NAMESPACE => Err(ProbeError::PidNamespace {
            namespace: link.display().to_string(),
        }),
        // Without /proc nothing else works either; its own messages say so.
        _ => Ok(()),
    }
}

fn from_object(error: EbpfError) -> ProbeError {
    let refused = |io_error: &io::Error, call: &str| {
        is_refusal(io_error).then(|| ProbeError::NotPermitted {
            call: call.to_owned(),
            source: io_error.raw_os_error().map_or(
                io::Error::from(io_error.kind()),
                io::Error::from_raw_os_error,
            ),
        })
    };
    let not_permitted = match &error {
        EbpfError::MapError(MapError::CreateError { io_error, .. }) => {
            refused(io_error, "bpf(BPF_MAP_CREATE)")
        }
        EbpfError::MapError(MapError::SyscallError(SyscallError { io_error, call })) => {
            refused(io_error, call)
        }
        _ => None,
    };
    not_permitted.unwrap_or_else(|| match &error {
        EbpfError::ParseError(_) => ProbeError::BadObject {
            detail: chain(&error),
        },
        _ => ProbeError::Kernel {
            call: "bpf(BPF_MAP_CREATE)",
            target: "the maps of the probes".to_owned(),
            detail: chain(&error),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ring_is_a_power_of_two_of_whole_pages() {
        assert_eq!(ring_bytes(0), 4096);
        assert_eq!(ring_bytes(4096), 4096);
        assert_eq!(ring_bytes(4097), 8192);
        assert_eq!(ring_bytes(u32::MAX), 1 << 30);
    }
}
