//! What must hold for any bytes of the small files beside snapshots, of lines on a watcher's socket and of keys, as in
//! `targets.rs`.

use crate::targets::Target;
use snap_user::image::HEADER_LEN;
use snap_user::model::{PAGE_SIZE, SnapshotId};
use snap_user::session::{Reply, Request};
use snap_user::store::hostile::{self, RECEIVED_HEAD};
use snap_user::store::{tree_from_text, tree_to_text};
use snap_user::wire::{KeyPair, PublicKey, trusted_in};
use std::path::Path;

/// All of these targets.
pub const TARGETS: &[Target] = &[
    ("headers", headers),
    ("tree", tree),
    ("received", received),
    ("flat", flat),
    ("described", described),
    ("sealed", sealed),
    ("keys", keys),
    ("socket", socket),
];

/// Length of a record in the list of headers.
pub const RECORD: usize = HEADER_LEN + 24;
/// The snapshot and the boot that flat images in the corpus are of.
pub const FLAT_OF: (SnapshotId, &str) = (SnapshotId([7; 16]), "this boot");

/// Reads a session's list of headers, as it is and with checksums that match.
pub fn headers(data: &[u8]) {
    assert_headers(data);
    let mut bytes = data.to_vec();
    let (records, _) = bytes.as_chunks_mut::<RECORD>();
    for record in records {
        crate::targets::seal(&mut record[..HEADER_LEN]);
        let crc = crc32c::crc32c(&record[..HEADER_LEN + 16]);
        record[HEADER_LEN + 16..][..4].copy_from_slice(&crc.to_le_bytes());
    }
    assert_headers(&bytes);
}

fn assert_headers(bytes: &[u8]) {
    let (headers, damaged) = hostile::headers(bytes);
    let records = bytes.len().div_ceil(RECORD);
    assert!(headers.len() + damaged as usize <= records);
    for header in headers {
        assert!(header.parent_seq < header.seq);
    }
}

/// Replaces the checksum in the first line of a record by that of what follows the line, or, where that is sealed, the word.
fn with_sum(text: &str) -> Option<String> {
    let (line, body) = text.split_once('\n')?;
    let mut words: Vec<&str> = line.split(' ').collect();
    let (version, of) = match text.starts_with("ksnap tree 2") {
        true => ("2", words.get(4..)?.join(" ")),
        false => ("1", body.strip_suffix('\n').unwrap_or(body).to_owned()),
    };
    let sum = format!("{:08x}", crc32c::crc32c(of.as_bytes()));
    for (place, word) in ["ksnap", "tree", version, &sum].into_iter().enumerate() {
        *words.get_mut(place)? = word;
    }
    Some(format!("{}\n{body}", words.join(" ")))
}

/// Reads the record of a tree, in plain and sealed: as it is, and with a checksum that matches. What is read in plain can be
/// written again.
pub fn tree(data: &[u8]) {
    assert_tree(data);
    let text = String::from_utf8_lossy(data);
    if let Some(text) = with_sum(&text) {
        assert_tree(text.as_bytes());
    }
}

fn assert_tree(bytes: &[u8]) {
    let Ok((members, is_sealed)) = hostile::tree(bytes) else {
        return;
    };
    if is_sealed {
        assert!(members.len() * 32 < bytes.len());
        return;
    }
    let (path, text) = (
        Path::new("hostile"),
        std::str::from_utf8(bytes).expect("text"),
    );
    let tree = tree_from_text(path, text).expect("just read");
    // What readers rely on.
    assert!(!tree.members.is_empty() && tree.members[0].parent.is_none());
    for (at, member) in tree.members.iter().enumerate().skip(1) {
        assert!(member.parent.is_some_and(|parent| (parent as usize) < at));
    }
    let count = tree.members.len() as u32;
    assert!(tree.zombies.iter().all(|zombie| zombie.parent < count));
    assert!(
        tree.shared
            .iter()
            .flatten()
            .all(|place| place.member < count)
    );
    let again = tree_from_text(path, &tree_to_text(&tree)).expect("its own text");
    assert_eq!(again, tree);
}

/// Finds the pages in what an interrupted transfer has left.
pub fn received(data: &[u8]) {
    let found = hostile::received(data).expect("what lies in memory can be read");
    let mut end = 0;
    for (at, len) in found {
        assert!(at >= end + RECEIVED_HEAD as u64);
        end = at + len as u64;
        assert!(end <= data.len() as u64);
    }
}

/// Reads the beginning of a flat image, as it is and with checksums that match.
pub fn flat(data: &[u8]) {
    assert_flat(data);
    let mut bytes = data.to_vec();
    if bytes.len() < 96 {
        return;
    }
    let word = |bytes: &[u8], at: usize| {
        let word = bytes.get(at..at + 8)?.first_chunk()?;
        Some(u64::from_le_bytes(*word))
    };
    let Some((at, count)) = word(&bytes, 80).zip(word(&bytes, 16)) else {
        return;
    };
    let (Ok(at), Ok(count)) = (usize::try_from(at), usize::try_from(count)) else {
        return;
    };
    let sums = at.checked_add(at / PAGE_SIZE as usize * 4);
    if let Some(sums) = sums.and_then(|end| bytes.get(at..end)) {
        let crc = u64::from(crc32c::crc32c(sums));
        bytes[88..96].copy_from_slice(&crc.to_le_bytes());
    }
    let head = count.checked_mul(24).and_then(|len| len.checked_add(96));
    if let Some(rest) = head.and_then(|head| bytes.get(16..head)) {
        let crc = crc32c::crc32c(rest);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
    }
    assert_flat(&bytes);
}

fn assert_flat(bytes: &[u8]) {
    let Some((pieces, sums)) = hostile::flat(bytes, FLAT_OF.0, FLAT_OF.1) else {
        return;
    };
    // What readers rely on.
    for piece in &pieces {
        assert!(piece.range.start < piece.range.end);
        assert!(piece.range.start.is_multiple_of(PAGE_SIZE));
        assert!(piece.offset.is_multiple_of(PAGE_SIZE));
        let end = piece.offset + piece.range.len();
        assert!(end / PAGE_SIZE <= sums as u64 && end <= bytes.len() as u64);
    }
    assert!(
        pieces
            .windows(2)
            .all(|two| two[0].range.end <= two[1].range.start)
    );
}

/// Reads a tag and the description of a session, as they are and with a checksum that matches.
pub fn described(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    assert_described(&text);
    if let Some((_, rest)) = text.split_once('\n') {
        let sum = crc32c::crc32c(rest.as_bytes());
        assert_described(&format!("{{\"crc\": \"{sum:08x}\",\n{rest}"));
    }
}

fn assert_described(text: &str) {
    // No description has an id of its own.
    if text.contains("\"id\"") {
        let _ = hostile::tag(text);
    } else if let Ok(info) = hostile::session(text) {
        let again = hostile::session(&hostile::session_text(&info)).expect("its own text");
        assert_eq!(again, info);
    }
}

/// Opens a sealed file: nothing but what was sealed comes out of it.
pub fn sealed(data: &[u8]) {
    if let Ok(plain) = hostile::sealed(data) {
        assert!(
            data == SEALED,
            "{} bytes that nobody has sealed",
            plain.len()
        );
    }
}

/// What was sealed with the key of the tests.
const SEALED: &[u8] = include_bytes!("../../snap-user/tests/data/sealed-v1.bin");

/// Reads the files of keys: the pair of a user, and those that are trusted.
pub fn keys(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Some(pair) = KeyPair::from_text(&text) {
        let again = KeyPair::from_text(&pair.to_text()).expect("its own text");
        assert_eq!(again.public, pair.public);
    }
    for trusted in trusted_in(&text).unwrap_or_default() {
        let again: PublicKey = trusted.key.to_string().parse().expect("its own text");
        assert_eq!(again, trusted.key);
        assert!(!trusted.name.contains('\n'));
    }
}

/// Reads what is asked of a watcher, and what it answers. What is read comes back from its own line.
pub fn socket(data: &[u8]) {
    for line in data.split(|byte| *byte == b'\n') {
        if let Ok(request) = serde_json::from_slice::<Request>(line) {
            let again = serde_json::to_string(&request).expect("plain data");
            let again: Request = serde_json::from_str(&again).expect("its own line");
            assert_eq!(again, request);
        }
        if let Ok(reply) = serde_json::from_slice::<Reply>(line) {
            let text = serde_json::to_string(&reply).expect("plain data");
            let again: Reply = serde_json::from_str(&text).expect("its own line");
            assert_eq!(serde_json::to_string(&again).expect("plain data"), text);
        }
    }
}
