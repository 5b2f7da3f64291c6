//! The ports in memory, behaving as the tables and queues do: conditional, all or nothing, with planned failures.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use billhook_core::cleanup::OpenPayment;
use billhook_core::entity::{Entity, EntityKey};
use billhook_core::ids::{AccountId, EventId, PaymentIntentId, PieceId, Provider, TenantId};
use billhook_core::inbox::{NewEvent, Outcome, Recorded, Stored};
use billhook_core::ports::{
    Clock, Commit, CommitError, EndPayment, Ended, FindFailedOrders, Kept, Ledger, Nominated,
    Pause, Payload, PaymentKey, PaymentRow, PaymentWrite, ReadSigningKeys, RecordEvent, Rows,
    SendMessage, Unavailable,
};
use billhook_core::retry::Disposition;
use billhook_core::signature::{SigningKey, SigningKeys};
use billhook_core::time::Timestamp;
use uuid::Uuid;

/// What happens to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It never arrives.
    Before,
    /// It takes effect and its answer is lost.
    AnswerLost,
    /// The SDK repeats it by itself after its first answer was lost.
    Repeated,
}

/// What the next calls meet; nothing once it is used up.
#[derive(Debug, Default)]
pub struct Plan(Mutex<VecDeque<Option<Fault>>>);

impl Plan {
    /// The next calls, in order.
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

fn unreachable(doing: &str) -> Unavailable {
    Unavailable {
        doing: doing.to_owned(),
        disposition: Disposition::OutcomeUnknown,
        cause: "planned failure".into(),
    }
}

/// A clock that stands until it is moved; pauses move it.
#[derive(Debug)]
pub struct FixedClock(Mutex<(Timestamp, u128)>);

impl FixedClock {
    /// Standing at `now`.
    pub fn at(now: Timestamp) -> Self {
        Self(Mutex::new((now, 0)))
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

/// Secrets that are simply known.
#[derive(Debug, Default)]
pub struct KnownKeys {
    /// What the cache holds.
    pub cached: SigningKeys,
    /// What a refresh brings, if it may happen.
    pub fresh: Option<SigningKeys>,
}

impl KnownKeys {
    /// One good secret.
    pub fn one(secret: &str) -> Self {
        let keys = SigningKey::usable("test", secret).into_iter().collect();
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

    async fn refreshed(&self) -> Option<SigningKeys> {
        self.fresh.clone()
    }

    async fn held(&self) -> SigningKeys {
        self.cached.clone()
    }
}

/// Messages as they were sent, the deduplicated ones once.
#[derive(Debug, Default)]
pub struct MemoryQueue {
    /// (provider, group, deduplication id, body)
    pub sent: Mutex<Vec<(Provider, String, String, String)>>,
    /// Calls, the failed ones too.
    pub calls: Mutex<usize>,
    /// Failures to come.
    pub plan: Plan,
}

impl SendMessage for MemoryQueue {
    async fn send(
        &self,
        provider: Provider,
        group: &str,
        deduplication_id: &str,
        body: &str,
    ) -> Result<(), Unavailable> {
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

/// An event's row.
#[derive(Clone, Debug)]
pub struct EventRow {
    /// Without the payload.
    pub stored: Stored,
    /// The payload.
    pub payload: Vec<u8>,
    /// `processing_error`.
    pub error: Option<String>,
    /// How often a worker wrote it.
    pub attempts: u32,
}

/// All tables.
#[derive(Debug, Default)]
pub struct MemoryTables {
    /// The inbox.
    pub events: Mutex<BTreeMap<EventId, EventRow>>,
    /// Orders and statements.
    pub entities: Mutex<BTreeMap<EntityKey, Entity>>,
    /// By row key.
    pub payments: Mutex<BTreeMap<String, PaymentRow>>,
    /// Account and tenant.
    pub tenants: Mutex<Vec<(AccountId, TenantId)>>,
    /// Calls, by name.
    pub calls: Mutex<BTreeMap<&'static str, usize>>,
    /// What an index still answers for a payment or a piece, whatever the rows say: it lags.
    pub stale: Mutex<BTreeMap<String, EntityKey>>,
    /// Reads of events never come back.
    pub hangs: AtomicBool,
    /// A row whose facts are longer than this, as JSON, is refused.
    pub facts_bytes_max: Mutex<Option<usize>>,
    /// What writes meet.
    pub writes: Plan,
    /// What reads meet.
    pub reads: Plan,
    /// Runs before each commit takes effect, to lose a race.
    pub before_commit: Mutex<VecDeque<fn(&MemoryTables)>>,
}

impl MemoryTables {
    fn count(&self, call: &'static str) {
        *lock(&self.calls).entry(call).or_default() += 1;
    }

    fn read(&self, call: &'static str) -> Result<(), Unavailable> {
        self.count(call);
        match self.reads.next() {
            Some(_) => Err(unreachable(call)),
            None => Ok(()),
        }
    }
}

impl RecordEvent for &MemoryTables {
    async fn record(&self, event: &NewEvent<'_>) -> Result<Recorded, Unavailable> {
        self.count("record");
        let fault = self.writes.next();
        if fault == Some(Fault::Before) {
            return Err(unreachable("record"));
        }
        let mut events = lock(&self.events);
        let row = EventRow {
            stored: event.stored(),
            payload: event.raw_body.to_vec(),
            error: None,
            attempts: 0,
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
            _ => Ok(known.map_or(Recorded::New, Recorded::Known)),
        }
    }
}

impl FindFailedOrders for &MemoryTables {
    async fn failed_orders(
        &self,
        after: Option<&EntityKey>,
        limit: usize,
    ) -> Result<Nominated, Unavailable> {
        self.read("failed_orders")?;
        let all = lock(&self.entities);
        let failed = all
            .values()
            .filter(|row| row.columns.status.as_deref() == Some("payment_failed"))
            .map(|row| row.key.clone())
            .filter(|key| after.is_none_or(|after| key > after));
        let orders: Vec<EntityKey> = failed.take(limit).collect();
        let next = orders.last().filter(|_| orders.len() == limit).cloned();
        Ok(Nominated { orders, next })
    }
}

/// What Stripe says of each payment; one that is not named is open, and ends when asked to.
#[derive(Debug, Default)]
pub struct Payments {
    /// By intent.
    pub states: Mutex<BTreeMap<String, Ended>>,
    /// Every call, with its idempotency key.
    pub calls: Mutex<Vec<(String, String)>>,
    /// Failures to come.
    pub plan: Plan,
}

impl EndPayment for &Payments {
    type Error = Unavailable;

    async fn end(
        &self,
        payment: &OpenPayment,
        idempotency_key: &str,
    ) -> Result<Ended, Unavailable> {
        let intent = payment.intent.to_string();
        lock(&self.calls).push((intent.clone(), idempotency_key.to_owned()));
        let fault = self.plan.next();
        if fault == Some(Fault::Before) {
            return Err(unreachable("end"));
        }
        let ended = *lock(&self.states).entry(intent).or_insert(Ended::ForGood);
        match fault {
            Some(Fault::AnswerLost) => Err(unreachable("end")),
            _ => Ok(ended),
        }
    }
}

impl Ledger for &MemoryTables {
    type Row = ();

    async fn events(&self, _: Provider, ids: &BTreeSet<EventId>) -> Result<Vec<Kept>, Unavailable> {
        self.read("events")?;
        if self.hangs.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        let events = lock(&self.events);
        Ok(ids
            .iter()
            .filter_map(|id| events.get(id))
            .map(|row| Kept {
                stored: row.stored.clone(),
                payload: Payload::Intact(row.payload.clone()),
                row_bytes: row.payload.len(),
            })
            .collect())
    }

    async fn rows(
        &self,
        entities: &BTreeSet<EntityKey>,
        payments: &BTreeSet<PaymentKey>,
    ) -> Result<Rows<()>, Unavailable> {
        self.read("rows")?;
        let all = lock(&self.entities);
        let found = entities
            .iter()
            .filter_map(|key| Some((key.clone(), (all.get(key)?.clone(), ()))));
        let rows = lock(&self.payments);
        let linked = payments
            .iter()
            .filter_map(|key| Some((key.clone(), rows.get(&key.row_key())?.clone())));
        Ok(Rows {
            entities: found.collect(),
            unreadable: BTreeMap::new(),
            payments: linked.collect(),
        })
    }

    async fn bearing_intent(
        &self,
        intent: &PaymentIntentId,
    ) -> Result<Vec<EntityKey>, Unavailable> {
        self.read("bearing_intent")?;
        if let Some(key) = lock(&self.stale).get(intent.as_str()) {
            return Ok(vec![key.clone()]);
        }
        let all = lock(&self.entities);
        Ok(all
            .values()
            .filter(|entity| entity.intent.as_ref() == Some(intent))
            .map(|e| e.key.clone())
            .collect())
    }

    async fn bearing_piece(&self, piece: &PieceId) -> Result<Vec<EntityKey>, Unavailable> {
        self.read("bearing_piece")?;
        if let Some(key) = lock(&self.stale).get(piece.as_str()) {
            return Ok(vec![key.clone()]);
        }
        let all = lock(&self.entities);
        Ok(all
            .values()
            .filter(|entity| entity.mailed.as_ref() == Some(piece))
            .map(|e| e.key.clone())
            .collect())
    }

    async fn tenants_of(&self, account: &AccountId) -> Result<Vec<TenantId>, Unavailable> {
        self.read("tenants_of")?;
        Ok(lock(&self.tenants)
            .iter()
            .filter(|(known, _)| known == account)
            .map(|(_, tenant)| tenant.clone())
            .collect())
    }

    async fn commit(&self, _: Provider, commit: Commit<'_, ()>) -> Result<(), CommitError> {
        self.count("commit");
        let first = lock(&self.before_commit).pop_front();
        if let Some(rival) = first {
            rival(self);
        }
        let fault = self.writes.next();
        if fault == Some(Fault::Before) {
            return Err(unreachable("commit").into());
        }
        // As DynamoDB: no two actions of a transaction on one row.
        let ids: BTreeSet<&EventId> = commit
            .events
            .iter()
            .map(|concluded| &concluded.event)
            .collect();
        if ids.len() != commit.events.len() {
            return Err(CommitError::Refused("two actions on one row".to_owned()));
        }
        if let (Some((_, (), next)), Some(most)) = (&commit.entity, *lock(&self.facts_bytes_max)) {
            let facts = serde_json::to_string(&next.facts).unwrap_or_default();
            if facts.len() > most {
                return Err(CommitError::Refused("the row is too large".to_owned()));
            }
        }
        let mut events = lock(&self.events);
        let mut entities = lock(&self.entities);
        let mut payments = lock(&self.payments);
        let entity_stands = commit.entity.as_ref().is_none_or(|(read, ..)| {
            entities.get(&read.key).is_some_and(|row| {
                row.version == read.version
                    && row.columns == read.columns
                    && row.tenant == read.tenant
            })
        });
        let events_stand = commit.events.iter().all(|concluded| {
            events
                .get(&concluded.event)
                .is_some_and(|row| match concluded.waited {
                    true => row.stored.outcome != Outcome::Processed,
                    false => !row.stored.processed,
                })
        });
        let payments_stand = commit.payments.iter().all(|(key, write)| {
            let (PaymentWrite::Link { version, .. } | PaymentWrite::Wait { version, .. }) = write;
            let row = payments.get(&key.row_key()).cloned().unwrap_or_default();
            row.version == *version && row.entity.is_none()
        });
        if !(entity_stands && events_stand && payments_stand) {
            return Err(CommitError::LostRace);
        }
        if let Some((read, (), next)) = commit.entity {
            let mut row = read.clone();
            row.version += 1;
            row.facts = next.facts.clone();
            row.columns = next.derived.columns.clone();
            row.intent = next.derived.intent.clone().or(row.intent);
            row.session = next.derived.session.clone().or(row.session);
            row.user = next
                .derived
                .user
                .as_ref()
                .map(ToString::to_string)
                .or(row.user);
            row.derived = next.derived.clone();
            entities.insert(row.key.clone(), row);
        }
        for concluded in commit.events {
            if let Some(row) = events.get_mut(&concluded.event) {
                row.stored.outcome = concluded.verdict.outcome();
                row.stored.processed = row.stored.outcome.is_done();
                row.error = concluded.verdict.reason().map(str::to_owned);
                row.attempts += 1;
            }
        }
        for (key, write) in commit.payments {
            let row = payments.entry(key.row_key()).or_default();
            row.version += 1;
            match write {
                PaymentWrite::Link { entity, .. } => {
                    row.entity = Some(entity);
                    row.waiting.clear();
                }
                PaymentWrite::Wait { events, .. } => {
                    row.waiting.extend(events);
                }
            }
        }
        match fault {
            Some(Fault::AnswerLost) => Err(unreachable("commit").into()),
            _ => Ok(()),
        }
    }
}
