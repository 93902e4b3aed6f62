//! A store with four snapshots of an invented process, and the binary run on it.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use snap_user::codec::Scratch;
use snap_user::model::{
    Backing, Costs, Descriptor, FileKind, OpenFile, PAGE_SIZE, Page, PageCounts, PageRange, Phases,
    ProcessState, Protection, SnapshotId, SnapshotKind, ThreadState, Vma,
};
use snap_user::store::{EncodedBatch, PageSink, Session, SessionInfo, Store};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;

const PID: i32 = 4242;
const HEAP: u64 = 0x10_0000;
/// 2026-01-02 03:04:05 UTC.
const TIME: u64 = 1_767_323_045_000_000_000;

/// Snapshots @1 (base), @2 and @3 in a row, and @4, which follows @2.
pub struct Fixture {
    _dir: TempDir,
    pub store: PathBuf,
    /// Ids in full.
    pub ids: Vec<String>,
}

impl Fixture {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("store");
        let store = Store::open_or_create(&path).expect("a new store");
        let mut session = store.create_session(&info(PID)).expect("a session");
        let first = publish(&mut session, 1, None, 0..8);
        let second = publish(&mut session, 2, Some(first), 0..2);
        let third = publish(&mut session, 3, Some(second), 1..2);
        let fourth = publish(&mut session, 4, Some(second), 5..6);
        Self {
            _dir: dir,
            store: path,
            ids: [first, second, third, fourth]
                .map(|id| id.to_string())
                .into(),
        }
    }

    /// A snapshot @1 of another process.
    pub fn second_session(&self) {
        let store = Store::open(&self.store).expect("the store");
        let mut session = store.create_session(&info(4343)).expect("a session");
        publish(&mut session, 9, None, 0..1);
    }

    pub fn command(&self, words: &[&str]) -> Command {
        command(&self.store, words)
    }

    pub fn ksnap(&self, words: &[&str]) -> Ran {
        ksnap(&self.store, words)
    }

    /// Inverts the byte at `offset` of a snapshot's file.
    pub fn damage(&self, id: &str, offset: u64) {
        let file = self.file(id);
        let mut byte = [0];
        file.read_exact_at(&mut byte, offset).unwrap();
        file.write_all_at(&[!byte[0]], offset).unwrap();
    }

    /// Inverts the last byte, which is the manifest's.
    pub fn damage_end(&self, id: &str) {
        let len = self.file(id).metadata().unwrap().len();
        self.damage(id, len - 1);
    }

    fn file(&self, id: &str) -> std::fs::File {
        let store = Store::open(&self.store).unwrap();
        let meta = store.list().unwrap();
        let meta = meta.iter().find(|meta| meta.id.to_string() == id).unwrap();
        std::fs::File::options()
            .read(true)
            .write(true)
            .open(&meta.path)
            .unwrap()
    }
}

fn info(pid: i32) -> SessionInfo {
    SessionInfo {
        pid,
        comm: "victim".into(),
        ..SessionInfo::default()
    }
}

/// A page that is neither zero nor one repeated word.
fn page(seed: u64) -> Page {
    let mut page = [0; PAGE_SIZE as usize];
    for (n, word) in page.chunks_exact_mut(8).enumerate() {
        word.copy_from_slice(&(seed * 1000 + n as u64 / 4).to_le_bytes());
    }
    page
}

fn publish(
    session: &mut Session,
    n: u64,
    parent: Option<SnapshotId>,
    pages: std::ops::Range<u64>,
) -> SnapshotId {
    let kind = parent.map_or(SnapshotKind::Base, |_| SnapshotKind::Delta);
    let state = state(session.info().pid, n);
    let mut pending = session.begin(kind, parent).expect("a snapshot");
    let mut batch = EncodedBatch::new(0);
    let mut scratch = Scratch::default();
    for number in pages {
        batch.push(
            HEAP + number * PAGE_SIZE,
            &page(n * 100 + number),
            &mut scratch,
        );
    }
    pending.append(&batch).expect("pages");
    pending.set_time_ns(TIME + n * 1_000_000);
    pending.publish(&state, &costs()).expect("a publication").id
}

fn costs() -> Costs {
    Costs {
        phases: Phases {
            freeze_ns: 100_000,
            stop_ns: 1_500_000,
            ..Phases::default()
        },
        pages: PageCounts {
            dirty: 12,
            ..PageCounts::default()
        },
        tracker: "wp".into(),
        ..Costs::default()
    }
}

/// General registers of x86-64: the layout of `struct user_regs_struct`, 27 words.
fn registers(ip: u64, sleeping: bool) -> Vec<u8> {
    let mut words = [0u64; 27];
    words[16] = ip;
    words[19] = 0x7fff_0000;
    // rax and orig_rax of a nanosleep that the stop interrupted (ERESTART_RESTARTBLOCK).
    words[10] = if sleeping { -516i64 as u64 } else { 0 };
    words[15] = if sleeping { 35 } else { u64::MAX };
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn vma(start: u64, pages: u64, write: bool, backing: Backing) -> Vma {
    Vma {
        range: PageRange::new(start, start + pages * PAGE_SIZE),
        prot: Protection {
            read: true,
            write,
            exec: !write,
        },
        shared: false,
        backing,
        flags: Vec::new(),
        build_id: None,
    }
}

fn state(pid: i32, n: u64) -> ProcessState {
    let mut vmas = vec![vma(HEAP, 16, true, Backing::Heap)];
    if n == 3 {
        let backing = Backing::File {
            path: "/lib/new.so".into(),
            deleted: false,
            dev: (8, 1),
            inode: 77,
            offset: 0,
        };
        vmas.push(vma(0x7000_0000, 4, false, backing));
    }
    let thread = |tid, comm: &str, gp| ThreadState {
        tid,
        comm: comm.into(),
        gp,
        ..ThreadState::default()
    };
    ProcessState {
        pid,
        ppid: 1,
        comm: "victim".into(),
        exe: "/usr/bin/victim".into(),
        cmdline: vec![b"victim".to_vec(), b"--fast".to_vec()],
        cwd: "/".into(),
        threads: vec![
            thread(pid, "victim", registers(0x40_1000 + n, true)),
            thread(pid + 1, "worker\x1b[2J", registers(0x40_1000, false)),
        ],
        vmas,
        descriptors: vec![Descriptor {
            fd: 3,
            file: 0,
            cloexec: false,
        }],
        files: vec![OpenFile {
            kind: FileKind::Regular,
            link: "/var/log/victim.log".into(),
            position: n * 100,
            flags: 0o100_001,
            identity: (8, 99),
            ..OpenFile::default()
        }],
        unsupported: vec!["mapping 5000-6000: device memory is not captured".into()],
        ..ProcessState::default()
    }
}

fn command(store: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ksnap"));
    command.arg("--store").arg(store).args(words);
    for name in ["KSNAP_STORE", "KSNAP_LOG", "NO_COLOR"] {
        command.env_remove(name);
    }
    command.stdin(std::process::Stdio::null());
    command
}

/// Runs the binary on a store.
pub fn ksnap(store: &Path, words: &[&str]) -> Ran {
    Ran::new(command(store, words).output().expect("the binary"))
}

/// What came of it.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Ran {
    pub fn new(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        Self {
            code: output.status.code().expect("an exit code, no signal"),
            out: text(output.stdout),
            err: text(output.stderr),
        }
    }

    pub fn ok(self) -> Self {
        self.fails(0)
    }

    pub fn fails(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{self:?}");
        assert!(!self.err.contains("panicked"), "{self:?}");
        self
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}
