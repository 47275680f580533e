//! Real programs that `tests/parts/fetch` brings: Consul and RabbitMQ run in a folder and on ports of their own.

use super::{node::free_port, wait_until};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parts").join(name)
}

/// Where a part is; fetched when it is not there yet.
pub fn fetch(part: &str) -> PathBuf {
    let output = Command::new(script("fetch")).arg(part).output().expect("tests/parts/fetch runs");
    assert!(output.status.success(), "{part} is missing: {}", String::from_utf8_lossy(&output.stderr));
    PathBuf::from(String::from_utf8_lossy(&output.stdout).trim())
}

/// A Consul server of its own; killed when dropped.
pub struct Consul {
    child: Child,
    dir: tempfile::TempDir,
    http: std::net::SocketAddr,
}

impl Consul {
    /// Starts one with a further file of configuration, and waits until it answers.
    pub fn start(binary: &Path, text: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("hie-consul-").tempdir().expect("a folder");
        let (http, server, serf) = (free_port(), free_port(), free_port());
        let own = format!(
            r#"{{"data_dir":{:?},"bind_addr":"127.0.0.1","server":true,"bootstrap_expect":1,
                "ports":{{"http":{},"dns":-1,"grpc":-1,"server":{},"serf_lan":{},"serf_wan":-1}}}}"#,
            dir.path().join("data"),
            http.port(),
            server.port(),
            serf.port()
        );
        fs::create_dir(dir.path().join("conf")).expect("a folder");
        fs::write(dir.path().join("conf/10-own.json"), own).expect("configuration");
        fs::write(dir.path().join("conf/50-hie.json"), text).expect("configuration");
        let conf = dir.path().join("conf");
        let valid = Command::new(binary).arg("validate").arg(&conf).output().expect("consul runs");
        assert!(valid.status.success(), "{}", String::from_utf8_lossy(&valid.stdout));
        let log = fs::File::create(dir.path().join("log")).expect("a log");
        let child = Command::new(binary).arg("agent").arg("-config-dir").arg(&conf).stdout(log).stderr(Stdio::null()).spawn();
        let consul = Self { child: child.expect("consul starts"), dir, http };
        let up = wait_until(Duration::from_secs(30), || consul.get("/v1/status/leader").is_some_and(|v| v.to_string().len() > 4));
        assert!(up, "{}", fs::read_to_string(consul.dir.path().join("log")).unwrap_or_default());
        consul
    }

    /// GET of its API.
    pub fn get(&self, path: &str) -> Option<serde_json::Value> {
        let answer = super::http::once(self.http, "GET", path, &[], b"").ok()?;
        serde_json::from_str(&answer.text()).ok()
    }
}

impl Drop for Consul {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A RabbitMQ broker of its own; killed when dropped, with all that it started.
pub struct Rabbitmq {
    child: Child,
    root: PathBuf,
    dir: tempfile::TempDir,
    env: Vec<String>,
    port: u16,
}

impl Rabbitmq {
    /// Starts one below a root of [`fetch`] with this `rabbitmq.conf`, and waits until it has started.
    pub fn start(root: &Path, text: &str) -> Self {
        Self::start_with(root, text, &[])
    }

    /// The same with further files, which it finds in `/node`.
    pub fn start_with(root: &Path, text: &str, files: &[(&str, &[u8])]) -> Self {
        let dir = tempfile::Builder::new().prefix("hie-rabbit-").tempdir().expect("a folder");
        fs::write(dir.path().join("rabbitmq.conf"), text).expect("rabbitmq.conf");
        for (name, content) in files {
            fs::write(dir.path().join(name), content).expect("a file");
        }
        let (port, dist, epmd) = (free_port().port(), free_port().port(), free_port().port());
        let env = [
            "HOME=/node".to_owned(),
            "PATH=/usr/sbin:/usr/bin:/sbin:/bin".into(),
            "LANG=C.UTF-8".into(),
            "RABBITMQ_CONFIG_FILE=/node/rabbitmq.conf".into(),
            "RABBITMQ_CONF_ENV_FILE=/node/env".into(),
            "RABBITMQ_ENABLED_PLUGINS_FILE=/node/plugins".into(),
            "RABBITMQ_MNESIA_BASE=/node/db".into(),
            "RABBITMQ_LOG_BASE=/node/log".into(),
            "RABBITMQ_LOGS=-".into(),
            "RABBITMQ_NODE_IP_ADDRESS=127.0.0.1".into(),
            format!("RABBITMQ_NODENAME=t{port}@localhost"),
            format!("RABBITMQ_NODE_PORT={port}"),
            format!("RABBITMQ_DIST_PORT={dist}"),
            format!("ERL_EPMD_PORT={epmd}"),
        ];
        let child = Self::spawn(root, dir.path(), &env);
        let mut broker = Self { child, root: root.to_owned(), dir, env: env.to_vec(), port };
        broker.started();
        broker
    }

    fn spawn(root: &Path, dir: &Path, env: &[String]) -> Child {
        let log = fs::File::create(dir.join("out")).expect("a log");
        let mut command = enter(root, dir, env);
        // An unlimited number of files makes Erlang allocate gigabytes.
        command.args(["/bin/sh", "-c", "ulimit -n 4096; exec /usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin/rabbitmq-server"]);
        command.stdout(log.try_clone().expect("a log")).stderr(log).spawn().expect("the broker starts")
    }

    fn started(&mut self) {
        let up = wait_until(Duration::from_secs(90), || {
            self.log().contains("Server startup complete") || self.child.try_wait().is_ok_and(|status| status.is_some())
        });
        assert!(up && self.log().contains("Server startup complete"), "the broker did not start:\n{}", self.log());
    }

    /// Where it listens for AMQP, on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// kill -9, with all that it started.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Ends it as an operator does.
    pub fn stop(&mut self) {
        self.eval("init:stop().");
        let ended = wait_until(Duration::from_secs(60), || self.child.try_wait().is_ok_and(|status| status.is_some()));
        assert!(ended, "the broker does not end:\n{}", self.log());
    }

    /// Starts again, after [`Rabbitmq::stop`] or [`Rabbitmq::kill`], with what it has on disk.
    pub fn restart(&mut self) {
        self.child = Self::spawn(&self.root, self.dir.path(), &self.env);
        self.started();
    }

    /// What it has said.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.dir.path().join("out")).unwrap_or_default()).into_owned()
    }

    /// What an expression gives inside the broker.
    pub fn eval(&self, expression: &str) -> String {
        let ctl = "exec /usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin/rabbitmqctl eval \"$1\"";
        let mut command = enter(&self.root, self.dir.path(), &self.env);
        let Output { status, stdout, stderr } =
            command.args(["/bin/sh", "-c", ctl, "sh", expression]).output().expect("rabbitmqctl runs");
        assert!(status.success(), "{}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
        String::from_utf8_lossy(&stdout).trim().to_owned()
    }
}

fn enter(root: &Path, dir: &Path, env: &[String]) -> Command {
    let mut command = Command::new(script("enter"));
    command.arg(root).arg(dir).args(["/usr/bin/env", "-i"]).args(env).stdin(Stdio::null());
    command
}

impl Drop for Rabbitmq {
    fn drop(&mut self) {
        // Takes everything inside with it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
