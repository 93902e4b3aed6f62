//! Distributions of durations.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// Percentiles of a duration, in nanoseconds. A percentile is the smallest recorded value that at
/// least that share of all values does not exceed, rounded up by at most a thousandth.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "self-describing")]
pub struct Times {
    /// Number of values.
    pub count: u64,
    /// Their sum, exact.
    pub total_ns: u64,
    pub p50_ns: u64,
    pub p90_ns: u64,
    pub p99_ns: u64,
    /// The largest, exact.
    pub max_ns: u64,
}

/// Collects durations in bounded memory.
#[derive(Clone, Debug)]
pub struct TimesRecorder {
    histogram: Histogram<u32>,
    total_ns: u64,
    max_ns: u64,
}

impl TimesRecorder {
    /// An hour: longer ones count as one, except in the sum and the maximum.
    const LIMIT_NS: u64 = 3_600_000_000_000;

    pub fn new() -> Self {
        Self {
            histogram: Histogram::new_with_bounds(1, Self::LIMIT_NS, 3)
                .expect("the bounds and three digits are within what a histogram takes"),
            total_ns: 0,
            max_ns: 0,
        }
    }

    pub fn record(&mut self, ns: u64) {
        self.histogram.saturating_record(ns);
        self.total_ns = self.total_ns.saturating_add(ns);
        self.max_ns = self.max_ns.max(ns);
    }

    pub fn times(&self) -> Times {
        // The histogram answers with the upper end of the bucket, which may lie above the largest value.
        let at = |quantile| self.histogram.value_at_quantile(quantile).min(self.max_ns);
        Times {
            count: self.histogram.len(),
            total_ns: self.total_ns,
            p50_ns: at(0.50),
            p90_ns: at(0.90),
            p99_ns: at(0.99),
            max_ns: self.max_ns,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The nearest-rank percentile.
    fn naive(sorted: &[u64], per_cent: usize) -> u64 {
        sorted[(sorted.len() * per_cent).div_ceil(100).max(1) - 1]
    }

    proptest! {
        #[test]
        fn percentiles_are_those_of_a_sorted_list_to_a_thousandth(
            mut values in proptest::collection::vec(prop_oneof![0u64..5_000, 0u64..50_000_000_000], 1..300)
        ) {
            let mut recorder = TimesRecorder::new();
            values.iter().for_each(|&v| recorder.record(v));
            let times = recorder.times();
            values.sort_unstable();
            prop_assert_eq!(times.count, values.len() as u64);
            prop_assert_eq!(times.total_ns, values.iter().sum::<u64>());
            prop_assert_eq!(times.max_ns, *values.last().unwrap());
            for (got, per_cent) in [(times.p50_ns, 50), (times.p90_ns, 90), (times.p99_ns, 99)] {
                let want = naive(&values, per_cent);
                prop_assert!(got >= want && got <= want + want / 1000 + 1, "p{per_cent}: {got}, not {want}");
            }
        }
    }

    #[test]
    fn nothing_recorded_is_all_zeroes_and_a_day_keeps_its_maximum() {
        let mut recorder = TimesRecorder::new();
        assert_eq!(recorder.times(), Times::default());
        let day = 86_400_000_000_000;
        recorder.record(day);
        assert_eq!((recorder.times().max_ns, recorder.times().count), (day, 1));
    }
}
