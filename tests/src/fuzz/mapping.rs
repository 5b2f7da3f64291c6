//! Fuzz targets `stripe_mapping` and `lob_mapping`: interpret events, merge their facts, derive the row, in any order.
//! The input is up to eight bodies with record separators between them.

use billhook_core::entity::merge::Merge as _;
use billhook_core::entity::{Entity, EntityFacts, EntityKey};
use billhook_core::ids::{OrderId, PieceId, ProviderId, StatementId};
use billhook_core::provider::interpret::EventFacts;
use billhook_core::provider::{interpret, read_envelope, trim_payload};
use billhook_core::time::Timestamp;
use billhook_testkit::events::verified;
use billhook_testkit::memory;
use serde_json::Value;

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
    let order = OrderId::parse("ord_2041").unwrap();
    check(ProviderId::Stripe, &EntityKey::Order(order), input)
}

pub(super) fn lob(input: &[u8]) -> bool {
    let statement = StatementId::parse("st_2041").unwrap();
    check(ProviderId::Lob, &EntityKey::Statement(statement), input)
}

/// Interprets a body as the worker does.
fn read(provider: ProviderId, body: &[u8]) -> Option<EventFacts> {
    let envelope = read_envelope(provider, &verified(body)).ok()?;
    let live = envelope.livemode.unwrap_or(false);
    let account = envelope.account.as_ref();
    let claim = interpret(provider, live, account, body).ok();
    // A body that was reduced because of its size must yield the same facts.
    let kept = trim_payload(provider, body).unwrap();
    assert_eq!(interpret(provider, live, account, &kept).ok(), claim);
    claim
}

fn check(provider: ProviderId, key: &EntityKey, input: &[u8]) -> bool {
    let bodies = input.split(|byte| *byte == SEPARATOR).take(BODIES_MAX);
    let stated: Vec<EntityFacts> = bodies
        .filter_map(|body| read(provider, body))
        .map(|claim| claim.facts)
        .collect();
    let merged = |facts: &mut dyn Iterator<Item = &EntityFacts>| {
        facts.fold(EntityFacts::default(), |mut all, facts| {
            all.merge(facts.clone());
            all
        })
    };
    let forwards = merged(&mut stated.iter());
    assert_eq!(forwards, merged(&mut stated.iter().rev()), "in any order");
    assert_eq!(
        forwards,
        merged(&mut stated.iter().chain(&stated)),
        "repeated"
    );

    let text = serde_json::to_string(&forwards).unwrap();
    let largest = input.len().saturating_mul(4).max(FACTS_BYTES_MAX);
    assert!(text.len() <= largest, "{} of {}", text.len(), input.len());
    let row: Value = serde_json::from_str(&text).unwrap();
    let kept: EntityFacts = serde_json::from_value(row).unwrap();
    assert_eq!(kept, forwards, "as the row keeps them");

    let now = Timestamp::from_unix_s(NOW_S).unwrap();
    let entity = row_of(key);
    let next = entity.apply_facts(forwards.clone(), now);
    assert!(next.payment.amount_refunded >= 0 && next.payment.amount_paid >= 0);
    let columns = next.derived.columns.clone();
    if let Some(flag) = columns.requires_review {
        assert_eq!(flag, !next.payment.review_reasons.is_empty());
    }
    // One by one, each on the row that the previous one wrote.
    let mut row = entity;
    for facts in &stated {
        let step = row.apply_facts(facts.clone(), now);
        row = Entity {
            columns: step.derived.columns.clone(),
            derived: step.derived,
            facts: step.facts,
            ..row
        };
    }
    if !stated.is_empty() {
        assert_eq!(row.facts, forwards, "one by one");
        assert_eq!(row.columns, columns, "one by one");
        assert_eq!(row.derived.review_reasons, next.derived.review_reasons);
    }
    forwards != EntityFacts::default()
}

/// A row as the application wrote it.
pub(super) fn row_of(key: &EntityKey) -> Entity {
    Entity {
        piece: PieceId::parse("ltr_4a1b2c3d4e5f6071").ok(),
        ..memory::entity(key.clone())
    }
}
