//! Mutes a tenant and ends it: a column of its row, which the worker reads with each of its events anyway. Who did it and
//! why stands beside each account of the tenant, in the table `entities`.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use aws_sdk_dynamodb::types::Update;
use billhook_adapters::clock::SystemClock;
use billhook_adapters::dynamodb::attributes::{Item, read_text, string_value};
use billhook_adapters::dynamodb::read_tenant_row;
use billhook_adapters::dynamodb::tenants::build_account_note;
use billhook_core::entity::tenant::{MUTED_COLUMN, TenantColumns};
use billhook_core::ids::{AccountId, TenantId};
use billhook_core::intake::inbox::EVENT_RETENTION;
use billhook_core::ports::Clock as _;
use billhook_core::time::Timestamp;

use crate::application_tables::TENANTS;
use crate::audit::AuditContext;
use crate::confirm::ChangeArgs;
use crate::event_filter::EventSelection;
use crate::event_lookup::load_selected_events;
use crate::events_table::EventSummary;
use crate::exit::CommandExit;
use crate::output::print_notice;
use crate::replay_run::{DEFAULT_RATE, plan_replay, start_replay_job};
use crate::session::StackSession;
use crate::tenant_write::write_tenant;

/// What the sweep retries is up to 30 days old, and is muted too.
const RETRIED_FOR: Duration = Duration::from_hours(31 * 24);

struct TenantRow {
    columns: TenantColumns,
    muted_at: Option<String>,
}

impl TenantRow {
    fn accounts(&self) -> String {
        let accounts: Vec<&str> = self.columns.accounts().map(AccountId::as_str).collect();
        accounts.join(", ")
    }
}

pub(crate) async fn mute_tenant(
    session: &StackSession,
    id: &TenantId,
    change: &ChangeArgs,
) -> Result<()> {
    let row = read_row(session, id).await?;
    let accounts = row.accounts();
    if accounts.is_empty() {
        bail!("{id} has no account, so no event is its");
    }
    if let Some(at) = row.muted_at {
        print_notice(&format!("{id} has been muted since {at}"));
        return Ok(());
    }
    let what = format!("events of {accounts} would be stored and ignored, as muted");
    let audit = change.confirm(session, &what, Some(1)).await?;
    let now = SystemClock.now();
    let update = Update::builder()
        .update_expression("SET #muted = :now")
        .condition_expression("attribute_exists(tenant_id) AND attribute_not_exists(#muted)")
        .expression_attribute_values(":now", string_value(now.to_string()));
    write(
        session,
        id,
        &row.columns,
        update,
        &audit.build_note("mute", now, None),
    )
    .await?;
    print_notice(&format!(
        "muted {id}: events of {accounts} are stored and ignored; to end it and have them processed, run: billhook tenants unmute {id} --replay --reason … --yes"
    ));
    Ok(())
}

pub(crate) async fn unmute_tenant(
    session: &StackSession,
    id: &TenantId,
    change: &ChangeArgs,
    replay: bool,
) -> Result<()> {
    let row = read_row(session, id).await?;
    let Some(muted_at) = &row.muted_at else {
        bail!("{id} is not muted");
    };
    let now = SystemClock.now();
    // A time that somebody wrote by hand may be none.
    let since = match Timestamp::parse(muted_at) {
        Ok(at) => at.before(RETRIED_FOR),
        Err(_) => now.before(EVENT_RETENTION),
    };
    let ignored = load_ignored(session, &row.columns, since).await?;
    let events: usize = ignored.iter().map(|(_, events)| events.len()).sum();
    let what = match replay {
        true => "would be processed",
        false => "would stay ignored (--replay has them processed)",
    };
    let what = format!(
        "{id} would not be muted any more; {events} events that were ignored since {muted_at} {what}"
    );
    let rows = 1 + if replay { events } else { 0 };
    let audit = change.confirm(session, &what, Some(rows)).await?;
    let update = Update::builder()
        .update_expression("REMOVE #muted")
        .condition_expression("attribute_exists(#muted)");
    write(
        session,
        id,
        &row.columns,
        update,
        &audit.build_note("unmute", now, None),
    )
    .await?;
    print_notice(&format!("{id} is not muted any more"));
    if replay {
        // Once more: until the write others were ignored.
        return replay_ignored(session, &row.columns, since, &audit).await;
    }
    if events > 0 {
        for account in row.columns.accounts() {
            print_notice(&format!(
                "to have the events processed that were ignored, run: billhook replay --account {account} --outcome ignored --error muted --since {since} --force --reason … --yes"
            ));
        }
    }
    Ok(())
}

async fn load_ignored(
    session: &StackSession,
    columns: &TenantColumns,
    since: Timestamp,
) -> Result<Vec<(EventSelection, Vec<EventSummary>)>> {
    let mut found = Vec::new();
    for account in columns.accounts() {
        let selection = EventSelection::muted_of(account, since, SystemClock.now());
        let events = load_selected_events(session, &selection).await?;
        found.push((selection, events));
    }
    Ok(found)
}

async fn replay_ignored(
    session: &StackSession,
    columns: &TenantColumns,
    since: Timestamp,
    audit: &AuditContext,
) -> Result<()> {
    for (selection, events) in load_ignored(session, columns, since).await? {
        let plan = plan_replay(events, None, true);
        if !plan.to_send.is_empty() {
            let id = SystemClock.new_id();
            start_replay_job(session, id, selection, plan, true, audit, DEFAULT_RATE).await?;
        }
    }
    Ok(())
}

async fn read_row(session: &StackSession, id: &TenantId) -> Result<TenantRow> {
    let table = TENANTS.name(session)?;
    let get = session.dynamodb.get_item().table_name(table);
    let get = get.key(TENANTS.key(), string_value(id.as_str()));
    let read = get.consistent_read(true).send().await;
    let read = read.with_context(|| format!("cannot read {id} from {table}"))?;
    let stack = &session.stack.name;
    let row: Item = read
        .item
        .ok_or_else(|| CommandExit::NotFound(format!("there is no tenant {id} in {stack}")))?;
    Ok(TenantRow {
        columns: read_tenant_row(&row),
        muted_at: read_text(&row, MUTED_COLUMN).map(str::to_owned),
    })
}

/// The column and the notes in one transaction, so that no mute is without its reason.
async fn write(
    session: &StackSession,
    id: &TenantId,
    columns: &TenantColumns,
    update: aws_sdk_dynamodb::types::builders::UpdateBuilder,
    note: &aws_sdk_dynamodb::types::AttributeValue,
) -> Result<()> {
    let update = update
        .table_name(TENANTS.name(session)?)
        .key(TENANTS.key(), string_value(id.as_str()))
        .expression_attribute_names("#muted", MUTED_COLUMN);
    let entities = session.stack.output("EntitiesTable")?;
    let mut updates = vec![update.build()?];
    for account in columns.accounts() {
        updates.push(build_account_note(
            entities,
            account,
            id,
            Some(note.clone()),
        )?);
    }
    write_tenant(session, updates)
        .await
        .with_context(|| format!("cannot write {id}"))
}
