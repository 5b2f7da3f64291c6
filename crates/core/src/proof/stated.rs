//! What stored events state: each payload interpreted again, and merged.

use std::collections::{BTreeMap, BTreeSet};

use crate::entity::EntityKey;
use crate::entity::account::AccountFacts;
use crate::entity::key::PaymentKey;
use crate::entity::mail::facts::MailFacts;
use crate::entity::merge::{Merge, MinRegister};
use crate::entity::payment::facts::MoneyFacts;
use crate::entity::payment::state::{LinkSource, PaymentFacts};
use crate::ids::{AccountId, EventId, PaymentRef, ProviderId};
use crate::outcome::EventOutcome;
use crate::provider::interpret::{EventFacts, EventSubject, PaymentEventFacts};
use crate::time::Timestamp;

/// A stored event, read again.
#[derive(Clone, Debug)]
pub(super) enum EventReading {
    Read(Box<ReadEvent>),
    /// It is not stored any more, or not its payload.
    Unreadable,
    /// Its payload is another one than was signed.
    Tampered,
}

#[derive(Clone, Debug)]
pub(super) struct ReadEvent {
    pub provider: ProviderId,
    pub id: EventId,
    pub account: Option<AccountId>,
    pub outcome: EventOutcome,
    pub processed: bool,
    pub is_set_aside: bool,
    /// `None` if it states nothing for us.
    pub facts: Option<EventFacts>,
}

/// What an event is read for. Two providers may give two events one id, and only one of them is about letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum EventUse {
    Payment,
    Mail,
    Account,
    Any,
}

/// The events that are needed, by what for.
pub(super) type NeededEvents = BTreeSet<(EventId, EventUse)>;

/// The readings of each event: one, or one of each provider that has an event of this id.
#[derive(Debug, Default)]
pub(super) struct EventReadings(BTreeMap<EventId, Vec<EventReading>>);

impl EventReadings {
    pub(super) fn insert(&mut self, id: EventId, reading: EventReading) {
        self.0.entry(id).or_default().push(reading);
    }

    /// Whether a reading of this event is of this use.
    pub(super) fn has(&self, id: &EventId, of: EventUse) -> bool {
        let is_of_use = |reading: &EventReading| match reading {
            EventReading::Read(event) => event.is_for(of),
            EventReading::Unreadable | EventReading::Tampered => true,
        };
        self.of(id).iter().any(is_of_use)
    }

    pub(super) fn of(&self, id: &EventId) -> &[EventReading] {
        self.0.get(id).map(Vec::as_slice).unwrap_or_default()
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = &EventId> {
        self.0.keys()
    }

    pub(super) fn read(&self) -> impl Iterator<Item = &ReadEvent> {
        self.0
            .values()
            .flatten()
            .filter_map(|reading| match reading {
                EventReading::Read(event) => Some(&**event),
                EventReading::Unreadable | EventReading::Tampered => None,
            })
    }
}

impl ReadEvent {
    pub(super) fn is_for(&self, of: EventUse) -> bool {
        let subject = self.facts.as_ref().map(|facts| &facts.subject);
        match of {
            EventUse::Payment => matches!(subject, Some(EventSubject::Payment(_))),
            EventUse::Mail => matches!(subject, Some(EventSubject::Piece(..))),
            EventUse::Account => matches!(subject, Some(EventSubject::Account(_))),
            EventUse::Any => subject.is_some(),
        }
    }

    pub(super) fn key(&self) -> (ProviderId, EventId) {
        (self.provider, self.id.clone())
    }

    pub(super) fn created_at(&self) -> Option<Timestamp> {
        self.facts.as_ref()?.created_at
    }

    pub(super) fn payment(&self) -> Option<&PaymentEventFacts> {
        match &self.facts.as_ref()?.subject {
            EventSubject::Payment(payment) => Some(payment),
            EventSubject::Piece(..) | EventSubject::Account(_) => None,
        }
    }

    /// The order or statement that it names.
    pub(super) fn named_entity(&self) -> Option<&EntityKey> {
        self.facts.as_ref()?.named_entity.as_ref()
    }

    /// Whether its outcome is one that an event has whose facts are stored. One that is not done may have been done
    /// before: a person had it processed again, and until it is, it may wait, be parked or have failed. A parked event
    /// about a payment has given its facts to it, and a person may close it, or mute its tenant before it is retried.
    pub(super) fn is_taken(&self) -> bool {
        !self.processed || self.is_set_aside || self.outcome == EventOutcome::Processed
    }
}

/// Facts that events state.
#[derive(Debug)]
pub(super) struct StatedByEvents<F> {
    pub(super) all: F,
    /// By event, also those that state nothing.
    pub(super) by_event: BTreeMap<EventId, Option<F>>,
}

impl<F: Default> Default for StatedByEvents<F> {
    fn default() -> Self {
        Self {
            all: F::default(),
            by_event: BTreeMap::new(),
        }
    }
}

impl<F: Merge + Clone> StatedByEvents<F> {
    fn take(&mut self, event: &EventId, facts: Option<&F>) {
        let known = self.by_event.entry(event.clone()).or_default();
        if let Some(facts) = facts {
            self.all.merge(facts.clone());
            known.merge(Some(facts.clone()));
        }
    }
}

/// What events state of a payment.
#[derive(Debug, Default)]
pub(super) struct StatedPayment {
    pub(super) money: StatedByEvents<MoneyFacts>,
    /// Names, invoices and links.
    pub(super) facts: PaymentFacts,
    /// Links that events name and that need not have been accepted: they were parked, or a person had decided.
    pub(super) possible_links: BTreeMap<EntityKey, BTreeMap<LinkSource, BTreeSet<Timestamp>>>,
    /// The events that are about it.
    pub(super) events: Vec<ReadEvent>,
}

/// Merges the events about a payment. One may name it only by a name that another event shows to be its own, so all are
/// read until no name is new.
pub(super) fn merge_payment_events<'e>(
    key: &PaymentKey,
    known_names: &BTreeSet<PaymentRef>,
    events: impl Iterator<Item = &'e ReadEvent>,
) -> StatedPayment {
    let mut stated = StatedPayment::default();
    let mut names: BTreeSet<PaymentRef> = known_names.clone();
    names.insert(key.payment.clone());
    let mut rest: Vec<&ReadEvent> = events
        .filter(|event| event.account == key.account)
        .collect();
    loop {
        let is_about = |event: &&ReadEvent| {
            let payment = event.payment();
            payment.is_some_and(|payment| payment.names.iter().any(|name| names.contains(name)))
        };
        let (about, others): (Vec<_>, Vec<_>) = rest.into_iter().partition(is_about);
        rest = others;
        if about.is_empty() {
            break;
        }
        for event in about {
            if let Some(payment) = event.payment() {
                names.extend(payment.names.iter().cloned());
                stated.take(key, event, payment);
            }
        }
    }
    for event in rest {
        // It states nothing of this payment, whatever the state says.
        stated.money.take(&event.id, None);
    }
    stated
}

impl StatedPayment {
    fn take(&mut self, key: &PaymentKey, event: &ReadEvent, payment: &PaymentEventFacts) {
        self.money.take(&event.id, Some(&payment.money));
        let names = payment.names.iter();
        let others = names.filter(|name| **name != key.payment);
        self.facts.names.extend(others.cloned());
        self.facts.invoices.extend(payment.invoice.clone());
        self.facts.recipients.extend(payment.recipients.clone());
        self.facts.named.extend(event.named_entity().cloned());
        if let (Some(named), Some(at)) = (event.named_entity(), event.created_at()) {
            let source = payment.link_source;
            if event.outcome == EventOutcome::Processed {
                let sources = self.facts.links.entry(named.clone()).or_default();
                let known = sources.entry(source).or_insert(MinRegister(at));
                known.merge(MinRegister(at));
            }
            let possible = self.possible_links.entry(named.clone()).or_default();
            possible.entry(source).or_default().insert(at);
        }
        self.events.push(event.clone());
    }
}

/// Merges the events about letters.
pub(super) fn merge_mail_events<'e>(
    events: impl Iterator<Item = &'e ReadEvent>,
) -> StatedByEvents<MailFacts> {
    let mut stated = StatedByEvents::default();
    for event in events {
        let mail = event.facts.as_ref().and_then(|facts| match &facts.subject {
            EventSubject::Piece(_, mail) => Some(mail),
            EventSubject::Payment(_) | EventSubject::Account(_) => None,
        });
        stated.take(&event.id, mail);
    }
    stated
}

/// Merges the events about connected accounts.
pub(super) fn merge_account_events<'e>(
    events: impl Iterator<Item = &'e ReadEvent>,
) -> StatedByEvents<AccountFacts> {
    let mut stated = StatedByEvents::default();
    for event in events {
        let account = event.facts.as_ref().and_then(|facts| match &facts.subject {
            EventSubject::Account(account) => Some(account),
            EventSubject::Payment(_) | EventSubject::Piece(..) => None,
        });
        stated.take(&event.id, account);
    }
    stated
}
