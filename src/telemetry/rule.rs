//! Events of rules. They are counted on the hot path, so that there is a metric and no log line.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
};
use std::sync::LazyLock;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    channel: String,
}

static FAILED: LazyLock<Family<Labels, Counter>> = LazyLock::new(|| {
    super::register("rule_failures", "Messages for which a channel's rule or order had no value", Family::default())
});

/// A channel's rule or order could not be evaluated for a message: the rule counts as not holding, the order as `feed`.
pub struct RuleFailed<'a> {
    /// Full channel name.
    pub channel: &'a str,
}

impl RuleFailed<'_> {
    pub fn emit(&self) {
        FAILED.get_or_create(&Labels { channel: self.channel.to_owned() }).inc();
    }
}
