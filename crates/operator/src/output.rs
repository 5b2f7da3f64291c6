//! Output formats: tables for people, JSON and JSON lines for programs.
//!
//! Results go to standard output and notices to standard error, so that `billhook … --output jsonl | jq` never reads a
//! notice.

use std::io::{IsTerminal as _, Write as _};

use billhook_adapters::config::read_process_variable;
use serde_json::Value;

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum OutputFormat {
    /// Columns for people, with colour on a terminal unless `NO_COLOR` is set
    Table,
    /// One JSON document
    Json,
    /// One JSON object per line
    Jsonl,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct OutputWriter {
    format: OutputFormat,
    colour: bool,
}

impl OutputWriter {
    pub(crate) fn new(format: OutputFormat) -> Self {
        let wanted = read_process_variable("NO_COLOR").is_none_or(|value| value.is_empty());
        Self {
            format,
            colour: wanted && std::io::stdout().is_terminal(),
        }
    }

    /// The table shows only `columns`; JSON has all members.
    pub(crate) fn print_list(self, columns: &[&str], rows: &[Value]) {
        write_stdout(&self.format_list(columns, rows));
    }

    pub(crate) fn print_object(self, thing: &Value) {
        write_stdout(&match self.format {
            OutputFormat::Table => format_object(thing),
            OutputFormat::Json => escape_json(&format!("{thing:#}\n")),
            OutputFormat::Jsonl => escape_json(&format!("{thing}\n")),
        });
    }

    /// A table of rows, or the whole as one document.
    pub(crate) fn print_report(self, columns: &[&str], rows: &[Value], whole: &Value) {
        match self.format {
            OutputFormat::Json => self.print_object(whole),
            OutputFormat::Table | OutputFormat::Jsonl => self.print_list(columns, rows),
        }
    }

    fn format_list(self, columns: &[&str], rows: &[Value]) -> String {
        match self.format {
            OutputFormat::Table => self.format_table(columns, rows),
            OutputFormat::Json => escape_json(&format!("{:#}\n", Value::from(rows.to_vec()))),
            OutputFormat::Jsonl => rows
                .iter()
                .map(|row| escape_json(&format!("{row}\n")))
                .collect(),
        }
    }

    fn format_table(self, columns: &[&str], rows: &[Value]) -> String {
        let heads: Vec<String> = columns
            .iter()
            .map(|column| column.to_uppercase().replace('_', " "))
            .collect();
        let cells = rows.iter().map(|row| {
            columns
                .iter()
                .map(|column| format_cell(row.get(*column)))
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
                shown.push_str(&self.colour_cell(cell));
                shown.extend(std::iter::repeat_n(' ', width - cell.chars().count() + 2));
            }
            text.push_str(shown.trim_end());
            text.push('\n');
        }
        text
    }

    fn colour_cell(self, cell: &str) -> String {
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

/// Prints text that has a format of its own, such as Prometheus's.
pub(crate) fn print_text(text: &str) {
    write_stdout(&mask_lines(text));
}

/// Writes to standard error what the command is doing, or what to run next.
pub(crate) fn print_notice(text: &str) {
    // If standard error is closed, there is nowhere to report that.
    let _ = writeln!(std::io::stderr(), "{}", mask_lines(text));
}

/// A closed pipe is no error: `billhook events list | head` closes it after ten lines.
fn write_stdout(text: &str) {
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
}

fn format_cell(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => "-".to_owned(),
        Some(Value::String(text)) => text.chars().map(mask_character).collect(),
        Some(other) => other.to_string().chars().map(mask_character).collect(),
    }
}

/// Rows, errors and log lines hold text that strangers wrote, such as metadata of a payment. An escape sequence in it
/// could clear the terminal or forge lines, and a mark of writing direction could show `evt_1` where `evt_2` stands. So
/// every character that is not seen is replaced: controls (C0, C1 with CSI and OSC), format characters (bidirectional
/// marks, zero-width characters, byte order mark, tags) and line separators.
fn mask_character(c: char) -> char {
    if is_unseen(c) { '\u{fffd}' } else { c }
}

fn mask_lines(text: &str) -> String {
    let mask = |c| if c == '\n' { c } else { mask_character(c) };
    text.chars().map(mask).collect()
}

/// Source: general categories Cc, Cf, Zl and Zp of Unicode 17, without the soft hyphen and the marks of single scripts.
fn is_unseen(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{061c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// JSON loses nothing: what a terminal would obey is written as an escape, which means the same. Line ends outside of
/// strings stay.
fn escape_json(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        if c != '\n' && is_unseen(c) {
            let mut units = [0; 2];
            for unit in c.encode_utf16(&mut units) {
                text.push_str(&format!("\\u{unit:04x}"));
            }
        } else {
            text.push(c);
        }
    }
    text
}

fn format_object(thing: &Value) -> String {
    let Some(members) = thing.as_object() else {
        return format!("{}\n", format_cell(Some(thing)));
    };
    let width = members.keys().map(String::len).max().unwrap_or(0);
    let mut text = String::new();
    for (name, value) in members {
        match value {
            Value::Array(items) if items.iter().all(Value::is_object) && !items.is_empty() => {
                text.push_str(&format!("{name}\n"));
                for item in items {
                    text.push_str(&format!("  {}\n", format_on_one_line(item)));
                }
            }
            Value::Object(_) => {
                text.push_str(&format!("{name}\n"));
                for line in escape_json(&format!("{value:#}")).lines() {
                    text.push_str(&format!("  {line}\n"));
                }
            }
            value => text.push_str(&format!("{name:<width$}  {}\n", format_cell(Some(value)))),
        }
    }
    text
}

fn format_on_one_line(item: &Value) -> String {
    let members = item.as_object().into_iter().flatten();
    let shown = members.filter(|(_, value)| !value.is_null());
    let parts: Vec<String> = shown
        .map(|(name, value)| format!("{name}={}", format_cell(Some(value))))
        .collect();
    parts.join("  ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn output(format: OutputFormat, colour: bool) -> OutputWriter {
        OutputWriter { format, colour }
    }

    #[test]
    fn a_table_is_aligned_and_holds_no_control_characters() {
        let rows = [
            json!({ "event_id": "evt_1", "outcome": "parked", "n": 7 }),
            json!({ "event_id": "evt_\u{1b}[2J", "outcome": null }),
        ];
        let columns = ["event_id", "outcome", "n"];
        assert_eq!(
            output(OutputFormat::Table, false).format_list(&columns, &rows),
            "EVENT ID  OUTCOME  N\nevt_1     parked   7\nevt_\u{fffd}[2J  -        -\n"
        );
        let coloured = output(OutputFormat::Table, true).format_list(&columns, &rows);
        assert!(
            coloured.contains("\u{1b}[33mparked\u{1b}[0m   7"),
            "{coloured}"
        );
    }

    /// What a stranger may have written: CSI in its two forms, OSC 8, a bidirectional override, zero-width characters, a line.
    const HOSTILE: &str =
        "a\u{1b}[2Jb\u{9b}31mc\u{9d}8;;x\u{9c}d\u{202e}e\u{200b}\u{feff}f\r\ng\u{2028}h\u{e0041}";

    #[test]
    fn no_format_for_people_obeys_a_stranger() {
        let thing =
            json!({ "id": HOSTILE, "list": [{ "a": HOSTILE }], "deep": { HOSTILE: [HOSTILE] } });
        let rows = [json!({ "id": HOSTILE, "n": [HOSTILE] })];
        let columns = ["id", "n"];
        let table = output(OutputFormat::Table, true);
        for text in [
            table.format_list(&columns, &rows),
            format_object(&thing),
            mask_lines(HOSTILE),
        ] {
            let bad: Vec<char> = text
                .chars()
                .filter(|c| *c != '\n' && is_unseen(*c))
                .collect();
            assert!(bad.is_empty(), "{text:?}");
        }
        // One row is one line.
        assert_eq!(table.format_list(&columns, &rows).lines().count(), 2);
    }

    #[test]
    fn json_means_the_same_with_what_a_terminal_would_obey_escaped() {
        let rows = [json!({ "id": HOSTILE })];
        for format in [OutputFormat::Json, OutputFormat::Jsonl] {
            let text = output(format, false).format_list(&[], &rows);
            assert!(!text.chars().any(|c| c != '\n' && is_unseen(c)), "{text:?}");
            let read: Value = serde_json::from_str(&text).unwrap();
            assert_eq!(
                read.pointer("/0/id").or(read.get("id")),
                Some(&json!(HOSTILE))
            );
        }
    }

    #[test]
    fn json_output_has_all_members() {
        let rows = [json!({ "a": 1, "b": "x" })];
        assert_eq!(
            output(OutputFormat::Jsonl, true).format_list(&["a"], &rows),
            "{\"a\":1,\"b\":\"x\"}\n"
        );
        let document: Value =
            serde_json::from_str(&output(OutputFormat::Json, true).format_list(&["a"], &rows))
                .unwrap();
        assert_eq!(document, json!(rows));
    }

    #[test]
    fn an_object_is_printed_member_by_member() {
        let thing = json!({ "id": "ord_1", "requires_review": true, "timeline": [{ "type": "note", "meta": null }],
            "payload": { "a": 1 } });
        assert_eq!(
            format_object(&thing),
            "id               ord_1\npayload\n  {\n    \"a\": 1\n  }\nrequires_review  true\ntimeline\n  type=note\n"
        );
    }
}
