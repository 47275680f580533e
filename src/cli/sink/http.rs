//! The sink's HTTP side.

use super::{Shared, Verdict};
use crate::message::{Protocol, hl7::Header};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use std::{io, sync::Arc};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

pub(super) async fn connection(shared: Arc<Shared>, socket: TcpStream, number: u64) {
    // How a connection ended shows in the counts; for a trial nothing more is wanted.
    let _ = match shared.tls.clone() {
        None => serve(shared, socket, number).await,
        Some(tls) => match tls.accept(socket).await {
            Ok(stream) => serve(shared, stream, number).await,
            Err(e) => Err(e.into()),
        },
    };
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

async fn serve<S>(shared: Arc<Shared>, stream: S, number: u64) -> Result<(), Failure>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request| answer(shared.clone(), request, number));
    auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await
}

async fn answer(shared: Arc<Shared>, request: Request<Incoming>, number: u64) -> Result<Response<Full<Bytes>>, Failure> {
    let (parts, mut incoming) = request.into_parts();
    let wanted = shared.options.hook.is_some() || shared.options.save.is_some();
    let mut len = 0;
    let body = if wanted {
        let body = incoming.collect().await?.to_bytes();
        len = body.len() as u64;
        body
    } else {
        let mut head = Bytes::new();
        while let Some(frame) = incoming.frame().await {
            let Ok(data) = frame?.into_data() else { continue };
            if len == 0 {
                head = data.clone();
            }
            len += data.len() as u64;
        }
        head
    };
    let control_id = Header::parse(&body).map_or(&b""[..], |h| h.control_id);
    shared.received(number, Protocol::Http, control_id, &body, len, Some(&parts)).await;
    let behaviour = shared.behaviour.load_full();
    match shared.verdict(&behaviour).await {
        // An error of the service closes the connection.
        Verdict::Close => Err(io::Error::from(io::ErrorKind::ConnectionAborted).into()),
        Verdict::Silence => std::future::pending().await,
        Verdict::Answer { status, .. } => {
            let status = StatusCode::from_u16(status)?;
            shared.count_answer(status.as_u16() < 400);
            let mut response = Response::new(Full::new(behaviour.reply.clone()));
            *response.status_mut() = status;
            let received = HeaderName::from_static("x-received-bytes");
            response.headers_mut().insert(received, HeaderValue::from(len));
            Ok(response)
        }
    }
}
