//! Verify a Stripe webhook, keep it once, queue a pointer, answer: no more than that, and nothing tuned.

use std::env;
use std::time::{SystemTime, UNIX_EPOCH};

use aws_config::BehaviorVersion;
use aws_sdk_dynamodb::types::AttributeValue;
use hmac::{Hmac, KeyInit, Mac};
use lambda_http::{Error, Request, Response, run, service_fn};
use serde_json::{Value, json};
use sha2::Sha256;
use tokio::sync::OnceCell;

struct App {
    dynamodb: aws_sdk_dynamodb::Client,
    sqs: aws_sdk_sqs::Client,
    secrets: aws_sdk_secretsmanager::Client,
    secret: OnceCell<String>,
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let config = aws_config::load_defaults(BehaviorVersion::latest()).await;
    let app = App {
        dynamodb: aws_sdk_dynamodb::Client::new(&config),
        sqs: aws_sdk_sqs::Client::new(&config),
        secrets: aws_sdk_secretsmanager::Client::new(&config),
        secret: OnceCell::new(),
    };
    let app = &app;
    run(service_fn(move |request: Request| app.handle(request))).await
}

impl App {
    async fn handle(&self, request: Request) -> Result<Response<String>, Error> {
        let secret = self.secret.get_or_try_init(|| self.read_secret()).await?;
        let body = request.body().as_ref();
        let signature = request.headers().get("stripe-signature");
        let signature = signature
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default();
        if !is_genuine(body, signature, secret) {
            return answer(400, &json!({ "error": "signature_invalid" }));
        }
        let event: Value = serde_json::from_slice(body)?;
        let id = event["id"].as_str().ok_or("no id")?;
        let event_type = event["type"].as_str().ok_or("no type")?;
        let put = self
            .dynamodb
            .put_item()
            .table_name(env::var("STRIPE_EVENTS_TABLE")?)
            .item("event_id", AttributeValue::S(id.to_owned()))
            .item("event_type", AttributeValue::S(event_type.to_owned()))
            .item(
                "payload",
                AttributeValue::S(String::from_utf8(body.to_vec())?),
            )
            .item("processed", AttributeValue::Bool(false))
            .condition_expression("attribute_not_exists(event_id)")
            .send()
            .await;
        if let Err(error) = put {
            let error = error.into_service_error();
            return match error.is_conditional_check_failed_exception() {
                true => answer(200, &json!({ "received": true, "duplicate": true })),
                false => Err(error.into()),
            };
        }
        self.sqs
            .send_message()
            .queue_url(env::var("STRIPE_EVENTS_QUEUE_URL")?)
            .message_group_id(id)
            .message_deduplication_id(id)
            .message_body(json!({ "event_id": id }).to_string())
            .send()
            .await?;
        println!(
            "{}",
            json!({ "level": "INFO", "message": "accepted", "event_id": id })
        );
        answer(
            200,
            &json!({ "received": true, "duplicate": false, "event_id": id }),
        )
    }

    async fn read_secret(&self) -> Result<String, Error> {
        let arn = env::var("STRIPE_WEBHOOK_SECRET_ARN")?;
        let value = self
            .secrets
            .get_secret_value()
            .secret_id(arn)
            .send()
            .await?;
        let value: Value = serde_json::from_str(value.secret_string().ok_or("no text")?)?;
        Ok(value["signing_secret"]
            .as_str()
            .ok_or("no signing secret")?
            .to_owned())
    }
}

fn is_genuine(body: &[u8], header: &str, secret: &str) -> bool {
    let parts: Vec<(&str, &str)> = header
        .split(',')
        .filter_map(|part| part.split_once('='))
        .collect();
    let Some((_, at)) = parts.iter().find(|(name, _)| *name == "t") else {
        return false;
    };
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |now| now.as_secs());
    if at.parse().is_ok_and(|at: u64| now.abs_diff(at) > 300) {
        return false;
    }
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(secret.as_bytes()) else {
        return false;
    };
    mac.update(at.as_bytes());
    mac.update(b".");
    mac.update(body);
    let signatures = parts.iter().filter(|(name, _)| *name == "v1");
    signatures
        .filter_map(|(_, signature)| hex::decode(signature).ok())
        .any(|signature| mac.clone().verify_slice(&signature).is_ok())
}

fn answer(status: u16, body: &Value) -> Result<Response<String>, Error> {
    let answer = Response::builder()
        .status(status)
        .header("content-type", "application/json");
    Ok(answer.body(body.to_string())?)
}
