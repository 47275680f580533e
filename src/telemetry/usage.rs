//! What the node uses, over time: processor once a second, channels' latencies once a minute. Bounded rings.

use super::{
    cgroup::{self, Group},
    engine,
    latency::{Counts, quantile},
    process,
};
use std::{
    collections::{HashMap, VecDeque},
    sync::Mutex,
    time::{Duration, Instant},
};

/// Samples of the processor that are kept: five minutes.
const SAMPLES: usize = 300;
/// Time between two looks at the latencies, and how many are kept.
const LOOK: Duration = Duration::from_secs(60);
const LOOKS: usize = 5;

/// Processor and memory.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// Share of the processors that the process may use, in percent: the mean over `window`.
    pub cpu_average: f64,
    /// The highest second in `window`.
    pub cpu_peak: f64,
    /// Processors that it may use.
    pub cores: usize,
    /// What the two above are taken over.
    pub window: Duration,
    /// Resident bytes of the process.
    pub process: u64,
    /// The control group, where there is one.
    pub group: Option<Group>,
    /// Bytes in use: of the control group when it has a limit, else of the machine.
    pub used: u64,
    /// Bytes there are: the control group's limit, else the machine's memory.
    pub total: u64,
}

impl Usage {
    /// Memory in use, in percent.
    pub fn memory_percent(&self) -> f64 {
        if self.total == 0 { 0.0 } else { self.used as f64 / self.total as f64 * 100.0 }
    }
}

/// P50, P95 and P99 of one measure, and how many were counted.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Quantiles {
    pub count: u64,
    pub p50: Option<Duration>,
    pub p95: Option<Duration>,
    pub p99: Option<Duration>,
}

impl Quantiles {
    fn of(counts: &Counts) -> Self {
        let at = |q| quantile(counts, q);
        Self { count: counts.iter().sum(), p50: at(0.5), p95: at(0.95), p99: at(0.99) }
    }
}

/// One channel's latencies over the last five minutes or so.
#[derive(Clone, Debug, PartialEq)]
pub struct ChannelLatency {
    /// Full name.
    pub channel: String,
    /// From a message's last byte to the sender's answer: acknowledged (queue mode), or the response (proxy mode).
    pub answered: Quantiles,
    /// Queue mode: from arrival to delivery, each route.
    pub delivered: Quantiles,
}

/// Both measures of each channel at one time.
type Look = HashMap<String, (Counts, Counts)>;

struct Ring {
    last: Option<(Instant, f64)>,
    cpu: VecDeque<(Duration, f64)>,
    looked: Option<Instant>,
    looks: VecDeque<Look>,
}

static RING: Mutex<Ring> = Mutex::new(Ring { last: None, cpu: VecDeque::new(), looked: None, looks: VecDeque::new() });

fn cores() -> usize {
    // Knows the affinity and the control group's quota.
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn look() -> Look {
    engine::channels().iter().map(|c| (c.name().to_owned(), (c.accept.counts(), c.delivered.counts()))).collect()
}

/// Takes a sample; to be called about once a second.
pub fn sample() {
    let (now, used) = (Instant::now(), process::cpu_times());
    let mut ring = RING.lock().unwrap_or_else(|e| e.into_inner());
    if let Some((user, system)) = used {
        let seconds = (user + system).as_secs_f64();
        if let Some((at, before)) = ring.last {
            let span = now.duration_since(at);
            let percent = (seconds - before).max(0.0) / span.as_secs_f64().max(1e-3) / cores() as f64 * 100.0;
            if ring.cpu.len() >= SAMPLES {
                ring.cpu.pop_front();
            }
            ring.cpu.push_back((span, percent.min(100.0)));
        }
        ring.last = Some((now, seconds));
    }
    if ring.looked.is_none_or(|at| at.elapsed() >= LOOK) {
        ring.looked = Some(now);
        if ring.looks.len() >= LOOKS {
            ring.looks.pop_front();
        }
        ring.looks.push_back(look());
    }
}

/// Processor over the last five minutes, memory now.
pub fn now() -> Usage {
    let ring = RING.lock().unwrap_or_else(|e| e.into_inner());
    let window: Duration = ring.cpu.iter().map(|(span, _)| *span).sum();
    let spent: f64 = ring.cpu.iter().map(|(span, percent)| span.as_secs_f64() * percent).sum();
    let peak = ring.cpu.iter().map(|(_, percent)| *percent).fold(0.0, f64::max);
    drop(ring);
    let group = cgroup::memory();
    let (used, total) = cgroup::machine().unwrap_or_default();
    let (used, total) = match group {
        Some(Group { used, limit: Some(limit) }) if limit < total || total == 0 => (used, limit),
        _ => (used, total),
    };
    Usage {
        // Rounding must not lift it above the highest second.
        cpu_average: if window.is_zero() { 0.0 } else { (spent / window.as_secs_f64()).min(peak) },
        cpu_peak: peak,
        cores: cores(),
        window,
        process: process::resident_bytes().unwrap_or(0),
        group,
        used,
        total,
    }
}

/// The latencies of every channel over the last five minutes or so; since the start, when that is shorter ago.
pub fn latencies() -> Vec<ChannelLatency> {
    let ring = RING.lock().unwrap_or_else(|e| e.into_inner());
    let before = ring.looks.front();
    let since = |now: Counts, then: Option<&Counts>| -> Counts {
        std::array::from_fn(|i| now[i].saturating_sub(then.map_or(0, |then| then[i])))
    };
    engine::channels()
        .iter()
        .map(|c| {
            let then = before.and_then(|look| look.get(c.name()));
            ChannelLatency {
                channel: c.name().to_owned(),
                answered: Quantiles::of(&since(c.accept.counts(), then.map(|t| &t.0))),
                delivered: Quantiles::of(&since(c.delivered.counts(), then.map(|t| &t.1))),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_add_up_to_an_average_and_a_peak() {
        sample();
        let until = Instant::now() + Duration::from_millis(150);
        while Instant::now() < until {
            std::hint::spin_loop();
        }
        sample();
        let usage = now();
        assert!(usage.cpu_peak > 0.0 && usage.cpu_peak <= 100.0, "{usage:?}");
        assert!(usage.cpu_average <= usage.cpu_peak, "{usage:?}");
        assert!(usage.process > 0 && usage.memory_percent() > 0.0 && usage.memory_percent() < 100.0, "{usage:?}");
    }

    #[test]
    fn latencies_are_those_of_the_channel() {
        let metrics = crate::telemetry::engine::ChannelMetrics::of("usage.test");
        metrics.accept.observe(Duration::from_millis(100));
        let all = latencies();
        let channel = all.iter().find(|c| c.channel == "usage.test").unwrap();
        assert_eq!((channel.answered.count, channel.delivered.count), (1, 0));
        assert!(channel.answered.p95.is_some_and(|t| t > Duration::from_millis(60) && t < Duration::from_millis(140)));
        assert_eq!(channel.delivered.p50, None);
    }
}
