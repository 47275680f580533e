//! The link: one connection with any of the brokers, made again whenever it is lost.

use super::{
    connect::{Events, connect},
    reason::{Asked, Reason},
    session::Session,
    settings::LinkSettings,
};
use crate::telemetry::broker::{self, BrokerAway, BrokerBlocked, BrokerClosed, BrokerUnblocked, BrokerUp, ConnectFailed};
use futures_util::StreamExt;
use lapin::Event;
use rand::{Rng, seq::SliceRandom};
use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::{
    runtime::Handle,
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

/// First and longest wait between attempts.
const FIRST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(5);
/// A connection that held so long was a good one: its loss is followed by an attempt at once.
const GOOD: Duration = Duration::from_secs(10);
/// Between the broker's answer to the probe and the use of the connection.
const SETTLE: Duration = Duration::from_millis(20);
/// How long the broker may take to part.
const PARTING: Duration = Duration::from_secs(2);

/// How the link stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkState {
    /// A broker is connected and takes messages.
    Up {
        /// `host:port`.
        broker: String,
        /// Release of RabbitMQ: `3.10.8`.
        version: String,
        /// Since when.
        since: SystemTime,
    },
    /// A broker is connected and gives messages, but takes none, for want of memory or disk.
    Blocked {
        /// `host:port`.
        broker: String,
        /// Release of RabbitMQ.
        version: String,
        /// Since when.
        since: SystemTime,
        /// What the operator can do.
        error: Reason,
    },
    /// No broker is connected.
    Away {
        /// Since when; the start of the link when there never was one.
        since: SystemTime,
        /// What is wrong with the broker that was asked last, and what the operator can do.
        error: Reason,
    },
}

impl LinkState {
    /// Whether messages can be published.
    pub fn up(&self) -> bool {
        matches!(self, Self::Up { .. })
    }

    /// For how long nothing could be published; zero when it is up.
    pub fn away_for(&self) -> Duration {
        match self {
            Self::Up { .. } => Duration::ZERO,
            // A clock that was set back counts as a moment.
            Self::Blocked { since, .. } | Self::Away { since, .. } => since.elapsed().unwrap_or_default(),
        }
    }

    /// What is wrong, unless it is up.
    pub fn error(&self) -> Option<&Reason> {
        match self {
            Self::Up { .. } => None,
            Self::Blocked { error, .. } | Self::Away { error, .. } => Some(error),
        }
    }
}

/// The link; cheap to clone. It lives until [`Link::close`], or until the last clone is dropped.
#[derive(Clone)]
pub struct Link(Arc<Shared>);

struct Shared {
    state: watch::Receiver<LinkState>,
    session: watch::Receiver<Option<Session>>,
    close: CancellationToken,
    closed: CancellationToken,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.close.cancel();
    }
}

impl Link {
    /// Starts to connect, in the background on `runtime`: any broker of the list, in an order that each node shuffles for itself.
    pub fn start(settings: LinkSettings, runtime: &Handle) -> Self {
        broker::touch();
        let error = Reason::new("no broker has been asked yet");
        let (state_to, state) = watch::channel(LinkState::Away { since: SystemTime::now(), error });
        let (session_to, session) = watch::channel(None);
        let (close, closed) = (CancellationToken::new(), CancellationToken::new());
        let supervisor =
            Supervisor { settings, runtime: runtime.clone(), state: state_to, session: session_to, close: close.clone() };
        let done = closed.clone();
        runtime.spawn(async move {
            let _done = done.drop_guard();
            supervisor.run().await;
        });
        Self(Arc::new(Shared { state, session, close, closed }))
    }

    /// The session that stands, or the next one; never resolves once the link is closed.
    pub async fn session(&self) -> Session {
        let mut session = self.0.session.clone();
        let found = session.wait_for(|s| s.as_ref().is_some_and(Session::stands)).await.map(|s| s.clone());
        match found {
            Ok(Some(session)) => session,
            _ => std::future::pending().await,
        }
    }

    /// The session that stands, if one does.
    pub fn try_session(&self) -> Option<Session> {
        self.0.session.borrow().clone().filter(Session::stands)
    }

    /// How it stands now.
    pub fn state(&self) -> LinkState {
        self.0.state.borrow().clone()
    }

    /// Tells every change of the state.
    pub fn watch(&self) -> watch::Receiver<LinkState> {
        self.0.state.clone()
    }

    /// Parts with the broker, for good. What was published and not confirmed stays so.
    pub async fn close(&self) {
        self.0.close.cancel();
        self.0.closed.cancelled().await;
    }

    /// Resolves when the link is to be closed.
    pub fn closing(&self) -> impl Future<Output = ()> + Send + 'static {
        self.0.close.clone().cancelled_owned()
    }
}

struct Supervisor {
    settings: LinkSettings,
    runtime: Handle,
    state: watch::Sender<LinkState>,
    session: watch::Sender<Option<Session>>,
    close: CancellationToken,
}

impl Supervisor {
    async fn run(self) {
        let mut brokers = self.settings.brokers.clone();
        brokers.shuffle(&mut rand::rng());
        let mut away = Instant::now();
        let mut wait = FIRST;
        let mut number = 0;
        let mut told: Option<Reason> = None;
        for turn in (0..brokers.len()).cycle() {
            let attempt = connect(&self.settings, &brokers[turn], number + 1, &self.runtime);
            let connected = tokio::select! {
                biased;
                () = self.close.cancelled() => break,
                connected = attempt => connected,
            };
            match connected {
                Ok((session, events)) => {
                    number += 1;
                    told = None;
                    let since = Instant::now();
                    BrokerUp {
                        broker: session.broker(),
                        release: session.release(),
                        away_ms: u64::try_from(away.elapsed().as_millis()).unwrap_or(u64::MAX),
                    }
                    .emit();
                    let broker = Asked {
                        broker: session.broker(),
                        vhost: &self.settings.vhost,
                        user: &self.settings.user,
                        tls: brokers[turn].tls,
                    };
                    let Some(reason) = self.keep(&session, events, &broker).await else { break };
                    away = Instant::now();
                    BrokerAway { error: reason.text(), lost: true }.emit();
                    self.state.send_replace(LinkState::Away { since: SystemTime::now(), error: reason });
                    wait = if since.elapsed() > GOOD { FIRST } else { wait };
                }
                Err(reason) => {
                    ConnectFailed { error: reason.text(), new: told.as_ref() != Some(&reason) }.emit();
                    told = Some(reason.clone());
                    self.state.send_modify(|state| {
                        let since = match state {
                            LinkState::Away { since, .. } => *since,
                            _ => SystemTime::now(),
                        };
                        *state = LinkState::Away { since, error: reason };
                    });
                }
            }
            // Several nodes that lost the same broker do not come back at the same instant.
            let pause = wait.mul_f64(rand::rng().random_range(0.5..=1.0));
            tokio::select! {
                () = self.close.cancelled() => break,
                () = sleep(pause) => {}
            }
            // Every broker of the list is asked before the wait grows.
            if turn + 1 == brokers.len() {
                wait = (wait * 2).min(LONGEST);
            }
        }
        self.session.send_replace(None);
    }

    /// Keeps a connection until it is lost, and says why; `None`: the link was closed.
    async fn keep(&self, session: &Session, mut events: Events, asked: &Asked<'_>) -> Option<Reason> {
        let (broker, version) = (session.broker().to_owned(), session.release().to_owned());
        let up = || LinkState::Up { broker: broker.clone(), version: version.clone(), since: SystemTime::now() };
        let mut last = None;
        self.state.send_replace(up());
        let mut note = |event| match event {
            Event::ConnectionBlocked(said) => {
                let error = asked.blocked(&said);
                BrokerBlocked { error: error.text() }.emit();
                let (broker, version) = (broker.clone(), version.clone());
                self.state.send_replace(LinkState::Blocked { broker, version, since: SystemTime::now(), error });
            }
            Event::ConnectionUnblocked => {
                BrokerUnblocked { broker: &broker }.emit();
                self.state.send_replace(up());
            }
            // Errors of single channels come by here as well.
            Event::Error(error) if !error.is_amqp_soft_error() => last = Some(error),
            _ => {}
        };
        // That it takes nothing comes with its confirm of the probe, or right after.
        while let Ok(Some(event)) = timeout(SETTLE, events.next()).await {
            note(event);
        }
        self.session.send_replace(Some(session.clone()));
        let closing = loop {
            tokio::select! {
                biased;
                () = self.close.cancelled() => break true,
                Some(event) = events.next() => note(event),
                () = session.0.ending.ended() => break false,
            }
        };
        if closing {
            self.session.send_replace(None);
            let _ = timeout(PARTING, session.0.connection.close(200, "OK".into())).await;
            session.0.ending.end();
            session.0.lost.cancel();
            self.state
                .send_replace(LinkState::Away { since: SystemTime::now(), error: Reason::new("this node ended the connection") });
            BrokerClosed.emit();
            return None;
        }
        // What was told before the end may not be read yet.
        while let Ok(Some(event)) = timeout(Duration::ZERO, events.next()).await {
            note(event);
        }
        session.0.ending.end();
        session.0.lost.cancel();
        self.session.send_replace(None);
        Some(asked.lost(last.as_ref()))
    }
}
