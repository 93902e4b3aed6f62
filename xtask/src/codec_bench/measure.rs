//! Time and size of one codec on one set.

use crate::codecs::Codec;
use crate::{Page, Pair};
use anyhow::{Result, ensure};
use serde_json::{Value, json};
use std::hint::black_box;
use std::time::Instant;

/// Pages measured in one go: with what they were and what they become, they stay in the second-level cache.
const PIECE: usize = 96;
/// Times that each piece is measured; the fastest counts, because whatever else the machine does only adds.
const ROUNDS: usize = 7;

/// What a set took.
#[derive(Default)]
pub struct Taken {
    bytes: u64,
    encode_ns: u64,
    decode_ns: u64,
}

impl Taken {
    /// As JSON.
    pub fn json(&self) -> Value {
        json!({ "bytes": self.bytes, "encode_ns": self.encode_ns, "decode_ns": self.decode_ns })
    }
}

fn timed(work: impl FnOnce() -> Result<()>) -> Result<u64> {
    let begun = Instant::now();
    work()?;
    Ok(begun.elapsed().as_nanos() as u64)
}

/// Measures, and checks that each page comes back.
pub fn run(codec: &mut dyn Codec, pairs: &[Pair]) -> Result<Taken> {
    let mut taken = Taken::default();
    let mut out = Vec::with_capacity(PIECE * 5000);
    let mut ends = Vec::with_capacity(PIECE);
    let mut page: Page = [0; 4096];
    for piece in pairs.chunks(PIECE) {
        let (mut encode, mut decode) = (u64::MAX, u64::MAX);
        for _ in 0..ROUNDS {
            out.clear();
            ends.clear();
            codec.begin();
            encode = encode.min(timed(|| {
                for pair in piece {
                    codec.encode(&pair.page, pair.before.as_deref(), &mut out)?;
                    ends.push(out.len());
                }
                Ok(())
            })?);
            decode = decode.min(timed(|| {
                let mut start = 0;
                for (n, (pair, end)) in piece.iter().zip(&ends).enumerate() {
                    codec.decode(n, &out[start..*end], pair.before.as_deref(), &mut page)?;
                    black_box(&page);
                    start = *end;
                }
                Ok(())
            })?);
        }
        let mut start = 0;
        for (n, (pair, end)) in piece.iter().zip(&ends).enumerate() {
            codec.decode(n, &out[start..*end], pair.before.as_deref(), &mut page)?;
            ensure!(page == *pair.page, "a page came back as another");
            start = *end;
        }
        taken.bytes += out.len() as u64;
        taken.encode_ns += encode;
        taken.decode_ns += decode;
    }
    Ok(taken)
}

/// Time to copy each page, in nanoseconds: what no codec can be faster than.
pub fn copy(pairs: &[Pair]) -> u64 {
    let mut out = vec![0; PIECE * 4096];
    let fastest = |piece: &[Pair]| {
        let rounds = (0..ROUNDS).map(|_| {
            let begun = Instant::now();
            for (to, pair) in out.chunks_exact_mut(4096).zip(piece) {
                to.copy_from_slice(&*pair.page);
            }
            black_box(&mut out);
            begun.elapsed().as_nanos() as u64
        });
        rounds.min().unwrap_or(0)
    };
    pairs.chunks(PIECE).map(fastest).sum()
}
