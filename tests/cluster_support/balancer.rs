//! Balancers on machines of their own, with the configuration that `hie lb render` writes.

use super::net::{Machine, need, run};
use crate::harness::node::Node;
use crate::harness::wait_until;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::net::TcpStream;
use std::path::Path;
use std::process::Child;
use std::time::Duration;

/// A balancer that runs; ended when dropped.
pub struct Balancer {
    pub machine: Machine,
    child: Child,
}

/// What the node's command line writes for one on this machine, from the catalog of the node's agent.
pub fn render(node: &Node, kind: &str, on: &Machine, more: &[&str]) -> String {
    let bind = on.ip.to_string();
    let args = [&["lb", "render", kind, "--config", "hie.toml", "--bind", &bind], more].concat();
    run(&mut node.command(&args), "")
}

impl Balancer {
    pub fn haproxy(machine: &Machine, text: &str) -> Self {
        need("haproxy", &["haproxy"]);
        // Where the test finds it.
        let text = text.replace("log /dev/log local0", "log stdout format raw local0");
        let file = machine.dir().join("haproxy.cfg");
        fs::write(&file, text).expect("haproxy.cfg");
        Self::start(machine, "haproxy", &["-db".as_ref(), "-f".as_ref(), &file])
    }

    pub fn nginx(machine: &Machine, text: &str) -> Self {
        let module = "/usr/lib/nginx/modules/ngx_stream_module.so";
        need("nginx", &["nginx"]);
        need(module, &["libnginx-mod-stream"]);
        let at = |name: &str| machine.dir().join(name).display().to_string();
        fs::write(at("hie.conf"), text.replace("/var/log/nginx/hie.log", &at("access.log"))).expect("hie.conf");
        let main = format!(
            "load_module {module};\ndaemon off;\nworker_processes 1;\npid {};\nerror_log {} info;\n\
             events {{ worker_connections 1024; }}\ninclude {};\n",
            at("pid"),
            at("error.log"),
            at("hie.conf")
        );
        fs::write(at("nginx.conf"), main).expect("nginx.conf");
        Self::start(machine, "nginx", &["-c".as_ref(), at("nginx.conf").as_ref()])
    }

    fn start(machine: &Machine, program: &str, args: &[&Path]) -> Self {
        let log = fs::File::create(machine.dir().join("out")).expect("a log");
        let mut command = machine.command(program);
        command.args(args).stdout(log.try_clone().expect("a log")).stderr(log);
        let mut child = command.spawn().unwrap_or_else(|e| panic!("{program}: {e}"));
        let at = (machine.ip, 2575).into();
        let up = wait_until(Duration::from_secs(15), || {
            child.try_wait().is_ok_and(|s| s.is_none()) && TcpStream::connect_timeout(&at, Duration::from_secs(1)).is_ok()
        });
        let balancer = Self { machine: machine.clone(), child };
        assert!(up, "{}", balancer.log_tail(20));
        balancer
    }

    /// What it has said last of connections and servers.
    pub fn log_tail(&self, lines: usize) -> String {
        let file = |name: &str| {
            let text = String::from_utf8_lossy(&fs::read(self.machine.dir().join(name)).unwrap_or_default()).into_owned();
            let all: Vec<_> = text.lines().collect();
            all[all.len().saturating_sub(lines)..].join("\n")
        };
        format!("--- {}:\n{}\n{}\n{}", self.machine.name, file("out"), file("error.log"), file("access.log"))
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM);
        if !wait_until(Duration::from_secs(5), || self.child.try_wait().is_ok_and(|s| s.is_some())) {
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}
