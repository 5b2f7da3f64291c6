//! Sends the answer to CloudFormation: an HTTP PUT to a presigned URL of S3. The URL is a credential, so it appears in
//! no error and no log line.

use std::time::Duration;

use crate::ports::{AdapterError, RespondToCloudFormation};
use crate::response_url::ResponseUrl;

/// Short, so that a second attempt fits into the 5 s before the function times out.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const TOTAL_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Clone, Debug)]
pub struct ResponseSender(reqwest::Client);

impl ResponseSender {
    /// Uses ring for TLS, like every other client: a second TLS library would slow down the cold start.
    pub fn new() -> Result<Self, reqwest::Error> {
        billhook_adapters::stripe::install_tls();
        let client = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(TOTAL_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .build()?;
        Ok(Self(client))
    }
}

impl RespondToCloudFormation for ResponseSender {
    async fn put(&self, response_url: &ResponseUrl, body: String) -> Result<(), AdapterError> {
        let answer = self
            .0
            .put(response_url.expose())
            // The URL was signed for an empty content type; any other is answered 403.
            .header("content-type", "")
            .body(body)
            .send()
            .await
            .map_err(reqwest::Error::without_url)?;
        let status = answer.status();
        if status.is_success() {
            return Ok(());
        }
        Err(format!("the answer was refused with {status}").into())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::thread;

    use billhook_adapters::stripe::SecretText;

    use super::*;
    use crate::response_url::ResponseHosts;

    fn local_url(url: &str) -> ResponseUrl {
        let hosts = ResponseHosts::new("", "", Some("http://127.0.0.1:1"));
        hosts.check(&SecretText(url.into())).unwrap()
    }

    /// Serves one request with `status`, and returns what was received.
    async fn put(status: &'static str) -> (Result<(), AdapterError>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!(
            "http://{}/a%3Ab%7Cc?X-Amz-Signature=canary",
            listener.local_addr().unwrap()
        );
        let served = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut received = Vec::new();
            while !received.ends_with(b"{answer}") {
                let mut bytes = [0; 1024];
                let read = stream.read(&mut bytes).unwrap();
                received.extend_from_slice(&bytes[..read]);
            }
            write!(stream, "HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n").unwrap();
            String::from_utf8(received).unwrap()
        });
        let answers = ResponseSender::new().unwrap();
        let answered = answers.put(&local_url(&url), "{answer}".to_owned()).await;
        (answered, served.join().unwrap())
    }

    #[tokio::test]
    async fn the_answer_is_put_with_an_empty_content_type_and_the_url_as_it_came() {
        let (answered, received) = put("200 OK").await;
        answered.unwrap();
        assert!(
            received.starts_with("PUT /a%3Ab%7Cc?X-Amz-Signature=canary HTTP/1.1\r\n"),
            "{received}"
        );
        assert!(received.contains("content-type: \r\n"), "{received}");
    }

    #[tokio::test]
    async fn a_refused_answer_is_an_error_without_its_url() {
        for status in [
            "403 Forbidden",
            "503 Service Unavailable",
            "307 Temporary Redirect",
        ] {
            let (answered, _) = put(status).await;
            let error = answered.unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("the answer was refused with {status}")
            );
        }
        let nobody = local_url("http://127.0.0.1:1/?canary");
        let error = ResponseSender::new()
            .unwrap()
            .put(&nobody, String::new())
            .await
            .unwrap_err();
        assert!(!format!("{error} {error:?}").contains("canary"));
    }
}
