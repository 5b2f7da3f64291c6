//! A run of proofs: which states, in which order, what was found, and the repair of what can be mended.
//!
//! A run goes through units: segments of all states, then days of events, or chunks of named states. Ctrl-C ends it after
//! the current unit, and the command to continue names the next one: nothing has to be stored.

use std::collections::{BTreeMap, BTreeSet};
use std::io::IsTerminal as _;
use std::pin::pin;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use billhook_adapters::clock::SystemClock;
use billhook_adapters::dynamodb::ledger::DynamoLedger;
use billhook_adapters::stripe::{StripeClient, StripeError};
use billhook_core::entity::key::{PaymentKey, StateKey};
use billhook_core::entity::payment::facts::MoneyFacts;
use billhook_core::entity::{ENTITY_SCHEMAS, EntityKey};
use billhook_core::error::error_chain;
use billhook_core::ids::{AccountId, EventId, PaymentRef, PerProvider, ProviderId};
use billhook_core::intake::inbox::EVENT_RETENTION;
use billhook_core::ports::Clock as _;
use billhook_core::proof::listing::{ListStates as _, ScanSegment};
use billhook_core::proof::prover::{EventsByState, StateProver};
use billhook_core::proof::{ProofResult, StateDifference, StateProof};
use billhook_core::provider::stripe::comparison::compare_with_stripe;
use billhook_core::provider::stripe::objects::read_payment_at_stripe;
use billhook_core::retry::Disposition;
use billhook_core::tasks::ports::{ArrivalSpan, FindUnfinishedEvents as _};
use billhook_core::time::Timestamp;
use billhook_core::worker::ports::{Ledger as _, LoadedRows};
use futures_util::FutureExt as _;
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use serde_json::{Map, Value, json};

use crate::exit::CommandExit;
use crate::interrupt::wait_for_interrupt;
use crate::session::StackSession;

/// Segments of a run over all states: small enough that Ctrl-C is soon obeyed.
const SEGMENTS: u32 = 64;
/// States that are proven together.
pub(crate) const STATES_AT_ONCE: usize = 50;
const CHUNKS_AT_ONCE: usize = 4;

pub(crate) type OperatorProver = StateProver<DynamoLedger<SystemClock>>;

/// What a run proves.
#[derive(Clone, Debug)]
pub(crate) enum ProofScope {
    /// All states, and all events that arrived since then.
    All { since: Option<Timestamp> },
    /// About this percentage of all states: those of today's segments.
    Sample(u32),
    /// These, and events of which an index says that they took them.
    States {
        states: BTreeSet<StateKey>,
        named: EventsByState,
    },
}

#[derive(Clone, Debug)]
enum ProofUnit {
    Segment(ScanSegment),
    /// The events that arrived on one day.
    Day(String),
    States(Vec<StateKey>),
}

impl ProofUnit {
    /// Its name in the command that continues a run.
    fn cursor(&self) -> String {
        match self {
            Self::Segment(segment) => format!("segment-{}", segment.number),
            Self::Day(day) => day.clone(),
            Self::States(states) => states.first().map(ToString::to_string).unwrap_or_default(),
        }
    }

    /// Whether a run that was to continue here begins with this part. Filters may find other states by now, so of states
    /// it is the first part that has none before the place.
    fn begins_at(&self, cursor: &str) -> bool {
        match (self, StateKey::parse(cursor)) {
            (Self::States(states), Some(place)) => states.last() >= Some(&place),
            _ => self.cursor() == cursor,
        }
    }
}

impl ProofScope {
    fn units(&self, now: Timestamp) -> Vec<ProofUnit> {
        match self {
            Self::All { since } => {
                let since = since.unwrap_or_else(|| now.before(EVENT_RETENTION));
                let segments = ScanSegment::all(SEGMENTS).map(ProofUnit::Segment);
                let days = days_since(since, now).into_iter().map(ProofUnit::Day);
                segments.chain(days).collect()
            }
            Self::Sample(percent) => {
                let sample = ScanSegment::parts_of_sample(*percent, now);
                sample.map(ProofUnit::Segment).collect()
            }
            Self::States { states, .. } => {
                let states: Vec<StateKey> = states.iter().cloned().collect();
                let chunks = states.chunks(STATES_AT_ONCE);
                chunks
                    .map(|chunk| ProofUnit::States(chunk.to_vec()))
                    .collect()
            }
        }
    }
}

/// What a run has found.
#[derive(Debug, Default)]
pub(crate) struct ProofFindings {
    pub(crate) counts: BTreeMap<&'static str, u64>,
    /// The proofs that are not equal, without those that are only unprovable.
    pub(crate) found: BTreeMap<StateKey, StateProof>,
    /// Events that an index names for these states, and that they had lost.
    pub(crate) named: EventsByState,
    /// Why the run ended early, by Ctrl-C or by a failure, and how to continue it.
    pub(crate) unfinished: Option<anyhow::Error>,
}

impl ProofFindings {
    /// Takes a proof; `was` is the result of one that was counted before, which knew less.
    fn take(&mut self, proof: StateProof, was: Option<ProofResult>) {
        let result = proof.result();
        let known = self.found.remove(&proof.key);
        match known.map(|known| known.result()).or(was) {
            Some(was) => self.count_change(was, result),
            None => *self.counts.entry(result.as_str()).or_default() += 1,
        }
        if matches!(result, ProofResult::Different | ProofResult::Edited) {
            self.found.insert(proof.key.clone(), proof);
        }
    }

    pub(crate) fn count_change(&mut self, was: ProofResult, is: ProofResult) {
        if let Some(count) = self.counts.get_mut(was.as_str()) {
            *count = count.saturating_sub(1);
        }
        *self.counts.entry(is.as_str()).or_default() += 1;
    }

    pub(crate) fn count(&self, result: ProofResult) -> u64 {
        self.counts
            .get(result.as_str())
            .copied()
            .unwrap_or_default()
    }

    pub(crate) fn summary(&self) -> Value {
        let counts = ProofResult::ALL.map(|result| (result.as_str(), self.count(result)));
        json!(BTreeMap::from(counts))
    }

    /// A row for each difference.
    pub(crate) fn rows(&self) -> Vec<Value> {
        let rows = self.found.values().flat_map(|proof| {
            let differences = proof.differences.iter();
            differences.map(|difference| {
                let of_state = [
                    ("state".to_owned(), json!(proof.key.to_string())),
                    ("result".to_owned(), json!(proof.result().as_str())),
                ];
                let row = of_state.into_iter().chain(describe_difference(difference));
                Value::Object(row.collect())
            })
        });
        rows.collect()
    }

    /// For `--output json`.
    pub(crate) fn to_json(&self) -> Value {
        let states = self.found.values().map(describe_proof);
        json!({ "summary": self.summary(), "states": states.collect::<Vec<_>>() })
    }
}

pub(crate) const COLUMNS: [&str; 6] =
    ["state", "result", "place", "stored", "expected", "decision"];

fn describe_difference(difference: &StateDifference) -> Map<String, Value> {
    let members = [
        ("source", json!(difference.source.as_str())),
        ("place", json!(difference.place)),
        ("stored", json!(difference.stored)),
        ("expected", json!(difference.expected)),
        ("decision", json!(difference.decision)),
    ];
    let members = members.map(|(name, value)| (name.to_owned(), value));
    members.into_iter().collect()
}

fn describe_proof(proof: &StateProof) -> Value {
    let differences = proof.differences.iter().map(describe_difference);
    json!({
        "state": proof.key.to_string(),
        "result": proof.result().as_str(),
        "differences": differences.collect::<Vec<_>>(),
        "unreadable_events": proof.unreadable_events,
    })
}

pub(crate) fn open_prover(session: &StackSession) -> Result<OperatorProver> {
    Ok(StateProver {
        // Every ledger reads all states.
        states: session.ledger(ProviderId::Stripe)?,
        events: PerProvider::try_new(|provider| session.ledger(provider))?,
        rules: session.stack.interpret_rules()?,
    })
}

/// Proves everything in the scope, from the unit with this cursor on.
pub(crate) async fn run_proofs(
    prover: &OperatorProver,
    stripe: Option<&StripeClient>,
    scope: &ProofScope,
    continue_at: Option<&str>,
    resume_command: &str,
) -> Result<ProofFindings> {
    let started_at = SystemClock.now();
    let mut units = scope.units(started_at);
    let all = units.len();
    if let Some(cursor) = continue_at {
        let position = units.iter().position(|unit| unit.begins_at(cursor));
        let position = position.with_context(|| {
            format!("--continue-at {cursor} is no place in this run: repeat the command that was printed")
        })?;
        units.drain(..position);
    }
    let mut findings = ProofFindings::default();
    if let ProofScope::States { named, .. } = scope {
        findings.named = named.clone();
    }
    let skipped = all - units.len();
    let how_to_continue = |unit: &ProofUnit, done: usize| {
        let (done, cursor) = (skipped + done, unit.cursor());
        format!("{done} of {all} parts; continue with: {resume_command} --continue-at {cursor}")
    };
    let mut interrupted = pin!(wait_for_interrupt().fuse());
    for (unit, done) in units.iter().zip(0..) {
        if (&mut interrupted).now_or_never().is_some() {
            let interrupted = format!("interrupted after {}", how_to_continue(unit, done));
            findings.unfinished = Some(CommandExit::Interrupted(interrupted).into());
            break;
        }
        if let Err(error) = prove_unit(prover, stripe, unit, &mut findings).await {
            let stopped = format!("stopped after {}", how_to_continue(unit, done));
            findings.unfinished = Some(error.context(stopped));
            break;
        }
        print_progress(
            done + 1,
            units.len(),
            started_at,
            &describe_counts(&findings),
        );
    }
    Ok(findings)
}

async fn prove_unit(
    prover: &OperatorProver,
    stripe: Option<&StripeClient>,
    unit: &ProofUnit,
    findings: &mut ProofFindings,
) -> Result<()> {
    match unit {
        ProofUnit::Segment(segment) => {
            let mut next = None;
            loop {
                let page = prover.states.list_states(*segment, next.as_deref()).await?;
                prove_states(prover, stripe, &page.states, findings).await?;
                next = page.next;
                if next.is_none() {
                    return Ok(());
                }
            }
        }
        ProofUnit::States(states) => prove_states(prover, stripe, states, findings).await,
        ProofUnit::Day(day) => {
            let lost = find_lost_events(prover, day, None).await?;
            let states: Vec<StateKey> = lost.keys().cloned().collect();
            join_events(&mut findings.named, lost);
            for states in states.chunks(STATES_AT_ONCE) {
                prove_again(prover, stripe, states, findings).await?;
            }
            Ok(())
        }
    }
}

/// Proves states that have lost events, with these. Each that is there was counted with its segment, and is not counted
/// twice.
async fn prove_again(
    prover: &OperatorProver,
    stripe: Option<&StripeClient>,
    states: &[StateKey],
    findings: &mut ProofFindings,
) -> Result<()> {
    let keys: BTreeSet<StateKey> = states.iter().cloned().collect();
    let known = known_states(&prover.states.load_rows(&keys).await?);
    let now = SystemClock.now();
    let without = prover.prove(&known, &EventsByState::new(), now).await?;
    let was: BTreeMap<StateKey, ProofResult> = without
        .iter()
        .map(|proof| (proof.key.clone(), proof.result()))
        .collect();
    let mut proofs = prover.prove(&keys, &findings.named, now).await?;
    if let Some(stripe) = stripe {
        add_stripe_differences(prover, stripe, &mut proofs).await?;
    }
    for proof in proofs {
        let was = was.get(&proof.key).copied();
        findings.take(proof, was);
    }
    Ok(())
}

/// The events of one day that their states do not know; only those of some states, if asked for.
async fn find_lost_events(
    prover: &OperatorProver,
    day: &str,
    of: Option<&BTreeSet<StateKey>>,
) -> Result<EventsByState> {
    let day_begins = Timestamp::parse(&format!("{day}T00:00:00Z"))?;
    let span = ArrivalSpan {
        after: day_begins.before(Duration::from_millis(1)),
        until: day_begins.after(Duration::from_hours(24)),
    };
    let mut lost = EventsByState::new();
    for (provider, ledger) in prover.events.iter() {
        let mut arrived = ledger.arrived_events(day, span).await?;
        if let Some(states) = of {
            arrived.retain(|event| !event.entities.is_disjoint(states));
        }
        let mut found = prover.find_lost_events(provider, &arrived).await?;
        found.retain(|state, _| of.is_none_or(|states| states.contains(state)));
        join_events(&mut lost, found);
    }
    Ok(lost)
}

fn join_events(events: &mut EventsByState, more: EventsByState) {
    for (state, more) in more {
        events.entry(state).or_default().extend(more);
    }
}

/// Named states and what they rest on, with the events that came for them since then and that they have lost.
pub(crate) async fn select_states(
    prover: &OperatorProver,
    typed: &BTreeSet<StateKey>,
    since: Option<Timestamp>,
    now: Timestamp,
) -> Result<ProofScope> {
    let states = prover.with_related(typed).await?;
    let mut named = EventsByState::new();
    for day in since
        .map(|since| days_since(since, now))
        .unwrap_or_default()
    {
        join_events(
            &mut named,
            find_lost_events(prover, &day, Some(&states)).await?,
        );
    }
    // One that is not there and of which nothing speaks is no state that was lost.
    let rows = prover.states.load_rows(typed).await?;
    let absent: BTreeSet<StateKey> = typed - &known_states(&rows);
    let proofs = prover.prove(&absent, &named, now).await?;
    if let Some(unknown) = proofs.iter().find(|proof| proof.differences.is_empty()) {
        return Err(CommandExit::NotFound(format!(
            "there is no {}, and no copy and no event names it; events are looked for with --since",
            unknown.key
        ))
        .into());
    }
    Ok(ProofScope::States { states, named })
}

fn known_states<R>(rows: &LoadedRows<R>) -> BTreeSet<StateKey> {
    let entities = rows.entities.keys().cloned().map(StateKey::Entity);
    let payments = rows.payments.keys().cloned().map(StateKey::Payment);
    let invoices = rows.invoices.keys().cloned().map(StateKey::Invoice);
    let states = entities.chain(payments).chain(invoices);
    states.chain(rows.unreadable.keys().cloned()).collect()
}

/// The newest first.
fn days_since(since: Timestamp, now: Timestamp) -> Vec<String> {
    let mut days = Vec::new();
    let mut at = now;
    while at.day() >= since.day() {
        days.push(at.day());
        at = at.before(Duration::from_hours(24));
    }
    days
}

async fn prove_states(
    prover: &OperatorProver,
    stripe: Option<&StripeClient>,
    states: &[StateKey],
    findings: &mut ProofFindings,
) -> Result<()> {
    let chunks: Vec<BTreeSet<StateKey>> = states
        .chunks(STATES_AT_ONCE)
        .map(|chunk| chunk.iter().cloned().collect())
        .collect();
    let named = &findings.named;
    let proofs: Vec<Vec<StateProof>> = stream::iter(&chunks)
        .map(async |chunk| prover.prove(chunk, named, SystemClock.now()).await)
        .buffer_unordered(CHUNKS_AT_ONCE)
        .try_collect()
        .await?;
    for mut proofs in proofs {
        if let Some(stripe) = stripe {
            add_stripe_differences(prover, stripe, &mut proofs).await?;
        }
        for proof in proofs {
            findings.take(proof, None);
        }
    }
    Ok(())
}

/// Compares the payments with Stripe's own objects. The stored facts are read first: an event that arrives in between
/// would else look like a fact that Stripe denies.
pub(crate) async fn add_stripe_differences(
    prover: &OperatorProver,
    stripe: &StripeClient,
    proofs: &mut [StateProof],
) -> Result<()> {
    let keys: BTreeSet<StateKey> = proofs
        .iter()
        .filter(|proof| matches!(proof.key, StateKey::Payment(_)))
        .map(|proof| proof.key.clone())
        .collect();
    let rows = prover.states.load_rows(&keys).await?;
    for proof in proofs {
        let StateKey::Payment(key) = &proof.key else {
            continue;
        };
        let Some(payment) = rows.payment(key).filter(|state| state.alias_of.is_none()) else {
            continue;
        };
        let account = key.account.as_ref();
        let found = match stripe.get_payment_at_stripe(account, &key.payment).await {
            Ok(found) => found,
            Err(error) if is_about_payment(account, &error) => {
                let difference = StateDifference::not_compared(&error_chain(&error));
                proof.differences.push(difference);
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let at_stripe = match found.as_ref().map(read_payment_at_stripe) {
            None => MoneyFacts::default(),
            Some(Ok(facts)) => facts,
            Some(Err(unreadable)) => {
                let difference = StateDifference::not_compared(&unreadable.to_string());
                proof.differences.push(difference);
                continue;
            }
        };
        let now = SystemClock.now();
        let differences = compare_with_stripe(&payment.facts.money, &at_stripe, now);
        proof.differences.extend(
            differences
                .into_iter()
                .map(|difference| StateDifference::at_stripe(&difference)),
        );
    }
    Ok(())
}

/// Whether Stripe refuses this payment or its account, and may answer for others: not the stack's own key.
fn is_about_payment(account: Option<&AccountId>, error: &StripeError) -> bool {
    match error {
        StripeError::TooMany { .. } => true,
        StripeError::Refused(refusal) => {
            let is_of_key = account.is_none() && matches!(refusal.status, 401 | 403);
            error.disposition() == Disposition::Permanent && !is_of_key
        }
        _ => false,
    }
}

pub(crate) fn describe_counts(findings: &ProofFindings) -> String {
    let counts =
        ProofResult::ALL.map(|result| format!("{} {}", findings.count(result), result.as_str()));
    counts.join(", ")
}

pub(crate) fn print_progress(done: usize, all: usize, started_at: Timestamp, counts: &str) {
    if !std::io::stderr().is_terminal() || all < 2 {
        return;
    }
    let (done, all) = (
        u32::try_from(done).unwrap_or(1),
        u32::try_from(all).unwrap_or(1),
    );
    let left = started_at.until(SystemClock.now()) / done.max(1) * (all - done);
    let filled = usize::try_from(done * 30 / all.max(1)).unwrap_or(30);
    let (bar, rest) = ("#".repeat(filled), " ".repeat(30 - filled.min(30)));
    eprint!(
        "\r[{bar}{rest}] {done}/{all}, {counts}, {} s left   {}",
        left.as_secs(),
        if done >= all { "\n" } else { "" }
    );
}

/// The states that these texts name: `order#ord_1`, `payment#acct_1#pi_1`, or an id.
pub(crate) async fn find_states(
    session: &StackSession,
    prover: &OperatorProver,
    ids: &[String],
    account: Option<&str>,
) -> Result<BTreeSet<StateKey>> {
    let is_asked = account.is_some();
    let account = match account {
        None | Some("platform") => None,
        Some(account) => Some(AccountId::parse(account)?),
    };
    let mut found = BTreeSet::new();
    for id in ids {
        if let Some(key) = StateKey::parse(id) {
            if is_asked {
                bail!(
                    "{id} is a whole key: leave --account out, or name the payment by its id alone"
                );
            }
            found.insert(key);
            continue;
        }
        let schemas = ENTITY_SCHEMAS.iter();
        let entities = schemas.filter_map(|schema| EntityKey::of_kind(schema.word, id));
        let mut candidates: BTreeSet<StateKey> = entities.map(StateKey::Entity).collect();
        let payment = PaymentRef::parse(id)?;
        if is_asked {
            // Only payments are an account's.
            candidates.clear();
        }
        candidates.insert(StateKey::Payment(PaymentKey {
            account: account.clone(),
            payment,
        }));
        let rows = prover.states.load_rows(&candidates).await?;
        let known = known_states(&rows);
        if known.is_empty() {
            let stack = &session.stack.name;
            let nothing = match &account {
                Some(account) => {
                    format!("there is no payment {id} of account {account} in {stack}")
                }
                None if is_asked => format!("there is no payment {id} of the platform in {stack}"),
                None => format!(
                    "there is no order, statement, tenant or payment {id} in {stack}; name a payment of a connected account with --account, or any state by its key, as payment#acct_1#pi_1"
                ),
            };
            return Err(CommandExit::NotFound(nothing).into());
        }
        found.extend(known);
    }
    Ok(found)
}

/// What took these events, with those events that it may have lost. For another name of a payment the payment is taken.
pub(crate) async fn select_by_events(
    prover: &OperatorProver,
    events: &[(EventId, BTreeSet<StateKey>)],
) -> Result<ProofScope> {
    let mut named = states_of_events(events);
    if named.is_empty() {
        let nothing = match events.is_empty() {
            true => "no event matches: nothing was proven",
            false => "no state took these events: nothing was proven",
        };
        return Err(CommandExit::NotFound(nothing.to_owned()).into());
    }
    let keys: Vec<StateKey> = named.keys().cloned().collect();
    for keys in keys.chunks(STATES_AT_ONCE) {
        let rows = prover
            .states
            .load_rows(&keys.iter().cloned().collect())
            .await?;
        for (name, (state, _)) in &rows.payments {
            if let Some(payment) = &state.alias_of
                && let Some(events) = named.remove(&name.clone().into())
            {
                named
                    .entry(payment.clone().into())
                    .or_default()
                    .extend(events);
            }
        }
    }
    let states = named.keys().cloned().collect();
    Ok(ProofScope::States { states, named })
}

fn states_of_events(events: &[(EventId, BTreeSet<StateKey>)]) -> EventsByState {
    let mut states = EventsByState::new();
    for (event, taken_by) in events {
        for state in taken_by {
            states
                .entry(state.clone())
                .or_default()
                .insert(event.clone());
        }
    }
    states
}

/// A run must not say that all is right if something is not.
pub(crate) fn check_findings(findings: &ProofFindings) -> Result<()> {
    let different = findings.count(ProofResult::Different);
    if different > 0 {
        return Err(CommandExit::Refused(format!(
            "{different} states are different; see docs/runbook/proof.md"
        ))
        .into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn states(keys: &[&str]) -> Vec<StateKey> {
        let keys = keys.iter();
        keys.map(|key| StateKey::parse(key).unwrap()).collect()
    }

    #[test]
    fn a_run_continues_where_it_stopped_although_its_filters_find_others_by_now() {
        let units = [["order#a", "order#c"], ["order#e", "order#g"]];
        let units = units.map(|keys| ProofUnit::States(states(&keys)));
        let first = |cursor: &str| units.iter().position(|unit| unit.begins_at(cursor));
        assert_eq!(first("order#a"), Some(0));
        assert_eq!(
            first("order#c"),
            Some(0),
            "it was the first of a part before"
        );
        assert_eq!(first("order#d"), Some(1), "it is gone");
        assert_eq!(first("order#h"), None);
        let day = ProofUnit::Day("2026-11-29".to_owned());
        assert!(day.begins_at("2026-11-29") && !day.begins_at("2026-11-28"));
        let segment = ScanSegment {
            number: 3,
            total: 64,
        };
        assert!(ProofUnit::Segment(segment).begins_at("segment-3"));
    }

    #[test]
    fn a_state_that_comes_twice_is_counted_once() {
        let proof = |places: &[&str]| {
            let difference = |place: &&str| StateDifference {
                source: billhook_core::proof::DifferenceSource::Row,
                place: (*place).to_owned(),
                stored: None,
                expected: None,
                decision: None,
            };
            StateProof {
                key: StateKey::parse("order#ord_1").unwrap(),
                differences: places.iter().map(difference).collect(),
                unreadable_events: BTreeSet::new(),
                has_forgotten_events: false,
                correction: Default::default(),
            }
        };
        let mut findings = ProofFindings::default();
        findings.take(proof(&["row.status"]), None);
        findings.take(proof(&["facts"]), None);
        assert_eq!(findings.count(ProofResult::Different), 1);
        assert_eq!(findings.rows().len(), 1);
        assert_eq!(findings.rows()[0]["place"], "facts");
        assert_eq!(findings.rows()[0]["state"], "order#ord_1");
        // With the events that it had lost, it is as it should be.
        findings.take(proof(&[]), Some(ProofResult::Different));
        assert_eq!(
            findings.summary(),
            json!({ "equal": 1, "edited": 0, "unprovable": 0, "different": 0 })
        );
        assert!(findings.rows().is_empty());
        // It was equal by what it remembers.
        findings.take(proof(&["facts"]), Some(ProofResult::Equal));
        assert_eq!(
            findings.summary(),
            json!({ "equal": 0, "edited": 0, "unprovable": 0, "different": 1 })
        );
    }
}
