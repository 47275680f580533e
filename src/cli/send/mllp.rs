//! Sending over MLLP: one connection, one message under way on it.

use super::{AGAIN, Code, Outcome, Sent, Shared, material::Message, summary::Tally};
use crate::{
    channel::ClientTls,
    gateway::outbound::{
        mllp::{
            Stream, ack,
            plan::{Expect, Plan},
        },
        tls,
    },
    message::mllp::{self, Decoder, Event},
};
use bytes::{Bytes, BytesMut};
use rustls::pki_types::ServerName;
use std::{
    io,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{sleep, timeout},
};

const MAX_ANSWER: usize = 1024 * 1024;
const AWAIT_CR: Duration = Duration::from_millis(200);
const CONNECT: Duration = Duration::from_secs(10);
/// How long to wait for an error where silence is success.
const AWAIT_ERROR: Duration = Duration::from_secs(1);

/// How to reach the target.
#[derive(Clone)]
pub(super) struct Dial {
    address: String,
    host: String,
    port: u16,
    tls: Option<(Arc<rustls::ClientConfig>, ServerName<'static>)>,
}

impl Dial {
    pub(super) fn new(address: &str, tls: Option<&ClientTls>) -> Result<Self, String> {
        let (host, port) = address
            .rsplit_once(':')
            .and_then(|(host, port)| Some((host, port.parse().ok()?)))
            .ok_or_else(|| format!("{address}: give HOST:PORT"))?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let tls = match tls {
            None => None,
            Some(tls) => {
                let config = tls::client_config(tls, &[]).map_err(|e| e.to_string())?;
                Some((Arc::new(config), tls::server_name(tls, &host).map_err(|e| e.to_string())?))
            }
        };
        Ok(Self { address: address.into(), host, port, tls })
    }

    async fn connect(&self, within: Duration) -> Result<Line, String> {
        let connecting = Stream::connect(&self.host, self.port, self.tls.clone());
        match timeout(within.min(CONNECT), connecting).await {
            Ok(Ok(stream)) => Ok(Line::new(stream)),
            Ok(Err(e)) => Err(format!("{}: {e}", self.address)),
            Err(_) => Err(format!("{}: no connection in time", self.address)),
        }
    }

    /// Keeps trying for `within`: a receiver that restarts is back soon.
    async fn reconnect(&self, within: Duration) -> Result<Line, String> {
        let began = Instant::now();
        loop {
            match self.connect(within).await {
                Ok(line) => return Ok(line),
                Err(reason) if began.elapsed() + AGAIN > within => return Err(reason),
                Err(_) => sleep(AGAIN).await,
            }
        }
    }
}

/// Sends messages until there are no more. The error: the target was never reached.
pub(super) async fn worker(shared: Arc<Shared>, dial: Dial, connection: usize) -> Result<Tally, String> {
    let mut tally = Tally::default();
    let mut line = None;
    let mut connected = false;
    while let Some(number) = shared.next().await {
        let Ok(message) = shared.material.get(number, &shared.options) else {
            let outcome = Outcome::Failed("the file cannot be read any more");
            shared.finished(&mut tally, Sent { number, connection, control_id: b"", outcome: &outcome }, Duration::ZERO);
            continue;
        };
        let began = Instant::now();
        let outcome = deliver(&shared, &dial, &mut line, &mut connected, &message, &mut tally).await?;
        let sent = Sent { number, connection, control_id: message.control_id(), outcome: &outcome };
        shared.finished(&mut tally, sent, began.elapsed());
    }
    Ok(tally)
}

/// Sends one message. A connection that has served before may have been closed by the receiver meanwhile: then the
/// message is sent again on a new one, as MLLP senders do.
async fn deliver(
    shared: &Shared,
    dial: &Dial,
    line: &mut Option<Line>,
    connected: &mut bool,
    message: &Message,
    tally: &mut Tally,
) -> Result<Outcome, String> {
    let plan = Plan::of(&message.body);
    loop {
        let fresh = line.is_none();
        let open = match line {
            Some(open) => open,
            None => {
                let within = shared.options.timeout;
                let made = if shared.reached.load(Relaxed) { dial.reconnect(within).await } else { dial.connect(within).await };
                match made {
                    Ok(made) => {
                        shared.reached.store(true, Relaxed);
                        tally.reconnects += u64::from(std::mem::replace(connected, true));
                        line.insert(made)
                    }
                    Err(reason) if !shared.reached.load(Relaxed) => {
                        shared.stop.store(true, Relaxed);
                        return Err(reason);
                    }
                    Err(_) => {
                        // Gone for a whole timeout: the rest would fail the same way.
                        shared.stop.store(true, Relaxed);
                        return Ok(Outcome::Failed("the target went away"));
                    }
                }
            }
        };
        let ended = match timeout(shared.options.timeout, open.exchange(&message.body, &plan)).await {
            Ok(Ok(outcome)) => return Ok(outcome),
            Ok(Err(ended)) => ended,
            Err(_) => Ended::Timeout,
        };
        *line = None;
        match ended {
            Ended::Closed if !fresh => {}
            Ended::Closed => return Ok(Outcome::Failed("closed before the answer")),
            Ended::Timeout => return Ok(Outcome::Failed("no answer in time")),
            Ended::Garbage => return Ok(Outcome::Failed("the answer is no acknowledgment")),
            Ended::OtherId => return Ok(Outcome::Failed("the answer is for another message")),
        }
    }
}

/// Why a connection cannot go on.
enum Ended {
    Closed,
    Timeout,
    Garbage,
    OtherId,
}

impl From<io::Error> for Ended {
    fn from(_: io::Error) -> Self {
        Self::Closed
    }
}

/// An open connection.
struct Line {
    stream: Stream,
    input: BytesMut,
    output: BytesMut,
    decoder: Decoder,
    /// Accepted by `CA`, or without an answer: an acknowledgment may follow.
    late: Option<Bytes>,
}

impl Line {
    fn new(stream: Stream) -> Self {
        let (input, output) = (BytesMut::with_capacity(4096), BytesMut::with_capacity(4096));
        Self { stream, input, output, decoder: Decoder::new(MAX_ANSWER), late: None }
    }

    async fn exchange(&mut self, body: &Bytes, plan: &Plan) -> Result<Outcome, Ended> {
        self.output.clear();
        mllp::encode(body, &mut self.output);
        self.stream.write_all(&self.output).await?;
        self.stream.flush().await?;
        match plan.expect {
            Expect::Answer => self.answer(plan).await,
            Expect::Nothing => Ok(self.unanswered(plan)),
            Expect::OnlyErrors => match timeout(AWAIT_ERROR, self.answer(plan)).await {
                Ok(answer) => answer,
                Err(_) => Ok(self.unanswered(plan)),
            },
        }
    }

    /// A receiver that acknowledges although it was asked not to is passed over.
    fn unanswered(&mut self, plan: &Plan) -> Outcome {
        self.late = Some(plan.control_id.clone());
        Outcome::Accepted
    }

    async fn answer(&mut self, plan: &Plan) -> Result<Outcome, Ended> {
        loop {
            let Some(event) = self.decoder.decode(&mut self.input) else {
                if let Some(event) = self.read().await? {
                    return self.judge(event, plan)?.ok_or(Ended::OtherId);
                }
                continue;
            };
            if let Some(outcome) = self.judge(event, plan)? {
                return Ok(outcome);
            }
        }
    }

    /// Reads on; an event only where the CR of an end block does not come.
    async fn read(&mut self) -> Result<Option<Event>, Ended> {
        self.input.reserve(1024);
        let awaits_cr = self.decoder.awaits_cr(&self.input);
        let read = self.stream.read_buf(&mut self.input);
        let n = if awaits_cr { timeout(AWAIT_CR, read).await.unwrap_or(Ok(0))? } else { read.await? };
        match n {
            0 => self.decoder.flush(&mut self.input).map(Some).ok_or(Ended::Closed),
            _ => Ok(None),
        }
    }

    /// `None`: a late acknowledgment of an earlier message.
    fn judge(&mut self, event: Event, plan: &Plan) -> Result<Option<Outcome>, Ended> {
        let Event::Frame(raw) = event else { return Err(Ended::Garbage) };
        let msa = ack::parse(&raw).ok_or(Ended::Garbage)?;
        let code = msa.code.ok_or(Ended::Garbage)?;
        if !plan.control_id.is_empty() && msa.control_id != plan.control_id {
            let late = self.late.as_ref().is_some_and(|id| msa.control_id == id);
            return if late { Ok(None) } else { Err(Ended::OtherId) };
        }
        if code == "CA" {
            self.late = Some(plan.control_id.clone());
        }
        Ok(Some(if matches!(code, "AA" | "CA") { Outcome::Accepted } else { Outcome::Refused(Code::Ack(code)) }))
    }
}
