//! Configuration of balancers from the members of a domain: members in, text out. Instances that are not healthy, and the management
//! API, are left out.

mod haproxy;
mod ipvs;
mod nginx;

use super::catalog::{Member, bracketed};
use std::{collections::BTreeMap, net::IpAddr};

/// A balancer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Balancer {
    /// A whole `haproxy.cfg`.
    Haproxy,
    /// The `stream` block of an `nginx.conf`.
    Nginx,
    /// Input of `ipvsadm -R`.
    Ipvs,
}

/// What the operator says of it.
#[derive(Clone, Debug)]
pub struct Wish {
    pub domain: String,
    /// Address that the balancer listens on; `None`: all.
    pub bind: Option<IpAddr>,
    /// Tell the nodes the sender's address by the PROXY protocol.
    pub proxy_protocol: bool,
}

/// The same listener of several nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Pool {
    /// `http`, `https`, `mllp_NAME`, `mllps_NAME`.
    name: String,
    protocol: Protocol,
    /// That the balancer listens on: what most of the nodes do.
    port: u16,
    servers: Vec<Server>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Protocol {
    Http,
    Https,
    /// Plain or with TLS: a balancer passes it on as it is.
    Mllp,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Server {
    name: String,
    /// An IPv6 address in brackets.
    address: String,
    port: u16,
    weight: u16,
    /// Where `/health/ready` is; address without brackets, and port.
    health: Option<(String, u16)>,
}

/// The configuration. The error says what stands in the way.
pub fn render(balancer: Balancer, members: &[Member], wish: &Wish) -> Result<String, String> {
    let pools = pools(members, &wish.domain)?;
    match balancer {
        Balancer::Haproxy => Ok(haproxy::render(&pools, wish)),
        Balancer::Nginx => Ok(nginx::render(&pools, wish)),
        Balancer::Ipvs => ipvs::render(&pools, wish),
    }
}

fn pools(members: &[Member], domain: &str) -> Result<Vec<Pool>, String> {
    let mut pools: BTreeMap<(Protocol, String), Vec<Server>> = BTreeMap::new();
    for member in members.iter().filter(|member| member.domain == domain) {
        for one in member.instances.iter().filter(|one| one.passing()) {
            let (protocol, name) = match (one.protocol.as_str(), one.tls) {
                ("http", false) => (Protocol::Http, "http".to_owned()),
                ("http", true) => (Protocol::Https, "https".to_owned()),
                ("mllp", tls) => (Protocol::Mllp, format!("{}_{}", if tls { "mllps" } else { "mllp" }, word(&one.listener))),
                _ => continue,
            };
            let health = one.health_address.as_deref().and_then(|at| {
                let (address, port) = at.rsplit_once(':')?;
                Some((address.trim_matches(['[', ']']).to_owned(), port.parse().ok()?))
            });
            pools.entry((protocol, name)).or_default().push(Server {
                name: word(&member.node),
                address: bracketed(&one.address),
                port: one.port,
                weight: one.weight.max(1),
                health,
            });
        }
    }
    if pools.is_empty() {
        return Err(format!(
            "no healthy node of the domain \"{domain}\" is in the catalog: see `hie status` and `hie domain list`"
        ));
    }
    let mut taken: BTreeMap<u16, String> = BTreeMap::new();
    let mut all = Vec::new();
    for ((protocol, name), mut servers) in pools {
        servers.sort_by(|a, b| (&a.name, &a.address, a.port).cmp(&(&b.name, &b.address, b.port)));
        // Two nodes whose names differ in signs only.
        for i in 1..servers.len() {
            if servers[..i].iter().any(|s| s.name == servers[i].name) {
                servers[i].name = format!("{}_{}", servers[i].name, i + 1);
            }
        }
        let port = usual(&servers);
        if let Some(other) = taken.insert(port, name.clone()) {
            return Err(format!(
                "{other} and {name} both are on port {port} of some nodes: give the listeners ports of their own"
            ));
        }
        all.push(Pool { name, protocol, port, servers });
    }
    Ok(all)
}

/// The port of most of them; the lowest of those that are equally common.
fn usual(servers: &[Server]) -> u16 {
    let mut counts: BTreeMap<u16, usize> = BTreeMap::new();
    for server in servers {
        *counts.entry(server.port).or_default() += 1;
    }
    counts.into_iter().max_by(|a, b| a.1.cmp(&b.1).then(b.0.cmp(&a.0))).map_or(0, |(port, _)| port)
}

/// What may stand in a configuration file as a word.
fn word(text: &str) -> String {
    let word: String = text.chars().map(|c| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_') { c } else { '_' }).collect();
    if word.is_empty() { "node".into() } else { word }
}

impl Wish {
    /// `address:port` to listen on.
    fn listen(&self, port: u16, any: &str) -> String {
        format!("{}:{port}", self.bind.map_or_else(|| any.to_owned(), |ip| bracketed(&ip.to_string())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discovery::catalog::Registered;

    fn instance(protocol: &str, tls: bool, address: &str, port: u16, health: &str) -> Registered {
        Registered {
            id: format!("hie-{protocol}"),
            listener: "lab".into(),
            protocol: protocol.into(),
            tls,
            address: address.into(),
            port,
            weight: 700,
            tags: vec![],
            health: health.into(),
            failing: vec![],
            health_address: Some(format!("{}:8081", bracketed(address))),
        }
    }

    fn member(node: &str, domain: &str, instances: Vec<Registered>) -> Member {
        let (node, domain) = (node.to_owned(), domain.to_owned());
        Member { node, domain, version: String::new(), agent: String::new(), health: String::new(), instances }
    }

    fn members() -> Vec<Member> {
        vec![
            member(
                "n 1",
                "d",
                vec![instance("mllp", false, "10.0.0.1", 2575, "passing"), instance("admin", false, "10.0.0.1", 8080, "passing")],
            ),
            member(
                "n_1",
                "d",
                vec![instance("mllp", false, "fd00::1", 2575, "passing"), instance("http", false, "fd00::1", 5001, "passing")],
            ),
            member(
                "gone",
                "d",
                vec![
                    instance("mllp", false, "10.0.0.3", 2575, "maintenance"),
                    instance("http", true, "10.0.0.3", 5000, "critical"),
                ],
            ),
            member("far", "e", vec![instance("mllp", false, "10.0.0.4", 2575, "passing")]),
        ]
    }

    fn wish(bind: Option<&str>, proxy_protocol: bool) -> Wish {
        Wish { domain: "d".into(), bind: bind.map(|b| b.parse().expect("an address")), proxy_protocol }
    }

    #[test]
    fn only_healthy_instances_of_the_domain_and_never_the_management_api() {
        for balancer in [Balancer::Haproxy, Balancer::Nginx] {
            let text = render(balancer, &members(), &wish(Some("192.0.2.1"), false)).expect("a configuration");
            for present in ["192.0.2.1:2575", "10.0.0.1:2575", "[fd00::1]:2575", "[fd00::1]:5001"] {
                assert!(text.contains(present), "{present} in\n{text}");
            }
            for absent in ["10.0.0.3", "10.0.0.4", ":8080", ":5000"] {
                assert!(!text.contains(absent), "{absent} in\n{text}");
            }
        }
        assert!(render(Balancer::Nginx, &members(), &Wish { domain: "x".into(), ..wish(None, false) }).is_err());
    }

    #[test]
    fn ipvs_is_what_ipvsadm_restores() {
        let text = render(Balancer::Ipvs, &members(), &wish(Some("fd00::9"), false)).expect("a configuration");
        assert_eq!(
            text,
            "-A -t [fd00::9]:5001 -s wlc\n-a -t [fd00::9]:5001 -r [fd00::1]:5001 -m -w 700\n\
             -A -t [fd00::9]:2575 -s wlc\n-a -t [fd00::9]:2575 -r [fd00::1]:2575 -m -w 700\n"
        );
        let four = render(Balancer::Ipvs, &members(), &wish(Some("192.0.2.1"), false));
        assert!(four.expect_err("HTTP is on IPv6 only").contains("no node has an IPv4 address for http"));
        let only_mllp = &members()[..1];
        let text = render(Balancer::Ipvs, only_mllp, &wish(Some("192.0.2.1"), false)).expect("a configuration");
        assert_eq!(text, "-A -t 192.0.2.1:2575 -s wlc\n-a -t 192.0.2.1:2575 -r 10.0.0.1:2575 -m -w 700\n");
        assert!(render(Balancer::Ipvs, &members(), &wish(None, false)).expect_err("no address").contains("--bind"));
        assert!(
            render(Balancer::Ipvs, &members(), &wish(Some("192.0.2.1"), true))
                .expect_err("no PROXY")
                .contains("--proxy-protocol")
        );
    }

    #[test]
    fn weights_fit_haproxy_and_names_differ() {
        let text = render(Balancer::Haproxy, &members(), &wish(None, true)).expect("a configuration");
        assert!(text.contains("server n_1 10.0.0.1:2575 weight 256 check addr 10.0.0.1 port 8081"), "{text}");
        assert!(text.contains("server n_1_2 [fd00::1]:2575 weight 256") && text.contains("send-proxy-v2"), "{text}");
    }

    #[test]
    fn two_listeners_on_one_port_are_refused() {
        let mut twice = members();
        twice[0].instances.push(instance("http", true, "10.0.0.1", 2575, "passing"));
        assert!(render(Balancer::Nginx, &twice, &wish(None, false)).expect_err("a clash").contains("port 2575"));
    }
}
