//! Writes the catalogue of event types (`billhook_core::provider::catalogue`) into the places that repeat it for their
//! own readers: the tables of docs/SEMANTICS.md, and the types to which the template subscribes Stripe's endpoints.
//!
//! `make catalogue` writes them; the test `source::documents` fails while a file differs.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use billhook_core::ids::ProviderId;
use billhook_core::provider::catalogue;
use billhook_core::provider::stripe::event_types::HANDLED_TYPES;

/// Puts the catalogue into the text of a file.
type CatalogueWriter = fn(&str) -> Result<String>;

/// The files, and how the catalogue stands in each.
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

/// Replaces the first table under `### Stripe` and so on.
fn write_tables(text: &str) -> Result<String> {
    let mut text = text.to_owned();
    for provider in ProviderId::ALL {
        let heading = format!("\n### {}\n", provider.title());
        let Some((before, section)) = text.split_once(&heading) else {
            bail!(
                "no heading {:?} for the event types of {provider}",
                heading.trim()
            );
        };
        let Some((prose, rest)) = section.split_once("| type | fact |\n|---|---|\n") else {
            bail!("no table under {:?}", heading.trim());
        };
        let is_row = |line: &&str| line.starts_with('|');
        let old: usize = rest
            .split_inclusive('\n')
            .take_while(is_row)
            .map(str::len)
            .sum();
        let rest = rest.get(old..).unwrap_or_default();
        let rows = catalogue(*provider).into_iter();
        let rows: String = rows
            .map(|entry| format!("| `{}` | {} |\n", entry.event_type, entry.meaning))
            .collect();
        text = format!("{before}{heading}{prose}| type | fact |\n|---|---|\n{rows}{rest}");
    }
    Ok(text)
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
