//! Client for the few calls of Stripe's API that billhook makes: webhook endpoints, PaymentIntents, Checkout Sessions,
//! events, and a payment with all that belongs to it (`payment_objects`). `permissions` lists what a key must be allowed.
//!
//! Guarantees: a call makes at most three attempts of 10 s with waits of 0.5 s and 1 s (exponential backoff), 31.5 s in
//! all without the rate limit; every attempt of a POST carries the idempotency key that the caller chose, but for the
//! probes of `permissions`, which change nothing; redirects are not followed; errors and logs contain neither the key nor
//! a signing secret. `StripeError::disposition` says whether a failed call may have had an effect. Longer retries are the
//! caller's: the next run of a task, or CloudFormation's. It decides nothing: `billhook_core::tasks` and
//! `billhook_core::endpoint` interpret the answers.

mod payment_objects;
pub mod permissions;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use billhook_core::ids::{AccountId, EventId};
use billhook_core::ports::Pause as _;
use billhook_core::provider::signature::FetchedEvent;
use billhook_core::provider::stripe::types::{
    API_VERSION, IntentSnapshot, IntentStatus, NextActionType, SessionStatus,
};
use billhook_core::retry::Disposition;
use billhook_core::tasks::ports::EventsPage;
use billhook_core::time::Timestamp;
use reqwest::header::HeaderMap;
use reqwest::{Method, Response, StatusCode};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::value::RawValue;
use tokio::time::Instant;

use crate::clock::SystemClock;

// Longer than for AWS (`http`), because Stripe is reached over the internet. A call of 31.5 s fits into the time-outs
// of the callers: 110 s for `webhook-secret`, 900 s for the cleanup.
/// Stripe's own API, and the only host to which a live key is sent.
pub const STRIPE_API: &str = "https://api.stripe.com";

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const TOTAL_TIMEOUT: Duration = Duration::from_secs(10);
/// Lambda freezes a function between events. After about a minute the other side has closed an idle connection, and the
/// frozen function did not notice.
const IDLE_TIMEOUT: Duration = Duration::from_secs(50);
/// Waits before the second and the third attempt. Stripe's own libraries begin with 0.5 s and double it.
const RETRY_DELAYS: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(1)];
const PAGE_SIZE: &str = "100";
/// Stripe allows 16 endpoints per account, and a PaymentIntent has few sessions, charges and refunds, so one page is
/// enough. More than 500 objects cannot be what we asked for, so the call fails instead of reading a whole account.
const PAGES_MAX: u32 = 5;
const MESSAGE_CHARS_MAX: usize = 200;

#[derive(Clone, Debug)]
pub struct StripeClient {
    http: reqwest::Client,
    base: String,
    key: SecretString,
    retry_delays: [Duration; 2],
    rate_limiter: Option<Arc<RateLimiter>>,
}

/// Rate limiter: lets calls start at equal distances, however many are waiting. Without it, several orders cleaned up
/// at once would take the application's share of Stripe's limit.
#[derive(Debug)]
struct RateLimiter {
    distance: Duration,
    next: Mutex<Instant>,
}

impl RateLimiter {
    /// When the call that asks now may start. Unused time is not saved, so there are no bursts: at 5 calls per second
    /// the first call after a minute without calls starts at once, and the second 200 ms later.
    fn next_slot(&self, now: Instant) -> Instant {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let mine = now.max(*next);
        *next = mine + self.distance;
        mine
    }
}

#[derive(Debug, thiserror::Error)]
pub enum StripeError {
    /// A test key in a live environment, or the other way round.
    #[error("the stripe key is a {} key and the environment is {}", mode_name(!*.live_mode), mode_name(*.live_mode))]
    KeyOfOtherMode { live_mode: bool },
    /// Not `sk_live_…`, `rk_live_…`, `sk_test_…` or `rk_test_…`.
    #[error("the stripe key is not a secret or restricted key")]
    NotSecretKey,
    #[error("{0} is not {STRIPE_API}, and would be given the live key")]
    NotStripe(String),
    #[error("cannot set up calls to stripe")]
    SetUp(#[source] reqwest::Error),
    #[error("{doing}: no answer from stripe")]
    Unreachable {
        doing: String,
        /// True if the call may have changed something at Stripe, in this attempt or an earlier one.
        may_have_happened: bool,
        /// Without its URL; `doing` names the object.
        #[source]
        source: reqwest::Error,
    },
    #[error("{0}")]
    Refused(Box<StripeRefusal>),
    /// Stripe answered 2xx with a body that we cannot parse. If the call was to change something, it probably did.
    #[error("{doing}: stripe's answer is not as documented (request {request_id})")]
    Unreadable {
        doing: String,
        may_have_happened: bool,
        request_id: String,
    },
    /// More pages than any list that we need can have; see `PAGES_MAX`.
    #[error("{doing}: more than {PAGES_MAX} pages")]
    TooMany { doing: String },
}

/// An answer of Stripe with an error status.
#[derive(Debug, thiserror::Error)]
#[error("{doing}: stripe answered {status} {code} (request {request_id}){message}")]
pub struct StripeRefusal {
    /// The call and its object, as in `cancel payment intent pi_1`.
    pub doing: String,
    pub status: u16,
    /// Stripe's `code`, or its error `type` if there is no code.
    pub code: String,
    /// Stripe's `Request-Id`, with which Stripe's support and its dashboard find the call.
    pub request_id: String,
    /// A colon and Stripe's text, only for 400 and 404 and only if it contains nothing like a secret; else empty. Case:
    /// for a wrong key Stripe's 401 repeats a part of that key.
    pub message: String,
    /// True if the call was to change something.
    pub mutates: bool,
}

/// Installs ring as the process's TLS provider for `reqwest`. A second call fails harmlessly: it is installed already.
pub fn install_tls() {
    rustls::crypto::ring::default_provider()
        .install_default()
        .ok();
}

fn mode_name(live: bool) -> &'static str {
    if live { "live" } else { "test" }
}

impl StripeError {
    /// Whether the call may have had an effect, and whether a retry can help.
    pub fn disposition(&self) -> Disposition {
        match self {
            Self::KeyOfOtherMode { .. }
            | Self::NotSecretKey
            | Self::NotStripe(_)
            | Self::SetUp(_)
            | Self::TooMany { .. } => Disposition::Permanent,
            Self::Unreachable {
                may_have_happened, ..
            }
            | Self::Unreadable {
                may_have_happened, ..
            } => retry_unless_happened(*may_have_happened),
            Self::Refused(refusal) => match refusal.status {
                // 409: another request with the same idempotency key is in progress, or the object is locked. 429: too
                // many calls. Stripe did not start to execute this request.
                409 | 429 => Disposition::RetryLater,
                // Stripe's docs: "treat 5xx as indeterminate". Case: Stripe cancels the PaymentIntent and still answers
                // 500. A GET changes nothing, so it is simply retried later.
                424 | 500.. => retry_unless_happened(refusal.mutates),
                _ => Disposition::Permanent,
            },
        }
    }

    /// Whether Stripe refuses our key: 401 for the key itself, 403 with `account_invalid` for an account that does not
    /// exist or that was disconnected, any other 403 for a permission that the key lacks.
    pub fn is_access_refused(&self) -> bool {
        match self {
            Self::Refused(refusal) => {
                matches!(refusal.status, 401 | 403) || refusal.code == "account_invalid"
            }
            _ => false,
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

#[derive(Clone, Debug)]
pub struct NewEndpoint<'a> {
    pub url: &'a str,
    /// True for events of connected accounts, false for the platform's own.
    pub connect: bool,
    pub enabled_events: &'a [String],
    /// The API version in which Stripe renders the events.
    pub api_version: &'a str,
    pub description: &'a str,
    /// Our tags, by which we recognize our own endpoints.
    pub metadata: &'a [(&'a str, &'a str)],
}

/// An endpoint as Stripe lists it, without its secret.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct WebhookEndpoint {
    pub id: String,
    pub url: String,
    pub enabled_events: Vec<String>,
    /// `enabled` or `disabled`.
    #[serde(default)]
    pub status: String,
    /// `None` means the account's default version.
    #[serde(default)]
    pub api_version: Option<String>,
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
}

/// The answer to a creation, the only one that contains the signing secret.
#[derive(Clone, Debug, Deserialize)]
pub struct CreatedEndpoint {
    pub id: String,
    /// `whsec_…`. Stripe does not document whether the saved answer to a repeated idempotency key still contains it, so
    /// it may be missing.
    #[serde(default)]
    pub secret: Option<SecretText>,
}

/// A secret that can be parsed from JSON and is never printed.
#[derive(Clone, Debug, Deserialize)]
#[serde(from = "String")]
pub struct SecretText(pub SecretString);

impl From<String> for SecretText {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpdateResult {
    Done,
    /// Stripe answered 404: the endpoint was deleted.
    Gone,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CancelResult {
    Done,
    /// Stripe refused (`payment_intent_unexpected_state`); this is the state that we read afterwards: canceled before,
    /// paid, processing, or open because it belongs to a Checkout Session that must be expired instead.
    StateForbids(IntentSnapshot),
    /// The account has no such PaymentIntent.
    Missing,
}

#[derive(Deserialize)]
struct OwnAccount {
    id: AccountId,
}

/// The fields of a Checkout Session that we read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetrievedSession {
    pub id: String,
    pub status: SessionStatus,
}

/// `account` is the connected account on whose behalf we call (header `Stripe-Account`). Only a POST has an idempotency
/// key and a form.
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
    /// `base` is the URL of the API: Stripe's own, or in a test environment any. `key` must be a secret or restricted key of the environment's mode; otherwise this
    /// fails before any call.
    pub fn new(base: &str, key: SecretString, live_mode: bool) -> Result<Self, StripeError> {
        let is = |mode: &str| {
            ["sk", "rk"]
                .iter()
                .any(|kind| key.expose_secret().starts_with(&format!("{kind}_{mode}_")))
        };
        match (is("live"), is("test")) {
            (false, false) => return Err(StripeError::NotSecretKey),
            (is_live, _) if is_live != live_mode => {
                return Err(StripeError::KeyOfOtherMode { live_mode });
            }
            _ => {}
        }
        let base = base.trim_end_matches('/');
        if live_mode && base != STRIPE_API {
            return Err(StripeError::NotStripe(base.to_owned()));
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
            base: base.to_owned(),
            key,
            retry_delays: RETRY_DELAYS,
            rate_limiter: None,
        })
    }

    /// Starts at most this many calls per second, retries included.
    #[must_use]
    pub fn with_rate_limit(self, calls_per_second: u32) -> Self {
        let rate_limiter = RateLimiter {
            distance: Duration::from_secs(1) / calls_per_second.max(1),
            next: Mutex::new(Instant::now()),
        };
        Self {
            rate_limiter: Some(Arc::new(rate_limiter)),
            ..self
        }
    }

    /// Creates an endpoint. For 24 hours the same idempotency key returns the saved answer, so a repeat after a lost
    /// answer does not create a second endpoint. The saved answer also comes back if the endpoint was deleted
    /// meanwhile.
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

    /// Sets URL and events, and enables the endpoint if somebody disabled it.
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

    /// Deletes an endpoint. 404 is a success, because the first of two attempts may have deleted it; so this needs no
    /// idempotency key, which Stripe does not accept for DELETE.
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

    /// All endpoints of the key's account and mode.
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

    /// None if the account has no such PaymentIntent.
    pub async fn get_payment_intent(
        &self,
        id: &str,
        account: Option<&str>,
    ) -> Result<Option<IntentSnapshot>, StripeError> {
        let path = format!("/v1/payment_intents/{}", encode_path_segment(id));
        let call = StripeCall {
            account,
            ..StripeCall::get(format!("get payment intent {id}"), path)
        };
        let intent = self.call::<IntentObject>(&call).await;
        Ok(unless_missing(intent)?.map(IntentSnapshot::from))
    }

    /// Cancels a PaymentIntent with the reason `abandoned`.
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
        let error = match unless_missing(self.call::<IntentObject>(&call).await) {
            Ok(Some(_)) => return Ok(CancelResult::Done),
            Ok(None) => return Ok(CancelResult::Missing),
            Err(error) => error,
        };
        let refusal = error.refused(400)?;
        if refusal.code != "payment_intent_unexpected_state" {
            return Err(StripeError::Refused(Box::new(refusal)));
        }
        // The error contains the PaymentIntent too, but for the same idempotency key Stripe repeats its saved answer, so
        // the state in it may be that of an earlier attempt. We read it again.
        let intent = self.get_payment_intent(id, account).await?;
        Ok(intent.map_or(CancelResult::Missing, CancelResult::StateForbids))
    }

    /// None if the account has no such session.
    pub async fn get_checkout_session(
        &self,
        id: &str,
        account: Option<&str>,
    ) -> Result<Option<SessionStatus>, StripeError> {
        let path = format!("/v1/checkout/sessions/{}", encode_path_segment(id));
        let call = StripeCall {
            account,
            ..StripeCall::get(format!("get checkout session {id}"), path)
        };
        let session = unless_missing(self.call::<StatusObject>(&call).await)?;
        Ok(session.map(|session| RetrievedSession::from(session).status))
    }

    /// Expires an open session and returns its state afterwards, which is `complete` if the customer was faster; none if
    /// the account has no such session.
    pub async fn expire_checkout_session(
        &self,
        id: &str,
        account: Option<&str>,
        idempotency_key: &str,
    ) -> Result<Option<SessionStatus>, StripeError> {
        let path = format!("/v1/checkout/sessions/{}/expire", encode_path_segment(id));
        let call = StripeCall {
            account,
            ..StripeCall::post(
                format!("expire checkout session {id}"),
                path,
                idempotency_key,
            )
        };
        let error = match unless_missing(self.call::<StatusObject>(&call).await) {
            Ok(session) => {
                return Ok(session.map(|session| RetrievedSession::from(session).status));
            }
            Err(error) => error,
        };
        // Stripe documents no error code for a session that is not open, so we read its state.
        let refusal = error.refused(400)?;
        match self.get_checkout_session(id, account).await? {
            Some(SessionStatus::Open) => Err(StripeError::Refused(Box::new(refusal))),
            ended => Ok(ended),
        }
    }

    /// The Checkout Sessions of a PaymentIntent: one, or none if it was created without Checkout.
    pub async fn list_checkout_sessions(
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

    /// One page of the events of these types created between `from_s` and `until_s` (Unix seconds, inclusive), newest
    /// first. Each event is byte for byte as Stripe sent it.
    pub async fn list_events(
        &self,
        account: Option<&AccountId>,
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
        let name = account.map(AccountId::as_str);
        let doing = format!("list events of {}", name.unwrap_or("the platform"));
        let call = StripeCall {
            account: name,
            ..StripeCall::get(doing, format!("/v1/events?{query}"))
        };
        let page: StripeList<Box<RawValue>> = self.call(&call).await?;
        #[expect(
            clippy::disallowed_methods,
            reason = "the one place that reads events from Stripe's API; a live environment refuses a base URL without TLS"
        )]
        let fetched = |event: Box<RawValue>| {
            FetchedEvent::from_stripe_api(Box::<str>::from(event).into(), account.cloned())
        };
        Ok(EventsPage {
            events: page.data.into_iter().map(fetched).collect(),
            has_more: page.has_more,
        })
    }

    /// Whether the platform itself has this event, and not one of its connected accounts. Like the list, Stripe knows events
    /// of the last 30 days.
    pub async fn has_event(&self, id: &EventId) -> Result<bool, StripeError> {
        let path = format!("/v1/events/{}", encode_path_segment(id.as_str()));
        let call = StripeCall::get(format!("get event {id}"), path);
        match self.call::<IgnoredAny>(&call).await {
            Ok(IgnoredAny) => Ok(true),
            Err(error) => error.refused(404).map(|_| false),
        }
    }

    /// The account of the key: the platform's own. `None` if Stripe does not tell it to this key: a restricted key needs a
    /// permission for that, and some cannot have it.
    /// Source: stripe-node#2246 and dj-stripe#1131, read 2026-11.
    pub async fn find_own_account(&self) -> Result<Option<AccountId>, StripeError> {
        let doing = "get the key's own account".to_owned();
        let call = StripeCall::get(doing, "/v1/account".to_owned());
        match self.call::<OwnAccount>(&call).await {
            Ok(account) => Ok(Some(account.id)),
            Err(error) => error.refused(403).map(|_| None),
        }
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

    /// At most three attempts: after no answer, or after an error answer for which `should_retry` says so.
    ///
    /// An earlier attempt may have happened even if the last one certainly did not. Case: the first attempt of a cancel
    /// times out after Stripe received it, the second cannot connect. The result is outcome unknown.
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

    /// One attempt; the `bool` of a failure says whether another attempt may help.
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
        if let Some(rate_limiter) = &self.rate_limiter {
            #[expect(
                clippy::disallowed_methods,
                reason = "the slots of the rate limiter are times of the same real clock"
            )]
            tokio::time::sleep_until(rate_limiter.next_slot(Instant::now())).await;
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

/// A PaymentIntent. The members beside its status are hints of what it waits for, and may be missing.
#[derive(Deserialize)]
struct IntentObject {
    status: String,
    #[serde(default)]
    next_action: Option<NextActionObject>,
    #[serde(default)]
    created: Option<i64>,
}

#[derive(Deserialize)]
struct NextActionObject {
    #[serde(rename = "type")]
    kind: String,
}

impl From<IntentObject> for IntentSnapshot {
    fn from(intent: IntentObject) -> Self {
        let created = intent.created.map(Timestamp::from_unix_s);
        Self {
            status: IntentStatus::parse(&intent.status),
            next_action: intent
                .next_action
                .map(|action| NextActionType::parse(&action.kind)),
            created: created.and_then(Result::ok),
        }
    }
}

/// None if Stripe says that it has no such object. Any other 404 says something about the URL and nothing about the
/// object, which must not look as if Stripe denied it.
fn unless_missing<T>(answer: Result<T, StripeError>) -> Result<Option<T>, StripeError> {
    match answer {
        Ok(object) => Ok(Some(object)),
        Err(error) => match error.refused(404)? {
            refusal if refusal.code == "resource_missing" => Ok(None),
            refusal => Err(StripeError::Refused(Box::new(refusal))),
        },
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

/// Ids come from events and rows. Case: `pi_1/../../account` must not become another path.
fn encode_path_segment(id: &str) -> String {
    form_urlencoded::byte_serialize(id.as_bytes()).collect()
}

/// Stripe's rule: its header decides; without it 409 and 5xx are retried. A 429 is not, except for `lock_timeout`,
/// which comes without the header.
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

/// A code or id of Stripe, or `unknown` if the text does not look like one: free text is never printed here.
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
