//! NGINX: a `stream` block. HTTP goes through as a stream too: only so do the nodes get the sender's address, and no URL is seen.
//! <https://nginx.org/en/docs/stream/ngx_stream_core_module.html>

use super::{Pool, Protocol, Wish};
use std::fmt::Write;

pub(super) fn render(pools: &[Pool], wish: &Wish) -> String {
    let mut out = format!(
        "# hie lb render nginx, domain {}. Nodes that come or go: render again and reload.\n\
         # Include it in nginx.conf beside http {{ }}, not within; the stream module is needed (libnginx-mod-stream).\n\
         # Without active checks a node counts as away for 2 s after a refused connection. Nothing of a message is logged.\n\
         stream {{\n    \
         log_format hie '$remote_addr:$remote_port [$time_iso8601] $server_port $upstream_addr $status $bytes_received $bytes_sent $session_time';\n    \
         access_log /var/log/nginx/hie.log hie;\n",
        wish.domain
    );
    for pool in pools {
        // Writing to a String cannot fail.
        let _ = write!(out, "\n    upstream {0} {{\n        zone {0} 64k;\n        least_conn;\n", pool.name);
        for server in &pool.servers {
            let _ = writeln!(
                out,
                "        server {}:{} weight={} max_fails=1 fail_timeout=2s;",
                server.address, server.port, server.weight
            );
        }
        let patience = if pool.protocol == Protocol::Mllp { "48h" } else { "5m" };
        let proxy = if wish.proxy_protocol { "        proxy_protocol on;\n" } else { "" };
        let _ = write!(
            out,
            "    }}\n    server {{\n        listen {} so_keepalive=on;\n        proxy_pass {};\n        proxy_connect_timeout 3s;\n        \
             proxy_timeout {patience};\n        proxy_socket_keepalive on;\n{proxy}    }}\n",
            wish.listen(pool.port, "*"),
            pool.name
        );
    }
    out.push_str("}\n");
    out
}
