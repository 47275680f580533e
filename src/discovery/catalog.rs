//! The members: nodes of all domains as the catalog has them.

use super::{
    client::{Client, Error},
    service::SERVICE,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A node of some domain.
#[derive(Clone, Debug, Serialize)]
pub struct Member {
    pub node: String,
    pub domain: String,
    pub version: String,
    /// Of the machine's agent.
    pub agent: String,
    /// The worst of its instances: `passing`, `warning`, `critical`, `maintenance`.
    pub health: String,
    pub instances: Vec<Registered>,
}

/// One port of a member.
#[derive(Clone, Debug, Serialize)]
pub struct Registered {
    pub id: String,
    pub listener: String,
    /// `http`, `mllp` or `admin`.
    pub protocol: String,
    pub tls: bool,
    pub address: String,
    pub port: u16,
    pub weight: u16,
    pub tags: Vec<String>,
    /// `passing`, `warning`, `critical`, `maintenance`.
    pub health: String,
    /// Of checks that do not pass: name and, for the node's own, what they said.
    pub failing: Vec<String>,
    /// `address:port` of the health listener, as far as others can reach it.
    pub health_address: Option<String>,
}

impl Registered {
    /// Do the names hold it?
    pub fn passing(&self) -> bool {
        matches!(self.health.as_str(), "passing" | "warning")
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    node: AgentNode,
    service: Service,
    #[serde(default)]
    checks: Vec<Check>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct AgentNode {
    node: String,
    address: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Service {
    #[serde(rename = "ID")]
    id: String,
    #[serde(default)]
    tags: Vec<String>,
    #[serde(default)]
    address: String,
    port: u16,
    #[serde(default)]
    meta: BTreeMap<String, String>,
    #[serde(default)]
    weights: Weights,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Weights {
    passing: u16,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Check {
    #[serde(rename = "CheckID")]
    id: String,
    #[serde(default)]
    name: String,
    status: String,
}

/// All instances of all nodes, those that are not healthy too. Any server answers, a leader is not needed.
pub async fn members(client: &Client) -> Result<Vec<Member>, Error> {
    let entries: Vec<Entry> = client.get(&["health", "service", SERVICE], &[("stale", "")]).await?;
    Ok(fold(entries))
}

fn fold(entries: Vec<Entry>) -> Vec<Member> {
    let mut members: BTreeMap<(String, String), Member> = BTreeMap::new();
    for Entry { node, service, checks } in entries {
        let meta = |key: &str| service.meta.get(key).cloned().unwrap_or_default();
        let (domain, name) = (meta("domain"), meta("node"));
        let health = worst(checks.iter().map(Check::state));
        let address = if service.address.is_empty() { node.address.clone() } else { service.address.clone() };
        let health_address = match meta("health") {
            none if none.is_empty() => None,
            port if port.starts_with(':') => Some(format!("{}{port}", bracketed(&address))),
            whole => Some(whole),
        };
        let failing = checks.iter().filter(|c| c.status != "passing").map(|c| c.name.clone()).collect();
        let instance = Registered {
            listener: meta("listener"),
            protocol: meta("protocol"),
            tls: meta("tls") == "true",
            id: service.id.clone(),
            address,
            port: service.port,
            weight: service.weights.passing,
            tags: service.tags.clone(),
            health: health.clone(),
            failing,
            health_address,
        };
        let member = members.entry((domain.clone(), name.clone())).or_insert_with(|| Member {
            node: name,
            domain,
            version: meta("version"),
            agent: node.node.clone(),
            health: "passing".into(),
            instances: Vec::new(),
        });
        member.health = worst([member.health.as_str(), health.as_str()].into_iter());
        member.instances.push(instance);
    }
    let mut members: Vec<Member> = members.into_values().collect();
    for member in &mut members {
        member.instances.sort_by(|a, b| (&a.protocol, a.tls, a.port, &a.id).cmp(&(&b.protocol, b.tls, b.port, &b.id)));
    }
    members
}

impl Check {
    fn state(&self) -> &str {
        match self.id.starts_with("_service_maintenance:") || self.id == "_node_maintenance" {
            true => "maintenance",
            false => &self.status,
        }
    }
}

fn worst<'a>(states: impl Iterator<Item = &'a str>) -> String {
    const ORDER: [&str; 4] = ["passing", "warning", "critical", "maintenance"];
    let rank = |state: &str| ORDER.iter().position(|s| *s == state).unwrap_or(2);
    ORDER[states.map(rank).max().unwrap_or(0)].to_owned()
}

/// An IPv6 address as it stands before a port.
pub fn bracketed(address: &str) -> String {
    if address.contains(':') && !address.starts_with('[') { format!("[{address}]") } else { address.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instances_become_members_with_the_worst_state() {
        let text = r#"[
            {"Node": {"Node": "m1", "Address": "10.0.0.1"},
             "Service": {"ID": "hie-a-mllp", "Tags": ["mllp", "default"], "Address": "", "Port": 2575, "Weights": {"Passing": 7, "Warning": 1},
                         "Meta": {"node": "a", "domain": "default", "protocol": "mllp", "tls": "false", "health": ":8081", "version": "1"}},
             "Checks": [{"CheckID": "serfHealth", "Name": "Serf", "Status": "passing"}]},
            {"Node": {"Node": "m1", "Address": "10.0.0.1"},
             "Service": {"ID": "hie-a-http", "Tags": ["http", "default"], "Address": "10.9.9.9", "Port": 5001,
                         "Meta": {"node": "a", "domain": "default", "protocol": "http", "health": ""}},
             "Checks": [{"CheckID": "_service_maintenance:hie-a-http", "Name": "Service Maintenance Mode", "Status": "critical"}]}
        ]"#;
        let members = fold(serde_json::from_str(text).expect("entries"));
        assert_eq!((members.len(), members[0].health.as_str(), members[0].version.as_str()), (1, "maintenance", "1"));
        let [http, mllp] = &members[0].instances[..] else { panic!("two") };
        assert_eq!((mllp.address.as_str(), mllp.health_address.as_deref(), mllp.weight), ("10.0.0.1", Some("10.0.0.1:8081"), 7));
        assert_eq!((http.address.as_str(), http.health_address.as_deref(), http.passing()), ("10.9.9.9", None, false));
    }
}
