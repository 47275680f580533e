//! A control group of its own, with the limits of a systemd drop-in; removed when dropped. Version 1 and 2.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub struct Cgroup {
    /// One folder per controller (version 1) or the only one (version 2).
    folders: Vec<PathBuf>,
}

/// The value of a key of a unit file.
pub fn unit_value<'a>(unit: &'a str, key: &str) -> &'a str {
    let line = unit.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    line.unwrap_or_else(|| panic!("no {key} in:\n{unit}"))
}

impl Cgroup {
    /// With `MemoryMax`, `CPUQuota` and `TasksMax` of a drop-in. Needs root.
    pub fn of_unit(name: &str, unit: &str) -> Self {
        let number = |key: &str| -> u64 { unit_value(unit, key).trim_end_matches(['M', '%']).parse().expect("a number") };
        let (memory, cpu, tasks) = (number("MemoryMax") << 20, number("CPUQuota") * 1000, number("TasksMax"));
        let top = Path::new("/sys/fs/cgroup");
        let name = format!("hie-test-{name}-{}", std::process::id());
        let make = |at: PathBuf| {
            fs::create_dir(&at)
                .unwrap_or_else(|e| panic!("a control group {} is needed (root, writable cgroups): {e}", at.display()));
            at
        };
        let set = |folder: &Path, file: &str, value: String| {
            fs::write(folder.join(file), &value).unwrap_or_else(|e| panic!("{} = {value}: {e}", folder.join(file).display()));
        };
        if top.join("memory").is_dir() {
            let group = Self { folders: ["memory", "cpu", "pids"].map(|c| make(top.join(c).join(&name))).to_vec() };
            set(&group.folders[0], "memory.limit_in_bytes", memory.to_string());
            set(&group.folders[1], "cpu.cfs_period_us", "100000".into());
            set(&group.folders[1], "cpu.cfs_quota_us", cpu.to_string());
            set(&group.folders[2], "pids.max", tasks.to_string());
            return group;
        }
        let _ = fs::write(top.join("cgroup.subtree_control"), "+memory +cpu +pids");
        let group = Self { folders: vec![make(top.join(name))] };
        set(&group.folders[0], "memory.max", memory.to_string());
        set(&group.folders[0], "cpu.max", format!("{cpu} 100000"));
        set(&group.folders[0], "pids.max", tasks.to_string());
        group
    }

    /// Words that run the command after them inside, with `nofile` open files at most.
    pub fn wrapper(&self, nofile: u64) -> Vec<String> {
        let enter: Vec<_> = self.folders.iter().map(|f| format!("echo $$ > {}/cgroup.procs", f.display())).collect();
        let text = format!("{} && ulimit -n {nofile} && exec \"$@\"", enter.join(" && "));
        ["sh", "-c", &text, "sh"].map(str::to_owned).to_vec()
    }

    /// A file of any of its folders.
    pub fn read(&self, file: &str) -> Option<String> {
        self.folders.iter().find_map(|folder| fs::read_to_string(folder.join(file)).ok())
    }

    /// Gives it the processor before all other groups, as far as its own quota allows.
    pub fn favour(&self) {
        let tries = self.folders.iter().flat_map(|f| [(f.join("cpu.shares"), "262144"), (f.join("cpu.weight"), "10000")]);
        let set = tries.filter(|(file, _)| file.exists()).filter(|(file, value)| fs::write(file, value).is_ok());
        assert!(set.count() > 0, "no processor share can be set");
    }

    /// Process ids inside.
    pub fn processes(&self) -> Vec<String> {
        self.read("cgroup.procs").unwrap_or_default().lines().map(str::to_owned).collect()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Empty only when its processes are gone for good.
        super::wait_until(Duration::from_secs(5), || self.folders.iter().all(|f| !f.exists() || fs::remove_dir(f).is_ok()));
    }
}
