//! Control groups, versions 1 and 2, as this process sees its own; and the machine's memory.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// A control group's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group {
    /// Bytes in use, without pages of files that the kernel can take back.
    pub used: u64,
    /// The limit in force: the lowest of the group's and of those above it. `None`: there is none.
    pub limit: Option<u64>,
}

/// The memory of this process's group; `None` where there are none.
pub fn memory() -> Option<Group> {
    let text = |path: &str| fs::read_to_string(path).ok();
    of(&folders(Path::new("/"), &text("/proc/self/mountinfo")?, &text("/proc/self/cgroup")?, "memory"))
}

/// `folders`: the group's, then those above it.
fn of(folders: &[PathBuf]) -> Option<Group> {
    let (used, stat, reclaimable) = folders.iter().find_map(|own| {
        let v2 = [("memory.current", "inactive_file"), ("memory.usage_in_bytes", "total_inactive_file")];
        v2.into_iter().find_map(|(file, reclaimable)| {
            let used = fs::read_to_string(own.join(file)).ok()?.trim().parse::<u64>().ok()?;
            Some((used, fs::read_to_string(own.join("memory.stat")).unwrap_or_default(), reclaimable))
        })
    })?;
    let reclaimable = stat.lines().find_map(|l| l.strip_prefix(reclaimable)?.trim().parse::<u64>().ok());
    // Version 1 says "none" with a number next to 2^63.
    let lowest = folders.iter().filter_map(|folder| limit(folder)).filter(|n| *n < 2f64.powi(60)).reduce(f64::min);
    Some(Group { used: used.saturating_sub(reclaimable.unwrap_or(0)), limit: lowest.map(|n| n as u64) })
}

/// The folders of the process's group of a controller and of those above it, for either version: proc_pid_mountinfo(5),
/// cgroups(7).
pub fn folders(root: &Path, mounts: &str, groups: &str, controller: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(group)) = (fields.next(), fields.next(), fields.next()) else { continue };
        let unified = controllers.is_empty();
        if !unified && !controllers.split(',').any(|c| c == controller) {
            continue;
        }
        for mount in mounts.lines() {
            let Some((own, kind)) = mount.split_once(" - ") else { continue };
            let own: Vec<&str> = own.split(' ').collect();
            let (Some(base), Some(at)) = (own.get(3), own.get(4)) else { continue };
            let kind: Vec<&str> = kind.split(' ').collect();
            let right = match kind.first() {
                Some(&"cgroup2") => unified,
                Some(&"cgroup") => !unified && kind.get(2).is_some_and(|options| options.split(',').any(|o| o == controller)),
                _ => false,
            };
            if !right {
                continue;
            }
            let top = root.join(at.trim_start_matches('/'));
            // In a container the mount may show a part of the tree only, and the path may be outside of it.
            let below = Path::new(group).strip_prefix(base).unwrap_or(Path::new(""));
            let deepest = top.join(below.strip_prefix("/").unwrap_or(below));
            found.extend(deepest.ancestors().take_while(|folder| folder.starts_with(&top)).map(Path::to_owned));
        }
    }
    found
}

/// The quota of one group in cores; `None` without.
pub fn quota(folder: &Path) -> Option<f64> {
    let text = |name: &str| fs::read_to_string(folder.join(name)).ok();
    let (quota, period) = match text("cpu.max") {
        Some(max) => {
            let mut fields = max.split_whitespace();
            (fields.next()?.parse::<f64>().ok()?, fields.next()?.parse::<f64>().ok()?)
        }
        None => (text("cpu.cfs_quota_us")?.trim().parse().ok()?, text("cpu.cfs_period_us")?.trim().parse().ok()?),
    };
    (quota > 0.0 && period > 0.0).then_some(quota / period)
}

/// The memory limit of one group in bytes; `None` without.
pub fn limit(folder: &Path) -> Option<f64> {
    let text = |name: &str| fs::read_to_string(folder.join(name)).ok();
    // Where there is no limit version 2 says "max", version 1 a number larger than any machine.
    text("memory.max").or_else(|| text("memory.limit_in_bytes"))?.trim().parse().ok()
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
        let group = |mounts: &str, groups: &str| of(&folders(root.path(), mounts, groups, "memory"));
        put("cg/a/memory.max", "1000000\n");
        put("cg/a/b/memory.max", "max\n");
        put("cg/a/b/memory.current", "500000\n");
        put("cg/a/b/memory.stat", "anon 1\ninactive_file 100000\n");
        let v2 = "30 24 0:26 / /cg rw - cgroup2 cgroup2 rw\n";
        assert_eq!(group(v2, "0::/a/b\n"), Some(Group { used: 400_000, limit: Some(1_000_000) }));
        put("m/x/memory.usage_in_bytes", "700\n");
        put("m/x/memory.limit_in_bytes", "9223372036854771712\n");
        let v1 = "31 30 0:27 / /m rw - cgroup cgroup rw,memory\n";
        assert_eq!(group(v1, "4:cpu:/y\n3:memory:/x\n0::/\n"), Some(Group { used: 700, limit: None }));
        assert_eq!(group(v1, "4:cpu:/y\n"), None);
        assert!(machine().is_some_and(|(used, total)| used > 0 && used < total));
    }
}
