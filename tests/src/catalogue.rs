//! Writes the lists of code and template into the places that repeat them for their own readers:
//!
//! - event types (`billhook_core::provider::catalogue`) and scheduled tasks into the tables of docs/SEMANTICS.md,
//! - the event types to which the template subscribes Stripe's endpoints,
//! - metrics (`billhook_adapters::metrics`) into the table of docs/runbook/metrics.md,
//! - the template's alarms into the pages of docs/runbook that they name.
//!
//! `make catalogue` writes them; the test `source::documents` fails while a file differs.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use billhook_adapters::metrics;
use billhook_core::ids::ProviderId;
use billhook_core::provider::catalogue;
use billhook_core::provider::stripe::event_types::HANDLED_TYPES;
use billhook_core::tasks::definitions::SCHEDULED_TASKS;

const TEMPLATE: &str = "template.yaml";
const RUNBOOK: &str = "docs/runbook/";

/// Puts the lists into the text of a file.
type CatalogueWriter = fn(&str) -> Result<String>;

/// The files, and how the lists stand in each.
const FILES: [(&str, CatalogueWriter); 3] = [
    ("docs/SEMANTICS.md", write_tables),
    (TEMPLATE, write_enabled_events),
    ("docs/runbook/metrics.md", write_metrics),
];

/// Of a line of the template.
const LINE_MAX: usize = 130;

/// The files that differ from the lists, each with its text as it should be.
pub fn find_outdated(root: &Path) -> Result<Vec<(String, String)>> {
    let read =
        |name: &str| fs::read_to_string(root.join(name)).with_context(|| format!("read {name}"));
    let mut outdated = Vec::new();
    let mut compare = |name: &str, write: &dyn Fn(&str) -> Result<String>| -> Result<()> {
        let text = read(name)?;
        let written = write(&text).with_context(|| name.to_owned())?;
        if written != text {
            outdated.push((name.to_owned(), written));
        }
        Ok(())
    };
    for (name, write) in FILES {
        compare(name, &write)?;
    }
    for (page, alarms) in list_alarms(&read(TEMPLATE)?)? {
        compare(&page, &|text| write_alarms(text, &alarms))?;
    }
    Ok(outdated)
}

/// The alarms of each page of the runbook, in the order of the template.
fn list_alarms(template: &str) -> Result<BTreeMap<String, Vec<String>>> {
    let mut pages = BTreeMap::<_, Vec<String>>::new();
    let mut lines = template.lines().map(str::trim);
    while let Some(line) = lines.next() {
        let Some(name) = line.strip_prefix("AlarmName: !Sub ") else {
            continue;
        };
        let description = lines.next().unwrap_or_default();
        let page = description.split_once(RUNBOOK);
        let Some((page, _)) = page.and_then(|(_, rest)| rest.split_once(".md")) else {
            bail!("the line after the alarm {name} names no page of {RUNBOOK}");
        };
        let alarms = pages.entry(format!("{RUNBOOK}{page}.md")).or_default();
        alarms.push(format!("`{}`", name.trim_matches('\'')));
    }
    Ok(pages)
}

/// Replaces the line `Alarm: …` or `Alarms: …` of a page.
fn write_alarms(text: &str, alarms: &[String]) -> Result<String> {
    let is_told = |line: &&str| line.starts_with("Alarm: ") || line.starts_with("Alarms: ");
    let Some(old) = text.lines().find(is_told) else {
        bail!("no line that begins with \"Alarm: \"");
    };
    let word = if alarms.len() == 1 { "Alarm" } else { "Alarms" };
    let new = format!("{word}: {}.", alarms.join(", "));
    Ok(text.replacen(old, &new, 1))
}

fn write_metrics(text: &str) -> Result<String> {
    let rows = metrics::ALL.iter().map(|metric| {
        let sets = metric.dimensions.sets().iter().map(|set| set.join(", "));
        let sets: Vec<String> = sets.collect();
        let alarms = metric.alarm_names().into_iter();
        let alarms: Vec<String> = alarms.map(|name| format!("`{name}`")).collect();
        let alarms = match alarms.is_empty() {
            true => "none, it is on the dashboard".to_owned(),
            false => alarms.join(", "),
        };
        let (name, unit, meaning) = (metric.name, metric.unit.as_str(), metric.meaning);
        format!(
            "| `{name}` | {unit} | {} | {meaning} | {alarms} |",
            sets.join("; also ")
        )
    });
    let head = "| metric | unit | dimensions | what it counts or measures | alarms |\n|---|---|---|---|---|";
    replace_table(text, "# Metrics", head, &rows.collect::<Vec<_>>())
}

/// The tables of event types under `### Stripe` and so on, and that of the scheduled tasks.
fn write_tables(text: &str) -> Result<String> {
    let mut text = text.to_owned();
    for provider in ProviderId::ALL {
        let rows = catalogue(*provider).into_iter();
        let rows = rows.map(|entry| format!("| `{}` | {} |", entry.event_type, entry.meaning));
        let rows: Vec<String> = rows.collect();
        text = replace_table(
            &text,
            &format!("### {}", provider.title()),
            "| type | fact |\n|---|---|",
            &rows,
        )?;
    }
    let tasks = SCHEDULED_TASKS.iter();
    let tasks = tasks.map(|task| {
        let (name, schedule, meaning) = (task.name, task.schedule, task.meaning);
        format!("| `{name}` | `{schedule}` | {meaning} |")
    });
    let tasks: Vec<String> = tasks.collect();
    let head = "| task | schedule | what it does |\n|---|---|---|";
    replace_table(&text, "### Scheduled tasks", head, &tasks)
}

/// Replaces the rows of the first table with this head under a heading.
fn replace_table(text: &str, heading: &str, head: &str, rows: &[String]) -> Result<String> {
    let Some(start) = format!("\n{text}").find(&format!("\n{heading}\n")) else {
        bail!("no heading {heading:?}");
    };
    let (before, section) = text.split_at(start + heading.len());
    let own = section.split("\n#").next().unwrap_or_default();
    let Some((prose, _)) = own.split_once(head) else {
        bail!("no table with the head {head:?} under {heading:?}");
    };
    let table = section.get(prose.len()..).unwrap_or_default();
    let lines = table.split_inclusive('\n');
    let is_row = |line: &&str| line.starts_with('|');
    let old: usize = lines.take_while(is_row).map(str::len).sum();
    let rest = table.get(old..).unwrap_or_default();
    let rows = rows.join("\n");
    Ok(format!("{before}{prose}{head}\n{rows}\n{rest}"))
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
        let written = replace_table(page, "### B", "| x |\n|---|", &rows).unwrap();
        assert_eq!(
            written,
            "\n### A\ntext\n### B\n| x |\n|---|\n| 2 |\n| 3 |\nend\n"
        );
        for heading in ["### A", "### C"] {
            assert!(
                replace_table(page, heading, "| x |\n|---|", &rows).is_err(),
                "{heading}"
            );
        }
    }

    #[test]
    fn a_page_has_the_alarms_that_name_it() {
        let alarm = |name: &str| {
            format!(
                "      AlarmName: !Sub '{name}'\n      AlarmDescription: 'It broke. Runbook: docs/runbook/p.md.'\n"
            )
        };
        let pages = list_alarms(&(alarm("one") + &alarm("two"))).unwrap();
        let written = write_alarms(
            "# P\n\nAlarm: `one`.\n\nAlarm: no.\n",
            &pages["docs/runbook/p.md"],
        );
        assert_eq!(
            written.unwrap(),
            "# P\n\nAlarms: `one`, `two`.\n\nAlarm: no.\n"
        );
        assert!(write_alarms("# P\n", &["`one`".to_owned()]).is_err());
        assert!(list_alarms("AlarmName: !Sub 'one'\nStatistic: Sum\n").is_err());
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
