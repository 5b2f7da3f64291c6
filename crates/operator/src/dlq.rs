//! `billhook dlq`: the letters that workers gave up on, each with its event; sent again or given up for good.
//!
//! A letter is sent again as a new pointer and only then deleted: whatever is cut between the two is sent twice, and the
//! second time changes nothing. So a run that was cut is simply run again.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::time::Duration;

use anyhow::{Context as _, Result};
use aws_sdk_sqs::types::MessageSystemAttributeName as Attribute;
use billhook_adapters::clock::SystemClock;
use billhook_core::ids::{CorrelationId, EventId, ProviderId};
use billhook_core::intake::message::{EventPointer, ReceivedPointer};
use billhook_core::intake::ports::SendMessage as _;
use billhook_core::ports::Clock as _;
use billhook_core::time::Timestamp;
use clap::{Args, Subcommand};
use futures_util::FutureExt as _;
use serde_json::{Value, json};

use crate::audit::{self, By};
use crate::output::Output;
use crate::session::Session;
use crate::store::{Change, Events, Listed};
use crate::{Stop, replay};

/// Letters of one receive.
const BATCH: i32 = 10;
/// How long a letter that is looked at is out of others' sight.
const VISIBILITY_S: i32 = 60;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List dead letters, each with its event's error
    #[command(after_help = "Example:\n  billhook dlq list --queue stripe")]
    List(Queue),
    /// Show a letter and its event
    #[command(after_help = "Example:\n  billhook dlq show --queue stripe evt_1")]
    Show(Show),
    /// Send each letter's event again and delete the letter
    #[command(
        after_help = "Without --yes it only says what it would do. Mend the cause first. A run that was cut is \
        simply run again.\nLetters that name no stored event stay.\n\nExample:\n  \
        billhook dlq redrive --queue stripe --reason 'table is no longer throttled' --yes"
    )]
    Redrive(Act),
    /// Delete the letters and mark their events as failed; `replay` can still bring them back
    #[command(
        after_help = "Without --yes it only says what it would do.\n\nExample:\n  \
        billhook dlq purge --queue lob --reason 'test letters' --yes"
    )]
    Purge(Act),
}

#[derive(Args, Clone, Debug)]
pub(crate) struct Queue {
    /// Which
    #[arg(long, value_parser = ["stripe", "lob"])]
    queue: String,
}

#[derive(Args, Debug)]
pub(crate) struct Show {
    #[command(flatten)]
    queue: Queue,
    /// The event, or the message's id
    id: String,
}

#[derive(Args, Debug)]
pub(crate) struct Act {
    #[command(flatten)]
    queue: Queue,
    /// Why; it stands in each event's notes
    #[arg(long, value_parser = audit::reason)]
    reason: String,
    /// Do it
    #[arg(long)]
    yes: bool,
    /// Letters a second
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=300))]
    rate: u32,
}

/// A dead letter.
#[derive(Debug)]
struct Letter {
    message_id: String,
    receipt: String,
    body: String,
    sent_at: Option<Timestamp>,
    /// The event that it names, if it is a pointer.
    event: Option<EventId>,
    /// That event, if it is stored.
    listed: Option<Listed>,
}

/// What a letter is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// Its event is open.
    Open,
    /// Its event is done: the letter is litter.
    Done,
    /// Nothing is stored that it names.
    NotStored,
    /// It is no pointer.
    Unreadable,
}

impl Fate {
    fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Done => "done",
            Self::NotStored => "not_stored",
            Self::Unreadable => "unreadable",
        }
    }
}

impl Letter {
    fn fate(&self) -> Fate {
        match (&self.event, &self.listed) {
            (None, _) => Fate::Unreadable,
            (Some(_), None) => Fate::NotStored,
            (Some(_), Some(listed)) if listed.stored.processed => Fate::Done,
            (Some(_), Some(_)) => Fate::Open,
        }
    }

    fn shown(&self) -> Value {
        let of_event = |name: &str| self.listed.as_ref().and_then(|l| l.row.get(name)).cloned();
        json!({ "message_id": self.message_id, "sent_at": self.sent_at.map(|at| at.to_string()),
            "event_id": self.event.as_ref().map(EventId::as_str), "letter": self.fate().as_str(),
            "event_type": of_event("event_type"), "processing_outcome": of_event("processing_outcome"),
            "processing_error": of_event("processing_error") })
    }
}

/// A dead-letter queue and the events that its letters name.
struct Letters<'a> {
    client: &'a aws_sdk_sqs::Client,
    url: &'a str,
    events: Events,
}

pub(crate) async fn run(command: Command, session: &Session, output: Output) -> Result<()> {
    match command {
        Command::List(queue) => {
            let letters = Letters::of(session, &queue)?;
            let seen = letters.all().await?;
            let rows: Vec<Value> = seen.iter().map(Letter::shown).collect();
            letters.give_back(&seen).await?;
            let columns = [
                "sent_at",
                "letter",
                "event_id",
                "event_type",
                "processing_outcome",
                "processing_error",
            ];
            output.list(&columns, &rows);
            letters.tell_rest(seen.len()).await?;
        }
        Command::Show(show) => {
            let letters = Letters::of(session, &show.queue)?;
            let seen = letters.all().await?;
            letters.give_back(&seen).await?;
            let is_meant = |letter: &&Letter| {
                letter.message_id == show.id
                    || letter
                        .event
                        .as_ref()
                        .is_some_and(|id| id.as_str() == show.id)
            };
            let letter = seen.iter().find(is_meant);
            let letter = letter.ok_or_else(|| {
                Stop::NotThere(format!(
                    "no letter in sight is about {}: see `billhook dlq list`",
                    show.id
                ))
            })?;
            let mut shown = letter.shown();
            if let Some(members) = shown.as_object_mut() {
                let event = letter.listed.as_ref().map(|listed| listed.row.clone());
                members.insert("event".to_owned(), event.into());
                members.insert("body".to_owned(), json!(letter.body));
            }
            output.one(&shown);
        }
        Command::Redrive(act) => act_on(act, session, output, true).await?,
        Command::Purge(act) => act_on(act, session, output, false).await?,
    }
    Ok(())
}

async fn act_on(act: Act, session: &Session, output: Output, again: bool) -> Result<()> {
    let letters = Letters::of(session, &act.queue)?;
    if !act.yes {
        let seen = letters.all().await?;
        letters.give_back(&seen).await?;
        let mut counts = BTreeMap::<&str, u64>::new();
        for letter in &seen {
            *counts.entry(letter.fate().as_str()).or_default() += 1;
        }
        let does = |fate: &str| match (fate, again) {
            ("open", true) => "its event is sent again, the letter deleted",
            ("open", false) => "its event is marked failed, the letter deleted",
            ("done", _) => "the letter is deleted",
            (_, true) => "it stays",
            (_, false) => "the letter is deleted",
        };
        let rows: Vec<Value> = counts
            .iter()
            .map(|(fate, count)| json!({ "letter": fate, "letters": count, "what": does(fate) }))
            .collect();
        output.list(&["letter", "letters", "what"], &rows);
        letters.tell_rest(seen.len()).await?;
        Output::tell("Nothing was done: repeat with --yes");
        return Ok(());
    }
    let by = By {
        actor: session.actor().await?,
        reason: act.reason,
    };
    let (job, queues) = (SystemClock.new_id(), session.queues()?);
    let mut interrupted = pin!(replay::interrupted().fuse());
    let begun = SystemClock.now();
    let (mut done, mut left, mut due) = (0_u64, Vec::new(), Duration::ZERO);
    loop {
        let batch = letters.receive().await?;
        if batch.is_empty() {
            break;
        }
        for letter in batch {
            match (letter.fate(), &letter.listed) {
                (Fate::Open, Some(listed)) if again => {
                    let note = by.note("redrive", SystemClock.now(), Some(&job.to_string()));
                    let stored = &listed.stored;
                    if letters
                        .events
                        .change(&stored.id, Change::Send, note)
                        .await?
                    {
                        let body = EventPointer::replay_message(
                            stored,
                            CorrelationId(job),
                            by.in_message(),
                        );
                        let deduplication_id = stored.fresh_deduplication_id(job);
                        queues
                            .send(listed.provider, &stored.group, &deduplication_id, &body)
                            .await?;
                    }
                }
                (Fate::Open, Some(listed)) => {
                    let note = by.note("purge", SystemClock.now(), None);
                    letters
                        .events
                        .change(&listed.stored.id, Change::Fail, note)
                        .await?;
                }
                (Fate::Done, _) => {}
                (Fate::Open | Fate::NotStored | Fate::Unreadable, _) if again => {
                    left.push(letter);
                    continue;
                }
                (Fate::Open | Fate::NotStored | Fate::Unreadable, _) => {}
            }
            letters.delete(&letter).await?;
            done += 1;
            due += Duration::from_secs(1) / act.rate;
        }
        tokio::time::sleep(due.saturating_sub(begun.until(SystemClock.now()))).await;
        if (&mut interrupted).now_or_never().is_some() {
            letters.give_back(&left).await?;
            return Err(Stop::Interrupted(format!(
                "cut after {done} letters; run the same again to go on"
            ))
            .into());
        }
    }
    letters.give_back(&left).await?;
    let what = if again { "sent again" } else { "purged" };
    Output::tell(&format!("done: {done} letters {what}"));
    if !left.is_empty() {
        let left = left.len();
        Output::tell(&format!(
            "{left} letters name no stored event and stay: look at them with `billhook dlq list`"
        ));
    }
    Ok(())
}

impl<'a> Letters<'a> {
    fn of(session: &'a Session, queue: &Queue) -> Result<Self> {
        let (provider, output) = match queue.queue.as_str() {
            "lob" => (ProviderId::Lob, "LobEventsDlqUrl"),
            _ => (ProviderId::Stripe, "StripeEventsDlqUrl"),
        };
        Ok(Self {
            client: &session.sqs,
            url: session.stack.output(output)?,
            events: session.events(provider)?,
        })
    }

    /// All that can be seen: a FIFO queue hides a group's later letters while its first ones are looked at.
    async fn all(&self) -> Result<Vec<Letter>> {
        let mut all = Vec::new();
        loop {
            let batch = self.receive().await?;
            if batch.is_empty() {
                return Ok(all);
            }
            all.extend(batch);
        }
    }

    async fn receive(&self) -> Result<Vec<Letter>> {
        let received = self
            .client
            .receive_message()
            .queue_url(self.url)
            .max_number_of_messages(BATCH)
            .visibility_timeout(VISIBILITY_S)
            .message_system_attribute_names(Attribute::SentTimestamp)
            .send()
            .await
            .with_context(|| format!("cannot receive from {}", self.url))?;
        let mut letters: Vec<Letter> = received
            .messages
            .unwrap_or_default()
            .into_iter()
            .filter_map(|message| {
                let body = message.body.unwrap_or_default();
                let sent = message.attributes.unwrap_or_default();
                let sent = sent
                    .get(&Attribute::SentTimestamp)
                    .and_then(|ms| ms.parse().ok());
                Some(Letter {
                    message_id: message.message_id?,
                    receipt: message.receipt_handle?,
                    event: ReceivedPointer::parse(&body)
                        .ok()
                        .map(|pointer| pointer.event_id),
                    body,
                    sent_at: sent.and_then(|ms| Timestamp::from_unix_ms(ms).ok()),
                    listed: None,
                })
            })
            .collect();
        let named: BTreeSet<EventId> = letters
            .iter()
            .filter_map(|letter| letter.event.clone())
            .collect();
        let rows = self
            .events
            .rows(&named.into_iter().collect::<Vec<_>>())
            .await?;
        for letter in &mut letters {
            letter.listed = rows
                .iter()
                .find(|row| Some(&row.stored.id) == letter.event.as_ref())
                .cloned();
        }
        Ok(letters)
    }

    async fn delete(&self, letter: &Letter) -> Result<()> {
        let delete = self.client.delete_message().queue_url(self.url);
        let deleted = delete.receipt_handle(&letter.receipt).send().await;
        deleted.with_context(|| format!("cannot delete {} of {}", letter.message_id, self.url))?;
        Ok(())
    }

    /// Puts letters back into everybody's sight.
    async fn give_back(&self, letters: &[Letter]) -> Result<()> {
        for letter in letters {
            let change = self.client.change_message_visibility().queue_url(self.url);
            let changed = change
                .receipt_handle(&letter.receipt)
                .visibility_timeout(0)
                .send()
                .await;
            changed.with_context(|| {
                format!("cannot give {} back to {}", letter.message_id, self.url)
            })?;
        }
        Ok(())
    }

    async fn tell_rest(&self, seen: usize) -> Result<()> {
        use aws_sdk_sqs::types::QueueAttributeName::{
            ApproximateNumberOfMessages as Visible, ApproximateNumberOfMessagesNotVisible as Hidden,
        };
        let get = self.client.get_queue_attributes().queue_url(self.url);
        let got = get
            .attribute_names(Visible)
            .attribute_names(Hidden)
            .send()
            .await?;
        let counts = got.attributes.unwrap_or_default();
        let all: usize = counts
            .values()
            .filter_map(|count| count.parse::<usize>().ok())
            .sum();
        if all > seen {
            let hidden = all - seen;
            Output::tell(&format!(
                "about {hidden} more are hidden behind these, or being looked at by others"
            ));
        }
        Ok(())
    }
}
