//! Counting and summing up.

use super::{Code, Outcome};
use hdrhistogram::Histogram;
use serde::Serialize;
use std::{collections::BTreeMap, time::Duration};

/// One connection's counts while it works.
pub(super) struct Tally {
    accepted: u64,
    refused: BTreeMap<Code, u64>,
    failed: BTreeMap<&'static str, u64>,
    pub(super) reconnects: u64,
    micros: Histogram<u64>,
}

impl Default for Tally {
    fn default() -> Self {
        // Fails only for a precision above five digits.
        let micros = Histogram::new(3).expect("three digits are a valid precision");
        Self { accepted: 0, refused: BTreeMap::new(), failed: BTreeMap::new(), reconnects: 0, micros }
    }
}

impl Tally {
    /// Counts one message; how long its answer took counts where there was one.
    pub(super) fn add(&mut self, outcome: &Outcome, took: Duration) {
        match outcome {
            Outcome::Accepted => self.accepted += 1,
            Outcome::Refused(code) => *self.refused.entry(*code).or_default() += 1,
            Outcome::Failed(reason) => {
                *self.failed.entry(reason).or_default() += 1;
                return;
            }
        }
        // Fails only for what no histogram holds: 2^63 microseconds.
        let _ = self.micros.record(took.as_micros() as u64);
    }

    pub(super) fn merge(&mut self, other: &Self) {
        self.accepted += other.accepted;
        self.reconnects += other.reconnects;
        other.refused.iter().for_each(|(code, n)| *self.refused.entry(*code).or_default() += n);
        other.failed.iter().for_each(|(reason, n)| *self.failed.entry(reason).or_default() += n);
        // Fails only for values out of range, and both grow by themselves.
        let _ = self.micros.add(&other.micros);
    }

    pub(super) fn summary(&self, took: Duration) -> Summary {
        let (refused, failed) = (self.refused.values().sum::<u64>(), self.failed.values().sum::<u64>());
        let sent = self.accepted + refused + failed;
        let seconds = took.as_secs_f64();
        let ms = |micros: u64| micros as f64 / 1000.0;
        Summary {
            sent,
            accepted: self.accepted,
            refused: self.refused.iter().map(|(code, n)| (code.to_string(), *n)).collect(),
            failed,
            failures: self.failed.iter().map(|(reason, n)| ((*reason).to_owned(), *n)).collect(),
            reconnects: self.reconnects,
            seconds,
            rate: if seconds > 0.0 { (self.accepted + refused) as f64 / seconds } else { 0.0 },
            p50_ms: ms(self.micros.value_at_quantile(0.5)),
            p99_ms: ms(self.micros.value_at_quantile(0.99)),
            max_ms: ms(self.micros.max()),
        }
    }
}

/// What a run of [`run`](super::run) came to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// Messages sent: accepted, refused and failed together.
    pub sent: u64,
    /// Answered AA, CA or 2xx.
    pub accepted: u64,
    /// Answered otherwise, by code or status.
    pub refused: BTreeMap<String, u64>,
    /// Without a usable answer.
    pub failed: u64,
    /// The same by reason.
    pub failures: BTreeMap<String, u64>,
    /// Connections made again because the receiver had closed one.
    pub reconnects: u64,
    /// Duration of the run in seconds.
    pub seconds: f64,
    /// Answers a second.
    pub rate: f64,
    /// Median time to the answer in milliseconds.
    pub p50_ms: f64,
    /// 99th percentile in milliseconds.
    pub p99_ms: f64,
    /// Longest in milliseconds.
    pub max_ms: f64,
}

impl Summary {
    /// Was every message accepted?
    pub fn all_accepted(&self) -> bool {
        self.accepted == self.sent
    }
}

impl std::fmt::Display for Summary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "sent        {}", self.sent)?;
        writeln!(f, "accepted    {}", self.accepted)?;
        let by = |map: &BTreeMap<String, u64>| map.iter().map(|(what, n)| format!("{what} {n}")).collect::<Vec<_>>().join(", ");
        match self.refused.values().sum::<u64>() {
            0 => writeln!(f, "refused     0")?,
            n => writeln!(f, "refused     {n} ({})", by(&self.refused))?,
        }
        match self.failed {
            0 => writeln!(f, "failed      0")?,
            n => writeln!(f, "failed      {n} ({})", by(&self.failures))?,
        }
        writeln!(f, "reconnects  {}", self.reconnects)?;
        writeln!(f, "p50         {:.2} ms", self.p50_ms)?;
        writeln!(f, "p99         {:.2} ms (longest {:.2} ms)", self.p99_ms, self.max_ms)?;
        write!(f, "rate        {:.0}/s over {:.2} s", self.rate, self.seconds)
    }
}
