//! How answers are written: a table for people, JSON for programs. Answers go to standard output, everything said on
//! the way to standard error.

use std::io::{IsTerminal as _, Write as _};

use billhook_adapters::config::read_process_variable;
use serde_json::Value;

/// `--output`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// For people: columns, and colour on a terminal unless `NO_COLOR` is set
    Table,
    /// One JSON document
    Json,
    /// One JSON object a line
    Jsonl,
}

/// Where answers go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    format: Format,
    colour: bool,
}

impl Output {
    pub(crate) fn new(format: Format) -> Self {
        let wanted = read_process_variable("NO_COLOR").is_none_or(|value| value.is_empty());
        Self {
            format,
            colour: wanted && std::io::stdout().is_terminal(),
        }
    }

    /// A list. The table has these columns; JSON has all members.
    pub(crate) fn list(self, columns: &[&str], rows: &[Value]) {
        write(&self.listed(columns, rows));
    }

    /// One thing, all of it.
    pub(crate) fn one(self, thing: &Value) {
        write(&match self.format {
            Format::Table => described(thing),
            Format::Json => format!("{thing:#}\n"),
            Format::Jsonl => format!("{thing}\n"),
        });
    }

    /// A form of its own.
    pub(crate) fn text(text: &str) {
        write(text);
    }

    /// Said on the way: what is being done, what to do next.
    pub(crate) fn tell(text: &str) {
        // Where nobody listens there is nobody to tell that.
        let _ = writeln!(std::io::stderr(), "{text}");
    }

    fn listed(self, columns: &[&str], rows: &[Value]) -> String {
        match self.format {
            Format::Table => self.table(columns, rows),
            Format::Json => format!("{:#}\n", Value::from(rows.to_vec())),
            Format::Jsonl => rows.iter().map(|row| format!("{row}\n")).collect(),
        }
    }

    fn table(self, columns: &[&str], rows: &[Value]) -> String {
        let heads: Vec<String> = columns
            .iter()
            .map(|column| column.to_uppercase().replace('_', " "))
            .collect();
        let cells = rows.iter().map(|row| {
            columns
                .iter()
                .map(|column| cell(row.get(*column)))
                .collect()
        });
        let lines: Vec<Vec<String>> = std::iter::once(heads).chain(cells).collect();
        let width = |column: usize| {
            let cells = lines.iter().filter_map(|line| line.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns.len()).map(width).collect();
        let mut text = String::new();
        for line in &lines {
            let mut shown = String::new();
            for (cell, width) in line.iter().zip(&widths) {
                shown.push_str(&self.coloured(cell));
                shown.extend(std::iter::repeat_n(' ', width - cell.chars().count() + 2));
            }
            text.push_str(shown.trim_end());
            text.push('\n');
        }
        text
    }

    fn coloured(self, cell: &str) -> String {
        let code = match cell {
            "failed" | "bad" => "31",
            "parked" | "warn" => "33",
            "processed" | "ok" => "32",
            _ => return cell.to_owned(),
        };
        if self.colour {
            format!("\x1b[{code}m{cell}\x1b[0m")
        } else {
            cell.to_owned()
        }
    }
}

/// A reader that went away (`| head`) is no failure.
fn write(text: &str) {
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
}

fn cell(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => "-".to_owned(),
        Some(Value::String(text)) => text.chars().map(shown).collect(),
        Some(other) => other.to_string(),
    }
}

/// What a stranger wrote must not move a terminal's cursor.
fn shown(c: char) -> char {
    if c.is_control() { '\u{fffd}' } else { c }
}

fn described(thing: &Value) -> String {
    let Some(members) = thing.as_object() else {
        return format!("{}\n", cell(Some(thing)));
    };
    let width = members.keys().map(String::len).max().unwrap_or(0);
    let mut text = String::new();
    for (name, value) in members {
        match value {
            Value::Array(items) if items.iter().all(Value::is_object) && !items.is_empty() => {
                text.push_str(&format!("{name}\n"));
                for item in items {
                    text.push_str(&format!("  {}\n", in_a_line(item)));
                }
            }
            Value::Object(_) => {
                text.push_str(&format!("{name}\n"));
                for line in format!("{value:#}").lines() {
                    text.push_str(&format!("  {line}\n"));
                }
            }
            value => text.push_str(&format!("{name:<width$}  {}\n", cell(Some(value)))),
        }
    }
    text
}

fn in_a_line(item: &Value) -> String {
    let members = item.as_object().into_iter().flatten();
    let shown = members.filter(|(_, value)| !value.is_null());
    let parts: Vec<String> = shown
        .map(|(name, value)| format!("{name}={}", cell(Some(value))))
        .collect();
    parts.join("  ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn output(format: Format, colour: bool) -> Output {
        Output { format, colour }
    }

    #[test]
    fn a_table_is_aligned_and_holds_no_control_characters() {
        let rows = [
            json!({ "event_id": "evt_1", "outcome": "parked", "n": 7 }),
            json!({ "event_id": "evt_\u{1b}[2J", "outcome": null }),
        ];
        let columns = ["event_id", "outcome", "n"];
        assert_eq!(
            output(Format::Table, false).listed(&columns, &rows),
            "EVENT ID  OUTCOME  N\nevt_1     parked   7\nevt_\u{fffd}[2J  -        -\n"
        );
        let coloured = output(Format::Table, true).listed(&columns, &rows);
        assert!(
            coloured.contains("\u{1b}[33mparked\u{1b}[0m   7"),
            "{coloured}"
        );
    }

    #[test]
    fn programs_get_all_members() {
        let rows = [json!({ "a": 1, "b": "x" })];
        assert_eq!(
            output(Format::Jsonl, true).listed(&["a"], &rows),
            "{\"a\":1,\"b\":\"x\"}\n"
        );
        let document: Value =
            serde_json::from_str(&output(Format::Json, true).listed(&["a"], &rows)).unwrap();
        assert_eq!(document, json!(rows));
    }

    #[test]
    fn one_thing_is_described_member_by_member() {
        let thing = json!({ "id": "ord_1", "requires_review": true, "timeline": [{ "type": "note", "meta": null }],
            "payload": { "a": 1 } });
        assert_eq!(
            described(&thing),
            "id               ord_1\npayload\n  {\n    \"a\": 1\n  }\nrequires_review  true\ntimeline\n  type=note\n"
        );
    }
}
