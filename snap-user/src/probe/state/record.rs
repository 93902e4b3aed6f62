//! The records of the iterator over tasks: what they have, and where the kernel keeps it.

use snap_common::{FieldRef, MAX_FIELDS, MAX_OBJECTS, ObjectRef};
use zerocopy::{FromBytes, Immutable, KnownLayout};

/// Groups that fit a record; of a process with more, all are read from /proc.
pub const MAX_GROUPS: usize = 64;
/// Words of a set of nodes, 64 in each.
pub const NODE_WORDS: usize = 16;

/// Where a field lies: the object by its index, its place as `struct.field`, what it is in the record.
pub struct Place {
    object: u16,
    path: &'static str,
    dest: usize,
    len: usize,
    /// The record is of no use without it.
    required: bool,
}

/// An object that another one points to: index of the other, and the pointer as `struct.field`.
pub type Pointer = (u32, &'static str);

/// Defines a record and the table of its fields.
macro_rules! record {
    (
        $(#[$doc:meta])* $name:ident: $places:ident;
        $($field:ident: $kind:ty = $object:literal $path:literal $($optional:ident)?,)+
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, FromBytes, KnownLayout, Immutable)]
        #[repr(C)]
        #[allow(missing_docs, reason = "the kernel's own names, as in the table")]
        pub struct $name {
            $(pub $field: $kind,)+
        }

        /// Where its fields lie.
        pub const $places: &[Place] = &[
            $(Place {
                object: $object,
                path: $path,
                dest: std::mem::offset_of!($name, $field),
                len: size_of::<$kind>(),
                required: true $(&& record!(@$optional))?,
            },)+
        ];
    };
    (@optional) => { false };
}

/// Objects of [`ThreadRecord`] behind the task.
pub const THREAD_POINTERS: &[Pointer] = &[
    (0, "task_struct.cred"),
    (1, "cred.group_info"),
    (0, "task_struct.mempolicy"),
    (0, "task_struct.sysvsem.undo_list"),
];
/// Index of the memory policy.
pub const OBJECT_POLICY: u32 = 3;

record! {
    /// A thread.
    ThreadRecord: THREAD_PLACES;
    clear_child_tid: u64 = 0 "task_struct.clear_child_tid",
    alt_sp: u64 = 0 "task_struct.sas_ss_sp",
    alt_size: u64 = 0 "task_struct.sas_ss_size",
    timer_slack: u64 = 0 "task_struct.timer_slack_ns",
    robust_list: u64 = 0 "task_struct.robust_list",
    atomic_flags: u64 = 0 "task_struct.atomic_flags",
    run_time: u64 = 0 "task_struct.se.sum_exec_runtime",
    undo_list: u64 = 0 "task_struct.sysvsem.undo_list" optional,
    undo: [u64; 2] = 4 "sem_undo_list.list_proc" optional,
    dispatch_selector: u64 = 0 "task_struct.syscall_dispatch.selector" optional,
    dispatch_offset: u64 = 0 "task_struct.syscall_dispatch.offset" optional,
    dispatch_len: u64 = 0 "task_struct.syscall_dispatch.len" optional,
    io_bitmap: u64 = 0 "task_struct.thread.io_bitmap" optional,
    iopl: u64 = 0 "task_struct.thread.iopl_emul" optional,
    rseq: u64 = 0 "task_struct.rseq" optional,
    pending: u64 = 0 "task_struct.pending.signal",
    sleep_end: u64 = 0 "task_struct.restart_block.nanosleep.expires" optional,
    futex_end: u64 = 0 "task_struct.restart_block.futex.time" optional,
    poll_end: [u64; 2] = 0 "task_struct.restart_block.poll.tv_sec" optional,
    poll_end_time: [u64; 2] = 0 "task_struct.restart_block.poll.end_time" optional,
    thread_flags: u64 = 0 "task_struct.thread_info.flags" optional,
    rseq_len: u32 = 0 "task_struct.rseq_len" optional,
    rseq_sig: u32 = 0 "task_struct.rseq_sig" optional,
    sleep_clock: i32 = 0 "task_struct.restart_block.nanosleep.clockid" optional,
    alt_flags: u32 = 0 "task_struct.sas_ss_flags",
    personality: u32 = 0 "task_struct.personality",
    parent_death_signal: i32 = 0 "task_struct.pdeath_signal",
    flags: u32 = 0 "task_struct.flags",
    seccomp_mode: i32 = 0 "task_struct.seccomp.mode" optional,
    seccomp_filters: i32 = 0 "task_struct.seccomp.filter_count" optional,
    uid: u32 = 1 "cred.uid",
    gid: u32 = 1 "cred.gid",
    suid: u32 = 1 "cred.suid",
    sgid: u32 = 1 "cred.sgid",
    euid: u32 = 1 "cred.euid",
    egid: u32 = 1 "cred.egid",
    fsuid: u32 = 1 "cred.fsuid",
    fsgid: u32 = 1 "cred.fsgid",
    securebits: u32 = 1 "cred.securebits",
    cap_inheritable: u64 = 1 "cred.cap_inheritable",
    cap_permitted: u64 = 1 "cred.cap_permitted",
    cap_effective: u64 = 1 "cred.cap_effective",
    cap_bounding: u64 = 1 "cred.cap_bset",
    cap_ambient: u64 = 1 "cred.cap_ambient",
    process_keyring: u64 = 1 "cred.process_keyring" optional,
    thread_keyring: u64 = 1 "cred.thread_keyring" optional,
    group_count: i32 = 2 "group_info.ngroups",
    groups: [u32; MAX_GROUPS] = 2 "group_info.gid",
    policy_mode: u16 = 3 "mempolicy.mode" optional,
    policy_flags: u16 = 3 "mempolicy.flags" optional,
    policy_nodes: [u64; NODE_WORDS] = 3 "mempolicy.nodes" optional,
    comm: [u8; 16] = 0 "task_struct.comm",
}

/// Objects of [`ProcessRecord`] behind the task.
pub const PROCESS_POINTERS: &[Pointer] = &[
    (0, "task_struct.signal"),
    (0, "task_struct.sighand"),
    (0, "task_struct.mm"),
    (0, "task_struct.fs"),
];

record! {
    /// The process. `cpu_times` are user, system and run time, kept while a CPU timer is set.
    ProcessRecord: PROCESS_PLACES;
    actions: [[u64; 4]; 64] = 2 "sighand_struct.action",
    real_interval: u64 = 1 "signal_struct.it_real_incr",
    real_expires: u64 = 1 "signal_struct.real_timer.node.expires",
    cpu_timers: [[u64; 2]; 2] = 1 "signal_struct.it",
    cpu_times: [u64; 3] = 1 "signal_struct.cputimer.cputime_atomic",
    limits: [[u64; 2]; 16] = 1 "signal_struct.rlim",
    mm_flags: u64 = 3 "mm_struct.flags",
    mm_default: u64 = 3 "mm_struct.def_flags",
    membarrier: u32 = 3 "mm_struct.membarrier_state" optional,
    umask: u32 = 4 "fs_struct.umask",
    fs_users: i32 = 4 "fs_struct.users",
    oom_score_adj: i16 = 1 "signal_struct.oom_score_adj",
    real_state: u8 = 1 "signal_struct.real_timer.state",
    subreaper: u8 = 1 "signal_struct.is_child_subreaper",
}

/// Objects of [`TimerRecord`] behind the timer. The last is its signal, which newer kernels keep in it.
pub const TIMER_POINTERS: &[Pointer] = &[
    (0, "k_itimer.it_pid"),
    (0, "k_itimer.it.real.timer.base"),
    (0, "k_itimer.it.cpu.pid"),
    (0, "k_itimer.sigq"),
];
/// Index of the base that counts the time of a timer.
pub const OBJECT_BASE: u32 = 2;

record! {
    /// A timer.
    TimerRecord: TIMER_PLACES;
    interval: i64 = 0 "k_itimer.it_interval",
    overrun: i64 = 0 "k_itimer.it_overrun",
    overrun_last: i64 = 0 "k_itimer.it_overrun_last",
    expires: i64 = 0 "k_itimer.it.real.timer.node.expires",
    cpu_expires: u64 = 0 "k_itimer.it.cpu.node.expires",
    value: u64 = 4 "sigqueue.info._sifields._timer._sigval",
    id: i32 = 0 "k_itimer.it_id",
    clock: i32 = 0 "k_itimer.it_clock",
    notify: i32 = 0 "k_itimer.it_sigev_notify",
    target: i32 = 1 "pid.numbers",
    base_clock: i32 = 2 "hrtimer_clock_base.clockid",
    cpu_target: i32 = 3 "pid.numbers",
    signo: i32 = 4 "sigqueue.info.si_signo",
    state: u8 = 0 "k_itimer.it.real.timer.state",
}

/// A record's layout as the program takes it (`Layout` in snap-ebpf/src/state.rs).
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Layout {
    pub len: u32,
    pub objects: [ObjectRef; MAX_OBJECTS],
    pub fields: [FieldRef; MAX_FIELDS],
}

impl Layout {
    /// Resolves a record's places by `offset`; an error is the path of what the kernel does not have.
    pub fn new<E>(
        len: usize,
        pointers: &[Pointer],
        places: &[Place],
        mut offset: impl FnMut(&str) -> Result<Option<u32>, E>,
        missing: impl Fn(&str) -> E,
    ) -> Result<Self, E> {
        let mut layout = Self {
            len: len as u32,
            objects: [ObjectRef {
                parent: 0,
                offset: u32::MAX,
            }; MAX_OBJECTS],
            fields: [FieldRef::default(); MAX_FIELDS],
        };
        for (object, (parent, path)) in layout.objects[1..].iter_mut().zip(pointers) {
            *object = ObjectRef {
                parent: *parent,
                offset: offset(path)?.unwrap_or(u32::MAX),
            };
        }
        let mut fields = layout.fields.iter_mut();
        for place in places {
            let Some(at) = offset(place.path)? else {
                match place.required {
                    true => return Err(missing(place.path)),
                    false => continue,
                }
            };
            *fields.next().expect("a record has at most MAX_FIELDS") = FieldRef {
                object: place.object,
                len: place.len as u16,
                offset: at,
                dest: place.dest as u32,
            };
        }
        Ok(layout)
    }

    /// Has object `index` lie inside object 0, `offset` bytes in, rather than behind a pointer.
    pub fn embed(&mut self, index: u16, offset: u32) {
        for field in self.fields.iter_mut().filter(|f| f.object == index) {
            field.object = 0;
            field.offset += offset;
        }
        self.objects[usize::from(index)].offset = u32::MAX;
    }

    /// Its bytes, in the order of the program's struct.
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = self.len.to_ne_bytes().to_vec();
        for object in &self.objects {
            out.extend(object.parent.to_ne_bytes());
            out.extend(object.offset.to_ne_bytes());
        }
        for field in &self.fields {
            out.extend(field.object.to_ne_bytes());
            out.extend(field.len.to_ne_bytes());
            out.extend(field.offset.to_ne_bytes());
            out.extend(field.dest.to_ne_bytes());
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use snap_common::MAX_RECORD;

    #[test]
    fn records_fit_what_the_program_has_room_for() {
        for (len, pointers, places) in [
            (size_of::<ThreadRecord>(), THREAD_POINTERS, THREAD_PLACES),
            (size_of::<ProcessRecord>(), PROCESS_POINTERS, PROCESS_PLACES),
            (size_of::<TimerRecord>(), TIMER_POINTERS, TIMER_PLACES),
        ] {
            assert!(len <= MAX_RECORD, "{len} bytes");
            assert!(pointers.len() < MAX_OBJECTS);
            assert!(places.len() <= MAX_FIELDS);
            assert!(
                places
                    .iter()
                    .all(|p| usize::from(p.object) <= pointers.len())
            );
        }
    }

    #[test]
    fn a_missing_field_is_an_error_only_where_it_is_required() {
        let layout = |lacking: &'static str| {
            Layout::new(
                size_of::<ThreadRecord>(),
                THREAD_POINTERS,
                THREAD_PLACES,
                |path| Ok((path != lacking).then_some(8)),
                str::to_owned,
            )
        };
        assert_eq!(
            layout("task_struct.sas_ss_sp").err().as_deref(),
            Some("task_struct.sas_ss_sp")
        );
        let without = layout("task_struct.seccomp.mode").unwrap();
        let used = without.fields.iter().filter(|f| f.len != 0).count();
        assert_eq!(used, THREAD_PLACES.len() - 1);
        assert_eq!(without.bytes().len(), 4 + MAX_OBJECTS * 8 + MAX_FIELDS * 12);
    }

    #[test]
    fn an_embedded_object_is_read_in_place() {
        let mut layout = Layout::new(
            size_of::<TimerRecord>(),
            TIMER_POINTERS,
            TIMER_PLACES,
            |_| Ok::<_, String>(Some(16)),
            str::to_owned,
        )
        .unwrap();
        layout.embed(4, 100);
        assert!(layout.fields.iter().all(|f| f.object != 4));
        assert_eq!(layout.fields.iter().filter(|f| f.offset == 116).count(), 2);
    }
}
