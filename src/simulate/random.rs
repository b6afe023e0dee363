//! Random numbers from the seed alone: the same seed gives the same publisher on every machine and in every release.

/// A sequence of numbers (SplitMix64), small enough to be kept here, so that no dependency's release can change it.
#[derive(Clone, Debug)]
pub(super) struct Random(u64);

const STEP: u64 = 0x9E37_79B9_7F4A_7C15;

impl Random {
    /// An own sequence for each `salt`.
    pub(super) fn new(seed: u64, salt: u64) -> Self {
        Self(mix(seed ^ mix(salt)))
    }

    fn next(&mut self) -> u64 {
        let number = mix(self.0);
        self.0 = self.0.wrapping_add(STEP);
        number
    }

    /// A number from 0 to one less than `end`; 0 where `end` is 0.
    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    /// True in `share` (0 to 1) of all calls.
    pub(super) fn hits(&mut self, share: f64) -> bool {
        // 53 bits are as many as an f64 holds.
        let part = (self.next() >> 11) as f64 / (1_u64 << 53) as f64;
        part < share
    }
}

/// Spreads a number over all 64 bits.
pub(super) fn mix(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(STEP);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_one_sequence() {
        // The first outputs of SplitMix64 from state 1234567, as its authors publish them.
        let mut random = Random(1_234_567);
        assert_eq!([random.next(), random.next()], [6_457_827_717_110_365_317, 3_203_168_211_198_807_973]);
    }

    #[test]
    fn a_share_is_about_kept() {
        let mut random = Random::new(1, 2);
        let hits = (0..10_000).filter(|_| random.hits(0.25)).count();
        assert!((2_300..2_700).contains(&hits), "{hits}");
        assert!((0..1_000).all(|_| random.hits(1.0)) && (0..1_000).all(|_| !random.hits(0.0)));
    }
}
