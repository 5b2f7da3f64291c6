//! Errors at the edges: a failed call to a dependency, and how its chain of causes is printed.

use std::error::Error;

use crate::retry::Disposition;

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

/// A call to a store or queue that failed: what was being done to what, and what is left to do.
#[derive(Debug, thiserror::Error)]
#[error("{doing}")]
pub struct DependencyError {
    /// Such as `put evt_1 into billhook-dev-stripe-events`.
    pub doing: String,
    /// Whether a repeat may help.
    pub disposition: Disposition,
    /// The cause, printed once at the edge.
    #[source]
    pub cause: Box<dyn std::error::Error + Send + Sync>,
}
