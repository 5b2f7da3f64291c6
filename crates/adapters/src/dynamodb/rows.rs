//! How orders, statements and payments stand in their rows: read leniently where the application owns a column, exactly
//! where we do, and written column by column.

use std::collections::HashMap;

use aws_sdk_dynamodb::types::AttributeValue;
use billhook_core::entity::{Entity, EntityFacts, EntityKey, EntityUpdate, LastDerived};
use billhook_core::ids::{
    AccountId, CheckoutSessionId, EventId, PaymentIntentId, PieceId, TenantId,
};
use billhook_core::money::{Currency, Money};
use billhook_core::ports::{CommitError, PaymentRow};
use billhook_core::time::Timestamp;
use billhook_core::timeline::{self, DerivedEntry, TimelineEntry};

use super::items::{self, Item, number_value, read_text, string_value};

/// What the write's condition needs of a loaded row beside the entity: the attributes as they stood.
#[derive(Debug)]
pub struct LoadedRow {
    pub(super) item: Item,
    theirs: Vec<AttributeValue>,
}

/// The column names of orders, statements and tenants.
pub(super) struct RowSchema {
    pub(super) table: String,
    pub(super) key: &'static str,
    pub(super) tenant: &'static str,
    pub(super) amount: Option<&'static str>,
    pub(super) intent: Option<&'static str>,
    pub(super) facts: &'static str,
    /// The columns that a person or the application may change and the decision rests on: the write's condition.
    pub(super) guarded: &'static [&'static str],
}

/// The form of the stored facts; one more whenever a kind of fact is added, so that a function that is not updated yet
/// parks the event instead of dropping what it does not know.
const FACTS_SCHEMA: i64 = 2;

pub(super) const ORDER_GUARDS: [&str; 8] = [
    "status",
    "paymentStatus",
    "requiresReview",
    "amountTotal",
    "currency",
    "stripePaymentIntentId",
    "stripeCheckoutSessionId",
    "userId",
];
pub(super) const TENANT_GUARDS: [&str; 4] = [
    "stripe_connected_account_id",
    "charges_enabled",
    "payouts_enabled",
    "stripe_status",
];
pub(super) const STATEMENT_GUARDS: [&str; 8] = [
    "payment_status",
    "requires_review",
    "mail_status",
    "needs_attention",
    "amount_due",
    "currency",
    "stripe_payment_intent_id",
    "lob_letter_id",
];

pub(super) fn read_payment_row(item: &Item) -> PaymentRow {
    let waiting = item.get("waiting").and_then(|waiting| waiting.as_ss().ok());
    PaymentRow {
        entity: read_text(item, "entity").and_then(EntityKey::parse),
        waiting: waiting
            .into_iter()
            .flatten()
            .filter_map(|id| EventId::parse(id).ok())
            .collect(),
        version: items::read_integer(item, "version").unwrap_or(0),
    }
}

/// Reads an entity's row. What the application owns is read leniently, what is ours exactly.
pub(super) fn read_entity(
    key: &EntityKey,
    schema: &RowSchema,
    item: Item,
) -> Result<(Entity, LoadedRow), String> {
    let facts_and_derived = match item.get(schema.facts) {
        None => (EntityFacts::default(), LastDerived::default()),
        Some(value) => read_facts(key, value)?,
    };
    let theirs = match item.get("timeline") {
        Some(AttributeValue::L(entries)) => entries
            .iter()
            .filter(|entry| !is_derived_entry(entry))
            .cloned()
            .collect(),
        None => Vec::new(),
        Some(_) => return Err("the timeline is no list".to_owned()),
    };
    let due = schema
        .amount
        .and_then(|amount| items::read_integer(&item, amount))
        .zip(read_text(&item, "currency"))
        .and_then(|(amount, currency)| {
            Some(Money {
                amount,
                currency: Currency::parse(currency).ok()?,
            })
        });
    let column = |name: &str| read_text(&item, name).map(str::to_owned);
    let mut columns = billhook_core::entity::GuardedColumns::default();
    match key {
        EntityKey::Order(_) => {
            columns.status = column("status");
            columns.payment_status = column("paymentStatus");
            columns.requires_review = items::read_bool(&item, "requiresReview");
        }
        EntityKey::Statement(_) => {
            columns.payment_status = column("payment_status");
            columns.requires_review = items::read_bool(&item, "requires_review");
            columns.mail_status = column("mail_status");
            columns.needs_attention = items::read_bool(&item, "needs_attention");
        }
        EntityKey::Tenant(_) => {}
    }
    let entity = Entity {
        key: key.clone(),
        version: items::read_integer(&item, "version").unwrap_or(0),
        tenant: read_text(&item, schema.tenant).and_then(|id| TenantId::parse(id).ok()),
        due,
        intent: schema
            .intent
            .and_then(|intent| read_text(&item, intent))
            .and_then(|id| PaymentIntentId::parse(id).ok()),
        session: read_text(&item, "stripeCheckoutSessionId")
            .and_then(|id| CheckoutSessionId::parse(id).ok()),
        user: read_text(&item, "userId").map(str::to_owned),
        mailed: read_text(&item, "lob_letter_id").and_then(|id| PieceId::parse(id).ok()),
        account: read_text(&item, "stripe_connected_account_id")
            .and_then(|id| AccountId::parse(id).ok()),
        columns,
        derived: facts_and_derived.1,
        facts: facts_and_derived.0,
    };
    Ok((entity, LoadedRow { item, theirs }))
}

fn read_facts(
    key: &EntityKey,
    value: &AttributeValue,
) -> Result<(EntityFacts, LastDerived), String> {
    let AttributeValue::M(members) = value else {
        return Err("the facts are no map".to_owned());
    };
    let part = |name: &str| {
        members
            .get(name)
            .cloned()
            .unwrap_or_else(|| AttributeValue::M(HashMap::new()))
    };
    if items::read_integer(members, "schema").unwrap_or(0) > FACTS_SCHEMA {
        // Writing it back would drop what a newer function put there.
        return Err(format!("the facts are of a newer form than {FACTS_SCHEMA}"));
    }
    let derived: LastDerived = from_attribute(part("derived"))?;
    let facts = match key {
        EntityKey::Order(_) => EntityFacts {
            payment: from_attribute(value.clone())?,
            ..EntityFacts::default()
        },
        EntityKey::Statement(_) => EntityFacts {
            payment: from_attribute(part("payment"))?,
            mail: from_attribute(part("mail"))?,
            ..EntityFacts::default()
        },
        EntityKey::Tenant(_) => EntityFacts {
            account: from_attribute(value.clone())?,
            ..EntityFacts::default()
        },
    };
    Ok((facts, derived))
}

fn from_attribute<T: serde::de::DeserializeOwned>(value: AttributeValue) -> Result<T, String> {
    serde_dynamo::from_attribute_value(value)
        .map_err(|error| format!("the facts cannot be read: {error}"))
}

fn to_attribute<T: serde::Serialize>(value: &T) -> Result<AttributeValue, CommitError> {
    serde_dynamo::to_attribute_value(value).map_err(|error| CommitError::Refused(error.to_string()))
}

fn is_derived_entry(entry: &AttributeValue) -> bool {
    entry
        .as_m()
        .is_ok_and(|members| read_text(members, "actor") == Some(timeline::ACTOR))
}

pub(super) type ColumnUpdates = Vec<(&'static str, Option<AttributeValue>)>;

/// Every column that billhook owns, as it shall stand; `None` removes it.
pub(super) fn build_columns(
    entity: &Entity,
    row: &LoadedRow,
    next: &EntityUpdate,
    now: Timestamp,
) -> Result<ColumnUpdates, CommitError> {
    let standing = &next.standing;
    let woven = timeline::merge_timelines(next.timeline(), row.theirs.clone(), |entry| {
        entry
            .as_m()
            .ok()
            .and_then(|members| read_text(members, "at"))
            .map(str::to_owned)
    });
    let mut entries = Vec::new();
    for entry in woven {
        entries.push(match entry {
            TimelineEntry::Ours(entry) => build_entry_value(&entry)?,
            TimelineEntry::Theirs(entry) => entry,
        });
    }
    let reasons: Vec<String> = standing.review_reasons.iter().cloned().collect();
    let reasons = (!reasons.is_empty()).then_some(AttributeValue::Ss(reasons));
    let requires_review = Some(AttributeValue::Bool(!standing.review_reasons.is_empty()));
    let moment = |at: Option<Timestamp>| at.map(|at| string_value(at.to_string()));
    let derived = to_attribute(&next.derived)?;
    let schema = || ("schema".to_owned(), number_value(FACTS_SCHEMA));
    let mut columns: ColumnUpdates = vec![(
        "version",
        Some(number_value(entity.version.saturating_add(1))),
    )];
    let timeline = ("timeline", Some(AttributeValue::L(entries)));
    match entity.key {
        EntityKey::Tenant(_) => {
            let mut facts = to_attribute(&next.facts.account)?;
            if let AttributeValue::M(members) = &mut facts {
                members.extend([schema()]);
            }
            columns.push(("stripe", Some(facts)));
            let standing = &next.account;
            columns.push((
                "stripe_status",
                Some(string_value(standing.status.as_str())),
            ));
            if let Some(able) = standing.abilities {
                let truth = |truth| Some(AttributeValue::Bool(truth));
                columns.push(("charges_enabled", truth(able.charges_enabled)));
                columns.push(("payouts_enabled", truth(able.payouts_enabled)));
            }
        }
        EntityKey::Order(_) => {
            columns.push(timeline);
            let mut facts = to_attribute(&next.facts.payment)?;
            if let AttributeValue::M(members) = &mut facts {
                members.extend([schema(), ("derived".to_owned(), derived)]);
            }
            columns.extend([
                ("stripe", Some(facts)),
                ("status", Some(string_value(standing.status.as_str()))),
                (
                    "paymentStatus",
                    Some(string_value(standing.payment_status.as_str())),
                ),
                ("requiresReview", requires_review),
                ("reviewReasons", reasons),
                (
                    "amountRefunded",
                    Some(number_value(standing.amount_refunded)),
                ),
                ("paymentFailedAt", moment(standing.payment_failed_at)),
                ("updatedAt", Some(string_value(now.to_string()))),
            ]);
            if let Some(intent) = &next.derived.intent {
                columns.push(("stripePaymentIntentId", Some(string_value(intent.as_str()))));
            }
            if let Some(session) = &next.derived.session {
                columns.push((
                    "stripeCheckoutSessionId",
                    Some(string_value(session.as_str())),
                ));
            }
            if let Some(user) = &next.derived.user {
                columns.push(("userId", Some(string_value(user.as_str()))));
            }
        }
        EntityKey::Statement(_) => {
            columns.push(timeline);
            let facts = HashMap::from([
                ("payment".to_owned(), to_attribute(&next.facts.payment)?),
                ("mail".to_owned(), to_attribute(&next.facts.mail)?),
                ("derived".to_owned(), derived),
                schema(),
            ]);
            columns.push(("facts", Some(AttributeValue::M(facts))));
            let ours = &next.derived.columns;
            if ours.requires_review.is_some() {
                columns.extend([
                    ("requires_review", requires_review),
                    ("review_reasons", reasons),
                ]);
            }
            if ours.payment_status.is_some() {
                columns.extend([
                    (
                        "payment_status",
                        Some(string_value(standing.payment_status.as_str())),
                    ),
                    ("amount_paid", Some(number_value(standing.amount_paid))),
                    (
                        "amount_refunded",
                        Some(number_value(standing.amount_refunded)),
                    ),
                    ("paid_at", moment(standing.paid_at)),
                ]);
            }
            if let Some(intent) = &next.derived.intent {
                columns.push((
                    "stripe_payment_intent_id",
                    Some(string_value(intent.as_str())),
                ));
            }
            let mail = &next.mail;
            if ours.needs_attention.is_some() {
                columns.extend([
                    (
                        "mail_status",
                        mail.status.map(|stage| string_value(stage.as_str())),
                    ),
                    ("mail_status_at", moment(mail.status_at)),
                    (
                        "needs_attention",
                        Some(AttributeValue::Bool(mail.attention_reason.is_some())),
                    ),
                    (
                        "attention_reason",
                        mail.attention_reason
                            .map(|stage| string_value(stage.as_str())),
                    ),
                ]);
                // What no event told is left as the application wrote it.
                for (name, value) in [
                    ("expected_delivery_date", &mail.expected_delivery_date),
                    ("tracking_number", &mail.tracking_number),
                    ("template_version", &mail.template_version),
                ] {
                    columns.extend(
                        value
                            .as_ref()
                            .map(|value| (name, Some(string_value(value)))),
                    );
                }
            }
        }
    }
    Ok(columns)
}

fn build_entry_value(entry: &DerivedEntry) -> Result<AttributeValue, CommitError> {
    let mut members = HashMap::from([
        ("type".to_owned(), string_value(&entry.kind)),
        ("at".to_owned(), string_value(entry.at.to_string())),
        ("actor".to_owned(), string_value(timeline::ACTOR)),
        ("actorType".to_owned(), string_value("system")),
        ("actorId".to_owned(), string_value(entry.told_by)),
        ("meta".to_owned(), to_attribute(&entry.meta)?),
    ]);
    if let Some(event) = &entry.event {
        members.insert("eventId".to_owned(), string_value(event.as_str()));
    }
    Ok(AttributeValue::M(members))
}
