//! Idle memory (limit 16 MiB resident), start to ready (limit 100 ms, empty store), size of the static release binary
//! (limit 20 MiB, stripped).
//!
//! `cargo bench --bench size`; `HIE_BIN` names the binary to measure, by default the static release when it was built
//! (`.ci/run` does, or `cargo build --release --target x86_64-unknown-linux-musl`), else the one of this profile.

mod common;
#[path = "../tests/harness/mod.rs"]
mod harness;

use common::{median, ratio, rounds, table};
use harness::node::{binary, free_port};
use harness::{Builder, channels};
use std::path::{Path, PathBuf};
use std::time::Duration;

fn main() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let fixed = root.join("target/x86_64-unknown-linux-musl/release/hie");
    let named = std::env::var_os("HIE_BIN").is_some();
    let path: PathBuf = if !named && fixed.exists() { fixed } else { binary() };
    println!("binary: {}", path.display());
    let stripped = tempfile::NamedTempFile::new().expect("a file");
    let strip = std::process::Command::new("strip").arg("-o").arg(stripped.path()).arg(&path).status();
    let measured = if strip.is_ok_and(|s| s.success()) { stripped.path() } else { path.as_path() };
    let size = std::fs::metadata(measured).expect("the binary").len() as f64 / f64::from(1 << 20);

    let (mut ready, mut idle) = (Vec::new(), Vec::new());
    for _ in 0..rounds().max(5) {
        let target = format!("mllp = [\"{}\"]", free_port());
        let mut node = Builder::new()
            .binary(&path)
            .channel(channels::queue("bench.idle", "true") + &channels::route("nobody", &target, ""))
            .lay_out();
        ready.push(node.start().as_secs_f64() * 1000.0);
        std::thread::sleep(Duration::from_secs(2));
        idle.push(node.rss_kib() as f64 / 1024.0);
    }
    let row = |what: &str, value: f64, unit: &str, limit: f64| {
        // Here less is better: the ratio is limit over measured.
        vec![what.to_owned(), format!("{value:.1} {unit}"), format!("{limit:.0} {unit}"), ratio(limit, value, 1.0)]
    };
    table(
        &["what", "measured (median)", "limit", "limit over measured"],
        &[
            row("idle resident memory", median(idle), "MiB", 16.0),
            row("start to ready, empty store", median(ready), "ms", 100.0),
            row("binary, stripped", size, "MiB", 20.0),
        ],
    );
}
