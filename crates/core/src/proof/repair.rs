//! Mends what a proof found, through the worker's own path: states and rows are written on condition that they are as they
//! were proven. It issues no effect, and sets nothing that only a person can decide.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::time::Duration;

use super::entity::{is_behind, own_events, restate, use_of};
use super::facts::named_events;
use super::prover::{EventsByState, ProofRows, StateProver, prove_states};
use super::{StateCorrection, StateProof};
use crate::entity::account::AccountFacts;
use crate::entity::key::{PaymentKey, StateKey};
use crate::entity::mail::facts::MailFacts;
use crate::entity::{Entity, EntityKey};
use crate::ids::{EventId, ProviderId};
use crate::ports::{Clock, Pause};
use crate::time::Timestamp;
use crate::worker::PaymentRebuild;
use crate::worker::batch::{ProcessingFailure, Worker};
use crate::worker::ports::{CommitPart, EntityWrite, Ledger};

/// Attempts, each of which mends one thing: a copy before the row that follows from it, and once more after a lost race.
const ROUNDS_MAX: u32 = 8;

/// Has an event processed that was processed already.
pub trait ReprocessEvent {
    fn reprocess(
        &self,
        provider: ProviderId,
        event: &EventId,
    ) -> impl Future<Output = Result<(), ProcessingFailure>>;
}

/// Mends one state, and proves it again: what is different then, a person has to decide.
pub async fn repair_state<L: Ledger, C: Clock + Pause>(
    prover: &StateProver<L>,
    worker: &Worker<L, C>,
    events: &impl ReprocessEvent,
    key: &StateKey,
    named: &EventsByState,
) -> Result<StateProof, ProcessingFailure> {
    let keys = BTreeSet::from([key.clone()]);
    let mut failure = None;
    for round in 0..ROUNDS_MAX {
        if failure.is_some() {
            let pause = Duration::from_millis(25 << round);
            worker.clock.pause(pause).await;
        }
        let now = worker.clock.now();
        let loaded = prover.load(&keys, named).await?;
        let proofs = prove_states::<L>(&keys, named, &loaded, now);
        let Some(proof) = proofs.into_iter().next() else {
            break;
        };
        if proof.correction.is_none() {
            return Ok(proof);
        }
        let mended = mend_once(prover, worker, events, &proof, named, &loaded).await;
        failure = mended.err();
    }
    Err(failure.unwrap_or_else(|| {
        ProcessingFailure::Infrastructure(format!(
            "{key} is still different after {ROUNDS_MAX} repairs"
        ))
    }))
}

async fn mend_once<L: Ledger, C: Clock + Pause>(
    prover: &StateProver<L>,
    worker: &Worker<L, C>,
    events: &impl ReprocessEvent,
    proof: &StateProof,
    named: &EventsByState,
    loaded: &ProofRows<L::Row>,
) -> Result<(), ProcessingFailure> {
    let StateCorrection {
        payment,
        event_ids,
        copies,
        row,
        mail,
        account,
        events: reprocessed,
    } = &proof.correction;
    match &proof.key {
        StateKey::Payment(key) if payment.is_some() || !copies.is_empty() => {
            for (_, entity) in copies {
                if restore_entity(prover, worker, key, entity, named).await? {
                    return Ok(());
                }
            }
            let rebuild = PaymentRebuild {
                facts: payment.clone(),
                events: event_ids.clone(),
                copies: copies.iter().map(|(_, entity)| entity.clone()).collect(),
            };
            worker.rebuild_payment(key, rebuild, &loaded.rows).await?;
            return Ok(());
        }
        StateKey::Entity(entity) if !copies.is_empty() => {
            for (payment, _) in copies {
                rebuild_copy(prover, worker, payment, entity, named).await?;
            }
            return Ok(());
        }
        _ => {}
    }
    for (provider, event) in reprocessed {
        events.reprocess(*provider, event).await?;
    }
    if let (StateKey::Entity(key), true) = (&proof.key, *row || mail.is_some() || account.is_some())
    {
        write_entity(worker, key, mail.as_ref(), account.as_ref(), named, loaded).await?;
    }
    Ok(())
}

/// Writes the state and the row of an entity as they follow from right facts.
async fn write_entity<L: Ledger, C: Clock + Pause>(
    worker: &Worker<L, C>,
    key: &EntityKey,
    mail: Option<&MailFacts>,
    account: Option<&AccountFacts>,
    named: &EventsByState,
    loaded: &ProofRows<L::Row>,
) -> Result<(), ProcessingFailure> {
    let Some((entity, row)) = loaded.rows.entities.get(key) else {
        return Ok(());
    };
    let now = worker.clock.now();
    let none = BTreeSet::new();
    let named = named.get(&key.clone().into()).unwrap_or(&none);
    let right = match is_behind(entity) {
        true => {
            let own = own_events::<L>(entity, row, named);
            entity.rebased(restate(entity, &own, &loaded.rows, &loaded.events), now)
        }
        false => entity.clone().with_own_facts(mail, account),
    };
    let mut next = right.apply_facts([], now);
    let known = loaded.events_of(entity, named);
    next.record_events(known.iter().map(|(id, at)| (id, *at)));
    let part = CommitPart {
        entities: vec![EntityWrite { entity, row, next }],
        states: Vec::new(),
        events: Vec::new(),
        now,
    };
    worker.ledger.commit(worker.provider, &[&part]).await?;
    Ok(())
}

/// Restores the state of an entity that lost it, before a copy is written into it: until then nothing may be. The payment
/// says what the entity's row cannot. Returns whether it did.
async fn restore_entity<L: Ledger, C: Clock + Pause>(
    prover: &StateProver<L>,
    worker: &Worker<L, C>,
    payment: &PaymentKey,
    entity: &EntityKey,
    named: &EventsByState,
) -> Result<bool, ProcessingFailure> {
    let state = StateKey::Entity(entity.clone());
    let keys = BTreeSet::from([state.clone(), payment.clone().into()]);
    let loaded = prover.load(&keys, named).await?;
    let is_lost = |(entity, _): &(Entity, L::Row)| is_behind(entity);
    if !loaded.rows.entities.get(entity).is_some_and(is_lost) {
        return Ok(false);
    }
    let now = worker.clock.now();
    let proofs = prove_states::<L>(&BTreeSet::from([state]), named, &loaded, now);
    let is_mendable = proofs.iter().any(|proof| proof.correction.row);
    if is_mendable {
        write_entity(worker, entity, None, None, named, &loaded).await?;
    }
    Ok(is_mendable)
}

/// Writes the copy of a payment again; and the payment's state too, if that is what is wrong.
async fn rebuild_copy<L: Ledger, C: Clock + Pause>(
    prover: &StateProver<L>,
    worker: &Worker<L, C>,
    payment: &PaymentKey,
    entity: &EntityKey,
    named: &EventsByState,
) -> Result<(), ProcessingFailure> {
    let state = StateKey::Payment(payment.clone());
    let keys = BTreeSet::from([state.clone(), entity.clone().into()]);
    let mut named: BTreeMap<_, _> = named.clone();
    let known = prover.load(&keys, &named).await?;
    if let Some((entity, _)) = known.rows.entities.get(entity) {
        // A payment that was lost is known by the events of its copy.
        let of_payment = named.entry(state.clone()).or_default();
        of_payment.extend(entity.event_ids().iter().cloned());
        let copies = entity.linked_payment_facts();
        let copy = copies.and_then(|copies| copies.payments.get(payment));
        of_payment.extend(
            copy.map(|copy| named_events(&copy.facts))
                .unwrap_or_default(),
        );
    }
    let loaded = prover.load(&keys, &named).await?;
    let proofs = prove_states::<L>(
        &BTreeSet::from([state]),
        &named,
        &loaded,
        worker.clock.now(),
    );
    let correction = proofs.into_iter().next().map(|proof| proof.correction);
    let correction = correction.unwrap_or_default();
    let rebuild = PaymentRebuild {
        facts: correction.payment,
        events: correction.event_ids,
        copies: BTreeSet::from([entity.clone()]),
    };
    worker
        .rebuild_payment(payment, rebuild, &loaded.rows)
        .await?;
    Ok(())
}

impl<R> ProofRows<R> {
    /// The events that an entity has to remember after its repair: those of its letters or account that it had lost, and, if
    /// the state itself was lost, those of its payments.
    fn events_of(
        &self,
        entity: &Entity,
        named: &BTreeSet<EventId>,
    ) -> Vec<(EventId, Option<Timestamp>)> {
        let key = entity.key();
        if !is_behind(entity) {
            let read = self.events.read();
            let own = read.filter(|event| named.contains(&event.id) && event.is_for(use_of(&key)));
            return own
                .map(|event| (event.id.clone(), event.created_at()))
                .collect();
        }
        let payments = self.rows.payments.values();
        let linked = payments.filter(|(payment, _)| payment.copied.contains_key(&key));
        let events = linked.flat_map(|(payment, _)| payment.history.event_ids.iter());
        let own = self.events.ids();
        events.chain(own).map(|id| (id.clone(), None)).collect()
    }
}
