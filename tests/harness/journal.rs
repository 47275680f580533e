//! Stand-ins for journald and systemd: datagram sockets that remember what a node told them.

use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// A datagram socket, and what came over it, with the time.
pub struct Inbox {
    folder: tempfile::TempDir,
    came: Arc<Mutex<Vec<(Instant, String)>>>,
}

impl Default for Inbox {
    fn default() -> Self {
        Self::new()
    }
}

impl Inbox {
    pub fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("hie-inbox-").tempdir().expect("a folder");
        let socket = UnixDatagram::bind(folder.path().join("socket")).expect("a socket");
        let came: Arc<Mutex<Vec<(Instant, String)>>> = Arc::default();
        let into = came.clone();
        // Ends with the process: a test has few of them.
        std::thread::spawn(move || {
            let mut buffer = vec![0; 1 << 18];
            while let Ok(n) = socket.recv(&mut buffer) {
                let text = String::from_utf8_lossy(&fields(&buffer[..n])).into_owned();
                into.lock().unwrap().push((Instant::now(), text));
            }
        });
        Self { folder, came }
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    /// Everything so far, in order.
    pub fn all(&self) -> Vec<(Instant, String)> {
        self.came.lock().unwrap().clone()
    }

    /// Everything so far as one text.
    pub fn text(&self) -> String {
        self.all().into_iter().map(|(_, text)| text + "\n").collect()
    }

    /// Forgets what came so far.
    pub fn clear(&self) {
        self.came.lock().unwrap().clear();
    }

    /// When a datagram with this line came; fails after `limit`.
    pub fn wait_for(&self, line: &str, limit: Duration) -> Instant {
        let mut at = None;
        super::wait_until(limit, || {
            at = self.all().iter().find(|(_, text)| text.lines().any(|l| l == line)).map(|(at, _)| *at);
            at.is_some()
        });
        at.unwrap_or_else(|| panic!("{line} was not told; told were {:?}", self.text()))
    }

    /// The times at which a datagram with this line came.
    pub fn times(&self, line: &str) -> Vec<Instant> {
        self.all().into_iter().filter(|(_, text)| text.lines().any(|l| l == line)).map(|(at, _)| at).collect()
    }
}

/// A datagram with every field as `NAME=value`. The journal's native protocol writes a value that may hold line ends as
/// `NAME`, line end, length (64 bits, little endian), value; systemd's notifications are `NAME=value` throughout.
fn fields(datagram: &[u8]) -> Vec<u8> {
    let (mut out, mut rest) = (Vec::new(), datagram);
    while let Some(end) = rest.iter().position(|b| *b == b'\n') {
        let (line, after) = (&rest[..end], &rest[end + 1..]);
        out.extend_from_slice(line);
        rest = after;
        if !line.is_empty()
            && !line.contains(&b'=')
            && let Some((length, value)) = after.split_first_chunk::<8>()
        {
            let length = (u64::from_le_bytes(*length) as usize).min(value.len());
            out.push(b'=');
            out.extend_from_slice(&value[..length]);
            rest = value.get(length + 1..).unwrap_or_default();
        }
        out.push(b'\n');
    }
    out.extend_from_slice(rest);
    out
}

/// A wrapper in whose mount namespace this folder is the journal's (`None`: the journal is not there), and where standard
/// error is what `JOURNAL_STREAM` names, as under systemd. Needs root (mount namespaces) and util-linux.
pub fn under_systemd(journal: Option<&Inbox>) -> Vec<String> {
    let bind = |folder: &Path| format!("mount --bind '{}' /run/systemd/journal &&", folder.display());
    let bind = journal.map_or(String::new(), |inbox| bind(inbox.folder.path()));
    let script = format!(
        "mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/journal && {bind} \
         export JOURNAL_STREAM=$(stat -Lc %d:%i /proc/self/fd/2) && exec \"$@\""
    );
    ["unshare", "-m", "--propagation", "private", "sh", "-c", &script, "sh"].iter().map(|s| (*s).to_owned()).collect()
}
