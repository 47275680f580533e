//! The command line: one file per subcommand.

mod alert;
mod balancer;
mod channel;
mod check;
mod client;
mod clients;
mod configuration;
mod consul;
mod domain;
mod drain;
mod dry_run;
mod events;
pub mod exit;
mod output;
mod plan;
mod preset;
mod route;
mod run;
mod sample;
pub mod send;
pub mod sink;
mod status;
mod transactions;

use clap::{Parser, Subcommand, error::ErrorKind};
use exit::Failure;
use std::{ffi::OsString, panic::AssertUnwindSafe, process::ExitCode};

/// Health Information Exchange node: HL7 v2 over MLLP, FHIR and HTTP in; rules, durable queues and ordered delivery
/// out; every message accounted for.
#[derive(Parser, Debug)]
#[command(
    name = "hie",
    version,
    max_term_width = 110,
    after_help = "\
Start with `hie run`: without a configuration it starts a node on loopback with sample channels and says where
everything is.

Exit codes: 0 well, 1 not done, 64 wrong usage, 65 wrong configuration, 69 something needed is away, 70 a bug."
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

// One value of it lives, for as long as the process.
#[allow(clippy::large_enum_variant)]
#[derive(Subcommand, Debug)]
enum Command {
    Run(run::RunArgs),
    Check(check::CheckArgs),
    Try(dry_run::TryArgs),
    Send(send::SendArgs),
    Sink(sink::SinkArgs),
    #[command(subcommand)]
    Tx(transactions::TxCommand),
    #[command(subcommand)]
    Route(route::RouteCommand),
    #[command(subcommand)]
    Alert(alert::AlertCommand),
    #[command(subcommand)]
    Channel(channel::ChannelCommand),
    #[command(subcommand)]
    Client(clients::ClientCommand),
    #[command(subcommand)]
    Preset(preset::PresetCommand),
    Plan(plan::PlanArgs),
    Status(status::StatusArgs),
    #[command(subcommand)]
    Domain(domain::DomainCommand),
    #[command(subcommand)]
    Lb(balancer::LbCommand),
    Events(events::EventsArgs),
    Drain(drain::DrainArgs),
}

/// The whole program: reads the process's arguments, gives its exit code.
pub fn main() -> ExitCode {
    crate::host::panics::hook();
    // The hook has said where it happened.
    match std::panic::catch_unwind(AssertUnwindSafe(|| dispatch(std::env::args_os()))) {
        Ok(code) => code,
        Err(_) => ExitCode::from(exit::BUG),
    }
}

fn dispatch(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // A closed pipe is all that can go wrong here.
            let _ = error.print();
            return match error.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::SUCCESS,
                _ => ExitCode::from(exit::USAGE),
            };
        }
    };
    match cli.run() {
        Ok(code) => code,
        Err(failure) => {
            failure.tell();
            ExitCode::from(failure.code)
        }
    }
}

impl Cli {
    fn run(self) -> Result<ExitCode, Failure> {
        match self.command {
            Command::Run(args) => run::main(args),
            Command::Check(args) => check::main(args),
            Command::Try(args) => dry_run::main(&args),
            // These say themselves how it went.
            Command::Send(args) => return Ok(send::main(args)),
            Command::Sink(args) => return Ok(sink::main(args)),
            Command::Tx(command) => transactions::main(command),
            Command::Route(command) => route::main(command),
            Command::Alert(command) => alert::main(command),
            Command::Channel(command) => channel::main(command),
            Command::Client(command) => clients::main(command),
            Command::Preset(command) => preset::main(command),
            Command::Plan(args) => plan::main(args),
            Command::Status(args) => status::main(args),
            Command::Domain(command) => domain::main(command),
            Command::Lb(command) => balancer::main(command),
            Command::Events(args) => events::main(&args),
            Command::Drain(args) => drain::main(&args),
        }?;
        Ok(ExitCode::SUCCESS)
    }
}
