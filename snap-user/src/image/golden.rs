//! A committed file per format version: today's reader understands it, today's writer still makes it.

use super::*;
use crate::codec::{Encoding, Scratch};
use crate::model::*;

pub(super) const GOLDEN: &[u8] = include_bytes!("../../tests/data/delta-v1.ksnap");
const SESSION: SessionId = SessionId([0x5e; 16]);
const LATE: Late = Late {
    write_ns: 44_000,
    sync_ns: 55_000,
};
const PARENT: SnapshotId = SnapshotId([0xaa; 16]);

fn location(seq: u32, slot: u32) -> Location {
    Location::new(seq, slot).expect("not 0")
}

/// Pages of several encodings, in the order zero, fill, repetitive text, raw, changes to what [`before`] gives.
fn pages() -> [(u64, Page); 5] {
    let mut text = [0; PAGE_SIZE as usize];
    for (at, byte) in text.iter_mut().enumerate() {
        *byte = b"golden file "[at % 12];
    }
    let mut noise = [0; PAGE_SIZE as usize];
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    for word in noise.chunks_exact_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        word.copy_from_slice(&state.to_le_bytes());
    }
    let mut changed = before();
    changed[1000..1008].copy_from_slice(b"new word");
    [
        (0x7f00_0000_0000, [0; PAGE_SIZE as usize]),
        (0x7f00_0000_1000, [0x5a; PAGE_SIZE as usize]),
        (0x40_0000, text),
        (0x40_3000, noise),
        (0x41_0000, changed),
    ]
}

/// What the page at `0x41_0000` was.
fn before() -> Page {
    let mut page = [0; PAGE_SIZE as usize];
    for (at, byte) in page.iter_mut().enumerate() {
        *byte = (at * at / 9) as u8;
    }
    page
}

fn state() -> ProcessState {
    ProcessState {
        pid: 4242,
        ppid: 1,
        start_time: 987_654,
        comm: "golden".into(),
        exe: "/usr/bin/golden".into(),
        cmdline: vec![b"golden".to_vec(), b"--flag".to_vec()],
        cwd: "/".into(),
        threads: vec![ThreadState {
            tid: 4242,
            comm: "golden".into(),
            gp: (0..216).map(|n| n as u8).collect(),
            fp: vec![0; 2696],
            sigmask: 0x4000,
            pending: vec![PendingSignal {
                signo: 10,
                shared: true,
                siginfo: vec![10; 128],
            }],
            rseq: Some(Rseq {
                addr: 0x7f00_0000_1020,
                size: 32,
                signature: 0x5305_3053,
                flags: 0,
            }),
            robust_list: Some(RobustList {
                head: 0x7f00_0000_1100,
                len: 24,
            }),
            restart_syscall: Some(219),
            time_left_ns: Some(1_500_000_000),
            own_tid: 17,
            attributes: thread_attributes(),
        }],
        vmas: vec![Vma {
            range: PageRange::new(0x40_0000, 0x40_4000),
            prot: Protection {
                read: true,
                write: true,
                exec: false,
            },
            shared: false,
            backing: Backing::File {
                path: "/usr/bin/golden".into(),
                deleted: false,
                dev: (254, 1),
                inode: 77,
                offset: 0x3000,
            },
            flags: vec!["rd".into(), "wr".into()],
            build_id: Some(vec![1, 2, 3]),
        }],
        mm: MmFields {
            start_brk: 0x60_0000,
            brk: 0x62_1000,
            ..MmFields::default()
        },
        auxv: vec![(6, 4096), (0, 0)],
        descriptors: vec![Descriptor {
            fd: 3,
            file: 0,
            cloexec: true,
        }],
        files: vec![OpenFile {
            kind: FileKind::Regular,
            link: "/tmp/x".into(),
            deleted: false,
            position: 99,
            flags: 0o100_002,
            identity: (65025, 12),
            owner: None,
            locks: vec![FileLock {
                kind: LockKind::Flock,
                write: true,
                start: 0,
                end: None,
            }],
            detail: Detail::Regular(Regular {
                size: 100,
                mtime_ns: 1_764_000_000_000_000_001,
                mode: 0o100_644,
            }),
        }],
        mapped: vec![MappedFile {
            dev: (8, 1),
            inode: 77,
            size: 12_345,
            mtime_ns: 1_700_000_000_000_000_001,
        }],
        saved: vec![SavedFile {
            identity: (65025, 12),
            path: "/tmp/x".into(),
            start: FILE_SPACE,
            content: Regular::default(),
        }],
        unsupported: vec!["a sentence".into()],
        clocks: Some(Clocks {
            boot: [0xb0; 16],
            monotonic_ns: 86_400_000_000_001,
            boottime_ns: 172_800_000_000_002,
        }),
        attributes: process_attributes(),
    }
}

fn thread_attributes() -> ThreadAttributes {
    ThreadAttributes {
        alt_stack: Some(AltStack {
            sp: 0x7f00_0000_2000,
            size: 8192,
            flags: 0,
        }),
        clear_child_tid: Some(0x7f00_0000_1310),
        credentials: Some(Credentials {
            uids: [1000, 1000, 0, 1000],
            gids: [100; 4],
            groups: vec![4, 24, 27],
            capabilities: [0, 0x400, 0x400, 0x1ff_ffff_ffff, 0],
            securebits: Some(0x10),
            no_new_privs: true,
        }),
        scheduling: Some(Scheduling {
            nice: 5,
            ..Scheduling::default()
        }),
        affinity: Some(vec![3]),
        io_priority: Some(2 << 13 | 4),
        timer_slack_ns: Some(50_000),
        parent_death_signal: Some(1),
        seccomp: Seccomp {
            mode: 2,
            filters: Some(vec![SeccompFilter {
                flags: 2,
                program: vec![6, 0, 0, 0, 0, 0, 0xff, 0x7f],
            }]),
        },
        syscall_dispatch: Some(SyscallDispatch::default()),
        tsc_faults: Some(false),
        speculation: [Some(2), Some(4)],
        memory_policy: Some(MemoryPolicy {
            mode: 2,
            nodes: vec![1],
        }),
        ..ThreadAttributes::default()
    }
}

fn process_attributes() -> ProcessAttributes {
    ProcessAttributes {
        signals: Some(vec![
            SignalAction {
                handler: 0x40_0100,
                flags: 0x1400_0000,
                restorer: 0x40_0200,
                mask: 1,
            };
            64
        ]),
        interval_timers: Some(
            [IntervalTimer {
                left_ns: 1_000_000,
                interval_ns: 2_000_000,
            }; 3],
        ),
        timers: Some(vec![PosixTimer {
            id: 7,
            clock: 1,
            notify: 4,
            signo: 10,
            thread: Some(4242),
            deadline_ns: Some(1_764_000_000_000_000_000),
            ..PosixTimer::default()
        }]),
        umask: Some(0o22),
        root: "/".into(),
        limits: vec![
            Limit {
                soft: 1024,
                hard: u64::MAX,
            };
            16
        ],
        namespaces: vec![("pid".into(), 4_026_531_836)],
        time_offsets: Some([-1, 86_400_000_000_000]),
        cgroup: "0::/\n".into(),
        memory: MemoryAttributes {
            guards: vec![PageRange::new(0x7f00_0000_0000, 0x7f00_0000_1000)],
            keys: vec![(PageRange::new(0x40_0000, 0x40_4000), 3)],
            policies: Vec::new(),
        },
        source: Source::Calls { age_ns: 5 },
        ..ProcessAttributes::default()
    }
}

fn costs() -> Costs {
    Costs {
        stop_seen_ns: Some(1_500_000),
        ring_drops: 2,
        tracker: "wp".into(),
        bytes_out: 4386,
        phases: Phases {
            stop_ns: 1_234_567,
            ..Phases::default()
        },
        ..Costs::default()
    }
}

fn dropped() -> PageSet {
    PageSet::from_ranges(vec![PageRange::new(0x50_0000, 0x58_0000)])
}

fn runs() -> Vec<Run> {
    vec![
        Run {
            start: 0x40_0000,
            pages: 1,
            first: Some(location(9, 0)),
        },
        Run {
            start: 0x50_0000,
            pages: 128,
            first: None,
        },
        Run {
            start: 0x7f00_0000_0000,
            pages: 2,
            first: Some(location(9, 3)),
        },
    ]
}

/// The golden file, made by the code as it is.
fn make() -> Vec<u8> {
    let mut parent = PageTable::new();
    parent.insert(0x41_0000, location(3, 17));
    let mut scratch = Scratch::default();
    let mut batch = EncodedBatch::new(0);
    let was = before();
    for (addr, page) in pages() {
        let previous = parent.get(addr).map(|at| Previous { page: &was, at });
        batch.push_against(addr, &page, previous, &mut scratch);
    }
    batch.push_same(0x40_1000, 0x41_0000);
    let mut builder = Builder::new();
    builder
        .append(&batch, &[], &parent)
        .expect("the reference is there");
    builder.drop_ranges(&dropped());
    let entries = builder.entries();
    let identity = Identity {
        arch: Arch::X86_64,
        kind: SnapshotKind::Delta,
        parent: Some((PARENT, 8)),
        session: SESSION,
        seq: 9,
        time_ns: 1_764_000_000_123_456_789,
        // A file of before the header had it.
        found: None,
    };
    let span = SpanPlan {
        kind: SpanKind::Since(4),
        runs: runs(),
        depth: 16,
    };
    let finished = builder
        .finish(&identity, &entries, &span, 6, &state(), &costs())
        .expect("within the limits");
    let mut file = finished.head.to_vec();
    file.extend_from_slice(batch.bytes());
    file.extend_from_slice(&finished.tail);
    let late = LATE_OFFSET as usize;
    file[late..late + LATE_LEN].copy_from_slice(&LATE.encode());
    file
}

#[test]
fn the_writer_still_makes_the_golden_file() {
    let advice = format!(
        "It is of format version {FORMAT_VERSION}. A released format never changes: give the new one a version and a \
         golden file of its own. Before the first release, KSNAP_WRITE_GOLDEN=1 writes the file anew"
    );
    crate::golden::assert_is_golden("delta-v1.ksnap", GOLDEN, &make(), &advice);
}

#[test]
fn the_golden_file_reads_back() {
    let header = Header::decode(GOLDEN, GOLDEN.len() as u64).expect("a header");
    assert_eq!(header.arch, Arch::X86_64);
    assert_eq!(
        (header.kind, header.parent),
        (SnapshotKind::Delta, Some(PARENT))
    );
    assert_eq!(
        (header.session, header.seq, header.parent_seq),
        (SESSION, 9, 8)
    );
    assert_eq!((header.depth, header.span_kind), (16, SpanKind::Since(4)));
    assert_eq!((header.pid, header.pages), (4242, 6));
    assert_eq!(header.time_ns, 1_764_000_000_123_456_789);
    assert_eq!((header.stop_ns, header.late), (1_234_567, Some(LATE)));

    let part = |section: &Section| &GOLDEN[section.offset as usize..section.end() as usize];
    let entries = decode_index(part(&header.index), &header).expect("an index");
    let kinds: Vec<(u64, Encoding)> = entries.iter().map(|e| (e.addr, e.encoding)).collect();
    assert_eq!(
        kinds,
        [
            (0x40_0000, Encoding::Vectors),
            (0x40_1000, Encoding::Reference),
            (0x40_3000, Encoding::Raw),
            (0x41_0000, Encoding::Runs),
            (0x7f00_0000_0000, Encoding::Zero),
            (0x7f00_0000_1000, Encoding::Fill),
        ]
    );
    assert_eq!(entries[1].target(), Some(location(3, 17)));
    for (addr, want) in pages() {
        let entry = entries
            .iter()
            .find(|entry| entry.addr == addr)
            .expect("an entry");
        let bytes = &GOLDEN[entry.at as usize..][..entry.len.into()];
        let mut page = [0xff; PAGE_SIZE as usize];
        let previous = entry.previous(bytes, header.seq);
        let was = previous.expect("a place or none").map(|at| {
            assert_eq!(at, location(3, 17));
            before()
        });
        entry
            .decode_page(bytes, was.as_ref(), &mut page)
            .expect("a page");
        assert!(page == want, "{addr:#x}");
    }
    assert_eq!(
        decode_dropped(part(&header.dropped), &header).expect("ranges"),
        dropped()
    );
    assert_eq!(
        decode_span(part(&header.span), &header).expect("runs"),
        runs()
    );
    let manifest = Manifest::decode(part(&header.manifest), &header).expect("a manifest");
    let mut state = state();
    // It is from when timers named threads as the PID namespace of ksnap does.
    state.name_timer_threads();
    assert_eq!((manifest.state, manifest.costs), (state, costs()));
}
