//! Fetches a payment with everything that belongs to it: `billhook_core::provider::stripe::objects` reads it.
//!
//! Not a snapshot: each list is a call of its own. A refund that is made between two of them is in one and not yet in the
//! other; the comparison leaves out what is that new.
//!
//! Source of the paths and filters: `stripe-python` 16.1.0, `_charge_service.py`, `_refund_service.py`,
//! `_dispute_service.py`, `checkout/_session_service.py` and their `params/…_list_params.py`. Charges and sessions can be
//! listed by `payment_intent`, refunds and disputes by `payment_intent` or `charge`.

use billhook_core::ids::{AccountId, PaymentRef};
use billhook_core::provider::stripe::objects::PaymentAtStripe;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{StripeCall, StripeClient, StripeError, encode_path_segment, unless_missing};

/// An object of a list as Stripe wrote it, with the id after which the next page starts.
#[derive(Deserialize)]
#[serde(try_from = "Box<RawValue>")]
struct ListedObject {
    id: String,
    raw: Box<RawValue>,
}

impl TryFrom<Box<RawValue>> for ListedObject {
    type Error = serde_json::Error;

    fn try_from(raw: Box<RawValue>) -> Result<Self, Self::Error> {
        #[derive(Deserialize)]
        struct ListedId {
            id: String,
        }
        let ListedId { id } = serde_json::from_str(raw.get())?;
        Ok(Self { id, raw })
    }
}

impl StripeClient {
    /// Everything that Stripe's API says about a payment; `None` if Stripe has no such object in this account and mode.
    ///
    /// A PaymentIntent takes five calls and one more for every further 100 objects of a list, a charge three, a session
    /// one. Fails with `TooMany` for a payment of more than 500 charges, failed attempts included.
    pub async fn get_payment_at_stripe(
        &self,
        account: Option<&AccountId>,
        payment: &PaymentRef,
    ) -> Result<Option<PaymentAtStripe>, StripeError> {
        let Some(object) = self.find_payment_object(account, payment).await? else {
            return Ok(None);
        };
        let list = |kind| self.list_payment_objects(kind, account, payment);
        Ok(Some(match payment {
            PaymentRef::Intent(_) => PaymentAtStripe {
                intents: vec![object],
                charges: list("charges").await?,
                refunds: list("refunds").await?,
                disputes: list("disputes").await?,
                sessions: list("checkout/sessions").await?,
            },
            PaymentRef::Charge(_) => PaymentAtStripe {
                charges: vec![object],
                refunds: list("refunds").await?,
                disputes: list("disputes").await?,
                ..PaymentAtStripe::default()
            },
            PaymentRef::Session(_) => PaymentAtStripe {
                sessions: vec![object],
                ..PaymentAtStripe::default()
            },
        }))
    }

    async fn list_payment_objects(
        &self,
        kind: &str,
        account: Option<&AccountId>,
        payment: &PaymentRef,
    ) -> Result<Vec<Box<RawValue>>, StripeError> {
        let filter = match payment {
            PaymentRef::Intent(_) => "payment_intent",
            PaymentRef::Charge(_) => "charge",
            // Nothing is listed of a session without a PaymentIntent.
            PaymentRef::Session(_) => return Ok(Vec::new()),
        };
        let listed: Vec<ListedObject> = self
            .list_all(
                &format!("list the {} of {payment}", kind.replace('/', " ")),
                &format!("/v1/{kind}"),
                &[(filter, payment.as_str())],
                account.map(AccountId::as_str),
                |object: &ListedObject| &object.id,
            )
            .await?;
        Ok(listed.into_iter().map(|object| object.raw).collect())
    }

    async fn find_payment_object(
        &self,
        account: Option<&AccountId>,
        payment: &PaymentRef,
    ) -> Result<Option<Box<RawValue>>, StripeError> {
        let kind = match payment {
            PaymentRef::Intent(_) => "payment_intents",
            PaymentRef::Charge(_) => "charges",
            PaymentRef::Session(_) => "checkout/sessions",
        };
        let path = format!("/v1/{kind}/{}", encode_path_segment(payment.as_str()));
        let call = StripeCall {
            account: account.map(AccountId::as_str),
            ..StripeCall::get(format!("get {payment}"), path)
        };
        unless_missing(self.call(&call).await)
    }
}
