//! The entity kind tenant: its table and its columns, and how they follow from the facts of its connected account.
//!
//! `stripe_connected_account_id` is the basis of tenant isolation: it says which tenant a connected account belongs to.
//! `worker::resolve` finds the tenant by it and compares it with the entity's.

use crate::entity::account::{AccountFacts, DerivedAccount, derive_account};
use crate::entity::columns::ColumnOwner::{Application, Billhook, Both};
use crate::entity::columns::ColumnType::{Bool, Integer, Text};
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

#[rustfmt::skip]
const COLUMNS: &[EntityColumn] = &[
    column("tenant_id", Text, Application, ""),
    column("name", Text, Application, "billhook only shows it"),
    column(ACCOUNT_COLUMN, Text, Application, "the connected account; key of an index of the same name"),
    column("charges_enabled", Bool, Billhook, ""),
    column("payouts_enabled", Bool, Billhook, ""),
    column("stripe_status", Text, Billhook, "`connected`, `restricted` or `deauthorized`"),
    column("created_at", Text, Application, "like an order's `createdAt`"),
    column("updated_at", Text, Both, "like an order's `updatedAt`"),
    column(VERSION, Integer, Billhook, "like an order's"),
];

#[derive(Clone, Debug, PartialEq)]
pub enum TenantKind {}

/// The columns of the application that billhook reads.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct TenantColumns {
    pub account: Option<AccountId>,
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
        TenantColumns {
            account: read_id(row, ACCOUNT_COLUMN, AccountId::parse),
        }
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
