//! Memory of the control group that the process is in, versions 1 and 2, and of the machine.

use std::{
    fs,
    path::{Path, PathBuf},
};

const ROOT: &str = "/sys/fs/cgroup";

/// A control group's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group {
    /// Bytes in use, without pages of files that the kernel can take back.
    pub used: u64,
    /// The limit in force: the lowest of the group's and of those above it. `None`: there is none.
    pub limit: Option<u64>,
}

/// Names of one version's files.
struct Names {
    used: &'static str,
    limit: &'static str,
    stat: &'static str,
    reclaimable: &'static str,
}

const V2: Names = Names { used: "memory.current", limit: "memory.max", stat: "memory.stat", reclaimable: "inactive_file" };
const V1: Names = Names {
    used: "memory.usage_in_bytes",
    limit: "memory.limit_in_bytes",
    stat: "memory.stat",
    reclaimable: "total_inactive_file",
};

/// The group of this process; `None` where there are none, or at the root of all.
pub fn memory() -> Option<Group> {
    of(&fs::read_to_string("/proc/self/cgroup").ok()?, Path::new(ROOT))
}

/// `listed` is `/proc/self/cgroup`: lines `number:controllers:path`.
fn of(listed: &str, root: &Path) -> Option<Group> {
    let line = |wanted: &dyn Fn(&str) -> bool| {
        listed.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            let controllers = parts.next()?;
            wanted(controllers).then(|| parts.next().map(|p| p.trim_start_matches('/').to_owned()))?
        })
    };
    if let Some(path) = line(&|c| c.split(',').any(|c| c == "memory")) {
        return read(&root.join("memory"), &path, &V1);
    }
    read(root, &line(&str::is_empty)?, &V2)
}

fn read(root: &Path, path: &str, names: &Names) -> Option<Group> {
    // Inside a container the path may be the host's, and what is mounted is the group itself.
    let own = root.join(path);
    let own = if own.join(names.used).exists() { own } else { root.to_owned() };
    let number = |file: PathBuf| fs::read_to_string(file).ok()?.trim().parse::<u64>().ok();
    let used = number(own.join(names.used))?;
    let stat = fs::read_to_string(own.join(names.stat)).unwrap_or_default();
    let reclaimable = stat.lines().find_map(|l| l.strip_prefix(names.reclaimable)?.trim().parse::<u64>().ok());
    let limits = own.ancestors().take_while(|p| p.starts_with(root)).filter_map(|p| number(p.join(names.limit)));
    // Version 1 says "none" with a number next to 2^63.
    let limit = limits.filter(|n| *n < 1 << 60).min();
    Some(Group { used: used.saturating_sub(reclaimable.unwrap_or(0)), limit })
}

/// Bytes of the machine's memory: in use (not available to programs) and in all.
pub fn machine() -> Option<(u64, u64)> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let kib = |name: &str| text.lines().find_map(|l| l.strip_prefix(name)?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    let (total, available) = (kib("MemTotal:")?, kib("MemAvailable:")?);
    Some((total.saturating_sub(available) * 1024, total * 1024))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_are_read_and_the_lowest_limit_counts() {
        let root = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        put("a/memory.max", "1000000\n");
        put("a/b/memory.max", "max\n");
        put("a/b/memory.current", "500000\n");
        put("a/b/memory.stat", "anon 1\ninactive_file 100000\n");
        assert_eq!(of("0::/a/b\n", root.path()), Some(Group { used: 400_000, limit: Some(1_000_000) }));
        put("memory/x/memory.usage_in_bytes", "700\n");
        put("memory/x/memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(of("4:cpu:/y\n3:memory:/x\n0::/\n", root.path()), Some(Group { used: 700, limit: None }));
        assert_eq!(of("4:cpu:/y\n", root.path()), None);
        assert!(machine().is_some_and(|(used, total)| used > 0 && used < total));
    }
}
