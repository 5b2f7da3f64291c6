//! The entity kind statement: its table and its columns, and how they follow from the facts of its payments and
//! letters.
//!
//! A statement has two halves, payment and letters. While no event says anything about a half, its columns stay the
//! application's, because a statement may be paid or mailed without Stripe and Lob. Orders have no such rule: every
//! write derives all their columns.

use serde::{Deserialize, Serialize};

use crate::entity::columns::ColumnOwner::{Application, Billhook, Both};
use crate::entity::columns::ColumnType::{Bool, Integer, List, Text, TextSet};
use crate::entity::columns::{
    ColumnValue, ColumnWrites, EntityColumn, EntityIndex, EntitySchema, RowColumns, VERSION,
    describe_column as column, read_id,
};
use crate::entity::key::STATEMENT;
use crate::entity::kind::{EntityKind, EntityState, StatedFacts, keep_if_ours, read_due};
use crate::entity::mail::derive::{DerivedMail, derive_mail, is_stronger_stage};
use crate::entity::mail::facts::{MailFacts, MailStage};
use crate::entity::merge::{Merge as _, merge_fields};
use crate::entity::payment::derive::{DerivedPayment, PaymentRules, derive_payment};
use crate::entity::payment::linked::LinkedPaymentFacts;
use crate::entity::payment::status::PaymentStatus;
use crate::entity::schema::{GuardedColumns, LastDerived, RowIdentity};
use crate::entity::timeline::DerivedEntry;
use crate::ids::{PaymentIntentId, PieceId, StatementId};
use crate::money::Money;
use crate::outcome::ParkReason;

/// The column of the printed piece; `LobLetterIndex` is on it.
pub const PIECE_COLUMN: &str = "lob_letter_id";
/// The column of the PaymentIntent; `PaymentIntentIndex` is on it.
const INTENT_COLUMN: &str = "stripe_payment_intent_id";

#[rustfmt::skip]
const COLUMNS: &[EntityColumn] = &[
    column("statement_id", Text, Application, ""),
    column("tenant_id", Text, Application, "like an order's `tenantId`"),
    column("amount_due", Integer, Application, "the amount due"),
    column("currency", Text, Application, "its currency"),
    column(PIECE_COLUMN, Text, Application, "the piece that counts: letter, postcard, self mailer or check"),
    column("payment_status", Text, Billhook, ""),
    column("requires_review", Bool, Billhook, ""),
    column("review_reasons", TextSet, Billhook, "absent if there are none"),
    column("amount_paid", Integer, Billhook, "like an order's `amountPaid`"),
    column("amount_refunded", Integer, Billhook, ""),
    column("paid_at", Text, Billhook, "when the payments reached the amount due; yours while `amount_paid` is"),
    column("authorized_until", Text, Billhook, "like an order's `authorizedUntil`"),
    column("dispute_due_by", Text, Billhook, "like an order's `disputeDueBy`"),
    column("stripe_payment_intent_id", Text, Both, "like an order's"),
    column("mail_status", Text, Billhook, ""),
    column("mail_status_at", Text, Billhook, "the last time the piece reached that stage"),
    column("needs_attention", Bool, Billhook, ""),
    column("attention_reason", Text, Billhook, "absent if there is none"),
    column("expected_delivery_date", Text, Both, "billhook writes the latest value from an event; without one it leaves yours"),
    column("tracking_number", Text, Both, "the same"),
    column("template_version", Text, Both, "the same"),
    column("timeline", List, Both, "see [below](#timeline)"),
    column("created_at", Text, Application, "like an order's `createdAt`"),
    column("updated_at", Text, Both, "like an order's `updatedAt`"),
    column(VERSION, Integer, Billhook, "like an order's"),
];

#[derive(Clone, Debug, PartialEq)]
pub enum StatementKind {}

/// The columns of the application that billhook reads.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct StatementColumns {
    pub due: Option<Money>,
    pub intent: Option<PaymentIntentId>,
    pub piece: Option<PieceId>,
}

#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct StatementFacts {
    pub payment: LinkedPaymentFacts,
    pub mail: MailFacts,
}

merge_fields!(StatementFacts { payment, mail });

/// What follows from the facts of a statement.
#[derive(Clone, Debug, PartialEq)]
pub struct DerivedStatement {
    pub payment: DerivedPayment,
    pub mail: DerivedMail,
    /// An adopted row said more about the letter than Lob has stated since: that stage stays.
    pub mail_at_first: Option<MailStage>,
}

impl DerivedStatement {
    /// What an adopted row said of attention belongs to the stage that it said.
    fn owns_attention(&self) -> bool {
        self.mail_at_first.is_none() || self.mail.attention_reason.is_some()
    }
}

/// The stage that an adopted row said, as long as Lob has not stated more about the same piece. Example: the row said
/// `delivered`, and the first event is that the recipient opened the proof: it stays `delivered`.
fn find_mail_at_first(
    facts: &StatementFacts,
    given: &StatementColumns,
    stated: Option<MailStage>,
) -> Option<MailStage> {
    let opening = facts.payment.opening_state()?;
    let stage = opening.mail_stage()?;
    let piece = given.piece.as_ref().map(PieceId::as_str);
    let is_same_piece = piece.is_some() && opening.piece.as_deref() == piece;
    let is_less = |stated| is_same_piece && is_stronger_stage(stage, stated);
    stated.is_none_or(is_less).then_some(stage)
}

impl EntityKind for StatementKind {
    type Id = StatementId;
    type Given = StatementColumns;
    type Facts = StatementFacts;
    type Derived = DerivedStatement;

    const SCHEMA: EntitySchema = EntitySchema {
        word: STATEMENT,
        table: "Statements",
        key: "statement_id",
        tenant: "tenant_id",
        payment_intent: Some(INTENT_COLUMN),
        indexes: &[
            EntityIndex {
                name: "LobLetterIndex",
                key: PIECE_COLUMN,
            },
            EntityIndex {
                name: "PaymentIntentIndex",
                key: INTENT_COLUMN,
            },
        ],
        amount_due: Some("amount_due"),
        amount_refunded: Some("amount_refunded"),
        review_reasons: Some("review_reasons"),
        created_at: Some("created_at"),
        updated_at: "updated_at",
        guarded: &[
            "payment_status",
            "requires_review",
            "mail_status",
            "needs_attention",
            "amount_due",
            "currency",
            "stripe_payment_intent_id",
            PIECE_COLUMN,
        ],
        columns: COLUMNS,
    };
    const UNKNOWN: ParkReason = ParkReason::StatementUnknown;
    const TAKES_INSTALMENTS: bool = true;

    fn take_facts(facts: &mut StatementFacts, stated: StatedFacts) {
        match stated {
            StatedFacts::Mail(mail) => facts.mail.merge(mail),
            payment => facts.payment.merge(payment.into_linked_payment_facts()),
        }
    }

    fn read_given(row: &impl RowColumns) -> StatementColumns {
        StatementColumns {
            due: read_due(row, "amount_due"),
            intent: read_id(row, "stripe_payment_intent_id", PaymentIntentId::parse),
            piece: read_id(row, PIECE_COLUMN, PieceId::parse),
        }
    }

    fn remember_given(known: &RowIdentity) -> StatementColumns {
        StatementColumns {
            due: known.due,
            ..StatementColumns::default()
        }
    }

    fn restore_given(
        given: &StatementColumns,
        facts: &StatementFacts,
        last: &LastDerived,
    ) -> StatementColumns {
        let theirs = given.intent.clone();
        let theirs = theirs.filter(|id| !facts.payment.knows_payment_intent(id));
        StatementColumns {
            intent: theirs.or_else(|| last.intent.clone()),
            ..given.clone()
        }
    }

    fn identify(given: &StatementColumns) -> RowIdentity {
        RowIdentity {
            due: given.due,
            ..RowIdentity::default()
        }
    }

    fn is_own_word(column: &str, word: &str) -> bool {
        match column {
            "payment_status" => PaymentStatus::parse(word).is_some(),
            "mail_status" => MailStage::parse(word).is_some(),
            _ => true,
        }
    }

    fn fill_given(given: &StatementColumns, written: &LastDerived) -> StatementColumns {
        StatementColumns {
            intent: match written.removed.is_empty() {
                true => written.intent.clone().or_else(|| given.intent.clone()),
                false => written.intent.clone(),
            },
            ..given.clone()
        }
    }

    fn read_guarded(row: &impl RowColumns) -> GuardedColumns {
        GuardedColumns {
            status: None,
            payment_status: row.text("payment_status").map(str::to_owned),
            requires_review: row.truth("requires_review"),
            mail_status: row.text("mail_status").map(str::to_owned),
            needs_attention: row.truth("needs_attention"),
        }
    }

    fn initial_columns() -> GuardedColumns {
        GuardedColumns {
            payment_status: Some(PaymentStatus::Unpaid.as_str().to_owned()),
            needs_attention: Some(false),
            ..GuardedColumns::default()
        }
    }

    fn derive(
        facts: &StatementFacts,
        given: &StatementColumns,
        rules: PaymentRules<'_>,
    ) -> DerivedStatement {
        let mail = derive_mail(&facts.mail, given.piece.as_ref());
        DerivedStatement {
            payment: derive_payment(&facts.payment, given.due, rules),
            mail_at_first: find_mail_at_first(facts, given, mail.status),
            mail,
        }
    }

    /// `None` leaves a column as it is. If the only payment fact is a manual edit (a person set `requiresReview`),
    /// billhook writes the review flag but not the payment status, of which nothing is known.
    fn project(
        row: &EntityState<Self>,
        facts: &StatementFacts,
        derived: &DerivedStatement,
    ) -> LastDerived {
        let DerivedStatement {
            payment,
            mail,
            mail_at_first,
        } = derived;
        let of_payment = GuardedColumns::of_payment(payment);
        let is_payment_known = facts.payment.has_stripe_facts() || facts.payment.manual.is_paid();
        let has_payment_facts = facts.payment.has_facts();
        let has_mail_facts = facts.mail != MailFacts::default();
        let last = &row.last_derived;
        let mut removed = Vec::new();
        LastDerived {
            columns: GuardedColumns {
                status: None,
                payment_status: of_payment.payment_status.filter(|_| is_payment_known),
                requires_review: of_payment.requires_review.filter(|_| has_payment_facts),
                mail_status: mail_at_first
                    .or(mail.status)
                    .map(|stage| stage.as_str().to_owned()),
                needs_attention: (has_mail_facts && derived.owns_attention())
                    .then_some(mail.attention_reason.is_some()),
            },
            review_reasons: payment.review_reasons.iter().cloned().collect(),
            intent: keep_if_ours(
                "stripe_payment_intent_id",
                &payment.intent,
                row.given.intent.as_ref().map(PaymentIntentId::as_str),
                last.intent.as_ref().map(PaymentIntentId::as_str),
                &mut removed,
            ),
            // No column, but stored with the state.
            session: payment.session.clone(),
            user: payment.user.clone(),
            removed,
        }
    }

    /// `written` says which columns are ours. Case: the application sets `mail_status` itself and Stripe reports a
    /// payment first; the payment columns are written, and `mail_status` stays.
    fn write_columns(derived: &DerivedStatement, written: &LastDerived) -> ColumnWrites {
        let DerivedStatement {
            payment,
            mail,
            mail_at_first,
        } = derived;
        let text = ColumnValue::text;
        let stage = |stage: Option<MailStage>| stage.and_then(|stage| text(stage.as_str()));
        let ours = &written.columns;
        let mut columns = Vec::new();
        if ours.requires_review.is_some() {
            let requires_review = !payment.review_reasons.is_empty();
            columns.extend([
                ("requires_review", Some(ColumnValue::Bool(requires_review))),
                (
                    "review_reasons",
                    ColumnValue::text_set(&payment.review_reasons),
                ),
            ]);
        }
        if ours.payment_status.is_some() {
            columns.extend([
                ("payment_status", text(payment.payment_status.as_str())),
                (
                    "amount_refunded",
                    Some(ColumnValue::Integer(payment.amount_refunded)),
                ),
                (
                    "authorized_until",
                    payment.authorized_until.map(ColumnValue::Time),
                ),
                (
                    "dispute_due_by",
                    payment.dispute_due_by.map(ColumnValue::Time),
                ),
            ]);
            if let Some(received) = payment.received {
                columns.extend([
                    ("amount_paid", Some(ColumnValue::Integer(received.amount))),
                    ("paid_at", received.paid_at.map(ColumnValue::Time)),
                ]);
            }
        }
        columns.extend(written.removed.iter().map(|column| (*column, None)));
        if let Some(intent) = &written.intent {
            columns.push(("stripe_payment_intent_id", text(intent.as_str())));
        }
        if ours.needs_attention.is_some() {
            let needs_attention = mail.attention_reason.is_some();
            columns.extend([
                ("needs_attention", Some(ColumnValue::Bool(needs_attention))),
                ("attention_reason", stage(mail.attention_reason)),
            ]);
        }
        let has_mail = ours.needs_attention.is_some() || ours.mail_status.is_some();
        if has_mail && mail_at_first.is_none() {
            columns.extend([
                ("mail_status", stage(mail.status)),
                ("mail_status_at", mail.status_at.map(ColumnValue::Time)),
            ]);
        }
        if has_mail {
            // If no event contained one of these, the application's value stays.
            for (name, value) in [
                ("expected_delivery_date", &mail.expected_delivery_date),
                ("tracking_number", &mail.tracking_number),
                ("template_version", &mail.template_version),
            ] {
                columns.extend(value.as_ref().map(|value| (name, text(value))));
            }
        }
        columns
    }

    /// The entries of payments and letters together.
    fn timeline(derived: &DerivedStatement) -> Vec<DerivedEntry> {
        let payment = derived.payment.timeline.iter();
        payment.chain(&derived.mail.timeline).cloned().collect()
    }

    fn linked_payment_facts(facts: &StatementFacts) -> Option<&LinkedPaymentFacts> {
        Some(&facts.payment)
    }

    fn linked_payment_facts_mut(facts: &mut StatementFacts) -> Option<&mut LinkedPaymentFacts> {
        Some(&mut facts.payment)
    }

    /// A statement may be paid by other means than Stripe, and then its payment column is the application's: it may
    /// write `refunded` there itself. That is a repair only once Stripe's events say something about the payment.
    fn owns_payment_status(known: &LinkedPaymentFacts, new: &LinkedPaymentFacts) -> bool {
        let is_ours =
            |facts: &LinkedPaymentFacts| facts.has_stripe_facts() || facts.manual.is_paid();
        is_ours(known) || is_ours(new)
    }

    fn payment(derived: &DerivedStatement) -> Option<&DerivedPayment> {
        Some(&derived.payment)
    }

    fn mail(derived: &DerivedStatement) -> Option<&DerivedMail> {
        Some(&derived.mail)
    }

    fn payment_intent(given: &StatementColumns) -> Option<&PaymentIntentId> {
        given.intent.as_ref()
    }

    fn of_other_pieces(facts: &StatementFacts, given: &StatementColumns) -> Vec<StatementColumns> {
        let pieces = facts.mail.pieces.keys().cloned().map(Some);
        let others = pieces.chain([None]).filter(|piece| *piece != given.piece);
        let others = others.map(|piece| StatementColumns {
            piece,
            ..given.clone()
        });
        others.collect()
    }

    fn piece(given: &StatementColumns) -> Option<&PieceId> {
        given.piece.as_ref()
    }
}
