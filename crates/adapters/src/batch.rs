//! The Lambda handler of both workers: an SQS batch in, a partial batch response out, one log line per event.
//!
//! The response names exactly the messages that failed. Lambda deletes the others from the queue; SQS delivers the
//! failed ones again after the visibility timeout of 60 s, `MaxReceives` receives in all, and then moves them to the
//! dead-letter queue. AWS recommends to stop at the first failure of a FIFO queue and to report the rest, to keep the
//! order; we do not, because the order does not matter: facts merge to the same result in any order. An empty or
//! unknown id in the response fails the whole batch, so ids are only copied from the batch. `billhook_core::worker`
//! processes the batch.
//! Source: `Handling errors for an SQS event source in Lambda`, read 2026-11.

use aws_lambda_events::event::sqs::SqsEvent;
use billhook_core::entity::key::{PaymentKey, StateKey};
use billhook_core::ids::{EventId, ProviderId, TenantId};
use billhook_core::outcome::EventVerdict;
use billhook_core::ports::{Clock, Pause};
use billhook_core::worker::batch::{
    CALLS_AT_ONCE, MessageReport, ProcessingSuccess, ReceivedMessage, TIME_TO_FINISH, Worker,
};
use billhook_core::worker::ports::Ledger;
use lambda_runtime::LambdaEvent;
use serde::Serialize;

use crate::lambda::invocation_deadline;
use crate::report::{report_entity_commit, report_notice};
use crate::{metrics, telemetry};

/// The partial batch response. It is our own type, because the one of the events crate may grow fields.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BatchResponse {
    /// The messages that SQS shall deliver again.
    pub batch_item_failures: Vec<ItemFailure>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ItemFailure {
    /// The `messageId`.
    pub item_identifier: String,
}

/// Without an id a message cannot be reported as failed and would be deleted, so this fails the whole batch.
#[derive(Debug, thiserror::Error)]
#[error("a record of the batch has no messageId")]
pub struct NoMessageId;

/// Connections to open during init. Over HTTP/1.1 each concurrent call needs its own.
pub const CONNECTIONS: usize = CALLS_AT_ONCE;

/// Processes a batch and reports each message that failed. After `receives_max` receives the queue gives a message up.
pub async fn handle_batch<L: Ledger, C: Clock + Pause>(
    worker: &Worker<L, C>,
    receives_max: u32,
    event: LambdaEvent<SqsEvent>,
) -> Result<BatchResponse, NoMessageId> {
    let deadline = invocation_deadline(&event.context);
    let messages = event.payload.records.into_iter().map(|record| {
        let receive_count = record
            .attributes
            .get("ApproximateReceiveCount")
            .and_then(|count| count.parse().ok())
            .unwrap_or(1);
        Ok(ReceivedMessage {
            message_id: record
                .message_id
                .filter(|id| !id.is_empty())
                .ok_or(NoMessageId)?,
            body: record.body.unwrap_or_default(),
            receive_count,
            is_last_receive: receive_count >= receives_max,
        })
    });
    let messages = messages.collect::<Result<Vec<_>, NoMessageId>>()?;
    // Two seconds before Lambda would end the invocation, we stop waiting for calls that still hang. Case: ten
    // messages, and the row of one does not answer. Without this the invocation would time out without a response, and
    // all ten messages would use up a receive.
    let left = worker.clock.now().until(deadline.before(TIME_TO_FINISH));
    #[expect(
        clippy::disallowed_methods,
        reason = "Lambda ends the invocation by real time, whatever the worker's clock says"
    )]
    let late = tokio::time::sleep(left);
    let done = worker.process_batch(&messages, deadline, late).await;
    for commit in &done.commits {
        report_entity_commit(worker.provider, commit);
    }
    for notice in &done.notices {
        report_notice(worker.provider, notice);
    }
    let reports = done.messages;
    let now = worker.clock.now();
    for report in &reports {
        metrics::count_report(worker.provider, report, now);
    }
    match reports.as_slice() {
        // With one event, all metrics are about it, so they can go into its log line. With several, a line that says
        // `evt_1` must not carry the counts of `evt_2`; then the metrics get a line of their own.
        [only] => telemetry::write_final_line(|| log_report(worker.provider, only)),
        all => all
            .iter()
            .for_each(|report| log_report(worker.provider, report)),
    }
    let mut response = BatchResponse::default();
    for report in reports {
        if let (Err(_), Some(message)) = (report.result, report.message) {
            response.batch_item_failures.push(ItemFailure {
                item_identifier: message.message_id,
            });
        }
    }
    Ok(response)
}

fn log_report(provider: ProviderId, report: &MessageReport) {
    if let Some(payment) = &report.payment {
        return log_recheck(payment, report);
    }
    let stored = report.stored.as_ref();
    let correlation_id = report.correlation_id.map(|id| id.to_string());
    let correlation_id = correlation_id.as_deref();
    let event_id = report.event.as_ref().map(EventId::as_str);
    let message = report.message.as_ref();
    // The order, statement or tenant; the payment, if no order or statement is linked to it.
    let is_entity = |key: &&StateKey| matches!(key, StateKey::Entity(_));
    let entity = report.entities.iter().find(is_entity);
    let entity = entity.or_else(|| report.entities.first());
    let entity = entity.map(ToString::to_string);
    let entity = entity.as_deref();
    macro_rules! log_event {
        ($level:ident, $name:literal, $reason:expr) => {
            tracing::$level!(
                correlation_id,
                event_id,
                stripe_event_id = event_id.filter(|_| provider == ProviderId::Stripe),
                event_type = stored.map(|stored| stored.event_type.as_str()),
                tenant_hint = stored.and_then(|stored| stored.tenant_hint.as_deref()),
                tenant_id = report.tenant.as_ref().map(TenantId::as_str),
                entity,
                attempt = message.map(|message| message.receive_count),
                message_id = message.map(|message| message.message_id.as_str()),
                reason = $reason,
                concat!($name, " correlation_id={}"),
                correlation_id.unwrap_or_default()
            )
        };
    }
    match &report.result {
        Ok(ProcessingSuccess::Decided(verdict)) => match verdict {
            EventVerdict::Processed => log_event!(info, "event_processed", verdict.reason()),
            EventVerdict::Ignored(_) => log_event!(info, "event_ignored", verdict.reason()),
            EventVerdict::Parked(_) => log_event!(warn, "event_parked", verdict.reason()),
            EventVerdict::Failed(_) => log_event!(error, "event_failed", verdict.reason()),
        },
        Ok(ProcessingSuccess::AlreadyDone(outcome)) => {
            log_event!(info, "event_processed_before", outcome.as_str())
        }
        // Only of a payment.
        Ok(ProcessingSuccess::Rechecked | ProcessingSuccess::LeftToSweep(_)) => {}
        Err(failure) => log_event!(error, "event_failed", failure.to_string()),
    }
}

/// A recheck belongs to no delivery, so its line has no correlation id: it is found by its payment. A failure is a
/// warning, because no event is lost: the queue or the sweep sends the payment again.
fn log_recheck(payment: &PaymentKey, report: &MessageReport) {
    let failure = match &report.result {
        Err(failure) => Some(failure.to_string()),
        Ok(ProcessingSuccess::LeftToSweep(failure)) => Some(failure.clone()),
        Ok(_) => None,
    };
    let message = report.message.as_ref();
    let attempt = message.map(|message| message.receive_count);
    let message_id = message.map(|message| message.message_id.as_str());
    match failure {
        Some(reason) => tracing::warn!(
            entity = %payment,
            attempt,
            message_id,
            reason,
            "payment_recheck_failed {payment}"
        ),
        None => tracing::info!(
            entity = %payment,
            attempt,
            message_id,
            "payment_rechecked {payment}"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_has_the_shape_that_aws_wants() {
        let response = BatchResponse {
            batch_item_failures: vec![ItemFailure {
                item_identifier: "m-1".to_owned(),
            }],
        };
        let expected = r#"{"batchItemFailures":[{"itemIdentifier":"m-1"}]}"#;
        assert_eq!(serde_json::to_string(&response).unwrap(), expected);
        assert_eq!(
            serde_json::to_string(&BatchResponse::default()).unwrap(),
            r#"{"batchItemFailures":[]}"#
        );
    }
}
