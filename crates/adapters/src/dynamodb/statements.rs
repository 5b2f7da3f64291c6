//! The statements table: column names, and the columns that billhook writes (the projection of a statement's payment
//! and mail facts).
//!
//! Payment columns are written only once there is a fact about the payment, mail columns only once there is one about
//! the mail. `entities` calls this module for the rows of statements; the columns are in `docs/data-model.md`.

use std::collections::HashMap;

use aws_sdk_dynamodb::types::AttributeValue;
use billhook_core::entity::schema::GuardedColumns;
use billhook_core::entity::{EntityFacts, EntityUpdate};
use billhook_core::worker::ports::CommitError;

use super::attributes::{Item, number_value, read_bool, read_text, string_value};
use super::row::{
    ColumnUpdates, RowSchema, from_attribute, review_columns, schema_member, stored_part,
    time_value, to_attribute,
};

pub(super) fn statement_schema(table: String) -> RowSchema {
    RowSchema {
        table,
        key: "statement_id",
        tenant: "tenant_id",
        amount: Some("amount_due"),
        intent: Some("stripe_payment_intent_id"),
        facts: "facts",
        guarded: &[
            "payment_status",
            "requires_review",
            "mail_status",
            "needs_attention",
            "amount_due",
            "currency",
            "stripe_payment_intent_id",
            "lob_letter_id",
        ],
    }
}

pub(super) fn read_columns(item: &Item) -> GuardedColumns {
    GuardedColumns {
        status: None,
        payment_status: read_text(item, "payment_status").map(str::to_owned),
        requires_review: read_bool(item, "requires_review"),
        mail_status: read_text(item, "mail_status").map(str::to_owned),
        needs_attention: read_bool(item, "needs_attention"),
    }
}

pub(super) fn read_facts(members: &Item) -> Result<EntityFacts, String> {
    Ok(EntityFacts {
        payment: from_attribute(stored_part(members, "payment"))?,
        mail: from_attribute(stored_part(members, "mail"))?,
        ..EntityFacts::default()
    })
}

/// `next.derived` says which columns are ours already. Case: the application sets `mail_status` itself and Stripe
/// reports a payment first; the payment columns are written, and `mail_status` stays.
pub(super) fn build_columns(
    next: &EntityUpdate,
    derived: AttributeValue,
) -> Result<ColumnUpdates, CommitError> {
    let facts = HashMap::from([
        ("payment".to_owned(), to_attribute(&next.facts.payment)?),
        ("mail".to_owned(), to_attribute(&next.facts.mail)?),
        ("derived".to_owned(), derived),
        schema_member(),
    ]);
    let text = |text: &str| Some(string_value(text));
    let mut columns = vec![("facts", Some(AttributeValue::M(facts)))];
    let (ours, payment, mail) = (&next.derived.columns, &next.payment, &next.mail);
    if ours.requires_review.is_some() {
        let (requires_review, reasons) = review_columns(payment);
        columns.extend([
            ("requires_review", requires_review),
            ("review_reasons", reasons),
        ]);
    }
    if ours.payment_status.is_some() {
        columns.extend([
            ("payment_status", text(payment.payment_status.as_str())),
            ("amount_paid", Some(number_value(payment.amount_paid))),
            (
                "amount_refunded",
                Some(number_value(payment.amount_refunded)),
            ),
            ("paid_at", payment.paid_at.map(time_value)),
        ]);
    }
    if let Some(intent) = &next.derived.intent {
        columns.push(("stripe_payment_intent_id", text(intent.as_str())));
    }
    if ours.needs_attention.is_some() {
        let needs_attention = AttributeValue::Bool(mail.attention_reason.is_some());
        let reason = mail
            .attention_reason
            .map(|stage| string_value(stage.as_str()));
        columns.extend([
            (
                "mail_status",
                mail.status.map(|stage| string_value(stage.as_str())),
            ),
            ("mail_status_at", mail.status_at.map(time_value)),
            ("needs_attention", Some(needs_attention)),
            ("attention_reason", reason),
        ]);
        // If no event contained one of these, the application's value stays.
        for (name, value) in [
            ("expected_delivery_date", &mail.expected_delivery_date),
            ("tracking_number", &mail.tracking_number),
            ("template_version", &mail.template_version),
        ] {
            columns.extend(value.as_ref().map(|value| (name, text(value))));
        }
    }
    Ok(columns)
}
