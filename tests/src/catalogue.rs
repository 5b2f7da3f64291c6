//! Writes the lists of the code into the places that repeat them for their own readers: the catalogue of event types
//! (`billhook_core::provider::catalogue`) and the scheduled tasks into the tables of docs/SEMANTICS.md, and the types to
//! which the template subscribes Stripe's endpoints.
//!
//! `make catalogue` writes them; the test `source::documents` fails while a file differs.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use billhook_core::ids::ProviderId;
use billhook_core::provider::catalogue;
use billhook_core::provider::stripe::event_types::HANDLED_TYPES;
use billhook_core::tasks::definitions::SCHEDULED_TASKS;

/// Puts the lists into the text of a file.
type CatalogueWriter = fn(&str) -> Result<String>;

/// The files, and how the lists stand in each.
const FILES: [(&str, CatalogueWriter); 2] = [
    ("docs/SEMANTICS.md", write_tables),
    ("template.yaml", write_enabled_events),
];

/// Of a line of the template.
const LINE_MAX: usize = 130;

/// The files that differ from the catalogue, each with its text as it should be.
pub fn find_outdated(root: &Path) -> Result<Vec<(&'static str, String)>> {
    let mut outdated = Vec::new();
    for (name, write) in FILES {
        let text = fs::read_to_string(root.join(name)).with_context(|| format!("read {name}"))?;
        let written = write(&text).with_context(|| name.to_owned())?;
        if written != text {
            outdated.push((name, written));
        }
    }
    Ok(outdated)
}

/// The tables of event types under `### Stripe` and so on, and that of the scheduled tasks.
fn write_tables(text: &str) -> Result<String> {
    let mut text = text.to_owned();
    for provider in ProviderId::ALL {
        let rows = catalogue(*provider).into_iter();
        let rows = rows.map(|entry| format!("| `{}` | {} |", entry.event_type, entry.meaning));
        let rows: Vec<String> = rows.collect();
        text = replace_table(&text, provider.title(), "| type | fact |\n|---|---|", &rows)?;
    }
    let tasks = SCHEDULED_TASKS.iter();
    let tasks = tasks.map(|task| {
        let (name, schedule, meaning) = (task.name, task.schedule, task.meaning);
        format!("| `{name}` | `{schedule}` | {meaning} |")
    });
    let tasks: Vec<String> = tasks.collect();
    let head = "| task | schedule | what it does |\n|---|---|---|";
    replace_table(&text, "Scheduled tasks", head, &tasks)
}

/// Replaces the rows of the first table with this head under a heading.
fn replace_table(text: &str, heading: &str, head: &str, rows: &[String]) -> Result<String> {
    let Some((before, section)) = text.split_once(&format!("\n### {heading}\n")) else {
        bail!("no heading \"### {heading}\"");
    };
    let own = section.split("\n#").next().unwrap_or_default();
    let Some((prose, _)) = own.split_once(head) else {
        bail!("no table with the head {head:?} under \"### {heading}\"");
    };
    let table = section.get(prose.len()..).unwrap_or_default();
    let lines = table.split_inclusive('\n');
    let is_row = |line: &&str| line.starts_with('|');
    let old: usize = lines.take_while(is_row).map(str::len).sum();
    let rest = table.get(old..).unwrap_or_default();
    let rows = rows.join("\n");
    Ok(format!(
        "{before}\n### {heading}\n{prose}{head}\n{rows}\n{rest}"
    ))
}

/// Replaces each list of `EnabledEvents`. CloudFormation sees a new type only if the template names it, and only then
/// changes the endpoints.
fn write_enabled_events(text: &str) -> Result<String> {
    let mut types = HANDLED_TYPES.to_vec();
    types.sort_unstable();
    let mut lines = vec![String::new()];
    for event_type in types {
        // One line for each family, so that a new type changes one line.
        let family = event_type.split('.').next().unwrap_or_default();
        let fits = |line: &&mut String| {
            line.is_empty()
                || (line.starts_with(family) && line.len() + event_type.len() < LINE_MAX)
        };
        match lines.last_mut().filter(fits) {
            Some(line) => *line += &format!("{event_type}, "),
            None => lines.push(format!("{event_type}, ")),
        }
    }
    let indented = lines
        .iter()
        .map(|line| format!("          {}\n", line.trim_end()));
    let list: String = indented.collect();
    let mut parts = text.split("      EnabledEvents:");
    let mut written = parts.next().unwrap_or_default().to_owned();
    if !text.contains("      EnabledEvents:") {
        bail!("there are no EnabledEvents");
    }
    for part in parts {
        let Some((comment, rest)) = part
            .split_once("        [\n")
            .and_then(|(comment, rest)| Some((comment, rest.split_once("        ]\n")?.1)))
        else {
            bail!("EnabledEvents is not followed by a list in brackets of its own lines");
        };
        written += &format!("      EnabledEvents:{comment}        [\n{list}        ]\n{rest}");
    }
    Ok(written)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_of_another_section_is_never_taken() {
        let page = "\n### A\ntext\n### B\n| x |\n|---|\n| 1 |\nend\n";
        let rows = ["| 2 |".to_owned(), "| 3 |".to_owned()];
        let written = replace_table(page, "B", "| x |\n|---|", &rows).unwrap();
        assert_eq!(
            written,
            "\n### A\ntext\n### B\n| x |\n|---|\n| 2 |\n| 3 |\nend\n"
        );
        for heading in ["A", "C"] {
            assert!(
                replace_table(page, heading, "| x |\n|---|", &rows).is_err(),
                "{heading}"
            );
        }
    }

    #[test]
    fn a_template_without_the_lists_is_refused() {
        let template = "      EnabledEvents: # why\n        [\n          old,\n        ]\nrest\n";
        let written = write_enabled_events(template).unwrap();
        assert!(written.contains("review.opened") && written.ends_with("        ]\nrest\n"));
        assert!(!written.contains("old"));
        for broken in ["", "      EnabledEvents: [a]\n"] {
            assert!(write_enabled_events(broken).is_err(), "{broken:?}");
        }
    }
}
