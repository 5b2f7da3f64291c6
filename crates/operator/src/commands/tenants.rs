//! `billhook tenants`: maps connected Stripe accounts to tenants. Adding a tenant replays the events that were parked
//! because their account was unknown.
//!
//! Tenant isolation depends on this table: if an account had two tenants, nobody could say whose orders its events may
//! change, so they would be parked as `tenant_ambiguous`. These commands refuse to create that state, and the platform's own
//! account, whose events have no account.

use std::collections::BTreeSet;
use std::io::Read as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use aws_sdk_dynamodb::error::ProvideErrorMetadata as _;
use aws_sdk_dynamodb::types::{AttributeValue, Update};
use billhook_adapters::clock::SystemClock;
use billhook_adapters::dynamodb::attributes::{Item, string_value};
use billhook_adapters::dynamodb::read_tenant_row;
use billhook_adapters::dynamodb::tenants::build_account_note;
use billhook_core::entity::tenant::{ACCOUNT_COLUMN, MUTED_COLUMN, PREVIOUS_COLUMN, TenantColumns};
use billhook_core::ids::{AccountId, TenantId};
use billhook_core::outcome::ParkReason;
use billhook_core::ports::Clock as _;
use clap::{Args, Subcommand};
use serde::Deserialize;

use crate::account_holders::{AccountHolders, PlatformCheck};
use crate::application_tables::TENANTS;
use crate::audit::AuditContext;
use crate::confirm::ChangeArgs;
use crate::event_filter::EventSelection;
use crate::exit::CommandExit;
use crate::output::{OutputWriter, print_notice};
use crate::replay_run::replay_open_events;
use crate::row_json::RowDetail;
use crate::session::StackSession;
use crate::tenant_mute::{mute_tenant, unmute_tenant};
use crate::tenant_write::write_tenant;

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
        echo '{\"tenant_id\":\"ten_1\",\"name\":\"Shop One\",\"stripe_connected_account_id\":\"acct_1\"}' | billhook tenants import - --reason 'a new customer' --yes"
    )]
    Import(TenantsImportArgs),
    /// Give a tenant another account; late events of the one that it has now still find it
    #[command(
        after_help = "The account that it has now goes into previous_accounts: refunds and disputes of its old payments belong to \
        the tenant.\n\nExample:\n  billhook tenants change-account ten_1 --account acct_2 --reason 'a new Stripe account'"
    )]
    ChangeAccount(TenantsChangeAccountArgs),
    /// Store the events of a tenant's accounts and ignore them, from the next one on
    #[command(
        after_help = "For a tenant that floods the workers or parks events all day. No money is lost: `billhook tenants unmute TENANT --replay` \
        has the ignored events processed.\n\nExample:\n  billhook tenants mute ten_1 --reason 'a loop in their integration' --yes"
    )]
    Mute(TenantsMuteArgs),
    /// Let the events of a muted tenant count again
    #[command(
        after_help = "Events that were ignored stay so, unless --replay has them processed.\n\n\
        Example:\n  billhook tenants unmute ten_1 --replay --reason 'they mended it' --yes"
    )]
    Unmute(TenantsUnmuteArgs),
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
    #[command(flatten)]
    change: ChangeArgs,
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
    #[command(flatten)]
    change: ChangeArgs,
}

#[derive(Args, Debug)]
pub(crate) struct TenantsChangeAccountArgs {
    /// The tenant id
    #[arg(value_parser = TenantId::parse)]
    id: TenantId,
    /// The connected Stripe account that it has from now on
    #[arg(long, value_parser = AccountId::parse)]
    account: AccountId,
    #[command(flatten)]
    change: ChangeArgs,
}

#[derive(Args, Debug)]
pub(crate) struct TenantsMuteArgs {
    /// The tenant id
    #[arg(value_parser = TenantId::parse)]
    id: TenantId,
    #[command(flatten)]
    change: ChangeArgs,
}

#[derive(Args, Debug)]
pub(crate) struct TenantsUnmuteArgs {
    #[command(flatten)]
    of: TenantsMuteArgs,
    /// Have the events processed that were ignored because the tenant was muted
    #[arg(long)]
    replay: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct TenantRecord {
    tenant_id: TenantId,
    name: Option<String>,
    stripe_connected_account_id: AccountId,
    #[serde(default)]
    previous_accounts: BTreeSet<AccountId>,
}

impl TenantRecord {
    fn columns(&self) -> TenantColumns {
        TenantColumns {
            is_muted: false,
            account: Some(self.stripe_connected_account_id.clone()),
            previous: self.previous_accounts.clone(),
        }
    }
}

/// What an account must not be.
struct AccountChecks {
    holders: AccountHolders,
    platform: PlatformCheck,
}

impl AccountChecks {
    async fn load(session: &StackSession) -> Result<Self> {
        Ok(Self {
            holders: AccountHolders::load(session).await?,
            platform: PlatformCheck::load(session).await,
        })
    }

    fn check(&self, account: &AccountId, tenant: &TenantId) -> Result<(), CommandExit> {
        self.platform.check(account)?;
        self.holders.check_free(account, tenant.as_str())
    }
}

pub(crate) async fn run_tenants(
    command: TenantsCommand,
    session: &StackSession,
    output: OutputWriter,
) -> Result<()> {
    match command {
        TenantsCommand::Add(add) => {
            let what = format!(
                "the tenant {} would be added, with {}, and its parked events reprocessed",
                add.id, add.account
            );
            let audit = add.change.confirm(session, &what, Some(1)).await?;
            let tenant = TenantRecord {
                tenant_id: add.id,
                name: add.name,
                stripe_connected_account_id: add.account,
                previous_accounts: BTreeSet::new(),
            };
            let mut checks = AccountChecks::load(session).await?;
            add_tenant(session, &tenant, &mut checks).await?;
            release_events_of(session, &tenant, &audit).await?;
        }
        TenantsCommand::ChangeAccount(change) => change_account(session, change).await?,
        TenantsCommand::Mute(TenantsMuteArgs { id, change }) => {
            mute_tenant(session, &id, &change).await?;
        }
        TenantsCommand::Unmute(unmute) => {
            unmute_tenant(session, &unmute.of.id, &unmute.of.change, unmute.replay).await?;
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
                "previous_accounts",
                "stripe_status",
                "charges_enabled",
                "payouts_enabled",
                MUTED_COLUMN,
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
            let tenants = parse_tenants(&text)?;
            let count = tenants.len();
            let what = format!(
                "{count} tenants would be added unless they exist, and their parked events reprocessed"
            );
            let audit = import.change.confirm(session, &what, Some(count)).await?;
            let mut checks = AccountChecks::load(session).await?;
            for tenant in &tenants {
                add_tenant(session, tenant, &mut checks).await?;
                release_events_of(session, tenant, &audit).await?;
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

async fn add_tenant(
    session: &StackSession,
    tenant: &TenantRecord,
    checks: &mut AccountChecks,
) -> Result<()> {
    let (id, account) = (&tenant.tenant_id, &tenant.stripe_connected_account_id);
    for account in tenant.columns().accounts() {
        checks.check(account, id)?;
    }
    let table = TENANTS.name(session)?;
    let mut item = Item::from([
        ("tenant_id".to_owned(), string_value(id.as_str())),
        (ACCOUNT_COLUMN.to_owned(), string_value(account.as_str())),
    ]);
    if let Some(name) = &tenant.name {
        item.insert("name".to_owned(), string_value(name));
    }
    if !tenant.previous_accounts.is_empty() {
        let previous = set_value(&tenant.previous_accounts);
        item.insert(PREVIOUS_COLUMN.to_owned(), previous);
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
            if !checks.holders.is_present(account, id.as_str()) {
                bail!(
                    "{id} already exists with another account: see `billhook tenants show {id}`, or give it this one with `billhook tenants change-account {id} --account {account} --reason …`"
                );
            }
            print_notice(&format!("{id} already exists"));
        }
        Err(error) => return Err(error).with_context(|| format!("cannot write {id} to {table}")),
    }
    checks.holders.add(id.as_str(), &tenant.columns());
    let entities = session.stack.output("EntitiesTable")?;
    for previous in &tenant.previous_accounts {
        let note = build_account_note(entities, previous, id, None)?;
        write_tenant(session, vec![note])
            .await
            .context("cannot write the tenant's accounts")?;
    }
    Ok(())
}

fn set_value(accounts: &BTreeSet<AccountId>) -> AttributeValue {
    AttributeValue::Ss(accounts.iter().map(ToString::to_string).collect())
}

/// Writes the tenant's row and the notes of the accounts that it had, all or nothing.
async fn change_account(session: &StackSession, args: TenantsChangeAccountArgs) -> Result<()> {
    let (id, account) = (&args.id, &args.account);
    let checks = AccountChecks::load(session).await?;
    checks.check(account, id)?;
    let table = TENANTS.name(session)?;
    let get = session.dynamodb.get_item().table_name(table);
    let read = get
        .key(TENANTS.key(), string_value(id.as_str()))
        .consistent_read(true)
        .send()
        .await;
    let read = read.with_context(|| format!("cannot read {id} from {table}"))?;
    let stack = &session.stack.name;
    let row = read
        .item
        .ok_or_else(|| CommandExit::NotFound(format!("there is no tenant {id} in {stack}")))?;
    let was = read_tenant_row(&row);
    let next = with_account(&was, account);
    let what = format!("{id} would have {account}, and its parked events would be reprocessed");
    let audit = args.change.confirm(session, &what, Some(1)).await?;
    if next != was {
        let note = audit.build_note("change-account", SystemClock.now(), None);
        let entities = session.stack.output("EntitiesTable")?;
        let mut updates = vec![build_account_change(table, id, &row, &next)?];
        for previous in &next.previous {
            updates.push(build_account_note(
                entities,
                previous,
                id,
                Some(note.clone()),
            )?);
        }
        write_tenant(session, updates)
            .await
            .context("cannot write the tenant's accounts")?;
    }
    print_notice(&match next.previous.is_empty() {
        true => format!("{id} has {account} now"),
        false => {
            let previous: Vec<&str> = next.previous.iter().map(AccountId::as_str).collect();
            let previous = previous.join(", ");
            format!("{id} has {account} now; late events of {previous} still belong to it")
        }
    });
    for account in next.accounts() {
        release_parked_events(session, account, &audit).await?;
    }
    Ok(())
}

/// The account that it gets may be one that it had before.
fn with_account(was: &TenantColumns, account: &AccountId) -> TenantColumns {
    let mut previous = was.previous.clone();
    previous.extend(was.account.clone());
    previous.remove(account);
    TenantColumns {
        account: Some(account.clone()),
        previous,
        is_muted: was.is_muted,
    }
}

/// The write of the tenant's two columns, on condition that they are as they were read. Previous accounts keep the form that
/// the application gave them.
fn build_account_change(
    table: &str,
    id: &TenantId,
    row: &Item,
    next: &TenantColumns,
) -> Result<Update> {
    let account = next.account.as_ref().map(ToString::to_string);
    let mut update = Update::builder()
        .table_name(table)
        .key(TENANTS.key(), string_value(id.as_str()))
        .expression_attribute_names("#account", ACCOUNT_COLUMN)
        .expression_attribute_names("#previous", PREVIOUS_COLUMN)
        .expression_attribute_values(":account", string_value(account.unwrap_or_default()));
    let mut conditions = vec![format!("attribute_exists({})", TENANTS.key())];
    for (name, value) in [("account", ACCOUNT_COLUMN), ("previous", PREVIOUS_COLUMN)] {
        match row.get(value) {
            Some(found) => {
                conditions.push(format!("#{name} = :found_{name}"));
                update =
                    update.expression_attribute_values(format!(":found_{name}"), found.clone());
            }
            None => conditions.push(format!("attribute_not_exists(#{name})")),
        }
    }
    let previous = match row.get(PREVIOUS_COLUMN) {
        Some(AttributeValue::L(_)) => {
            let accounts = next.previous.iter().map(ToString::to_string);
            Some(AttributeValue::L(accounts.map(string_value).collect()))
        }
        // A set is never empty.
        _ => (!next.previous.is_empty()).then(|| set_value(&next.previous)),
    };
    let expression = match previous {
        Some(previous) => {
            update = update.expression_attribute_values(":previous", previous);
            "SET #account = :account, #previous = :previous"
        }
        None => "SET #account = :account REMOVE #previous",
    };
    let update = update
        .update_expression(expression)
        .condition_expression(conditions.join(" AND "));
    Ok(update.build()?)
}

async fn release_events_of(
    session: &StackSession,
    tenant: &TenantRecord,
    audit: &AuditContext,
) -> Result<()> {
    for account in tenant.columns().accounts() {
        release_parked_events(session, account, audit).await?;
    }
    Ok(())
}

async fn release_parked_events(
    session: &StackSession,
    account: &AccountId,
    audit: &AuditContext,
) -> Result<()> {
    let selection =
        EventSelection::parked_for(account, ParkReason::TenantUnknown, SystemClock.now());
    replay_open_events(session, selection, audit).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn columns(present: &str, previous: &[&str]) -> TenantColumns {
        let account = |id: &&str| AccountId::parse(id).unwrap();
        TenantColumns {
            is_muted: false,
            account: Some(account(&present)),
            previous: previous.iter().map(account).collect(),
        }
    }

    #[test]
    fn the_account_that_a_tenant_had_becomes_a_previous_one_and_can_come_back() {
        let account = |id: &str| AccountId::parse(id).unwrap();
        let first = columns("acct_1", &[]);
        let second = with_account(&first, &account("acct_2"));
        assert_eq!(second, columns("acct_2", &["acct_1"]));
        assert_eq!(with_account(&second, &account("acct_2")), second);
        let back = with_account(&second, &account("acct_1"));
        assert_eq!(back, columns("acct_1", &["acct_2"]));
    }

    #[test]
    fn a_change_holds_both_columns_as_read_and_keeps_a_list_a_list() {
        let id = TenantId::parse("ten_1").unwrap();
        let next = columns("acct_3", &["acct_1", "acct_2"]);
        let list = AttributeValue::L(vec![string_value("acct_1")]);
        for (previous, condition) in [
            (None, "attribute_not_exists(#previous)"),
            (Some(list.clone()), "#previous = :found_previous"),
        ] {
            let mut row = Item::from([(ACCOUNT_COLUMN.to_owned(), string_value("acct_2"))]);
            row.extend(
                previous
                    .clone()
                    .map(|list| (PREVIOUS_COLUMN.to_owned(), list)),
            );
            let update = build_account_change("tenants", &id, &row, &next).unwrap();
            let conditions = update.condition_expression().unwrap();
            assert!(conditions.contains(condition), "{conditions}");
            assert!(
                conditions.contains("#account = :found_account"),
                "{conditions}"
            );
            let written = &update.expression_attribute_values().unwrap()[":previous"];
            assert_eq!(written.is_l(), previous.is_some());
        }
        let none = build_account_change("tenants", &id, &Item::new(), &columns("acct_1", &[]));
        assert!(
            none.unwrap()
                .update_expression()
                .ends_with("REMOVE #previous")
        );
    }

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
