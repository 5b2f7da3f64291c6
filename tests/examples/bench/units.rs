//! Computes the write units that DynamoDB charges, from the rows before and after a write and the template's indexes.
//! Sources: DynamoDB Developer Guide, "Item sizes and formats", "Write operation consumption",
//! "Global secondary indexes: provisioned throughput considerations", read 2026-11.

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use serde_yaml_ng::Value as Yaml;

/// A row in wire format: `{"name": {"S": "text"}}`.
pub(crate) type Item = Map<String, Value>;

#[derive(Clone, Debug)]
pub(crate) struct Schema {
    pub(crate) key: String,
    indexes: Vec<Index>,
}

#[derive(Clone, Debug)]
struct Index {
    keys: Vec<String>,
    /// `None` projects all attributes.
    projected: Option<Vec<String>>,
}

/// Write units of the table (doubled in a transaction) and of its indexes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Units {
    pub(crate) table: usize,
    pub(crate) indexes: usize,
}

impl std::ops::AddAssign for Units {
    fn add_assign(&mut self, other: Self) {
        self.table += other.table;
        self.indexes += other.indexes;
    }
}

/// The tables of the template, by logical id.
pub(crate) fn schemas(template: &str) -> BTreeMap<String, Schema> {
    let template: Yaml = serde_yaml_ng::from_str(template).unwrap();
    let names = |keys: &Yaml| -> Vec<String> {
        let keys = keys.as_sequence().unwrap().iter();
        keys.map(|key| key["AttributeName"].as_str().unwrap().to_owned())
            .collect()
    };
    let index = |index: &Yaml| {
        let projection = &index["Projection"];
        let more = projection["NonKeyAttributes"].as_sequence();
        let more = more.into_iter().flatten();
        let more = more.map(|name| name.as_str().unwrap().to_owned()).collect();
        Index {
            keys: names(&index["KeySchema"]),
            projected: (projection["ProjectionType"].as_str() != Some("ALL")).then_some(more),
        }
    };
    let tables = template["Resources"].as_mapping().unwrap().iter();
    let tables = tables.filter(|(_, resource)| resource["Type"] == "AWS::DynamoDB::Table");
    tables
        .map(|(name, table)| {
            let table = &table["Properties"];
            let indexes = table["GlobalSecondaryIndexes"].as_sequence();
            let schema = Schema {
                key: names(&table["KeySchema"]).remove(0),
                indexes: indexes.into_iter().flatten().map(index).collect(),
            };
            (name.as_str().unwrap().to_owned(), schema)
        })
        .collect()
}

impl Schema {
    /// The units of a write to one row. A write whose condition fails is charged as if it had happened.
    pub(crate) fn write(&self, before: Option<&Item>, after: &Item, transaction: bool) -> Units {
        let bytes = size(after).max(before.map_or(0, size));
        let mut units = Units {
            table: whole_kib(bytes) * if transaction { 2 } else { 1 },
            indexes: 0,
        };
        for index in &self.indexes {
            let entry = |row: &Item| index.entry(row, &self.key);
            units.indexes += match (before.and_then(entry), entry(after)) {
                (None, None) => 0,
                (None, Some(one)) | (Some(one), None) => whole_kib(size(&one)),
                (Some(old), Some(new)) if old == new => 0,
                (Some(old), Some(new)) => {
                    let moved = index.keys.iter().any(|key| old.get(key) != new.get(key));
                    match moved {
                        true => whole_kib(size(&old)) + whole_kib(size(&new)),
                        false => whole_kib(size(&old).max(size(&new))),
                    }
                }
            };
        }
        units
    }
}

impl Index {
    /// The entry of a row in an index; `None` if the row lacks a key of the index.
    fn entry(&self, row: &Item, table_key: &str) -> Option<Item> {
        if !self.keys.iter().all(|key| row.contains_key(key)) {
            return None;
        }
        let Some(more) = &self.projected else {
            return Some(row.clone());
        };
        let names = self.keys.iter().chain(more).map(String::as_str);
        let names = names.chain([table_key]);
        let entry = names.filter_map(|name| Some((name.to_owned(), row.get(name)?.clone())));
        Some(entry.collect())
    }
}

fn whole_kib(bytes: usize) -> usize {
    bytes.div_ceil(1024).max(1)
}

/// Names in UTF-8, values by type.
pub(crate) fn size(item: &Item) -> usize {
    item.iter()
        .map(|(name, value)| name.len() + size_of(value))
        .sum()
}

fn size_of(value: &Value) -> usize {
    let (kind, value) = value.as_object().unwrap().iter().next().unwrap();
    let text = || value.as_str().unwrap().len();
    let each = || value.as_array().unwrap().iter();
    match kind.as_str() {
        "S" => text(),
        // About one byte per two digits, plus one.
        "N" => text().div_ceil(2) + 1,
        "B" => text() / 4 * 3 - value.as_str().unwrap().matches('=').count(),
        "BOOL" | "NULL" => 1,
        "SS" | "NS" => each().map(|text| text.as_str().unwrap().len()).sum(),
        "L" => 3 + each().map(|element| 1 + size_of(element)).sum::<usize>(),
        "M" => {
            let members = value.as_object().unwrap();
            3 + members.len() + size(members)
        }
        other => panic!("{other} is no kind of ours"),
    }
}
