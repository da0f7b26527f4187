//! The keys and values that benchmarks write and read.

use anyhow::{Result, ensure};
use bytes::Bytes;

/// What every key of a benchmark begins with, so that they can be told from others and
/// deleted: `etcdctl del --prefix b0`, as long as nobody else's begin so.
const FIRST: u8 = b'b';

/// The largest key and value that a store takes anyway; the largest key space.
const MOST_KEY_BYTES: usize = 64 << 10;
const MOST_VALUE_BYTES: usize = 64 << 20;
const MOST_KEYS: u64 = 1_000_000_000;

/// The keys `b0…0` to `b0…N`, all of one size.
#[derive(Clone, Debug)]
pub(crate) struct Keys {
    size: usize,
    pub(crate) number: u64,
    sequential: bool,
}

impl Keys {
    /// # Errors
    /// When so many keys of that size do not exist.
    pub(crate) fn new(size: usize, number: u64, sequential: bool) -> Result<Self> {
        ensure!((1..=MOST_KEYS).contains(&number), "--key-space-size {number} is not between 1 and {MOST_KEYS}");
        ensure!(size <= MOST_KEY_BYTES, "--key-size {size} is more than {MOST_KEY_BYTES}");
        let least = 1 + (number - 1).to_string().len();
        ensure!(size >= least, "--key-size {size} is too small for {number} keys: it takes --key-size {least}");
        Ok(Self { size, number, sequential })
    }

    /// The key of that number.
    pub(crate) fn key(&self, number: u64) -> Bytes {
        let mut key = vec![b'0'; self.size];
        key[0] = FIRST;
        let mut rest = number;
        for digit in key[1..].iter_mut().rev() {
            if rest == 0 {
                break;
            }
            *digit = b'0' + u8::try_from(rest % 10).unwrap_or_default();
            rest /= 10;
        }
        key.into()
    }

    /// The key of a load's operation of that number.
    pub(crate) fn of_turn(&self, number: u64, random: &mut Random) -> Bytes {
        self.key(if self.sequential { number % self.number } else { random.below(self.number) })
    }

    /// Where all keys end, as a range has it.
    pub(crate) fn end(&self) -> Bytes {
        let mut end = self.key(self.number - 1).to_vec();
        end.push(0);
        end.into()
    }
}

/// A value of so many bytes that does not compress.
///
/// # Errors
/// When no store takes so many.
pub(crate) fn value(size: usize) -> Result<Bytes> {
    check_value_size(size)?;
    let mut random = Random::new(size as u64);
    Ok((0..size).map(|_| random.next().to_le_bytes()[0]).collect())
}

/// Values for many keys that do not compress, neither alone nor beside their neighbours:
/// what is written is what comes to the disk.
pub(crate) struct Values {
    pool: Bytes,
    size: usize,
}

impl Values {
    /// More than any compressor of a store looks back.
    const POOL_BYTES: usize = 4 << 20;

    /// # Errors
    /// When no store takes values of so many bytes.
    pub(crate) fn new(size: usize) -> Result<Self> {
        check_value_size(size)?;
        let mut random = Random::new(size as u64);
        Ok(Self { pool: (0..Self::POOL_BYTES + size).map(|_| random.next().to_le_bytes()[0]).collect(), size })
    }

    pub(crate) fn of_key(&self, number: u64) -> Bytes {
        let begin = (number as usize).wrapping_mul(self.size) % Self::POOL_BYTES;
        self.pool.slice(begin..begin + self.size)
    }
}

fn check_value_size(size: usize) -> Result<()> {
    ensure!(size <= MOST_VALUE_BYTES, "--val-size {size} is more than {MOST_VALUE_BYTES}");
    Ok(())
}

/// SplitMix64: which key is next need not be hard to guess.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x2545_f491_4f6c_dd1d))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// True in so large a part of all calls.
    pub(crate) fn chance(&mut self, part: f64) -> bool {
        #[expect(clippy::cast_precision_loss, reason = "53 bits")]
        let drawn = (self.next() >> 11) as f64 / (1_u64 << 53) as f64;
        drawn < part
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_one_size_and_an_order() {
        let keys = Keys::new(8, 100, true).unwrap();
        assert_eq!(keys.key(0), "b0000000");
        assert_eq!(keys.key(42), "b0000042");
        assert_eq!(keys.end(), "b0000099\0");
        assert_eq!(keys.of_turn(142, &mut Random::new(1)), "b0000042");
        assert_eq!(Keys::new(2, 10, true).unwrap().key(9), "b9");
    }

    #[test]
    fn a_key_space_fits_in_its_keys() {
        assert!(Keys::new(8, 10_000_000, false).is_ok());
        let error = Keys::new(8, 10_000_001, false).unwrap_err().to_string();
        assert_eq!(error, "--key-size 8 is too small for 10000001 keys: it takes --key-size 9");
        assert!(Keys::new(8, 0, false).is_err());
        assert!(Keys::new(1, 1, false).is_err());
    }

    #[test]
    fn random_keys_are_of_the_key_space() {
        let keys = Keys::new(8, 3, false).unwrap();
        let mut random = Random::new(7);
        let seen: std::collections::BTreeSet<Bytes> = (0..100).map(|turn| keys.of_turn(turn, &mut random)).collect();
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), ["b0000000", "b0000001", "b0000002"]);
        let reads = (0..10_000).filter(|_| random.chance(0.8)).count();
        assert!((7_800..8_200).contains(&reads), "{reads}");
    }
}
