//! In-place upgrade: the process becomes the binary that is on disk now, under the same process id, with its
//! listening sockets open all the while.

use super::{
    listeners::{KEPT, Listeners, VARIABLE},
    signals,
};
use crate::telemetry::host::{UpgradeRefused, Upgrading};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use std::{
    env,
    ffi::OsString,
    fmt::Write,
    io::{self, Read},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// How long the new binary may take to check the configuration.
const CHECK_TIMEOUT: Duration = Duration::from_secs(30);

/// An upgrade that was not begun, or that failed at its last step.
#[derive(Debug, thiserror::Error)]
pub enum UpgradeError {
    /// The binary cannot be run.
    #[error("{} cannot be run: {source}", binary.display())]
    NotRun {
        /// Which.
        binary: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It refuses the configuration.
    #[error("{} refuses the configuration: {output}", binary.display())]
    Refused {
        /// Which.
        binary: PathBuf,
        /// The first lines of what it said.
        output: String,
    },
    /// It did not answer.
    #[error("{} did not check the configuration within {CHECK_TIMEOUT:?}", binary.display())]
    Silent {
        /// Which.
        binary: PathBuf,
    },
}

/// How this process was started, so that it can be started again.
#[derive(Clone, Debug)]
pub struct Upgrade {
    binary: PathBuf,
    args: Vec<OsString>,
    check: Vec<OsString>,
}

impl Upgrade {
    /// Records the binary and the arguments; call it at start, while the binary on disk is still this one.
    /// `check` are the arguments with which the new binary is asked whether it could run (`check`, and the
    /// options that name the configuration).
    pub fn record(check: Vec<OsString>) -> io::Result<Self> {
        let mut args = env::args_os();
        let name = args.next().unwrap_or_default();
        Ok(Self { binary: binary(&name)?, args: args.collect(), check })
    }

    /// The binary that an upgrade would become.
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// Asks the binary on disk whether it could run this configuration. Blocks for as long as that takes (30 s at most).
    /// When it refuses, that is said in the log, and the node goes on as it is.
    pub fn preflight(&self) -> Result<(), UpgradeError> {
        let checked = self.check();
        if let Err(error) = &checked {
            UpgradeRefused { binary: &self.binary, reason: &error.to_string() }.emit();
        }
        checked
    }

    fn check(&self) -> Result<(), UpgradeError> {
        let binary = self.binary.clone();
        let not_run = |source| UpgradeError::NotRun { binary: binary.clone(), source };
        let mut command = Command::new(&self.binary);
        command.args(&self.check).env_remove(VARIABLE);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(not_run)?;
        let stderr = child.stderr.take();
        // Read beside the waiting, so that a child with much to say does not stop at a full pipe.
        let reader = std::thread::spawn(move || {
            let mut text = Vec::new();
            if let Some(stderr) = stderr {
                let mut stderr = stderr.take(4096);
                let _ = stderr.read_to_end(&mut text);
                // Read to its end: many warnings are no reason to fail at a closed pipe.
                let _ = io::copy(&mut stderr.into_inner(), &mut io::sink());
            }
            String::from_utf8_lossy(&text).trim().to_owned()
        });
        let until = Instant::now() + CHECK_TIMEOUT;
        let status = loop {
            match child.try_wait().map_err(not_run)? {
                Some(status) => break status,
                None if Instant::now() > until => {
                    let _ = child.kill().and_then(|()| child.wait());
                    return Err(UpgradeError::Silent { binary });
                }
                None => std::thread::sleep(Duration::from_millis(10)),
            }
        };
        if status.success() {
            return Ok(());
        }
        let output = reader.join().unwrap_or_default();
        let output = if output.is_empty() { status.to_string() } else { output };
        Err(UpgradeError::Refused { binary, output })
    }

    /// Becomes the binary on disk, with the arguments and environment of this process and every socket of
    /// `listeners`. Returns only when that failed; everything is as it was then.
    ///
    /// Everything durable has to be on disk and every connection drained before: nothing of this process survives
    /// but its id and the sockets.
    pub fn exec(&self, listeners: &Listeners) -> UpgradeError {
        let mut handed = std::process::id().to_string();
        let mut sockets = 0;
        for (name, fd, socket, kept) in listeners.sockets() {
            // One that cannot be kept open is bound anew by the successor.
            if fcntl(socket, FcntlArg::F_SETFD(FdFlag::empty())).is_ok() {
                // Writing to a String cannot fail.
                let _ = write!(handed, ";{fd}={name}{}", if kept { KEPT } else { "" });
                sockets += 1;
            }
        }
        Upgrading { binary: &self.binary, sockets }.emit();
        signals::hold();
        let mut command = Command::new(&self.binary);
        command.args(&self.args).env(VARIABLE, handed);
        for name in ["LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"] {
            command.env_remove(name);
        }
        let source = command.exec();
        signals::release();
        for (_, _, socket, _) in listeners.sockets() {
            let _ = fcntl(socket, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC));
        }
        let error = UpgradeError::NotRun { binary: self.binary.clone(), source };
        UpgradeRefused { binary: &self.binary, reason: &error.to_string() }.emit();
        error
    }
}

/// The path of this program as it was called, where that leads to the running binary: a symbolic link may point to
/// another version by the time of the upgrade. Else the running binary's own path.
fn binary(called: &std::ffi::OsStr) -> io::Result<PathBuf> {
    let running = env::current_exe()?;
    let called = Path::new(called);
    let candidates: Vec<PathBuf> = if called.components().count() > 1 {
        vec![env::current_dir()?.join(called)]
    } else {
        env::split_paths(&env::var_os("PATH").unwrap_or_default()).map(|dir| dir.join(called)).collect()
    };
    let same = |path: &PathBuf| path.is_absolute() && path.canonicalize().is_ok_and(|p| Some(p) == running.canonicalize().ok());
    Ok(candidates.into_iter().find(same).unwrap_or_else(|| undeleted(running)))
}

/// Linux marks a binary that was replaced while it runs.
fn undeleted(path: PathBuf) -> PathBuf {
    match path.to_str().and_then(|p| p.strip_suffix(" (deleted)")) {
        Some(before) => before.into(),
        None => path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upgrade(binary: &str, check: &[&str]) -> Upgrade {
        Upgrade { binary: binary.into(), args: vec![], check: check.iter().map(Into::into).collect() }
    }

    #[test]
    fn a_binary_that_accepts_the_configuration_passes_and_others_do_not() {
        upgrade("/bin/sh", &["-c", "exit 0"]).preflight().expect("accepts");
        let refused = upgrade("/bin/sh", &["-c", "echo line 3 >&2; exit 65"]).preflight().expect_err("refuses");
        assert!(refused.to_string().contains("refuses the configuration: line 3"), "{refused}");
        let missing = upgrade("/does/not/exist", &[]).preflight().expect_err("is not there");
        assert!(missing.to_string().contains("/does/not/exist cannot be run"), "{missing}");
    }

    #[test]
    fn a_failed_exec_leaves_the_sockets_as_they_were() {
        let wanted = super::super::listeners::Wanted { name: "http".into(), address: ([127, 0, 0, 1], 0).into(), instances: 1 };
        let listeners = Listeners::open(&[wanted], vec![]).expect("opens");
        upgrade("/does/not/exist", &[]).exec(&listeners);
        for (_, _, socket, _) in listeners.sockets() {
            let flags = fcntl(socket, FcntlArg::F_GETFD).expect("flags");
            assert_eq!(flags & FdFlag::FD_CLOEXEC.bits(), FdFlag::FD_CLOEXEC.bits());
        }
    }

    #[test]
    fn the_replaced_binary_is_found_under_its_name() {
        assert_eq!(undeleted("/usr/bin/hie (deleted)".into()), Path::new("/usr/bin/hie"));
        assert_eq!(undeleted("/usr/bin/hie".into()), Path::new("/usr/bin/hie"));
    }
}
