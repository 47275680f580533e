//! `hie preset render`: the files that put a tier into force.

use super::{Failure, named, output};
use crate::preset::render::Part;
use clap::{Args, ValueEnum, builder::PossibleValue};
use std::path::PathBuf;

/// Write the settings of a preset for the programs around the node
///
/// systemd drop-in, sysctl, limits, RabbitMQ, Consul, compose limits and environment. Without --out they are printed.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  hie preset render small-clinic --part systemd
  hie preset render small-clinic --out /etc --part systemd --part sysctl
  hie preset render small-clinic --part limits > /etc/security/limits.d/50-hie.conf
  hie preset render medium-hospital --part rabbitmq > /etc/rabbitmq/conf.d/50-hie.conf
  hie preset render medium-hospital --part consul > /etc/consul.d/50-hie.json
  hie preset render auto --part compose > compose.preset.yaml
  hie preset render edge --part env > hie.env

Files below --out lie where the programs look for them below /etc; then `systemctl daemon-reload` and
`sysctl --system`. Limits are for a node that systemd does not start; the
compose fragment goes with `docker compose -f compose.yaml -f compose.preset.yaml up`, the environment with `--env-file`.")]
pub struct RenderArgs {
    /// Name of the preset, or auto for the one that fits this machine
    #[arg(value_name = "PRESET")]
    preset: String,
    /// Write the files below this folder
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Only this one; may be repeated [default: all]
    #[arg(long, value_name = "PART")]
    part: Vec<Part>,
}

impl ValueEnum for Part {
    fn value_variants<'a>() -> &'a [Self] {
        &Part::ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.name()))
    }
}

pub(super) fn main(args: &RenderArgs) -> Result<(), Failure> {
    let tier = named(&args.preset)?;
    let parts: &[Part] = if args.part.is_empty() { &Part::ALL } else { &args.part };
    let Some(out) = &args.out else {
        for part in parts {
            if parts.len() > 1 {
                output::print(format!("==> {} <==", part.file()))?;
            }
            output::print(part.text(tier).trim_end())?;
        }
        return Ok(());
    };
    for part in parts {
        let path = out.join(part.file());
        let write = || {
            std::fs::create_dir_all(path.parent().unwrap_or(out))?;
            std::fs::write(&path, part.text(tier))
        };
        let failed = |e| Failure::failed(format!("{} cannot be written: {e}; name another folder with --out", path.display()));
        write().map_err(failed)?;
        output::print(path.display())?;
    }
    Ok(())
}
