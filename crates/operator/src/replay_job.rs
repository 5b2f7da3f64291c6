//! Checkpoints of replays: a replay is a row of the jobs table with its selection and a cursor, so that an interrupted
//! replay can be resumed, also from another machine.
//!
//! The field `run` is an optimistic lock: whoever resumes or cancels a job writes a new value, and the run that lost
//! the job notices at its next checkpoint and stops.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::error::ProvideErrorMetadata as _;
use billhook_adapters::dynamodb::attributes::{number_value, string_value};
use billhook_core::intake::inbox::EVENT_RETENTION;
use billhook_core::time::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::audit::ChangeAuthor;
use crate::event_filter::EventSelection;
use crate::exit::CommandExit;

/// Retention: a job is of use as long as the events that it selects.
const JOB_RETENTION: Duration = EVENT_RETENTION;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ReplayJobState {
    Running,
    Interrupted,
    Cancelled,
    Done,
}

impl ReplayJobState {
    /// The stored word.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Interrupted => "interrupted",
            Self::Cancelled => "cancelled",
            Self::Done => "done",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ReplayJob {
    /// `replay#<id>`. The id is the correlation id of all messages of the replay and part of their deduplication ids,
    /// so that a resumed replay that sends an event twice within 5 minutes is one message to the queue.
    job_id: String,
    pub(crate) state: ReplayJobState,
    /// The run that owns this row; the condition of every checkpoint.
    run: String,
    pub(crate) selection: EventSelection,
    pub(crate) force: bool,
    #[serde(flatten)]
    pub(crate) author: ChangeAuthor,
    pub(crate) total: u64,
    pub(crate) sent: u64,
    /// Events that were done when their turn came, or whose row is damaged.
    pub(crate) skipped: u64,
    /// The sort key of the last event that was sent.
    pub(crate) cursor: Option<String>,
    pub(crate) created_at: Timestamp,
    expires_at: i64,
}

impl ReplayJob {
    pub(crate) fn new(
        id: Uuid,
        selection: EventSelection,
        force: bool,
        author: ChangeAuthor,
        total: u64,
        now: Timestamp,
    ) -> Self {
        Self {
            job_id: format!("replay#{id}"),
            state: ReplayJobState::Running,
            run: id.to_string(),
            selection,
            force,
            author,
            total,
            sent: 0,
            skipped: 0,
            cursor: None,
            created_at: now,
            expires_at: now.after(JOB_RETENTION).unix_s(),
        }
    }

    pub(crate) fn id(&self) -> Result<Uuid> {
        let id = self.job_id.trim_start_matches("replay#");
        id.parse()
            .with_context(|| format!("{} is not a replay job", self.job_id))
    }
}

/// The result of a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum JobSaveResult {
    Saved,
    /// Another run resumed the job, or it was cancelled: this run has to stop.
    LostToOtherRun,
}

#[derive(Clone, Debug)]
pub(crate) struct ReplayJobsTable {
    pub(crate) client: Client,
    pub(crate) table: String,
}

impl ReplayJobsTable {
    pub(crate) async fn put_job(&self, job: &ReplayJob) -> Result<()> {
        let put = self.client.put_item().table_name(&self.table);
        let put = put.set_item(Some(serde_dynamo::to_item(job)?));
        put.send()
            .await
            .with_context(|| format!("cannot write {} to {}", job.job_id, self.table))?;
        Ok(())
    }

    pub(crate) async fn read_job(&self, id: Uuid) -> Result<ReplayJob> {
        let get = self.client.get_item().table_name(&self.table);
        let got = get
            .key("job_id", string_value(format!("replay#{id}")))
            .consistent_read(true)
            .send()
            .await;
        let item = got
            .with_context(|| format!("cannot read the replay {id}"))?
            .item;
        let missing =
            || CommandExit::NotFound(format!("there is no replay {id} in {}", self.table));
        Ok(serde_dynamo::from_item(item.ok_or_else(missing)?)?)
    }

    /// Makes `run` the owner of the job. A run that is still active elsewhere fails its next checkpoint and stops.
    pub(crate) async fn take_over_job(&self, job: &mut ReplayJob, run: Uuid) -> Result<()> {
        match job.state {
            ReplayJobState::Done => {
                bail!(
                    "the replay {} is done: nothing is left to resume",
                    job.id()?
                )
            }
            ReplayJobState::Cancelled => {
                bail!("the replay {} was cancelled: start a new one", job.id()?)
            }
            ReplayJobState::Running | ReplayJobState::Interrupted => {}
        }
        job.run = run.to_string();
        job.state = ReplayJobState::Running;
        self.put_job(job).await
    }

    /// Takes the job from whichever run has it.
    pub(crate) async fn cancel_job(&self, id: Uuid, run: Uuid) -> Result<()> {
        let mut job = self.read_job(id).await?;
        if job.state == ReplayJobState::Done {
            bail!("the replay {id} is done: there is nothing to cancel");
        }
        job.run = run.to_string();
        job.state = ReplayJobState::Cancelled;
        self.put_job(&job).await
    }

    /// Writes the checkpoint on condition that this run still owns the job.
    pub(crate) async fn save_progress(&self, job: &ReplayJob) -> Result<JobSaveResult> {
        let state = serde_dynamo::to_attribute_value(job.state)?;
        let update = self
            .client
            .update_item()
            .table_name(&self.table)
            .key("job_id", string_value(&job.job_id))
            .update_expression(
                "SET #state = :state, #cursor = :cursor, sent = :sent, skipped = :skipped",
            )
            .condition_expression("run = :run")
            .expression_attribute_names("#state", "state")
            .expression_attribute_names("#cursor", "cursor")
            .expression_attribute_values(":state", state)
            .expression_attribute_values(":cursor", serde_dynamo::to_attribute_value(&job.cursor)?)
            .expression_attribute_values(":sent", number_value(i64::try_from(job.sent)?))
            .expression_attribute_values(":skipped", number_value(i64::try_from(job.skipped)?))
            .expression_attribute_values(":run", string_value(&job.run))
            .send()
            .await;
        match update {
            Ok(_) => Ok(JobSaveResult::Saved),
            Err(error) if error.code() == Some("ConditionalCheckFailedException") => {
                Ok(JobSaveResult::LostToOtherRun)
            }
            Err(error) => Err(error).with_context(|| format!("cannot write {}", job.job_id)),
        }
    }
}
