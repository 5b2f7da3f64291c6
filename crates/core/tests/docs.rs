//! The tables of `docs/SEMANTICS.md` are what the code does, and the columns of `docs/data-model.md` those that it
//! knows: each is rendered here from the code's own answers.
#![cfg(test)]

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use billhook_core::entity::columns::{
    ColumnOwner, ColumnType, EntityColumn, EntitySchema, RowColumns, TimelineFields,
};
use billhook_core::entity::kind::StatedFacts;
use billhook_core::entity::mail::derive::derive_mail;
use billhook_core::entity::mail::facts::{MailFacts, MailStage, PieceFacts};
use billhook_core::entity::merge::{
    FactSource, MaxRegister, Merge as _, MinRegister, SeenInterval,
};
use billhook_core::entity::payment::derive::{DerivedPayment, PaymentRules, derive_payment};
use billhook_core::entity::payment::linked::{LinkState, LinkedPaymentFacts};
use billhook_core::entity::rules::RowRules;
use billhook_core::entity::schema::STATE_COLUMNS;
use billhook_core::entity::{ENTITY_SCHEMAS, EntityKey};
use billhook_core::ids::{EventId, PaymentIntentId, PieceId, ProviderId};
use billhook_core::intake::inbox::{EventRecord, RedeliveryAction};
use billhook_core::money::{Currency, Money};
use billhook_core::outcome::{EventOutcome, IgnoreReason, ParkReason};
use billhook_core::provider::catalogue;
use billhook_core::provider::signature::SignatureFailure;
use billhook_core::provider::stripe::event::StripeEvent;
use billhook_core::provider::stripe::event_types::{HANDLED_TYPES, read_facts};
use billhook_core::tasks::cleanup::cancellation_fact;
use billhook_core::tasks::definitions::SCHEDULED_TASKS;
use billhook_core::time::Timestamp;
use billhook_testkit::events::{
    account_facts, charge_refunded, dispute, intent_failed, intent_is, intent_succeeded,
    linked_facts, refund, session_completed, stripe,
};
use serde_json::{Value, json};

const SEMANTICS: &str = include_str!("../../../docs/SEMANTICS.md");
const DATA_MODEL: &str = include_str!("../../../docs/data-model.md");
const T: i64 = 1_781_000_000;

/// The cells of the first table under a heading, without its two head lines.
#[track_caller]
fn table_of(page: &str, heading: &str) -> Vec<Vec<String>> {
    let heading = format!("\n{heading}\n");
    let Some((_, section)) = page.split_once(&heading) else {
        panic!("no heading {heading:?}");
    };
    let rows: Vec<Vec<String>> = section
        .lines()
        .take_while(|line| !line.starts_with('#'))
        .skip_while(|line| !line.starts_with('|'))
        .take_while(|line| line.starts_with('|'))
        .skip(2)
        .map(|line| {
            let cells = line.trim_matches('|').split('|');
            cells.map(|cell| cell.trim().to_owned()).collect()
        })
        .collect();
    assert!(!rows.is_empty(), "no table under {heading:?}");
    rows
}

#[track_caller]
fn table(heading: &str) -> Vec<Vec<String>> {
    table_of(SEMANTICS, heading)
}

fn columns(heading: &str, which: std::ops::Range<usize>) -> Vec<Vec<String>> {
    table(heading)
        .iter()
        .map(|row| row[which.clone()].to_vec())
        .collect()
}

fn words(heading: &str) -> Vec<String> {
    columns(heading, 0..1).concat()
}

fn code(word: &str) -> String {
    format!("`{word}`")
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_unix_s(T + second).unwrap()
}

fn due() -> Option<Money> {
    let currency = Currency::parse("usd").unwrap();
    Some(Money {
        amount: 4200,
        currency,
    })
}

fn facts(events: &[Value]) -> LinkedPaymentFacts {
    let mut facts = LinkedPaymentFacts::default();
    for stated in linked_facts(events) {
        let StatedFacts::Payment(key, copy) = stated else {
            unreachable!();
        };
        facts.payments.insert(key, *copy);
    }
    facts
}

/// With what further events state.
fn join(mut state: LinkedPaymentFacts, more: LinkedPaymentFacts) -> LinkedPaymentFacts {
    for (key, copy) in more.payments {
        match state.payments.get_mut(&key) {
            Some(known) => known.facts.merge(copy.facts),
            None => drop(state.payments.insert(key, copy)),
        }
    }
    state
}

fn derive(facts: &LinkedPaymentFacts) -> DerivedPayment {
    derive_expecting(None, facts)
}

/// What an order becomes into which the application wrote this PaymentIntent.
fn derive_expecting(
    intent: Option<&PaymentIntentId>,
    facts: &LinkedPaymentFacts,
) -> DerivedPayment {
    let rules = PaymentRules {
        has_user: true,
        expected_intent: intent,
        ..PaymentRules::default()
    };
    derive_payment(facts, due(), rules)
}

fn paid(id: &str, intent: &str, amount: i64) -> Value {
    intent_succeeded(id, T, intent, json!({}), amount)
}

fn given_up(mut facts: LinkedPaymentFacts) -> LinkedPaymentFacts {
    let StatedFacts::Cancelled(at) = cancellation_fact(at(10)) else {
        unreachable!();
    };
    facts.cancelled.insert(at);
    facts
}

fn describe(columns: &[EntityColumn], guarded: &[&str]) -> Vec<Vec<String>> {
    let rows = columns.iter().map(|column| {
        let kind = match column.kind {
            ColumnType::Text => "S",
            ColumnType::Integer => "N",
            ColumnType::Bool => "BOOL",
            ColumnType::TextSet => "SS",
            ColumnType::List => "L",
            ColumnType::Map => "M",
            ColumnType::Bytes => "B",
            ColumnType::Other => "?",
        };
        let owner = match column.owner {
            ColumnOwner::Application => "application",
            ColumnOwner::Billhook => "billhook",
            ColumnOwner::Both => "both",
        };
        let guarded = match guarded.contains(&column.name) {
            true => ", guarded",
            false => "",
        };
        let owner = format!("{owner}{guarded}");
        let meaning = column.meaning.to_owned();
        vec![code(column.name), kind.to_owned(), owner, meaning]
    });
    rows.collect()
}

#[test]
fn the_columns_of_the_data_model_are_those_of_each_kind() {
    for schema in ENTITY_SCHEMAS {
        let heading = format!("## {}", schema.table);
        let rendered = describe(schema.columns, schema.guarded);
        assert_eq!(table_of(DATA_MODEL, &heading), rendered, "{}", schema.word);
        let own = [schema.key, schema.tenant, "version"].into_iter();
        for name in own
            .chain(schema.payment_intent)
            .chain(schema.created_at)
            .chain(schema.guarded.iter().copied())
        {
            assert!(is_documented(schema, name), "{name}");
        }
    }
    let stored = describe(STATE_COLUMNS, &[]);
    assert_eq!(table_of(DATA_MODEL, "## Entities"), stored);
}

const APPLICATION_POLICY: &str = include_str!("../../../docs/policies/application.json");

/// Whether the ready policy lets the application write these attributes of a row, as IAM evaluates its conditions.
fn application_may_write(action: &str, table: &str, attributes: &BTreeSet<&str>) -> bool {
    let policy: Value = serde_json::from_str(APPLICATION_POLICY).unwrap();
    let is_in = |value: &Value, wanted: &str| match value {
        Value::Array(all) => all.iter().any(|one| one == wanted),
        one => one == wanted,
    };
    let mut statements = policy["Statement"].as_array().unwrap().iter();
    let resource = format!("arn:aws:dynamodb:<Region>:<Account>:table/<{table}Table>");
    statements.any(|statement| {
        assert_eq!(statement["Effect"], "Allow");
        if !is_in(&statement["Action"], action) || !is_in(&statement["Resource"], &resource) {
            return false;
        }
        let conditions = statement.get("Condition").and_then(Value::as_object);
        let mut conditions = conditions.into_iter().flatten();
        conditions.all(|(operator, of)| {
            let of = of.as_object().unwrap();
            assert!(of.len() == 1, "{of:?}");
            let wanted = &of["dynamodb:Attributes"];
            match operator.as_str() {
                // True of no values too.
                "ForAllValues:StringNotEquals" => attributes.iter().all(|it| !is_in(wanted, it)),
                "Null" => wanted.as_str() == Some("true") || !attributes.is_empty(),
                other => panic!("{other} is not known here"),
            }
        })
    })
}

#[test]
fn the_policy_of_the_application_is_for_its_own_columns() {
    for schema in ENTITY_SCHEMAS {
        let may = |names: &[&str]| {
            let names = names.iter().copied().collect();
            application_may_write("dynamodb:UpdateItem", schema.table, &names)
        };
        for column in schema.columns {
            let name = match column.name {
                "version" => "<VersionColumn>",
                name => name,
            };
            let is_theirs = column.owner != ColumnOwner::Billhook;
            assert_eq!(
                may(&[schema.key, name]),
                is_theirs,
                "{} {name}",
                schema.table
            );
            assert_eq!(may(&[name, schema.key, "note"]), is_theirs, "{name}");
        }
        assert!(may(&[schema.key, "a column that billhook does not know"]));
        // Nothing is said of what it writes.
        assert!(!may(&[]));
        for whole in [
            "PutItem",
            "DeleteItem",
            "BatchWriteItem",
            "PartiQLUpdate",
            "PartiQLInsert",
            "*",
        ] {
            let names = BTreeSet::from([schema.key]);
            let action = format!("dynamodb:{whole}");
            assert!(
                !application_may_write(&action, schema.table, &names),
                "{whole}"
            );
        }
    }
}

fn is_documented(schema: &EntitySchema, name: &str) -> bool {
    schema.columns.iter().any(|column| column.name == name)
}

/// A row that notes which columns are read.
struct NotedRow(RefCell<BTreeSet<String>>);

impl NotedRow {
    fn note(&self, column: &str) {
        self.0.borrow_mut().insert(column.to_owned());
    }
}

impl RowColumns for NotedRow {
    fn column_type(&self, _: &str) -> Option<ColumnType> {
        None
    }
    fn has_own_entries(&self) -> bool {
        false
    }
    fn timeline_entries(&self, _: &str) -> Vec<TimelineFields> {
        Vec::new()
    }
    fn text(&self, column: &str) -> Option<&str> {
        self.note(column);
        // Anything that every id and currency may be.
        Some("usd")
    }
    fn integer(&self, column: &str) -> Option<i64> {
        self.note(column);
        Some(4200)
    }
    fn number(&self, column: &str) -> Option<String> {
        self.note(column);
        Some("4200".to_owned())
    }
    fn truth(&self, column: &str) -> Option<bool> {
        self.note(column);
        None
    }
    fn texts(&self, column: &str) -> BTreeSet<String> {
        self.note(column);
        BTreeSet::new()
    }
}

#[test]
fn a_kind_reads_and_writes_only_columns_that_it_documents() {
    let account = json!({ "id": "acct_1", "object": "account", "charges_enabled": true, "payouts_enabled": true });
    let account = stripe("evt_1", "account.updated", T, account);
    let mut stated = linked_facts(&[
        intent_failed("evt_1", T, "pi_1", json!({}), "ch_1"),
        session_completed(
            "evt_2",
            T,
            "cs_1",
            Some("pi_1"),
            json!({ "userId": "u" }),
            "paid",
        ),
        charge_refunded("evt_3", T + 5, "ch_2", Some("pi_1"), 4200),
    ]);
    stated.extend([
        StatedFacts::Mail(mail(&[(MailStage::Issue, 1)])),
        StatedFacts::Account(account_facts(&account)),
    ]);
    for schema in ENTITY_SCHEMAS {
        let row = NotedRow(RefCell::default());
        let key = EntityKey::of_kind(schema.word, "id").unwrap();
        let update = key
            .read(&RowRules::default(), Some(&row), None::<&Value>)
            .unwrap()
            .apply_facts(stated.clone(), at(0));
        // What a decision rests on must be as it was read when it is written (optimistic lock).
        let by_the_ledger = [schema.key, schema.tenant, "version"];
        let by_the_ledger = by_the_ledger.into_iter().chain(schema.created_at);
        let by_the_ledger: Vec<&str> = by_the_ledger.collect();
        for name in row.0.borrow().iter() {
            let is_guarded = schema.guarded.contains(&name.as_str());
            assert!(
                is_guarded || by_the_ledger.contains(&name.as_str()),
                "{}: {name} is read and not guarded",
                schema.word
            );
        }
        let written = update.write_columns();
        let read = row.0.into_inner();
        let names = read.iter().map(String::as_str);
        for name in names.chain(written.iter().map(|(name, _)| *name)) {
            assert!(is_documented(schema, name), "{}: {name}", schema.word);
        }
        assert!(!written.is_empty(), "{}", schema.word);
    }
}

#[test]
fn the_types_with_a_meaning_are_those_of_the_table() {
    for provider in ProviderId::ALL {
        let rows = catalogue(*provider).into_iter();
        let meant: Vec<Vec<String>> = rows
            .map(|entry| vec![code(entry.event_type), entry.meaning.to_owned()])
            .collect();
        let heading = format!("### {}", provider.title());
        assert_eq!(table(&heading), meant, "{heading}: run `make catalogue`");
    }
}

#[test]
fn the_payment_table_is_what_is_derived() {
    let failed = intent_failed("evt_1", T, "pi_1", json!({}), "ch_1");
    let full = charge_refunded("evt_3", T + 5, "ch_2", Some("pi_1"), 4200);
    let processing = intent_is("evt_4", T + 1, "pi_1", json!({}), "processing");
    let authorized = stripe(
        "evt_5",
        "payment_intent.amount_capturable_updated",
        T + 1,
        json!({ "id": "pi_1", "object": "payment_intent", "status": "requires_capture" }),
    );
    let evidence = [
        vec![],
        vec![failed.clone()],
        vec![failed.clone(), processing],
        vec![failed.clone(), authorized],
        vec![failed.clone(), paid("evt_2", "pi_1", 4100)],
        vec![failed.clone(), paid("evt_2", "pi_1", 4200)],
        vec![failed, paid("evt_2", "pi_1", 4200), full],
    ];
    let derived: Vec<Vec<String>> = evidence
        .iter()
        .map(|events| {
            let plain = derive(&facts(events));
            let given_up = derive(&given_up(facts(events)));
            // A cancel says nothing of payments.
            assert_eq!(given_up.payment_status, plain.payment_status);
            let words = [
                plain.status.as_str(),
                given_up.status.as_str(),
                plain.payment_status.as_str(),
            ];
            words.map(code).into()
        })
        .collect();
    assert_eq!(columns("## Payment", 1..4), derived);
    let mut foreign = paid("evt_2", "pi_1", 4200);
    foreign["data"]["object"]["currency"] = json!("eur");
    let misfit = derive(&facts(&[foreign]));
    let words = [misfit.status.as_str(), misfit.payment_status.as_str()];
    assert_eq!(words, ["pending", "unpaid"]);
}

#[test]
fn the_dispute_table_is_what_is_derived() {
    for row in table("### Disputes") {
        let status = row[0].trim_matches('`');
        let disputed = dispute("evt_2", T + 5, "dp_1", "pi_1", status);
        let derived = derive(&facts(&[paid("evt_1", "pi_1", 4200), disputed]));
        assert_eq!(derived.status.as_str(), "completed", "{status}");
        assert_eq!(row[1], code(derived.payment_status.as_str()), "{status}");
        let reasons = derived.review_reasons.iter();
        let reasons: Vec<_> = reasons
            .map(|r| code(r.split_once(':').unwrap().0))
            .collect();
        assert_eq!(row[2], reasons.concat(), "{status}");
    }
}

#[test]
fn the_review_table_names_every_reason_that_can_be_derived() {
    let mut in_conflict = facts(&[paid("evt_1", "pi_1", 4200)]);
    for copy in in_conflict.payments.values_mut() {
        copy.link = LinkState::Conflict(at(1));
    }
    let mut flagged = LinkedPaymentFacts::default();
    flagged.manual.flagged.insert(at(0));
    flagged.manual.found_paid.insert(at(1));
    flagged.manual.conflicts.insert(at(0), BTreeSet::new());
    flagged.manual.replaced.insert(at(-1));
    let partly_disputed = |status: &str| {
        let mut part = dispute("evt_5", T, "dp_1", "pi_1", status);
        part["data"]["object"]["amount"] = json!(1000);
        [paid("evt_1", "pi_1", 4200), part]
    };
    let of = |user: &str| json!({ "user_id": user });
    let of_two_users = [
        intent_succeeded("evt_1", T, "pi_1", of("user_1"), 4200),
        intent_is("evt_2", T + 1, "pi_2", of("user_2"), "processing"),
    ];
    let other_due = Money {
        amount: 5000,
        ..due().unwrap()
    };
    let mut paid_before = facts(&[paid("evt_1", "pi_1", 5000)]);
    let dues = &mut paid_before.manual.paid_dues;
    dues.insert(at(1), MinRegister(other_due));
    // After what a person said, somebody paid or tried to.
    let mut later = facts(&[paid("evt_1", "pi_1", 4200)]);
    later.manual.refunded.insert(at(-1));
    let mut tried = facts(&[intent_failed("evt_1", T, "pi_1", json!({}), "ch_1")]);
    tried.manual.found_paid.insert(at(-1));
    let twice = [paid("evt_1", "pi_1", 4200), paid("evt_2", "pi_2", 4200)];
    let exceeding = charge_refunded("evt_3", T, "ch_1", Some("pi_1"), 4300);
    let mut foreign = charge_refunded("evt_4", T, "ch_1", Some("pi_1"), 4200);
    foreign["data"]["object"]["currency"] = json!("jpy");
    let other = PaymentIntentId::parse("pi_2").unwrap();
    let unexpected = derive_expecting(Some(&other), &facts(&[paid("evt_1", "pi_1", 4200)]));
    let reasons: BTreeSet<String> = [
        facts(&[paid("evt_1", "pi_1", 4100)]),
        facts(&twice),
        given_up(facts(&twice)),
        facts(&[exceeding]),
        facts(&[paid("evt_1", "pi_1", 4200), foreign]),
        facts(&[dispute(
            "evt_5",
            T,
            "dp_1",
            "pi_1",
            "warning_needs_response",
        )]),
        facts(&[dispute("evt_5", T, "dp_1", "pi_1", "needs_response")]),
        facts(&[dispute("evt_5", T, "dp_1", "pi_1", "lost")]),
        facts(&[refund("evt_6", T, "re_1", ("pi_1", "ch_1"), 1000, "failed")]),
        facts(&[stripe(
            "evt_7",
            "radar.early_fraud_warning.created",
            T,
            json!({ "id": "issfr_1", "charge": "ch_1" }),
        )]),
        facts(&[stripe(
            "evt_8",
            "review.opened",
            T,
            json!({ "id": "prv_1", "open": true, "charge": "ch_1" }),
        )]),
        facts(&[paid("evt_1", "pi_1", 4300)]),
        facts(&partly_disputed("needs_response")),
        facts(&partly_disputed("lost")),
        facts(&of_two_users),
        paid_before,
        later,
        tried,
        in_conflict,
        flagged,
    ]
    .iter()
    .flat_map(|facts| derive(facts).review_reasons)
    .chain(unexpected.review_reasons)
    .map(|reason| code(reason.split_once(':').unwrap().0))
    .collect();
    assert_eq!(words("### Review"), Vec::from_iter(reasons));
}

#[test]
fn the_refund_arithmetic_is_as_told() {
    let of_charge = |id: &str, second: i64, charge: &str, intent: &str, refunded: i64| {
        charge_refunded(id, T + second, charge, Some(intent), refunded)
    };
    let told = |derived: &DerivedPayment| -> Vec<String> {
        let refunds = derived
            .timeline
            .iter()
            .filter(|entry| entry.kind.starts_with("refund_"));
        refunds
            .map(|entry| format!("{} {}", entry.kind, entry.fact))
            .collect()
    };
    // Cumulative: the greatest counts, in either order, and is never added up.
    for events in [
        [
            of_charge("evt_2", 1, "ch_1", "pi_1", 1000),
            of_charge("evt_3", 2, "ch_1", "pi_1", 1500),
        ],
        [
            of_charge("evt_3", 2, "ch_1", "pi_1", 1500),
            of_charge("evt_2", 1, "ch_1", "pi_1", 1000),
        ],
    ] {
        let derived = derive(&facts(
            &[&[paid("evt_1", "pi_1", 4200)][..], &events].concat(),
        ));
        assert_eq!(derived.amount_refunded, 1500);
        assert_eq!(
            (derived.status.as_str(), derived.payment_status.as_str()),
            ("completed", "paid")
        );
        assert_eq!(told(&derived), ["refund_partial ch_1"]);
    }
    // Two payments: full only with the charge that completes the sum, in the order of the first refunds.
    let two = [
        paid("evt_1", "pi_1", 4200),
        paid("evt_2", "pi_2", 4200),
        of_charge("evt_3", 9, "ch_1", "pi_1", 4200),
    ];
    let one_back = derive(&facts(&two));
    assert_eq!(
        (one_back.amount_refunded, one_back.status.as_str()),
        (4200, "completed")
    );
    let both = [&two[..], &[of_charge("evt_4", 3, "ch_2", "pi_2", 4200)]].concat();
    let both_back = derive(&facts(&both));
    assert_eq!(
        (both_back.amount_refunded, both_back.status.as_str()),
        (8400, "refunded")
    );
    assert_eq!(
        told(&both_back),
        ["refund_partial ch_2", "refund_full ch_1"]
    );
    // What went back of a payment whose success is not known yet gives nothing back of the other.
    let unknown = [
        paid("evt_1", "pi_1", 4200),
        of_charge("evt_3", 9, "ch_2", "pi_2", 4200),
        refund("evt_4", T + 9, "re_3", ("pi_3", "ch_3"), 4200, "succeeded"),
    ];
    assert_eq!(derive(&facts(&unknown)).status.as_str(), "completed");
    // By id and cumulative: the larger counts, a failed one neither way.
    let by_id = |id: &str, second: i64, refunded: &str, amount: i64, status: &str| {
        refund(id, T + second, refunded, ("pi_1", "ch_1"), amount, status)
    };
    let known = |events: &[Value]| {
        derive(&facts(
            &[&[paid("evt_1", "pi_1", 4200)][..], events].concat(),
        ))
    };
    let one = by_id("evt_2", 1, "re_1", 1000, "pending");
    let other = by_id("evt_3", 2, "re_2", 500, "succeeded");
    let cumulative = of_charge("evt_4", 3, "ch_1", "pi_1", 1800);
    let failed = by_id("evt_5", 4, "re_1", 1000, "failed");
    let two = known(&[one.clone(), other.clone()]);
    assert_eq!((two.amount_refunded, told(&two).len()), (1500, 2));
    let three = known(&[one.clone(), other.clone(), cumulative.clone()]);
    assert_eq!(three.amount_refunded, 1800);
    assert_eq!(
        told(&three),
        [
            "refund_partial re_1",
            "refund_partial re_2",
            "refund_partial ch_1"
        ]
    );
    let after = known(&[failed, cumulative, other, one]);
    assert_eq!(after.amount_refunded, 800);
    assert!(after.review_reasons.contains("refund_failed:re_1"));
}

/// One piece's stages, each at its second.
fn mail(stages: &[(MailStage, i64)]) -> MailFacts {
    let seen = |second| SeenInterval {
        first: FactSource {
            at: at(second),
            event: EventId::parse("evt_1").unwrap(),
        },
        last_at: MaxRegister(at(second)),
    };
    let piece = PieceFacts {
        stages: stages
            .iter()
            .map(|(stage, second)| (*stage, seen(*second)))
            .collect(),
        ..PieceFacts::default()
    };
    MailFacts {
        pieces: BTreeMap::from([(PieceId::parse("ltr_1").unwrap(), piece)]),
    }
}

fn mail_status(stages: &[(MailStage, i64)]) -> Option<MailStage> {
    derive_mail(&mail(stages), None).status
}

#[test]
fn the_mail_table_is_what_is_derived() {
    let stages = MailStage::ALL;
    let beside = |stage: MailStage| mail_status(&[(stage, 0)]).is_none();
    // What ends a piece's life counts before anything that comes later on the way.
    let furthest = MailStage::ProcessedForDelivery;
    let ends = |stage: MailStage| {
        stage != furthest && mail_status(&[(stage, 0), (furthest, 1)]) == Some(stage)
    };
    let weaker = |kin: &[MailStage], stage: MailStage| {
        let beaten = |other: &&MailStage| {
            **other != stage && mail_status(&[(stage, 0), (**other, 0)]) == Some(stage)
        };
        kin.iter().filter(beaten).count()
    };
    let (ending, rest): (Vec<MailStage>, Vec<MailStage>) =
        stages.into_iter().partition(|s| ends(*s));
    let (beside, on_the_way): (Vec<MailStage>, Vec<MailStage>) =
        rest.into_iter().partition(|s| beside(*s));
    let row = |stage: MailStage, place: String| {
        let attention = derive_mail(&mail(&[(stage, 0)]), None).attention_reason;
        assert!(attention.is_none_or(|reason| reason == stage));
        let yes = if attention.is_some() { "yes" } else { "" };
        vec![code(stage.as_str()), place, yes.to_owned()]
    };
    let ranked = |kin: &[MailStage], word: &str| {
        let mut ranked: Vec<_> = kin
            .iter()
            .map(|stage| (weaker(kin, *stage), *stage))
            .collect();
        ranked.sort();
        ranked
            .into_iter()
            .map(|(rank, stage)| row(stage, format!("{word}, {rank}")))
            .collect::<Vec<_>>()
    };
    let rendered = [
        ranked(&on_the_way, "progress"),
        ranked(&ending, "final"),
        beside
            .into_iter()
            .map(|stage| row(stage, "none".to_owned()))
            .collect(),
    ]
    .concat();
    assert_eq!(table("## Letters"), rendered);

    // Of two that end it the later counts, whatever the numbers.
    for one in &ending {
        for other in ending.iter().filter(|other| *other != one) {
            assert_eq!(mail_status(&[(*one, 0), (*other, 1)]), Some(*other));
        }
    }
    // An issue counts until a later stage ends the piece's life.
    for (delivered_at, reason) in [(0, Some(MailStage::Issue)), (1, None), (2, None)] {
        let life = mail(&[(MailStage::Issue, 1), (MailStage::Delivered, delivered_at)]);
        assert_eq!(derive_mail(&life, None).attention_reason, reason);
    }
}

#[test]
fn the_outcome_table_is_what_a_repeat_reads_from_the_row() {
    let outcomes = [
        EventOutcome::Pending,
        EventOutcome::Processed,
        EventOutcome::Ignored,
        EventOutcome::Parked,
        EventOutcome::Failed,
    ];
    let rendered: Vec<Vec<String>> = outcomes
        .into_iter()
        .map(|outcome| {
            let stored = EventRecord {
                id: EventId::parse("evt_1").unwrap(),
                event_type: "x".to_owned().try_into().unwrap(),
                account: None,
                tenant_hint: None,
                group: String::new(),
                correlation_id: None,
                received_at: None,
                processed: outcome.is_done(),
                outcome,
            };
            let repeat = match stored.redelivery_action() {
                RedeliveryAction::Duplicate => "duplicate",
                RedeliveryAction::SendAgain => "sends the same message again",
                RedeliveryAction::Retry => "sends a new message",
            };
            vec![
                code(outcome.as_str()),
                outcome.is_done().to_string(),
                repeat.to_owned(),
            ]
        })
        .collect();
    let told: Vec<Vec<String>> = table("## Outcomes")
        .into_iter()
        .map(|row| vec![row[0].clone(), row[1].clone(), row[3].clone()])
        .collect();
    assert_eq!(told, rendered);
}

/// All variants, in their order; one that is added and not listed here fails to compile.
macro_rules! all {
    ($name:ident { $($variant:ident),* $(,)? }) => {{
        fn _is_complete(reason: $name) {
            match reason { $($name::$variant => {})* }
        }
        [$($name::$variant.as_str()),*].map(code)
    }};
}

#[test]
fn every_reason_has_a_row() {
    let ignored = IgnoreReason::ALL.iter().map(|reason| code(reason.as_str()));
    assert_eq!(words("### Ignored"), ignored.collect::<Vec<_>>());
    let parked = ParkReason::ALL.iter().map(|reason| code(reason.as_str()));
    assert_eq!(words("### Parked"), parked.collect::<Vec<_>>());
    let rejected = all!(SignatureFailure {
        HeaderMissing,
        HeaderMalformed,
        TimestampMalformed,
        TimestampTooOld,
        TimestampTooNew,
        WrongScope,
        NoMatch,
        SecretExpired,
        OtherEndpoint,
        SecretMissing,
    });
    assert_eq!(words("## Signatures"), rejected);
}

/// Every handled event about the payment, as it finds each state: the last word is what the order becomes.
#[test]
fn every_event_leaves_every_state_as_the_table_says() {
    let failed = || intent_failed("evt_1", T, "pi_1", json!({}), "ch_1");
    let processing = || intent_is("evt_2", T + 1, "pi_1", json!({}), "processing");
    let authorized = || {
        let object = json!({ "id": "pi_1", "object": "payment_intent", "status": "requires_capture", "currency": "usd" });
        stripe(
            "evt_2",
            "payment_intent.amount_capturable_updated",
            T + 1,
            object,
        )
    };
    let success = || paid("evt_3", "pi_1", 4200);
    let full = || charge_refunded("evt_4", T + 2, "ch_2", Some("pi_1"), 4200);
    let states = [
        facts(&[]),
        facts(&[failed(), processing()]),
        facts(&[authorized()]),
        facts(&[paid("evt_0", "pi_0", 2100)]),
        facts(&[failed()]),
        given_up(facts(&[failed()])),
        facts(&[success()]),
        facts(&[success(), full()]),
        facts(&[
            success(),
            dispute("evt_5", T + 2, "dp_1", "pi_1", "needs_response"),
        ]),
        facts(&[success(), dispute("evt_5", T + 2, "dp_1", "pi_1", "lost")]),
    ];
    let words = |derived: &DerivedPayment| {
        let (order, payment) = (derived.status.as_str(), derived.payment_status.as_str());
        let reasons = derived.review_reasons.iter();
        let reasons = reasons.map(|r| r.split_once(':').unwrap().0);
        let known: BTreeSet<&str> = reasons.collect();
        (
            format!("{order}/{payment}"),
            known.into_iter().map(str::to_owned).collect::<Vec<_>>(),
        )
    };
    let rendered = |object: Value, event_type: &str| {
        let facts = facts(&[stripe("evt_9", event_type, T + 60, object)]);
        let cells = states.iter().map(|state| {
            let before = words(&derive(state));
            let state = join(state.clone(), facts.clone());
            let after = words(&derive(&state));
            let mut cell = Vec::new();
            if before.0 != after.0 {
                cell.push(after.0.clone());
            }
            let flagged = after.1.iter().filter(|reason| !before.1.contains(reason));
            cell.extend(flagged.map(|reason| format!("+{reason}")));
            let cleared = before.1.iter().filter(|reason| !after.1.contains(reason));
            cell.extend(cleared.map(|reason| format!("-{reason}")));
            match cell.is_empty() {
                true => String::new(),
                false => code(&cell.join(" ")),
            }
        });
        cells.collect::<Vec<_>>()
    };
    let intent = |received: i64| json!({ "id": "pi_1", "object": "payment_intent", "amount_received": received, "currency": "usd" });
    let session = |status: &str| {
        json!({ "id": "cs_1", "object": "checkout.session", "payment_intent": "pi_1",
            "payment_status": status, "amount_total": 4200, "currency": "usd" })
    };
    let charge = |refunded: i64| {
        json!({ "id": "ch_2", "object": "charge", "payment_intent": "pi_1", "amount_captured": 4200,
            "amount_refunded": refunded, "currency": "usd" })
    };
    // A charge of the old Charges API, which is the payment itself.
    let own_charge = |captured: i64| {
        json!({ "id": "ch_9", "object": "charge", "captured": captured > 0, "amount_captured": captured,
            "amount_refunded": 0, "currency": "usd" })
    };
    let refund = |status: &str| {
        json!({ "id": "re_1", "object": "refund", "payment_intent": "pi_1", "charge": "ch_2", "amount": 4200,
            "currency": "usd", "status": status })
    };
    let dispute = |status: &str| {
        json!({ "id": "dp_1", "object": "dispute", "payment_intent": "pi_1", "charge": "ch_2",
            "status": status })
    };
    let review = |open: bool| json!({ "id": "prv_1", "payment_intent": "pi_1", "open": open });
    let cases = [
        ("checkout.session.completed", "paid", session("paid")),
        ("checkout.session.completed", "unpaid", session("unpaid")),
        (
            "checkout.session.async_payment_succeeded",
            "",
            session("paid"),
        ),
        (
            "checkout.session.async_payment_failed",
            "",
            session("unpaid"),
        ),
        ("checkout.session.expired", "", session("unpaid")),
        ("payment_intent.processing", "", intent(0)),
        (
            "payment_intent.amount_capturable_updated",
            "",
            json!({ "id": "pi_1", "object": "payment_intent", "status": "requires_capture", "currency": "usd" }),
        ),
        ("payment_intent.succeeded", "", intent(4200)),
        ("payment_intent.succeeded", "another amount", intent(4100)),
        ("payment_intent.payment_failed", "", intent(0)),
        ("payment_intent.canceled", "", intent(0)),
        (
            "charge.succeeded",
            "without a PaymentIntent",
            own_charge(4200),
        ),
        (
            "charge.succeeded",
            "without a PaymentIntent, authorised",
            own_charge(0),
        ),
        (
            "charge.captured",
            "without a PaymentIntent",
            own_charge(4200),
        ),
        ("charge.failed", "without a PaymentIntent", own_charge(0)),
        ("charge.expired", "", charge(0)),
        ("charge.refunded", "in part", charge(1000)),
        ("charge.refunded", "in full", charge(4200)),
        (
            "charge.refund.updated",
            "in full, `failed`",
            refund("failed"),
        ),
        ("refund.created", "in full, `pending`", refund("pending")),
        (
            "refund.updated",
            "in full, `succeeded`",
            refund("succeeded"),
        ),
        ("refund.failed", "in full, `failed`", refund("failed")),
        (
            "charge.dispute.created",
            "`needs_response`",
            dispute("needs_response"),
        ),
        (
            "charge.dispute.updated",
            "`under_review`",
            dispute("under_review"),
        ),
        ("charge.dispute.closed", "`won`", dispute("won")),
        ("charge.dispute.closed", "`lost`", dispute("lost")),
        (
            "charge.dispute.funds_withdrawn",
            "`needs_response`",
            dispute("needs_response"),
        ),
        ("charge.dispute.funds_reinstated", "`won`", dispute("won")),
        (
            "radar.early_fraud_warning.created",
            "",
            json!({ "id": "issfr_1", "payment_intent": "pi_1" }),
        ),
        ("review.opened", "", review(true)),
        ("review.closed", "", review(false)),
    ];
    let told: Vec<Vec<String>> = cases
        .iter()
        .map(|(kind, how, object)| {
            let head = match how.is_empty() {
                true => code(kind),
                false => format!("{} {how}", code(kind)),
            };
            [vec![head], rendered(object.clone(), kind)].concat()
        })
        .collect();
    // A type without a row states the same as one that has rows, of whatever object it is about.
    let stated = |event_type: &str, object: &Value| {
        let event = stripe("evt_9", event_type, T + 60, object.clone());
        read_facts(&StripeEvent::parse(event.to_string().as_bytes()).unwrap())
    };
    for event_type in HANDLED_TYPES.iter().filter(|t| !t.starts_with("account.")) {
        let is_told = cases.iter().any(|(told, ..)| {
            let mut objects = cases.iter().map(|(.., object)| object);
            told == event_type || objects.all(|o| stated(told, o) == stated(event_type, o))
        });
        assert!(
            is_told,
            "{event_type} states something of its own: add it to the cases above"
        );
    }
    let lines: Vec<String> = told
        .iter()
        .map(|row| format!("| {} |", row.join(" | ")).replace("|  ", "| "))
        .collect();
    assert_eq!(
        table("### Every event in every state"),
        told,
        "\n{}",
        lines.join("\n")
    );
}

#[test]
fn every_scheduled_task_is_told_with_its_schedule() {
    let documented: BTreeSet<Vec<String>> =
        columns("### Scheduled tasks", 0..2).into_iter().collect();
    let defined = SCHEDULED_TASKS
        .iter()
        .map(|task| vec![code(task.name), code(task.schedule)])
        .collect();
    assert_eq!(documented, defined);
}
