//! Which requests `webhook-secret` obeys (authorization): those about this stack's own endpoints, as its template makes
//! them. Pure.
//!
//! Whoever may invoke the function can send it any request, so what a request may ask for is known beforehand, from the
//! function's variables. Case: a forged request with another stack's id made an endpoint at an attacker's URL and stored
//! its signing secret in place of ours.

use crate::endpoint::applied::AppliedProperties;
use crate::endpoint::plan::EndpointProperties;
use crate::provider::stripe::event_types::HANDLED_TYPES;

/// The resource in the template that is the endpoint for connected accounts.
pub const CONNECT_ENDPOINT: &str = "StripeWebhookEndpoint";
/// That for the platform's own account.
pub const PLATFORM_ENDPOINT: &str = "StripePlatformWebhookEndpoint";

/// That makes the keys which seal stored events.
pub const SEAL_KEYS: &str = "SealKeys";

/// The stack's endpoints, as its template makes them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestPolicy {
    /// The stack's ARN.
    pub stack_id: String,
    /// Where Stripe delivers.
    pub url: String,
    pub api_version: String,
    pub endpoints: Vec<StackEndpoint>,
}

/// An endpoint of the template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StackEndpoint {
    /// The resource's name.
    pub logical_id: &'static str,
    /// Whether it is that for connected accounts.
    pub connect: bool,
    /// The secret in which its signing secret is stored.
    pub secret_arn: String,
}

/// What a request asks for and must not, in one message.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("refused, and nothing was changed: {}", .0.join("; "))]
pub struct RefusedRequest(pub Vec<String>);

impl RequestPolicy {
    /// The endpoint that a request is about.
    pub fn find_endpoint(
        &self,
        stack_id: &str,
        logical_id: &str,
    ) -> Result<&StackEndpoint, RefusedRequest> {
        let mut endpoints = self.endpoints.iter();
        let found = endpoints.find(|endpoint| endpoint.logical_id == logical_id);
        match (stack_id == self.stack_id, found) {
            (true, Some(endpoint)) => Ok(endpoint),
            _ => Err(self.refuse_resource(stack_id, found.is_some())),
        }
    }

    /// Whether a request is about the keys that seal this stack's events.
    pub fn check_seal_keys(&self, stack_id: &str, logical_id: &str) -> Result<(), RefusedRequest> {
        let is_known = logical_id == SEAL_KEYS;
        match stack_id == self.stack_id && is_known {
            true => Ok(()),
            false => Err(self.refuse_resource(stack_id, is_known)),
        }
    }

    fn refuse_resource(&self, stack_id: &str, is_known: bool) -> RefusedRequest {
        let mut faults = Vec::new();
        if stack_id != self.stack_id {
            faults.push(format!("StackId is not {}", self.stack_id));
        }
        if !is_known {
            faults.push("LogicalResourceId is not that of such a resource".to_owned());
        }
        RefusedRequest(faults)
    }

    /// Whether the endpoint may be created with, or set to, these properties: those of the template. The rotation token is
    /// free, because a rotation must not need the permission to change a function.
    pub fn check_properties(
        &self,
        endpoint: &StackEndpoint,
        wanted: &EndpointProperties,
    ) -> Result<(), RefusedRequest> {
        let mut faults = Vec::new();
        let mut require = |name: &str, given: &str, expected: &str| {
            if given != expected {
                faults.push(format!("{name} is not {expected}"));
            }
        };
        let as_text = |connect: bool| if connect { "true" } else { "false" };
        require("Url", &wanted.url, &self.url);
        require(
            "Connect",
            as_text(wanted.connect),
            as_text(endpoint.connect),
        );
        require("ApiVersion", &wanted.api_version, &self.api_version);
        require("SecretArn", &wanted.secret_arn, &endpoint.secret_arn);
        let is_unhandled = |kind: &&String| !HANDLED_TYPES.contains(&kind.as_str());
        if let Some(kind) = wanted.enabled_events.iter().find(is_unhandled) {
            faults.push(format!("EnabledEvents has {kind}, which no worker handles"));
        }
        match faults.is_empty() {
            true => Ok(()),
            false => Err(RefusedRequest(faults)),
        }
    }
}

impl AppliedProperties {
    /// Whether the endpoint has been set to the properties of this digest before: then an update to them is allowed even if
    /// the function's variables say something else. CloudFormation may send the update of a rollback before it sets the
    /// variables back. There is no limit of time, because a person may roll back a failed update days later.
    pub fn was_applied(&self, digest: &str) -> bool {
        let before = self.before.as_ref();
        self.last.digest == digest || before.is_some_and(|before| before.digest == digest)
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::*;
    use crate::provider::stripe::types::API_VERSION;

    fn policy() -> RequestPolicy {
        RequestPolicy {
            stack_id: "arn:stack/one".to_owned(),
            url: "https://ours/webhooks/stripe".to_owned(),
            api_version: API_VERSION.to_owned(),
            endpoints: vec![StackEndpoint {
                logical_id: PLATFORM_ENDPOINT,
                connect: false,
                secret_arn: "arn:platform".to_owned(),
            }],
        }
    }

    #[test]
    fn only_the_stacks_own_endpoints_are_found() {
        let policy = policy();
        let found = policy.find_endpoint("arn:stack/one", PLATFORM_ENDPOINT);
        assert_eq!(found.unwrap().secret_arn, "arn:platform");
        for (stack, logical_id) in [
            ("arn:stack/two", PLATFORM_ENDPOINT),
            ("arn:stack/one", CONNECT_ENDPOINT),
            ("", ""),
        ] {
            assert!(policy.find_endpoint(stack, logical_id).is_err(), "{stack}");
        }
    }

    #[rstest]
    #[case::as_the_template_says(json!({}), None)]
    #[case::rotation(json!({"RotationToken": "2"}), None)]
    #[case::fewer_events(json!({"EnabledEvents": ["charge.refunded"]}), None)]
    #[case::url(json!({"Url": "https://evil/webhooks/stripe"}), Some("Url is not https://ours/webhooks/stripe"))]
    #[case::every_event(json!({"EnabledEvents": ["*"]}), Some("EnabledEvents has *, which no worker handles"))]
    #[case::secret(json!({"SecretArn": "arn:connect"}), Some("SecretArn is not arn:platform"))]
    #[case::connect(json!({"Connect": "true"}), Some("Connect is not false"))]
    #[case::version(json!({"ApiVersion": "2020-01-01"}), Some("ApiVersion is not 2026-10-28.endive"))]
    fn properties_are_those_of_the_template(#[case] changed: Value, #[case] fault: Option<&str>) {
        let mut given = json!({"Url": "https://ours/webhooks/stripe", "SecretArn": "arn:platform"});
        given
            .as_object_mut()
            .unwrap()
            .extend(changed.as_object().unwrap().clone());
        let wanted = EndpointProperties::parse(given.as_object().unwrap()).unwrap();
        let policy = policy();
        let checked = policy.check_properties(&policy.endpoints[0], &wanted);
        let faults = checked.map_err(|refused| refused.0);
        assert_eq!(faults.err(), fault.map(|fault| vec![fault.to_owned()]));
    }
}
