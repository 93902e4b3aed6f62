//! How objects are named. What a listing of names tells needs no look into the objects.

use crate::image::SessionId;
use crate::model::SnapshotId;
use std::fmt;

/// Folder of the chunks.
pub(super) const CHUNKS: &str = "chunks";
/// Folder of the indexes.
pub(super) const SNAPSHOTS: &str = "snapshots";
/// Folder of lists of chunks that are going to be deleted.
pub(super) const DOOMED: &str = "doomed";
/// Folder of such lists whose chunks have been deleted.
pub(super) const SWEPT: &str = "swept";
/// Folder of the keys of sealed snapshots.
pub(super) const KEYS: &str = "keys";
/// Written anew to learn what time it is for the service.
pub(super) const CLOCK: &str = "clock";
/// Format marker.
pub(super) const MARKER: &str = "ksnap-bucket";

fn hex(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

/// Lower-case digits, two a byte: what this program writes, and nothing else.
pub(super) fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let digits = text.as_bytes();
    if digits.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

/// Name of a chunk: the BLAKE3 hash of its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkName(pub [u8; 32]);

impl ChunkName {
    /// Where it is.
    pub fn key(&self) -> String {
        format!("{CHUNKS}/{:02x}/{self}", self.0[0])
    }

    fn is_at(&self, key: &str) -> bool {
        self.key() == key
    }
}

/// Name of an object with a key of sealed snapshots: the BLAKE3 hash of its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyName(pub [u8; 32]);

impl KeyName {
    /// Where it is.
    pub fn key(&self) -> String {
        format!("{KEYS}/{self}")
    }

    fn is_at(&self, key: &str) -> bool {
        self.key() == key
    }
}

/// Stands for a program: snapshots of the same one have many pages in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Kin(pub [u8; 4]);

impl Kin {
    /// That of a program with this command name, for snapshots that are not sealed.
    pub fn of(comm: &str) -> Self {
        let hash = blake3::hash(comm.as_bytes());
        Self(*hash.as_bytes().first_chunk().expect("a hash has 32 bytes"))
    }
}

/// Name of the index of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnapshotName {
    /// When it was taken, in nanoseconds since 1970. First, so that names are in the order of time.
    pub time_ns: u64,
    /// Of which program.
    pub kin: Kin,
    /// In which session.
    pub session: SessionId,
    /// Which one.
    pub id: SnapshotId,
}

impl fmt::Display for SnapshotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:020}-", self.time_ns)?;
        hex(&self.kin.0, f)?;
        write!(f, "-{}-{}", self.session, self.id)
    }
}

impl SnapshotName {
    /// Where it is.
    pub fn key(&self) -> String {
        format!("{SNAPSHOTS}/{self}")
    }

    /// The snapshot whose index is at a place, if it is that of one.
    pub fn parse(key: &str) -> Option<Self> {
        let mut parts = key.strip_prefix(SNAPSHOTS)?.strip_prefix('/')?.split('-');
        let name = Self {
            time_ns: parts.next()?.parse().ok()?,
            kin: Kin(unhex(parts.next()?)?),
            session: SessionId(unhex(parts.next()?)?),
            id: SnapshotId(unhex(parts.next()?)?),
        };
        (name.key() == key).then_some(name)
    }
}

/// Name of a list of chunks that are going to be deleted: the hash of its content, so that whoever makes the same list
/// makes the same object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DoomedName(pub [u8; 32]);

impl DoomedName {
    /// Where it is as long as its chunks may be there.
    pub fn key(&self) -> String {
        format!("{DOOMED}/{self}")
    }

    /// Where it is when they have been deleted.
    pub fn swept_key(&self) -> String {
        format!("{SWEPT}/{self}")
    }

    /// At a place of either kind.
    fn is_at(&self, key: &str) -> bool {
        self.key() == key || self.swept_key() == key
    }
}

/// Names that are hashes: shown as digits, with which their places end.
macro_rules! hashes {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                hex(&self.0, f)
            }
        }

        impl $name {
            /// What is at a place, if that is one of such a name.
            pub fn parse(key: &str) -> Option<Self> {
                let name = Self(unhex(key.rsplit('/').next()?)?);
                name.is_at(key).then_some(name)
            }
        }
    )*};
}

hashes!(ChunkName, KeyName, DoomedName);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn names_come_back_as_they_were(time_ns: u64, kin: [u8; 4], session: [u8; 16], id: [u8; 16], hash: [u8; 32]) {
            let name = SnapshotName { time_ns, kin: Kin(kin), session: SessionId(session), id: SnapshotId(id) };
            prop_assert_eq!(SnapshotName::parse(&name.key()), Some(name));
            let chunk = ChunkName(hash);
            prop_assert_eq!(ChunkName::parse(&chunk.key()), Some(chunk));
            let of_key = KeyName(hash);
            prop_assert_eq!(KeyName::parse(&of_key.key()), Some(of_key));
            let doomed = DoomedName(hash);
            prop_assert_eq!(DoomedName::parse(&doomed.key()), Some(doomed));
            prop_assert_eq!(DoomedName::parse(&doomed.swept_key()), Some(doomed));
        }

        #[test]
        fn any_other_text_is_no_name(text in "\\PC{0,80}") {
            for folder in ["", "snapshots/", "chunks/", "doomed/"] {
                let key = format!("{folder}{text}");
                if let Some(name) = SnapshotName::parse(&key) {
                    prop_assert_eq!(name.key(), key.clone());
                }
                if let Some(name) = ChunkName::parse(&key) {
                    prop_assert_eq!(name.key(), key);
                }
            }
        }

        #[test]
        fn names_are_in_the_order_of_time(a: u64, b: u64) {
            let name = |time_ns| SnapshotName {
                time_ns, kin: Kin([0; 4]), session: SessionId([0; 16]), id: SnapshotId([0; 16]),
            }.key();
            prop_assert_eq!(a.cmp(&b), name(a).cmp(&name(b)));
        }
    }
}
