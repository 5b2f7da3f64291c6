//! The orders table: column names, and the columns that billhook writes (the projection of an order's facts).
//!
//! The application owns the table and most of its columns (`docs/data-model.md`). `entities` calls this module for the
//! rows of orders; `statements` is its counterpart.

use aws_sdk_dynamodb::types::AttributeValue;
use billhook_core::entity::schema::GuardedColumns;
use billhook_core::entity::{EntityFacts, EntityUpdate};
use billhook_core::time::Timestamp;
use billhook_core::worker::ports::CommitError;

use super::attributes::{Item, number_value, read_bool, read_text, string_value};
use super::row::{
    ColumnUpdates, RowSchema, from_attribute, review_columns, schema_member, time_value,
    to_attribute,
};

pub(super) fn order_schema(table: String) -> RowSchema {
    RowSchema {
        table,
        key: "id",
        tenant: "tenantId",
        amount: Some("amountTotal"),
        intent: Some("stripePaymentIntentId"),
        facts: "stripe",
        guarded: &[
            "status",
            "paymentStatus",
            "requiresReview",
            "amountTotal",
            "currency",
            "stripePaymentIntentId",
            "stripeCheckoutSessionId",
            "userId",
        ],
    }
}

pub(super) fn read_columns(item: &Item) -> GuardedColumns {
    GuardedColumns {
        status: read_text(item, "status").map(str::to_owned),
        payment_status: read_text(item, "paymentStatus").map(str::to_owned),
        requires_review: read_bool(item, "requiresReview"),
        ..GuardedColumns::default()
    }
}

pub(super) fn read_facts(stored: &AttributeValue) -> Result<EntityFacts, String> {
    Ok(EntityFacts {
        payment: from_attribute(stored.clone())?,
        ..EntityFacts::default()
    })
}

pub(super) fn build_columns(
    next: &EntityUpdate,
    derived: AttributeValue,
    now: Timestamp,
) -> Result<ColumnUpdates, CommitError> {
    let payment = &next.payment;
    let mut facts = to_attribute(&next.facts.payment)?;
    if let AttributeValue::M(members) = &mut facts {
        members.extend([schema_member(), ("derived".to_owned(), derived)]);
    }
    let (requires_review, reasons) = review_columns(payment);
    let text = |text: &str| Some(string_value(text));
    let mut columns = vec![
        ("stripe", Some(facts)),
        ("status", text(payment.status.as_str())),
        ("paymentStatus", text(payment.payment_status.as_str())),
        ("requiresReview", requires_review),
        ("reviewReasons", reasons),
        (
            "amountRefunded",
            Some(number_value(payment.amount_refunded)),
        ),
        ("paymentFailedAt", payment.payment_failed_at.map(time_value)),
        ("updatedAt", Some(time_value(now))),
    ];
    if let Some(intent) = &next.derived.intent {
        columns.push(("stripePaymentIntentId", text(intent.as_str())));
    }
    if let Some(session) = &next.derived.session {
        columns.push(("stripeCheckoutSessionId", text(session.as_str())));
    }
    if let Some(user) = &next.derived.user {
        columns.push(("userId", text(user.as_str())));
    }
    Ok(columns)
}
