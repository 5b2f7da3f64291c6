//! A FIFO queue with its dead-letter queue: groups, deduplication for five minutes whether or not the message was
//! deleted since, visibility, receive counts.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use billhook_core::error::DependencyError;
use billhook_core::ids::ProviderId;
use billhook_core::intake::ports::SendMessage;
use billhook_core::time::Timestamp;
use billhook_core::worker::batch::RECEIVES_MAX;
use tokio::sync::Notify;

use super::{Call, Mutant, Port, Service, World};

const DEDUPLICATED: Duration = Duration::from_mins(5);
const VISIBILITY: Duration = Duration::from_secs(60);

/// A message on a queue.
#[derive(Clone, Debug)]
pub struct Message {
    /// The queue's id.
    pub id: String,
    /// Its group.
    pub group: String,
    /// What was sent.
    pub body: String,
    /// How often it was received.
    pub receives: u32,
    /// When it was sent.
    pub sent_at: Timestamp,
    visible_at: Option<Timestamp>,
}

/// A message that was sent.
#[derive(Clone, Debug)]
pub struct Sent {
    /// When.
    pub at: Timestamp,
    /// By whom.
    pub by: String,
    /// What.
    pub body: String,
    /// The queue knew its deduplication id.
    pub is_swallowed: bool,
}

/// A queue and its dead-letter queue.
#[derive(Debug, Default)]
pub struct Queue {
    /// In the order in which they came.
    pub messages: Vec<Message>,
    /// The dead letters.
    pub dead: Vec<Message>,
    /// Everything that was ever sent.
    pub sent: Vec<Sent>,
    /// Tells that a message came.
    pub arrived: Arc<Notify>,
    known: BTreeMap<(String, String), Timestamp>,
    ids: u64,
}

impl Queue {
    /// Takes a message, unless it knows it.
    pub fn send(
        &mut self,
        now: Timestamp,
        by: &str,
        group: &str,
        deduplication_id: &str,
        body: &str,
    ) {
        let key = (group.to_owned(), deduplication_id.to_owned());
        let is_swallowed = self.known.get(&key).is_some_and(|until| now < *until);
        self.sent.push(Sent {
            at: now,
            by: by.to_owned(),
            body: body.to_owned(),
            is_swallowed,
        });
        if is_swallowed {
            return;
        }
        self.known.insert(key, now.after(DEDUPLICATED));
        self.ids += 1;
        self.messages.push(Message {
            id: format!("m-{}", self.ids),
            group: group.to_owned(),
            body: body.to_owned(),
            receives: 0,
            sent_at: now,
            visible_at: None,
        });
        self.arrived.notify_one();
    }

    /// At most ten messages; a group with one in flight waits.
    fn receive(&mut self, now: Timestamp, visibility: Duration) -> Vec<Message> {
        let is_visible = |message: &Message| message.visible_at.is_none_or(|at| at <= now);
        let (dead, alive) = std::mem::take(&mut self.messages)
            .into_iter()
            .partition(|message| message.receives >= RECEIVES_MAX && is_visible(message));
        self.messages = alive;
        self.dead.extend::<Vec<Message>>(dead);
        let in_flight = self.messages.iter().filter(|message| !is_visible(message));
        let blocked: BTreeSet<String> = in_flight.map(|message| message.group.clone()).collect();
        let mut received = Vec::new();
        for message in &mut self.messages {
            if received.len() < 10 && !blocked.contains(&message.group) {
                message.receives += 1;
                message.visible_at = Some(now.after(visibility));
                received.push(message.clone());
            }
        }
        received
    }

    /// When the next message that is in flight becomes visible.
    pub fn next_visible(&self) -> Option<Timestamp> {
        let in_flight = self
            .messages
            .iter()
            .filter_map(|message| message.visible_at);
        in_flight.min()
    }
}

impl World {
    /// What a poller of the queue gets.
    pub fn receive(&mut self, provider: ProviderId) -> Vec<Message> {
        let now = self.now();
        let visibility = match self.mutant {
            Some(Mutant::InvisibleForADay) => Duration::from_hours(24),
            _ => VISIBILITY,
        };
        let dead = self.queue(provider).dead.len();
        let received = self.queue(provider).receive(now, visibility);
        for _ in dead..self.queue(provider).dead.len() {
            self.sometimes("dead letter");
        }
        received
    }

    /// Deletes what was received, unless it was received again since.
    pub fn delete(&mut self, provider: ProviderId, message: &Message) {
        let is_it = |other: &Message| other.id == message.id && other.receives == message.receives;
        self.queue(provider).messages.retain(|other| !is_it(other));
    }
}

impl SendMessage for Port {
    async fn send(
        &self,
        provider: ProviderId,
        group: &str,
        deduplication_id: &str,
        body: &str,
    ) -> Result<(), DependencyError> {
        let call = Call {
            service: Service::Queues,
            name: "send",
            writes: true,
        };
        let (by, group) = (self.name().to_owned(), group.to_owned());
        let (told, body) = (deduplication_id.to_owned(), body.to_owned());
        let sent = self.call(call, deduplication_id, move |world| {
            let mut id = told.as_str();
            if world.mutant == Some(Mutant::RetrySwallowed) {
                id = id.split(".r.").next().unwrap_or(id);
            }
            if world.mutant == Some(Mutant::SendForgets) && world.rng.chance(200) {
                return;
            }
            let now = world.now();
            let queue = world.queue(provider);
            queue.send(now, &by, &group, id, &body);
            if queue.sent.last().is_some_and(|sent| sent.is_swallowed) {
                world.sometimes("deduplicated");
            }
        });
        Ok(sent.await?)
    }
}
