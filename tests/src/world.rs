//! Harness of the end-to-end tests: a deployed stack on the local AWS, the application's rows, signed deliveries of
//! both providers, and reads of tables, queues and logs. Waiting is by polling with a time limit.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use aws_sdk_dynamodb::primitives::Blob;
use aws_sdk_dynamodb::types::AttributeValue;
use aws_sdk_sqs::types::QueueAttributeName;
use billhook_adapters::aws::AwsClients;
use billhook_adapters::clock::SystemClock;
use billhook_adapters::config::{EnvLookup, SecretLocation, SecretSource};
use billhook_adapters::dynamodb::attributes::Item;
use billhook_adapters::dynamodb::events::read_event_record;
use billhook_adapters::dynamodb::ledger::{LedgerSeals, StateSealCheck};
use billhook_adapters::dynamodb::state_seal::seal_state;
use billhook_adapters::secrets::{EventSealerCache, SecretsManager};
use billhook_core::ids::ProviderId;
use billhook_core::ports::Clock as _;
use billhook_core::seal::{EventSealer, SealedEvent};
use billhook_testkit::local::{ACCESS_KEY_ID, DeployOptions, LocalAws, REGION, Stack, deploy};
use billhook_testkit::sign::sign_lob;
use billhook_testkit::stripe::TEST_KEY;
use reqwest::Method;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// Lob's signing secret in every local environment.
pub const LOB_SECRET: &str = "local_lob_webhook_secret_0001";
/// Texts that no log line, answer, output or error may contain: Stripe's key, Lob's secret, the prefix of Stripe's
/// signing secrets.
const CANARIES: [&str; 3] = [TEST_KEY, "local_lob_webhook_secret", "whsec_"];
/// A local stack processes an event in well under a second; a loaded CI machine needs more.
const SETTLE_MAX: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(100);

const FUNCTION_OUTPUTS: [&str; 5] = [
    "WebhookIngressFunction",
    "StripeWorkerFunction",
    "LobWorkerFunction",
    "CleanupFailedPaymentsFunction",
    "WebhookSecretFunction",
];

/// An environment: its stack, its Stripe and its AWS.
#[derive(Debug)]
pub struct World {
    pub aws: AwsClients,
    pub stack: Stack,
    pub stripe_base: String,
    endpoint: String,
    http: reqwest::Client,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    pub status: u16,
    /// JSON, or a JSON string if the body is not JSON.
    pub body: Value,
}

impl World {
    /// Deploys an environment as a team does: the stack, then the keys, then the rotation that creates the endpoints at
    /// Stripe.
    pub async fn deploy(
        local: &Arc<LocalAws>,
        name: &str,
        parameters: &[(&str, &str)],
        stripe_base: &str,
    ) -> Result<Self> {
        let defaults = [("StripeApiBase", stripe_base), ("StripeEndpoints", "both")];
        let mut options = DeployOptions::new(name, &[parameters, &defaults].concat());
        let world = Self::around(local, deployed(local, &options).await?, stripe_base)?;
        let state = world.stack.output("StripeWebhookEndpointState")?;
        if !state.contains("RotationToken") {
            bail!("the first deployment does not say how to make the endpoint: {state}");
        }
        for (output, members) in [
            ("AppSecretArn", json!({ "stripe_secret_key": TEST_KEY })),
            (
                "InboundSecretArn",
                json!({ "lob_webhook_secret": LOB_SECRET }),
            ),
        ] {
            let put = world.aws.secrets_manager().put_secret_value();
            let put = put.secret_id(world.stack.output(output)?);
            let put = put.secret_string(members.to_string());
            put.send().await.with_context(|| format!("put {output}"))?;
        }
        options
            .parameters
            .insert("RotationToken".to_owned(), "2".to_owned());
        Ok(Self {
            stack: deployed(local, &options).await?,
            ..world
        })
    }

    /// The private key that seals the stack's events, as a function reads it.
    pub fn event_sealer(&self) -> Result<EventSealerCache<SecretsManager, SystemClock>> {
        // The stack names no ARN of the private key: nobody needs one.
        let public = self.stack.output("SealPublicSecretArn")?;
        let name = public
            .split(":secret:")
            .nth(1)
            .and_then(|name| name.rsplit_once('-'));
        let (name, _) = name.context("not the ARN of a secret")?;
        let source = SecretSource {
            variable: "SEAL_ARN".to_owned(),
            location: SecretLocation::Arn(name.trim_end_matches("Public").to_owned()),
        };
        let secrets = SecretsManager::new(&self.aws);
        Ok(EventSealerCache::new(source, secrets, SystemClock))
    }

    /// The keys of the stack's seals, as a function reads them.
    pub fn ledger_seals(&self) -> Result<LedgerSeals> {
        let source = |output: &str| {
            let location = SecretLocation::Arn(self.stack.output(output)?.to_owned());
            let variable = output.to_owned();
            anyhow::Ok(SecretSource { variable, location })
        };
        let secrets = SecretsManager::new(&self.aws);
        let (events, states) = (
            source("SealPublicSecretArn")?,
            source("StateSealSecretArn")?,
        );
        Ok(LedgerSeals::new(
            &secrets,
            events,
            states,
            StateSealCheck::Required,
        ))
    }

    /// Updates the stack with changes to its parameters.
    pub async fn update(
        &self,
        local: &Arc<LocalAws>,
        parameters: &[(&str, &str)],
    ) -> Result<Stack> {
        let defaults = [
            ("StripeApiBase", self.stripe_base.as_str()),
            ("StripeEndpoints", "both"),
        ];
        let options = DeployOptions::new(&self.stack.name, &[parameters, &defaults].concat());
        deployed(local, &options).await
    }

    /// For a stack that is deployed already.
    pub fn around(local: &LocalAws, stack: Stack, stripe_base: &str) -> Result<Self> {
        let env: BTreeMap<&str, String> = local.env().into_iter().collect();
        let aws = AwsClients::from_env(&EnvLookup(&|name| env.get(name).cloned()))?;
        billhook_testkit::stripe::install_tls();
        let http = reqwest::Client::builder()
            .timeout(Duration::from_secs(35))
            .build()?;
        Ok(Self {
            aws,
            stack,
            stripe_base: stripe_base.to_owned(),
            endpoint: local.endpoint(),
            http,
        })
    }

    /// The current time in Unix seconds, as the provider's timestamp.
    pub fn now_s(&self) -> i64 {
        SystemClock.now().unix_s()
    }

    pub async fn request(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Answer> {
        let method = Method::from_bytes(method.as_bytes())?;
        let mut request = self
            .http
            .request(method, self.stack.url(path))
            .body(body.to_vec());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        answer(request).await
    }

    /// Lets the local Stripe deliver an event to the endpoints that subscribe to it, signed with their secrets, until
    /// it is accepted. Returns the answer to the last attempt of each delivery.
    pub async fn stripe(&self, event: &Value, copies: usize) -> Result<Vec<Answer>> {
        let delivery = json!({ "event": event, "copies": copies }).to_string();
        let request = self
            .http
            .post(format!("{}/_local/deliver", self.stripe_base))
            .body(delivery);
        let report = answer(request).await?.body;
        let deliveries = report.get("deliveries").and_then(Value::as_array);
        let deliveries = deliveries.filter(|all| !all.is_empty());
        let deliveries =
            deliveries.ok_or_else(|| anyhow!("no endpoint at Stripe wants {event}: {report}"))?;
        deliveries
            .iter()
            .map(|delivery| {
                let attempts = delivery.get("attempts").and_then(Value::as_array);
                let last = attempts
                    .and_then(|attempts| attempts.last())
                    .context("a delivery without attempts")?;
                let status = last
                    .get("status")
                    .and_then(Value::as_u64)
                    .unwrap_or_default();
                let body = last.get("body").and_then(Value::as_str).unwrap_or_default();
                Ok(Answer {
                    status: u16::try_from(status)?,
                    body: parsed(body),
                })
            })
            .collect()
    }

    /// Delivers a Lob event, signed as Lob does.
    pub async fn lob(&self, event: &Value) -> Result<Answer> {
        self.lob_with(LOB_SECRET, event).await
    }

    /// Delivers a Lob event that is signed with this secret.
    pub async fn lob_with(&self, secret: &str, event: &Value) -> Result<Answer> {
        let body = event.to_string();
        let timestamp = SystemClock.now().unix_ms().to_string();
        let signature = sign_lob(body.as_bytes(), secret, &timestamp);
        let headers = [
            ("Lob-Signature", &*signature),
            ("Lob-Signature-Timestamp", &*timestamp),
        ];
        self.request("POST", "/webhooks/lob", &headers, body.as_bytes())
            .await
    }

    pub async fn put(&self, table: &str, row: Value) -> Result<()> {
        let item = serde_dynamo::to_item(row)?;
        let put = self
            .aws
            .dynamodb()
            .put_item()
            .table_name(self.stack.output(table)?)
            .set_item(Some(item));
        put.send()
            .await
            .with_context(|| format!("put a row into {table}"))?;
        Ok(())
    }

    /// Stores an event's row with a genuine seal, as ingress does.
    pub async fn put_event(&self, table: &str, row: Value) -> Result<()> {
        let mut item: Item = serde_dynamo::to_item(row.clone())?;
        let provider = match table {
            "LobEventsTable" => ProviderId::Lob,
            _ => ProviderId::Stripe,
        };
        let sealer = self.event_sealer()?.sealer().await?;
        let payload = row.get("payload").and_then(Value::as_str);
        seal_row(
            provider,
            &mut item,
            payload.unwrap_or_default().as_bytes(),
            &sealer,
        )?;
        let put = self.aws.dynamodb().put_item();
        let put = put.table_name(self.stack.output(table)?);
        put.set_item(Some(item)).send().await?;
        Ok(())
    }

    /// Stores a state's row with a genuine seal, as a worker does.
    pub async fn put_state(&self, row: Value) -> Result<()> {
        let mut item: Item = serde_dynamo::to_item(row)?;
        let keys = self.ledger_seals()?.states.keys_for([]).await?;
        seal_state(&mut item, &keys);
        let put = self.aws.dynamodb().put_item();
        let put = put.table_name(self.stack.output("EntitiesTable")?);
        put.set_item(Some(item)).send().await?;
        Ok(())
    }

    /// Reads a row. A compressed payload is left out, because JSON has no bytes.
    pub async fn row(&self, table: &str, key: &str, id: &str) -> Result<Option<Value>> {
        let get = self
            .aws
            .dynamodb()
            .get_item()
            .table_name(self.stack.output(table)?);
        let got = get
            .key(key, AttributeValue::S(id.to_owned()))
            .consistent_read(true)
            .send()
            .await;
        let mut item = got.with_context(|| format!("read {id} of {table}"))?.item;
        if let Some(item) = &mut item {
            item.retain(|_, value| !value.is_b());
        }
        Ok(item.map(serde_dynamo::from_item).transpose()?)
    }

    pub async fn order(&self, id: &str) -> Result<Value> {
        self.row("OrdersTable", "id", id)
            .await?
            .with_context(|| format!("there is no order {id}"))
    }

    pub async fn statement(&self, id: &str) -> Result<Value> {
        self.row("StatementsTable", "statement_id", id)
            .await?
            .with_context(|| format!("there is no statement {id}"))
    }

    pub async fn event(&self, table: &str, id: &str) -> Result<Option<Value>> {
        self.row(table, "event_id", id).await
    }

    /// All rows of a table, without compressed payloads.
    pub async fn rows(&self, table: &str) -> Result<Vec<Value>> {
        let scan = self.aws.dynamodb().scan();
        let scan = scan.table_name(self.stack.output(table)?);
        let mut rows = Vec::new();
        let mut pages = scan.into_paginator().send();
        while let Some(page) = pages.next().await {
            for mut item in page
                .with_context(|| format!("scan {table}"))?
                .items
                .unwrap_or_default()
            {
                item.retain(|_, value| !value.is_b());
                rows.push(serde_dynamo::from_item(item)?);
            }
        }
        Ok(rows)
    }

    /// Waits until the events have this outcome.
    pub async fn settled(&self, table: &str, outcome: &str, ids: &[&str]) -> Result<()> {
        for id in ids {
            let mut last = None;
            let done = self
                .until(async || {
                    last = self.event(table, id).await?;
                    Ok(last.as_ref().and_then(|row| row.get("processing_outcome"))
                        == Some(&json!(outcome)))
                })
                .await?;
            if !done {
                let mut lines = Vec::new();
                for worker in ["StripeWorkerFunction", "LobWorkerFunction"] {
                    lines.extend(self.logged(worker, id).await?);
                }
                bail!(
                    "{id} is not {outcome} after {SETTLE_MAX:?}: {}\nmessages: {:?}\nits lines of the workers: {lines:#?}",
                    last.unwrap_or_default(),
                    self.depths().await?
                );
            }
        }
        Ok(())
    }

    /// Waits until no message is left in any queue, the dead-letter queues included.
    pub async fn drained(&self) -> Result<()> {
        let mut depths = BTreeMap::new();
        let done = self
            .until(async || {
                depths = self.depths().await?;
                Ok(depths.values().all(|depth| *depth == 0))
            })
            .await?;
        if !done {
            bail!("messages are left in the queues: {depths:?}");
        }
        Ok(())
    }

    async fn depths(&self) -> Result<BTreeMap<&'static str, u64>> {
        let mut depths = BTreeMap::new();
        for queue in [
            "StripeEventsQueueUrl",
            "LobEventsQueueUrl",
            "StripeEventsDlqUrl",
            "LobEventsDlqUrl",
        ] {
            depths.insert(queue, self.depth(queue).await?);
        }
        Ok(depths)
    }

    /// The number of messages in a queue, including those in flight.
    pub async fn depth(&self, queue: &str) -> Result<u64> {
        use QueueAttributeName::{
            ApproximateNumberOfMessages as Visible, ApproximateNumberOfMessagesNotVisible as Hidden,
        };
        let get = self
            .aws
            .sqs()
            .get_queue_attributes()
            .queue_url(self.stack.output(queue)?);
        let got = get
            .attribute_names(Visible)
            .attribute_names(Hidden)
            .send()
            .await?;
        let attributes = got.attributes.unwrap_or_default();
        Ok(attributes
            .values()
            .filter_map(|count| count.parse::<u64>().ok())
            .sum())
    }

    /// Sends a message to a queue, as a person may.
    pub async fn send(
        &self,
        queue: &str,
        group: &str,
        deduplication_id: &str,
        body: &str,
    ) -> Result<()> {
        let send = self
            .aws
            .sqs()
            .send_message()
            .queue_url(self.stack.output(queue)?);
        let send = send
            .message_group_id(group)
            .message_deduplication_id(deduplication_id);
        send.message_body(body)
            .send()
            .await
            .context("send a message by hand")?;
        Ok(())
    }

    /// Invokes a function and waits for its result, as the console's test button does.
    pub async fn invoke(&self, function: &str, input: &Value) -> Result<Value> {
        let path = format!("/2015-03-31/functions/{function}/invocations");
        let request = self
            .call(Method::POST, "lambda", &path)
            .body(input.to_string());
        Ok(answer(request).await?.body)
    }

    /// The environment variables of a deployed function.
    pub async fn variables(&self, function: &str) -> Result<BTreeMap<String, String>> {
        let path = format!("/2015-03-31/functions/{function}/configuration");
        let configuration = answer(self.call(Method::GET, "lambda", &path)).await?.body;
        let variables = configuration.pointer("/Environment/Variables");
        let variables = variables.with_context(|| format!("{function}: {configuration}"))?;
        Ok(serde_json::from_value(variables.clone())?)
    }

    /// Changes an environment variable of a deployed function; instances with the old value end.
    pub async fn set_variable(&self, function: &str, name: &str, value: &str) -> Result<()> {
        let mut variables = self.variables(function).await?;
        variables.insert(name.to_owned(), value.to_owned());
        let path = format!("/2015-03-31/functions/{function}/configuration");
        let body = json!({ "Environment": { "Variables": variables } });
        let request = self.call(Method::PUT, "lambda", &path);
        let set = answer(request.body(body.to_string())).await?;
        ensure!(set.status == 200, "{function}: {}", set.body);
        Ok(())
    }

    /// All lines that a function wrote, without Lambda's own lines.
    pub async fn logs(&self, function: &str) -> Result<Vec<String>> {
        let group = format!("/aws/lambda/{}", self.stack.output(function)?);
        let (mut lines, mut token) = (Vec::new(), Value::Null);
        loop {
            let mut filter = json!({ "logGroupName": group });
            if let (Some(filter), Value::String(_)) = (filter.as_object_mut(), &token) {
                filter.insert("nextToken".to_owned(), token);
            }
            let request = self
                .call(Method::POST, "logs", "/")
                .header("X-Amz-Target", "Logs_20140328.FilterLogEvents")
                .header("Content-Type", "application/x-amz-json-1.1")
                .body(filter.to_string());
            let page = answer(request).await?.body;
            let events = page.get("events").and_then(Value::as_array);
            let events = events.ok_or_else(|| anyhow!("no log events of {group}: {page}"))?;
            let messages = events
                .iter()
                .filter_map(|event| event.get("message").and_then(Value::as_str));
            lines.extend(
                messages
                    .flat_map(str::lines)
                    .filter(|line| line.starts_with('{'))
                    .map(str::to_owned),
            );
            token = page.get("nextToken").cloned().unwrap_or_default();
            if token.is_null() {
                return Ok(lines);
            }
        }
    }

    /// Calls the local AWS, which reads the key id and checks no signature.
    pub(crate) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    pub(crate) fn call(
        &self,
        method: Method,
        service: &str,
        path: &str,
    ) -> reqwest::RequestBuilder {
        let signed = format!(
            "AWS4-HMAC-SHA256 Credential={ACCESS_KEY_ID}/20260101/{REGION}/{service}/aws4_request, \
             SignedHeaders=host, Signature=0"
        );
        let url = format!("{}{path}", self.endpoint);
        self.http
            .request(method, url)
            .header("Authorization", signed)
    }

    /// The log lines of a function that contain a text.
    pub async fn logged(&self, function: &str, text: &str) -> Result<Vec<String>> {
        let group = format!("/aws/lambda/{}", self.stack.output(function)?);
        let wanted = json!({ "logGroupName": group, "filterPattern": format!("\"{text}\"") });
        let request = self
            .call(Method::POST, "logs", "/")
            .header("X-Amz-Target", "Logs_20140328.FilterLogEvents")
            .header("Content-Type", "application/x-amz-json-1.1")
            .body(wanted.to_string());
        let found = parsed(&request.send().await?.text().await?);
        let events = found.get("events").and_then(Value::as_array);
        let events = events.with_context(|| format!("no log of {group}: {found}"))?;
        let lines = events
            .iter()
            .filter_map(|event| event.get("message")?.as_str());
        // The emulator's filter patterns may differ from AWS's.
        let lines = lines.filter(|line| line.contains(text));
        Ok(lines.map(str::to_owned).collect())
    }

    /// Fails if a secret is in anything that the functions logged so far, panics included, or in the stack's outputs.
    pub async fn keeps_its_secrets(&self) -> Result<()> {
        for function in FUNCTION_OUTPUTS {
            for canary in CANARIES {
                let lines = self.logged(function, canary).await?;
                if let Some(line) = lines.first() {
                    bail!("{function} logged a secret: {line}");
                }
            }
        }
        no_secret(&format!("{:?}", self.stack.outputs))
    }

    /// Polls until the condition holds or the time is up.
    #[expect(
        clippy::disallowed_methods,
        reason = "what is deployed lives in real time"
    )]
    pub async fn until(&self, mut holds: impl AsyncFnMut() -> Result<bool>) -> Result<bool> {
        let mut waited = Duration::ZERO;
        while !holds().await? {
            if waited >= SETTLE_MAX {
                return Ok(false);
            }
            tokio::time::sleep(POLL_INTERVAL).await;
            waited += POLL_INTERVAL;
        }
        Ok(true)
    }
}

/// Gives an event's row the seal that its attributes and this payload have.
pub fn seal_row(
    provider: ProviderId,
    item: &mut Item,
    payload: &[u8],
    sealer: &EventSealer,
) -> Result<()> {
    let record = read_event_record(item).context("not the row of an event")?;
    let livemode = item.get("livemode").and_then(|mode| mode.as_bool().ok());
    let seal = sealer.seal(&SealedEvent {
        provider,
        event: &record,
        livemode: livemode.copied(),
        payload_sha256: Sha256::digest(payload).into(),
    });
    item.insert("seal".to_owned(), AttributeValue::B(Blob::new(seal)));
    Ok(())
}

fn no_secret(text: &str) -> Result<()> {
    match CANARIES.iter().find(|canary| text.contains(**canary)) {
        Some(canary) => bail!("{canary} stands where no secret may: {text}"),
        None => Ok(()),
    }
}

/// On its own thread, because a local Stripe on this runtime has to answer meanwhile.
async fn deployed(local: &Arc<LocalAws>, options: &DeployOptions) -> Result<Stack> {
    let (local, options) = (Arc::clone(local), options.clone());
    let deployed = tokio::task::spawn_blocking(move || deploy(&local, &options)).await?;
    // After a failed deployment, print the reasons that our custom resource gave.
    if let Err(failed) = &deployed {
        no_secret(&format!("{failed:#}"))?;
    }
    deployed
}

async fn answer(request: reqwest::RequestBuilder) -> Result<Answer> {
    let response = request.send().await?;
    let status = response.status().as_u16();
    let text = response.text().await?;
    no_secret(&text)?;
    Ok(Answer {
        status,
        body: parsed(&text),
    })
}

fn parsed(body: &str) -> Value {
    serde_json::from_str(body).unwrap_or_else(|_| json!(body))
}
