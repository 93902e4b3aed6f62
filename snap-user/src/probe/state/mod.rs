//! What the kernel itself knows of a process, by an iterator over its threads.
//!
//! [`Probes::observe`](super::Probes::observe) runs it: one read of a file, some microseconds a thread. No
//! system call of the target, and nothing that it could notice.

mod calibrate;
mod decode;
mod record;

use super::error::ProbeError;
use super::offsets::Kernel;
use super::programs::chain;
use crate::model::Observed;
use crate::sys;
use aya::maps::{Array, MapData};
use aya::programs::{Iter, Program};
use aya::{Btf, Ebpf, EbpfLoader};
use decode::{Bits, Clocks};
use record::Layout;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};

/// Its name in the object.
const PROGRAM: &str = "state";
/// Bytes for a few threads; grows with what the kernel has to say.
const BUFFER: usize = 64 << 10;

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

/// The iterator, loaded.
pub struct StateReader {
    program: OwnedFd,
    /// One `StateRequest`.
    request: Array<MapData, [u32; 2]>,
    asked: [u32; 2],
    /// By the process that each is for.
    links: BTreeMap<i32, OwnedFd>,
    bits: Bits,
    buffer: Vec<u8>,
}

impl StateReader {
    /// Loads the program.
    pub fn load(ebpf: &mut Ebpf, btf: &Btf, places: &Places) -> Result<Self, ProbeError> {
        let kernel = |call: &'static str, detail: String| ProbeError::Kernel {
            call,
            target: PROGRAM.to_owned(),
            detail,
        };
        let Some(Program::Iter(program)) = ebpf.program_mut(PROGRAM) else {
            return Err(ProbeError::BadObject {
                detail: format!("it has no iterator {PROGRAM}"),
            });
        };
        Iter::load(program, "task", btf)
            .map_err(|error| super::programs::from_program(error, "bpf(BPF_PROG_LOAD)", PROGRAM))?;
        let fd = program
            .fd()
            .map_err(|error| kernel("bpf(BPF_PROG_LOAD)", chain(&error)))?
            .as_fd()
            .try_clone_to_owned()
            .map_err(|error| kernel("fcntl(F_DUPFD_CLOEXEC)", error.to_string()))?;
        let map = ebpf
            .take_map("STATE_REQUEST")
            .ok_or_else(|| ProbeError::BadObject {
                detail: "it has no map STATE_REQUEST".to_owned(),
            })?;
        let request =
            Array::try_from(map).map_err(|error| kernel("bpf() on a map", chain(&error)))?;
        let mut reader = Self {
            program: fd,
            request,
            asked: [0; 2],
            links: BTreeMap::new(),
            bits: places.bits,
            buffer: vec![0; BUFFER],
        };
        reader.bits.traps =
            [sys::Trap::Tsc, sys::Trap::Cpuid].map(|trap| calibrate::bit_of(&mut reader, trap));
        reader.links.clear();
        Ok(reader)
    }

    /// Process `pid` is of no interest any more.
    pub fn forget(&mut self, pid: i32) {
        self.links.remove(&pid);
    }

    /// What the kernel knows of process `pid`, of which `tid` is a thread that lives. The process
    /// must be stopped, or the answer is of no single moment.
    pub fn read(&mut self, pid: i32, tid: i32) -> Result<Observed, ProbeError> {
        let clocks = Clocks::read();
        let used = self.fill(pid, tid)?;
        decode::decode(&self.buffer[..used], &clocks, self.bits).map_err(|what| {
            ProbeError::Kernel {
                call: "read of an iterator",
                target: format!("process {pid}"),
                detail: format!("{what} does not make sense"),
            }
        })
    }

    /// The flags of a thread of this process.
    fn flags(&mut self, tid: i32) -> Option<u64> {
        let used = self.fill(std::process::id() as i32, tid).ok()?;
        decode::flags(&self.buffer[..used], tid)
    }

    /// Has the kernel write its records into the buffer; how many bytes.
    fn fill(&mut self, pid: i32, tid: i32) -> Result<usize, ProbeError> {
        let kernel = |call: &'static str, detail: String| ProbeError::Kernel {
            call,
            target: format!("process {pid}"),
            detail,
        };
        let of = |error: sys::SysError| kernel(error.call, error.to_string());
        let link = match self.links.entry(pid) {
            Entry::Occupied(link) => link.into_mut(),
            Entry::Vacant(place) => {
                place.insert(sys::task_iterator(self.program.as_fd(), pid).map_err(of)?)
            }
        };
        let request = [pid as u32, tid as u32];
        if self.asked != request {
            self.request
                .set(0, request, 0)
                .map_err(|error| kernel("bpf() on a map", chain(&error)))?;
            self.asked = request;
        }
        let mut file = sys::run_iterator(link).map_err(of)?;
        let mut used = 0;
        loop {
            if self.buffer.len() - used < BUFFER / 2 {
                self.buffer.resize(self.buffer.len() * 2, 0);
            }
            match file.read(&mut self.buffer[used..]) {
                Ok(0) => break,
                Ok(got) => used += got,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(kernel("read of an iterator", error.to_string())),
            }
        }
        Ok(used)
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
