//! A local Stripe (fake server): the API calls that billhook and its tests make, and signed webhook delivery with
//! retries and duplicates.
//!
//! It follows Stripe's rules for keys, accounts, idempotency keys, states, pages and errors (`objects`, `state`);
//! Stripe's own command line and Python library check that (`tests/official_stripe.rs`). It creates no events by
//! itself, keeps everything in memory and listens on 127.0.0.1 only.
//!
//! In addition to `/v1/…` it has `POST /_local/deliver` ([`Delivery`]), `POST /_local/objects`
//! (`{"account":…,"object":{…}}`: any object in any state), `POST /_local/payers` ([`PayerAction`]: a customer takes a
//! voucher, pays it, is debited …), `POST /_local/accounts` (`{"account":…,"refuses":true}`: our key has no access),
//! `POST /_local/faults` ([`Fault`]) and `GET /_local/state`, which need no key.

mod deliver;
mod form;
mod objects;
mod state;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::HeaderMap;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;

pub use deliver::{Attempt, Delivered, Delivery, Report};
pub use state::{Fault, PayerAction, PayerStep};

use state::{Call, State};

/// The default test key. Stripe's own tools require at least 12 characters.
pub const TEST_KEY: &str = "sk_test_local0123456789";
const BODY_BYTES_MAX: usize = 4 * 1024 * 1024;
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Clone, Debug)]
pub struct Config {
    /// Accepted keys; one that contains `_live_` works on live data.
    pub keys: Vec<String>,
    /// More calls than this per second are answered 429.
    pub requests_per_second: Option<u32>,
    /// Waits before the second, third, … attempt of a delivery. Stripe itself retries for three days.
    pub retry_delays: Vec<Duration>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            keys: vec![TEST_KEY.to_owned()],
            requests_per_second: None,
            retry_delays: [100, 400, 1600].map(Duration::from_millis).to_vec(),
        }
    }
}

/// A running local Stripe; it ends with the async runtime on which it was started.
#[derive(Clone)]
pub struct LocalStripe {
    address: SocketAddr,
    inner: Arc<Inner>,
}

struct Inner {
    state: Mutex<State>,
    http: reqwest::Client,
    retry_delays: Vec<Duration>,
}

/// Installs ring as the process's TLS provider. A second call fails harmlessly: it is installed already.
pub fn install_tls() {
    rustls::crypto::ring::default_provider()
        .install_default()
        .ok();
}

/// Serves on `127.0.0.1:port` until the process ends.
pub async fn serve(port: u16) -> anyhow::Result<()> {
    let (stripe, listener) = LocalStripe::bind(port, Config::default()).await?;
    stripe.accept(listener).await;
    Ok(())
}

impl LocalStripe {
    /// Starts a local Stripe on a free port.
    pub async fn start(config: Config) -> anyhow::Result<Self> {
        let (stripe, listener) = Self::bind(0, config).await?;
        tokio::spawn(stripe.clone().accept(listener));
        Ok(stripe)
    }

    async fn bind(port: u16, config: Config) -> anyhow::Result<(Self, TcpListener)> {
        install_tls();
        let http = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(DELIVERY_TIMEOUT)
            .build()?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))
            .await
            .with_context(|| format!("bind 127.0.0.1:{port}"))?;
        let stripe = Self {
            address: listener.local_addr()?,
            inner: Arc::new(Inner {
                retry_delays: config.retry_delays.clone(),
                state: Mutex::new(State::new(config)),
                http,
            }),
        };
        Ok((stripe, listener))
    }

    async fn accept(self, listener: TcpListener) {
        // An error here concerns one connection only.
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                continue;
            };
            // Otherwise each small answer waits 40 ms for an acknowledgement (Nagle's algorithm).
            stream.set_nodelay(true).ok();
            let stripe = self.clone();
            tokio::spawn(async move {
                let service = service_fn(|request| stripe.respond(request));
                hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .await
                    .ok();
            });
        }
    }

    /// `http://127.0.0.1:port`
    pub fn base_url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Delivers an event to every endpoint that subscribes to it, and lists it in `GET /v1/events`.
    pub async fn deliver(&self, mut delivery: Delivery) -> Report {
        if let (Some(account), Some(event)) = (&delivery.account, delivery.event.as_object_mut()) {
            event.insert("account".to_owned(), json!(account));
        }
        let account = delivery.event.get("account").and_then(Value::as_str);
        let targets = {
            let mut state = self.state_mut();
            state.put(account, delivery.event.clone());
            state.targets(&delivery.event, delivery.endpoint.as_deref())
        };
        deliver::deliver(
            &self.inner.http,
            targets,
            format!("{:#}", delivery.event),
            delivery.copies,
            &self.inner.retry_delays,
        )
        .await
    }

    /// Stores any object (an event too) in any state, without a delivery.
    pub fn put(&self, account: Option<&str>, object: Value) {
        self.state_mut().put(account, object);
    }

    /// Makes a later request fail.
    pub fn fault(&self, fault: Fault) {
        self.state_mut().add_fault(fault);
    }

    /// What happens to a payment outside our calls; the PaymentIntent afterwards.
    pub fn act(&self, action: &PayerAction) -> anyhow::Result<Value> {
        let acted = self.state_mut().act(action, unix_s());
        acted.map_err(anyhow::Error::msg)
    }

    /// Accepts a key; `restrictions` is for a restricted one: resources such as `payment_intents`, each with whether it
    /// may be written.
    pub fn admit_key(&self, key: &str, restrictions: Option<&[(&str, bool)]>) {
        self.state_mut().admit_key(key, restrictions);
    }

    /// From now on the key is unknown.
    pub fn revoke_key(&self, key: &str) {
        self.state_mut().revoke_key(key);
    }

    /// Whether our key has no access to a connected account: it was disconnected.
    pub fn refuse(&self, account: &str, refuses: bool) {
        self.state_mut().refuse(account, refuses);
    }

    /// The whole state: `spaces`, the `endpoints`' secrets, and the `calls` so far.
    pub fn state(&self) -> Value {
        self.state_mut().snapshot()
    }

    fn state_mut(&self) -> MutexGuard<'_, State> {
        self.inner
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    async fn respond(&self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Dropped> {
        let (head, body) = request.into_parts();
        let body = Limited::new(body, BODY_BYTES_MAX)
            .collect()
            .await
            .map_err(|_| Dropped)?
            .to_bytes();
        if head.uri.path().starts_with("/_local/") {
            let route = format!("{} {}", head.method, head.uri.path());
            let (status, answer) = match self.local(&route, &body).await {
                Ok(answer) => (200, answer),
                Err(error) => (400, json!({"error": format!("{error:#}")})),
            };
            return response(status, &answer, &[]);
        }
        let call = Call {
            method: head.method.to_string(),
            path: head.uri.path().to_owned(),
            query: head.uri.query().unwrap_or_default().to_owned(),
            key: header(&head.headers, "authorization")
                .and_then(|value| value.strip_prefix("Bearer ").map(str::to_owned))
                .unwrap_or_default(),
            account: header(&head.headers, "stripe-account"),
            idempotency_key: header(&head.headers, "idempotency-key"),
            body: String::from_utf8_lossy(&body).into_owned(),
        };
        let answer = self.state_mut().answer(&call, unix_s()).ok_or(Dropped)?;
        response(answer.status, &answer.body, &answer.headers)
    }

    async fn local(&self, route: &str, body: &[u8]) -> anyhow::Result<Value> {
        match route {
            "POST /_local/deliver" => {
                let report = self.deliver(serde_json::from_slice(body)?).await;
                Ok(serde_json::to_value(report)?)
            }
            "POST /_local/objects" => {
                let given: Value = serde_json::from_slice(body)?;
                let object = given.get("object").context("object is missing")?;
                let account = given.get("account").and_then(Value::as_str);
                self.put(account, object.clone());
                Ok(json!({}))
            }
            "POST /_local/payers" => self.act(&serde_json::from_slice(body)?),
            "POST /_local/accounts" => {
                let given: Value = serde_json::from_slice(body)?;
                let account = given.get("account").and_then(Value::as_str);
                let refuses = given.get("refuses").and_then(Value::as_bool);
                self.refuse(
                    account.context("account is missing")?,
                    refuses == Some(true),
                );
                Ok(json!({}))
            }
            "POST /_local/faults" => {
                self.fault(serde_json::from_slice(body)?);
                Ok(json!({}))
            }
            "GET /_local/state" => Ok(self.state()),
            _ => anyhow::bail!("no such route: {route}"),
        }
    }
}

/// Closes the connection without an answer.
#[derive(Debug)]
struct Dropped;

impl std::fmt::Display for Dropped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the connection is closed without an answer")
    }
}

impl std::error::Error for Dropped {}

fn header(headers: &HeaderMap, name: &str) -> Option<String> {
    Some(headers.get(name)?.to_str().ok()?.to_owned())
}

fn response(
    status: u16,
    body: &Value,
    headers: &[(&'static str, String)],
) -> Result<Response<Full<Bytes>>, Dropped> {
    let mut builder = Response::builder()
        .status(status)
        .header("content-type", "application/json");
    for (name, value) in headers {
        builder = builder.header(*name, value);
    }
    builder
        .body(Full::from(body.to_string()))
        .map_err(|_| Dropped)
}

fn unix_s() -> i64 {
    unix_ms().div_euclid(1_000)
}

#[expect(
    clippy::disallowed_methods,
    reason = "a server lives in real time, as Stripe does; nothing of billhook calls this"
)]
pub(crate) fn unix_ms() -> i64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .ok()
        .and_then(|since| i64::try_from(since.as_millis()).ok())
        .unwrap_or(0)
}
