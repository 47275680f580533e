//! Commands that read Consul's catalog themselves, without a node.

use super::{configuration::ConfigArgs, exit::Failure};
use crate::{
    config::Discovery,
    discovery::{Client, Error},
};
use clap::Args;
use std::path::PathBuf;

/// Which agent.
#[derive(Args, Clone, Debug)]
pub struct ConsulArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// URL of a Consul agent [default: discovery.consul of the configuration]
    #[arg(long, value_name = "URL")]
    consul: Option<String>,
    /// File of its ACL token [default: discovery.token_file]
    #[arg(long, value_name = "FILE")]
    consul_token_file: Option<PathBuf>,
}

/// An agent, and what the configuration says beside.
pub(super) struct Consul {
    pub client: Client,
    /// `node.domain`
    pub domain: String,
    runtime: tokio::runtime::Runtime,
}

impl Consul {
    /// Connects to nothing yet.
    pub fn open(args: &ConsulArgs) -> Result<Self, Failure> {
        let config = args.config.load(&[])?.config;
        let mut discovery: Discovery = config.discovery;
        if let Some(url) = &args.consul {
            discovery.consul = url.trim_end_matches('/').to_owned();
        }
        if args.consul_token_file.is_some() {
            discovery.token_file.clone_from(&args.consul_token_file);
        }
        if !discovery.on() {
            return Err(Failure::usage(
                "no Consul agent is known: give --consul URL, or [discovery] consul in the configuration",
            ));
        }
        let client = Client::new(&discovery).map_err(Failure::usage)?;
        let bug = |e: std::io::Error| Failure::bug(format!("no runtime: {e}"));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(bug)?;
        Ok(Self { client, domain: config.node.domain, runtime })
    }

    /// Waits for an answer.
    pub fn ask<T>(&self, question: impl Future<Output = Result<T, Error>>) -> Result<T, Failure> {
        self.runtime.block_on(question).map_err(|error| match error.kind() {
            "unreachable" | "tls" => Failure::unavailable(error),
            _ => Failure::failed(error),
        })
    }
}
