//! The sending half of a FIFO queue.
//!
//! Guarantees: `Ok` means that the queue has the message or has had it (a repeated deduplication id within 5 minutes is
//! swallowed, and that is a success). Does not build bodies or ids: see `billhook_core`.

use aws_sdk_sqs::error::SdkError;
use aws_sdk_sqs::operation::send_message::SendMessageError;
use billhook_core::ids::Provider;
use billhook_core::ports::{SendMessage, Unavailable};
use billhook_core::retry::Disposition;

/// One queue.
#[derive(Clone, Debug)]
pub struct Queue {
    client: aws_sdk_sqs::Client,
    url: String,
}

/// A message that is not known to be on the queue.
#[derive(Debug, thiserror::Error)]
#[error("cannot send {deduplication_id} to {queue}")]
pub struct SendError {
    queue: String,
    deduplication_id: String,
    source: Box<SdkError<SendMessageError>>,
}

impl Queue {
    /// The queue at `url`.
    pub fn new(client: aws_sdk_sqs::Client, url: String) -> Self {
        Self { client, url }
    }

    /// Sends `body`, at most once per `deduplication_id` in 5 minutes. Both ids are at most 128 characters without
    /// spaces.
    pub async fn send(
        &self,
        group: &str,
        deduplication_id: &str,
        body: &str,
    ) -> Result<(), SendError> {
        let call = self.client.send_message().queue_url(&self.url);
        let call = call
            .message_group_id(group)
            .message_deduplication_id(deduplication_id);
        match call.message_body(body).send().await {
            Ok(_) => Ok(()),
            Err(source) => Err(SendError {
                queue: self.name().to_owned(),
                deduplication_id: deduplication_id.to_owned(),
                source: Box::new(source),
            }),
        }
    }

    /// The last part of the URL.
    pub fn name(&self) -> &str {
        self.url
            .rsplit_once('/')
            .map_or(self.url.as_str(), |(_, name)| name)
    }
}

/// Both providers' queues.
#[derive(Clone, Debug)]
pub struct Queues {
    /// Stripe's events.
    pub stripe: Queue,
    /// Lob's events.
    pub lob: Queue,
}

impl SendMessage for Queues {
    async fn send(
        &self,
        provider: Provider,
        group: &str,
        deduplication_id: &str,
        body: &str,
    ) -> Result<(), Unavailable> {
        let queue = match provider {
            Provider::Stripe => &self.stripe,
            Provider::Lob => &self.lob,
        };
        queue
            .send(group, deduplication_id, body)
            .await
            .map_err(|error| Unavailable {
                doing: error.to_string(),
                disposition: error.disposition(),
                cause: error.source,
            })
    }
}

impl SendError {
    /// What is left to do. Sending again under the same deduplication id is harmless for 5 minutes, and later a
    /// repeat that the worker absorbs.
    pub fn disposition(&self) -> Disposition {
        match self.source.as_ref() {
            SdkError::ConstructionFailure(_) => Disposition::Permanent,
            SdkError::TimeoutError(_)
            | SdkError::DispatchFailure(_)
            | SdkError::ResponseError(_) => Disposition::OutcomeUnknown,
            SdkError::ServiceError(answer) => match answer.err() {
                SendMessageError::InvalidMessageContents(_) => Disposition::Permanent,
                // Throttled, refused, or no such queue: nothing was sent, and it works once that is mended.
                _ => Disposition::RetryLater,
            },
            // The SDK may grow kinds; of an unknown one nothing is certain.
            _ => Disposition::OutcomeUnknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_sdk_sqs::config::http::HttpResponse;
    use aws_sdk_sqs::types::error::{InvalidMessageContents, QueueDoesNotExist};
    use aws_smithy_types::body::SdkBody;

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
    }
}
