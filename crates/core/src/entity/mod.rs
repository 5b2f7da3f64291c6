//! An order or a statement: what the row holds, and the one way in which new facts change it.

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

/// Which row.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EntityKey {
    /// Of the application's orders.
    Order(OrderId),
    /// Of the application's statements.
    Statement(StatementId),
    /// Of the application's tenants.
    Tenant(TenantId),
}

impl EntityKey {
    /// Reads what `Display` prints, the form kept in payments rows.
    pub fn parse(text: &str) -> Option<Self> {
        match text.split_once('#')? {
            ("order", id) => OrderId::parse(id).ok().map(Self::Order),
            ("statement", id) => StatementId::parse(id).ok().map(Self::Statement),
            ("tenant", id) => TenantId::parse(id).ok().map(Self::Tenant),
            _ => None,
        }
    }

    /// The row's key.
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

/// Everything known about an entity: an order has payments, a statement payments and mail, a tenant its account.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct EntityFacts {
    /// What Stripe and the cleanup stated.
    #[serde(flatten)]
    pub payment: PaymentFacts,
    /// What Lob stated.
    #[serde(flatten)]
    pub mail: MailFacts,
    /// What Stripe stated of the tenant's account.
    #[serde(flatten)]
    pub account: AccountFacts,
}

merge_fields!(EntityFacts {
    payment,
    mail,
    account
});

/// A row as it was loaded.
#[derive(Clone, Debug, PartialEq)]
pub struct Entity {
    /// Which.
    pub key: EntityKey,
    /// How often billhook has written it; 0 for a row that only the application wrote.
    pub version: i64,
    /// Its owner; none is the platform's.
    pub tenant: Option<TenantId>,
    /// What the application asked for.
    pub due: Option<Money>,
    /// The PaymentIntent in its column.
    pub intent: Option<PaymentIntentId>,
    /// The Checkout Session in its column.
    pub session: Option<CheckoutSessionId>,
    /// The user in an order's column, in whatever form the application has ids of users.
    pub user: Option<String>,
    /// The letter that the application says it mailed.
    pub mailed: Option<PieceId>,
    /// A tenant's connected account.
    pub account: Option<AccountId>,
    /// The columns as they stand.
    pub columns: GuardedColumns,
    /// The columns as they were last derived.
    pub derived: LastDerived,
    /// The merged facts.
    pub facts: EntityFacts,
}

/// What a row becomes.
#[derive(Clone, Debug, PartialEq)]
pub struct EntityUpdate {
    /// All facts, the new ones merged in.
    pub facts: EntityFacts,
    /// What they mean for payment.
    pub payment: DerivedPayment,
    /// What they mean for mail.
    pub mail: DerivedMail,
    /// What they mean for a tenant.
    pub account: DerivedAccount,
    /// What the row shall remember as derived.
    pub derived: LastDerived,
    /// What a person changed that is no repair, and so does not stand.
    pub discarded_edits: Vec<DiscardedEdit>,
}

/// A column that somebody changed and that is derived again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiscardedEdit {
    /// By its name in `derived`.
    pub column: &'static str,
    /// As it was found.
    pub found: String,
    /// As it is written.
    pub written: String,
}

/// What a write newly says of an entity, for whoever counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntityChange {
    /// An order was paid in full.
    Completed,
    /// An order was given up.
    Cancelled,
    /// The last attempt to pay failed.
    PaymentFailed,
    /// All that was captured went back.
    RefundedInFull,
    /// A person should look, and needed not before.
    RequiresReview,
    /// A payment that is not what was due.
    AmountMismatch,
    /// A payment of a cancelled order.
    PaidAfterCancel,
    /// A statement's mail went wrong.
    NeedsAttention,
}

impl EntityUpdate {
    /// What it says that the row did not say before. What a person put there is not news.
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
            let added = |told: &&String| !known.contains(told);
            let mut added = self.derived.review_reasons.iter().filter(added);
            added.any(|told| told.split(':').next() == Some(reason))
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
        .filter_map(|(news, is_new)| is_new.then_some(news))
        .collect()
    }

    /// Both halves' entries.
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
    /// Facts → merge → derive. `now` dates a person's repair that is found on the way.
    pub fn apply_facts(&self, mut new: EntityFacts, now: Timestamp) -> EntityUpdate {
        // Some put the order's own id into `client_reference_id`: that is no user.
        let is_own = |told: &mut MinRegister<UserId>| told.0.as_str() == self.key.id();
        new.payment.reference.take_if(is_own);
        let mut facts = self.facts.clone();
        facts.merge(self.find_manual_edits(&new, now));
        facts.merge(new);
        let payment = derive_payment(&facts.payment, self.due);
        let mail = derive_mail(&facts.mail, self.mailed.as_ref());
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

    /// The columns that somebody changed since the last write and that become something else now.
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

    /// What a person changed since the last write, as facts: a repair stands, and is not undone by the next event.
    fn find_manual_edits(&self, new: &EntityFacts, now: Timestamp) -> EntityFacts {
        let mut facts = PaymentFacts::default();
        let was = &self.derived.columns;
        let changed_to = |column: &Option<String>, derived: &Option<String>, word: &str| {
            column.as_deref() == Some(word) && column != derived
        };
        // A statement's payment is the application's own until Stripe states something of it.
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
