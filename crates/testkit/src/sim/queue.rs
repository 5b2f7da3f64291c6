//! A simulated FIFO queue with its dead-letter queue: message groups, deduplication for 5 minutes (even if the message
//! was deleted meanwhile), visibility timeout, receive counts.

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

#[derive(Clone, Debug)]
pub struct Message {
    pub id: String,
    pub group: String,
    pub body: String,
    /// How often it was received.
    pub receives: u32,
    pub sent_at: Timestamp,
    visible_at: Option<Timestamp>,
}

/// A record of a send, for the checks.
#[derive(Clone, Debug)]
pub struct Sent {
    pub at: Timestamp,
    pub by: String,
    pub body: String,
    /// True if the queue dropped it as a duplicate.
    pub is_swallowed: bool,
}

#[derive(Debug, Default)]
pub struct Queue {
    pub messages: Vec<Message>,
    /// The dead-letter messages.
    pub dead: Vec<Message>,
    /// Every send so far.
    pub sent: Vec<Sent>,
    /// Notified when a message arrives.
    pub arrived: Arc<Notify>,
    known: BTreeMap<(String, String), Timestamp>,
    ids: u64,
}

impl Queue {
    /// Adds a message, unless it is a duplicate.
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

    /// At most ten messages; a group with a message in flight waits.
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

    /// When the next message in flight becomes visible again.
    pub fn next_visible(&self) -> Option<Timestamp> {
        let in_flight = self
            .messages
            .iter()
            .filter_map(|message| message.visible_at);
        in_flight.min()
    }
}

impl World {
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

    /// Deletes a received message, unless it was received again since.
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
