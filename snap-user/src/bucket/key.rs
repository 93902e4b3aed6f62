//! The key of sealed snapshots in a place, and what is made of it. docs/bucket.md says why each part is as it is.

use super::name::{KeyName, unhex};
use super::{BucketError, Kin, Result};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};
use std::fmt::{self, Write as _};
use std::sync::Arc;

/// Longest object with a key, and longest text in it, in bytes.
pub const MAX_KEY: usize = 1 << 20;
/// What sealed bytes are longer by than what they hold.
pub(super) const TAG: usize = 16;
const FIRST_LINE: &str = "ksnap bucket key 1";

/// What each key that is made of that of a place is for.
const CHUNK_TAG: &str = "ksnap 2026-11-27 tag of a chunk 1";
const CHUNK: &str = "ksnap 2026-11-27 sealed chunk 1";
const CHUNK_END: &str = "ksnap 2026-11-27 end of a chunk 1";
const PROGRAM: &str = "ksnap 2026-11-27 name of a program 1";
const SNAPSHOT: &str = "ksnap 2026-11-27 sealed snapshot 1";

/// Random bytes of the operating system.
pub(super) fn random() -> Result<[u8; 32]> {
    let mut bytes = [0; 32];
    let failed = |_| BucketError::Service {
        call: "get random bytes from",
        object: "the system".into(),
        why: "it gives none".into(),
        denied: false,
    };
    SystemRandom::new().fill(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

/// Someone for whom a key is, and whether they have made it.
#[derive(Clone, PartialEq, Eq)]
struct KeyHolder {
    /// Their public key, as text.
    recipient: String,
    /// What only they can have made, if they have made the key: a mark of [`BucketKey::marked`].
    mark: Option<[u8; 32]>,
}

/// A key that is in a place.
#[derive(Clone, Debug)]
pub struct PlacedKey {
    /// Its object.
    pub name: KeyName,
    /// What is in that.
    pub key: Arc<BucketKey>,
}

/// A key with which snapshots in a place are sealed.
#[derive(Clone)]
pub struct BucketKey {
    bytes: [u8; 32],
    holders: Vec<KeyHolder>,
    tagging: [u8; 32],
    ending: [u8; 32],
    programs: [u8; 32],
}

impl fmt::Debug for BucketKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BucketKey(for {})", self.holders.len())
    }
}

impl BucketKey {
    /// A new one for these recipients, which are ascending. `marks` makes the marks of those who make it.
    pub fn generate(
        recipients: &[String],
        marks: impl FnOnce(&[u8]) -> Vec<(String, [u8; 32])>,
    ) -> Result<Self> {
        Ok(Self::with_bytes(random()?, recipients, marks))
    }

    pub(super) fn with_bytes(
        bytes: [u8; 32],
        recipients: &[String],
        marks: impl FnOnce(&[u8]) -> Vec<(String, [u8; 32])>,
    ) -> Self {
        let holders = recipients.iter().map(|recipient| KeyHolder {
            recipient: recipient.clone(),
            mark: None,
        });
        let mut key = Self::new(bytes, holders.collect());
        for (of, mark) in marks(&key.marked()) {
            let holder = key.holders.iter_mut().find(|one| one.recipient == of);
            if let Some(holder) = holder {
                holder.mark = Some(mark);
            }
        }
        key
    }

    fn new(bytes: [u8; 32], holders: Vec<KeyHolder>) -> Self {
        Self {
            bytes,
            holders,
            tagging: blake3::derive_key(CHUNK_TAG, &bytes),
            ending: blake3::derive_key(CHUNK_END, &bytes),
            programs: blake3::derive_key(PROGRAM, &bytes),
        }
    }

    /// For whom it is, as text, ascending.
    pub fn recipients(&self) -> Vec<String> {
        let names = self.holders.iter().map(|one| one.recipient.clone());
        names.collect()
    }

    /// What marks are of: the key, and for whom it is.
    pub fn marked(&self) -> Vec<u8> {
        let mut bytes = self.bytes.to_vec();
        for holder in &self.holders {
            bytes.extend_from_slice(holder.recipient.as_bytes());
            bytes.push(b'\n');
        }
        bytes
    }

    /// Whether somebody with one of these marks has made it, for these recipients. Anybody can make a key for them that he
    /// knows himself: what is sealed with it he could read.
    pub fn is_own(&self, recipients: &[String], marks: &[(String, [u8; 32])]) -> bool {
        let own = |holder: &KeyHolder| {
            let mut of = marks.iter().filter(|(of, _)| *of == holder.recipient);
            // In time that does not depend on where they differ.
            of.any(|(_, mark)| {
                holder.mark.is_some_and(|found| {
                    blake3::Hash::from_bytes(found) == blake3::Hash::from_bytes(*mark)
                })
            })
        };
        self.recipients() == recipients && self.holders.iter().any(own)
    }

    /// Whether somebody will know it for his own ([`BucketKey::is_own`]).
    pub fn is_marked(&self) -> bool {
        self.holders.iter().any(|holder| holder.mark.is_some())
    }

    /// What the object with the key holds.
    pub fn encode(&self) -> String {
        let mut text = format!("{FIRST_LINE}\n{}\n", hex(&self.bytes));
        for holder in &self.holders {
            let mark = holder.mark.as_ref().map_or("-".into(), hex);
            let _ = writeln!(text, "{} {mark}", holder.recipient);
        }
        text
    }

    /// Reads that.
    pub fn decode(object: &str, plain: &[u8]) -> Result<Self> {
        let corrupt = |why: &str| BucketError::corrupt(object, why);
        let text = std::str::from_utf8(plain).map_err(|_| corrupt("what it holds is no text"))?;
        let text = text.strip_suffix('\n').unwrap_or(text);
        let mut lines = text.split('\n');
        let first = lines.next().unwrap_or_default();
        if first != FIRST_LINE {
            let version = first.strip_prefix("ksnap bucket key ");
            return Err(match version.and_then(|version| version.parse().ok()) {
                Some(found) if found > 1 => BucketError::NewerVersion {
                    object: object.to_owned(),
                    found,
                    supported: 1,
                },
                _ => corrupt("it holds no key of ksnap's"),
            });
        }
        let bytes = lines.next().and_then(unhex);
        let bytes = bytes.ok_or_else(|| corrupt("its key is none"))?;
        let holders: Option<Vec<KeyHolder>> = lines.map(holder).collect();
        let key = Self::new(
            bytes,
            holders.ok_or_else(|| corrupt("a line of it names nobody"))?,
        );
        let ordered = key.holders.is_sorted_by(|a, b| a.recipient < b.recipient);
        match ordered && !key.holders.is_empty() && key.encode().as_bytes() == plain {
            true => Ok(key),
            false => Err(corrupt("it is not written as ksnap writes it")),
        }
    }

    /// Stands for a program under this key.
    pub fn kin(&self, comm: &str) -> Kin {
        let hash = blake3::keyed_hash(&self.programs, comm.as_bytes());
        Kin(*hash.as_bytes().first_chunk().expect("a hash has 32 bytes"))
    }

    /// Stands for a page where chunks are cut, so that their lengths do not tell which pages they have.
    pub(super) fn end_of(&self, page: &[u8; 32]) -> [u8; 32] {
        *blake3::keyed_hash(&self.ending, page).as_bytes()
    }

    /// The tag of a chunk, by which its key is found.
    pub(super) fn chunk_tag(&self, chunk: &[u8]) -> [u8; 32] {
        *blake3::keyed_hash(&self.tagging, chunk).as_bytes()
    }

    pub(super) fn for_chunk(&self, tag: &[u8; 32]) -> Sealer {
        self.sealer(CHUNK, tag)
    }

    pub(super) fn for_snapshot(&self, salt: &[u8; 32]) -> Sealer {
        self.sealer(SNAPSHOT, salt)
    }

    fn sealer(&self, context: &str, of: &[u8; 32]) -> Sealer {
        let mut hasher = blake3::Hasher::new_derive_key(context);
        hasher.update(&self.bytes).update(of);
        let key = UnboundKey::new(&CHACHA20_POLY1305, hasher.finalize().as_bytes());
        Sealer(LessSafeKey::new(key.expect("the key has 32 bytes")))
    }
}

/// A line about someone for whom a key is.
fn holder(line: &str) -> Option<KeyHolder> {
    let (recipient, mark) = line.split_once(' ')?;
    let is_key = recipient.bytes().all(|byte| byte.is_ascii_alphanumeric());
    let mark = match mark {
        "-" => None,
        mark => Some(unhex(mark)?),
    };
    (is_key && !recipient.is_empty()).then(|| KeyHolder {
        recipient: recipient.to_owned(),
        mark,
    })
}

fn hex(bytes: &[u8; 32]) -> String {
    KeyName(*bytes).to_string()
}

/// Seals or opens the parts of one object, each once.
pub(super) struct Sealer(LessSafeKey);

impl Sealer {
    /// Seals what follows `from` in `bytes`, as this part of the object that has this clear beginning.
    pub(super) fn seal(&self, part: u8, head: &[u8], bytes: &mut Vec<u8>, from: usize) {
        let aad = Aad::from(head);
        let tag = self
            .0
            .seal_in_place_separate_tag(nonce(part), aad, &mut bytes[from..]);
        // Fails for more than 256 GiB, which no object has.
        bytes.extend_from_slice(tag.expect("an object can be sealed").as_ref());
    }

    /// Opens a part in place; `None` where it is not what was sealed with this key for this place.
    pub(super) fn open<'a>(
        &self,
        part: u8,
        head: &[u8],
        sealed: &'a mut [u8],
    ) -> Option<&'a mut [u8]> {
        let aad = Aad::from(head);
        self.0.open_in_place(nonce(part), aad, sealed).ok()
    }
}

fn nonce(part: u8) -> Nonce {
    let mut nonce = [0; 12];
    nonce[11] = part;
    Nonce::assume_unique_for_key(nonce)
}

#[cfg(test)]
mod tests {
    use super::super::golden::bucket_key;
    use super::*;
    use proptest::prelude::*;

    fn marks(of: u8) -> Vec<(String, [u8; 32])> {
        vec![("age1b".into(), [of; 32])]
    }

    #[test]
    fn a_key_comes_back_and_any_other_text_is_none() {
        let key = bucket_key();
        let text = key.encode();
        let back = BucketKey::decode("k", text.as_bytes()).unwrap();
        assert_eq!(
            (back.bytes, back.recipients()),
            (key.bytes, key.recipients())
        );
        assert!(back.holders == key.holders);
        let swapped = text.replace("age1a", "age1z");
        let more = [text.as_str(), "\n", "x", "age1a -\n"].map(|more| text.clone() + more);
        // Cut between two of them it is a key for fewer.
        let cuts = (0..text.len()).filter(|at| !text[..*at].ends_with("-\n"));
        let cuts = cuts.map(|at| text[..at].to_owned());
        for other in cuts.chain(more).chain([swapped]) {
            let found = BucketKey::decode("k", other.as_bytes());
            assert!(found.is_err(), "{other:?}");
        }
        let later = text.replace("key 1", "key 2");
        let error = BucketKey::decode("k", later.as_bytes()).unwrap_err();
        assert!(matches!(error, BucketError::NewerVersion { found: 2, .. }));
    }

    #[test]
    fn a_key_is_ones_own_by_its_mark_for_the_same_recipients() {
        let recipients = ["age1a".to_owned(), "age1b".into()];
        let key = BucketKey::generate(&recipients, |_| marks(1)).unwrap();
        assert!(key.is_own(&recipients, &marks(1)));
        assert!(!key.is_own(&recipients, &marks(2)));
        assert!(!key.is_own(&recipients, &[]));
        assert!(!key.is_own(&recipients[1..], &marks(1)));
        // Somebody else's, who has left it out or taken another's.
        let planted = BucketKey::generate(&recipients, |_| Vec::new()).unwrap();
        assert!(!planted.is_own(&recipients, &marks(1)));
        let other = BucketKey::generate(&recipients, |_| Vec::new()).unwrap();
        assert_ne!(planted.marked(), other.marked());
    }

    proptest! {
        #[test]
        fn what_is_sealed_is_opened_in_its_place_alone(
            plain in prop::collection::vec(any::<u8>(), 0..200), at: prop::sample::Index, bit in 0u8..8
        ) {
            let sealer = bucket_key().for_snapshot(&[3; 32]);
            let mut sealed = b"clear".to_vec();
            sealed.extend_from_slice(&plain);
            sealer.seal(1, b"head", &mut sealed, 5);
            prop_assert_eq!(sealed.len(), 5 + plain.len() + TAG);
            let open = |sealer: &Sealer, part, head: &[u8], mut sealed: Vec<u8>| {
                sealer.open(part, head, &mut sealed).map(|plain| plain.to_vec())
            };
            let sealed = sealed.split_off(5);
            prop_assert_eq!(open(&sealer, 1, b"head", sealed.clone()), Some(plain));
            prop_assert_eq!(open(&sealer, 0, b"head", sealed.clone()), None);
            prop_assert_eq!(open(&sealer, 1, b"other", sealed.clone()), None);
            for other in [bucket_key().for_snapshot(&[4; 32]), bucket_key().for_chunk(&[3; 32])] {
                prop_assert_eq!(open(&other, 1, b"head", sealed.clone()), None);
            }
            let mut damaged = sealed;
            let at = at.index(damaged.len());
            damaged[at] ^= 1 << bit;
            prop_assert_eq!(open(&sealer, 1, b"head", damaged), None);
        }
    }
}
