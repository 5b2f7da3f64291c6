//! The HTTP client of the AWS SDK: HTTP/1.1 over hyper's connection pool, TLS by rustls on ring with the system's
//! roots.
//!
//! It replaces `aws-smithy-http-client`, which adds HTTP/2 and proxies: a megabyte that no function needs
//! (`docs/adr/0001`). The operator's command line uses that crate, because its users may be behind a proxy.
//! Time-outs: 1 s to connect, 3 s to the first byte of the answer, whatever the SDK's settings say about these two. A
//! connection on which a transient error occurred is not used again. Time-outs of whole calls and retries are in `aws`.

use std::error::Error;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::connection::{CaptureSmithyConnection, ConnectionMetadata};
use aws_smithy_runtime_api::client::http::{
    HttpConnector, HttpConnectorFuture, SharedHttpClient, SharedHttpConnector, http_client_fn,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_types::body::SdkBody;
use hyper::Uri;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{
    CaptureConnection, HttpConnector as Tcp, capture_connection,
};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::{ClientConfig, RootCertStore};
use rustls_native_certs::load_native_certs;
use tower_service::Service;

/// DNS, TCP and TLS. Within a region they take a few milliseconds, so after a second the address does not answer, and
/// another attempt on a new connection is more useful than waiting.
const CONNECT_MAX: Duration = Duration::from_secs(1);
/// From the start of the request, including a new connection, to the first byte of the answer. The SDK counts this as a
/// time-out and retries: two attempts that hang (2 × 3 s) use up `aws::OPERATION_MAX`.
const READ_MAX: Duration = Duration::from_secs(3);
/// AWS closes connections that are idle for about a minute. Lambda freezes a function between events, so it does not
/// notice that; an older connection is certainly dead, and using it would cost an attempt.
const IDLE_MAX: Duration = Duration::from_secs(50);

/// The clients of all services share this connection pool.
pub(crate) fn build_http_client() -> Result<SharedHttpClient, rustls::Error> {
    let (mut roots, system) = (RootCertStore::empty(), load_native_certs());
    roots.add_parsable_certificates(system.certs);
    if roots.is_empty() || !system.errors.is_empty() {
        let (count, errors) = (roots.len(), system.errors);
        tracing::warn!(
            "tls_roots: read {count} root certificates of the system, errors: {errors:?}"
        );
    }
    let tls =
        ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
    let mut tcp = Tcp::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http()
        .enable_http1()
        .wrap_connector(tcp);
    let pooled = Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_MAX)
        .build(TimedConnector(connector));
    let connector = SharedHttpConnector::new(Http1Connector(pooled));
    Ok(http_client_fn(move |_, _| connector.clone()))
}

#[derive(Clone, Debug)]
struct TimedConnector<C>(C);

impl<C> Service<Uri> for TimedConnector<C>
where
    C: Service<Uri, Error: Into<BoxError>, Future: Send + 'static>,
{
    type Response = C::Response;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<C::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.0.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let connecting = tokio::time::timeout(CONNECT_MAX, self.0.call(to));
        Box::pin(async move { connecting.await?.map_err(Into::into) })
    }
}

#[derive(Debug)]
struct Http1Connector(Client<TimedConnector<HttpsConnector<Tcp>>, SdkBody>);

impl HttpConnector for Http1Connector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let mut request = match request.try_into_http1x() {
            Ok(request) => request,
            Err(error) => {
                return HttpConnectorFuture::ready(Err(ConnectorError::user(error.into())));
            }
        };
        let connection = capture_connection(&mut request);
        if let Some(asked) = request.extensions().get::<CaptureSmithyConnection>() {
            asked.set_connection_retriever(move || closable_connection(&connection));
        }
        let answer = tokio::time::timeout(READ_MAX, self.0.request(request));
        HttpConnectorFuture::new(async move {
            let answer = answer
                .await
                .map_err(|late| ConnectorError::timeout(late.into()))?
                .map_err(classify_failure)?;
            HttpResponse::try_from(answer.map(SdkBody::from_body_1_x))
                .map_err(|error| ConnectorError::other(error.into(), None))
        })
    }
}

/// With this the SDK can close a connection after a transient error ("poison"). Case: the host behind a
/// connection answers 500; the next attempt uses another connection, which may lead to another host.
fn closable_connection(connection: &CaptureConnection) -> Option<ConnectionMetadata> {
    connection.connection_metadata().as_ref()?;
    let connection = connection.clone();
    let close = move || {
        if let Some(connection) = connection.connection_metadata().as_ref() {
            connection.poison();
        }
    };
    Some(
        ConnectionMetadata::builder()
            .proxied(false)
            .poison_fn(close)
            .build(),
    )
}

/// The SDK retries after a time-out and after an I/O error, but not after a request that we built wrongly (user error).
fn classify_failure(error: hyper_util::client::legacy::Error) -> ConnectorError {
    let hyper: Option<&hyper::Error> = error.source().and_then(|cause| cause.downcast_ref());
    match hyper.is_some_and(hyper::Error::is_user) {
        true => ConnectorError::user(error.into()),
        false => ConnectorError::io(error.into()),
    }
}
