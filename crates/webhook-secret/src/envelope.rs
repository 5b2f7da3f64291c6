//! The format of CloudFormation's request and of the answer; `billhook_core::endpoint::plan` decides what they mean.
//!
//! Parsing is lenient: a request with wrong properties must still be answered FAILED, or the stack hangs until its
//! timeout. Source: `CloudFormation custom resource request objects` and `… response objects`, read 2026-11.

use billhook_adapters::secrets::SealKeyRequest;
use billhook_adapters::stripe::SecretText;
use billhook_core::endpoint::plan::{
    EndpointProperties, EndpointRequest, InvalidProperties, PhysicalId,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// CloudFormation accepts an answer of at most 4,096 bytes; the parts copied from the request take far less than 2,000.
const REASON_BYTES_MAX: usize = 1_000;

/// The state in the stack's outputs while no Stripe key is stored.
const NOT_CREATED_STATE: &str = "not created yet: put stripe_secret_key into the App secret, then give RotationToken a new value";

/// CloudFormation's request.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ResourceRequest {
    request_type: RequestType,
    #[serde(rename = "ResponseURL")]
    pub(crate) response_url: SecretText,
    pub(crate) stack_id: String,
    pub(crate) request_id: String,
    pub(crate) logical_resource_id: String,
    #[serde(default)]
    resource_type: String,
    #[serde(default)]
    physical_resource_id: String,
    #[serde(default)]
    resource_properties: Map<String, Value>,
    #[serde(default)]
    old_resource_properties: Map<String, Value>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
enum RequestType {
    Create,
    Update,
    Delete,
}

/// The type and the physical id of the resource that makes the keys which seal stored events.
const SEAL_KEYS_TYPE: &str = "Custom::SealKeys";
pub(crate) const SEAL_KEYS_ID: &str = "seal-keys";

/// What a request asks of the keys that seal stored events.
pub(crate) enum SealKeyChange {
    Make(SealKeyRequest),
    /// They go with their secrets.
    Leave,
}

impl ResourceRequest {
    /// None if the request is about an endpoint.
    pub(crate) fn seal_key_change(&self) -> Option<SealKeyChange> {
        if self.resource_type != SEAL_KEYS_TYPE {
            return None;
        }
        let token = |properties: &Map<String, Value>| properties.get("RotationToken").cloned();
        let is_new = token(&self.resource_properties) != token(&self.old_resource_properties);
        Some(match self.request_type {
            RequestType::Create => SealKeyChange::Make(SealKeyRequest::Ensure),
            RequestType::Update if is_new => SealKeyChange::Make(SealKeyRequest::Replace),
            RequestType::Update => SealKeyChange::Make(SealKeyRequest::Ensure),
            RequestType::Delete => SealKeyChange::Leave,
        })
    }

    pub fn request(&self) -> Result<EndpointRequest, InvalidProperties> {
        let physical_id = self.physical_resource_id.clone();
        Ok(match self.request_type {
            RequestType::Create => EndpointRequest::Create {
                wanted: EndpointProperties::parse(&self.resource_properties)?,
            },
            RequestType::Update => EndpointRequest::Update {
                physical_id,
                before: EndpointProperties::parse(&self.old_resource_properties).ok(),
                wanted: EndpointProperties::parse(&self.resource_properties)?,
            },
            RequestType::Delete => EndpointRequest::Delete { physical_id },
        })
    }

    /// The physical id of a FAILED answer. For a creation it contains this request's id, so that the deletion which
    /// CloudFormation sends next can remove what this request left. For an update it is the old id: a new one would
    /// make CloudFormation delete the endpoint that is in use.
    pub(crate) fn failed_physical_id(&self) -> String {
        if self.request_type == RequestType::Create || self.physical_resource_id.is_empty() {
            PhysicalId::create_failed(&self.logical_resource_id, &self.request_id)
        } else {
            self.physical_resource_id.clone()
        }
    }

    pub(crate) fn physical_id(&self) -> &str {
        &self.physical_resource_id
    }

    /// The secret in which the signing secret is stored, readable even if the other properties are wrong.
    pub(crate) fn secret_arn(&self) -> Option<&str> {
        self.resource_properties.get("SecretArn")?.as_str()
    }

    /// The body of the answer. It contains the ARN of the secret, never a secret.
    pub(crate) fn answer(&self, outcome: Result<&str, &str>) -> String {
        let failed_id = self.failed_physical_id();
        let (status, physical_id, reason) = match outcome {
            Ok(id) => ("SUCCESS", id, None),
            Err(reason) => ("FAILED", failed_id.as_str(), Some(truncate_reason(reason))),
        };
        let answer = ResourceResponse {
            status,
            reason,
            physical_resource_id: physical_id,
            stack_id: &self.stack_id,
            request_id: &self.request_id,
            logical_resource_id: &self.logical_resource_id,
            data: ResponseAttributes {
                endpoint_id: physical_id,
                secret_arn: self.secret_arn().unwrap_or_default(),
                state: match PhysicalId::parse(physical_id) {
                    PhysicalId::Unconfigured => NOT_CREATED_STATE,
                    _ => physical_id,
                },
            },
        };
        // Cannot fail: the value contains only strings.
        serde_json::to_string(&answer).unwrap_or_default()
    }
}

/// Cuts the reason at a character's boundary. A reason quotes property names, so a template can put control characters
/// into it, each of which JSON escapes as six bytes: 1,000 bytes of which every second is one become 3,500.
fn truncate_reason(reason: &str) -> &str {
    let mut end = reason.len().min(REASON_BYTES_MAX);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    reason.get(..end).unwrap_or_default()
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct ResourceResponse<'a> {
    status: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    physical_resource_id: &'a str,
    stack_id: &'a str,
    request_id: &'a str,
    logical_resource_id: &'a str,
    data: ResponseAttributes<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct ResponseAttributes<'a> {
    endpoint_id: &'a str,
    secret_arn: &'a str,
    /// What the stack's outputs show.
    state: &'a str,
}
