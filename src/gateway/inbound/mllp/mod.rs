//! HL7 v2 over MLLP and MLLPS in.
//!
//! # Acknowledgments
//!
//! Queue mode, or a refusal: one acknowledgment by the node itself, sent when the message is durable.
//! - Original mode (MSH-15 and MSH-16 empty): `AA`, `AE` or `AR`.
//! - Enhanced mode: the accept acknowledgment (`CA`, `CE`, `CR`) where MSH-15 asks for it. The application
//!   acknowledgment is the application's to send, with one exception: where MSH-15 asks for nothing in this
//!   case and MSH-16 does, the node sends `AA`, `AE` or `AR`. Original mode is defined as just that
//!   (HL7 v2.5.1, 2.9.2: MSH-15 `NE`, MSH-16 `AL`), and such a sender waits on this connection.
//!
//! Proxy mode: what the upstream answers is relayed byte for byte, be it an accept or application acknowledgment or a query's
//! response. Where the upstream does not speak HL7 (HTTP), `AA` for a status below 400, else `AE`, as in original mode
//! unless MSH-16 says otherwise.
//!
//! # Batches
//!
//! A frame that begins with FHS or BHS is taken apart; each message in it is accepted as one of its own. HL7 leaves the choice
//! of how to acknowledge (v2.5.1, 2.10.3.3): this is model a), all messages are acknowledged in a response batch. Its BHS-12 (FHS-12)
//! refers to the BHS-11 (FHS-11) of the request. In enhanced mode it holds those acknowledgments that are asked for; where
//! none is, nothing is sent.
//!
//! # Limits
//!
//! MLLP has no way to refuse before a message came: connections over `max_connections` are accepted and closed at once, so
//! that the sender sees a plain end and can go to another node, and counted. A frame over `max_frame` is refused with `AR`, recorded and skipped; the
//! connection goes on. A full table is shared: the longest idle connection of the address that holds the most gives way to
//! a sender that holds fewer (see `seats`). Frames over 256 KiB are received a few at a time, at most half of them from one sender, and each within
//! `frame_timeout`; a message among them goes into the log piece by piece while it arrives (rules see its beginning), and is answered when
//! its frame has ended; a start block within a frame does not begin that time anew. More than [`MAX_GARBAGE`] bytes outside frames end the connection. While the node pushes back,
//! nothing is read, and TCP tells the sender. So it is while a message waits for its turn because its client is over its rate; one
//! that would wait longer than 5 s is refused with `AE`.

mod answer;
mod batch;
mod clock;
mod connection;
mod large;
mod leave;
mod pace;
mod receive;
mod seats;
mod slot;

use super::{
    ANONYMOUS,
    accept::accept_until,
    connections::{Connections, Permit},
    drain::Draining,
    identify, peer,
};
use crate::{
    config,
    engine::{
        ports::{Credentials, Intake},
        shares::Holder,
    },
    telemetry::inbound::{ConnectionCut, Cut},
};
use bytes::Bytes;
use seats::{Seat, Seats};
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Bytes outside frames after which a connection is ended.
pub const MAX_GARBAGE: u64 = 1024 * 1024;

/// Frames over this size, in bytes, are received a few at a time.
const LARGE: usize = 256 * 1024;
/// How many of them. One sender may have half of them. A message goes on to the engine piece by piece while it arrives; a batch is held whole,
/// so that this times `max_frame` bounds the memory of batches.
const LARGE_AT_ONCE: usize = 4;
/// Told when a connection is ended for somebody else's.
const GAVE_WAY: &str = "the table is full and this address holds most of it: its longest idle connection gives way to another \
                        sender's; raise max_connections of this listener, or set its idle_timeout";
/// For a TLS handshake.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);

/// One MLLP listener, shared by all accepting instances.
pub struct MllpServer {
    config: config::Mllp,
    listener: Arc<str>,
    client: Option<Arc<str>>,
    tls: Option<TlsAcceptor>,
    connections: Arc<Connections>,
    seats: Arc<Seats>,
    large: large::Large,
}

impl MllpServer {
    /// `tls`: given for MLLPS (no ALPN). `config.max_connections` counts over all instances.
    pub fn new(config: config::Mllp, tls: Option<TlsAcceptor>) -> Arc<Self> {
        let listener: Arc<str> = config.name.as_str().into();
        Arc::new(Self {
            connections: Connections::new(&listener, config.max_connections),
            client: config.client.as_deref().map(Arc::from),
            listener,
            tls,
            seats: Seats::new(config.max_connections),
            config,
            large: large::Large::default(),
        })
    }

    /// The table of its open connections.
    pub fn connections(&self) -> &Arc<Connections> {
        &self.connections
    }

    /// A place in the table of connections, and how to be asked for it back.
    fn place(&self, peer: SocketAddr) -> Option<(Permit, Seat)> {
        let holder = Holder::address(peer.ip());
        let permit = match self.connections.take() {
            None if self.seats.make_room(&holder) => self.connections.take_over(),
            taken => taken?,
        };
        Some((permit, self.seats.sit(holder)))
    }

    fn cut(&self, peer: SocketAddr, reason: Cut, detail: &str) {
        ConnectionCut { meters: self.connections.meters(), peer: peer.ip(), reason, detail }.emit();
    }
}

/// Serves until `drain` is cancelled, then returns; connections go on as tasks in `tasks` until what they have in hand
/// is acknowledged. The last acknowledgment leaves together with the end of the stream, so that a sender that looks for
/// it never sends into a closing connection.
///
/// `listener` is dropped at the return; keep another descriptor of the socket open where its accept queue must not be lost.
pub async fn serve(
    listener: TcpListener,
    server: Arc<MllpServer>,
    intake: Arc<dyn Intake>,
    drain: CancellationToken,
    tasks: TaskTracker,
) {
    let draining = Draining::default();
    accept_until(listener, &server.listener, &drain, |stream, peer| match server.place(peer) {
        Some(place) => {
            tasks.spawn(connect(server.clone(), intake.clone(), draining.clone(), stream, peer, place));
        }
        None => server.cut(peer, Cut::Limit, "too many connections: raise max_connections of this listener or add a node"),
    })
    .await;
    draining.begin();
}

/// From the accepted socket to the end of the connection.
async fn connect(
    server: Arc<MllpServer>,
    intake: Arc<dyn Intake>,
    draining: Draining,
    stream: TcpStream,
    socket_peer: SocketAddr,
    place: (Permit, Seat),
) {
    let (_permit, seat) = place;
    // An error here means that the peer is gone, which the first read tells.
    let _ = stream.set_nodelay(true);
    let opened = tokio::select! {
        biased;
        () = seat.asked_to_leave() => return server.cut(socket_peer, Cut::GaveWay, GAVE_WAY),
        opened = open(&server, stream, socket_peer) => opened,
    };
    match opened {
        Some((Opened::Plain(stream), peer)) => converse(&server, &*intake, draining, &seat, stream, peer, None).await,
        Some((Opened::Tls(stream), peer)) => {
            let certificate = super::tls::client_certificate(stream.get_ref().1);
            converse(&server, &*intake, draining, &seat, *stream, peer, certificate).await;
        }
        None => {}
    }
}

/// A connection that can be read from.
enum Opened {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// Admits the peer and shakes hands; `None` when that failed, which is told here.
async fn open(server: &MllpServer, mut stream: TcpStream, socket_peer: SocketAddr) -> Option<(Opened, SocketAddr)> {
    let config = &server.config;
    let peer = match peer::admit(&mut stream, socket_peer, &config.proxy_protocol_from, &config.allow_ips).await {
        Ok(peer) => peer,
        Err((reason, detail)) => {
            server.cut(socket_peer, reason, detail);
            return None;
        }
    };
    let Some(acceptor) = &server.tls else { return Some((Opened::Plain(stream), peer)) };
    match timeout(HANDSHAKE_WITHIN, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => return Some((Opened::Tls(Box::new(stream)), peer)),
        Ok(Err(error)) => server.cut(peer, Cut::Tls, &format!("TLS handshake failed: {error}")),
        Err(_) => server.cut(peer, Cut::Tls, "TLS handshake did not end in time"),
    }
    None
}

/// Identifies the sender, once for the connection, and takes its frames.
async fn converse(
    server: &MllpServer,
    intake: &dyn Intake,
    draining: Draining,
    seat: &Seat,
    stream: impl Socket,
    peer: SocketAddr,
    certificate: Option<Bytes>,
) {
    let proved = certificate.is_some();
    let credentials = Credentials { authorization: None, certificate };
    let identified =
        identify(intake, &server.listener, Some(peer), &credentials, server.client.as_ref(), server.config.require_client);
    match identified.await {
        Ok(client) => {
            let proved = proved && &*client != ANONYMOUS;
            seat.belongs_to((!proved).then(|| Holder::address(peer.ip())));
            connection::Connection::new(server, intake, seat, stream, (client, proved, peer)).run(draining).await;
        }
        // Without a message there is nothing to answer, so the connection is ended; the reason is in the log.
        Err(denied) => server.cut(peer, Cut::Denied, &denied.to_string()),
    }
}

/// A plain or TLS stream over TCP.
trait Socket: AsyncRead + AsyncWrite + Unpin + Send {
    fn tcp(&self) -> &TcpStream;
}

impl Socket for TcpStream {
    fn tcp(&self) -> &TcpStream {
        self
    }
}

impl Socket for TlsStream<TcpStream> {
    fn tcp(&self) -> &TcpStream {
        self.get_ref().0
    }
}
