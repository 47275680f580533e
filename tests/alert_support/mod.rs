//! Receivers of alerts: a real mail server (Debian's aiosmtpd, delivering into a maildir), and an HTTP server that keeps what is
//! posted.
#![allow(dead_code)] // each test file uses its part

use crate::harness::{http, node::free_port, wait_until};
use std::{
    fs,
    io::{BufReader, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

/// Debian packages, unpacked into a folder below target/tools: nothing is installed, nothing is started as a service.
pub fn unpacked(name: &str, packages: &[&str], proof: &str) -> PathBuf {
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(|e| e.into_inner());
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools").join(name);
    if folder.join(proof).exists() {
        return folder;
    }
    fs::create_dir_all(&folder).expect("a folder below target");
    let run = |command: &mut Command| command.current_dir(&folder).stdin(Stdio::null()).output().map(|o| o.status.success());
    let download = || run(Command::new("apt-get").arg("download").args(packages)).unwrap_or(false);
    let missing = format!("{packages:?} could not be had: apt-get download {}", packages.join(" "));
    if !download() {
        // Lists may be old or absent.
        let _ = run(Command::new("apt-get").arg("update"));
        assert!(download(), "{missing}");
    }
    for entry in fs::read_dir(&folder).expect("the folder").flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|e| e == "deb") {
            assert!(run(Command::new("dpkg").arg("-x").arg(&path).arg(".")).unwrap_or(false), "dpkg -x {}", path.display());
            let _ = fs::remove_file(path);
        }
    }
    assert!(folder.join(proof).exists(), "{missing}");
    folder
}

/// Accepts mail for everybody, after STARTTLS and AUTH where asked for; answers 451 while the file `refuse` is there.
const SERVER: &str = r#"
import os, ssl, sys, time
from aiosmtpd.controller import Controller
from aiosmtpd.handlers import Mailbox
from aiosmtpd.smtp import AuthResult
folder, port, cert, key = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]

class Handler(Mailbox):
    async def handle_RCPT(self, server, session, envelope, address, options):
        if address.startswith("gone@"):
            return "550 5.1.1 no such user"
        envelope.rcpt_tos.append(address)
        envelope.rcpt_options.extend(options)
        return "250 OK"

    async def handle_DATA(self, server, session, envelope):
        if os.path.exists(os.path.join(folder, "refuse")):
            return "451 4.7.1 try again later"
        return await super().handle_DATA(server, session, envelope)

def login(server, session, envelope, mechanism, data):
    return AuthResult(success=data.login == b"hie" and data.password == b"a secret of the test")

more = {}
if cert:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    more = dict(tls_context=context, require_starttls=True, authenticator=login, auth_required=True)
controller = Controller(Handler(os.path.join(folder, "mail")), hostname="127.0.0.1", port=port, **more)
controller.start()
while True:
    time.sleep(3600)
"#;

/// A mail server; ended when dropped.
pub struct MailServer {
    pub addr: SocketAddr,
    folder: PathBuf,
    tls: Option<(PathBuf, PathBuf)>,
    child: Option<Child>,
}

impl MailServer {
    /// Not started yet. `tls`: certificate and key for STARTTLS, which is then required, as is a login.
    pub fn new(folder: &Path, tls: Option<(PathBuf, PathBuf)>) -> Self {
        fs::create_dir_all(folder).expect("a folder");
        fs::write(folder.join("server.py"), SERVER).expect("written");
        Self { addr: free_port(), folder: folder.into(), tls, child: None }
    }

    pub fn up(&mut self) {
        let packages = ["python3-aiosmtpd", "python3-attr", "python3-public", "python3-typing-extensions"];
        let library = "usr/lib/python3/dist-packages";
        let tools = unpacked("mail", &packages, &format!("{library}/aiosmtpd/controller.py"));
        let log = fs::File::create(self.folder.join("log")).expect("a log file");
        let (cert, key) = self.tls.clone().unwrap_or_default();
        let child = Command::new("python3")
            .arg(self.folder.join("server.py"))
            .arg(&self.folder)
            .arg(self.addr.port().to_string())
            .args([cert, key])
            .env("PYTHONPATH", tools.join(library))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a descriptor"))
            .stderr(log)
            .spawn()
            .expect("python3 is missing: apt-get install python3");
        self.child = Some(child);
        let up = wait_until(Duration::from_secs(20), || TcpStream::connect(self.addr).is_ok());
        assert!(up, "the mail server does not start: {}", fs::read_to_string(self.folder.join("log")).unwrap_or_default());
    }

    pub fn down(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Answers 451, or not any more.
    pub fn refuse(&self, yes: bool) {
        let file = self.folder.join("refuse");
        let _ = if yes { fs::write(file, "") } else { fs::remove_file(file) };
    }

    /// All mails delivered, as they lie in the maildir; the oldest first.
    pub fn mails(&self) -> Vec<String> {
        let mut found: Vec<_> =
            fs::read_dir(self.folder.join("mail/new")).into_iter().flatten().flatten().map(|e| e.path()).collect();
        found.sort_by_key(|path| path.metadata().and_then(|m| m.modified()).ok());
        found.iter().map(|path| fs::read_to_string(path).unwrap_or_default()).collect()
    }
}

impl Drop for MailServer {
    fn drop(&mut self) {
        self.down();
    }
}

/// One POST: its headers' lines and its JSON.
pub type Posted = (http::Head, serde_json::Value);

/// An HTTP server that answers 200 and keeps what is posted.
pub struct Hook {
    pub addr: SocketAddr,
    posted: Arc<Mutex<Vec<Posted>>>,
}

impl Hook {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let addr = listener.local_addr().expect("its address");
        let posted = Arc::new(Mutex::new(Vec::new()));
        let keep: Arc<Mutex<Vec<Posted>>> = posted.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let keep = keep.clone();
                std::thread::spawn(move || {
                    let mut input = BufReader::new(&stream);
                    while let Ok(Some(head)) = http::Head::read(&mut input) {
                        let mut body = Vec::new();
                        if http::read_body(&head, &mut input, false, |piece| body.extend_from_slice(piece)).is_err() {
                            return;
                        }
                        let json = serde_json::from_slice(&body).unwrap_or_default();
                        keep.lock().unwrap().push((head, json));
                        if (&stream).write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Self { addr, posted }
    }

    pub fn posted(&self) -> Vec<Posted> {
        self.posted.lock().unwrap().clone()
    }
}
