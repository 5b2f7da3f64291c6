//! Errors at the edges: a failed call to a dependency, with its disposition, and how a chain of causes is printed.
//! Each adapter decides the disposition (`retry`) once, where it still has the dependency's own error code.

use std::error::Error;

use crate::retry::Disposition;

/// An error and all its causes in one line. Only the edge that logs or stores the error prints it, so that each cause
/// appears once.
pub fn error_chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        // Some libraries already end their own text with the cause: "table: throttled" caused by "throttled".
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
    enum LayeredError {
        #[error("cannot store evt_1")]
        Store(#[source] Box<LayeredError>),
        #[error("table: throttled")]
        Wordy(#[source] std::io::Error),
    }

    #[test]
    fn a_chain_names_every_cause_once() {
        let cause = LayeredError::Wordy(std::io::Error::other("throttled"));
        let error = LayeredError::Store(Box::new(cause));
        assert_eq!(error_chain(&error), "cannot store evt_1: table: throttled");
    }
}

/// A failed call to a store or queue.
#[derive(Debug, thiserror::Error)]
#[error("{doing}")]
pub struct DependencyError {
    /// The call and its target, such as `put evt_1 into billhook-dev-stripe-events`.
    pub doing: String,
    pub disposition: Disposition,
    #[source]
    pub cause: Box<dyn std::error::Error + Send + Sync>,
}
