//! Entities: orders, statements and tenants. This module has the one path by which facts change a row,
//! [`Entity::apply_facts`]: find manual edits, merge facts, derive columns.
//!
//! The row is an entity state (facts and a version) plus a projection (the columns that billhook derives from it).
//! `apply_facts` is pure and idempotent: applying the same facts again gives the same row, so that redelivery, replay
//! and a lost race are harmless. It guarantees nothing about concurrent writers; `worker` writes under an optimistic
//! lock. Read next: `merge`, then `payment::derive` and `mail::derive`.

pub mod mail;
pub mod merge;
pub mod order;
pub mod payment;
pub mod schema;
pub mod statement;
pub mod tenant;
pub mod timeline;

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::entity::mail::derive::{DerivedMail, derive_mail};
use crate::entity::mail::facts::MailFacts;
use crate::entity::merge::{Merge, MinRegister, merge_fields};
use crate::entity::order::OrderStatus;
use crate::entity::payment::derive::{DerivedPayment, derive_payment};
use crate::entity::payment::facts::PaymentFacts;
use crate::entity::payment::status::PaymentStatus;
use crate::entity::schema::{GuardedColumns, LastDerived};
use crate::entity::statement::derive_statement_columns;
use crate::entity::tenant::{AccountFacts, DerivedAccount, derive_account};
use crate::entity::timeline::DerivedEntry;
use crate::ids::{
    AccountId, CheckoutSessionId, OrderId, PaymentIntentId, PieceId, StatementId, TenantId, UserId,
};
use crate::money::Money;
use crate::time::Timestamp;

/// The table and the key of a row that the application owns.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EntityKey {
    Order(OrderId),
    Statement(StatementId),
    Tenant(TenantId),
}

impl EntityKey {
    /// Reads what `Display` prints, such as `order#ord_1`: the form in the payments table.
    pub fn parse(text: &str) -> Option<Self> {
        match text.split_once('#')? {
            ("order", id) => OrderId::parse(id).ok().map(Self::Order),
            ("statement", id) => StatementId::parse(id).ok().map(Self::Statement),
            ("tenant", id) => TenantId::parse(id).ok().map(Self::Tenant),
            _ => None,
        }
    }

    pub fn id(&self) -> &str {
        match self {
            Self::Order(id) => id.as_str(),
            Self::Statement(id) => id.as_str(),
            Self::Tenant(id) => id.as_str(),
        }
    }
}

impl fmt::Display for EntityKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Order(id) => write!(f, "order#{id}"),
            Self::Statement(id) => write!(f, "statement#{id}"),
            Self::Tenant(id) => write!(f, "tenant#{id}"),
        }
    }
}

/// All facts of an entity: an order has payments, a statement has payments and letters, a tenant has its account.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct EntityFacts {
    /// From Stripe's events, the cleanup and manual edits.
    #[serde(flatten)]
    pub payment: PaymentFacts,
    #[serde(flatten)]
    pub mail: MailFacts,
    #[serde(flatten)]
    pub account: AccountFacts,
}

merge_fields!(EntityFacts {
    payment,
    mail,
    account
});

/// A row as the worker loaded it.
#[derive(Clone, Debug, PartialEq)]
pub struct Entity {
    pub key: EntityKey,
    /// How often billhook has written the row; 0 if only the application wrote it. Part of the optimistic lock.
    pub version: i64,
    /// `None` if the row belongs to the platform itself.
    pub tenant: Option<TenantId>,
    /// The amount that the application asks for; `None` if its amount or its currency column is missing.
    pub due: Option<Money>,
    pub intent: Option<PaymentIntentId>,
    pub session: Option<CheckoutSessionId>,
    /// A string and not a [`UserId`]: an application may have ids that are not in our alphabet ("Pat Sample"). billhook
    /// once read such an id as missing and overwrote it.
    pub user: Option<String>,
    /// A statement's `lob_letter_id`.
    pub piece: Option<PieceId>,
    /// A tenant's connected account.
    pub account: Option<AccountId>,
    /// The columns as they are in the row now. A difference from `derived` is a manual edit.
    pub columns: GuardedColumns,
    /// The columns as billhook derived them at its last write.
    pub derived: LastDerived,
    pub facts: EntityFacts,
}

/// The row after new facts: everything that the ledger writes.
#[derive(Clone, Debug, PartialEq)]
pub struct EntityUpdate {
    /// Old facts, new facts and manual edits, merged.
    pub facts: EntityFacts,
    pub payment: DerivedPayment,
    pub mail: DerivedMail,
    pub account: DerivedAccount,
    pub derived: LastDerived,
    /// Manual edits that are not repairs and are overwritten; logged as `edit_overruled`.
    pub discarded_edits: Vec<DiscardedEdit>,
}

/// A manual edit that the next write overwrites.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiscardedEdit {
    /// The name in `derived`, such as `paymentStatus`.
    pub column: &'static str,
    pub found: String,
    pub written: String,
}

/// Something that a write changes about an entity, for metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntityChange {
    Completed,
    Cancelled,
    PaymentFailed,
    RefundedInFull,
    /// The row needs review now and did not before; a second reason is no change.
    RequiresReview,
    /// Also for a second mismatch, because that adds a reason.
    AmountMismatch,
    PaidAfterCancel,
    /// A letter failed, was rejected, came back or has an issue.
    NeedsAttention,
}

impl EntityUpdate {
    /// What this write changes. Columns are compared with the row as it was read, not as billhook last derived it: if a
    /// person already set `status` to `cancelled`, the write repeats the word and counts nothing.
    pub fn changes(&self, was: &Entity) -> Vec<EntityChange> {
        let (old, new) = (&was.columns, &self.derived.columns);
        let became = |new: &Option<String>, old: &Option<String>, word: &str| {
            new.as_deref() == Some(word) && new != old
        };
        let status = |status: OrderStatus| became(&new.status, &old.status, status.as_str());
        let payment = |status: PaymentStatus| {
            became(&new.payment_status, &old.payment_status, status.as_str())
        };
        let holds = |new: Option<bool>, old: Option<bool>| new == Some(true) && old != new;
        let reason = |reason: &str| {
            let known = &was.derived.review_reasons;
            let added = |hint: &&String| !known.contains(hint);
            let mut added = self.derived.review_reasons.iter().filter(added);
            added.any(|hint| hint.split(':').next() == Some(reason))
        };
        [
            (EntityChange::Completed, status(OrderStatus::Completed)),
            (EntityChange::Cancelled, status(OrderStatus::Cancelled)),
            (EntityChange::PaymentFailed, payment(PaymentStatus::Failed)),
            (
                EntityChange::RefundedInFull,
                payment(PaymentStatus::Refunded),
            ),
            (
                EntityChange::RequiresReview,
                holds(new.requires_review, old.requires_review),
            ),
            (EntityChange::AmountMismatch, reason("amount_mismatch")),
            (EntityChange::PaidAfterCancel, reason("paid_after_cancel")),
            (
                EntityChange::NeedsAttention,
                holds(new.needs_attention, old.needs_attention),
            ),
        ]
        .into_iter()
        .filter_map(|(change, is_new)| is_new.then_some(change))
        .collect()
    }

    /// The derived entries of payments and letters together, not sorted.
    pub fn timeline(&self) -> Vec<DerivedEntry> {
        self.payment
            .timeline
            .iter()
            .chain(&self.mail.timeline)
            .cloned()
            .collect()
    }
}

impl Entity {
    /// Facts → merge → derive. `now` dates the manual edits found here; nothing else depends on it.
    pub fn apply_facts(&self, mut new: EntityFacts, now: Timestamp) -> EntityUpdate {
        // Some applications put the order's id into `client_reference_id`. It is not a user: without this line `ord_1`
        // ended up in `userId` if the session's metadata did not repeat the order's id.
        let is_own = |hint: &mut MinRegister<UserId>| hint.0.as_str() == self.key.id();
        new.payment.reference.take_if(is_own);
        let mut facts = self.facts.clone();
        facts.merge(self.find_manual_edits(&new, now));
        facts.merge(new);
        let payment = derive_payment(&facts.payment, self.due);
        let mail = derive_mail(&facts.mail, self.piece.as_ref());
        let account = derive_account(&facts.account, self.account.as_ref());
        let columns = match self.key {
            EntityKey::Tenant(_) => GuardedColumns::default(),
            EntityKey::Order(_) => GuardedColumns {
                status: Some(payment.status.as_str().to_owned()),
                ..GuardedColumns::of_payment(&payment)
            },
            EntityKey::Statement(_) => {
                derive_statement_columns(&facts.payment, &payment, &facts.mail, &mail)
            }
        };
        // These columns have two writers. We write one only if it is empty or still has the value that we wrote last; a
        // value that the application wrote stays.
        let is_our_intent = self.intent.is_none() || self.intent == self.derived.intent;
        let our_user = self.derived.user.as_ref().map(UserId::as_str);
        let is_our_user = self.user.is_none() || self.user.as_deref() == our_user;
        let is_our_session = self.session.is_none() || self.session == self.derived.session;
        let derived = LastDerived {
            columns,
            review_reasons: payment.review_reasons.iter().cloned().collect(),
            intent: payment.intent.clone().filter(|_| is_our_intent),
            session: payment.session.clone().filter(|_| is_our_session),
            user: payment.user.clone().filter(|_| is_our_user),
        };
        EntityUpdate {
            facts,
            payment,
            mail,
            account,
            discarded_edits: self.discarded_edits(&derived.columns),
            derived,
        }
    }

    /// Manual edits that are not repairs: somebody changed the column since our last write, and we write another value.
    ///
    /// Example: we derived `payment_failed`, somebody set `pending`, now a payment arrives and we write `completed`:
    /// the edit is lost, so we log it. If somebody set `completed` before the event arrived, nothing is lost. A column
    /// that we never wrote is compared with its initial value: `pending` on a new order is no edit, `draft` is one.
    /// `requiresReview` is left out, because clearing and flagging are repairs. A new reason on a cleared row was once
    /// logged as `edit_overruled`, which sent people looking for a fault.
    fn discarded_edits(&self, next: &GuardedColumns) -> Vec<DiscardedEdit> {
        let columns = self
            .columns
            .by_name()
            .into_iter()
            .zip(self.derived.columns.by_name())
            .zip(next.by_name());
        columns
            .filter_map(|(((column, found), (_, was)), (_, written))| {
                let was = was.or_else(|| GuardedColumns::initial(column));
                let is_overruled =
                    found.is_some() && written.is_some() && found != was && found != written;
                is_overruled.then(|| DiscardedEdit {
                    column,
                    found: found.unwrap_or_default(),
                    written: written.unwrap_or_default(),
                })
            })
            .collect()
    }

    /// Finds the manual edits that stand (repairs) and returns them as facts.
    ///
    /// How: `derived` is what billhook last wrote, `columns` is what the row says now. If they differ, somebody else
    /// wrote the column. The optimistic lock includes these columns, so an edit between our read and our write makes
    /// the write fail, and the next round finds it here.
    ///
    /// Why as facts: every column is derived from facts at every write, so anything that is not a fact is overwritten.
    /// Example: a person refunds by bank transfer and sets `status` to `refunded`. The next event, a late
    /// `payment_intent.payment_failed`, derives `completed` from the payment. With the fact `manual.refunded` it
    /// derives `refunded`, now and at every later event.
    ///
    /// Only `refunded`, `cancelled` and the review flag are repairs. Setting `completed` is none: only a payment makes
    /// an order `completed`.
    fn find_manual_edits(&self, new: &EntityFacts, now: Timestamp) -> EntityFacts {
        let mut facts = PaymentFacts::default();
        let was = &self.derived.columns;
        let changed_to = |column: &Option<String>, derived: &Option<String>, word: &str| {
            column.as_deref() == Some(word) && column != derived
        };
        // A statement may be paid by other means than Stripe, and then its payment column is the application's: it may
        // write `refunded` there itself. That is a repair only once Stripe's events say something about the payment.
        let is_ours = match self.key {
            EntityKey::Statement(_) => {
                self.facts.payment.has_stripe_facts() || new.payment.has_stripe_facts()
            }
            EntityKey::Order(_) | EntityKey::Tenant(_) => true,
        };
        let refunded = [
            (
                &self.columns.status,
                &was.status,
                OrderStatus::Refunded.as_str(),
            ),
            (
                &self.columns.payment_status,
                &was.payment_status,
                PaymentStatus::Refunded.as_str(),
            ),
        ];
        if is_ours
            && refunded
                .iter()
                .any(|(column, was, word)| changed_to(column, was, word))
        {
            facts.manual.refunded = Some(MinRegister(now));
        }
        if changed_to(
            &self.columns.status,
            &was.status,
            OrderStatus::Cancelled.as_str(),
        ) {
            facts.cancelled = Some(MinRegister(now));
        }
        match (self.columns.requires_review, was.requires_review) {
            // Only the reasons that the person could see are cleared. If a person cleared dp_1 and the event of this
            // write opens dp_2, `dispute_open:dp_2` flags the row again.
            (Some(false), Some(true)) => {
                facts.manual.cleared = self
                    .derived
                    .review_reasons
                    .iter()
                    .map(|r| (r.clone(), MinRegister(now)))
                    .collect();
            }
            (Some(true), None | Some(false)) => {
                facts.manual.flagged.insert(now);
            }
            _ => {}
        }
        EntityFacts {
            payment: facts,
            ..EntityFacts::default()
        }
    }
}
