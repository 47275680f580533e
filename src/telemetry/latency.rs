//! A histogram of durations that costs a few nanoseconds: the library's own takes a lock per observation.

use prometheus_client::{
    encoding::{EncodeMetric, MetricEncoder, NoLabelSet},
    metrics::{MetricType, TypedMetric},
};
use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

/// Upper bounds are 64 µs, 128 µs, … , 67 s; what is longer falls into the last, unbounded one.
const FIRST_POWER: u32 = 6;
const BOUNDED: usize = 21;

/// Durations, counted in buckets that double. Clones share the counts.
#[derive(Clone, Default)]
pub struct Latency(Arc<Inner>);

#[derive(Default)]
struct Inner {
    buckets: [AtomicU64; BOUNDED + 1],
    sum_ns: AtomicU64,
}

impl Latency {
    /// Counts one duration.
    pub fn observe(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.0.buckets[bucket(micros)].fetch_add(1, Relaxed);
        self.0.sum_ns.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Relaxed);
    }

    /// How many were counted.
    pub fn count(&self) -> u64 {
        self.0.buckets.iter().map(|b| b.load(Relaxed)).sum()
    }
}

/// The first bucket whose upper bound (inclusive, as Prometheus has it) holds that many microseconds.
fn bucket(micros: u64) -> usize {
    let power = u64::BITS - micros.saturating_sub(1).leading_zeros();
    (power.saturating_sub(FIRST_POWER) as usize).min(BOUNDED)
}

impl fmt::Debug for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Latency({})", self.count())
    }
}

impl TypedMetric for Latency {
    const TYPE: MetricType = MetricType::Histogram;
}

impl EncodeMetric for Latency {
    fn encode(&self, mut encoder: MetricEncoder) -> fmt::Result {
        let mut count = 0;
        let buckets: Vec<(f64, u64)> = self
            .0
            .buckets
            .iter()
            .enumerate()
            .map(|(i, b)| {
                let n = b.load(Relaxed);
                count += n;
                let bound = if i == BOUNDED { f64::INFINITY } else { (1u64 << (FIRST_POWER + i as u32)) as f64 / 1e6 };
                (bound, n)
            })
            .collect();
        let sum = self.0.sum_ns.load(Relaxed) as f64 / 1e9;
        encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_inclusive_and_nothing_falls_outside() {
        for (micros, expected) in
            [(0, 0), (64, 0), (65, 1), (128, 1), (129, 2), (67_108_864, 20), (67_108_865, 21), (u64::MAX, 21)]
        {
            assert_eq!(bucket(micros), expected, "{micros} µs");
        }
    }

    #[test]
    fn clones_share_their_counts() {
        let a = Latency::default();
        a.clone().observe(Duration::from_millis(3));
        assert_eq!(a.count(), 1);
    }
}
