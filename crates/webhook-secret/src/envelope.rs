//! `CloudFormation`'s request and answer, apart from what they mean.
//!
//! Read leniently, so that a request can be answered FAILED even where its properties make no sense.
//! Source: `CloudFormation custom resource request objects` and `… response objects`, read 2026-11.

use billhook_adapters::stripe::SecretText;
use billhook_core::endpoint::plan::{
    EndpointProperties, EndpointRequest, InvalidProperties, PhysicalId,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// "The body is at most 4,096 bytes." The parts copied from the request are far below 2,000 of them.
const REASON_BYTES_MAX: usize = 1_000;

/// What is left to do where there was no key yet.
const MAKE_IT: &str =
    "not made yet: put stripe_secret_key into the App secret, then give RotationToken a new value";

/// A request as it arrives.
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

impl ResourceRequest {
    /// What is asked.
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

    /// The id a failure is answered with: for a Create one that names this request, so that the Delete which follows
    /// can remove what it left.
    pub(crate) fn id_of_failure(&self) -> String {
        if self.request_type == RequestType::Create || self.physical_resource_id.is_empty() {
            PhysicalId::create_failed(&self.logical_resource_id, &self.request_id)
        } else {
            self.physical_resource_id.clone()
        }
    }

    /// The id that is there already.
    pub(crate) fn physical_id(&self) -> &str {
        &self.physical_resource_id
    }

    /// The secret that takes the signing secret, even where the other properties make no sense.
    pub(crate) fn secret_arn(&self) -> Option<&str> {
        self.resource_properties.get("SecretArn")?.as_str()
    }

    /// The answer's body. It carries the secret's ARN, never a secret.
    pub(crate) fn answer(&self, outcome: Result<&str, &str>) -> String {
        let failed_id = self.id_of_failure();
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
                    PhysicalId::Unconfigured => MAKE_IT,
                    _ => physical_id,
                },
            },
        };
        // Texts and one nested struct of texts: there is nothing here that could fail to print.
        serde_json::to_string(&answer).unwrap_or_default()
    }
}

/// JSON may write a byte as six: cut so that even then the body fits.
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
