//! RabbitMQ and Consul.

use super::{Part, Tier, head};
use serde_json::json;

/// `rabbitmq.conf`: only keys that 3.10 and 4 both know; what is absolute does not depend on what else runs on the machine.
pub(super) fn rabbitmq(tier: &Tier) -> String {
    let r = &tier.rabbitmq;
    let minutes = |n: u64| n * 60_000;
    format!(
        "{}vm_memory_high_watermark.absolute = {}MiB\n\
         disk_free_limit.absolute = {}MiB\n\
         connection_max = {}\n\
         channel_max = {}\n\
         heartbeat = {}\n\
         consumer_timeout = {}\n\
         tcp_listen_options.backlog = {}\n\
         tcp_listen_options.nodelay = true\n\
         raft.wal_max_size_bytes = {}\n",
        head(tier, Part::Rabbitmq),
        r.memory_mib,
        r.disk_free_mib,
        r.connection_max,
        r.channel_max,
        r.heartbeat_seconds,
        minutes(r.consumer_timeout_minutes),
        r.backlog,
        r.wal_max_mib * 1024 * 1024
    )
}

/// A file for `consul agent -config-dir`. JSON has no comments.
pub(super) fn consul(tier: &Tier) -> String {
    let c = &tier.consul;
    let value = json!({
        // Names go on being answered, with what is known, while no server is there.
        "dns_config": { "use_cache": true, "cache_max_age": "10m" },
        "performance": { "raft_multiplier": c.raft_multiplier },
        "limits": {
            "http_max_conns_per_client": c.http_max_conns_per_client,
            "rpc_max_conns_per_client": c.rpc_max_conns_per_client,
        },
    });
    format!("{value:#}\n")
}
