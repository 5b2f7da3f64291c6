//! The sample invocations in `events/cleanup-failed-payments`: what a schedule sends names its task, and the others read
//! as the table says. And the JSON that a run answers.
#![cfg(test)]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use billhook_core::tasks::definitions::{CleanupInput, SCHEDULED_TASKS, TaskInvocation};
use cleanup_failed_payments::tasks::TaskReport;
use cleanup_failed_payments::tasks::cleanup::CleanupSummary;
use cleanup_failed_payments::tasks::proof::ProofSummary;
use cleanup_failed_payments::tasks::reconcile::ReconcileSummary;
use cleanup_failed_payments::tasks::sweep::SweepSummary;
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
fn every_task_reads_its_schedules_input_and_every_other_sample_reads_as_the_table_says() {
    let mut samples = read_samples();
    for task in SCHEDULED_TASKS {
        let scheduled = json!({ "task": task.name });
        let read = serde_json::from_value::<TaskInvocation>(scheduled.clone());
        assert!(read.is_ok(), "{scheduled}: {read:?}");
        samples.retain(|_, (sample, _)| *sample != scheduled);
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

/// People and tools read these: names and order stay.
#[test]
fn a_report_is_the_summary_of_its_task() {
    let sweep = SweepSummary {
        task: "sweep",
        ..SweepSummary::default()
    };
    let reconcile = ReconcileSummary {
        task: "reconcile",
        ..ReconcileSummary::default()
    };
    let proof = ProofSummary {
        task: "proof",
        ..ProofSummary::default()
    };
    for (report, answer) in [
        (
            TaskReport::Proof(proof),
            r#"{"task":"proof","sample_percent":0,"proven":0,"equal":0,"edited":0,"unprovable":0,"different":0,"different_states":[],"failed":0,"missed_nights":0,"completed":false}"#,
        ),
        (
            TaskReport::Cleanup(CleanupSummary::default()),
            r#"{"scanned":0,"cancelled":0,"reconciled":0,"refused":0,"skipped":0,"failed":0,"dry_run":false,"unasked":0}"#,
        ),
        (
            TaskReport::Sweep(sweep),
            r#"{"task":"sweep","looked_at":0,"sent":0,"refused":0,"payments":0,"ignored":0,"restored":0,"stuck":0,"overdue":0,"completed":false}"#,
        ),
        (
            TaskReport::Reconcile(reconcile),
            r#"{"task":"reconcile","accounts":0,"events":0,"taken_in":0,"gaps":0,"refused":[],"failed":0,"lagging":0,"reconciled_through":null,"completed":false,"no_key":false}"#,
        ),
    ] {
        assert_eq!(serde_json::to_string(&report).unwrap(), answer);
    }
}
