//! Reads columns of rows that were converted to JSON.

use serde_json::{Value, json};

/// How much of a row or payload is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RowDetail {
    /// The columns and fields that billhook knows, free of personal data.
    Known,
    /// Everything, personal data included.
    Raw,
}

impl RowDetail {
    pub(crate) fn by_flag(raw: bool) -> Self {
        if raw { Self::Raw } else { Self::Known }
    }
}

pub(crate) fn read_text<'a>(row: &'a Value, name: &str) -> Option<&'a str> {
    row.get(name)?.as_str()
}

/// A column as text; empty if the row does not have it. Numbers and lists are shown as JSON.
pub(crate) fn read_column(row: &Value, name: &str) -> String {
    match row.get(name) {
        Some(Value::String(text)) => text.clone(),
        None | Some(Value::Null) => String::new(),
        Some(other) => json!(other).to_string(),
    }
}
