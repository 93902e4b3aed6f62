//! Saves a page that user space still waits to copy, before its first write since the stop.

use crate::maps;
use aya_ebpf::bindings::{BPF_F_NO_PREALLOC, BPF_RB_NO_WAKEUP};
use aya_ebpf::helpers::generated::{bpf_loop, bpf_probe_read_user};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, RingBuf};
use core::arch::asm;
use core::ffi::c_void;
use core::ptr;
use snap_common::{
    BEGUN, BREAK, COPIED_TO, COUNTERS, Chunk, LOSSES, LOST, Loss, MAX_CHUNKS, ORDER, PAGE_SIZE,
    SavedPage, Tracked, WINDOW, chunk_bit, chunk_key,
};

/// Pages that are to be saved before they are written, in chunks; see [`chunk_key`].
#[map]
static AWAITED: HashMap<u64, Chunk> = HashMap::with_max_entries(MAX_CHUNKS, BPF_F_NO_PREALLOC);

/// Saved pages, for user space: as many as a busy process writes first while user space waits for a processor.
#[map]
static SAVED: RingBuf = RingBuf::with_byte_size(64 << 20, 0);

/// See [`BEGUN`], [`LOST`], [`ORDER`].
#[map]
static COUNTS: Array<u64> = Array::with_max_entries(COUNTERS, 0);

/// Pages that a call may change, at most: saving them takes the caller a millisecond or two.
const MOST_CHANGED: u32 = 2048;

/// What user space says of a process whose pages it is copying.
pub struct Window {
    number: u64,
    copied_to: u64,
    /// Where its heap ended.
    pub heap_end: u64,
}

/// The open window of a tracked process.
#[inline(always)]
pub fn window(tgid: u32) -> Option<Window> {
    maps::of_tracked(tgid).and_then(opened)
}

#[inline(always)]
fn opened(tracked: *const Tracked) -> Option<Window> {
    // SAFETY: a map value; user space replaces it as a whole.
    let word = |at| unsafe { ptr::read_volatile(tracked.cast::<u64>().add(at)) };
    let number = word(WINDOW);
    (number != 0).then(|| Window {
        number,
        copied_to: word(COPIED_TO),
        heap_end: word(BREAK),
    })
}

/// Pages may change unsaved: what is being copied must not be used.
#[inline(always)]
pub fn spoil(why: Loss) {
    count(LOST);
    count(LOSSES + why as u32);
}

/// The same, of this process.
#[inline(always)]
pub fn spoil_of(tgid: u32, why: Loss) {
    if window(tgid).is_some() {
        spoil(why);
    }
}

/// A thread is about to write to the page that holds `address`. `here`: its memory is the running task's.
#[inline(always)]
pub fn before_write(tracked: *const Tracked, tgid: u32, address: u64, here: bool) {
    let Some(window) = opened(tracked) else {
        return;
    };
    if address < window.copied_to {
        return;
    }
    let page = address & !(PAGE_SIZE - 1);
    if !awaited(tgid, page) {
        return;
    }
    if here {
        save(window.number, tgid, page);
    } else {
        spoil(Loss::Other);
    }
}

/// Pages that a call is about to change.
struct Change {
    window: u64,
    tgid: u32,
    /// The next one.
    page: u64,
    end: u64,
}

/// A call of the running task is about to change the pages from `start` to `end`, or who may write them unseen.
#[inline(always)]
pub fn before_change(window: &Window, tgid: u32, start: u64, end: u64) {
    let mut change = Change {
        window: window.number,
        tgid,
        page: start.max(window.copied_to) & !(PAGE_SIZE - 1),
        end,
    };
    // The verifier follows one round of it, where it would follow each round of a loop.
    let round: extern "C" fn(u32, *mut Change) -> i64 = save_next;
    // SAFETY: `round` takes what it is given, which lives until the call returns.
    unsafe {
        bpf_loop(
            MOST_CHANGED,
            round as *mut c_void,
            (&raw mut change).cast(),
            0,
        );
    }
    if change.page < end {
        spoil(Loss::Call);
    }
}

/// A round of `bpf_loop`: 1 ends it.
extern "C" fn save_next(_: u32, change: *mut Change) -> i64 {
    // SAFETY: the one that the helper was given; nothing else uses it meanwhile.
    let change = unsafe { &mut *change };
    if change.page >= change.end {
        return 1;
    }
    if awaited(change.tgid, change.page) {
        save(change.window, change.tgid, change.page);
    }
    change.page += PAGE_SIZE;
    0
}

#[inline(always)]
fn save(window: u64, tgid: u32, page: u64) {
    count(BEGUN);
    let Some(mut slot) = SAVED.reserve::<SavedPage>(0) else {
        spoil(Loss::Full);
        return;
    };
    let saved = slot.as_mut_ptr();
    // SAFETY: `saved` is room for one record; the helper checks the address that it reads from.
    let read = unsafe {
        (*saved).window = window;
        (*saved).page = page;
        (*saved).tgid = tgid;
        (*saved).reserved = 0;
        let read = bpf_probe_read_user(
            (&raw mut (*saved).bytes).cast(),
            PAGE_SIZE as u32,
            page as *const _,
        );
        (*saved).order = count(ORDER);
        read
    };
    if read == 0 {
        slot.submit(u64::from(BPF_RB_NO_WAKEUP));
    } else {
        slot.discard(u64::from(BPF_RB_NO_WAKEUP));
        spoil(Loss::Unreadable);
    }
}

#[inline(always)]
fn awaited(tgid: u32, page: u64) -> bool {
    let Some(chunk) = AWAITED.get_ptr(&chunk_key(tgid, page)) else {
        return false;
    };
    let (word, bit) = chunk_bit(page);
    // SAFETY: in bounds: a chunk has a bit for each of its pages.
    let word = unsafe { ptr::read_volatile(chunk.cast::<u64>().add(word)) };
    word & bit != 0
}

/// Adds one, and gives what there was before. The standard library has no such atomics for this target.
#[inline(always)]
fn count(index: u32) -> u64 {
    let Some(counter) = COUNTS.get_ptr_mut(index) else {
        return 0;
    };
    let mut value = 1_u64;
    // SAFETY: a map value, of which nothing but such additions are made.
    unsafe {
        asm!(
            "{value} = atomic_fetch_add((u64 *)({counter} + 0), {value})",
            counter = in(reg) counter,
            value = inout(reg) value,
        );
    }
    value
}
