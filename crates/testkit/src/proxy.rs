//! A proxy in front of the local AWS, for its functions: counts their calls at the wire, where retries show as well, and
//! lets planned ones fail.

use std::collections::{BTreeMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

/// What happens to a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The connection closes before the call is passed on.
    Before,
    /// The call takes effect; the connection closes without its answer.
    AnswerLost,
    /// The process of this function is killed before the call is passed on.
    Kill {
        /// `AWS_LAMBDA_FUNCTION_NAME` of the process.
        function: String,
    },
}

/// A running proxy; it ends with the runtime it was started on.
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
    /// Starts one on a free port; `set_upstream` tells it later where to pass on.
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

    /// Where calls are passed on to.
    pub fn set_upstream(&self, endpoint: &str) {
        endpoint.clone_into(&mut lock(&self.shared.upstream));
    }

    /// Lets the next calls of an operation (`PutItem`) fail, one after the other.
    pub fn plan(&self, operation: &str, faults: impl IntoIterator<Item = Fault>) {
        lock(&self.shared.plans)
            .entry(operation.to_owned())
            .or_default()
            .extend(faults);
    }

    /// How many faults were planned and not met.
    pub fn left(&self) -> usize {
        lock(&self.shared.plans).values().map(VecDeque::len).sum()
    }

    /// Calls so far, by operation.
    pub fn calls(&self) -> BTreeMap<String, usize> {
        lock(&self.shared.calls).clone()
    }

    async fn pass(&self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Closed> {
        let (head, body) = request.into_parts();
        let target = head
            .headers
            .get("x-amz-target")
            .and_then(|target| target.to_str().ok());
        let operation = target
            .and_then(|target| target.rsplit('.').next())
            .map(str::to_owned);
        let fault = operation.as_ref().and_then(|operation| {
            *lock(&self.shared.calls)
                .entry(operation.clone())
                .or_default() += 1;
            lock(&self.shared.plans).get_mut(operation)?.pop_front()
        });
        match &fault {
            Some(Fault::Before) => return Err(Closed),
            Some(Fault::Kill { function }) => {
                kill(function);
                return Err(Closed);
            }
            Some(Fault::AnswerLost) | None => {}
        }
        let body = body.collect().await.map_err(|_| Closed)?.to_bytes();
        let url = format!("{}{}", lock(&self.shared.upstream), head.uri);
        let answer = self
            .shared
            .http
            .request(head.method, url)
            .headers(head.headers)
            .body(body)
            .send()
            .await
            .map_err(|_| Closed)?;
        let mut response = Response::builder().status(answer.status());
        for (name, value) in answer.headers() {
            if name != "transfer-encoding" && name != "content-length" {
                response = response.header(name, value);
            }
        }
        let body = answer.bytes().await.map_err(|_| Closed)?;
        if fault.is_some() {
            return Err(Closed);
        }
        response.body(Full::new(body)).map_err(|_| Closed)
    }
}

/// Ends every process of a local function, as a crash would: found by the variable that only functions have.
fn kill(function: &str) {
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
