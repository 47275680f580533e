//! One MLLP connection by hand.

use super::wire::{Frames, frame};
use std::io::{self, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

pub struct Peer {
    pub stream: TcpStream,
    frames: Frames<TcpStream>,
}

impl Peer {
    pub fn connect(to: SocketAddr) -> Self {
        Self::over(TcpStream::connect_timeout(&to, Duration::from_secs(5)).unwrap_or_else(|e| panic!("{to}: {e}")))
    }

    /// A connection that is there already.
    pub fn over(stream: TcpStream) -> Self {
        stream.set_nodelay(true).expect("a socket option");
        stream.set_read_timeout(Some(Duration::from_secs(15))).expect("a socket option");
        stream.set_write_timeout(Some(Duration::from_secs(15))).expect("a socket option");
        Self { frames: Frames::new(stream.try_clone().expect("a descriptor")), stream }
    }

    /// Writes bytes as they are.
    pub fn raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// The next frame; `None` when the other side has closed.
    pub fn answer(&mut self) -> io::Result<Option<Vec<u8>>> {
        self.frames.read()
    }

    /// Sends a message, gives its acknowledgment.
    pub fn exchange(&mut self, message: &[u8]) -> Vec<u8> {
        self.raw(&frame(message)).expect("sent");
        self.answer().expect("an answer").expect("the connection is kept")
    }
}
