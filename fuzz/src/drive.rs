//! Mutations of a corpus, for a compiler without a fuzzer: no coverage, but the same inputs each time.

use std::path::Path;

/// The files of a corpus, in the order of their names.
pub fn corpus(folder: &Path) -> Vec<Vec<u8>> {
    let mut paths: Vec<_> = std::fs::read_dir(folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.expect("a readable folder").path())
        .collect();
    paths.sort();
    let read = |path: &_| std::fs::read(path).expect("a readable file");
    paths.iter().map(read).collect()
}

/// Marsaglia's xorshift64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() >> 20) as usize % limit.max(1)
    }
}

/// Longest input: no shorter than the longest entry of a corpus.
pub const LONGEST: usize = 9000;
/// Numbers on which code goes wrong.
const EDGES: [u64; 12] = [
    0,
    1,
    0x7f,
    0xff,
    0xfff,
    0x1000,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    i64::MAX as u64,
    u64::MAX,
];

/// Endless inputs, each made from an entry of a corpus.
pub struct Mutations<'a> {
    corpus: &'a [Vec<u8>],
    random: Random,
}

impl<'a> Mutations<'a> {
    /// Mutations of `corpus`, which must not be empty; those of the same seed are the same.
    pub fn new(corpus: &'a [Vec<u8>], seed: u64) -> Self {
        assert!(!corpus.is_empty(), "nothing to begin with");
        let random = Random(seed ^ 0x9e37_79b9_7f4a_7c15);
        Self { corpus, random }
    }

    fn mutate(&mut self, bytes: &mut Vec<u8>) {
        let random = &mut self.random;
        let at = random.below(bytes.len() + 1);
        match random.below(8) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            1 if at < bytes.len() => bytes[at] = random.next() as u8,
            2 => {
                let edge = EDGES[random.below(EDGES.len())].to_le_bytes();
                let len = [1, 2, 4, 8][random.below(4)].min(bytes.len() - at);
                bytes[at..at + len].copy_from_slice(&edge[..len]);
            }
            3 => bytes.truncate(at),
            4 => {
                let len = random.below(32).min(bytes.len() - at);
                bytes.drain(at..at + len);
            }
            5 => {
                let more: Vec<u8> = (0..random.below(32)).map(|_| random.next() as u8).collect();
                bytes.splice(at..at, more);
            }
            6 => {
                // A piece of it again, elsewhere.
                let len = random.below(64).min(bytes.len() - at);
                let piece = bytes[at..at + len].to_vec();
                let to = random.below(bytes.len() + 1);
                bytes.splice(to..to, piece);
            }
            _ => {
                // The rest of another one.
                let other = &self.corpus[random.below(self.corpus.len())];
                bytes.truncate(at);
                bytes.extend_from_slice(&other[random.below(other.len() + 1)..]);
            }
        }
        bytes.truncate(LONGEST);
    }
}

impl Iterator for Mutations<'_> {
    type Item = Vec<u8>;

    fn next(&mut self) -> Option<Vec<u8>> {
        let mut bytes = self.corpus[self.random.below(self.corpus.len())].clone();
        for _ in 0..=self.random.below(6) {
            self.mutate(&mut bytes);
        }
        Some(bytes)
    }
}
