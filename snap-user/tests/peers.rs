//! `ksnap serve` and peers that do not do what they should: not trusted, of another kind, silent, or out of their mind.

use snap_user::codec::Encoding;
use snap_user::image::{Arch, FORMAT_VERSION, Manifest, STATE_VERSION};
use snap_user::model::{Costs, ProcessState, SnapshotId, SnapshotKind};
use snap_user::store::Store;
use snap_user::sys::proc::processor_features;
use snap_user::wire::{
    Begin, Digest, Encoded, KeyPair, Keys, Link, Message, Offered, PROTOCOL, Peer, PublicKey,
    STALL, WireError,
};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

mod skip;
#[path = "../src/small_disk.rs"]
mod small_disk;

use small_disk::{SmallDisk, each_shortage};

/// A server with a store and keys of its own, which ends with this.
struct Server {
    child: Child,
    address: SocketAddr,
    key: PublicKey,
    store: PathBuf,
    _folder: tempfile::TempDir,
}

impl Server {
    fn start(trusts: &[PublicKey], timeout: &str) -> Self {
        Self::start_with(None, trusts, timeout)
    }

    /// With its store on a disk.
    fn start_with(disk: Option<&SmallDisk>, trusts: &[PublicKey], timeout: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("config");
        let store = disk.map_or(folder.path(), SmallDisk::path).join("store");
        let keys = Keys::new(config.clone());
        for key in trusts {
            keys.trust(*key, None).unwrap();
        }
        let mut child = Command::new(env!("CARGO_BIN_EXE_ksnap"))
            .args(["serve", "--listen", "127.0.0.1:0", "--json", "--timeout"])
            .arg(timeout)
            .arg("--store")
            .arg(&store)
            .env("KSNAP_CONFIG", &config)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        out.read_line(&mut line).unwrap();
        let said: serde_json::Value = serde_json::from_str(&line).unwrap();
        // Nobody has to read what it says later.
        std::thread::spawn(move || std::io::copy(&mut out, &mut std::io::sink()));
        Self {
            child,
            address: said["address"].as_str().unwrap().parse().unwrap(),
            key: said["key"].as_str().unwrap().parse().unwrap(),
            store,
            _folder: folder,
        }
    }

    fn connect(&self, own: &KeyPair) -> Link {
        Link::connect("the server", &[self.address], own, vec![self.key], STALL).unwrap()
    }

    fn snapshots(&self) -> usize {
        Store::open(&self.store).unwrap().list().unwrap().len()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn here() -> Peer {
    Peer {
        protocol: PROTOCOL,
        format: FORMAT_VERSION,
        state: STATE_VERSION,
        arch: Arch::native().unwrap() as u16,
        page_size: 4096,
        kernel: "a test".into(),
        features: processor_features().unwrap(),
    }
}

/// A connection past the greeting.
fn greeted(server: &Server, own: &KeyPair) -> Link {
    let mut link = server.connect(own);
    link.send(&Message::Hello(here())).unwrap();
    let welcome = link.receive(STALL).unwrap();
    assert!(matches!(welcome, Message::Welcome(_)), "{welcome:?}");
    link
}

fn begin(kind: SnapshotKind, pages: u64) -> Message {
    begin_of(kind, pages, false)
}

/// Of a snapshot whose pages are fetched later.
fn begin_listed(kind: SnapshotKind, pages: u64) -> Message {
    begin_of(kind, pages, true)
}

fn begin_of(kind: SnapshotKind, pages: u64, lazy: bool) -> Message {
    Message::Begin(Begin {
        kind,
        id: SnapshotId([1; 16]),
        time_ns: 1,
        pid: 4711,
        start_time: 5,
        pages,
        restore: false,
        lazy,
        comm: "nobody".into(),
        exe: "/nowhere".into(),
    })
}

/// Why the server ends the connection.
fn refusal(link: &mut Link) -> String {
    loop {
        match link.receive(STALL) {
            Ok(_) => {}
            Err(WireError::Refused { why, .. }) => return why,
            Err(other) => panic!("no refusal but {other:?}"),
        }
    }
}

fn offer(pages: &[(u64, &[u8; 4096])]) -> Vec<Offered> {
    let offered = |(addr, page): &(u64, &[u8; 4096])| Offered {
        addr: *addr,
        hash: *blake3::hash(*page).as_bytes(),
    };
    pages.iter().map(offered).collect()
}

fn raw(page: &[u8; 4096]) -> Message {
    Message::Pages(vec![Encoded {
        encoding: Encoding::Raw,
        bytes: page.to_vec(),
    }])
}

#[test]
fn who_is_not_trusted_gets_nothing_whatever_it_sends() {
    let server = Server::start(&[], "2s");
    let own = KeyPair::generate().unwrap();
    let link = Link::connect(
        "the server",
        &[server.address],
        &own,
        vec![server.key],
        STALL,
    );
    let answer = link.and_then(|mut link| {
        link.send(&Message::Hello(here()))?;
        link.receive(STALL)
    });
    assert!(
        matches!(
            answer,
            Err(WireError::Untrusted { .. } | WireError::Io { .. })
        ),
        "{answer:?}"
    );
    // In the clear nothing comes back but an alert of TLS, or the end.
    for garbage in [
        &b"GET / HTTP/1.0\r\n\r\n"[..],
        &[0; 5000],
        &[0x16, 3, 1, 0xff, 0xff, 9, 9],
    ] {
        let mut stream = TcpStream::connect(server.address).unwrap();
        stream.set_read_timeout(Some(STALL)).unwrap();
        stream.write_all(garbage).unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(
            answer.len() <= 7 && answer.first().is_none_or(|kind| *kind == 21),
            "{answer:?}"
        );
    }
    assert_eq!(server.snapshots(), 0);
}

#[test]
fn who_stalls_is_given_up() {
    let own = KeyPair::generate().unwrap();
    // Long enough for what is done at once on a busy machine, and much shorter than STALL.
    let server = Server::start(&[own.public], "8s");
    // Before the handshake, and in the middle of a snapshot, both at the same time.
    let mut silent = TcpStream::connect(server.address).unwrap();
    silent.set_read_timeout(Some(STALL)).unwrap();
    let mut link = greeted(&server, &own);
    link.send(&begin(SnapshotKind::Base, 1)).unwrap();
    assert_eq!(silent.read(&mut [0; 64]).unwrap(), 0);
    let ended = link.receive(STALL);
    assert!(matches!(ended, Err(WireError::Io { .. })), "{ended:?}");
    assert_eq!(server.snapshots(), 0);
}

#[test]
fn a_machine_that_does_not_fit_is_refused_before_any_page() {
    let own = KeyPair::generate().unwrap();
    let server = Server::start(&[own.public], "30s");
    type Case<'a> = (&'a str, &'a dyn Fn(&mut Peer));
    let cases: [Case<'_>; 6] = [
        ("aarch64", &|peer| peer.arch = 183),
        ("avx9000", &|peer| peer.features.push("avx9000".into())),
        ("image format", &|peer| peer.format -= 1),
        ("process state", &|peer| peer.state -= 1),
        ("protocol", &|peer| peer.protocol += 1),
        ("16384", &|peer| peer.page_size = 16384),
    ];
    for (named, change) in cases {
        let mut peer = here();
        change(&mut peer);
        let mut link = server.connect(&own);
        link.send(&Message::Hello(peer)).unwrap();
        let why = refusal(&mut link);
        assert!(why.contains(named), "{named}: {why}");
    }
    // And nothing else comes first.
    let mut link = server.connect(&own);
    link.send(&begin(SnapshotKind::Base, 1)).unwrap();
    assert!(refusal(&mut link).contains("Hello"));
}

#[test]
fn what_breaks_the_protocol_is_refused_and_leaves_nothing() {
    let own = KeyPair::generate().unwrap();
    let server = Server::start(&[own.public], "30s");
    let (one, two) = ([1; 4096], [2; 4096]);
    let base = |pages| begin(SnapshotKind::Base, pages);
    let cases: Vec<(&str, Vec<Message>)> = vec![
        ("pages", vec![base(u64::MAX)]),
        ("without a snapshot", vec![begin(SnapshotKind::Delta, 1)]),
        ("Settled", vec![Message::Settled]),
        ("not asked", vec![base(1), raw(&one)]),
        (
            "more pages",
            vec![
                base(1),
                Message::Offer(offer(&[(0x1000, &one), (0x2000, &two)])),
            ],
        ),
        (
            "order",
            vec![
                base(2),
                Message::Offer(offer(&[(0x2000, &one)])),
                Message::Offer(offer(&[(0x1000, &two)])),
            ],
        ),
        (
            "hash",
            vec![base(1), Message::Offer(offer(&[(0x1000, &one)])), raw(&two)],
        ),
        ("before its pages", vec![base(1), Message::Publish([0; 32])]),
        (
            "before its pages",
            vec![
                base(1),
                Message::Offer(offer(&[(0x1000, &one)])),
                Message::Publish([0; 32]),
            ],
        ),
        (
            "not what was sent",
            vec![base(0), Message::Publish([0; 32])],
        ),
        (
            "gone",
            vec![
                base(0),
                Message::Dropped(vec![snap_user::model::PageRange::new(0x1000, 0x2000)]),
            ],
        ),
        ("nothing was sent", vec![Message::Restore(order())]),
        (
            "without a snapshot",
            vec![begin_listed(SnapshotKind::Delta, 1)],
        ),
        (
            "not asked",
            vec![begin_listed(SnapshotKind::Base, 1), raw(&one)],
        ),
        (
            "some without",
            vec![
                begin_listed(SnapshotKind::Base, 0),
                Message::Publish(Digest::new().finish()),
                base(1),
            ],
        ),
        // There is no process state.
        (
            "cannot be read",
            vec![
                begin_listed(SnapshotKind::Base, 0),
                Message::Publish(Digest::new().finish()),
                Message::Restore(order()),
            ],
        ),
    ];
    for (named, messages) in cases {
        let mut link = greeted(&server, &own);
        for message in &messages {
            // It may have ended the connection already.
            let _ = link.send(message);
        }
        let why = refusal(&mut link);
        assert!(why.contains(named), "{named}: {why}");
    }
    assert_eq!(server.snapshots(), 0);
}

fn order() -> snap_user::wire::Order {
    snap_user::wire::Order {
        pids: snap_user::wire::Pids::Any,
        eager: false,
        allow_changed_files: false,
        network: false,
    }
}

/// What a well-behaved source does: a snapshot is stored, and its pages are not asked for again.
#[test]
fn a_whole_snapshot_is_stored_and_its_pages_are_not_asked_for_again() {
    let own = KeyPair::generate().unwrap();
    let server = Server::start(&[own.public], "30s");
    let (one, two) = ([1; 4096], [2; 4096]);
    let pages = offer(&[(0x1000, &one), (0x2000, &two), (0x3000, &one)]);
    let state = Manifest::encode(&ProcessState::default(), &Costs::default()).unwrap();
    let mut digest = Digest::new();
    digest.pages(&pages);
    digest.state(&state);
    for (round, expected) in [vec![0, 1], vec![]].into_iter().enumerate() {
        let mut link = greeted(&server, &own);
        link.send(&begin(SnapshotKind::Base, 3)).unwrap();
        link.send(&Message::Offer(pages.clone())).unwrap();
        let Ok(Message::Want(wanted)) = link.receive(STALL) else {
            panic!("no answer")
        };
        assert_eq!(wanted, expected, "round {round}");
        for place in wanted {
            link.send(&raw(if place == 0 { &one } else { &two }))
                .unwrap();
        }
        link.send(&Message::State(state.clone())).unwrap();
        link.send(&Message::Publish(digest.finish())).unwrap();
        let Ok(Message::Stored(stored)) = link.receive(STALL) else {
            panic!("not stored")
        };
        link.send(&Message::Done).unwrap();
        // The connection ends when all is cleared away.
        let _ = link.receive(STALL);
        assert_eq!(server.snapshots(), round + 1);
        let store = Store::open(&server.store).unwrap();
        let table = store.snapshot(stored.id).unwrap();
        assert_eq!(table.page_table().unwrap().pages(), 3);
        assert!(store.verify(None).unwrap().problems.is_empty());
        let left = std::fs::read_dir(server.store.join("received"))
            .unwrap()
            .count();
        assert_eq!(left, 0);
    }
}

/// Sends a snapshot of these pages; why it is refused, if it is.
fn send(server: &Server, own: &KeyPair, pages: &[(u64, &[u8; 4096])]) -> Result<(), String> {
    let offered = offer(pages);
    let state = Manifest::encode(&ProcessState::default(), &Costs::default()).unwrap();
    let mut digest = Digest::new();
    digest.pages(&offered);
    digest.state(&state);
    let mut link = greeted(server, own);
    // What is sent to someone who has refused already is an error of the connection: the answer says why.
    let _ = link.send(&begin(SnapshotKind::Base, pages.len() as u64));
    let _ = link.send(&Message::Offer(offered));
    loop {
        match link.receive(STALL) {
            Ok(Message::Alive) => {}
            Ok(Message::Want(wanted)) => {
                for place in wanted {
                    let _ = link.send(&raw(pages[place as usize].1));
                }
                let _ = link.send(&Message::State(state.clone()));
                let _ = link.send(&Message::Publish(digest.clone().finish()));
            }
            Ok(Message::Stored(_)) => break,
            Ok(other) => panic!("{other:?}"),
            Err(WireError::Refused { why, .. }) => return Err(why),
            Err(other) => panic!("no reason but {other:?}"),
        }
    }
    let _ = link.send(&Message::Done);
    // The connection ends when all is cleared away.
    let _ = link.receive(STALL);
    Ok(())
}

/// The source is told why, what was there stays, and the same server takes the snapshot when there is room.
#[test]
fn a_snapshot_that_there_is_no_room_for_is_refused_with_the_reason() {
    let own = KeyPair::generate().unwrap();
    let noise = |seed: u32| {
        let mut page = [0; 4096];
        let hashes = (0..)
            .flat_map(|n: u32| *blake3::hash(&[seed, n].map(u32::to_le_bytes).concat()).as_bytes());
        page.iter_mut()
            .zip(hashes)
            .for_each(|(byte, from)| *byte = from);
        page
    };
    let pages: Vec<[u8; 4096]> = (0..6).map(noise).collect();
    let addressed: Vec<(u64, &[u8; 4096])> = (1..).map(|n| n << 12).zip(&pages).collect();
    let Some(disk) = SmallDisk::new() else { return };
    let server = Server::start_with(Some(&disk), &[own.public], "30s");
    let failures = each_shortage(|room| {
        // One by one, so that none of them is known from the one before.
        for entry in std::fs::read_dir(&server.store).unwrap().flatten() {
            if entry.path().is_dir() {
                std::fs::remove_dir_all(entry.path()).unwrap();
            }
        }
        disk.leave(room);
        let done = send(&server, &own, &addressed);
        disk.leave_all();
        if let Err(why) = &done {
            let store = server.store.display().to_string();
            for words in [store.as_str(), "No space left", "free some space"] {
                assert!(why.contains(words), "{words:?} in {why}");
            }
            assert_eq!(server.snapshots(), 0, "{why}");
            assert_eq!(
                Store::open(&server.store)
                    .unwrap()
                    .sessions()
                    .unwrap()
                    .len(),
                0
            );
            send(&server, &own, &addressed).unwrap();
        }
        assert_eq!(server.snapshots(), 1);
        let report = Store::open(&server.store).unwrap().verify(None).unwrap();
        assert!(report.is_clean() && report.pages == 6, "{report:?}");
        done.is_ok()
    });
    assert!(failures > 10, "{failures}");
}
