//! The sample invocations in `events/cleanup-failed-payments`: each task has the one that its schedule sends, and the
//! others read as the table says.
#![cfg(test)]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use billhook_core::tasks::definitions::{CleanupInput, SCHEDULED_TASKS, TaskInvocation};
use serde_json::{Value, json};

/// Every sample, by the name of its file: its JSON, and what the function reads.
fn read_samples() -> BTreeMap<String, (Value, Option<TaskInvocation>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../events/cleanup-failed-payments");
    let files = fs::read_dir(folder).unwrap();
    files
        .map(|entry| entry.unwrap().path())
        .map(|path| {
            let stem = path.file_stem().unwrap().to_str().unwrap().to_owned();
            let text = fs::read(&path).unwrap();
            let read = serde_json::from_slice(&text).ok();
            (stem, (serde_json::from_slice(&text).unwrap(), read))
        })
        .collect()
}

#[test]
fn every_task_has_a_sample_and_every_other_sample_reads_as_the_table_says() {
    let mut samples = read_samples();
    for task in SCHEDULED_TASKS {
        let scheduled = json!({ "task": task.name });
        let own = samples
            .iter()
            .find(|(_, (sample, _))| *sample == scheduled)
            .map(|(file, _)| file.clone());
        let own = own.unwrap_or_else(|| panic!("no sample is {scheduled}"));
        let (_, read) = samples.remove(&own).unwrap();
        // The variant has the task's name.
        let variant = format!("{:?}", read.unwrap()).to_lowercase();
        assert!(
            variant.starts_with(&task.name.replace('_', "")),
            "{own}: {variant}"
        );
    }
    let dry_run = CleanupInput {
        dry_run: true,
        ..CleanupInput::default()
    };
    let by_hand = CleanupInput {
        minutes: Some(30),
        limit: Some(10),
        ..dry_run.clone()
    };
    let expected = [
        ("by-hand", Some(TaskInvocation::Cleanup(by_hand))),
        ("dry-run", Some(TaskInvocation::Cleanup(dry_run))),
        ("misspelt-is-refused", None),
        ("minutes-of-another-task-are-refused", None),
        ("scheduled", Some(TaskInvocation::default())),
    ];
    let expected = expected.map(|(file, input)| (file.to_owned(), input));
    let read: BTreeMap<_, _> = samples
        .into_iter()
        .map(|(file, (_, read))| (file, read))
        .collect();
    assert_eq!(read, expected.into());
}
