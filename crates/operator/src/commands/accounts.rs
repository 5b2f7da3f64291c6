//! `billhook accounts`: which connected accounts have the most events.

use anyhow::{Context as _, Result};
use billhook_adapters::clock::SystemClock;
use billhook_adapters::dynamodb::attributes::{read_text, string_value};
use billhook_core::entity::tenant::ACCOUNT_COLUMN;
use billhook_core::ids::ProviderId;
use billhook_core::ports::Clock as _;
use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use crate::application_tables::TENANTS;
use crate::event_filter::EventFilter;
use crate::events_table::AccountCounts;
use crate::output::{OutputWriter, print_notice};
use crate::session::StackSession;
use crate::time_argument::TimeArgument;

const COLUMNS: [&str; 9] = [
    "account",
    "tenant",
    "events",
    "share",
    "processed",
    "ignored",
    "parked",
    "failed",
    "pending",
];

#[derive(Debug, Subcommand)]
pub(crate) enum AccountsCommand {
    /// Count Stripe events by connected account and outcome, most events first
    #[command(
        after_help = "Reads the index of arrivals and no event: one read unit for about 40 events.\n\n\
        Examples:\n  billhook accounts top\n  billhook accounts top --since 7d --output json"
    )]
    Top(AccountsTopArgs),
}

#[derive(Args, Debug)]
pub(crate) struct AccountsTopArgs {
    /// Count the events received since then: 30m, 12h or 7d ago, a day, or an RFC 3339 time
    #[arg(long, value_parser = TimeArgument::parse, default_value = "24h")]
    since: TimeArgument,
    /// Show at most this many accounts
    #[arg(long, default_value_t = 10)]
    limit: usize,
    /// Read about this many events at most; of more, the newest are counted
    #[arg(long, default_value_t = 100_000)]
    most: usize,
}

pub(crate) async fn run_accounts(
    command: AccountsCommand,
    session: &StackSession,
    output: OutputWriter,
) -> Result<()> {
    let AccountsCommand::Top(top) = command;
    let now = SystemClock.now();
    let since = top.since.resolve(now);
    let selection = EventFilter::received_since(top.since).resolve(Vec::new(), now);
    let events = session.events_table(ProviderId::Stripe)?;
    let counts = events.count_accounts(&selection, top.most).await?;
    let mut rows = rank_accounts(&counts);
    let accounts = rows.len();
    rows.truncate(top.limit);
    for row in &mut rows {
        let account = row["account"].as_str().unwrap_or_default().to_owned();
        row["tenant"] = json!(find_tenants(session, &account).await?);
    }
    let whole = json!({ "since": since.to_string(), "until": now.to_string(), "events": counts.entries,
        "accounts": accounts, "queries": counts.queries, "is_cut": counts.is_cut, "top": rows });
    output.print_report(&COLUMNS, &rows, &whole);
    let (entries, queries) = (counts.entries, counts.queries);
    let cut = match counts.is_cut {
        true => "; there are more, so only the newest are counted: pass --most, or a later --since",
        false => "",
    };
    print_notice(&format!(
        "{entries} events of {accounts} accounts since {since}, read with {queries} queries{cut}"
    ));
    Ok(())
}

/// A row for each account, most events first.
fn rank_accounts(counts: &AccountCounts) -> Vec<Value> {
    let total: u64 = counts.by_account.values().flat_map(|of| of.values()).sum();
    let mut ranked: Vec<(u64, Value)> = Vec::new();
    for (account, outcomes) in &counts.by_account {
        let events: u64 = outcomes.values().sum();
        let tenths = events.saturating_mul(1000) / total.max(1);
        let mut row = Map::from_iter([
            ("account".to_owned(), json!(account)),
            ("events".to_owned(), json!(events)),
            (
                "share".to_owned(),
                json!(format!("{}.{} %", tenths / 10, tenths % 10)),
            ),
        ]);
        for outcome in ["processed", "ignored", "parked", "failed", "pending"] {
            let events = outcomes.get(outcome).copied().unwrap_or(0);
            row.insert(outcome.to_owned(), json!(events));
        }
        ranked.push((events, Value::Object(row)));
    }
    ranked.sort_by_key(|(events, _)| std::cmp::Reverse(*events));
    ranked.into_iter().map(|(_, row)| row).collect()
}

/// The tenants that the index names for an account; none for the platform.
async fn find_tenants(session: &StackSession, account: &str) -> Result<Option<String>> {
    if account == "platform" {
        return Ok(None);
    }
    let table = TENANTS.name(session)?;
    let found = session
        .dynamodb
        .query()
        .table_name(table)
        .index_name(ACCOUNT_COLUMN)
        .key_condition_expression("#account = :account")
        .expression_attribute_names("#account", ACCOUNT_COLUMN)
        .expression_attribute_values(":account", string_value(account))
        .send()
        .await
        .with_context(|| format!("cannot query {ACCOUNT_COLUMN} of {table}"))?;
    let tenants = found.items().iter();
    let tenants: Vec<&str> = tenants
        .filter_map(|row| read_text(row, TENANTS.key()))
        .collect();
    Ok((!tenants.is_empty()).then(|| tenants.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_are_ranked_by_their_events_with_their_share() {
        let of = |outcomes: &[(&str, u64)]| {
            let outcomes = outcomes.iter();
            outcomes
                .map(|(outcome, events)| ((*outcome).to_owned(), *events))
                .collect()
        };
        let counts = AccountCounts {
            by_account: [
                ("acct_1".to_owned(), of(&[("processed", 1)])),
                ("acct_2".to_owned(), of(&[("parked", 900), ("ignored", 97)])),
                ("platform".to_owned(), of(&[("processed", 2)])),
            ]
            .into(),
            ..AccountCounts::default()
        };
        let rows = rank_accounts(&counts);
        let shown: Vec<_> = rows
            .iter()
            .map(|row| (&row["account"], &row["events"], &row["share"]))
            .collect();
        assert_eq!(
            shown,
            [
                (&json!("acct_2"), &json!(997), &json!("99.7 %")),
                (&json!("platform"), &json!(2), &json!("0.2 %")),
                (&json!("acct_1"), &json!(1), &json!("0.1 %")),
            ]
        );
        assert_eq!(
            (&rows[0]["parked"], &rows[0]["processed"]),
            (&json!(900), &json!(0))
        );
    }
}
