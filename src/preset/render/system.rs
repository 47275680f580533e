//! systemd, sysctl, limits, compose and environment.

use super::{Part, Tier, head};
use std::fmt::Write;

/// systemd.resource-control(5), systemd.exec(5).
pub(super) fn systemd(tier: &Tier) -> String {
    let cgroup = &tier.system.cgroup;
    format!(
        "{}[Service]\n\
         Environment=HIE_NODE__PRESET={}\n\
         LimitNOFILE={}\n\
         MemoryAccounting=yes\n\
         MemoryMax={}M\n\
         CPUQuota={}%\n\
         TasksMax={}\n",
        head(tier, Part::Systemd),
        tier.name,
        tier.system.nofile,
        cgroup.memory_mib,
        cgroup.cpu_percent,
        cgroup.tasks
    )
}

/// sysctl.d(5).
pub(super) fn sysctl(tier: &Tier) -> String {
    let mut text = head(tier, Part::Sysctl);
    for (name, value) in &tier.system.sysctl {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{name} = {value}");
    }
    text
}

/// limits.conf(5).
pub(super) fn limits(tier: &Tier) -> String {
    let nofile = tier.system.nofile;
    format!("{}* soft nofile {nofile}\n* hard nofile {nofile}\n", head(tier, Part::Limits))
}

/// A service of the Compose specification, to be merged with the file that says the rest:
/// `docker compose -f compose.yaml -f compose.preset.yaml up`.
pub(super) fn compose(tier: &Tier) -> String {
    let cgroup = &tier.system.cgroup;
    format!(
        "{}services:\n  hie:\n    environment:\n      HIE_NODE__PRESET: {}\n    mem_limit: {}m\n    cpus: {}\n    \
         pids_limit: {}\n    ulimits:\n      nofile:\n        soft: {nofile}\n        hard: {nofile}\n",
        head(tier, Part::Compose),
        tier.name,
        cgroup.memory_mib,
        // An engine refuses more than its machine has: those of the smallest one of the tier.
        tier.vm.vcpu,
        cgroup.tasks,
        nofile = tier.system.nofile
    )
}

/// For `EnvironmentFile=`, `docker run --env-file` or a shell: only the preset's name, because a variable for every key
/// would go before `hie.toml`.
pub(super) fn env(tier: &Tier) -> String {
    format!("{}HIE_NODE__PRESET={}\n", head(tier, Part::Env), tier.name)
}
