//! How a node starts, hands over and ends, and what it says when it cannot start: a port in use, a store that is not
//! writable or held by a running node, sockets from systemd, an upgrade in place, a drain. With a real process each.

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    net::{SocketAddr, TcpListener, TcpStream},
    os::{
        fd::OwnedFd,
        unix::{fs::PermissionsExt, net::UnixDatagram, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc::{self, Receiver},
    },
    time::{Duration, Instant},
};

const PATIENCE: Duration = Duration::from_secs(30);

const BIN: &str = env!("CARGO_BIN_EXE_hie");

/// A folder with a configuration whose listeners take any free port.
fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    fs::write(dir.path().join("hie.toml"), config("", "127.0.0.1:0")).expect("hie.toml");
    let channels = dir.path().join("channels.d");
    fs::create_dir(&channels).expect("channels.d");
    let channel = "[[channel]]\nname=\"a.b\"\nwhen='true'\n[[channel.route]]\nname=\"r\"\nmllp=[\"127.0.0.1:1\"]\n";
    fs::write(channels.join("a.toml"), channel).expect("a channel");
    dir
}

fn config(node: &str, health: &str) -> String {
    format!(
        "[node]\n{node}\n[http]\nlisten = '127.0.0.1:0'\n[[mllp]]\nname = 'lab'\nlisten = '127.0.0.1:0'\n\
         [admin]\nlisten = '127.0.0.1:0'\n[health]\nlisten = '{health}'\n"
    )
}

/// A running node: its log by line, and what it tells systemd.
struct Node {
    child: Child,
    lines: Receiver<String>,
    seen: Vec<String>,
    notify: UnixDatagram,
}

impl Node {
    /// Starts `command`, which must lead to `hie run --log json`, in `dir`.
    fn start(mut command: Command, dir: &Path) -> Self {
        let socket = dir.join("notify");
        let _ = fs::remove_file(&socket);
        let notify = UnixDatagram::bind(&socket).expect("a socket");
        notify.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("HIE_")) {
            command.env_remove(name);
        }
        command.current_dir(dir).env("NOTIFY_SOCKET", &socket).stderr(Stdio::piped());
        let mut child = command.spawn().expect("hie runs");
        let stderr = BufReader::new(child.stderr.take().expect("standard error"));
        let (send, lines) = mpsc::channel();
        std::thread::spawn(move || stderr.lines().map_while(Result::ok).try_for_each(|line| send.send(line)));
        Self { child, lines, seen: vec![], notify }
    }

    fn run(dir: &Path) -> Self {
        let mut node = Self::start(run(), dir);
        node.wait_told("READY=1");
        node
    }

    /// Waits until systemd would have been told `what`.
    fn wait_told(&mut self, what: &str) {
        let mut buffer = [0; 4096];
        loop {
            let told = self.notify.recv(&mut buffer).map(|n| String::from_utf8_lossy(&buffer[..n]).into_owned());
            match told {
                Ok(told) if told.lines().any(|line| line == what) => return,
                Ok(_) => {}
                Err(e) => panic!("{what} was not told: {e}\n{:#?}", self.log()),
            }
        }
    }

    /// Everything logged so far.
    fn log(&mut self) -> &[String] {
        // What was written before a notification may still be on its way through the pipe.
        while let Ok(line) = self.lines.recv_timeout(Duration::from_millis(200)) {
            self.seen.push(line);
        }
        &self.seen
    }

    /// The newest log line about the listener `name`.
    fn listener(&mut self, name: &str) -> serde_json::Value {
        let lines = self.log().iter().rev().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        let mut found = lines.filter(|line| line["message"] == "listening" && line["name"] == name);
        found.next().unwrap_or_else(|| panic!("no line about {name}"))
    }

    fn address(&mut self, name: &str) -> SocketAddr {
        self.listener(name)["address"].as_str().expect("an address").parse().expect("an address")
    }

    fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().expect("kill").success());
    }

    fn ended(&mut self) -> ExitStatus {
        let until = Instant::now() + PATIENCE;
        loop {
            match self.child.try_wait().expect("its status") {
                Some(status) => return status,
                None if Instant::now() > until => panic!("still running\n{:#?}", self.log()),
                None => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn run() -> Command {
    let mut command = Command::new(BIN);
    command.args(["run", "--config", "hie.toml", "--log", "json"]).stdin(Stdio::null()).stdout(Stdio::null());
    command
}

/// Runs to the end what ought not to start.
fn refused(mut command: Command, dir: &Path) -> String {
    let mut child = command.current_dir(dir).stderr(Stdio::piped()).spawn().expect("hie runs");
    let until = Instant::now() + PATIENCE;
    while child.try_wait().expect("its status").is_none() {
        if Instant::now() > until {
            let _ = child.kill();
            panic!("it started");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let output = child.wait_with_output().expect("its output");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(69), "{said}");
    said
}

#[test]
fn a_port_in_use_is_named() {
    let dir = folder();
    let holder = TcpListener::bind("127.0.0.1:0").expect("binds");
    let port = holder.local_addr().expect("address").port();
    fs::write(dir.path().join("hie.toml"), config("", &format!("127.0.0.1:{port}"))).expect("hie.toml");
    let said = refused(run(), dir.path());
    assert!(said.contains(&format!("port {port} is in use")) && said.contains("(health)"), "{said}");
}

#[test]
fn a_port_of_another_running_node_is_in_use_too() {
    let (first, second) = (folder(), folder());
    let mut node = Node::run(first.path());
    let taken = node.address("mllp:lab");
    let mut command = run();
    command.args(["--set", &format!("health.listen={taken}")]);
    let said = refused(command, second.path());
    assert!(said.contains(&format!("port {} is in use", taken.port())), "{said}");
}

#[test]
fn a_store_held_by_a_running_node_is_named_with_its_holder() {
    let dir = folder();
    let node = Node::run(dir.path());
    let said = refused(run(), dir.path());
    assert!(said.contains(&format!("is in use by process {}", node.child.id())), "{said}");
}

#[test]
fn a_store_that_is_not_writable_is_named_with_the_user() {
    let dir = folder();
    let store = dir.path().join("hie-data");
    fs::create_dir(&store).expect("the store");
    let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("permissions");
    let mut command = run();
    // Nothing is forbidden to root, so it becomes nobody; anybody else forbids it to himself.
    if fs::metadata("/proc/self").map(|m| std::os::unix::fs::MetadataExt::uid(&m)).expect("/proc") == 0 {
        mode(dir.path(), 0o755);
        let binary: PathBuf = dir.path().join("hie");
        fs::copy(BIN, &binary).expect("a copy that nobody can reach");
        command = Command::new(binary);
        command.args(["run", "--config", "hie.toml"]).stdin(Stdio::null()).stdout(Stdio::null());
        command.uid(65534).gid(65534);
    } else {
        mode(&store, 0o500);
    }
    let said = refused(command, dir.path());
    mode(&store, 0o700);
    assert!(said.contains("hie-data is not writable by user "), "{said}");
}

#[test]
fn sockets_of_systemd_are_used_by_name_and_by_address() {
    let dir = folder();
    let bind = || TcpListener::bind("127.0.0.1:0").expect("binds");
    let (named, unnamed) = (bind(), bind());
    let (first, second) = (named.local_addr().expect("address"), unnamed.local_addr().expect("address"));
    fs::write(dir.path().join("hie.toml"), config("", &second.to_string())).expect("hie.toml");
    // systemd's part: descriptors 3 and 4, and the variables, in the process that becomes the node.
    let script = "exec 3<&0 4<&1 0</dev/null 1>&2; LISTEN_PID=$$ LISTEN_FDS=2 LISTEN_FDNAMES=mllp.lab:hie.socket \
                  exec \"$HIE\" run --config hie.toml --log json --cluster 2";
    let mut command = Command::new("sh");
    command.args(["-c", script]).stdin(OwnedFd::from(named)).stdout(OwnedFd::from(unnamed));
    let mut node = Node::start(with_binary(command), dir.path());
    node.wait_told("READY=1");
    for (name, address) in [("mllp:lab", first), ("health", second)] {
        let line = node.listener(name);
        assert_eq!((line["address"].as_str(), line["inherited"].as_bool()), (Some(&*address.to_string()), Some(true)), "{line}");
        TcpStream::connect(address).expect("listens");
    }
    assert_eq!(node.listener("http")["inherited"], false);
}

/// Descriptors that were promised and are not there: the node opens its own sockets, and none of its own files is taken
/// for one.
#[test]
fn promised_sockets_that_are_not_there_are_left_out() {
    let dir = folder();
    let script = "exec 0</dev/null 1>&2 3<&- 4<&- 5<&-; LISTEN_PID=$$ LISTEN_FDS=3 LISTEN_FDNAMES=http:mllp.lab:x \
                  exec \"$HIE\" run --config hie.toml --log json";
    let mut command = Command::new("sh");
    command.args(["-c", script]);
    let mut node = Node::start(with_binary(command), dir.path());
    node.wait_told("READY=1");
    assert_eq!(node.listener("http")["inherited"], false);
    TcpStream::connect(node.address("mllp:lab")).expect("listens");
    assert!(!node.log().iter().any(|line| line.contains("panic")));
    node.signal("-TERM");
    assert!(node.ended().success());
}

/// The binary's path for a script, in a variable that the node itself does not read.
fn with_binary(mut command: Command) -> Command {
    command.env("HIE", BIN);
    command
}

#[test]
fn an_upgrade_in_place_keeps_process_sockets_and_waiting_connections() {
    let dir = folder();
    // The binary is called through a link, as where versions are installed side by side.
    let (link, old) = (dir.path().join("hie-now"), dir.path().join("hie-1"));
    fs::copy(BIN, &old).expect("a copy");
    std::os::unix::fs::symlink(&old, &link).expect("a link");
    let mut command = Command::new(&link);
    command.args(["run", "--config", "hie.toml", "--log", "json", "--cluster", "2"]);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let mut node = Node::start(command, dir.path());
    node.wait_told("READY=1");
    let pid = node.child.id();
    // Ports that the system chose would be chosen anew: the successor has to take over the sockets by name.
    let before = ["http", "mllp:lab", "admin", "health"].map(|name| node.address(name));

    let stop = Arc::new(AtomicBool::new(false));
    let refused = Arc::new(AtomicUsize::new(0));
    let knocking = {
        let (stop, refused, address) = (stop.clone(), refused.clone(), before[1]);
        std::thread::spawn(move || {
            let mut tries = 0;
            while !stop.load(Ordering::Relaxed) {
                tries += 1;
                refused.fetch_add(usize::from(TcpStream::connect(address).is_err()), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(1));
            }
            tries
        })
    };
    let new = dir.path().join("hie-2");
    fs::copy(BIN, &new).expect("a copy");
    for _ in 0..3 {
        fs::remove_file(&link).expect("the link");
        std::os::unix::fs::symlink(&new, &link).expect("a link");
        node.signal("-USR2");
        node.wait_told("RELOADING=1");
        node.wait_told("READY=1");
        let running = fs::read_link(format!("/proc/{pid}/exe")).expect("the running binary");
        assert_eq!(running, new, "the process is the new binary");
        assert_eq!(["http", "mllp:lab", "admin", "health"].map(|name| node.address(name)), before);
        assert_eq!(node.listener("mllp:lab")["inherited"], true);
        assert_eq!(node.listener("mllp:lab")["sockets"], 2);
    }
    stop.store(true, Ordering::Relaxed);
    let tries = knocking.join().expect("knocking");
    assert!(tries > 10, "only {tries} connections were tried");
    assert_eq!(refused.load(Ordering::Relaxed), 0, "of {tries} connections");
}

#[test]
fn an_upgrade_to_a_binary_that_refuses_the_configuration_is_not_begun() {
    let dir = folder();
    let mut node = Node::run(dir.path());
    let (pid, address) = (node.child.id(), node.address("mllp:lab"));
    fs::write(dir.path().join("channels.d/a.toml"), "nonsense").expect("a broken channel");
    node.signal("-USR2");
    let until = Instant::now() + PATIENCE;
    while !node.log().iter().any(|line| line.contains("upgrade refused")) {
        assert!(Instant::now() < until, "nothing was said: {:#?}", node.log());
    }
    assert!(node.log().iter().any(|line| line.contains("a.toml:1:")), "{:#?}", node.seen);
    assert!(node.child.try_wait().expect("its status").is_none() && node.child.id() == pid);
    TcpStream::connect(address).expect("goes on");
}

#[test]
fn drain_ends_the_node_of_its_store_and_waits_for_it() {
    let dir = folder();
    let mut node = Node::run(dir.path());
    let drain = Command::new(BIN).args(["drain", "--config", "hie.toml"]).current_dir(dir.path()).output().expect("hie drain");
    assert!(drain.status.success(), "{}", String::from_utf8_lossy(&drain.stderr));
    assert!(node.ended().success());
    let again = Command::new(BIN).args(["drain", "--config", "hie.toml"]).current_dir(dir.path()).output().expect("hie drain");
    assert_eq!(again.status.code(), Some(69));
}

#[test]
fn without_a_configuration_it_says_where_everything_is() {
    let dir = tempfile::tempdir().expect("a folder");
    let any = ["http.listen", "admin.listen", "health.listen", "mllp.listen"].map(|key| format!("--set={key}=127.0.0.1:0"));
    let mut command = Command::new(BIN);
    command.arg("run").args(&any).env_remove("XDG_STATE_HOME").stdin(Stdio::null()).stdout(Stdio::piped());
    let mut node = Node::start(command, dir.path());
    node.wait_told("READY=1");
    node.signal("-INT");
    assert!(node.ended().success());
    let mut said = String::new();
    node.child.stdout.take().expect("standard output").read_to_string(&mut said).expect("what it said");
    let store = dir.path().join("hie-data");
    for expected in [store.join("admin-token").display().to_string(), store.join("channels.d").display().to_string()] {
        assert!(said.contains(&expected), "{expected} is not in {said}");
    }
    assert!(said.contains("hie sink --mllp") && !said.contains("127.0.0.1:0\n"), "{said}");
    assert!(store.join("channels.d/sample.toml").is_file());
    assert_eq!(fs::metadata(&store).expect("the store").permissions().mode() & 0o777, 0o700);
    // What the operator changes stays.
    fs::write(store.join("channels.d/sample.toml"), "").expect("changed");
    let check = Command::new(BIN).arg("check").args(&any).current_dir(dir.path()).output().expect("hie check");
    assert!(check.status.success());
}
