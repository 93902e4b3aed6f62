//! Whether the decoders take what mutations begin with: what is refused from the beginning says nothing of what follows.

use crate::small_targets::FLAT_OF;
use crate::targets::{header_of, repeat};
use snap_user::codec::{Encoding, decode, decompress_block};
use snap_user::image::{Header, Manifest, PackHeader, decode_dropped, decode_index, decode_span};
use snap_user::session::{Reply, Request};
use snap_user::store::hostile;
use snap_user::wire::{KeyPair, Message, read_frame, trusted_in};

/// Whether a target's decoder reads bytes as they are.
pub fn is_read(target: &str, seed: &[u8]) -> bool {
    let text = || std::str::from_utf8(seed).expect("text");
    match target {
        "page" => is_page(seed),
        // Whatever is behind the length.
        "pair" => !seed.is_empty(),
        "block" => {
            let len = u16::from_le_bytes([seed[0], seed[1]]).into();
            decompress_block(&seed[2..], len).is_ok()
        }
        "header" => {
            let (len, header) = seed.split_first_chunk().expect("a length");
            Header::decode(header, u64::from_le_bytes(*len)).is_ok()
        }
        "index" => decode_index(seed, &header_of(seed, |header| &mut header.index)).is_ok(),
        "dropped" => decode_dropped(seed, &header_of(seed, |header| &mut header.dropped)).is_ok(),
        "span" => decode_span(seed, &header_of(seed, |header| &mut header.span)).is_ok(),
        "manifest" => {
            Manifest::decode(seed, &header_of(seed, |header| &mut header.manifest)).is_ok()
        }
        "message" => {
            Message::decode(seed[0], &seed[1..]).is_ok() || read_frame(&mut &*seed).is_ok()
        }
        "pack" => PackHeader::decode(seed, seed.len() as u64).is_ok(),
        "headers" => !hostile::headers(seed).0.is_empty(),
        "tree" => hostile::tree(seed).is_ok(),
        "received" => hostile::received(seed).is_ok_and(|pages| !pages.is_empty()),
        "flat" => hostile::flat(seed, FLAT_OF.0, FLAT_OF.1).is_some(),
        "described" => hostile::tag(text()).is_ok() || hostile::session(text()).is_ok(),
        "sealed" => hostile::sealed(seed).is_ok(),
        "keys" => {
            KeyPair::from_text(text()).is_some()
                || trusted_in(text()).is_ok_and(|keys| !keys.is_empty())
        }
        "socket" => {
            let is_request = serde_json::from_slice::<Request>(seed).is_ok();
            is_request || serde_json::from_slice::<Reply>(seed).is_ok()
        }
        #[cfg(feature = "object-storage")]
        "bucket" => is_object(seed),
        other => panic!("no decoder of {other}"),
    }
}

fn is_page(seed: &[u8]) -> bool {
    let (before, bytes) = seed[2..].split_at(seed[1].into());
    let previous = repeat(before);
    let encoding = Encoding::from_tag(seed[0]).expect("an encoding");
    decode(encoding, bytes, Some(&previous), &mut repeat(&[])).is_ok()
}

/// An object of one of the kinds that are in a bucket.
#[cfg(feature = "object-storage")]
fn is_object(seed: &[u8]) -> bool {
    use crate::targets::key;
    use snap_user::bucket::{BucketKey, Chunk, ChunkName, Envelope, Index, TreeHead};

    let (object, len) = ("seed", seed.len() as u64);
    let name = ChunkName(*blake3::hash(seed).as_bytes());
    let opens = |envelope: Envelope| envelope.front(object, &key().key).is_ok();
    Chunk::decode(name, seed).is_ok()
        || Chunk::decode_sealed(name, &mut seed.to_vec(), &key().key).is_ok()
        || Index::decode(object, seed.to_vec()).is_ok()
        || TreeHead::decode(object, seed, len).is_ok()
        || Envelope::decode(object, seed, len).is_ok_and(opens)
        || BucketKey::decode(object, seed).is_ok()
}
