//! Hands this node's closed ledger files to other nodes of the domain, which show the domain's secret; see [`crate::peer`].

use super::{
    error::ApiError,
    serve,
    shared::{App, Shared},
};
use crate::{
    ledger::Ledger,
    peer::{Broken, NODE, Nonce, SCHEME, SEAL, Sealer, Secret},
    telemetry::{admin::AdminDenied, peer as events},
};
use axum::{
    Extension,
    body::Body,
    extract::{Path, Request, State},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderValue, StatusCode, header};
use std::{
    fs::File,
    io::{self, Read},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

/// Files that are handed over at the same time; who asks for more waits.
const COPIES: usize = 2;
/// Sealed pieces on their way to a connection.
const AHEAD: usize = 4;
const PIECE: usize = 64 * 1024;
const LONGEST_NAME: usize = 64;

/// What other nodes of the domain may copy.
pub struct Peers {
    secret: Secret,
    domain: String,
    ledger: Arc<Ledger>,
    /// Bytes a second, for each copy.
    rate: u64,
    /// Lets the calling thread give way to others.
    background: fn(),
    copies: Arc<Semaphore>,
}

impl Peers {
    /// `rate`: bytes a second that a joiner gets at most; `background` is called by each thread that copies.
    pub fn new(secret: Secret, domain: &str, ledger: Arc<Ledger>, rate: u64, background: fn()) -> Self {
        let copies = Arc::new(Semaphore::new(COPIES));
        Self { secret, domain: domain.to_owned(), ledger, rate: rate.max(1), background, copies }
    }
}

/// A question whose asker has the secret.
struct Asked {
    nonce: Nonce,
    what: String,
    node: String,
}

#[utoipa::path(get, path = "/peer/ledger", tag = "peers", security(()),
    params(("roll" = Option<bool>, Query, description = "close the file that is being written first"),
        ("Authorization" = String, Header, description = "`HIE-Domain NONCE PROOF`: see docs/formats.md")),
    responses((status = 200, description = "sealed: the closed files of the ledger, as JSON", content_type = "application/octet-stream"),
        (status = 401, body = super::error::ErrorBody), (status = 404, body = super::error::ErrorBody, description = "no secret is configured")))]
/// For other nodes of the domain: which files of this node's ledger may be copied.
pub(super) async fn list(
    State(app): State<App>,
    Extension(serve::Peer(from)): Extension<serve::Peer>,
    request: Request,
) -> Result<Response, ApiError> {
    let (asked, roll) = (check(&app, from, &request)?, request.uri().query() == Some("roll=true"));
    let offer = app.blocking(move |state| state.peers.as_ref().map(|peers| peers.ledger.offer(roll))).await?;
    let offer = offer
        .ok_or_else(closed)?
        .map_err(|_| ApiError::unavailable("the ledger cannot be read now", "see `problems` in /status"))?;
    events::Asked { peer: from, node: &asked.node, logs: offer.logs.len(), bytes: offer.bytes() }.emit();
    let list = serde_json::to_vec(&offer).map_err(|_| ApiError::internal())?;
    let (sealer, nonce) = sealer(&app, &asked)?;
    Ok((sealed(nonce), sealer.seal_all(&list).map_err(|_| ApiError::internal())?).into_response())
}

#[utoipa::path(get, path = "/peer/ledger/{file}", tag = "peers", security(()),
    params(("file" = String, Path), ("Authorization" = String, Header, description = "`HIE-Domain NONCE PROOF`: see docs/formats.md")),
    responses((status = 200, description = "sealed: the file's bytes", content_type = "application/octet-stream"),
        (status = 401, body = super::error::ErrorBody), (status = 410, body = super::error::ErrorBody, description = "gone since it was listed"),
        (status = 429, body = super::error::ErrorBody, description = "as many copies as may be are under way")))]
/// For other nodes of the domain: one file of this node's ledger.
pub(super) async fn file(
    State(app): State<App>,
    Extension(serve::Peer(from)): Extension<serve::Peer>,
    Path(name): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    let asked = check(&app, from, &request)?;
    let Some(peers) = &app.state.peers else { return Err(closed()) };
    let Ok(place) = peers.copies.clone().try_acquire_owned() else {
        let busy = ApiError::new(StatusCode::TOO_MANY_REQUESTS, "other nodes are copying", "ask again in a moment");
        return Err(busy.with(header::RETRY_AFTER, HeaderValue::from_static("1")));
    };
    if name.len() > LONGEST_NAME {
        return Err(ApiError::not_found("such a file"));
    }
    let opened = app.blocking(move |state| state.peers.as_ref().map(|peers| peers.ledger.offered(&name))).await?;
    let file = opened.ok_or_else(closed)?.map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => ApiError::new(StatusCode::GONE, "the file is there no more", "ask anew which there are"),
        _ => ApiError::unavailable("the file cannot be read now", "see `problems` in /status"),
    })?;
    let (sealer, nonce) = sealer(&app, &asked)?;
    let (pieces, ready) = mpsc::channel(AHEAD);
    let copy = Copy { file, sealer, rate: peers.rate, pieces, _place: place };
    let background = peers.background;
    let work = move || {
        background();
        copy.run();
    };
    std::thread::Builder::new().name("ledger-copy".into()).spawn(work).map_err(|_| ApiError::internal())?;
    let body = stream::unfold(ready, |mut ready| async move { ready.recv().await.map(|piece| (piece, ready)) });
    Ok((sealed(nonce), Body::from_stream(body)).into_response())
}

fn sealed(nonce: Nonce) -> [(http::HeaderName, String); 2] {
    [(header::CONTENT_TYPE, "application/octet-stream".into()), (http::HeaderName::from_static(SEAL), nonce.to_string())]
}

fn sealer(app: &Shared, asked: &Asked) -> Result<(Sealer, Nonce), ApiError> {
    let peers = app.state.peers.as_ref().ok_or_else(closed)?;
    let nonce = Nonce::make();
    let sealer = peers.secret.sealer(asked.nonce, nonce, &asked.what).map_err(|_| ApiError::internal())?;
    Ok((sealer, nonce))
}

fn closed() -> ApiError {
    ApiError::new(
        StatusCode::NOT_FOUND,
        "this node hands its ledger to nobody",
        "set peers.secret_file on it, as on the others of its domain",
    )
}

/// Does who asks have the domain's secret?
fn check(app: &App, from: SocketAddr, request: &Request) -> Result<Asked, ApiError> {
    let peers = app.state.peers.as_ref().ok_or_else(closed)?;
    let path = request.uri().path_and_query().map_or("", |p| p.as_str());
    let what = format!("{}\nGET\n{path}", peers.domain);
    let text = |name: &str| request.headers().get(name).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let shown = text("authorization").strip_prefix(SCHEME).and_then(|rest| rest.trim().split_once(' '));
    let shown = shown.and_then(|(nonce, proof)| Some((Nonce::parse(nonce)?, proof.trim())));
    let wrong = |kind, error: &str| {
        AdminDenied { peer: from, kind }.emit();
        let hint = "peers.secret_file must hold the same on both nodes, and node.domain be the same";
        ApiError::new(StatusCode::UNAUTHORIZED, error, hint)
    };
    match shown {
        None => Err(wrong("absent", "the domain's secret is needed")),
        // As with the token, a right proof passes where others have failed.
        Some((nonce, proof)) if peers.secret.proves(nonce, &what, proof) => {
            let node = text(NODE).chars().filter(|c| c.is_ascii_graphic()).take(LONGEST_NAME).collect();
            Ok(Asked { nonce, what, node })
        }
        Some(_) if !app.throttle.open(from.ip()) => {
            AdminDenied { peer: from, kind: "throttled" }.emit();
            let wait = HeaderValue::from(app.throttle.retry_after().as_secs());
            Err(ApiError::new(
                StatusCode::TOO_MANY_REQUESTS,
                "too many wrong credentials from this address",
                "wait, then try the right one",
            )
            .with(header::RETRY_AFTER, wait))
        }
        Some(_) => {
            app.throttle.failed(from.ip());
            Err(wrong("wrong", "the secret or the domain is another"))
        }
    }
}

/// One file on its way, on a thread of its own.
struct Copy {
    file: File,
    sealer: Sealer,
    rate: u64,
    pieces: mpsc::Sender<Result<Bytes, io::Error>>,
    _place: OwnedSemaphorePermit,
}

impl Copy {
    fn run(mut self) {
        if let Err(error) = self.pieces() {
            // The answer breaks off, which is noticed on the other side; who is gone needs no word.
            let _ = self.pieces.blocking_send(Err(error));
        }
    }

    fn pieces(&mut self) -> io::Result<()> {
        let broken = |e: Broken| io::Error::other(e.to_string());
        let (begun, mut sent) = (Instant::now(), 0u64);
        let (mut piece, mut next) = (vec![0; PIECE], vec![0; PIECE]);
        let mut length = fill(&mut self.file, &mut piece)?;
        loop {
            let more = fill(&mut self.file, &mut next)?;
            let sealed = self.sealer.seal(&piece[..length], more == 0).map_err(broken)?;
            if self.pieces.blocking_send(Ok(sealed.into())).is_err() {
                return Ok(());
            }
            sent += length as u64;
            events::Handed { bytes: length as u64 }.emit();
            if more == 0 {
                return Ok(());
            }
            std::mem::swap(&mut piece, &mut next);
            length = more;
            let due = Duration::from_secs_f64(sent as f64 / self.rate as f64);
            std::thread::sleep(due.saturating_sub(begun.elapsed()));
        }
    }
}

/// Reads until the piece is full or the file ends.
fn fill(file: &mut File, piece: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < piece.len() {
        match file.read(&mut piece[length..]) {
            Ok(0) => break,
            Ok(more) => length += more,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(length)
}
