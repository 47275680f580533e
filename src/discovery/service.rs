//! What of this node is registered: one instance of the service `hie` for each port that others can reach.

use crate::config::Discovery;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

/// The service's name: `hie.service.consul`.
pub const SERVICE: &str = "hie";

/// Who registers.
#[derive(Clone, Debug)]
pub struct Node {
    pub name: String,
    pub domain: String,
    pub version: String,
    /// Of this process: tells a successor from another node with the same name.
    pub process: String,
}

/// A port that the node listens on.
#[derive(Clone, Debug)]
pub struct Port {
    /// `http`, `https`, `admin`, or the name of an MLLP listener.
    pub listener: String,
    /// `http`, `https`, `mllp`, `mllps` or `admin`: the tag.
    pub protocol: &'static str,
    pub address: SocketAddr,
}

/// One instance of the service.
#[derive(Clone, Debug, Serialize)]
pub struct Instance {
    pub id: String,
    pub listener: String,
    pub protocol: &'static str,
    /// `None`: the agent's own.
    pub address: Option<IpAddr>,
    pub port: u16,
    #[serde(skip)]
    definition: Definition,
}

/// A service as the agent tells of it, as far as it is ours to say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Definition {
    #[serde(default)]
    pub tags: Vec<String>,
    #[serde(default)]
    pub address: String,
    pub port: u16,
    #[serde(default)]
    pub meta: BTreeMap<String, String>,
    pub weights: Weights,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Weights {
    pub passing: usize,
    pub warning: usize,
}

/// What is registered, and which listeners are not, and why.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    pub instances: Vec<Instance>,
    pub left_out: Vec<String>,
}

impl Plan {
    /// Ports bound to loopback are for this machine alone and stay out of the names, unless all of the node is on loopback
    /// (a trial), or `discovery.address` is.
    pub fn new(node: &Node, ports: &[Port], health: SocketAddr, config: &Discovery) -> Self {
        let local = |ip: IpAddr| ip.is_loopback();
        let trial = config.address.map_or_else(|| ports.iter().all(|p| local(p.address.ip())), local);
        let mut plan = Self::default();
        for port in ports {
            let bound = port.address.ip();
            if local(bound) && !trial {
                plan.left_out.push(format!("{} listens on {} only", port.listener, port.address));
                continue;
            }
            let address = config.address.or_else(|| Some(bound).filter(|ip| !ip.is_unspecified()));
            plan.instances.push(instance(node, port, address, health, config));
        }
        plan
    }
}

fn instance(node: &Node, port: &Port, address: Option<IpAddr>, health: SocketAddr, config: &Discovery) -> Instance {
    let id = format!(
        "{}{}",
        prefix(node),
        word(&match port.protocol {
            "mllp" | "mllps" => format!("mllp-{}", port.listener),
            own => own.to_owned(),
        })
    );
    // Where balancers on other machines find it; empty where they do not.
    let reach =
        address.filter(|a| health.ip().is_unspecified() || *a == health.ip() || a.is_loopback() == health.ip().is_loopback());
    let health = match reach {
        Some(a) if health.ip().is_unspecified() => SocketAddr::new(a, health.port()).to_string(),
        Some(_) => health.to_string(),
        None if address.is_none() && (health.ip().is_unspecified() || !health.ip().is_loopback()) => {
            format!(":{}", health.port())
        }
        None => String::new(),
    };
    let meta = [
        ("version", node.version.clone()),
        ("domain", node.domain.clone()),
        ("node", node.name.clone()),
        ("process", node.process.clone()),
        ("listener", port.listener.clone()),
        ("protocol", port.protocol.trim_end_matches('s').to_owned()),
        ("tls", matches!(port.protocol, "https" | "mllps").to_string()),
        ("health", health),
    ];
    let definition = Definition {
        tags: vec![port.protocol.to_owned(), node.domain.clone()],
        address: address.map(|a| a.to_string()).unwrap_or_default(),
        port: port.address.port(),
        // The agent takes 512 characters; a name is not that long.
        meta: meta.map(|(key, value)| (key.to_owned(), value.chars().take(256).collect())).into(),
        weights: Weights { passing: config.weight, warning: 1 },
    };
    Instance { id, listener: port.listener.clone(), protocol: port.protocol, address, port: port.address.port(), definition }
}

/// What the ids of a node's instances begin with.
pub(super) fn prefix(node: &Node) -> String {
    format!("hie-{}-", word(&node.name))
}

/// Letters, digits, '-', '_' and '.' only.
fn word(text: &str) -> String {
    text.chars().map(|c| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') { c } else { '-' }).collect()
}

impl Instance {
    /// The check that the agent makes.
    fn ready_check(&self) -> String {
        format!("{}:ready", self.id)
    }

    /// The check that the node feeds.
    pub(super) fn alive_check(&self) -> String {
        format!("{}:alive", self.id)
    }

    /// Is the agent's entry what it should be?
    pub(super) fn is(&self, there: &Definition) -> bool {
        let sorted = |d: &Definition| {
            let mut d = d.clone();
            d.tags.sort();
            d
        };
        sorted(&self.definition) == sorted(there)
    }

    /// The body of the registration; `health` is what the agent is to look at.
    pub(super) fn registration(&self, health: SocketAddr, config: &Discovery) -> Value {
        let time = |t: std::time::Duration| format!("{}ms", t.as_millis());
        let forget = time(config.forget_after);
        let d = &self.definition;
        json!({
            "ID": self.id,
            "Name": SERVICE,
            "Tags": d.tags,
            "Address": d.address,
            "Port": d.port,
            "Meta": d.meta,
            "Weights": d.weights,
            "EnableTagOverride": false,
            "Checks": [
                {
                    "CheckID": self.ready_check(),
                    "Name": "can accept durably",
                    "HTTP": format!("http://{health}/health/ready"),
                    "Method": "GET",
                    "Interval": time(config.check_interval),
                    "Timeout": time(config.check_timeout),
                    "FailuresBeforeCritical": config.check_failures,
                    "DeregisterCriticalServiceAfter": forget,
                },
                { "CheckID": self.alive_check(), "Name": "heartbeat", "TTL": time(config.ttl), "DeregisterCriticalServiceAfter": forget },
            ],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> Node {
        Node { name: "Node 1/a".into(), domain: "default".into(), version: "0".into(), process: "p".into() }
    }

    fn ports(addresses: &[(&str, &'static str, &str)]) -> Vec<Port> {
        let port = |(listener, protocol, address): &(&str, &'static str, &str)| Port {
            listener: (*listener).into(),
            protocol,
            address: address.parse().expect("an address"),
        };
        addresses.iter().map(port).collect()
    }

    fn plan(addresses: &[(&str, &'static str, &str)], health: &str, address: Option<&str>) -> Plan {
        let config = Discovery { address: address.map(|a| a.parse().expect("an address")), ..Discovery::default() };
        Plan::new(&node(), &ports(addresses), health.parse().expect("an address"), &config)
    }

    #[test]
    fn loopback_stays_out_of_the_names_unless_all_is_on_it() {
        let mixed = plan(&[("http", "http", "127.0.0.1:5001"), ("lab", "mllp", "0.0.0.0:2575")], "127.0.0.1:8081", None);
        assert_eq!(mixed.left_out, ["http listens on 127.0.0.1:5001 only"]);
        assert_eq!((mixed.instances.len(), mixed.instances[0].address), (1, None));
        assert_eq!(mixed.instances[0].id, "hie-Node-1-a-mllp-lab");
        let trial = plan(&[("http", "http", "127.0.0.2:5001"), ("admin", "admin", "127.0.0.1:8080")], "127.0.0.1:8081", None);
        assert_eq!(trial.instances.len(), 2);
        let given = plan(&[("lab", "mllps", "0.0.0.0:2576")], "0.0.0.0:8081", Some("10.0.0.7"));
        assert_eq!(given.instances[0].address, Some([10, 0, 0, 7].into()));
        assert_eq!(given.instances[0].definition.meta["health"], "10.0.0.7:8081");
        assert_eq!(given.instances[0].definition.meta["tls"], "true");
        assert_eq!(given.instances[0].definition.tags, ["mllps", "default"]);
    }

    #[test]
    fn health_is_told_where_others_can_reach_it() {
        let health = |listen: &str, health: &str| {
            plan(&[("lab", "mllp", listen)], health, None).instances[0].definition.meta["health"].clone()
        };
        assert_eq!(health("10.0.0.7:2575", "0.0.0.0:8081"), "10.0.0.7:8081");
        assert_eq!(health("10.0.0.7:2575", "10.0.0.7:8081"), "10.0.0.7:8081");
        assert_eq!(health("10.0.0.7:2575", "127.0.0.1:8081"), "");
        assert_eq!(health("0.0.0.0:2575", "0.0.0.0:8081"), ":8081");
        assert_eq!(health("0.0.0.0:2575", "127.0.0.1:8081"), "");
        assert_eq!(health("127.0.0.2:2575", "127.0.0.2:8081"), "127.0.0.2:8081");
    }
}
