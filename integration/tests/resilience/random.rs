//! Chance that can be had again.

/// xorshift64*: a sequence that a seed repeats.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed | 1)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % n
    }
}

/// The seed of the moment.
pub fn seed() -> u64 {
    std::env::var("COFFERDAM_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(20_260_101)
}
