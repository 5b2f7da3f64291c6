//! Who events belong to: the tenant by the account, the entity by what an event names. Reads are gathered, so that a
//! batch costs one of each kind however many events it has; the decision itself is [`target`], and pure.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::stream::{self, StreamExt as _};

use super::{CALLS_AT_ONCE, Candidate, Failure, Finding, Found, Worker};
use crate::entity::{Entity, EntityKey};
use crate::ids::{AccountId, PaymentIntentId, PieceId};
use crate::inbox::{IgnoreReason, ParkReason, Verdict};
use crate::ports::{Clock, Concluded, Ledger, Pause, PaymentKey, Rows, Unavailable};
use crate::retry::chain;

/// Where a candidate's facts go.
pub(super) enum Target {
    Entity(EntityKey),
    Nowhere(Verdict),
    /// The index that would tell did not answer.
    NotFound(String),
}

/// What else than the rows tells whose an event is.
struct Hints {
    /// Payments that an event of this batch links to an entity of its own tenant: what comes with it is decided with it.
    linked_here: BTreeMap<PaymentKey, EntityKey>,
    /// Entities whose column names the payment, by the index.
    by_intent: BTreeMap<PaymentIntentId, Nominated>,
    /// Statements whose column names the piece, by the index.
    by_piece: BTreeMap<PieceId, Nominated>,
}

/// An index's answer; one that failed fails only the events that need it.
type Nominated = Result<Vec<EntityKey>, String>;

impl<L: Ledger, C: Clock + Pause> Worker<L, C> {
    /// Gives each candidate its account's tenant; parks those whose account has none, or several.
    pub(super) async fn with_tenants(
        &self,
        candidates: Vec<Candidate>,
        verdicts: &mut Vec<Concluded>,
        found: &Found,
    ) -> Vec<Candidate> {
        let accounts: BTreeSet<&AccountId> = candidates
            .iter()
            .filter_map(|c| c.stored.account.as_ref())
            .collect();
        let mut tenants = BTreeMap::new();
        for account in accounts {
            tenants.insert(account.clone(), self.ledger.tenants_of(account).await);
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
                Ok([]) => {
                    verdicts.push(candidate.concluded(Verdict::Parked(ParkReason::TenantUnknown)))
                }
                Ok(_) => {
                    verdicts.push(candidate.concluded(Verdict::Parked(ParkReason::TenantAmbiguous)))
                }
                Err(error) => {
                    let failure = Failure::Infrastructure(chain(error));
                    found.add([Finding::failed(&candidate.stored.id, failure)]);
                }
            }
        }
        known
    }

    /// Finds each candidate's entity, and reads all rows that the decision needs: what is named in one read, what is
    /// found through it in another.
    pub(super) async fn targets(
        &self,
        candidates: &[Candidate],
    ) -> Result<(Vec<Target>, Rows<L::Row>), Unavailable> {
        // What a piece's metadata names is the second way to its statement: read with what the index names.
        let (of_pieces, named): (Vec<&Candidate>, Vec<&Candidate>) =
            candidates.iter().partition(|c| c.claim.piece.is_some());
        let names = |candidate: &Candidate| candidate.claim.names.clone();
        let payments = candidates.iter().filter_map(Candidate::payment).collect();
        let mut rows = self
            .rows(named.into_iter().filter_map(names).collect(), &payments)
            .await?;
        let mut hints = self.hints(candidates, &rows).await;
        let tenants = candidates
            .iter()
            .filter(|candidate| candidate.claim.about_account)
            .filter_map(|candidate| candidate.tenant.clone().map(EntityKey::Tenant));
        let linked = rows.payments.values().filter_map(|row| row.entity.clone());
        let found = tenants
            .chain(linked)
            .chain(hints.nominated())
            .chain(of_pieces.into_iter().filter_map(names));
        let found = found.filter(|key| !rows.entities.contains_key(key));
        let more = self.rows(found.collect(), &BTreeSet::new()).await?;
        rows.entities.extend(more.entities);
        rows.unreadable.extend(more.unreadable);
        hints.believe_only(&rows);
        let targets = candidates
            .iter()
            .map(|candidate| target(candidate, &rows, &hints))
            .collect();
        Ok((targets, rows))
    }

    async fn rows(
        &self,
        entities: BTreeSet<EntityKey>,
        payments: &BTreeSet<PaymentKey>,
    ) -> Result<Rows<L::Row>, Unavailable> {
        if entities.is_empty() && payments.is_empty() {
            return Ok(Rows {
                entities: BTreeMap::new(),
                unreadable: BTreeMap::new(),
                payments: BTreeMap::new(),
            });
        }
        self.ledger.rows(&entities, payments).await
    }

    /// Asks the indexes, once for each payment and piece that the rows do not place.
    async fn hints(&self, candidates: &[Candidate], rows: &Rows<L::Row>) -> Hints {
        let linked_here = linked_here(candidates, rows);
        let unplaced = |payment: &PaymentKey| {
            linked(rows, payment).is_none() && !linked_here.contains_key(payment)
        };
        let intents: BTreeSet<PaymentIntentId> = candidates
            .iter()
            .filter(|candidate| candidate.claim.names.is_none())
            .filter_map(Candidate::payment)
            .filter(unplaced)
            .map(|payment| payment.intent)
            .collect();
        let pieces: BTreeSet<PieceId> = candidates
            .iter()
            .filter_map(|candidate| candidate.claim.piece.clone())
            .collect();
        let asked = stream::iter(intents).map(async |intent| {
            let bearing = self.ledger.bearing_intent(&intent).await;
            (intent, bearing.map_err(|error| chain(&error)))
        });
        let by_intent = asked.buffer_unordered(CALLS_AT_ONCE).collect().await;
        let asked = stream::iter(pieces).map(async |piece| {
            let bearing = self.ledger.bearing_piece(&piece).await;
            (piece, bearing.map_err(|error| chain(&error)))
        });
        let by_piece = asked.buffer_unordered(CALLS_AT_ONCE).collect().await;
        Hints {
            linked_here,
            by_intent,
            by_piece,
        }
    }
}

impl Hints {
    /// Every entity that an index named.
    fn nominated(&self) -> impl Iterator<Item = EntityKey> {
        let answers = self.by_intent.values().chain(self.by_piece.values());
        answers.flatten().flatten().cloned()
    }

    /// An index lags behind its table: it only nominates, and the row as read decides. A row that is gone names nothing
    /// any more; one that cannot be read may.
    fn believe_only<R>(&mut self, rows: &Rows<R>) {
        let bears = |key: &EntityKey, names: &dyn Fn(&Entity) -> bool| {
            rows.unreadable.contains_key(key)
                || rows
                    .entities
                    .get(key)
                    .is_some_and(|(entity, _)| names(entity))
        };
        for (intent, nominated) in &mut self.by_intent {
            if let Ok(keys) = nominated {
                keys.retain(|key| bears(key, &|entity| entity.intent.as_ref() == Some(intent)));
            }
        }
        for (piece, nominated) in &mut self.by_piece {
            if let Ok(keys) = nominated {
                keys.retain(|key| bears(key, &|entity| entity.mailed.as_ref() == Some(piece)));
            }
        }
    }
}

fn linked<'r, R>(rows: &'r Rows<R>, payment: &PaymentKey) -> Option<&'r EntityKey> {
    rows.payments.get(payment)?.entity.as_ref()
}

/// The payments that this batch links, as far as it does not contradict itself.
fn linked_here<R>(candidates: &[Candidate], rows: &Rows<R>) -> BTreeMap<PaymentKey, EntityKey> {
    let mut named: BTreeMap<PaymentKey, BTreeSet<&EntityKey>> = BTreeMap::new();
    for candidate in candidates {
        let Some((payment, key)) = candidate.payment().zip(candidate.claim.names.as_ref()) else {
            continue;
        };
        let is_theirs = rows
            .entities
            .get(key)
            .is_some_and(|(entity, _)| is_owners(entity, candidate));
        if is_theirs && linked(rows, &payment).is_none() {
            named.entry(payment).or_default().insert(key);
        }
    }
    named
        .into_iter()
        .filter(|(_, keys)| keys.len() == 1)
        .filter_map(|(payment, keys)| Some((payment, keys.into_iter().next()?.clone())))
        .collect()
}

/// Whose an event is: its piece's statement, the entity it names, or the one that bears its payment.
fn target<R>(candidate: &Candidate, rows: &Rows<R>, hints: &Hints) -> Target {
    let parked = |reason| Target::Nowhere(Verdict::Parked(reason));
    let one_of = |answer: Option<&Nominated>, named: Option<&EntityKey>, unknown| {
        let bearing = match answer {
            Some(Ok(bearing)) => bearing.as_slice(),
            Some(Err(cause)) => return Target::NotFound(cause.clone()),
            None => &[],
        };
        match (bearing, named) {
            ([key], _) => Target::Entity(key.clone()),
            ([], Some(key)) => Target::Entity(key.clone()),
            ([], None) => parked(unknown),
            _ => parked(ParkReason::EntityAmbiguous),
        }
    };
    if candidate.claim.about_account {
        let tenant = candidate.tenant.clone().map(EntityKey::Tenant);
        return tenant.map_or(parked(ParkReason::TenantUnknown), Target::Entity);
    }
    let named = candidate.claim.names.as_ref();
    if let Some(piece) = &candidate.claim.piece {
        return one_of(hints.by_piece.get(piece), named, ParkReason::LetterUnknown);
    }
    let payment = candidate.payment();
    let linked = payment.as_ref().and_then(|payment| linked(rows, payment));
    match (named, linked, payment) {
        (Some(named), Some(linked), _) if named != linked => parked(ParkReason::LinkConflict),
        (Some(key), ..) | (None, Some(key), _) => Target::Entity(key.clone()),
        (None, None, Some(payment)) => one_of(
            hints.by_intent.get(&payment.intent),
            hints.linked_here.get(&payment),
            ParkReason::Unlinked,
        ),
        (None, None, None) => Target::Nowhere(Verdict::Ignored(IgnoreReason::NothingNamed)),
    }
}

/// A connected account's event concerns its own tenant's entities only; the platform's may concern any.
pub(super) fn is_owners(entity: &Entity, candidate: &Candidate) -> bool {
    candidate.stored.account.is_none()
        || (candidate.tenant.is_some() && candidate.tenant == entity.tenant)
}
