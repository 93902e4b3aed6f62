//! `rseq [--threads 4]`: counters per CPU, incremented in restartable sequences.
//!
//! Each increment is a plain load, a long wait and a plain store inside a critical section that the C library's
//! registered rseq area announces. A thread that is moved, preempted or frozen between load and store must
//! restart at the abort handler, else an increment of another thread is lost and the sums differ.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::args::Args;
use super::pace::Pace;
use super::protocol::{Started, State};
use super::table::poke;
use super::workers::Workers;

/// One CPU's counter on a cache line of its own, as the assembly expects.
#[repr(C, align(64))]
struct Lane(AtomicU64);

struct Counts {
    lanes: Vec<Lane>,
    committed: Vec<AtomicU64>,
    aborted: AtomicU64,
    // Read by workers for a batch, written by who wants to see equal sums.
    quiet: RwLock<()>,
}

struct Rseq {
    counts: Arc<Counts>,
    workers: Workers,
}

#[cfg(all(target_arch = "x86_64", target_env = "gnu"))]
mod asm {
    // rdi = this thread's struct rseq, rsi = lanes, edx = turns to wait inside the critical section.
    // Returns 0 if the increment was committed, 1 if the sequence was aborted.
    // struct rseq: cpu_id at 4, rseq_cs at 8. struct rseq_cs: version, flags, start, length, abort handler
    // (include/uapi/linux/rseq.h). The abort handler is preceded by the signature that glibc registers.
    core::arch::global_asm!(
        ".pushsection .data.ksnap_victim_rseq, \"aw\"",
        ".balign 32",
        "ksnap_victim_rseq_cs:",
        ".long 0, 0",
        ".quad 3f, 4f - 3f, 5f",
        ".popsection",
        ".globl ksnap_victim_rseq_increment",
        "ksnap_victim_rseq_increment:",
        "lea rax, [rip + ksnap_victim_rseq_cs]",
        "mov [rdi + 8], rax",
        "3:",
        "mov ecx, [rdi + 4]",
        "shl rcx, 6",
        "mov r8, [rsi + rcx]",
        "inc r8",
        "2:",
        "dec edx",
        "jnz 2b",
        "mov [rsi + rcx], r8",
        "4:",
        "xor eax, eax",
        "mov [rdi + 8], rax",
        "ret",
        ".byte 0x0f, 0xb9, 0x3d",
        ".long 0x53053053",
        "5:",
        "mov eax, 1",
        "ret",
    );

    unsafe extern "C" {
        /// # Safety
        /// `area` is the calling thread's registered struct rseq; `lanes` has a lane for every CPU.
        pub unsafe fn ksnap_victim_rseq_increment(
            area: *mut u8,
            lanes: *const super::Lane,
            turns: u32,
        ) -> u32;
    }

    /// The calling thread's registered rseq area.
    pub fn area() -> Option<*mut u8> {
        let symbol = |name: &std::ffi::CStr| {
            // SAFETY: a lookup by name among the loaded libraries.
            let at = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
            (!at.is_null()).then_some(at)
        };
        // SAFETY: glibc 2.35+ defines both as const: ptrdiff_t and unsigned int.
        let (offset, size) = unsafe {
            (
                *symbol(c"__rseq_offset")?.cast::<isize>(),
                *symbol(c"__rseq_size")?.cast::<u32>(),
            )
        };
        if size == 0 {
            return None;
        }
        let thread: *mut u8;
        // SAFETY: fs:0 holds the thread pointer itself in the x86-64 TLS ABI.
        unsafe {
            core::arch::asm!("mov {}, fs:0", out(reg) thread, options(nostack, pure, readonly))
        };
        Some(thread.wrapping_offset(offset))
    }
}

#[cfg(not(all(target_arch = "x86_64", target_env = "gnu")))]
mod asm {
    /// # Safety
    /// Never called: [`area`] is none.
    pub unsafe fn ksnap_victim_rseq_increment(
        _area: *mut u8,
        _lanes: *const super::Lane,
        _turns: u32,
    ) -> u32 {
        1
    }

    pub fn area() -> Option<*mut u8> {
        None
    }
}

/// Whether the C library has registered rseq, and this architecture's critical section is written.
pub fn available() -> bool {
    asm::area().is_some()
}

/// Starts the victim.
pub fn start(args: &Args) -> Result<Started> {
    let threads: usize = args.value("threads", 4)?;
    let rate: u64 = args.value("rate", 1000)?;
    ensure!(
        available(),
        "no rseq area is registered here: needs x86-64 and glibc 2.35 or newer"
    );
    // SAFETY: sysconf takes a number and gives one.
    let cpus = usize::try_from(unsafe { libc::sysconf(libc::_SC_NPROCESSORS_CONF) })
        .context("no number of CPUs")?;
    let counts = Arc::new(Counts {
        lanes: (0..cpus).map(|_| Lane(AtomicU64::new(0))).collect(),
        committed: (0..threads).map(|_| AtomicU64::new(0)).collect(),
        aborted: AtomicU64::new(0),
        quiet: RwLock::new(()),
    });
    let mut workers = Workers::new();
    for number in 0..threads {
        let counts = Arc::clone(&counts);
        workers.spawn(&format!("rseq-{number}"), move |beat| {
            let mut pace = Pace::new(rate);
            let Some(area) = asm::area() else { return };
            loop {
                let batch = counts.quiet.read().unwrap_or_else(PoisonError::into_inner);
                for turn in 0..20 {
                    // SAFETY: the area is this thread's; there is a lane for every configured CPU.
                    let aborted = unsafe {
                        asm::ksnap_victim_rseq_increment(
                            area,
                            counts.lanes.as_ptr(),
                            500 + 300 * turn,
                        )
                    };
                    match aborted {
                        0 => counts.committed[number].fetch_add(1, Ordering::Relaxed),
                        _ => counts.aborted.fetch_add(1, Ordering::Relaxed),
                    };
                }
                drop(batch);
                beat.beat();
                pace.step();
            }
        })?;
    }
    Ok(Started::new(Rseq { counts, workers }))
}

impl State for Rseq {
    fn counter(&self) -> u64 {
        self.counts
            .committed
            .iter()
            .map(|count| count.load(Ordering::Relaxed))
            .sum()
    }

    fn status(&self) -> Result<(), String> {
        self.workers.alive()
    }

    fn check(&self) -> Result<(), String> {
        self.workers.working()?;
        let _quiet = self
            .counts
            .quiet
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let committed = self.counter();
        let lanes = self.counts.lanes.iter();
        let summed = lanes.fold(0, |sum: u64, lane| {
            sum.wrapping_add(lane.0.load(Ordering::Relaxed))
        });
        match committed == summed {
            true => Ok(()),
            false => Err(format!(
                "{committed} increments were committed, but the counters per CPU sum to {summed}"
            )),
        }
    }

    fn details(&self) -> Value {
        json!({
            "workers": self.workers.report(),
            "aborted": self.counts.aborted.load(Ordering::Relaxed),
            "poke": poke(self.counts.lanes.as_ptr().cast()),
        })
    }
}
