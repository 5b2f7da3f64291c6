//! The payments table: which entity a payment belongs to, and which events wait to learn it.

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

/// A link or a wait, on condition that the row is as it was read and links nothing yet.
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
    let loaded = (*version > 0).then(|| number_value(*version));
    update.require_as_loaded("version", loaded.as_ref());
    update.require_as_loaded("entity", None);
    update.build(table, "payment_id", &payment.row_key())
}
