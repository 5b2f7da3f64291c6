//! `billhook trace`: the history of an id in order of time, over events, notes, changed columns, timeline and log
//! lines. `search` reads, `entries` renders.

mod entries;
mod search;

use std::collections::BTreeSet;

use anyhow::Result;
use billhook_core::entity::key::StateKey;
use billhook_core::ids::ProviderId;
use billhook_core::worker::ports::Ledger as _;
use clap::Args;
use serde_json::{Value, json};

use self::entries::{
    TraceEntry, TracedEvent, collect_event_ids, describe_entity, describe_event, describe_log_line,
    list_column_changes,
};
use self::search::TraceSearch;
use crate::application_tables::locate_entity;
use crate::exit::CommandExit;
use crate::log_lines::read_log_lines;
use crate::output::{OutputWriter, print_notice};
use crate::row_json::RowDetail;
use crate::session::StackSession;
use crate::time_argument::TimeArgument;

/// Each event needs a search in three log groups, and CloudWatch throttles searches.
const LOGGED_MAX: usize = 10;

#[derive(Args, Debug)]
#[command(
    after_help = "The id may be of an event, a PaymentIntent, a printed letter, an order, a statement, a tenant or a replay, or a \
    correlation id.\nFor any other object (charge, session, refund) the command searches the events received since --since.\n\
    Duplicate deliveries and single attempts appear only in the functions' logs: add --logs.\n\nExamples:\n  \
    billhook trace ord_1\n  billhook trace evt_1 --logs\n  billhook trace ch_1 --since 30d"
)]
pub(crate) struct TraceArgs {
    /// The id, for example evt_…, pi_…, ltr_… or an order id
    id: String,
    /// How far back to search if no index has the id
    #[arg(long, default_value = "7d", value_parser = TimeArgument::parse)]
    since: TimeArgument,
    /// Include log lines of the functions: every delivery, duplicates too, and every attempt
    #[arg(long)]
    logs: bool,
}

pub(crate) async fn run_trace(
    args: TraceArgs,
    session: &StackSession,
    output: OutputWriter,
) -> Result<()> {
    let mut search = TraceSearch::default();
    search.start_from_id(session, &args.id, args.since).await?;
    // From the found events to their entities, and from there to the other events of those.
    search.add_entities_of_events(session).await?;
    let mut entities = Vec::new();
    for key in search.entities.clone() {
        let ledger = session.ledger(ProviderId::Stripe)?;
        let keys = BTreeSet::from([StateKey::Entity(key.clone())]);
        let mut rows = ledger.load_rows(&keys).await?;
        let Some((entity, _)) = rows.entities.remove(&key) else {
            continue;
        };
        let (table, id) = locate_entity(&key);
        let row = table.find_row(session, id, RowDetail::Known).await?;
        let row = row.unwrap_or_default();
        // The state's newest events, those that its facts name, and those of the timeline.
        for id in collect_event_ids(&json!(entity.to_row()))
            .into_iter()
            .chain(collect_event_ids(&row))
        {
            search.add_event(session, &id).await?;
        }
        entities.push((entity, row));
    }
    if search.events.is_empty() && entities.is_empty() && search.entries.is_empty() {
        return Err(CommandExit::NotFound(format!(
            "found nothing about {}: search further back with --since 30d",
            args.id
        ))
        .into());
    }
    let mut entries = search.entries;
    for event in search.events.values() {
        entries.extend(describe_event(&event.summary.row));
    }
    for (entity, row) in &entities {
        entries.extend(describe_entity(entity, row));
        entries.extend(list_column_changes(entity, search.events.values()));
    }
    if args.logs {
        match read_event_logs(session, search.events.values()).await {
            Ok(logged) => entries.extend(logged),
            Err(error) => print_notice(&format!("cannot read the logs: {error:#}")),
        }
    }
    entries.sort();
    let rows: Vec<Value> = entries
        .into_iter()
        .map(|entry| json!({ "at": entry.at, "what": entry.what, "id": entry.id, "detail": entry.detail }))
        .collect();
    output.print_list(&["at", "what", "id", "detail"], &rows);
    Ok(())
}

/// Reads the log lines about the events, each from its arrival on.
async fn read_event_logs(
    session: &StackSession,
    events: impl Iterator<Item = &TracedEvent>,
) -> Result<Vec<TraceEntry>> {
    let mut arrived: Vec<_> = events
        .filter_map(|event| Some((event.summary.record.received_at?, &event.summary)))
        .collect();
    arrived.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
    if arrived.len() > LOGGED_MAX {
        print_notice(&format!(
            "showing log lines of the latest {LOGGED_MAX} events only"
        ));
    }
    let mut entries = Vec::new();
    for (at, event) in arrived.into_iter().take(LOGGED_MAX) {
        let worker = format!("{}WorkerFunction", event.provider.title());
        let id = event.record.id.as_str();
        for key in [
            "WebhookIngressFunction",
            worker.as_str(),
            "CleanupFailedPaymentsFunction",
        ] {
            let function = session.stack.output(key)?;
            let found = read_log_lines(session, function, at, Some(id)).await?;
            entries.extend(
                found
                    .iter()
                    .filter_map(|line| describe_log_line(&line.members, id)),
            );
        }
    }
    Ok(entries)
}
