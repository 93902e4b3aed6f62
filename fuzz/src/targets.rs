//! What must hold for any bytes, a function for each decoder. A broken one panics.
//!
//! The targets of `cargo fuzz` call these, and so does a test on stable Rust, with mutations of the corpus.

#[cfg(feature = "object-storage")]
use snap_user::bucket::{
    BucketKey, Chunk, ChunkName, DoomedName, Envelope, INDEX_HEADER_LEN, Index, IndexHeader,
    KeyName, PlacedKey, TreeHead, TreeHeader, decode_doomed,
};
use snap_user::codec::{self, Encoding, LONGEST, Scratch};
use snap_user::image::{
    HEADER_LEN, Header, IndexEntry, LATE_OFFSET, Manifest, PACK_HEADER_LEN, PackHeader, Section,
    decode_dropped, decode_index, decode_span,
};
use snap_user::model::{PAGE_SIZE, Page};
use snap_user::wire::{MAX_BODY, Message, encode_frame, read_frame};
#[cfg(feature = "object-storage")]
use std::sync::{Arc, OnceLock};

/// A target: its name, which is that of its corpus, and itself.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: &[Target] = &[
    ("page", page),
    ("pair", pair),
    ("block", block),
    ("header", header),
    ("index", index),
    ("dropped", dropped),
    ("span", span),
    ("manifest", manifest),
    ("message", message),
    ("pack", pack),
    #[cfg(feature = "object-storage")]
    ("bucket", bucket),
];

/// A snapshot file to take headers from.
const GOLDEN: &[u8] = include_bytes!("../../snap-user/tests/data/delta-v1.ksnap");
const LEN: usize = PAGE_SIZE as usize;

/// A page that repeats some bytes; zeroes for none.
pub fn repeat(bytes: &[u8]) -> Page {
    let mut page = [0; LEN];
    if !bytes.is_empty() {
        for (byte, from) in page.iter_mut().zip(bytes.iter().cycle()) {
            *byte = *from;
        }
    }
    page
}

/// Decodes an encoded page: a byte for the encoding, one for the length of what the previous version repeats, that,
/// and the page's bytes. What decodes can be encoded again.
pub fn page(data: &[u8]) {
    let [tag, len, rest @ ..] = data else { return };
    let Some(encoding) = Encoding::from_tag(tag % 16) else {
        return;
    };
    let (seed, bytes) = rest.split_at(rest.len().min((*len).into()));
    let previous = repeat(seed);
    let mut page = [0; LEN];
    if codec::decode(encoding, bytes, Some(&previous), &mut page).is_ok() {
        assert_ne!(encoding, Encoding::Reference);
        round_trip(&page, Some(&previous));
    }
    let alone = codec::decode(encoding, bytes, None, &mut page).is_ok();
    assert!(!alone || !encoding.needs_previous());
}

fn round_trip(page: &Page, previous: Option<&Page>) {
    let mut bytes = Vec::new();
    let encoding = codec::encode(page, previous, &mut Scratch::default(), &mut bytes);
    assert!(bytes.len() <= LONGEST, "{} bytes", bytes.len());
    assert!(previous.is_some() || !encoding.needs_previous());
    let mut back = [0xaa; LEN];
    codec::decode(encoding, &bytes, previous, &mut back).expect("what was encoded decodes");
    assert!(back == *page, "{encoding:?} gives another page");
}

/// Encodes a page and decodes it again: a byte for how many of the rest its previous version repeats, and edits of it.
pub fn pair(data: &[u8]) {
    let [len, rest @ ..] = data else { return };
    let (seed, edits) = rest.split_at(rest.len().min(usize::from(*len) * 16));
    let previous = repeat(seed);
    let mut page = previous;
    // Place, length, step: the bytes there go up by so much, as one number or each.
    for edit in edits.as_chunks::<4>().0 {
        let at = usize::from(u16::from_le_bytes([edit[0], edit[1]]));
        let (at, wide) = (at % LEN, at >= LEN);
        let end = (at + usize::from(edit[2])).min(LEN);
        for byte in &mut page[at..end] {
            *byte = byte.wrapping_add(edit[3]);
        }
        if wide && let Some(word) = page.get_mut(at & !7..(at & !7) + 8) {
            let number = u64::from_le_bytes((&*word).try_into().expect("8 bytes"));
            let step = i64::from(edit[3] as i8) << (edit[2] % 48);
            word.copy_from_slice(&number.wrapping_add_signed(step).to_le_bytes());
        }
    }
    round_trip(&page, Some(&previous));
    round_trip(&page, None);
}

/// Decompresses a block: two bytes for the length that it should have.
pub fn block(data: &[u8]) {
    let [low, high, block @ ..] = data else {
        return;
    };
    let len = u16::from_le_bytes([*low, *high]).into();
    if let Ok(bytes) = codec::decompress_block(block, len) {
        assert_eq!(bytes.len(), len);
    }
}

/// Makes id and checksum of a header match its content.
pub fn seal(header: &mut [u8]) {
    let crc_at = LATE_OFFSET as usize - 4;
    header[16..32].fill(0);
    let hash = blake3::hash(&header[..crc_at]);
    header[16..32].copy_from_slice(&hash.as_bytes()[..16]);
    let crc = crc32c::crc32c(&header[..crc_at]);
    header[crc_at..crc_at + 4].copy_from_slice(&crc.to_le_bytes());
}

/// Decodes a header, as it is and with checksums that match: eight bytes for the length of the file, then the header.
pub fn header(data: &[u8]) {
    let Some((len, bytes)) = data.split_first_chunk() else {
        return;
    };
    let mut header = [0; HEADER_LEN];
    let taken = bytes.len().min(HEADER_LEN);
    header[..taken].copy_from_slice(&bytes[..taken]);
    let lens = [u64::from_le_bytes(*len), GOLDEN.len() as u64];
    for sealed in [false, true] {
        if sealed {
            seal(&mut header);
        }
        for len in lens {
            let Ok(header) = Header::decode(&header, len) else {
                continue;
            };
            // What readers rely on.
            let h = &header;
            for section in [&h.data, &h.index, &h.dropped, &h.span, &h.manifest] {
                assert!(section.end() <= len);
            }
            assert!(header.parent_seq < header.seq);
        }
    }
}

/// The golden header, of a file whose sections are these bytes and have the right checksum.
pub fn header_of(bytes: &[u8], section: impl Fn(&mut Header) -> &mut Section) -> Header {
    let mut header = Header::decode(GOLDEN, GOLDEN.len() as u64).expect("the golden header");
    let section = section(&mut header);
    section.len = bytes.len() as u64;
    section.crc = crc32c::crc32c(bytes);
    header
}

/// Decodes an index, and takes pages apart by it.
pub fn index(data: &[u8]) {
    let header = header_of(data, |header| &mut header.index);
    let Ok(entries) = decode_index(data, &header) else {
        return;
    };
    let mut page = [0; LEN];
    for entry in &entries {
        if let Some(target) = entry.target() {
            assert!(target.seq.get() < header.seq);
            continue;
        }
        if entry.loan != 0 {
            // Of a file whose length only its reader knows.
            assert!(entry.at.checked_add(entry.len.into()).is_some());
            assert!(!entry.encoding.needs_previous());
            continue;
        }
        assert!(entry.at >= header.data.offset);
        assert!(entry.at + u64::from(entry.len) <= header.data.end());
        read(entry, &header, &mut page);
    }
}

/// Reads a page of the golden file.
fn read(entry: &IndexEntry, header: &Header, page: &mut Page) {
    let bytes = &GOLDEN[entry.at as usize..][..entry.len.into()];
    if let Ok(previous) = entry.previous(bytes, header.seq) {
        let before = [0x5a; LEN];
        assert!(previous.is_none_or(|at| at.seq.get() < header.seq));
        let _ = entry.decode_page(bytes, previous.map(|_| &before), page);
    }
}

/// Decodes dropped ranges.
pub fn dropped(data: &[u8]) {
    let header = header_of(data, |header| &mut header.dropped);
    if let Ok(pages) = decode_dropped(data, &header) {
        let ranges = pages.ranges();
        assert!(ranges.windows(2).all(|pair| pair[0].end < pair[1].start));
    }
}

/// Decodes a span.
pub fn span(data: &[u8]) {
    let header = header_of(data, |header| &mut header.span);
    if let Ok(runs) = decode_span(data, &header) {
        let stored = runs.iter().filter(|run| run.first.is_some());
        assert!(stored.map(|run| u64::from(run.pages)).sum::<u64>() <= header.pages);
    }
}

/// Decodes a manifest.
pub fn manifest(data: &[u8]) {
    let header = header_of(data, |header| &mut header.manifest);
    let _ = Manifest::decode(data, &header);
}

/// Decodes what a peer sends: a message, and all of it as a stream of them. What decodes comes back from its own bytes.
pub fn message(data: &[u8]) {
    if let Some((tag, body)) = data.split_first()
        && let Ok(message) = Message::decode(*tag, body)
    {
        let mut again = Vec::new();
        assert_eq!(message.encode(&mut again), *tag);
        assert!(again.len() <= MAX_BODY);
        assert_eq!(
            Message::decode(*tag, &again).expect("its own bytes"),
            message
        );
    }
    let mut stream = data;
    while let Ok(message) = read_frame(&mut stream) {
        let again = encode_frame(&message);
        assert_eq!(read_frame(&mut &again[..]).expect("its own bytes"), message);
    }
}

/// Decodes a pack, as it is and with checksums that match: header, entries, absorbed numbers, and page tables of ghosts.
pub fn pack(data: &[u8]) {
    let mut bytes = data.to_vec();
    for sealed in [false, true] {
        if sealed {
            let Some(head) = bytes.first_chunk_mut::<PACK_HEADER_LEN>() else {
                return;
            };
            let crc = crc32c::crc32c(&head[..PACK_HEADER_LEN - 4]);
            head[PACK_HEADER_LEN - 4..].copy_from_slice(&crc.to_le_bytes());
        }
        let Ok(mut header) = PackHeader::decode(&bytes, bytes.len() as u64) else {
            continue;
        };
        let part = |section: &Section| &bytes[section.offset as usize..section.end() as usize];
        let (entries, absorbed) = (part(&header.entries), part(&header.absorbed));
        let (ghosts, runs) = (part(&header.ghosts), part(&header.runs));
        if sealed {
            header.entries.crc = crc32c::crc32c(entries);
            header.absorbed.crc = crc32c::crc32c(absorbed);
            header.ghosts.crc = crc32c::crc32c(ghosts);
            header.runs.crc = crc32c::crc32c(runs);
        }
        // What readers rely on.
        let entries = header.decode_entries(entries).unwrap_or_default();
        assert!(entries.windows(2).all(|pair| pair[0].name < pair[1].name));
        for entry in &entries {
            if entry.loan == 0 {
                assert!(entry.at >= header.data.offset);
                assert!(entry.at + u64::from(entry.len) <= header.data.end());
            } else {
                assert!(entry.at.checked_add(entry.len.into()).is_some());
                assert!(!entry.encoding.needs_previous());
            }
            assert_ne!(entry.encoding, Encoding::Reference);
        }
        let absorbed = header.decode_absorbed(absorbed).unwrap_or_default();
        assert!(absorbed.windows(2).all(|pair| pair[0].1 < pair[1].0));
        let ghosts = header.decode_ghosts(ghosts, runs).unwrap_or_default();
        assert!(ghosts.windows(2).all(|pair| pair[0].seq < pair[1].seq));
        for run in ghosts.iter().flat_map(|ghost| &ghost.runs) {
            assert!(run.range().start < run.range().end);
        }
    }
}

/// Reads the same bytes as an index, a tree, a chunk, a key and a list of chunks, sealed and not: as they are, and with all
/// checksums made to match.
#[cfg(feature = "object-storage")]
pub fn bucket(data: &[u8]) {
    read_index(data);
    let mut bytes = data.to_vec();
    if bytes.len() >= INDEX_HEADER_LEN {
        // Lengths first, where the header is believed; then the checksums of what they say.
        seal_header(&mut bytes);
        if let Ok(header) = IndexHeader::decode("fuzz", &bytes, bytes.len() as u64) {
            let table = INDEX_HEADER_LEN + header.table_len() as usize;
            let entries = table + header.manifest_len as usize;
            for (at, from, to) in [
                (92, INDEX_HEADER_LEN, table),
                (96, table, entries),
                (100, entries, bytes.len()),
            ] {
                let crc = crc32c::crc32c(&bytes[from..to]);
                bytes[at..at + 4].copy_from_slice(&crc.to_le_bytes());
            }
            seal_header(&mut bytes);
        }
        read_index(&bytes);
        read_sealed_in(&bytes);
        read_tree(&mut bytes);
        read_sealed_in(&bytes);
        read_sealed(&mut bytes);
    }
    let hash = *blake3::hash(data).as_bytes();
    if let Ok(chunk) = Chunk::decode(ChunkName(hash), data) {
        let lengths =
            (0..chunk.pages()).map(|slot| chunk.page(slot).map_or(0, |page| page.1.len()));
        assert!(lengths.sum::<usize>() <= data.len());
        assert!(chunk.page(chunk.pages()).is_none());
    }
    let mut sealed = data.to_vec();
    if let Ok(chunk) = Chunk::decode_sealed(ChunkName(hash), &mut sealed, &key().key) {
        assert!(chunk.pages() > 0);
    }
    if let Ok(key) = BucketKey::decode("fuzz", data) {
        assert_eq!(key.encode().as_bytes(), data);
    }
    if let Ok(chunks) = decode_doomed(DoomedName(hash), data) {
        assert!(chunks.len() * 32 < data.len());
    }
}

#[cfg(feature = "object-storage")]
fn seal_header(bytes: &mut [u8]) {
    let crc = crc32c::crc32c(&bytes[..INDEX_HEADER_LEN - 4]);
    bytes[INDEX_HEADER_LEN - 4..INDEX_HEADER_LEN].copy_from_slice(&crc.to_le_bytes());
}

/// Reads bytes as a tree of processes, with all checksums in front of its indexes made to match.
#[cfg(feature = "object-storage")]
fn read_tree(bytes: &mut [u8]) {
    bytes[8..10].copy_from_slice(&2u16.to_le_bytes());
    seal_header(bytes);
    let Ok(header) = TreeHeader::decode("fuzz", bytes) else {
        return;
    };
    let table = INDEX_HEADER_LEN + header.processes as usize * 32;
    let end = header.head_len() as usize;
    if end <= bytes.len() {
        for (at, from, to) in [(96, INDEX_HEADER_LEN, table), (100, table, end)] {
            let crc = crc32c::crc32c(&bytes[from..to]);
            bytes[at..at + 4].copy_from_slice(&crc.to_le_bytes());
        }
        seal_header(bytes);
    }
    if let Ok(tree) = TreeHead::decode("fuzz", bytes, bytes.len() as u64) {
        // What readers rely on.
        assert_eq!(tree.members.len(), tree.header.processes as usize);
        assert_eq!(tree.members[0].id, tree.header.common.id);
        assert!(tree.record.len() < bytes.len());
    }
}

/// A key that is always the same: the one that golden objects are sealed with.
#[cfg(feature = "object-storage")]
pub fn key() -> &'static PlacedKey {
    static KEY: OnceLock<PlacedKey> = OnceLock::new();
    KEY.get_or_init(|| {
        let text = include_bytes!("../../snap-user/tests/data/bucket-key-v1.txt");
        let key = BucketKey::decode("golden", text).expect("the golden key");
        PlacedKey {
            name: KeyName([0x66; 32]),
            key: Arc::new(key),
        }
    })
}

/// What was sealed with that key.
#[cfg(feature = "object-storage")]
const SEALED: [&[u8]; 2] = [
    include_bytes!("../../snap-user/tests/data/sealed-index-v3.ksnap"),
    include_bytes!("../../snap-user/tests/data/sealed-tree-v3.ksnap"),
];

/// Reads bytes as a sealed snapshot, with all checksums in front of what is sealed made to match.
#[cfg(feature = "object-storage")]
fn read_sealed(bytes: &mut [u8]) {
    bytes[8..10].copy_from_slice(&3u16.to_le_bytes());
    seal_header(bytes);
    let len = bytes.len() as u64;
    let Ok(end) = Envelope::head_len("fuzz", bytes, len) else {
        return;
    };
    let front = INDEX_HEADER_LEN + 272;
    if let Some(table) = bytes.get(front..end as usize) {
        let hash = *blake3::hash(table).as_bytes();
        bytes[152..184].copy_from_slice(&hash);
        seal_header(bytes);
    }
    if let Ok(envelope) = Envelope::decode("fuzz", bytes, len) {
        // What readers rely on, and that nothing opens but what was sealed.
        assert_eq!(envelope.rest(), end..len);
        let lengths = envelope.chunks.iter().map(|(_, len)| u64::from(*len));
        assert_eq!(lengths.sum::<u64>(), envelope.chunk_bytes);
        let is_golden = SEALED
            .iter()
            .any(|golden| golden[..front] == bytes[..front]);
        assert_eq!(envelope.front("fuzz", &key().key).is_ok(), is_golden);
    }
}

/// Reads bytes that the holder of the key has sealed.
#[cfg(feature = "object-storage")]
fn read_sealed_in(bytes: &[u8]) {
    let Ok((_, parts)) = Envelope::seal(vec![bytes.to_vec()], &[], key()) else {
        return;
    };
    let (head, rest) = (&parts[0], &parts[1]);
    let len = (head.len() + rest.len()) as u64;
    let envelope = Envelope::decode("fuzz", head, len).expect("what was sealed is whole");
    let front = envelope.front("fuzz", &key().key);
    if let Ok((tree, indexes)) = envelope.open("fuzz", &key().key, rest.clone()) {
        assert_eq!(front.expect("it is open").common().pages, envelope.pages);
        assert_eq!(tree.map_or(1, |tree| tree.members.len()), indexes.len());
        // It names no chunk in clear.
        assert!(indexes.iter().all(|index| index.chunks.is_empty()));
    }
}

#[cfg(feature = "object-storage")]
fn read_index(bytes: &[u8]) {
    let Ok(index) = Index::decode("fuzz", bytes.to_vec()) else {
        return;
    };
    // What readers rely on.
    assert_eq!(index.header.index_len(), bytes.len() as u64);
    assert_eq!(index.entries().len() as u64, index.header.common.pages);
    assert_eq!(index.manifest().len(), index.header.manifest_len as usize);
    let mut before = None;
    for entry in index.entries() {
        assert!(before < Some(entry.addr) && entry.addr.is_multiple_of(PAGE_SIZE));
        assert!(entry.slot < index.chunks[entry.chunk as usize].pages);
        before = Some(entry.addr);
    }
}
