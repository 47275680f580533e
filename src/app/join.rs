//! A node whose ledger is empty copies that of a peer, before its own is opened, and then reads the ledger stream from where the copy
//! ends. Where none can be copied it begins with the stream alone, and says so.

use crate::{
    admin,
    config::{Config, TransportKind, secret},
    discovery::{self, catalog},
    host::{self, systemd},
    ledger::{self, AdoptError, Adopted, Adoption, Ledger, Offer},
    peer::{Peer, PeerError, Secret},
    telemetry::peer as events,
};
use anyhow::Context;
use bytesize::ByteSize;
use rand::seq::SliceRandom;
use serde_json::{Value, json};
use std::{
    fs::File,
    io::Write,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

/// Between two rounds through the peers, and two questions to one that is busy.
const AGAIN: Duration = Duration::from_millis(500);
/// Between two lines about how far it is.
const PROGRESS: Duration = Duration::from_secs(5);
/// What systemd is asked for with each of them.
const EXTEND: Duration = Duration::from_secs(60);
/// Bytes a second that opening what was copied manages at least: the views are made then.
const OPENING: u64 = 1 << 20;

fn domains_secret(config: &Config) -> anyhow::Result<Option<Secret>> {
    let file = config.peers.secret_file.as_ref().filter(|_| config.transport.kind == TransportKind::Rabbitmq);
    let text = file.map(|file| secret::read(file).map_err(|e| anyhow::anyhow!("peers.secret_file: {e}"))).transpose()?;
    Ok(text.map(|text| Secret::new(&text)))
}

/// What other nodes of the domain may copy from this one.
pub(super) fn peers(config: &Config, ledger: &Arc<Ledger>) -> anyhow::Result<Option<admin::Peers>> {
    let (domain, rate) = (&config.node.domain, config.peers.rate.as_u64());
    let secret = domains_secret(config)?;
    Ok(secret.map(|secret| admin::Peers::new(secret, domain, ledger.clone(), rate, host::background)))
}

/// Copies a peer's ledger where this node's is empty and there is one to copy. Gives what `/cluster` tells of it; null: nothing was to
/// be done. Blocks, for as long as files come. Fails when the secret cannot be read.
pub(super) fn ledger(config: &Config) -> anyhow::Result<Value> {
    let dir = config.node.store.join("ledger");
    let untouched = || ledger::is_untouched(&dir).with_context(|| format!("{} cannot be used", dir.display()));
    if config.transport.kind != TransportKind::Rabbitmq || !untouched()? {
        return Ok(Value::Null);
    }
    let joined = match domains_secret(config)? {
        None => Outcome::Alone { why: "peers.secret_file is not set".into(), failed: false },
        Some(secret) => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("no runtime")?;
            let mut join = Join { config, secret, dir: dir.clone(), until: Instant::now() + config.peers.patience };
            let joined = runtime.block_on(join.run());
            // A look-up of a name that still blocks is not waited for.
            runtime.shutdown_background();
            joined
        }
    };
    if matches!(joined, Outcome::Alone { .. }) {
        ledger::give_up(&dir).with_context(|| format!("{} cannot be used", dir.display()))?;
    }
    Ok(joined.told())
}

/// What became of it.
enum Outcome {
    Copied { peer: String, logs: usize, adopted: Adopted, bytes: u64, took: Duration },
    Alone { why: String, failed: bool },
}

impl Outcome {
    /// Says it, for the log and for `/cluster`.
    fn told(self) -> Value {
        match self {
            Self::Copied { peer, logs, adopted, bytes, took } => {
                let Adopted { facts, damaged_bodies } = adopted;
                events::Joined { peer: &peer, logs, facts, bytes, damaged_bodies, took }.emit();
                systemd::starting("reading the copied ledger", EXTEND + Duration::from_secs(bytes / OPENING));
                let took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
                json!({ "from": peer, "logs": logs, "facts": facts, "bytes": bytes, "took_ms": took_ms })
            }
            Self::Alone { why, failed } => {
                events::StreamAlone { why: &why, failed }.emit();
                let problem = failed.then(|| {
                    format!("no peer's ledger was copied when this node joined ({why}): it does not find what has left the ledger stream")
                });
                json!({ "from": null, "why": why, "problem": problem })
            }
        }
    }
}

struct Join<'a> {
    config: &'a Config,
    secret: Secret,
    dir: PathBuf,
    /// It gives up then, if nothing has come by that time; each file that has come moves it on.
    until: Instant,
}

impl Join<'_> {
    async fn run(&mut self) -> Outcome {
        loop {
            let (mut why, mut passing) = (String::new(), false);
            match self.find().await {
                Err(error) => (why, passing) = (error.to_string(), error.may_pass()),
                Ok(peers) if peers.is_empty() => {
                    return Outcome::Alone { why: "there is no other node of the domain".into(), failed: false };
                }
                Ok(peers) => {
                    let mut nothing = None;
                    for peer in peers {
                        match self.copy(&peer).await {
                            Ok(Some(copied)) => return copied,
                            Ok(None) => nothing = Some(format!("{} has nothing to copy", peer.at())),
                            Err(error) => {
                                let again = error.may_pass() && Instant::now() < self.until;
                                events::PeerFailed { peer: &peer.at(), error: &error.to_string(), again }.emit();
                                passing |= error.may_pass();
                                why = format!("{}: {error}", peer.at());
                            }
                        }
                    }
                    // One that has nothing says nothing about those that do not answer.
                    if let (Some(nothing), false) = (nothing, passing) {
                        return Outcome::Alone { why: nothing, failed: false };
                    }
                }
            }
            if !passing || Instant::now() >= self.until {
                return Outcome::Alone { why, failed: true };
            }
            systemd::starting("waiting for a peer whose ledger can be copied", EXTEND);
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// The peers, in the order in which they are asked: the one first whose files are here already.
    async fn find(&self) -> Result<Vec<Peer>, PeerError> {
        let (node, peers) = (&self.config.node, &self.config.peers);
        let mut urls = peers.urls.clone();
        if urls.is_empty() && self.config.discovery.on() {
            let client = discovery::Client::new(&self.config.discovery).map_err(|e| PeerError::Here(e.to_string()))?;
            let members = catalog::members(&client).await.map_err(|e| PeerError::Unreachable(e.to_string()))?;
            let mut others = 0;
            for member in members.iter().filter(|m| m.domain == node.domain && m.node != node.name) {
                others += 1;
                let apis = member.instances.iter().filter(|i| i.protocol == "admin" && i.passing());
                urls.extend(apis.map(|i| format!("http://{}:{}", catalog::bracketed(&i.address), i.port)));
            }
            if urls.is_empty() && others > 0 {
                let text = "Consul names other nodes of the domain, but no management API of one that is healthy: is admin.listen on loopback there?";
                return Err(PeerError::Busy(text.into()));
            }
        }
        urls.shuffle(&mut rand::rng());
        let peer = |url: &String| Peer::new(url, peers.ca.clone(), self.secret.clone(), &node.domain, &node.name);
        let mut found = urls.iter().map(peer).collect::<Result<Vec<Peer>, _>>()?;
        if let Some(origin) = ledger::begun_with(&self.dir).filter(|_| found.len() > 1) {
            for at in 0..found.len() {
                if found[at].list::<Offer>(false).await.is_ok_and(|offer| offer.origin == origin) {
                    found.swap(0, at);
                    break;
                }
            }
        }
        Ok(found)
    }

    /// Copies one peer's ledger; `None` when it has none.
    async fn copy(&mut self, peer: &Peer) -> Result<Option<Outcome>, PeerError> {
        let begun = Instant::now();
        let offer: Offer = peer.list(true).await?;
        if offer.logs.is_empty() {
            return Ok(None);
        }
        self.has_room(&offer)?;
        let (logs, bytes) = (offer.logs.len(), offer.bytes());
        let (all, release) = (logs + offer.transients.len(), offer.release.clone());
        let adoption = Arc::new(Adoption::begin(&self.dir, offer).map_err(adopting)?);
        let missing = adoption.missing();
        let wanted: u64 = missing.iter().map(|(_, bytes)| bytes).sum();
        events::Joining { peer: &peer.at(), release: &release, files: missing.len(), bytes: wanted, kept: all - missing.len() }
            .emit();
        let (mut adopted, mut come, mut told) = (Adopted::default(), 0, Instant::now());
        // While one is made part of the ledger the next one comes.
        let mut taking: Option<tokio::task::JoinHandle<Result<Adopted, AdoptError>>> = None;
        for (name, bytes) in missing {
            let mut progress = |more| {
                come += more;
                if told.elapsed() >= PROGRESS {
                    told = Instant::now();
                    events::Progress { peer: &peer.at(), bytes: come, of: wanted }.emit();
                    systemd::starting(&format!("copying a peer's ledger: {} of {}", ByteSize(come), ByteSize(wanted)), EXTEND);
                }
            };
            let fetched = self.fetch(peer, &adoption, &name, bytes, &mut progress).await;
            if let Some(before) = taking.take() {
                add(&mut adopted, before.await)?;
            }
            match fetched {
                // All that was in it is finished by now.
                Err(PeerError::Gone) if name.starts_with("transient-") => continue,
                fetched => fetched?,
            }
            self.until = self.until.max(Instant::now() + self.config.peers.patience);
            let (adoption, name) = (adoption.clone(), name.clone());
            taking = Some(tokio::task::spawn_blocking(move || adoption.take(&name)));
        }
        if let Some(last) = taking {
            add(&mut adopted, last.await)?;
        }
        let ended = adoption.clone();
        let finished = tokio::task::spawn_blocking(move || ended.finish()).await;
        finished.map_err(|_| PeerError::Here("taking it over was broken off".into()))?.map_err(adopting)?;
        Ok(Some(Outcome::Copied { peer: peer.at(), logs, adopted, bytes, took: begun.elapsed() }))
    }

    /// One file, from its beginning to its end.
    async fn fetch(
        &self,
        peer: &Peer,
        adoption: &Adoption,
        name: &str,
        bytes: u64,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), PeerError> {
        let path = adoption.part(name);
        let failed = |e: std::io::Error| PeerError::Here(format!("{} cannot be written: {e}", path.display()));
        let busy_until = Instant::now() + self.config.peers.patience;
        loop {
            let mut file = File::create(&path).map_err(failed)?;
            let mut come = 0;
            let mut take = |piece: &[u8]| {
                come += piece.len() as u64;
                progress(piece.len() as u64);
                events::Copied { bytes: piece.len() as u64 }.emit();
                file.write_all(piece).map_err(failed)
            };
            match peer.file(name, &mut take).await {
                Err(PeerError::Busy(_)) if Instant::now() < busy_until => tokio::time::sleep(AGAIN).await,
                Err(error) => return Err(error),
                Ok(()) if come != bytes => {
                    return Err(PeerError::Unusable(format!("{name} has {come} bytes, and {bytes} were told")));
                }
                Ok(()) => return Ok(()),
            }
        }
    }

    /// What is copied, the copy being made of it and the views need room.
    fn has_room(&self, offer: &Offer) -> Result<(), PeerError> {
        let (bytes, ledger) = (offer.bytes(), &self.config.ledger);
        if bytes > ledger.max_size.as_u64() / 4 * 3 {
            return Err(PeerError::Here(format!(
                "its ledger has {}, too much for ledger.max_size = {} here: raise that",
                ByteSize(bytes),
                ledger.max_size
            )));
        }
        let largest = offer.logs.iter().map(|log| log.bytes).max().unwrap_or(0);
        let needed = bytes / 2 * 3 + 2 * largest + ledger.min_free.as_u64();
        match host::space::free(&self.config.node.store) {
            Ok(space) if space.free < needed => Err(PeerError::Here(format!(
                "its ledger has {}, for which {} must be free on the disk under the store; {} are",
                ByteSize(bytes),
                ByteSize(needed),
                ByteSize(space.free)
            ))),
            // What cannot be told shows when it is written.
            _ => Ok(()),
        }
    }
}

fn add(all: &mut Adopted, taken: Result<Result<Adopted, AdoptError>, tokio::task::JoinError>) -> Result<(), PeerError> {
    let taken = taken.map_err(|_| PeerError::Here("taking a file over was broken off".into()))?.map_err(adopting)?;
    all.facts += taken.facts;
    all.damaged_bodies += taken.damaged_bodies;
    Ok(())
}

fn adopting(error: AdoptError) -> PeerError {
    match error {
        AdoptError::Io { .. } => PeerError::Here(error.to_string()),
        error => PeerError::Unusable(error.to_string()),
    }
}
