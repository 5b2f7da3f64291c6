//! The format of Stripe's snapshot events, and enough of a thin (v2) event to recognise it.
//!
//! Quirks:
//! - The payload has the shape of the endpoint's API version, not of ours. Older versions expand references
//!   (`payment_intent` is the whole object instead of its id), and newer ones may add fields. So we read few fields,
//!   each leniently (`json::LenientField`), and an id is read from both forms (`ids`).
//! - A thin event has no object, and its `created` is text.
//! - `account` is missing in events of the platform's own account.
//! - Test events of the dashboard all have the id `evt_00000000000000`.
//!
//! One flat struct has the fields of every kind of `data.object`; their names do not clash. `event_types` and
//! `account` read facts from it.
//! Source: `stripe-python` 16.1.0 `_event.py`, `Webhooks versioning`, read 2026-11.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use data_encoding::HEXLOWER;
use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use sha2::{Digest as _, Sha256};

use crate::ids::{
    AccountId, ChargeId, CheckoutSessionId, EventId, InvoiceId, PaymentIntentId, PaymentRef,
    ProviderId,
};
use crate::json::{
    JsonError, LenientField, MalformedField, NestedObject, lenient_struct, parse_body,
};
use crate::provider::envelope::{EventEnvelope, EventType, message_group};
use crate::time::Timestamp;

/// The envelope is strict: if `id`, `type`, `account` or `livemode` is wrong, the whole body is refused. Everything
/// else is lenient, because only the facts that need a field can say whether its absence matters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StripeEvent {
    #[serde(deserialize_with = "parse_own_event_id")]
    pub id: EventId,
    /// `event`, or `v2.core.event` for a thin notification.
    #[serde(default, skip_serializing_if = "LenientField::is_absent")]
    pub object: LenientField<String>,
    #[serde(rename = "type")]
    pub event_type: EventType,
    /// The connected account; `None` for the platform's own account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<AccountId>,
    /// True for real money. Missing in some payloads; `interpret` then decides by the environment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub livemode: Option<bool>,
    /// Unix seconds; text in thin events, which makes it malformed there.
    #[serde(default, skip_serializing_if = "LenientField::is_absent")]
    pub created: LenientField<i64>,
    /// The API version that shaped the payload.
    #[serde(default, skip_serializing_if = "LenientField::is_absent")]
    pub api_version: LenientField<String>,
    #[serde(default, skip_serializing_if = "LenientField::is_absent")]
    pub data: LenientField<NestedObject<EventSnapshot>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct EventSnapshot {
    /// The object as it was when Stripe created the event, not as it is now.
    #[serde(default, skip_serializing_if = "LenientField::is_absent")]
    pub object: LenientField<NestedObject<StripeObject>>,
}

lenient_struct! {
    /// The fields we read of PaymentIntents, Checkout Sessions, Charges, Refunds, disputes, warnings and reviews.
    StripeObject {
        id: String,
        /// The kind: `payment_intent`, `checkout.session`, `charge`, …
        object: String,
        payment_intent: PaymentIntentId,
        subscription: String,
        customer: String,
        charge: ChargeId,
        /// Sessions in mode `subscription`; PaymentIntents and charges before the API version of 2025-03 (basil).
        invoice: InvoiceId,
        /// We read it of refunds and disputes.
        status: String,
        /// Reviews.
        open: bool,
        /// Accounts.
        charges_enabled: bool,
        /// Accounts.
        payouts_enabled: bool,
        /// Refunds and charges. All amounts are in the minor unit.
        amount: i64,
        /// Sessions: `paid`, `unpaid` or `no_payment_required`.
        payment_status: String,
        /// PaymentIntents.
        amount_received: i64,
        /// Sessions. Missing if the session only saves a card.
        amount_total: i64,
        /// Sessions: the items, before discount, shipping and tax that is not in their prices.
        amount_subtotal: i64,
        /// Sessions.
        total_details: NestedObject<TotalDetails>,
        /// Sessions: what the application calls the customer, or the cart.
        client_reference_id: String,
        /// Charges: false as long as the amount is only authorised.
        captured: bool,
        /// Charges. Before basil null if the authorisation was released.
        amount_captured: i64,
        /// Charges: cumulative, over all refunds of the charge.
        amount_refunded: i64,
        /// Charges: the attempt's failure, as in `last_payment_error`.
        failure_code: String,
        /// Charges.
        outcome: NestedObject<ChargeOutcome>,
        /// Charges.
        payment_method_details: NestedObject<PaymentMethodDetails>,
        /// Charges: everything went back.
        refunded: bool,
        /// Refunds: why, such as `requested_by_customer`, or `expired_uncaptured_charge` if Stripe made it. Disputes: such as
        /// `fraudulent`.
        reason: String,
        /// Disputes.
        evidence_details: NestedObject<EvidenceDetails>,
        currency: String,
        /// Payments of the platform: the connected account that gets the money.
        transfer_data: NestedObject<TransferDestination>,
        /// Payments of the platform: the connected account for which they are charged.
        on_behalf_of: AccountId,
        /// Charges on a connected account: the transfer that made them. The customer paid on the platform's account.
        source_transfer: String,
        /// PaymentIntents.
        latest_charge: ChargeId,
        /// PaymentIntents: the last failed attempt.
        last_payment_error: NestedObject<PaymentError>,
        /// Written by the tenant: it names entities and proves nothing.
        metadata: NestedObject<StripeMetadata>,
    }
}

lenient_struct! {
    /// How a charge ended.
    ChargeOutcome {
        /// Such as `insufficient_funds`.
        reason: String,
    }
}

lenient_struct! {
    /// Why a session's total is not the sum of its items.
    TotalDetails {
        amount_discount: i64,
        /// Null if nothing is shipped.
        amount_shipping: i64,
        amount_tax: i64,
    }
}

lenient_struct! {
    /// Where the money of a destination charge goes.
    TransferDestination {
        destination: AccountId,
    }
}

lenient_struct! {
    EvidenceDetails {
        /// Unix seconds: until when the dispute can be answered.
        due_by: i64,
    }
}

lenient_struct! {
    PaymentMethodDetails {
        card: NestedObject<CardDetails>,
    }
}

lenient_struct! {
    CardDetails {
        /// Unix seconds: until when an authorised amount can be captured.
        capture_before: i64,
    }
}

lenient_struct! {
    /// `last_payment_error`.
    PaymentError {
        /// Such as `card_declined`.
        code: String,
        /// Such as `insufficient_funds`.
        decline_code: String,
        /// The charge of the attempt.
        charge: ChargeId,
    }
}

/// The metadata keys that name a statement, in both spellings.
pub(super) const STATEMENT_KEYS: [&str; 2] = ["statementId", "statement_id"];
/// Those of a hint for people and logs; the account decides the tenant.
pub(super) const TENANT_KEYS: [&str; 2] = ["tenant_id", "tenantId"];
/// Those of the user who pays.
pub(super) const USER_KEYS: [&str; 2] = ["userId", "user_id"];

/// All metadata, because a parameter says which keys name an order.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize)]
#[serde(transparent)]
pub struct StripeMetadata(BTreeMap<String, LenientField<String>>);

/// What Stripe allows. Whatever is beyond comes from nobody whom we know, and is left out.
const METADATA_ENTRIES_MAX: usize = 50;
const METADATA_KEY_MAX: usize = 40;

impl<'de> Deserialize<'de> for StripeMetadata {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_map(MetadataVisitor)
    }
}

struct MetadataVisitor;

impl<'de> Visitor<'de> for MetadataVisitor {
    type Value = StripeMetadata;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<StripeMetadata, A::Error> {
        let mut entries = BTreeMap::new();
        while let Some((key, value)) = map.next_entry::<String, LenientField<String>>()? {
            // Two readers may take different ones, so neither counts as read.
            if entries.contains_key(&key) {
                return Err(A::Error::custom("a key of the metadata is there twice"));
            }
            if entries.len() < METADATA_ENTRIES_MAX && key.chars().count() <= METADATA_KEY_MAX {
                entries.insert(key, value);
            }
        }
        Ok(StripeMetadata(entries))
    }
}

impl StripeMetadata {
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.value().map(String::as_str)
    }

    /// What the first of these keys has that is there. Applications use both spellings of a key.
    pub fn first(&self, keys: [&str; 2]) -> Option<&str> {
        keys.into_iter().find_map(|key| self.get(key))
    }
}

/// The id of every test event that Stripe's dashboard sends: by it, the second one would be a duplicate of the first.
const DASHBOARD_TEST_ID: &str = "evt_00000000000000";

/// An id by the bytes of the body, so that a redelivery has the same one.
fn name_test_event(raw_body: &[u8]) -> Option<EventId> {
    let digest = HEXLOWER.encode(&Sha256::digest(raw_body));
    let digest = digest.get(..16)?;
    EventId::parse(&format!("{DASHBOARD_TEST_ID}_{digest}")).ok()
}

fn parse_own_event_id<'de, D: Deserializer<'de>>(from: D) -> Result<EventId, D::Error> {
    let text = Cow::<str>::deserialize(from)?;
    ProviderId::Stripe
        .parse_event_id(&text)
        .map_err(D::Error::custom)
}

impl StripeEvent {
    pub fn parse(raw_body: &[u8]) -> Result<Self, JsonError> {
        let mut event: Self = parse_body(raw_body)?;
        if event.id.as_str() == DASHBOARD_TEST_ID {
            event.id = name_test_event(raw_body).unwrap_or(event.id);
        }
        Ok(event)
    }

    /// `data.object`, the object that the event is about.
    pub fn resource(&self) -> Option<&StripeObject> {
        let NestedObject(data) = self.data.value()?;
        data.object.value().map(|NestedObject(resource)| resource)
    }

    /// When Stripe created the event. Whole seconds, so two events of one object may have the same time.
    pub fn created(&self) -> Option<Timestamp> {
        let seconds = *self.created.value()?;
        Timestamp::from_unix_s(seconds).ok()
    }

    /// Whether the payload has the form of an API version before 2025-03-31 (basil). Versions begin with their date.
    pub(super) fn is_before_basil(&self) -> bool {
        let version = self.api_version.value();
        version.is_some_and(|version| version.as_str() < "2025-03-31")
    }

    /// Thin events must be recognised before anything else is read: without an object they would look malformed and be
    /// parked, although nothing is wrong with them.
    pub fn is_thin(&self) -> bool {
        self.object
            .value()
            .is_some_and(|object| object == "v2.core.event")
    }

    /// The columns that ingress stores beside the payload. Nothing here fails: an odd object still gets a group.
    pub(super) fn envelope(&self) -> EventEnvelope {
        let resource = self.resource();
        let object_id = resource.and_then(|r| r.id.value().cloned());
        // The PaymentIntent first, because all events of a payment change the same order: its charge, refund and
        // dispute events in one message group are handled one at a time and lose no races against each other.
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
            created_at: self.created(),
            livemode: self.livemode,
            api_version: self.api_version.value().cloned(),
            object_id,
            template_version: None,
            tenant_hint: resource
                .and_then(StripeObject::metadata)
                .and_then(|metadata| metadata.first(TENANT_KEYS))
                .map(str::to_owned),
            group: message_group(ProviderId::Stripe, self.account.as_ref(), &grouped_by),
        }
    }
}

impl StripeObject {
    pub fn metadata(&self) -> Option<&StripeMetadata> {
        self.metadata.value().map(|NestedObject(metadata)| metadata)
    }

    /// The connected accounts that get the money of a platform's payment, or for which it is charged. Fails if one is there
    /// and cannot be read: unread, the money could become another tenant's.
    pub fn recipients(&self) -> Result<BTreeSet<AccountId>, MalformedField> {
        let destination = match self.transfer_data.checked()? {
            Some(NestedObject(transfer)) => transfer.destination.checked()?,
            None => None,
        };
        let behalf = self.on_behalf_of.checked()?;
        Ok(destination.into_iter().chain(behalf).cloned().collect())
    }

    /// Whether it is how a transfer from the platform appears on a connected account, and not a customer's payment.
    pub fn is_transfer(&self) -> bool {
        self.source_transfer.value().is_some()
    }

    /// The PaymentIntent that the object is or belongs to. Fails with [`MalformedField`] if the id is there and wrong,
    /// so that the event is parked: read as missing, a payment would end as `nothing_named`.
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

    /// All names of the payment that the object is or belongs to, the best first: its PaymentIntent, session and charge.
    /// No later event asks about the charge of a failed attempt, so such a charge is no name of its PaymentIntent.
    pub fn payment_names(&self) -> Result<Vec<PaymentRef>, MalformedField> {
        let kind = self.object.value().map_or("", String::as_str);
        let session = match kind {
            "checkout.session" => Some(PaymentRef::Session(self.session()?)),
            _ => None,
        };
        let charge = match kind {
            "charge" => {
                let id = self.id.checked()?.ok_or(MalformedField)?;
                Some(ChargeId::parse(id).map_err(|_| MalformedField)?)
            }
            "payment_intent"
                if self
                    .status
                    .value()
                    .is_some_and(|status| status == "succeeded") =>
            {
                self.latest_charge.value().cloned()
            }
            _ => self.charge.checked()?.cloned(),
        };
        let intent = self.intent()?.map(PaymentRef::Intent);
        let is_failed =
            kind == "charge" && self.status.value().is_some_and(|status| status == "failed");
        let charge = charge.filter(|_| intent.is_none() || !is_failed);
        let charge = charge.map(PaymentRef::Charge);
        Ok(intent.into_iter().chain(session).chain(charge).collect())
    }

    pub fn session(&self) -> Result<CheckoutSessionId, MalformedField> {
        let id = self.id.value().ok_or(MalformedField)?;
        CheckoutSessionId::parse(id).map_err(|_| MalformedField)
    }
}
