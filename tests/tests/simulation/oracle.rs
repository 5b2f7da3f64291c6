//! The oracle: the row that must result from a set of events, as a naive fold that is independent of `billhook_core`.

use std::collections::{BTreeMap, BTreeSet};

use billhook_core::entity::EntityKey;
use billhook_testkit::sim::stripe::{Emitted, Says};

use crate::customers::DUE;

/// The columns that are compared.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Expected {
    pub(crate) status: Option<&'static str>,
    pub(crate) payment_status: Option<&'static str>,
    pub(crate) requires_review: Option<bool>,
    pub(crate) amount_refunded: i64,
    pub(crate) mail_status: Option<&'static str>,
}

/// A payment, an amount, and the states since when.
type Refund<'e> = (&'e str, i64, Vec<(i64, &'static str)>);

/// The newest by its second.
fn newest<T: Clone>(said: &[(i64, T)]) -> Option<T> {
    let newest = said.iter().max_by_key(|(at, _)| *at);
    newest.map(|(_, said)| said.clone())
}

/// Folds the events of one entity. That it was cancelled is no event's word.
pub(crate) fn expected(key: &EntityKey, events: &[&Emitted], is_cancelled: bool) -> Expected {
    let mut paid: BTreeMap<&str, i64> = BTreeMap::new();
    let mut failed_at: BTreeMap<&str, i64> = BTreeMap::new();
    let mut processing_at: BTreeMap<&str, i64> = BTreeMap::new();
    let mut attempts = 0;
    let mut refunds: BTreeMap<&str, Refund<'_>> = BTreeMap::new();
    let mut cumulative: BTreeMap<&str, i64> = BTreeMap::new();
    let mut disputes: BTreeMap<&str, Vec<(i64, &'static str)>> = BTreeMap::new();
    let mut doubts = 0;
    let mut mail: Vec<(i64, &'static str)> = Vec::new();
    for event in events {
        let (of, at) = (event.of.as_str(), event.created_s);
        let later = |times: &mut BTreeMap<_, i64>| {
            let latest = times.entry(of).or_insert(at);
            *latest = at.max(*latest);
        };
        match &event.says {
            Says::Nothing => {}
            Says::Failed => {
                attempts += 1;
                later(&mut failed_at);
            }
            Says::Canceled => later(&mut failed_at),
            Says::Processing => later(&mut processing_at),
            Says::Paid(amount) => {
                paid.insert(of, *amount);
            }
            Says::Refund(id, amount, state) => {
                let known = refunds.entry(id).or_insert((of, *amount, Vec::new()));
                known.2.push((at, state));
            }
            Says::Refunded(total) => {
                let most = cumulative.entry(of).or_default();
                *most = (*total).max(*most);
            }
            Says::Dispute(id, state) => disputes.entry(id).or_default().push((at, state)),
            Says::Warning => doubts += 1,
            Says::Mail(stage) => mail.push((at, stage)),
        }
    }

    let mut back: BTreeMap<&str, i64> = BTreeMap::new();
    let mut captured: BTreeMap<&str, i64> = paid.clone();
    // A charge's event says what was captured, even where the success has not come.
    captured.extend(cumulative.keys().map(|of| (*of, DUE)));
    let of_all: BTreeSet<&str> = refunds
        .values()
        .map(|(of, ..)| *of)
        .chain(cumulative.keys().copied())
        .collect();
    for of in of_all {
        let its = refunds.values().filter(|(its, ..)| *its == of);
        let (mut counted, mut undone) = (0, 0);
        for (_, amount, states) in its {
            match newest(states) {
                Some("failed") => undone += amount,
                _ => counted += amount,
            }
        }
        let total = cumulative.get(of).copied().unwrap_or(0);
        let most = captured.get(of).copied().unwrap_or(i64::MAX);
        let amount = counted.max(total - undone);
        doubts += i64::from(amount > most);
        back.insert(of, amount.clamp(0, most));
    }
    let any_refund_failed = refunds
        .values()
        .any(|(.., states)| states.iter().any(|(_, state)| *state == "failed"));
    let is_full = !captured.is_empty()
        && captured.iter().all(|(of, most)| back.get(of) == Some(most))
        && back
            .iter()
            .all(|(of, amount)| *amount == 0 || captured.contains_key(of));

    let fits = paid.values().filter(|amount| **amount == DUE).count();
    let is_processing = processing_at
        .iter()
        .any(|(of, at)| failed_at.get(of).is_none_or(|failed| at > failed));
    let evidence = if is_full {
        "refunded"
    } else if fits > 0 {
        "paid"
    } else if !paid.is_empty() {
        "unpaid"
    } else if is_processing {
        "processing"
    } else if attempts > 0 {
        "failed"
    } else {
        "unpaid"
    };
    let standing: Vec<&str> = disputes
        .values()
        .filter_map(|states| newest(states))
        .collect();
    let is_lost = standing.contains(&"lost");
    let is_open = standing
        .iter()
        .any(|state| ["needs_response", "under_review"].contains(state));
    let payment_status = match evidence {
        "refunded" => "refunded",
        _ if is_lost => "charged_back",
        _ if is_open => "disputed",
        other => other,
    };
    let status = match evidence {
        "refunded" => "refunded",
        "paid" => "completed",
        _ if is_cancelled => "cancelled",
        "failed" => "payment_failed",
        _ => "pending",
    };
    let requires_review = doubts > 0
        || is_lost
        || is_open
        || any_refund_failed
        || fits > 1
        || fits < paid.len()
        || (is_cancelled && !paid.is_empty());
    let way = ["created", "mailed", "in_transit", "processed_for_delivery"];
    let ends: Vec<(i64, &str)> = mail
        .iter()
        .filter(|(_, stage)| !way.contains(stage))
        .copied()
        .collect();
    let furthest = way
        .iter()
        .rev()
        .find(|stage| mail.iter().any(|(_, its)| its == *stage));
    let is_order = key.order().is_some();
    let is_stated = events
        .iter()
        .any(|event| !matches!(event.says, Says::Mail(_)));
    Expected {
        status: is_order.then_some(status),
        payment_status: (is_order || is_stated).then_some(payment_status),
        requires_review: (is_order || is_stated).then_some(requires_review),
        amount_refunded: back.values().sum(),
        mail_status: newest(&ends).or(furthest.copied()),
    }
}
