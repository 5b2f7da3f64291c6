//! Finds events in the events tables of both providers, by id or by a selection.

use anyhow::Result;
use billhook_adapters::dynamodb::attributes::Item;
use billhook_core::ids::{EventId, ProviderId};

use crate::event_filter::EventSelection;
use crate::events_table::{EventSummary, EventsTable};
use crate::exit::CommandExit;
use crate::session::StackSession;

/// At most `most` events of each provider. The lists follow each other; only each by itself is sorted.
pub(crate) async fn list_events(
    session: &StackSession,
    selection: &EventSelection,
    most: usize,
) -> Result<Vec<EventSummary>> {
    let mut found = Vec::new();
    for provider in selection.providers() {
        found.extend(
            session
                .events_table(provider)?
                .list(selection, most)
                .await?,
        );
    }
    Ok(found)
}

/// Reads an event by id. An id does not always tell its provider: Stripe's and Lob's both begin with `evt_`.
pub(crate) async fn find_event(
    session: &StackSession,
    id: &EventId,
) -> Result<(EventsTable, Item)> {
    for provider in ProviderId::ALL {
        let events = session.events_table(*provider)?;
        if let Some(item) = events.get_item(id).await? {
            return Ok((events, item));
        }
    }
    let stack = &session.stack.name;
    Err(CommandExit::NotFound(format!(
        "there is no event {id} in {stack}: it never arrived, or it arrived more than 400 days ago; \
         Stripe's dashboard can resend an event for 30 days"
    ))
    .into())
}

/// The events that a selection names by id or, if it names none, all that match its filters. An id that does not exist
/// is an error: an operator who mistypes one of ten ids must not believe that all ten were replayed.
pub(crate) async fn load_selected_events(
    session: &StackSession,
    selection: &EventSelection,
) -> Result<Vec<EventSummary>> {
    if selection.ids.is_empty() {
        return list_events(session, selection, usize::MAX).await;
    }
    let ids = selection.ids.iter().cloned().collect();
    let mut found = Vec::new();
    for provider in ProviderId::ALL {
        let table = session.events_table(*provider)?;
        found.extend(table.get_summaries(&ids).await?);
    }
    for id in &selection.ids {
        if !found.iter().any(|event| event.record.id == *id) {
            // Its error says what to do about the missing event.
            find_event(session, id).await?;
        }
    }
    Ok(found)
}
