//! Reading the ledger stream: each batch of another node is applied, in the stream's order, and acknowledged when it is stored.

use super::super::{
    Consumer, Delivery, StreamStart,
    position::{self, Position, SILENT},
    wire::{self, News, Told, WireError},
};
use super::{AFTER_FAILURE, Shipping, is_new, over};
use crate::engine::{
    fact::Seq,
    ports::LogError,
    replica::{Origin, Shipped},
};
use crate::telemetry::cluster as events;
use futures_util::{
    FutureExt, StreamExt,
    future::{self, BoxFuture},
    stream::FuturesOrdered,
};
use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{Ordering::AcqRel, Ordering::Release},
    },
    time::{Duration, Instant},
};

/// Batches being applied: what was shipped live comes in small ones, many of which make one commit …
const IN: usize = 128;
/// … and bytes of them, about; more fill no larger commit.
const IN_BYTES: usize = 8 << 20;
/// Unacknowledged messages of the stream.
const PREFETCH: u16 = 128;
/// So many are acknowledged together while more are ready.
const ACKED: usize = PREFETCH as usize / 4;
/// How long a stream that has just been made may take to have a leader.
const LEADER: Duration = Duration::from_secs(2);

/// One step of reading, which ends in the order in which the steps were begun.
enum Step {
    Applied(u64),
    Beat(u64),
    Nothing,
}

type Reading = FuturesOrdered<BoxFuture<'static, (Read, Result<Step, LogError>)>>;

/// A message of the stream that is being dealt with.
#[derive(Clone, Copy)]
struct Read {
    tag: u64,
    bytes: usize,
}

impl Shipping {
    pub(super) async fn read(self: Arc<Self>) {
        let mut made_anew = false;
        loop {
            let session = self.link.session().await;
            if let Err(error) = self.queues.ensure(&session, &self.stream).await {
                let error = error.to_string();
                events::ReadingEnded { error: &error, new: is_new(&self.reading, &error) }.emit();
                tokio::time::sleep(AFTER_FAILURE).await;
                continue;
            }
            self.has_a_leader().await;
            let positions = self.replica.positions();
            let offset = positions.offset.filter(|_| !made_anew);
            let start = offset.map_or(StreamStart::First, StreamStart::Offset);
            let ended = match Consumer::open_stream(&session, &self.stream, PREFETCH, start).await {
                Ok(consumer) => self.read_from(consumer, positions.taken, offset, &mut made_anew).await,
                Err(error) => error.to_string(),
            };
            // It may have been deleted: then it is made again, on this session too.
            self.queues.forget(&self.stream);
            events::ReadingEnded { error: &ended, new: is_new(&self.reading, &ended) }.emit();
            tokio::time::sleep(AFTER_FAILURE).await;
        }
    }

    /// Waits a little until a beat was confirmed: a stream that has just been made has no leader at first, and RabbitMQ 3.10 ends the whole
    /// connection of a consumer that comes too early.
    async fn has_a_leader(&self) {
        if self.heard.lock().unwrap_or_else(|e| e.into_inner()).is_none() {
            // Not confirmed in time, or not at all: reading tells what is wrong.
            let _ = tokio::time::timeout(LEADER, self.tell_beat(self.next_number(), false)).await;
        }
    }

    /// Reads until something fails; tells what. `offset`: where it was asked to begin; none: with the first. `made_anew`: the stream is not
    /// the one whose offsets this node knows, so it is to be read from its first; until something of it is taken in.
    async fn read_from(
        &self,
        mut consumer: Consumer,
        mut taken: HashMap<Origin, Seq>,
        offset: Option<u64>,
        made_anew: &mut bool,
    ) -> String {
        let mut steps = Reading::new();
        self.under_way.store(0, Release);
        // The stream's beginning has been removed by its retention: batches refer to others that nobody has any more.
        let mut truncated = false;
        let mut first = true;
        let mut position = Position::default();
        let mut under_way = 0;
        let silent = tokio::time::sleep(SILENT);
        tokio::pin!(silent);
        loop {
            tokio::select! {
                biased;
                Some(done) = steps.next(), if !steps.is_empty() => {
                    let (mut done, mut together) = (done, 0);
                    loop {
                        let (read, step) = done;
                        under_way -= read.bytes;
                        match step {
                            Ok(step) => self.done(step, made_anew),
                            // The disk is full, or the store fails: what could not be applied is read again.
                            Err(error) => return format!("what other nodes wrote cannot be stored: {error}"),
                        }
                        together += 1;
                        match steps.next().now_or_never().flatten() {
                            Some(next) if together < ACKED => done = next,
                            next => {
                                if let Err(ended) = consumer.acks().ack(read.tag, true).await {
                                    return ended.to_string();
                                }
                                let Some(next) = next else { break };
                                (done, together) = (next, 0);
                            }
                        }
                    }
                },
                () = &mut silent, if first && offset.is_some() => {
                    // There is a beat each second. A broker that is asked for what is yet to come says nothing, or gives what comes next.
                    if let (Some(asked), Some(newest)) = (offset, position::newest(consumer.acks().session(), &self.stream).await)
                        && newest < asked
                    {
                        *made_anew = true;
                        return position::anew(asked, newest);
                    }
                    silent.as_mut().reset(tokio::time::Instant::now() + SILENT);
                }
                delivery = consumer.next(), if steps.len() < IN && under_way < IN_BYTES => match delivery {
                    Ok(delivery) => {
                        if std::mem::take(&mut first) {
                            over(&self.reading);
                            let begins = delivery.offset.unwrap_or(0);
                            if let Some(asked) = offset.filter(|asked| begins < *asked) {
                                *made_anew = true;
                                return position::anew(asked, begins);
                            }
                            truncated = offset.is_none() && begins > 0;
                            if truncated && !*made_anew && taken.is_empty() {
                                let text = format!("{begins} messages had left the ledger stream before this node joined the domain");
                                events::StreamTruncated { messages: begins }.emit();
                                *self.lost.lock().unwrap_or_else(|e| e.into_inner()) = Some(text);
                            }
                        }
                        match self.begin(&delivery, &mut taken, truncated, &mut position) {
                            Ok(step) => {
                                let read = Read { tag: delivery.tag, bytes: delivery.payload.len() };
                                under_way += read.bytes;
                                steps.push_back(step.map(move |r| (read, r)).boxed());
                            }
                            Err(error) => return error,
                        }
                    }
                    Err(ended) => return ended.to_string(),
                },
            }
        }
    }

    /// One step is through, and all before it.
    fn done(&self, step: Step, made_anew: &mut bool) {
        match step {
            Step::Applied(records) => {
                *made_anew = false;
                self.under_way.fetch_sub(records, AcqRel);
                self.applied.send_modify(|n| *n += 1);
            }
            Step::Beat(number) => {
                *self.echo.lock().unwrap_or_else(|e| e.into_inner()) = Some(Instant::now());
                self.read_back.send_if_modified(|seen| {
                    let rises = number > *seen;
                    *seen = number.max(*seen);
                    rises
                });
            }
            Step::Nothing => {}
        }
    }

    /// Begins what one message of the stream asks for.
    fn begin(
        &self,
        delivery: &Delivery,
        taken: &mut HashMap<Origin, Seq>,
        truncated: bool,
        position: &mut Position,
    ) -> Result<BoxFuture<'static, Result<Step, LogError>>, String> {
        let nothing = || future::ready(Ok(Step::Nothing)).boxed();
        let told: Told<News> = match wire::decode(&delivery.payload) {
            Ok(told) => told,
            // Going on would leave holes; the upgraded node reads on from here.
            Err(WireError::Later) => return Err(format!("a message of the ledger stream was {}", WireError::Later)),
            Err(WireError::Unreadable) => {
                events::StreamUnreadable.emit();
                return Ok(nothing());
            }
        };
        let own = told.origin == self.replica.origin();
        let (ship, own_beat) = (matches!(told.what, News::Ship { .. }), own && matches!(told.what, News::Beat { .. }));
        if position.is_to_be_noted(ship, own, own_beat)
            && let Some(offset) = delivery.offset
        {
            // Stored with the next record, or in a moment; a failure is told with the next record.
            drop(self.replica.apply(self.replica.origin(), Vec::new(), offset));
        }
        match told.what {
            News::Beat { number, run, .. } if own && run == self.run => {
                self.admission.act(|epochs| epochs.echo(number, Instant::now()));
                Ok(future::ready(Ok(Step::Beat(number))).boxed())
            }
            News::Beat { layout, .. } if own => {
                // Of an earlier run: what it had learned holds.
                if let Some(layout) = layout {
                    let _ = self.admission.act(|epochs| epochs.learn(layout));
                }
                Ok(nothing())
            }
            News::Beat { leaving: true, layout, stage, .. } => {
                self.members().left(&told.node);
                self.admission.act(|epochs| epochs.heard(&told.node, layout, stage));
                Ok(nothing())
            }
            // Those of long ago are read at a start as well; then nothing of ours has been read back yet.
            News::Beat { spooled, layout, stage, .. } => {
                self.admission.act(|epochs| epochs.heard(&told.node, layout, stage));
                if *self.read_back.borrow() > 0 {
                    if told.node == self.node && !self.same_name.swap(true, AcqRel) {
                        events::SameName { node: &self.node }.emit();
                    }
                    self.members().heard(&told.node, spooled, Instant::now());
                }
                Ok(nothing())
            }
            News::Drained { queue } => {
                self.admission.act(|epochs| epochs.told_drained(&queue));
                Ok(nothing())
            }
            News::Word { channel, route, paused } => {
                if !own && let Some(word) = &*self.on_word.lock().unwrap_or_else(|e| e.into_inner()) {
                    word(&channel, &route, paused);
                }
                Ok(nothing())
            }
            News::Ship { .. } if own => Ok(nothing()),
            News::Ship { prev, confirmed, records } => {
                let known = taken.get(&told.origin).copied();
                let Some(records) = missing(known, truncated, prev, confirmed, records) else { return Ok(nothing()) };
                if let Some(last) = records.last() {
                    taken.insert(told.origin, last.seq);
                }
                let count = records.len() as u64;
                self.under_way.fetch_add(count, AcqRel);
                let applied = self.replica.apply(told.origin, records, delivery.offset.unwrap_or(0));
                Ok(applied.map(move |r| r.map(|()| Step::Applied(count))).boxed())
            }
        }
    }
}

/// The records of a batch that are to be taken in; `None`: it has been taken before, or one before it is missing and both come again.
fn missing(known: Option<Seq>, truncated: bool, prev: Seq, confirmed: Seq, mut records: Vec<Shipped>) -> Option<Vec<Shipped>> {
    let high = match known {
        Some(high) => high,
        None if truncated => prev,
        None => 0,
    };
    if prev > high && prev <= confirmed {
        // Confirmed, and not in the stream where this node reads on: its retention, or a power cut at the brokers, took it.
        events::StreamHole { records_from: high + 1, to: prev }.emit();
    } else if prev > high {
        events::StreamGap.emit();
        return None;
    }
    records.retain(|r| r.seq > high);
    (!records.is_empty()).then_some(records)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(seqs: &[Seq]) -> Vec<Shipped> {
        seqs.iter().map(|seq| Shipped { seq: *seq, fact: None, body: None, transient: false }).collect()
    }

    fn taken(known: Option<Seq>, truncated: bool, prev: Seq, seqs: &[Seq]) -> Option<Vec<Seq>> {
        missing(known, truncated, prev, 0, batch(seqs)).map(|r| r.iter().map(|r| r.seq).collect())
    }

    #[test]
    fn each_record_is_taken_once_and_none_is_skipped() {
        assert_eq!(taken(None, false, 0, &[3, 5]), Some(vec![3, 5]));
        assert_eq!(taken(Some(5), false, 5, &[6, 9]), Some(vec![6, 9]));
        assert_eq!(taken(Some(9), false, 5, &[6, 9]), None, "again");
        assert_eq!(taken(Some(9), false, 5, &[6, 9, 10]), Some(vec![10]), "more than before");
        assert_eq!(taken(Some(9), false, 12, &[13]), None, "one is missing between");
        assert_eq!(taken(None, false, 12, &[13]), None, "the first is missing");
        assert_eq!(taken(None, true, 12, &[13]), Some(vec![13]), "nobody has it any more");
        let hole = missing(Some(5), false, 9, 9, batch(&[10]));
        assert_eq!(hole.map(|r| r.len()), Some(1), "it was confirmed, so it does not come again");
    }
}
