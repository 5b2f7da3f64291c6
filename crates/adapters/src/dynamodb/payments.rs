//! The payments table: links a PaymentIntent to its entity, and lists the parked events that wait for that link.
//!
//! This is how out-of-order delivery is handled: a refund that arrives before any event names its order waits here, and
//! the event that links the PaymentIntent processes it in the same transaction. A link is for good.
//! `billhook_core::worker` decides; `ledger` puts the update into the transaction.

use aws_sdk_dynamodb::types::{AttributeValue, Update};
use billhook_core::entity::EntityKey;
use billhook_core::ids::EventId;
use billhook_core::worker::ports::{CommitError, PaymentKey, PaymentRow, PaymentWrite};

use super::attributes::{self, Item, number_value, read_text, string_value};
use super::update::UpdateBuilder;

pub(super) fn read_payment_row(item: &Item) -> PaymentRow {
    let waiting = item.get("waiting").and_then(|waiting| waiting.as_ss().ok());
    PaymentRow {
        entity: read_text(item, "entity").and_then(EntityKey::parse),
        waiting: waiting
            .into_iter()
            .flatten()
            .filter_map(|id| EventId::parse(id).ok())
            .collect(),
        version: attributes::read_integer(item, "version").unwrap_or(0),
    }
}

/// Links the payment or adds waiting events, on condition that the row is as it was read and has no link yet.
pub(super) fn build_payment_update(
    table: &str,
    payment: &PaymentKey,
    write: &PaymentWrite,
) -> Result<Update, CommitError> {
    let mut update = UpdateBuilder::new();
    let version = match write {
        PaymentWrite::Link { entity, version } => {
            update.set("entity", Some(string_value(entity.to_string())));
            update.set("waiting", None);
            version
        }
        PaymentWrite::Wait { events, version } => {
            update.add(
                "waiting",
                AttributeValue::Ss(events.iter().map(EventId::to_string).collect()),
            );
            version
        }
    };
    update.set("version", Some(number_value(version.saturating_add(1))));
    // The version protects from a lost wake-up. Case: the link of pi_1 is decided with no event waiting, and at the
    // same moment the event of a refund finds no link and wants to wait. If both writes succeeded, it would wait for a
    // link that happened already. Each of them changes the version, so one fails and decides again with the other's
    // result.
    let loaded = (*version > 0).then(|| number_value(*version));
    update.require_as_loaded("version", loaded.as_ref());
    // A payment belongs to one entity for good. Case: two events name ord_1 and ord_2 for the same PaymentIntent at
    // once; one of the links fails, and its event is parked as `link_conflict` in the next round. The version alone
    // would not protect a row that somebody wrote by hand, without a version.
    update.require_as_loaded("entity", None);
    update.build(table, "payment_id", &payment.row_key())
}
