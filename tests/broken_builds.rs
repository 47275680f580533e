//! Shows that the tests for the promises can fail: three deliberately broken builds, each turned red by the named test's
//! own judge.
//!
//! | build | what is taken away | turned red by |
//! |---|---|---|
//! | `--features break-fsync` | the fsync of each commit | `fsync_trace.rs` |
//! | `--features break-ack` | acknowledging only after the commit | `durability.rs` (lost) |
//! | `--features break-order` | one message of a key at a time | `order.rs` (out of order) |
//!
//! `tests/run` builds them beforehand and names their folder in `HIE_BROKEN`; without it they are built here.

mod harness;

use harness::{Rng, scenario};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

/// The binary built with this feature.
fn broken(feature: &str) -> PathBuf {
    if let Some(folder) = std::env::var_os("HIE_BROKEN") {
        let path = Path::new(&folder).join(feature);
        assert!(path.exists(), "{} is missing: tests/run builds it", path.display());
        return path;
    }
    // One build at a time: they share the target folder with the real one, so that only this crate is compiled anew.
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(|e| e.into_inner());
    let real = Path::new(env!("CARGO_BIN_EXE_hie"));
    let folder = real.parent().expect("a folder").join("broken");
    let saved = folder.join("real");
    std::fs::create_dir_all(&folder).expect("a folder for the broken builds");
    std::fs::copy(real, &saved).expect("the real build, set aside");
    let target = real.parent().and_then(Path::parent).expect("the target folder");
    let mut build = Command::new(env!("CARGO"));
    build.args(["test", "--quiet", "--no-run", "--test", "checker", "--features", feature, "--target-dir"]).arg(target);
    let built = build.current_dir(env!("CARGO_MANIFEST_DIR")).status().expect("cargo runs");
    let path = folder.join(feature);
    std::fs::copy(real, &path).expect("the broken build, set aside");
    // Other tests find the real one in its place again (renamed over it: the broken one may be running).
    std::fs::rename(&saved, real).expect("the real build, put back");
    assert!(built.success(), "cargo build --features {feature}");
    path
}

fn must_be_red(what: &str, told: Result<(), String>, because: &[&str]) {
    match told {
        Ok(()) => panic!("{what}: the test stayed green on a broken build"),
        Err(fault) => {
            println!("{what}: red as it must be: {fault}");
            assert!(because.iter().any(|b| fault.contains(b)), "{what}: red for another reason: {fault}");
        }
    }
}

#[test]
fn without_fsync_the_trace_turns_red() {
    must_be_red("break-fsync", scenario::traced(broken("break-fsync")), &["no fsync of it completed"]);
}

#[test]
fn acknowledging_before_the_commit_turns_the_kill_test_red() {
    let mut rng = Rng::from_env("break-ack");
    let told = scenario::kills(broken("break-ack"), &mut rng, 15, Duration::from_secs(10));
    must_be_red("break-ack", told, &[" lost: ", "no transaction"]);
}

#[test]
fn breaking_the_order_turns_the_order_test_red() {
    let mut rng = Rng::from_env("break-order");
    must_be_red("break-order", scenario::order(broken("break-order"), &mut rng, 500), &[" out of order: "]);
}
