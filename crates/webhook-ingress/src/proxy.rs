//! API Gateway's REST proxy request and response, reduced to the fields that we read and write.
//!
//! Our own types, because those of `aws_lambda_events` allocate every header and path parameter, which costs CPU on
//! each event. Header names match in any case and in both maps, the single-value and the multi-value one. Source:
//! `Lambda proxy integrations in API Gateway`, read 2026-11.

use std::collections::BTreeMap;
use std::fmt;

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
    pub headers: Option<SignatureHeaders>,
    /// Every value of each header.
    pub multi_value_headers: Option<SignatureHeaders>,
    /// Base64 if `is_base64_encoded`, else text.
    pub body: Option<String>,
    pub is_base64_encoded: bool,
}

/// The headers that we read, with all their values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SignatureHeaders {
    stripe_signature: Vec<String>,
    lob_signature: Vec<String>,
    lob_signature_timestamp: Vec<String>,
}

/// A header of [`SignatureHeaders`].
#[derive(Clone, Copy, Debug)]
pub enum SignatureHeader {
    StripeSignature,
    LobSignature,
    LobSignatureTimestamp,
}

/// A header occurs more than once, with different values.
#[derive(Debug, PartialEq, Eq)]
pub struct RepeatedHeader;

impl ProxyRequest {
    /// The value of a header. Several different values are an error: nothing says which of them the provider sent.
    pub fn header(&self, header: SignatureHeader) -> Result<Option<&str>, RepeatedHeader> {
        let mut values = [&self.multi_value_headers, &self.headers]
            .into_iter()
            .flatten()
            .flat_map(|headers| headers.values(header))
            .map(String::as_str);
        let first = values.next();
        if values.any(|other| Some(other) != first) {
            return Err(RepeatedHeader);
        }
        Ok(first)
    }
}

impl SignatureHeaders {
    fn values(&self, header: SignatureHeader) -> &[String] {
        match header {
            SignatureHeader::StripeSignature => &self.stripe_signature,
            SignatureHeader::LobSignature => &self.lob_signature,
            SignatureHeader::LobSignatureTimestamp => &self.lob_signature_timestamp,
        }
    }

    fn values_named(&mut self, name: &str) -> Option<&mut Vec<String>> {
        let is = |wanted: &str| name.eq_ignore_ascii_case(wanted);
        if is("stripe-signature") {
            Some(&mut self.stripe_signature)
        } else if is("lob-signature") {
            Some(&mut self.lob_signature)
        } else if is("lob-signature-timestamp") {
            Some(&mut self.lob_signature_timestamp)
        } else {
            None
        }
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

impl<'de> Deserialize<'de> for SignatureHeaders {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct HeadersVisitor;
        impl<'de> Visitor<'de> for HeadersVisitor {
            type Value = SignatureHeaders;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of headers")
            }
            fn visit_map<A: MapAccess<'de>>(
                self,
                mut map: A,
            ) -> Result<SignatureHeaders, A::Error> {
                let mut headers = SignatureHeaders::default();
                while let Some(name) = map.next_key::<String>()? {
                    let Some(values) = headers.values_named(&name) else {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    };
                    match map.next_value::<HeaderValues>()? {
                        HeaderValues::One(value) => values.push(value),
                        HeaderValues::Several(several) => values.extend(several),
                        HeaderValues::Neither(_) => {}
                    }
                }
                Ok(headers)
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
