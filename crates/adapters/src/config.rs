//! Configuration from environment variables, read and validated once at the start of a function.
//!
//! All faults of all variables are reported in one error, by name and without the value of a secret, so that one
//! deployment attempt shows everything that is wrong. A missing value is never guessed; the only defaults are the ones
//! written here. It does not call AWS: `aws` and `secrets` use what is read here. Each function has its own struct.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use billhook_core::endpoint::policy::{
    CONNECT_ENDPOINT, PLATFORM_ENDPOINT, RequestPolicy, StackEndpoint,
};
use billhook_core::endpoint::secret::{SecretHolder, SecretKind};
use billhook_core::entity::ENTITY_SCHEMAS;
use billhook_core::entity::columns::EntitySchema;
use billhook_core::entity::rules::{RowRules, VersionColumn};
use billhook_core::ids::{PerProvider, ProviderId};
use billhook_core::provider::event_scope;
use billhook_core::provider::order_ids::OrderIdRules;
use billhook_core::provider::signature::KeyScope;
use billhook_core::time::Timestamp;
use billhook_core::worker::batch::RECEIVES_MAX;
use secrecy::SecretString;
use tracing::level_filters::LevelFilter;

use crate::stripe::STRIPE_API;

#[derive(Clone, Copy)]
pub struct EnvLookup<'a>(pub &'a dyn Fn(&str) -> Option<String>);

/// For `EnvLookup`: reads the variables of this process.
#[expect(
    clippy::disallowed_methods,
    reason = "the one place that reads the environment"
)]
pub fn read_process_variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Why the start is refused: all faults, each with the name of its variable.
#[derive(Debug, PartialEq, Eq)]
pub struct ConfigError {
    faults: Vec<String>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "configuration refused: {}", self.faults.join("; "))
    }
}

impl std::error::Error for ConfigError {}

/// Both values, or all faults of both, so that nobody has to deploy twice to see the second half.
pub fn combine_faults<A, B>(
    a: Result<A, ConfigError>,
    b: Result<B, ConfigError>,
) -> Result<(A, B), ConfigError> {
    match (a, b) {
        (Ok(a), Ok(b)) => Ok((a, b)),
        (Err(mut a), Err(b)) => {
            a.faults.extend(b.faults);
            Err(a)
        }
        (Err(faults), _) | (_, Err(faults)) => Err(faults),
    }
}

#[derive(Debug)]
pub struct EnvironmentConfig {
    /// `APP_NAME`, the first part of every resource's name.
    pub app_name: String,
    /// `ENV`, the second part.
    pub env: String,
    /// `LIVE_MODE`: real money. Then no variable may contain a secret, and test events are ignored.
    pub live: bool,
    pub log_level: LevelFilter,
}

/// The names of the entity kinds' tables, by [`EntitySchema::table`].
pub type ApplicationTables = BTreeMap<&'static str, String>;

/// The variable of a kind's table: `ORDERS_TABLE`.
pub(crate) fn table_variable(schema: &EntitySchema) -> String {
    format!("{}_TABLE", schema.table.to_uppercase())
}

#[derive(Clone, Debug)]
pub struct SecretSource {
    /// The name of the variable, which is also the secret's label in logs.
    pub variable: String,
    pub location: SecretLocation,
}

/// The source of a signing secret.
#[derive(Clone, Debug)]
pub struct SigningSource {
    pub secret: SecretSource,
    /// Which events it proves.
    pub scope: KeyScope,
}

#[derive(Clone, Debug)]
pub enum SecretLocation {
    /// In Secrets Manager, or `ssm:/path` in the Parameter Store.
    Arn(String),
    /// In the variable itself; only for tests and local runs.
    Here(SecretString),
}

/// `webhook-ingress`.
#[derive(Debug)]
pub struct IngressConfig {
    pub environment: EnvironmentConfig,
    /// `STRIPE_EVENTS_TABLE` and so on.
    pub events_tables: PerProvider<String>,
    /// `STRIPE_EVENTS_QUEUE_URL` and so on.
    pub queue_urls: PerProvider<String>,
    /// From the secrets whose ARNs are set, or from `STRIPE_WEBHOOK_SECRET` and so on. None of a provider that the stack
    /// does not use: then none of its deliveries can be proven.
    pub signing_secrets: PerProvider<Vec<SigningSource>>,
    /// The private key that seals events.
    pub sealer: SecretSource,
    /// `SECRETS_TTL_SECONDS`: how long a secret that was read counts as fresh (`secrets::SigningKeyCache`).
    pub secrets_ttl: Duration,
    /// `SIGNATURE_TOLERANCE_SECONDS`: how far a signature's time may be in the past or in the future.
    pub signature_tolerance: Duration,
    /// `TYPE_METRICS`: whether deliveries are counted by event type and result.
    pub type_metrics: bool,
    /// `ACCOUNT_RATE_LIMIT`: how many deliveries of one connected account a running instance accepts in a minute; 0 for no
    /// limit.
    pub account_rate_limit: u32,
}

impl IngressConfig {
    pub fn from_env(lookup: &EnvLookup<'_>) -> Result<Self, ConfigError> {
        let mut read = EnvReader::new(lookup);
        let environment = read.environment();
        let config = Self {
            events_tables: read.events_tables(),
            queue_urls: read.queue_urls(),
            signing_secrets: PerProvider::new(|provider| {
                let arns = signing_secret_arns(provider);
                read.secrets(&environment, arns, &provider.variable("WEBHOOK_SECRET"))
            }),
            sealer: read.sealer(&environment),
            // We promise that a revoked secret is refused within 15 minutes; above 900 s that would be untrue.
            secrets_ttl: Duration::from_secs(read.number("SECRETS_TTL_SECONDS", 300, 1..=900)),
            // Stripe and Lob recommend 300 s. With more, somebody who recorded a delivery could send it again for
            // longer (replay attack).
            signature_tolerance: Duration::from_secs(read.number(
                "SIGNATURE_TOLERANCE_SECONDS",
                300,
                1..=300,
            )),
            type_metrics: read.boolean("TYPE_METRICS", true),
            // At most 1,000,000, the number always fits.
            account_rate_limit: u32::try_from(read.number("ACCOUNT_RATE_LIMIT", 0, 0..=1_000_000))
                .unwrap_or_default(),
            environment,
        };
        read.finish(config)
    }
}

/// The variables with the ARNs of the secrets that hold a provider's signing secret, each with the events that it proves.
fn signing_secret_arns(provider: ProviderId) -> Vec<(String, KeyScope)> {
    match SecretKind::signing_of(provider).holder() {
        SecretHolder::EndpointSecrets => [
            ("WEBHOOK_SECRET_ARN", KeyScope::ConnectedAccounts),
            ("PLATFORM_WEBHOOK_SECRET_ARN", KeyScope::Platform),
        ]
        .map(|(suffix, scope)| (provider.variable(suffix), scope))
        .into(),
        SecretHolder::InboundSecret | SecretHolder::AppSecret => {
            vec![("INBOUND_SECRETS_ARN".to_owned(), KeyScope::AllEvents)]
        }
    }
}

/// A provider's worker: `stripe-worker` and so on.
#[derive(Debug)]
pub struct WorkerConfig {
    pub environment: EnvironmentConfig,
    /// `STRIPE_EVENTS_TABLE` and so on.
    pub events_table: String,
    /// The public keys that check the events' seals.
    pub seal_keys: SecretSource,
    /// The key of the states' seals.
    pub state_seal: SecretSource,
    /// `ENTITIES_TABLE`
    pub entities_table: String,
    /// Of the kinds that the provider's events change.
    pub application_tables: ApplicationTables,
    pub row_rules: RowRules,
    pub order_ids: OrderIdRules,
    /// `MAX_RECEIVES`: after so many receives the queue moves a message to the dead-letter queue, so before that the
    /// worker writes the event `failed`.
    pub receives_max: u32,
}

impl WorkerConfig {
    pub fn from_env(provider: ProviderId, lookup: &EnvLookup<'_>) -> Result<Self, ConfigError> {
        let mut read = EnvReader::new(lookup);
        let scope = event_scope(provider);
        let environment = read.environment();
        let config = Self {
            seal_keys: read.seal_keys(&environment),
            state_seal: read.state_seal(&environment),
            environment,
            events_table: read.required(&provider.variable("EVENTS_TABLE")),
            entities_table: read.required("ENTITIES_TABLE"),
            application_tables: read.application_tables(scope.kinds),
            row_rules: read.row_rules(),
            order_ids: read.order_ids(),
            receives_max: u32::try_from(read.number(
                "MAX_RECEIVES",
                RECEIVES_MAX.into(),
                1..=1_000,
            ))
            .unwrap_or(RECEIVES_MAX),
        };
        read.finish(config)
    }
}

/// `cleanup-failed-payments`.
#[derive(Debug)]
pub struct CleanupConfig {
    pub environment: EnvironmentConfig,
    pub events_tables: PerProvider<String>,
    pub entities_table: String,
    pub application_tables: ApplicationTables,
    pub row_rules: RowRules,
    pub order_ids: OrderIdRules,
    pub jobs_table: String,
    pub queue_urls: PerProvider<String>,
    /// The private key that seals the events which `reconcile` stores.
    pub sealer: SecretSource,
    /// The public keys that check the events' seals.
    pub seal_keys: SecretSource,
    /// The key of the states' seals.
    pub state_seal: SecretSource,
    /// `STRIPE_SECRET_KEY` if it is set, else `APP_SECRETS_ARN`.
    pub stripe_key: SecretSource,
    /// `CLEANUP_FAILED_PAYMENT_MINUTES`: how long ago the last attempt must have failed before the order is cancelled.
    pub failed_payment_age: Duration,
    /// `PROOF_SAMPLE_PERCENT`: about how many of all states the nightly proof proves; with 0 it proves none.
    pub proof_sample_percent: u32,
    /// `STRIPE_API_BASE`, without a slash at the end.
    pub stripe_api_base: String,
}

impl CleanupConfig {
    pub fn from_env(lookup: &EnvLookup<'_>) -> Result<Self, ConfigError> {
        let mut read = EnvReader::new(lookup);
        let environment = read.environment();
        let config = Self {
            events_tables: read.events_tables(),
            entities_table: read.required("ENTITIES_TABLE"),
            application_tables: read.application_tables(ENTITY_SCHEMAS),
            row_rules: read.row_rules(),
            order_ids: read.order_ids(),
            jobs_table: read.required("JOBS_TABLE"),
            queue_urls: read.queue_urls(),
            sealer: read.sealer(&environment),
            seal_keys: read.seal_keys(&environment),
            state_seal: read.state_seal(&environment),
            stripe_key: read.stripe_key(&environment),
            // At most 30 days, because Stripe lists events for 30 days.
            failed_payment_age: Duration::from_secs(
                60 * read.number("CLEANUP_FAILED_PAYMENT_MINUTES", 60, 1..=43_200),
            ),
            proof_sample_percent: read.percentage("PROOF_SAMPLE_PERCENT", 1),
            stripe_api_base: read.stripe_api_base(&environment),
            environment,
        };
        read.finish(config)
    }
}

/// `webhook-secret`.
#[derive(Debug)]
pub struct WebhookSecretConfig {
    pub environment: EnvironmentConfig,
    /// `APP_SECRETS_ARN`, the secret that contains Stripe's key.
    pub app_secrets_arn: String,
    /// `SEAL_ARN` and `SEAL_PUBLIC_ARN`, the secrets with the keys that seal stored events.
    pub seal_arn: String,
    pub seal_public_arn: String,
    /// `JOBS_TABLE`, which has the cursors of `reconcile`.
    pub jobs_table: String,
    /// `STRIPE_API_BASE`, without a slash at the end.
    pub stripe_api_base: String,
    /// `STACK_ID`, `STRIPE_WEBHOOK_URL`, `STRIPE_API_VERSION`, `STRIPE_WEBHOOK_SECRET_ARN` and
    /// `STRIPE_PLATFORM_WEBHOOK_SECRET_ARN`: the only endpoints that the function makes and changes.
    pub policy: RequestPolicy,
    /// `URL_SUFFIX`: `amazonaws.com`, or that of another partition.
    pub url_suffix: String,
    /// `AWS_ENDPOINT_URL`, which a deployed function does not have: the local AWS, which is answered as CloudFormation is.
    pub local_endpoint: Option<String>,
}

impl WebhookSecretConfig {
    pub fn from_env(lookup: &EnvLookup<'_>) -> Result<Self, ConfigError> {
        let mut read = EnvReader::new(lookup);
        let environment = read.environment();
        let config = Self {
            app_secrets_arn: read.required_arn("APP_SECRETS_ARN"),
            seal_arn: read.required_arn("SEAL_ARN"),
            seal_public_arn: read.required_arn("SEAL_PUBLIC_ARN"),
            jobs_table: read.required("JOBS_TABLE"),
            stripe_api_base: read.stripe_api_base(&environment),
            policy: RequestPolicy {
                stack_id: read.required("STACK_ID"),
                url: read.required("STRIPE_WEBHOOK_URL"),
                api_version: read.required("STRIPE_API_VERSION"),
                endpoints: vec![
                    StackEndpoint {
                        logical_id: CONNECT_ENDPOINT,
                        connect: true,
                        secret_arn: read.required_arn("STRIPE_WEBHOOK_SECRET_ARN"),
                    },
                    StackEndpoint {
                        logical_id: PLATFORM_ENDPOINT,
                        connect: false,
                        secret_arn: read.required_arn("STRIPE_PLATFORM_WEBHOOK_SECRET_ARN"),
                    },
                ],
            },
            url_suffix: read.required("URL_SUFFIX"),
            local_endpoint: read.optional_url("AWS_ENDPOINT_URL"),
            environment,
        };
        read.finish(config)
    }

    /// The source of Stripe's key, for `secrets::read_stripe_key`.
    pub fn stripe_key(&self) -> SecretSource {
        SecretSource {
            variable: "APP_SECRETS_ARN".to_owned(),
            location: SecretLocation::Arn(self.app_secrets_arn.clone()),
        }
    }
}

/// `VERSION_COLUMN`, `ADOPTED_BEFORE` and `ACCEPT_CHECKOUT_ADJUSTMENTS`, for the operator's tool, which knows the parameters of the stack.
pub fn read_row_rules(lookup: &EnvLookup<'_>) -> Result<RowRules, ConfigError> {
    let mut read = EnvReader::new(lookup);
    let rules = read.row_rules();
    read.finish(rules)
}

/// `ORDER_ID_KEYS` and `ORDER_ID_PATTERN`, for the operator's tool.
pub fn read_order_ids(lookup: &EnvLookup<'_>) -> Result<OrderIdRules, ConfigError> {
    let mut read = EnvReader::new(lookup);
    let rules = read.order_ids();
    read.finish(rules)
}

/// Only `LOG_LEVEL`, because logging starts before the rest is read; `info` if it is missing or malformed.
pub fn read_log_level(lookup: &EnvLookup<'_>) -> LevelFilter {
    EnvReader::new(lookup).log_level()
}

/// Only `APP_NAME` and `ENV`, for the same reason; empty if they are missing, and then the start is refused later.
pub fn read_environment_name(lookup: &EnvLookup<'_>) -> (String, String) {
    let mut read = EnvReader::new(lookup);
    (read.required("APP_NAME"), read.required("ENV"))
}

/// Collects faults while it reads. After a fault it continues with an empty value, which `finish` never returns.
pub(crate) struct EnvReader<'a> {
    lookup: &'a EnvLookup<'a>,
    faults: Vec<String>,
}

impl<'a> EnvReader<'a> {
    pub(crate) fn new(lookup: &'a EnvLookup<'a>) -> Self {
        Self {
            lookup,
            faults: Vec::new(),
        }
    }

    pub(crate) fn finish<T>(mut self, value: T) -> Result<T, ConfigError> {
        if self.faults.is_empty() {
            return Ok(value);
        }
        // `sam local invoke` sets a reference to another resource to its logical id, and a condition to nothing.
        if self.optional("AWS_SAM_LOCAL").as_deref() == Some("true") {
            self.fault(
                "`sam local invoke` knows no names of other resources: pass --env-vars events/env.json"
                    .into(),
            );
        }
        Err(ConfigError {
            faults: self.faults,
        })
    }

    /// An empty variable counts as not set, because a template cannot leave a variable out.
    pub(crate) fn optional(&mut self, name: &str) -> Option<String> {
        (self.lookup.0)(name).filter(|value| !value.trim().is_empty())
    }

    pub(crate) fn required(&mut self, name: &str) -> String {
        let value = (self.lookup.0)(name);
        match &value {
            None => self.fault(format!("{name} is missing")),
            Some(text) if text.trim().is_empty() => self.fault(format!("{name} is empty")),
            Some(text) if text.contains(char::is_whitespace) => {
                self.fault(format!("{name} must not contain white space"));
            }
            Some(_) => {}
        }
        value.unwrap_or_default()
    }

    fn application_tables(&mut self, schemas: &[EntitySchema]) -> ApplicationTables {
        let mut read = |schema: &EntitySchema| self.required(&table_variable(schema));
        schemas
            .iter()
            .map(|schema| (schema.table, read(schema)))
            .collect()
    }

    /// `VERSION_COLUMN`: the column of billhook's version in the application's rows; `version` if it is not set.
    /// `ADOPTED_BEFORE`: rows that the application made before this time are adopted; none are if it is not set.
    /// `ACCEPT_CHECKOUT_ADJUSTMENTS`: whether Checkout's own discount, shipping and tax are accepted; they are if it is not
    /// set.
    fn row_rules(&mut self) -> RowRules {
        let mut rules = RowRules::default();
        if let Some(name) = self.optional("VERSION_COLUMN") {
            match VersionColumn::parse(&name) {
                Ok(column) => rules.version_column = column,
                Err(invalid) => self.fault(format!("VERSION_COLUMN {invalid}")),
            }
        }
        if let Some(text) = self.optional("ADOPTED_BEFORE") {
            match Timestamp::parse(&text) {
                Ok(before) => rules.adopted_before = Some(before),
                Err(_) => self.fault(format!(
                    "ADOPTED_BEFORE must be a time in RFC 3339, such as 2026-11-30T00:00:00Z, got {text:?}"
                )),
            }
        }
        rules.refuses_adjustments = !self.boolean("ACCEPT_CHECKOUT_ADJUSTMENTS", true);
        rules
    }

    /// `ORDER_ID_KEYS`: the metadata keys that name an order, separated by commas. `ORDER_ID_PATTERN`: a regular expression
    /// for the ids that the application issues; without it, every id that can be one is an order's.
    fn order_ids(&mut self) -> OrderIdRules {
        let mut rules = OrderIdRules::default();
        if let Some(keys) = self.optional("ORDER_ID_KEYS") {
            match rules.clone().with_keys(&keys) {
                Ok(with_keys) => rules = with_keys,
                Err(invalid) => self.fault(format!("ORDER_ID_KEYS {invalid}")),
            }
        }
        if let Some(pattern) = self.optional("ORDER_ID_PATTERN") {
            match rules.clone().with_pattern(&pattern) {
                Ok(with_pattern) => rules = with_pattern,
                Err(invalid) => self.fault(format!("ORDER_ID_PATTERN {invalid}")),
            }
        }
        rules
    }

    pub(crate) fn optional_url(&mut self, name: &str) -> Option<String> {
        let url = self.optional(name)?;
        self.check_url(name, &url);
        Some(url.trim_end_matches('/').to_owned())
    }

    pub(crate) fn fault(&mut self, fault: String) {
        self.faults.push(fault);
    }

    fn check_url(&mut self, name: &str, url: &str) {
        let rest = url
            .strip_prefix("https://")
            .or_else(|| url.strip_prefix("http://"));
        if rest.is_none_or(|rest| rest.is_empty() || rest.contains(char::is_whitespace)) {
            self.fault(format!("{name} must begin with https:// or http://"));
        }
    }

    fn environment(&mut self) -> EnvironmentConfig {
        if self
            .optional("ENABLE_BILLING_STREAM")
            .is_some_and(|value| value != "false")
        {
            self.fault(
                "ENABLE_BILLING_STREAM must be false: there is no billing stream yet".into(),
            );
        }
        EnvironmentConfig {
            app_name: self.required("APP_NAME"),
            env: self.required("ENV"),
            live: self.live_mode(),
            log_level: self.log_level(),
        }
    }

    fn boolean(&mut self, name: &str, default: bool) -> bool {
        match self.optional(name).as_deref() {
            None => default,
            Some("true") => true,
            Some("false") => false,
            Some(other) => {
                self.fault(format!("{name} must be true or false, got {other:?}"));
                default
            }
        }
    }

    fn live_mode(&mut self) -> bool {
        match self.optional("LIVE_MODE").as_deref() {
            Some("true") => true,
            Some("false") => false,
            Some(_) => {
                self.fault("LIVE_MODE must be true or false".into());
                false
            }
            None => {
                self.fault("LIVE_MODE is missing".into());
                false
            }
        }
    }

    fn log_level(&mut self) -> LevelFilter {
        let text = self.optional("LOG_LEVEL").unwrap_or_default();
        match text.to_ascii_lowercase().as_str() {
            "error" => LevelFilter::ERROR,
            "warn" => LevelFilter::WARN,
            "" | "info" => LevelFilter::INFO,
            _ => {
                self.fault("LOG_LEVEL must be error, warn or info".into());
                LevelFilter::INFO
            }
        }
    }

    fn number(&mut self, name: &str, default: u64, allowed: RangeInclusive<u64>) -> u64 {
        let Some(text) = self.optional(name) else {
            return default;
        };
        match text.parse() {
            Ok(number) if allowed.contains(&number) => number,
            _ => {
                let (least, most) = (allowed.start(), allowed.end());
                self.fault(format!(
                    "{name} must be a whole number from {least} to {most}, got {text:?}"
                ));
                default
            }
        }
    }

    fn percentage(&mut self, name: &str, default: u64) -> u32 {
        let percent = self.number(name, default, 0..=100);
        // Of at most 100, the number always fits.
        u32::try_from(percent).unwrap_or_default()
    }

    fn events_tables(&mut self) -> PerProvider<String> {
        PerProvider::new(|provider| self.required(&provider.variable("EVENTS_TABLE")))
    }

    fn queue_urls(&mut self) -> PerProvider<String> {
        PerProvider::new(|provider| self.queue_url(&provider.variable("EVENTS_QUEUE_URL")))
    }

    /// Only a FIFO queue accepts the message group and the deduplication id that we send.
    fn queue_url(&mut self, name: &str) -> String {
        let url = self.required(name);
        if !url.is_empty() {
            self.check_url(name, &url);
            if !url.ends_with(".fifo") {
                self.fault(format!(
                    "{name} must be the URL of a FIFO queue, which ends with .fifo"
                ));
            }
        }
        url
    }

    fn stripe_api_base(&mut self, environment: &EnvironmentConfig) -> String {
        let name = "STRIPE_API_BASE";
        let Some(url) = self.optional_url(name) else {
            return STRIPE_API.to_owned();
        };
        if environment.live && url != STRIPE_API {
            self.fault(format!("{name} must be {STRIPE_API} when LIVE_MODE=true: any other host would be given the live key"));
        }
        url
    }

    fn secrets(
        &mut self,
        environment: &EnvironmentConfig,
        arns: Vec<(String, KeyScope)>,
        here: &str,
    ) -> Vec<SigningSource> {
        let by_arn = arns.into_iter().filter_map(|(name, scope)| {
            let secret = self.by_arn(&name)?;
            Some(SigningSource { secret, scope })
        });
        let mut sources: Vec<_> = by_arn.collect();
        let inline = self.read_inline_secret(environment, here);
        sources.extend(inline.map(|secret| SigningSource {
            secret,
            scope: KeyScope::AllEvents,
        }));
        sources
    }

    fn stripe_key(&mut self, environment: &EnvironmentConfig) -> SecretSource {
        self.required_secret(environment, "APP_SECRETS_ARN", "STRIPE_SECRET_KEY")
    }

    /// `SEAL_ARN`, the secret with the private key that seals events, or `SEAL_PRIVATE_KEY`.
    fn sealer(&mut self, environment: &EnvironmentConfig) -> SecretSource {
        self.required_secret(environment, "SEAL_ARN", "SEAL_PRIVATE_KEY")
    }

    /// `SEAL_PUBLIC_ARN`, the secret with the public keys that check seals, or `SEAL_PUBLIC_KEYS`.
    fn seal_keys(&mut self, environment: &EnvironmentConfig) -> SecretSource {
        self.required_secret(environment, "SEAL_PUBLIC_ARN", "SEAL_PUBLIC_KEYS")
    }

    /// `STATE_SEAL_ARN`, the secret with the key of the states' seals, or `STATE_SEAL_KEYS`.
    fn state_seal(&mut self, environment: &EnvironmentConfig) -> SecretSource {
        self.required_secret(environment, "STATE_SEAL_ARN", "STATE_SEAL_KEYS")
    }

    fn required_secret(
        &mut self,
        environment: &EnvironmentConfig,
        arn: &str,
        here: &str,
    ) -> SecretSource {
        let by_arn = self.by_arn(arn);
        let source = self.read_inline_secret(environment, here).or(by_arn);
        source.unwrap_or_else(|| {
            self.fault(format!("{arn} or {here} must be set"));
            SecretSource {
                variable: arn.to_owned(),
                location: SecretLocation::Arn(String::new()),
            }
        })
    }

    /// Neither the fault nor a later log line repeats what is no ARN: it may be the secret itself.
    fn required_arn(&mut self, name: &str) -> String {
        let arn = self.required(name);
        let is_one_word = !arn.is_empty() && !arn.contains(char::is_whitespace);
        if is_one_word && !arn.starts_with("arn:") && !arn.starts_with("ssm:") {
            self.fault(format!("{name} must be the ARN of a secret, or ssm:/path"));
        }
        arn
    }

    fn by_arn(&mut self, variable: &str) -> Option<SecretSource> {
        self.optional(variable)?;
        let location = SecretLocation::Arn(self.required_arn(variable));
        Some(SecretSource {
            variable: variable.to_owned(),
            location,
        })
    }

    fn read_inline_secret(
        &mut self,
        environment: &EnvironmentConfig,
        variable: &str,
    ) -> Option<SecretSource> {
        let value = self.optional(variable)?;
        if environment.live {
            self.fault(format!(
                "{variable} must not be set when LIVE_MODE=true: a live secret belongs in Secrets Manager"
            ));
        }
        let location = SecretLocation::Here(SecretString::from(value));
        Some(SecretSource {
            variable: variable.to_owned(),
            location,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INGRESS: &[(&str, &str)] = &[
        ("APP_NAME", "billhook"),
        ("ENV", "test"),
        ("LIVE_MODE", "false"),
        ("STRIPE_EVENTS_TABLE", "stripe-events"),
        ("LOB_EVENTS_TABLE", "lob-events"),
        ("STRIPE_EVENTS_QUEUE_URL", "http://localhost/1/stripe.fifo"),
        ("LOB_EVENTS_QUEUE_URL", "http://localhost/1/lob.fifo"),
        ("INBOUND_SECRETS_ARN", "arn:inbound"),
        ("STRIPE_WEBHOOK_SECRET_ARN", "arn:stripe"),
        ("SEAL_ARN", "arn:seal"),
    ];

    /// The variables of ingress with these `(name, value)` changes; the value `-` removes the variable.
    fn ingress(changed: &[(&str, &str)]) -> Result<IngressConfig, String> {
        let lookup = |name: &str| {
            let all = changed.iter().chain(INGRESS);
            let value = all.into_iter().find(|(known, _)| *known == name)?.1;
            (value != "-").then(|| value.to_owned())
        };
        IngressConfig::from_env(&EnvLookup(&lookup)).map_err(|error| error.to_string())
    }

    #[test]
    fn defaults_fill_what_may_be_left_out() {
        let config = ingress(&[("LOG_LEVEL", "")]).unwrap();
        assert_eq!(config.secrets_ttl, Duration::from_secs(300));
        assert_eq!(config.signature_tolerance, Duration::from_secs(300));
        assert_eq!(config.environment.log_level, LevelFilter::INFO);
        assert_eq!(config.signing_secrets.of(ProviderId::Stripe).len(), 1);
    }

    #[test]
    fn a_provider_without_a_secret_is_not_used() {
        for (variable, unused, used) in [
            (
                "STRIPE_WEBHOOK_SECRET_ARN",
                ProviderId::Stripe,
                ProviderId::Lob,
            ),
            ("INBOUND_SECRETS_ARN", ProviderId::Lob, ProviderId::Stripe),
        ] {
            let config = ingress(&[(variable, "-")]).unwrap();
            assert!(config.signing_secrets.of(unused).is_empty());
            assert_eq!(config.signing_secrets.of(used).len(), 1);
        }
    }

    #[test]
    fn each_fault_names_its_variable_and_the_limit() {
        let table = [
            ("ENV", "-", "ENV is missing"),
            ("ENV", " ", "ENV is empty"),
            (
                "LOB_EVENTS_TABLE",
                "a b",
                "LOB_EVENTS_TABLE must not contain white space",
            ),
            ("LIVE_MODE", "yes", "LIVE_MODE must be true or false"),
            ("LIVE_MODE", "-", "LIVE_MODE is missing"),
            ("LOG_LEVEL", "loud", "LOG_LEVEL must be error, warn or info"),
            (
                "ENABLE_BILLING_STREAM",
                "true",
                "ENABLE_BILLING_STREAM must be false: there is no billing stream yet",
            ),
            (
                "SECRETS_TTL_SECONDS",
                "901",
                "SECRETS_TTL_SECONDS must be a whole number from 1 to 900, got \"901\"",
            ),
            (
                "SIGNATURE_TOLERANCE_SECONDS",
                "0",
                "SIGNATURE_TOLERANCE_SECONDS must be a whole number from 1 to 300, got \"0\"",
            ),
            (
                "LOB_EVENTS_QUEUE_URL",
                "https://x/lob",
                "LOB_EVENTS_QUEUE_URL must be the URL of a FIFO queue, which ends with .fifo",
            ),
            (
                "LOB_EVENTS_QUEUE_URL",
                "lob.fifo",
                "LOB_EVENTS_QUEUE_URL must begin with https:// or http://",
            ),
            (
                "INBOUND_SECRETS_ARN",
                "arn: app",
                "INBOUND_SECRETS_ARN must not contain white space",
            ),
        ];
        for (name, value, fault) in table {
            let error = ingress(&[(name, value)]).unwrap_err();
            assert_eq!(error, format!("configuration refused: {fault}"));
        }
    }

    #[test]
    fn the_sample_of_the_nightly_proof_is_a_percentage() {
        let read = |percent: &'static str| {
            let lookup = move |name: &str| {
                Some(match name {
                    "PROOF_SAMPLE_PERCENT" => percent.to_owned(),
                    "LIVE_MODE" | "ENABLE_BILLING_STREAM" => "false".to_owned(),
                    "STRIPE_API_BASE" | "LOG_LEVEL" | "CLEANUP_FAILED_PAYMENT_MINUTES" => {
                        String::new()
                    }
                    "VERSION_COLUMN"
                    | "ADOPTED_BEFORE"
                    | "ACCEPT_CHECKOUT_ADJUSTMENTS"
                    | "ORDER_ID_KEYS"
                    | "ORDER_ID_PATTERN" => String::new(),
                    queue if queue.ends_with("_QUEUE_URL") => "https://x/q.fifo".to_owned(),
                    "APP_SECRETS_ARN" | "SEAL_ARN" | "SEAL_PUBLIC_ARN" | "STATE_SEAL_ARN" => {
                        "arn:app".to_owned()
                    }
                    "SEAL_PRIVATE_KEY" | "SEAL_PUBLIC_KEYS" | "STATE_SEAL_KEYS" => String::new(),
                    _ => "x".to_owned(),
                })
            };
            let config = CleanupConfig::from_env(&EnvLookup(&lookup));
            config
                .map(|config| config.proof_sample_percent)
                .map_err(|error| error.to_string())
        };
        for (percent, expected) in [("", 1), ("0", 0), ("100", 100)] {
            assert_eq!(read(percent), Ok(expected), "{percent}");
        }
        for percent in ["101", "-1", "1.5", "one"] {
            let refused = format!(
                "configuration refused: PROOF_SAMPLE_PERCENT must be a whole number from 0 to 100, got {percent:?}"
            );
            assert_eq!(read(percent), Err(refused));
        }
    }

    #[test]
    fn what_names_an_order_is_read_and_refused_by_its_variable() {
        let read = |keys: &'static str, pattern: &'static str| {
            let lookup = move |name: &str| match name {
                "ORDER_ID_KEYS" => Some(keys.to_owned()),
                "ORDER_ID_PATTERN" => Some(pattern.to_owned()),
                _ => None,
            };
            let rules = read_order_ids(&EnvLookup(&lookup));
            rules.map_err(|error| error.to_string())
        };
        let find = |keys, pattern, key: &str, id: &'static str| {
            let rules = read(keys, pattern).unwrap();
            rules.find_order(|of| (of == key).then_some(id)).is_some()
        };
        assert!(find("", "", "order_id", "1001"));
        assert!(find("shopOrder", "", "shopOrder", "1001"));
        assert!(!find("shopOrder", "", "order_id", "1001"));
        assert!(!find("", "ord_.*", "order_id", "1001"));
        assert!(find("", "ord_.*", "order_id", "ord_1"));
        assert_eq!(
            read("a,,b", "").unwrap_err(),
            "configuration refused: ORDER_ID_KEYS has an empty key"
        );
        let refused = read("", "(").unwrap_err();
        assert!(
            refused.starts_with(
                "configuration refused: ORDER_ID_PATTERN is not a regular expression: "
            ),
            "{refused}"
        );
    }

    #[test]
    fn the_rules_of_rows_are_read_and_refused_by_their_variable() {
        let read = |version: &'static str, adopted: &'static str| {
            let lookup = move |name: &str| match name {
                "VERSION_COLUMN" => Some(version.to_owned()),
                "ADOPTED_BEFORE" => Some(adopted.to_owned()),
                _ => None,
            };
            read_row_rules(&EnvLookup(&lookup)).map_err(|error| error.to_string())
        };
        let accepts = |word: &'static str| {
            let lookup =
                move |name: &str| (name == "ACCEPT_CHECKOUT_ADJUSTMENTS").then(|| word.to_owned());
            let rules = read_row_rules(&EnvLookup(&lookup));
            rules
                .map(|rules| !rules.refuses_adjustments)
                .map_err(|error| error.to_string())
        };
        for (word, expected) in [("", true), ("true", true), ("false", false)] {
            assert_eq!(accepts(word), Ok(expected), "{word}");
        }
        let refused =
            "configuration refused: ACCEPT_CHECKOUT_ADJUSTMENTS must be true or false, got \"no\"";
        assert_eq!(accepts("no"), Err(refused.to_owned()));
        assert_eq!(read("", ""), Ok(RowRules::default()));
        let rules = read("billhookVersion", "2026-11-30T01:00:00+01:00").unwrap();
        assert_eq!(rules.version_column.as_str(), "billhookVersion");
        let before = Timestamp::parse("2026-11-30T00:00:00Z").unwrap();
        assert_eq!(rules.adopted_before, Some(before));
        for (version, adopted, fault) in [
            (
                "status",
                "",
                "VERSION_COLUMN must not be status, which is another column of billhook's",
            ),
            (
                "a-b",
                "",
                "VERSION_COLUMN must be a letter and then at most 63 letters, digits or underscores, got \"a-b\"",
            ),
            (
                "",
                "2026-11-30",
                "ADOPTED_BEFORE must be a time in RFC 3339, such as 2026-11-30T00:00:00Z, got \"2026-11-30\"",
            ),
            (
                "",
                "2026-02-29T00:00:00Z",
                "ADOPTED_BEFORE must be a time in RFC 3339, such as 2026-11-30T00:00:00Z, got \"2026-02-29T00:00:00Z\"",
            ),
        ] {
            let refused = read(version, adopted).unwrap_err();
            assert_eq!(refused, format!("configuration refused: {fault}"));
        }
    }

    #[test]
    fn all_faults_are_told_together() {
        let error = WebhookSecretConfig::from_env(&EnvLookup(&|_| None)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "configuration refused: APP_NAME is missing; ENV is missing; LIVE_MODE is missing; \
             APP_SECRETS_ARN is missing; SEAL_ARN is missing; SEAL_PUBLIC_ARN is missing; JOBS_TABLE is missing; STACK_ID is missing; STRIPE_WEBHOOK_URL is missing; \
             STRIPE_API_VERSION is missing; STRIPE_WEBHOOK_SECRET_ARN is missing; \
             STRIPE_PLATFORM_WEBHOOK_SECRET_ARN is missing; URL_SUFFIX is missing"
        );
        let other = WorkerConfig::from_env(ProviderId::Lob, &EnvLookup(&|_| None)).unwrap_err();
        let faults = combine_faults::<(), ()>(Err(error), Err(other))
            .unwrap_err()
            .faults;
        assert_eq!(faults.len(), 21);
    }

    #[test]
    fn a_live_stage_refuses_secrets_in_variables_without_repeating_them() {
        let direct = ("STRIPE_WEBHOOK_SECRET", "whsec_canary");
        let config = ingress(&[direct]).unwrap();
        assert_eq!(config.signing_secrets.of(ProviderId::Stripe).len(), 2);
        assert!(!format!("{config:?}").contains("canary"));

        let error = ingress(&[direct, ("LIVE_MODE", "true")]).unwrap_err();
        assert!(
            error.contains("STRIPE_WEBHOOK_SECRET must not be set"),
            "{error}"
        );
        assert!(!error.contains("canary"));
    }

    /// A person may take the variable for the secret itself.
    #[test]
    fn a_variable_for_an_arn_refuses_anything_else_without_repeating_it() {
        let refused = |name: &str| {
            format!("configuration refused: {name} must be the ARN of a secret, or ssm:/path")
        };
        let names = [
            "INBOUND_SECRETS_ARN",
            "SEAL_ARN",
            "STRIPE_WEBHOOK_SECRET_ARN",
            "STRIPE_PLATFORM_WEBHOOK_SECRET_ARN",
        ];
        for name in names {
            for value in [
                "AppSecret",
                "whsec_canary",
                "sk_test_canary",
                "{\"a\":\"canary\"}",
            ] {
                assert_eq!(ingress(&[(name, value)]).unwrap_err(), refused(name));
            }
            for value in [
                "arn:aws:secretsmanager:eu-west-1:1:secret:a",
                "ssm:/billhook/a",
            ] {
                assert!(ingress(&[(name, value)]).is_ok(), "{name}={value}");
            }
        }
        // With white space it is refused too, by the older rule, and not repeated either.
        let error = ingress(&[("INBOUND_SECRETS_ARN", "sk_test canary")]).unwrap_err();
        assert!(!error.contains("canary"), "{error}");

        let lookup = |name: &str| {
            Some(
                if name.ends_with("_ARN") {
                    "canary"
                } else {
                    "false"
                }
                .to_owned(),
            )
        };
        let faults = [
            WebhookSecretConfig::from_env(&EnvLookup(&lookup)).map(drop),
            CleanupConfig::from_env(&EnvLookup(&lookup)).map(drop),
        ];
        for fault in faults {
            let error = fault.unwrap_err().to_string();
            assert!(error.contains("APP_SECRETS_ARN must be the ARN"), "{error}");
            assert!(!error.contains("canary"), "{error}");
        }
    }

    #[test]
    fn sam_local_invoke_is_told_how_to_pass_the_names_of_other_resources() {
        let as_sam_passes = [
            ("AWS_SAM_LOCAL", "true"),
            ("STRIPE_EVENTS_QUEUE_URL", "StripeEventsQueue"),
            ("INBOUND_SECRETS_ARN", ""),
        ];
        assert_eq!(
            ingress(&as_sam_passes).unwrap_err(),
            "configuration refused: STRIPE_EVENTS_QUEUE_URL must begin with https:// or http://; \
             STRIPE_EVENTS_QUEUE_URL must be the URL of a FIFO queue, which ends with .fifo; \
             `sam local invoke` knows no names of other resources: pass --env-vars events/env.json"
        );
        assert!(ingress(&[("AWS_SAM_LOCAL", "true")]).is_ok());
    }

    #[test]
    fn nothing_but_stripe_is_called_as_stripe_in_a_live_environment() {
        let lookup = |live: &'static str, base: &'static str| {
            move |name: &str| {
                Some(
                    match name {
                        "LIVE_MODE" => live,
                        "STRIPE_API_BASE" => base,
                        "STRIPE_SECRET_KEY" | "SEAL_PRIVATE_KEY" | "SEAL_PUBLIC_KEYS"
                        | "STATE_SEAL_KEYS" => {
                            return None;
                        }
                        "ENABLE_BILLING_STREAM" => "false",
                        "LOG_LEVEL" => "warn",
                        "AWS_ENDPOINT_URL" => "http://localhost:4566",
                        "CLEANUP_FAILED_PAYMENT_MINUTES" | "PROOF_SAMPLE_PERCENT" => "1",
                        "VERSION_COLUMN"
                        | "ADOPTED_BEFORE"
                        | "ACCEPT_CHECKOUT_ADJUSTMENTS"
                        | "ORDER_ID_KEYS"
                        | "ORDER_ID_PATTERN" => "",
                        queue if queue.ends_with("_QUEUE_URL") => "https://x/q.fifo",
                        arn if arn.ends_with("_ARN") => "arn:app",
                        _ => "x",
                    }
                    .to_owned(),
                )
            }
        };
        let read = |live, base| {
            let lookup = lookup(live, base);
            let endpoint = WebhookSecretConfig::from_env(&EnvLookup(&lookup));
            let cleanup = CleanupConfig::from_env(&EnvLookup(&lookup));
            [
                endpoint.map(|config| config.stripe_api_base),
                cleanup.map(|config| config.stripe_api_base),
            ]
        };
        for (live, base, called) in [
            ("false", "http://localhost:12111/", "http://localhost:12111"),
            ("true", "https://api.stripe.com/", STRIPE_API),
            ("true", "", STRIPE_API),
        ] {
            for read in read(live, base) {
                assert_eq!(read.unwrap(), called, "{live} {base}");
            }
        }
        for base in [
            "http://api.stripe.com",
            "https://stripe.attacker.example",
            "https://api.stripe.com.attacker.example",
            "https://api.stripe.com@attacker.example",
            "https://api.stripe.com:8443",
        ] {
            for read in read("true", base) {
                let error = read.unwrap_err().to_string();
                assert!(
                    error.contains("STRIPE_API_BASE must be https://api.stripe.com when LIVE_MODE"),
                    "{base}: {error}"
                );
            }
        }
    }
}
