//! `billhook events`: what came, what became of it, and setting single events aside or free.

use anyhow::{Context as _, Result, bail};
use billhook_adapters::clock::SystemClock;
use billhook_adapters::dynamodb::attributes::Item;
use billhook_adapters::dynamodb::events::read_stored_event;
use billhook_core::ids::{EventId, ProviderId};
use billhook_core::ports::Clock as _;
use clap::{Args, Subcommand};
use serde_json::Value;

use crate::Stop;
use crate::audit::{self, By};
use crate::filter::Filter;
use crate::output::Output;
use crate::payload;
use crate::replay;
use crate::session::Session;
use crate::store::{Change, Events, Listed, json};

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
pub(crate) enum Command {
    /// List events, the newest first
    #[command(
        after_help = "Examples:\n  billhook events list --outcome parked --outcome failed\n  \
        billhook events list --type 'charge.*' --account acct_1 --since 2d\n  \
        billhook events list --since 12h --output jsonl | jq -r .event_id"
    )]
    List(List),
    /// Show an event: its row, its notes and its payload
    #[command(
        after_help = "The payload is cut to the fields that billhook reads, so that it holds no names, addresses \
        or cards; --raw shows all of it.\n\nExamples:\n  billhook events show evt_1\n  billhook events show evt_1 --raw --output json"
    )]
    Show(Show),
    /// Leave a note on an event
    #[command(
        after_help = "Example:\n  billhook events annotate evt_1 'refund agreed with the customer'"
    )]
    Annotate(Annotate),
    /// Set an event aside: the sweep leaves it alone until it is released
    #[command(
        after_help = "A message that is still on the queue, or a new delivery, decides it all the same.\n\n\
        Example:\n  billhook events park evt_1 --reason 'waits for the corrected order'"
    )]
    Park(Held),
    /// Have an event that is not done decided again
    #[command(after_help = "Example:\n  billhook events release evt_1 --reason 'order corrected'")]
    Release(Held),
}

#[derive(Args, Debug)]
pub(crate) struct List {
    #[command(flatten)]
    filter: Filter,
    /// At most so many
    #[arg(long, default_value_t = 50)]
    limit: usize,
}

#[derive(Args, Debug)]
pub(crate) struct Show {
    /// The event
    #[arg(value_parser = EventId::parse)]
    id: EventId,
    /// Show the whole payload, personal data included
    #[arg(long)]
    raw: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Annotate {
    /// The event
    #[arg(value_parser = EventId::parse)]
    id: EventId,
    /// What to remember
    #[arg(value_parser = audit::reason)]
    text: String,
}

#[derive(Args, Debug)]
pub(crate) struct Held {
    /// The event
    #[arg(value_parser = EventId::parse)]
    id: EventId,
    /// Why, for whoever looks at it later
    #[arg(long, value_parser = audit::reason)]
    reason: String,
}

pub(crate) async fn run(command: Command, session: &Session, output: Output) -> Result<()> {
    match command {
        Command::List(list) => {
            let selection = list.filter.select(Vec::new(), SystemClock.now());
            let mut found = Vec::new();
            for provider in selection.providers() {
                found.extend(
                    session
                        .events(provider)?
                        .list(&selection, list.limit)
                        .await?,
                );
            }
            found.sort_by_key(|listed| std::cmp::Reverse(listed.place()));
            let rows: Vec<Value> = found
                .into_iter()
                .take(list.limit)
                .map(|listed| listed.row)
                .collect();
            output.list(&COLUMNS, &rows);
        }
        Command::Show(show) => {
            let (events, item) = find(session, &show.id).await?;
            output.one(&shown(events.provider, &item, show.raw));
        }
        Command::Annotate(annotate) => {
            let (events, _) = find(session, &annotate.id).await?;
            let by = By {
                actor: session.actor().await?,
                reason: annotate.text,
            };
            let note = by.note("annotate", SystemClock.now(), None);
            events.change(&annotate.id, Change::Annotate, note).await?;
            Output::tell(&format!("noted on {}", annotate.id));
        }
        Command::Park(held) => {
            let (events, _) = find(session, &held.id).await?;
            let by = By {
                actor: session.actor().await?,
                reason: held.reason,
            };
            let note = by.note("park", SystemClock.now(), None);
            if !events.change(&held.id, Change::Park, note).await? {
                bail!("{} is done already, there is nothing to set aside", held.id);
            }
            let id = &held.id;
            Output::tell(&format!(
                "parked {id}; free it with: billhook events release {id} --reason …"
            ));
        }
        Command::Release(held) => {
            let (events, item) = find(session, &held.id).await?;
            let listed = Listed::read(events.provider, &item).context("its row is none of ours")?;
            replay::release(session, &[listed], held.reason).await?;
        }
    }
    Ok(())
}

/// An event of either provider.
pub(crate) async fn find(session: &Session, id: &EventId) -> Result<(Events, Item)> {
    for provider in [ProviderId::Stripe, ProviderId::Lob] {
        let events = session.events(provider)?;
        if let Some(item) = events.item(id).await? {
            return Ok((events, item));
        }
    }
    let stack = &session.stack.name;
    Err(Stop::NotThere(format!(
        "there is no event {id} in {stack}: it was never taken in, or more than 400 days ago; \
         Stripe's dashboard can send it again for 30 days"
    ))
    .into())
}

fn shown(provider: ProviderId, item: &Item, raw: bool) -> Value {
    let mut row = json(item);
    if let (Some(members), Some(kept)) = (row.as_object_mut(), read_stored_event(item)) {
        members.insert(
            "payload".to_owned(),
            payload::shown(provider, &kept.payload, raw),
        );
    }
    row
}
