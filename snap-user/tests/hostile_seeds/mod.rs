//! What mutations of the small files, of lines and of keys begin with.

pub mod read;

use crate::small_targets::{FLAT_OF, RECORD};
use snap_user::codec::{Scratch, encode};
use snap_user::image::HEADER_LEN;
use snap_user::model::{
    Costs, PAGE_SIZE, Page, PageRange, ProcessTree, SharedFile, SnapshotId, SnapshotKind,
    TreeMember, Zombie,
};
use snap_user::session::{
    PrunedSession, Reply, Request, RolledBack, Taken, TakenProcess, TakenTree, Then, What,
};
use snap_user::store::hostile::{flat_head, session_text};
use snap_user::store::{Continuation, FlatPiece, Rules, SessionInfo, tree_to_text};
use snap_user::wire::KeyPair;

/// A target, a name, and bytes.
pub type Seed = (&'static str, String, Vec<u8>);

/// Those that today's code makes; the others are files in the corpus alone. `header`: one of a snapshot that is in a file
/// of so many bytes.
pub fn seeds(header: &[u8; HEADER_LEN], len: u64) -> Vec<Seed> {
    let mut seeds: Vec<Seed> = vec![
        ("headers", "two".into(), record(header, len).repeat(2)),
        (
            "headers",
            "cut".into(),
            [&record(header, len)[..], header].concat(),
        ),
        ("tree", "plain".into(), tree_to_text(&tree()).into_bytes()),
        ("received", "three".into(), received()),
        ("flat", "two-pieces".into(), flat()),
        ("flat", "empty".into(), empty_flat()),
        ("described", "session".into(), session_text(&info()).into()),
        (
            "sealed",
            "golden".into(),
            include_bytes!("../data/sealed-v1.bin").to_vec(),
        ),
    ];
    let pair = KeyPair::generate().expect("random numbers");
    seeds.push(("keys", "pair".into(), pair.to_text().into()));
    seeds.extend(
        lines()
            .into_iter()
            .map(|(name, line)| ("socket", name.to_owned(), line.into())),
    );
    seeds
}

fn record(header: &[u8; HEADER_LEN], len: u64) -> [u8; RECORD] {
    let mut record = [0; RECORD];
    record[..HEADER_LEN].copy_from_slice(header);
    record[HEADER_LEN..][..8].copy_from_slice(&len.to_le_bytes());
    record[HEADER_LEN + 8..][..8].copy_from_slice(&1_764_000_000_000_000_001u64.to_le_bytes());
    let crc = crc32c::crc32c(&record[..HEADER_LEN + 16]);
    record[HEADER_LEN + 16..][..4].copy_from_slice(&crc.to_le_bytes());
    record
}

fn tree() -> ProcessTree {
    let member = |n: u8, parent| TreeMember {
        id: SnapshotId([n; 16]),
        pid: i32::from(n),
        parent,
        group: 4,
        session: 0,
        stopped: n == 2,
        foreground: (n == 3).then_some(7),
    };
    ProcessTree {
        time_ns: 5,
        stop_ns: 6,
        members: vec![member(1, None), member(2, Some(0)), member(3, Some(1))],
        zombies: vec![Zombie {
            pid: 9,
            own_pid: 9,
            parent: 2,
            comm: "a\"b".into(),
            group: 1,
            session: 1,
            status: 0x100,
        }],
        shared: vec![vec![
            SharedFile { member: 0, file: 1 },
            SharedFile { member: 2, file: 7 },
        ]],
    }
}

fn received() -> Vec<u8> {
    let mut bytes = Vec::new();
    for seed in [0u8, 3, 9] {
        let mut page: Page = [0; PAGE_SIZE as usize];
        for (n, byte) in page.iter_mut().enumerate() {
            *byte = seed.wrapping_mul((n / 97) as u8);
        }
        let mut encoded = Vec::new();
        let encoding = encode(&page, None, &mut Scratch::default(), &mut encoded);
        bytes.extend_from_slice(blake3::hash(&page).as_bytes());
        bytes.push(encoding.tag());
        bytes.extend_from_slice(&(encoded.len() as u16).to_le_bytes());
        bytes.extend_from_slice(&encoded);
    }
    bytes
}

/// An image whose pages are all zeroes, but for the beginning.
fn image(pieces: &[FlatPiece], pages: usize) -> Vec<u8> {
    let zero = crc32c::crc32c(&[0; PAGE_SIZE as usize]);
    let sums: Vec<u8> = (0..pages).flat_map(|_| zero.to_le_bytes()).collect();
    let end = pages as u64 * PAGE_SIZE;
    let mut bytes = flat_head(FLAT_OF.0, FLAT_OF.1, pieces, (end, crc32c::crc32c(&sums)));
    bytes.resize(end as usize, 0);
    bytes.extend(sums);
    bytes
}

/// Two pieces of one page each, which share their place behind the beginning: that keeps it short.
fn flat() -> Vec<u8> {
    let piece = |start: u64| FlatPiece {
        range: PageRange::new(start, start + PAGE_SIZE),
        offset: PAGE_SIZE,
    };
    image(&[piece(0x1000), piece(0x7fff_0000_0000)], 2)
}

fn empty_flat() -> Vec<u8> {
    image(&[], 1)
}

fn info() -> SessionInfo {
    SessionInfo {
        pid: 4711,
        start_time: 99,
        comm: "a\"b\n".into(),
        exe: "/usr/bin/ä".into(),
        cmdline: vec!["a".into(), String::new()],
        created_ns: 5,
        continued: vec![Continuation {
            pid: 1,
            ..Continuation::default()
        }],
        ..SessionInfo::default()
    }
}

fn taken() -> Taken {
    Taken {
        id: SnapshotId([7; 16]),
        seq: 3,
        kind: SnapshotKind::Delta,
        time_ns: 5,
        costs: Costs::default(),
        unsupported: vec!["a sentence".into()],
        file_bytes: 4711,
        kept: None,
        notes: Vec::new(),
    }
}

/// What is asked of a watcher, and what it answers.
fn lines() -> Vec<(&'static str, String)> {
    let id = SnapshotId([7; 16]);
    let snap = Request::Snap {
        then: Then::Stop,
        also: snap_user::session::Also {
            audit: true,
            files: false,
        },
        recipients: vec!["age1x".into()],
        tree: true,
        pid: Some(4711),
    };
    let prune = |what| Request::Prune {
        what,
        dry_run: true,
        session: Some(id.to_string()),
    };
    let requests = [
        ("snap", snap),
        (
            "rollback",
            Request::Rollback {
                to: id.to_string(),
                tree: false,
                pid: None,
            },
        ),
        ("profile", Request::Profile { lasting_ms: 5 }),
        (
            "prune-rules",
            prune(What::Rules(Rules {
                keep_last: Some(3),
                ..Rules::default()
            })),
        ),
        ("prune", prune(What::Snapshots(vec![id.to_string()]))),
    ];
    let tree = TakenTree {
        id,
        processes: vec![TakenProcess {
            pid: 4711,
            parent: None,
            comm: "one".into(),
            taken: taken(),
        }],
        zombies: 1,
        stop_ns: 5,
        unsupported: Vec::new(),
        kept: None,
        notes: vec!["another".into()],
    };
    let replies = [
        ("taken", Reply::Taken(Box::new(taken()))),
        ("taken-tree", Reply::TakenTree(Box::new(tree))),
        (
            "rolled-back",
            Reply::RolledBack(RolledBack {
                to: id,
                seq: 3,
                written: 4,
                discarded: 5,
                stop_ns: 6,
                stopped: true,
                notes: Vec::new(),
            }),
        ),
        (
            "pruned",
            Reply::Pruned(Box::new(PrunedSession {
                session: id.to_string(),
                pid: 4711,
                comm: "one".into(),
                removed: Vec::new(),
                kept: 1,
                merged_pages: 2,
                bytes_before: 3,
                bytes_after: 4,
                whole_session: false,
                by_watcher: true,
            })),
        ),
        ("failed", Reply::Failed("a \"reason\"".into())),
    ];
    let text = |line: serde_json::Result<String>| line.expect("plain data") + "\n";
    let requests = requests
        .iter()
        .map(|(name, line)| (*name, text(serde_json::to_string(line))));
    let replies = replies
        .iter()
        .map(|(name, line)| (*name, text(serde_json::to_string(line))));
    requests.chain(replies).collect()
}
