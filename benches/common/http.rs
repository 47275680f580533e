//! HTTP for measurements: a trivial upstream, and a sender of 2 KB POSTs on a kept connection.

use super::Exchange;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Serves until killed: every request gets the same 200.
pub fn bare(port: u16) -> ! {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.expect("the port");
        loop {
            let Ok((stream, _)) = listener.accept().await else { continue };
            tokio::spawn(async move {
                let _ = answer(stream).await;
            });
        }
    })
}

async fn answer(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = Vec::with_capacity(64 * 1024);
    loop {
        while let Some(length) = complete(&buffer) {
            buffer.drain(..length);
            stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 15\r\n\r\n{\"status\":\"ok\"}")
                .await?;
        }
        if stream.read_buf(&mut buffer).await? == 0 {
            return Ok(());
        }
    }
}

/// Length of the first message in `buffer`, head and body, when it is all there (a length or chunks).
fn complete(buffer: &[u8]) -> Option<usize> {
    let head = memchr::memmem::find(buffer, b"\r\n\r\n")? + 4;
    let text = std::str::from_utf8(&buffer[..head]).ok()?.to_ascii_lowercase();
    if let Some(at) = text.find("content-length:") {
        let length: usize = text[at + 15..].split('\r').next()?.trim().parse().ok()?;
        return (buffer.len() >= head + length).then_some(head + length);
    }
    if text.contains("transfer-encoding: chunked") {
        let mut at = head;
        loop {
            let line = memchr::memmem::find(&buffer[at..], b"\r\n")?;
            let size = usize::from_str_radix(std::str::from_utf8(&buffer[at..at + line]).ok()?.trim(), 16).ok()?;
            at += line + 2 + size + 2;
            if at > buffer.len() {
                return None;
            }
            if size == 0 {
                return Some(at);
            }
        }
    }
    Some(head)
}

pub struct Sender {
    stream: TcpStream,
    request: Vec<u8>,
    buffer: Vec<u8>,
}

impl Sender {
    pub async fn connect(to: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(to).await?;
        stream.set_nodelay(true)?;
        let body = format!("{{\"resourceType\":\"Observation\",\"status\":\"final\",\"note\":\"{}\"}}", "n".repeat(1985));
        let request = format!(
            "POST /fhir/Observation HTTP/1.1\r\nHost: {to}\r\nContent-Type: application/fhir+json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        Ok(Self { stream, request: request.into_bytes(), buffer: Vec::with_capacity(8192) })
    }
}

impl Exchange for Sender {
    async fn once(&mut self) -> io::Result<bool> {
        self.stream.write_all(&self.request).await?;
        self.buffer.clear();
        loop {
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if complete(&self.buffer).is_some() {
                return Ok(self.buffer.starts_with(b"HTTP/1.1 200"));
            }
        }
    }
}
