//! The decoders of the small files of a store, without their files: for tests that give them hostile bytes.

use super::checked;
use super::error::StoreError;
use super::flat::{self, FlatPiece};
use super::headers::Headers;
use super::received_left::{HEAD, records_in};
use super::seal::SessionKey;
use super::session::SessionInfo;
use super::tags::{self, Tag};
use super::tree_record::{Record, decode, take_apart};
use crate::image::{Header, SessionId};
use crate::model::SnapshotId;
use std::io::{self, Cursor};
use std::path::Path;

/// Longest tail that a read of a sealed file leaves out.
const PARTS: usize = 7;

fn path() -> &'static Path {
    Path::new("hostile")
}

/// The headers in a session's list of them, and how many of its records are damaged.
pub fn headers(bytes: &[u8]) -> (Vec<Header>, u64) {
    let headers = Headers::decode(bytes);
    (headers.all().cloned().collect(), headers.damaged)
}

/// The members of a tree, of a record in plain or of the clear line of a sealed one; and whether it is sealed.
pub fn tree(bytes: &[u8]) -> Result<(Vec<SnapshotId>, bool), StoreError> {
    match take_apart(path(), bytes)? {
        Record::Sealed { members, .. } => Ok((members, true)),
        Record::Clear(text) => {
            let tree = decode(path(), text)?;
            Ok((tree.members.iter().map(|member| member.id).collect(), false))
        }
    }
}

/// Where the pages of an interrupted transfer are: offset and length of each.
pub fn received(bytes: &[u8]) -> io::Result<Vec<(u64, usize)>> {
    let mut found = Vec::new();
    records_in(
        Cursor::new(bytes),
        bytes.len() as u64,
        0,
        &mut |_, place| {
            found.push((place.at, place.len.into()));
        },
    )?;
    Ok(found)
}

/// Length of what is in front of the pages that were received.
pub const RECEIVED_HEAD: usize = HEAD;

/// The pieces of a flat image of this snapshot and boot, and how many checksums it has.
pub fn flat(bytes: &[u8], id: SnapshotId, boot: &str) -> Option<(Vec<FlatPiece>, usize)> {
    let read = |into: &mut [u8], at: u64| {
        let from = usize::try_from(at).ok().and_then(|at| bytes.get(at..));
        let from = from.and_then(|from| from.get(..into.len()));
        into.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    };
    let (pieces, sums) = flat::parse(&read, bytes.len() as u64, id, boot)?;
    Some((pieces, sums.len()))
}

/// The beginning of a flat image, whose checksums are at an offset and have this checksum.
pub fn flat_head(id: SnapshotId, boot: &str, pieces: &[FlatPiece], sums: (u64, u32)) -> Vec<u8> {
    flat::head(id, boot, pieces, sums)
}

/// A tag.
pub fn tag(text: &str) -> Result<Tag, StoreError> {
    tags::decode(path(), "name", text)
}

/// The description of a session.
pub fn session(text: &str) -> Result<SessionInfo, StoreError> {
    checked::decode(path(), "session description", text)
}

/// The text of a description.
pub fn session_text(info: &SessionInfo) -> String {
    checked::encode(info)
}

/// Unseals a file of a session whose key everybody knows; read as a whole and in parts, which are the same.
pub fn sealed(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let key = SessionKey::new(SessionId([5; 16]), [7; 32]);
    let reader = key.reader("session.json", bytes.to_vec())?;
    let mut whole = vec![0; reader.len()? as usize];
    reader.read_exact_at(&mut whole, 0)?;
    let at = whole.len() / PARTS;
    let mut part = vec![0; whole.len() - at];
    reader.read_exact_at(&mut part, at as u64)?;
    assert!(whole[at..] == part[..], "a part is something else");
    Ok(whole)
}
