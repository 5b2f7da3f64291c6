//! Finds the events and entities that belong to an id: by key, by index, or by a scan of the days given with `--since`.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result};
use billhook_adapters::clock::SystemClock;
use billhook_core::entity::key::{PaymentKey, StateKey};
use billhook_core::entity::{ENTITY_SCHEMAS, EntityKey};
use billhook_core::ids::{EventId, OrderId, PaymentIntentId, PieceId, ProviderId, TenantId};
use billhook_core::ports::Clock as _;
use billhook_core::provider::interpret;
use billhook_core::provider::interpret::{EventFacts, InterpretRules};
use billhook_core::time::Timestamp;
use billhook_core::worker::ports::{Ledger, StoredEvent, StoredPayload};
use uuid::Uuid;

use super::entries::{TraceEntry, TracedEvent};
use crate::event_filter::EventFilter;
use crate::event_lookup;
use crate::events_table::EventSummary;
use crate::payment_lookup::{load_payments, load_tenant_accounts};
use crate::row_json::read_text;
use crate::row_standing::load_entity;
use crate::session::StackSession;
use crate::time_argument::TimeArgument;

/// DynamoDB reads 100 rows in one call.
const PAYMENTS_AT_ONCE: usize = 100;

#[derive(Default)]
pub(super) struct TraceSearch {
    pub(super) events: BTreeMap<EventId, TracedEvent>,
    pub(super) entities: BTreeSet<EntityKey>,
    pub(super) payments: BTreeSet<PaymentKey>,
    pub(super) entries: Vec<TraceEntry>,
}

impl TraceSearch {
    pub(super) async fn start_from_id(
        &mut self,
        session: &StackSession,
        id: &str,
        since: TimeArgument,
    ) -> Result<()> {
        if let Ok(event) = EventId::parse(id) {
            event_lookup::find_event(session, &event).await?;
            return self.add_event(session, &event).await;
        }
        if let Ok(uuid) = id.parse::<Uuid>() {
            return self.add_events_of_correlation(session, uuid).await;
        }
        if let Ok(intent) = PaymentIntentId::parse(id) {
            return self.add_payment(session, &intent, since).await;
        }
        if ["ltr_", "psc_", "sfm_", "chk_"]
            .iter()
            .any(|kind| id.starts_with(kind))
        {
            let ledger = session.ledger(ProviderId::Lob)?;
            self.entities
                .extend(ledger.statements_by_piece(&PieceId::parse(id)?).await?);
            return self.add_events_of_object(session, id, since).await;
        }
        // Any other text may be the key of an entity of any kind; a text that cannot be one is an error.
        OrderId::parse(id)?;
        for schema in ENTITY_SCHEMAS {
            let Some(key) = EntityKey::of_kind(schema.word, id) else {
                continue;
            };
            if load_entity(session, &key).await?.is_some() {
                self.entities.insert(key);
            }
        }
        if self.entities.is_empty() {
            self.add_events_of_object(session, id, since).await?;
        }
        Ok(())
    }

    pub(super) async fn add_event(&mut self, session: &StackSession, id: &EventId) -> Result<()> {
        if self.events.contains_key(id) {
            return Ok(());
        }
        for provider in ProviderId::ALL.iter().copied() {
            let Some(item) = session.events_table(provider)?.get_item(id).await? else {
                continue;
            };
            let summary = EventSummary::from_item(provider, &item)
                .context("the row is not an event of billhook")?;
            let rules = session.stack.interpret_rules()?;
            let kept = session.read_event(provider, &item).await?;
            let facts = kept.and_then(|kept| read_event_facts(&rules, provider, &kept));
            self.events
                .insert(id.clone(), TracedEvent { summary, facts });
        }
        Ok(())
    }

    /// Adds the events of a PaymentIntent, its entities and the payment itself. The payment comes last, because its key
    /// contains the account, which the events know, or the tenants of the entities.
    async fn add_payment(
        &mut self,
        session: &StackSession,
        intent: &PaymentIntentId,
        since: TimeArgument,
    ) -> Result<()> {
        self.add_events_of_object(session, intent.as_str(), since)
            .await?;
        let ledger = session.ledger(ProviderId::Stripe)?;
        self.entities
            .extend(ledger.entities_by_payment_intent(intent).await?);
        let tenants = self.load_tenants(&ledger).await?;
        let mut accounts = load_tenant_accounts(&ledger, tenants).await?;
        let of_events = self.events.values();
        accounts.extend(of_events.filter_map(|event| event.summary.record.account.clone()));
        for payment in load_payments(&ledger, intent, accounts).await? {
            self.payments.insert(payment.key);
        }
        Ok(())
    }

    /// The tenants of the entities found so far.
    async fn load_tenants(&self, ledger: &impl Ledger) -> Result<BTreeSet<TenantId>> {
        if self.entities.is_empty() {
            return Ok(BTreeSet::new());
        }
        let keys = self.entities.iter().cloned().map(StateKey::Entity);
        let rows = ledger.load_rows(&keys.collect()).await?;
        let entities = rows.entities.into_values();
        Ok(entities
            .filter_map(|(entity, _)| entity.tenant().cloned())
            .collect())
    }

    /// Adds what the events found so far belong to, as their rows say, then the other events of their payments and what
    /// those are linked to. An event that was parked adds the entity that it names; its outcome says why it was not applied there.
    pub(super) async fn add_entities_of_events(&mut self, session: &StackSession) -> Result<()> {
        for event in self.events.values() {
            let taken = event.taken_by();
            if taken.is_empty() {
                let named = event
                    .facts
                    .as_ref()
                    .and_then(|facts| facts.named_entity.clone());
                self.entities.extend(named);
            }
            for key in taken {
                match key {
                    StateKey::Entity(key) => drop(self.entities.insert(key)),
                    StateKey::Payment(key) => drop(self.payments.insert(key)),
                    StateKey::Invoice(_) => {}
                }
            }
        }
        let ledger = session.ledger(ProviderId::Stripe)?;
        let keys: Vec<PaymentKey> = self.payments.iter().cloned().collect();
        for keys in keys.chunks(PAYMENTS_AT_ONCE) {
            let keys = keys.iter().cloned().map(StateKey::Payment);
            let rows = ledger.load_rows(&keys.collect()).await?;
            for (payment, _) in rows.payments.into_values() {
                for event in &payment.history.event_ids {
                    self.add_event(session, event).await?;
                }
                let links = payment.facts.links.into_keys();
                self.entities
                    .extend(links.chain(payment.copied.into_keys()));
            }
        }
        Ok(())
    }

    async fn add_events_of_object(
        &mut self,
        session: &StackSession,
        id: &str,
        since: TimeArgument,
    ) -> Result<()> {
        let now = SystemClock.now();
        let selection = EventFilter::about_object(id, since).resolve(Vec::new(), now);
        for event in event_lookup::list_events(session, &selection, usize::MAX).await? {
            self.add_event(session, &event.record.id).await?;
        }
        Ok(())
    }

    async fn add_events_of_correlation(&mut self, session: &StackSession, id: Uuid) -> Result<()> {
        let jobs = session.replay_jobs()?;
        if let Ok(job) = jobs.read_job(id).await {
            self.entries.push(TraceEntry {
                at: job.created_at.to_string(),
                rank: 0,
                id: id.to_string(),
                what: "replay".to_owned(),
                detail: format!(
                    "{} of {} sent, {}, by {}: {}",
                    job.sent,
                    job.total,
                    job.state.as_str(),
                    job.author.actor,
                    job.author.reason
                ),
            });
            for event in &job.selection.ids {
                self.add_event(session, event).await?;
            }
        }
        // No index has correlation ids. But a UUIDv7 contains its time, so two minutes of the day index are enough.
        let Some(at) = id.get_timestamp() else {
            return Ok(());
        };
        let Ok(at) = Timestamp::from_unix_s(i64::try_from(at.to_unix().0)?) else {
            return Ok(());
        };
        let selection = EventFilter::select_around(at);
        for provider in ProviderId::ALL.iter().copied() {
            for event in session
                .events_table(provider)?
                .list(&selection, usize::MAX)
                .await?
            {
                if read_text(&event.row, "correlation_id") == Some(&id.to_string()) {
                    self.add_event(session, &event.record.id).await?;
                }
            }
        }
        Ok(())
    }
}

fn read_event_facts(
    rules: &InterpretRules,
    provider: ProviderId,
    kept: &StoredEvent,
) -> Option<EventFacts> {
    let StoredPayload::Intact(body) = &kept.payload else {
        return None;
    };
    let account = kept.stored.account.as_ref();
    interpret(provider, rules, account, body).ok()
}
