//! The result of a health check and the action that fixes it.

use billhook_core::endpoint::secret::{SecretHolder, SecretKind};
use billhook_core::ids::ProviderId;
use serde_json::{Value, json};

pub(super) const REVERT_DRIFT_FIX: &str = "somebody changed this by hand, and deploying the same template does not repair it: change it back, or execute a change set created with --use-previous-template --deployment-mode REVERT_DRIFT";

/// The command that stores the provider's signing secret.
pub(super) fn signing_secret_fix(provider: ProviderId) -> String {
    match SecretKind::signing_of(provider).holder() {
        SecretHolder::EndpointSecrets => {
            format!("billhook secrets put stripe-key, then: billhook secrets rotate {provider}")
        }
        SecretHolder::InboundSecret | SecretHolder::AppSecret => {
            format!("billhook secrets put {provider}")
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct CheckFinding {
    pub(super) check: String,
    pub(super) is_good: bool,
    pub(super) detail: String,
    pub(super) fix: String,
    /// Further members of the JSON.
    pub(super) data: Value,
}

impl CheckFinding {
    pub(super) fn from_check(
        check: impl Into<String>,
        is_good: bool,
        detail: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self {
            check: check.into(),
            is_good,
            detail: detail.into(),
            fix: if is_good { String::new() } else { fix.into() },
            data: Value::Null,
        }
    }

    /// A finding that is bad in any case.
    pub(super) fn problem(
        check: impl Into<String>,
        detail: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self::from_check(check, false, detail, fix)
    }

    pub(super) fn render(&self) -> Value {
        let result = if self.is_good { "ok" } else { "bad" };
        let mut row = json!({ "check": self.check, "result": result, "detail": self.detail, "fix": self.fix });
        if let (Some(row), Some(data)) = (row.as_object_mut(), self.data.as_object()) {
            row.extend(data.clone());
        }
        row
    }
}
