//! The projection of a statement: which of its columns billhook writes.
//!
//! A statement has two halves, payment and letters. While no event says anything about a half, its columns stay the
//! application's, because a statement may be paid or mailed without Stripe and Lob. Orders have no such rule: every
//! write derives all their columns.

use crate::entity::mail::derive::DerivedMail;
use crate::entity::mail::facts::MailFacts;
use crate::entity::payment::derive::DerivedPayment;
use crate::entity::payment::facts::PaymentFacts;
use crate::entity::schema::GuardedColumns;

/// The columns that billhook writes; `None` leaves a column as it is. If the only payment fact is a manual edit (a
/// person set `requiresReview`), billhook writes the review flag but not the payment status, of which nothing is known.
pub(super) fn derive_statement_columns(
    payment_facts: &PaymentFacts,
    payment: &DerivedPayment,
    mail_facts: &MailFacts,
    mail: &DerivedMail,
) -> GuardedColumns {
    let columns = GuardedColumns::of_payment(payment);
    let has_stripe_facts = payment_facts.has_stripe_facts();
    let has_payment_facts = *payment_facts != PaymentFacts::default();
    let has_mail_facts = *mail_facts != MailFacts::default();
    GuardedColumns {
        payment_status: columns.payment_status.filter(|_| has_stripe_facts),
        requires_review: columns.requires_review.filter(|_| has_payment_facts),
        mail_status: mail.status.map(|stage| stage.as_str().to_owned()),
        needs_attention: has_mail_facts.then_some(mail.attention_reason.is_some()),
        ..GuardedColumns::default()
    }
}
