//! Resolves the tenant and the entity of each event. Tenant isolation: the tenant comes from the account in the signed
//! body and never from metadata; metadata only names an entity, which must then belong to that tenant.
//!
//! It finds the entity by this rule. An event about a connected account belongs to its tenant; an event about a piece
//! to the statement of that piece or, if no statement has it, to the one that the metadata names. An event about a
//! payment belongs to the entity that its metadata names or its payment is linked to; if the two differ, it is parked
//! as `link_conflict`. If there is neither, another event of the batch may link the payment; last, the only entity with
//! its PaymentIntent in a column counts. If there is none, the event waits for the link.
//!
//! Reads are gathered, so a batch of ten events costs two reads of rows, not twenty. The decision is `resolve_entity`,
//! a pure function. An index is only a hint: what it returns is checked against the row, read consistently. Exception:
//! the tenant of an account is what the index says, or a cache of up to 60 s.
//! docs/SEMANTICS.md, "Which entity an event belongs to", states the rules. [`find_entities`] applies them without a
//! worker.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::stream::{self, StreamExt as _};

use crate::entity::schema::UnreadableRow;
use crate::entity::{Entity, EntityKey};
use crate::error::{DependencyError, error_chain};
use crate::ids::{AccountId, EventId, PaymentIntentId, PieceId};
use crate::intake::inbox::EventRecord;
use crate::outcome::{EventVerdict, IgnoreReason, ParkReason};
use crate::provider::interpret::EventFacts;
use crate::worker::batch::{CALLS_AT_ONCE, ProcessingFailure};
use crate::worker::ports::{Ledger, LoadedRows, PaymentKey};
use crate::worker::step::{EventCandidate, EventStep, fail_each};

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

/// Says, without a worker, to which entity a worker would commit each of these events if they were a batch. Events that
/// it would park or ignore are missing from the answer. An error is a failed read.
pub async fn find_entities<L: Ledger>(
    ledger: &L,
    events: Vec<(EventRecord, EventFacts)>,
) -> Result<BTreeMap<EventId, EntityKey>, ProcessingFailure> {
    let candidates = events.into_iter();
    let candidates = candidates.map(|(stored, event)| EventCandidate::new(stored, event, 0));
    let mut ready = Vec::new();
    for step in assign_tenants(ledger, candidates.collect()).await {
        ready.extend(step.into_ready()?);
    }
    let (steps, _) = resolve_entities(ledger, ready).await;
    let mut found = BTreeMap::new();
    for step in steps {
        let matched = step
            .into_ready()?
            .and_then(|event| Some((event.stored.id, event.entity?)));
        found.extend(matched);
    }
    Ok(found)
}

/// Sets each event's tenant. Parks the event if no tenant or several have its account; an event without an account
/// belongs to the platform and has no tenant.
pub(super) async fn assign_tenants<L: Ledger>(
    ledger: &L,
    candidates: Vec<EventCandidate>,
) -> Vec<EventStep<EventCandidate>> {
    let accounts: BTreeSet<&AccountId> = candidates
        .iter()
        .filter_map(|candidate| candidate.stored.account.as_ref())
        .collect();
    let mut tenants = BTreeMap::new();
    for account in accounts {
        tenants.insert(account.clone(), ledger.tenants_by_account(account).await);
    }
    let assign = |mut candidate: EventCandidate| {
        let account = candidate.stored.account.as_ref();
        match account.and_then(|account| tenants.get(account)) {
            None => EventStep::Ready(candidate),
            Some(Err(error)) => {
                candidate.fail(ProcessingFailure::Infrastructure(error_chain(error)))
            }
            Some(Ok(tenants)) => match tenants.as_slice() {
                [tenant] => {
                    candidate.tenant = Some(tenant.clone());
                    EventStep::Ready(candidate)
                }
                [] => candidate.park(ParkReason::TenantUnknown),
                _ => candidate.park(ParkReason::TenantAmbiguous),
            },
        }
    };
    candidates.into_iter().map(assign).collect()
}

/// Sets each event's entity. Parks or ignores the event if it has none, or if its entity does not exist, cannot be read
/// or is another tenant's. Returns the rows too, for the commit.
pub(super) async fn resolve_entities<L: Ledger>(
    ledger: &L,
    candidates: Vec<EventCandidate>,
) -> (Vec<EventStep<EventCandidate>>, LoadedRows<L::Row>) {
    let (rows, hints) = match gather_evidence(ledger, &candidates).await {
        Ok(evidence) => evidence,
        Err(error) => {
            let ids = candidates.into_iter().map(|candidate| candidate.stored.id);
            return (fail_each(ids, &error.into()), LoadedRows::empty());
        }
    };
    let assign = |mut candidate: EventCandidate| {
        let decided = resolve_entity(&candidate, &rows, &hints);
        decided.and_then(|entity| {
            let checked = match &entity {
                Some(key) => check_entity(&candidate, key, &rows),
                None => EventStep::Ready(()),
            };
            checked.and_then(|()| {
                candidate.entity = entity;
                EventStep::Ready(candidate)
            })
        })
    };
    (candidates.into_iter().map(assign).collect(), rows)
}

/// Reads all rows that the decision needs, in two reads: first what the events name, then what the first read and the
/// indexes point to.
async fn gather_evidence<L: Ledger>(
    ledger: &L,
    candidates: &[EventCandidate],
) -> Result<(LoadedRows<L::Row>, MatchHints), DependencyError> {
    // For a piece the index comes first and the metadata second, so what its metadata names is read in the second read,
    // together with what the index returns.
    let (of_pieces, named): (Vec<&EventCandidate>, Vec<&EventCandidate>) =
        candidates.iter().partition(|c| c.event.piece.is_some());
    let names = |candidate: &EventCandidate| candidate.event.named_entity.clone();
    let payments = candidates.iter().filter_map(EventCandidate::payment);
    let named = named.into_iter().filter_map(names).collect();
    let mut rows = load_rows(ledger, named, payments.collect()).await?;
    let mut hints = gather_hints(ledger, candidates, &rows).await;
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
    let more = load_rows(ledger, found.collect(), BTreeSet::new()).await?;
    rows.entities.extend(more.entities);
    rows.unreadable.extend(more.unreadable);
    hints.keep_confirmed(&rows);
    Ok((rows, hints))
}

async fn load_rows<L: Ledger>(
    ledger: &L,
    entities: BTreeSet<EntityKey>,
    payments: BTreeSet<PaymentKey>,
) -> Result<LoadedRows<L::Row>, DependencyError> {
    match entities.is_empty() && payments.is_empty() {
        true => Ok(LoadedRows::empty()),
        false => ledger.load_rows(&entities, &payments).await,
    }
}

/// Queries the indexes, once for each payment and piece whose entity the rows do not show.
async fn gather_hints<L: Ledger>(
    ledger: &L,
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
        let hits = ledger.entities_by_payment_intent(&intent).await;
        (intent, hits.map_err(|error| error_chain(&error)))
    });
    let by_intent = asked.buffer_unordered(CALLS_AT_ONCE).collect().await;
    let asked = stream::iter(pieces).map(async |piece| {
        let hits = ledger.statements_by_piece(&piece).await;
        (piece, hits.map_err(|error| error_chain(&error)))
    });
    let by_piece = asked.buffer_unordered(CALLS_AT_ONCE).collect().await;
    MatchHints {
        linked_here,
        by_intent,
        by_piece,
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
            .is_some_and(|(entity, _)| check_tenant(entity, candidate) == TenantCheck::Own);
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

/// Decides which entity an event belongs to, by the rule at the head of this module. Ready with none: no entity has its
/// payment yet.
fn resolve_entity<R>(
    candidate: &EventCandidate,
    rows: &LoadedRows<R>,
    hints: &MatchHints,
) -> EventStep<Option<EntityKey>> {
    let only_hit = |answer: Option<&IndexHits>| match answer {
        None => EventStep::Ready(None),
        Some(Err(cause)) => candidate.fail(ProcessingFailure::Infrastructure(cause.clone())),
        Some(Ok(hits)) => match hits.as_slice() {
            [] => EventStep::Ready(None),
            [key] => EventStep::Ready(Some(key.clone())),
            _ => candidate.park(ParkReason::EntityAmbiguous),
        },
    };
    let named = candidate.event.named_entity.as_ref();
    if candidate.event.about_account {
        return match &candidate.tenant {
            Some(tenant) => EventStep::Ready(Some(EntityKey::Tenant(tenant.clone()))),
            None => candidate.park(ParkReason::TenantUnknown),
        };
    }
    if let Some(piece) = &candidate.event.piece {
        return only_hit(hints.by_piece.get(piece)).and_then(|hit| match hit.or(named.cloned()) {
            Some(key) => EventStep::Ready(Some(key)),
            None => candidate.park(ParkReason::LetterUnknown),
        });
    }
    let payment = candidate.payment();
    let linked = payment
        .as_ref()
        .and_then(|payment| linked_entity(rows, payment));
    match (named, linked, payment) {
        (Some(named), Some(linked), _) if named != linked => {
            candidate.park(ParkReason::LinkConflict)
        }
        (Some(key), ..) | (None, Some(key), _) => EventStep::Ready(Some(key.clone())),
        (None, None, Some(payment)) => {
            let linked_here = hints.linked_here.get(&payment).cloned();
            let intent = payment.payment.intent();
            only_hit(intent.and_then(|intent| hints.by_intent.get(intent)))
                .and_then(|hit| EventStep::Ready(hit.or(linked_here)))
        }
        (None, None, None) => EventStep::Close(
            candidate.event_update(EventVerdict::Ignored(IgnoreReason::NothingNamed)),
        ),
    }
}

/// Checks that the entity exists, can be read and belongs to the event's tenant; else the event is parked. One that a
/// newer release wrote is left to that release: the message comes again.
fn check_entity<R>(
    candidate: &EventCandidate,
    key: &EntityKey,
    rows: &LoadedRows<R>,
) -> EventStep<()> {
    match (rows.entities.get(key), rows.unreadable.get(key)) {
        (Some((entity, _)), _) => match check_tenant(entity, candidate) {
            TenantCheck::Own => EventStep::Ready(()),
            TenantCheck::Foreign => candidate.park(ParkReason::CrossTenant),
        },
        (None, Some(newer @ UnreadableRow::NewerSchema(_))) => {
            candidate.fail(ProcessingFailure::NewerSchema(format!("{key}: {newer}")))
        }
        (None, Some(UnreadableRow::Broken(_))) => candidate.park(ParkReason::EntityUnreadable),
        (None, None) => candidate.park(unknown_entity_reason(candidate, key)),
    }
}

fn unknown_entity_reason(candidate: &EventCandidate, key: &EntityKey) -> ParkReason {
    // An event about a piece looks for the piece's statement, whatever its metadata names.
    if candidate.event.piece.is_some() {
        return ParkReason::LetterUnknown;
    }
    key.unknown_reason()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TenantCheck {
    Own,
    Foreign,
}

/// Tenant isolation: an event of a connected account may change only entities of its own tenant. An event of the
/// platform may change any, because destination charges for tenants live on the platform's account.
fn check_tenant(entity: &Entity, candidate: &EventCandidate) -> TenantCheck {
    let is_of_platform = candidate.stored.account.is_none();
    let tenant = candidate.tenant.as_ref();
    match is_of_platform || (tenant.is_some() && tenant == entity.tenant()) {
        true => TenantCheck::Own,
        false => TenantCheck::Foreign,
    }
}
