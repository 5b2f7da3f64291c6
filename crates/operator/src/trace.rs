//! `billhook trace`: from any id the whole story in order. Gathering is thin; the telling is pure.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result};
use billhook_adapters::clock::SystemClock;
use billhook_adapters::dynamodb::events::read_stored_event;
use billhook_core::entity::schema::{GuardedColumns, LastDerived};
use billhook_core::entity::{Entity, EntityFacts, EntityKey};
use billhook_core::ids::{
    EventId, OrderId, PaymentIntentId, PieceId, ProviderId, StatementId, TenantId,
};
use billhook_core::ports::Clock as _;
use billhook_core::provider::interpret::{EventFacts, interpret};
use billhook_core::time::Timestamp;
use billhook_core::worker::ports::{Ledger as _, PaymentKey, StoredEvent, StoredPayload};
use clap::Args;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::entity::{ORDERS, STATEMENTS, TENANTS, Table};
use crate::filter::{Filter, text};
use crate::job::Jobs;
use crate::moment::Moment;
use crate::output::Output;
use crate::session::Session;
use crate::store::Listed;
use crate::what_if::changed;
use crate::{Stop, events, logs};

/// Events whose lines are read: each is a question to three log groups.
const LOGGED_MAX: usize = 10;

#[derive(Args, Debug)]
#[command(
    after_help = "The id may be an event's, a correlation id, a replay's, a PaymentIntent's, a letter's, an order's, a \
    statement's or a tenant's.\nAny other object (charge, session, refund) is looked for in the events of a span, see --since.\n\
    Duplicate deliveries and single attempts leave no trace but in the functions' logs, see --logs.\n\nExamples:\n  \
    billhook trace ord_1\n  billhook trace evt_1 --logs\n  billhook trace ch_1 --since 30d"
)]
pub(crate) struct Trace {
    /// The id
    id: String,
    /// How far back to look where no index leads to it
    #[arg(long, default_value = "7d", value_parser = Moment::parse)]
    since: Moment,
    /// With the functions' lines about each event: every delivery, also a duplicate, and every attempt
    #[arg(long)]
    logs: bool,
}

/// An event with what it states.
struct Told {
    listed: Listed,
    claim: Option<EventFacts>,
}

/// One line of the story.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Line {
    at: String,
    /// Lines of one moment in the order of cause and effect.
    rank: u8,
    id: String,
    what: String,
    detail: String,
}

/// What was found of an id.
#[derive(Default)]
struct Found {
    events: BTreeMap<EventId, Told>,
    entities: BTreeSet<EntityKey>,
    lines: Vec<Line>,
}

pub(crate) async fn run(trace: Trace, session: &Session, output: Output) -> Result<()> {
    let mut found = Found::default();
    found.begin(session, &trace).await?;
    // From events to what they are about, and from that to its other events.
    for told in found.events.values() {
        if let Some(key) = whose(session, told).await? {
            found.entities.insert(key);
        }
    }
    let mut entities = Vec::new();
    for key in found.entities.clone() {
        let ledger = session.ledger(ProviderId::Stripe)?;
        let mut rows = ledger
            .load_rows(&BTreeSet::from([key.clone()]), &BTreeSet::new())
            .await?;
        let Some((entity, _)) = rows.entities.remove(&key) else {
            continue;
        };
        let row = table(&key).row(session, id(&key), false).await?;
        for id in named(&json!(entity.facts)).into_iter().chain(named(&row)) {
            found.add(session, &id).await?;
        }
        entities.push((entity, row));
    }
    if found.events.is_empty() && entities.is_empty() && found.lines.is_empty() {
        return Err(Stop::NotThere(format!(
            "nothing is known of {}: look further back with --since",
            trace.id
        ))
        .into());
    }
    let mut lines = found.lines;
    for told in found.events.values() {
        lines.extend(told_of_event(&told.listed.row));
    }
    for (entity, row) in &entities {
        lines.extend(told_of_entity(entity, row));
        lines.extend(steps(entity, found.events.values()));
    }
    if trace.logs {
        match logged(session, found.events.values()).await {
            Ok(logged) => lines.extend(logged),
            Err(error) => Output::tell(&format!("the logs cannot be read: {error:#}")),
        }
    }
    lines.sort();
    let rows: Vec<Value> = lines
        .into_iter()
        .map(|line| json!({ "at": line.at, "what": line.what, "id": line.id, "detail": line.detail }))
        .collect();
    output.list(&["at", "what", "id", "detail"], &rows);
    Ok(())
}

impl Found {
    async fn begin(&mut self, session: &Session, trace: &Trace) -> Result<()> {
        let id = trace.id.as_str();
        if let Ok(event) = EventId::parse(id) {
            events::find(session, &event).await?;
            return self.add(session, &event).await;
        }
        if let Ok(uuid) = id.parse::<Uuid>() {
            return self.by_correlation(session, uuid).await;
        }
        if let Ok(intent) = PaymentIntentId::parse(id) {
            let ledger = session.ledger(ProviderId::Stripe)?;
            self.entities
                .extend(ledger.entities_by_payment_intent(&intent).await?);
            let payment = PaymentKey {
                account: None,
                intent,
            };
            let rows = ledger
                .load_rows(&BTreeSet::new(), &BTreeSet::from([payment]))
                .await?;
            for row in rows.payments.into_values() {
                self.entities.extend(row.entity);
                for event in row.waiting {
                    self.add(session, &event).await?;
                }
            }
            return self.by_object(session, trace).await;
        }
        if ["ltr_", "psc_", "sfm_", "chk_"]
            .iter()
            .any(|kind| id.starts_with(kind))
        {
            let ledger = session.ledger(ProviderId::Lob)?;
            self.entities
                .extend(ledger.statements_by_piece(&PieceId::parse(id)?).await?);
            return self.by_object(session, trace).await;
        }
        for (table, key) in [
            (ORDERS, OrderId::parse(id).map(EntityKey::Order)?),
            (
                STATEMENTS,
                StatementId::parse(id).map(EntityKey::Statement)?,
            ),
            (TENANTS, TenantId::parse(id).map(EntityKey::Tenant)?),
        ] {
            if table.find(session, id, false).await?.is_some() {
                self.entities.insert(key);
            }
        }
        if self.entities.is_empty() {
            self.by_object(session, trace).await?;
        }
        Ok(())
    }

    async fn add(&mut self, session: &Session, id: &EventId) -> Result<()> {
        if self.events.contains_key(id) {
            return Ok(());
        }
        for provider in [ProviderId::Stripe, ProviderId::Lob] {
            let Some(item) = session.events(provider)?.item(id).await? else {
                continue;
            };
            let listed =
                Listed::read(provider, &item).context("the event's row is none of ours")?;
            let claim = read_stored_event(&item).and_then(|kept| claim(session, provider, &kept));
            self.events.insert(id.clone(), Told { listed, claim });
        }
        Ok(())
    }

    async fn by_object(&mut self, session: &Session, trace: &Trace) -> Result<()> {
        let now = SystemClock.now();
        let selection = Filter::about(&trace.id, trace.since).select(Vec::new(), now);
        for provider in selection.providers() {
            for listed in session
                .events(provider)?
                .list(&selection, usize::MAX)
                .await?
            {
                self.add(session, &listed.stored.id).await?;
            }
        }
        Ok(())
    }

    async fn by_correlation(&mut self, session: &Session, id: Uuid) -> Result<()> {
        let jobs = Jobs {
            client: session.dynamodb.clone(),
            table: session.stack.output("JobsTable")?.to_owned(),
        };
        if let Ok(job) = jobs.read(id).await {
            self.lines.push(Line {
                at: job.created_at.to_string(),
                rank: 0,
                id: id.to_string(),
                what: "replay".to_owned(),
                detail: format!(
                    "{} of {} sent, {:?}, by {}: {}",
                    job.sent, job.total, job.state, job.by.actor, job.by.reason
                ),
            });
            for event in &job.selection.ids {
                self.add(session, event).await?;
            }
        }
        // A correlation id tells its own moment: the delivery's, within seconds of the row's.
        let Some(at) = id.get_timestamp() else {
            return Ok(());
        };
        let Ok(at) = Timestamp::from_unix_s(i64::try_from(at.to_unix().0)?) else {
            return Ok(());
        };
        let selection = Filter::around(at);
        for provider in [ProviderId::Stripe, ProviderId::Lob] {
            for listed in session
                .events(provider)?
                .list(&selection, usize::MAX)
                .await?
            {
                if text(&listed.row, "correlation_id") == Some(&id.to_string()) {
                    self.add(session, &listed.stored.id).await?;
                }
            }
        }
        Ok(())
    }
}

fn claim(session: &Session, provider: ProviderId, kept: &StoredEvent) -> Option<EventFacts> {
    let StoredPayload::Intact(body) = &kept.payload else {
        return None;
    };
    let account = kept.stored.account.as_ref();
    interpret(provider, session.stack.is_live(), account, body).ok()
}

/// The entity that an event went into, or would.
async fn whose(session: &Session, told: &Told) -> Result<Option<EntityKey>> {
    let Some(claim) = &told.claim else {
        return Ok(None);
    };
    if claim.names.is_some() {
        return Ok(claim.names.clone());
    }
    let ledger = session.ledger(told.listed.provider)?;
    if let Some(piece) = &claim.piece {
        return Ok(ledger.statements_by_piece(piece).await?.into_iter().next());
    }
    if claim.about_account {
        let tenants = match &told.listed.stored.account {
            Some(account) => ledger.tenants_by_account(account).await?,
            None => Vec::new(),
        };
        return Ok(tenants.into_iter().next().map(EntityKey::Tenant));
    }
    let Some(intent) = claim.intent.clone() else {
        return Ok(None);
    };
    let payment = PaymentKey {
        account: told.listed.stored.account.clone(),
        intent: intent.clone(),
    };
    let rows = ledger
        .load_rows(&BTreeSet::new(), &BTreeSet::from([payment]))
        .await?;
    if let Some(entity) = rows.payments.into_values().find_map(|row| row.entity) {
        return Ok(Some(entity));
    }
    Ok(ledger
        .entities_by_payment_intent(&intent)
        .await?
        .into_iter()
        .next())
}

fn table(key: &EntityKey) -> Table {
    match key {
        EntityKey::Order(_) => ORDERS,
        EntityKey::Statement(_) => STATEMENTS,
        EntityKey::Tenant(_) => TENANTS,
    }
}

fn id(key: &EntityKey) -> &str {
    match key {
        EntityKey::Order(id) => id.as_str(),
        EntityKey::Statement(id) => id.as_str(),
        EntityKey::Tenant(id) => id.as_str(),
    }
}

/// Every event that facts or a timeline name.
fn named(value: &Value) -> BTreeSet<EventId> {
    match value {
        Value::String(text) if text.starts_with("evt_") => {
            EventId::parse(text).into_iter().collect()
        }
        Value::Array(items) => items.iter().flat_map(named).collect(),
        Value::Object(members) => members.values().flat_map(named).collect(),
        _ => BTreeSet::new(),
    }
}

fn told_of_event(row: &Value) -> Vec<Line> {
    let of = |name: &str| text(row, name).unwrap_or_default().to_owned();
    let line = |at: String, rank: u8, what: &str, detail: String| Line {
        at,
        rank,
        id: of("event_id"),
        what: what.to_owned(),
        detail,
    };
    let mut lines = vec![line(
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
        let of = |name: &str| text(note, name).unwrap_or_default().to_owned();
        lines.push(line(
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
    let at = text(row, "processed_at").unwrap_or("not yet").to_owned();
    lines.push(line(
        at,
        3,
        &of("processing_outcome"),
        format!("{reason} attempts {attempts}").trim().to_owned(),
    ));
    lines
}

/// What the functions wrote about the events, each from its arrival on.
async fn logged(session: &Session, events: impl Iterator<Item = &Told>) -> Result<Vec<Line>> {
    let mut arrived: Vec<_> = events
        .filter_map(|told| Some((told.listed.stored.received_at?, &told.listed)))
        .collect();
    arrived.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
    if arrived.len() > LOGGED_MAX {
        Output::tell(&format!(
            "only the lines of the latest {LOGGED_MAX} events are read"
        ));
    }
    let mut lines = Vec::new();
    for (at, listed) in arrived.into_iter().take(LOGGED_MAX) {
        let worker = match listed.provider {
            ProviderId::Stripe => "StripeWorkerFunction",
            ProviderId::Lob => "LobWorkerFunction",
        };
        let id = listed.stored.id.as_str();
        for key in [
            "WebhookIngressFunction",
            worker,
            "CleanupFailedPaymentsFunction",
        ] {
            let function = session.stack.output(key)?;
            let found = logs::events(session, function, at, Some(id)).await?;
            lines.extend(found.iter().filter_map(|(_, line)| told_of_line(line, id)));
        }
    }
    Ok(lines)
}

/// One of a function's lines, if it is about this event: without what the invocation counted, which is of all of its
/// events.
fn told_of_line(line: &Value, id: &str) -> Option<Line> {
    let of = |name: &str| text(line, name);
    of("event_id").filter(|of| *of == id)?;
    let told = ["timestamp", "level", "function", "message", "event_id"];
    let members = line.as_object()?.iter().filter(|(name, value)| {
        let is_counted = value.is_number() && name.starts_with(char::is_uppercase);
        !told.contains(&name.as_str()) && !is_counted && !value.is_object() && !value.is_array()
    });
    let members: Vec<String> = members
        .map(|(name, value)| format!("{name} {value}"))
        .collect();
    Some(Line {
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

fn told_of_entity(entity: &Entity, row: &Value) -> Vec<Line> {
    let of = |entry: &Value, name: &str| text(entry, name).unwrap_or_default().to_owned();
    let timeline = row
        .get("timeline")
        .and_then(Value::as_array)
        .into_iter()
        .flatten();
    let mut lines: Vec<Line> = timeline
        .map(|entry| Line {
            at: of(entry, "at"),
            rank: 5,
            id: entity.key.to_string(),
            what: of(entry, "type"),
            detail: format!(
                "{} {} {}",
                of(entry, "actor"),
                of(entry, "eventId"),
                entry.get("meta").map(Value::to_string).unwrap_or_default()
            ),
        })
        .collect();
    lines.push(Line {
        at: "now".to_owned(),
        rank: 9,
        id: entity.key.to_string(),
        what: "stands".to_owned(),
        detail: json!(entity.columns).to_string(),
    });
    lines
}

/// What each event made of the entity, by the code that decided it, in the order in which they were processed.
fn steps<'a>(entity: &Entity, events: impl Iterator<Item = &'a Told>) -> Vec<Line> {
    let mut entity = Entity {
        version: 0,
        columns: GuardedColumns::default(),
        derived: LastDerived::default(),
        facts: EntityFacts::default(),
        ..entity.clone()
    };
    let mut processed: Vec<(Timestamp, &Told)> = events
        .filter(|told| told.listed.stored.processed)
        .filter_map(|told| {
            let at = text(&told.listed.row, "processed_at")?;
            Some((Timestamp::parse(at).ok()?, told))
        })
        .collect();
    processed.sort_by_key(|(at, told)| (*at, told.listed.stored.id.clone()));
    let mut lines = Vec::new();
    for (at, told) in processed {
        let Some(claim) = &told.claim else { continue };
        let next = entity.apply_facts(claim.facts.clone(), at);
        for (column, before, after) in changed(&entity, &next, at) {
            if column == "timeline" {
                continue;
            }
            lines.push(Line {
                at: at.to_string(),
                rank: 4,
                id: entity.key.to_string(),
                what: column,
                detail: format!("{before} -> {after} by {}", told.listed.stored.id),
            });
        }
        entity.columns = next.derived.columns.clone();
        entity.derived = next.derived;
        entity.facts = next.facts;
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_event_that_facts_name_is_found() {
        let facts = json!({ "payments": { "pi_1": { "succeeded": { "event": "evt_2", "at": "x" } } },
            "timeline": [{ "eventId": "evt_1" }, { "eventId": "evt_2", "meta": { "note": "no evt_ here" } }] });
        let ids: Vec<_> = named(&facts).into_iter().map(|id| id.to_string()).collect();
        assert_eq!(ids, ["evt_1", "evt_2"]);
    }

    #[test]
    fn a_functions_line_is_told_where_it_is_about_one_of_the_events() {
        let line = json!({ "timestamp": "2026-11-21T08:00:00.000Z", "level": "info", "function": "webhook-ingress",
            "message": "stripe_webhook_received", "event_id": "evt_1", "duplicate": true, "_aws": { "Timestamp": 1 }, "WebhookSuccess": 1 });
        let told = told_of_line(&line, "evt_1").unwrap();
        assert_eq!(
            (told.what.as_str(), told.detail.as_str()),
            ("stripe_webhook_received", "webhook-ingress duplicate true")
        );
        assert_eq!(told_of_line(&line, "evt_2"), None);
    }

    #[test]
    fn an_events_story_has_its_arrival_its_notes_and_its_end() {
        let row = json!({ "event_id": "evt_1", "event_type": "charge.refunded", "received_at": "2026-11-21T08:00:00.000Z",
            "processing_outcome": "parked", "processing_error": "unlinked", "attempts": 2, "correlation_id": "c",
            "notes": [{ "at": "2026-11-21T09:00:00.000Z", "action": "park", "actor": "arn", "reason": "why" }] });
        let lines = told_of_event(&row);
        let told: Vec<_> = lines
            .iter()
            .map(|line| (line.at.as_str(), line.what.as_str(), line.detail.as_str()))
            .collect();
        assert_eq!(
            told,
            [
                (
                    "2026-11-21T08:00:00.000Z",
                    "received",
                    "charge.refunded  correlation c"
                ),
                ("2026-11-21T09:00:00.000Z", "park", "by arn: why"),
                ("not yet", "parked", "unlinked attempts 2"),
            ]
        );
    }
}
