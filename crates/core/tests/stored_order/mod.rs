//! An order as it is stored, in two rows, written as the ledger writes.

use std::collections::BTreeMap;

use billhook_core::entity::columns::ColumnValue;
use billhook_core::entity::projection::RowFinding;
use billhook_core::entity::rules::RowRules;
use billhook_core::entity::{Entity, EntityKey, EntityUpdate};
use billhook_core::time::Timestamp;
use billhook_testkit::events::linked_facts;
use billhook_testkit::memory::JsonRow;
use serde_json::{Value, json};

pub(crate) const T: i64 = 1_781_000_000;

pub(crate) fn at(second: i64) -> Timestamp {
    Timestamp::from_unix_s(T + second).unwrap()
}

pub(crate) fn key() -> EntityKey {
    EntityKey::parse("order#ord_1").unwrap()
}

/// The two rows of an order, as they are stored.
#[derive(Clone)]
pub(crate) struct StoredOrder {
    pub(crate) rules: RowRules,
    /// `None` if the application deleted it.
    pub(crate) row: Option<Value>,
    pub(crate) state: Option<Value>,
    pub(crate) now: i64,
    pub(crate) findings: Vec<RowFinding>,
}

impl StoredOrder {
    pub(crate) fn new() -> Self {
        let row = json!({ "id": "ord_1", "amountTotal": 4200, "currency": "usd", "userId": "user_1",
            "createdAt": "2026-06-09T10:00:00.000Z", "status": "pending" });
        Self::of(row)
    }

    /// A row that billhook has not written yet.
    pub(crate) fn of(row: Value) -> Self {
        Self {
            rules: RowRules::default(),
            row: Some(row),
            state: None,
            now: 0,
            findings: Vec::new(),
        }
    }

    pub(crate) fn load(&self) -> Entity {
        let row = self.row.clone().map(JsonRow);
        key()
            .read(&self.rules, row.as_ref(), self.state.as_ref())
            .unwrap()
    }

    /// What the events so far make of it, written as the ledger writes.
    pub(crate) fn take(&mut self, events: &[Value]) -> EntityUpdate {
        self.now += 60;
        let entity = self.load();
        let mut next = entity.apply_facts(linked_facts(events), at(self.now));
        next.note_arrival();
        self.findings = next.row_findings().to_vec();
        if entity.write_refusal().is_some() {
            return next;
        }
        let mut columns: BTreeMap<&str, Value> = BTreeMap::new();
        for (name, value) in next.write_columns() {
            columns.insert(name, value.map_or(Value::Null, json_of));
        }
        if next.may_write("timeline") {
            let others = self.column("timeline");
            let others = others.as_array().cloned().unwrap_or_default().into_iter();
            let others = others.filter(|entry| entry["actor"] != json!("billhook"));
            let own = next.timeline().into_iter();
            let own = own.map(|entry| json!({ "actor": "billhook", "type": entry.kind }));
            let entries: Vec<Value> = others.chain(own).collect();
            // An empty list is written into a row with a timeline only.
            if !entries.is_empty() || !self.column("timeline").is_null() {
                columns.insert("timeline", json!(entries));
            }
        }
        let is_new = |(name, value): (&&str, &Value)| {
            let found = self.row.as_ref().and_then(|row| row.get(*name));
            found.unwrap_or(&Value::Null) != value
        };
        let is_written =
            self.row.is_some() && (next.must_write_row() || columns.iter().any(is_new));
        if let (true, Some(Value::Object(row))) = (is_written, &mut self.row) {
            for (name, value) in columns {
                match value {
                    Value::Null => drop(row.remove(name)),
                    value => drop(row.insert(name.to_owned(), value)),
                }
            }
            let version = self.rules.version_column.as_str();
            if next.may_write(version) {
                row.insert(version.to_owned(), json!(next.version()));
            }
        }
        let stored = match is_written {
            true => next.with_row_written(),
            false => next.next(),
        };
        self.state = Some(json!(stored.to_row()));
        next
    }

    pub(crate) fn column(&self, name: &str) -> Value {
        self.row
            .as_ref()
            .map_or(Value::Null, |row| row[name].clone())
    }

    pub(crate) fn set(&mut self, name: &str, value: Value) {
        if let Some(Value::Object(row)) = &mut self.row {
            row.insert(name.to_owned(), value);
        }
    }
}

pub(crate) fn json_of(value: ColumnValue) -> Value {
    match value {
        ColumnValue::Text(text) => json!(text),
        ColumnValue::Integer(integer) => json!(integer),
        ColumnValue::Bool(truth) => json!(truth),
        ColumnValue::TextSet(texts) => json!(texts),
        ColumnValue::Time(at) => json!(at),
    }
}
