//! RabbitMQ brokers in a cluster, each on a machine of its own, as Debian has them (`tests/parts/fetch`).

use super::net::{Machine, Net};
use crate::harness::{parts, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Debian 12's release, which is the oldest that hie works with, and Debian 13's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    V3_10,
    V4,
}

impl Release {
    fn part(self) -> &'static str {
        match self {
            Self::V3_10 => "rabbitmq-3.10",
            Self::V4 => "rabbitmq-4",
        }
    }
}

pub const USER: &str = "hie";

/// What the brokers are to be.
#[derive(Clone, Debug)]
pub struct Settings {
    pub release: Release,
    pub password: String,
    /// How long a consumer may hold a message; looked at as often as a quarter of it.
    pub consumer_timeout: Duration,
    pub memory_mib: u32,
    /// More lines of `rabbitmq.conf`.
    pub conf: String,
}

impl Default for Settings {
    fn default() -> Self {
        let password = format!("bench-{}", std::process::id());
        Self {
            release: Release::V3_10,
            password,
            consumer_timeout: Duration::from_secs(1800),
            memory_mib: 600,
            conf: String::new(),
        }
    }
}

impl Settings {
    fn conf(&self, names: &[String]) -> String {
        let nodes = (1..).zip(names).map(|(n, name)| format!("cluster_formation.classic_config.nodes.{n} = rabbit@{name}\n"));
        // 3.10: the first one to hold the lock looks for others this often before it starts alone, and they wait for it meanwhile.
        let patience = if self.release == Release::V3_10 {
            "cluster_formation.discovery_retry_limit = 2\ncluster_formation.discovery_retry_interval = 100\n"
        } else {
            ""
        };
        format!(
            "listeners.tcp.default = 5672\nloopback_users = none\ndefault_user = {USER}\ndefault_pass = {}\n\
             cluster_formation.peer_discovery_backend = classic_config\n{}\
             {patience}\
             cluster_partition_handling = pause_minority\nnet_ticktime = 10\nheartbeat = 6\n\
             vm_memory_high_watermark.absolute = {}MiB\ndisk_free_limit.absolute = 50MB\nraft.wal_max_size_bytes = 33554432\n\
             consumer_timeout = {}\n{}",
            self.password,
            nodes.collect::<String>(),
            self.memory_mib,
            self.consumer_timeout.as_millis(),
            self.conf
        )
    }

    /// Settings that have no line in `rabbitmq.conf`: how often a channel looks at the consumer timeout.
    fn advanced(&self) -> String {
        format!("[{{rabbit, [{{channel_tick_interval, {}}}]}}].\n", self.tick())
    }

    /// Milliseconds.
    fn tick(&self) -> u128 {
        (self.consumer_timeout.as_millis() / 4).clamp(1_000, 60_000)
    }
}

/// What a broker has allocated, in bytes, as Erlang counts it: in use, not what the system has given it (which it may keep for long).
#[derive(Clone, Copy, Debug, Default)]
pub struct Memory {
    pub total: u64,
    /// Processes of queues.
    pub queues: u64,
    /// Tables with what queues have not written to their files yet.
    pub queue_tables: u64,
    /// Processes of streams.
    pub streams: u64,
    /// Binaries that processes share: bodies of messages, among others.
    pub bodies: u64,
}

/// One broker.
pub struct Broker {
    pub machine: Machine,
    root: PathBuf,
    env: Vec<String>,
    release: Release,
    child: Option<Child>,
    starts: u32,
}

impl Broker {
    fn lay_out(net: &Net, name: &str, names: &[String], settings: &Settings, root: &Path) -> Self {
        let machine = net.machine(name);
        let dir = machine.dir();
        let write = |file: &str, text: &str| fs::write(dir.join(file), text).expect("a file of the broker");
        write("rabbitmq.conf", &settings.conf(names));
        write("advanced.config", &settings.advanced());
        write("hosts", &net.hosts());
        write("hostname", name);
        write(".erlang.cookie", "HIEBENCH");
        let only_owner = std::os::unix::fs::PermissionsExt::from_mode(0o400);
        fs::set_permissions(dir.join(".erlang.cookie"), only_owner).expect("permissions");
        let env = [
            "HOME=/node",
            "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
            "LANG=C.UTF-8",
            "RABBITMQ_CONFIG_FILE=/node/rabbitmq.conf",
            "RABBITMQ_ADVANCED_CONFIG_FILE=/node/advanced.config",
            "RABBITMQ_CONF_ENV_FILE=/node/env",
            "RABBITMQ_ENABLED_PLUGINS_FILE=/node/plugins",
            "RABBITMQ_MNESIA_BASE=/node/db",
            "RABBITMQ_LOG_BASE=/node/log",
            "RABBITMQ_LOGS=-",
            // Two cores for three brokers: one scheduler each, and no spinning.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=+S 1:1 +sbwt none +sbwtdcpu none +sbwtdio none",
            "RABBITMQ_CTL_ERL_ARGS=+S 1:1 +sbwt none",
            &format!("RABBITMQ_NODENAME=rabbit@{name}"),
        ];
        Self {
            machine,
            root: root.to_owned(),
            env: env.map(str::to_owned).to_vec(),
            release: settings.release,
            child: None,
            starts: 0,
        }
    }

    fn inside(&self, script: &str, args: &[&str]) -> Command {
        let enter = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parts/enter");
        let mut command = self.machine.command(enter);
        command.arg(&self.root).arg(self.machine.dir()).args(["/usr/bin/env", "-i"]).args(&self.env);
        command.args(["/bin/sh", "-c", script, "sh"]).args(args);
        command
    }

    /// Starts the process; does not wait.
    pub fn spawn(&mut self) {
        assert!(self.child.is_none(), "{} runs already", self.machine.name);
        self.starts += 1;
        let log = fs::File::create(self.out(self.starts)).expect("a log");
        // An unlimited number of files makes Erlang allocate gigabytes.
        let script = "ulimit -n 8192; exec /usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin/rabbitmq-server";
        let mut command = self.inside(script, &[]);
        command.stdout(log.try_clone().expect("a log")).stderr(log);
        self.child = Some(command.spawn().unwrap_or_else(|e| panic!("{}: {e}", self.machine.name)));
    }

    /// Waits until it serves clients.
    pub fn wait_ready(&mut self, limit: Duration) {
        let port = (self.machine.ip, 5672).into();
        let mut ended = None;
        let up = wait_until(limit, || {
            ended = self.child.as_mut().and_then(|c| c.try_wait().ok()).flatten();
            ended.is_some()
                || (self.said().contains("Server startup complete")
                    && TcpStream::connect_timeout(&port, Duration::from_millis(500)).is_ok())
        });
        assert!(up && ended.is_none(), "{} is not ready ({ended:?}):\n{}", self.machine.name, self.log_tail(40));
    }

    /// Starts it and waits; gives the time that took.
    pub fn start(&mut self) -> Duration {
        let begin = Instant::now();
        self.spawn();
        self.wait_ready(Duration::from_secs(120));
        begin.elapsed()
    }

    /// kill -9 of everything in it.
    pub fn kill9(&mut self) {
        let pid = self.pid();
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
            // Its processes end with their process namespace, a moment after, and then its ports are closed.
            let gone = wait_until(Duration::from_secs(10), || pid.is_none_or(|p| !Path::new(&format!("/proc/{p}")).exists()));
            assert!(gone, "{} does not die", self.machine.name);
        }
    }

    /// SIGTERM, and waits for the end.
    pub fn stop(&mut self) {
        if let (Some(pid), Some(child)) = (self.pid(), &mut self.child) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
            wait_until(Duration::from_secs(60), || child.try_wait().is_ok_and(|s| s.is_some()));
        }
        self.kill9();
    }

    /// Stops (SIGSTOP) or continues (SIGCONT) it: a machine that hangs.
    pub fn signal(&self, signal: Signal) {
        let pid = self.pid().unwrap_or_else(|| panic!("{} does not run", self.machine.name));
        let _ = kill(Pid::from_raw(pid), signal);
    }

    /// Was started and not ended by the test.
    pub fn runs(&self) -> bool {
        self.child.is_some()
    }

    /// The Erlang machine's process; none when it does not run.
    pub fn pid(&self) -> Option<i32> {
        self.machine.pids().into_iter().find(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let words: Vec<_> = line.split(|b| *b == 0).collect();
            words[0].ends_with(b"beam.smp") && words.windows(3).any(|w| w == [&b"-s"[..], b"rabbit", b"boot"])
        })
    }

    /// Resident memory in KiB; 0 when it does not run.
    pub fn rss_kib(&self) -> u64 {
        let status = self.pid().map(|pid| fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default());
        let line = status.as_ref().and_then(|s| s.lines().find(|l| l.starts_with("VmRSS:")));
        line.and_then(|l| l.split_whitespace().nth(1)?.parse().ok()).unwrap_or(0)
    }

    /// What it has allocated, after all its garbage was collected and what waits in memory for its place on disk has gone there.
    pub fn memory(&self) -> Memory {
        // The roll-over only begins the writing; who asks again later sees its end.
        let told = self.eval(
            "catch ra_log_wal:force_roll_over(ra_log_wal), [erlang:garbage_collect(P) || P <- erlang:processes()], \
             M = rabbit_vm:memory(), Of = fun(K) -> proplists:get_value(K, M, 0) end, \
             [erlang:memory(total), Of(quorum_queue_procs) + Of(queue_procs), Of(quorum_ets), Of(stream_queue_procs), Of(binary)].",
        );
        let of: Vec<u64> = serde_json::from_str(&told).unwrap_or_else(|e| panic!("{e}: {told}"));
        Memory { total: of[0], queues: of[1], queue_tables: of[2], streams: of[3], bodies: of[4] }
    }

    /// Bytes on its disk.
    pub fn disk_bytes(&self) -> u64 {
        let told = super::net::run(Command::new("du").args(["-sB1"]).arg(self.machine.dir().join("db")), "");
        told.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(0)
    }

    /// `rabbitmqctl` with these arguments: what it printed, or what it complained of. Takes a second or two.
    pub fn ctl(&self, args: &[&str]) -> Result<String, String> {
        let script = "exec /usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin/rabbitmqctl --silent --timeout 30 \"$@\"";
        let output = self.inside(script, args).stdout(Stdio::piped()).stderr(Stdio::piped()).output().expect("rabbitmqctl runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if output.status.success() {
            return Ok(text(&output.stdout));
        }
        Err(format!("{args:?}: {}\n{}", text(&output.stdout), text(&output.stderr)))
    }

    /// What an Erlang expression gives inside the broker.
    pub fn eval(&self, expression: &str) -> String {
        self.ctl(&["eval", expression]).unwrap_or_else(|why| panic!("{}: {why}\n{}", self.machine.name, self.log_tail(20)))
    }

    /// Members of the cluster that serve, as it sees them.
    pub fn members(&self) -> usize {
        let list = if self.release == Release::V3_10 { "all_running" } else { "list_running" };
        self.eval(&format!("length(rabbit_nodes:{list}()).")).parse().unwrap_or(0)
    }

    /// Gives up what it has and becomes a member of the other's cluster.
    fn join(&self, other: &Self) {
        println!("{} had started alone", self.machine.name);
        let to = format!("rabbit@{}", other.machine.name);
        for args in [&["stop_app"][..], &["reset"], &["join_cluster", &to], &["start_app"]] {
            self.ctl(args).unwrap_or_else(|why| panic!("{why}"));
        }
    }

    /// All queues: `name`, `type`, `messages`, `messages_ready`, `messages_unacknowledged`, `consumers`, `leader`, `memory`.
    pub fn queues(&self) -> Result<Vec<serde_json::Value>, String> {
        let columns = ["name", "type", "messages", "messages_ready", "messages_unacknowledged", "consumers", "leader", "memory"];
        let told = self.ctl(&[&["list_queues", "--formatter", "json"][..], &columns].concat())?;
        serde_json::from_str(&told).map_err(|e| format!("{e}: {told}"))
    }

    fn out(&self, start: u32) -> PathBuf {
        self.machine.dir().join(format!("out.{start}"))
    }

    /// What it has said since it was started last.
    pub fn said(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.out(self.starts)).unwrap_or_default()).into_owned()
    }

    /// What it has said over all starts.
    pub fn log(&self) -> String {
        let all = (1..=self.starts).map(|n| fs::read(self.out(n)).unwrap_or_default());
        all.map(|b| String::from_utf8_lossy(&b).into_owned()).collect()
    }

    pub fn log_tail(&self, lines: usize) -> String {
        let log = self.log();
        let all: Vec<_> = log.lines().collect();
        format!("--- {} said at last:\n{}", self.machine.name, all[all.len().saturating_sub(lines)..].join("\n"))
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("{}", self.log_tail(15));
        }
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The brokers of one cluster.
pub struct Brokers {
    pub all: Vec<Broker>,
    pub settings: Settings,
}

impl Brokers {
    /// Starts one on each of these machines; does not wait.
    pub fn spawn(net: &Net, names: &[String], settings: Settings) -> Self {
        let root = parts::fetch(settings.release.part());
        let mut all: Vec<_> = names.iter().map(|name| Broker::lay_out(net, name, names, &settings, &root)).collect();
        all.iter_mut().for_each(Broker::spawn);
        Self { all, settings }
    }

    /// Waits until all serve clients and are one cluster.
    pub fn wait_formed(&mut self, limit: Duration) {
        let end = Instant::now() + limit;
        self.all.iter_mut().for_each(|b| b.wait_ready(end.saturating_duration_since(Instant::now())));
        let wanted = self.all.len();
        let seen = |broker: &Broker| broker.members() == wanted;
        // On a very busy machine two may have started alone, which the first one's cluster then takes in.
        if !wait_until(Duration::from_secs(8), || seen(&self.all[0])) {
            self.all[1..].iter().filter(|b| b.members() == 1).for_each(|b| b.join(&self.all[0]));
        }
        for broker in &self.all {
            let formed = wait_until(end.saturating_duration_since(Instant::now()), || seen(broker));
            assert!(formed, "{} sees {} of {wanted}", broker.machine.name, broker.members());
        }
    }

    /// kill -9 of all, as when the power fails.
    pub fn kill_all(&mut self) {
        self.all.iter_mut().for_each(Broker::kill9);
    }

    /// Starts those that do not run; does not wait.
    pub fn spawn_all(&mut self) {
        self.all.iter_mut().filter(|b| !b.runs()).for_each(Broker::spawn);
    }

    /// Another consumer timeout, on all that run, for channels opened from now on.
    pub fn consumer_timeout(&mut self, timeout: Duration) {
        self.settings.consumer_timeout = timeout;
        let (millis, tick) = (timeout.as_millis(), self.settings.tick());
        for broker in self.all.iter().filter(|b| b.runs()) {
            broker.eval(&format!(
                "application:set_env(rabbit, consumer_timeout, {millis}), application:set_env(rabbit, channel_tick_interval, {tick})."
            ));
        }
    }

    /// `urls` of a node's `[transport]`.
    pub fn urls(&self) -> Vec<String> {
        self.all.iter().map(|b| format!("amqp://{}:5672", b.machine.ip)).collect()
    }
}
