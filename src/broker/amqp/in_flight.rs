//! Messages sent on one channel and not yet confirmed.
//!
//! lapin gives a returned (unroutable) message to the confirm that completes next, which need not be the one of that
//! message: with `multiple` confirms the order within is a hash map's. So each message carries its sequence, and a
//! confirm counts only once every confirm that completed before it was looked at. Invariant: a message that the broker
//! returned is never called confirmed.

use std::collections::{HashSet, VecDeque};
use std::task::{Context, Poll};

use futures::FutureExt;
use futures::future::BoxFuture;
use lapin::options::BasicPublishOptions;
use lapin::{Channel, Confirmation};

use super::publisher::Outgoing;
use super::trouble::Trouble;
use super::{declare, properties};

/// What became of one message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The broker has it safe.
    Confirmed,
    /// No queue takes it.
    Unroutable,
    /// The broker would not take it now: send it again.
    Nacked,
    /// Whether the broker has it is unknown.
    Failed(Trouble),
}

/// How the broker answered one message, before the returned ones are known.
#[derive(Debug)]
enum Answer {
    Ack,
    Nack,
    Failed(Trouble),
}

struct Flight {
    sequence: u64,
    /// The answer, and the sequence of the message that was returned with it, if any.
    answer: BoxFuture<'static, (Answer, Option<u64>)>,
    outgoing: Outgoing,
}

/// All messages on their way on one channel, in the order they were sent.
pub(super) struct InFlight {
    channel: Channel,
    /// What both sides agreed to.
    frame_max: u32,
    sequence: u64,
    flights: VecDeque<Flight>,
    returned: HashSet<u64>,
}

impl InFlight {
    pub(super) fn new(channel: Channel, frame_max: u32) -> Self {
        Self {
            channel,
            frame_max,
            sequence: 0,
            flights: VecDeque::new(),
            returned: HashSet::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.flights.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.flights.is_empty()
    }

    pub(super) fn is_channel_up(&self) -> bool {
        self.channel.status().connected()
    }

    /// Hands one message to lapin. Polled at once, so that messages are numbered and sent in one order.
    pub(super) fn send(&mut self, outgoing: Outgoing, cx: &mut Context<'_>) {
        self.sequence += 1;
        let sequence = self.sequence;
        let (channel, message) = (self.channel.clone(), outgoing.message.clone());
        let frame_max = self.frame_max;
        let publish = async move {
            let options = BasicPublishOptions {
                mandatory: message.mandatory,
                immediate: false,
            };
            let exchange = message.exchange.name().into();
            let key = declare::short(&message.routing_key)?;
            let properties = properties::to_amqp(&message, sequence, frame_max);
            let confirm = channel
                .basic_publish(exchange, key, options, &message.body, properties)
                .await?;
            Ok::<_, Trouble>(confirm.await?)
        };
        let mut answer = publish.map(read).boxed();
        if let Poll::Ready(ready) = answer.poll_unpin(cx) {
            answer = std::future::ready(ready).boxed();
        }
        self.flights.push_back(Flight {
            sequence,
            answer,
            outgoing,
        });
    }

    /// Gives a verdict to all that are answered.
    pub(super) fn settle(&mut self, cx: &mut Context<'_>) {
        let mut answered = Vec::new();
        // A pass may poll a message just before its confirm completes. That confirm may carry the return of a
        // message whose own confirm the pass then sees. So only a pass that finds nothing new ends the search.
        while self.pass(&mut answered, cx) {}
        for (flight, answer) in answered {
            let is_returned = self.returned.remove(&flight.sequence);
            let verdict = match answer {
                _ if is_returned => Verdict::Unroutable,
                Answer::Ack => Verdict::Confirmed,
                Answer::Nack => Verdict::Nacked,
                Answer::Failed(trouble) => Verdict::Failed(trouble),
            };
            // Whoever gave up waiting needs no verdict.
            drop(flight.outgoing.reply.send(verdict));
        }
    }

    /// Moves the flights that are answered by now to `answered`; says whether there were any.
    fn pass(&mut self, answered: &mut Vec<(Flight, Answer)>, cx: &mut Context<'_>) -> bool {
        let before = answered.len();
        for mut flight in std::mem::take(&mut self.flights) {
            match flight.answer.poll_unpin(cx) {
                Poll::Ready((answer, returned)) => {
                    self.returned.extend(returned);
                    answered.push((flight, answer));
                }
                Poll::Pending => self.flights.push_back(flight),
            }
        }
        answered.len() > before
    }

    /// The channel is gone: nothing more will be answered.
    pub(super) fn fail_all(&mut self, trouble: &Trouble) {
        for flight in self.flights.drain(..) {
            let verdict = Verdict::Failed(trouble.clone());
            drop(flight.outgoing.reply.send(verdict));
        }
    }
}

fn read(answer: Result<Confirmation, Trouble>) -> (Answer, Option<u64>) {
    match answer {
        Ok(confirmation) => {
            let answer = if confirmation.is_nack() {
                Answer::Nack
            } else {
                Answer::Ack
            };
            let returned = confirmation.take_message();
            (
                answer,
                returned.and_then(|message| properties::sequence(&message.delivery.properties)),
            )
        }
        Err(trouble) => (Answer::Failed(trouble), None),
    }
}
