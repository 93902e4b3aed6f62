//! What the kernel itself knows of a process, by iterators over its threads and over its descriptors.
//!
//! [`Probes::observe`](super::Probes::observe) runs the first, [`Probes::referents`](super::Probes::referents) the
//! other: one read of a file each, some microseconds a thread, and less for a descriptor. No system call of the
//! target, and nothing that it could notice.

mod calibrate;
mod decode;
mod record;
mod referents;

use super::error::ProbeError;
use super::iterator::Iterator;
use super::offsets::Kernel;
use super::programs::chain;
use crate::model::{Observed, Referent};
use crate::sys;
use aya::maps::{Array, MapData};
use aya::{Btf, Ebpf, EbpfLoader};
use decode::{Bits, Clocks};
use record::Layout;

/// The map that says which process is asked about.
const REQUEST: &str = "STATE_REQUEST";

/// Where the running kernel keeps what the program reads, as the program takes it.
pub struct Places {
    thread: Vec<u8>,
    process: Vec<u8>,
    timer: Vec<u8>,
    signal_timers: u32,
    timer_list: u32,
    bits: Bits,
}

impl Places {
    /// Finds them.
    ///
    /// # Errors
    /// [`ProbeError::MissingField`] names what this kernel does not have.
    pub fn find(kernel: &Kernel) -> Result<Self, ProbeError> {
        let offset = |path: &str| kernel.offset(path);
        let missing = |path: &str| ProbeError::MissingField {
            name: path.to_owned(),
        };
        let layout = |len, pointers, places| Layout::new(len, pointers, places, offset, missing);
        let mut timer = layout(
            size_of::<record::TimerRecord>(),
            record::TIMER_POINTERS,
            record::TIMER_PLACES,
        )?;
        // From Linux 6.13 the signal of a timer lies in it.
        if kernel.offset("k_itimer.sigq.info")?.is_some() {
            timer.embed(4, kernel.required("k_itimer.sigq")?);
        }
        let (_, subreaper) = kernel
            .bit("signal_struct.is_child_subreaper")?
            .ok_or_else(|| missing("signal_struct.is_child_subreaper"))?;
        Ok(Self {
            thread: layout(
                size_of::<record::ThreadRecord>(),
                record::THREAD_POINTERS,
                record::THREAD_PLACES,
            )?
            .bytes(),
            process: layout(
                size_of::<record::ProcessRecord>(),
                record::PROCESS_POINTERS,
                record::PROCESS_PLACES,
            )?
            .bytes(),
            timer: timer.bytes(),
            signal_timers: kernel.required("signal_struct.posix_timers")?,
            timer_list: kernel.required("k_itimer.list")?,
            bits: Bits {
                subreaper,
                traps: [None; 2],
                rseq: kernel.offset("task_struct.rseq_sig")?.is_some()
                    && kernel.offset("task_struct.rseq_len")?.is_some(),
                denials: sys::kernel_version() >= (6, 7),
            },
        })
    }

    /// Hands them to the program.
    pub fn give<'a>(&'a self, loader: &mut EbpfLoader<'a>) {
        loader
            .override_global("STATE_THREAD", self.thread.as_slice(), true)
            .override_global("STATE_PROCESS", self.process.as_slice(), true)
            .override_global("STATE_TIMER", self.timer.as_slice(), true)
            .override_global("OFF_SIGNAL_TIMERS", &self.signal_timers, true)
            .override_global("OFF_TIMER_LIST", &self.timer_list, true);
    }
}

/// The iterators, loaded.
pub struct StateReader {
    tasks: Iterator,
    /// Where the kernel accepts it.
    files: Option<Iterator>,
    /// One `StateRequest`.
    request: Array<MapData, [u32; 2]>,
    asked: [u32; 2],
    bits: Bits,
}

impl StateReader {
    /// Loads the programs.
    pub fn load(ebpf: &mut Ebpf, btf: &Btf, places: &Places) -> Result<Self, ProbeError> {
        let tasks = Iterator::load(ebpf, btf, "state", "task")?;
        let files = Iterator::load(ebpf, btf, "files", "task_file")
            .inspect_err(|error| tracing::debug!("descriptors are read from /proc: {error}"))
            .ok();
        let map = ebpf
            .take_map(REQUEST)
            .ok_or_else(|| ProbeError::BadObject {
                detail: format!("it has no map {REQUEST}"),
            })?;
        let request = Array::try_from(map).map_err(|error| ProbeError::Kernel {
            call: "bpf() on a map",
            target: REQUEST.to_owned(),
            detail: chain(&error),
        })?;
        let mut reader = Self {
            tasks,
            files,
            request,
            asked: [0; 2],
            bits: places.bits,
        };
        let me = std::process::id() as i32;
        reader.bits.traps =
            [sys::Trap::Tsc, sys::Trap::Cpuid].map(|trap| calibrate::bit_of(&mut reader, trap));
        reader.forget(me);
        Ok(reader)
    }

    /// Process `pid` is of no interest any more.
    pub fn forget(&mut self, pid: i32) {
        self.tasks.forget(pid);
        if let Some(files) = &mut self.files {
            files.forget(pid);
        }
    }

    /// What the kernel knows of process `pid`, of which `tid` is a thread that lives. The process
    /// must be stopped, or the answer is of no single moment.
    pub fn read(&mut self, pid: i32, tid: i32) -> Result<Observed, ProbeError> {
        let clocks = Clocks::read();
        self.ask(pid, tid)?;
        let records = self.tasks.run(pid)?;
        decode::decode(records, &clocks, self.bits).map_err(|what| senseless(pid, what))
    }

    /// What the descriptors of process `pid` refer to, ascending by number. `None` where the kernel cannot be asked,
    /// or not about this one, as when its first thread has ended.
    pub fn referents(&mut self, pid: i32) -> Result<Option<Vec<(i32, Referent)>>, ProbeError> {
        let tid = self.asked[1] as i32;
        if self.files.is_none() {
            return Ok(None);
        }
        self.ask(pid, tid)?;
        let Some(files) = &mut self.files else {
            return Ok(None);
        };
        let found = referents::decode(files.run(pid)?).map_err(|what| senseless(pid, what))?;
        Ok((!found.is_empty()).then_some(found))
    }

    /// The flags of a thread of this process.
    fn flags(&mut self, tid: i32) -> Option<u64> {
        let pid = std::process::id() as i32;
        self.ask(pid, tid).ok()?;
        decode::flags(self.tasks.run(pid).ok()?, tid)
    }

    /// The programs report this process, and it by this thread.
    fn ask(&mut self, pid: i32, tid: i32) -> Result<(), ProbeError> {
        let request = [pid as u32, tid as u32];
        if self.asked != request {
            self.request
                .set(0, request, 0)
                .map_err(|error| ProbeError::Kernel {
                    call: "bpf() on a map",
                    target: REQUEST.to_owned(),
                    detail: chain(&error),
                })?;
            self.asked = request;
        }
        Ok(())
    }
}

fn senseless(pid: i32, what: &str) -> ProbeError {
    ProbeError::Kernel {
        call: "read of an iterator",
        target: format!("process {pid}"),
        detail: format!("{what} does not make sense"),
    }
}

impl Clocks {
    fn read() -> Self {
        Self {
            real: sys::clock_ns(libc::CLOCK_REALTIME),
            monotonic: sys::clock_ns(libc::CLOCK_MONOTONIC),
            boot: sys::clock_ns(libc::CLOCK_BOOTTIME),
            tai: sys::clock_ns(libc::CLOCK_TAI),
        }
    }
}
