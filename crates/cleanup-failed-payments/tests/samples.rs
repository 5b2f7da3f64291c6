//! The sample invocations in `events/cleanup-failed-payments` read as this table says.
#![cfg(test)]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use cleanup_failed_payments::TaskInput;
use cleanup_failed_payments::cleanup::CleanupOptions;

#[test]
fn every_sample_reads_as_the_table_says() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../events/cleanup-failed-payments");
    let read: BTreeMap<String, Option<TaskInput>> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| {
            let stem = path.file_stem().unwrap().to_str().unwrap().to_owned();
            let input = serde_json::from_slice(&fs::read(&path).unwrap());
            (stem, input.ok())
        })
        .collect();
    let dry_run = CleanupOptions {
        dry_run: true,
        ..CleanupOptions::default()
    };
    let by_hand = CleanupOptions {
        minutes: Some(30),
        limit: Some(10),
        ..dry_run.clone()
    };
    let expected = [
        ("by-hand", Some(TaskInput::Cleanup(by_hand))),
        ("dry-run", Some(TaskInput::Cleanup(dry_run))),
        ("misspelt-is-refused", None),
        ("minutes-of-another-task-are-refused", None),
        ("reconcile", Some(TaskInput::Reconcile)),
        ("scheduled", Some(TaskInput::default())),
        ("sweep", Some(TaskInput::Sweep)),
        ("task", Some(TaskInput::default())),
    ];
    let expected = expected.map(|(file, input)| (file.to_owned(), input));
    assert_eq!(read, expected.into());
}
