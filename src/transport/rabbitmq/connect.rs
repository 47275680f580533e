//! One attempt to connect with one broker.

use super::{
    reason::{Asked, Reason},
    session::{Inner, Session},
    settings::LinkSettings,
    socket::{Socket, runtime},
};
use crate::config::{BrokerUrl, client_tls};
use futures_util::Stream;
use lapin::{
    BasicProperties, Connection, ConnectionProperties, Event, options,
    tcp::AsyncTcpStream,
    uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo},
};
use rand::seq::SliceRandom;
use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    net::TcpStream,
    runtime::Handle,
    time::{Instant, timeout_at},
};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

/// lapin keeps 64 frames in memory for a connection; larger frames would gain nothing.
const FRAME: u32 = 64 * 1024;

/// Nobody's queue.
const PROBE: &str = "hie.probe";

/// What lapin tells about a connection.
pub(super) type Events = Pin<Box<dyn Stream<Item = Event> + Send>>;

/// Connects: address, TCP, TLS, AMQP, all within `connect_timeout`. `number` is the session's.
pub(super) async fn connect(
    settings: &LinkSettings,
    broker: &BrokerUrl,
    number: u64,
    handle: &Handle,
) -> Result<(Session, Events), Reason> {
    let name = broker.to_string();
    let asked = Asked { broker: &name, vhost: &settings.vhost, user: &settings.user, tls: broker.tls };
    let password = settings.password.read()?;
    let until = Instant::now() + settings.connect_timeout;
    let socket = open(settings, broker, &asked, until).await?;
    let ending = socket.ending();

    let uri = AMQPUri {
        // TLS is done already.
        scheme: AMQPScheme::AMQP,
        authority: AMQPAuthority {
            userinfo: AMQPUserInfo { username: settings.user.clone(), password },
            host: broker.host.clone(),
            port: broker.port,
        },
        vhost: settings.vhost.clone(),
        query: AMQPQueryString {
            heartbeat: Some(u16::try_from(settings.heartbeat.as_secs().max(1)).unwrap_or(u16::MAX)),
            frame_max: Some(FRAME),
            ..AMQPQueryString::default()
        },
    };
    let properties = ConnectionProperties::default()
        .with_connection_name(settings.name.as_str().into())
        .with_client_property("product".into(), "hie".into())
        .with_client_property("version".into(), env!("CARGO_PKG_VERSION").into());
    let handed = Mutex::new(Some(socket));
    let take = move |_, _| {
        let socket = handed.lock().unwrap_or_else(|e| e.into_inner()).take();
        async move { socket.map(AsyncTcpStream::Plain).ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected).into()) }
    };
    let greeted = timeout_at(until, Connection::connector(uri, runtime(handle), take, properties)).await;
    let connection = match greeted {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => {
            ending.end();
            return Err(asked.refused(&error));
        }
        Err(_) => {
            ending.end();
            return Err(asked.silent("greeting"));
        }
    };
    let events: Events = Box::pin(connection.events_listener());
    if let Err(reason) = probe(&connection, &asked, until).await {
        ending.end();
        return Err(reason);
    }
    let release = ending.release();
    let inner = Inner { number, broker: name, release, connection, ending, lost: CancellationToken::new() };
    Ok((Session(Arc::new(inner)), events))
}

/// Publishes a message that no queue takes. A broker tells only those who publish that it takes nothing for want of memory or
/// disk, and only now does it show whether the user may.
async fn probe(connection: &Connection, asked: &Asked<'_>, until: Instant) -> Result<(), Reason> {
    let published = async {
        let channel = connection.create_channel().await?;
        channel.confirm_select(options::ConfirmSelectOptions::default()).await?;
        let confirm = channel.basic_publish(
            "".into(),
            PROBE.into(),
            options::BasicPublishOptions::default(),
            &[],
            BasicProperties::default(),
        );
        confirm.await?.await?;
        channel.close(200, "OK".into()).await
    };
    match timeout_at(until, published).await {
        Ok(Ok(())) => Ok(()),
        _ if connection.status().blocked() => Ok(()),
        Ok(Err(error)) => Err(asked.refused(&error)),
        Err(_) => Err(asked.silent("confirm")),
    }
}

async fn open(settings: &LinkSettings, broker: &BrokerUrl, asked: &Asked<'_>, until: Instant) -> Result<Socket, Reason> {
    let addresses = timeout_at(until, tokio::net::lookup_host((broker.host.as_str(), broker.port))).await;
    let mut addresses: Vec<_> =
        addresses.map_err(|_| asked.silent("name service"))?.map_err(|e| asked.unknown_host(&e))?.collect();
    addresses.shuffle(&mut rand::rng());
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    let mut stream = None;
    let each = settings.connect_timeout / u32::try_from(addresses.len().max(1)).unwrap_or(1);
    for address in addresses {
        // An address that drops packets leaves time for the next one.
        let this = (Instant::now() + each.max(Duration::from_millis(500))).min(until);
        match timeout_at(this, TcpStream::connect(address)).await {
            Ok(Ok(connected)) => {
                stream = Some(connected);
                break;
            }
            Ok(Err(error)) => last = error,
            Err(_) => last = io::ErrorKind::TimedOut.into(),
        }
    }
    let stream = stream.ok_or_else(|| asked.unreachable(&last))?;
    // Acknowledgments are small and must not wait for more.
    let _ = stream.set_nodelay(true);
    if !broker.tls {
        return Ok(Socket::plain(stream));
    }
    let Some(tls) = &settings.tls else {
        return Err(Reason::new(format!("the broker {} is to be reached by TLS, which is not set up", asked.broker)));
    };
    let name =
        client_tls::server_name(&tls.names, &broker.host).map_err(|e| Reason::new(format!("transport.server_name: {e}")))?;
    match timeout_at(until, TlsConnector::from(tls.config.clone()).connect(name, stream)).await {
        Ok(Ok(stream)) => Ok(Socket::tls(stream)),
        Ok(Err(error)) => Err(asked.tls(&error)),
        Err(_) => Err(asked.silent("TLS")),
    }
}
