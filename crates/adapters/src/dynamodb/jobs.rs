//! The jobs table: the checkpoints (high-water marks) of the scheduled tasks, and what each endpoint was last set to.
//!
//! A checkpoint is raised only if it is still as it was read (optimistic lock); `webhook-secret` may lower the cursors
//! of `reconcile`. A checkpoint that is too low costs calls, never an event. What it means:
//! `billhook_core::tasks::checkpoint`.

use std::collections::BTreeSet;

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::error::ProvideErrorMetadata as _;
use aws_sdk_dynamodb::types::AttributeValue;
use billhook_core::endpoint::applied::{AnsweredProperties, AppliedProperties};
use billhook_core::error::DependencyError;
use billhook_core::tasks::checkpoint::{
    AccountRefusal, Checkpoint, DONE_THROUGH_S, JOB_ID, RECONCILE_PREFIX, ResumeAt,
};
use billhook_core::tasks::ports::{CheckpointSaveResult, CheckpointStore};
use billhook_core::time::Timestamp;
use billhook_core::worker::ports::CommitError;

use super::attributes::{self, Item, number_value, read_text, string_value};
use super::update::UpdateBuilder;
use super::{dependency_error, send_update};

const UNTIL_S: &str = "until_s";
const AFTER: &str = "after";
const EVENT_TYPES: &str = "event_types";
const RESUME_TYPES: &str = "resume_types";
const REFUSED_SINCE_S: &str = "refused_since_s";
const REFUSAL_TOLD_S: &str = "refusal_told_s";

/// Before the logical id of an endpoint, in the key of its row.
const ENDPOINT_PREFIX: &str = "endpoint#";
const LAST_ID: &str = "last_id";
const LAST_DIGEST: &str = "last_digest";
const BEFORE_ID: &str = "before_id";
const BEFORE_DIGEST: &str = "before_digest";
const APPLIED_AT: &str = "applied_at";

/// The jobs table; the tenants table too, because `reconcile` asks Stripe about each tenant's account.
#[derive(Clone, Debug)]
pub struct JobsTable {
    pub client: Client,
    pub table: String,
    pub tenants_table: String,
    /// Where the notes of previous accounts are.
    pub entities_table: String,
}

impl CheckpointStore for JobsTable {
    async fn load_checkpoint(&self, job: &str) -> Result<Checkpoint, DependencyError> {
        let got = self
            .client
            .get_item()
            .table_name(&self.table)
            .key(JOB_ID, string_value(job))
            .consistent_read(true)
            .send()
            .await;
        let row = got.map_err(|error| dependency_error(self.doing("read", job), error))?;
        Ok(row.item.as_ref().map(read_checkpoint).unwrap_or_default())
    }

    async fn save_checkpoint(
        &self,
        job: &str,
        read: &Checkpoint,
        next: &Checkpoint,
    ) -> Result<CheckpointSaveResult, DependencyError> {
        let doing = self.doing("write", job);
        let update = match build_checkpoint_update(&self.table, job, read, next) {
            Ok(update) => update,
            Err(error) => return Err(super::invalid_call(&doing, error)),
        };
        match send_update(&self.client, update).await {
            Ok(()) => Ok(CheckpointSaveResult::Saved),
            // If the answer to the SDK's first attempt was lost, its second attempt fails this condition against our
            // own write. So the row decides: if it is what we wanted to write, the checkpoint is saved.
            Err(error) if error.code() == Some("ConditionalCheckFailedException") => {
                Ok(match self.load_checkpoint(job).await? == *next {
                    true => CheckpointSaveResult::Saved,
                    false => CheckpointSaveResult::Superseded,
                })
            }
            Err(error) => Err(dependency_error(doing, error)),
        }
    }
}

impl JobsTable {
    fn doing(&self, what: &str, job: &str) -> String {
        format!("{what} {job} of {}", self.table)
    }
}

fn read_checkpoint(row: &Item) -> Checkpoint {
    let resume_at = attributes::read_integer(row, UNTIL_S).zip(read_text(row, AFTER));
    Checkpoint {
        done_through_s: attributes::read_integer(row, DONE_THROUGH_S),
        event_types: read_types(row, EVENT_TYPES),
        resume_at: resume_at.map(|(until_s, after)| ResumeAt {
            until_s,
            after: after.to_owned(),
            event_types: read_types(row, RESUME_TYPES),
        }),
        refusal: attributes::read_integer(row, REFUSED_SINCE_S).map(|since_s| AccountRefusal {
            since_s,
            told_s: attributes::read_integer(row, REFUSAL_TOLD_S),
        }),
    }
}

fn read_types(row: &Item, column: &str) -> BTreeSet<String> {
    let types = row.get(column).and_then(|types| types.as_ss().ok());
    types.into_iter().flatten().cloned().collect()
}

/// DynamoDB has no empty set.
fn types_value(types: &BTreeSet<String>) -> Option<AttributeValue> {
    (!types.is_empty()).then(|| AttributeValue::Ss(types.iter().cloned().collect()))
}

fn build_checkpoint_update(
    table: &str,
    job: &str,
    read: &Checkpoint,
    next: &Checkpoint,
) -> Result<aws_sdk_dynamodb::types::Update, CommitError> {
    let mut update = UpdateBuilder::new();
    let resume_at = next.resume_at.as_ref();
    update.set(DONE_THROUGH_S, next.done_through_s.map(number_value));
    update.set(UNTIL_S, resume_at.map(|cut| number_value(cut.until_s)));
    update.set(AFTER, resume_at.map(|cut| string_value(&cut.after)));
    update.set(EVENT_TYPES, types_value(&next.event_types));
    update.set(
        RESUME_TYPES,
        resume_at.and_then(|cut| types_value(&cut.event_types)),
    );
    let refusal = next.refusal.as_ref();
    update.set(
        REFUSED_SINCE_S,
        refusal.map(|refusal| number_value(refusal.since_s)),
    );
    update.set(
        REFUSAL_TOLD_S,
        refusal.and_then(|refusal| refusal.told_s.map(number_value)),
    );
    // Case: `reconcile` read the cursor 12:00 and is on its way to 13:00. Now `webhook-secret` deletes an endpoint and
    // sets the cursor back three days, because Stripe stops its retries to that endpoint. Without this condition the
    // run would write 13:00, and nobody would ever list those three days.
    update.require_as_loaded(
        DONE_THROUGH_S,
        read.done_through_s.map(number_value).as_ref(),
    );
    update.build(table, JOB_ID, job)
}

/// The cursors of `reconcile` in the jobs table, for `webhook-secret`.
#[derive(Clone, Debug)]
pub struct ReconcileCursors {
    client: Client,
    table: String,
}

impl ReconcileCursors {
    pub fn new(client: Client, table: String) -> Self {
        Self { client, table }
    }

    /// Lowers each cursor that is above `to_s` (Unix seconds); it raises and creates none. A scan is cheap here: the
    /// table has a handful of rows per account.
    pub async fn set_back(&self, to_s: i64) -> Result<(), DependencyError> {
        let scan = self.client.scan().table_name(&self.table);
        let mut pages = scan
            .filter_expression("begins_with(#id, :prefix) AND #at > :to")
            .projection_expression("#id")
            .expression_attribute_names("#id", JOB_ID)
            .expression_attribute_names("#at", DONE_THROUGH_S)
            .expression_attribute_values(":prefix", AttributeValue::S(RECONCILE_PREFIX.into()))
            .expression_attribute_values(":to", number_value(to_s))
            .consistent_read(true)
            .into_paginator()
            .send();
        while let Some(page) = pages.next().await {
            let doing = || format!("look for cursors in {}", self.table);
            let page = page.map_err(|error| dependency_error(doing(), error))?;
            for mut row in page.items.unwrap_or_default() {
                if let Some(id) = row.remove(JOB_ID) {
                    self.lower(id, to_s).await?;
                }
            }
        }
        Ok(())
    }

    async fn lower(&self, id: AttributeValue, to_s: i64) -> Result<(), DependencyError> {
        let name = id.as_s().map_or("a cursor", String::as_str);
        let doing = format!("set {name} of {} back", self.table);
        let update = self.client.update_item().table_name(&self.table);
        let updated = update
            .key(JOB_ID, id)
            .update_expression("SET #at = :to")
            .condition_expression("#at > :to")
            .expression_attribute_names("#at", DONE_THROUGH_S)
            .expression_attribute_values(":to", number_value(to_s))
            .send()
            .await;
        match updated {
            // The cursor was lowered or deleted after the scan: nothing is left to do.
            Err(error) if error.code() == Some("ConditionalCheckFailedException") => Ok(()),
            other => other
                .map(drop)
                .map_err(|error| dependency_error(doing, error)),
        }
    }
}

/// What each endpoint was last set to, in the jobs table, for `webhook-secret`.
#[derive(Clone, Debug)]
pub struct AppliedEndpoints {
    client: Client,
    table: String,
}

impl AppliedEndpoints {
    pub fn new(client: Client, table: String) -> Self {
        Self { client, table }
    }

    /// `logical_id` is the resource's name in the template.
    pub async fn load(
        &self,
        logical_id: &str,
    ) -> Result<Option<AppliedProperties>, DependencyError> {
        let job = format!("{ENDPOINT_PREFIX}{logical_id}");
        let get = self.client.get_item().table_name(&self.table);
        let got = get
            .key(JOB_ID, string_value(&job))
            .consistent_read(true)
            .send()
            .await;
        let doing = || format!("read {job} of {}", self.table);
        let row = got.map_err(|error| dependency_error(doing(), error))?.item;
        Ok(row.as_ref().and_then(read_applied))
    }

    /// Fails if the row is no longer as it was read: CloudFormation sends one request for a resource at a time, so this is
    /// a late repeat of an earlier one, and what is noted now is true.
    pub async fn save(
        &self,
        logical_id: &str,
        read: Option<&AppliedProperties>,
        applied: Option<&AppliedProperties>,
    ) -> Result<(), DependencyError> {
        let job = format!("{ENDPOINT_PREFIX}{logical_id}");
        let doing = format!("write {job} of {}", self.table);
        let update = build_applied_update(&self.table, &job, read, applied);
        let update = update.map_err(|error| super::invalid_call(&doing, error))?;
        let sent = send_update(&self.client, update).await;
        sent.map_err(|error| dependency_error(doing, error))
    }
}

fn build_applied_update(
    table: &str,
    job: &str,
    read: Option<&AppliedProperties>,
    applied: Option<&AppliedProperties>,
) -> Result<aws_sdk_dynamodb::types::Update, CommitError> {
    let mut update = UpdateBuilder::new();
    let last = applied.map(|applied| &applied.last);
    let before = applied.and_then(|applied| applied.before.as_ref());
    let at = |applied: &AppliedProperties| string_value(applied.applied_at.to_string());
    update.set(LAST_ID, last.map(|it| string_value(&it.physical_id)));
    update.set(LAST_DIGEST, last.map(|it| string_value(&it.digest)));
    update.set(BEFORE_ID, before.map(|it| string_value(&it.physical_id)));
    update.set(BEFORE_DIGEST, before.map(|it| string_value(&it.digest)));
    update.set(APPLIED_AT, applied.map(at));
    update.require_as_loaded(APPLIED_AT, read.map(at).as_ref());
    update.build(table, JOB_ID, job)
}

/// `None` if the row is not as we write it: then no update is a rollback.
fn read_applied(row: &Item) -> Option<AppliedProperties> {
    let answered = |id: &str, digest: &str| {
        Some(AnsweredProperties {
            physical_id: read_text(row, id)?.to_owned(),
            digest: read_text(row, digest)?.to_owned(),
        })
    };
    Some(AppliedProperties {
        last: answered(LAST_ID, LAST_DIGEST)?,
        before: answered(BEFORE_ID, BEFORE_DIGEST),
        applied_at: Timestamp::parse(read_text(row, APPLIED_AT)?).ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_endpoint_was_set_to_reads_back_as_written() {
        let answered = |id: &str, digest: &str| AnsweredProperties {
            physical_id: id.to_owned(),
            digest: digest.to_owned(),
        };
        let at = Timestamp::from_unix_s(3_000).unwrap();
        let first = AppliedProperties::followed_by(None, answered("we_1", "a"), at);
        let second = AppliedProperties::followed_by(Some(first.clone()), answered("we_2", "b"), at);
        for (read, applied) in [(None, first.clone()), (Some(first), second)] {
            let update =
                build_applied_update("jobs", "endpoint#Hook", read.as_ref(), Some(&applied))
                    .unwrap();
            assert!(update.condition_expression.is_some());
            let values = update.expression_attribute_values.unwrap();
            let mut row = Item::new();
            let set = update.update_expression.trim_start_matches("SET ");
            let set = set.split(" REMOVE ").next().unwrap();
            for pair in set.split(", ") {
                let (name, value) = pair.split_once(" = ").unwrap();
                row.insert(
                    name.trim_start_matches('#').to_owned(),
                    values[value].clone(),
                );
            }
            assert_eq!(read_applied(&row), Some(applied));
        }
        assert_eq!(read_applied(&Item::new()), None);
        let removal = build_applied_update("jobs", "endpoint#Hook", None, None).unwrap();
        assert!(removal.update_expression.starts_with("REMOVE"));
    }

    #[test]
    fn progress_reads_back_as_written_on_condition_of_what_was_read() {
        let now = billhook_core::time::Timestamp::from_unix_s(3_000).unwrap();
        let cut = Checkpoint::completed_through(1_000)
            .of_types(&["a", "b"])
            .interrupted_at(2_000, "evt_1".to_owned())
            .of_types(&["a", "c"])
            .refused_at(now)
            .with_refusal_told(now);
        let types =
            |types: &[&str]| AttributeValue::Ss(types.iter().map(|&it| it.to_owned()).collect());
        let row = Item::from([
            (DONE_THROUGH_S.to_owned(), number_value(1_000)),
            (EVENT_TYPES.to_owned(), types(&["a", "b"])),
            (UNTIL_S.to_owned(), number_value(2_000)),
            (AFTER.to_owned(), string_value("evt_1")),
            (RESUME_TYPES.to_owned(), types(&["a", "c"])),
            (REFUSED_SINCE_S.to_owned(), number_value(3_000)),
            (REFUSAL_TOLD_S.to_owned(), number_value(3_000)),
        ]);
        assert_eq!(read_checkpoint(&row), cut);
        assert_eq!(read_checkpoint(&Item::new()), Checkpoint::default());
        let first = build_checkpoint_update("jobs", "sweep", &Checkpoint::default(), &cut).unwrap();
        assert_eq!(
            first.condition_expression.as_deref(),
            Some("attribute_not_exists(#created_s)")
        );
        let done =
            build_checkpoint_update("jobs", "sweep", &cut, &Checkpoint::completed_through(2_000))
                .unwrap();
        assert_eq!(
            done.condition_expression.as_deref(),
            Some("#created_s = :v1")
        );
        assert_eq!(
            done.update_expression,
            "SET #created_s = :v0 REMOVE #until_s, #after, #event_types, #resume_types, #refused_since_s, #refusal_told_s"
        );
        let cleared = build_checkpoint_update(
            "jobs",
            "cleanup",
            &Checkpoint::default(),
            &Checkpoint::default(),
        );
        assert_eq!(cleared.unwrap().expression_attribute_values, None);
        let values = done.expression_attribute_values.unwrap();
        assert_eq!(
            (&values[":v0"], &values[":v1"]),
            (&number_value(2_000), &number_value(1_000))
        );
    }
}
