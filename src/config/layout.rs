//! A domain's layout: how many partitions its queues have. It belongs to the domain, not to a machine, and changes by epochs, one at a time.

use serde::{Deserialize, Serialize};

/// The most partitions of a queue.
pub const MOST_PARTITIONS: u16 = 1024;

/// The layout of a domain, as it stands in Consul's KV (`hie/<domain>/layout`, JSON).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// Rises by one with each change; 0: as the domain began.
    pub epoch: u64,
    /// Partitions of each inbox and of each route's queue.
    pub partitions: u16,
    /// What it was before, until nothing of that is left.
    #[serde(default)]
    pub previous: Option<Past>,
}

/// The epoch before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Past {
    /// Its number.
    pub epoch: u64,
    /// Its partitions.
    pub partitions: u16,
    /// Its queues have run empty: nobody works on them any more, and they are being removed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub drained: bool,
}

impl Layout {
    /// A domain's first.
    pub fn first(partitions: u16) -> Self {
        Self { epoch: 0, partitions: partitions.clamp(1, MOST_PARTITIONS), previous: None }
    }

    /// Reads one. The error says what is wrong, for whoever wrote it.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let layout: Self = serde_json::from_slice(text).map_err(|e| format!("is no layout: {e}"))?;
        let counts = [Some(layout.partitions), layout.previous.map(|p| p.partitions)];
        if counts.into_iter().flatten().any(|n| n == 0 || n > MOST_PARTITIONS) {
            return Err(format!("a number of partitions is not within 1 to {MOST_PARTITIONS}"));
        }
        if layout.previous.is_some_and(|p| p.epoch >= layout.epoch) {
            return Err("the epoch before is not below the epoch".into());
        }
        Ok(layout)
    }

    /// With another number of partitions. The error: a change is under way, or there is none to make.
    pub fn changed(&self, partitions: u16) -> Result<Self, String> {
        if partitions == 0 || partitions > MOST_PARTITIONS {
            return Err(format!("{partitions} partitions: not within 1 to {MOST_PARTITIONS}"));
        }
        if let Some(past) = self.previous {
            return Err(format!(
                "a change is under way, from {} to {} partitions: wait until it is over",
                past.partitions, self.partitions
            ));
        }
        if partitions == self.partitions {
            return Err(format!("the domain has {partitions} partitions already"));
        }
        let previous = Some(Past { epoch: self.epoch, partitions: self.partitions, drained: false });
        Ok(Self { epoch: self.epoch + 1, partitions, previous })
    }

    /// The step after this one: first nobody works on the old queues any more, then they are forgotten. `None`: nothing is left to do.
    pub fn next_step(&self) -> Option<Self> {
        let past = self.previous?;
        let previous = (!past.drained).then_some(Past { drained: true, ..past });
        Some(Self { previous, ..*self })
    }

    /// The epoch before, while its queues are still worked on.
    pub fn draining(&self) -> Option<Past> {
        self.previous.filter(|p| !p.drained)
    }

    /// Whether it comes after the other.
    pub fn is_newer(&self, other: &Self) -> bool {
        let step = |l: &Self| match l.previous {
            Some(past) => u8::from(past.drained),
            None => 2,
        };
        (self.epoch, step(self)) > (other.epoch, step(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_goes_step_by_step_and_one_at_a_time() {
        let first = Layout::first(4);
        assert!(first.changed(4).unwrap_err().contains("already"));
        assert!(first.changed(0).is_err() && first.changed(1025).is_err());
        let second = first.changed(7).expect("a change");
        assert!(second.changed(3).unwrap_err().contains("under way"));
        let drained = second.next_step().expect("a step");
        let over = drained.next_step().expect("a step");
        assert_eq!((over.epoch, over.partitions, over.previous, over.next_step()), (1, 7, None, None));
        assert!(second.is_newer(&first) && drained.is_newer(&second) && over.is_newer(&drained));
        assert!(!second.is_newer(&second) && !first.is_newer(&over));
    }

    #[test]
    fn what_is_no_layout_is_refused() {
        let text = r#"{"epoch":1,"partitions":7,"previous":{"epoch":0,"partitions":4},"later":1}"#;
        assert_eq!(Layout::parse(text.as_bytes()), Layout::first(4).changed(7));
        for wrong in ["", "7", r#"{"epoch":1}"#, r#"{"epoch":1,"partitions":0}"#, r#"{"epoch":1,"partitions":9999}"#] {
            assert!(Layout::parse(wrong.as_bytes()).is_err(), "{wrong}");
        }
        let wrong = r#"{"epoch":1,"partitions":7,"previous":{"epoch":1,"partitions":4}}"#;
        assert!(Layout::parse(wrong.as_bytes()).is_err());
    }
}
