//! The few calls that billhook makes to Stripe.
//!
//! Guarantees: no call lasts longer than 3 × 10 s and the waits between; a repeat carries the same idempotency key,
//! which the caller names; no redirect is followed; errors and logs hold neither the key nor a signing secret.
//! It does not decide anything: what a state means is `billhook_core`'s business. The queue is the long retry.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use billhook_core::ports::Pause as _;
use billhook_core::provider::stripe::types::{API_VERSION, IntentStatus, SessionStatus};
use billhook_core::retry::Disposition;
use billhook_core::tasks::ports::EventsPage;
use reqwest::header::HeaderMap;
use reqwest::{Method, Response, StatusCode};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use tokio::time::Instant;

use crate::clock::SystemClock;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const TOTAL_TIMEOUT: Duration = Duration::from_secs(10);
/// Below the minute after which a frozen function's sockets are dead.
const IDLE_TIMEOUT: Duration = Duration::from_secs(50);
/// Waits before the second and the third try: Stripe's libraries begin at 0.5 s and double.
const RETRY_DELAYS: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(1)];
const PAGE_SIZE: &str = "100";
/// Stripe allows 16 endpoints in an account, and an intent has few sessions: one page holds them.
const PAGES_MAX: u32 = 5;
const MESSAGE_CHARS_MAX: usize = 200;

/// Stripe, called with one key.
#[derive(Clone, Debug)]
pub struct StripeClient {
    http: reqwest::Client,
    base: String,
    key: SecretString,
    retry_delays: [Duration; 2],
    pace: Option<Arc<RateLimiter>>,
}

/// Lets calls begin at even distances, however many want to.
#[derive(Debug)]
struct RateLimiter {
    distance: Duration,
    next: Mutex<Instant>,
}

impl RateLimiter {
    /// When the call that asks now begins. Time that nobody used is not saved up.
    fn next_slot(&self, now: Instant) -> Instant {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let mine = now.max(*next);
        *next = mine + self.distance;
        mine
    }
}

/// Why a call did not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum StripeError {
    /// A test key at a live stage, or the other way round.
    #[error("the stripe key is a {} key and the stage is {}", mode_name(!*.live_mode), mode_name(*.live_mode))]
    KeyOfOtherMode {
        /// What the stage wants.
        live_mode: bool,
    },
    /// Not `sk_live_…`, `rk_live_…`, `sk_test_…` or `rk_test_…`.
    #[error("the stripe key is no secret or restricted key")]
    NoKey,
    /// The HTTP client could not be made.
    #[error("cannot set up calls to stripe")]
    SetUp(#[source] reqwest::Error),
    /// No answer.
    #[error("{doing}: no answer from stripe")]
    Unreachable {
        /// What was being done, and to what.
        doing: String,
        /// Whether it may have happened all the same.
        may_have_happened: bool,
        /// Without its URL.
        #[source]
        source: reqwest::Error,
    },
    /// Stripe said no.
    #[error("{0}")]
    Refused(Box<StripeRefusal>),
    /// A success that cannot be read.
    #[error("{doing}: stripe's answer is not as documented (request {request_id})")]
    Unreadable {
        /// What was being done, and to what.
        doing: String,
        /// Whether something was to change.
        may_have_happened: bool,
        /// Stripe's id of the request.
        request_id: String,
    },
    /// More pages than anything of ours can have.
    #[error("{doing}: more than {PAGES_MAX} pages")]
    TooMany {
        /// What was being listed.
        doing: String,
    },
}

/// How Stripe said no.
#[derive(Debug, thiserror::Error)]
#[error("{doing}: stripe answered {status} {code} (request {request_id}){message}")]
pub struct StripeRefusal {
    /// What was being done, and to what.
    pub doing: String,
    /// The HTTP status.
    pub status: u16,
    /// Stripe's code, or its error type where there is none.
    pub code: String,
    /// Stripe's id of the request.
    pub request_id: String,
    /// Stripe's text after a colon, for 400 and 404 only and where it holds nothing like a secret; else empty.
    pub message: String,
    /// Whether something was to change.
    pub mutates: bool,
}

/// Lets `reqwest` speak TLS on ring, once for the process; whoever comes second finds it installed, which is as good.
pub fn install_tls() {
    rustls::crypto::ring::default_provider()
        .install_default()
        .ok();
}

fn mode_name(live: bool) -> &'static str {
    if live { "live" } else { "test" }
}

impl StripeError {
    /// What is left to do.
    pub fn disposition(&self) -> Disposition {
        match self {
            Self::KeyOfOtherMode { .. } | Self::NoKey | Self::SetUp(_) | Self::TooMany { .. } => {
                Disposition::Permanent
            }
            Self::Unreachable {
                may_have_happened, ..
            }
            | Self::Unreadable {
                may_have_happened, ..
            } => retry_unless_happened(*may_have_happened),
            Self::Refused(refusal) => match refusal.status {
                // A lock, or too many calls: nothing was begun.
                409 | 429 => Disposition::RetryLater,
                // "Treat 5xx as indeterminate."
                424 | 500.. => retry_unless_happened(refusal.mutates),
                _ => Disposition::Permanent,
            },
        }
    }

    fn refused(self, status: u16) -> Result<StripeRefusal, Self> {
        match self {
            Self::Refused(refusal) if refusal.status == status => Ok(*refusal),
            other => Err(other),
        }
    }
}

fn retry_unless_happened(may_have_happened: bool) -> Disposition {
    if may_have_happened {
        Disposition::OutcomeUnknown
    } else {
        Disposition::RetryLater
    }
}

/// An endpoint to be made.
#[derive(Clone, Debug)]
pub struct NewEndpoint<'a> {
    /// Where Stripe sends to.
    pub url: &'a str,
    /// Events of connected accounts, instead of the platform's own.
    pub connect: bool,
    /// Which events.
    pub enabled_events: &'a [String],
    /// The version they are rendered in.
    pub api_version: &'a str,
    /// What the dashboard shows.
    pub description: &'a str,
    /// Tags.
    pub metadata: &'a [(&'a str, &'a str)],
}

/// An endpoint as Stripe shows it after creation: without its secret.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct WebhookEndpoint {
    /// `we_…`
    pub id: String,
    /// Where Stripe sends to.
    pub url: String,
    /// Which events.
    pub enabled_events: Vec<String>,
    /// `enabled` or `disabled`.
    #[serde(default)]
    pub status: String,
    /// The version they are rendered in; the account's own where it is none.
    #[serde(default)]
    pub api_version: Option<String>,
    /// Tags.
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
}

/// An endpoint as Stripe shows it once.
#[derive(Clone, Debug, Deserialize)]
pub struct CreatedEndpoint {
    /// `we_…`
    pub id: String,
    /// `whsec_…`; whether a replayed answer still holds it is not documented.
    #[serde(default)]
    pub secret: Option<SecretText>,
}

/// A secret that can be read from JSON and not be printed.
#[derive(Clone, Debug, Deserialize)]
#[serde(from = "String")]
pub struct SecretText(pub SecretString);

impl From<String> for SecretText {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

/// Whether an object was there to be changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpdateResult {
    /// It is as asked for.
    Done,
    /// It is gone.
    Gone,
}

/// What became of a cancel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CancelResult {
    /// It is cancelled.
    Done,
    /// Its state does not allow it (`payment_intent_unexpected_state`): cancelled before, paid, on its way, or to be
    /// ended by its session.
    StateForbids(IntentStatus),
}

/// A `PaymentIntent`, as far as it is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetrievedIntent {
    /// `pi_…`
    pub id: String,
    /// Where it stands.
    pub status: IntentStatus,
}

/// A Checkout Session, as far as it is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetrievedSession {
    /// `cs_…`
    pub id: String,
    /// Where it stands.
    pub status: SessionStatus,
}

/// One call. `account` acts for a connected account; `idempotency_key` makes it one that changes something.
struct StripeCall<'a> {
    doing: String,
    method: Method,
    path: String,
    form: &'a [(&'a str, &'a str)],
    account: Option<&'a str>,
    idempotency_key: Option<&'a str>,
}

impl<'a> StripeCall<'a> {
    fn get(doing: String, path: String) -> Self {
        Self {
            doing,
            method: Method::GET,
            path,
            form: &[],
            account: None,
            idempotency_key: None,
        }
    }

    fn post(doing: String, path: String, idempotency_key: &'a str) -> Self {
        Self {
            method: Method::POST,
            idempotency_key: Some(idempotency_key),
            ..Self::get(doing, path)
        }
    }

    fn mutates(&self) -> bool {
        self.method != Method::GET
    }
}

impl StripeClient {
    /// Calls `base` with `key`, which must be a secret or restricted key of the stage's mode.
    pub fn new(base: &str, key: SecretString, live_mode: bool) -> Result<Self, StripeError> {
        let is = |mode: &str| {
            ["sk", "rk"]
                .iter()
                .any(|kind| key.expose_secret().starts_with(&format!("{kind}_{mode}_")))
        };
        match (is("live"), is("test")) {
            (false, false) => return Err(StripeError::NoKey),
            (is_live, _) if is_live != live_mode => {
                return Err(StripeError::KeyOfOtherMode { live_mode });
            }
            _ => {}
        }
        install_tls();
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(TOTAL_TIMEOUT)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(StripeError::SetUp)?;
        Ok(Self {
            http,
            base: base.trim_end_matches('/').to_owned(),
            key,
            retry_delays: RETRY_DELAYS,
            pace: None,
        })
    }

    /// The same, beginning no more calls in a second than this.
    #[must_use]
    pub fn with_rate_limit(self, calls_per_second: u32) -> Self {
        let pace = RateLimiter {
            distance: Duration::from_secs(1) / calls_per_second.max(1),
            next: Mutex::new(Instant::now()),
        };
        Self {
            pace: Some(Arc::new(pace)),
            ..self
        }
    }

    /// Makes an endpoint. The same key within 24 h answers for the endpoint it made before, gone or not.
    pub async fn create_webhook_endpoint(
        &self,
        new: &NewEndpoint<'_>,
        idempotency_key: &str,
    ) -> Result<CreatedEndpoint, StripeError> {
        let metadata: Vec<(String, &str)> = new
            .metadata
            .iter()
            .map(|(name, value)| (format!("metadata[{name}]"), *value))
            .collect();
        let mut form = vec![
            ("url", new.url),
            ("connect", if new.connect { "true" } else { "false" }),
            ("api_version", new.api_version),
            ("description", new.description),
        ];
        form.extend(
            new.enabled_events
                .iter()
                .map(|kind| ("enabled_events[]", kind.as_str())),
        );
        form.extend(metadata.iter().map(|(name, value)| (name.as_str(), *value)));
        let doing = format!("create a webhook endpoint for {}", new.url);
        let call = StripeCall::post(doing, "/v1/webhook_endpoints".to_owned(), idempotency_key);
        self.call(&StripeCall {
            form: &form,
            ..call
        })
        .await
    }

    /// Sets url and events, and enables the endpoint in case somebody disabled it.
    pub async fn update_webhook_endpoint(
        &self,
        id: &str,
        url: &str,
        enabled_events: &[String],
        idempotency_key: &str,
    ) -> Result<UpdateResult, StripeError> {
        let mut form = vec![("url", url), ("disabled", "false")];
        form.extend(
            enabled_events
                .iter()
                .map(|kind| ("enabled_events[]", kind.as_str())),
        );
        let path = format!("/v1/webhook_endpoints/{}", encode_path_segment(id));
        let call = StripeCall::post(
            format!("update webhook endpoint {id}"),
            path,
            idempotency_key,
        );
        match self
            .call::<WebhookEndpoint>(&StripeCall {
                form: &form,
                ..call
            })
            .await
        {
            Ok(_) => Ok(UpdateResult::Done),
            Err(error) => error.refused(404).map(|_| UpdateResult::Gone),
        }
    }

    /// Deletes an endpoint; one that is gone already is a success. Stripe takes no idempotency key here.
    pub async fn delete_webhook_endpoint(&self, id: &str) -> Result<(), StripeError> {
        #[derive(Deserialize)]
        struct DeletedObject {}
        let path = format!("/v1/webhook_endpoints/{}", encode_path_segment(id));
        let call = StripeCall {
            method: Method::DELETE,
            ..StripeCall::get(format!("delete webhook endpoint {id}"), path)
        };
        match self.call::<DeletedObject>(&call).await {
            Ok(DeletedObject {}) => Ok(()),
            Err(error) => error.refused(404).map(|_| ()),
        }
    }

    /// Every endpoint of the key's account and mode.
    pub async fn list_webhook_endpoints(&self) -> Result<Vec<WebhookEndpoint>, StripeError> {
        self.list_all(
            "list webhook endpoints",
            "/v1/webhook_endpoints",
            &[],
            None,
            |endpoint: &WebhookEndpoint| &endpoint.id,
        )
        .await
    }

    /// Reads an intent.
    pub async fn get_payment_intent(
        &self,
        id: &str,
        account: Option<&str>,
    ) -> Result<RetrievedIntent, StripeError> {
        let path = format!("/v1/payment_intents/{}", encode_path_segment(id));
        let call = StripeCall {
            account,
            ..StripeCall::get(format!("get payment intent {id}"), path)
        };
        self.call::<StatusObject>(&call)
            .await
            .map(RetrievedIntent::from)
    }

    /// Cancels an intent, as abandoned.
    pub async fn cancel_payment_intent(
        &self,
        id: &str,
        account: Option<&str>,
        idempotency_key: &str,
    ) -> Result<CancelResult, StripeError> {
        let doing = format!("cancel payment intent {id}");
        let path = format!("/v1/payment_intents/{}/cancel", encode_path_segment(id));
        let call = StripeCall {
            form: &[("cancellation_reason", "abandoned")],
            account,
            ..StripeCall::post(doing, path, idempotency_key)
        };
        match self.call::<StatusObject>(&call).await {
            Ok(_) => Ok(CancelResult::Done),
            Err(error) => {
                let refusal = error.refused(400)?;
                if refusal.code != "payment_intent_unexpected_state" {
                    return Err(StripeError::Refused(Box::new(refusal)));
                }
                // The error holds the intent as well, but perhaps from the first of two tries: ask.
                let intent = self.get_payment_intent(id, account).await?;
                Ok(CancelResult::StateForbids(intent.status))
            }
        }
    }

    /// Expires an open session and answers where it stands then: completed, if that was faster.
    pub async fn expire_checkout_session(
        &self,
        id: &str,
        account: Option<&str>,
        idempotency_key: &str,
    ) -> Result<SessionStatus, StripeError> {
        let path = format!("/v1/checkout/sessions/{}", encode_path_segment(id));
        let doing = format!("expire checkout session {id}");
        let call = StripeCall {
            account,
            ..StripeCall::post(doing, format!("{path}/expire"), idempotency_key)
        };
        let error = match self.call::<StatusObject>(&call).await {
            Ok(session) => return Ok(RetrievedSession::from(session).status),
            Err(error) => error,
        };
        // Stripe documents no code for a session that is not open, so its state decides.
        let refusal = error.refused(400)?;
        let call = StripeCall {
            account,
            ..StripeCall::get(format!("get checkout session {id}"), path)
        };
        match RetrievedSession::from(self.call::<StatusObject>(&call).await?).status {
            SessionStatus::Open => Err(StripeError::Refused(Box::new(refusal))),
            ended => Ok(ended),
        }
    }

    /// The sessions of an intent: one, or none where it was made otherwise.
    pub async fn checkout_sessions_of(
        &self,
        intent: &str,
        account: Option<&str>,
    ) -> Result<Vec<RetrievedSession>, StripeError> {
        let sessions: Vec<StatusObject> = self
            .list_all(
                &format!("list the checkout sessions of {intent}"),
                "/v1/checkout/sessions",
                &[("payment_intent", intent)],
                account,
                |session: &StatusObject| &session.id,
            )
            .await?;
        Ok(sessions.into_iter().map(RetrievedSession::from).collect())
    }

    /// One page of the events of these types that were made in this span, the newest first, each as Stripe wrote it.
    pub async fn list_events(
        &self,
        account: Option<&str>,
        types: &[&str],
        from_s: i64,
        until_s: i64,
        after: Option<&str>,
    ) -> Result<EventsPage, StripeError> {
        let query = form_urlencoded::Serializer::new(String::new())
            .append_pair("limit", PAGE_SIZE)
            .append_pair("created[gte]", &from_s.to_string())
            .append_pair("created[lte]", &until_s.to_string())
            .extend_pairs(types.iter().map(|kind| ("types[]", kind)))
            .extend_pairs(after.map(|after| ("starting_after", after)))
            .finish();
        let doing = format!("list events of {}", account.unwrap_or("the platform"));
        let call = StripeCall {
            account,
            ..StripeCall::get(doing, format!("/v1/events?{query}"))
        };
        let page: StripeList<Box<RawValue>> = self.call(&call).await?;
        let body = |event: Box<RawValue>| String::from(Box::<str>::from(event));
        Ok(EventsPage {
            bodies: page.data.into_iter().map(body).collect(),
            has_more: page.has_more,
        })
    }

    async fn list_all<T: DeserializeOwned>(
        &self,
        doing: &str,
        path: &str,
        filter: &[(&str, &str)],
        account: Option<&str>,
        id: impl Fn(&T) -> &str,
    ) -> Result<Vec<T>, StripeError> {
        let mut all: Vec<T> = Vec::new();
        for _ in 0..PAGES_MAX {
            let last = all.last().map(|last| ("starting_after", id(last)));
            let query = form_urlencoded::Serializer::new(String::new())
                .append_pair("limit", PAGE_SIZE)
                .extend_pairs(filter)
                .extend_pairs(last)
                .finish();
            let path = format!("{path}?{query}");
            let call = StripeCall {
                account,
                ..StripeCall::get(doing.to_owned(), path)
            };
            let page: StripeList<T> = self.call(&call).await?;
            let is_last = !page.has_more || page.data.is_empty();
            all.extend(page.data);
            if is_last {
                return Ok(all);
            }
        }
        Err(StripeError::TooMany {
            doing: doing.to_owned(),
        })
    }

    /// Up to three tries, obeying `StripeClient-Should-Retry`.
    async fn call<T: DeserializeOwned>(&self, call: &StripeCall<'_>) -> Result<T, StripeError> {
        let mut delays = self.retry_delays.iter();
        let mut earlier_may_have_happened = false;
        loop {
            let (mut error, again) = match self.call_once(call).await {
                Ok(value) => return Ok(value),
                Err(failed) => failed,
            };
            if let StripeError::Unreachable {
                may_have_happened, ..
            } = &mut error
            {
                *may_have_happened |= earlier_may_have_happened;
            }
            earlier_may_have_happened |= error.disposition() == Disposition::OutcomeUnknown;
            match delays.next().filter(|_| again) {
                Some(delay) => SystemClock.pause(*delay).await,
                None => return Err(error),
            }
        }
    }

    /// One try; a failure says whether Stripe would have it tried again.
    async fn call_once<T: DeserializeOwned>(
        &self,
        call: &StripeCall<'_>,
    ) -> Result<T, (StripeError, bool)> {
        let unreachable = |source: reqwest::Error| {
            let error = StripeError::Unreachable {
                doing: call.doing.clone(),
                may_have_happened: call.mutates() && !source.is_connect(),
                source: source.without_url(),
            };
            (error, true)
        };
        if let Some(pace) = &self.pace {
            tokio::time::sleep_until(pace.next_slot(Instant::now())).await;
        }
        let answer = self.send(call).await.map_err(unreachable)?;
        let status = answer.status();
        let headers = answer.headers().clone();
        let request_id = known_word(
            headers
                .get("request-id")
                .and_then(|value| value.to_str().ok()),
        );
        let body = answer.bytes().await.map_err(unreachable)?;
        if !status.is_success() {
            let refusal = parse_refusal(call, status, request_id, &body);
            let again = should_retry(&headers, status, &refusal.code);
            return Err((StripeError::Refused(Box::new(refusal)), again));
        }
        serde_json::from_slice(&body).map_err(|_| {
            let error = StripeError::Unreadable {
                doing: call.doing.clone(),
                may_have_happened: call.mutates(),
                request_id,
            };
            (error, false)
        })
    }

    async fn send(&self, call: &StripeCall<'_>) -> Result<Response, reqwest::Error> {
        let mut request = self
            .http
            .request(call.method.clone(), format!("{}{}", self.base, call.path))
            .bearer_auth(self.key.expose_secret())
            .header("stripe-version", API_VERSION);
        if let Some(account) = call.account {
            request = request.header("stripe-account", account);
        }
        if let Some(key) = call.idempotency_key {
            let form = form_urlencoded::Serializer::new(String::new())
                .extend_pairs(call.form)
                .finish();
            request = request
                .header("idempotency-key", key)
                .header("content-type", "application/x-www-form-urlencoded")
                .body(form);
        }
        request.send().await
    }
}

#[derive(Deserialize)]
struct StripeList<T> {
    data: Vec<T>,
    has_more: bool,
}

#[derive(Deserialize)]
struct StatusObject {
    id: String,
    status: String,
}

impl From<StatusObject> for RetrievedIntent {
    fn from(StatusObject { id, status }: StatusObject) -> Self {
        Self {
            id,
            status: IntentStatus::parse(&status),
        }
    }
}

impl From<StatusObject> for RetrievedSession {
    fn from(StatusObject { id, status }: StatusObject) -> Self {
        Self {
            id,
            status: SessionStatus::parse(&status),
        }
    }
}

/// Ids come from events and rows: none may reach into the path.
fn encode_path_segment(id: &str) -> String {
    form_urlencoded::byte_serialize(id.as_bytes()).collect()
}

/// Stripe's rule: its header decides; else conflicts and its own faults are tried again. A lock is a 429 without it.
fn should_retry(headers: &HeaderMap, status: StatusCode, code: &str) -> bool {
    match headers
        .get("stripe-should-retry")
        .map(|value| value.as_bytes())
    {
        Some(b"true") => true,
        Some(b"false") => false,
        _ => status == StatusCode::CONFLICT || status.is_server_error() || code == "lock_timeout",
    }
}

fn parse_refusal(
    call: &StripeCall<'_>,
    status: StatusCode,
    request_id: String,
    body: &[u8],
) -> StripeRefusal {
    #[derive(Deserialize, Default)]
    struct ErrorBody {
        error: ErrorFields,
    }
    #[derive(Deserialize, Default)]
    struct ErrorFields {
        code: Option<String>,
        #[serde(rename = "type")]
        kind: Option<String>,
        message: Option<String>,
    }
    let ErrorBody { error } = serde_json::from_slice(body).unwrap_or_default();
    let speaks_of_parameters = matches!(status.as_u16(), 400 | 404);
    StripeRefusal {
        doing: call.doing.clone(),
        status: status.as_u16(),
        code: known_word(error.code.or(error.kind).as_deref()),
        request_id,
        message: error
            .message
            .filter(|text| speaks_of_parameters && is_safe_to_log(text))
            .map(|text| {
                format!(
                    ": {}",
                    text.chars().take(MESSAGE_CHARS_MAX).collect::<String>()
                )
            })
            .unwrap_or_default(),
        mutates: call.mutates(),
    }
}

fn is_safe_to_log(text: &str) -> bool {
    let telling = ["sk_", "rk_", "pk_", "whsec_", "_secret", "@"];
    !text.chars().any(char::is_control) && !telling.iter().any(|mark| text.contains(mark))
}

/// A word of Stripe's vocabulary, or `unknown`: what is not one is not printed.
fn known_word(text: Option<&str>) -> String {
    text.filter(|text| {
        !text.is_empty()
            && text.len() <= 64
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
            && is_safe_to_log(text)
    })
    .unwrap_or("unknown")
    .to_owned()
}

#[cfg(test)]
mod tests;
