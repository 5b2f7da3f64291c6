//! The simulated providers: Stripe with payments, event list and webhook endpoints, and Lob as a sender of events.
//! Each event is stored with its fact, for the oracle and the checks.

use std::collections::BTreeMap;
use std::sync::Arc;

use billhook_core::entity::EntityKey;
use billhook_core::ids::{AccountId, CheckoutSessionId, EventId, ProviderId};
use billhook_core::provider::stripe::types::{
    IntentSnapshot, IntentStatus, NextActionType, SessionStatus,
};
use billhook_core::tasks::cleanup::{CancellablePayment, CancellableSession};
use billhook_core::tasks::ports::{
    EventsPage, ListEvents, ListEventsError, PaymentCallError, PaymentsAtStripe,
};
use billhook_core::tasks::reconcile::ListingSpan;
use billhook_core::time::Timestamp;
use serde_json::{Value, json};
use tokio::sync::Notify;

use super::{Call, Lost, Mutant, Port, Service, World};
use crate::events;
use crate::events::fetched;

/// Part of every event's body; it must appear nowhere but in the store.
pub const PERSONAL_CANARY: &str = "CANARYperson@example.com";

/// An event's fact, in the words of the oracle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Says {
    /// No fact about an entity.
    Nothing,
    Failed,
    /// The payment is processing.
    Processing,
    /// The payment was canceled.
    Canceled,
    /// The payment succeeded with this amount.
    Paid(i64),
    /// A refund's amount and state.
    Refund(String, i64, &'static str),
    /// The charge's cumulative refunded amount.
    /// In all, of what was captured.
    Refunded(i64, i64),
    /// Its state, and what it is about.
    Dispute(String, &'static str, i64),
    Warning,
    /// A piece of mail reached a stage.
    Mail(&'static str),
}

/// The outcome that an event must have when everything is quiet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// Processed: its facts are in this entity, once something links them.
    In(EntityKey),
    /// Processed: its payment has its facts, and no order or statement is linked to that payment.
    Unlinked,
    /// Ignored.
    Ignored,
    /// Parked until a manual action.
    Parked(&'static str),
}

/// An event that a provider created.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Emitted {
    pub provider: ProviderId,
    pub id: String,
    pub kind: String,
    /// The connected account.
    pub account: Option<String>,
    /// Unix seconds.
    pub created_s: i64,
    pub body: String,
    pub of: String,
    /// True if the event itself names its entity.
    pub links: bool,
    pub says: Says,
    pub end: End,
}

#[derive(Clone, Debug)]
pub struct Intent {
    /// The entity that it pays.
    pub pays: EntityKey,
    /// `None` is the platform's own account.
    pub account: Option<AccountId>,
    pub amount: i64,
    /// True if its metadata names the entity.
    pub is_named: bool,
    /// The invoice that it pays; the session of its order made it.
    pub invoice: Option<String>,
    /// Another order that some of its events name.
    pub rival: Option<EntityKey>,
    pub session: Option<(String, SessionStatus)>,
    pub created: Timestamp,
    /// What the customer has to do, while it is in `requires_action`.
    pub next_action: Option<NextActionType>,
    /// Its states, with the time of each change.
    pub statuses: Vec<(Timestamp, IntentStatus)>,
}

impl Intent {
    pub fn status(&self) -> IntentStatus {
        let last = self.statuses.last().map(|(_, status)| status.clone());
        last.unwrap_or(IntentStatus::RequiresPaymentMethod)
    }

    /// True if the customer can still pay or we can still cancel it.
    pub fn is_open(&self) -> bool {
        matches!(
            self.status(),
            IntentStatus::RequiresPaymentMethod
                | IntentStatus::RequiresConfirmation
                | IntentStatus::RequiresAction
        )
    }

    /// True if the customer has something to pay with, or the money is on its way.
    pub fn is_under_way(&self) -> bool {
        match self.status() {
            IntentStatus::Processing => true,
            IntentStatus::RequiresAction => {
                matches!(self.next_action, None | Some(NextActionType::Other(_)))
            }
            _ => false,
        }
    }

    pub fn metadata(&self) -> Value {
        match self.is_named {
            true => naming(&self.pays),
            false => json!({}),
        }
    }
}

/// Metadata that names an entity, if it can.
pub fn naming(key: &EntityKey) -> Value {
    if let EntityKey::Order(id) = key {
        return json!({ "orderId": id.as_str() });
    }
    if let EntityKey::Statement(id) = key {
        return json!({ "statement_id": id.as_str() });
    }
    json!({})
}

/// A Checkout Session that the application made and that no event has mentioned: the customer has its page, and it gets
/// a PaymentIntent once the customer pays.
#[derive(Clone, Debug)]
pub struct CheckoutPage {
    pub pays: EntityKey,
    pub account: Option<AccountId>,
    pub intent: Option<String>,
    pub expired_at: Option<Timestamp>,
}

#[derive(Clone, Debug)]
pub struct Endpoint {
    pub id: String,
    pub url: String,
    pub types: Vec<String>,
    pub metadata: BTreeMap<String, String>,
    pub secret: String,
    pub deleted_at: Option<Timestamp>,
}

#[derive(Debug, Default)]
pub struct Stripe {
    pub intents: BTreeMap<String, Intent>,
    /// By session.
    pub pages: BTreeMap<String, CheckoutPage>,
    /// By run and payment: since when the run of the cleanup has known its state.
    pub read: BTreeMap<(String, String), Timestamp>,
    /// What the cleanup ended although it had been told that it is under way.
    pub ended_under_way: Vec<String>,
    /// In the order of their creation, including Lob's.
    pub events: Vec<Emitted>,
    /// Notified when an event is created.
    pub emitted: Arc<Notify>,
    /// All endpoints, including deleted ones.
    pub endpoints: Vec<Endpoint>,
    /// What people decided about a payment, the last decision only.
    pub relinked: BTreeMap<String, EntityKey>,
    /// The created endpoint by idempotency key.
    pub saved: BTreeMap<String, usize>,
    ids: u64,
}

impl Stripe {
    /// A new unique id.
    pub fn id(&mut self, prefix: &str) -> String {
        self.ids += 1;
        format!("{prefix}_{:04}", self.ids)
    }

    /// Adds an event.
    pub fn emit(&mut self, event: Emitted) {
        self.events.push(event);
        self.emitted.notify_one();
    }
}

impl World {
    /// Adds a Stripe event about a payment. `body` gets the event's id and time (Unix seconds).
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
        if let (Some(invoice), Some(object)) = (&payment.invoice, event.pointer_mut("/data/object"))
            && let Some(members) = object.as_object_mut()
            && ["payment_intent", "charge"]
                .iter()
                .any(|kind| members.get("object") == Some(&json!(kind)))
        {
            members.insert("invoice".to_owned(), json!(invoice));
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
            created_s: now_s,
            body: event.to_string(),
            of: intent.to_owned(),
            links,
            says,
            end: End::In(payment.pays),
        });
    }

    /// Changes a payment's state and adds the event about it.
    pub fn move_intent(&mut self, intent: &str, status: IntentStatus, says: Says) {
        let now = self.now();
        let Some(payment) = self.stripe.intents.get_mut(intent) else {
            return;
        };
        payment.statuses.push((now, status.clone()));
        let (metadata, links, amount) = (payment.metadata(), payment.is_named, payment.amount);
        self.emit_about(intent, says, links, |id, now_s| match status {
            IntentStatus::Succeeded => {
                let mut event = events::intent_succeeded(id, now_s, intent, metadata, amount);
                // Of the payment's only charge that is not a failed attempt.
                if let Some(object) = event.pointer_mut("/data/object")
                    && let Some(members) = object.as_object_mut()
                {
                    let charge = intent.replace("pi_", "ch_");
                    members.insert("latest_charge".to_owned(), json!(charge));
                }
                event
            }
            other => events::intent_is(id, now_s, intent, metadata, other.as_str()),
        });
    }

    /// The payment that a session is of.
    fn intent_of_session(&self, session: &str) -> Option<String> {
        let intents = self.stripe.intents.iter();
        let mut its = intents.filter(|(_, intent)| {
            let of = intent.session.as_ref();
            of.is_some_and(|(id, _)| id == session)
        });
        its.next().map(|(id, _)| id.clone())
    }

    /// The state of a session; `None` if there is none.
    pub fn session_status(&self, session: &str) -> Option<SessionStatus> {
        if let Some(intent) = self.intent_of_session(session) {
            let (_, status) = self.stripe.intents.get(&intent)?.session.clone()?;
            return Some(status);
        }
        let page = self.stripe.pages.get(session)?;
        Some(match page.expired_at {
            Some(_) => SessionStatus::Expired,
            None => SessionStatus::Open,
        })
    }

    fn expire(&mut self, by: &str, session: &str) -> Option<SessionStatus> {
        match self.intent_of_session(session) {
            Some(intent) => self.expire_with_intent(by, &intent),
            None => self.expire_page(session),
        }
        self.session_status(session)
    }

    fn expire_page(&mut self, session: &str) {
        let now = self.now();
        let Some(page) = self.stripe.pages.get_mut(session) else {
            return;
        };
        if page.expired_at.is_some() {
            return;
        }
        page.expired_at = Some(now);
        let page = page.clone();
        let id = self.stripe.id("evt");
        let object = json!({
            "id": session, "object": "checkout.session", "status": "expired", "payment_status": "unpaid",
            "payment_intent": null, "amount_total": 4200, "currency": "usd", "metadata": naming(&page.pays),
        });
        let kind = "checkout.session.expired";
        let mut event = events::stripe(&id, kind, now.unix_s(), object);
        let account = page.account.as_ref().map(ToString::to_string);
        if let Some(account) = &account {
            event = events::from_account(event, account);
        }
        self.sometimes("old session expired");
        self.tell(|| format!("stripe         {id} {session} expires"));
        self.stripe.emit(Emitted {
            provider: ProviderId::Stripe,
            id,
            kind: kind.to_owned(),
            account,
            created_s: now.unix_s(),
            body: event.to_string(),
            of: session.to_owned(),
            links: true,
            says: Says::Nothing,
            end: End::In(page.pays),
        });
    }

    /// Notes what is ended although it had been under way since before the run asked.
    fn note_end(&mut self, by: &str, intent: &str) {
        let Some(payment) = self.stripe.intents.get(intent) else {
            return;
        };
        let since = payment.statuses.last().map(|(at, _)| *at);
        let read = self.stripe.read.get(&(by.to_owned(), intent.to_owned()));
        if payment.is_under_way() && since < read.copied() {
            let told = format!("{by} ended {intent}, which was under way since {since:?}");
            self.stripe.ended_under_way.push(told);
        }
    }

    fn expire_with_intent(&mut self, by: &str, intent: &str) {
        let Some(payment) = self.stripe.intents.get_mut(intent) else {
            return;
        };
        let is_open = payment.is_open();
        let pays = payment.pays.clone();
        let Some((session, status)) = payment.session.as_mut() else {
            return;
        };
        if *status == SessionStatus::Open && is_open {
            *status = SessionStatus::Expired;
            let session = session.clone();
            self.note_end(by, intent);
            self.emit_about(intent, Says::Nothing, true, |id, now_s| {
                let object = json!({
                    "id": session, "object": "checkout.session", "status": "expired",
                    "payment_status": "unpaid", "payment_intent": intent, "amount_total": 4200,
                    "currency": "usd", "metadata": naming(&pays),
                });
                events::stripe(id, "checkout.session.expired", now_s, object)
            });
            self.move_intent(intent, IntentStatus::Canceled, Says::Canceled);
        }
    }

    fn read_intent(&mut self, by: &str, intent: &str) -> Option<IntentSnapshot> {
        let now = self.now();
        let known = (by.to_owned(), intent.to_owned());
        self.stripe.read.insert(known, now);
        let payment = self.stripe.intents.get(intent)?;
        let mut snapshot = IntentSnapshot {
            status: payment.status(),
            next_action: payment.next_action.clone(),
            created: Some(payment.created),
        };
        match (self.mutant, &snapshot.status) {
            (
                Some(Mutant::ProcessingUnheard),
                IntentStatus::Processing | IntentStatus::Succeeded,
            ) => snapshot.status = IntentStatus::Canceled,
            (Some(Mutant::ActionUnheard), IntentStatus::RequiresAction) => {
                snapshot.next_action = Some(NextActionType::RedirectToUrl);
                snapshot.created = Timestamp::from_unix_s(0).ok();
            }
            _ => {}
        }
        Some(snapshot)
    }

    fn cancel(&mut self, by: &str, intent: &str) -> Option<IntentSnapshot> {
        let payment = self.stripe.intents.get(intent)?;
        // Stripe cancels no payment of a session.
        if payment.is_open() && payment.session.is_none() {
            self.note_end(by, intent);
            self.move_intent(intent, IntentStatus::Canceled, Says::Canceled);
        }
        self.read_intent(by, intent)
    }
}

fn call(name: &'static str, writes: bool) -> Call {
    Call {
        service: Service::Stripe,
        name,
        writes,
    }
}

fn failed(lost: Lost) -> PaymentCallError {
    PaymentCallError::Failed(lost.told())
}

impl PaymentsAtStripe for Port {
    async fn read_intent(
        &self,
        payment: &CancellablePayment,
    ) -> Result<Option<IntentSnapshot>, PaymentCallError> {
        let intent = payment.intent.to_string();
        let (by, own) = (self.name().to_owned(), intent.clone());
        let read = move |world: &mut World| world.read_intent(&by, &own);
        let read = self.call(call("status", false), &intent, read).await;
        read.map_err(failed)
    }

    async fn list_sessions(
        &self,
        payment: &CancellablePayment,
    ) -> Result<Vec<(CheckoutSessionId, SessionStatus)>, PaymentCallError> {
        let intent = payment.intent.to_string();
        let own = intent.clone();
        let listed = self.call(call("sessions", false), &intent, move |world| {
            let intent = world.stripe.intents.get(&own);
            let session = intent.and_then(|intent| intent.session.clone());
            let session = session.into_iter();
            let session = session
                .filter_map(|(id, status)| Some((CheckoutSessionId::parse(&id).ok()?, status)));
            session.collect::<Vec<_>>()
        });
        listed.await.map_err(failed)
    }

    async fn read_session(
        &self,
        session: &CancellableSession,
    ) -> Result<Option<SessionStatus>, PaymentCallError> {
        let session = session.session.to_string();
        let own = session.clone();
        let read = self.call(call("session", false), &session, move |world| {
            match world.mutant {
                Some(Mutant::SessionUnheard) => None,
                _ => world.session_status(&own),
            }
        });
        read.await.map_err(failed)
    }

    async fn expire_session(
        &self,
        session: &CancellableSession,
        _: &str,
    ) -> Result<Option<SessionStatus>, PaymentCallError> {
        let session = session.session.to_string();
        let (by, own) = (self.name().to_owned(), session.clone());
        let expire = move |world: &mut World| world.expire(&by, &own);
        let expired = self.call(call("expire", true), &session, expire).await;
        expired.map_err(failed)
    }

    async fn cancel_payment(
        &self,
        payment: &CancellablePayment,
        _: &str,
    ) -> Result<Option<IntentSnapshot>, PaymentCallError> {
        let intent = payment.intent.to_string();
        let (by, own) = (self.name().to_owned(), intent.clone());
        let cancel = move |world: &mut World| world.cancel(&by, &own);
        let cancelled = self.call(call("cancel", true), &intent, cancel).await;
        cancelled.map_err(failed)
    }
}

impl ListEvents for Port {
    async fn is_event_of_platform(&self, event: &EventId) -> Result<bool, ListEventsError> {
        let own = event.as_str().to_owned();
        let answer = self.call(call("read_event", false), event.as_str(), move |world| {
            let events = world.stripe.events.iter();
            let mut events = events.filter(|event| event.provider == ProviderId::Stripe);
            events.any(|event| event.id == own && event.account.is_none())
        });
        let failed = |lost: Lost| ListEventsError::Failed(lost.told());
        answer.await.map_err(failed)
    }

    async fn list_events(
        &self,
        account: Option<&AccountId>,
        types: &[&str],
        span: &ListingSpan,
    ) -> Result<EventsPage, ListEventsError> {
        let asked = account.cloned();
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
                .filter(|event| (span.from_s..=span.until_s).contains(&event.created_s))
                .collect();
            let from = match &span.after {
                None => 0,
                Some(after) => listed.iter().position(|event| event.id == *after)? + 1,
            };
            let page = listed.get(from..).unwrap_or_default();
            Some(EventsPage {
                events: page
                    .iter()
                    .take(20)
                    .map(|event| fetched(event.body.clone(), asked.as_ref()))
                    .collect(),
                has_more: page.len() > 20,
            })
        });
        let unplaced = || ListEventsError::UnknownStartingEvent("resource_missing".to_owned());
        page.await.map_err(failed)?.ok_or_else(unplaced)
    }
}
