//! The AWS clients (DynamoDB, SQS, Secrets Manager): one HTTP client and one set of time-outs and retries for all.
//!
//! It does not use `aws-config`: Lambda passes region and credentials in variables, so the provider chains would only
//! cost cold-start time (`docs/adr/0001`). The SDK retries throttling, 5xx and lost connections with exponential
//! backoff, so a call may happen more than once; `dynamodb` and `sqs` make that harmless. `http` limits one connection
//! and one answer.

use std::time::Duration;

use aws_credential_types::Credentials;
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_sdk_sqs::config::interceptors::BeforeTransmitInterceptorContextMut;
use aws_sdk_sqs::config::retry::{RetryConfig, RetryPartition};
use aws_sdk_sqs::config::timeout::TimeoutConfig;
use aws_sdk_sqs::config::{
    BehaviorVersion, ConfigBag, Intercept, Region, RuntimeComponents, SharedHttpClient,
};
use aws_sdk_sqs::error::SdkError;
use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_types::body::SdkBody;
use aws_types::SdkConfig;
use futures_util::future::{join, join_all};

use crate::config::{ConfigError, EnvLookup, EnvReader};

/// Limit of one attempt: connect, send, and read the whole answer. Above `http`'s 3 s for the first byte, so that
/// normally that limit ends an attempt that hangs, and half a second is left for the body.
const ATTEMPT_MAX: Duration = Duration::from_millis(3500);
/// Limit of all attempts of a call. Below the workers' time-out of 10 s, so that a failure is reported and logged
/// before Lambda ends the invocation. A delivery makes at most four calls one after the other (a secret, its previous
/// version, put, send): 4 × 6 s = 24 s. Every 5 minutes half a second is added, for the key of the seals. That is below
/// ingress's time-out of 25 s, which is below the gateway's 29 s.
pub const OPERATION_MAX: Duration = Duration::from_secs(6);
const ATTEMPTS_MAX: u32 = 3;
/// Open connections only make the first event faster, so they must not delay the start: Lambda ends init after 10 s.
const WARM_MAX: Duration = Duration::from_secs(2);

/// The clients of one process. They share connections and settings; a clone is cheap.
#[derive(Clone, Debug)]
pub struct AwsClients {
    dynamodb: aws_sdk_dynamodb::Client,
    sqs: aws_sdk_sqs::Client,
    secrets_manager: aws_sdk_secretsmanager::Client,
    shared: SdkConfig,
    ssm_endpoint: Option<String>,
}

impl AwsClients {
    /// Reads `AWS_REGION` (or `AWS_DEFAULT_REGION`), `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`,
    /// `AWS_ENDPOINT_URL`, also with the suffix of a service, and `AWS_USE_FIPS_ENDPOINT` and `AWS_USE_DUALSTACK_ENDPOINT`.
    pub fn from_env(lookup: &EnvLookup<'_>) -> Result<Self, ConfigError> {
        let mut read = EnvReader::new(lookup);
        let region = match read.optional("AWS_REGION") {
            Some(region) => region,
            None => read.optional("AWS_DEFAULT_REGION").unwrap_or_else(|| {
                read.fault("AWS_REGION is missing".into());
                String::new()
            }),
        };
        // Lambda ends an execution environment before its credentials expire, so we read them only once.
        let credentials = Credentials::new(
            read.required("AWS_ACCESS_KEY_ID"),
            read.required("AWS_SECRET_ACCESS_KEY"),
            read.optional("AWS_SESSION_TOKEN"),
            None,
            "variables",
        );
        let everywhere = read.optional_url("AWS_ENDPOINT_URL");
        let mut endpoint = |name| read.optional_url(name).or_else(|| everywhere.clone());
        let dynamodb = endpoint("AWS_ENDPOINT_URL_DYNAMODB");
        let sqs = endpoint("AWS_ENDPOINT_URL_SQS");
        let secrets_manager = endpoint("AWS_ENDPOINT_URL_SECRETS_MANAGER");
        let ssm_endpoint = endpoint("AWS_ENDPOINT_URL_SSM");

        let is_true = |value: Option<String>| value.is_some_and(|value| value == "true");
        let fips = is_true(read.optional("AWS_USE_FIPS_ENDPOINT"));
        let dual_stack = is_true(read.optional("AWS_USE_DUALSTACK_ENDPOINT"));

        let http = crate::http::build_http_client();
        let http = http.map_err(|error| read.fault(format!("TLS cannot be set up: {error}")));
        let shared = build_sdk_config(region, credentials, http.ok())
            .into_builder()
            .use_fips(fips)
            .use_dual_stack(dual_stack)
            .build();
        macro_rules! client {
            ($sdk:ident, $endpoint:expr) => {{
                let mut settings = $sdk::config::Builder::from(&shared);
                settings.set_endpoint_url($endpoint);
                $sdk::Client::from_conf(settings.build())
            }};
        }
        let aws = Self {
            dynamodb: client!(aws_sdk_dynamodb, dynamodb),
            sqs: client!(aws_sdk_sqs, sqs),
            secrets_manager: client!(aws_sdk_secretsmanager, secrets_manager),
            shared,
            ssm_endpoint,
        };
        read.finish(aws)
    }

    /// For the operator's command line, whose configuration knows profiles and roles.
    pub fn from_sdk_config(config: &SdkConfig) -> Self {
        Self {
            dynamodb: aws_sdk_dynamodb::Client::new(config),
            sqs: aws_sdk_sqs::Client::new(config),
            secrets_manager: aws_sdk_secretsmanager::Client::new(config),
            shared: config.clone(),
            ssm_endpoint: config.endpoint_url().map(str::to_owned),
        }
    }

    pub fn dynamodb(&self) -> &aws_sdk_dynamodb::Client {
        &self.dynamodb
    }

    pub fn sqs(&self) -> &aws_sdk_sqs::Client {
        &self.sqs
    }

    pub fn secrets_manager(&self) -> &aws_sdk_secretsmanager::Client {
        &self.secrets_manager
    }

    /// A client that `secrets` uses to call the Parameter Store. It is created on use, because few installations have a
    /// secret there and every cold start would pay for it.
    pub(crate) fn ssm(&self, call: impl Intercept + 'static) -> aws_sdk_secretsmanager::Client {
        let mut settings = aws_sdk_secretsmanager::config::Builder::from(&self.shared);
        settings.set_endpoint_url(self.ssm_endpoint.clone());
        // The SDK limits retries per partition. An outage of the Parameter Store must not use up Secrets Manager's.
        let settings = settings.retry_partition(RetryPartition::new("ssm"));
        aws_sdk_secretsmanager::Client::from_conf(settings.interceptor(call).build())
    }

    /// Opens this many connections to each service, all at once (warm-up): Lambda limits the CPU of events, but not
    /// that of init. Secrets Manager needs none here, because reading the secrets opens its connection.
    ///
    /// It sends a signed `GET /` that names no operation. That needs no permission, is not counted or billed as a call,
    /// does not appear as denied in an audit log, and uses the same endpoint, signer and pool as every call. Any answer
    /// is good; a failure is logged and never fails the start.
    pub async fn warm(&self, dynamodb: usize, sqs: usize) {
        macro_rules! touch {
            ($service:ident, $sdk:ident, $call:ident) => {
                async {
                    if $service == 0 {
                        return;
                    }
                    let settings = self.$service.config().to_builder();
                    let settings = settings.retry_config(RetryConfig::disabled());
                    let client = $sdk::Client::from_conf(settings.interceptor(NoOperation).build());
                    let touch = async || {
                        warn_unless_answered(stringify!($service), client.$call().send().await);
                    };
                    join_all((0..$service).map(|_| touch())).await;
                }
            };
        }
        let dynamodb = touch!(dynamodb, aws_sdk_dynamodb, list_tables);
        let sqs = touch!(sqs, aws_sdk_sqs, list_queues);
        if tokio::time::timeout(WARM_MAX, join(dynamodb, sqs))
            .await
            .is_err()
        {
            tracing::warn!("warm_up_slow: not all connections were open within {WARM_MAX:?}");
        }
    }
}

fn build_sdk_config(
    region: String,
    credentials: Credentials,
    http: Option<SharedHttpClient>,
) -> SdkConfig {
    let limits = TimeoutConfig::builder()
        .operation_attempt_timeout(ATTEMPT_MAX)
        .operation_timeout(OPERATION_MAX)
        .build();
    let mut settings = SdkConfig::builder()
        .behavior_version(BehaviorVersion::v2026_01_12())
        .region(Region::new(region))
        .credentials_provider(SharedCredentialsProvider::new(credentials))
        .timeout_config(limits)
        .retry_config(RetryConfig::standard().with_max_attempts(ATTEMPTS_MAX));
    settings.set_http_client(http);
    settings.build()
}

/// Turns any call into one that names no operation. It belongs to a client, because `customize()` on a single call
/// compiles another copy of the SDK's orchestrator for each service, 0.3 MB in all.
#[derive(Debug)]
struct NoOperation;

impl Intercept for NoOperation {
    fn name(&self) -> &'static str {
        "NoOperation"
    }

    fn modify_before_signing(
        &self,
        context: &mut BeforeTransmitInterceptorContextMut<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let request = context.request_mut();
        request.set_method("GET")?;
        *request.body_mut() = SdkBody::empty();
        for header in ["x-amz-target", "content-type", "content-length"] {
            request.headers_mut().remove(header);
        }
        Ok(())
    }
}

fn warn_unless_answered<T, E>(service: &str, answer: Result<T, SdkError<E>>) {
    if let Err(
        SdkError::ConstructionFailure(_) | SdkError::TimeoutError(_) | SdkError::DispatchFailure(_),
    ) = answer
    {
        tracing::warn!("warm_up_failed: {service} did not answer; the first call will connect");
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    /// An AWS that answers everything with `{}` and sends the number of the connection with the head of each request.
    fn server() -> (String, Receiver<(usize, String)>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (seen, heads) = channel();
        std::thread::spawn(move || {
            for (number, stream) in listener.incoming().enumerate() {
                let seen = seen.clone();
                std::thread::spawn(move || converse(stream.unwrap(), number, &seen));
            }
        });
        (url, heads)
    }

    fn converse(mut stream: TcpStream, number: usize, seen: &Sender<(usize, String)>) {
        let (mut buffer, mut head) = ([0; 4096], String::new());
        while let Ok(read @ 1..) = stream.read(&mut buffer) {
            head.push_str(&String::from_utf8_lossy(&buffer[..read]));
            let Some((begin, body)) = head.split_once("\r\n\r\n") else {
                continue;
            };
            let wanted = begin
                .split_once("content-length: ")
                .map_or(0, |(_, rest)| rest.lines().next().unwrap().parse().unwrap());
            if body.len() == wanted {
                seen.send((number, begin.to_owned())).unwrap();
                head.clear();
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
                stream.write_all(answer).unwrap();
            }
        }
    }

    fn aws(endpoint: &str, sqs: &str) -> Result<AwsClients, ConfigError> {
        AwsClients::from_env(&EnvLookup(&|name| {
            Some(match name {
                "AWS_ENDPOINT_URL" => endpoint.to_owned(),
                "AWS_ENDPOINT_URL_SQS" => sqs.to_owned(),
                "AWS_DEFAULT_REGION" => "eu-central-1".to_owned(),
                "AWS_ACCESS_KEY_ID" | "AWS_SECRET_ACCESS_KEY" => "test".to_owned(),
                _ => return None,
            })
        }))
    }

    #[tokio::test]
    async fn warmed_connections_named_no_operation_and_serve_the_first_calls() {
        let ((url, heads), (sqs_url, sqs_heads)) = (server(), server());
        let aws = aws(&url, &sqs_url).unwrap();
        aws.warm(2, 1).await;
        let warmed: Vec<_> = heads.try_iter().chain(sqs_heads.try_iter()).collect();
        assert_eq!(warmed.len(), 3);
        for (_, head) in warmed {
            assert!(head.starts_with("GET / HTTP/1.1\r\n"), "{head}");
            assert!(!head.contains("x-amz-target"), "{head}");
            assert!(head.contains("/eu-central-1/"), "{head}");
        }

        aws.dynamodb().list_tables().send().await.unwrap();
        aws.sqs().list_queues().send().await.unwrap();
        let (connection, head) = heads.recv().unwrap();
        assert!(connection < 2 && head.contains("DynamoDB_20120810.ListTables"));
        let (connection, head) = sqs_heads.recv().unwrap();
        assert!(connection == 0 && head.contains("AmazonSQS.ListQueues"));
        let secrets = aws.secrets_manager().list_secrets().send().await;
        assert!(secrets.is_ok() && heads.recv().unwrap().1.contains("ListSecrets"));
    }

    /// An AWS that answers the first request of each connection and ends it at the second, as after a freeze: the pool
    /// still holds a connection that the other side has forgotten. If `silently`, it does not close it, but never
    /// answers.
    fn forgetful(silently: bool) -> (String, Receiver<usize>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (seen, requests) = channel();
        std::thread::spawn(move || {
            let mut kept = Vec::new();
            for (number, stream) in listener.incoming().enumerate() {
                let (mut stream, seen) = (stream.unwrap(), seen.clone());
                if silently {
                    kept.push(stream.try_clone().unwrap());
                }
                std::thread::spawn(move || {
                    let mut buffer = [0; 4096];
                    for answer in [
                        Some(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"),
                        None,
                    ] {
                        if matches!(stream.read(&mut buffer), Ok(1..)) {
                            seen.send(number).unwrap();
                            if let Some(answer) = answer {
                                stream.write_all(answer).unwrap();
                            }
                        }
                    }
                });
            }
        });
        (url, requests)
    }

    #[tokio::test]
    async fn a_connection_that_died_in_a_freeze_costs_one_more_try_on_a_fresh_one() {
        for silently in [false, true] {
            let (url, requests) = forgetful(silently);
            let aws = aws(&url, &url).unwrap();
            for _ in 0..2 {
                aws.dynamodb().list_tables().send().await.unwrap();
            }
            // The second call first used the dead connection, and then a new one.
            assert_eq!(requests.try_iter().collect::<Vec<_>>(), [0, 0, 1]);
        }
    }

    #[tokio::test]
    async fn after_a_transient_error_the_next_try_takes_another_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (seen, requests) = channel();
        std::thread::spawn(move || {
            for (number, stream) in listener.incoming().enumerate() {
                let (mut stream, seen) = (stream.unwrap(), seen.clone());
                std::thread::spawn(move || {
                    let status = if number == 0 { "500 Oh" } else { "200 OK" };
                    let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 2\r\n\r\n{{}}");
                    let mut buffer = [0; 4096];
                    while let Ok(1..) = stream.read(&mut buffer) {
                        seen.send(number).unwrap();
                        stream.write_all(answer.as_bytes()).unwrap();
                    }
                });
            }
        });
        let aws = aws(&url, &url).unwrap();
        aws.dynamodb().list_tables().send().await.unwrap();
        assert_eq!(requests.try_iter().collect::<Vec<_>>(), [0, 1]);
    }

    #[tokio::test]
    async fn a_service_out_of_reach_does_not_fail_the_start() {
        let closed = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", closed.local_addr().unwrap());
        drop(closed);
        aws(&url, &url).unwrap().warm(1, 1).await;
    }

    /// Fails each call when its request is ready, with the request's URL.
    #[derive(Debug)]
    struct TellUrl;

    impl Intercept for TellUrl {
        fn name(&self) -> &'static str {
            "TellUrl"
        }

        fn modify_before_transmit(
            &self,
            context: &mut BeforeTransmitInterceptorContextMut<'_>,
            _: &RuntimeComponents,
            _: &mut ConfigBag,
        ) -> Result<(), BoxError> {
            Err(context.request().uri().into())
        }
    }

    /// The template declares `AWS_ENDPOINT_URL` as an empty text, for `sam local invoke`.
    #[tokio::test]
    async fn an_empty_endpoint_leaves_aws_itself() {
        let aws = aws("", "").unwrap();
        let dynamodb = aws.dynamodb().config().to_builder().interceptor(TellUrl);
        let dynamodb = aws_sdk_dynamodb::Client::from_conf(dynamodb.build());
        let error = dynamodb.list_tables().send().await.unwrap_err();
        let told = format!("{error:?}");
        assert!(
            told.contains("https://dynamodb.eu-central-1.amazonaws.com/"),
            "{told}"
        );
    }

    #[tokio::test]
    async fn fips_endpoints_are_called_where_the_template_asks_for_them() {
        let lookup = |name: &str| {
            let value = match name {
                "AWS_REGION" => "us-east-1",
                "AWS_USE_FIPS_ENDPOINT" => "true",
                "AWS_ACCESS_KEY_ID" | "AWS_SECRET_ACCESS_KEY" => "local",
                _ => return None,
            };
            Some(value.to_owned())
        };
        let aws = AwsClients::from_env(&EnvLookup(&lookup)).unwrap();
        let sqs = aws.sqs().config().to_builder().interceptor(TellUrl);
        let sqs = aws_sdk_sqs::Client::from_conf(sqs.build());
        let error = sqs.list_queues().send().await.unwrap_err();
        let told = format!("{error:?}");
        assert!(told.contains("https://sqs-fips.us-east-1"), "{told}");
    }

    #[test]
    fn missing_credentials_and_bad_endpoints_are_told_together() {
        let read = AwsClients::from_env(&EnvLookup(&|name| {
            (name == "AWS_ENDPOINT_URL_DYNAMODB").then(|| "localhost:8000".to_owned())
        }));
        assert_eq!(
            read.unwrap_err().to_string(),
            "configuration refused: AWS_REGION is missing; AWS_ACCESS_KEY_ID is missing; \
             AWS_SECRET_ACCESS_KEY is missing; AWS_ENDPOINT_URL_DYNAMODB must begin with https:// or http://"
        );
    }
}
