//! Invoices: which orders an invoice belongs to, and which payments pay it. An invoice has no row of the application.
//!
//! Either link may be known first. A session in mode `subscription` names its order and its invoice and no payment; an
//! event of the payment names the invoice and no order. The invoice brings the two together, in whichever order they
//! arrive.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::entity::EntityKey;
use crate::entity::key::{InvoiceKey, PaymentKey};
use crate::entity::merge::{MinRegister, merge_fields};
use crate::entity::schema::{STATE_SCHEMA, StoredState, UnreadableRow};
use crate::time::Timestamp;

#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct InvoiceFacts {
    /// The orders whose session made it, with the time of the first event that says so.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub orders: BTreeMap<EntityKey, MinRegister<Timestamp>>,
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub payments: BTreeSet<PaymentKey>,
}

merge_fields!(InvoiceFacts { orders, payments });

/// An invoice as the worker loaded it.
#[derive(Clone, Debug, PartialEq)]
pub struct InvoiceState {
    pub key: InvoiceKey,
    /// How often it was written; 0 if it has no row yet.
    pub version: i64,
    pub facts: InvoiceFacts,
}

/// An invoice's row as it is stored.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct InvoiceRow {
    pub schema: i64,
    pub version: i64,
    pub facts: InvoiceFacts,
}

impl InvoiceState {
    pub fn new(key: InvoiceKey) -> Self {
        Self {
            key,
            version: 0,
            facts: InvoiceFacts::default(),
        }
    }

    pub fn read(key: InvoiceKey, row: &impl StoredState) -> Result<Self, UnreadableRow> {
        let row: InvoiceRow = row.read()?;
        Ok(Self {
            key,
            version: row.version,
            facts: row.facts,
        })
    }

    pub fn to_row(&self) -> InvoiceRow {
        InvoiceRow {
            schema: STATE_SCHEMA,
            version: self.version,
            facts: self.facts.clone(),
        }
    }
}
