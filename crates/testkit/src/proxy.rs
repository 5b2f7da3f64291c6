//! Fault-injecting HTTP proxy between the functions and the local AWS or Stripe. It counts calls on the wire, where the
//! SDK's retries are visible too, and makes calls fail: planned ones, random ones, or all calls of a service (outage).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::File;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use data_encoding::BASE64;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::http::HeaderValue;
use hyper::http::header::AUTHORIZATION;
use hyper::http::request::Parts;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::local::ACCESS_KEY_ID;
use crate::random::Random;

/// Tells the local AWS where a request is recorded, as in `functions:17`; `tests/tools/emulator.py` reads it.
const MARK: &str = "x-billhook-recorded";
/// Longer than the time-out of any client.
const HANG: Duration = Duration::from_secs(5);

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The connection closes before the call is forwarded.
    Before,
    /// The call takes effect and the connection closes without an answer.
    AnswerLost,
    /// The call is refused as throttled.
    Throttled,
    /// The call is answered 500.
    ServerError,
    /// No answer until the client gives up.
    Hang,
    /// This function's process is killed before the call is forwarded.
    Kill {
        /// `AWS_LAMBDA_FUNCTION_NAME` of the process.
        function: String,
    },
    /// This function's process is killed after the call took effect.
    KillAfter {
        /// `AWS_LAMBDA_FUNCTION_NAME` of the process.
        function: String,
    },
}

impl Fault {
    /// Random faults.
    const BY_CHANCE: [Self; 4] = [
        Self::Before,
        Self::AnswerLost,
        Self::Throttled,
        Self::ServerError,
    ];
    /// How a service fails in an outage.
    const OUTAGE: [Self; 3] = [Self::Before, Self::ServerError, Self::Hang];

    fn name(&self) -> &'static str {
        match self {
            Self::Before => "connection closed before",
            Self::AnswerLost => "answer lost",
            Self::Throttled => "throttled",
            Self::ServerError => "500",
            Self::Hang => "hang",
            Self::Kill { .. } => "kill -9 before",
            Self::KillAfter { .. } => "kill -9 after",
        }
    }
}

/// A running proxy; it ends with the async runtime on which it was started.
#[derive(Clone, Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    upstream: Mutex<String>,
    http: reqwest::Client,
    calls: Mutex<BTreeMap<String, usize>>,
    plans: Mutex<BTreeMap<String, VecDeque<Fault>>>,
    chance: Mutex<Option<(Random, usize)>>,
    outage: Mutex<Option<String>>,
    faults: Mutex<BTreeMap<&'static str, BTreeMap<String, usize>>>,
    messages: Mutex<Vec<String>>,
    record: Mutex<Option<RequestRecord>>,
    /// The queues that a short poll was tried on.
    short_polled: Mutex<BTreeSet<String>>,
}

#[derive(Debug)]
struct RequestRecord {
    name: String,
    file: File,
    lines: usize,
}

/// The answer is withheld.
#[derive(Debug)]
struct Closed;

impl std::fmt::Display for Closed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("closed as planned")
    }
}

impl std::error::Error for Closed {}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Proxy {
    /// Starts a proxy on a free port; `set_upstream` sets its target later.
    pub async fn start() -> anyhow::Result<Self> {
        crate::stripe::install_tls();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let proxy = Self {
            address: listener.local_addr()?,
            shared: Arc::new(Shared {
                upstream: Mutex::default(),
                http: reqwest::Client::builder()
                    .redirect(reqwest::redirect::Policy::none())
                    .build()?,
                calls: Mutex::default(),
                plans: Mutex::default(),
                chance: Mutex::default(),
                outage: Mutex::default(),
                faults: Mutex::default(),
                messages: Mutex::default(),
                record: Mutex::default(),
                short_polled: Mutex::default(),
            }),
        };
        let accepting = proxy.clone();
        tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else {
                    continue;
                };
                let proxy = accepting.clone();
                tokio::spawn(async move {
                    let service = service_fn(|request| proxy.pass(request));
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await
                        .ok();
                });
            }
        });
        Ok(proxy)
    }

    /// `http://127.0.0.1:port`
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Sets the target of all calls.
    pub fn set_upstream(&self, endpoint: &str) {
        endpoint.clone_into(&mut lock(&self.shared.upstream));
    }

    /// From now on writes each call that is forwarded into a file of this folder, one JSON object per line, for
    /// `tests/tools/wire_gate.py`.
    pub fn record(&self, folder: &Path, name: &str) -> anyhow::Result<()> {
        std::fs::create_dir_all(folder)?;
        let file = File::create(folder.join(format!("{name}.jsonl")))?;
        *lock(&self.shared.record) = Some(RequestRecord {
            name: name.to_owned(),
            file,
            lines: 0,
        });
        Ok(())
    }

    /// A short poll asks some of SQS's servers only, so its first answer for a queue is empty here, whatever is in it.
    fn is_first_short_poll(&self, body: &[u8]) -> bool {
        let request: Value = serde_json::from_slice(body).unwrap_or_default();
        let waits = request.get("WaitTimeSeconds").and_then(Value::as_u64);
        let queue = request.get("QueueUrl").and_then(Value::as_str);
        let queue = queue.unwrap_or_default().to_owned();
        waits.unwrap_or_default() == 0 && lock(&self.shared.short_polled).insert(queue)
    }

    /// CloudFormation keeps the old values of all parameters if an update reuses a deployed template that has the
    /// transform `AWS::LanguageExtensions`: the request as it then takes effect.
    async fn as_cloudformation_reads(&self, head: &Parts, body: Bytes) -> Result<Bytes, Closed> {
        let form: Vec<(String, String)> = form_urlencoded::parse(&body).into_owned().collect();
        let get = |wanted: &str| form.iter().find(|(name, _)| name == wanted);
        let is = |name: &str, value: &str| get(name).is_some_and(|(_, given)| given == value);
        if !is("Action", "UpdateStack") || !is("UsePreviousTemplate", "true") {
            return Ok(body);
        }
        let stack = get("StackName").map_or("", |(_, name)| name);
        let question = form_urlencoded::Serializer::new(String::new())
            .append_pair("Action", "GetTemplate")
            .append_pair("StackName", stack)
            .append_pair("TemplateStage", "Original")
            .finish();
        let template = self.forward(head, question.into(), None).await?;
        let template = template.text().await.map_err(|_| Closed)?;
        if !template.contains("AWS::LanguageExtensions") {
            return Ok(body);
        }
        let kept = form
            .iter()
            .map(|(name, value)| match name.strip_suffix(".ParameterValue") {
                Some(member) => (format!("{member}.UsePreviousValue"), "true"),
                None => (name.clone(), value.as_str()),
            });
        let kept = form_urlencoded::Serializer::new(String::new())
            .extend_pairs(kept)
            .finish();
        Ok(kept.into())
    }

    /// Sends a request on, with the deployer's key in place of the tool's and with its mark if it is recorded.
    async fn forward(
        &self,
        head: &Parts,
        body: Bytes,
        mark: Option<String>,
    ) -> Result<reqwest::Response, Closed> {
        let url = format!("{}{}", lock(&self.shared.upstream), head.uri);
        let mut headers = head.headers.clone();
        headers.remove("content-length");
        if let Some(authorization) = headers.get_mut(AUTHORIZATION) {
            lend_key(authorization);
        }
        if let Some(mark) = mark {
            headers.insert(MARK, HeaderValue::try_from(mark).map_err(|_| Closed)?);
        }
        let request = self.shared.http.request(head.method.clone(), url);
        let sent = request.headers(headers).body(body).send().await;
        sent.map_err(|_| Closed)
    }

    /// Where the call is recorded now, if it is. It is written before it is forwarded, so that the local AWS never has a
    /// request that is not in the file.
    fn record_call(&self, head: &Parts, body: &[u8]) -> Option<String> {
        let mut record = lock(&self.shared.record);
        let record = record.as_mut()?;
        let header = |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok());
        let call = json!({
            "method": head.method.as_str(),
            "path": head.uri.to_string(),
            "authorization": header("authorization"),
            "target": header("x-amz-target"),
            "content_type": header("content-type"),
            "body": BASE64.encode(body),
        });
        // If the disk is full, the call goes on without the mark, and the gate names it.
        writeln!(record.file, "{call}").ok()?;
        record.lines += 1;
        Some(format!("{}:{}", record.name, record.lines))
    }

    /// Makes the next calls of an operation (`PutItem`) fail, one fault per call.
    pub fn plan(&self, operation: &str, faults: impl IntoIterator<Item = Fault>) {
        lock(&self.shared.plans)
            .entry(operation.to_owned())
            .or_default()
            .extend(faults);
    }

    /// The number of planned faults that did not happen yet.
    pub fn left(&self) -> usize {
        lock(&self.shared.plans).values().map(VecDeque::len).sum()
    }

    /// From now on this many of 1,000 calls fail, with each kind of fault in turn; the seed decides which.
    pub fn disturb(&self, seed: u64, per_mille: usize) {
        *lock(&self.shared.chance) = Some((Random::new(seed), per_mille));
    }

    /// Starts an outage: of all calls whose `X-Amz-Target` begins with this text, or of every call if it is empty.
    pub fn cut(&self, service: &str) {
        *lock(&self.shared.outage) = Some(service.to_owned());
    }

    /// Ends random faults and outages; planned faults stay.
    pub fn heal(&self) {
        *lock(&self.shared.outage) = None;
        *lock(&self.shared.chance) = None;
    }

    /// The failed calls so far, by kind and operation.
    pub fn faults(&self) -> BTreeMap<&'static str, BTreeMap<String, usize>> {
        lock(&self.shared.faults).clone()
    }

    /// Every message that was sent to a queue, as it was on the wire.
    pub fn messages(&self) -> Vec<String> {
        lock(&self.shared.messages).clone()
    }

    /// The number of calls so far, by operation.
    pub fn calls(&self) -> BTreeMap<String, usize> {
        lock(&self.shared.calls).clone()
    }

    /// The fault for this call, if any.
    fn fault(&self, target: &str) -> Option<Fault> {
        let operation = target.rsplit('.').next().unwrap_or_default();
        *lock(&self.shared.calls)
            .entry(operation.to_owned())
            .or_default() += 1;
        let planned = lock(&self.shared.plans)
            .get_mut(operation)
            .and_then(VecDeque::pop_front);
        let by_chance = || {
            let mut chance = lock(&self.shared.chance);
            let (random, per_mille) = chance.as_mut()?;
            random.per_mille(*per_mille).then_some(())?;
            random.pick(&Fault::BY_CHANCE).cloned()
        };
        let cut = || {
            let outage = lock(&self.shared.outage);
            target.starts_with(outage.as_ref()?).then_some(())?;
            let faults = lock(&self.shared.faults);
            let so_far: usize = faults.values().flat_map(BTreeMap::values).sum();
            Fault::OUTAGE.get(so_far % Fault::OUTAGE.len()).cloned()
        };
        let fault = planned.or_else(cut).or_else(by_chance)?;
        *lock(&self.shared.faults)
            .entry(fault.name())
            .or_default()
            .entry(operation.to_owned())
            .or_default() += 1;
        Some(fault)
    }

    #[expect(clippy::disallowed_methods, reason = "a proxy lives in real time")]
    async fn pass(&self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Closed> {
        let (head, body) = request.into_parts();
        let target = head.headers.get("x-amz-target");
        let target = target.and_then(|target| target.to_str().ok());
        let is_message = target == Some("AmazonSQS.SendMessage");
        let fault = self.fault(target.unwrap_or_default());
        match &fault {
            Some(Fault::Before) => return Err(Closed),
            Some(Fault::Hang) => {
                tokio::time::sleep(HANG).await;
                return Err(Closed);
            }
            Some(Fault::Throttled) => return refusal(400, "ThrottlingException"),
            Some(Fault::ServerError) => return refusal(500, "InternalServerError"),
            Some(Fault::Kill { function }) => {
                kill(function);
                return Err(Closed);
            }
            Some(Fault::AnswerLost | Fault::KillAfter { .. }) | None => {}
        }
        let body = body.collect().await.map_err(|_| Closed)?.to_bytes();
        if is_message {
            lock(&self.shared.messages).push(String::from_utf8_lossy(&body).into_owned());
        }
        if target == Some("AmazonSQS.ReceiveMessage") && self.is_first_short_poll(&body) {
            return Response::builder()
                .header("content-type", "application/x-amz-json-1.0")
                .body(Full::from("{}"))
                .map_err(|_| Closed);
        }
        let mark = self.record_call(&head, &body);
        let sent = match target {
            Some(_) => body.clone(),
            None => self.as_cloudformation_reads(&head, body.clone()).await?,
        };
        let answer = self.forward(&head, sent, mark).await?;
        let mut response = Response::builder().status(answer.status());
        for (name, value) in answer.headers() {
            if name != "transfer-encoding" && name != "content-length" {
                response = response.header(name, value);
            }
        }
        let body = answer.bytes().await.map_err(|_| Closed)?;
        match fault {
            Some(fault) => {
                if let Fault::KillAfter { function } = &fault {
                    kill(function);
                }
                Err(Closed)
            }
            None => response.body(Full::new(body)).map_err(|_| Closed),
        }
    }
}

/// Replaces a key id that the local AWS does not know by the deployer's. A program that gets such an id can call the local
/// AWS by the proxy alone. A function keeps the id of its role's session.
fn lend_key(authorization: &mut HeaderValue) {
    let replaced = authorization.to_str().ok().and_then(|text| {
        let (before, after) = text.split_once("Credential=")?;
        let (key, scope) = after.split_once('/')?;
        let lent = format!("{before}Credential={ACCESS_KEY_ID}/{scope}");
        (!key.starts_with("ASIA")).then(|| HeaderValue::try_from(lent).ok())?
    });
    if let Some(replaced) = replaced {
        *authorization = replaced;
    }
}

/// An error in the format of AWS's JSON protocols.
fn refusal(status: u16, code: &str) -> Result<Response<Full<Bytes>>, Closed> {
    let body = json!({ "__type": code, "message": "as planned" });
    Response::builder()
        .status(status)
        .header("content-type", "application/x-amz-json-1.0")
        .body(Full::from(body.to_string()))
        .map_err(|_| Closed)
}

/// Kills every process of a local function, as a crash would; it finds them by a variable that only functions have.
pub fn kill(function: &str) {
    let wanted = format!("AWS_LAMBDA_FUNCTION_NAME={function}");
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(environment) = std::fs::read(entry.path().join("environ")) else {
            continue;
        };
        if environment
            .split(|byte| *byte == 0)
            .any(|variable| variable == wanted.as_bytes())
        {
            let pid = entry.file_name();
            std::process::Command::new("kill")
                .arg("-9")
                .arg(pid)
                .status()
                .ok();
        }
    }
}
