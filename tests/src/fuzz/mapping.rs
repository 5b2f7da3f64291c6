//! Fuzz targets `stripe_mapping` and `lob_mapping`: interpret events, merge their facts, derive the row, in any order.
//! The input is up to eight bodies with record separators between them.

use std::collections::BTreeMap;

use billhook_core::entity::key::PaymentKey;
use billhook_core::entity::kind::{EntityKind, EntityState, StatedFacts};
use billhook_core::entity::merge::Merge as _;
use billhook_core::entity::payment::linked::PaymentCopy;
use billhook_core::entity::{Entity, EntityKey};
use billhook_core::ids::{OrderId, ProviderId, StatementId};
use billhook_core::provider::interpret::InterpretRules;
use billhook_core::provider::interpret::{EventFacts, EventSubject};
use billhook_core::provider::{interpret, read_envelope, trim_payload};
use billhook_core::time::Timestamp;
use billhook_testkit::events::verified;
use billhook_testkit::memory;
use serde_json::{Value, json};

use super::{NOW_S, payloads_of};

const SEPARATOR: u8 = 0x1e;
const BODIES_MAX: usize = 8;
/// The limit for the facts of one entity after so few bodies.
const FACTS_BYTES_MAX: usize = 64 * 1024;

pub(super) fn histories_of_stripe() -> Vec<Vec<u8>> {
    histories(ProviderId::Stripe)
}

pub(super) fn histories_of_lob() -> Vec<Vec<u8>> {
    histories(ProviderId::Lob)
}

/// Each body alone, and with some of the others, which are about the same order or letter.
fn histories(provider: ProviderId) -> Vec<Vec<u8>> {
    let alone = payloads_of(provider);
    let some = |from: usize, step: usize| {
        let picked = alone.iter().cycle().skip(from).step_by(step).take(5);
        picked.cloned().collect::<Vec<_>>().join(&SEPARATOR)
    };
    let together = (0..alone.len()).flat_map(|n| [some(n, 1), some(n, 3)]);
    let together: Vec<_> = together.collect();
    [alone, together].concat()
}

pub(super) fn stripe(input: &[u8]) -> bool {
    let key = EntityKey::Order(OrderId::parse("ord_2041").unwrap());
    let Entity::Order(order) = row_of(&key) else {
        unreachable!("{key}");
    };
    check(ProviderId::Stripe, order, input)
}

pub(super) fn lob(input: &[u8]) -> bool {
    let key = EntityKey::Statement(StatementId::parse("st_2041").unwrap());
    let Entity::Statement(statement) = row_of(&key) else {
        unreachable!("{key}");
    };
    check(ProviderId::Lob, statement, input)
}

/// Interprets a body as the worker does.
fn read(provider: ProviderId, body: &[u8]) -> Option<EventFacts> {
    let envelope = read_envelope(&verified(provider, body)).ok()?;
    let live = envelope.livemode.unwrap_or(false);
    let account = envelope.account.as_ref();
    let rules = InterpretRules {
        live_mode: live,
        ..InterpretRules::default()
    };
    let claim = interpret(provider, &rules, account, body).ok();
    // A body that was reduced because of its size must yield the same facts.
    let kept = trim_payload(provider, body).unwrap();
    assert_eq!(interpret(provider, &rules, account, &kept).ok(), claim);
    claim
}

/// What a row takes of these events: its payments' copies, of this version, and the facts of its letters.
fn stated_by<'c>(
    claims: impl IntoIterator<Item = &'c EventSubject>,
    version: usize,
) -> Vec<StatedFacts> {
    let mut copies: BTreeMap<PaymentKey, PaymentCopy> = BTreeMap::new();
    let mut stated = Vec::new();
    for claim in claims {
        match claim {
            EventSubject::Account(account) => stated.push(StatedFacts::Account(account.clone())),
            EventSubject::Piece(_, mail) => stated.push(StatedFacts::Mail(mail.clone())),
            EventSubject::Payment(payment) => {
                let key = PaymentKey {
                    account: None,
                    payment: payment.names[0].clone(),
                };
                let copy = copies
                    .entry(key)
                    .or_insert_with(|| PaymentCopy::linked(i64::try_from(version).unwrap()));
                copy.invoices.extend(payment.invoice.clone());
                copy.facts.merge(payment.money.clone());
            }
        }
    }
    let copies = copies.into_iter();
    stated.extend(copies.map(|(key, copy)| StatedFacts::Payment(key, Box::new(copy))));
    stated
}

fn check<K: EntityKind>(provider: ProviderId, mut row: EntityState<K>, input: &[u8]) -> bool {
    let bodies = input.split(|byte| *byte == SEPARATOR).take(BODIES_MAX);
    let claims: Vec<EventSubject> = bodies
        .filter_map(|body| read(provider, body))
        .map(|claim| claim.subject)
        .collect();
    let merged = |claims: &mut dyn Iterator<Item = &EventSubject>| {
        let stated = stated_by(claims, 1).into_iter();
        stated.fold(K::Facts::default(), |mut all, facts| {
            K::take_facts(&mut all, facts);
            all
        })
    };
    let forwards = merged(&mut claims.iter());
    assert_eq!(forwards, merged(&mut claims.iter().rev()), "in any order");
    assert_eq!(
        forwards,
        merged(&mut claims.iter().chain(&claims)),
        "repeated"
    );

    let text = serde_json::to_string(&forwards).unwrap();
    let largest = input.len().saturating_mul(4).max(FACTS_BYTES_MAX);
    assert!(text.len() <= largest, "{} of {}", text.len(), input.len());
    let stored: Value = serde_json::from_str(&text).unwrap();
    let kept: K::Facts = serde_json::from_value(stored).unwrap();
    assert_eq!(kept, forwards, "as the row keeps them");

    let now = Timestamp::from_unix_s(NOW_S).unwrap();
    let at_once = row.apply_facts(stated_by(&claims, claims.len()), now);
    let payment = K::payment(&at_once.derived).unwrap();
    let received = payment.received.map_or(0, |received| received.amount);
    assert!(payment.amount_refunded >= 0 && received >= 0);
    let columns = at_once.next.columns;
    if let Some(flag) = columns.requires_review {
        assert_eq!(flag, !payment.review_reasons.is_empty());
    }
    // One by one, each on the row that the previous one wrote.
    for known in 1..=claims.len() {
        row = row
            .apply_facts(stated_by(&claims[..known], known), now)
            .with_row_written();
    }
    if !claims.is_empty() {
        assert_eq!(row.facts, at_once.next.facts, "one by one");
        assert_eq!(row.columns, columns, "one by one");
        let reasons = at_once.next.last_derived.review_reasons;
        assert_eq!(row.last_derived.review_reasons, reasons);
    }
    forwards != K::Facts::default()
}

/// A row as the application wrote it.
pub(super) fn row_of(key: &EntityKey) -> Entity {
    let row = json!({ "amountTotal": 4200, "amount_due": 4200, "currency": "usd",
        "lob_letter_id": "ltr_4a1b2c3d4e5f6071" });
    memory::entity_of(key, row)
}
