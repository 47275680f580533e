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

/// How often each bucket was met.
pub type Counts = [u64; BOUNDED + 1];

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

    /// The buckets as they are.
    pub fn counts(&self) -> Counts {
        std::array::from_fn(|i| self.0.buckets[i].load(Relaxed))
    }

    /// How many were counted.
    pub fn count(&self) -> u64 {
        self.0.buckets.iter().map(|b| b.load(Relaxed)).sum()
    }
}

/// The duration that a share `q` (0 to 1) of what was counted stayed below; `None` when nothing was. Within a bucket the durations are
/// taken as evenly spread, as Prometheus does it: the true value lies within the same bucket, so within a factor of two. What
/// lies above all bounds counts as the last bound.
pub fn quantile(counts: &Counts, q: f64) -> Option<Duration> {
    let total: u64 = counts.iter().sum();
    if total == 0 {
        return None;
    }
    let rank = q.clamp(0.0, 1.0) * total as f64;
    let mut below = 0;
    for (i, n) in counts.iter().enumerate() {
        if *n > 0 && (below + n) as f64 >= rank {
            let upper = (1u64 << (FIRST_POWER + (i as u32).min(BOUNDED as u32 - 1))) as f64;
            let lower = if i == 0 || i == BOUNDED { if i == 0 { 0.0 } else { upper } } else { upper / 2.0 };
            let within = ((rank - below as f64) / *n as f64).clamp(0.0, 1.0);
            return Some(Duration::from_secs_f64((lower + (upper - lower) * within) / 1e6));
        }
        below += n;
    }
    None
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
    fn quantiles_lie_in_the_bucket_of_the_true_value() {
        let latency = Latency::default();
        assert_eq!(quantile(&latency.counts(), 0.5), None);
        for ms in 1..=1000 {
            latency.observe(Duration::from_millis(ms));
        }
        for (q, true_ms) in [(0.5, 500.0), (0.95, 950.0), (0.99, 990.0)] {
            let told = quantile(&latency.counts(), q).unwrap().as_secs_f64() * 1e3;
            assert!(told > true_ms / 2.0 && told < true_ms * 2.0, "{q}: {told} ms");
        }
        let long = Latency::default();
        long.observe(Duration::from_secs(600));
        assert_eq!(quantile(&long.counts(), 0.99), Some(Duration::from_micros(1 << 26)));
    }

    #[test]
    fn clones_share_their_counts() {
        let a = Latency::default();
        a.clone().observe(Duration::from_millis(3));
        assert_eq!(a.count(), 1);
    }
}
