//! HTTP/1.1 (RFC 9112), blocking and small: a client that keeps its connection, and request reading for receivers.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// A message's head: first line and headers (names in lower case).
#[derive(Clone, Debug, Default)]
pub struct Head {
    pub line: String,
    pub headers: Vec<(String, String)>,
}

impl Head {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// Reads one; `None` at an end before its first byte.
    pub fn read(from: &mut impl BufRead) -> io::Result<Option<Self>> {
        let mut line = String::new();
        if from.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let mut head = Self { line: line.trim_end().to_owned(), headers: vec![] };
        loop {
            let mut line = String::new();
            if from.read_line(&mut line)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let line = line.trim_end();
            if line.is_empty() {
                return Ok(Some(head));
            }
            let (name, value) = line.split_once(':').unwrap_or((line, ""));
            head.headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }

    fn chunked(&self) -> bool {
        self.header("transfer-encoding").is_some_and(|v| v.to_ascii_lowercase().contains("chunked"))
    }

    fn length(&self) -> Option<u64> {
        self.header("content-length").and_then(|v| v.parse().ok())
    }
}

/// Reads a body piece by piece into `take`. `to_end`: no length means until the connection closes (responses).
pub fn read_body(head: &Head, from: &mut impl BufRead, to_end: bool, mut take: impl FnMut(&[u8])) -> io::Result<()> {
    let mut exactly = |from: &mut dyn BufRead, mut left: u64| -> io::Result<()> {
        while left > 0 {
            let piece = from.fill_buf()?;
            if piece.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let n = piece.len().min(left as usize);
            take(&piece[..n]);
            from.consume(n);
            left -= n as u64;
        }
        Ok(())
    };
    if head.chunked() {
        loop {
            let mut line = String::new();
            from.read_line(&mut line)?;
            let size = u64::from_str_radix(line.trim().split(';').next().unwrap_or(""), 16)
                .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "chunk size"))?;
            exactly(from, size)?;
            let mut end = String::new();
            from.read_line(&mut end)?;
            if size == 0 {
                return Ok(());
            }
        }
    }
    match head.length() {
        Some(length) => exactly(from, length),
        None if to_end => loop {
            let piece = from.fill_buf()?;
            if piece.is_empty() {
                return Ok(());
            }
            let n = piece.len();
            take(piece);
            from.consume(n);
        },
        None => Ok(()),
    }
}

/// A response, body included.
#[derive(Clone, Debug, Default)]
pub struct Response {
    pub status: u16,
    pub head: Head,
    pub body: Vec<u8>,
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.header(name)
    }
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
    /// The body as JSON; null when it is none.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }
}

/// A connection to one server.
pub struct Client {
    stream: BufReader<TcpStream>,
    /// The server said that it closes.
    pub closing: bool,
}

impl Client {
    pub fn connect(to: SocketAddr, timeout: Duration) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&to, timeout)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(timeout))?;
        stream.set_write_timeout(Some(timeout))?;
        Ok(Self { stream: BufReader::with_capacity(64 * 1024, stream), closing: false })
    }

    pub fn stream(&self) -> &TcpStream {
        self.stream.get_ref()
    }

    /// Sends a request and reads the response.
    pub fn request(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> io::Result<Response> {
        let mut out = Vec::with_capacity(body.len() + 256);
        write!(out, "{method} {path} HTTP/1.1\r\nHost: witness\r\nContent-Length: {}\r\n", body.len())?;
        for (name, value) in headers {
            write!(out, "{name}: {value}\r\n")?;
        }
        out.extend_from_slice(b"\r\n");
        out.extend_from_slice(body);
        self.stream.get_mut().write_all(&out)?;
        self.response()
    }

    /// Writes raw bytes (a body piece by piece, or something that no client would send).
    pub fn raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.get_mut().write_all(bytes)
    }

    /// Reads a response; interim ones (1xx) are skipped.
    pub fn response(&mut self) -> io::Result<Response> {
        let mut body = Vec::new();
        let (status, head) = self.response_into(|piece| body.extend_from_slice(piece))?;
        Ok(Response { status, head, body })
    }

    /// Reads a response, its body piece by piece.
    pub fn response_into(&mut self, take: impl FnMut(&[u8])) -> io::Result<(u16, Head)> {
        loop {
            let head = Head::read(&mut self.stream)?.ok_or(io::ErrorKind::UnexpectedEof)?;
            let status: u16 = head.line.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
            if status == 0 {
                return Err(io::Error::new(io::ErrorKind::InvalidData, format!("no status line: {:?}", head.line)));
            }
            if status < 200 {
                continue;
            }
            self.closing = head.header("connection").is_some_and(|v| v.eq_ignore_ascii_case("close"));
            if status != 204 && status != 304 {
                read_body(&head, &mut self.stream, true, take)?;
            }
            return Ok((status, head));
        }
    }
}

/// One request on a connection of its own.
pub fn once(to: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> io::Result<Response> {
    let mut all = headers.to_vec();
    all.push(("Connection", "close"));
    Client::connect(to, Duration::from_secs(20))?.request(method, path, &all, body)
}
