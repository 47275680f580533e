//! Settings of a tier for the programs around the node, as the text of their files.

mod broker;
mod system;

use super::Tier;

/// A file that can be rendered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Drop-in of the systemd unit `hie.service`.
    Systemd,
    /// `sysctl.d`.
    Sysctl,
    /// `limits.d` of pam_limits, for a node that systemd does not start.
    Limits,
    /// `rabbitmq.conf`, for RabbitMQ 3.10 to 4.
    Rabbitmq,
    /// Configuration of a Consul agent.
    Consul,
    /// Fragment of a compose file.
    Compose,
    /// Environment of the node.
    Env,
}

impl Part {
    /// Every part.
    pub const ALL: [Self; 7] =
        [Self::Systemd, Self::Sysctl, Self::Limits, Self::Rabbitmq, Self::Consul, Self::Compose, Self::Env];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Systemd => "systemd",
            Self::Sysctl => "sysctl",
            Self::Limits => "limits",
            Self::Rabbitmq => "rabbitmq",
            Self::Consul => "consul",
            Self::Compose => "compose",
            Self::Env => "env",
        }
    }

    /// Its file below the folder that it is rendered to: as below `/etc`, where the program looks for it.
    pub fn file(self) -> &'static str {
        match self {
            Self::Systemd => "systemd/system/hie.service.d/50-preset.conf",
            Self::Sysctl => "sysctl.d/50-hie.conf",
            Self::Limits => "security/limits.d/50-hie.conf",
            Self::Rabbitmq => "rabbitmq/conf.d/50-hie.conf",
            Self::Consul => "consul.d/50-hie.json",
            Self::Compose => "hie/compose.preset.yaml",
            Self::Env => "hie/preset.env",
        }
    }

    /// Its text for a tier.
    pub fn text(self, tier: &Tier) -> String {
        match self {
            Self::Systemd => system::systemd(tier),
            Self::Sysctl => system::sysctl(tier),
            Self::Limits => system::limits(tier),
            Self::Rabbitmq => broker::rabbitmq(tier),
            Self::Consul => broker::consul(tier),
            Self::Compose => system::compose(tier),
            Self::Env => system::env(tier),
        }
    }
}

/// The first line of each file that may have comments.
fn head(tier: &Tier, part: Part) -> String {
    format!(
        "# {}: written by `hie preset render {} --part {}`; change the preset, not this file.\n",
        tier.title,
        tier.name,
        part.name()
    )
}
