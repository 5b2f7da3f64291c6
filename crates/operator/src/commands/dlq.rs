//! `billhook dlq`: list, redrive and purge the messages of a dead-letter queue, each with the event that it points to.
//!
//! A redrive is an idempotent operation: it first sends a new pointer to the event's own queue and only then deletes
//! the dead-letter message. If the process dies between the two, the next run sends the event a second time, and the
//! worker finds it processed and changes nothing. So an interrupted run needs no checkpoint: run the same command
//! again.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::time::Duration;

use anyhow::{Context as _, Result};
use aws_sdk_sqs::types::MessageSystemAttributeName as Attribute;
use billhook_adapters::clock::SystemClock;
use billhook_adapters::sqs::EventQueues;
use billhook_core::ids::{CorrelationId, EventId, ProviderId};
use billhook_core::intake::message::{EventPointer, ReceivedPointer};
use billhook_core::intake::ports::SendMessage as _;
use billhook_core::ports::{Clock as _, Pause as _};
use billhook_core::time::Timestamp;
use clap::{Args, Subcommand};
use futures_util::FutureExt as _;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::audit::AuditContext;
use crate::confirm::{ChangeArgs, announce_preview};
use crate::events_table::{EventChange, EventChangeResult, EventSummary, EventsTable};
use crate::exit::CommandExit;
use crate::interrupt::wait_for_interrupt;
use crate::output::{OutputWriter, print_notice};
use crate::provider_argument::provider_parser;
use crate::session::StackSession;

/// SQS returns at most 10 messages per receive.
const RECEIVE_BATCH: i32 = 10;
/// How long a received message stays invisible to other readers. Long enough for a batch of ten at one message a
/// second, short enough that a killed command does not hide messages from a colleague for long.
const VISIBILITY_S: i32 = 60;
/// Long polling asks all of SQS's servers. A short poll asks some of them, and its empty answer does not say that the
/// queue is empty.
const WAIT_S: i32 = 2;
/// SQS's count of the messages may be a minute old: so many empty long polls say that it is not.
const EMPTY_POLLS_MAX: u32 = 30;

#[derive(Debug, Subcommand)]
pub(crate) enum DlqCommand {
    /// List dead-letter messages, each with the error of its event
    #[command(after_help = "Example:\n  billhook dlq list --queue stripe")]
    List(DlqQueueArgs),
    /// Show a dead-letter message and its event
    #[command(after_help = "Example:\n  billhook dlq show --queue stripe evt_1")]
    Show(DlqShowArgs),
    /// Reprocess the event of each message, and delete the message
    #[command(
        after_help = "Without --yes the command only shows what it would do. Fix the cause first. After Ctrl-C, run the \
        same command again.\nMessages that name no stored event stay in the queue.\n\nExamples:\n  \
        billhook dlq redrive --queue stripe --reason 'table is no longer throttled' --yes\n  \
        billhook dlq redrive --queue stripe --only untried --reason 'concurrency was raised' --yes"
    )]
    Redrive(DlqActionArgs),
    /// Delete the messages and mark their events as failed; `replay` can still reprocess those
    #[command(
        after_help = "Without --yes the command only shows what it would do.\n\nExample:\n  \
        billhook dlq purge --queue lob --reason 'test messages' --yes"
    )]
    Purge(DlqActionArgs),
}

#[derive(Args, Clone, Debug)]
pub(crate) struct DlqQueueArgs {
    /// Use the dead-letter queue of this provider
    #[arg(long, value_parser = provider_parser())]
    queue: ProviderId,
}

#[derive(Args, Debug)]
pub(crate) struct DlqShowArgs {
    #[command(flatten)]
    queue: DlqQueueArgs,
    /// The id of the event or of the message
    id: String,
}

#[derive(Args, Debug)]
pub(crate) struct DlqActionArgs {
    #[command(flatten)]
    queue: DlqQueueArgs,
    #[command(flatten)]
    change: ChangeArgs,
    /// Take only messages of this state; the others stay in the queue
    #[arg(long, value_name = "STATE")]
    only: Option<DeadLetterState>,
    /// Messages per second
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=300))]
    rate: u32,
}

#[derive(Debug)]
struct DeadLetterMessage {
    message_id: String,
    receipt: String,
    /// The group in the queue: SQS gives a group's messages in their order.
    group: String,
    body: String,
    sent_at: Option<Timestamp>,
    /// The event that it names, if it is a pointer.
    event_id: Option<EventId>,
    /// Whether it only asks a worker to look at a payment again.
    is_recheck: bool,
    /// That event, if it is stored.
    event: Option<EventSummary>,
}

/// What can be done with a message, by the state of its event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
#[value(rename_all = "snake_case")]
enum DeadLetterState {
    /// The event is not done, and no worker has ever written an outcome of it: each receive was throttled, or its run
    /// crashed.
    Untried,
    /// The event is not done: a redrive reprocesses it.
    Open,
    /// It asks to look at a payment again. The payment's own row says that too, so the sweep asks again.
    Recheck,
    /// The event is done, by a replay for instance: the message is a leftover.
    Done,
    /// The message names an event that is not stored: somebody sent it by hand, or the event expired.
    NotStored,
    /// The message is no pointer to an event.
    Unreadable,
}

impl DeadLetterState {
    fn as_str(self) -> &'static str {
        match self {
            Self::Untried => "untried",
            Self::Open => "open",
            Self::Recheck => "recheck",
            Self::Done => "done",
            Self::NotStored => "not_stored",
            Self::Unreadable => "unreadable",
        }
    }
}

impl DeadLetterMessage {
    fn state(&self) -> DeadLetterState {
        match (&self.event_id, &self.event) {
            (None, _) if self.is_recheck => DeadLetterState::Recheck,
            (None, _) => DeadLetterState::Unreadable,
            (Some(_), None) => DeadLetterState::NotStored,
            (Some(_), Some(event)) if event.record.processed => DeadLetterState::Done,
            (Some(_), Some(event)) if event.row.get("attempts") == Some(&json!(0)) => {
                DeadLetterState::Untried
            }
            (Some(_), Some(_)) => DeadLetterState::Open,
        }
    }

    fn render(&self) -> Value {
        let of_event = |name: &str| self.event.as_ref()?.row.get(name).cloned();
        json!({ "message_id": self.message_id, "sent_at": self.sent_at.map(|at| at.to_string()),
            "event_id": self.event_id.as_ref().map(EventId::as_str), "message": self.state().as_str(),
            "event_type": of_event("event_type"), "processing_outcome": of_event("processing_outcome"),
            "processing_error": of_event("processing_error") })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DlqAction {
    Redrive,
    Purge,
}

impl DlqAction {
    fn describe(self, state: DeadLetterState) -> &'static str {
        match (state, self) {
            (DeadLetterState::Open | DeadLetterState::Untried, Self::Redrive) => {
                "its event is reprocessed, the message is deleted"
            }
            (DeadLetterState::Open | DeadLetterState::Untried, Self::Purge) => {
                "its event is marked failed, the message is deleted"
            }
            (DeadLetterState::Done | DeadLetterState::Recheck, _) | (_, Self::Purge) => {
                "the message is deleted"
            }
            (_, Self::Redrive) => "the message stays",
        }
    }
}

/// A dead-letter queue and the table of the events that its messages name.
struct DeadLetterQueue<'a> {
    client: &'a aws_sdk_sqs::Client,
    url: &'a str,
    events: EventsTable,
}

pub(crate) async fn run_dlq(
    command: DlqCommand,
    session: &StackSession,
    output: OutputWriter,
) -> Result<()> {
    match command {
        DlqCommand::List(args) => {
            let queue = DeadLetterQueue::open(session, &args)?;
            let messages = queue.receive_all().await?;
            let rows: Vec<Value> = messages.iter().map(DeadLetterMessage::render).collect();
            queue.make_visible(&messages).await;
            let columns = [
                "sent_at",
                "message",
                "event_id",
                "event_type",
                "processing_outcome",
                "processing_error",
            ];
            output.print_list(&columns, &rows);
            queue.report_hidden(messages.len()).await?;
        }
        DlqCommand::Show(args) => {
            let queue = DeadLetterQueue::open(session, &args.queue)?;
            let messages = queue.receive_all().await?;
            queue.make_visible(&messages).await;
            let has_id = |message: &&DeadLetterMessage| {
                message.message_id == args.id
                    || message
                        .event_id
                        .as_ref()
                        .is_some_and(|id| id.as_str() == args.id)
            };
            let message = messages.iter().find(has_id).ok_or_else(|| {
                CommandExit::NotFound(format!(
                    "no visible message has the id or the event {}: list them with `billhook dlq list --queue …`",
                    args.id
                ))
            })?;
            let mut object = message.render();
            if let Some(members) = object.as_object_mut() {
                let event = message.event.as_ref().map(|event| event.row.clone());
                members.insert("event".to_owned(), event.into());
                members.insert("body".to_owned(), json!(message.body));
            }
            output.print_object(&object);
        }
        DlqCommand::Redrive(args) => {
            redrive_or_purge(args, session, output, DlqAction::Redrive).await?;
        }
        DlqCommand::Purge(args) => {
            redrive_or_purge(args, session, output, DlqAction::Purge).await?;
        }
    }
    Ok(())
}

async fn redrive_or_purge(
    args: DlqActionArgs,
    session: &StackSession,
    output: OutputWriter,
    action: DlqAction,
) -> Result<()> {
    let queue = DeadLetterQueue::open(session, &args.queue)?;
    if !args.change.is_confirmed() {
        return preview_action(session, &queue, output, action, &args).await;
    }
    let what = "the messages would be treated as the preview shows";
    let rows = Some(queue.count_messages().await?);
    let audit = args.change.start_audit(session, what, rows).await?;
    let (job, queues) = (audit.id, session.queues()?);
    let mut interrupted = pin!(wait_for_interrupt().fuse());
    let started_at = SystemClock.now();
    let (mut done, mut due) = (0_u64, Duration::ZERO);
    let mut left: BTreeMap<String, DeadLetterMessage> = BTreeMap::new();
    // The copies of what stays: behind them in their groups nothing is left that was not seen.
    let mut copies: BTreeSet<String> = BTreeSet::new();
    let mut empty_polls = 0;
    let remaining = loop {
        let batch = queue.receive_batch().await?;
        if batch.is_empty() {
            let remaining = queue.count_messages().await?.saturating_sub(copies.len());
            empty_polls += 1;
            if remaining == 0 || empty_polls == EMPTY_POLLS_MAX {
                break remaining;
            }
        }
        // A copy that comes a second time was invisible for its minute: everything has been seen.
        let mut is_round = false;
        for message in batch {
            let is_left = args.only.is_some_and(|only| only != message.state());
            match (message.state(), &message.event, action) {
                _ if is_left && copies.contains(&message.message_id) => {
                    is_round |= left.insert(message.message_id.clone(), message).is_some();
                    continue;
                }
                _ if is_left => {
                    copies.insert(queue.move_to_end(&message).await?);
                    continue;
                }
                (
                    DeadLetterState::Open | DeadLetterState::Untried,
                    Some(event),
                    DlqAction::Redrive,
                ) => {
                    redrive_event(&queue.events, &queues, event, job, &audit).await?;
                }
                (
                    DeadLetterState::Open | DeadLetterState::Untried,
                    Some(event),
                    DlqAction::Purge,
                ) => {
                    // Failed, and no longer pending: the sweep would send a pending event again that was given up here.
                    let note = audit.build_note("purge", SystemClock.now(), None);
                    let id = &event.record.id;
                    queue
                        .events
                        .apply_change(id, EventChange::Fail, note)
                        .await?;
                }
                (DeadLetterState::Done | DeadLetterState::Recheck, ..)
                | (_, _, DlqAction::Purge) => {}
                (_, _, DlqAction::Redrive) if copies.contains(&message.message_id) => {
                    // Kept invisible until the end of the run: given back now, the next receive would return it again.
                    is_round |= left.insert(message.message_id.clone(), message).is_some();
                    continue;
                }
                (_, _, DlqAction::Redrive) => {
                    // At the head of its group it would hide the messages behind it as long as it is invisible.
                    copies.insert(queue.move_to_end(&message).await?);
                    continue;
                }
            }
            queue.delete(&message).await?;
            done += 1;
            due += Duration::from_secs(1) / args.rate;
        }
        if is_round {
            break queue.count_messages().await?.saturating_sub(copies.len());
        }
        SystemClock
            .pause(due.saturating_sub(started_at.until(SystemClock.now())))
            .await;
        if (&mut interrupted).now_or_never().is_some() {
            queue.make_visible(left.values()).await;
            return Err(CommandExit::Interrupted(format!(
                "interrupted after {done} messages; run the same command again to continue"
            ))
            .into());
        }
    };
    queue.make_visible(left.values()).await;
    let what = match action {
        DlqAction::Redrive => "redriven",
        DlqAction::Purge => "purged",
    };
    print_notice(&format!("done: {done} messages {what}"));
    if !copies.is_empty() {
        let stay = copies.len();
        print_notice(&format!(
            "{stay} messages stay in the queue: list them with `billhook dlq list --queue …`"
        ));
    }
    if remaining > 0 {
        return Err(CommandExit::Refused(format!(
            "SQS still counts about {remaining} more messages: they came meanwhile, or somebody else is \
             reading them; run the same command again"
        ))
        .into());
    }
    Ok(())
}

/// Dry run: counts messages by state and says what the action would do with them.
async fn preview_action(
    session: &StackSession,
    queue: &DeadLetterQueue<'_>,
    output: OutputWriter,
    action: DlqAction,
    args: &DlqActionArgs,
) -> Result<()> {
    let messages = queue.receive_all().await?;
    queue.make_visible(&messages).await;
    let mut counts = BTreeMap::<&str, (DeadLetterState, u64)>::new();
    for message in &messages {
        let state = message.state();
        counts.entry(state.as_str()).or_insert((state, 0)).1 += 1;
    }
    let rows: Vec<Value> = counts
        .iter()
        .map(|(name, (state, count))| {
            let what = match args.only.is_some_and(|only| only != *state) {
                true => "the message stays",
                false => action.describe(*state),
            };
            json!({ "message": name, "messages": count, "what": what })
        })
        .collect();
    output.print_list(&["message", "messages", "what"], &rows);
    queue.report_hidden(messages.len()).await?;
    let what = "the messages would be treated as shown";
    announce_preview(session, what, &args.change);
    Ok(())
}

/// Writes the note, then sends the pointer. An event that was processed meanwhile gets neither.
async fn redrive_event(
    table: &EventsTable,
    queues: &EventQueues,
    event: &EventSummary,
    job: Uuid,
    audit: &AuditContext,
) -> Result<()> {
    let note = audit.build_note("redrive", SystemClock.now(), Some(&job.to_string()));
    let record = &event.record;
    let result = table
        .apply_change(&record.id, EventChange::Resend, note)
        .await?;
    if result == EventChangeResult::Applied {
        let body = EventPointer::replay_message(record, CorrelationId(job), audit.for_message());
        let deduplication_id = record.fresh_deduplication_id(job);
        queues
            .send(event.provider, &record.group, &deduplication_id, &body)
            .await?;
    }
    Ok(())
}

impl<'a> DeadLetterQueue<'a> {
    fn open(session: &'a StackSession, args: &DlqQueueArgs) -> Result<Self> {
        let provider = args.queue;
        let output = format!("{}EventsDlqUrl", provider.title());
        Ok(Self {
            client: &session.sqs,
            url: session.stack.output(&output)?,
            events: session.events_table(provider)?,
        })
    }

    /// All messages that are visible. A FIFO queue holds back the later messages of a group while an earlier one is in
    /// flight, so a group with two dead-letter messages shows only its first.
    async fn receive_all(&self) -> Result<Vec<DeadLetterMessage>> {
        let mut messages = Vec::new();
        loop {
            let batch = self.receive_batch().await?;
            if batch.is_empty() {
                return Ok(messages);
            }
            messages.extend(batch);
        }
    }

    async fn receive_batch(&self) -> Result<Vec<DeadLetterMessage>> {
        let received = self
            .client
            .receive_message()
            .queue_url(self.url)
            .max_number_of_messages(RECEIVE_BATCH)
            .visibility_timeout(VISIBILITY_S)
            .wait_time_seconds(WAIT_S)
            .message_system_attribute_names(Attribute::SentTimestamp)
            .message_system_attribute_names(Attribute::MessageGroupId)
            .send()
            .await
            .with_context(|| format!("cannot receive from {}", self.url))?;
        let mut messages: Vec<DeadLetterMessage> = received
            .messages
            .unwrap_or_default()
            .into_iter()
            .filter_map(|message| {
                let body = message.body.unwrap_or_default();
                let attributes = message.attributes.unwrap_or_default();
                let sent_ms = attributes
                    .get(&Attribute::SentTimestamp)
                    .and_then(|ms| ms.parse().ok());
                let group = attributes.get(&Attribute::MessageGroupId);
                let pointer = ReceivedPointer::parse(self.events.provider, &body);
                Some(DeadLetterMessage {
                    message_id: message.message_id?,
                    receipt: message.receipt_handle?,
                    group: group.cloned().unwrap_or_default(),
                    is_recheck: matches!(pointer, Some(ReceivedPointer::Payment(_))),
                    event_id: match pointer {
                        Some(ReceivedPointer::Event(pointer)) => Some(pointer.event_id),
                        Some(ReceivedPointer::Payment(_)) | None => None,
                    },
                    body,
                    sent_at: sent_ms.and_then(|ms| Timestamp::from_unix_ms(ms).ok()),
                    event: None,
                })
            })
            .collect();
        let ids: BTreeSet<EventId> = messages
            .iter()
            .filter_map(|message| message.event_id.clone())
            .collect();
        let events = self.events.get_summaries(&ids).await?;
        for message in &mut messages {
            message.event = events
                .iter()
                .find(|event| Some(&event.record.id) == message.event_id.as_ref())
                .cloned();
        }
        Ok(messages)
    }

    async fn delete(&self, message: &DeadLetterMessage) -> Result<()> {
        let delete = self.client.delete_message().queue_url(self.url);
        let deleted = delete.receipt_handle(&message.receipt).send().await;
        deleted
            .with_context(|| format!("cannot delete {} from {}", message.message_id, self.url))?;
        Ok(())
    }

    /// Sends a copy to the end of the message's group and deletes the message. Returns the copy's id. If the command dies
    /// between the two, there are two of it, which changes nothing.
    async fn move_to_end(&self, message: &DeadLetterMessage) -> Result<String> {
        let sent = self
            .client
            .send_message()
            .queue_url(self.url)
            .message_group_id(&message.group)
            .message_deduplication_id(SystemClock.new_id().to_string())
            .message_body(&message.body)
            .send()
            .await
            .with_context(|| format!("cannot move {} in {}", message.message_id, self.url))?;
        self.delete(message).await?;
        sent.message_id
            .with_context(|| format!("{} did not say the id of a message", self.url))
    }

    /// Ends the visibility timeout at once, so that a colleague who lists the queue right afterwards sees the messages. One
    /// that SQS does not take back now, because its minute is over or SQS does not answer, comes back by itself.
    async fn make_visible(&self, messages: impl IntoIterator<Item = &DeadLetterMessage>) {
        for message in messages {
            let change = self.client.change_message_visibility().queue_url(self.url);
            let change = change
                .receipt_handle(&message.receipt)
                .visibility_timeout(0);
            change.send().await.ok();
        }
    }

    async fn report_hidden(&self, shown: usize) -> Result<()> {
        let all = self.count_messages().await?;
        if all > shown {
            let hidden = all - shown;
            print_notice(&format!(
                "about {hidden} more messages are hidden: behind these in their message groups, or in flight elsewhere"
            ));
        }
        Ok(())
    }

    /// The messages by SQS's count, visible or not, which may be a minute old.
    async fn count_messages(&self) -> Result<usize> {
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
        let counts = counts.values();
        Ok(counts.filter_map(|count| count.parse::<usize>().ok()).sum())
    }
}
