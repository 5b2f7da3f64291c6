//! Runs one function's real binary against a fake Lambda Runtime API, for what the emulator cannot do: choose the time
//! left of an invocation, and measure the memory of the process.

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::{Mutex, mpsc};

/// A running function; dropping it ends the process.
#[derive(Debug)]
pub struct Function {
    child: Child,
    invocations: mpsc::UnboundedSender<(String, i64)>,
    answers: mpsc::UnboundedReceiver<Value>,
}

struct Runtime {
    invocations: Mutex<mpsc::UnboundedReceiver<(String, i64)>>,
    answers: mpsc::UnboundedSender<Value>,
}

impl Function {
    /// Starts a binary with exactly these variables.
    pub async fn start(binary: &Path, variables: &[(&str, String)]) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?.to_string();
        let (invocations, pending) = mpsc::unbounded_channel();
        let (answered, answers) = mpsc::unbounded_channel();
        let runtime = Arc::new(Runtime {
            invocations: Mutex::new(pending),
            answers: answered,
        });
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let runtime = Arc::clone(&runtime);
                let service = service_fn(move |request| Arc::clone(&runtime).respond(request));
                tokio::spawn(async move {
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await
                        .ok();
                });
            }
        });
        let child = Command::new(binary)
            .env_clear()
            .env("AWS_LAMBDA_RUNTIME_API", address)
            .env("AWS_LAMBDA_FUNCTION_NAME", "measured")
            .env("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "256")
            .env("AWS_LAMBDA_FUNCTION_VERSION", "1")
            .envs(variables.iter().map(|(name, value)| (name, value)))
            .spawn()
            .with_context(|| format!("start {}", binary.display()))?;
        Ok(Self {
            child,
            invocations,
            answers,
        })
    }

    /// Invokes it with this much time left and waits for the answer.
    pub async fn invoke(&mut self, input: &Value, time_left: Duration) -> Result<Value> {
        let left_ms = i64::try_from(time_left.as_millis())?;
        let deadline_ms = super::stripe::unix_ms().saturating_add(left_ms);
        self.invocations.send((input.to_string(), deadline_ms))?;
        let answer = tokio::time::timeout(time_left, self.answers.recv()).await;
        answer.ok().flatten().context("no answer in time")
    }

    /// The process's peak resident memory.
    pub fn peak_rss_kib(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
        Ok(kib.context("no VmHWM")?.trim().parse()?)
    }
}

impl Drop for Function {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Runtime {
    async fn respond(
        self: Arc<Self>,
        request: Request<Incoming>,
    ) -> Result<Response<Full<Bytes>>, anyhow::Error> {
        if request.uri().path().ends_with("/invocation/next") {
            let next = self.invocations.lock().await.recv().await;
            let (input, deadline_ms) = next.context("no more invocations")?;
            return Ok(Response::builder()
                .header("lambda-runtime-aws-request-id", "measured")
                .header("lambda-runtime-deadline-ms", deadline_ms)
                .header("lambda-runtime-invoked-function-arn", "arn:measured")
                .header("lambda-runtime-trace-id", "Root=1-0-0")
                .body(Full::from(input))?);
        }
        let body = request.into_body().collect().await?.to_bytes();
        self.answers.send(serde_json::from_slice(&body)?)?;
        Ok(Response::builder().status(202).body(Full::default())?)
    }
}
