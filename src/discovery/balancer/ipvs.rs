//! Linux Virtual Server: input of `ipvsadm -R`, weighted least connections, addresses translated. ipvsadm(8)

use super::{Pool, Wish};
use std::fmt::Write;

pub(super) fn render(pools: &[Pool], wish: &Wish) -> Result<String, String> {
    if wish.bind.is_none() {
        return Err("a virtual server has an address of its own: give it with --bind".into());
    }
    if wish.proxy_protocol {
        return Err("a virtual server passes the sender's address on by itself: leave --proxy-protocol out".into());
    }
    let mut out = String::new();
    for pool in pools {
        let at = wish.listen(pool.port, "");
        // Writing to a String cannot fail.
        let _ = writeln!(out, "-A -t {at} -s wlc");
        for server in &pool.servers {
            let _ = writeln!(out, "-a -t {at} -r {}:{} -m -w {}", server.address, server.port, server.weight);
        }
    }
    Ok(out)
}
