//! Who did what, when and why: a note on the row that it was done to.

use std::collections::HashMap;

use aws_sdk_dynamodb::types::AttributeValue;
use billhook_adapters::dynamodb::attributes::string_value;
use billhook_core::intake::message::ReplayedBy;
use billhook_core::time::Timestamp;
use serde::{Deserialize, Serialize};

/// A reason is a sentence, not a report: it stands in every message and row that it concerns.
const REASON_CHARS_MAX: usize = 200;

/// Who acts, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct By {
    pub(crate) actor: String,
    pub(crate) reason: String,
}

impl By {
    pub(crate) fn in_message(&self) -> ReplayedBy<'_> {
        ReplayedBy {
            actor: &self.actor,
            reason: &self.reason,
        }
    }

    /// An entry of a row's `notes`.
    pub(crate) fn note(
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

/// Checks what a person wrote: queues refuse control characters.
pub(crate) fn reason(text: &str) -> Result<String, String> {
    let text = text.trim();
    if text.is_empty()
        || text.chars().count() > REASON_CHARS_MAX
        || text.chars().any(char::is_control)
    {
        return Err(format!(
            "a reason has 1 to {REASON_CHARS_MAX} characters on one line"
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
            reason(" asked by support "),
            Ok("asked by support".to_owned())
        );
        for wrong in ["", "  ", "two\nlines", &"x".repeat(201)] {
            assert!(reason(wrong).is_err(), "{wrong}");
        }
    }
}
