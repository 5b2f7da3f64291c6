//! The entity kind tenant: its table and its columns, and how they follow from the facts of its connected account.
//!
//! `stripe_connected_account_id` is the basis of tenant isolation: it says which tenant a connected account belongs to.
//! `previous_accounts` has the accounts that the tenant had before: their refunds and disputes still come. What an index
//! says about both is only a hint ([`AccountHits`]); the row decides ([`find_account_tenant`]).
//! `worker::resolve` finds the tenant by it and compares it with the entity's.

use std::collections::{BTreeMap, BTreeSet};

use crate::entity::account::{AccountFacts, DerivedAccount, derive_account};
use crate::entity::columns::ColumnOwner::{Application, Billhook, Both};
use crate::entity::columns::ColumnType::{Bool, Integer, Text, TextSet};
use crate::entity::columns::{
    ColumnValue, ColumnWrites, EntityColumn, EntityIndex, EntitySchema, RowColumns, VERSION,
    describe_column as column, read_id,
};
use crate::entity::key::TENANT;
use crate::entity::kind::{EntityKind, StatedFacts};
use crate::entity::merge::Merge as _;
use crate::entity::payment::derive::PaymentRules;
use crate::entity::schema::{LastDerived, RowIdentity};
use crate::ids::{AccountId, TenantId};
use crate::outcome::ParkReason;

/// The column of the connected account, and the name of its index.
pub const ACCOUNT_COLUMN: &str = "stripe_connected_account_id";
/// The column of the accounts that the tenant had before.
pub const PREVIOUS_COLUMN: &str = "previous_accounts";
/// Since when the events of the tenant's accounts are ignored. Its name says whose it is: an application may have a column
/// `muted` that means something else, and its money must not be ignored for that.
pub const MUTED_COLUMN: &str = "billhook_muted_at";

#[rustfmt::skip]
const COLUMNS: &[EntityColumn] = &[
    column("tenant_id", Text, Application, ""),
    column("name", Text, Application, "billhook only shows it"),
    column(ACCOUNT_COLUMN, Text, Application, "the connected account; key of an index of the same name"),
    column(PREVIOUS_COLUMN, TextSet, Application, "the accounts that it had before, as a set or a list: their late events still find the tenant"),
    column("charges_enabled", Bool, Billhook, ""),
    column("payouts_enabled", Bool, Billhook, ""),
    column("stripe_status", Text, Billhook, "`connected`, `restricted` or `deauthorized`"),
    column(MUTED_COLUMN, Text, Billhook, "since when the events of its accounts are ignored (`billhook tenants mute`); absent while they count"),
    column("created_at", Text, Application, "like an order's `createdAt`"),
    column("updated_at", Text, Both, "like an order's `updatedAt`"),
    column(VERSION, Integer, Billhook, "like an order's"),
];

#[derive(Clone, Debug, PartialEq)]
pub enum TenantKind {}

/// The columns that billhook reads.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct TenantColumns {
    pub account: Option<AccountId>,
    pub previous: BTreeSet<AccountId>,
    pub is_muted: bool,
}

impl TenantColumns {
    /// The account that it has, and those that it had before.
    pub fn accounts(&self) -> impl Iterator<Item = &AccountId> {
        self.account.iter().chain(&self.previous)
    }
}

/// A tenant that may have an account.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TenantHit {
    Tenant(TenantId),
    /// A row with the account, read consistently, whose tenant's id is not valid. No event can be assigned to it, and it
    /// makes another tenant's claim to the account ambiguous.
    Unreadable(String),
}

/// Which tenants may have an account. Only a hint: an index lags behind its table.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct AccountHits {
    /// Those that have it now, as far as the index shows.
    pub present: BTreeSet<TenantHit>,
    /// Those that had it before, by the note that billhook keeps of it; asked for only if none has it now.
    pub previous: BTreeSet<TenantHit>,
    /// They were remembered, and the index may say something else by now.
    pub is_cached: bool,
}

impl AccountHits {
    pub fn is_empty(&self) -> bool {
        self.present.is_empty() && self.previous.is_empty()
    }

    pub fn tenants(&self) -> impl Iterator<Item = &TenantId> {
        let hits = self.present.iter().chain(&self.previous);
        hits.filter_map(|hit| match hit {
            TenantHit::Tenant(tenant) => Some(tenant),
            TenantHit::Unreadable(_) => None,
        })
    }
}

/// The tenant of an account: of the hits, the one whose row bears it. The account's present tenant comes before one that
/// had it before. A hit that its row does not confirm is no tenant, also not if it once had the account: somebody moved the
/// account a moment ago, and nobody can say yet whose its events are.
///
/// Example: the application moves `acct_1` from `ten_a` to `ten_b`, and the index still returns `ten_a`. Its row says
/// otherwise, so the event waits as `tenant_unknown` until the index returns `ten_b`.
pub fn find_account_tenant(
    account: &AccountId,
    hits: &AccountHits,
    rows: &BTreeMap<TenantId, TenantColumns>,
) -> Result<TenantId, ParkReason> {
    let (asked, bears): (_, fn(&TenantColumns, &AccountId) -> bool) = match hits.present.is_empty()
    {
        false => (&hits.present, |row, account| {
            row.account.as_ref() == Some(account)
        }),
        true => (&hits.previous, |row, account| {
            row.previous.contains(account)
        }),
    };
    let mut confirmed = asked.iter().filter(|hit| match hit {
        TenantHit::Tenant(tenant) => rows.get(tenant).is_some_and(|row| bears(row, account)),
        TenantHit::Unreadable(_) => true,
    });
    match (confirmed.next(), confirmed.next()) {
        (Some(TenantHit::Tenant(tenant)), None) => Ok(tenant.clone()),
        (None, _) | (Some(TenantHit::Unreadable(_)), None) => Err(ParkReason::TenantUnknown),
        (Some(_), Some(_)) => Err(ParkReason::TenantAmbiguous),
    }
}

/// The columns of a tenant's row that say which accounts it has, and whether their events count.
pub fn read_tenant_columns(row: &impl RowColumns) -> TenantColumns {
    TenantColumns {
        is_muted: row.text(MUTED_COLUMN).is_some(),
        ..read_accounts(row)
    }
}

fn read_accounts(row: &impl RowColumns) -> TenantColumns {
    let previous = row.texts(PREVIOUS_COLUMN).into_iter();
    TenantColumns {
        account: read_id(row, ACCOUNT_COLUMN, AccountId::parse),
        previous: previous
            .filter_map(|id| AccountId::parse(&id).ok())
            .collect(),
        is_muted: false,
    }
}

impl EntityKind for TenantKind {
    type Id = TenantId;
    type Given = TenantColumns;
    type Facts = AccountFacts;
    type Derived = DerivedAccount;

    const SCHEMA: EntitySchema = EntitySchema {
        word: TENANT,
        table: "Tenants",
        key: "tenant_id",
        tenant: "tenant_id",
        payment_intent: None,
        indexes: &[EntityIndex {
            name: ACCOUNT_COLUMN,
            key: ACCOUNT_COLUMN,
        }],
        amount_due: None,
        amount_refunded: None,
        review_reasons: None,
        created_at: Some("created_at"),
        updated_at: "updated_at",
        guarded: &[
            ACCOUNT_COLUMN,
            PREVIOUS_COLUMN,
            "charges_enabled",
            "payouts_enabled",
            "stripe_status",
        ],
        columns: COLUMNS,
    };
    /// The index still lists the tenant, but the row was deleted.
    const UNKNOWN: ParkReason = ParkReason::TenantUnknown;

    fn take_facts(facts: &mut AccountFacts, stated: StatedFacts) {
        if let StatedFacts::Account(account) = stated {
            facts.merge(account);
        }
    }

    fn read_given(row: &impl RowColumns) -> TenantColumns {
        read_accounts(row)
    }

    fn remember_given(_: &RowIdentity) -> TenantColumns {
        TenantColumns::default()
    }

    fn derive(facts: &AccountFacts, given: &TenantColumns, _: PaymentRules<'_>) -> DerivedAccount {
        derive_account(facts, given.account.as_ref())
    }

    fn write_columns(account: &DerivedAccount, _: &LastDerived) -> ColumnWrites {
        let mut columns = vec![("stripe_status", ColumnValue::text(account.status.as_str()))];
        if let Some(able) = account.capabilities {
            let truth = |truth| Some(ColumnValue::Bool(truth));
            columns.push(("charges_enabled", truth(able.charges_enabled)));
            columns.push(("payouts_enabled", truth(able.payouts_enabled)));
        }
        columns
    }

    fn account(derived: &DerivedAccount) -> Option<&DerivedAccount> {
        Some(derived)
    }
}
