//! What the machine, or the cgroup that this process is in, has of memory, and how much of it is used; processor time.

use std::fs;

/// Memory in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// In use, without what the kernel would give back at once.
    pub used: u64,
    /// The limit.
    pub total: u64,
}

/// Ticks per second of the times in `/proc`: a constant of Linux's interface to programs (USER_HZ).
const TICKS: f64 = 100.0;

/// The memory that this process shares: of its cgroup where that has a limit below the machine's, else of the machine.
/// `None` where the kernel does not tell.
pub fn memory() -> Option<Memory> {
    let machine = machine(&fs::read_to_string("/proc/meminfo").ok()?)?;
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let group = cgroup(&groups, |path| fs::read_to_string(path).ok());
    Some(group.filter(|group| group.total < machine.total).unwrap_or(machine))
}

/// User and system time of this process since its start, in seconds.
pub fn cpu_seconds() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The second field, the program's name in parentheses, may hold spaces.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |i: usize| fields.get(i)?.parse::<u64>().ok();
    Some((number(11)? + number(12)?) as f64 / TICKS)
}

fn machine(meminfo: &str) -> Option<Memory> {
    let bytes = |name: &str| {
        let line = meminfo.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
    };
    let total = bytes("MemTotal")?;
    Some(Memory { used: total.saturating_sub(bytes("MemAvailable")?), total })
}

/// `groups` is `/proc/self/cgroup`; version 2 and 1. In a container the path seen from inside may be `/`, or that of the host.
fn cgroup(groups: &str, read: impl Fn(&str) -> Option<String>) -> Option<Memory> {
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else { continue };
        let (mount, limit, current, inactive) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
            c if c.split(',').any(|c| c == "memory") => {
                ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            }
            _ => continue,
        };
        for folder in [format!("{mount}{}", path.trim_end_matches('/')), mount.to_owned()] {
            let number = |file: &str| read(&format!("{folder}/{file}"))?.trim().parse::<u64>().ok();
            // `max`, no limit, is no number.
            let (Some(total), Some(current)) = (number(limit), number(current)) else { continue };
            let stat = read(&format!("{folder}/memory.stat")).unwrap_or_default();
            let cache = stat.lines().find_map(|l| l.strip_prefix(inactive)?.trim().parse().ok()).unwrap_or(0);
            return Some(Memory { used: current.saturating_sub(cache), total });
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_tells() {
        let memory = memory().expect("/proc/meminfo");
        assert!(memory.used > 0 && memory.used <= memory.total, "{memory:?}");
        assert!(cpu_seconds().is_some());
    }

    #[test]
    fn both_versions_of_cgroups() {
        let files = |path: &str| match path {
            "/sys/fs/cgroup/system.slice/hie.service/memory.max" => Some("2097152\n".into()),
            "/sys/fs/cgroup/system.slice/hie.service/memory.current" => Some("1048576\n".into()),
            "/sys/fs/cgroup/system.slice/hie.service/memory.stat" => Some("anon 1\ninactive_file 48576\n".to_owned()),
            "/sys/fs/cgroup/memory/memory.limit_in_bytes" => Some("4096".into()),
            "/sys/fs/cgroup/memory/memory.usage_in_bytes" => Some("1024".into()),
            "/sys/fs/cgroup/open/memory.max" => Some("max".into()),
            _ => None,
        };
        let group = |groups: &str| cgroup(groups, files);
        assert_eq!(group("0::/system.slice/hie.service\n"), Some(Memory { used: 1_000_000, total: 2_097_152 }));
        assert_eq!(group("5:cpu:/x\n4:memory:/docker/abc\n0::/\n"), Some(Memory { used: 1024, total: 4096 }));
        assert_eq!(group("0::/open\n"), None);
        assert_eq!(group(""), None);
    }
}
