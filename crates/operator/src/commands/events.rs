//! `billhook events`: list and show stored events, annotate, park, release and close them.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail};
use billhook_adapters::clock::SystemClock;
use billhook_adapters::dynamodb::attributes::Item;
use billhook_core::ids::{EventId, PerProvider, ProviderId};
use billhook_core::intake::inbox::EventRecord;
use billhook_core::outcome::{EventOutcome, ParkReason};
use billhook_core::ports::Clock as _;
use billhook_core::provider::interpret::InterpretRules;
use billhook_core::worker::ports::StoredEvent;
use clap::{Args, Subcommand};
use futures_util::stream::{self, StreamExt as _};
use serde_json::{Value, json};

use crate::audit::parse_reason;
use crate::confirm::{ChangeArgs, announce_preview, ask_to_change, start_audit};
use crate::event_filter::EventFilter;
use crate::event_lookup::{find_event, list_events, load_selected_events};
use crate::events_table::{EventChange, EventChangeResult, EventSummary, row_to_json};
use crate::output::{OutputWriter, print_notice};
use crate::payload_redaction::render_payload;
use crate::replay_run::release_events;
use crate::row_json::{RowDetail, read_text};
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
    /// Close parked or failed events for good: they are ignored, and not open any more
    #[command(
        after_help = "Without --yes the command only shows what it would do. With filters and no --outcome it closes parked events.\n\
        A new delivery of a closed event does not open it; `billhook replay EVENT --force` does.\n\nExamples:\n  \
        billhook events close evt_1 --reason 'a test of the shop' --yes\n  \
        billhook events close --error order_unknown --account acct_1 --since 7d --reason 'a loop in their integration' --yes"
    )]
    Close(EventsCloseArgs),
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

#[derive(Args, Debug)]
pub(crate) struct EventsCloseArgs {
    /// Close these events
    #[arg(value_parser = EventId::parse)]
    ids: Vec<EventId>,
    #[command(flatten)]
    filter: EventFilter,
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
            let audit = start_audit(session, annotate.text, &what, Some(1)).await?;
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
            let audit = hold.change.confirm(session, &what, Some(1)).await?;
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
            let audit = hold.change.confirm(session, &what, Some(1)).await?;
            release_events(session, &[event], &audit).await?;
        }
        EventsCommand::Close(close) => close_events(session, output, close).await?,
    }
    Ok(())
}

/// Closing is not in an order, and each event's write is conditional, so a second run closes what the first one left.
const CLOSED_AT_ONCE: usize = 16;

async fn close_events(
    session: &StackSession,
    output: OutputWriter,
    close: EventsCloseArgs,
) -> Result<()> {
    let EventsCloseArgs {
        ids,
        filter,
        change,
    } = close;
    if ids.is_empty() && filter.is_empty() {
        bail!(
            "pass event ids, or filters such as --error order_unknown: the command does not close everything"
        );
    }
    // Elsewhere too `--error` selects, and `--reason` says why.
    if let Some(reason) = change
        .reason()
        .filter(|reason| ParkReason::parse(reason).is_some())
    {
        bail!(
            "--reason is why you close them; to select the events that are parked as {reason}, pass --error {reason}"
        );
    }
    let by_id = !ids.is_empty();
    let options = filter.options_once_closed();
    let filter = if by_id { filter } else { filter.or_parked() };
    let selection = filter.resolve(ids, SystemClock.now());
    let found = load_selected_events(session, &selection).await?;
    let may_close = |event: &EventSummary| {
        let outcome = event.record.outcome;
        !event.record.processed && matches!(outcome, EventOutcome::Parked | EventOutcome::Failed)
    };
    let (closing, others): (Vec<_>, Vec<_>) = found.into_iter().partition(may_close);
    if by_id && let Some(other) = others.first() {
        let EventRecord { id, outcome, .. } = &other.record;
        bail!("{id} is {outcome}: only parked and failed events can be closed");
    }
    let what = format!("{} events would be closed", closing.len());
    if !change.is_confirmed() {
        let columns = ["account", "event_type", "outcome", "error", "events"];
        output.print_list(&columns, &count_by_account(&closing));
        announce_preview(session, &what, &change);
        return Ok(());
    }
    let rows = Some(closing.len());
    let audit = change.start_audit(session, &what, rows).await?;
    let note = audit.build_note("close", SystemClock.now(), None);
    let tables = PerProvider::try_new(|provider| session.events_table(provider))?;
    let writes = closing.iter().map(|event| {
        let table = tables.of(event.provider);
        table.apply_change(&event.record.id, EventChange::Close, note.clone())
    });
    let mut writes = stream::iter(writes).buffer_unordered(CLOSED_AT_ONCE);
    let mut closed = 0;
    while let Some(result) = writes.next().await {
        closed += usize::from(result? == EventChangeResult::Applied);
    }
    let left = closing.len() - closed;
    print_notice(&match left {
        0 => format!("closed {closed} events"),
        left => format!("closed {closed} events; {left} were processed or changed meanwhile"),
    });
    let undo = match closing
        .iter()
        .filter_map(|event| event.record.received_at)
        .min()
    {
        Some(since) if !by_id => {
            format!("--outcome ignored --error closed{options} --since {since}")
        }
        _ => {
            let ids = closing.iter().map(|event| event.record.id.as_str());
            ids.collect::<Vec<_>>().join(" ")
        }
    };
    if closed > 0 {
        print_notice(&format!(
            "to have them processed after all, run: billhook replay {undo} --force --reason … --yes"
        ));
    }
    Ok(())
}

fn count_by_account(events: &[EventSummary]) -> Vec<Value> {
    let mut counts: BTreeMap<[&str; 4], u64> = BTreeMap::new();
    for event in events {
        let text = |name: &str| read_text(&event.row, name);
        let kind = [
            text("connected_account_id").unwrap_or("platform"),
            text("event_type").unwrap_or("-"),
            text("processing_outcome").unwrap_or("-"),
            text("processing_error").unwrap_or("-"),
        ];
        *counts.entry(kind).or_default() += 1;
    }
    let rows = counts.into_iter().map(|([account, event_type, outcome, error], events)| {
        json!({ "account": account, "event_type": event_type, "outcome": outcome, "error": error, "events": events })
    });
    rows.collect()
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
