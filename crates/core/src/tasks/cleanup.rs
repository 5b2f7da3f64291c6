//! Which failed orders the cleanup cancels, and which payments it must end at Stripe first. Pure: the crate
//! `cleanup-failed-payments` asks Stripe, then writes on condition that the row is unchanged (optimistic lock).
//!
//! Guarantee: an order with money, or with a payment that may still bring money, is not cancelled. The decision uses
//! the merged facts, never the index or the `status` column alone.

use std::collections::BTreeSet;
use std::time::Duration;

use data_encoding::HEXLOWER;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::entity::Entity;
use crate::entity::kind::StatedFacts;
use crate::entity::payment::status::OrderStatus;
use crate::ids::{AccountId, CheckoutSessionId, PaymentIntentId};
use crate::provider::stripe::types::{IntentSnapshot, IntentStatus, NextActionType, SessionStatus};
use crate::time::Timestamp;

/// A payment that must be ended at Stripe before its order is cancelled.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CancellablePayment {
    pub intent: PaymentIntentId,
    /// The connected account that the payment lives on; none is the platform.
    pub account: Option<AccountId>,
}

/// A Checkout Session that must be ended at Stripe before its order is cancelled.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CancellableSession {
    pub session: CheckoutSessionId,
    /// The connected account that the session lives on; none is the platform.
    pub account: Option<AccountId>,
}

/// Everything by which a customer may still pay an order, as far as its facts and its row say.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct PaymentsToEnd {
    pub intents: BTreeSet<CancellablePayment>,
    /// The sessions of which no event says that they were completed or expired.
    pub sessions: BTreeSet<CancellableSession>,
    /// The PaymentIntent in the row's column that no event has mentioned yet. Nothing says which account it lives on.
    pub unplaced_intent: Option<PaymentIntentId>,
    /// The same of a session.
    pub unplaced_session: Option<CheckoutSessionId>,
}

impl PaymentsToEnd {
    /// The accounts to ask: those of the order's payments, and, if something is unplaced, that of its tenant and the
    /// platform, where it may live. In this order, because a shop's payments mostly live on one account.
    pub fn accounts(&self, tenants: Option<&AccountId>) -> Vec<Option<AccountId>> {
        let known = self.intents.iter().map(|payment| &payment.account);
        let known = known.chain(self.sessions.iter().map(|session| &session.account));
        let is_unplaced = self.unplaced_intent.is_some() || self.unplaced_session.is_some();
        let possible = [tenants.cloned(), None];
        let possible = possible.into_iter().filter(|_| is_unplaced);
        let mut accounts: Vec<Option<AccountId>> = Vec::new();
        for account in known.cloned().chain(possible) {
            if !accounts.contains(&account) {
                accounts.push(account);
            }
        }
        accounts
    }
}

/// What to do with an order that the index lists as failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CleanupDecision {
    /// Cancel it, once none of these can be paid any more.
    Cancel(PaymentsToEnd),
    /// Its facts give another status: money arrived, it was cancelled before, or a person repaired it.
    NotFailed,
    /// The row says that it failed, and nothing that billhook knows does: the status that follows from the facts is
    /// written, so that it is decided once and not in every run.
    WrongStatus,
    /// Its last attempt is younger than the grace period: the customer may be trying another card.
    TooYoung,
}

/// Decides about one order from its facts. The index and the `status` column are only hints: the index lags, and a
/// person may have edited the column. An order that received 41.00 of the 42.00 due is `pending` by its facts, not
/// `payment_failed`, so it is not cancelled.
pub fn decide_cleanup(order: &Entity, grace: Duration, now: Timestamp) -> CleanupDecision {
    let update = order.apply_facts([], now);
    let (Some(payment), Some(facts)) = (update.payment(), update.linked_payment_facts()) else {
        return CleanupDecision::NotFailed;
    };
    // Of a row that is gone, in another one's place or in conflict nobody knows what it is about until a person decided.
    let is_doubtful = order.row().is_missing || facts.manual.is_row_doubtful();
    let is_failed = payment.status == OrderStatus::PaymentFailed;
    if is_doubtful || order.write_refusal().is_some() {
        return CleanupDecision::NotFailed;
    }
    if !is_failed {
        let said = order.columns().status.as_deref();
        let is_said = said == Some(OrderStatus::PaymentFailed.as_str());
        // Where rows may be older than billhook, nobody knows what an application knew.
        let may_be_older = order.row().rules.adopted_before.is_some();
        return match is_said && !may_be_older {
            true => CleanupDecision::WrongStatus,
            false => CleanupDecision::NotFailed,
        };
    }
    match payment.payment_failed_at {
        Some(failed_at) if failed_at.after(grace) <= now => {}
        Some(_) | None => return CleanupDecision::TooYoung,
    }
    // Another order has an equally good link to one of its payments: until a person decides, the money counts here too.
    if facts.conflicts().next().is_some() {
        return CleanupDecision::NotFailed;
    }
    // The application may have written a PaymentIntent or a session into its column that no event has mentioned yet.
    // Without this, the customer could still pay it after the order is cancelled.
    let unplaced_intent = order.payment_intent();
    let unplaced_intent = unplaced_intent.filter(|intent| !facts.knows_payment_intent(intent));
    let in_column = order.checkout_session();
    let unplaced_session = in_column.filter(|session| !facts.knows_session(session));
    CleanupDecision::Cancel(PaymentsToEnd {
        intents: facts
            .payment_keys()
            .filter_map(|key| {
                Some(CancellablePayment {
                    intent: key.payment.intent()?.clone(),
                    account: key.account.clone(),
                })
            })
            .collect(),
        sessions: facts
            .unfinished_sessions()
            .map(|(account, session)| CancellableSession {
                session: session.clone(),
                account: account.cloned(),
            })
            .collect(),
        unplaced_intent: unplaced_intent.cloned(),
        unplaced_session: unplaced_session.cloned(),
    })
}

/// The idempotency key of a call that ends a payment: the same for every attempt within a run, another one in the next
/// run. Stripe saves the answer under a key for 24 hours, failures too. Example: the cancel fails at 10:00 with a 500
/// that Stripe saves; under the same key, every later run of the day would get that saved failure instead of a cancel.
/// Hashed, because an order's id may have 255 characters, which is the longest key that Stripe accepts.
pub fn cleanup_idempotency_key(order: &Entity, object: &str, run: Uuid) -> String {
    let (key, version) = (order.key(), order.version());
    let digest = Sha256::digest(format!("{key}|{version}|{object}|{run}"));
    format!("billhook-cleanup-{}", HEXLOWER.encode(&digest))
}

/// Whether a payment can still bring money, by what Stripe says about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PaymentEnd {
    /// The customer can still pay it, and is not doing so: end it first.
    NotYet,
    /// It can never be paid.
    ForGood,
    /// It was paid, or is or may be under way: the order must stay.
    PaidOrUnderWay,
}

impl PaymentEnd {
    /// Judges a PaymentIntent; `None` is one that Stripe does not have.
    ///
    /// The case of `requires_action`: a customer chose a voucher after a declined card, and went to the shop with it. An
    /// hour after the decline the cleanup ended the voucher, and the shop took no money for it. A page, on the other
    /// hand, is left or done within minutes: what is older than the grace period was left.
    pub fn of_intent(intent: Option<&IntentSnapshot>, grace: Duration, now: Timestamp) -> Self {
        // Stripe says so for an id that it never had, and for one of an account or mode that we did not ask.
        let Some(intent) = intent else {
            return Self::ForGood;
        };
        match &intent.status {
            IntentStatus::Canceled => Self::ForGood,
            IntentStatus::RequiresPaymentMethod | IntentStatus::RequiresConfirmation => {
                Self::NotYet
            }
            IntentStatus::RequiresAction => {
                let is_old = intent.created.is_some_and(|at| at.after(grace) <= now);
                match is_page(intent.next_action.as_ref()) && is_old {
                    true => Self::NotYet,
                    false => Self::PaidOrUnderWay,
                }
            }
            // `requires_capture`: the money is authorised, and the merchant may still capture it. A status that Stripe
            // introduced after this code was written is treated as money too, because a wrong cancel cannot be undone.
            IntentStatus::Succeeded
            | IntentStatus::Processing
            | IntentStatus::RequiresCapture
            | IntentStatus::Other(_) => Self::PaidOrUnderWay,
        }
    }

    /// Judges a Checkout Session; `None` is one that Stripe does not have.
    pub fn of_session(session: Option<&SessionStatus>) -> Self {
        match session {
            None | Some(SessionStatus::Expired) => Self::ForGood,
            Some(SessionStatus::Open) => Self::NotYet,
            Some(SessionStatus::Complete | SessionStatus::Other(_)) => Self::PaidOrUnderWay,
        }
    }
}

/// Whether the customer is before a page. An action that Stripe introduced after this code was written is none.
fn is_page(action: Option<&NextActionType>) -> bool {
    match action {
        Some(
            NextActionType::RedirectToUrl
            | NextActionType::UseStripeSdk
            | NextActionType::AlipayHandleRedirect
            | NextActionType::WechatPayRedirectToAndroidApp
            | NextActionType::WechatPayRedirectToIosApp,
        ) => true,
        Some(NextActionType::Other(_)) | None => false,
    }
}

/// After this time it is told again that Stripe refuses our key for the platform's own payments. Unlike a connected account,
/// which somebody may have disconnected on purpose, that is always a fault of ours.
const KEY_REFUSAL_AGAIN_AFTER: Duration = Duration::from_hours(24);

/// Whether the log has to tell that an account refuses our key; none is the platform. `told_at` is when it did last, since
/// the account answered.
pub fn must_tell_refusal(
    account: Option<&AccountId>,
    told_at: Option<Timestamp>,
    now: Timestamp,
) -> bool {
    match (account, told_at) {
        (_, None) => true,
        (Some(_), Some(_)) => false,
        (None, Some(told_at)) => told_at.after(KEY_REFUSAL_AGAIN_AFTER) <= now,
    }
}

/// The fact that the cleanup cancelled an order.
pub fn cancellation_fact(now: Timestamp) -> StatedFacts {
    StatedFacts::Cancelled(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_page_that_was_left_long_ago_is_ended() {
        let grace = Duration::from_hours(1);
        let now = Timestamp::from_unix_s(1_781_000_000).unwrap();
        let judge = |action: Option<&str>, created: Option<Timestamp>| {
            let intent = IntentSnapshot {
                status: IntentStatus::RequiresAction,
                next_action: action.map(NextActionType::parse),
                created,
            };
            PaymentEnd::of_intent(Some(&intent), grace, now)
        };
        let long_ago = Some(now.before(grace));
        let moments_ago = Some(now.before(grace).after(Duration::from_secs(1)));
        for page in [
            "redirect_to_url",
            "use_stripe_sdk",
            "alipay_handle_redirect",
            "wechat_pay_redirect_to_android_app",
            "wechat_pay_redirect_to_ios_app",
        ] {
            assert_eq!(judge(Some(page), long_ago), PaymentEnd::NotYet, "{page}");
            for created in [moments_ago, None] {
                assert_eq!(judge(Some(page), created), PaymentEnd::PaidOrUnderWay);
            }
        }
        for later in [
            "oxxo_display_details",
            "boleto_display_details",
            "konbini_display_details",
            "multibanco_display_details",
            "display_bank_transfer_instructions",
            "verify_with_microdeposits",
            "pix_display_qr_code",
            "cashapp_handle_redirect_or_display_qr_code",
            "invented_tomorrow",
        ] {
            let judged = judge(Some(later), long_ago);
            assert_eq!(judged, PaymentEnd::PaidOrUnderWay, "{later}");
        }
        assert_eq!(judge(None, long_ago), PaymentEnd::PaidOrUnderWay);
    }

    #[test]
    fn something_unplaced_is_looked_for_on_every_account_once() {
        let account = |id: &str| AccountId::parse(id).unwrap();
        let intent = |id: &str, of: Option<&str>| CancellablePayment {
            intent: PaymentIntentId::parse(id).unwrap(),
            account: of.map(account),
        };
        let tenants = account("acct_1");
        let none = PaymentsToEnd::default();
        assert_eq!(none.accounts(Some(&tenants)), []);
        let unplaced = PaymentsToEnd {
            unplaced_intent: Some(PaymentIntentId::parse("pi_9").unwrap()),
            ..none.clone()
        };
        assert_eq!(unplaced.accounts(None), [None]);
        let both = [Some(tenants.clone()), None];
        assert_eq!(unplaced.accounts(Some(&tenants)), both);
        let intents = [
            intent("pi_1", Some("acct_1")),
            intent("pi_2", Some("acct_1")),
        ];
        let placed = PaymentsToEnd {
            intents: intents.into(),
            ..unplaced
        };
        assert_eq!(placed.accounts(Some(&tenants)), both);
        let placed = PaymentsToEnd {
            unplaced_intent: None,
            ..placed
        };
        assert_eq!(placed.accounts(Some(&tenants)), [Some(tenants)]);
    }
}
