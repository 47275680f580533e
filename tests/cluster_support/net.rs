//! Machines of a cluster on one machine: a network namespace each, with its own address, on a bridge in a namespace of
//! its own (the hub). The test itself has an address on that bridge, so that its senders and receivers are neighbours of
//! the machines: no one has to run inside a namespace.
//!
//! The bridge is not in the root namespace: where Docker runs, the packet filter there drops what is bridged.

use std::fs::{self, File};
use std::io::Write;
use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// Runs a command with this standard input; gives its output, panics with what it said when it fails.
pub fn run(command: &mut Command, input: &str) -> String {
    let name = format!("{command:?}");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|e| panic!("{name}: {e}"));
    // It may end without reading; its status tells.
    let _ = child.stdin.take().map(|mut stdin| stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().unwrap_or_else(|e| panic!("{name}: {e}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name} <<{input}: {}: {said}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Installs Debian packages when `program` (or, with a slash at its beginning, this file) is not there.
pub fn need(program: &str, packages: &[&str]) {
    // Joining an absolute path gives that path.
    let there = |p: &str| ["/usr/sbin", "/usr/bin", "/sbin", "/bin"].iter().any(|d| Path::new(d).join(p).exists());
    if there(program) {
        return;
    }
    let get = |args: &[&str]| {
        Command::new("apt-get").args(args).stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|s| s.success())
    };
    let install = [&["install", "-y", "-qq"], packages].concat();
    let done = get(&install) || (get(&["update", "-qq"]) && get(&install));
    assert!(done && there(program), "{program} is missing: apt-get install {}", packages.join(" "));
}

/// The network of a run; when dropped, everything in it is ended and removed.
pub struct Net {
    id: String,
    subnet: u8,
    names: Vec<String>,
    dir: PathBuf,
    /// Clears up when its standard input ends: by [`Drop`], or because this process is gone.
    keeper: Child,
}

/// A machine of it. Free to copy: what it stands for ends with the [`Net`].
#[derive(Clone, Debug)]
pub struct Machine {
    pub name: String,
    pub ip: Ipv4Addr,
    ns: String,
    hub: String,
    dir: PathBuf,
}

impl Net {
    /// Lays the machines out. Needs root.
    pub fn new(names: &[String]) -> Self {
        static RUNS: AtomicU32 = AtomicU32::new(0);
        assert!(nix::unistd::geteuid().is_root(), "the cluster bench makes network namespaces: run the tests as root");
        need("ip", &["iproute2"]);
        need("nft", &["nftables"]);
        let id = format!("{}x{}", std::process::id(), RUNS.fetch_add(1, Ordering::SeqCst));
        let keep = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cluster_support/keep");
        // One run at a time looks for leftovers and a free subnet.
        let lock = File::create(std::env::temp_dir().join("hie-cluster.lock")).expect("a lock");
        lock.lock().expect("a lock");
        run(Command::new(&keep).arg("--stale"), "");
        // A group of its own: Ctrl-C ends the test, and the keeper by that.
        let keeper = Command::new(&keep).arg(&id).stdin(Stdio::piped()).stdout(Stdio::null()).process_group(0).spawn();
        let keeper = keeper.unwrap_or_else(|e| panic!("{}: {e}", keep.display()));
        let dir = std::env::temp_dir().join(format!("hie-cluster-{id}"));
        fs::create_dir(&dir).expect("a folder");
        let taken = run(Command::new("ip").args(["-4", "-o", "addr"]), "");
        let first = std::process::id() as u8;
        let subnet = (0..=255).map(|n: u8| first.wrapping_add(n)).find(|n| !taken.contains(&format!(" 10.77.{n}.")));
        let net = Self { id, subnet: subnet.expect("a free subnet 10.77.x"), names: names.to_vec(), dir, keeper };
        net.lay();
        net
    }

    fn lay(&self) {
        let (hub, link, mut text) = (self.ns("hub"), format!("hie{}", self.id), String::new());
        for name in self.names.iter().map(String::as_str).chain(["hub"]) {
            text += &format!("netns add {}\n", self.ns(name));
            let folder = Path::new("/etc/netns").join(self.ns(name));
            fs::create_dir_all(&folder).expect("/etc/netns");
            fs::write(folder.join("hosts"), self.hosts()).expect("hosts");
            fs::write(folder.join("resolv.conf"), "nameserver 127.0.0.1\noptions timeout:1 attempts:2\n").expect("resolv.conf");
        }
        text += &format!("link add {link} type veth peer name outside netns {hub}\n");
        text += &format!("addr add {}/24 dev {link}\nlink set {link} up\n", self.outside());
        for name in &self.names {
            text += &format!("link add eth0 netns {} type veth peer name {name} netns {hub}\n", self.ns(name));
        }
        run(Command::new("ip").args(["-batch", "-"]), &text);
        let mut text = "link add br0 type bridge stp_state 0 forward_delay 0\n".to_owned();
        for port in self.names.iter().map(String::as_str).chain(["outside"]) {
            text += &format!("link set {port} master br0 up\n");
        }
        text += &format!("addr add {}/24 dev br0\nlink set br0 up\nlink set lo up\n", self.address(252));
        run(Command::new("ip").args(["-n", &hub, "-batch", "-"]), &text);
        for machine in self.machines() {
            let text = format!("addr add {}/24 dev eth0\nlink set eth0 up\nlink set lo up\n", machine.ip);
            run(Command::new("ip").args(["-n", &machine.ns, "-batch", "-"]), &text);
        }
    }

    fn ns(&self, name: &str) -> String {
        format!("hie{}-{name}", self.id)
    }

    fn address(&self, last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, self.subnet, last)
    }

    /// The test's own address: for receivers, and where its senders come from.
    pub fn outside(&self) -> Ipv4Addr {
        self.address(254)
    }

    /// Files of the run; removed with it unless `HIE_KEEP` is set.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A hosts file that knows all machines.
    pub fn hosts(&self) -> String {
        let machines = self.names.iter().zip(1..).map(|(name, n)| format!("{} {name}\n", self.address(n)));
        format!("127.0.0.1 localhost\n{} outside\n{}", self.outside(), machines.collect::<String>())
    }

    pub fn machine(&self, name: &str) -> Machine {
        let number = self.names.iter().position(|n| n == name).unwrap_or_else(|| panic!("no machine {name}"));
        Machine {
            name: name.to_owned(),
            ip: self.address(number as u8 + 1),
            ns: self.ns(name),
            hub: self.ns("hub"),
            dir: self.dir.join(name),
        }
    }

    pub fn machines(&self) -> Vec<Machine> {
        self.names.iter().map(|name| self.machine(name)).collect()
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
        if std::env::var_os("HIE_KEEP").is_some() {
            println!("kept: {}", self.dir.display());
        }
    }
}

impl Machine {
    /// Words before a command that is to run on it.
    pub fn wrapper(&self) -> [&str; 4] {
        ["ip", "netns", "exec", &self.ns]
    }

    /// A command on it.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(&self.wrapper()[1..]).arg(program).stdin(Stdio::null());
        command
    }

    /// A folder for its files, made when it is not there.
    pub fn dir(&self) -> &Path {
        fs::create_dir_all(&self.dir).expect("a folder");
        &self.dir
    }

    /// Pulls its cable: nobody reaches it, it reaches nobody, and no one is told.
    pub fn cut(&self) {
        run(Command::new("ip").args(["-n", &self.hub, "link", "set", &self.name, "down"]), "");
    }

    pub fn heal(&self) {
        run(Command::new("ip").args(["-n", &self.hub, "link", "set", &self.name, "up"]), "");
    }

    /// Drops all packets between it and these machines, both ways; the others still reach it. Replaces an earlier cut.
    pub fn cut_from(&self, others: &[&Self]) {
        let list = others.iter().map(|m| m.ip.to_string()).collect::<Vec<_>>().join(", ");
        let table = format!(
            "add table inet cut\ndelete table inet cut\ntable inet cut {{\n\
             chain in {{ type filter hook input priority 0; ip saddr {{ {list} }} drop; }}\n\
             chain out {{ type filter hook output priority 0; ip daddr {{ {list} }} drop; }}\n}}\n"
        );
        run(self.command("nft").args(["-f", "-"]), &table);
    }

    pub fn heal_from(&self) {
        run(self.command("nft").args(["-f", "-"]), "add table inet cut\ndelete table inet cut\n");
    }

    /// Processes on it.
    pub fn pids(&self) -> Vec<i32> {
        let told = run(Command::new("ip").args(["netns", "pids", &self.ns]), "");
        told.lines().filter_map(|line| line.trim().parse().ok()).collect()
    }
}
