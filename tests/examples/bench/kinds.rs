//! The kinds of events that are measured: the event, the function, and the rows that exist before.

use billhook_adapters::aws::AwsClients;
use billhook_adapters::clock::SystemClock;
use billhook_adapters::config::{EnvLookup, SecretLocation, SecretSource};
use billhook_adapters::dynamodb::events::DynamoInbox;
use billhook_adapters::secrets::{EventSealerCache, SecretsManager};
use billhook_core::ids::{CorrelationId, PerProvider, ProviderId};
use billhook_core::intake::message::EventPointer;
use billhook_core::intake::ports::RecordEvent as _;
use billhook_core::ports::Clock as _;
use billhook_core::seal::{EventSealer, encode_private_key};
use billhook_testkit::events::new_event;
use billhook_testkit::sign::sign_stripe;
use billhook_testkit::stripe::{LocalStripe, TEST_KEY};
use data_encoding::BASE64;
use serde_json::{Value, json};

use crate::aws::Stub;

const SECRET: &str = "whsec_bench";
const SEAL_SEED: [u8; 32] = [1; 32];
pub(crate) const SMALL: usize = 2_636;
pub(crate) const LARGE: usize = 59_445;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Echo,
    /// A peer: ingress's job in untuned Rust.
    Naive(usize),
    /// A peer: ingress's job in Node.
    Node(usize),
    Accepted(usize),
    Duplicate,
    Pending,
    BadSignature,
    Stale,
    StripeBatch(usize),
    LobBatch,
    CleanupIdle,
    Create,
}

pub(crate) const ALL: [Kind; 16] = [
    Kind::Echo,
    Kind::Naive(SMALL),
    Kind::Naive(LARGE),
    Kind::Node(SMALL),
    Kind::Node(LARGE),
    Kind::Accepted(SMALL),
    Kind::Accepted(LARGE),
    Kind::Duplicate,
    Kind::Pending,
    Kind::BadSignature,
    Kind::Stale,
    Kind::StripeBatch(SMALL),
    Kind::StripeBatch(LARGE),
    Kind::LobBatch,
    Kind::CleanupIdle,
    Kind::Create,
];

/// The endpoints and folders that the functions use.
pub(crate) struct World {
    pub(crate) stub: Stub,
    pub(crate) stripe: LocalStripe,
    inbox: DynamoInbox,
}

impl Kind {
    pub(crate) fn name(self) -> String {
        let kb = |bytes: usize| format!("{:.1} KB", bytes as f64 / 1000.0);
        match self {
            Self::Echo => "bare echo".to_owned(),
            Self::Naive(bytes) => format!("naive Rust: accepted {}", kb(bytes)),
            Self::Node(bytes) => format!("Node: accepted {}", kb(bytes)),
            Self::Accepted(bytes) => format!("ingress: accepted {}", kb(bytes)),
            Self::Duplicate => "ingress: duplicate, processed".to_owned(),
            Self::Pending => "ingress: repeat, still pending".to_owned(),
            Self::BadSignature => "ingress: bad signature".to_owned(),
            Self::Stale => "ingress: stale timestamp".to_owned(),
            Self::StripeBatch(bytes) => format!("stripe-worker: 10 x {}", kb(bytes)),
            Self::LobBatch => "lob-worker: 10 letters".to_owned(),
            Self::CleanupIdle => "cleanup: nothing to do".to_owned(),
            Self::Create => "webhook-secret: create".to_owned(),
        }
    }

    pub(crate) fn binary(self) -> &'static str {
        match self {
            Self::Echo => "examples/echo",
            Self::Naive(_) => "../peers/release/naive",
            Self::Node(_) => concat!(env!("CARGO_MANIFEST_DIR"), "/peers/node/index.mjs"),
            Self::Accepted(_)
            | Self::Duplicate
            | Self::Pending
            | Self::BadSignature
            | Self::Stale => "webhook-ingress",
            Self::StripeBatch(_) => "stripe-worker",
            Self::LobBatch => "lob-worker",
            Self::CleanupIdle => "cleanup-failed-payments",
            Self::Create => "webhook-secret",
        }
    }

    /// The memory in the template.
    pub(crate) fn memory_mb(self) -> u64 {
        match self {
            Self::CleanupIdle | Self::Create => 256,
            _ => 128,
        }
    }

    /// The number of deliveries in one event.
    pub(crate) fn records(self) -> usize {
        match self {
            Self::StripeBatch(_) | Self::LobBatch => 10,
            _ => 1,
        }
    }

    /// The `n`th event and the rows that it needs.
    pub(crate) async fn input(self, world: &World, n: usize) -> String {
        let event = match self {
            Self::Echo => delivery(&paid(n, SMALL), SECRET, 0),
            Self::Accepted(bytes) | Self::Naive(bytes) | Self::Node(bytes) => {
                delivery(&paid(n, bytes), SECRET, 0)
            }
            Self::BadSignature => delivery(&paid(n, SMALL), "whsec_forged", 0),
            Self::Stale => delivery(&paid(n, SMALL), SECRET, 400),
            Self::Duplicate | Self::Pending => {
                let done = json!({ "BOOL": self == Self::Duplicate });
                world.record(ProviderId::Stripe, &paid(0, SMALL)).await;
                world
                    .stub
                    .set("StripeEventsTable", &event_id(0), "processed", done);
                delivery(&paid(0, SMALL), SECRET, 0)
            }
            Self::StripeBatch(bytes) => {
                let mut records = Vec::new();
                for n in n * 10..n * 10 + 10 {
                    world.stub.put("OrdersTable", json!({
                        "id": { "S": format!("ord_{n:08}") }, "status": { "S": "pending" },
                        "userId": { "S": format!("usr_{n:08}") }, "sellerId": { "S": "seller_1" },
                        "amountTotal": { "N": "4200" }, "currency": { "S": "usd" },
                        "createdAt": { "S": "2026-11-21T10:00:00.000Z" },
                    }));
                    records.push(world.record(ProviderId::Stripe, &paid(n, bytes)).await);
                }
                json!({ "Records": records })
            }
            Self::LobBatch => {
                let mut records = Vec::new();
                for n in n * 10..n * 10 + 10 {
                    world.stub.put("StatementsTable", json!({
                        "statement_id": { "S": format!("stm_{n:08}") }, "tenant_id": { "S": "tenant_1" },
                        "lob_letter_id": { "S": letter_id(n) },
                    }));
                    records.push(world.record(ProviderId::Lob, &mailed(n)).await);
                }
                json!({ "Records": records })
            }
            Self::CleanupIdle => json!({ "task": "cleanup" }),
            Self::Create => {
                let sample = include_str!("../../../events/webhook-secret/create-platform.json");
                let mut request: Value = serde_json::from_str(sample).unwrap();
                request["ResponseURL"] = json!(format!("{}/answer", world.stub.http));
                request["ResourceProperties"]["SecretArn"] = json!("arn:platform");
                request["StackId"] = json!("arn:stack");
                request["ResourceProperties"]["Url"] = json!("https://hooks.example");
                request
            }
        };
        event.to_string()
    }
}

impl World {
    pub(crate) async fn start(stub: Stub) -> Self {
        let stripe = LocalStripe::start(billhook_testkit::stripe::Config::default());
        let endpoint = stub.http.clone();
        let aws = AwsClients::from_env(&EnvLookup(&|name| match name {
            "AWS_ENDPOINT_URL" => Some(endpoint.clone()),
            _ => (!name.contains("ENDPOINT")).then(|| "test".to_owned()),
        }))
        .unwrap();
        let world = Self {
            stripe: stripe.await.unwrap(),
            inbox: DynamoInbox {
                client: aws.dynamodb().clone(),
                tables: PerProvider::new(|provider| format!("{}EventsTable", provider.title())),
                sealer: EventSealerCache::new(
                    SecretSource {
                        variable: "SEAL_PRIVATE_KEY".to_owned(),
                        location: SecretLocation::Here(encode_private_key(&SEAL_SEED)),
                    },
                    SecretsManager::new(&aws),
                    SystemClock,
                ),
            },
            stub,
        };
        world.reset();
        world
    }

    /// The state after a deployment.
    pub(crate) fn reset(&self) {
        self.stub.clear();
        self.stub.taken();
        let signing = json!({ "endpoint_id": "we_1", "signing_secret": SECRET });
        self.stub.set_secret("arn:stripe", &signing);
        self.stub.set_secret(
            "arn:platform",
            &json!({ "endpoint_id": "we_2", "signing_secret": "whsec_2" }),
        );
        let secrets = [
            ("arn:app", json!({ "stripe_secret_key": TEST_KEY })),
            ("arn:inbound", json!({ "lob_webhook_secret": "lob_bench" })),
            (
                "arn:seal",
                json!({ "private_key": BASE64.encode(&SEAL_SEED) }),
            ),
            (
                "arn:seal-public",
                json!({ "public_keys": [BASE64.encode(&EventSealer::from_seed(&SEAL_SEED).public_key())] }),
            ),
        ];
        for (arn, value) in &secrets {
            self.stub.set_secret(arn, value);
        }
    }

    /// The variables of every function, with one of the stub's endpoints.
    pub(crate) fn variables(&self, endpoint: &str, roots: &str) -> Vec<(&'static str, String)> {
        let queue = |name: &str| format!("{endpoint}/1/{name}.fifo");
        let mut variables: Vec<(&'static str, String)> = [
            ("APP_NAME", "billhook"),
            ("ENV", "bench"),
            ("LIVE_MODE", "false"),
            ("AWS_REGION", "us-east-1"),
            ("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE"),
            ("AWS_SECRET_ACCESS_KEY", "secret"),
            ("AWS_SESSION_TOKEN", "token"),
            ("STRIPE_EVENTS_TABLE", "StripeEventsTable"),
            ("LOB_EVENTS_TABLE", "LobEventsTable"),
            ("ORDERS_TABLE", "OrdersTable"),
            ("ENTITIES_TABLE", "EntitiesTable"),
            ("STATEMENTS_TABLE", "StatementsTable"),
            ("TENANTS_TABLE", "TenantsTable"),
            ("JOBS_TABLE", "JobsTable"),
            ("APP_SECRETS_ARN", "arn:app"),
            ("INBOUND_SECRETS_ARN", "arn:inbound"),
            ("SEAL_ARN", "arn:seal"),
            ("SEAL_PUBLIC_ARN", "arn:seal-public"),
            ("STATE_SEAL_ARN", "arn:state-seal"),
            ("STRIPE_WEBHOOK_SECRET_ARN", "arn:stripe"),
            ("STRIPE_PLATFORM_WEBHOOK_SECRET_ARN", "arn:platform"),
            ("STACK_ID", "arn:stack"),
            ("URL_SUFFIX", "amazonaws.com"),
            ("STRIPE_WEBHOOK_URL", "https://hooks.example"),
            ("STRIPE_API_VERSION", "2026-10-28.endive"),
            ("AWS_ENDPOINT_URL", endpoint),
            ("SSL_CERT_FILE", roots),
            ("NODE_EXTRA_CA_CERTS", roots),
        ]
        .map(|(name, value)| (name, value.to_owned()))
        .into();
        variables.push(("STRIPE_EVENTS_QUEUE_URL", queue("stripe")));
        variables.push(("LOB_EVENTS_QUEUE_URL", queue("lob")));
        variables.push(("STRIPE_API_BASE", self.stripe.base_url()));
        variables
    }

    /// Stores an event as ingress does; returns its message as SQS delivers it.
    async fn record(&self, provider: ProviderId, raw_body: &[u8]) -> Value {
        let correlation_id = CorrelationId(SystemClock.new_id());
        let new = new_event(provider, raw_body, correlation_id, SystemClock.now());
        self.inbox.record(&new).await.unwrap();
        let id = &new.envelope.id;
        json!({
            "messageId": format!("m-{id}"), "receiptHandle": "AQEBsampleReceiptHandle1==",
            "body": EventPointer::message_for(&new.to_record(), new.source), "messageAttributes": {},
            "attributes": {
                "ApproximateReceiveCount": "1", "SentTimestamp": "1781000001001",
                "MessageGroupId": new.envelope.group, "MessageDeduplicationId": id.as_str(),
                "AWSTraceHeader": "Root=1-6a27e0c0-1de4d666d4dd26aced652b6c;Parent=53995c3f42cd8ad8;Sampled=1",
            },
            "md5OfBody": "3d6ae91a63eed00fa4862adefc9b6529", "eventSource": "aws:sqs", "awsRegion": "us-east-1",
            "eventSourceARN": "arn:aws:sqs:us-east-1:111122223333:billhook-dev-stripe-events.fifo",
        })
    }
}

fn event_id(n: usize) -> String {
    format!("evt_1RzWhk07K9mQ2t{n:08}")
}

fn letter_id(n: usize) -> String {
    format!("ltr_4868c3b754{n:08}")
}

/// An order's `payment_intent.succeeded` in Stripe's format, of exactly this many bytes.
pub(crate) fn paid(n: usize, bytes: usize) -> Vec<u8> {
    let sample = include_str!("../../../events/payloads/stripe/payment_intent_succeeded.json");
    let mut event: Value = serde_json::from_str(sample).unwrap();
    event["id"] = json!(event_id(n));
    let object = &mut event["data"]["object"];
    object["id"] = json!(format!("pi_3RzWhkK9mQ2t{n:08}"));
    object["latest_charge"] = json!(format!("ch_3RzWhkK9mQ2t{n:08}"));
    object["metadata"] = json!({ "order_id": format!("ord_{n:08}"), "cart": "" });
    let printed = |event: &Value| serde_json::to_vec_pretty(event).unwrap();
    let mut lines = Vec::new();
    let mut random = Random(u64::try_from(n).unwrap() + 1);
    // The lines of a large cart, then a text that fills up the last bytes.
    while printed(&event).len() + 900 < bytes {
        lines.push(json!({
            "id": format!("li_1{}", random.text(22)), "object": "item", "amount": random.next() % 90_000,
            "currency": "usd", "description": "1 x Statement delivery (at $1.25 / each)", "discountable": true,
            "price": { "id": format!("price_1{}", random.text(20)), "active": true, "type": "one_time" },
            "period": { "start": 1_780_000_000 + random.next() % 999_999, "end": 1_782_592_000 },
            "quantity": 1, "proration": false, "tax_amounts": [],
        }));
        event["data"]["object"]["lines"] = json!(lines);
    }
    let missing = bytes - printed(&event).len();
    event["data"]["object"]["metadata"]["cart"] = json!(random.text(missing));
    let body = printed(&event);
    assert_eq!(body.len(), bytes);
    body
}

/// A Lob event about a letter in transit.
fn mailed(n: usize) -> Vec<u8> {
    let sample = include_str!("../../../events/payloads/lob/letter_mailed.json");
    let mut event: Value = serde_json::from_str(sample).unwrap();
    event["id"] = json!(format!("evt_b9e2f5{n:010}"));
    event["reference_id"] = json!(letter_id(n));
    event["body"]["id"] = json!(letter_id(n));
    event.to_string().into_bytes()
}

/// API Gateway's event with a body that was signed this many seconds ago.
fn delivery(body: &[u8], secret: &str, ago_s: i64) -> Value {
    let sample = include_str!("../../../events/webhook-ingress/stripe-paid.json");
    let mut event: Value = serde_json::from_str(sample).unwrap();
    let signature = sign_stripe(body, secret, crate::unix_ms() / 1000 - ago_s);
    event["headers"]["Stripe-Signature"] = json!(signature);
    event["multiValueHeaders"]["Stripe-Signature"] = json!([signature]);
    event["body"] = json!(data_encoding::BASE64.encode(body));
    event
}

/// Texts that compress like ids.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    fn text(&mut self, characters: usize) -> String {
        const LETTERS: &[u8; 62] =
            b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
        (0..characters)
            .map(|_| char::from(LETTERS[usize::try_from(self.next() % 62).unwrap()]))
            .collect()
    }
}
