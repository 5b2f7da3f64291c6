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
    pub(crate) review_reasons: BTreeSet<String>,
    pub(crate) amount_refunded: i64,
    pub(crate) mail_status: Option<&'static str>,
}

/// What people and the cleanup decided about an order, and what it is in conflict about.
#[derive(Debug, Default)]
pub(crate) struct OrderDecisions {
    pub(crate) is_cancelled: bool,
    pub(crate) is_refunded: bool,
    /// The review reasons that a person saw and cleared.
    pub(crate) cleared: BTreeSet<String>,
    /// The payments that two orders claim. Nobody can clear that.
    pub(crate) conflicts: BTreeSet<String>,
}

/// A payment, an amount, and the states since when.
type Refund<'e> = (&'e str, i64, Vec<(i64, &'static str)>);

/// The newest by its second.
fn newest<T: Clone>(said: &[(i64, T)]) -> Option<T> {
    let newest = said.iter().max_by_key(|(at, _)| *at);
    newest.map(|(_, said)| said.clone())
}

/// Folds the events of one entity. What was decided is no event's word.
pub(crate) fn expected(key: &EntityKey, events: &[&Emitted], decided: &OrderDecisions) -> Expected {
    let mut paid: BTreeMap<&str, i64> = BTreeMap::new();
    let mut paid_at: BTreeMap<&str, i64> = BTreeMap::new();
    let mut failed_at: BTreeMap<&str, i64> = BTreeMap::new();
    let mut processing_at: BTreeMap<&str, i64> = BTreeMap::new();
    let mut attempts = 0;
    let mut refunds: BTreeMap<&str, Refund<'_>> = BTreeMap::new();
    let mut cumulative: BTreeMap<&str, i64> = BTreeMap::new();
    let mut disputes: BTreeMap<&str, Vec<(i64, &'static str)>> = BTreeMap::new();
    let mut doubts: BTreeSet<String> = BTreeSet::new();
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
                let first = paid_at.entry(of).or_insert(at);
                *first = at.min(*first);
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
            Says::Warning => drop(doubts.insert(format!("fraud_warning:issfr_{of}"))),
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
        if amount > most {
            doubts.insert("refund_exceeds_captured".to_owned());
        }
        back.insert(of, amount.clamp(0, most));
    }
    for (id, (.., states)) in &refunds {
        if states.iter().any(|(_, state)| *state == "failed") {
            doubts.insert(format!("refund_failed:{id}"));
        }
    }
    let is_full = !captured.is_empty()
        && captured.iter().all(|(of, most)| back.get(of) == Some(most))
        && back
            .iter()
            .all(|(of, amount)| *amount == 0 || captured.contains_key(of));

    let mut fitting: Vec<(i64, &str)> = paid
        .iter()
        .filter(|(_, amount)| **amount == DUE)
        .map(|(of, _)| (paid_at.get(of).copied().unwrap_or_default(), *of))
        .collect();
    fitting.sort_unstable();
    let fits = fitting.len();
    let is_processing = processing_at
        .iter()
        .any(|(of, at)| failed_at.get(of).is_none_or(|failed| at > failed));
    let evidence = if is_full || decided.is_refunded {
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
    let (mut is_lost, mut is_open) = (false, false);
    for (id, states) in &disputes {
        match newest(states) {
            Some("lost") => {
                is_lost = true;
                doubts.insert(format!("dispute_lost:{id}"));
            }
            Some("needs_response" | "under_review") => {
                is_open = true;
                doubts.insert(format!("dispute_open:{id}"));
            }
            _ => {}
        }
    }
    let payment_status = match evidence {
        "refunded" => "refunded",
        _ if is_lost => "charged_back",
        _ if is_open => "disputed",
        other => other,
    };
    let status = match evidence {
        "refunded" => "refunded",
        "paid" => "completed",
        _ if decided.is_cancelled => "cancelled",
        "failed" => "payment_failed",
        _ => "pending",
    };
    let twice = fitting.iter().skip(1);
    doubts.extend(twice.map(|(_, of)| format!("paid_twice:{of}")));
    for (of, amount) in &paid {
        if *amount != DUE {
            doubts.insert(format!("amount_mismatch:{of}"));
        }
        if decided.is_cancelled {
            doubts.insert(format!("paid_after_cancel:{of}"));
        }
    }
    doubts.retain(|reason| !decided.cleared.contains(reason));
    let conflicts = decided.conflicts.iter();
    doubts.extend(conflicts.map(|of| format!("link_conflict:{of}")));
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
        requires_review: (is_order || is_stated || !decided.conflicts.is_empty())
            .then_some(!doubts.is_empty()),
        review_reasons: doubts,
        amount_refunded: back.values().sum(),
        mail_status: newest(&ends).or(furthest.copied()),
    }
}
