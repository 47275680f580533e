//! Which tier fits a machine.

use super::{Tier, tiers};
use serde::Serialize;

/// A machine of 2 GiB tells a little less: the kernel keeps some for itself, and the control group of a rendered preset
/// leaves some to the system.
const MEMORY_AT_LEAST: f64 = 0.85;

/// What a process may use, limits of its control group included.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Machine {
    /// Cores; 1.5 with a quota of one and a half.
    pub cores: f64,
    /// Memory in MiB.
    pub memory_mib: u64,
}

/// The largest tier whose least cores and least memory the machine has; the smallest one for what is smaller still.
pub fn detect(machine: Machine) -> &'static Tier {
    let fits = |tier: &&Tier| {
        let memory = tier.hardware.memory_mib.min as f64 * MEMORY_AT_LEAST;
        machine.cores >= tier.hardware.cores.min as f64 && machine.memory_mib as f64 >= memory
    };
    let all = tiers();
    all.iter().rev().find(fits).unwrap_or(&all[0])
}

/// What keeps the machine from the next larger tier; `None` for the largest.
pub fn short_of_next(machine: Machine) -> Option<String> {
    let all = tiers();
    let own = detect(machine);
    let next = all.get(all.iter().position(|tier| tier.name == own.name)? + 1)?;
    let (cores, memory) = (next.hardware.cores.min, next.hardware.memory_mib.min);
    let mut short = Vec::new();
    if machine.cores < cores as f64 {
        short.push(format!("{cores} cores"));
    }
    if (machine.memory_mib as f64) < memory as f64 * MEMORY_AT_LEAST {
        short.push(format!("{memory} MiB"));
    }
    Some(format!("{} needs {}", next.name, short.join(" and ")))
}
