//! Plain bytes ↔ sealed blocks.
//!
//! A block is 64 KiB of the file, the last one as long as it is. It is opened as a whole or not at all: it must be
//! the one of this place, in the file for this purpose, of this session, and the last one only where it was sealed as
//! that. Each is sealed once: another content of a block under the same nonce would give away both.

use super::error::{SealError, damaged};
use super::keys::SessionKey;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};

/// Length of a block in the file.
pub(super) const BLOCK: usize = 64 << 10;
/// Length of the clear beginning of the file, which is a part of the first block.
pub(super) const HEAD: usize = 64;
/// What a block is longer by than what it holds.
pub(super) const TAG: usize = 16;
/// Plain bytes in a block that does not begin the file.
pub(super) const ROOM: usize = BLOCK - TAG;
/// Plain bytes in the first block.
pub(super) const FIRST_ROOM: usize = ROOM - HEAD;

const MAGIC: &[u8; 8] = b"\x89KSEAL\r\n";
pub(super) const VERSION: u16 = 1;
const SALT: usize = 32;

/// Seals and opens the blocks of one file.
pub(super) struct Blocks {
    head: [u8; HEAD],
    key: LessSafeKey,
}

impl std::fmt::Debug for Blocks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Blocks")
    }
}

impl Blocks {
    /// For a new file. `salt` is random.
    pub(super) fn new(key: &SessionKey, purpose: &str, salt: [u8; SALT]) -> Self {
        let mut head = [0; HEAD];
        head[..8].copy_from_slice(MAGIC);
        head[8..10].copy_from_slice(&VERSION.to_le_bytes());
        head[10..12].copy_from_slice(&(HEAD as u16).to_le_bytes());
        head[12..16].copy_from_slice(&(BLOCK as u32).to_le_bytes());
        head[16..16 + SALT].copy_from_slice(&salt);
        let key = key.for_file(&salt, purpose);
        Self {
            head,
            key: aead(&key),
        }
    }

    /// For a file that is there, from its clear beginning.
    pub(super) fn open(
        key: &SessionKey,
        purpose: &str,
        head: &[u8; HEAD],
    ) -> Result<Self, SealError> {
        let bad = |why: &str| SealError::Damaged {
            part: "seal",
            why: why.into(),
        };
        if head[..8] != *MAGIC {
            return Err(bad("the file is not sealed, and its session is"));
        }
        let version = u16::from_le_bytes([head[8], head[9]]);
        if version > VERSION {
            let found = version.into();
            return Err(SealError::Newer { found });
        }
        let salt = head[16..16 + SALT].try_into().expect("32 bytes");
        let blocks = Self::new(key, purpose, salt);
        match blocks.head == *head {
            true => Ok(blocks),
            false => Err(bad("its beginning is not of this version")),
        }
    }

    /// The clear beginning of the file.
    pub(super) fn head(&self) -> &[u8; HEAD] {
        &self.head
    }

    /// Seals what is to be block `number`, appending it to `out`, without the file's beginning.
    pub(super) fn seal(&self, number: u64, last: bool, plain: &[u8], out: &mut Vec<u8>) {
        let at = out.len();
        out.extend_from_slice(plain);
        let tag = self.key.seal_in_place_separate_tag(
            nonce(number, last),
            Aad::from(&self.head),
            &mut out[at..],
        );
        // Fails for more than 256 GiB in one call, which is no block.
        out.extend_from_slice(tag.expect("a block can be sealed").as_ref());
    }

    /// Opens block `number` in place, which is without the file's beginning; gives what it holds.
    pub(super) fn unseal<'a>(
        &self,
        number: u64,
        last: bool,
        sealed: &'a mut [u8],
    ) -> Result<&'a mut [u8], SealError> {
        self.key
            .open_in_place(nonce(number, last), Aad::from(&self.head), sealed)
            .map_err(|_| {
                damaged(format!(
                    "block {number} is not what was written there: altered, cut, or from another place or file"
                ))
            })
    }
}

fn aead(key: &[u8; 32]) -> LessSafeKey {
    let key = UnboundKey::new(&CHACHA20_POLY1305, key).expect("the key has 32 bytes");
    LessSafeKey::new(key)
}

/// The block's number, 11 bytes, the most significant first, and whether it is the last.
fn nonce(number: u64, last: bool) -> Nonce {
    let mut nonce = [0; 12];
    nonce[3..11].copy_from_slice(&number.to_be_bytes());
    nonce[11] = last.into();
    Nonce::assume_unique_for_key(nonce)
}

/// Blocks of a file of this length, and plain bytes in it.
pub(super) fn sizes(sealed: u64) -> Result<(u64, u64), SealError> {
    let blocks = sealed.div_ceil(BLOCK as u64);
    let over = HEAD as u64 + blocks * TAG as u64;
    // A last block that holds nothing is only in an empty file.
    let rest = sealed % BLOCK as u64;
    if sealed < over || blocks == 0 || (blocks > 1 && (1..=TAG as u64).contains(&rest)) {
        return Err(damaged(format!("no sealed file has {sealed} bytes")));
    }
    Ok((blocks, sealed - over))
}

/// Which block has a plain byte, and where in it.
pub(super) fn place(offset: u64) -> (u64, usize) {
    let at = offset + HEAD as u64;
    let number = at / ROOM as u64;
    let within = (at % ROOM as u64) as usize;
    match number {
        0 => (0, within - HEAD),
        _ => (number, within),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_and_sizes_agree() {
        assert_eq!(place(0), (0, 0));
        assert_eq!(place(FIRST_ROOM as u64 - 1), (0, FIRST_ROOM - 1));
        assert_eq!(place(FIRST_ROOM as u64), (1, 0));
        assert_eq!(place((FIRST_ROOM + ROOM) as u64), (2, 0));
        let sealed_len = |plain: u64| {
            let last = plain.max(1) - 1;
            plain + HEAD as u64 + (place(last).0 + 1) * TAG as u64
        };
        let first = FIRST_ROOM as u64;
        let room = ROOM as u64;
        for plain in [
            0,
            1,
            first - 1,
            first,
            first + 1,
            first + room,
            first + room + 1,
        ] {
            let sealed = sealed_len(plain);
            let blocks = place(plain.max(1) - 1).0 + 1;
            assert_eq!(sizes(sealed), Ok((blocks, plain)), "{plain}");
        }
    }

    #[test]
    fn lengths_that_no_sealed_file_has_are_damage() {
        let block = BLOCK as u64;
        for len in [0, 1, 63, 79, block + 1, block + 16, 3 * block + 7] {
            assert!(sizes(len).is_err(), "{len}");
        }
        assert!(sizes(80).is_ok());
        assert!(sizes(block + 17).is_ok());
    }
}
