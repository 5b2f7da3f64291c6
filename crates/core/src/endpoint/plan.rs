//! Plans a CloudFormation request for a webhook endpoint at Stripe: create, update in place, replace (rotation) or
//! remove. Also the tags by which we recognise our endpoint (idempotency), and the physical ids. Pure: the crate
//! `webhook-secret` executes the plan; `secret` has the document with the signing secret.
//!
//! An endpoint is ours only by its tags, never by its URL: somebody may have created another endpoint for the same URL.
//! Stripe returns the signing secret only once, at creation, and cannot change `connect` and `api_version` later. So
//! a new value of either, or of the rotation token, needs a new endpoint.

use std::collections::BTreeMap;

use data_encoding::HEXLOWER;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::provider::stripe::event_types::HANDLED_TYPES;
use crate::provider::stripe::types::API_VERSION;

/// Stripe's limit of endpoints per account and mode.
pub const ENDPOINTS_MAX: usize = 16;

/// The only event type of a replacement endpoint until every ingress can know its secret. It exists in every API
/// version, almost never happens, and nothing here handles it, so a refused delivery of it loses nothing.
pub const QUIET_TYPE: &str = "coupon.deleted";

/// The properties of the resource in the template; CloudFormation passes every value as a string.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointProperties {
    pub url: String,
    /// True for events of connected accounts, false for those of the platform's own account.
    pub connect: bool,
    /// [`HANDLED_TYPES`] unless given.
    pub enabled_events: Vec<String>,
    /// The API version in which Stripe renders the events.
    pub api_version: String,
    /// The secret in which the signing secret is stored.
    pub secret_arn: String,
    /// A new value replaces the endpoint, and with it the signing secret (rotation).
    pub rotation_token: String,
}

/// Everything that is wrong with the properties, in one message.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("properties: {}", .0.join("; "))]
pub struct InvalidProperties(pub Vec<String>);

/// Properties that CloudFormation itself reads; `After` refers to what must exist before the endpoint.
const IGNORED: &[&str] = &["ServiceToken", "ServiceTimeout", "After"];

impl EndpointProperties {
    /// Parses `ResourceProperties`. An unknown property is an error: if `Rotation` instead of `RotationToken`
    /// were ignored, the rotation that somebody asked for would silently not happen.
    pub fn parse(given: &Map<String, Value>) -> Result<Self, InvalidProperties> {
        let mut faults = Vec::new();
        let mut rest: BTreeMap<&str, &Value> = given
            .iter()
            .map(|(name, value)| (name.as_str(), value))
            .collect();
        rest.retain(|name, _| !IGNORED.contains(name));

        let events = rest.remove("EnabledEvents");
        let mut text = |name: &str, default: Option<&str>| {
            match (rest.remove(name), default) {
                (Some(Value::String(text)), _) if !text.trim().is_empty() => {
                    return text.trim().to_owned();
                }
                (None | Some(Value::String(_)), Some(default)) => return default.to_owned(),
                (None | Some(Value::String(_)), None) => faults.push(format!("{name} is missing")),
                (Some(_), _) => faults.push(format!("{name} must be a string")),
            }
            String::new()
        };
        let properties = Self {
            url: text("Url", None),
            connect: text("Connect", Some("false")) == "true",
            api_version: text("ApiVersion", Some(API_VERSION)),
            secret_arn: text("SecretArn", None),
            rotation_token: text("RotationToken", Some("")),
            enabled_events: parse_enabled_events(events),
        };
        if !matches!(
            given.get("Connect").and_then(Value::as_str),
            None | Some("" | "true" | "false")
        ) {
            faults.push("Connect must be true or false".to_owned());
        }
        // Plain HTTP only to this machine, for local runs.
        let begins = ["https://", "http://127.0.0.1:", "http://localhost:"];
        let has_scheme = begins.iter().any(|begin| properties.url.starts_with(begin));
        if !properties.url.is_empty() && !has_scheme {
            faults.push("Url must begin with https://".to_owned());
        }
        if properties.enabled_events.is_empty() {
            faults.push("EnabledEvents must be a list of event types".to_owned());
        }
        faults.extend(rest.keys().map(|name| format!("{name} is unknown")));
        if faults.is_empty() {
            Ok(properties)
        } else {
            Err(InvalidProperties(faults))
        }
    }

    /// A digest of what cannot be changed in place: connect, API version, rotation token. A different digest means a
    /// new endpoint. Cut to 32 hex digits, because it is stored as a tag.
    pub fn digest(&self) -> String {
        digest_of(&json!([
            self.connect,
            self.api_version,
            self.rotation_token
        ]))
    }

    /// A digest of all properties, by which [`applied`](super::applied) knows them again.
    pub fn full_digest(&self) -> String {
        digest_of(&json!([
            self.url,
            self.connect,
            self.enabled_events,
            self.api_version,
            self.secret_arn,
            self.rotation_token
        ]))
    }
}

fn digest_of(values: &Value) -> String {
    let mut hex = HEXLOWER.encode(&Sha256::digest(values.to_string()));
    hex.truncate(32);
    hex
}

/// Accepts a list, or one string with commas. Absent or empty means the handled types. Anything else returns an empty
/// list, which the caller reports.
fn parse_enabled_events(given: Option<&Value>) -> Vec<String> {
    let handled = || HANDLED_TYPES.iter().map(|&kind| kind.to_owned()).collect();
    let one = |text: &str| -> Vec<String> {
        text.split(',')
            .map(|kind| kind.trim().to_owned())
            .filter(|kind| !kind.is_empty())
            .collect()
    };
    match given {
        None => handled(),
        Some(Value::String(text)) if text.trim().is_empty() => handled(),
        Some(Value::String(text)) => one(text),
        Some(Value::Array(list)) if list.iter().all(Value::is_string) => {
            let kinds: Vec<String> = list
                .iter()
                .filter_map(Value::as_str)
                .flat_map(one)
                .collect();
            if kinds.is_empty() { handled() } else { kinds }
        }
        Some(_) => Vec::new(),
    }
}

/// CloudFormation's request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndpointRequest {
    Create {
        wanted: EndpointProperties,
    },
    Update {
        /// From the last answer: an endpoint, or a marker that there is none yet.
        physical_id: String,
        /// The properties before; `None` if they cannot be parsed.
        before: Option<EndpointProperties>,
        wanted: EndpointProperties,
    },
    /// Without properties: a resource whose properties were wrong must still be deletable, or the stack is stuck.
    Delete {
        physical_id: String,
    },
}

/// What to do about a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndpointPlan {
    /// Create the endpoint; its id becomes the physical id.
    Create,
    /// Set URL and events; the id stays.
    UpdateInPlace { endpoint_id: String },
    /// Create a new endpoint. CloudFormation sees a new physical id and asks for the deletion of the old one, but only
    /// after the whole stack is updated, so that a rollback finds the old endpoint alive.
    Replace {
        /// The old endpoint.
        endpoint_id: String,
    },
    /// Delete the endpoint if it is ours.
    Remove { endpoint_id: String },
    /// Delete the endpoints that a failed creation may have left.
    RemoveLeftovers {
        /// The request that failed. `None` if the creation was never answered: then CloudFormation made up a physical
        /// id (`stack-Hook-1ABC`), which it does only for a resource that never had another one, so everything that is
        /// tagged as this resource can be deleted.
        request_id: Option<String>,
    },
    /// Answer with the physical id as it is.
    Nothing,
}

/// Decides what to do about a request, with as little change as possible.
pub fn plan_endpoint(request: &EndpointRequest) -> EndpointPlan {
    match request {
        EndpointRequest::Create { .. } => EndpointPlan::Create,
        EndpointRequest::Update {
            physical_id,
            before,
            wanted,
        } => match PhysicalId::parse(physical_id) {
            PhysicalId::Unconfigured | PhysicalId::CreateFailed { .. } | PhysicalId::Foreign => {
                EndpointPlan::Create
            }
            PhysicalId::Endpoint(endpoint_id) => plan_update(endpoint_id, before.as_ref(), wanted),
        },
        EndpointRequest::Delete { physical_id } => match PhysicalId::parse(physical_id) {
            PhysicalId::Endpoint(endpoint_id) => EndpointPlan::Remove { endpoint_id },
            PhysicalId::CreateFailed { request_id } => EndpointPlan::RemoveLeftovers {
                request_id: Some(request_id),
            },
            PhysicalId::Foreign => EndpointPlan::RemoveLeftovers { request_id: None },
            PhysicalId::Unconfigured => EndpointPlan::Nothing,
        },
    }
}

fn plan_update(
    endpoint_id: String,
    before: Option<&EndpointProperties>,
    wanted: &EndpointProperties,
) -> EndpointPlan {
    match before {
        // Unknown properties before: a new endpoint is right whatever the old one was. If the secret's ARN changed, the
        // new secret cannot contain the signing secret, and Stripe does not return it a second time.
        None => EndpointPlan::Replace { endpoint_id },
        Some(before) if before.digest() != wanted.digest() => EndpointPlan::Replace { endpoint_id },
        Some(before) if before.secret_arn != wanted.secret_arn => {
            EndpointPlan::Replace { endpoint_id }
        }
        Some(before) if before == wanted => EndpointPlan::Nothing,
        Some(_) => EndpointPlan::UpdateInPlace { endpoint_id },
    }
}

/// A physical id, parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PhysicalId {
    /// `we_…`, Stripe's id.
    Endpoint(String),
    /// `unconfigured:…`: no endpoint, because no Stripe key was stored.
    Unconfigured,
    /// `create-failed:…`: the creation failed. The id contains the request's id, so that the deletion which follows
    /// removes what that request left and not the endpoint of a later, successful creation.
    CreateFailed { request_id: String },
    /// Anything else: CloudFormation made it up.
    Foreign,
}

impl PhysicalId {
    /// Never fails.
    pub fn parse(text: &str) -> Self {
        if text.starts_with("we_") {
            return Self::Endpoint(text.to_owned());
        }
        let mut parts = text.splitn(3, ':');
        match (parts.next(), parts.next(), parts.next()) {
            (Some("unconfigured"), Some(_), None) => Self::Unconfigured,
            (Some("create-failed"), Some(_), Some(request_id)) if !request_id.is_empty() => {
                Self::CreateFailed {
                    request_id: request_id.to_owned(),
                }
            }
            _ => Self::Foreign,
        }
    }

    pub fn unconfigured(logical_id: &str) -> String {
        format!("unconfigured:{logical_id}")
    }

    pub fn create_failed(logical_id: &str, request_id: &str) -> String {
        format!("create-failed:{logical_id}:{request_id}")
    }
}

/// The tags by which we recognise our endpoint, stored in its metadata at Stripe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointTags {
    /// The stack's ARN.
    pub stack: String,
    /// The resource's name in the template.
    pub logical_id: String,
    /// [`EndpointProperties::digest`].
    pub digest: String,
    /// The request that created the endpoint.
    pub request_id: String,
}

const STACK: &str = "billhook_stack";

const LOGICAL_ID: &str = "billhook_logical_id";

const DIGEST: &str = "billhook_digest";

const REQUEST: &str = "billhook_request";

impl EndpointTags {
    /// Within Stripe's limits for metadata: keys of at most 40 characters, values of at most 500.
    pub fn metadata(&self) -> [(&'static str, &str); 4] {
        [
            (STACK, &self.stack),
            (LOGICAL_ID, &self.logical_id),
            (DIGEST, &self.digest),
            (REQUEST, &self.request_id),
        ]
    }

    /// `None` if a tag is missing: then the endpoint is not ours, and we never change or delete it.
    pub fn from_metadata(metadata: &BTreeMap<String, String>) -> Option<Self> {
        let get = |key: &str| metadata.get(key).cloned();
        Some(Self {
            stack: get(STACK)?,
            logical_id: get(LOGICAL_ID)?,
            digest: get(DIGEST)?,
            request_id: get(REQUEST)?,
        })
    }

    pub fn is_same_resource(&self, other: &Self) -> bool {
        self.stack == other.stack && self.logical_id == other.logical_id
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn given(more: &Value) -> Map<String, Value> {
        let mut given = json!({"ServiceToken": "arn", "ServiceTimeout": "120", "Url": "https://x/webhooks/stripe", "SecretArn": "arn:s"});
        let map = given.as_object_mut().unwrap();
        map.extend(more.as_object().unwrap().clone());
        map.clone()
    }

    fn properties(more: &Value) -> EndpointProperties {
        EndpointProperties::parse(&given(more)).unwrap()
    }

    #[test]
    fn what_is_not_given_has_its_default() {
        let properties = properties(&json!({"RotationToken": "", "EnabledEvents": ""}));
        assert!(!properties.connect);
        assert_eq!(properties.api_version, API_VERSION);
        assert_eq!(properties.enabled_events, HANDLED_TYPES);
        assert_eq!(properties.rotation_token, "");
    }

    #[test]
    fn strings_are_read_as_what_they_mean() {
        let properties = properties(
            &json!({"Connect": "true", "EnabledEvents": ["a.b", "c.d,e.f"], "RotationToken": "2"}),
        );
        assert!(properties.connect);
        assert_eq!(properties.enabled_events, ["a.b", "c.d", "e.f"]);
        assert_eq!(properties.rotation_token, "2");
    }

    #[test]
    fn every_fault_is_reported_by_name() {
        let wrong = json!({"Url": "http://x", "Connect": "yes", "EnabledEvents": [1], "Rotation": "2", "SecretArn": ["a"]});
        assert_eq!(
            EndpointProperties::parse(&given(&wrong))
                .unwrap_err()
                .to_string(),
            "properties: SecretArn must be a string; Connect must be true or false; Url must begin with https://; \
             EnabledEvents must be a list of event types; Rotation is unknown"
        );
        assert_eq!(
            EndpointProperties::parse(&Map::new()).unwrap_err().0,
            ["Url is missing", "SecretArn is missing"]
        );
    }

    #[rstest]
    #[case::same(json!({}), json!({}), EndpointPlan::Nothing)]
    #[case::timeout_only(json!({"ServiceTimeout": "60"}), json!({}), EndpointPlan::Nothing)]
    #[case::order_only(json!({"After": ["", "acl"]}), json!({}), EndpointPlan::Nothing)]
    #[case::url(json!({}), json!({"Url": "https://y"}), EndpointPlan::UpdateInPlace { endpoint_id: "we_1".into() })]
    #[case::events(json!({}), json!({"EnabledEvents": ["a.b"]}), EndpointPlan::UpdateInPlace { endpoint_id: "we_1".into() })]
    #[case::token(json!({}), json!({"RotationToken": "2"}), EndpointPlan::Replace { endpoint_id: "we_1".into() })]
    #[case::connect(json!({}), json!({"Connect": "true"}), EndpointPlan::Replace { endpoint_id: "we_1".into() })]
    #[case::version(json!({"ApiVersion": "2026-08-26.dahlia"}), json!({}), EndpointPlan::Replace { endpoint_id: "we_1".into() })]
    #[case::secret(json!({}), json!({"SecretArn": "arn:t"}), EndpointPlan::Replace { endpoint_id: "we_1".into() })]
    fn an_update_does_as_little_as_it_can(
        #[case] before: Value,
        #[case] wanted: Value,
        #[case] expected: EndpointPlan,
    ) {
        let request = EndpointRequest::Update {
            physical_id: "we_1".to_owned(),
            before: Some(properties(&before)),
            wanted: properties(&wanted),
        };
        assert_eq!(plan_endpoint(&request), expected);
    }

    #[rstest]
    #[case("we_1", EndpointPlan::Replace { endpoint_id: "we_1".into() }, EndpointPlan::Remove { endpoint_id: "we_1".into() })]
    #[case("unconfigured:Hook", EndpointPlan::Create, EndpointPlan::Nothing)]
    #[case("create-failed:Hook:r1", EndpointPlan::Create, EndpointPlan::RemoveLeftovers { request_id: Some("r1".into()) })]
    #[case("create-failed:Hook", EndpointPlan::Create, EndpointPlan::RemoveLeftovers { request_id: None })]
    #[case("stack-Hook-1ABC", EndpointPlan::Create, EndpointPlan::RemoveLeftovers { request_id: None })]
    #[case("", EndpointPlan::Create, EndpointPlan::RemoveLeftovers { request_id: None })]
    fn a_physical_id_decides_what_there_is(
        #[case] physical_id: &str,
        #[case] update: EndpointPlan,
        #[case] delete: EndpointPlan,
    ) {
        let wanted = properties(&json!({}));
        let physical_id = physical_id.to_owned();
        let request = EndpointRequest::Update {
            physical_id: physical_id.clone(),
            before: None,
            wanted,
        };
        assert_eq!(plan_endpoint(&request), update);
        assert_eq!(
            plan_endpoint(&EndpointRequest::Delete { physical_id }),
            delete
        );
    }

    #[test]
    fn markers_and_tags_read_back_as_written() {
        assert_eq!(
            PhysicalId::parse(&PhysicalId::unconfigured("Hook")),
            PhysicalId::Unconfigured
        );
        assert_eq!(
            PhysicalId::parse(&PhysicalId::create_failed("Hook", "r:1")),
            PhysicalId::CreateFailed {
                request_id: "r:1".to_owned()
            }
        );
        let tags = EndpointTags {
            stack: "arn:stack".to_owned(),
            logical_id: "Hook".to_owned(),
            digest: properties(&json!({})).digest(),
            request_id: "r1".to_owned(),
        };
        let mut metadata: BTreeMap<String, String> = tags
            .metadata()
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into();
        assert_eq!(EndpointTags::from_metadata(&metadata), Some(tags));
        metadata.remove(STACK);
        assert_eq!(EndpointTags::from_metadata(&metadata), None);
    }
}
