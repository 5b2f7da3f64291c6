//! API Gateway's REST proxy request and response, reduced to the fields that we read and write.
//!
//! Our own types, because those of `aws_lambda_events` allocate every header and path parameter, which costs CPU on
//! each event. Header names match in any case and in both maps, the single-value and the multi-value one. Source:
//! `Lambda proxy integrations in API Gateway`, read 2026-11.

use std::collections::BTreeMap;
use std::fmt;

use billhook_core::provider::signature::{SignatureFailure, SignatureHeaders};
use billhook_core::provider::signature_headers;
use serde::Serialize;
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};

/// A request from the gateway.
#[derive(Clone, Debug, Default, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProxyRequest {
    /// The route, without the gateway's stage or base path.
    pub resource: Option<String>,
    /// Used only if there is no `resource`.
    pub path: Option<String>,
    pub http_method: Option<String>,
    /// The last value of each header.
    pub headers: Option<KeptHeaders>,
    /// Every value of each header.
    pub multi_value_headers: Option<KeptHeaders>,
    /// Base64 if `is_base64_encoded`, else text.
    pub body: Option<String>,
    pub is_base64_encoded: bool,
}

/// The values of the headers that signatures need. Only those are kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeptHeaders(Vec<(&'static str, String)>);

impl SignatureHeaders for ProxyRequest {
    fn signature_header(&self, name: &str) -> Result<Option<&str>, SignatureFailure> {
        let mut values = [&self.multi_value_headers, &self.headers]
            .into_iter()
            .flatten()
            .flat_map(|headers| &headers.0)
            .filter(|(kept, _)| *kept == name)
            .map(|(_, value)| value.as_str());
        let first = values.next();
        if values.any(|other| Some(other) != first) {
            return Err(SignatureFailure::HeaderMalformed);
        }
        Ok(first)
    }
}

/// One value or several; anything else is ignored.
#[derive(serde::Deserialize)]
#[serde(untagged)]
enum HeaderValues {
    One(String),
    Several(Vec<String>),
    Neither(IgnoredAny),
}

impl<'de> Deserialize<'de> for KeptHeaders {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct HeadersVisitor;
        impl<'de> Visitor<'de> for HeadersVisitor {
            type Value = KeptHeaders;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of headers")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<KeptHeaders, A::Error> {
                let mut kept = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    let mut wanted = signature_headers();
                    let Some(name) = wanted.find(|wanted| name.eq_ignore_ascii_case(wanted)) else {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    };
                    match map.next_value::<HeaderValues>()? {
                        HeaderValues::One(value) => kept.push((name, value)),
                        HeaderValues::Several(several) => {
                            kept.extend(several.into_iter().map(|value| (name, value)));
                        }
                        HeaderValues::Neither(_) => {}
                    }
                }
                Ok(KeptHeaders(kept))
            }
        }
        from.deserialize_map(HeadersVisitor)
    }
}

/// A response for the gateway.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ProxyResponse {
    pub status_code: u16,
    pub headers: BTreeMap<&'static str, String>,
    /// JSON.
    pub body: String,
    /// Always false: our bodies are text.
    pub is_base64_encoded: bool,
}
