//! The sink's MLLP side.

use super::{Behaviour, Shared, Verdict};
use crate::message::{
    Protocol,
    hl7::{
        Header,
        ack::{AckCode, acceptance},
    },
    mllp::{CR, Decoder, END, Event, START},
};
use bytes::{BufMut, BytesMut};
use std::{
    io,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};
use time::{OffsetDateTime, macros::format_description};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

/// Frames above this are counted by their length and not kept, unless somebody wants their bytes.
const KEEP: usize = 1024 * 1024;
/// Largest frame where somebody does.
const KEEP_WANTED: usize = 1024 * 1024 * 1024;
const READ: usize = 16 * 1024;
const AWAIT_CR: Duration = Duration::from_millis(200);

pub(super) async fn connection(shared: Arc<Shared>, socket: TcpStream, number: u64) {
    let done = match &shared.tls {
        None => serve(&shared, socket, number).await,
        Some(tls) => match tls.accept(socket).await {
            Ok(stream) => serve(&shared, stream, number).await,
            Err(e) => Err(e),
        },
    };
    if done.is_err_and(|e| e.kind() == io::ErrorKind::InvalidData) {
        shared.counters.garbage.fetch_add(1, Relaxed);
    }
}

async fn serve<S: AsyncRead + AsyncWrite + Unpin>(shared: &Shared, mut stream: S, connection: u64) -> io::Result<()> {
    let wanted = shared.options.hook.is_some() || shared.options.save.is_some();
    let mut decoder = Decoder::new(if wanted { KEEP_WANTED } else { KEEP });
    let (mut input, mut output) = (BytesMut::with_capacity(READ), BytesMut::with_capacity(1024));
    let mut stamp = Stamp::default();
    loop {
        while let Some(event) = decoder.decode(&mut input) {
            if !message(shared, event, connection, &mut output, &mut stamp).await? {
                return stream.write_all(&output).await;
            }
        }
        if !output.is_empty() {
            stream.write_all(&output).await?;
            stream.flush().await?;
            output.clear();
        }
        input.reserve(READ);
        let awaits_cr = decoder.awaits_cr(&input);
        let read = stream.read_buf(&mut input);
        let read = if awaits_cr { timeout(AWAIT_CR, read).await.unwrap_or(Ok(0)) } else { read.await };
        if read? == 0 {
            match decoder.flush(&mut input) {
                None => return Ok(()),
                Some(event) => {
                    if !message(shared, event, connection, &mut output, &mut stamp).await? {
                        return stream.write_all(&output).await;
                    }
                }
            }
        }
    }
}

/// False when the connection is to be closed.
async fn message(shared: &Shared, event: Event, connection: u64, output: &mut BytesMut, stamp: &mut Stamp) -> io::Result<bool> {
    let (body, len) = match event {
        Event::Frame(body) => (body.clone(), body.len() as u64),
        Event::TooLarge { len, head } => (head, len),
        // Pieces come only where they are asked for.
        Event::Truncated { .. } | Event::Garbage { .. } | Event::Piece(_) | Event::LastPiece(_) => {
            return Err(io::ErrorKind::InvalidData.into());
        }
    };
    let header = Header::parse(&body).ok();
    let control_id = header.as_ref().map_or(&b""[..], |h| h.control_id);
    shared.received(connection, Protocol::Mllp, control_id, &body, len, None).await;
    let behaviour = shared.behaviour.load();
    let code = match shared.verdict(&behaviour).await {
        Verdict::Close => return Ok(false),
        Verdict::Silence => return Ok(true),
        Verdict::Answer { code, .. } => match header.as_ref().map(|header| wanted(header, code)) {
            Some(Some(code)) => code,
            Some(None) => {
                shared.counters.unanswered.fetch_add(1, Relaxed);
                return Ok(true);
            }
            // As a real receiver would: it has no control id to accept.
            None => AckCode::AR,
        },
    };
    acknowledge(header.as_ref(), code, &behaviour, stamp, output);
    shared.count_answer(code.is_accept());
    Ok(true)
}

/// The acknowledgment that the message asks for in MSH-15 and MSH-16, where it asks for one. A commit code was asked
/// for by name and is given.
fn wanted(header: &Header<'_>, code: AckCode) -> Option<AckCode> {
    let mode = acceptance(header);
    let codes = if code.is_commit() { [code, code] } else { [mode.on_receipt(code), code] };
    codes.into_iter().find(|c| code.is_commit() || mode.should_send(*c))
}

/// Appends the framed acknowledgment. Written by hand for speed: the sender's delimiters and control id, application and
/// facility changed places, MSH-7 to the second.
fn acknowledge(header: Option<&Header<'_>>, code: AckCode, behaviour: &Behaviour, stamp: &mut Stamp, out: &mut BytesMut) {
    let field = header.map_or(b'|', |h| h.delimiters.field);
    let empty = &b""[..];
    let encoding = header.map_or(&b"^~\\&"[..], |h| h.encoding_characters);
    out.put_u8(START);
    out.put_slice(b"MSH");
    let id = header.map_or(empty, |h| h.control_id);
    let parts: [&[u8]; 11] = [
        encoding,
        header.map_or(b"SINK", |h| if h.receiving_application.is_empty() { b"SINK" } else { h.receiving_application }),
        header.map_or(empty, |h| h.receiving_facility),
        header.map_or(empty, |h| h.sending_application),
        header.map_or(empty, |h| h.sending_facility),
        stamp.now(),
        empty,
        b"ACK",
        id,
        header.map_or(b"P", |h| h.processing_id),
        header.map_or(b"2.5.1", |h| h.version),
    ];
    for part in parts {
        out.put_u8(field);
        out.put_slice(part);
    }
    out.put_slice(b"\rMSA");
    out.put_u8(field);
    out.put_slice(code.as_str().as_bytes());
    out.put_u8(field);
    out.put_slice(if behaviour.wrong_id { b"not-yours" } else { id });
    out.put_slice(&[CR, END, CR]);
}

/// MSH-7, formatted once a second.
#[derive(Default)]
struct Stamp {
    second: i64,
    text: [u8; 14],
}

impl Stamp {
    fn now(&mut self) -> &[u8] {
        let now = OffsetDateTime::now_utc();
        if now.unix_timestamp() != self.second {
            self.second = now.unix_timestamp();
            let format = format_description!("[year][month][day][hour][minute][second]");
            // Fourteen digits until the year 9999; an acknowledgment without a time is still one.
            let _ = now.format_into(&mut &mut self.text[..], format);
        }
        &self.text
    }
}
