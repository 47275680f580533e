//! The channels of a node, compiled and in the order in which they are asked.

use super::{Channel, Mode, Order, Route, Rule, Subject, check};
use crate::{message::Protocol, telemetry::rule::RuleFailed};
use std::{collections::BTreeSet, sync::Arc};

/// Something wrong with a channel.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("channel `{channel}`: {message}")]
pub struct ChannelError {
    pub channel: String,
    /// What is wrong and what would be right.
    pub message: String,
}

/// One channel, ready for use.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// As configured, with the primary route marked as such.
    pub channel: Channel,
    pub rule: Rule,
    pub order: Order,
    /// Position of the primary route.
    pub primary: usize,
}

impl Compiled {
    /// Compiles one channel; everything that is wrong with it.
    pub fn new(mut channel: Channel) -> Result<Self, Vec<ChannelError>> {
        let error = |message: String| ChannelError { channel: channel.name.clone(), message };
        let faults = check::check(&channel);
        if !faults.is_empty() {
            return Err(faults.into_iter().map(|f| error(located(f))).collect());
        }
        // The check has compiled both already; an error here would be one that it did not find.
        let rule = Rule::compile(&channel.when).map_err(|e| vec![error(format!("when: {e}"))])?;
        let order = Order::compile(&channel.order).map_err(|e| vec![error(format!("order: {e}"))])?;
        let primary = channel.routes.iter().position(|r| r.primary).unwrap_or(0);
        if let Some(route) = channel.routes.get_mut(primary) {
            route.primary = true;
        }
        Ok(Self { channel, rule, order, primary })
    }

    /// The route that answers the sender in proxy mode and decides the status.
    pub fn primary(&self) -> &Route {
        &self.channel.routes[self.primary]
    }

    /// How a sender is answered: as configured, else proxy for HTTP and queue for the others. A channel whose primary route is a
    /// file answers nobody, so that it is in queue mode.
    pub fn mode(&self, protocol: Protocol) -> Mode {
        match (self.channel.mode, protocol) {
            (Some(mode), _) => mode,
            (None, Protocol::Http) if self.primary().file.is_none() => Mode::Proxy,
            (None, _) => Mode::Queue,
        }
    }

    /// Ordering keys of a message; see [`Order::keys`]. Counts an order that has no value.
    pub fn keys(&self, subject: &Subject<'_>) -> Vec<u64> {
        self.order.try_keys(subject).unwrap_or_else(|_| {
            RuleFailed { channel: &self.channel.name }.emit();
            Order::Feed.keys(subject)
        })
    }

    fn holds(&self, subject: &Subject<'_>) -> bool {
        self.rule.matches(subject).unwrap_or_else(|_| {
            RuleFailed { channel: &self.channel.name }.emit();
            false
        })
    }
}

fn located(fault: check::Fault) -> String {
    match fault.place {
        check::Place::When(line, column) => format!("when, line {line}, column {column}: {}", fault.message),
        check::Place::Order(line, column) => format!("order, line {line}, column {column}: {}", fault.message),
        check::Place::Name | check::Place::Route(_) => fault.message,
    }
}

/// All channels of a node.
#[derive(Clone, Debug, Default)]
pub struct Set {
    channels: Vec<Arc<Compiled>>,
}

impl Set {
    /// Compiles channels, whole or not at all; everything that is wrong with any of them.
    pub fn compile(channels: Vec<Channel>) -> Result<Self, Vec<ChannelError>> {
        let mut names = BTreeSet::new();
        let mut errors = Vec::new();
        let mut compiled = Vec::with_capacity(channels.len());
        for channel in channels {
            if !names.insert(channel.name.clone()) {
                let message = "the name is given to two channels".to_owned();
                errors.push(ChannelError { channel: channel.name.clone(), message });
            }
            match Compiled::new(channel) {
                Ok(channel) => compiled.push(Arc::new(channel)),
                Err(more) => errors.extend(more),
            }
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        compiled.sort_by(|a, b| (a.channel.priority, &a.channel.name).cmp(&(b.channel.priority, &b.channel.name)));
        Ok(Self { channels: compiled })
    }

    /// The first enabled channel, by priority and then name, whose rule holds. A rule that has no value for this message does
    /// not hold, and is counted.
    pub fn choose(&self, subject: &Subject<'_>) -> Option<&Arc<Compiled>> {
        self.channels.iter().find(|c| c.channel.enabled && c.holds(subject))
    }

    /// All channels, in the order in which they are asked, those that are not enabled too.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Arc<Compiled>> {
        self.channels.iter()
    }

    /// A channel by its full name.
    pub fn get(&self, name: &str) -> Option<&Arc<Compiled>> {
        self.channels.iter().find(|c| c.channel.name == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn channel(name: &str, when: &str, more: &str) -> Channel {
        toml::from_str(&format!("name = \"{name}\"\nwhen = '{when}'\n{more}\n[[route]]\nname = \"r\"\nhttp = [\"http://h/\"]\n"))
            .unwrap()
    }

    fn chosen<'a>(set: &'a Set, subject: &Subject<'_>) -> Option<&'a str> {
        set.choose(subject).map(|c| c.channel.name.as_str())
    }

    #[test]
    fn chooses_by_priority_then_name() {
        let set = Set::compile(vec![
            channel("z.any", "true", "priority = 200"),
            channel("b.second", "client == \"c\"", ""),
            channel("a.first", "client == \"c\"", ""),
            channel("x.off", "true", "priority = 1\nenabled = false"),
            channel("y.urgent", "size > 100", "priority = 2"),
        ])
        .unwrap();
        assert_eq!(chosen(&set, &Subject { client: "c", ..Subject::EMPTY }), Some("a.first"));
        assert_eq!(chosen(&set, &Subject { client: "c", size: 101, ..Subject::EMPTY }), Some("y.urgent"));
        assert_eq!(chosen(&set, &Subject::EMPTY), Some("z.any"));
        assert_eq!(
            set.iter().map(|c| c.channel.name.as_str()).collect::<Vec<_>>(),
            ["x.off", "y.urgent", "a.first", "b.second", "z.any"]
        );
        assert_eq!(Set::default().choose(&Subject::EMPTY).map(|_| ()), None);
    }

    #[test]
    fn a_rule_without_a_value_does_not_hold_and_is_counted() {
        let set = Set::compile(vec![channel("t.counted-once", "int(kind) > 3", ""), channel("t.other", "true", "")]).unwrap();
        assert_eq!(chosen(&set, &Subject { kind: "x", ..Subject::EMPTY }), Some("t.other"));
        assert_eq!(chosen(&set, &Subject { kind: "4", ..Subject::EMPTY }), Some("t.counted-once"));
        let metrics = crate::telemetry::encode();
        assert!(metrics.contains("hie_rule_failures_total{channel=\"t.counted-once\"} 1"), "{metrics}");
    }

    #[test]
    fn all_errors_at_once() {
        let errors = Set::compile(vec![
            channel("a.b", "true", ""),
            channel("a.b", "clint == \"x\"", ""),
            channel("c", "true", "order = \"size\""),
        ])
        .unwrap_err();
        let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(texts.len(), 4, "{texts:#?}");
        assert_eq!(texts[0], "channel `a.b`: the name is given to two channels");
        assert_eq!(texts[1], "channel `a.b`: when, line 1, column 1: unknown name `clint`; did you mean `client`?");
    }

    #[test]
    fn the_first_route_is_primary_when_none_says_so() {
        let mut two = channel("a.b", "true", "");
        two.routes.push(Route { name: "s".into(), ..two.routes[0].clone() });
        let compiled = Compiled::new(two.clone()).unwrap();
        assert_eq!((compiled.primary, compiled.primary().name.as_str(), compiled.channel.routes[0].primary), (0, "r", true));
        two.routes[1].primary = true;
        assert_eq!(Compiled::new(two).unwrap().primary().name, "s");
    }

    #[test]
    fn modes_follow_protocol_and_primary_route() {
        let mode =
            |c: &Channel| [Protocol::Mllp, Protocol::Http, Protocol::File].map(|p| Compiled::new(c.clone()).unwrap().mode(p));
        let http = channel("a.b", "true", "");
        assert_eq!(mode(&http), [Mode::Queue, Mode::Proxy, Mode::Queue]);
        assert_eq!(mode(&channel("a.b", "true", "mode = \"proxy\"")), [Mode::Proxy; 3]);
        assert_eq!(mode(&channel("a.b", "true", "mode = \"queue\"")), [Mode::Queue; 3]);
        let file: Channel =
            toml::from_str("name = \"a.b\"\nwhen = 'true'\nroute = [{ name = \"r\", file = { directory = \"/x\" } }]").unwrap();
        assert_eq!(mode(&file), [Mode::Queue; 3]);
    }
}
