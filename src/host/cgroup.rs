//! What this process may use: the machine, and the limits of its control group (version 1 and 2).

use crate::telemetry::cgroup::{folders, limit, quota};
use std::{fs, path::Path};

/// Cores and memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Resources {
    /// Cores that threads may run on, or the quota of the control group where that is less.
    pub cores: f64,
    /// Bytes: the machine's, or the control group's limit where that is less.
    pub memory: u64,
    /// The control group's quota in cores.
    pub core_limit: Option<f64>,
    /// The control group's limit in bytes.
    pub memory_limit: Option<u64>,
}

/// Of this process.
pub fn resources() -> Resources {
    let cores = std::thread::available_parallelism().map_or(1, usize::from) as f64;
    read(Path::new("/"), cores)
}

/// `root` is the folder that `proc` and the paths of the mounts are below.
fn read(root: &Path, cores: f64) -> Resources {
    let text = |path: &str| fs::read_to_string(root.join(path)).unwrap_or_default();
    let total = memory_total(&text("proc/meminfo"));
    let (mounts, groups) = (text("proc/self/mountinfo"), text("proc/self/cgroup"));
    // The limit of every group above holds as well: the least one counts.
    let least = |controller: &str, limit: &dyn Fn(&Path) -> Option<f64>| {
        let folders = folders(root, &mounts, &groups, controller);
        folders.iter().filter_map(|folder| limit(folder)).reduce(f64::min)
    };
    let core_limit = least("cpu", &quota);
    let memory_limit = least("memory", &limit).map(|bytes| bytes as u64).filter(|limit| total.is_none_or(|total| *limit < total));
    let memory = [total, memory_limit].into_iter().flatten().min().unwrap_or(0);
    Resources { cores: core_limit.map_or(cores, |limit| cores.min(limit)), memory, core_limit, memory_limit }
}

/// `MemTotal` of `/proc/meminfo`, in bytes.
fn memory_total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1024 * 1024;

    fn machine(files: &[(&str, &str)]) -> Resources {
        let root = tempfile::tempdir().expect("a folder");
        for (name, text) in [("proc/meminfo", "MemTotal:       8388608 kB\nMemFree: 1 kB\n")].iter().chain(files) {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().expect("a folder")).expect("folders");
            fs::write(path, text).expect("a file");
        }
        read(root.path(), 8.0)
    }

    #[test]
    fn without_control_groups_the_machine_counts() {
        let bare = Resources { cores: 8.0, memory: 8192 * MIB, core_limit: None, memory_limit: None };
        assert_eq!(machine(&[]), bare);
        let none = "9223372036854771712\n";
        let v1 = "31 30 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n32 30 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n";
        assert_eq!(
            machine(&[
                ("proc/self/mountinfo", v1),
                ("proc/self/cgroup", "4:memory:/\n1:cpu,cpuacct:/\n"),
                ("sys/fs/cgroup/memory/memory.limit_in_bytes", none),
                ("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n"),
                ("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n"),
            ]),
            bare
        );
    }

    #[test]
    fn the_least_limit_of_a_group_and_those_above_it_counts() {
        let v2 = "30 24 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n";
        let found = machine(&[
            ("proc/self/mountinfo", v2),
            ("proc/self/cgroup", "0::/system.slice/hie.service\n"),
            ("sys/fs/cgroup/system.slice/hie.service/memory.max", "max\n"),
            ("sys/fs/cgroup/system.slice/memory.max", "1073741824\n"),
            ("sys/fs/cgroup/system.slice/hie.service/cpu.max", "150000 100000\n"),
            ("sys/fs/cgroup/system.slice/cpu.max", "max 100000\n"),
        ]);
        assert_eq!(found, Resources { cores: 1.5, memory: 1024 * MIB, core_limit: Some(1.5), memory_limit: Some(1024 * MIB) });
    }

    #[test]
    fn the_first_version_and_a_container_that_sees_a_part_of_the_tree() {
        let v1 = "31 30 0:27 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n32 30 0:28 /docker/abc /sys/fs/cgroup/cpu,cpuacct ro - cgroup cgroup rw,cpu,cpuacct\n";
        let found = machine(&[
            ("proc/self/mountinfo", v1),
            ("proc/self/cgroup", "4:memory:/docker/abc\n1:cpu,cpuacct:/docker/abc\n0::/\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "536870912\n"),
            ("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "200000\n"),
            ("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n"),
        ]);
        assert_eq!((found.cores, found.memory), (2.0, 512 * MIB));
    }

    #[test]
    fn nonsense_limits_nothing() {
        let found = machine(&[
            ("proc/self/mountinfo", "x\n - \n1 2 3 / /m rw - cgroup2\n"),
            ("proc/self/cgroup", "a:b\n0::/../..\n::\n"),
            ("m/memory.max", "much"),
            ("m/cpu.max", "1"),
        ]);
        assert_eq!((found.cores, found.memory), (8.0, 8192 * MIB));
    }

    #[test]
    fn this_machine_has_cores_and_memory() {
        let found = resources();
        assert!(found.cores > 0.0 && found.memory > 16 * MIB, "{found:?}");
    }
}
