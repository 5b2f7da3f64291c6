//! `billhook tenants`: which connected account is whose. Adding one releases the events that waited for it.

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

use crate::audit::By;
use crate::entity::TENANTS;
use crate::filter::Selection;
use crate::output::Output;
use crate::replay;
use crate::session::Session;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Add a tenant, and release the events of its account that waited for it
    #[command(
        after_help = "Example:\n  billhook tenants add ten_1 --name 'Shop One' --account acct_1"
    )]
    Add(Add),
    /// Show a tenant
    #[command(after_help = "Example:\n  billhook tenants show ten_1")]
    Show(Show),
    /// List tenants
    #[command(after_help = "Example:\n  billhook tenants list --output jsonl > tenants.jsonl")]
    List(List),
    /// Add the tenants of a file, one JSON object a line as `tenants list --output jsonl` writes them
    #[command(
        after_help = "Those that are there already are left as they are, so that it can be repeated.\n\n\
        Examples:\n  billhook tenants import tenants.jsonl\n  \
        echo '{\"tenant_id\":\"ten_1\",\"name\":\"Shop One\",\"stripe_connected_account_id\":\"acct_1\"}' | billhook tenants import -"
    )]
    Import(Import),
}

#[derive(Args, Debug)]
pub(crate) struct Add {
    /// The application's id
    #[arg(value_parser = TenantId::parse)]
    id: TenantId,
    /// What people call it
    #[arg(long)]
    name: Option<String>,
    /// Its connected account at Stripe
    #[arg(long, value_parser = AccountId::parse)]
    account: AccountId,
}

#[derive(Args, Debug)]
pub(crate) struct Show {
    /// The tenant
    id: String,
}

#[derive(Args, Debug)]
pub(crate) struct List {
    /// At most so many
    #[arg(long, default_value_t = 1000)]
    limit: usize,
}

#[derive(Args, Debug)]
pub(crate) struct Import {
    /// The file; - is standard input
    file: PathBuf,
}

/// A tenant as it is added.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct Tenant {
    tenant_id: TenantId,
    name: Option<String>,
    stripe_connected_account_id: AccountId,
}

pub(crate) async fn run(command: Command, session: &Session, output: Output) -> Result<()> {
    match command {
        Command::Add(add) => {
            let tenant = Tenant {
                tenant_id: add.id,
                name: add.name,
                stripe_connected_account_id: add.account,
            };
            put(session, &tenant).await?;
            released(session, &tenant).await?;
        }
        Command::Show(show) => output.one(&TENANTS.row(session, &show.id, false).await?),
        Command::List(list) => {
            let rows = TENANTS.scan(session, &[], list.limit).await?;
            let columns = [
                "tenant_id",
                "name",
                "stripe_connected_account_id",
                "stripe_status",
                "charges_enabled",
                "payouts_enabled",
            ];
            output.list(&columns, &rows);
        }
        Command::Import(import) => {
            let mut text = String::new();
            if import.file.as_os_str() == "-" {
                std::io::stdin().read_to_string(&mut text)?;
            } else {
                text = std::fs::read_to_string(&import.file)
                    .with_context(|| format!("cannot read {}", import.file.display()))?;
            }
            for tenant in tenants(&text)? {
                put(session, &tenant).await?;
                released(session, &tenant).await?;
            }
        }
    }
    Ok(())
}

/// All of them, or the first line that is wrong: nothing is written of a file that cannot be read.
fn tenants(text: &str) -> Result<Vec<Tenant>> {
    let lines = text
        .lines()
        .zip(1..)
        .filter(|(line, _)| !line.trim().is_empty());
    lines
        .map(|(line, number)| {
            serde_json::from_str(line)
                .with_context(|| format!("line {number} is no tenant; nothing was written"))
        })
        .collect()
}

async fn put(session: &Session, tenant: &Tenant) -> Result<()> {
    let (id, account) = (&tenant.tenant_id, &tenant.stripe_connected_account_id);
    let others = session
        .ledger(ProviderId::Stripe)?
        .tenants_by_account(account)
        .await?;
    if let Some(other) = others.iter().find(|other| *other != id) {
        bail!(
            "{account} belongs to {other}: with two tenants its events would be parked as tenant_ambiguous"
        );
    }
    let table = session.stack.output(TENANTS.output)?;
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
        Ok(_) => Output::tell(&format!("added {id}")),
        Err(error) if error.code() == Some("ConditionalCheckFailedException") => {
            if others.is_empty() {
                bail!("{id} is there with another account: billhook tenants show {id}");
            }
            Output::tell(&format!("{id} is there already"));
        }
        Err(error) => return Err(error).with_context(|| format!("cannot write {id} of {table}")),
    }
    Ok(())
}

async fn released(session: &Session, tenant: &Tenant) -> Result<()> {
    let account = &tenant.stripe_connected_account_id;
    let selection = Selection::parked(account, ParkReason::TenantUnknown, SystemClock.now());
    let by = By {
        actor: session.actor().await?,
        reason: format!("tenant {} was added", tenant.tenant_id),
    };
    replay::begin(session, selection, by).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_taken_whole_or_refused_by_its_line() {
        let line = r#"{"tenant_id":"ten_1","name":"One","stripe_connected_account_id":"acct_1","stripe_status":"connected"}"#;
        let read = tenants(&format!("{line}\n\n")).unwrap();
        assert_eq!((read.len(), read[0].tenant_id.as_str()), (1, "ten_1"));
        let error = tenants(&format!("{line}\n{{\"tenant_id\":\"ten_2\"}}\n")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "line 2 is no tenant; nothing was written"
        );
    }
}
