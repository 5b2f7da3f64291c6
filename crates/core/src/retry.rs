//! What a failure leaves to do, and how it is told. Every error at an edge says its disposition.

/// The next step after a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// Nothing happened, or a repeat is harmless: try again later.
    RetryLater,
    /// It may have happened: the same key again, or ask the provider.
    OutcomeUnknown,
    /// It will not succeed by itself: a person looks.
    Permanent,
}
