//! Where files lie: the watched folder, `.taking`, `done` and `failed`.

use super::{Trouble, take::Finished};
use crate::config::WatchedFolder;
use std::{
    ffi::{OsStr, OsString},
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// The folders.
#[derive(Clone)]
pub(super) struct Places {
    directory: PathBuf,
    taking: PathBuf,
    done: PathBuf,
    failed: PathBuf,
}

/// A file in `.taking`.
#[derive(Clone, Debug)]
pub(super) struct Taken {
    pub path: PathBuf,
    pub name: OsString,
}

/// Suffixes tried for a name in use.
const SUFFIXES: u32 = 100_000;

impl Places {
    pub fn new(config: &WatchedFolder) -> Self {
        let directory = config.directory.clone();
        Self {
            taking: directory.join(".taking"),
            done: directory.join(&config.done),
            failed: directory.join(&config.failed),
            directory,
        }
    }

    /// Makes the subfolders and checks that files can be renamed into them.
    pub async fn prepare(&self) -> Result<(), Trouble> {
        self.blocking("making .taking, done and failed on the folder's own file system", |places| {
            let device = fs::metadata(&places.directory)?.dev();
            for folder in [&places.taking, &places.done, &places.failed] {
                fs::create_dir_all(folder)?;
                if fs::metadata(folder)?.dev() != device {
                    return Err(io::ErrorKind::CrossesDevices.into());
                }
            }
            Ok(())
        })
        .await
    }

    /// Files that an earlier run, or a drain, left in `.taking`, the oldest change first.
    pub async fn left_over(&self) -> Result<Vec<Taken>, Trouble> {
        self.blocking("reading .taking", |places| {
            let mut found = Vec::new();
            for entry in fs::read_dir(&places.taking)? {
                let entry = entry?;
                let meta = entry.metadata()?;
                if meta.is_file() {
                    found.push((meta.modified()?, Taken { path: entry.path(), name: entry.file_name() }));
                }
            }
            found.sort_by(|(a, x), (b, y)| a.cmp(b).then_with(|| x.name.cmp(&y.name)));
            Ok(found.into_iter().map(|(_, taken)| taken).collect())
        })
        .await
    }

    /// Renames a file of the folder into `.taking`.
    pub async fn begin(&self, name: &OsStr) -> Result<Taken, Trouble> {
        let name = name.to_owned();
        self.blocking("renaming into .taking", move |places| {
            let path = unused(&places.taking, &name)?;
            fs::rename(places.directory.join(&name), &path).inspect_err(|_| {
                // The placeholder; if it stays, it is an empty file that is found and told at the next look.
                let _ = fs::remove_file(&path);
            })?;
            Ok(Taken { path, name })
        })
        .await
    }

    /// Moves a finished file to `done` or `failed`.
    pub async fn end(&self, finished: &Finished) -> Result<(), Trouble> {
        let (taken, reasons) = (finished.taken.clone(), finished.reasons.join("\n"));
        self.blocking("moving to done or failed", move |places| {
            if !taken.path.try_exists()? {
                // Somebody else has moved it; its messages are answered all the same.
                return Ok(());
            }
            if reasons.is_empty() {
                return fs::rename(&taken.path, unused(&places.done, &taken.name)?);
            }
            let to = unused(&places.failed, &taken.name)?;
            let mut reason = to.clone().into_os_string();
            reason.push(".reason");
            // First the reason: a file in `failed` always has one.
            fs::write(unused_path(Path::new(&reason))?, reasons + "\n")?;
            fs::rename(&taken.path, to)
        })
        .await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        doing: &'static str,
        work: impl FnOnce(&Places) -> io::Result<T> + Send + 'static,
    ) -> Result<T, Trouble> {
        let places = self.clone();
        tokio::task::spawn_blocking(move || work(&places))
            .await
            .unwrap_or_else(|e| Err(io::Error::other(e)))
            .map_err(|e| (doing, e))
    }
}

/// A path for `name` in `folder` that nothing lies at. It is reserved by an empty file, which the rename replaces.
fn unused(folder: &Path, name: &OsStr) -> io::Result<PathBuf> {
    unused_path(&folder.join(name))
}

fn unused_path(wanted: &Path) -> io::Result<PathBuf> {
    for suffix in 0..SUFFIXES {
        let mut path = wanted.to_owned().into_os_string();
        if suffix > 0 {
            path.push(format!(".{suffix}"));
        }
        match fs::OpenOptions::new().write(true).create_new(true).open(&path) {
            Ok(_) => return Ok(path.into()),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_in_use_gets_a_suffix() {
        let folder = tempfile::tempdir().unwrap();
        let names: Vec<_> = (0..3).map(|_| unused(folder.path(), OsStr::new("a.hl7")).unwrap()).collect();
        assert_eq!(names, ["a.hl7", "a.hl7.1", "a.hl7.2"].map(|n| folder.path().join(n)));
    }
}
