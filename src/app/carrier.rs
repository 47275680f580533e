//! What carries accepted messages to the workers, as the configuration says: the node's own log, or RabbitMQ.

use super::layout::{self, LayoutPlace};
use crate::{
    channel::Mode,
    config::{Config, TransportKind},
    engine::{
        gate::Gate,
        ports::{Clock, CommitSink, Committed, Log, Pauses, Recent, Transport, Unfinished},
        replica::{Arrived, Observer, Replica},
        resend::ResendWindow,
    },
    ledger::Ledger,
    transport::{
        embedded::{self, Embedded},
        rabbitmq::{
            Link, LinkSettings,
            declared::Making,
            rabbit::{self, Rabbit},
        },
    },
};
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};

/// What both transports need.
pub(super) struct Needs<'a> {
    pub config: &'a Config,
    pub ledger: &'a Arc<Ledger>,
    pub clock: Arc<dyn Clock>,
    pub gate: Arc<Gate>,
    pub pauses: Arc<dyn Pauses>,
    pub resend: Arc<ResendWindow>,
    pub runtime: tokio::runtime::Handle,
}

/// See the module.
#[derive(Clone)]
pub(super) enum Carrier {
    Embedded(Arc<Embedded>),
    Rabbit(Arc<Rabbit>, Arc<LayoutPlace>),
}

/// A window of the configured size.
pub(super) fn resend_window(config: &Config) -> ResendWindow {
    let window_ms = i64::try_from(config.ledger.resend_window.as_millis()).unwrap_or(i64::MAX);
    ResendWindow::new(window_ms, config.ledger.resend_entries)
}

/// With RabbitMQ nothing is delivered from the log's commits.
struct Nobody;

impl CommitSink for Nobody {
    fn committed(&self, _: Vec<Committed>) {}
}

/// What other nodes accepted may come again here.
struct Resends(Arc<ResendWindow>);

impl Observer for Resends {
    fn applied(&self, batch: &[Arrived]) {
        for message in batch.iter().filter(|m| m.mode == Mode::Queue && m.taken) {
            let Arrived { resend_key: key, body_hash, id, seq, received_ms: at_ms, .. } = *message;
            self.0.restore(Recent { key, body_hash, id, seq, at_ms });
        }
    }
}

impl Carrier {
    /// Builds the configured one; nothing runs before [`Carrier::launch`], only the connection to a broker is begun. The error says what to
    /// correct.
    pub fn new(needs: Needs<'_>) -> Result<Self, String> {
        let Needs { config, ledger, clock, gate, pauses, resend, runtime } = needs;
        let log: Arc<dyn Log> = ledger.clone();
        let hot_bodies = config.limits.hot_bodies.as_u64();
        if config.transport.kind == TransportKind::Embedded {
            let parts = embedded::Parts { log, clock, gate, pauses, resend, runtime, hot_bodies };
            return Ok(Self::Embedded(Embedded::new(parts)));
        }
        let transport = &config.transport;
        let link = Link::start(LinkSettings::new(transport, &config.node.name)?, &runtime);
        let resends = Arc::new(resend_window(config));
        ledger.observe(Arc::new(Resends(resends.clone())));
        let place = LayoutPlace::new(config);
        let rabbit = Rabbit::new(rabbit::Parts {
            log,
            replica: Arc::<Ledger>::clone(ledger) as Arc<dyn Replica>,
            clock,
            gate,
            pauses,
            resend,
            resends,
            runtime,
            link,
            hot_bodies,
            making: Making {
                domain: config.node.domain.clone(),
                max_queue: transport.max_queue,
                stream_max_age: transport.stream_max_age,
                stream_max_bytes: transport.stream_max_bytes.as_u64(),
            },
            node: config.node.name.clone(),
            layout: layout::kept(config)?,
            keeper: place.clone(),
            heartbeat: transport.heartbeat,
            inline: transport.inline.as_u64(),
            prefetch: transport.prefetch,
            confirm_timeout: transport.confirm_timeout,
            lease: transport.lease,
            hold: transport.hold,
        });
        place.joined(&rabbit);
        Ok(Self::Rabbit(rabbit, place))
    }

    /// Where the domain's layout is remembered, for a transport that has one.
    pub fn layout(&self) -> Option<Arc<LayoutPlace>> {
        match self {
            Self::Embedded(_) => None,
            Self::Rabbit(_, place) => Some(place.clone()),
        }
    }

    /// As the engine sees it.
    pub fn transport(&self) -> Arc<dyn Transport> {
        match self {
            Self::Embedded(transport) => Arc::new(transport.clone()),
            Self::Rabbit(transport, _) => Arc::new(transport.clone()),
        }
    }

    /// Who is told what the log has committed.
    pub fn sink(&self) -> Arc<dyn CommitSink> {
        match self {
            Self::Embedded(transport) => Arc::new(embedded::Sink(transport.clone())),
            Self::Rabbit(..) => Arc::new(Nobody),
        }
    }

    /// Takes back a message that was not finished; in log order, before [`Carrier::launch`].
    pub fn restore(&self, message: Unfinished) {
        match self {
            Self::Embedded(transport) => transport.restore(message),
            Self::Rabbit(transport, _) => transport.restore(message),
        }
    }

    /// A message whose repetition may come, as the log tells at start.
    pub fn remember(&self, message: Recent) {
        if let Self::Rabbit(transport, _) = self {
            transport.remember(message);
        }
    }

    /// Starts the work.
    pub fn launch(&self) {
        match self {
            Self::Embedded(transport) => transport.launch(),
            Self::Rabbit(transport, _) => transport.launch(),
        }
    }

    /// Why messages cannot be accepted durably now.
    pub fn not_ready(&self) -> Option<String> {
        match self {
            Self::Embedded(_) => None,
            Self::Rabbit(transport, _) => transport.not_ready(),
        }
    }

    /// What operators see of it: `kind`, and all that [`Sight`](crate::transport::rabbitmq::rabbit::Sight) holds.
    pub fn view(&self) -> Value {
        let Self::Rabbit(transport, _) = self else { return json!({ "kind": "embedded" }) };
        let mut view = json!({ "kind": "rabbitmq" });
        if let (Some(view), Ok(Value::Object(sight))) = (view.as_object_mut(), serde_json::to_value(transport.sight())) {
            view.extend(sight);
        }
        view
    }

    /// Why searches may miss what other nodes wrote.
    pub fn incomplete(&self) -> Option<&'static str> {
        match self {
            Self::Embedded(_) => None,
            Self::Rabbit(transport, _) => transport.incomplete(),
        }
    }

    /// What an operator should look at.
    pub fn problems(&self) -> Vec<String> {
        match self {
            Self::Embedded(_) => Vec::new(),
            Self::Rabbit(transport, place) => transport.problems().into_iter().chain(place.problem()).collect(),
        }
    }

    /// How many problems have lasted for so long.
    pub fn lasting_problems(&self, lasting: Duration) -> usize {
        match self {
            Self::Embedded(_) => 0,
            Self::Rabbit(transport, _) => transport.lasting_problems(lasting),
        }
    }
}
