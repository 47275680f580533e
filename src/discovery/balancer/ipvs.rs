//! Linux Virtual Server: input of `ipvsadm -R`, weighted least connections, addresses translated. ipvsadm(8)

use super::{Pool, Wish};
use std::fmt::Write;

pub(super) fn render(pools: &[Pool], wish: &Wish) -> Result<String, String> {
    let Some(bind) = wish.bind else {
        return Err("a virtual server has an address of its own: give it with --bind".into());
    };
    if wish.proxy_protocol {
        return Err("a virtual server passes the sender's address on by itself: leave --proxy-protocol out".into());
    }
    let mut out = String::new();
    for pool in pools {
        // The kernel translates addresses within one family only.
        let reachable = |address: &str| address.starts_with('[') == bind.is_ipv6();
        let servers: Vec<_> = pool.servers.iter().filter(|server| reachable(&server.address)).collect();
        if servers.is_empty() {
            let family = if bind.is_ipv6() { "IPv6" } else { "IPv4" };
            return Err(format!(
                "no node has an {family} address for {}, and a virtual server forwards within one family: --bind an address of the \
                 other, or set discovery.address of the nodes",
                pool.name
            ));
        }
        let at = wish.listen(pool.port, "");
        // Writing to a String cannot fail.
        let _ = writeln!(out, "-A -t {at} -s wlc");
        for server in servers {
            let _ = writeln!(out, "-a -t {at} -r {}:{} -m -w {}", server.address, server.port, server.weight);
        }
    }
    Ok(out)
}
