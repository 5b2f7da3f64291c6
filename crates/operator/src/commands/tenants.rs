//! `billhook tenants`: maps connected Stripe accounts to tenants. Adding a tenant replays the events that were parked
//! because their account was unknown.
//!
//! Tenant isolation depends on this table: if an account had two tenants, nobody could say whose orders its events may
//! change, so they would be parked as `tenant_ambiguous`. `add` refuses to create that state.

use std::io::Read as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use aws_sdk_dynamodb::error::ProvideErrorMetadata as _;
use billhook_adapters::clock::SystemClock;
use billhook_adapters::dynamodb::attributes::{Item, string_value};
use billhook_core::ids::{AccountId, ProviderId, TenantId};
use billhook_core::outcome::ParkReason;
use billhook_core::ports::Clock as _;
use billhook_core::worker::ports::Ledger as _;
use clap::{Args, Subcommand};
use serde::Deserialize;

use crate::application_tables::TENANTS;
use crate::event_filter::EventSelection;
use crate::output::{OutputWriter, print_notice};
use crate::replay_run::replay_open_events;
use crate::row_json::RowDetail;
use crate::session::StackSession;

#[derive(Debug, Subcommand)]
pub(crate) enum TenantsCommand {
    /// Add a tenant and reprocess the events that were parked because its account was unknown
    #[command(
        after_help = "Example:\n  billhook tenants add ten_1 --name 'Shop One' --account acct_1"
    )]
    Add(TenantsAddArgs),
    /// Show a tenant
    #[command(after_help = "Example:\n  billhook tenants show ten_1")]
    Show(TenantsShowArgs),
    /// List tenants
    #[command(after_help = "Example:\n  billhook tenants list --output jsonl > tenants.jsonl")]
    List(TenantsListArgs),
    /// Add the tenants of a file with one JSON object per line, as `tenants list --output jsonl` writes it
    #[command(
        after_help = "Existing tenants are not changed, so the command can be repeated.\n\n\
        Examples:\n  billhook tenants import tenants.jsonl\n  \
        echo '{\"tenant_id\":\"ten_1\",\"name\":\"Shop One\",\"stripe_connected_account_id\":\"acct_1\"}' | billhook tenants import -"
    )]
    Import(TenantsImportArgs),
}

#[derive(Args, Debug)]
pub(crate) struct TenantsAddArgs {
    /// The tenant id of the application
    #[arg(value_parser = TenantId::parse)]
    id: TenantId,
    /// The display name
    #[arg(long)]
    name: Option<String>,
    /// The connected Stripe account
    #[arg(long, value_parser = AccountId::parse)]
    account: AccountId,
}

#[derive(Args, Debug)]
pub(crate) struct TenantsShowArgs {
    /// The tenant id
    id: String,
}

#[derive(Args, Debug)]
pub(crate) struct TenantsListArgs {
    /// Show at most this many tenants
    #[arg(long, default_value_t = 1000)]
    limit: usize,
}

#[derive(Args, Debug)]
pub(crate) struct TenantsImportArgs {
    /// The file; - for standard input
    file: PathBuf,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct TenantRecord {
    tenant_id: TenantId,
    name: Option<String>,
    stripe_connected_account_id: AccountId,
}

pub(crate) async fn run_tenants(
    command: TenantsCommand,
    session: &StackSession,
    output: OutputWriter,
) -> Result<()> {
    match command {
        TenantsCommand::Add(add) => {
            let tenant = TenantRecord {
                tenant_id: add.id,
                name: add.name,
                stripe_connected_account_id: add.account,
            };
            add_tenant(session, &tenant).await?;
            release_parked_events(session, &tenant).await?;
        }
        TenantsCommand::Show(show) => output.print_object(
            &TENANTS
                .read_row(session, &show.id, RowDetail::Known)
                .await?,
        ),
        TenantsCommand::List(list) => {
            let rows = TENANTS.scan_rows(session, &[], list.limit).await?;
            let columns = [
                "tenant_id",
                "name",
                "stripe_connected_account_id",
                "stripe_status",
                "charges_enabled",
                "payouts_enabled",
            ];
            output.print_list(&columns, &rows);
        }
        TenantsCommand::Import(import) => {
            let mut text = String::new();
            if import.file.as_os_str() == "-" {
                std::io::stdin().read_to_string(&mut text)?;
            } else {
                text = std::fs::read_to_string(&import.file)
                    .with_context(|| format!("cannot read {}", import.file.display()))?;
            }
            for tenant in parse_tenants(&text)? {
                add_tenant(session, &tenant).await?;
                release_parked_events(session, &tenant).await?;
            }
        }
    }
    Ok(())
}

/// All tenants of the file, or the number of the first bad line. The whole file is parsed before anything is written,
/// so that a typo in line 900 does not leave 899 tenants behind.
fn parse_tenants(text: &str) -> Result<Vec<TenantRecord>> {
    let lines = text
        .lines()
        .zip(1..)
        .filter(|(line, _)| !line.trim().is_empty());
    lines
        .map(|(line, number)| {
            serde_json::from_str(line)
                .with_context(|| format!("line {number} is not a tenant; nothing was written"))
        })
        .collect()
}

async fn add_tenant(session: &StackSession, tenant: &TenantRecord) -> Result<()> {
    let (id, account) = (&tenant.tenant_id, &tenant.stripe_connected_account_id);
    let others = session
        .ledger(ProviderId::Stripe)?
        .tenants_by_account(account)
        .await?;
    if let Some(other) = others.iter().find(|other| *other != id) {
        bail!(
            "{account} already belongs to {other}: if it had two tenants, its events would be parked as tenant_ambiguous"
        );
    }
    let table = TENANTS.name(session)?;
    let mut item = Item::from([
        ("tenant_id".to_owned(), string_value(id.as_str())),
        (
            "stripe_connected_account_id".to_owned(),
            string_value(account.as_str()),
        ),
    ]);
    if let Some(name) = &tenant.name {
        item.insert("name".to_owned(), string_value(name));
    }
    let put = session
        .dynamodb
        .put_item()
        .table_name(table)
        .set_item(Some(item))
        .condition_expression("attribute_not_exists(tenant_id)")
        .send()
        .await;
    match put {
        Ok(_) => print_notice(&format!("added {id}")),
        Err(error) if error.code() == Some("ConditionalCheckFailedException") => {
            if others.is_empty() {
                bail!("{id} already exists with another account: see `billhook tenants show {id}`");
            }
            print_notice(&format!("{id} already exists"));
        }
        Err(error) => return Err(error).with_context(|| format!("cannot write {id} to {table}")),
    }
    Ok(())
}

async fn release_parked_events(session: &StackSession, tenant: &TenantRecord) -> Result<()> {
    let account = &tenant.stripe_connected_account_id;
    let selection =
        EventSelection::parked_for(account, ParkReason::TenantUnknown, SystemClock.now());
    let audit = session
        .start_audit(format!("tenant {} was added", tenant.tenant_id))
        .await?;
    replay_open_events(session, selection, audit).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_file_is_accepted_whole_or_refused_with_its_line() {
        let line = r#"{"tenant_id":"ten_1","name":"One","stripe_connected_account_id":"acct_1","stripe_status":"connected"}"#;
        let read = parse_tenants(&format!("{line}\n\n")).unwrap();
        assert_eq!((read.len(), read[0].tenant_id.as_str()), (1, "ten_1"));
        let error = parse_tenants(&format!("{line}\n{{\"tenant_id\":\"ten_2\"}}\n")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "line 2 is not a tenant; nothing was written"
        );
    }
}
