//! `hie lb`: configuration for balancers in front of the nodes.

use super::{
    consul::{Consul, ConsulArgs},
    exit::Failure,
    output,
};
use crate::discovery::{
    balancer::{self, Balancer, Wish},
    catalog,
};
use clap::{Args, Subcommand, ValueEnum};
use std::net::IpAddr;

/// Balancers in front of the nodes
#[derive(Subcommand, Debug)]
pub enum LbCommand {
    Render(RenderArgs),
}

/// Write a balancer's configuration from Consul's catalog
///
/// One pool for each listener of the domain's nodes, with the nodes' weights; what is not healthy or drains is left out. HTTP and MLLP;
/// with TLS as it comes.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  hie lb render haproxy --consul http://127.0.0.1:8500 --proxy-protocol > /etc/haproxy/haproxy.cfg && systemctl reload haproxy
  hie lb render nginx --config /etc/hie/hie.toml > /etc/nginx/hie.conf && nginx -t && nginx -s reload
  hie lb render ipvs --bind 10.0.0.100 | (ipvsadm -C && ipvsadm -R)

With --proxy-protocol the nodes see the senders' addresses; name the balancer in proxy_protocol_from of their listeners.
Ends with 1 when no node is healthy, so that a balancer keeps what it has.")]
pub struct RenderArgs {
    /// For which
    balancer: Kind,
    #[command(flatten)]
    consul: ConsulArgs,
    /// Domain whose nodes these are [default: node.domain]
    #[arg(long, value_name = "NAME")]
    domain: Option<String>,
    /// Address that the balancer listens on [default: all]
    #[arg(long, value_name = "ADDRESS")]
    bind: Option<IpAddr>,
    /// Tell the nodes the senders' addresses by the PROXY protocol
    #[arg(long)]
    proxy_protocol: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    /// HAProxy: a whole haproxy.cfg
    Haproxy,
    /// NGINX: the stream block of an nginx.conf
    Nginx,
    /// Linux Virtual Server: input of ipvsadm -R
    Ipvs,
}

pub(super) fn main(command: LbCommand) -> Result<(), Failure> {
    let LbCommand::Render(args) = command;
    let consul = Consul::open(&args.consul)?;
    let members = consul.ask(catalog::members(&consul.client))?;
    let balancer = match args.balancer {
        Kind::Haproxy => Balancer::Haproxy,
        Kind::Nginx => Balancer::Nginx,
        Kind::Ipvs => Balancer::Ipvs,
    };
    let domain = args.domain.unwrap_or_else(|| consul.domain.clone());
    let wish = Wish { domain, bind: args.bind, proxy_protocol: args.proxy_protocol };
    let text = balancer::render(balancer, &members, &wish).map_err(Failure::failed)?;
    output::print(text.trim_end())
}
