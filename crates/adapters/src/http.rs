//! The HTTP client beneath the SDK: HTTP/1.1 over hyper's pool, TLS by rustls on ring with the system's roots.
//!
//! Stands for `aws-smithy-http-build_http_client`, which brings HTTP/2 and proxies, a megabyte that no call of a function uses
//! (`docs/adr/0001`). The operator's tool has that crate, because its users may sit behind a proxy.
//! A connection is limited to 1 s, an answer to 3 s, whatever the SDK's settings say of these two; a connection over
//! which a transient error came is not used again. Does not time whole calls or repeat them: the SDK does, by what `aws`
//! sets.

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

/// Name, TCP and TLS. Within a region that takes some milliseconds; a second means that the address does not answer.
const CONNECT_MAX: Duration = Duration::from_secs(1);
/// From the request, or the connecting before it, to the first byte of the answer.
const READ_MAX: Duration = Duration::from_secs(3);
/// AWS drops connections that idle for about a minute; after a freeze an older one is surely dead.
const IDLE_MAX: Duration = Duration::from_secs(50);

/// One pool of connections for all that is made with this client and its clones.
pub(crate) fn build_http_client() -> Result<SharedHttpClient, rustls::Error> {
    let (mut roots, system) = (RootCertStore::empty(), load_native_certs());
    roots.add_parsable_certificates(system.certs);
    if roots.is_empty() || !system.errors.is_empty() {
        let (count, errors) = (roots.len(), system.errors);
        tracing::warn!("tls_roots: {count} of the system's could be read, errors: {errors:?}");
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

/// A connector that gives up after `CONNECT_MAX`.
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

/// By which the SDK has a connection closed, once it stands.
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

/// What kind of failure the SDK is told: it repeats calls after a time-out and after input and output that failed.
fn classify_failure(error: hyper_util::client::legacy::Error) -> ConnectorError {
    let hyper: Option<&hyper::Error> = error.source().and_then(|cause| cause.downcast_ref());
    match hyper.is_some_and(hyper::Error::is_user) {
        true => ConnectorError::user(error.into()),
        false => ConnectorError::io(error.into()),
    }
}
