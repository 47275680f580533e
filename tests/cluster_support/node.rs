//! Nodes on machines of the cluster, and the names by which senders find them.

use super::consul::{dig, records};
use super::{Cluster, Machine};
use crate::harness::sender::Lookup;
use crate::harness::{Behaviour, Builder, Receiver, Rng};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

impl Cluster {
    /// A node for the machine `n<number>`, with the usual ports on its address; nothing is started. The caller adds
    /// channels and sections ([`Self::rabbitmq`], [`Self::consul`]).
    pub fn node(&self, number: usize) -> Builder {
        self.node_on(&self.machines[number - 1])
    }

    pub fn node_on(&self, machine: &Machine) -> Builder {
        let mut builder = Builder::new().wrapper(&machine.wrapper()).patience(Duration::from_secs(60));
        builder.name.clone_from(&machine.name);
        builder.at = Some(machine.ip.into());
        machine.dir().clone_into(&mut builder.within);
        builder
    }

    /// `[transport]` of a node that works with these brokers; `more` adds lines.
    pub fn rabbitmq(&self, more: &str) -> String {
        let password_file = self.net.dir().join("broker-password");
        std::fs::write(&password_file, &self.brokers.settings.password).expect("a file");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(&password_file, mode).expect("permissions");
        format!(
            "[transport]\nkind = \"rabbitmq\"\nurls = {:?}\nuser = \"{}\"\npassword_file = {password_file:?}\n{more}\n",
            self.brokers.urls(),
            super::broker::USER
        )
    }

    /// `[discovery]` of a node that talks to its machine's agent; `more` adds lines.
    pub fn consul(&self, more: &str) -> String {
        format!("[discovery]\nconsul = \"http://127.0.0.1:8500\"\n{more}\n")
    }

    /// A receiver that the machines reach.
    pub fn receiver(&self, http: bool, behaviour: Behaviour, rng: Rng) -> Receiver {
        Receiver::at(self.net.outside().into(), http, behaviour, rng)
    }

    /// What `name` stands for, asked anew at the caching resolver each time, with this port.
    pub fn lookup(&self, name: &str, port: u16) -> Lookup {
        let resolver = self.resolver.as_ref().expect("a cluster with Consul").dns();
        lookup(resolver, name, port)
    }
}

/// What `name` stands for by its SRV records, asked again at this DNS server when the answer's time to live is over; another target
/// first each time.
pub fn services(server: SocketAddr, name: &str) -> Lookup {
    let name = name.to_owned();
    kept(move || {
        let all = records(server, &name, "SRV");
        let address = |target: &str| all.iter().find(|r| r.kind == "A" && r.name == target)?.data.parse().ok();
        let found = all.iter().filter(|r| r.kind == "SRV").filter_map(|record| {
            let words: Vec<_> = record.data.split(' ').collect();
            let (port, target) = (words.get(2)?.parse().ok()?, words.get(3)?);
            Some((SocketAddr::new(address(target)?, port), record.ttl))
        });
        found.collect()
    })
}

/// The same by its A records, with this port.
pub fn addresses(server: SocketAddr, name: &str, port: u16) -> Lookup {
    let name = name.to_owned();
    kept(move || {
        let all = records(server, &name, "A");
        all.iter().filter_map(|r| Some((SocketAddr::new(r.data.parse().ok()?, port), r.ttl))).collect()
    })
}

fn kept(ask: impl Fn() -> Vec<(SocketAddr, u64)> + Send + Sync + 'static) -> Lookup {
    let last: Mutex<(Vec<SocketAddr>, Option<Instant>)> = Mutex::default();
    let turn = AtomicUsize::new(0);
    Lookup(Arc::new(move || {
        let mut last = last.lock().unwrap_or_else(|e| e.into_inner());
        if last.0.is_empty() || last.1.is_none_or(|until| Instant::now() >= until) {
            let mut found = ask();
            found.sort();
            let ttl = found.iter().map(|(_, ttl)| *ttl).min().unwrap_or(0);
            *last = (found.into_iter().map(|(to, _)| to).collect(), Some(Instant::now() + Duration::from_secs(ttl)));
        }
        let mut answers = last.0.clone();
        let first = turn.fetch_add(1, Ordering::Relaxed) % answers.len().max(1);
        answers.rotate_left(first);
        answers
    }))
}

/// What `name` stands for, asked anew at this DNS server each time, with this port; another address first each time, so that
/// senders are spread over all.
pub fn lookup(server: SocketAddr, name: &str, port: u16) -> Lookup {
    let name = name.to_owned();
    let turn = AtomicUsize::new(0);
    Lookup(Arc::new(move || {
        let mut answers = dig(server, &name, "A");
        answers.sort();
        let first = turn.fetch_add(1, Ordering::Relaxed) % answers.len().max(1);
        answers.rotate_left(first);
        answers.iter().filter_map(|a| Some((a.parse::<std::net::Ipv4Addr>().ok()?, port).into())).collect()
    }))
}
