//! The disposition of a failure: retry later, outcome unknown, or permanent. Every error at an edge has one, so that no
//! caller guesses from an error text whether a retry is safe.

/// What is left to do after a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// The call had no effect, or a repeat is harmless: retry later. Example: SQS throttles a send.
    RetryLater,
    /// The call may have had its effect: repeat it under the same idempotency key, or ask the provider. Example: a
    /// timeout after the request was sent.
    OutcomeUnknown,
    /// No retry will succeed: needs manual action. Example: DynamoDB rejects the call as invalid.
    Permanent,
}
