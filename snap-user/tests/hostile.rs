//! Every decoder on damaged and hostile bytes: the targets of `fuzz/`, for a bounded number of inputs.
//!
//! `KSNAP_FUZZ_INPUTS` sets the number for each target, `KSNAP_FUZZ_SEED` makes other ones, `KSNAP_WRITE_SEEDS=1`
//! writes the seeds anew.

#[path = "../../fuzz/src/drive.rs"]
mod drive;
mod hostile_seeds;
#[path = "../../fuzz/src/small_targets.rs"]
mod small_targets;
#[path = "../../fuzz/src/targets.rs"]
mod targets;

use drive::{Mutations, corpus};
use hostile_seeds::read::is_read;
use snap_user::codec::{Encoding, Scratch, compress_block, encode};
use snap_user::image::{
    Ghost, HEADER_LEN, Header, Location, PACK_HEADER_LEN, PackEntry, Run, Section, SessionId,
    finish_pack,
};
use snap_user::model::{PAGE_SIZE, Page, PageRange, SnapshotId, SnapshotKind};
use snap_user::wire::{
    Begin, Encoded, Message, Offered, Order, PROTOCOL, Peer, Pids, Running, Stored, encode_frame,
    read_frame,
};
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use targets::{Target, repeat};

/// Inputs for each target, unless said otherwise: more than ten million for all of them.
const INPUTS: u64 = 1_000_000;
/// How many kinds of messages `docs/protocol.md` has.
const KINDS_OF_MESSAGES: usize = 18;

fn number(name: &str, otherwise: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("{name}={text} is no number")),
        Err(_) => otherwise,
    }
}

fn run((name, target): Target) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../fuzz/seeds")
        .join(name);
    let corpus = corpus(&folder);
    let seed = number("KSNAP_FUZZ_SEED", 1);
    let count = number("KSNAP_FUZZ_INPUTS", INPUTS) as usize;
    let mutations = Mutations::new(&corpus, seed).take(count);
    for (n, input) in corpus.iter().cloned().chain(mutations).enumerate() {
        if catch_unwind(AssertUnwindSafe(|| target(&input))).is_err() {
            let file = std::env::temp_dir().join(format!("ksnap-fuzz-{name}-{n}"));
            std::fs::write(&file, &input).expect("a place for the input");
            panic!(
                "target {name}, input {n} of seed {seed}: it is in {}",
                file.display()
            );
        }
    }
}

/// All there are.
fn all() -> impl Iterator<Item = &'static Target> {
    targets::TARGETS.iter().chain(small_targets::TARGETS)
}

fn named(name: &str) -> Target {
    let found = all().find(|target| target.0 == name);
    *found.unwrap_or_else(|| panic!("no target {name}"))
}

/// Writes what mutations begin with, as far as today's code makes it: pages in every encoding, and the parts of golden files.
fn write_seeds(fuzz: &Path) {
    let golden = include_bytes!("data/delta-v1.ksnap");
    let header = Header::decode(golden, golden.len() as u64).expect("the golden header");
    let part = |section: &Section| golden[section.offset as usize..section.end() as usize].to_vec();
    let mut files = vec![
        ("header", "golden".to_owned(), {
            let len = (golden.len() as u64).to_le_bytes();
            [&len[..], &golden[..HEADER_LEN]].concat()
        }),
        ("index", "golden".into(), part(&header.index)),
        ("dropped", "golden".into(), part(&header.dropped)),
        ("span", "golden".into(), part(&header.span)),
        ("manifest", "golden".into(), part(&header.manifest)),
    ];
    for (name, bytes) in [
        ("chunk", &include_bytes!("data/chunk-v1.ksnap")[..]),
        ("index", include_bytes!("data/index-v1.ksnap")),
        ("tree", include_bytes!("data/tree-v2.ksnap")),
        ("sealed-chunk", include_bytes!("data/sealed-chunk-v2.ksnap")),
        ("sealed-index", include_bytes!("data/sealed-index-v3.ksnap")),
        ("sealed-tree", include_bytes!("data/sealed-tree-v3.ksnap")),
        ("key", include_bytes!("data/bucket-key-v1.txt")),
    ] {
        files.push(("bucket", name.into(), bytes.to_vec()));
    }
    files.push(("pack", "two-ghosts".into(), a_pack()));
    files.push(("pack", "empty".into(), {
        let (head, tail) = finish_pack(SessionId([4; 16]), 1, 0, &[], &[], &[]);
        [&head[..], &tail].concat()
    }));
    for (name, len) in [("text", 600usize), ("zeroes", 4000)] {
        let text = b"what is compressed, and comes back as it was; "
            .iter()
            .cycle();
        let bytes: Vec<u8> = match name {
            "text" => text.take(len).copied().collect(),
            _ => vec![0; len],
        };
        let block = compress_block(&bytes);
        files.push((
            "block",
            name.into(),
            [&(len as u16).to_le_bytes()[..], &block].concat(),
        ));
    }
    for (name, seed, edits) in PAIRS {
        // Whole sixteenths of the previous version.
        let mut input = vec![(seed.len() / 16) as u8];
        input.extend_from_slice(seed);
        input.extend(edits.iter().flat_map(|(at, len, step)| {
            let [low, high] = at.to_le_bytes();
            [low, high, *len, *step]
        }));
        files.push(("pair", (*name).to_owned(), input));
    }
    for (name, seed, page) in pages() {
        let before = repeat(&seed);
        let mut input = vec![0, seed.len() as u8];
        input.extend_from_slice(&seed);
        let previous = (!seed.is_empty()).then_some(&before);
        input[0] = encode(&page, previous, &mut Scratch::default(), &mut input).tag();
        files.push(("page", format!("{name}-{}", input[0]), input));
    }
    for message in messages() {
        let mut bytes = vec![0];
        bytes[0] = message.encode(&mut bytes);
        files.push(("message", message.name().to_lowercase(), bytes));
    }
    let stream = messages().iter().flat_map(encode_frame).collect();
    files.push(("message", "stream".into(), stream));
    let head = golden.first_chunk().expect("a header");
    files.extend(hostile_seeds::seeds(head, golden.len() as u64));
    for (target, name, bytes) in files {
        let folder = fuzz.join("seeds").join(target);
        std::fs::create_dir_all(&folder).expect("a folder");
        std::fs::write(folder.join(name), bytes).expect("a file");
    }
}

/// A pack that stands for four snapshots, two of which others build on.
fn a_pack() -> Vec<u8> {
    let name = |seq, slot| Location::new(seq, slot).expect("not 0");
    let entry = |seq, slot, at| PackEntry {
        loan: 0,
        name: name(seq, slot),
        addr: 0x1000 * u64::from(slot + 1),
        at: PACK_HEADER_LEN as u64 + at,
        len: 8,
        encoding: Encoding::Fill,
        crc: 7,
    };
    let run = |start, first| Run {
        start,
        pages: 2,
        first,
    };
    let ghost = |seq, runs| Ghost { seq, runs };
    let (head, tail) = finish_pack(
        SessionId([4; 16]),
        9,
        16,
        &[entry(1, 0, 0), entry(1, 4, 8), entry(3, 0, 0)],
        &[(1, 3), (5, 5)],
        &[
            ghost(
                3,
                vec![run(0x1000, Some(name(1, 0))), run(0x4000, Some(name(3, 0)))],
            ),
            ghost(5, vec![run(0x2000, Some(name(5, 1)))]),
        ],
    );
    [&head[..], &[1; 16], &tail].concat()
}

/// Name, previous version, and edits: place, length, step.
type Pair = (&'static str, &'static [u8], &'static [(u16, u8, u8)]);
const PAIRS: &[Pair] = &[
    ("same", b"0123456789abcdef", &[]),
    ("one-word", b"0123456789abcdef", &[(1000, 8, 3)]),
    (
        "counters",
        b"\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0",
        &[(4100, 0, 1), (6000, 9, 2), (8000, 30, 250)],
    ),
    (
        "dense",
        b"0123456789abcdef",
        &[
            (0, 255, 1),
            (300, 255, 7),
            (900, 200, 99),
            (2000, 255, 1),
            (3000, 255, 3),
        ],
    ),
    (
        "pointers",
        b"\x10\x20\x30\x40\xff\x7f\0\0\x08\x90\x30\x40\xff\x7f\0\0",
        &[(4096, 4, 16), (5000, 4, 32), (7777, 1, 8)],
    ),
];

/// Pages with what they were before, nothing for one that is new.
fn pages() -> Vec<(&'static str, Vec<u8>, Page)> {
    let words = |word: &dyn Fn(u64) -> u64| {
        let mut page = [0; PAGE_SIZE as usize];
        for (place, n) in page.as_chunks_mut().0.iter_mut().zip(0..) {
            *place = word(n).to_le_bytes();
        }
        page
    };
    let noise = |n: u64| {
        (n + 1)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(31)
            .wrapping_mul(n | 3)
    };
    let seed = b"seventeen bytes..".to_vec();
    let was = repeat(&seed);
    let mut few = was;
    few[100..109].copy_from_slice(b"new bytes");
    let mut many = was;
    for word in many.as_chunks_mut::<8>().0.iter_mut().step_by(5) {
        *word = (u64::from_le_bytes(*word) + 77).to_le_bytes();
    }
    let mut all = was;
    for (word, n) in all.as_chunks_mut::<8>().0.iter_mut().zip(0..) {
        *word = (u64::from_le_bytes(*word) + noise(n) % 50).to_le_bytes();
    }
    let mut text = [0; PAGE_SIZE as usize];
    let story =
        b"some text that has words, and words that come again, though not in the same order";
    for (at, byte) in text.iter_mut().enumerate() {
        *byte = story[(at * at / 700 + at) % story.len()];
    }
    vec![
        ("zeroes", vec![], [0; PAGE_SIZE as usize]),
        ("fill", vec![], [7; PAGE_SIZE as usize]),
        ("noise", vec![], words(&noise)),
        ("text", vec![], text),
        (
            "small",
            vec![],
            words(&|n| if n % 40 == 0 { n * n } else { 0 }),
        ),
        (
            "records",
            vec![],
            words(&|n| [0x7f00_1234_0000 + n * 64, n, noise(n / 7) >> 40, 0][n as usize % 4]),
        ),
        ("few", seed.clone(), few),
        ("many", seed.clone(), many),
        ("all", seed, all),
    ]
}

/// What a source and a target say to each other.
fn messages() -> Vec<Message> {
    let peer = Peer {
        protocol: PROTOCOL,
        format: 1,
        state: 3,
        arch: 62,
        page_size: 4096,
        kernel: "6.18.0".into(),
        features: vec!["avx2".into(), "popcnt".into()],
    };
    let offered = |addr: u64| Offered {
        addr,
        hash: [addr as u8; 32],
    };
    vec![
        Message::Hello(peer.clone()),
        Message::Welcome(peer),
        Message::Refused("another architecture".into()),
        Message::Alive,
        Message::Begin(Begin {
            kind: SnapshotKind::Delta,
            id: SnapshotId([7; 16]),
            time_ns: 1_700_000_000_000_000_000,
            pid: 4711,
            start_time: 99,
            pages: 2,
            restore: true,
            lazy: true,
            comm: "redis-server".into(),
            exe: "/usr/bin/redis-server".into(),
        }),
        Message::Offer(vec![offered(0x1000), offered(0x7fff_0000_2000)]),
        Message::Want(vec![0, 4095]),
        Message::Pages(vec![
            Encoded {
                encoding: Encoding::Zero,
                bytes: vec![],
            },
            Encoded {
                encoding: Encoding::Lz4,
                bytes: b"not really".to_vec(),
            },
        ]),
        Message::Dropped(vec![PageRange::new(0x1000, 0x3000)]),
        Message::State(vec![3, 0, 0, 0]),
        Message::Publish([9; 32]),
        Message::Stored(Stored {
            id: SnapshotId([8; 16]),
            seq: 3,
            file_bytes: 4711,
        }),
        Message::Restore(Order {
            pids: Pids::Namespace,
            eager: true,
            allow_changed_files: false,
            network: true,
        }),
        Message::Running(Running {
            pid: 12,
            own_pid: 3,
            took_ns: 77,
            notes: vec!["a connection is gone".into()],
        }),
        Message::Settled,
        Message::Done,
        Message::Listed,
        Message::Fetch(vec![0x1000, 0x7fff_0000_2000]),
    ]
}

#[test]
fn any_message_is_sound_or_an_error() {
    run(named("message"));
}

#[test]
fn every_message_comes_back_from_its_bytes() {
    let stream: Vec<u8> = messages().iter().flat_map(encode_frame).collect();
    let mut input = &stream[..];
    let mut names = BTreeSet::new();
    for message in messages() {
        assert_eq!(read_frame(&mut input).expect("its own bytes"), message);
        names.insert(message.name());
    }
    assert!(input.is_empty());
    assert_eq!(names.len(), KINDS_OF_MESSAGES, "{names:?}");
}

#[test]
fn a_message_that_is_cut_short_or_too_long_is_an_error() {
    for message in messages() {
        // A part of the process state is whatever is left.
        if matches!(message, Message::State(_)) {
            continue;
        }
        let mut body = Vec::new();
        let tag = message.encode(&mut body);
        for len in 0..body.len() {
            assert!(Message::decode(tag, &body[..len]).is_err(), "{tag} {len}");
        }
        body.push(0);
        assert!(Message::decode(tag, &body).is_err(), "{tag}");
    }
}

#[test]
fn any_encoded_page_gives_a_page_or_an_error() {
    run(named("page"));
}

#[test]
fn any_page_comes_back() {
    run(named("pair"));
}

#[test]
fn any_block_gives_bytes_or_an_error() {
    run(named("block"));
}

#[test]
fn any_header_is_sound_or_an_error() {
    run(named("header"));
}

#[test]
fn any_section_is_sound_or_an_error() {
    run(named("index"));
    run(named("dropped"));
    run(named("span"));
    run(named("manifest"));
}

#[test]
fn any_pack_is_sound_or_an_error() {
    run(named("pack"));
}

#[test]
fn any_small_file_is_sound_or_an_error() {
    run(named("headers"));
    run(named("tree"));
    run(named("described"));
}

#[test]
fn any_pages_beside_a_snapshot_are_sound_or_an_error() {
    run(named("received"));
    run(named("flat"));
}

#[test]
fn any_sealed_file_is_what_was_sealed_or_an_error() {
    run(named("sealed"));
}

#[test]
fn any_file_of_keys_is_sound_or_an_error() {
    run(named("keys"));
}

#[test]
fn any_line_on_the_socket_of_a_watcher_is_sound_or_an_error() {
    run(named("socket"));
}

#[cfg(feature = "object-storage")]
#[test]
fn any_object_of_a_bucket_is_sound_or_an_error() {
    run(named("bucket"));
}

#[test]
fn what_mutations_begin_with_is_read() {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds");
    for (name, _) in all() {
        for (n, seed) in corpus(&seeds.join(name)).iter().enumerate() {
            assert!(is_read(name, seed), "target {name}, seed {n}");
            assert!(seed.len() <= drive::LONGEST, "target {name}, seed {n}");
        }
    }
}

#[test]
fn every_target_is_run_and_has_a_corpus_and_a_file_for_cargo_fuzz() {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz");
    if std::env::var_os("KSNAP_WRITE_SEEDS").is_some() {
        write_seeds(&fuzz);
    }
    let manifest = std::fs::read_to_string(fuzz.join("Cargo.toml")).expect("fuzz/Cargo.toml");
    let here = include_str!("hostile.rs");
    for (name, _) in all() {
        assert!(!corpus(&fuzz.join("seeds").join(name)).is_empty(), "{name}");
        assert!(
            fuzz.join("fuzz_targets")
                .join(format!("{name}.rs"))
                .exists(),
            "{name}"
        );
        assert!(manifest.contains(&format!("name = \"{name}\"")), "{name}");
        assert!(here.contains(&format!("run(named(\"{name}\"))")), "{name}");
    }
}
