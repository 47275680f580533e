//! The deliberately broken builds. `tests/run` builds them beforehand and names their folder in `HIE_BROKEN`; without it
//! they are built here.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

/// The binary built with this feature.
pub fn build(feature: &str) -> PathBuf {
    if let Some(folder) = std::env::var_os("HIE_BROKEN") {
        let path = Path::new(&folder).join(feature);
        assert!(path.exists(), "{} is missing: tests/run builds it", path.display());
        return path;
    }
    // One build at a time: they share the target folder with the real one, so that only this crate is compiled anew.
    static BUILT: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let mut all = BUILT.lock().unwrap_or_else(|e| e.into_inner());
    let real = Path::new(env!("CARGO_BIN_EXE_hie"));
    let folder = real.parent().expect("a folder").join("broken");
    let (saved, path) = (folder.join("real"), folder.join(feature));
    if all.contains(feature) {
        return path;
    }
    std::fs::create_dir_all(&folder).expect("a folder for the broken builds");
    std::fs::copy(real, &saved).expect("the real build, set aside");
    let target = real.parent().and_then(Path::parent).expect("the target folder");
    let mut build = Command::new(env!("CARGO"));
    build.args(["test", "--quiet", "--no-run", "--test", "checker", "--features", feature, "--target-dir"]).arg(target);
    // What cargo tells a test of its package would make build scripts of dependencies run again, and again when it is no longer told.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("CARGO_PKG_") || name == "CARGO_MANIFEST_DIR" || name == "CARGO_MANIFEST_PATH" {
            build.env_remove(name);
        }
    }
    let built = build.current_dir(env!("CARGO_MANIFEST_DIR")).status().expect("cargo runs");
    // Renamed over an earlier one, which may be running.
    let new = folder.join("new");
    std::fs::copy(real, &new).and_then(|_| std::fs::rename(&new, &path)).expect("the broken build, set aside");
    // Other tests find the real one in its place again (renamed over it: the broken one may be running).
    std::fs::rename(&saved, real).expect("the real build, put back");
    assert!(built.success(), "cargo build --features {feature}");
    all.insert(feature.to_owned());
    path
}
