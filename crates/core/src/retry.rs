//! What a failure leaves to do, and how it is told. Every error at an edge says its disposition.

use std::error::Error;

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

/// An error and all its causes, in one line. Printed once, at the edge.
pub fn error_chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        // Some libraries repeat the cause in their own text.
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Layered {
        #[error("cannot store evt_1")]
        Store(#[source] Box<Layered>),
        #[error("table: throttled")]
        Wordy(#[source] std::io::Error),
    }

    #[test]
    fn a_chain_names_every_cause_once() {
        let cause = Layered::Wordy(std::io::Error::other("throttled"));
        let error = Layered::Store(Box::new(cause));
        assert_eq!(error_chain(&error), "cannot store evt_1: table: throttled");
    }
}
