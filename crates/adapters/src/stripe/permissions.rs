//! What Stripe's key must be allowed to do: the one list, from which `billhook secrets put stripe-key` tries a key and
//! names what it lacks; a test compares the README with it.
//!
//! A restricted key has for each resource the permission None, Read or Write; GET needs Read, POST and DELETE need Write,
//! and Write includes Read. A call without its permission is answered 403.
//! Source: `Restricted API keys` at docs.stripe.com, read 2026-11. Not tried at Stripe itself: that a call on an id that
//! does not exist is answered 403 and not 404 if the key may not make it.

use reqwest::Method;

use super::{StripeCall, StripeClient, StripeError};

/// A permission of a restricted key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyPermission {
    /// The resource, as Stripe's dashboard names it.
    pub resource: &'static str,
    pub level: PermissionLevel,
    /// What fails without it.
    pub needed_by: &'static str,
    /// Whether the functions need it; if not, one command does.
    pub is_required: bool,
    /// A call that needs this permission and changes nothing, as its id does not exist.
    probe: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PermissionLevel {
    Read,
    Write,
}

impl PermissionLevel {
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "Read",
            Self::Write => "Write",
        }
    }
}

impl std::fmt::Display for KeyPermission {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.resource, self.level.name())
    }
}

/// Every permission that billhook uses, for the platform's own account and, under Connect, for connected accounts.
pub const KEY_PERMISSIONS: [KeyPermission; 6] = [
    KeyPermission {
        resource: "Webhook Endpoints",
        level: PermissionLevel::Write,
        needed_by: "the endpoints and their rotation",
        is_required: true,
        probe: "/v1/webhook_endpoints/we_billhook_probe",
    },
    KeyPermission {
        resource: "Events",
        level: PermissionLevel::Read,
        needed_by: "reconcile",
        is_required: true,
        probe: "/v1/events/evt_billhook_probe",
    },
    KeyPermission {
        resource: "PaymentIntents",
        level: PermissionLevel::Write,
        needed_by: "cleanup",
        is_required: true,
        probe: "/v1/payment_intents/pi_billhook_probe/cancel",
    },
    KeyPermission {
        resource: "Checkout Sessions",
        level: PermissionLevel::Write,
        needed_by: "cleanup",
        is_required: true,
        probe: "/v1/checkout/sessions/cs_billhook_probe/expire",
    },
    KeyPermission {
        resource: "Charges and Refunds",
        level: PermissionLevel::Read,
        needed_by: "billhook prove --with-stripe",
        is_required: false,
        probe: "/v1/charges/ch_billhook_probe",
    },
    KeyPermission {
        resource: "Disputes",
        level: PermissionLevel::Read,
        needed_by: "billhook prove --with-stripe",
        is_required: false,
        probe: "/v1/disputes/dp_billhook_probe",
    },
];

impl StripeClient {
    /// The permissions that the key lacks.
    ///
    /// # Errors
    /// If Stripe does not know the key (401), or does not answer.
    pub async fn find_missing_permissions(&self) -> Result<Vec<KeyPermission>, StripeError> {
        let mut missing = Vec::new();
        for permission in KEY_PERMISSIONS {
            let doing = format!("try the key for {permission}");
            let call = StripeCall {
                method: match permission.level {
                    PermissionLevel::Read => Method::GET,
                    PermissionLevel::Write => Method::POST,
                },
                ..StripeCall::get(doing, permission.probe.to_owned())
            };
            match self.call::<serde::de::IgnoredAny>(&call).await {
                Ok(_) => {}
                Err(StripeError::Refused(refusal)) if refusal.status == 403 => {
                    missing.push(permission);
                }
                Err(StripeError::Refused(refusal)) if matches!(refusal.status, 400 | 404) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(missing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_readme_lists_every_permission() {
        let readme = include_str!("../../../../README.md");
        let listed = readme.split("| permission | for |").nth(1).unwrap();
        let listed: Vec<&str> = listed
            .lines()
            .skip(2)
            .map(str::trim)
            .take_while(|line| line.starts_with('|'))
            .collect();
        let expected = KEY_PERMISSIONS
            .map(|permission| format!("| {permission} | {} |", permission.needed_by));
        assert_eq!(listed, expected);
    }
}
