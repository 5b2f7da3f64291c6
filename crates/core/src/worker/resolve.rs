//! Resolves the tenant and the entity of each event. Tenant isolation: the tenant comes from the account in the signed
//! body and never from metadata; metadata only names an entity, which `commit` then checks against that tenant.
//!
//! It finds the entity by this rule. An event about a connected account belongs to its tenant; an event about a piece
//! to the statement of that piece or, if no statement has it, to the one that the metadata names. An event about a
//! payment belongs to the entity that its metadata names or its payment is linked to; if the two differ, it is parked
//! as `link_conflict`. If there is neither, another event of the batch may link the payment; last, the only entity with
//! its PaymentIntent in a column counts.
//!
//! Reads are gathered, so a batch of ten events costs two reads of rows, not twenty. The decision is
//! [`resolve_entity`], a pure function. An index is only a hint: what it returns is checked against the row, read
//! consistently. Exception: the tenant of an account is what the index says, or a cache of up to 60 s.
//! docs/SEMANTICS.md, "Which entity an event belongs to", states the rules.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::stream::{self, StreamExt as _};

use crate::entity::{Entity, EntityKey};
use crate::error::{DependencyError, error_chain};
use crate::ids::{AccountId, PaymentIntentId, PieceId};
use crate::outcome::{EventVerdict, IgnoreReason, ParkReason};
use crate::ports::{Clock, Pause};
use crate::worker::batch::{
    CALLS_AT_ONCE, EventCandidate, EventDisposition, ProcessingFailure, RoundOutcome, Worker,
};
use crate::worker::ports::{EventUpdate, Ledger, LoadedRows, PaymentKey};

/// The entity that a candidate's facts belong to.
pub(super) enum EntityMatch {
    Entity(EntityKey),
    /// No entity: the event is parked or ignored.
    NoEntity(EventVerdict),
    /// Unknown, because the query of the index failed, with this cause: retry.
    LookupFailed(String),
}

/// Evidence beside the rows for which entity an event belongs to.
struct MatchHints {
    /// Payments that an event of this batch links to an entity of its own tenant. Example: a batch has the
    /// `payment_intent.succeeded` that names `ord_1` and a `charge.refunded` of the same payment without metadata. Both
    /// are processed together; without this map the refund would first be parked as `unlinked`.
    linked_here: BTreeMap<PaymentKey, EntityKey>,
    by_intent: BTreeMap<PaymentIntentId, IndexHits>,
    by_piece: BTreeMap<PieceId, IndexHits>,
}

/// An index's answer. A query that failed fails only the events that need it.
type IndexHits = Result<Vec<EntityKey>, String>;

impl<L: Ledger, C: Clock + Pause> Worker<L, C> {
    /// Sets each candidate's tenant. Parks the event if no tenant or several have its account; an event without an
    /// account belongs to the platform and has no tenant.
    pub(super) async fn assign_tenants(
        &self,
        candidates: Vec<EventCandidate>,
        verdicts: &mut Vec<EventUpdate>,
        found: &RoundOutcome,
    ) -> Vec<EventCandidate> {
        let accounts: BTreeSet<&AccountId> = candidates
            .iter()
            .filter_map(|c| c.stored.account.as_ref())
            .collect();
        let mut tenants = BTreeMap::new();
        for account in accounts {
            tenants.insert(
                account.clone(),
                self.ledger.tenants_by_account(account).await,
            );
        }
        let mut known = Vec::new();
        for mut candidate in candidates {
            let Some(its) = candidate
                .stored
                .account
                .as_ref()
                .and_then(|account| tenants.get(account))
            else {
                known.push(candidate);
                continue;
            };
            match its.as_deref() {
                Ok([tenant]) => {
                    candidate.tenant = Some(tenant.clone());
                    known.push(candidate);
                }
                Ok([]) => verdicts
                    .push(candidate.event_update(EventVerdict::Parked(ParkReason::TenantUnknown))),
                Ok(_) => verdicts.push(
                    candidate.event_update(EventVerdict::Parked(ParkReason::TenantAmbiguous)),
                ),
                Err(error) => {
                    let failure = ProcessingFailure::Infrastructure(error_chain(error));
                    found.add([EventDisposition::failed(&candidate.stored.id, failure)]);
                }
            }
        }
        known
    }

    /// Finds each candidate's entity and reads all rows that the decision needs, in two reads: first what the events
    /// name, then what the first read and the indexes point to.
    pub(super) async fn resolve_batch(
        &self,
        candidates: &[EventCandidate],
    ) -> Result<(Vec<EntityMatch>, LoadedRows<L::Row>), DependencyError> {
        // For a piece the index comes first and the metadata second, so what its metadata names is read in the second
        // read, together with what the index returns.
        let (of_pieces, named): (Vec<&EventCandidate>, Vec<&EventCandidate>) =
            candidates.iter().partition(|c| c.event.piece.is_some());
        let names = |candidate: &EventCandidate| candidate.event.named_entity.clone();
        let payments = candidates
            .iter()
            .filter_map(EventCandidate::payment)
            .collect();
        let mut rows = self
            .load_rows(named.into_iter().filter_map(names).collect(), &payments)
            .await?;
        let mut hints = self.gather_hints(candidates, &rows).await;
        let tenants = candidates
            .iter()
            .filter(|candidate| candidate.event.about_account)
            .filter_map(|candidate| candidate.tenant.clone().map(EntityKey::Tenant));
        let linked = rows.payments.values().filter_map(|row| row.entity.clone());
        let found = tenants
            .chain(linked)
            .chain(hints.index_hits())
            .chain(of_pieces.into_iter().filter_map(names));
        let found = found.filter(|key| !rows.entities.contains_key(key));
        let more = self.load_rows(found.collect(), &BTreeSet::new()).await?;
        rows.entities.extend(more.entities);
        rows.unreadable.extend(more.unreadable);
        hints.keep_confirmed(&rows);
        let targets = candidates
            .iter()
            .map(|candidate| resolve_entity(candidate, &rows, &hints))
            .collect();
        Ok((targets, rows))
    }

    async fn load_rows(
        &self,
        entities: BTreeSet<EntityKey>,
        payments: &BTreeSet<PaymentKey>,
    ) -> Result<LoadedRows<L::Row>, DependencyError> {
        if entities.is_empty() && payments.is_empty() {
            return Ok(LoadedRows {
                entities: BTreeMap::new(),
                unreadable: BTreeMap::new(),
                payments: BTreeMap::new(),
            });
        }
        self.ledger.load_rows(&entities, payments).await
    }

    /// Queries the indexes, once for each payment and piece whose entity the rows do not show.
    async fn gather_hints(
        &self,
        candidates: &[EventCandidate],
        rows: &LoadedRows<L::Row>,
    ) -> MatchHints {
        let linked_here = find_links_in_batch(candidates, rows);
        let unplaced = |payment: &PaymentKey| {
            linked_entity(rows, payment).is_none() && !linked_here.contains_key(payment)
        };
        let intents: BTreeSet<PaymentIntentId> = candidates
            .iter()
            .filter(|candidate| candidate.event.named_entity.is_none())
            .filter_map(EventCandidate::payment)
            .filter(unplaced)
            .filter_map(|payment| payment.payment.intent().cloned())
            .collect();
        let pieces: BTreeSet<PieceId> = candidates
            .iter()
            .filter_map(|candidate| candidate.event.piece.clone())
            .collect();
        let asked = stream::iter(intents).map(async |intent| {
            let hits = self.ledger.entities_by_payment_intent(&intent).await;
            (intent, hits.map_err(|error| error_chain(&error)))
        });
        let by_intent = asked.buffer_unordered(CALLS_AT_ONCE).collect().await;
        let asked = stream::iter(pieces).map(async |piece| {
            let hits = self.ledger.statements_by_piece(&piece).await;
            (piece, hits.map_err(|error| error_chain(&error)))
        });
        let by_piece = asked.buffer_unordered(CALLS_AT_ONCE).collect().await;
        MatchHints {
            linked_here,
            by_intent,
            by_piece,
        }
    }
}

impl MatchHints {
    /// Every entity that an index returned.
    fn index_hits(&self) -> impl Iterator<Item = EntityKey> {
        let answers = self.by_intent.values().chain(self.by_piece.values());
        answers.flatten().flatten().cloned()
    }

    /// Drops the hits that the rows do not confirm, because an index lags behind its table. Example: the application
    /// moved `pi_1` from `ord_1` to `ord_2`, and the index returns both. Unchecked, the event would be parked as
    /// `entity_ambiguous`. A row that was deleted confirms nothing; a row that cannot be read stays a hit, so that the
    /// event is parked as `entity_unreadable` instead of `unlinked`.
    fn keep_confirmed<R>(&mut self, rows: &LoadedRows<R>) {
        let is_confirmed = |key: &EntityKey, has_column: &dyn Fn(&Entity) -> bool| {
            rows.unreadable.contains_key(key)
                || rows
                    .entities
                    .get(key)
                    .is_some_and(|(entity, _)| has_column(entity))
        };
        for (intent, hits) in &mut self.by_intent {
            if let Ok(keys) = hits {
                keys.retain(|key| {
                    is_confirmed(key, &|entity| entity.payment_intent() == Some(intent))
                });
            }
        }
        for (piece, hits) in &mut self.by_piece {
            if let Ok(keys) = hits {
                keys.retain(|key| is_confirmed(key, &|entity| entity.piece() == Some(piece)));
            }
        }
    }
}

fn linked_entity<'r, R>(rows: &'r LoadedRows<R>, payment: &PaymentKey) -> Option<&'r EntityKey> {
    rows.payments.get(payment)?.entity.as_ref()
}

/// The payments that this batch links to an entity. If two events name different entities for one payment, neither
/// counts here.
fn find_links_in_batch<R>(
    candidates: &[EventCandidate],
    rows: &LoadedRows<R>,
) -> BTreeMap<PaymentKey, EntityKey> {
    let mut named: BTreeMap<PaymentKey, BTreeSet<&EntityKey>> = BTreeMap::new();
    for candidate in candidates {
        let Some((payment, key)) = candidate
            .payment()
            .zip(candidate.event.named_entity.as_ref())
        else {
            continue;
        };
        let is_theirs = rows
            .entities
            .get(key)
            .is_some_and(|(entity, _)| belongs_to_tenant(entity, candidate));
        if is_theirs && linked_entity(rows, &payment).is_none() {
            named.entry(payment).or_default().insert(key);
        }
    }
    named
        .into_iter()
        .filter(|(_, keys)| keys.len() == 1)
        .filter_map(|(payment, keys)| Some((payment, keys.into_iter().next()?.clone())))
        .collect()
}

/// Decides which entity an event belongs to, by the rule at the head of this module.
fn resolve_entity<R>(
    candidate: &EventCandidate,
    rows: &LoadedRows<R>,
    hints: &MatchHints,
) -> EntityMatch {
    let parked = |reason| EntityMatch::NoEntity(EventVerdict::Parked(reason));
    let one_of = |answer: Option<&IndexHits>, named: Option<&EntityKey>, unknown| {
        let hits = match answer {
            Some(Ok(hits)) => hits.as_slice(),
            Some(Err(cause)) => return EntityMatch::LookupFailed(cause.clone()),
            None => &[],
        };
        match (hits, named) {
            ([key], _) => EntityMatch::Entity(key.clone()),
            ([], Some(key)) => EntityMatch::Entity(key.clone()),
            ([], None) => parked(unknown),
            _ => parked(ParkReason::EntityAmbiguous),
        }
    };
    if candidate.event.about_account {
        let tenant = candidate.tenant.clone().map(EntityKey::Tenant);
        return tenant.map_or(parked(ParkReason::TenantUnknown), EntityMatch::Entity);
    }
    let named = candidate.event.named_entity.as_ref();
    if let Some(piece) = &candidate.event.piece {
        return one_of(hints.by_piece.get(piece), named, ParkReason::LetterUnknown);
    }
    let payment = candidate.payment();
    let linked = payment
        .as_ref()
        .and_then(|payment| linked_entity(rows, payment));
    match (named, linked, payment) {
        (Some(named), Some(linked), _) if named != linked => parked(ParkReason::LinkConflict),
        (Some(key), ..) | (None, Some(key), _) => EntityMatch::Entity(key.clone()),
        (None, None, Some(payment)) => one_of(
            payment
                .payment
                .intent()
                .and_then(|intent| hints.by_intent.get(intent)),
            hints.linked_here.get(&payment),
            ParkReason::Unlinked,
        ),
        (None, None, None) => {
            EntityMatch::NoEntity(EventVerdict::Ignored(IgnoreReason::NothingNamed))
        }
    }
}

/// Tenant isolation: an event of a connected account may change only entities of its own tenant. An event of the
/// platform may change any, because destination charges for tenants live on the platform's account.
pub(super) fn belongs_to_tenant(entity: &Entity, candidate: &EventCandidate) -> bool {
    candidate.stored.account.is_none()
        || (candidate.tenant.is_some() && candidate.tenant.as_ref() == entity.tenant())
}
