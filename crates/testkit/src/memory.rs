//! In-memory fakes of the ports of `billhook_core`: tables with conditional writes and transactions, queues with
//! deduplication, secrets, Stripe, a clock that the test moves. [`Plan`] makes chosen calls fail (fault injection).
//!
//! They behave like the real services where `core` depends on it. `sim` has another store, with time and lagging
//! indexes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use billhook_core::entity::columns::{ColumnType, RowColumns, TimelineFields};
use billhook_core::entity::invoice::InvoiceState;
use billhook_core::entity::key::{InvoiceKey, PaymentKey, StateKey};
use billhook_core::entity::kind::EntityState;
use billhook_core::entity::order::OrderKind;
use billhook_core::entity::payment::state::PaymentState;
use billhook_core::entity::projection::RowStanding;
use billhook_core::entity::rules::RowRules;
use billhook_core::entity::schema::{GuardedColumns, STATE_SCHEMA, UnreadableRow};
use billhook_core::entity::tenant::{AccountHits, TenantColumns, TenantHit};
use billhook_core::entity::timeline::ACTOR;
use billhook_core::entity::{Entity, EntityKey, EntityUpdate};
use billhook_core::error::{DependencyError, error_chain};
use billhook_core::ids::{
    AccountId, CheckoutSessionId, EventId, OrderId, PaymentIntentId, PieceId, ProviderId, TenantId,
};
use billhook_core::intake::inbox::{EventRecord, NewEvent, RecordResult};
use billhook_core::intake::ports::{ReadSigningKeys, RecordEvent, SendMessage};
use billhook_core::outcome::{EventOutcome, IgnoreReason};
use billhook_core::ports::{Clock, Pause};
use billhook_core::proof::listing::{ListStates, ScanSegment, StatePage};
use billhook_core::provider::envelope::DOCTOR_EVENT_TYPE;
use billhook_core::provider::signature::{KeyScope, SigningKey, SigningKeys};
use billhook_core::provider::stripe::types::{
    IntentSnapshot, IntentStatus, NextActionType, SessionStatus,
};
use billhook_core::retry::Disposition;
use billhook_core::tasks::checkpoint::Checkpoint;
use billhook_core::tasks::cleanup::{CancellablePayment, CancellableSession};
use billhook_core::tasks::ports::{
    AccountsPage, ArrivalSpan, ArrivedEvent, CheckpointSaveResult, CheckpointStore, EventsPage,
    FailedOrderPage, FindFailedOrders, FindKnownEvents, FindOpenStates, FindUnfinishedEvents,
    ListAccounts, ListEvents, ListEventsError, PaymentCallError, PaymentsAtStripe, UnfinishedEvent,
    UnfinishedPage,
};
use billhook_core::tasks::reconcile::ListingSpan;
use billhook_core::time::Timestamp;
use billhook_core::worker::ports::{
    ChangedColumn, CommitError, CommitPart, Ledger, LoadedRows, NextState, StoredEvent,
    StoredPayload, TenantLookup,
};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::events::fetched;

/// The events that arrived on this day within a span, as the index would return them.
pub(crate) fn arrived_events<'a>(
    stored: impl Iterator<Item = (&'a EventRecord, &'a BTreeSet<StateKey>)>,
    day: &str,
    span: ArrivalSpan,
) -> Vec<ArrivedEvent> {
    let is_in = |event: &EventRecord| {
        event
            .received_at
            .is_some_and(|at| span.after < at && at <= span.until && at.day() == day)
    };
    let arrived = stored.filter(|(event, _)| is_in(event));
    let arrived = arrived.map(|(event, entities)| ArrivedEvent {
        id: event.id.clone(),
        outcome: event.outcome,
        entities: entities.clone(),
        delivered_at: event
            .received_at
            .filter(|_| event.event_type.as_str() != DOCTOR_EVENT_TYPE),
    });
    arrived.collect()
}

/// One page of the events that are in `OpenIndex` with this outcome, as the index would return it.
pub(crate) fn open_page<'a>(
    stored: impl Iterator<Item = (&'a EventRecord, Option<EventOutcome>)>,
    outcome: EventOutcome,
    until: Timestamp,
    after: Option<&UnfinishedEvent>,
    limit: usize,
) -> UnfinishedPage {
    let key = |event: &UnfinishedEvent| (event.received_at, event.id.clone());
    let mut events: Vec<UnfinishedEvent> = stored
        .filter(|(_, open)| *open == Some(outcome))
        .filter_map(|(stored, _)| {
            Some(UnfinishedEvent {
                id: stored.id.clone(),
                received_at: stored.received_at?,
            })
        })
        .filter(|event| event.received_at <= until)
        .filter(|event| after.is_none_or(|after| key(event) > key(after)))
        .collect();
    events.sort_by_key(key);
    events.truncate(limit);
    let next = events.last().filter(|_| events.len() == limit).cloned();
    UnfinishedPage { events, next }
}

/// States in one page of a segment.
const STATES_PER_PAGE: usize = 60;

/// One page of a segment, as a parallel scan would return it.
pub(crate) fn state_page(
    stored: impl Iterator<Item = StateKey>,
    segment: ScanSegment,
    after: Option<&str>,
) -> StatePage {
    // FNV-1a: any hash that spreads keys would do.
    let hash = |key: &str| {
        key.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        })
    };
    let is_in = |key: &str| hash(key) % u64::from(segment.total) == u64::from(segment.number);
    let mut states: Vec<(String, StateKey)> = stored
        .map(|key| (key.to_string(), key))
        .filter(|(text, _)| is_in(text) && after.is_none_or(|after| text.as_str() > after))
        .collect();
    states.sort();
    states.truncate(STATES_PER_PAGE);
    let next = states.last().filter(|_| states.len() == STATES_PER_PAGE);
    StatePage {
        next: next.map(|(text, _)| text.clone()),
        states: states.into_iter().map(|(_, key)| key).collect(),
    }
}

/// A row as the application creates it: 42.00 usd are due, and nothing else is known.
pub fn entity(key: &EntityKey) -> Entity {
    let row = json!({ "amountTotal": 4200, "amount_due": 4200, "currency": "usd" });
    entity_of(key, row)
}

/// A row with these columns.
#[expect(
    clippy::expect_used,
    reason = "only a state can be unreadable, and it has none"
)]
pub fn entity_of(key: &EntityKey, row: Value) -> Entity {
    key.read(&RowRules::default(), Some(&JsonRow(row)), None::<&Value>)
        .expect("an entity without a state")
}

/// The row of an order, to change what no event changes.
#[expect(clippy::panic, reason = "a test that asks for another row is wrong")]
pub fn order_mut(entity: &mut Entity) -> &mut EntityState<OrderKind> {
    match entity {
        Entity::Order(order) => order,
        other => panic!("{} is no order", other.key()),
    }
}

/// A row as JSON: its columns by name.
#[derive(Debug)]
pub struct JsonRow(pub Value);

impl RowColumns for JsonRow {
    fn column_type(&self, column: &str) -> Option<ColumnType> {
        Some(match self.0.get(column)? {
            Value::Null => return None,
            Value::String(_) => ColumnType::Text,
            Value::Number(_) => ColumnType::Integer,
            Value::Bool(_) => ColumnType::Bool,
            Value::Array(_) => ColumnType::List,
            Value::Object(_) => ColumnType::Map,
        })
    }
    fn text(&self, column: &str) -> Option<&str> {
        self.0.get(column)?.as_str()
    }
    fn integer(&self, column: &str) -> Option<i64> {
        self.0.get(column)?.as_i64()
    }
    fn number(&self, column: &str) -> Option<String> {
        self.0.get(column)?.as_number().map(ToString::to_string)
    }
    fn truth(&self, column: &str) -> Option<bool> {
        self.0.get(column)?.as_bool()
    }
    fn texts(&self, column: &str) -> BTreeSet<String> {
        let texts = self.0.get(column).and_then(Value::as_array);
        let texts = texts.into_iter().flatten().filter_map(Value::as_str);
        texts.map(str::to_owned).collect()
    }
    fn has_own_entries(&self) -> bool {
        let entries = self.0.get("timeline").and_then(Value::as_array);
        let is_own = |entry: &Value| entry.get("actor") == Some(&json!(ACTOR));
        entries.is_some_and(|entries| entries.iter().any(is_own))
    }
    fn timeline_entries(&self, kind: &str) -> Vec<TimelineFields> {
        let entries = self.0.get("timeline").and_then(Value::as_array);
        let entries = entries.into_iter().flatten();
        let of_kind = entries.filter(|entry| entry.get("type") == Some(&json!(kind)));
        let text = |entry: &Value, at: &str| entry.pointer(at)?.as_str().map(str::to_owned);
        of_kind
            .map(|entry| TimelineFields {
                at: text(entry, "/at"),
                actor: text(entry, "/actor"),
                actor_id: text(entry, "/actorId"),
                reason: text(entry, "/meta/reason"),
            })
            .collect()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The call never arrives.
    Before,
    /// The call takes effect and its answer is lost (unknown outcome).
    AnswerLost,
    /// The SDK repeats the call because the first answer was lost.
    Repeated,
}

/// What happens to the next calls; once it is used up, calls succeed.
#[derive(Debug, Default)]
pub struct Plan(Mutex<VecDeque<Option<Fault>>>);

impl Plan {
    pub fn then(&self, faults: impl IntoIterator<Item = Option<Fault>>) {
        lock(&self.0).extend(faults);
    }

    fn next(&self) -> Option<Fault> {
        lock(&self.0).pop_front().flatten()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn unreachable(doing: &str) -> DependencyError {
    DependencyError {
        doing: doing.to_owned(),
        disposition: Disposition::OutcomeUnknown,
        cause: "planned failure".into(),
    }
}

/// A clock that only the test and pauses move.
#[derive(Debug)]
pub struct FixedClock(Mutex<(Timestamp, u128)>);

impl FixedClock {
    pub fn at(now: Timestamp) -> Self {
        Self(Mutex::new((now, 0)))
    }

    pub fn set(&self, now: Timestamp) {
        lock(&self.0).0 = now;
    }
}

impl Clock for &FixedClock {
    fn now(&self) -> Timestamp {
        (*self).now()
    }

    fn new_id(&self) -> Uuid {
        (*self).new_id()
    }
}

impl Clock for FixedClock {
    fn now(&self) -> Timestamp {
        lock(&self.0).0
    }

    fn new_id(&self) -> Uuid {
        let mut state = lock(&self.0);
        state.1 += 1;
        Uuid::from_u128(0x0193_0000_0000_7000_8000_0000_0000_0000 + state.1)
    }
}

impl Pause for FixedClock {
    async fn pause(&self, span: Duration) {
        let mut state = lock(&self.0);
        state.0 = state.0.after(span);
    }
}

/// Signing secrets without Secrets Manager.
#[derive(Clone, Debug, Default)]
pub struct KnownKeys {
    /// The secrets in the cache.
    pub cached: SigningKeys,
    /// The result of a refresh; `None` if the rate limit forbids one.
    pub fresh: Option<SigningKeys>,
}

impl KnownKeys {
    pub fn one(secret: &str) -> Self {
        let keys = SigningKey::from_value("test", secret, KeyScope::AllEvents)
            .into_iter()
            .collect();
        Self {
            cached: SigningKeys {
                keys,
                ..SigningKeys::default()
            },
            fresh: None,
        }
    }
}

impl ReadSigningKeys for KnownKeys {
    async fn signing_keys(&self) -> SigningKeys {
        self.cached.clone()
    }

    async fn refresh_after_mismatch(&self) -> Option<SigningKeys> {
        self.fresh.clone()
    }

    async fn cached_keys(&self) -> SigningKeys {
        self.cached.clone()
    }
}

/// Messages in the order they were sent; duplicates only once.
#[derive(Debug, Default)]
pub struct MemoryQueue {
    /// (provider, group, deduplication id, body)
    pub sent: Mutex<Vec<(ProviderId, String, String, String)>>,
    /// The number of calls, including failed ones.
    pub calls: Mutex<usize>,
    /// Planned failures.
    pub plan: Plan,
}

impl SendMessage for MemoryQueue {
    async fn send(
        &self,
        provider: ProviderId,
        group: &str,
        deduplication_id: &str,
        body: &str,
    ) -> Result<(), DependencyError> {
        *lock(&self.calls) += 1;
        let fault = self.plan.next();
        if fault != Some(Fault::Before) {
            let mut sent = lock(&self.sent);
            if !sent
                .iter()
                .any(|message| message.1 == group && message.2 == deduplication_id)
            {
                sent.push((
                    provider,
                    group.to_owned(),
                    deduplication_id.to_owned(),
                    body.to_owned(),
                ));
            }
        }
        match fault {
            Some(Fault::Before | Fault::AnswerLost) => Err(unreachable("send")),
            Some(Fault::Repeated) | None => Ok(()),
        }
    }
}

impl SendMessage for &MemoryQueue {
    async fn send(
        &self,
        provider: ProviderId,
        group: &str,
        deduplication_id: &str,
        body: &str,
    ) -> Result<(), DependencyError> {
        (*self).send(provider, group, deduplication_id, body).await
    }
}

#[derive(Clone, Debug)]
pub struct EventRow {
    pub stored: EventRecord,
    pub payload: Vec<u8>,
    /// `processing_error`.
    pub error: Option<String>,
    /// How often a worker wrote the row.
    pub attempts: u32,
    /// The outcome under which it is in `OpenIndex`.
    pub open: Option<EventOutcome>,
    /// What took its facts.
    pub entities: BTreeSet<StateKey>,
}

#[derive(Debug, Default)]
pub struct MemoryTables {
    pub events: Mutex<BTreeMap<EventId, EventRow>>,
    /// Orders and statements.
    pub entities: Mutex<BTreeMap<EntityKey, Entity>>,
    pub payments: Mutex<BTreeMap<PaymentKey, PaymentState>>,
    pub invoices: Mutex<BTreeMap<InvoiceKey, InvoiceState>>,
    /// A read of rows with one of these states is refused as invalid.
    pub refused: Mutex<BTreeSet<StateKey>>,
    /// States that a newer release wrote.
    pub newer: Mutex<BTreeSet<StateKey>>,
    /// Account and tenant.
    pub tenants: Mutex<Vec<(AccountId, TenantId)>>,
    /// An account that a tenant had before, and the tenant.
    pub previous_accounts: Mutex<BTreeSet<(AccountId, TenantId)>>,
    /// The tenants whose events are ignored.
    pub muted: Mutex<BTreeSet<TenantId>>,
    /// The notes of previous accounts that billhook keeps.
    pub account_notes: Mutex<BTreeSet<(AccountId, TenantId)>>,
    /// What a cache or a lagging index still returns for an account, whatever the rows say.
    pub stale_tenants: Mutex<BTreeMap<(AccountId, TenantLookup), AccountHits>>,
    /// The calls, by name.
    pub calls: Mutex<BTreeMap<&'static str, usize>>,
    /// What a lagging index still returns for a payment or piece, whatever the rows say.
    pub stale: Mutex<BTreeMap<String, EntityKey>>,
    /// If true, reads of events never return.
    pub hangs: AtomicBool,
    /// If true, the rows of entities cannot be read.
    pub rows_fail: AtomicBool,
    /// A row whose facts are longer than this as JSON is refused.
    pub facts_bytes_max: Mutex<Option<usize>>,
    /// Planned failures of writes.
    pub writes: Plan,
    /// Planned failures of reads.
    pub reads: Plan,
    /// Commits of this entity never return.
    pub stuck: Mutex<Option<EntityKey>>,
    /// Runs before each commit takes effect, so that a test can make it lose a race.
    pub before_commit: Mutex<VecDeque<fn(&MemoryTables)>>,
    /// The checkpoint of each job.
    pub jobs: Mutex<BTreeMap<String, Checkpoint>>,
    /// Runs at the beginning of each call.
    pub hook: Hook,
}

/// What a test does at the beginning of a call.
#[derive(Default)]
pub struct Hook(Mutex<Option<Box<dyn FnMut() + Send>>>);

impl std::fmt::Debug for Hook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hook")
    }
}

impl Hook {
    pub fn set(&self, run: impl FnMut() + Send + 'static) {
        *lock(&self.0) = Some(Box::new(run));
    }

    /// Call it at the beginning of each call. Calls that the hook itself makes do not run it again.
    fn run(&self) {
        let hook = lock(&self.0).take();
        if let Some(mut hook) = hook {
            hook();
            lock(&self.0).get_or_insert(hook);
        }
    }
}

impl MemoryTables {
    fn count(&self, call: &'static str) {
        self.hook.run();
        *lock(&self.calls).entry(call).or_default() += 1;
    }

    fn read(&self, call: &'static str) -> Result<(), DependencyError> {
        self.count(call);
        match self.reads.next() {
            Some(_) => Err(unreachable(call)),
            None => Ok(()),
        }
    }
}

impl RecordEvent for &MemoryTables {
    async fn record(&self, event: &NewEvent<'_>) -> Result<RecordResult, DependencyError> {
        self.count("record");
        let fault = self.writes.next();
        if fault == Some(Fault::Before) {
            return Err(unreachable("record"));
        }
        let mut events = lock(&self.events);
        let row = EventRow {
            stored: event.to_record(),
            payload: event.body.raw_body().to_vec(),
            error: None,
            attempts: 0,
            open: None,
            entities: BTreeSet::new(),
        };
        let known = events.get(&event.envelope.id).map(|row| row.stored.clone());
        let known = match (known, fault) {
            (Some(known), _) => Some(known),
            (None, fault) => {
                let stored = row.stored.clone();
                events.insert(event.envelope.id.clone(), row);
                (fault == Some(Fault::Repeated)).then_some(stored)
            }
        };
        match fault {
            Some(Fault::AnswerLost) => Err(unreachable("record")),
            _ => Ok(known.map_or(RecordResult::New, RecordResult::Known)),
        }
    }
}

impl FindFailedOrders for &MemoryTables {
    async fn failed_orders(
        &self,
        after: Option<&str>,
        limit: usize,
    ) -> Result<FailedOrderPage, DependencyError> {
        self.read("failed_orders")?;
        let all = lock(&self.entities);
        let failed = all
            .values()
            .filter(|row| row.columns().status.as_deref() == Some("payment_failed"))
            .filter_map(|row| row.key().order().cloned())
            .filter(|id| after.is_none_or(|after| id.as_str() > after));
        let orders: Vec<OrderId> = failed.take(limit).collect();
        let last = orders.last().filter(|_| orders.len() == limit);
        let next = last.map(ToString::to_string);
        Ok(FailedOrderPage { orders, next })
    }
}

impl CheckpointStore for &MemoryTables {
    async fn load_checkpoint(&self, job: &str) -> Result<Checkpoint, DependencyError> {
        self.read("progress")?;
        Ok(lock(&self.jobs).get(job).cloned().unwrap_or_default())
    }

    async fn save_checkpoint(
        &self,
        job: &str,
        read: &Checkpoint,
        next: &Checkpoint,
    ) -> Result<CheckpointSaveResult, DependencyError> {
        self.read("keep")?;
        let mut jobs = lock(&self.jobs);
        let current = jobs.entry(job.to_owned()).or_default();
        if current.done_through_s != read.done_through_s {
            return Ok(CheckpointSaveResult::Superseded);
        }
        *current = next.clone();
        Ok(CheckpointSaveResult::Saved)
    }
}

impl FindUnfinishedEvents for &MemoryTables {
    async fn arrived_events(
        &self,
        day: &str,
        span: ArrivalSpan,
    ) -> Result<Vec<ArrivedEvent>, DependencyError> {
        self.read("arrived_events")?;
        let rows = lock(&self.events);
        let stored = rows.values().map(|row| (&row.stored, &row.entities));
        Ok(arrived_events(stored, day, span))
    }

    async fn mark_open(&self, id: &EventId) -> Result<bool, DependencyError> {
        self.count("mark_open");
        let fault = self.writes.next();
        let mut is_marked = false;
        if fault != Some(Fault::Before)
            && let Some(row) = lock(&self.events).get_mut(id)
            && row.open.is_none()
            && row.stored.outcome == EventOutcome::Pending
        {
            row.open = Some(EventOutcome::Pending);
            is_marked = true;
        }
        match fault {
            Some(Fault::Before | Fault::AnswerLost) => Err(unreachable("mark_open")),
            Some(Fault::Repeated) => Ok(false),
            None => Ok(is_marked),
        }
    }

    async fn unfinished_events(
        &self,
        outcome: EventOutcome,
        until: Timestamp,
        after: Option<&UnfinishedEvent>,
        limit: usize,
    ) -> Result<UnfinishedPage, DependencyError> {
        self.read("open_events")?;
        let rows = lock(&self.events);
        let stored = rows.values().map(|row| (&row.stored, row.open));
        Ok(open_page(stored, outcome, until, after, limit))
    }

    async fn count_unfinished(
        &self,
        outcome: EventOutcome,
        until: Timestamp,
    ) -> Result<usize, DependencyError> {
        let page = self
            .unfinished_events(outcome, until, None, usize::MAX)
            .await?;
        Ok(page.events.len())
    }

    async fn load_with_reasons(
        &self,
        ids: &BTreeSet<EventId>,
    ) -> Result<Vec<(EventRecord, Option<String>)>, DependencyError> {
        self.read("reasons")?;
        let events = lock(&self.events);
        let rows = ids.iter().filter_map(|id| events.get(id));
        Ok(rows
            .map(|row| (row.stored.clone(), row.error.clone()))
            .collect())
    }
}

impl ListStates for &MemoryTables {
    async fn list_states(
        &self,
        segment: ScanSegment,
        after: Option<&str>,
    ) -> Result<StatePage, DependencyError> {
        self.read("list_states")?;
        let (entities, payments) = (lock(&self.entities), lock(&self.payments));
        let invoices = lock(&self.invoices);
        let entities = entities.keys().cloned().map(StateKey::Entity);
        let payments = payments.keys().cloned().map(StateKey::Payment);
        let invoices = invoices.keys().cloned().map(StateKey::Invoice);
        let all = entities.chain(payments).chain(invoices);
        Ok(state_page(all, segment, after))
    }
}

impl FindKnownEvents for &MemoryTables {
    async fn known_events(
        &self,
        ids: &BTreeSet<EventId>,
    ) -> Result<BTreeSet<EventId>, DependencyError> {
        self.read("known")?;
        let events = lock(&self.events);
        Ok(ids
            .iter()
            .filter(|id| events.contains_key(id))
            .cloned()
            .collect())
    }
}

impl ListAccounts for &MemoryTables {
    async fn accounts(
        &self,
        after: Option<&str>,
        limit: usize,
    ) -> Result<AccountsPage, DependencyError> {
        self.read("accounts")?;
        let mut tenants = lock(&self.tenants).clone();
        tenants.sort_by(|one, other| one.1.cmp(&other.1));
        tenants.retain(|(_, tenant)| after.is_none_or(|after| tenant.as_str() > after));
        tenants.truncate(limit);
        let next = tenants.last().filter(|_| tenants.len() == limit);
        let mut previous = lock(&self.previous_accounts).clone();
        previous.retain(|(_, before)| tenants.iter().any(|(_, tenant)| tenant == before));
        Ok(AccountsPage {
            next: next.map(|(_, tenant)| tenant.to_string()),
            accounts: tenants.into_iter().map(|(account, _)| account).collect(),
            previous,
        })
    }

    async fn note_previous_accounts(
        &self,
        previous: &BTreeSet<(AccountId, TenantId)>,
    ) -> Result<(), DependencyError> {
        self.read("note_accounts")?;
        lock(&self.account_notes).extend(previous.iter().cloned());
        Ok(())
    }
}

/// Stripe's rules for payments and event lists, with planned failures. An unknown payment has the state
/// `requires_payment_method`.
#[derive(Debug, Default)]
pub struct MemoryStripe {
    /// By intent.
    pub intents: Mutex<BTreeMap<String, IntentStatus>>,
    /// By intent: the type of its next action, and when it was created; without it long ago.
    pub actions: Mutex<BTreeMap<String, (String, Timestamp)>>,
    /// By session: its PaymentIntent and its state.
    pub sessions: Mutex<BTreeMap<String, (String, SessionStatus)>>,
    /// PaymentIntents that Stripe does not have.
    pub missing: Mutex<BTreeSet<String>>,
    /// The account that an object lives on; the empty text is the platform. Others live on all.
    pub places: Mutex<BTreeMap<String, String>>,
    /// Every call: operation, object, and idempotency key or account.
    pub calls: Mutex<Vec<(&'static str, String, String)>>,
    /// By account; the empty text is the platform.
    pub events: Mutex<BTreeMap<String, Vec<Value>>>,
    /// Accounts that answer 403.
    pub refused: Mutex<BTreeSet<String>>,
    /// Events per page.
    pub page: AtomicUsize,
    /// Planned failures.
    pub plan: Plan,
    /// Runs at the beginning of each call.
    pub hook: Hook,
}

fn can_end(status: &IntentStatus) -> bool {
    matches!(
        status,
        IntentStatus::RequiresPaymentMethod
            | IntentStatus::RequiresConfirmation
            | IntentStatus::RequiresAction
    )
}

impl MemoryStripe {
    fn begin(&self, call: &'static str, of: &str, with: &str) -> Result<(), DependencyError> {
        self.hook.run();
        lock(&self.calls).push((call, of.to_owned(), with.to_owned()));
        match self.plan.next() {
            Some(Fault::Before) => Err(unreachable(call)),
            Some(Fault::AnswerLost | Fault::Repeated) | None => Ok(()),
        }
    }

    fn begin_of(
        &self,
        call: &'static str,
        of: &str,
        account: Option<&AccountId>,
        with: &str,
    ) -> Result<(), PaymentCallError> {
        let begun = self.begin(call, of, with);
        begun.map_err(|error| PaymentCallError::Failed(error_chain(&error)))?;
        if lock(&self.refused).contains(account.map_or("", AccountId::as_str)) {
            return Err(PaymentCallError::Refused("403 account_invalid".to_owned()));
        }
        Ok(())
    }

    fn lives_on(&self, object: &str, account: Option<&AccountId>) -> bool {
        let account = account.map_or("", AccountId::as_str);
        let places = lock(&self.places);
        let place = places.get(object);
        place.is_none_or(|place| place == account) && !lock(&self.missing).contains(object)
    }

    fn snapshot(&self, id: &str) -> IntentSnapshot {
        let actions = lock(&self.actions);
        let action = actions.get(id);
        IntentSnapshot {
            status: self.intent(id),
            next_action: action.map(|(action, _)| NextActionType::parse(action)),
            created: action
                .map(|(_, at)| *at)
                .or_else(|| Timestamp::from_unix_s(0).ok()),
        }
    }

    pub fn intent(&self, id: &str) -> IntentStatus {
        let open = || IntentStatus::RequiresPaymentMethod;
        lock(&self.intents)
            .entry(id.to_owned())
            .or_insert_with(open)
            .clone()
    }

    /// The customer pays, in the Checkout Session if there is one; returns whether that was still possible.
    pub fn pay(&self, id: &str) -> bool {
        let can = can_end(&self.intent(id));
        if can {
            lock(&self.intents).insert(id.to_owned(), IntentStatus::Succeeded);
            for (intent, status) in lock(&self.sessions).values_mut() {
                if intent == id {
                    *status = SessionStatus::Complete;
                }
            }
        }
        can
    }

    fn end(&self, id: &str) {
        if can_end(&self.intent(id)) {
            lock(&self.intents).insert(id.to_owned(), IntentStatus::Canceled);
        }
    }
}

impl PaymentsAtStripe for &MemoryStripe {
    async fn read_intent(
        &self,
        payment: &CancellablePayment,
    ) -> Result<Option<IntentSnapshot>, PaymentCallError> {
        let (intent, account) = (payment.intent.as_str(), payment.account.as_ref());
        self.begin_of("status", intent, account, "")?;
        let is_here = self.lives_on(intent, account);
        Ok(is_here.then(|| self.snapshot(intent)))
    }

    async fn list_sessions(
        &self,
        payment: &CancellablePayment,
    ) -> Result<Vec<(CheckoutSessionId, SessionStatus)>, PaymentCallError> {
        let intent = payment.intent.as_str();
        self.begin_of("sessions", intent, payment.account.as_ref(), "")?;
        let sessions = lock(&self.sessions);
        let its = sessions.iter().filter(|(_, (of, _))| of == intent);
        let its = its.filter_map(|(id, (_, status))| {
            Some((CheckoutSessionId::parse(id).ok()?, status.clone()))
        });
        Ok(its.collect())
    }

    async fn read_session(
        &self,
        session: &CancellableSession,
    ) -> Result<Option<SessionStatus>, PaymentCallError> {
        let (id, account) = (session.session.as_str(), session.account.as_ref());
        self.begin_of("session", id, account, "")?;
        let found = lock(&self.sessions).get(id).cloned();
        let found = found.filter(|_| self.lives_on(id, account));
        Ok(found.map(|(_, status)| status))
    }

    async fn expire_session(
        &self,
        session: &CancellableSession,
        idempotency_key: &str,
    ) -> Result<Option<SessionStatus>, PaymentCallError> {
        let (id, account) = (session.session.as_str(), session.account.as_ref());
        self.begin_of("expire", id, account, idempotency_key)?;
        let mut sessions = lock(&self.sessions);
        let Some((intent, status)) = sessions.get_mut(id) else {
            return Ok(None);
        };
        if *status == SessionStatus::Open {
            *status = SessionStatus::Expired;
            self.end(intent);
        }
        Ok(Some(status.clone()))
    }

    async fn cancel_payment(
        &self,
        payment: &CancellablePayment,
        idempotency_key: &str,
    ) -> Result<Option<IntentSnapshot>, PaymentCallError> {
        let (intent, account) = (payment.intent.as_str(), payment.account.as_ref());
        self.begin_of("cancel", intent, account, idempotency_key)?;
        // Stripe cancels no PaymentIntent of a session.
        let is_by_checkout = lock(&self.sessions).values().any(|(of, _)| of == intent);
        if !is_by_checkout {
            self.end(intent);
        }
        let is_here = self.lives_on(intent, account);
        Ok(is_here.then(|| self.snapshot(intent)))
    }
}

impl ListEvents for &MemoryStripe {
    async fn is_event_of_platform(&self, event: &EventId) -> Result<bool, ListEventsError> {
        self.begin("event", event.as_str(), "")
            .map_err(|error| ListEventsError::Failed(error.doing))?;
        let events = lock(&self.events);
        let mut own = events.get("").into_iter().flatten();
        Ok(own.any(|own| own.get("id").and_then(Value::as_str) == Some(event.as_str())))
    }

    async fn list_events(
        &self,
        account: Option<&AccountId>,
        types: &[&str],
        span: &ListingSpan,
    ) -> Result<EventsPage, ListEventsError> {
        let asked = account;
        let account = account.map_or("", AccountId::as_str);
        let failed = |error: DependencyError| ListEventsError::Failed(error.doing);
        self.begin("events", types.first().unwrap_or(&""), account)
            .map_err(failed)?;
        if lock(&self.refused).contains(account) {
            return Err(ListEventsError::Refused("403".to_owned()));
        }
        let all = lock(&self.events);
        let created_s = |event: &Value| event.get("created").and_then(Value::as_i64);
        let text = |event: &Value, name: &str| {
            let text = event.get(name).and_then(Value::as_str);
            text.unwrap_or_default().to_owned()
        };
        let mut listed: Vec<&Value> = all
            .get(account)
            .into_iter()
            .flatten()
            .filter(|event| types.contains(&text(event, "type").as_str()))
            .filter(|event| {
                created_s(event).is_some_and(|at| (span.from_s..=span.until_s).contains(&at))
            })
            .collect();
        listed.sort_by_key(|event| std::cmp::Reverse(created_s(event)));
        let from = match &span.after {
            None => 0,
            Some(after) => {
                let at = listed.iter().position(|event| text(event, "id") == *after);
                at.ok_or_else(|| {
                    ListEventsError::UnknownStartingEvent("resource_missing".to_owned())
                })? + 1
            }
        };
        let limit = self.page.load(Ordering::SeqCst).max(1);
        let page = listed.get(from..).unwrap_or_default();
        Ok(EventsPage {
            events: page
                .iter()
                .take(limit)
                .map(|event| fetched(event.to_string(), asked))
                .collect(),
            has_more: page.len() > limit,
        })
    }
}

/// The guarded columns of a row that this write leaves alone.
fn unwritten_columns(found: &Entity, next: &EntityUpdate) -> GuardedColumns {
    let mut columns = found.columns().clone();
    for (written, _) in next.write_columns() {
        match written {
            "status" => columns.status = None,
            "paymentStatus" | "payment_status" => columns.payment_status = None,
            "requiresReview" | "requires_review" => columns.requires_review = None,
            "mail_status" => columns.mail_status = None,
            "needs_attention" => columns.needs_attention = None,
            _ => {}
        }
    }
    columns
}

impl Ledger for &MemoryTables {
    type Row = ();

    fn row_bytes((): &()) -> usize {
        0
    }

    fn changed_columns(
        entity: &Entity,
        (): &(),
        next: &EntityUpdate,
        _: Timestamp,
    ) -> Vec<ChangedColumn> {
        changed_columns(entity, next)
    }

    fn timeline_events((): &()) -> BTreeSet<EventId> {
        BTreeSet::new()
    }

    async fn load_events(
        &self,
        _: ProviderId,
        ids: &BTreeSet<EventId>,
    ) -> Result<Vec<StoredEvent>, DependencyError> {
        self.read("events")?;
        if self.hangs.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        let events = lock(&self.events);
        Ok(ids
            .iter()
            .filter_map(|id| events.get(id))
            .map(|row| StoredEvent {
                stored: row.stored.clone(),
                is_set_aside: row.stored.outcome == EventOutcome::Ignored
                    && row.error.as_deref().is_some_and(IgnoreReason::is_by_person),
                payload: StoredPayload::Intact(row.payload.clone()),
                row_bytes: row.payload.len(),
            })
            .collect())
    }

    async fn load_rows(
        &self,
        keys: &BTreeSet<StateKey>,
    ) -> Result<LoadedRows<()>, DependencyError> {
        self.read("rows")?;
        if self.rows_fail.load(Ordering::SeqCst) {
            return Err(unreachable("rows"));
        }
        if let Some(refused) = keys.intersection(&lock(&self.refused)).next() {
            return Err(DependencyError {
                doing: format!("read {refused}"),
                disposition: Disposition::Permanent,
                cause: "planned refusal".into(),
            });
        }
        let (entities, payments) = (lock(&self.entities), lock(&self.payments));
        let (invoices, newer) = (lock(&self.invoices), lock(&self.newer));
        let mut rows = LoadedRows::empty();
        let (tenants, previous) = (lock(&self.tenants), lock(&self.previous_accounts));
        for key in keys {
            if let StateKey::Entity(EntityKey::Tenant(id)) = key {
                let its = tenants.iter().find(|(_, tenant)| tenant == id);
                let before = previous.iter().filter(|(_, tenant)| tenant == id);
                let columns = TenantColumns {
                    account: its.map(|(account, _)| account.clone()),
                    previous: before.map(|(account, _)| account.clone()).collect(),
                    is_muted: lock(&self.muted).contains(id),
                };
                rows.tenants.insert(id.clone(), columns);
            }
            if newer.contains(key) {
                let newer = UnreadableRow::NewerSchema(STATE_SCHEMA + 1);
                rows.unreadable.insert(key.clone(), newer);
                continue;
            }
            match key {
                StateKey::Entity(key) => {
                    let row = entities.get(key).map(|row| (row.clone(), ()));
                    rows.entities.extend(row.map(|row| (key.clone(), row)));
                }
                StateKey::Payment(key) => {
                    let row = payments.get(key).map(|row| (row.clone(), ()));
                    rows.payments.extend(row.map(|row| (key.clone(), row)));
                }
                StateKey::Invoice(key) => {
                    let row = invoices.get(key).map(|row| (row.clone(), ()));
                    rows.invoices.extend(row.map(|row| (key.clone(), row)));
                }
            }
        }
        Ok(rows)
    }

    async fn entities_by_payment_intent(
        &self,
        intent: &PaymentIntentId,
    ) -> Result<Vec<EntityKey>, DependencyError> {
        self.read("bearing_intent")?;
        if let Some(key) = lock(&self.stale).get(intent.as_str()) {
            return Ok(vec![key.clone()]);
        }
        let all = lock(&self.entities);
        Ok(all
            .values()
            .filter(|entity| entity.payment_intent() == Some(intent))
            .map(Entity::key)
            .collect())
    }

    async fn statements_by_piece(
        &self,
        piece: &PieceId,
    ) -> Result<Vec<EntityKey>, DependencyError> {
        self.read("bearing_piece")?;
        if let Some(key) = lock(&self.stale).get(piece.as_str()) {
            return Ok(vec![key.clone()]);
        }
        let all = lock(&self.entities);
        Ok(all
            .values()
            .filter(|entity| entity.piece() == Some(piece))
            .map(Entity::key)
            .collect())
    }

    async fn tenants_by_account(
        &self,
        account: &AccountId,
        lookup: TenantLookup,
    ) -> Result<AccountHits, DependencyError> {
        self.read("tenants_of")?;
        if let Some(stale) = lock(&self.stale_tenants).get(&(account.clone(), lookup)) {
            return Ok(stale.clone());
        }
        let hit = |(_, tenant): &(_, TenantId)| TenantHit::Tenant(tenant.clone());
        let tenants = lock(&self.tenants);
        let present = tenants.iter().filter(|(known, _)| known == account);
        let notes = lock(&self.account_notes);
        let previous = notes.iter().filter(|(known, _)| known == account);
        let present: BTreeSet<TenantHit> = present.map(hit).collect();
        let previous = match present.is_empty() {
            true => previous.map(hit).collect(),
            false => BTreeSet::new(),
        };
        Ok(AccountHits {
            present,
            previous,
            is_cached: false,
        })
    }

    async fn commit(
        &self,
        _: ProviderId,
        parts: &[&CommitPart<'_, ()>],
    ) -> Result<(), CommitError> {
        self.count("commit");
        let writes = || parts.iter().flat_map(|part| &part.entities);
        let states = || parts.iter().flat_map(|part| &part.states);
        let concluded = || parts.iter().flat_map(|part| &part.events);
        let stuck = lock(&self.stuck).clone();
        if stuck.is_some_and(|stuck| writes().any(|write| write.entity.key() == stuck)) {
            std::future::pending::<()>().await;
        }
        let first = lock(&self.before_commit).pop_front();
        if let Some(rival) = first {
            rival(self);
        }
        let fault = self.writes.next();
        if fault == Some(Fault::Before) {
            return Err(unreachable("commit").into());
        }
        if let Some(refusal) = refusal(parts) {
            return Err(CommitError::Refused(refusal.to_owned()));
        }
        if let Some(most) = *lock(&self.facts_bytes_max) {
            let bytes = |next: &EntityUpdate| {
                serde_json::to_string(&next.next().to_row()).map_or(0, |state| state.len())
            };
            if writes().any(|write| bytes(&write.next) > most) {
                return Err(CommitError::Refused("the row is too large".to_owned()));
            }
        }
        let mut events = lock(&self.events);
        let mut entities = lock(&self.entities);
        let mut payments = lock(&self.payments);
        let mut invoices = lock(&self.invoices);
        let entities_stand = writes().all(|write| {
            entities
                .get(&write.entity.key())
                .is_some_and(|row| is_as_read(row, write.entity))
        });
        let states_stand = states().all(|write| {
            let version = match write.next.key() {
                StateKey::Payment(key) => payments.get(&key).map(|row| row.version),
                StateKey::Invoice(key) => invoices.get(&key).map(|row| row.version),
                StateKey::Entity(_) => None,
            };
            match write.row {
                None => version.is_none(),
                Some(()) => version.is_some_and(|version| version + 1 == write.next.version()),
            }
        });
        let events_stand = concluded().all(|concluded| {
            let row = events.get(&concluded.event);
            row.is_some_and(|row| !row.stored.processed)
        });
        if !(entities_stand && states_stand && events_stand) {
            return Err(CommitError::LostRace);
        }
        for write in writes() {
            let next = match write.entity.row().is_missing {
                true => write.next.next(),
                false => {
                    let next = write.next.with_row_written();
                    next.with_columns_found(&unwritten_columns(write.entity, &write.next))
                }
            };
            entities.insert(write.entity.key(), next);
        }
        for write in states() {
            match &write.next {
                NextState::Payment(next) => drop(payments.insert(next.key.clone(), next.clone())),
                NextState::Invoice(next) => drop(invoices.insert(next.key.clone(), next.clone())),
            }
        }
        for concluded in concluded() {
            if let Some(row) = events.get_mut(&concluded.event) {
                row.stored.outcome = concluded.verdict.outcome();
                row.stored.processed = row.stored.outcome.is_done();
                row.error = concluded.verdict.reason().map(str::to_owned);
                row.attempts += 1;
                row.open = Some(row.stored.outcome).filter(|outcome| !outcome.is_done());
                row.entities.extend(concluded.entities.iter().cloned());
            }
        }
        match fault {
            Some(Fault::AnswerLost) => Err(unreachable("commit").into()),
            _ => Ok(()),
        }
    }
}

/// The guarded columns that a write of the entity changes.
pub(crate) fn changed_columns(entity: &Entity, next: &EntityUpdate) -> Vec<ChangedColumn> {
    let (found, next) = (json!(entity.columns()), json!(next.last_derived().columns));
    let columns = |of: &Value| of.as_object().cloned().unwrap_or_default();
    let (found, next) = (columns(&found), columns(&next));
    let names: BTreeSet<&String> = found.keys().chain(next.keys()).collect();
    let changed = names
        .into_iter()
        .filter(|name| found.get(*name) != next.get(*name));
    let text = |value: Option<&Value>| value.map(ToString::to_string);
    changed
        .map(|column| ChangedColumn {
            column: column.clone(),
            found: text(found.get(column)),
            next: text(next.get(column)),
        })
        .collect()
}

/// The condition on an entity's two rows.
pub(crate) fn is_as_read(row: &Entity, read: &Entity) -> bool {
    // A state that was lost gets the version that the row bears.
    let is_rebased =
        row.standing() == RowStanding::Ahead && row.row().version == Some(read.version());
    (is_rebased || row.version() == read.version())
        && (row.columns(), row.tenant()) == (read.columns(), read.tenant())
}

/// DynamoDB refuses a transaction with two actions on one row or with more than 100 actions, whatever the rows contain.
pub(crate) fn refusal<R>(parts: &[&CommitPart<'_, R>]) -> Option<&'static str> {
    let mut rows = BTreeSet::new();
    for part in parts {
        let entities = part.entities.iter().flat_map(|write| {
            let key = write.entity.key().to_string();
            [format!("row of {key}"), key]
        });
        let states = part.states.iter().map(|write| write.next.key().to_string());
        let events = part.events.iter().map(|end| end.event.to_string());
        for row in entities.chain(states).chain(events) {
            if !rows.insert(row) {
                return Some("two actions on one row");
            }
        }
    }
    (rows.len() > 100).then_some("more than 100 actions")
}

/// The entities that the index `recent` has in this span.
pub(crate) fn recent_entities<'a>(
    stored: impl Iterator<Item = &'a Entity>,
    span: ArrivalSpan,
) -> BTreeSet<EntityKey> {
    let is_in = |entity: &&Entity| {
        let recent = entity.recent();
        recent.is_some_and(|at| span.after < at && at <= span.until)
    };
    stored.filter(is_in).map(Entity::key).collect()
}

/// The entities whose row is missing or has a foreign column, as the index has them.
pub(crate) fn troubled_entities<'a>(
    stored: impl Iterator<Item = &'a Entity>,
) -> Vec<(EntityKey, Timestamp)> {
    let since = |entity: &Entity| Some((entity.key(), entity.trouble_since()?));
    stored.filter_map(since).collect()
}

/// The payments of one value of the index that are due.
pub(crate) fn due_payments<'a>(
    stored: impl Iterator<Item = &'a PaymentState>,
    index_key: &str,
    until: Timestamp,
    limit: usize,
) -> Vec<PaymentKey> {
    let mut due: Vec<(Timestamp, PaymentKey)> = stored
        .filter_map(|payment| Some((payment.open.as_ref()?, payment)))
        .filter(|(open, _)| open.index_key == index_key && open.due <= until)
        .map(|(open, payment)| (open.due, payment.key.clone()))
        .collect();
    due.sort();
    due.truncate(limit);
    due.into_iter().map(|(_, key)| key).collect()
}

impl FindOpenStates for &MemoryTables {
    async fn open_payments(
        &self,
        index_key: &str,
        until: Timestamp,
        limit: usize,
    ) -> Result<Vec<PaymentKey>, DependencyError> {
        self.read("open_payments")?;
        let payments = lock(&self.payments);
        Ok(due_payments(payments.values(), index_key, until, limit))
    }

    async fn troubled_entities(&self) -> Result<Vec<(EntityKey, Timestamp)>, DependencyError> {
        self.read("troubled_entities")?;
        Ok(troubled_entities(lock(&self.entities).values()))
    }

    async fn recent_entities(
        &self,
        span: ArrivalSpan,
    ) -> Result<BTreeSet<EntityKey>, DependencyError> {
        self.read("recent_entities")?;
        Ok(recent_entities(lock(&self.entities).values(), span))
    }
}
