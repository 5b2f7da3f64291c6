//! Stripe's snapshot event, and enough of a thin (v2) one to recognise it.
//!
//! Source: `stripe-python` 16.1.0 `_event.py`, `Webhooks versioning`, read 2026-11. One flat object holds the fields we
//! read of any kind of `data.object`; their names do not clash.

use serde::{Deserialize, Serialize};

use crate::ids::{AccountId, ChargeId, CheckoutSessionId, EventId, PaymentIntentId, ProviderId};
use crate::json::{
    JsonError, LenientField, MalformedField, NestedObject, lenient_struct, parse_body,
};
use crate::provider::envelope::{EventEnvelope, EventType, message_group};
use crate::time::Timestamp;

/// The strict envelope.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StripeEvent {
    /// `evt_…`
    pub id: EventId,
    /// `event`, or `v2.core.event` for a thin notification.
    #[serde(default, skip_serializing_if = "LenientField::is_absent")]
    pub object: LenientField<String>,
    /// Such as `payment_intent.succeeded`.
    #[serde(rename = "type")]
    pub event_type: EventType,
    /// The connected account whose event this is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<AccountId>,
    /// Real money or test.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub livemode: Option<bool>,
    /// Seconds; a text on thin events.
    #[serde(default, skip_serializing_if = "LenientField::is_absent")]
    pub created: LenientField<i64>,
    /// The version the payload was rendered with.
    #[serde(default, skip_serializing_if = "LenientField::is_absent")]
    pub api_version: LenientField<String>,
    /// Holds the object.
    #[serde(default, skip_serializing_if = "LenientField::is_absent")]
    pub data: LenientField<NestedObject<EventSnapshot>>,
}

/// `data` of an event.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct EventSnapshot {
    /// The object as it was when the event was made.
    #[serde(default, skip_serializing_if = "LenientField::is_absent")]
    pub object: LenientField<NestedObject<StripeObject>>,
}

lenient_struct! {
    /// The fields we read of PaymentIntents, Checkout Sessions, Charges, Refunds, disputes, warnings and reviews.
    StripeObject {
        /// The object's id.
        id: String,
        /// Its kind: `payment_intent`, `checkout.session`, `charge`, …
        object: String,
        /// The PaymentIntent it belongs to.
        payment_intent: PaymentIntentId,
        /// The subscription it belongs to.
        subscription: String,
        /// The customer it belongs to.
        customer: String,
        /// The charge it belongs to.
        charge: ChargeId,
        /// A refund's and a dispute's state.
        status: String,
        /// Whether a review is still open.
        open: bool,
        /// An account's: whether it may take payments.
        charges_enabled: bool,
        /// An account's: whether it may pay out.
        payouts_enabled: bool,
        /// A refund's amount.
        amount: i64,
        /// A session's: `paid`, `unpaid`, `no_payment_required`.
        payment_status: String,
        /// An intent's: what was received.
        amount_received: i64,
        /// A session's total.
        amount_total: i64,
        /// A session's: what the application calls the customer, or the cart.
        client_reference_id: String,
        /// A charge's: what was captured.
        amount_captured: i64,
        /// A charge's: what was given back so far, cumulative.
        amount_refunded: i64,
        /// ISO code.
        currency: String,
        /// The newest charge of an intent.
        latest_charge: ChargeId,
        /// Why an intent failed last.
        last_payment_error: NestedObject<PaymentError>,
        /// What the tenant wrote: names entities, proves nothing.
        metadata: NestedObject<StripeMetadata>,
    }
}

lenient_struct! {
    /// Stripe's account of a failed attempt.
    PaymentError {
        /// Such as `card_declined`.
        code: String,
        /// Such as `insufficient_funds`.
        decline_code: String,
        /// The charge of the attempt.
        charge: ChargeId,
    }
}

lenient_struct! {
    /// The keys of metadata that we know. Either spelling of the order's may be used.
    StripeMetadata {
        /// The order this is for.
        order_id: String,
        /// The same.
        #[serde(rename = "orderId")]
        order_id_camel: String,
        /// The statement this is for.
        statement_id: String,
        /// The tenant, as a hint.
        tenant_id: String,
        /// The same.
        #[serde(rename = "tenantId")]
        tenant_id_camel: String,
        /// The user who pays, as a hint.
        user_id: String,
        /// The same.
        #[serde(rename = "userId")]
        user_id_camel: String,
    }
}

impl StripeEvent {
    /// Reads a body.
    pub fn parse(raw_body: &[u8]) -> Result<Self, JsonError> {
        parse_body(raw_body)
    }

    /// The object the event is about, if it has one that is an object.
    pub fn resource(&self) -> Option<&StripeObject> {
        let NestedObject(data) = self.data.value()?;
        data.object.value().map(|NestedObject(resource)| resource)
    }

    /// When Stripe made it.
    pub fn created(&self) -> Option<Timestamp> {
        let seconds = *self.created.value()?;
        Timestamp::from_unix_s(seconds).ok()
    }

    /// Thin notifications carry no object; they are told apart before anything else.
    pub fn is_thin(&self) -> bool {
        self.object
            .value()
            .is_some_and(|object| object == "v2.core.event")
    }

    /// What ingress stores beside the payload.
    pub fn envelope(&self) -> EventEnvelope {
        let resource = self.resource();
        let object_id = resource.and_then(|r| r.id.value().cloned());
        let grouped_by = resource
            .and_then(|r| {
                r.intent()
                    .ok()
                    .flatten()
                    .map(|intent| intent.to_string())
                    .or_else(|| r.subscription.value().cloned())
                    .or_else(|| r.customer.value().cloned())
            })
            .or_else(|| object_id.clone())
            .unwrap_or_else(|| self.id.to_string());
        EventEnvelope {
            provider: ProviderId::Stripe,
            id: self.id.clone(),
            event_type: self.event_type.clone(),
            account: self.account.clone(),
            livemode: self.livemode,
            api_version: self.api_version.value().cloned(),
            object_id,
            template_version: None,
            tenant_hint: resource
                .and_then(StripeObject::metadata)
                .and_then(|m| m.tenant_id.value().or(m.tenant_id_camel.value()).cloned()),
            group: message_group(ProviderId::Stripe, self.account.as_ref(), &grouped_by),
        }
    }
}

impl StripeObject {
    /// The metadata, if it is an object.
    pub fn metadata(&self) -> Option<&StripeMetadata> {
        self.metadata.value().map(|NestedObject(metadata)| metadata)
    }

    /// The PaymentIntent this is or belongs to.
    pub fn intent(&self) -> Result<Option<PaymentIntentId>, MalformedField> {
        if self
            .object
            .value()
            .is_some_and(|kind| kind == "payment_intent")
        {
            let id = self.id.checked()?.ok_or(MalformedField)?;
            return PaymentIntentId::parse(id)
                .map(Some)
                .map_err(|_| MalformedField);
        }
        Ok(self.payment_intent.checked()?.cloned())
    }

    /// The Checkout Session's own id.
    pub fn session(&self) -> Result<CheckoutSessionId, MalformedField> {
        let id = self.id.value().ok_or(MalformedField)?;
        CheckoutSessionId::parse(id).map_err(|_| MalformedField)
    }
}
