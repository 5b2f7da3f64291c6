//! Reports what billhook did to orders, statements and tenants, and what slowed it down: one log line each, with the
//! metric counted from the same values.
//!
//! The functions call this once the outcome is known; the repositories in `dynamodb` neither log nor count it. So an
//! operator's command, which uses the same repositories, counts nothing. `batch` reports the events themselves.

use billhook_core::entity::key::PaymentKey;
use billhook_core::entity::payment::deadlines::PaymentDeadline;
use billhook_core::entity::payment::opened_disputes::OpenedDispute;
use billhook_core::entity::projection::RowFinding;
use billhook_core::entity::{EntityChange, EntityKey};
use billhook_core::ids::{EventId, ProviderId};
use billhook_core::proof::{ProofResult, StateProof};
use billhook_core::worker::ports::{EntityCommit, NoticeSubject, PaymentNotice};

use crate::dynamodb::index::FallbackScan;
use crate::metrics;

/// Counts what a transaction changed about an entity, and logs each manual edit that it overwrote.
pub fn report_entity_commit(provider: ProviderId, commit: &EntityCommit) {
    for change in &commit.changes {
        let metric = match change {
            EntityChange::Completed => &metrics::ORDERS_COMPLETED,
            EntityChange::Cancelled => &metrics::ORDERS_CANCELLED,
            EntityChange::PaymentFailed => &metrics::PAYMENT_FAILED,
            EntityChange::RefundedInFull => &metrics::REFUND_FULL,
            EntityChange::RequiresReview => &metrics::REQUIRES_REVIEW,
            EntityChange::AmountMismatch => &metrics::AMOUNT_MISMATCH,
            EntityChange::PaidAfterCancel => &metrics::PAID_AFTER_CANCEL,
            EntityChange::NeedsAttention => &metrics::NEEDS_ATTENTION,
        };
        // An edit that needs a review is found by whichever worker comes to the row, and one alarm is enough for all.
        let counted_for = match change {
            EntityChange::RequiresReview => ProviderId::Stripe,
            _ => provider,
        };
        metric.count(counted_for);
    }
    let entity = &commit.entity;
    let event_id = commit.event.as_ref().map_or("", EventId::as_str);
    for edit in &commit.discarded_edits {
        let (column, found, written) = (edit.column, &edit.found, &edit.written);
        tracing::warn!(%entity, column, found, written, event_id, "edit_overruled");
    }
    for finding in &commit.row_findings {
        report_row_finding(provider, entity, event_id, finding);
    }
}

/// What is wrong with an application's row: `docs/runbook/row-trouble.md`.
fn report_row_finding(
    provider: ProviderId,
    entity: &EntityKey,
    event_id: &str,
    finding: &RowFinding,
) {
    let count = |reason| metrics::ROW_TROUBLE.record(provider, &[reason], 1);
    match finding {
        RowFinding::Restored { found_version } => {
            count("row_restored");
            let found_version = *found_version;
            tracing::warn!(%entity, found_version, event_id, "row_restored");
        }
        RowFinding::ColumnForeign { column } => {
            count("column_foreign");
            tracing::warn!(%entity, column, event_id, "column_foreign");
        }
        RowFinding::ProjectionMissing => {
            count("projection_missing");
            tracing::warn!(%entity, event_id, "projection_missing");
        }
    }
}

/// Logs and counts a dispute that opens or waits for an answer, an authorisation that is about to expire, or money that
/// nothing claims.
pub fn report_notice(provider: ProviderId, notice: &PaymentNotice) {
    let payment = &notice.payment;
    match &notice.subject {
        NoticeSubject::Opened(opened) => report_opened_dispute(provider, payment, opened),
        NoticeSubject::NearDeadline(deadline) => report_near_deadline(provider, payment, deadline),
        NoticeSubject::Unclaimed { since } => {
            metrics::UNCLAIMED_MONEY.count(provider);
            let since = since.to_string();
            tracing::warn!(
                entity = %payment,
                since,
                "money_unclaimed {payment} since {since}: no order or statement is linked to it; see docs/runbook/unclaimed.md"
            );
        }
    }
}

fn report_opened_dispute(provider: ProviderId, payment: &PaymentKey, opened: &OpenedDispute) {
    metrics::DISPUTE_OPENED.count(provider);
    let (kind, object) = (opened.kind.as_str(), &opened.object);
    let due = opened.due.map(|due| due.to_string());
    let answer = match &due {
        Some(due) => format!(", to be answered until {due}"),
        None => String::new(),
    };
    tracing::warn!(
        entity = %payment,
        kind,
        object = %object,
        due,
        "dispute_opened {kind} {object} of {payment}{answer}; see docs/runbook/dispute-opened.md"
    );
}

fn report_near_deadline(provider: ProviderId, payment: &PaymentKey, deadline: &PaymentDeadline) {
    metrics::DEADLINE_NEAR.count(provider);
    let (kind, object, due) = (
        deadline.object.kind(),
        deadline.object.id(),
        deadline.due.to_string(),
    );
    tracing::warn!(
        entity = %payment,
        kind,
        object,
        due,
        "deadline_near {kind} {object} of {payment} is due {due}; see docs/runbook/deadline-near.md"
    );
}

/// Logs and counts a row that the sweep could not write as its state says.
pub fn report_row_not_restored(provider: ProviderId, entity: &EntityKey, cause: &str) {
    metrics::ROW_TROUBLE.record(provider, &["row_not_restored"], 1);
    tracing::error!(%entity, "row_not_restored {entity}: {cause}");
}

/// Differences of one state that its log line names.
const PLACES_MAX: usize = 5;

/// Counts a proof of the nightly sample, and logs a state that is different. The line says where it is different and not
/// what is there, because a column or a fact may have words of a person: `billhook prove` shows them. All count under
/// one provider, because a state may rest on the events of several.
pub fn report_state_proof(proof: &StateProof) {
    let provider = ProviderId::Stripe;
    metrics::PROVEN_ENTITIES.count(provider);
    match proof.result() {
        ProofResult::Equal | ProofResult::Edited => {}
        ProofResult::Unprovable => metrics::UNPROVABLE.count(provider),
        ProofResult::Different => {
            metrics::PROOF_DIFFERENCES.count(provider);
            let (entity, count) = (&proof.key, proof.differences.len());
            let named = proof.differences.iter().take(PLACES_MAX);
            let named = named.map(|difference| {
                let (source, place) = (difference.source.as_str(), &difference.place);
                format!("{source} {place}")
            });
            let mut places = named.collect::<Vec<_>>().join(", ");
            if count > PLACES_MAX {
                places += &format!(" and {} more", count - PLACES_MAX);
            }
            tracing::error!(
                %entity,
                differences = count,
                "state_different {entity}: {places}; see docs/runbook/proof.md: billhook prove {entity}"
            );
        }
    }
}

/// Logs and counts a scan that replaced the query of an index.
pub fn report_fallback_scan(scan: &FallbackScan<'_>) {
    let FallbackScan {
        provider,
        index,
        table,
    } = *scan;
    metrics::INDEX_FALLBACK_SCAN.count(provider);
    tracing::warn!(
        index,
        table,
        "[orders-index-warning] {index} of {table} is not ACTIVE, so billhook scans the whole table, \
         which is slow; see `aws dynamodb describe-table --table-name {table}`"
    );
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use billhook_core::entity::key::{PaymentKey, StateKey};
    use billhook_core::entity::manual::DiscardedEdit;
    use billhook_core::entity::payment::deadlines::{DeadlineObject, PaymentDeadline};
    use billhook_core::entity::payment::opened_disputes::DisputeKind;
    use billhook_core::ids::{ChargeId, ObjectId, OrderId};
    use billhook_core::proof::{DifferenceSource, StateCorrection, StateDifference};
    use billhook_core::time::Timestamp;
    use tracing::level_filters::LevelFilter;

    use super::*;
    use crate::clock::SystemClock;
    use crate::metrics::{MetricEnvironment, drain_lines};
    use crate::telemetry::build_subscriber;

    /// The lines that were logged, from `message` on, and then those of the metrics, from `Provider` on.
    fn reported(report: impl FnOnce()) -> Vec<String> {
        let environment = MetricEnvironment::new("billhook", "test");
        let logged: Arc<Mutex<String>> = Arc::default();
        let written = Arc::clone(&logged);
        let write = move |line: &[u8]| {
            let line = std::str::from_utf8(line).unwrap();
            written.lock().unwrap().push_str(line);
        };
        let level = LevelFilter::INFO;
        let lines = build_subscriber("f", environment.clone(), level, SystemClock, write);
        tracing::subscriber::with_default(lines, report);
        let now = Timestamp::from_unix_ms(1_781_000_000_042).unwrap();
        let counted = drain_lines(&environment, now);
        let after = |lines: &str, name: &str| {
            let ends = lines.lines().map(|line| line.split_once(name).unwrap().1);
            ends.map(str::to_owned).collect::<Vec<_>>()
        };
        let logged = after(&logged.lock().unwrap(), "\"message\":");
        [logged, after(&counted, "\"Provider\":")].concat()
    }

    #[test]
    fn each_change_is_counted_once_and_each_discarded_edit_is_logged() {
        let commit = EntityCommit {
            entity: EntityKey::Order(OrderId::parse("ord_1").unwrap()),
            event: EventId::parse("evt_1").ok(),
            changes: vec![EntityChange::Completed, EntityChange::RequiresReview],
            discarded_edits: vec![DiscardedEdit {
                column: "status",
                found: "draft".to_owned(),
                written: "completed".to_owned(),
            }],
            row_findings: vec![RowFinding::Restored {
                found_version: Some(3),
            }],
        };
        let edit = r#""edit_overruled","function":"f","entity":"order#ord_1","column":"status","found":"draft","written":"completed","event_id":"evt_1"}"#;
        let restored = r#""row_restored","function":"f","entity":"order#ord_1","found_version":3,"event_id":"evt_1"}"#;
        let counts = r#""stripe","Reason":"row_restored","OrdersCompleted":1,"RequiresReview":1,"RowTrouble":1}"#;
        let report = || report_entity_commit(ProviderId::Stripe, &commit);
        assert_eq!(reported(report), [edit, restored, counts]);
    }

    #[test]
    fn a_review_that_a_letters_event_finds_counts_for_the_one_alarm() {
        let commit = EntityCommit {
            entity: EntityKey::Order(OrderId::parse("ord_1").unwrap()),
            event: None,
            changes: vec![EntityChange::RequiresReview, EntityChange::NeedsAttention],
            discarded_edits: Vec::new(),
            row_findings: Vec::new(),
        };
        let counts = [
            r#""stripe","RequiresReview":1}"#,
            r#""lob","NeedsAttention":1}"#,
        ];
        let report = || report_entity_commit(ProviderId::Lob, &commit);
        assert_eq!(reported(report), counts);
    }

    #[test]
    fn a_near_deadline_is_logged_with_its_payment_and_counted() {
        let near = |object| PaymentNotice {
            payment: PaymentKey::parse("payment#acct_1#pi_1").unwrap(),
            subject: NoticeSubject::NearDeadline(PaymentDeadline {
                due: Timestamp::from_unix_s(1_781_000_000).unwrap(),
                object,
            }),
        };
        let charge = ChargeId::parse("ch_1").unwrap();
        let dispute = ObjectId::parse("dp_1").unwrap();
        for (object, kind, id) in [
            (
                DeadlineObject::Authorization(charge),
                "authorization",
                "ch_1",
            ),
            (DeadlineObject::Dispute(dispute), "dispute", "dp_1"),
        ] {
            let due = "2026-06-09T10:13:20.000Z";
            let warning = format!(
                r#""deadline_near {kind} {id} of payment#acct_1#pi_1 is due {due}; see docs/runbook/deadline-near.md","function":"f","entity":"payment#acct_1#pi_1","kind":"{kind}","object":"{id}","due":"{due}"}}"#
            );
            let count = r#""stripe","DeadlineNear":1}"#.to_owned();
            let near = near(object);
            let lines = reported(|| report_notice(ProviderId::Stripe, &near));
            assert_eq!(lines, [warning, count]);
        }
    }

    #[test]
    fn an_opened_dispute_is_logged_with_its_payment_and_counted() {
        let due = Timestamp::from_unix_s(1_781_000_000).unwrap();
        for (kind, due, id) in [
            (DisputeKind::Dispute, Some(due), "dp_1"),
            (DisputeKind::Inquiry, Some(due), "dp_1"),
            (DisputeKind::FraudWarning, None, "issfr_1"),
        ] {
            let notice = PaymentNotice {
                payment: PaymentKey::parse("payment#acct_1#pi_1").unwrap(),
                subject: NoticeSubject::Opened(OpenedDispute {
                    kind,
                    object: ObjectId::parse(id).unwrap(),
                    due,
                }),
            };
            let (answer, field) = match due {
                Some(due) => (
                    format!(", to be answered until {due}"),
                    format!(r#","due":"{due}""#),
                ),
                None => (String::new(), String::new()),
            };
            let kind = kind.as_str();
            let warning = format!(
                r#""dispute_opened {kind} {id} of payment#acct_1#pi_1{answer}; see docs/runbook/dispute-opened.md","function":"f","entity":"payment#acct_1#pi_1","kind":"{kind}","object":"{id}"{field}}}"#
            );
            let count = r#""stripe","DisputeOpened":1}"#.to_owned();
            let lines = reported(|| report_notice(ProviderId::Stripe, &notice));
            assert_eq!(lines, [warning, count]);
        }
    }

    #[test]
    fn unclaimed_money_is_logged_with_its_payment_and_counted() {
        let notice = PaymentNotice {
            payment: PaymentKey::parse("payment#platform#pi_1").unwrap(),
            subject: NoticeSubject::Unclaimed {
                since: Timestamp::from_unix_s(1_781_000_000).unwrap(),
            },
        };
        let since = "2026-06-09T10:13:20.000Z";
        let warning = format!(
            r#""money_unclaimed payment#platform#pi_1 since {since}: no order or statement is linked to it; see docs/runbook/unclaimed.md","function":"f","entity":"payment#platform#pi_1","since":"{since}"}}"#
        );
        let count = r#""stripe","UnclaimedMoney":1}"#.to_owned();
        let lines = reported(|| report_notice(ProviderId::Stripe, &notice));
        assert_eq!(lines, [warning, count]);
    }

    fn proof(sources: &[DifferenceSource], has_forgotten_events: bool) -> StateProof {
        let differences = sources.iter().zip(1..).map(|(source, number)| {
            let place = format!("row.column_{number}");
            let (stored, expected) = (Some("Ada Lovelace".to_owned()), None);
            StateDifference {
                source: *source,
                place,
                stored,
                expected,
                decision: None,
            }
        });
        StateProof {
            key: StateKey::parse("order#ord_1").unwrap(),
            differences: differences.collect(),
            unreadable_events: Default::default(),
            has_forgotten_events,
            correction: StateCorrection::default(),
        }
    }

    #[test]
    fn a_different_state_is_logged_with_its_places_and_without_what_is_there() {
        use DifferenceSource::{Edit, Events, Row};
        for (proof, counts) in [
            (proof(&[], false), r#""ProvenEntities":1"#),
            (proof(&[Edit, Edit], false), r#""ProvenEntities":1"#),
            (proof(&[], true), r#""ProvenEntities":1,"Unprovable":1"#),
        ] {
            let lines = reported(|| report_state_proof(&proof));
            assert_eq!(lines, [format!(r#""stripe",{counts}}}"#)]);
        }
        let counts = r#""stripe","ProvenEntities":1,"ProofDifferences":1}"#;
        let line = |places: &str, number: usize| {
            format!(
                r#""state_different order#ord_1: {places}; see docs/runbook/proof.md: billhook prove order#ord_1","function":"f","entity":"order#ord_1","differences":{number}}}"#
            )
        };
        let two = line("events row.column_1, row row.column_2", 2);
        let lines = reported(|| report_state_proof(&proof(&[Events, Row], true)));
        assert_eq!(lines, [two.as_str(), counts]);
        let columns = (1..=5).map(|number| format!("row row.column_{number}"));
        let seven = line(
            &format!("{} and 2 more", columns.collect::<Vec<_>>().join(", ")),
            7,
        );
        let lines = reported(|| report_state_proof(&proof(&[Row; 7], false)));
        assert_eq!(lines, [seven.as_str(), counts]);
    }

    #[test]
    fn a_fallback_scan_is_counted_under_the_provider_that_needs_the_index() {
        for provider in [ProviderId::Stripe, ProviderId::Lob] {
            let scan = FallbackScan {
                provider,
                index: "LobLetterIndex",
                table: "statements",
            };
            let lines = reported(|| report_fallback_scan(&scan));
            let [warning, count] = lines.as_slice() else {
                panic!("{lines:?}");
            };
            let begin = "\"[orders-index-warning] LobLetterIndex of statements is not ACTIVE";
            assert!(warning.starts_with(begin), "{warning}");
            let end = r#","function":"f","index":"LobLetterIndex","table":"statements"}"#;
            assert!(warning.ends_with(end), "{warning}");
            assert_eq!(*count, format!(r#""{provider}","IndexFallbackScan":1}}"#));
        }
    }
}
