//! Sends messages to the FIFO queues, with message group and deduplication id.
//!
//! `Ok` means that the queue has the message, or had one with the same deduplication id within the last 5 minutes; SQS
//! drops the second one and answers with success. `SendError::disposition` says whether a failed send may have
//! happened. `billhook_core::intake::message` builds bodies, `billhook_core::intake::inbox` the ids.

use std::collections::HashMap;

use aws_sdk_sqs::error::{ProvideErrorMetadata as _, SdkError};
use aws_sdk_sqs::operation::send_message::SendMessageError;
use aws_sdk_sqs::operation::send_message::builders::SendMessageFluentBuilder;
use aws_sdk_sqs::types::{MessageSystemAttributeNameForSends, MessageSystemAttributeValue};
use billhook_core::error::DependencyError;
use billhook_core::ids::{PerProvider, ProviderId};
use billhook_core::intake::ports::SendMessage;
use billhook_core::retry::Disposition;

use crate::telemetry;

#[derive(Clone, Debug)]
pub struct FifoQueue {
    client: aws_sdk_sqs::Client,
    url: String,
}

/// The message may or may not be on the queue; see `disposition`.
#[derive(Debug, thiserror::Error)]
#[error("cannot send {deduplication_id} to {queue}")]
pub struct SendError {
    queue: String,
    deduplication_id: String,
    source: Box<SdkError<SendMessageError>>,
}

impl FifoQueue {
    pub fn new(client: aws_sdk_sqs::Client, url: String) -> Self {
        Self { client, url }
    }

    /// The queue delivers only one message per `deduplication_id` in 5 minutes. Both ids have at most 128 characters
    /// and no spaces.
    pub async fn send(
        &self,
        group: &str,
        deduplication_id: &str,
        body: &str,
    ) -> Result<(), SendError> {
        let call = self.message(group, deduplication_id, body);
        match call.send().await {
            Ok(_) => Ok(()),
            Err(source) => Err(SendError {
                queue: self.name().to_owned(),
                deduplication_id: deduplication_id.to_owned(),
                source: Box::new(source),
            }),
        }
    }

    fn message(&self, group: &str, deduplication_id: &str, body: &str) -> SendMessageFluentBuilder {
        let trace = telemetry::current_trace().and_then(|header| build_trace_attribute(&header));
        self.client
            .send_message()
            .queue_url(&self.url)
            .message_group_id(group)
            .message_deduplication_id(deduplication_id)
            .message_body(body)
            .set_message_system_attributes(trace)
    }

    /// The queue's name: the last part of the URL.
    pub fn name(&self) -> &str {
        self.url
            .rsplit_once('/')
            .map_or(self.url.as_str(), |(_, name)| name)
    }
}

/// The queue of each provider's worker.
#[derive(Clone, Debug)]
pub struct EventQueues(pub PerProvider<FifoQueue>);

impl SendMessage for EventQueues {
    async fn send(
        &self,
        provider: ProviderId,
        group: &str,
        deduplication_id: &str,
        body: &str,
    ) -> Result<(), DependencyError> {
        self.0
            .of(provider)
            .send(group, deduplication_id, body)
            .await
            .map_err(|error| DependencyError {
                doing: error.to_string(),
                disposition: error.disposition(),
                cause: error.source,
            })
    }
}

/// The only system attribute that a sender may set; X-Ray links the worker's trace to the sender's by it.
fn build_trace_attribute(
    header: &str,
) -> Option<HashMap<MessageSystemAttributeNameForSends, MessageSystemAttributeValue>> {
    let value = MessageSystemAttributeValue::builder()
        .data_type("String")
        .string_value(header)
        .build()
        .ok()?;
    let name = MessageSystemAttributeNameForSends::AwsTraceHeader;
    Some(HashMap::from([(name, value)]))
}

impl SendError {
    /// Sending again with the same deduplication id is harmless: within 5 minutes SQS drops it, and later the worker
    /// finds the event processed and changes nothing. So ingress answers 503 after any failure, and the provider's next
    /// delivery sends the message again.
    pub fn disposition(&self) -> Disposition {
        match self.source.as_ref() {
            SdkError::ConstructionFailure(_) => Disposition::Permanent,
            SdkError::TimeoutError(_)
            | SdkError::DispatchFailure(_)
            | SdkError::ResponseError(_) => Disposition::OutcomeUnknown,
            SdkError::ServiceError(answer) => match answer.err() {
                SendMessageError::InvalidMessageContents(_) => Disposition::Permanent,
                // Case: somebody edited a row's `group` to a text that SQS does not accept. Each sweep would fail on it
                // again, and every event after it would wait; as a permanent error it is logged and skipped.
                error if error.code().is_some_and(is_message_fault) => Disposition::Permanent,
                // Throttled, not permitted, or no such queue: nothing was sent, and a retry succeeds once that is
                // fixed.
                _ => Disposition::RetryLater,
            },
            // The SDK may add error kinds. For an unknown one the outcome is unknown.
            _ => Disposition::OutcomeUnknown,
        }
    }
}

fn is_message_fault(code: &str) -> bool {
    code.starts_with("InvalidParameterValue") || code.starts_with("MissingParameter")
}

#[cfg(test)]
mod tests {
    use aws_sdk_sqs::config::http::HttpResponse;
    use aws_sdk_sqs::error::ErrorMetadata;
    use aws_sdk_sqs::types::error::{InvalidMessageContents, QueueDoesNotExist};
    use aws_smithy_types::body::SdkBody;

    use super::*;

    #[test]
    fn a_message_goes_on_with_the_trace_of_its_invocation() {
        let config = aws_sdk_sqs::Config::builder()
            .behavior_version(aws_sdk_sqs::config::BehaviorVersion::latest())
            .build();
        let client = aws_sdk_sqs::Client::from_conf(config);
        let queue = FifoQueue::new(client, "https://sqs.example.com/1/stripe.fifo".into());
        let header = "Root=1-67890abc-0123456789abcdef01234567;Parent=0123456789abcdef;Sampled=1";
        for trace in [Some(header), None] {
            telemetry::begin_invocation(trace.map(str::to_owned));
            let message = queue.message("group", "evt_1", "{}");
            let attributes = message.get_message_system_attributes().as_ref();
            let sent = attributes.map(|attributes| {
                let name = MessageSystemAttributeNameForSends::AwsTraceHeader;
                attributes[&name].string_value().unwrap()
            });
            assert_eq!(sent, trace);
        }
    }

    #[track_caller]
    fn check(source: SdkError<SendMessageError>, expected: Disposition) {
        let error = SendError {
            queue: "stripe.fifo".into(),
            deduplication_id: "evt_1".into(),
            source: Box::new(source),
        };
        assert_eq!(error.to_string(), "cannot send evt_1 to stripe.fifo");
        assert_eq!(error.disposition(), expected);
    }

    #[test]
    fn every_failure_says_what_is_left_to_do() {
        let raw = |status: u16| HttpResponse::new(status.try_into().unwrap(), SdkBody::empty());
        let invalid = InvalidMessageContents::builder().build();
        let missing = QueueDoesNotExist::builder().build();
        check(
            SdkError::construction_failure("bad"),
            Disposition::Permanent,
        );
        check(SdkError::timeout_error("slow"), Disposition::OutcomeUnknown);
        check(
            SdkError::response_error("cut", raw(200)),
            Disposition::OutcomeUnknown,
        );
        check(
            SdkError::service_error(SendMessageError::InvalidMessageContents(invalid), raw(400)),
            Disposition::Permanent,
        );
        check(
            SdkError::service_error(SendMessageError::QueueDoesNotExist(missing), raw(400)),
            Disposition::RetryLater,
        );
        check(
            SdkError::service_error(SendMessageError::unhandled("throttled"), raw(503)),
            Disposition::RetryLater,
        );
        let group = ErrorMetadata::builder()
            .code("InvalidParameterValue")
            .build();
        check(
            SdkError::service_error(SendMessageError::generic(group), raw(400)),
            Disposition::Permanent,
        );
    }
}
