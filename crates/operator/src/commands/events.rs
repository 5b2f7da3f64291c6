//! `billhook events`: list and show stored events, annotate them, park them and release them.

use anyhow::{Context as _, Result, bail};
use billhook_adapters::clock::SystemClock;
use billhook_adapters::dynamodb::attributes::Item;
use billhook_core::ids::{EventId, ProviderId};
use billhook_core::ports::Clock as _;
use billhook_core::provider::interpret::InterpretRules;
use billhook_core::worker::ports::StoredEvent;
use clap::{Args, Subcommand};
use serde_json::Value;

use crate::audit::parse_reason;
use crate::confirm::{ChangeArgs, ask_to_change};
use crate::event_filter::EventFilter;
use crate::event_lookup::{find_event, list_events};
use crate::events_table::{EventChange, EventChangeResult, EventSummary, row_to_json};
use crate::output::{OutputWriter, print_notice};
use crate::payload_redaction::render_payload;
use crate::replay_run::release_events;
use crate::row_json::RowDetail;
use crate::session::StackSession;

const COLUMNS: [&str; 7] = [
    "received_at",
    "event_id",
    "event_type",
    "processing_outcome",
    "processing_error",
    "connected_account_id",
    "attempts",
];

#[derive(Debug, Subcommand)]
pub(crate) enum EventsCommand {
    /// List events, newest first
    #[command(
        after_help = "Examples:\n  billhook events list --outcome parked --outcome failed\n  \
        billhook events list --type 'charge.*' --account acct_1 --since 2d\n  \
        billhook events list --since 12h --output jsonl | jq -r .event_id"
    )]
    List(EventsListArgs),
    /// Show an event with its notes and payload
    #[command(
        after_help = "The payload is reduced to the fields that billhook reads, without names, addresses or \
        cards; --raw shows the whole payload.\n\nExamples:\n  billhook events show evt_1\n  billhook events show evt_1 --raw --output json"
    )]
    Show(EventsShowArgs),
    /// Add a note to an event
    #[command(
        after_help = "Example:\n  billhook events annotate evt_1 'refund agreed with the customer'"
    )]
    Annotate(EventsAnnotateArgs),
    /// Park an event: the sweep does not retry it until you release it
    #[command(
        after_help = "A message that is still in the queue, or a new delivery from the provider, processes the event anyway.\n\n\
        Example:\n  billhook events park evt_1 --reason 'waits for the corrected order'"
    )]
    Park(EventsParkReleaseArgs),
    /// Reprocess an unfinished event
    #[command(after_help = "Example:\n  billhook events release evt_1 --reason 'order corrected'")]
    Release(EventsParkReleaseArgs),
}

#[derive(Args, Debug)]
pub(crate) struct EventsListArgs {
    #[command(flatten)]
    filter: EventFilter,
    /// Show at most this many events
    #[arg(long, default_value_t = 50)]
    limit: usize,
}

#[derive(Args, Debug)]
pub(crate) struct EventsShowArgs {
    /// The event id
    #[arg(value_parser = EventId::parse)]
    id: EventId,
    /// Show the whole payload, personal data included
    #[arg(long)]
    raw: bool,
}

#[derive(Args, Debug)]
pub(crate) struct EventsAnnotateArgs {
    /// The event id
    #[arg(value_parser = EventId::parse)]
    id: EventId,
    /// The text of the note
    #[arg(value_parser = parse_reason)]
    text: String,
    /// Do it without asking
    #[arg(long)]
    yes: bool,
}

#[derive(Args, Debug)]
pub(crate) struct EventsParkReleaseArgs {
    /// The event id
    #[arg(value_parser = EventId::parse)]
    id: EventId,
    #[command(flatten)]
    change: ChangeArgs,
}

pub(crate) async fn run_events(
    command: EventsCommand,
    session: &StackSession,
    output: OutputWriter,
) -> Result<()> {
    match command {
        EventsCommand::List(list) => {
            let selection = list.filter.resolve(Vec::new(), SystemClock.now());
            let mut found = list_events(session, &selection, list.limit).await?;
            found.sort_by_key(|event| std::cmp::Reverse(event.sort_key()));
            let rows: Vec<Value> = found
                .into_iter()
                .take(list.limit)
                .map(|event| event.row)
                .collect();
            output.print_list(&COLUMNS, &rows);
        }
        EventsCommand::Show(show) => {
            let (events, item) = find_event(session, &show.id).await?;
            let kept = session.read_event(events.provider, &item).await?;
            output.print_object(&render_event(
                events.provider,
                kept.as_ref(),
                &session.stack.interpret_rules()?,
                &item,
                RowDetail::by_flag(show.raw),
            ));
        }
        EventsCommand::Annotate(annotate) => {
            let (events, _) = find_event(session, &annotate.id).await?;
            let what = format!("{} would get the note: {}", annotate.id, annotate.text);
            if !annotate.yes {
                ask_to_change(session, &what, "")?;
            }
            let audit = session.start_audit(annotate.text).await?;
            let note = audit.build_note("annotate", SystemClock.now(), None);
            events
                .apply_change(&annotate.id, EventChange::Annotate, note)
                .await?;
            print_notice(&format!("added the note to {}", annotate.id));
        }
        EventsCommand::Park(hold) => {
            let (events, _) = find_event(session, &hold.id).await?;
            let what = format!(
                "{} would be parked, and not retried until it is released",
                hold.id
            );
            let audit = hold.change.confirm(session, &what).await?;
            let note = audit.build_note("park", SystemClock.now(), None);
            let result = events
                .apply_change(&hold.id, EventChange::Park, note)
                .await?;
            if result == EventChangeResult::NotAllowed {
                bail!(
                    "{} is already processed or ignored: it cannot be parked",
                    hold.id
                );
            }
            let id = &hold.id;
            print_notice(&format!(
                "parked {id}; to reprocess it, run: billhook events release {id} --reason …"
            ));
        }
        EventsCommand::Release(hold) => {
            let (events, item) = find_event(session, &hold.id).await?;
            let event = EventSummary::from_item(events.provider, &item)
                .context("its row is not an event of billhook")?;
            let what = format!("{} would be reprocessed", hold.id);
            let audit = hold.change.confirm(session, &what).await?;
            release_events(session, &[event], &audit).await?;
        }
    }
    Ok(())
}

fn render_event(
    provider: ProviderId,
    kept: Option<&StoredEvent>,
    rules: &InterpretRules,
    item: &Item,
    detail: RowDetail,
) -> Value {
    let mut row = row_to_json(item);
    if let (Some(members), Some(kept)) = (row.as_object_mut(), kept) {
        members.insert(
            "payload".to_owned(),
            render_payload(provider, rules, &kept.payload, detail),
        );
    }
    row
}
