//! MLLP for measurements: the bare sink (reads frames, answers AA with the control id, parses and stores nothing else),
//! and a sender with one message in flight.

use super::Exchange;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const VT: u8 = 0x0b;
const END: [u8; 2] = [0x1c, 0x0d];

/// Serves until killed.
pub fn bare(port: u16) -> ! {
    serve(port, None)
}

fn serve(port: u16, keep: Option<std::sync::mpsc::Sender<Kept>>) -> ! {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.expect("the port");
        loop {
            let Ok((stream, _)) = listener.accept().await else { continue };
            let keep = keep.clone();
            tokio::spawn(async move {
                let _ = answer(stream, keep).await;
            });
        }
    })
}

/// What waits for the bare committer: a message's bytes, and who waits.
type Kept = (Vec<u8>, tokio::sync::oneshot::Sender<()>);

/// As [`bare`]; each message is in a SQLite file, committed and synced, before it is answered.
pub fn durable(port: u16) -> ! {
    let dir = tempfile::tempdir().expect("a folder");
    let (keep, waiting) = std::sync::mpsc::channel::<Kept>();
    let conn = rusqlite::Connection::open(dir.path().join("bare.db")).expect("a database");
    conn.pragma_update(None, "journal_mode", "wal").expect("WAL");
    conn.pragma_update(None, "synchronous", "full").expect("synchronous FULL");
    conn.execute_batch("CREATE TABLE bodies(seq INTEGER PRIMARY KEY, data BLOB)").expect("a table");
    std::thread::spawn(move || {
        let mut insert = conn.prepare("INSERT INTO bodies(data) VALUES(?1)").expect("INSERT");
        while let Ok(first) = waiting.recv() {
            let group: Vec<Kept> = std::iter::once(first).chain(waiting.try_iter()).collect();
            conn.execute_batch("BEGIN IMMEDIATE").expect("BEGIN");
            for (data, _) in &group {
                insert.execute([data]).expect("a row");
            }
            conn.execute_batch("COMMIT").expect("COMMIT");
            for (_, told) in group {
                let _ = told.send(());
            }
        }
    });
    serve(port, Some(keep))
}

async fn answer(mut stream: TcpStream, keep: Option<std::sync::mpsc::Sender<Kept>>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = Vec::with_capacity(64 * 1024);
    let mut out = Vec::with_capacity(4096);
    loop {
        if stream.read_buf(&mut buffer).await? == 0 {
            return Ok(());
        }
        let mut from = 0;
        while let Some(end) = memchr::memmem::find(&buffer[from..], &END) {
            if let Some(keep) = &keep {
                let (told, done) = tokio::sync::oneshot::channel();
                keep.send((buffer[from..from + end].to_vec(), told)).map_err(io::Error::other)?;
                done.await.map_err(io::Error::other)?;
            }
            let id = buffer[from..from + end].split(|b| *b == b'|').nth(9).unwrap_or(b"");
            out.push(VT);
            out.extend_from_slice(b"MSH|^~\\&|B|B|A|A|20250101||ACK|1|P|2.5\rMSA|AA|");
            out.extend_from_slice(id);
            out.push(b'\r');
            out.extend_from_slice(&END);
            from += end + 2;
        }
        buffer.drain(..from);
        if !out.is_empty() {
            stream.write_all(&out).await?;
            out.clear();
        }
    }
}

/// A connection that sends an ADT of 1 KB after the other, of 500 patients in turn.
pub struct Sender {
    stream: TcpStream,
    number: usize,
    /// Its place among all connections of this process: were an id used again, the node would take the message for a resend.
    serial: usize,
    sent: u64,
    message: Vec<u8>,
    buffer: Vec<u8>,
}

impl Sender {
    pub async fn connect(to: SocketAddr, number: usize) -> io::Result<Self> {
        let stream = TcpStream::connect(to).await?;
        stream.set_nodelay(true)?;
        static CONNECTED: AtomicUsize = AtomicUsize::new(0);
        let serial = CONNECTED.fetch_add(1, Ordering::Relaxed);
        Ok(Self { stream, number, serial, sent: 0, message: Vec::with_capacity(1100), buffer: Vec::with_capacity(4096) })
    }

    /// The control id of message `sent` of the connection that was the `serial`th (from 0) of this process.
    pub fn id(serial: usize, sent: u64) -> String {
        format!("{:x}.{serial}.{sent}", std::process::id())
    }

    pub fn patient(number: usize, sent: u64) -> String {
        format!("P{number}x{}", sent % 500)
    }
}

impl Exchange for Sender {
    async fn once(&mut self) -> io::Result<bool> {
        self.sent += 1;
        let id = Self::id(self.serial, self.sent);
        adt(&mut self.message, &id, &Self::patient(self.number, self.sent));
        self.stream.write_all(&self.message).await?;
        self.buffer.clear();
        while !self.buffer.ends_with(&END) {
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        let accepted = [b"MSA|AA|", id.as_bytes()].concat();
        Ok(memchr::memmem::find(&self.buffer, &accepted).is_some())
    }
}

/// A framed ADT^A08 of 1 KB.
fn adt(out: &mut Vec<u8>, id: &str, patient: &str) {
    out.clear();
    out.push(VT);
    out.extend_from_slice(b"MSH|^~\\&|BENCH|LOAD|HIE|T|20250101120000||ADT^A08^ADT_A01|");
    out.extend_from_slice(id.as_bytes());
    out.extend_from_slice(b"|P|2.5.1\rEVN|A08|20250101120000\rPID|1||");
    out.extend_from_slice(patient.as_bytes());
    out.extend_from_slice(
        b"^^^HOSP^MR||EXAMPLE^EVE^^^MS||19700101|F|||1 MAIN ST^^TOWN^ST^12345^USA||(555)555-0100|||M||AC\
          C123\rNK1|1|EXAMPLE^ADAM|SPO|1 MAIN ST^^TOWN^ST^12345^USA|(555)555-0101\rPV1|1|I|WARD^12^A^HOSP||||1234^DOCTOR^DORA\
          |||MED||||1|||1234^DOCTOR^DORA|IN|V123|SELF||||||||||||||||||||||||20250101120000\r",
    );
    while out.len() < 1000 {
        let left = (1000 - out.len()).min(100);
        out.extend_from_slice(b"NTE|1||");
        out.extend(std::iter::repeat_n(b'n', left));
        out.push(b'\r');
    }
    out.extend_from_slice(&END);
}
