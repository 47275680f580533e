//! HTTP proxy mode, request durable before it is forwarded, 32 connections, POST of 2 KB, against nginx as a plain
//! reverse proxy to the same receiver (and the receiver directly), alternating in the same run.
//! Limit: at least a third of nginx's rate; the aim is half.
//!
//! `cargo bench --bench http_proxy`; needs nginx (apt-get install nginx-light).

mod common;
#[path = "../tests/harness/mod.rs"]
mod harness;

use common::http::Sender;
use common::{Figures, Peer, Series, load, phase, ratio, rounds, table};
use harness::node::free_port;
use harness::{Builder, channels};
use std::net::SocketAddr;
use std::process::{Child, Command};
use std::time::Duration;

/// nginx with a configuration of its own; stopped when dropped.
struct Nginx {
    child: Child,
    at: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Nginx {
    fn start(upstream: SocketAddr) -> Option<Self> {
        let folder = tempfile::tempdir().expect("a folder");
        let at = free_port();
        let dir = folder.path().display();
        let text = format!(
            "daemon off; worker_processes auto; pid {dir}/pid; error_log {dir}/error.log;\n\
             events {{ worker_connections 1024; }}\n\
             http {{ access_log off; keepalive_requests 10000000; client_body_temp_path {dir}/b; proxy_temp_path {dir}/p;\n\
             fastcgi_temp_path {dir}/f; uwsgi_temp_path {dir}/u; scgi_temp_path {dir}/s;\n\
             upstream up {{ server {upstream}; keepalive 64; keepalive_requests 10000000; }}\n\
             server {{ listen {at}; location / {{ proxy_pass http://up; proxy_http_version 1.1; proxy_set_header Connection \"\"; }} }} }}\n"
        );
        let file = folder.path().join("nginx.conf");
        std::fs::write(&file, text).expect("its configuration");
        let child = Command::new("/usr/sbin/nginx").arg("-c").arg(&file).arg("-p").arg(folder.path()).spawn().ok()?;
        for _ in 0..300 {
            if std::net::TcpStream::connect(at).is_ok() {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Some(Self { child, at, _folder: folder })
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let id = nix::unistd::Pid::from_raw(self.child.id() as i32);
        let _ = nix::sys::signal::kill(id, nix::sys::signal::Signal::SIGTERM);
        let _ = self.child.wait();
    }
}

fn main() {
    common::play_role();
    let upstream = Peer::start("--bare-http", free_port());
    let Some(nginx) = Nginx::start(upstream.1) else {
        println!("not run: nginx is missing (apt-get install nginx-light)");
        std::process::exit(1);
    };
    let target = format!("http = [\"http://{}/\"]", upstream.1);
    let channel = channels::queue("bench.proxy", "true").replace("\"queue\"", "\"proxy\"").replace("patient", "none");
    let node =
        Builder::new().node("cluster = \"auto\"").channel(channel + &channels::route("up", &target, "in_flight = 64")).start();
    let (mut direct, mut plain, mut ours) = (Series::default(), Series::default(), Series::default());
    for to in [upstream.1, nginx.at, node.http] {
        send(to, Duration::from_secs(1)); // warm
    }
    for _ in 0..rounds() {
        direct.add(send(upstream.1, phase()));
        plain.add(send(nginx.at, phase()));
        ours.add(send(node.http, phase()));
    }
    let row = |what: &str, series: &Series, share: String| {
        vec![
            what.to_owned(),
            format!("{:.0}", series.rate()),
            format!("{:.2}", series.ms(0.5)),
            format!("{:.2}", series.ms(0.99)),
            series.failed().to_string(),
            share,
        ]
    };
    table(
        &["what", "requests/s", "p50 ms", "p99 ms", "failed", "of nginx's rate"],
        &[
            row("receiver, directly", &direct, String::new()),
            row("nginx", &plain, "the limit".into()),
            row("hie, proxy mode", &ours, ratio(ours.rate(), plain.rate(), 1.0 / 3.0)),
        ],
    );
    println!("hie: resident memory {} KiB after the run", node.rss_kib());
}

fn send(to: SocketAddr, span: Duration) -> Figures {
    load(32, span, move |_| Sender::connect(to))
}
