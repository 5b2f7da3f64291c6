//! Where an answer may go: only to CloudFormation's own buckets. Whoever may invoke the function chooses `ResponseURL`,
//! and a request to any other host would be sent in the function's name.
//!
//! Source: `VPC endpoints for CloudFormation` (the bucket's name, in which the region has no hyphens) and `Amazon S3
//! endpoints`, read 2026-11.

use std::fmt;

use billhook_adapters::config::WebhookSecretConfig;
use billhook_adapters::stripe::SecretText;
use reqwest::Url;
use secrecy::{ExposeSecret, SecretString};

/// A presigned URL of CloudFormation's. It is a credential, so `Debug` does not show it.
#[derive(Debug)]
pub struct ResponseUrl(SecretString);

impl ResponseUrl {
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

/// The hosts of CloudFormation's bucket in the stack's region.
#[derive(Clone, Debug)]
pub struct ResponseHosts {
    hosts: Vec<String>,
    /// The host of a local AWS.
    local: Option<String>,
}

/// A `ResponseURL` that is none of CloudFormation's.
#[derive(Debug, PartialEq, Eq)]
pub struct ForeignHost(pub String);

impl fmt::Display for ForeignHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl ResponseHosts {
    pub fn of_config(config: &WebhookSecretConfig) -> Self {
        let local = config.local_endpoint.as_deref();
        Self::new(&config.policy.stack_id, &config.url_suffix, local)
    }

    /// Of the region that the stack's ARN names. `local_endpoint` is that of a local AWS, which has no bucket.
    pub fn new(stack_id: &str, url_suffix: &str, local_endpoint: Option<&str>) -> Self {
        let region = stack_id.split(':').nth(3).unwrap_or_default();
        let bucket = format!(
            "cloudformation-custom-resource-response-{}",
            region.replace('-', "")
        );
        // Written out, because the name of a bucket may contain dots: with `….s3-*.amazonaws.com` somebody else's bucket
        // could be named so that it fits.
        let endpoints = [
            "s3".to_owned(),
            format!("s3.{region}"),
            format!("s3-{region}"),
            format!("s3.dualstack.{region}"),
            format!("s3-fips.{region}"),
            format!("s3-fips.dualstack.{region}"),
        ];
        let local = local_endpoint.and_then(|url| Url::parse(url).ok());
        Self {
            hosts: endpoints
                .map(|endpoint| format!("{bucket}.{endpoint}.{url_suffix}"))
                .into(),
            local: local.and_then(|url| url.host_str().map(str::to_owned)),
        }
    }

    /// Returns the host if it is not CloudFormation's.
    pub fn check(&self, url: &SecretText) -> Result<ResponseUrl, ForeignHost> {
        let text = url.0.expose_secret();
        let parsed = Url::parse(text).map_err(|_| ForeignHost("no URL".to_owned()))?;
        let host = parsed.host_str().unwrap_or_default();
        // The port is none if it is the scheme's own.
        let is_ours = parsed.scheme() == "https"
            && parsed.port().is_none()
            && self.hosts.iter().any(|known| known == host);
        if is_ours || self.local.as_deref() == Some(host) {
            return Ok(ResponseUrl(text.into()));
        }
        Err(ForeignHost(format!("{}://{host}", parsed.scheme())))
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const PARIS: &str = "arn:aws:cloudformation:eu-west-3:111122223333:stack/billhook-prod/1";
    const BEIJING: &str = "arn:aws-cn:cloudformation:cn-north-1:111122223333:stack/billhook-prod/1";

    fn is_accepted(stack: &str, suffix: &str, local: Option<&str>, url: &str) -> bool {
        let hosts = ResponseHosts::new(stack, suffix, local);
        hosts.check(&SecretText(url.into())).is_ok()
    }

    #[rstest]
    #[case("s3.amazonaws.com")]
    #[case("s3.eu-west-3.amazonaws.com")]
    #[case("s3-eu-west-3.amazonaws.com")]
    #[case("s3.dualstack.eu-west-3.amazonaws.com")]
    #[case("s3.eu-west-3.amazonaws.com:443")]
    fn every_name_of_the_regions_bucket_is_accepted(#[case] endpoint: &str) {
        let url = format!(
            "https://cloudformation-custom-resource-response-euwest3.{endpoint}/a%3Ab%7Cc?X-Amz-Signature=canary"
        );
        assert!(is_accepted(PARIS, "amazonaws.com", None, &url));
        assert!(!is_accepted(BEIJING, "amazonaws.com.cn", None, &url));
        let plain = url.replace("https", "http");
        assert!(!is_accepted(PARIS, "amazonaws.com", None, &plain));
    }

    #[test]
    fn another_partition_has_another_suffix() {
        let url = "https://cloudformation-custom-resource-response-cnnorth1.s3.cn-north-1.amazonaws.com.cn/a";
        assert!(is_accepted(BEIJING, "amazonaws.com.cn", None, url));
        assert!(!is_accepted(PARIS, "amazonaws.com", None, url));
    }

    #[rstest]
    #[case("https://attacker.example/")]
    #[case("http://169.254.169.254/")]
    // Another region's, another bucket, and a bucket whose name goes on as the host does.
    #[case("https://cloudformation-custom-resource-response-useast1.s3.amazonaws.com/a")]
    #[case("https://attacker.s3.eu-west-3.amazonaws.com/a")]
    #[case("https://s3.eu-west-3.amazonaws.com/cloudformation-custom-resource-response-euwest3/a")]
    #[case(
        "https://cloudformation-custom-resource-response-euwest3.s3-a.s3.eu-west-3.amazonaws.com/a"
    )]
    #[case(
        "https://cloudformation-custom-resource-response-euwest3.s3.amazonaws.com.attacker.example/"
    )]
    #[case(
        "https://cloudformation-custom-resource-response-euwest3.s3.amazonaws.com@attacker.example/"
    )]
    #[case("https://cloudformation-custom-resource-response-euwest3.s3.amazonaws.com:8443/")]
    #[case(
        "https://attacker.example\\@cloudformation-custom-resource-response-euwest3.s3.amazonaws.com/"
    )]
    #[case("file:///cloudformation-custom-resource-response-euwest3.s3.amazonaws.com")]
    #[case("cloudformation-custom-resource-response-euwest3.s3.amazonaws.com")]
    #[case("")]
    fn no_other_host_is_accepted(#[case] url: &str) {
        assert!(!is_accepted(PARIS, "amazonaws.com", None, url));
        let local = Some("http://127.0.0.1:4566");
        assert!(!is_accepted(PARIS, "amazonaws.com", local, url));
    }

    #[test]
    fn a_local_aws_is_answered_and_no_path_or_query_is_ever_told() {
        let url = "http://127.0.0.1:1234/_ministack/cfn-response/canary";
        let local = Some("http://127.0.0.1:4566");
        assert!(is_accepted(PARIS, "amazonaws.com", local, url));
        let hosts = ResponseHosts::new(PARIS, "amazonaws.com", None);
        let refused = hosts.check(&SecretText(url.into())).unwrap_err();
        assert_eq!(refused.to_string(), "http://127.0.0.1");
    }
}
