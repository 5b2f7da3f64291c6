//! API Gateway's REST proxy event and answer, reduced to what we read and write.
//!
//! Own types because the event crate's carry, and allocate, everything else; header names are matched in any case and
//! in both maps (`Lambda proxy integrations in API Gateway`, read 2026-11).

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};

/// A request as the gateway hands it over.
#[derive(Clone, Debug, Default, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProxyRequest {
    /// The route, without stage or base path.
    pub resource: Option<String>,
    /// The path; used where there is no route.
    pub path: Option<String>,
    /// The verb.
    pub http_method: Option<String>,
    /// The last value of each header.
    pub headers: Option<SignatureHeaders>,
    /// Every value of each header.
    pub multi_value_headers: Option<SignatureHeaders>,
    /// Text, or base64 if flagged.
    pub body: Option<String>,
    /// The flag.
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
    /// `Stripe-Signature`
    StripeSignature,
    /// `Lob-Signature`
    LobSignature,
    /// `Lob-Signature-Timestamp`
    LobSignatureTimestamp,
}

/// A header came more than once, with different values.
#[derive(Debug, PartialEq, Eq)]
pub struct RepeatedHeader;

impl ProxyRequest {
    /// The one value of a header.
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

/// One value or several; anything else is no header.
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

/// An answer as the gateway wants it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ProxyResponse {
    /// The status.
    pub status_code: u16,
    /// Names as written, one value each.
    pub headers: BTreeMap<&'static str, String>,
    /// JSON.
    pub body: String,
    /// Never.
    pub is_base64_encoded: bool,
}
