//! HAProxy: one `listen` section for each listener of the nodes. <https://docs.haproxy.org/2.6/configuration.html>

use super::{Pool, Protocol, Wish};
use std::fmt::Write;

/// The largest weight that it takes.
const MOST: u32 = 256;

pub(super) fn render(pools: &[Pool], wish: &Wish) -> String {
    let mut out = format!(
        "# hie lb render haproxy, domain {}. Nodes that come or go: render again and reload.\n\
         # What is logged holds no URL and nothing of a message.\n\
         global\n    log /dev/log local0\n\n\
         defaults\n    log global\n    option dontlognull\n    option redispatch 1\n    retries 3\n    timeout connect 3s\n    timeout queue 30s\n    \
         timeout check 2s\n",
        wish.domain
    );
    for pool in pools {
        // Writing to a String cannot fail.
        let _ = write!(out, "\nlisten {}\n    bind {}\n    balance leastconn\n", pool.name, wish.listen(pool.port, "*"));
        out.push_str(match pool.protocol {
            Protocol::Http => {
                "    mode http\n    log-format \"%ci:%cp %ft %b/%s %TR/%Tw/%Tc/%Tr/%Ta %ST %B %tsc %ac/%fc/%bc/%sc/%rc\"\n    \
                 timeout http-request 30s\n    timeout http-keep-alive 75s\n    timeout client 5m\n    timeout server 5m\n"
            }
            Protocol::Https => {
                "    mode tcp\n    log-format \"%ci:%cp %ft %b/%s %Tw/%Tc/%Tt %B %ts %ac/%fc/%bc/%sc/%rc\"\n    \
                 timeout client 5m\n    timeout server 5m\n    timeout client-fin 30s\n"
            }
            // A sender may keep its connection for days and say nothing at night.
            Protocol::Mllp => {
                "    mode tcp\n    log-format \"%ci:%cp %ft %b/%s %Tw/%Tc/%Tt %B %ts %ac/%fc/%bc/%sc/%rc\"\n    \
                 option clitcpka\n    option srvtcpka\n    timeout client 48h\n    timeout server 48h\n    timeout client-fin 30s\n"
            }
        });
        if pool.servers.iter().any(|server| server.health.is_some()) {
            out.push_str("    option httpchk GET /health/ready\n    http-check expect status 200\n");
        }
        let heaviest = pool.servers.iter().map(|s| u32::from(s.weight)).max().unwrap_or(1).max(MOST);
        for server in &pool.servers {
            let weight = (u32::from(server.weight) * MOST / heaviest).max(1);
            let check = match &server.health {
                Some((address, port)) => format!(" check addr {address} port {port} inter 1s fall 2 rise 1"),
                // Health is on loopback only there: a dead node is found by its refused connections.
                None => String::new(),
            };
            let proxy = if wish.proxy_protocol { " send-proxy-v2" } else { "" };
            let _ = writeln!(out, "    server {} {}:{} weight {weight}{check}{proxy}", server.name, server.address, server.port);
        }
    }
    out
}
