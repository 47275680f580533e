//! A tier and its numbers, read from `presets/<name>.json`.

use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt, sync::OnceLock};

/// From `min` to `max`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Range {
    pub min: u64,
    pub max: u64,
}

/// One hardware tier: the guide's figures, and what is derived from them.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tier {
    /// Name of the preset: `small-clinic`.
    pub name: String,
    /// Name for people.
    pub title: String,
    /// Patients a day that it is meant for.
    pub patients_per_day: Range,
    /// The guide's row of peak connections.
    pub capacity: Capacity,
    /// The machine.
    pub hardware: Hardware,
    /// What such a machine costs.
    pub cost_usd_per_month: Range,
    /// Its place in the roadmap.
    pub roadmap: Phase,
    /// Keys of `hie.toml`, nested as they are there. `mllp` holds for each listener.
    pub node: serde_json::Map<String, serde_json::Value>,
    /// Limits of the operating system.
    pub system: System,
    /// A broker on such a machine.
    pub rabbitmq: Rabbitmq,
    /// A Consul agent on such a machine.
    pub consul: Consul,
    /// The virtual machine that the bundle makes; its disk is `hardware.disk_gb`.
    pub vm: Vm,
    /// Instance types with `vm`'s size.
    pub cloud: Cloud,
}

/// The row "patients a day, peak concurrent connections" of the guide's table. It ends where `patients_per_day` does.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Capacity {
    /// Where the row begins; the tier may begin earlier.
    pub patients_from: u64,
    /// Connections of the live feed at the peak.
    pub peak_connections: Range,
}

/// The machine.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hardware {
    pub cores: Range,
    pub memory_mib: Range,
    pub disk_gb: u64,
    pub network_mbps: u64,
}

/// A phase of the roadmap; its machine is the tier's `vm`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Phase {
    /// 0 comes before the guide's first.
    pub phase: u64,
    pub title: String,
    /// When it begins.
    pub when: String,
    /// Where it differs from the tier's: connections per resource and server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connections_per_resource: Option<Range>,
}

/// Limits of the operating system.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct System {
    /// Open files, soft and hard.
    pub nofile: u64,
    pub cgroup: Cgroup,
    /// Kernel settings by name.
    pub sysctl: BTreeMap<String, u64>,
}

/// Limits of the node's control group.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cgroup {
    pub memory_mib: u64,
    /// 100 is one core.
    pub cpu_percent: u64,
    /// Processes and threads.
    pub tasks: u64,
}

/// A broker.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rabbitmq {
    /// Publishers wait above this.
    pub memory_mib: u64,
    /// Publishers wait when less than this is free.
    pub disk_free_mib: u64,
    pub connection_max: u64,
    /// Per connection; a node needs one connection, and on it (3 + routes) channels for each partition of each of its channels, at the most.
    pub channel_max: u64,
    /// Connections that wait to be accepted.
    pub backlog: u64,
    pub heartbeat_seconds: u64,
    /// A delivery not acknowledged in this time ends its channel; three times `transport.hold` at least.
    pub consumer_timeout_minutes: u64,
    /// Size of a write-ahead log file of the quorum queues; about as much stays in memory.
    pub wal_max_mib: u64,
}

/// A Consul agent.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Consul {
    /// 1 finds a new leader soonest, larger ones bear with slow machines.
    pub raft_multiplier: u64,
    pub http_max_conns_per_client: u64,
    pub rpc_max_conns_per_client: u64,
}

/// A virtual machine.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vm {
    pub vcpu: u64,
    pub memory_mib: u64,
}

/// Instance types.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cloud {
    pub aws: String,
    pub azure: String,
    pub gcp: String,
}

impl Tier {
    /// The text of a key of `hie.toml`, such as `feed.timeout`; `None` when the tier leaves it alone.
    pub fn setting(&self, key: &str) -> Option<String> {
        let (section, key) = key.split_once('.')?;
        match self.node.get(section)?.get(key)? {
            serde_json::Value::String(text) => Some(text.clone()),
            other => Some(other.to_string()),
        }
    }

    /// A key that is a whole number; 0 when the tier leaves it alone.
    pub fn number(&self, key: &str) -> u64 {
        self.setting(key).and_then(|text| text.parse().ok()).unwrap_or(0)
    }

    /// A key that is a size, in bytes; 0 when the tier leaves it alone.
    pub fn bytes(&self, key: &str) -> u64 {
        self.setting(key).and_then(|text| text.parse::<bytesize::ByteSize>().ok()).map_or(0, |size| size.as_u64())
    }

    /// A key that is a duration; zero when the tier leaves it alone.
    pub fn time(&self, key: &str) -> std::time::Duration {
        self.setting(key).and_then(|text| humantime::parse_duration(&text).ok()).unwrap_or_default()
    }

    /// Connections of the live feed to one resource (the guide's `SSE_MAX_CONNECTIONS_PER_RESOURCE`).
    pub fn connections_per_resource(&self) -> u64 {
        self.number("feed.max_connections_per_resource")
    }

    /// Connections of the live feed altogether (the guide's expected capacity).
    pub fn connections(&self) -> u64 {
        self.number("feed.max_connections")
    }

    /// A connection of the live feed ends after so many minutes (the guide's `SSE_CONNECTION_TIMEOUT_MINUTES`).
    pub fn timeout_minutes(&self) -> u64 {
        self.time("feed.timeout").as_secs() / 60
    }
}

/// All tiers, the smallest first.
pub fn tiers() -> &'static [Tier] {
    static TIERS: OnceLock<Vec<Tier>> = OnceLock::new();
    TIERS.get_or_init(|| {
        let texts = [
            include_str!("../../presets/edge.json"),
            include_str!("../../presets/small-clinic.json"),
            include_str!("../../presets/medium-hospital.json"),
            include_str!("../../presets/large-hospital.json"),
            include_str!("../../presets/hospital-network.json"),
        ];
        // The texts are part of the binary: a test reads them all.
        texts.iter().map(|text| serde_json::from_str(text).expect("presets/*.json as it was tested")).collect()
    })
}

/// A name that no tier has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unknown {
    /// As it was given.
    pub name: String,
    /// The tier's name that is most like it.
    pub nearest: &'static str,
}

impl fmt::Display for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: Vec<&str> = tiers().iter().map(|t| t.name.as_str()).collect();
        write!(f, "no preset is called \"{}\"; did you mean \"{}\"? presets are {}", self.name, self.nearest, all.join(", "))
    }
}

impl std::error::Error for Unknown {}

/// The tier of a name.
pub fn find(name: &str) -> Result<&'static Tier, Unknown> {
    let all = tiers();
    all.iter().find(|tier| tier.name == name).ok_or_else(|| {
        let likeness = |tier: &&Tier| strsim::jaro_winkler(&name.to_lowercase(), &tier.name);
        let nearest = all.iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
        Unknown { name: name.to_owned(), nearest: nearest.map_or("", |tier| tier.name.as_str()) }
    })
}
