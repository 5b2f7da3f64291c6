//! A replay's row in the jobs table: what it is about and how far it came, so that it can be cut and continued.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::error::ProvideErrorMetadata as _;
use billhook_adapters::dynamodb::attributes::{number_value, string_value};
use billhook_core::intake::inbox::EVENT_RETENTION;
use billhook_core::time::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::Stop;
use crate::audit::By;
use crate::filter::Selection;

/// As long as the events it is about.
const KEPT: Duration = EVENT_RETENTION;

/// Where a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum State {
    Running,
    Cut,
    Cancelled,
    Done,
}

/// A replay.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Job {
    /// `replay#<id>`; the id is the correlation id of all its messages, and makes their deduplication ids.
    job_id: String,
    pub(crate) state: State,
    /// The run that may write this row: a later one takes it over.
    run: String,
    pub(crate) selection: Selection,
    pub(crate) force: bool,
    #[serde(flatten)]
    pub(crate) by: By,
    pub(crate) total: u64,
    pub(crate) sent: u64,
    /// Done by others meanwhile.
    pub(crate) skipped: u64,
    /// The place of the last event that was sent.
    pub(crate) cursor: Option<String>,
    pub(crate) created_at: Timestamp,
    expires_at: i64,
}

impl Job {
    pub(crate) fn new(
        id: Uuid,
        selection: Selection,
        force: bool,
        by: By,
        total: u64,
        now: Timestamp,
    ) -> Self {
        Self {
            job_id: format!("replay#{id}"),
            state: State::Running,
            run: id.to_string(),
            selection,
            force,
            by,
            total,
            sent: 0,
            skipped: 0,
            cursor: None,
            created_at: now,
            expires_at: now.after(KEPT).unix_s(),
        }
    }

    pub(crate) fn id(&self) -> Result<Uuid> {
        let id = self.job_id.trim_start_matches("replay#");
        id.parse()
            .with_context(|| format!("{} is no job of this tool", self.job_id))
    }
}

/// The table.
#[derive(Clone, Debug)]
pub(crate) struct Jobs {
    pub(crate) client: Client,
    pub(crate) table: String,
}

impl Jobs {
    pub(crate) async fn create(&self, job: &Job) -> Result<()> {
        let put = self.client.put_item().table_name(&self.table);
        let put = put.set_item(Some(serde_dynamo::to_item(job)?));
        put.send()
            .await
            .with_context(|| format!("cannot write {} of {}", job.job_id, self.table))?;
        Ok(())
    }

    pub(crate) async fn read(&self, id: Uuid) -> Result<Job> {
        let get = self.client.get_item().table_name(&self.table);
        let got = get
            .key("job_id", string_value(format!("replay#{id}")))
            .consistent_read(true)
            .send()
            .await;
        let item = got
            .with_context(|| format!("cannot read the job {id}"))?
            .item;
        let missing = || Stop::NotThere(format!("there is no replay {id} in {}", self.table));
        Ok(serde_dynamo::from_item(item.ok_or_else(missing)?)?)
    }

    /// Takes a job over: whoever ran it stops at its next step.
    pub(crate) async fn take_over(&self, job: &mut Job, run: Uuid) -> Result<()> {
        match job.state {
            State::Done => bail!("the replay {} is done, nothing is left of it", job.id()?),
            State::Cancelled => bail!("the replay {} was cancelled: begin a new one", job.id()?),
            State::Running | State::Cut => {}
        }
        job.run = run.to_string();
        job.state = State::Running;
        self.create(job).await
    }

    /// Ends a job wherever it runs.
    pub(crate) async fn cancel(&self, id: Uuid, run: Uuid) -> Result<()> {
        let mut job = self.read(id).await?;
        if job.state == State::Done {
            bail!("the replay {id} is done, there is nothing to cancel");
        }
        job.run = run.to_string();
        job.state = State::Cancelled;
        self.create(&job).await
    }

    /// Keeps how far a job came; false where another run took it over, or it was cancelled.
    pub(crate) async fn keep(&self, job: &Job) -> Result<bool> {
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
            Ok(_) => Ok(true),
            Err(error) if error.code() == Some("ConditionalCheckFailedException") => Ok(false),
            Err(error) => Err(error).with_context(|| format!("cannot write {}", job.job_id)),
        }
    }
}
