//! The entity kind order: its table and its columns, and how they follow from the facts of its payments.
//!
//! Every write derives all columns that billhook owns. The state machine of `status` is in `payment::status`; what
//! events, cleanup and people change is in `docs/SEMANTICS.md`.

use crate::entity::columns::ColumnOwner::{Application, Billhook, Both};
use crate::entity::columns::ColumnType::{Bool, Integer, List, Text, TextSet};
use crate::entity::columns::{
    ColumnValue, ColumnWrites, EntityColumn, EntityIndex, EntitySchema, RowColumns, VERSION,
    describe_column as column, read_id,
};
use crate::entity::key::ORDER;
use crate::entity::kind::{EntityKind, EntityState, StatedFacts, keep_if_ours, read_due};
use crate::entity::merge::Merge as _;
use crate::entity::payment::derive::{DerivedPayment, PaymentRules, derive_payment};
use crate::entity::payment::facts::MoneyFacts;
use crate::entity::payment::linked::LinkedPaymentFacts;
use crate::entity::payment::status::{OrderStatus, PaymentStatus};
use crate::entity::schema::{GuardedColumns, LastDerived, RowIdentity};
use crate::entity::timeline::DerivedEntry;
use crate::ids::{CheckoutSessionId, OrderId, PaymentIntentId, UserId};
use crate::money::Money;
use crate::outcome::ParkReason;

#[rustfmt::skip]
const COLUMNS: &[EntityColumn] = &[
    column("id", Text, Application, ""),
    column("userId", Text, Both, "key of an index; if it is missing, billhook fills it from Checkout and metadata"),
    column("sellerId", Text, Application, "key of an index; billhook does not read it"),
    column("tenantId", Text, Application, "if it is missing, the row belongs to the platform, and no connected account's event may change it"),
    column("amountTotal", Integer, Application, "the amount due"),
    column("currency", Text, Application, "its currency"),
    column("createdAt", Text, Application, "a number is a time too; billhook reads it to [adopt](adopt.md) a row, and to know one that was made anew"),
    column("status", Text, Billhook, "`pending` at creation, or nothing, which means the same; otherwise write only what [a repair](SEMANTICS.md#manual-edits) needs"),
    column("paymentStatus", Text, Billhook, ""),
    column("requiresReview", Bool, Billhook, ""),
    column("reviewReasons", TextSet, Billhook, "absent if there are none"),
    column("amountPaid", Integer, Billhook, "the sum of what all payments received, also of what went back since; yours while nothing but a person or the application says that it was paid"),
    column("amountRefunded", Integer, Billhook, ""),
    column("authorizedUntil", Text, Billhook, "until when an authorised payment can be captured; absent if none is authorised, or Stripe does not say it"),
    column("disputeDueBy", Text, Billhook, "until when the first dispute or inquiry has to be answered; absent if none has"),
    column("paymentFailedAt", Text, Billhook, "time of the last failed attempt"),
    column("stripePaymentIntentId", Text, Both, "billhook writes the payment that counts, unless you wrote one"),
    column("stripeCheckoutSessionId", Text, Both, "billhook writes it if it is missing; yours stays"),
    column("timeline", List, Both, "see [below](#timeline)"),
    column("updatedAt", Text, Both, "billhook sets it with each of its writes"),
    column(VERSION, Integer, Billhook, "the version of the entity at our last write of the row; the parameter `VersionColumn` gives it another name"),
];

#[derive(Clone, Debug, PartialEq)]
pub enum OrderKind {}

/// The columns of the application that billhook reads.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct OrderColumns {
    pub due: Option<Money>,
    pub intent: Option<PaymentIntentId>,
    pub session: Option<CheckoutSessionId>,
    /// A string and not a [`UserId`]: an application may have ids that are not in our alphabet ("Pat Sample"). billhook
    /// once read such an id as missing and overwrote it.
    pub user: Option<String>,
}

impl EntityKind for OrderKind {
    type Id = OrderId;
    type Given = OrderColumns;
    type Facts = LinkedPaymentFacts;
    type Derived = DerivedPayment;

    const SCHEMA: EntitySchema = EntitySchema {
        word: ORDER,
        table: "Orders",
        key: "id",
        tenant: "tenantId",
        payment_intent: Some("stripePaymentIntentId"),
        indexes: &[
            EntityIndex {
                name: "PaymentIntentIndex",
                key: "stripePaymentIntentId",
            },
            EntityIndex {
                name: "StatusIndex",
                key: "status",
            },
        ],
        amount_due: Some("amountTotal"),
        amount_refunded: Some("amountRefunded"),
        review_reasons: Some("reviewReasons"),
        created_at: Some("createdAt"),
        updated_at: "updatedAt",
        guarded: &[
            "status",
            "paymentStatus",
            "requiresReview",
            "amountTotal",
            "currency",
            "stripePaymentIntentId",
            "stripeCheckoutSessionId",
            "userId",
        ],
        columns: COLUMNS,
    };
    const UNKNOWN: ParkReason = ParkReason::OrderUnknown;
    const HAS_USER: bool = true;

    fn take_facts(facts: &mut LinkedPaymentFacts, stated: StatedFacts) {
        facts.merge(stated.into_linked_payment_facts());
    }

    fn read_given(row: &impl RowColumns) -> OrderColumns {
        OrderColumns {
            due: read_due(row, "amountTotal"),
            intent: read_id(row, "stripePaymentIntentId", PaymentIntentId::parse),
            session: read_id(row, "stripeCheckoutSessionId", CheckoutSessionId::parse),
            user: row.text("userId").map(str::to_owned),
        }
    }

    fn remember_given(known: &RowIdentity) -> OrderColumns {
        OrderColumns {
            due: known.due,
            user: known.user.clone(),
            ..OrderColumns::default()
        }
    }

    fn restore_given(
        given: &OrderColumns,
        facts: &LinkedPaymentFacts,
        last: &LastDerived,
    ) -> OrderColumns {
        let copies = || facts.payments.values().map(|copy| &copy.facts);
        let has_session = |id: &CheckoutSessionId| copies().any(|of| of.sessions.contains_key(id));
        let is_hint = |user: &String| {
            let mut hints = copies().flat_map(MoneyFacts::user_hints);
            hints.any(|hint| hint.as_str() == user)
        };
        let theirs = given.intent.clone();
        let theirs = theirs.filter(|id| !facts.knows_payment_intent(id));
        let session = given.session.clone().filter(|id| !has_session(id));
        let user = given.user.clone().filter(|user| !is_hint(user));
        OrderColumns {
            due: given.due,
            intent: theirs.or_else(|| last.intent.clone()),
            session: session.or_else(|| last.session.clone()),
            user: user.or_else(|| last.user.as_ref().map(UserId::to_string)),
        }
    }

    fn identify(given: &OrderColumns) -> RowIdentity {
        RowIdentity {
            created_at: None,
            due: given.due,
            user: given.user.clone(),
        }
    }

    fn is_own_word(column: &str, word: &str) -> bool {
        match column {
            "status" => OrderStatus::parse(word).is_some(),
            "paymentStatus" => PaymentStatus::parse(word).is_some(),
            _ => true,
        }
    }

    fn fill_given(given: &OrderColumns, written: &LastDerived) -> OrderColumns {
        let user = written.user.as_ref().map(UserId::to_string);
        let stays = |column| !written.removed.contains(&column);
        let intent = given
            .intent
            .clone()
            .filter(|_| stays("stripePaymentIntentId"));
        let session = given
            .session
            .clone()
            .filter(|_| stays("stripeCheckoutSessionId"));
        OrderColumns {
            due: given.due,
            intent: written.intent.clone().or(intent),
            session: written.session.clone().or(session),
            user: user.or_else(|| given.user.clone().filter(|_| stays("userId"))),
        }
    }

    fn read_guarded(row: &impl RowColumns) -> GuardedColumns {
        GuardedColumns {
            status: row.text("status").map(str::to_owned),
            payment_status: row.text("paymentStatus").map(str::to_owned),
            requires_review: row.truth("requiresReview"),
            ..GuardedColumns::default()
        }
    }

    fn initial_columns() -> GuardedColumns {
        GuardedColumns {
            status: Some(OrderStatus::Pending.as_str().to_owned()),
            payment_status: Some(PaymentStatus::Unpaid.as_str().to_owned()),
            ..GuardedColumns::default()
        }
    }

    fn derive(
        facts: &LinkedPaymentFacts,
        given: &OrderColumns,
        rules: PaymentRules<'_>,
    ) -> DerivedPayment {
        derive_payment(facts, given.due, rules)
    }

    fn project(
        row: &EntityState<Self>,
        _: &LinkedPaymentFacts,
        payment: &DerivedPayment,
    ) -> LastDerived {
        let (given, last) = (&row.given, &row.last_derived);
        let mut removed = Vec::new();
        LastDerived {
            columns: GuardedColumns {
                status: Some(payment.status.as_str().to_owned()),
                ..GuardedColumns::of_payment(payment)
            },
            review_reasons: payment.review_reasons.iter().cloned().collect(),
            intent: keep_if_ours(
                "stripePaymentIntentId",
                &payment.intent,
                given.intent.as_ref().map(PaymentIntentId::as_str),
                last.intent.as_ref().map(PaymentIntentId::as_str),
                &mut removed,
            ),
            session: keep_if_ours(
                "stripeCheckoutSessionId",
                &payment.session,
                given.session.as_ref().map(CheckoutSessionId::as_str),
                last.session.as_ref().map(CheckoutSessionId::as_str),
                &mut removed,
            ),
            user: keep_if_ours(
                "userId",
                &payment.user,
                given.user.as_deref(),
                last.user.as_ref().map(UserId::as_str),
                &mut removed,
            ),
            removed,
        }
    }

    fn write_columns(payment: &DerivedPayment, written: &LastDerived) -> ColumnWrites {
        let text = ColumnValue::text;
        let mut columns = vec![
            ("status", text(payment.status.as_str())),
            ("paymentStatus", text(payment.payment_status.as_str())),
            (
                "requiresReview",
                Some(ColumnValue::Bool(!payment.review_reasons.is_empty())),
            ),
            (
                "reviewReasons",
                ColumnValue::text_set(&payment.review_reasons),
            ),
            (
                "amountRefunded",
                Some(ColumnValue::Integer(payment.amount_refunded)),
            ),
        ];
        columns.extend([
            (
                "authorizedUntil",
                payment.authorized_until.map(ColumnValue::Time),
            ),
            (
                "disputeDueBy",
                payment.dispute_due_by.map(ColumnValue::Time),
            ),
        ]);
        let received = payment.received.map(|received| received.amount);
        let received = received.map(ColumnValue::Integer);
        columns.extend(received.map(|received| ("amountPaid", Some(received))));
        if payment.payment_failed_at.is_some() || !payment.is_adopted {
            let failed_at = payment.payment_failed_at.map(ColumnValue::Time);
            columns.push(("paymentFailedAt", failed_at));
        }
        columns.extend(written.removed.iter().map(|column| (*column, None)));
        if let Some(intent) = &written.intent {
            columns.push(("stripePaymentIntentId", text(intent.as_str())));
        }
        if let Some(session) = &written.session {
            columns.push(("stripeCheckoutSessionId", text(session.as_str())));
        }
        if let Some(user) = &written.user {
            columns.push(("userId", text(user.as_str())));
        }
        columns
    }

    fn timeline(payment: &DerivedPayment) -> Vec<DerivedEntry> {
        payment.timeline.clone()
    }

    fn linked_payment_facts(facts: &LinkedPaymentFacts) -> Option<&LinkedPaymentFacts> {
        Some(facts)
    }

    fn linked_payment_facts_mut(facts: &mut LinkedPaymentFacts) -> Option<&mut LinkedPaymentFacts> {
        Some(facts)
    }

    fn payment(payment: &DerivedPayment) -> Option<&DerivedPayment> {
        Some(payment)
    }

    fn payment_intent(given: &OrderColumns) -> Option<&PaymentIntentId> {
        given.intent.as_ref()
    }

    fn checkout_session(given: &OrderColumns) -> Option<&CheckoutSessionId> {
        given.session.as_ref()
    }
}
