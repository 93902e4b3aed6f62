//! Random numbers that need no kernel and repeat from a seed (so a rolled-back victim repeats itself).

/// splitmix64's finisher: spreads every input bit over the whole word.
pub const fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// The odd constant that splitmix64 steps by.
pub const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// A splitmix64 generator.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// A generator that repeats from this seed.
    pub const fn new(seed: u64) -> Self {
        Self(mix(seed ^ GOLDEN))
    }

    /// The next 64 random bits.
    pub const fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN);
        mix(self.0)
    }

    /// A number in `0..limit`; `limit` must not be zero.
    pub const fn below(&mut self, limit: usize) -> usize {
        (self.word() % limit as u64) as usize
    }
}
