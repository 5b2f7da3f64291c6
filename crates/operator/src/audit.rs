//! Audit trail: who did what, when and why, as a note on the row that was changed and in the message that was sent.

use std::collections::HashMap;

use aws_sdk_dynamodb::types::AttributeValue;
use billhook_adapters::dynamodb::attributes::string_value;
use billhook_core::intake::message::ReplayedBy;
use billhook_core::time::Timestamp;
use serde::{Deserialize, Serialize};

/// The reason is copied into every message and row of a replay, so its length times 5,000 events is stored and sent.
const REASON_CHARS_MAX: usize = 200;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AuditContext {
    pub(crate) actor: String,
    pub(crate) reason: String,
}

impl AuditContext {
    pub(crate) fn for_message(&self) -> ReplayedBy<'_> {
        ReplayedBy {
            actor: &self.actor,
            reason: &self.reason,
        }
    }

    /// Builds an entry of a row's `notes`.
    pub(crate) fn build_note(
        &self,
        action: &str,
        now: Timestamp,
        correlation_id: Option<&str>,
    ) -> AttributeValue {
        let mut note = HashMap::from([
            ("at".to_owned(), string_value(now.to_string())),
            ("actor".to_owned(), string_value(&self.actor)),
            ("action".to_owned(), string_value(action)),
            ("reason".to_owned(), string_value(&self.reason)),
        ]);
        if let Some(id) = correlation_id {
            note.insert("correlation_id".to_owned(), string_value(id));
        }
        AttributeValue::M(note)
    }
}

/// SQS refuses a message with control characters, so a reason with a line break would fail at the first send, after its
/// note was written.
pub(crate) fn parse_reason(text: &str) -> Result<String, String> {
    let text = text.trim();
    if text.is_empty()
        || text.chars().count() > REASON_CHARS_MAX
        || text.chars().any(char::is_control)
    {
        return Err(format!(
            "a reason must have 1 to {REASON_CHARS_MAX} characters and no line break"
        ));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_one_short_line() {
        assert_eq!(
            parse_reason(" asked by support "),
            Ok("asked by support".to_owned())
        );
        for wrong in ["", "  ", "two\nlines", &"x".repeat(201)] {
            assert!(parse_reason(wrong).is_err(), "{wrong}");
        }
    }
}
