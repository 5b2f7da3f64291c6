//! The record of a change that has no row of its own to note it on: a run of a task, a secret, a tenant, a sample event. A row
//! `change#…` of the jobs table says who did it, when and why.
//!
//! It is written before the change: if the command dies in between, a record without a change can be explained.

use anyhow::{Context as _, Result};
use billhook_adapters::clock::SystemClock;
use billhook_adapters::dynamodb::attributes::{number_value, string_value};
use billhook_core::intake::inbox::EVENT_RETENTION;
use billhook_core::ports::Clock as _;

use crate::audit::AuditContext;
use crate::session::StackSession;

pub(crate) async fn record_change(
    session: &StackSession,
    action: &str,
    audit: &AuditContext,
) -> Result<()> {
    let (id, now) = (SystemClock.new_id(), SystemClock.now());
    let table = session.stack.output("JobsTable")?;
    let put = session.dynamodb.put_item().table_name(table);
    put.item("job_id", string_value(format!("change#{id}")))
        .item("action", string_value(action))
        .item("actor", string_value(&audit.actor))
        .item("reason", string_value(&audit.reason))
        .item("created_at", string_value(now.to_string()))
        .item(
            "expires_at",
            number_value(now.after(EVENT_RETENTION).unix_s()),
        )
        .send()
        .await
        .with_context(|| format!("cannot record in {table} who does this, so nothing was done"))?;
    Ok(())
}
