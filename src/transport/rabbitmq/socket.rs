//! The socket under lapin: TCP or TLS, opened by us so that every failure has its own text, and ended at any moment from outside.
//!
//! lapin cannot end a connection whose broker is silent (it waits for an answer), and tells the end of one by several ways or
//! none; here [`Ending::end`] makes every read and write fail at once, and [`Ending::ended`] resolves when lapin has let go.

use async_rs::{Runtime, Tokio, traits::Reactor, util::RuntimeParts};
use futures_io::{AsyncRead, AsyncWrite};
use futures_util::task::AtomicWaker;
use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd},
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncRead as _, AsyncWrite as _, ReadBuf},
    net::TcpStream,
    runtime::Handle,
};
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;

/// Bytes of the broker's first answer that are looked at for its release.
const GREETING: usize = 4096;

enum Io {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// The socket.
pub(super) struct Socket {
    io: Io,
    ending: Arc<Ending>,
}

/// What is known of a socket from outside.
#[derive(Default)]
pub(super) struct Ending {
    cut: AtomicBool,
    reader: AtomicWaker,
    writer: AtomicWaker,
    gone: CancellationToken,
    greeting: Mutex<Vec<u8>>,
}

impl Socket {
    pub(super) fn plain(stream: TcpStream) -> Self {
        Self { io: Io::Plain(stream), ending: Arc::default() }
    }

    pub(super) fn tls(stream: TlsStream<TcpStream>) -> Self {
        Self { io: Io::Tls(Box::new(stream)), ending: Arc::default() }
    }

    pub(super) fn ending(&self) -> Arc<Ending> {
        self.ending.clone()
    }
}

impl Ending {
    /// Every read and write fails from now on: nothing that was not yet written ever is.
    pub(super) fn end(&self) {
        self.cut.store(true, Ordering::SeqCst);
        self.reader.wake();
        self.writer.wake();
    }

    /// When nobody holds the socket any more.
    pub(super) async fn ended(&self) {
        self.gone.cancelled().await;
    }

    /// The broker's release as it told it when greeting; `?` when it did not.
    pub(super) fn release(&self) -> String {
        let greeting = self.greeting.lock().unwrap_or_else(|e| e.into_inner());
        // connection.start's server-properties: short-string key, 'S', 32 bits of length, the text (AMQP 0-9-1, 4.2.5.5).
        let key = b"\x07versionS";
        let text = greeting.windows(key.len()).position(|w| w == key).and_then(|at| {
            let rest = &greeting[at + key.len()..];
            let length = u32::from_be_bytes(rest.get(..4)?.try_into().ok()?) as usize;
            std::str::from_utf8(rest.get(4..4 + length.min(64))?).ok()
        });
        text.filter(|t| t.chars().all(|c| c.is_ascii_graphic())).unwrap_or("?").to_owned()
    }

    fn check(&self) -> io::Result<()> {
        match self.cut.load(Ordering::SeqCst) {
            true => Err(io::ErrorKind::ConnectionAborted.into()),
            false => Ok(()),
        }
    }

    fn note(&self, bytes: &[u8]) {
        let mut greeting = self.greeting.lock().unwrap_or_else(|e| e.into_inner());
        let room = GREETING.saturating_sub(greeting.len());
        greeting.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if self.ending.cut.load(Ordering::SeqCst) {
            // The kernel would go on sending what it holds, for minutes over a cut network: a message that was published again
            // elsewhere, and its mark, would be followed by itself without the mark.
            let stream = match &self.io {
                Io::Plain(stream) => stream,
                Io::Tls(stream) => stream.get_ref().0,
            };
            let _ = stream.set_zero_linger();
        }
        self.ending.gone.cancel();
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        this.ending.reader.register(cx.waker());
        this.ending.check()?;
        let mut into = ReadBuf::new(buffer);
        let done = match &mut this.io {
            Io::Plain(stream) => Pin::new(stream).poll_read(cx, &mut into),
            Io::Tls(stream) => Pin::new(stream).poll_read(cx, &mut into),
        };
        done.map_ok(|()| {
            this.ending.note(into.filled());
            into.filled().len()
        })
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        this.ending.writer.register(cx.waker());
        this.ending.check()?;
        match &mut this.io {
            Io::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Io::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.ending.check()?;
        match &mut self.io {
            Io::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Io::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.ending.check()?;
        match &mut self.io {
            Io::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Io::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// lapin's runtime on ours: tasks and timers are tokio's, the socket is [`Socket`].
pub(super) type Kit = RuntimeParts<Tokio, Timers>;

/// Timers of a tokio runtime.
#[derive(Clone, Debug)]
pub(super) struct Timers(Tokio);

pub(super) fn runtime(handle: &Handle) -> Runtime<Kit> {
    let tokio = Tokio::default().with_handle(handle.clone());
    Runtime::new(RuntimeParts::new(tokio.clone(), Timers(tokio)))
}

impl Reactor for Timers {
    type TcpStream = Socket;
    type Sleep = <Tokio as Reactor>::Sleep;

    fn register<H: io::Read + io::Write + AsFd + AsRawFd + Send + 'static>(
        &self,
        socket: H,
    ) -> io::Result<impl AsyncRead + AsyncWrite + Send + Unpin + 'static> {
        self.0.register(socket)
    }

    fn sleep(&self, duration: Duration) -> Self::Sleep {
        self.0.sleep(duration)
    }

    fn interval(&self, duration: Duration) -> impl futures_util::Stream<Item = Instant> + Send + 'static {
        self.0.interval(duration)
    }

    fn tcp_connect_addr(&self, _: SocketAddr) -> impl Future<Output = io::Result<Socket>> + Send + 'static {
        // Sockets are opened by the link, not by lapin.
        std::future::ready(Err(io::ErrorKind::Unsupported.into()))
    }
}
