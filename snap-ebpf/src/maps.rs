//! The maps, and what is done with them in more than one program.

use aya_ebpf::bindings::BPF_RB_NO_WAKEUP;
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{HashMap, PerCpuArray, RingBuf};
use snap_common::{
    EventHeader, EventKind, FaultEvent, MAX_STOPPED, MAX_TRACKED, SystemEvent, Tracked,
};

/// Tracked processes, by process id. User space changes the values.
#[map]
static TRACKED: HashMap<u32, Tracked> = HashMap::with_max_entries(MAX_TRACKED, 0);

/// Threads in a ptrace stop: thread id → when it began.
#[map]
pub static STOPS: HashMap<u32, u64> = HashMap::with_max_entries(MAX_STOPPED, 0);

/// Events for user space. The loader sets the size.
#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(8 << 20, 0);

/// Events that were lost, per CPU.
#[map]
static DROPS: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// True when the process is tracked.
#[inline(always)]
pub fn tracked(tgid: u32) -> bool {
    TRACKED.get_ptr(&tgid).is_some()
}

/// What user space says of a tracked process.
#[inline(always)]
pub fn of_tracked(tgid: u32) -> Option<*const Tracked> {
    TRACKED.get_ptr(&tgid)
}

/// Starts tracking a process. A full map counts as a lost event.
#[inline(always)]
pub fn track(tgid: u32) {
    if TRACKED.insert(&tgid, &[0; 3], 0).is_err() {
        count_drop();
    }
}

/// Stops tracking a process.
#[inline(always)]
pub fn untrack(tgid: u32) {
    // Not there: nothing to do.
    let _ = TRACKED.remove(&tgid);
}

/// Counts an event that user space will not get.
#[inline(always)]
pub fn count_drop() {
    if let Some(drops) = DROPS.get_ptr_mut(0) {
        // SAFETY: a valid map value; only this CPU writes it, and tracing programs on one CPU that
        // interrupt each other here lose at most one of several counts, never the whole signal.
        unsafe { *drops += 1 }
    }
}

/// Now, on `CLOCK_MONOTONIC`, in ns.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: no preconditions.
    unsafe { bpf_ktime_get_ns() }
}

/// Header of an event that happens now.
#[inline(always)]
pub fn header(kind: EventKind, flags: u16, tgid: u32, tid: u32, nr: u32) -> EventHeader {
    EventHeader {
        kind: kind as u16,
        flags,
        tgid,
        tid,
        nr,
        time_ns: now(),
    }
}

/// Puts a fault into the ring, or counts it as lost.
#[inline(always)]
pub fn emit_fault(header: EventHeader, page: u64, ip: u64) {
    match EVENTS.reserve::<FaultEvent>(0) {
        Some(mut slot) => {
            slot.write(FaultEvent { header, page, ip });
            slot.submit(u64::from(BPF_RB_NO_WAKEUP));
        }
        None => count_drop(),
    }
}

/// Puts any other event into the ring, or counts it as lost.
#[inline(always)]
pub fn emit(header: EventHeader, args: [u64; 5]) {
    match EVENTS.reserve::<SystemEvent>(0) {
        Some(mut slot) => {
            slot.write(SystemEvent { header, args });
            slot.submit(u64::from(BPF_RB_NO_WAKEUP));
        }
        None => count_drop(),
    }
}
