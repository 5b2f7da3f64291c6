//! What a resource's endpoint was last set to, stored beside the endpoints. From it the function knows the rollback of a
//! failed update: CloudFormation's request to set the old properties again. It must succeed without Stripe, or the stack
//! is stuck in `UPDATE_ROLLBACK_FAILED`; the usual cause of the failed update is a key that Stripe refuses, and Stripe
//! refuses it in the rollback too. Pure.

use std::time::Duration;

use crate::time::Timestamp;

/// A stack whose update failed is rolled back at once; after this time the same request is a change that somebody wants.
const ROLLBACK_MAX: Duration = Duration::from_secs(60 * 60);

/// An answer that CloudFormation got: the physical id, and what was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnsweredProperties {
    pub physical_id: String,
    /// [`EndpointProperties::full_digest`](super::plan::EndpointProperties::full_digest).
    pub digest: String,
}

/// The last answer of success to a Create or Update, and the one before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppliedProperties {
    pub last: AnsweredProperties,
    /// Until its endpoint is deleted.
    pub before: Option<AnsweredProperties>,
    pub applied_at: Timestamp,
}

impl AppliedProperties {
    /// If an update of `physical_id` to the properties of this digest is the rollback of a failed update: the physical id
    /// that stands for them.
    ///
    /// Either the update of this resource failed, and then what is asked for was applied last; or it was applied and its
    /// answer did not arrive, or another resource of the stack failed, and then it was applied before the last one.
    pub fn find_rollback(&self, physical_id: &str, digest: &str, now: Timestamp) -> Option<&str> {
        if self.last.physical_id == physical_id && self.last.digest == digest {
            return Some(&self.last.physical_id);
        }
        let is_recent = self.applied_at.until(now) <= ROLLBACK_MAX;
        let before = self.before.as_ref().filter(|before| {
            let is_known = [&*self.last.physical_id, &*before.physical_id].contains(&physical_id);
            is_recent && is_known && before.digest == digest
        });
        before.map(|before| before.physical_id.as_str())
    }

    /// After another answer of success.
    #[must_use]
    pub fn followed_by(known: Option<Self>, answered: AnsweredProperties, now: Timestamp) -> Self {
        let before = known.and_then(|known| {
            if known.last == answered {
                known.before
            } else if known.before.as_ref() == Some(&answered) {
                // It was rolled back: to ask again for what it came from is a change.
                None
            } else {
                Some(known.last)
            }
        });
        Self {
            last: answered,
            before,
            applied_at: now,
        }
    }

    /// Without an endpoint that is to be deleted: nothing leads back to it. `None` if it was the last one.
    #[must_use]
    pub fn without(self, physical_id: &str) -> Option<Self> {
        (self.last.physical_id != physical_id).then(|| Self {
            before: self
                .before
                .filter(|before| before.physical_id != physical_id),
            ..self
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(physical_id: &str, digest: &str) -> AnsweredProperties {
        AnsweredProperties {
            physical_id: physical_id.to_owned(),
            digest: digest.to_owned(),
        }
    }

    fn at(s: i64) -> Timestamp {
        Timestamp::from_unix_s(1_781_000_000 + s).unwrap()
    }

    #[test]
    fn a_rollback_leads_to_what_was_applied_last_or_within_the_hour_before() {
        let created = AppliedProperties::followed_by(None, answered("we_1", "a"), at(0));
        let replaced =
            AppliedProperties::followed_by(Some(created.clone()), answered("we_2", "b"), at(100));
        // The update of this resource failed.
        assert_eq!(created.find_rollback("we_1", "a", at(9_000)), Some("we_1"));
        assert_eq!(created.find_rollback("we_1", "b", at(1)), None, "a change");
        assert_eq!(created.find_rollback("we_9", "a", at(1)), None, "unknown");
        // That of another resource failed.
        assert_eq!(replaced.find_rollback("we_2", "a", at(200)), Some("we_1"));
        assert_eq!(replaced.find_rollback("we_2", "a", at(3_700)), Some("we_1"));
        assert_eq!(
            replaced.find_rollback("we_2", "a", at(3_701)),
            None,
            "wanted"
        );
        // Its answer did not arrive.
        assert_eq!(replaced.find_rollback("we_1", "a", at(200)), Some("we_1"));
        assert_eq!(replaced.find_rollback("we_1", "a", at(9_000)), None);
        assert_eq!(replaced.clone().without("we_2"), None, "the last one");
        let cleaned = replaced.without("we_1").unwrap();
        assert_eq!(cleaned.find_rollback("we_2", "a", at(200)), None, "deleted");
        assert_eq!(cleaned.find_rollback("we_2", "b", at(200)), Some("we_2"));
    }

    #[test]
    fn a_repeated_answer_keeps_the_one_before_and_a_rollback_forgets_it() {
        let created = AppliedProperties::followed_by(None, answered("we_1", "a"), at(0));
        let changed = AppliedProperties::followed_by(Some(created), answered("we_1", "b"), at(1));
        let repeated = AppliedProperties::followed_by(Some(changed), answered("we_1", "b"), at(2));
        assert_eq!(repeated.before, Some(answered("we_1", "a")));
        let back = AppliedProperties::followed_by(Some(repeated), answered("we_1", "a"), at(3));
        assert_eq!(back.before, None);
    }
}
