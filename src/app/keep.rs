//! Small files of the store that outlive a restart: replaced as a whole, or not at all.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

/// Replaces `<store>/<name>` by `text`, mode 0600, atomically and durably (fsynced, its name too). The error is for the operator.
pub(super) fn replace(store: &Path, name: &str, text: &[u8]) -> Result<(), String> {
    let write = || -> io::Result<()> {
        let new = store.join(format!("{name}.new"));
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(text)?;
        file.sync_all()?;
        fs::rename(&new, store.join(name))?;
        // The new name too must outlive a power cut.
        File::open(store)?.sync_all()
    };
    write().map_err(|e| format!("{name} cannot be written: {e}"))
}
