//! Tries to break: **any node may die at any instant … disk full: nothing acknowledged is lost; the rest is told plainly
//! to the sender.** The store lies on a small tmpfs in a mount namespace of its own. Two runs: the disk runs into the
//! reserve (`ledger.min_free`), and the file system itself runs out (ENOSPC). MLLP answers AE, HTTP 503 with
//! Retry-After; `/health/ready` says why; when space returns accepting goes on without a restart.
//!
//! Needs root (mount namespaces) and util-linux.

mod harness;

use harness::channels::{all_to, queue, route};
use harness::{Builder, Doubles, Load, Node, Receiver, Via, check, http, wait_until};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A mount namespace with a tmpfs, kept by a sleeping process; gone when dropped.
struct SmallDisk {
    holder: Child,
    mount: PathBuf,
    _folder: tempfile::TempDir,
}

impl SmallDisk {
    fn new(mebibytes: u32) -> Self {
        let folder = tempfile::Builder::new().prefix("hie-disk-").tempdir().expect("a folder");
        let mount = folder.path().to_owned();
        let script = format!("mount -t tmpfs -o size={mebibytes}m tmpfs '{}' && exec sleep 600", mount.display());
        let holder = Command::new("unshare")
            .args(["-m", "--propagation", "private", "sh", "-c", &script])
            .stdin(Stdio::null())
            .spawn()
            .expect("unshare (util-linux) is missing: apt-get install util-linux");
        let mut disk = Self { holder, mount, _folder: folder };
        let mounted = wait_until(Duration::from_secs(5), || {
            let text = fs::read_to_string(format!("/proc/{}/mounts", disk.holder.id())).unwrap_or_default();
            text.contains(disk.mount.to_str().unwrap_or("?"))
        });
        assert!(
            mounted && disk.holder.try_wait().is_ok_and(|s| s.is_none()),
            "a tmpfs cannot be mounted in a mount namespace: this test needs root with CAP_SYS_ADMIN"
        );
        disk
    }

    /// The mount as seen from here.
    fn inside(&self) -> PathBuf {
        let path = self.mount.strip_prefix("/").expect("an absolute path");
        Path::new(&format!("/proc/{}/root", self.holder.id())).join(path)
    }

    /// Takes all space but `leave` bytes, by a file.
    fn fill(&self, leave: u64) {
        let path = self.inside().join("filler");
        let free = self.free();
        let block = vec![0u8; 64 * 1024];
        let mut file = fs::OpenOptions::new().create(true).append(true).open(path).expect("a filler");
        let mut left = free.saturating_sub(leave);
        while left > 0 {
            let n = left.min(block.len() as u64) as usize;
            if std::io::Write::write_all(&mut file, &block[..n]).is_err() {
                break;
            }
            left -= n as u64;
        }
    }

    fn empty(&self) {
        fs::remove_file(self.inside().join("filler")).expect("the filler goes");
    }

    fn free(&self) -> u64 {
        let told = nix::sys::statvfs::statvfs(&self.inside()).expect("statvfs");
        told.blocks_available() as u64 * told.fragment_size() as u64
    }

    fn node(&self, channel: String, min_free: &str) -> Node {
        let pid = self.holder.id().to_string();
        Builder::new()
            .store(self.mount.join("store"))
            .wrapper(&["nsenter", "-m", "-t", &pid, "--"])
            .section(&format!("[ledger]\nmin_free = \"{min_free}\"\n"))
            .channel(channel)
            .start()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

#[test]
fn a_disk_that_reaches_its_reserve_refuses_plainly_and_recovers() {
    run("8 MiB", 9 << 20);
}

#[test]
fn a_disk_without_a_byte_left_refuses_plainly_and_recovers() {
    run("0 B", 1 << 20);
}

/// `leave`: free bytes that the filler leaves, which the load then uses up.
fn run(min_free: &str, leave: u64) {
    let disk = SmallDisk::new(64);
    let receiver = Receiver::willing();
    let mut node = disk.node(all_to(&receiver), min_free);
    let load = |name: &str, via: Via| Load { name: name.into(), connections: 4, ..Load::new(via) }.start();
    let by_mllp = load("M", Via::Mllp(node.mllp));
    let by_http = load("H", Via::Http(node.http, "/adt".into()));
    assert!(wait_until(Duration::from_secs(20), || by_mllp.acknowledged() > 200 && by_http.acknowledged() > 200));

    disk.fill(leave);
    let refused = wait_until(Duration::from_secs(60), || by_mllp.refused() > 5 && by_http.refused() > 5);
    assert!(refused, "a full disk is refused\n{}", node.log_tail(20));
    let ready = || http::once(node.health, "GET", "/health/ready", &[], b"").expect("the health listener answers");
    let told = wait_until(Duration::from_secs(5), || {
        let ready = ready();
        ready.status == 503 && (ready.text().contains("disk") || ready.text().contains("store"))
    });
    assert!(told, "not ready while nothing can be stored, and why: {}\n{}", ready().text(), node.log_tail(20));
    let answer = http::once(node.http, "POST", "/adt", &[], b"no harness message").expect("an answer");
    assert_eq!(answer.status, 503, "{}", answer.text());
    assert!(answer.header("retry-after").is_some(), "503 says when to come again");
    // Without a reserve it is the commits that fail, which has a metric of its own.
    let metric = if min_free == "0 B" { "hie_ledger_commit_failures_total" } else { "hie_store_full" };
    assert!(node.metric(metric).is_some_and(|n| n >= 1.0), "{metric}");

    disk.empty();
    let (before, before_http) = (by_mllp.acknowledged(), by_http.acknowledged());
    let recovered =
        wait_until(Duration::from_secs(20), || by_mllp.acknowledged() > before + 50 && by_http.acknowledged() > before_http + 50);
    assert!(recovered, "accepting goes on when space returns\n{}", node.log_tail(20));
    assert!(wait_until(Duration::from_secs(10), || ready().status == 200), "ready again: {}", ready().text());

    assert!(wait_until(Duration::from_secs(5), || node.metric("hie_store_full") == Some(0.0)), "told that space is back");

    // Once more full, and the node is killed and started again meanwhile: the store still opens, or waits for space.
    disk.fill(leave);
    let seen = by_mllp.refused();
    assert!(wait_until(Duration::from_secs(60), || by_mllp.refused() > seen + 5), "refused again");
    node.kill9();
    node.spawn();
    std::thread::sleep(Duration::from_secs(1));
    disk.empty();
    if !node.alive() {
        println!("the node did not start on a full disk; started again with space");
        assert!(node.log().contains("disk") || node.log().contains("space"), "and said why\n{}", node.log_tail(20));
        node.spawn();
    }
    node.wait_ready(Duration::from_secs(20)).unwrap_or_else(|e| panic!("{e}\n{}", node.log_tail(30)));

    let (by_mllp, mut sent) = (by_mllp.stop(Duration::from_secs(20)), by_http.stop(Duration::from_secs(20)));
    assert!(by_mllp.refused.keys().all(|code| code == "AE"), "a full disk is AE: {:?}", by_mllp.refused);
    assert!(sent.refused.keys().all(|code| code == "503"), "a full disk is 503: {:?}", sent.refused);
    sent.merge(by_mllp);
    println!("refusals {:?}", sent.refused);
    assert!(receiver.wait_for(&sent, Duration::from_secs(60)), "all acknowledged delivered\n{}", node.log_tail(20));
    check(&sent, &receiver.arrivals(), Doubles::Counted).unwrap_or_else(|fault| panic!("{fault}"));
}

/// Pending work on a full disk is still delivered, although nothing new can be written down about it.
#[test]
fn deliveries_go_on_while_the_disk_is_full() {
    let disk = SmallDisk::new(64);
    let mut receiver = Receiver::willing();
    receiver.down();
    let channel = queue("test.all", "true") + &route("primary", &receiver.target(), "primary = true");
    let node = disk.node(channel, "8 MiB");
    let load = Load { connections: 4, count: Some(100), ..Load::new(Via::Mllp(node.mllp)) };
    let sent = load.run(Duration::from_secs(20));
    assert_eq!(sent.acknowledged.len(), 400);
    disk.fill(1 << 20);
    receiver.up();
    assert!(receiver.wait_for(&sent, Duration::from_secs(30)), "delivered on a full disk\n{}", node.log_tail(20));
    check(&sent, &receiver.arrivals(), Doubles::Counted).unwrap_or_else(|fault| panic!("{fault}"));
}
