//! Turns events, log lines and entity rows into trace entries: what arrived, what an operator did, what changed. No
//! I/O.

use std::collections::{BTreeMap, BTreeSet};

use billhook_core::entity::Entity;
use billhook_core::entity::key::{PaymentKey, StateKey};
use billhook_core::entity::kind::StatedFacts;
use billhook_core::entity::merge::Merge as _;
use billhook_core::entity::payment::linked::PaymentCopy;
use billhook_core::ids::EventId;
use billhook_core::provider::interpret::{EventFacts, EventSubject};
use billhook_core::time::Timestamp;
use serde_json::{Value, json};

use crate::dry_run::diff_entity;
use crate::events_table::EventSummary;
use crate::row_json::read_text;
use crate::row_standing::describe_row_standing;

/// An event and the facts in its payload.
pub(super) struct TracedEvent {
    pub(super) summary: EventSummary,
    pub(super) facts: Option<EventFacts>,
}

impl TracedEvent {
    /// What took its facts, as its row says.
    pub(super) fn taken_by(&self) -> BTreeSet<StateKey> {
        let keys = self.summary.row.get("entities").and_then(Value::as_array);
        let keys = keys.into_iter().flatten().filter_map(Value::as_str);
        keys.filter_map(StateKey::parse).collect()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct TraceEntry {
    pub(super) at: String,
    /// Orders entries of the same millisecond by cause and effect: received, notes, outcome, changed columns, timeline.
    pub(super) rank: u8,
    pub(super) id: String,
    pub(super) what: String,
    pub(super) detail: String,
}

/// The ids of all events that facts or a timeline mention.
pub(super) fn collect_event_ids(value: &Value) -> BTreeSet<EventId> {
    match value {
        Value::String(text) if text.starts_with("evt_") => {
            EventId::parse(text).into_iter().collect()
        }
        Value::Array(items) => items.iter().flat_map(collect_event_ids).collect(),
        Value::Object(members) => members.values().flat_map(collect_event_ids).collect(),
        _ => BTreeSet::new(),
    }
}

pub(super) fn describe_event(row: &Value) -> Vec<TraceEntry> {
    let of = |name: &str| read_text(row, name).unwrap_or_default().to_owned();
    let entry = |at: String, rank: u8, what: &str, detail: String| TraceEntry {
        at,
        rank,
        id: of("event_id"),
        what: what.to_owned(),
        detail,
    };
    let mut entries = vec![entry(
        of("received_at"),
        1,
        "received",
        format!(
            "{} {} correlation {}",
            of("event_type"),
            of("connected_account_id"),
            of("correlation_id")
        ),
    )];
    for note in row
        .get("notes")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        let of = |name: &str| read_text(note, name).unwrap_or_default().to_owned();
        entries.push(entry(
            of("at"),
            2,
            &of("action"),
            format!("by {}: {}", of("actor"), of("reason")),
        ));
    }
    let attempts = row
        .get("attempts")
        .map(Value::to_string)
        .unwrap_or_default();
    let reason = of("processing_error");
    let at = read_text(row, "processed_at")
        .unwrap_or("not yet")
        .to_owned();
    entries.push(entry(
        at,
        3,
        &of("processing_outcome"),
        format!("{reason} attempts {attempts}").trim().to_owned(),
    ));
    entries
}

/// A log line about this event. Its metrics are left out: an invocation counts them over all events of its batch, and
/// here they would look like this event's.
pub(super) fn describe_log_line(line: &Value, id: &str) -> Option<TraceEntry> {
    let of = |name: &str| read_text(line, name);
    of("event_id").filter(|of| *of == id)?;
    let own_columns = ["timestamp", "level", "function", "message", "event_id"];
    let members = line.as_object()?.iter().filter(|(name, value)| {
        let is_counted = value.is_number() && name.starts_with(char::is_uppercase);
        !own_columns.contains(&name.as_str())
            && !is_counted
            && !value.is_object()
            && !value.is_array()
    });
    let members: Vec<String> = members
        .map(|(name, value)| format!("{name} {value}"))
        .collect();
    Some(TraceEntry {
        at: of("timestamp")?.to_owned(),
        rank: 6,
        id: id.to_owned(),
        what: of("message")?.to_owned(),
        detail: format!(
            "{} {}",
            of("function").unwrap_or_default(),
            members.join(" ")
        ),
    })
}

pub(super) fn describe_entity(entity: &Entity, row: &Value) -> Vec<TraceEntry> {
    let of = |entry: &Value, name: &str| read_text(entry, name).unwrap_or_default().to_owned();
    let timeline = row
        .get("timeline")
        .and_then(Value::as_array)
        .into_iter()
        .flatten();
    let mut entries: Vec<TraceEntry> = timeline
        .map(|entry| TraceEntry {
            at: of(entry, "at"),
            rank: 5,
            id: entity.key().to_string(),
            what: of(entry, "type"),
            detail: format!(
                "{} {} {}",
                of(entry, "actor"),
                of(entry, "eventId"),
                entry.get("meta").map(Value::to_string).unwrap_or_default()
            ),
        })
        .collect();
    entries.push(TraceEntry {
        at: "now".to_owned(),
        rank: 9,
        id: entity.key().to_string(),
        what: "current".to_owned(),
        detail: json!(entity.columns()).to_string(),
    });
    // After what the row says, because that is not the truth.
    entries.extend(describe_row_standing(entity).map(|standing| TraceEntry {
        at: "now".to_owned(),
        rank: 10,
        id: entity.key().to_string(),
        what: "row".to_owned(),
        detail: standing,
    }));
    entries
}

/// The columns that each event changed. The history of columns is not stored: it is derived by applying the events to
/// an empty entity in the order in which they were processed.
pub(super) fn list_column_changes<'a>(
    entity: &Entity,
    events: impl Iterator<Item = &'a TracedEvent>,
) -> Vec<TraceEntry> {
    let own = StateKey::Entity(entity.key());
    let payments = entity.linked_payment_facts().into_iter();
    let payments: BTreeSet<PaymentKey> = payments
        .flat_map(|facts| facts.payment_keys().cloned())
        .collect();
    let is_own = |key: &StateKey| match key {
        StateKey::Payment(payment) => payments.contains(payment),
        key => *key == own,
    };
    let mut processed: Vec<(Timestamp, &TracedEvent)> = events
        .filter(|event| event.taken_by().iter().any(is_own))
        .filter_map(|event| {
            let at = read_text(&event.summary.row, "processed_at")?;
            Some((Timestamp::parse(at).ok()?, event))
        })
        .collect();
    processed.sort_by_key(|(at, event)| (*at, event.summary.record.id.clone()));
    let mut entity = entity.without_history();
    let mut copies: BTreeMap<PaymentKey, PaymentCopy> = BTreeMap::new();
    let mut entries = Vec::new();
    for (at, event) in processed {
        let Some(facts) = &event.facts else { continue };
        let stated = match &facts.subject {
            EventSubject::Account(account) => StatedFacts::Account(account.clone()),
            EventSubject::Piece(_, mail) => StatedFacts::Mail(mail.clone()),
            EventSubject::Payment(payment) => {
                let Some(name) = payment.names.first() else {
                    continue;
                };
                let key = PaymentKey {
                    account: event.summary.record.account.clone(),
                    payment: name.clone(),
                };
                let copy = copies
                    .entry(key.clone())
                    .or_insert_with(|| PaymentCopy::linked(0));
                copy.version += 1;
                copy.invoices.extend(payment.invoice.clone());
                copy.facts.merge(payment.money.clone());
                StatedFacts::Payment(key, Box::new(copy.clone()))
            }
        };
        let next = entity.apply_facts([stated], at);
        for change in diff_entity(&entity, &next, at) {
            if change.column == "timeline" {
                continue;
            }
            entries.push(TraceEntry {
                at: at.to_string(),
                rank: 4,
                id: entity.key().to_string(),
                what: change.column,
                detail: format!(
                    "{} -> {} by {}",
                    change.before, change.after, event.summary.record.id
                ),
            });
        }
        entity = next.with_row_written();
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_event_ids_in_facts_are_collected() {
        let facts = json!({ "payments": { "pi_1": { "succeeded": { "event": "evt_2", "at": "x" } } },
            "timeline": [{ "eventId": "evt_1" }, { "eventId": "evt_2", "meta": { "note": "no evt_ here" } }] });
        let ids: Vec<_> = collect_event_ids(&facts)
            .into_iter()
            .map(|id| id.to_string())
            .collect();
        assert_eq!(ids, ["evt_1", "evt_2"]);
    }

    #[test]
    fn a_log_line_is_described_only_if_it_is_about_the_event() {
        let line = json!({ "timestamp": "2026-11-21T08:00:00.000Z", "level": "info", "function": "webhook-ingress",
            "message": "stripe_webhook_received", "event_id": "evt_1", "duplicate": true, "_aws": { "Timestamp": 1 }, "WebhookSuccess": 1 });
        let entry = describe_log_line(&line, "evt_1").unwrap();
        assert_eq!(
            (entry.what.as_str(), entry.detail.as_str()),
            ("stripe_webhook_received", "webhook-ingress duplicate true")
        );
        assert_eq!(describe_log_line(&line, "evt_2"), None);
    }

    #[test]
    fn a_trace_of_an_event_has_arrival_notes_and_outcome() {
        let row = json!({ "event_id": "evt_1", "event_type": "charge.refunded", "received_at": "2026-11-21T08:00:00.000Z",
            "processing_outcome": "parked", "processing_error": "order_unknown", "attempts": 2, "correlation_id": "c",
            "notes": [{ "at": "2026-11-21T09:00:00.000Z", "action": "park", "actor": "arn", "reason": "why" }] });
        let entries = describe_event(&row);
        let described: Vec<_> = entries
            .iter()
            .map(|line| (line.at.as_str(), line.what.as_str(), line.detail.as_str()))
            .collect();
        assert_eq!(
            described,
            [
                (
                    "2026-11-21T08:00:00.000Z",
                    "received",
                    "charge.refunded  correlation c"
                ),
                ("2026-11-21T09:00:00.000Z", "park", "by arn: why"),
                ("not yet", "parked", "order_unknown attempts 2"),
            ]
        );
    }
}
