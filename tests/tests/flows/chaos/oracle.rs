//! The oracle of the storms: generates orders and letters, the events about them, and the rows that must result. It is
//! a naive fold over the facts, written from `docs/SEMANTICS.md` and independently of the code that it judges.

use std::collections::{BTreeMap, BTreeSet};

use billhook_testkit::events::{
    charge_refunded, dispute, from_account, intent_failed, intent_is, intent_succeeded, letter,
    refund, session_completed,
};
use billhook_testkit::random::Random;
use serde_json::{Value, json};

const DUE: i64 = 4200;
/// In the order in which a letter meets them.
const STAGES: [&str; 8] = [
    "created",
    "rendered_pdf",
    "rendered_thumbnails",
    "mailed",
    "in_transit",
    "in_local_area",
    "processed_for_delivery",
    "delivered",
];
/// Stands in every event where a provider puts personal data.
pub(super) const PERSONAL: [&str; 5] = [
    "canary@person.example",
    "Canary Person",
    "12 Canary Street",
    "last4",
    "Canaryville",
];

/// What one event says of an order.
#[derive(Clone, Debug)]
enum Fact {
    Processing,
    Failed { charge: String },
    Paid { amount: i64 },
    Session,
    Refund { id: String, status: &'static str },
    Charge { refunded: i64 },
    Dispute { status: &'static str },
    OfAnotherTenant,
}

/// What a refund gives back.
const PART: i64 = 1000;

/// One event.
#[derive(Clone, Debug)]
pub(super) struct Told {
    pub(super) id: String,
    at: i64,
    fact: Fact,
}

/// An order, and all that happens to it.
#[derive(Clone, Debug)]
pub(super) struct Story {
    n: usize,
    /// Its tenant's account; none of the platform's orders.
    account: Option<&'static str>,
    pub(super) told: Vec<Told>,
}

/// A statement's letter.
#[derive(Clone, Debug)]
pub(super) struct Letter {
    n: usize,
    stages: Vec<&'static str>,
}

/// What an order must be.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Expected {
    status: &'static str,
    payment_status: &'static str,
    amount_refunded: i64,
    requires_review: bool,
    /// How often each type stands in the timeline.
    timeline: BTreeMap<String, usize>,
}

impl Story {
    pub(super) fn random(n: usize, now: i64, random: &mut Random) -> Self {
        let mut facts = Vec::new();
        for attempt in 0..random.below(3) {
            let charge = format!("ch_{n}_{attempt}");
            facts.push(Fact::Failed { charge });
        }
        if random.per_mille(300) || facts.is_empty() {
            facts.insert(random.below(facts.len() + 1), Fact::Processing);
        }
        if random.per_mille(50) {
            facts.push(Fact::Paid { amount: 100 });
        } else if random.per_mille(900) {
            facts.push(Fact::Paid { amount: DUE });
            if random.per_mille(500) {
                facts.push(Fact::Session);
            }
            let mut refunded = 0;
            for part in 0..random.below(4) {
                let id = format!("re_{n}_{part}");
                let status = *random.pick(&["pending", "succeeded"]).unwrap();
                let refund = |status| Fact::Refund {
                    id: id.clone(),
                    status,
                };
                facts.push(refund(status));
                refunded += PART;
                facts.push(Fact::Charge { refunded });
                if random.per_mille(200) {
                    facts.push(refund("failed"));
                }
            }
            if random.per_mille(100) {
                facts.push(Fact::Charge { refunded: DUE });
            }
            if random.per_mille(150) {
                for status in ["needs_response", *random.pick(&["won", "lost"]).unwrap()] {
                    facts.push(Fact::Dispute { status });
                }
            }
        }
        let account = n.is_multiple_of(8).then_some("acct_a");
        if account.is_some() && random.per_mille(300) {
            facts.push(Fact::OfAnotherTenant);
        }
        let told = facts.into_iter().enumerate().map(|(k, fact)| Told {
            id: format!("evt_{n}_{k}"),
            at: now - 1000 + i64::try_from(k).unwrap(),
            fact,
        });
        Self {
            n,
            account,
            told: told.collect(),
        }
    }

    pub(super) fn order(&self) -> String {
        format!("ord_{}", self.n)
    }

    /// The row as the application writes it.
    pub(super) fn row(&self) -> Value {
        let mut row = json!({ "id": self.order(), "userId": "user_1", "status": "pending", "amountTotal": DUE,
            "currency": "usd", "timeline": [{ "type": "note", "at": "2026-01-01T00:00:00.000Z", "actor": "application" }] });
        if self.account.is_some() {
            row["tenantId"] = json!("ten_a");
        }
        row
    }

    /// The events as Stripe sends them. The first names the order; of the rest only some do.
    pub(super) fn bodies(&self) -> impl Iterator<Item = Value> {
        let Self { n, account, .. } = self;
        let (intent, charge) = (format!("pi_{n}"), format!("ch_{n}"));
        let named = json!({ "order_id": self.order() });
        self.told.iter().enumerate().map(move |(k, told)| {
            let (id, at) = (told.id.as_str(), told.at);
            let metadata = match k % 2 {
                0 => named.clone(),
                _ => json!({}),
            };
            let mut body = match &told.fact {
                Fact::Processing => intent_is(id, at, &intent, metadata, "processing"),
                Fact::Failed { charge } => intent_failed(id, at, &intent, metadata, charge),
                Fact::Paid { amount } => intent_succeeded(id, at, &intent, metadata, *amount),
                Fact::Session => {
                    let session = format!("cs_{n}");
                    session_completed(id, at, &session, Some(&intent), named.clone(), "paid")
                }
                Fact::Refund { id: of, status } => {
                    refund(id, at, of, (&intent, &charge), PART, status)
                }
                Fact::Charge { refunded } => {
                    charge_refunded(id, at, &charge, Some(&intent), *refunded)
                }
                Fact::Dispute { status } => dispute(id, at, &format!("dp_{n}"), &intent, status),
                Fact::OfAnotherTenant => {
                    intent_succeeded(id, at, &format!("pi_{n}_b"), named.clone(), DUE)
                }
            };
            let object = &mut body["data"]["object"];
            object["receipt_email"] = json!("canary@person.example");
            object["billing_details"] = json!({ "name": "Canary Person",
                "address": { "line1": "12 Canary Street", "city": "Canaryville" } });
            object["payment_method_details"] = json!({ "card": { "last4": "4242" } });
            match (&told.fact, account) {
                (Fact::OfAnotherTenant, _) => from_account(body, "acct_b"),
                (_, Some(account)) => from_account(body, account),
                (_, None) => body,
            }
        })
    }

    /// Of each event.
    pub(super) fn outcomes(&self) -> impl Iterator<Item = (String, &'static str)> {
        self.told.iter().map(|told| {
            let outcome = match told.fact {
                Fact::OfAnotherTenant => "parked",
                _ => "processed",
            };
            (told.id.clone(), outcome)
        })
    }

    pub(super) fn expected(&self) -> Expected {
        let (mut paid, mut mismatch) = (false, false);
        let (mut processing_at, mut failed_at) = (None, None);
        let mut dispute = None;
        let mut refunds: BTreeMap<&str, &str> = BTreeMap::new();
        let mut cumulative = 0;
        let mut entries: BTreeSet<(String, String)> = BTreeSet::new();
        let (mut begun, mut failures) = (BTreeMap::new(), BTreeMap::new());
        let mut tell = |kind: &str, of: &str| {
            entries.insert((kind.to_owned(), of.to_owned()));
        };
        tell("note", "");
        for Told { at, fact, .. } in &self.told {
            match fact {
                Fact::Processing => {
                    processing_at = Some(*at);
                    tell("payment_processing", "");
                }
                Fact::Failed { charge } => {
                    failed_at = Some(*at);
                    tell("payment_failed", charge);
                }
                Fact::Paid { amount } => {
                    (paid, mismatch) = (*amount == DUE, *amount != DUE);
                    tell("payment_succeeded", "");
                }
                Fact::Session => tell("checkout_completed", ""),
                Fact::Refund { id, status } => {
                    refunds.insert(id, status);
                    begun.entry(id.as_str()).or_insert(*at);
                    if *status == "failed" {
                        tell("refund_failed", id);
                        failures.insert(*at, id);
                    }
                }
                Fact::Charge { refunded } => cumulative = cumulative.max(*refunded),
                Fact::Dispute { status } => {
                    dispute = Some(*status);
                    tell("dispute_opened", "");
                    match *status {
                        "won" => tell("dispute_won", ""),
                        "lost" => tell("dispute_lost", ""),
                        _ => {}
                    }
                }
                Fact::OfAnotherTenant => {}
            }
        }
        if mismatch {
            tell("review_flagged", "amount");
        }
        if dispute == Some("lost") {
            tell("review_flagged", "dispute");
        }
        let (failed, standing): (Vec<_>, Vec<_>) =
            refunds.iter().partition(|(_, status)| **status == "failed");
        let [undone, by_id] =
            [failed.len(), standing.len()].map(|count| PART * i64::try_from(count).unwrap());
        let amount_refunded = by_id.max(cumulative - undone);
        let mut refund_entries: Vec<&str> = standing.iter().map(|(id, _)| **id).collect();
        if amount_refunded > by_id {
            refund_entries.push("charge");
        }
        let is_full = amount_refunded == DUE;
        // Each refund that came later made an earlier failure good, because all are of one amount.
        let mut later: Vec<i64> = standing
            .iter()
            .filter_map(|(id, _)| begun.get(*id))
            .copied()
            .collect();
        later.sort_unstable();
        for (at, id) in failures.iter().filter(|_| !is_full) {
            match later.iter().position(|begun| begun >= at) {
                Some(good) => drop(later.remove(good)),
                None => tell("review_flagged", id),
            }
        }
        for (k, of) in refund_entries.iter().enumerate() {
            match is_full && k + 1 == refund_entries.len() {
                true => tell("refund_full", of),
                false => tell("refund_partial", of),
            }
        }
        let (status, payment_status) = match () {
            () if is_full => ("refunded", "refunded"),
            () if paid && dispute == Some("lost") => ("completed", "charged_back"),
            () if paid => ("completed", "paid"),
            () if mismatch => ("pending", "partially_paid"),
            () if processing_at > failed_at => ("pending", "processing"),
            () if failed_at.is_some() => ("payment_failed", "failed"),
            () => ("pending", "unpaid"),
        };
        let requires_review = entries.iter().any(|(kind, _)| kind == "review_flagged");
        let mut timeline = BTreeMap::new();
        for (kind, _) in entries {
            *timeline.entry(kind).or_default() += 1;
        }
        Expected {
            status,
            payment_status,
            amount_refunded,
            requires_review,
            timeline,
        }
    }

    /// What the row says, and whether it was written more often than anything was told.
    pub(super) fn found(&self, row: &Value) -> Expected {
        let version = row["version"].as_u64().unwrap_or_default();
        let told = u64::try_from(self.told.len()).unwrap();
        assert!(version <= told, "{} has version {version}", self.order());
        let word = |column: &str| match row[column].as_str() {
            Some(word) => String::leak(word.to_owned()),
            None => "",
        };
        let mut timeline = BTreeMap::new();
        for entry in row["timeline"].as_array().unwrap() {
            let kind = entry["type"].as_str().unwrap().to_owned();
            *timeline.entry(kind).or_default() += 1;
        }
        Expected {
            status: word("status"),
            payment_status: word("paymentStatus"),
            amount_refunded: row["amountRefunded"].as_i64().unwrap_or_default(),
            requires_review: row["requiresReview"] == true,
            timeline,
        }
    }
}

impl Letter {
    pub(super) fn random(n: usize, random: &mut Random) -> Self {
        let stages = STAGES.into_iter().filter(|_| random.per_mille(600));
        let stages: Vec<_> = stages.collect();
        Self {
            n,
            stages: match stages.is_empty() {
                true => vec!["created"],
                false => stages,
            },
        }
    }

    pub(super) fn statement(&self) -> String {
        format!("st_{}", self.n)
    }

    /// The row as the application writes it.
    pub(super) fn row(&self) -> Value {
        json!({ "statement_id": self.statement(), "tenant_id": "ten_a", "lob_letter_id": format!("ltr_{}", self.n),
            "payment_status": "paid" })
    }

    pub(super) fn events(&self) -> Vec<(String, Value)> {
        let piece = format!("ltr_{}", self.n);
        let told = self.stages.iter().map(|stage| {
            let id = format!("evt_{}_{stage}", self.n);
            let day = STAGES.iter().position(|other| other == stage).unwrap() + 1;
            let mut body = letter(
                &id,
                &format!("2026-11-{day:02}T08:00:00.000Z"),
                &piece,
                stage,
            );
            body["body"]["to"] = json!({ "name": "Canary Person", "address_line1": "12 Canary Street",
                "address_city": "Canaryville", "email": "canary@person.example" });
            (id, body)
        });
        told.collect()
    }

    /// `mail_status`, and the timeline's types.
    pub(super) fn expected(&self) -> (String, Vec<String>) {
        let last = self.stages.last().unwrap();
        let timeline = self.stages.iter().map(|stage| format!("mail_{stage}"));
        ((*last).to_owned(), timeline.collect())
    }
}
