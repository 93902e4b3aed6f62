//! How often a test does what it does, and how long it waits, where all of it takes many times as long.

use std::sync::OnceLock;
use std::time::Duration;

/// Names the variable: a whole number. Counts of snapshots and rollbacks are divided by it, limits of waits
/// multiplied.
pub const SLOW: &str = "KSNAP_TESTS_SLOW";

/// Fewer would prove nothing about a chain: a base, deltas, and one after what a test does in between.
const LEAST: usize = 4;

fn slow() -> u32 {
    static FACTOR: OnceLock<u32> = OnceLock::new();
    *FACTOR.get_or_init(|| {
        let Some(value) = std::env::var_os(SLOW) else {
            return 1;
        };
        let number = value.to_str().and_then(|text| text.parse().ok());
        match number {
            Some(number @ 1..) => number,
            _ => panic!("{SLOW} is {value:?}, not a whole number above 0"),
        }
    })
}

/// `full` times, or a part of it as [`SLOW`] says, but never fewer than four where `full` is more than that.
pub fn times(full: usize) -> usize {
    divided(full, slow() as usize)
}

/// The limit of a wait that is over as soon as what it waits for has come.
pub fn patience(usual: Duration) -> Duration {
    usual * slow()
}

fn divided(full: usize, divisor: usize) -> usize {
    (full / divisor).max(LEAST.min(full))
}

#[cfg(test)]
mod tests {
    use super::divided;

    #[test]
    fn a_part_is_never_nothing() {
        assert_eq!(divided(40, 1), 40);
        assert_eq!(divided(40, 4), 10);
        assert_eq!(divided(12, 4), 4);
        assert_eq!(divided(3, 4), 3);
        assert_eq!(divided(40, 1000), 4);
    }
}
