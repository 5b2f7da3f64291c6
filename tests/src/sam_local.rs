//! `make sam-local`: invokes every function with every sample of `events/` by `sam local invoke`, and compares the
//! answers with `events/answers.json`.
//!
//! It starts a local AWS and a local Stripe of its own, deploys the stack, and writes the rows, events and endpoints that
//! the samples need. What belongs to the moment or to the stack is replaced in a copy of the sample: the signature of a
//! delivery (an additional run, if the answers have `signed_now`), and in CloudFormation's requests `ResponseURL`,
//! `RequestId` and `SecretArn`.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use aws_sdk_dynamodb::types::AttributeValue;
use billhook_adapters::clock::SystemClock;
use billhook_adapters::dynamodb::events::DynamoInbox;
use billhook_core::endpoint::plan::EndpointTags;
use billhook_core::ids::{CorrelationId, PerProvider, ProviderId};
use billhook_core::intake::ports::RecordEvent as _;
use billhook_core::ports::Clock as _;
use billhook_testkit::events::new_event;
use billhook_testkit::local::{
    ContainerEngine, LocalAws, Options, SamInvoker, binaries_dir, repository,
};
use billhook_testkit::sign::{sign_lob, sign_stripe};
use billhook_testkit::stripe::{Config, LocalStripe};
use data_encoding::BASE64;
use serde_json::{Map, Value, json};

use crate::world::{LOB_SECRET, World};

const STACK_NAME: &str = "billhook-dev";
/// The function's answer to CloudFormation is there before its invocation ends.
const ANSWER_WAIT: Duration = Duration::from_secs(5);

/// A folder of `events/` whose files are invocations of one function.
struct SampleFolder {
    name: &'static str,
    /// The function's logical id.
    function: &'static str,
}

/// The workers come first, so that they process events that nobody has processed before.
const FOLDERS: [SampleFolder; 5] = [
    SampleFolder {
        name: "stripe-worker",
        function: "StripeWorkerFunction",
    },
    SampleFolder {
        name: "lob-worker",
        function: "LobWorkerFunction",
    },
    SampleFolder {
        name: "webhook-ingress",
        function: "WebhookIngressFunction",
    },
    SampleFolder {
        name: "cleanup-failed-payments",
        function: "CleanupFailedPaymentsFunction",
    },
    SampleFolder {
        name: "webhook-secret",
        function: "WebhookSecretFunction",
    },
];

/// A started environment with its container engine.
struct SampleRunner {
    world: World,
    stripe: LocalStripe,
    cloudformation: CloudFormation,
    stack_id: String,
    invoker: Arc<SamInvoker>,
}

/// Invokes the samples whose path contains one of `words`, or all; returns whether every answer was the expected one.
pub async fn run_samples(words: &[&str]) -> Result<bool> {
    let began = Instant::now();
    let answers = read_answers()?;
    let runner = SampleRunner::start().await?;
    let (mut count, mut differing) = (0, 0);
    for folder in &FOLDERS {
        let samples = answers.get(folder.name).and_then(Value::as_object);
        let samples = samples.with_context(|| format!("answers.json has no {}", folder.name))?;
        let wanted: Vec<_> = samples
            .iter()
            .map(|(name, expected)| (format!("{}/{name}.json", folder.name), expected))
            .filter(|(path, _)| words.is_empty() || words.iter().any(|word| path.contains(word)))
            .collect();
        if !wanted.is_empty() {
            runner.prepare_folder(folder.name).await?;
        }
        for (path, expected) in wanted {
            let sample = fs::read(repository().join("events").join(&path));
            let sample: Value = serde_json::from_slice(&sample.with_context(|| path.clone())?)?;
            let mut runs = vec![("", sample.clone(), expected.clone())];
            if let Some(answer) = expected.get("signed_now") {
                let signed = runner.sign_delivery(&sample)?;
                runs.push((" signed now", signed, json!({ "answer": answer })));
            }
            for (suffix, event, expected) in runs {
                let started = Instant::now();
                let differences = runner.check_sample(folder, event, &expected).await?;
                let seconds = started.elapsed().as_secs_f32();
                let verdict = if differences.is_empty() {
                    "ok"
                } else {
                    "DIFFERS"
                };
                println!("{verdict:<8}{seconds:>5.1} s  {path}{suffix}");
                for difference in &differences {
                    println!("{difference}");
                }
                count += 1;
                differing += usize::from(!differences.is_empty());
            }
        }
    }
    if count == 0 {
        bail!("no sample's path contains {}", words.join(" or "));
    }
    println!(
        "{count} invocations in {} s, {differing} of them answered differently than events/answers.json says",
        began.elapsed().as_secs()
    );
    Ok(differing == 0)
}

/// `events/answers.json`: by folder and sample, the members that the answer must have.
pub fn read_answers() -> Result<Value> {
    let text = fs::read(repository().join("events/answers.json"))?;
    serde_json::from_slice(&text).context("read events/answers.json")
}

impl SampleRunner {
    async fn start() -> Result<Self> {
        let local = Arc::new(LocalAws::start(&Options::temporary("sam-local"))?);
        let binary = binaries_dir()?.join("webhook-ingress");
        let engine = ContainerEngine::find(&local.dir().join("containers"), &binary)?;
        eprintln!("containers: {}", engine.describe());
        let stripe = LocalStripe::start(Config::default()).await?;
        let base = stripe.base_url();
        let world = World::deploy(&local, STACK_NAME, &[("Env", "dev")], &base).await?;
        let cloudformation = CloudFormation::start()?;
        let mut ports = vec![cloudformation.port];
        for url in [&base, &local.endpoint()] {
            let port = url.rsplit(':').next().unwrap_or_default();
            ports.push(port.parse().with_context(|| format!("{url} has no port"))?);
        }
        let variables = variables_of(&world, &base).await?;
        let stack_id = variables.pointer("/WebhookSecretFunction/STACK_ID");
        let stack_id = stack_id.and_then(Value::as_str).unwrap_or_default();
        let stack_id = stack_id.to_owned();
        let relay = std::env::current_exe()?;
        let invoker = SamInvoker::prepare(local, engine, &ports, &variables, &relay)?;
        Ok(Self {
            world,
            stripe,
            cloudformation,
            stack_id,
            invoker: Arc::new(invoker),
        })
    }

    /// Writes what the samples of a folder need.
    async fn prepare_folder(&self, folder: &str) -> Result<()> {
        match folder {
            "stripe-worker" => {
                let tenant = json!({ "tenant_id": "ten_sample", "name": "Sample",
                    "stripe_connected_account_id": "acct_1RzCnctSAMPLE001" });
                self.world.put("TenantsTable", tenant).await?;
                let order = json!({ "id": "ord_2041", "tenantId": "ten_sample", "userId": "user_1",
                    "status": "pending", "amountTotal": 4200, "currency": "usd" });
                self.world.put("OrdersTable", order).await?;
                self.store_events(ProviderId::Stripe).await
            }
            "lob-worker" => {
                for (statement, letter) in [
                    ("st_1", "ltr_4a1b2c3d4e5f6071"),
                    ("st_2", "psc_208e45b48d271294"),
                ] {
                    let row = json!({ "statement_id": statement, "tenant_id": "ten_sample",
                        "amount_due": 4200, "currency": "usd", "lob_letter_id": letter });
                    self.world.put("StatementsTable", row).await?;
                }
                self.store_events(ProviderId::Lob).await
            }
            // So that the deliveries are new.
            "webhook-ingress" => self.forget_events().await,
            _ => Ok(()),
        }
    }

    /// Stores every event of `events/payloads` as ingress does, without a message.
    async fn store_events(&self, provider: ProviderId) -> Result<()> {
        let tables = ["StripeEventsTable", "LobEventsTable"];
        let [stripe, lob] = tables.map(|name| self.world.stack.output(name));
        let (stripe, lob) = (stripe?.to_owned(), lob?.to_owned());
        let inbox = DynamoInbox {
            client: self.world.aws.dynamodb().clone(),
            tables: PerProvider::new(|provider| match provider {
                ProviderId::Lob => lob.clone(),
                _ => stripe.clone(),
            }),
            sealer: self.world.event_sealer()?,
        };
        for body in read_payloads(provider)? {
            let correlation_id = CorrelationId(SystemClock.new_id());
            let event = new_event(provider, &body, correlation_id, SystemClock.now());
            inbox.record(&event).await?;
        }
        Ok(())
    }

    async fn forget_events(&self) -> Result<()> {
        for table in ["StripeEventsTable", "LobEventsTable"] {
            for row in self.world.rows(table).await? {
                let id = row.get("event_id").and_then(Value::as_str);
                let id = AttributeValue::S(id.context("a row has no event_id")?.to_owned());
                let delete = self.world.aws.dynamodb().delete_item();
                let delete = delete.table_name(self.world.stack.output(table)?);
                delete.key("event_id", id).send().await?;
            }
        }
        Ok(())
    }

    /// Invokes a function and returns how its answer differs from what is expected.
    async fn check_sample(
        &self,
        folder: &SampleFolder,
        mut event: Value,
        expected: &Value,
    ) -> Result<Vec<String>> {
        if event.get("ResponseURL").is_some() {
            self.prepare_request(&mut event)?;
        }
        let (invoker, function) = (Arc::clone(&self.invoker), folder.function);
        let invoked = tokio::task::spawn_blocking(move || invoker.invoke(function, &event));
        let mut answer = match invoked.await? {
            Ok(answer) => answer,
            Err(error) => return Ok(vec![format!("{error:#}")]),
        };
        // API Gateway's answer has its body as a text.
        if let Some(Value::String(body)) = answer.get("body") {
            let body = serde_json::from_str(body).unwrap_or_else(|_| json!(body));
            if let Some(answer) = answer.as_object_mut() {
                answer.insert("body".to_owned(), body);
            }
        }
        let mut seen = BTreeMap::from([("answer", answer)]);
        if expected.get("cloudformation").is_some() {
            let told = self.cloudformation.answers.recv_timeout(ANSWER_WAIT);
            seen.insert("cloudformation", told.unwrap_or_default());
        }
        if let Some(events) = expected.get("events").and_then(Value::as_object) {
            let table = match folder.name {
                "lob-worker" => "LobEventsTable",
                _ => "StripeEventsTable",
            };
            let mut outcomes = Map::new();
            for id in events.keys() {
                let row = self.world.event(table, id).await?.unwrap_or_default();
                let outcome = row.get("processing_outcome").cloned();
                outcomes.insert(id.clone(), outcome.unwrap_or_default());
            }
            seen.insert("events", Value::Object(outcomes));
        }
        let mut differences = Vec::new();
        for (member, seen) in &seen {
            let expected = expected.get(*member).unwrap_or(&Value::Null);
            compare(member, expected, seen, &mut differences);
        }
        if !differences.is_empty() {
            differences.push(self.invoker.log());
        }
        Ok(differences)
    }

    /// Makes a request of CloudFormation one of this stack, and creates the endpoint that it names.
    fn prepare_request(&self, request: &mut Value) -> Result<()> {
        // The samples share their ids, and Stripe refuses a second request under the key of another.
        let request_id = SystemClock.new_id().to_string();
        for (name, value) in [
            ("ResponseURL", self.cloudformation.url()),
            ("RequestId", request_id),
            ("StackId", self.stack_id.clone()),
        ] {
            if let Some(given) = request.get_mut(name) {
                *given = json!(value);
            }
        }
        for properties in ["ResourceProperties", "OldResourceProperties"] {
            let Some(given) = request.get_mut(properties) else {
                continue;
            };
            if let Some(url) = given.get_mut("Url") {
                *url = json!(self.world.stack.output("WebhookUrlStripe")?);
            }
            let Some(arn) = given.get_mut("SecretArn") else {
                continue;
            };
            let is_platform = arn.as_str().is_some_and(|arn| arn.contains("Platform"));
            *arn = json!(self.world.stack.output(if is_platform {
                "StripePlatformWebhookSecretArn"
            } else {
                "StripeWebhookSecretArn"
            })?);
        }
        let text = |name: &str| {
            request
                .get(name)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        let id = text("PhysicalResourceId");
        if id.starts_with("we_") {
            let tags = EndpointTags {
                stack: text("StackId"),
                logical_id: text("LogicalResourceId"),
                digest: "sample".to_owned(),
                request_id: "sample".to_owned(),
            };
            let metadata: BTreeMap<_, _> = tags.metadata().into();
            let url = request.pointer("/ResourceProperties/Url");
            self.stripe.put(
                None,
                json!({ "id": id, "object": "webhook_endpoint", "livemode": false, "status": "enabled",
                    "url": url, "enabled_events": ["charge.refunded"], "metadata": metadata }),
            );
        }
        Ok(())
    }

    /// A copy of a delivery, signed with the secrets of the stack and the current time.
    fn sign_delivery(&self, sample: &Value) -> Result<Value> {
        let mut signed = sample.clone();
        let body = sample
            .get("body")
            .and_then(Value::as_str)
            .context("a delivery has a body")?;
        let body = match sample.get("isBase64Encoded") {
            Some(Value::Bool(true)) => BASE64
                .decode(body.as_bytes())
                .map_err(|error| anyhow!("the body: {error}"))?,
            _ => body.as_bytes().to_vec(),
        };
        let now = SystemClock.now();
        let timestamp = now.unix_ms().to_string();
        let state = self.stripe.state();
        let endpoints = state.get("endpoints").and_then(Value::as_object);
        let has_account = serde_json::from_slice::<Value>(&body)
            .is_ok_and(|event| event.get("account").is_some());
        let endpoints = endpoints.into_iter().flat_map(|all| all.values());
        let secrets = endpoints
            .filter(|endpoint| endpoint.get("connect") == Some(&json!(has_account)))
            .filter_map(|endpoint| endpoint.get("secret")?.as_str());
        let mut of_stripe = format!("t={}", now.unix_s());
        for secret in secrets {
            let one = sign_stripe(&body, secret, now.unix_s());
            of_stripe += one.trim_start_matches(|letter| letter != ',');
        }
        let fresh = BTreeMap::from([
            ("stripe-signature", of_stripe),
            ("lob-signature", sign_lob(&body, LOB_SECRET, &timestamp)),
            ("lob-signature-timestamp", timestamp),
        ]);
        for headers in ["headers", "multiValueHeaders"] {
            let headers = signed.get_mut(headers).and_then(Value::as_object_mut);
            for (name, value) in headers.into_iter().flatten() {
                if let Some(fresh) = fresh.get(name.to_lowercase().as_str()) {
                    *value = if value.is_array() {
                        json!([fresh])
                    } else {
                        json!(fresh)
                    };
                }
            }
        }
        Ok(signed)
    }
}

/// The variables of `events/env.json` with the values that the deployed functions have, and the local Stripe.
async fn variables_of(world: &World, stripe_base: &str) -> Result<Value> {
    let text = fs::read(repository().join("events/env.json"))?;
    let mut all: BTreeMap<String, BTreeMap<String, String>> =
        serde_json::from_slice(&text).context("read events/env.json")?;
    for (function, variables) in &mut all {
        let deployed = world.variables(world.stack.output(function)?).await?;
        for (name, value) in &mut *variables {
            *value = deployed
                .get(name)
                .with_context(|| format!("{function} is deployed without {name}"))?
                .clone();
        }
        // SAM has values of its own for these.
        for name in ["STACK_ID", "STRIPE_WEBHOOK_URL"] {
            let value = deployed.get(name).cloned();
            variables.extend(value.map(|value| (name.to_owned(), value)));
        }
        if deployed.contains_key("STRIPE_API_BASE") {
            variables.insert("STRIPE_API_BASE".to_owned(), stripe_base.to_owned());
        }
    }
    Ok(serde_json::to_value(all)?)
}

fn read_payloads(provider: ProviderId) -> Result<Vec<Vec<u8>>> {
    let folder: PathBuf = repository().join(format!("events/payloads/{provider}"));
    let files = fs::read_dir(&folder).with_context(|| folder.display().to_string())?;
    files.map(|file| Ok(fs::read(file?.path())?)).collect()
}

/// An expected object has to be part of the seen one; everything else has to be equal.
fn compare(place: &str, expected: &Value, seen: &Value, differences: &mut Vec<String>) {
    match (expected, seen) {
        (Value::Object(expected), Value::Object(seen)) => {
            for (name, value) in expected {
                let seen = seen.get(name).unwrap_or(&Value::Null);
                compare(&format!("{place}.{name}"), value, seen, differences);
            }
        }
        _ if expected == seen => {}
        _ => differences.push(format!("  {place}: expected {expected}, got {seen}")),
    }
}

/// Takes the answers that `webhook-secret` sends to a `ResponseURL`.
struct CloudFormation {
    port: u16,
    answers: Receiver<Value>,
}

impl CloudFormation {
    fn start() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = listener.local_addr()?.port();
        let (sender, answers) = channel();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // An error concerns one connection only; its answer is then missing.
                take_answer(stream, &sender).ok();
            }
        });
        Ok(Self { port, answers })
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}/answer", self.port)
    }
}

/// Reads one PUT and accepts it.
fn take_answer(mut stream: TcpStream, answers: &Sender<Value>) -> Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim().split_once(':') else {
            if line.trim().is_empty() {
                break;
            }
            continue;
        };
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse()?;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    answers.send(serde_json::from_slice(&body)?)?;
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_may_have_more_members_than_are_expected_but_no_other_values() {
        let differences = |expected: Value, seen: Value| {
            let mut differences = Vec::new();
            compare("answer", &expected, &seen, &mut differences);
            differences
        };
        let seen = json!({ "a": { "b": 1, "c": 2 }, "list": [1] });
        assert!(differences(json!({ "a": { "b": 1 } }), seen.clone()).is_empty());
        assert_eq!(
            differences(json!({ "a": { "b": 2 }, "list": [] }), seen.clone()),
            [
                "  answer.a.b: expected 2, got 1",
                "  answer.list: expected [], got [1]"
            ]
        );
        assert_eq!(differences(Value::Null, seen).len(), 1);
    }
}
