//! The oracle of what a payment is linked to, from the events' own JSON, the rows and what people decided. It is independent of
//! `billhook_core`.

use std::collections::{BTreeMap, BTreeSet};

use billhook_core::entity::EntityKey;
use billhook_core::ids::EventId;
use billhook_core::outcome::EventOutcome;
use billhook_testkit::sim::World;
use billhook_testkit::sim::stripe::Emitted;
use serde_json::Value;

/// What an event's JSON says about what its payment is linked to.
pub(crate) struct LinkEvidence {
    pub(crate) names: Option<EntityKey>,
    invoice: Option<String>,
    /// It knows the charge.
    charge: bool,
    /// It knows the PaymentIntent.
    intent: bool,
    is_session: bool,
}

pub(crate) fn link_evidence(event: &Emitted) -> LinkEvidence {
    let body: Value = serde_json::from_str(&event.body).unwrap();
    let object = &body["data"]["object"];
    let text = |name: &str| object.get(name).and_then(Value::as_str);
    let kind = text("object").unwrap_or_default();
    let metadata = |name: &str| object.pointer(&format!("/metadata/{name}"));
    let order = metadata("orderId").and_then(Value::as_str);
    let statement = metadata("statement_id").and_then(Value::as_str);
    let of_kind = |word: &str, id: Option<&str>| EntityKey::of_kind(word, id?);
    LinkEvidence {
        names: of_kind("order", order).or_else(|| of_kind("statement", statement)),
        invoice: text("invoice").map(str::to_owned),
        charge: kind == "charge"
            || text("charge").is_some()
            || (kind == "payment_intent"
                && text("status") == Some("succeeded")
                && text("latest_charge").is_some()),
        intent: kind == "payment_intent" || text("payment_intent").is_some(),
        is_session: kind == "checkout.session",
    }
}

/// Whether the payment has this event's facts: one that knows only the charge needs another that knows both.
pub(crate) fn is_reached<'e>(
    event: &Emitted,
    others: impl IntoIterator<Item = &'e Emitted>,
) -> bool {
    let own = link_evidence(event);
    let is_by_charge = own.charge && !own.intent;
    !is_by_charge
        || others.into_iter().any(|other| {
            let evidence = link_evidence(other);
            other.of == event.of && evidence.charge && evidence.intent
        })
}

/// The orders and statements that a payment is linked to: one, or several with equally good links.
pub(crate) fn linked_entities(world: &World, of: &str) -> BTreeSet<EntityKey> {
    if let Some(to) = world.stripe.relinked.get(of) {
        return BTreeSet::from([to.clone()]);
    }
    let processed: Vec<&Emitted> = world
        .stripe
        .events
        .iter()
        .filter(|event| is_processed(world, event))
        .collect();
    let own = || processed.iter().filter(|event| event.of == of);
    let named: BTreeSet<EntityKey> = own()
        .filter_map(|event| link_evidence(event).names)
        .collect();
    if !named.is_empty() {
        return named;
    }
    let invoices: BTreeMap<String, Option<String>> = own()
        .filter_map(|event| Some((link_evidence(event).invoice?, event.account.clone())))
        .collect();
    let by_invoice: BTreeSet<EntityKey> = processed
        .iter()
        .filter_map(|event| {
            let evidence = link_evidence(event);
            let account = invoices.get(evidence.invoice.as_deref()?)?;
            let is_its = evidence.is_session && *account == event.account;
            evidence.names.filter(|_| is_its)
        })
        .collect();
    if !by_invoice.is_empty() {
        return by_invoice;
    }
    let rows = world.store.entities.all();
    let in_column = rows.filter(|(_, row)| {
        let intent = row.entity.payment_intent();
        intent.is_some_and(|intent| intent.as_str() == of)
    });
    in_column.map(|(key, _)| key.clone()).collect()
}

fn is_processed(world: &World, event: &Emitted) -> bool {
    let id = EventId::parse(&event.id).unwrap();
    let row = world.store.events.get(&(event.provider.as_str(), id));
    row.is_some_and(|row| row.stored.outcome == EventOutcome::Processed)
}
