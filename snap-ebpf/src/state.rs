//! The state of a process that no file of /proc shows, read from the kernel's own structures.
//!
//! An iterator over the threads of one process. It runs when user space reads its file, and hands
//! over one record for each thread, one for the process, and one for each of its timers.

use crate::config::off_task_signal;
use crate::kernel::{self, Kptr, field};
use aya_ebpf::bindings::seq_file;
use aya_ebpf::helpers::generated::{bpf_loop, bpf_probe_read_kernel, bpf_seq_write};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, PerCpuArray};
use core::ffi::c_void;
use core::ptr;
use snap_common::{
    FieldRef, MAX_FIELDS, MAX_OBJECTS, MAX_RECORD, MAX_TIMERS, ObjectRef, RecordHeader, RecordKind,
    StateRequest,
};

/// Bytes before the fields.
const HEADER: usize = size_of::<RecordHeader>();

/// Where a record is put together.
#[repr(C)]
struct Record {
    header: RecordHeader,
    bytes: [u8; MAX_RECORD],
}

/// The process that is asked about.
#[map]
static STATE_REQUEST: Array<StateRequest> = Array::with_max_entries(1, 0);

#[map]
static STATE_RECORD: PerCpuArray<Record> = PerCpuArray::with_max_entries(1, 0);

/// One kind of record: the objects that it is gathered from, and the fields in them.
#[repr(C)]
struct Layout {
    len: u32,
    objects: [ObjectRef; MAX_OBJECTS],
    fields: [FieldRef; MAX_FIELDS],
}

const EMPTY: Layout = Layout {
    len: 0,
    objects: [ObjectRef {
        parent: 0,
        offset: u32::MAX,
    }; MAX_OBJECTS],
    fields: [FieldRef {
        object: 0,
        len: 0,
        offset: 0,
        dest: 0,
    }; MAX_FIELDS],
};

/// Of a thread; object 0 is its task.
#[unsafe(no_mangle)]
static STATE_THREAD: Layout = EMPTY;
/// Of the process; object 0 is the task that leads to it.
#[unsafe(no_mangle)]
static STATE_PROCESS: Layout = EMPTY;
/// Of a timer; object 0 is the timer.
#[unsafe(no_mangle)]
static STATE_TIMER: Layout = EMPTY;
/// `signal_struct.posix_timers`, a list of either kind.
#[unsafe(no_mangle)]
static OFF_SIGNAL_TIMERS: u32 = 0;
/// `k_itimer.list`
#[unsafe(no_mangle)]
static OFF_TIMER_LIST: u32 = 0;

/// Reads a constant that the loader sets.
macro_rules! constant {
    ($place:expr) => {
        // SAFETY: a static; volatile, because the loader changes it after compilation.
        unsafe { ptr::read_volatile(&raw const $place) }
    };
}

#[inline(always)]
fn read_pointer(at: u64) -> u64 {
    let mut value = 0u64;
    // SAFETY: the helper checks the address; the destination is a live local of the length given.
    let failed = unsafe { bpf_probe_read_kernel((&raw mut value).cast(), 8, at as *const c_void) };
    if failed == 0 { value } else { 0 }
}

/// Gathers the fields of `layout` about `subject` and writes the record.
macro_rules! report {
    ($layout:ident, $kind:expr, $seq:expr, $tid:expr, $subject:expr) => {{
        if let Some(record) = STATE_RECORD.get_ptr_mut(0) {
            let mut objects = [0u64; MAX_OBJECTS];
            objects[0] = $subject;
            let mut there = 1u32;
            for index in 1..MAX_OBJECTS {
                let object: ObjectRef = constant!($layout.objects[index]);
                if object.offset != u32::MAX {
                    let parent = objects[object.parent as usize & (MAX_OBJECTS - 1)];
                    if parent != 0 {
                        let pointer = read_pointer(parent + u64::from(object.offset));
                        objects[index] = pointer;
                        // Without a branch, each of which the verifier would follow.
                        let is_there = (pointer | pointer.wrapping_neg()) >> 63;
                        there |= (is_there as u32) << index;
                    }
                }
            }
            for index in 0..MAX_FIELDS {
                let field: FieldRef = constant!($layout.fields[index]);
                let (len, dest) = (field.len as usize, field.dest as usize);
                if len == 0 {
                    break;
                }
                if dest >= MAX_RECORD || len > MAX_RECORD - dest {
                    continue;
                }
                let object = objects[field.object as usize & (MAX_OBJECTS - 1)];
                // SAFETY: inside the record by the test above; the helper checks the source, and
                // clears the destination where it cannot be read.
                unsafe {
                    let to = (&raw mut (*record).bytes).cast::<u8>().add(dest);
                    let from = object + u64::from(field.offset);
                    let from = if object == 0 { 0 } else { from };
                    bpf_probe_read_kernel(to.cast(), len as u32, from as *const c_void);
                }
            }
            let len: u32 = constant!($layout.len);
            if len <= MAX_RECORD as u32 {
                // SAFETY: a valid map value that only this CPU uses; the length is that of the
                // header and of fields inside the record.
                unsafe {
                    (*record).header = RecordHeader {
                        kind: $kind as u32,
                        len,
                        tid: $tid,
                        objects: there,
                    };
                    bpf_seq_write($seq, record.cast(), HEADER as u32 + len);
                }
            }
        }
    }};
}

/// The process that is asked about; 0 before any is.
#[inline(always)]
pub fn requested() -> u32 {
    STATE_REQUEST.get(0).map_or(0, |request| request.tgid)
}

/// The context of an iterator over tasks.
#[repr(C)]
struct Context {
    meta: Kptr,
    /// Null at the end.
    task: Kptr,
}

/// Called for each task, and once at the end.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
fn state(context: *const Context) -> i32 {
    // SAFETY: the kernel passes a context of this layout.
    let (meta, task) = unsafe { ((*context).meta, (*context).task) };
    if task.is_null() {
        return 0;
    }
    let Some(request) = STATE_REQUEST.get(0) else {
        return 0;
    };
    if kernel::tgid(task) != request.tgid {
        return 0;
    }
    let seq = field::<Kptr>(meta, 0) as *mut seq_file;
    let tid = kernel::pid(task);
    report!(STATE_THREAD, RecordKind::Thread, seq, tid, task as u64);
    if tid == request.tid {
        report!(STATE_PROCESS, RecordKind::Process, seq, tid, task as u64);
        timers(seq, tid, field::<u64>(task, off_task_signal()));
    }
    0
}

/// A walk along the timers of a process.
struct Timers {
    seq: *mut seq_file,
    tid: u32,
    head: u64,
    /// The next one.
    node: u64,
}

impl Timers {
    /// A list of either kind ends with null or where it began.
    #[inline(always)]
    fn is_over(&self) -> bool {
        self.node == 0 || self.node == self.head
    }
}

#[inline(always)]
fn timers(seq: *mut seq_file, tid: u32, signal: u64) {
    let head = signal + u64::from(constant!(OFF_SIGNAL_TIMERS));
    let mut timers = Timers {
        seq,
        tid,
        head,
        node: read_pointer(head),
    };
    let round: extern "C" fn(u32, *mut Timers) -> i64 = next_timer;
    // SAFETY: `round` takes what it is given, which lives until the call returns.
    unsafe {
        bpf_loop(
            MAX_TIMERS,
            round as *mut c_void,
            (&raw mut timers).cast(),
            0,
        );
    }
    if timers.is_over() {
        return;
    }
    let more = RecordHeader {
        kind: RecordKind::MoreTimers as u32,
        len: 0,
        tid,
        objects: 0,
    };
    // SAFETY: a live local of the length given.
    unsafe { bpf_seq_write(seq, (&raw const more).cast(), HEADER as u32) };
}

/// A round of `bpf_loop`, of which the verifier follows one: 1 ends it.
extern "C" fn next_timer(_: u32, timers: *mut Timers) -> i64 {
    // SAFETY: the one that the helper was given; nothing else uses it meanwhile.
    let timers = unsafe { &mut *timers };
    if timers.is_over() {
        return 1;
    }
    let timer = timers.node - u64::from(constant!(OFF_TIMER_LIST));
    report!(
        STATE_TIMER,
        RecordKind::Timer,
        timers.seq,
        timers.tid,
        timer
    );
    timers.node = read_pointer(timers.node);
    0
}
