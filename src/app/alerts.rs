//! Alerts joined with the node: what they look at, and where they are kept.

use super::{discovery, prepare::Wrong};
use crate::{
    admin::feed::{AlertEvent, AlertSource, Feed},
    alert::{
        self, Alerts,
        ports::{CertificateSight, FeedSight, Keep, Kept, LedgerSight, Observer, Receiver, RouteSight, Share, Snapshot},
    },
    config::Config,
    engine::{Engine, directory::Directory, ports::Control},
    gateway::{
        inbound::expiry,
        outbound::notify::{self, NotifyError},
    },
    host,
    ledger::Ledger,
    telemetry::{alert as events, cpu_times, engine, usage},
};
use anyhow::Context;
use serde::{Deserialize, Serialize};
use std::{
    collections::HashMap,
    fs, io,
    path::PathBuf,
    sync::Arc,
    thread::JoinHandle,
    time::{SystemTime, UNIX_EPOCH},
};
use tokio_util::sync::CancellationToken;

const NAME: &str = "alerts.json";
const VERSION: u32 = 1;

/// Those who are told; or every mistake in the configuration, with its key.
pub(super) fn receivers(config: &Config) -> Result<Vec<Arc<dyn Receiver>>, Vec<Wrong>> {
    let wrong = |e: NotifyError| Wrong { key: e.key(), text: e.to_string() };
    notify::receivers(&config.alerts, &config.node.name).map_err(|all| all.into_iter().map(wrong).collect())
}

/// Starts to look, and to tell.
pub(super) fn spawn(
    config: &Config,
    receivers: Vec<Arc<dyn Receiver>>,
    engine: &Arc<Engine>,
    directory: &Arc<Directory>,
    ledger: &Arc<Ledger>,
    feed: &Arc<Feed>,
    cluster: &Arc<discovery::View>,
    stop: &CancellationToken,
) -> anyhow::Result<(Arc<Alerts>, JoinHandle<()>)> {
    let observer = View {
        config: config.clone(),
        certificates: certificates(config),
        engine: engine.clone(),
        directory: directory.clone(),
        ledger: ledger.clone(),
        feed: feed.clone(),
        cluster: cluster.clone(),
    };
    let parts = alert::Parts {
        rules: config.alerts.clone(),
        node: config.node.name.clone(),
        domain: config.node.domain.clone(),
        observer: Box::new(observer),
        receivers,
        keep: Box::new(AlertsFile { store: config.node.store.clone() }),
        stop: stop.clone(),
    };
    let (alerts, thread) = alert::spawn(parts).context("alerts cannot be started")?;
    feed.set_alerts(alerts.clone());
    let told = Arc::downgrade(feed);
    alerts.on_event(move |_| {
        if let Some(feed) = told.upgrade() {
            feed.alerts_changed();
        }
    });
    Ok((alerts, thread))
}

impl AlertSource for Alerts {
    fn latest(&self) -> u64 {
        Alerts::latest(self)
    }

    fn complete_from(&self) -> u64 {
        match Alerts::oldest(self) {
            0 => Alerts::latest(self) + 1,
            oldest => oldest,
        }
    }

    fn since(&self, id: u64, most: usize) -> Vec<AlertEvent> {
        let events = Alerts::since(self, id, most).into_iter();
        events.map(|(id, event, json)| AlertEvent { id, event: event.into(), json: json.to_string() }).collect()
    }
}

/// Those in force: the files are read at start, as the listeners do.
fn certificates(config: &Config) -> Vec<CertificateSight> {
    let https = config.http.tls.iter().map(|tls| ("https".to_owned(), tls));
    let mllp = config.mllp.iter().filter_map(|m| Some((m.name.clone(), m.tls.as_ref()?)));
    let ends = https.chain(mllp).map(|(listener, tls)| (listener, expiry::ends(tls)));
    let sights = ends.flat_map(|(listener, ends)| {
        ends.into_iter().map(move |(what, not_after)| CertificateSight { listener: listener.clone(), what, not_after })
    });
    sights.collect()
}

struct View {
    config: Config,
    certificates: Vec<CertificateSight>,
    engine: Arc<Engine>,
    directory: Arc<Directory>,
    ledger: Arc<Ledger>,
    feed: Arc<Feed>,
    cluster: Arc<discovery::View>,
}

impl View {
    fn routes(&self) -> Vec<RouteSight> {
        let tried: HashMap<(String, String), (u64, u64)> =
            engine::tried().into_iter().map(|t| ((t.channel, t.route), (t.attempts, t.failed))).collect();
        let sight = |status: crate::engine::ports::RouteStatus| {
            let name = (status.channel, status.route);
            let (attempts, failed) = tried.get(&name).copied().unwrap_or_default();
            RouteSight {
                channel: name.0,
                route: name.1,
                paused: status.paused,
                pending: status.pending,
                parked: status.parked,
                oldest_ms: status.oldest_ms,
                failing: status.configured && !status.last_error.is_empty(),
                attempts,
                failed,
            }
        };
        self.engine.routes().into_iter().map(sight).collect()
    }

    fn feeds(&self) -> Vec<FeedSight> {
        let arrived = engine::arrived();
        let channels = self.engine.channels().into_iter().filter(|c| c.enabled).filter_map(|c| {
            let messages = arrived.get(&c.name).copied().unwrap_or(0);
            Some(FeedSight { channel: true, after: c.silent_after?, name: c.name, messages })
        });
        let clients = self.directory.watched().into_iter();
        let clients = clients.map(|(name, after, messages)| FeedSight { channel: false, name, after, messages });
        channels.chain(clients).collect()
    }

    /// The fullest resource of the live feed, or all of it where that is fuller.
    fn readers(&self) -> Share {
        let stats = self.feed.stats();
        let fullest = stats.by_resource.iter().map(|(_, readers)| *readers).max().unwrap_or(0);
        let one = Share { used: fullest as u64, of: stats.max_per_resource as u64 };
        let all = Share { used: stats.total as u64, of: stats.max_total as u64 };
        if one.percent() > all.percent() { one } else { all }
    }

    fn ledger(&self) -> LedgerSight {
        let size = Share { used: self.ledger.bytes(), of: self.config.ledger.max_size.as_u64() };
        let warning = self.config.alerts.ledger_warning;
        // How far back it reaches is read from disk: only when it matters. A little early, for what has begun goes on a little lower.
        let near = warning > 0 && size.percent() >= f64::from(warning) * 0.8;
        let oldest = near.then(|| self.ledger.stats().oldest_ms).flatten();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = i64::try_from(now.as_millis()).unwrap_or(i64::MAX);
        LedgerSight {
            size,
            reaches_back_ms: oldest.map(|at| (now - at).max(0)),
            retention_ms: i64::try_from(self.config.ledger.retention.as_millis()).unwrap_or(i64::MAX),
        }
    }
}

impl Observer for View {
    fn look(&mut self) -> Snapshot {
        let usage = usage::now();
        let disk = host::space::free(&self.config.node.store).ok();
        let not_ready = self.engine.not_ready();
        Snapshot {
            routes: self.routes(),
            feeds: self.feeds(),
            feed: Some(self.readers()),
            memory: (usage.total > 0).then_some(Share { used: usage.used, of: usage.total }),
            cpu: cpu_times().map(|(user, system)| ((user + system).as_secs_f64(), usage.cores as f64)),
            disk: disk.map(|space| Share { used: space.total - space.free.min(space.total), of: space.total }),
            ledger: Some(self.ledger()),
            certificates: self.certificates.clone(),
            not_ready: not_ready.iter().filter(|reason| !reason.starts_with("draining")).count(),
            problems: self.ledger.problems().len() + self.cluster.lasting_problems(),
        }
    }
}

/// The file. Fields that a later release adds are passed over.
#[derive(Serialize, Deserialize)]
struct Content {
    version: u32,
    #[serde(flatten)]
    kept: Kept,
}

/// Keeps alerts below the store. Replaced atomically and fsynced, as the paused routes are.
struct AlertsFile {
    store: PathBuf,
}

impl AlertsFile {
    fn read(&self) -> io::Result<Kept> {
        let text = match fs::read(self.store.join(NAME)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Kept::default()),
            text => text?,
        };
        let content: Content = serde_json::from_slice(&text)?;
        match content.version {
            VERSION => Ok(content.kept),
            other => Err(io::Error::other(format!("version {other} is of another release"))),
        }
    }
}

impl Keep for AlertsFile {
    fn load(&self) -> Kept {
        self.read().unwrap_or_else(|error| {
            // Accepting goes before alerts: the node starts, and says so. What is there is kept for a look.
            events::KeptUnreadable { file: NAME, error: &error }.emit();
            let _ = fs::rename(self.store.join(NAME), self.store.join(format!("{NAME}.unreadable")));
            // Above every number given so far: one for each event since 1970 would be a second apart.
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            Kept { next: now.as_secs(), ..Kept::default() }
        })
    }

    fn keep(&self, kept: &Kept) -> Result<(), String> {
        let text = serde_json::to_vec(&Content { version: VERSION, kept: kept.clone() })
            .map_err(|e| format!("{NAME} cannot be written: {e}"))?;
        super::keep::replace(&self.store, NAME, &text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_read_again_and_what_is_damaged_is_as_none() {
        let store = tempfile::tempdir().expect("a folder");
        let file = AlertsFile { store: store.path().into() };
        assert_eq!(file.load(), Kept::default());
        let kept = Kept { next: 7, ..Kept::default() };
        file.keep(&kept).expect("written");
        assert_eq!(file.load(), kept);
        fs::write(store.path().join(NAME), "{\"version\":1,").expect("written");
        let fresh = file.load();
        assert!(fresh.next > 1_700_000_000, "numbers never come again: {}", fresh.next);
        assert_eq!(Kept { next: 0, ..fresh }, Kept::default());
        assert!(store.path().join("alerts.json.unreadable").exists());
        assert!(AlertsFile { store: store.path().join("absent") }.keep(&kept).is_err());
    }
}
