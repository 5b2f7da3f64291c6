//! Chaos tests: storms of faults and outages, on a local AWS of their own that has the template's visibility timeout.
//! `make chaos` runs all of them and prints their figures; `oracle` computes the expected rows.

mod oracle;

use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use aws_sdk_dynamodb::types::{PutRequest, WriteRequest};
use aws_sdk_sqs::types::MessageSystemAttributeName;
use billhook_testkit::random::Random;
use billhook_testkit::stripe::Delivery;
use oracle::{Letter, PERSONAL, Story};

use super::*;

const SEED: u64 = 7;
/// Deliveries under way at once.
const SENDERS: usize = 12;
/// Batches under way at once, beside the one of the local AWS.
const POLLERS: usize = 6;
/// After the last fault everything is terminal within this.
const RECOVERY_MAX: Duration = Duration::from_secs(300);

/// A stage whose every way out leads through a proxy. It lives as long as the process.
struct Arena {
    world: World,
    name: String,
    stripe: LocalStripe,
    to_aws: Proxy,
    to_stripe: Proxy,
    _aws: Arc<LocalAws>,
}

impl Arena {
    async fn deploy(label: &str) -> Result<&'static Self> {
        let app = format!("{label}{}", std::process::id());
        let name = format!("{app}-test");
        // A provider repeats until it is answered 2xx; this one sooner than a real one.
        let retry_delays = [200, 1_000, 2_000, 4_000].into_iter().chain([8_000; 30]);
        let stripe = LocalStripe::start(Config {
            retry_delays: retry_delays.map(Duration::from_millis).collect(),
            ..Config::default()
        })
        .await?;
        let to_stripe = Proxy::start().await?;
        to_stripe.set_upstream(&stripe.base_url());
        let (aws, to_aws) = start_recorded_aws(label).await?;
        let parameters = [
            ("AppName", app.as_str()),
            ("Env", "test"),
            // The senders share one address and are faster than any provider.
            ("ThrottleRate", "10000"),
            ("ThrottleBurst", "5000"),
        ];
        let world = World::deploy(&aws, &name, &parameters, &to_stripe.endpoint()).await?;
        for (tenant, account) in [("ten_a", "acct_a"), ("ten_b", "acct_b")] {
            let row = json!({ "tenant_id": tenant, "stripe_connected_account_id": account });
            world.put("TenantsTable", row).await?;
        }
        Ok(Box::leak(Box::new(Self {
            world,
            name,
            stripe,
            to_aws,
            to_stripe,
            _aws: aws,
        })))
    }

    fn function(&self, name: &str) -> String {
        format!("{}-{name}", self.name)
    }

    async fn put_all(&self, table: &str, rows: Vec<Value>) -> Result<()> {
        let name = self.world.stack.output(table)?;
        for rows in rows.chunks(25) {
            let mut writes = Vec::new();
            for row in rows {
                let put = PutRequest::builder().set_item(Some(serde_dynamo::to_item(row)?));
                writes.push(WriteRequest::builder().put_request(put.build()?).build());
            }
            let write = self.world.aws.dynamodb().batch_write_item();
            write.request_items(name, writes).send().await?;
        }
        Ok(())
    }

    /// Sends them, so many at once, each as often as it takes; how many tries that were.
    async fn send(&'static self, deliveries: Vec<Sent>) -> Result<usize> {
        let queue = Arc::new(Mutex::new(VecDeque::from(deliveries)));
        let senders = (0..SENDERS).map(|_| {
            let queue = Arc::clone(&queue);
            async move {
                let mut tries = 0;
                loop {
                    let next = queue.lock().unwrap().pop_front();
                    let Some(next) = next else {
                        break anyhow::Ok(tries);
                    };
                    tries += self.send_one(next).await?;
                }
            }
        });
        let mut tries = 0;
        for sender in senders.map(tokio::spawn).collect::<Vec<_>>() {
            tries += sender.await??;
        }
        Ok(tries)
    }

    async fn send_one(&self, sent: Sent) -> Result<usize> {
        match sent {
            Sent::Stripe(event) => {
                let report = self.stripe.deliver(Delivery::of(event)).await;
                let [delivered] = report.deliveries.as_slice() else {
                    panic!("one endpoint wants it: {report:?}");
                };
                assert!(delivered.delivered, "{report:?}");
                for attempt in &delivered.attempts {
                    assert!(is_honest(attempt.status), "{attempt:?}");
                }
                Ok(delivered.attempts.len())
            }
            Sent::Lob(event) => {
                for tries in 1.. {
                    match self.world.lob(&event).await {
                        Ok(answer) if answer.status == 200 => return Ok(tries),
                        Ok(answer) => assert!(is_honest(Some(answer.status)), "{answer:?}"),
                        Err(_) => {}
                    }
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                unreachable!("it is sent until it is taken")
            }
        }
    }

    /// Waits until no event is open but those that are parked for good, and no message is on its way.
    async fn recovered(&self) -> Result<Duration> {
        let begun = Instant::now();
        let world = &self.world;
        while begun.elapsed() < RECOVERY_MAX {
            let mut left = 0;
            for queue in ["StripeEventsQueueUrl", "LobEventsQueueUrl"] {
                left += world.depth(queue).await?;
            }
            if left == 0 {
                return Ok(begun.elapsed());
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        panic!("messages are left after {RECOVERY_MAX:?}")
    }

    /// Hands batches to the worker as Lambda does where groups are many: the local AWS has one batch under way at a
    /// time.
    async fn poll(&self) -> Result<()> {
        let world = &self.world;
        let queue = world.stack.output("StripeEventsQueueUrl")?;
        loop {
            let receive = world.aws.sqs().receive_message().queue_url(queue);
            // The functions' clients give up before a long poll of the queue's 20 s would end.
            let receive = receive.wait_time_seconds(0);
            let receive = receive
                .max_number_of_messages(10)
                .message_system_attribute_names(MessageSystemAttributeName::All);
            // What a busy machine did not answer in time is received again.
            let received = receive.send().await.ok();
            let messages = received.and_then(|received| received.messages);
            let messages = messages.unwrap_or_default();
            if messages.is_empty() {
                tokio::time::sleep(Duration::from_millis(200)).await;
                continue;
            }
            let records = messages.iter().map(|message| {
                let attributes = message.attributes.iter().flatten();
                let attributes = attributes.map(|(name, value)| (name.as_str(), value.as_str()));
                json!({ "messageId": message.message_id, "receiptHandle": message.receipt_handle,
                    "body": message.body, "attributes": attributes.collect::<BTreeMap<_, _>>(),
                    "messageAttributes": {}, "eventSource": "aws:sqs" })
            });
            let batch = json!({ "Records": records.collect::<Vec<_>>() });
            let answer = invoke(world, "StripeWorkerFunction", &batch).await;
            // A function that was killed has none: all of it is received again.
            let Some(failures) = answer
                .ok()
                .and_then(|a| a["batchItemFailures"].as_array().cloned())
            else {
                continue;
            };
            for message in &messages {
                let id = message.message_id.as_deref().unwrap_or_default();
                if failures
                    .iter()
                    .any(|failure| failure["itemIdentifier"] == id)
                {
                    continue;
                }
                let delete = world.aws.sqs().delete_message().queue_url(queue);
                let receipt = message.receipt_handle.as_deref().unwrap_or_default();
                // One that took too long is received again, and changes nothing.
                delete.receipt_handle(receipt).send().await.ok();
            }
        }
    }

    async fn no_dead_letters(&self) -> Result<()> {
        for queue in ["StripeEventsDlqUrl", "LobEventsDlqUrl"] {
            assert_eq!(self.world.depth(queue).await?, 0, "{queue}");
        }
        Ok(())
    }

    /// The rows of a table, by key.
    async fn rows(&self, table: &str, key: &str) -> Result<BTreeMap<String, Value>> {
        let rows = self.world.rows(table).await?;
        let by_key = rows.into_iter().map(|row| {
            let id = row[key].as_str().unwrap_or_default().to_owned();
            (id, row)
        });
        Ok(by_key.collect())
    }

    /// Looks through all that the stage wrote: every line of every function, every message, every column but payloads.
    async fn keeps_everything_to_itself(&self) -> Result<()> {
        self.world.keeps_its_secrets().await?;
        let mut texts = self.to_aws.messages();
        assert!(!texts.is_empty());
        for message in &texts {
            assert!(message.is_ascii() && message.len() < 2048, "{message}");
        }
        for function in [
            "WebhookIngressFunction",
            "StripeWorkerFunction",
            "LobWorkerFunction",
            "CleanupFailedPaymentsFunction",
            "WebhookSecretFunction",
        ] {
            texts.extend(self.world.logs(function).await?);
        }
        for table in [
            STRIPE,
            LOB,
            "OrdersTable",
            "StatementsTable",
            "TenantsTable",
            "EntitiesTable",
            "JobsTable",
        ] {
            for mut row in self.world.rows(table).await? {
                row.as_object_mut().unwrap().remove("payload");
                texts.push(row.to_string());
            }
        }
        let secrets = [
            TEST_KEY,
            LOB_SECRET,
            "whsec_",
            "v1=",
            "v0=",
            "Lob-Signature",
        ];
        for text in &texts {
            for canary in secrets.iter().chain(&PERSONAL) {
                assert!(!text.contains(canary), "{canary} stands in {text}");
            }
        }
        println!(
            "looked for secrets and personal data in {} texts",
            texts.len()
        );
        Ok(())
    }
}

/// Something to deliver.
#[derive(Clone)]
enum Sent {
    Stripe(Value),
    Lob(Value),
}

/// Taken, not taken for now, or no answer at all: never a refusal of what is genuine.
fn is_honest(status: Option<u16>) -> bool {
    // 502 is the gateway's word for a function that was killed.
    matches!(status, Some(200 | 429 | 502 | 503 | 504) | None)
}

/// So many events, each twice, in any order, while calls fail at the wire and functions are killed.
async fn storm(arena: &'static Arena, events: usize, per_mille: usize) -> Result<()> {
    let world = &arena.world;
    let mut random = Random::new(SEED);
    let (mut stories, mut letters) = (Vec::new(), Vec::new());
    let (mut deliveries, mut outcomes) = (Vec::new(), BTreeMap::new());
    for n in 0.. {
        if deliveries.len() >= events {
            break;
        }
        if n % 7 == 6 {
            let letter = Letter::random(n, &mut random);
            for (id, body) in letter.events() {
                outcomes.insert(id, "processed");
                deliveries.push(Sent::Lob(body));
            }
            letters.push(letter);
        } else {
            let story = Story::random(n, world.now_s(), &mut random);
            outcomes.extend(story.outcomes());
            deliveries.extend(story.bodies().map(Sent::Stripe));
            stories.push(story);
        }
    }
    let told = deliveries.len();
    arena
        .put_all("OrdersTable", stories.iter().map(Story::row).collect())
        .await?;
    arena
        .put_all("StatementsTable", letters.iter().map(Letter::row).collect())
        .await?;
    deliveries.extend(deliveries.clone());
    random.shuffle(&mut deliveries);

    let begun = Instant::now();
    arena.to_aws.disturb(SEED, per_mille);
    let kills = tokio::spawn(async move {
        let (ingress, worker) = (
            arena.function("webhook-ingress"),
            arena.function("stripe-worker"),
        );
        let letters = arena.function("lob-worker");
        for n in 0.. {
            let (operation, function) = match n % 6 {
                0 => ("PutItem", &ingress),
                1 => ("TransactWriteItems", &worker),
                2 => ("SendMessage", &ingress),
                3 => ("BatchGetItem", &letters),
                4 => ("TransactWriteItems", &worker),
                _ => ("Query", &worker),
            };
            let function = function.clone();
            let kill = match n % 2 {
                0 => Fault::Kill { function },
                _ => Fault::KillAfter { function },
            };
            arena.to_aws.plan(operation, [kill]);
            tokio::time::sleep(Duration::from_secs(8)).await;
        }
    });
    let pollers: Vec<_> = (0..POLLERS).map(|_| tokio::spawn(arena.poll())).collect();
    let tries = arena.send(deliveries).await?;
    let sent_in = begun.elapsed();
    kills.abort();
    let recovered = arena.recovered().await?;
    let took = begun.elapsed();
    for poller in pollers {
        assert!(!poller.is_finished(), "{:?}", poller.await);
        poller.abort();
    }
    arena.to_aws.heal();
    arena.no_dead_letters().await?;

    let mut found = BTreeMap::new();
    for table in [STRIPE, LOB] {
        for (id, row) in arena.rows(table, "event_id").await? {
            let outcome = row["processing_outcome"].as_str().unwrap_or_default();
            found.insert(id, outcome.to_owned());
        }
    }
    let lost: Vec<_> = outcomes
        .iter()
        .filter(|(id, outcome)| found.get(*id).map(String::as_str) != Some(outcome))
        .map(|(id, _)| (id, found.get(id)))
        .collect();
    assert!(lost.is_empty(), "{} of {told}: {lost:?}", lost.len());
    assert_eq!(found.len(), told, "nothing was made up");
    let rows = arena.rows("OrdersTable", "id").await?;
    for story in &stories {
        let row = &rows[&story.order()];
        assert_eq!(story.found(row), story.expected(), "{story:?}: {row}");
    }
    let rows = arena.rows("StatementsTable", "statement_id").await?;
    for letter in &letters {
        let row = &rows[&letter.statement()];
        let found = types(row).into_iter().map(str::to_owned).collect();
        let status = row["mail_status"].as_str().unwrap_or_default().to_owned();
        assert_eq!((status, found), letter.expected(), "{letter:?}: {row}");
    }
    let rate = u64::try_from(2 * told)? / sent_in.as_secs().max(1);
    println!(
        "{told} events x 2, {} orders and {} letters: {tries} tries, sent in {} s ({rate} deliveries/s), \
         settled {} s later, {} s in all; every row as the oracle says",
        stories.len(),
        letters.len(),
        sent_in.as_secs(),
        recovered.as_secs(),
        took.as_secs(),
    );
    let calls: usize = arena.to_aws.calls().values().sum();
    let faults = arena.to_aws.faults();
    println!("of {calls} calls failed: {faults:?}");
    assert_eq!(faults.len(), 6, "every kind of fault was met");
    arena.keeps_everything_to_itself().await
}

/// What is out of reach, and how calls to it begin at the wire.
#[derive(Clone, Copy, Debug)]
enum Dependency {
    DynamoDb,
    Sqs,
    SecretsManager,
    Stripe,
}

impl Dependency {
    fn cut(self, arena: &Arena) -> &Proxy {
        let (proxy, target) = match self {
            Self::DynamoDb => (&arena.to_aws, "DynamoDB"),
            Self::Sqs => (&arena.to_aws, "AmazonSQS"),
            Self::SecretsManager => (&arena.to_aws, "secretsmanager"),
            Self::Stripe => (&arena.to_stripe, ""),
        };
        proxy.cut(target);
        proxy
    }
}

const OUTAGE: Duration = Duration::from_secs(60);
/// Told just before an outage, and as many in the course of it.
const STORIES: usize = 25;

/// A dependency goes while events are on their way and more of them come, and all that works by the clock goes on.
async fn outage(arena: &'static Arena, dependency: Dependency, first: usize) -> Result<()> {
    let world = &arena.world;
    let mut random = Random::new(SEED);
    let stories: Vec<Story> = (first..first + 2 * STORIES)
        .map(|n| Story::random(n, world.now_s(), &mut random))
        .collect();
    let rows = stories.iter().map(Story::row).collect();
    arena.put_all("OrdersTable", rows).await?;
    let outcomes: BTreeMap<_, _> = stories.iter().flat_map(Story::outcomes).collect();
    let all: Vec<Sent> = stories
        .iter()
        .flat_map(Story::bodies)
        .map(Sent::Stripe)
        .collect();
    let (before, during) = all.split_at(all.len() / 2);
    let stale = stale_orders(arena, first).await?;
    let missed = format!("evt_{first}_missed");

    // What is warm would not ask for its secrets for minutes.
    kill(&arena.function("webhook-ingress"));
    let pollers: Vec<_> = (0..POLLERS).map(|_| tokio::spawn(arena.poll())).collect();
    let sent_before = arena.send(before.to_vec()).await?;
    if let Dependency::SecretsManager = dependency {
        kill(&arena.function("webhook-ingress"));
    }
    let failed =
        |proxy: &Proxy| -> usize { proxy.faults().values().flat_map(BTreeMap::values).sum() };
    let (begun, failed_before) = (
        Instant::now(),
        failed(&arena.to_aws) + failed(&arena.to_stripe),
    );
    let proxy = dependency.cut(arena);
    let created = world.now_s() - 60;
    arena.stripe.put(
        None,
        intent_succeeded(&missed, created, "pi_missed", json!({}), 4200),
    );
    let tasks = ["cleanup", "reconcile", "sweep"].map(|task| json!({ "task": task }));
    let into_it = tasks.clone();
    let failing = tokio::spawn(async move {
        for task in &into_it {
            invoke(world, "CleanupFailedPaymentsFunction", task)
                .await
                .ok();
        }
    });
    let mut sending = Vec::new();
    let pace = OUTAGE / u32::try_from(during.len())?;
    for sent in during {
        sending.push(tokio::spawn(arena.send_one(sent.clone())));
        tokio::time::sleep(pace).await;
    }
    tokio::time::sleep(OUTAGE.saturating_sub(begun.elapsed())).await;
    let lasted = begun.elapsed();
    proxy.heal();

    let healed = Instant::now();
    failing.await?;
    let mut sent_during = 0;
    for sent in sending {
        sent_during += sent.await??;
    }
    if let Dependency::Sqs = dependency {
        // Stored, and never told to a worker. Nobody delivers it again: the sweep sends it, 10 minutes after it came.
        scheduled::age(world, &missed, 601).await?;
    }
    for task in &tasks {
        invoke(world, "CleanupFailedPaymentsFunction", task).await?;
    }
    arena.recovered().await?;
    for (id, outcome) in &outcomes {
        world.settled(STRIPE, outcome, &[id]).await?;
    }
    world.settled(STRIPE, "processed", &[&missed]).await?;
    let took = healed.elapsed();
    assert!(took < RECOVERY_MAX, "{took:?}");
    for poller in pollers {
        assert!(!poller.is_finished(), "{:?}", poller.await);
        poller.abort();
    }
    arena.no_dead_letters().await?;
    for story in &stories {
        let row = world.order(&story.order()).await?;
        assert_eq!(story.found(&row), story.expected(), "{story:?}: {row}");
    }
    for id in stale {
        assert_eq!(world.order(&id).await?["status"], "cancelled", "{id}");
    }
    let failed = failed(&arena.to_aws) + failed(&arena.to_stripe) - failed_before;
    assert!(failed > 0, "nobody missed it");
    println!(
        "{dependency:?} out of reach for {} s: {failed} calls failed, {} deliveries took {} tries; \
         all terminal {} s after it was back, dead letters 0",
        lasted.as_secs(),
        all.len(),
        sent_before + sent_during,
        took.as_secs(),
    );
    arena.keeps_everything_to_itself().await
}

/// Orders whose payment failed long ago and that the cleanup has to end at Stripe.
async fn stale_orders(arena: &'static Arena, first: usize) -> Result<Vec<String>> {
    let world = &arena.world;
    let (mut orders, mut events) = (Vec::new(), Vec::new());
    for n in 0..5 {
        let (id, intent) = (format!("ord_{first}_s{n}"), format!("pi_{first}_s{n}"));
        order(world, &id, None).await?;
        let open = json!({ "id": intent, "object": "payment_intent", "livemode": false, "amount": 4200,
            "currency": "usd", "status": "requires_payment_method", "metadata": {} });
        arena.stripe.put(None, open);
        let long_ago = world.now_s() - 2 * 60 * 60;
        let event = format!("evt_{first}_s{n}");
        let failed = intent_failed(&event, long_ago, &intent, named(&id), "ch_stale");
        events.push(Sent::Stripe(failed));
        orders.push(id);
    }
    arena.send(events).await?;
    arena.recovered().await?;
    Ok(orders)
}

#[test]
fn dynamodb_out_of_reach_for_a_minute_leaves_nothing_behind() {
    run(async { outage(Arena::deploy("outage").await?, Dependency::DynamoDb, 0).await });
}

#[test]
#[ignore = "takes 6 minutes"]
fn each_dependency_out_of_reach_for_a_minute_leaves_nothing_behind() {
    run(async {
        let arena = Arena::deploy("outages").await?;
        for (n, dependency) in [
            Dependency::Sqs,
            Dependency::SecretsManager,
            Dependency::Stripe,
            Dependency::DynamoDb,
        ]
        .into_iter()
        .enumerate()
        {
            outage(arena, dependency, 1_000 * n).await?;
        }
        Ok(())
    });
}

fn run(work: impl Future<Output = Result<()>>) {
    RUNTIME.block_on(work).unwrap();
}

#[test]
#[ignore = "takes 10 minutes"]
fn ten_thousand_events_in_a_storm_are_each_applied_once() {
    run(async { storm(Arena::deploy("storm").await?, 10_000, 50).await });
}
