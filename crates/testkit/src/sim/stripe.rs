//! Stripe, and Lob as far as it sends events: payments by their rules, the list of events, webhook endpoints. What each
//! event says is kept beside it, for whoever checks.

use std::collections::BTreeMap;
use std::sync::Arc;

use billhook_core::entity::EntityKey;
use billhook_core::error::DependencyError;
use billhook_core::ids::{AccountId, CheckoutSessionId, ProviderId};
use billhook_core::provider::stripe::types::{IntentStatus, SessionStatus};
use billhook_core::tasks::cleanup::CancellablePayment;
use billhook_core::tasks::ports::{EventsPage, ListEvents, ListEventsError, PaymentsAtStripe};
use billhook_core::tasks::reconcile::ListingSpan;
use billhook_core::time::Timestamp;
use serde_json::{Value, json};
use tokio::sync::Notify;

use super::{Call, Lost, Mutant, Port, Service, World};
use crate::events;

/// Stands in every event's body, and must stand nowhere but in the store.
pub const PERSONAL_CANARY: &str = "CANARYperson@example.com";

/// What an event says, in the words of the oracle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Says {
    /// Nothing that moves an entity.
    Nothing,
    /// An attempt failed.
    Failed,
    /// Money is on its way.
    Processing,
    /// It can no longer be paid.
    Canceled,
    /// So much was paid.
    Paid(i64),
    /// A refund, its amount and its state.
    Refund(String, i64, &'static str),
    /// So much of the charge went back in all.
    Refunded(i64),
    /// A dispute and its state.
    Dispute(String, &'static str),
    /// A fraud warning.
    Warning,
    /// A piece of mail has reached a stage.
    Mail(&'static str),
}

/// What becomes of an event once everything is quiet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// Its facts are in this entity, as soon as something links them.
    In(EntityKey),
    /// It means nothing.
    Ignored,
    /// It waits for a person.
    Parked(&'static str),
}

/// An event that a provider made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Emitted {
    /// Whose.
    pub provider: ProviderId,
    /// Its id.
    pub id: String,
    /// Its type.
    pub kind: String,
    /// The connected account.
    pub account: Option<String>,
    /// The second in which it happened.
    pub done_through_s: i64,
    /// Its JSON.
    pub body: String,
    /// The payment or piece that it is about.
    pub of: String,
    /// Whether it names its entity itself.
    pub links: bool,
    /// What it says.
    pub says: Says,
    /// What becomes of it.
    pub end: End,
}

/// A payment.
#[derive(Clone, Debug)]
pub struct Intent {
    /// What is paid by it.
    pub pays: EntityKey,
    /// Where it lives.
    pub account: Option<AccountId>,
    /// Its amount.
    pub amount: i64,
    /// Whether its metadata names the entity.
    pub is_named: bool,
    /// Its Checkout Session.
    pub session: Option<(String, SessionStatus)>,
    /// What it was, since when.
    pub statuses: Vec<(Timestamp, IntentStatus)>,
}

impl Intent {
    /// Where it stands.
    pub fn status(&self) -> IntentStatus {
        let last = self.statuses.last().map(|(_, status)| status.clone());
        last.unwrap_or(IntentStatus::RequiresPaymentMethod)
    }

    /// Whether the customer, or we, may still end it.
    pub fn is_open(&self) -> bool {
        matches!(
            self.status(),
            IntentStatus::RequiresPaymentMethod
                | IntentStatus::RequiresConfirmation
                | IntentStatus::RequiresAction
        )
    }

    /// Its metadata.
    pub fn metadata(&self) -> Value {
        match self.is_named {
            true => naming(&self.pays),
            false => json!({}),
        }
    }
}

/// Metadata that names an entity.
pub fn naming(key: &EntityKey) -> Value {
    match key {
        EntityKey::Order(id) => json!({ "orderId": id.as_str() }),
        EntityKey::Statement(id) => json!({ "statement_id": id.as_str() }),
        EntityKey::Tenant(_) => json!({}),
    }
}

/// A webhook endpoint.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Its id.
    pub id: String,
    /// Where it sends to.
    pub url: String,
    /// What it sends.
    pub types: Vec<String>,
    /// Its tags.
    pub metadata: BTreeMap<String, String>,
    /// What it signs with.
    pub secret: String,
    /// When it was deleted.
    pub deleted_at: Option<Timestamp>,
}

/// Stripe's memory.
#[derive(Debug, Default)]
pub struct Stripe {
    /// By id.
    pub intents: BTreeMap<String, Intent>,
    /// In the order in which they were made, Lob's too.
    pub events: Vec<Emitted>,
    /// Tells that an event was made.
    pub emitted: Arc<Notify>,
    /// Every endpoint that ever was.
    pub endpoints: Vec<Endpoint>,
    /// By idempotency key: the endpoint that was made.
    pub saved: BTreeMap<String, usize>,
    ids: u64,
}

impl Stripe {
    /// An id nobody else has.
    pub fn id(&mut self, prefix: &str) -> String {
        self.ids += 1;
        format!("{prefix}_{:04}", self.ids)
    }

    /// An event is made.
    pub fn emit(&mut self, event: Emitted) {
        self.events.push(event);
        self.emitted.notify_one();
    }
}

impl World {
    /// Stripe's event about a payment. `body` is made from the event's id and the second.
    pub fn emit_about(
        &mut self,
        intent: &str,
        says: Says,
        links: bool,
        body: impl FnOnce(&str, i64) -> Value,
    ) {
        let now_s = self.now().unix_s();
        let id = self.stripe.id("evt");
        let Some(payment) = self.stripe.intents.get(intent).cloned() else {
            return;
        };
        let mut event = body(&id, now_s);
        let account = payment.account.as_ref().map(ToString::to_string);
        if let Some(account) = &account {
            event = events::from_account(event, account);
        }
        let kind = event
            .get("type")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let kind = kind.to_owned();
        self.tell(|| format!("stripe         {id} {kind} {intent} {says:?}"));
        self.stripe.emit(Emitted {
            provider: ProviderId::Stripe,
            id,
            kind,
            account,
            done_through_s: now_s,
            body: event.to_string(),
            of: intent.to_owned(),
            links,
            says,
            end: End::In(payment.pays),
        });
    }

    /// A payment moves on, and an event says so.
    pub fn move_intent(&mut self, intent: &str, status: IntentStatus, says: Says) {
        let now = self.now();
        let Some(payment) = self.stripe.intents.get_mut(intent) else {
            return;
        };
        payment.statuses.push((now, status.clone()));
        let (metadata, links, amount) = (payment.metadata(), payment.is_named, payment.amount);
        self.emit_about(intent, says, links, |id, now_s| match status {
            IntentStatus::Succeeded => {
                events::intent_succeeded(id, now_s, intent, metadata, amount)
            }
            other => events::intent_is(id, now_s, intent, metadata, other.as_str()),
        });
    }

    fn expire(&mut self, intent: &str) -> Option<SessionStatus> {
        let payment = self.stripe.intents.get_mut(intent)?;
        let is_open = payment.is_open();
        let pays = payment.pays.clone();
        let (session, status) = payment.session.as_mut()?;
        if *status == SessionStatus::Open && is_open {
            *status = SessionStatus::Expired;
            let session = session.clone();
            self.emit_about(intent, Says::Nothing, true, |id, now_s| {
                let object = json!({
                    "id": session, "object": "checkout.session", "status": "expired",
                    "payment_status": "unpaid", "payment_intent": intent, "amount_total": 4200,
                    "currency": "usd", "metadata": naming(&pays),
                });
                events::stripe(id, "checkout.session.expired", now_s, object)
            });
            self.move_intent(intent, IntentStatus::Canceled, Says::Canceled);
            return Some(SessionStatus::Expired);
        }
        Some(status.clone())
    }
}

fn call(name: &'static str, writes: bool) -> Call {
    Call {
        service: Service::Stripe,
        name,
        writes,
    }
}

impl PaymentsAtStripe for Port {
    type Error = DependencyError;

    async fn status(&self, payment: &CancellablePayment) -> Result<IntentStatus, DependencyError> {
        let intent = payment.intent.to_string();
        let own = intent.clone();
        let status = self.call(call("status", false), &intent, move |world| {
            let unheard = world.mutant == Some(Mutant::ProcessingUnheard);
            match world.stripe.intents.get(&own).map(Intent::status) {
                Some(IntentStatus::Processing | IntentStatus::Succeeded) if unheard => {
                    IntentStatus::Canceled
                }
                Some(status) => status,
                None => IntentStatus::Canceled,
            }
        });
        Ok(status.await?)
    }

    async fn open_session(
        &self,
        payment: &CancellablePayment,
    ) -> Result<Option<CheckoutSessionId>, DependencyError> {
        let intent = payment.intent.to_string();
        let own = intent.clone();
        let session = self.call(call("open_session", false), &intent, move |world| {
            let session = world.stripe.intents.get(&own)?.session.clone();
            let (id, _) = session.filter(|(_, status)| *status == SessionStatus::Open)?;
            CheckoutSessionId::parse(&id).ok()
        });
        Ok(session.await?)
    }

    async fn expire(
        &self,
        payment: &CancellablePayment,
        _: &CheckoutSessionId,
        _: &str,
    ) -> Result<SessionStatus, DependencyError> {
        let intent = payment.intent.to_string();
        let own = intent.clone();
        let expired = self.call(call("expire", true), &intent, move |world| {
            world.expire(&own).unwrap_or(SessionStatus::Expired)
        });
        Ok(expired.await?)
    }

    async fn cancel(
        &self,
        payment: &CancellablePayment,
        _: &str,
    ) -> Result<IntentStatus, DependencyError> {
        let intent = payment.intent.to_string();
        let own = intent.clone();
        let cancelled = self.call(call("cancel", true), &intent, move |world| {
            let is_open = world.stripe.intents.get(&own).is_some_and(|payment| {
                let session = payment.session.as_ref();
                let in_session = session.is_some_and(|(_, status)| *status == SessionStatus::Open);
                payment.is_open() && !in_session
            });
            if is_open {
                world.move_intent(&own, IntentStatus::Canceled, Says::Canceled);
            }
            let intent = world.stripe.intents.get(&own);
            intent.map_or(IntentStatus::Canceled, Intent::status)
        });
        Ok(cancelled.await?)
    }
}

impl ListEvents for Port {
    async fn list_events(
        &self,
        account: Option<&AccountId>,
        types: &[&str],
        span: &ListingSpan,
    ) -> Result<EventsPage, ListEventsError> {
        let account = account.map(ToString::to_string);
        let of = account.clone().unwrap_or_default();
        let types: Vec<String> = types.iter().map(|&kind| kind.to_owned()).collect();
        let span = span.clone();
        let failed = |lost: Lost| ListEventsError::Failed(lost.told());
        let page = self.call(call("list_events", false), &of, move |world| {
            let all = world.stripe.events.iter().rev();
            let listed: Vec<&Emitted> = all
                .filter(|event| event.provider == ProviderId::Stripe && event.account == account)
                .filter(|event| types.contains(&event.kind))
                .filter(|event| (span.from_s..=span.until_s).contains(&event.done_through_s))
                .collect();
            let from = match &span.after {
                None => 0,
                Some(after) => listed.iter().position(|event| event.id == *after)? + 1,
            };
            let page = listed.get(from..).unwrap_or_default();
            Some(EventsPage {
                bodies: page
                    .iter()
                    .take(20)
                    .map(|event| event.body.clone())
                    .collect(),
                has_more: page.len() > 20,
            })
        });
        let unplaced = || ListEventsError::Unplaced("resource_missing".to_owned());
        page.await.map_err(failed)?.ok_or_else(unplaced)
    }
}
