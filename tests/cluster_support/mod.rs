//! A cluster on one machine: RabbitMQ brokers, Consul servers, nodes and who talks to them, each on a machine of its own
//! (a network namespace with its own address), so that each can be killed, cut off and started again alone.
//!
//! - [`net`]: the machines, the cable between them and its cuts; clears up after itself, however the test ends
//! - [`broker`]: RabbitMQ 3.10 or 4, formed into a cluster
//! - [`consul`]: servers, agents (plain, or caching names as on an appliance), `dig`
//! - [`node`]: the program under test on a machine, and names that senders look up
//! - [`balancer`]: haproxy and nginx in front of nodes, as `hie lb render` configures them
//! - [`chaos`]: kills and cuts at random moments; [`judge`]: what every node must tell of every message
//!
//! Machines: `r1`… brokers, `c1`… Consul servers, `n1`… nodes, each with a Consul agent, and `s1`, the senders' resolver.
//! Needs root, and Debian's packages, which are installed when they are missing.
#![allow(dead_code, unused_imports)] // each test uses a part of it

pub mod balancer;
pub mod broker;
pub mod chaos;
pub mod consul;
pub mod judge;
pub mod net;
pub mod node;

pub use balancer::Balancer;
pub use broker::{Broker, Brokers, Memory, Release, Settings};
pub use consul::{Agent, Kind, Servers};
pub use net::{Machine, Net};

use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// What a cluster is to have.
pub struct Plan {
    pub brokers: usize,
    pub settings: Settings,
    /// Consul servers; none: no agents either.
    pub servers: usize,
    /// Machines for nodes, each with an agent.
    pub nodes: usize,
    /// Names of further machines, for other programs.
    pub others: Vec<String>,
    /// Further keys of every Consul agent's configuration (ACL, TLS).
    pub consul: Value,
}

impl Default for Plan {
    fn default() -> Self {
        Self { brokers: 3, settings: Settings::default(), servers: 3, nodes: 3, others: vec![], consul: json!({}) }
    }
}

/// A cluster; ended when dropped, in this order.
pub struct Cluster {
    /// `n1`…: where nodes are started.
    pub machines: Vec<Machine>,
    /// The agents of those machines.
    pub agents: Vec<Agent>,
    /// On `s1`: goes on answering names while no server is there.
    pub resolver: Option<Agent>,
    pub servers: Servers,
    pub brokers: Brokers,
    pub net: Net,
}

impl Cluster {
    /// Starts everything but the nodes and waits until brokers and Consul have formed; prints the times.
    pub fn start(plan: Plan) -> Self {
        let begin = Instant::now();
        let names = |letter: char, n: usize| (1..=n).map(|k| format!("{letter}{k}")).collect::<Vec<_>>();
        let (r, c, n) = (names('r', plan.brokers), names('c', plan.servers), names('n', plan.nodes));
        let net = Net::new(&[&r[..], &c, &n, &["s1".to_owned()], &plan.others].concat());
        let laid = begin.elapsed();
        let mut brokers = Brokers::spawn(&net, &r, plan.settings);
        let servers = Servers::spawn(&net, &c, &plan.consul);
        let agent = |name: &str, kind| Agent::spawned(&net, name, kind, &servers.addresses(), &plan.consul);
        let some = plan.servers > 0;
        let agents: Vec<_> = n.iter().filter(|_| some).map(|name| agent(name, Kind::Client)).collect();
        let resolver = some.then(|| agent("s1", Kind::Caching));
        if some {
            servers.wait_formed(Duration::from_secs(60));
            agents.iter().chain(&resolver).for_each(|a| a.wait_ready(Duration::from_secs(30)));
        }
        let consul_formed = begin.elapsed();
        brokers.wait_formed(Duration::from_secs(120));
        if some {
            servers.register_brokers(&brokers.all.iter().map(|b| &b.machine).collect::<Vec<_>>());
        }
        let machines = n.iter().map(|name| net.machine(name)).collect();
        println!("cluster: network {laid:.1?}, Consul {consul_formed:.1?}, brokers {:.1?} after the beginning", begin.elapsed());
        Self { machines, agents, resolver, servers, brokers, net }
    }
}
