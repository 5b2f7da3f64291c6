//! Secret rotation while deliveries arrive: Stripe's endpoints and their secrets with the stack that owns them, and
//! secrets that a person stores. No genuine delivery may be refused.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use billhook_adapters::clock::SystemClock;
use billhook_adapters::secrets::{self, SecretsManager};
use billhook_core::endpoint::secret::SecretKind;
use billhook_core::ports::Clock as _;
use billhook_core::tasks::checkpoint::{DONE_THROUGH_S, reconcile_cursor_key};
use billhook_testkit::stripe::{Delivered, Delivery, Fault as StripeFault};
use billhook_tests::world::LOB_SECRET;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use super::*;

/// Between two events: 25 in a second, and up to twice as many deliveries while old and new endpoints live.
const EVENT_INTERVAL: Duration = Duration::from_millis(40);
/// More events than this are not on their way at once, as at Stripe: a slow machine is not swamped.
const EVENTS_MAX: usize = 50;

/// The endpoints that Stripe holds for a URL, by id, with whether they are for connected accounts.
pub(super) fn endpoints(stripe: &LocalStripe, url: &str) -> BTreeMap<String, bool> {
    let state = stripe.state();
    let spaces = state["spaces"].as_array().unwrap().iter();
    let objects = spaces.flat_map(|space| space["objects"].as_array().unwrap());
    objects
        .filter(|object| object["object"] == "webhook_endpoint" && object["url"] == url)
        .map(|endpoint| {
            let id = endpoint["id"].as_str().unwrap();
            (id.to_owned(), state["endpoints"][id]["connect"] == true)
        })
        .collect()
}

impl Stage {
    pub(super) fn endpoints(&self) -> BTreeMap<String, bool> {
        endpoints(&self.stripe, &self.world.stack.url("/webhooks/stripe"))
    }

    /// The parameters of the stage's own stack, and another token.
    async fn rotate(&self, token: &str) -> Result<()> {
        let app = self.name.trim_end_matches("-test");
        let parameters = [("AppName", app), ("Env", "test"), ("RotationToken", token)];
        self.world.update(&self.aws, &parameters).await.map(drop)
    }
}

/// Payments in a steady stream, every other one of a connected account, from now until it is asked for.
struct Load {
    ends: Arc<AtomicBool>,
    delivered: Arc<AtomicUsize>,
    running: tokio::task::JoinHandle<Vec<(String, Vec<Delivered>)>>,
    since: Instant,
}

impl Load {
    fn begin(stage: &'static Stage, name: &'static str) -> Self {
        let ends = Arc::new(AtomicBool::new(false));
        let delivered = Arc::<AtomicUsize>::default();
        let (ended, counted) = (Arc::clone(&ends), Arc::clone(&delivered));
        let running = tokio::spawn(async move {
            let mut ticks = tokio::time::interval(EVENT_INTERVAL);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let (mut sending, mut sent) = (JoinSet::new(), Vec::new());
            let mut number = 0;
            while !ended.load(Ordering::SeqCst) {
                ticks.tick().await;
                if sending.len() == EVENTS_MAX {
                    sent.extend(sending.join_next().await.unwrap());
                }
                number += 1;
                let counted = Arc::clone(&counted);
                sending.spawn(async move {
                    let own = format!("{name}{number}");
                    let account = (number % 2 == 0).then(|| "acct_a".to_owned());
                    let tenant = account.as_ref().map(|_| "ten_a");
                    let order_id = format!("ord_{own}");
                    order(&stage.world, &order_id, tenant).await.unwrap();
                    let (id, pi) = (format!("evt_{own}"), format!("pi_{own}"));
                    let now = stage.world.now_s();
                    let event = intent_succeeded(&id, now, &pi, named(&order_id), 4200);
                    let delivery = Delivery {
                        account,
                        ..Delivery::of(event)
                    };
                    let made = stage.stripe.deliver(delivery).await.deliveries;
                    counted.fetch_add(made.len(), Ordering::SeqCst);
                    (id, made)
                });
            }
            sent.extend(sending.join_all().await);
            sent
        });
        Self {
            ends,
            delivered,
            running,
            since: Instant::now(),
        }
    }

    /// How many deliveries each endpoint made; every one was taken at its first attempt, and every event processed.
    async fn end(self, world: &World) -> BTreeMap<String, usize> {
        self.ends.store(true, Ordering::SeqCst);
        let events = self.running.await.unwrap();
        let seconds = usize::try_from(self.since.elapsed().as_secs()).unwrap();
        let mut made = BTreeMap::new();
        for (id, deliveries) in &events {
            assert!(!deliveries.is_empty(), "no endpoint wanted {id}");
            for delivery in deliveries {
                let statuses: Vec<_> = delivery.attempts.iter().map(|a| a.status).collect();
                assert_eq!(statuses, [Some(200)], "{id}: {:?}", delivery.attempts);
                *made.entry(delivery.endpoint.clone()).or_default() += 1;
            }
        }
        for (id, _) in &events {
            world.settled(STRIPE, "processed", &[id]).await.unwrap();
        }
        let total: usize = made.values().sum();
        println!(
            "{} events, {total} deliveries in {seconds} s: {made:?}",
            events.len()
        );
        assert!(total >= 20 * seconds, "{total} deliveries in {seconds} s");
        made
    }
}

#[test]
fn two_thousand_deliveries_cross_a_rotation_and_none_is_rejected_or_lost() {
    flow(true, async |stage| {
        let world = &stage.world;
        let old = stage.endpoints();
        assert_eq!(old.len(), 2, "{old:?}");
        let first = signing_secret(world, "StripePlatformWebhookSecretArn").await?;
        let (ahead, behind) = (world.now_s(), world.now_s() - 10 * 86_400);
        let (platform, account) = (
            reconcile_cursor_key(None, 0),
            "reconcile#acct_b#0".to_owned(),
        );
        let rows = [
            (platform.as_str(), ahead),
            (&account, behind),
            ("sweep_of_flows", ahead),
        ];
        for (id, at) in rows {
            world
                .put("JobsTable", json!({ JOB_ID: id, DONE_THROUGH_S: at }))
                .await?;
        }

        let load = Load::begin(stage, "load");
        stage.rotate("load").await?;
        let new = stage.endpoints();
        assert_eq!(new.len(), 2, "{new:?}");
        assert!(
            new.keys().all(|id| !old.contains_key(id)),
            "{old:?} {new:?}"
        );
        // What the old endpoints signed last may still be on its way.
        let now = world.now_s();
        order(world, "ord_loadlate", None).await?;
        let late = intent_succeeded(
            "evt_loadlate",
            now,
            "pi_loadlate",
            named("ord_loadlate"),
            4200,
        );
        let late = late.to_string();
        let header = sign_stripe(late.as_bytes(), &first, now);
        let headers = [("Stripe-Signature", &*header)];
        let path = "/webhooks/stripe";
        let answer = world
            .request("POST", path, &headers, late.as_bytes())
            .await?;
        assert_eq!(answer.status, 200, "{answer:?}");
        // 2,000 at least, all from first to last at this rate; a busy machine takes longer.
        tokio::time::sleep(Duration::from_secs(80).saturating_sub(load.since.elapsed())).await;
        let is_enough = async || Ok(load.delivered.load(Ordering::SeqCst) >= 2_000);
        assert!(world.until(is_enough).await?);
        let made = load.end(world).await;
        assert!(made.values().sum::<usize>() >= 2_000, "{made:?}");
        assert_eq!(made.len(), 4, "both endpoints, before and after: {made:?}");
        assert!(made.values().all(|count| *count >= 100), "{made:?}");
        world
            .settled(STRIPE, "processed", &["evt_loadlate"])
            .await?;

        for (id, at) in rows {
            let row = world.row("JobsTable", JOB_ID, id).await?.unwrap();
            let stands = row[DONE_THROUGH_S].as_i64().unwrap();
            if id == platform {
                let from = ahead - 3 * 86_400;
                assert!((from..from + 300).contains(&stands), "{row}");
            } else {
                assert_eq!(stands, at, "{id}");
            }
            let table = world.stack.output("JobsTable")?;
            let key = AttributeValue::S(id.to_owned());
            let delete = world.aws.dynamodb().delete_item().table_name(table);
            delete.key(JOB_ID, key).send().await?;
        }
        Ok(())
    });
}

/// Only with deliveries that are genuine, or were until then: no unknown signature makes an instance read the secrets again.
#[test]
fn a_revoked_secret_is_refused_by_every_running_instance() {
    flow(true, async |stage| {
        let world = &stage.world;
        let function = world.stack.output("WebhookIngressFunction")?;
        // An instance reads the secrets again after seconds instead of minutes.
        let ttl = world.variables(function).await?["SECRETS_TTL_SECONDS"].clone();
        world
            .set_variable(function, "SECRETS_TTL_SECONDS", "5")
            .await?;
        let arns = ["StripePlatformWebhookSecretArn", "StripeWebhookSecretArn"];
        let mut old = Vec::new();
        for arn in arns {
            old.push(signing_secret(world, arn).await?);
        }
        stage.rotate("revoked").await?;
        let current = signing_secret(world, arns[0]).await?;

        let event = |account: bool| {
            let id = format!("evt_revoked_{account}");
            let object = json!({ "id": "cus_1", "object": "customer" });
            let event = stripe(&id, "customer.created", world.now_s(), object);
            match account {
                true => from_account(event, "acct_a"),
                false => event,
            }
        };
        let (of_platform, of_account) = (event(false), event(true));
        // Several at once, so that several instances answer.
        let statuses = async |secret: &str, event: &Value| -> Result<Vec<u16>> {
            let body = event.to_string();
            let header = sign_stripe(body.as_bytes(), secret, world.now_s());
            let headers = [("Stripe-Signature", &*header)];
            let requests = (0..8)
                .map(|_| world.request("POST", "/webhooks/stripe", &headers, body.as_bytes()));
            let answers = futures_util::future::try_join_all(requests).await?;
            Ok(answers.iter().map(|answer| answer.status).collect())
        };
        for (secret, event) in [(&old[0], &of_platform), (&old[1], &of_account)] {
            assert_eq!(statuses(secret, event).await?, [200; 8]);
        }
        let revoke = "secrets revoke stripe";
        let preview = operator::run_billhook(stage, revoke).await?;
        preview.assert_exit(4, "nothing was changed");
        assert_eq!(statuses(&old[0], &of_platform).await?, [200; 8]);
        let revoked =
            operator::run_billhook(stage, &format!("{revoke} --reason leaked --yes")).await?;
        revoked.assert_exit(0, "refused within 15 minutes");
        for (secret, event) in [(&old[0], &of_platform), (&old[1], &of_account)] {
            let refused = async || Ok(statuses(secret, event).await? == [400; 8]);
            assert!(world.until(refused).await?);
            assert_eq!(statuses(secret, event).await?, [400; 8], "and stays so");
        }
        assert_eq!(statuses(&current, &of_platform).await?, [200; 8]);
        world
            .set_variable(function, "SECRETS_TTL_SECONDS", &ttl)
            .await
    });
}

#[test]
fn a_new_key_seals_new_events_and_those_of_the_key_before_stay_genuine() {
    flow(true, async |stage| {
        let world = &stage.world;
        let key_of = async |id: &str| -> Result<Vec<u8>> {
            let get = world.aws.dynamodb().get_item();
            let get = get.table_name(world.stack.output(STRIPE)?);
            let row = get
                .key("event_id", AttributeValue::S(id.to_owned()))
                .send()
                .await?;
            let seal = row.item.unwrap()["seal"].as_b().unwrap().clone();
            // The first bytes name the key.
            Ok(seal.as_ref()[..4].to_vec())
        };
        let pay = async |of: &str| -> Result<()> {
            let (event, intent, order_id) =
                (format!("evt_{of}"), format!("pi_{of}"), format!("ord_{of}"));
            order(world, &order_id, None).await?;
            let paid = intent_succeeded(&event, world.now_s(), &intent, named(&order_id), 4200);
            world.stripe(&paid, 1).await?;
            world.settled(STRIPE, "processed", &[&event]).await
        };
        pay("sealed_1").await?;
        // As CloudFormation asks for it when the stack has a new SealRotationToken.
        let secret = world.variables(world.stack.output("WebhookSecretFunction")?);
        let with_token = |token: &str| json!({ "ServiceToken": "arn", "RotationToken": token });
        let update = json!({
            "RequestType": "Update", "RequestId": "seal", "StackId": secret.await?["STACK_ID"],
            "ResponseURL": format!("{}/_ministack/cfn-response/seal", stage.aws.endpoint()),
            "ResourceType": "Custom::SealKeys", "LogicalResourceId": "SealKeys",
            "PhysicalResourceId": "seal-keys", "ResourceProperties": with_token("2"),
            "OldResourceProperties": with_token("1"),
        });
        let answer = invoke(world, "WebhookSecretFunction", &update).await?;
        assert_eq!(answer.get("errorMessage"), None, "{answer}");
        // An instance that runs uses the key before for 5 minutes more.
        let function = world.stack.output("WebhookIngressFunction")?;
        world
            .set_variable(function, "TYPE_METRICS", "false")
            .await?;
        // The workers that run do not know the new key yet.
        pay("sealed_2").await?;
        assert_ne!(key_of("evt_sealed_2").await?, key_of("evt_sealed_1").await?);
        let again = "replay evt_sealed_1 --force --reason again --yes";
        operator::run_billhook(stage, again)
            .await?
            .assert_exit(0, "");
        world
            .settled(STRIPE, "processed", &["evt_sealed_1"])
            .await?;
        assert_eq!(world.order("ord_sealed_1").await?["status"], "completed");
        world.set_variable(function, "TYPE_METRICS", "true").await
    });
}

#[test]
fn an_update_that_fails_after_a_replacement_rolls_back_to_endpoints_that_work() {
    flow(true, async |stage| {
        let world = &stage.world;
        let before = stage.endpoints();
        let secrets = ["StripeWebhookSecretArn", "StripePlatformWebhookSecretArn"];
        let mut known = Vec::new();
        for output in secrets {
            known.push(signing_secret(world, output).await?);
        }
        let load = Load::begin(stage, "back");
        // One endpoint is replaced in four calls; the second's creation fails.
        stage.stripe.fault(StripeFault {
            status: Some(500),
            should_retry: Some(false),
            after: 5,
            ..StripeFault::default()
        });
        let failed = format!("{:#}", stage.rotate("fails").await.unwrap_err());
        for told in ["stripe answered 500", "UPDATE_ROLLBACK_COMPLETE"] {
            assert!(failed.contains(told), "{failed}");
        }
        assert_eq!(stage.endpoints(), before);
        for (output, known) in secrets.iter().zip(&known) {
            assert_eq!(&signing_secret(world, output).await?, known, "{output}");
        }
        let made = load.end(world).await;
        assert_eq!(made.len(), 3, "one was replaced, and came back: {made:?}");
        // And after it.
        let load = Load::begin(stage, "after");
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert_eq!(load.end(world).await.len(), 2);
        Ok(())
    });
}

#[test]
fn a_stacks_endpoints_are_made_and_removed_with_it() {
    flow(false, async |stage| {
        let app = format!("life{}", std::process::id());
        let name = format!("{app}-test");
        let parameters = [
            ("AppName", app.as_str()),
            ("Env", "test"),
            ("OrdersTableName", app.as_str()),
        ];
        // A Stripe of its own: the stage's sends to every endpoint it has.
        let stripe = LocalStripe::start(Config::default()).await?;
        // Without a key first, then with it, then rotated.
        let world = World::deploy(&stage.aws, &name, &parameters, &stripe.base_url()).await?;
        let url = world.stack.url("/webhooks/stripe");
        let made = endpoints(&stripe, &url);
        assert_eq!(made.len(), 2);
        let of_accounts = made.values().filter(|connect| **connect);
        assert_eq!(of_accounts.count(), 1, "{made:?}");
        for (output, connect) in [
            ("StripeWebhookEndpointState", true),
            ("StripePlatformWebhookEndpointState", false),
        ] {
            assert_eq!(made.get(world.stack.output(output)?), Some(&connect));
        }
        world.keeps_its_secrets().await?;

        let (aws, stack) = (Arc::clone(&stage.aws), name.clone());
        tokio::task::spawn_blocking(move || delete(&aws, &stack)).await??;
        assert_eq!(endpoints(&stripe, &url).len(), 0);
        Ok(())
    });
}

#[test]
fn a_lob_secret_put_by_hand_is_known_within_10_s_and_no_change_drops_one() {
    flow(true, async |stage| {
        let world = &stage.world;
        let arn = world.stack.output("InboundSecretArn")?;
        let store = SecretsManager::new(&world.aws);
        let wanted = SecretKind::LobSigning;
        let secret = |number: u32| format!("local_lob_webhook_secret_100{number}");
        let delivered = async |secret: &str| -> Result<u16> {
            let at = "2026-11-21T08:00:00.000Z";
            let event = letter("evt_byhand", at, "ltr_byhand", "unheard_of");
            Ok(world.lob_with(secret, &event).await?.status)
        };
        assert_eq!(delivered(LOB_SECRET).await?, 200);
        // From here on it is a duplicate: only the proof matters.
        world.settled(LOB, "ignored", &["evt_byhand"]).await?;

        let text = world
            .aws
            .secrets_manager()
            .get_secret_value()
            .secret_id(arn);
        let text = text.send().await?.secret_string.unwrap();
        let put = world
            .aws
            .secrets_manager()
            .put_secret_value()
            .secret_id(arn);
        put.secret_string(text.replace(LOB_SECRET, &secret(2)))
            .send()
            .await?;
        let since = Instant::now();
        let mut refused_at = Duration::ZERO;
        while since.elapsed() < Duration::from_secs(12) {
            let sent_at = since.elapsed();
            if delivered(&secret(2)).await? != 200 {
                refused_at = sent_at;
            }
            assert_eq!(delivered(LOB_SECRET).await?, 200, "the one before");
        }
        assert!(refused_at <= Duration::from_secs(10), "{refused_at:?}");

        // Another key of the same JSON, then a typo, then what was meant.
        for (member, value) in [
            ("telnyx_api_key", "KEY2".to_owned()),
            ("lob_webhook_secret", secret(3)),
            ("lob_webhook_secret", secret(4)),
        ] {
            let members = [(member, value.into())];
            secrets::change_members(&store, arn, wanted, &members, SystemClock.now()).await?;
        }
        let known = world
            .until(async || Ok(delivered(&secret(4)).await? == 200))
            .await?;
        assert!(known);
        for number in [2, 3, 4] {
            assert_eq!(delivered(&secret(number)).await?, 200, "{number}");
        }
        assert_eq!(delivered(LOB_SECRET).await?, 200);

        let members = [("lob_webhook_secret", LOB_SECRET.into())];
        secrets::revoke_replaced(&store, arn, wanted, &members, SystemClock.now()).await?;
        // Whoever guesses makes the function look again.
        let refused = world
            .until(async || {
                delivered("guessed").await?;
                Ok(delivered(&secret(4)).await? == 400)
            })
            .await?;
        assert!(refused);
        assert_eq!(delivered(LOB_SECRET).await?, 200);

        // A change that is taken back: the one before is current again, and both prove.
        let members = [("lob_webhook_secret", secret(5).into())];
        secrets::change_members(&store, arn, wanted, &members, SystemClock.now()).await?;
        secrets::roll_back_secret(&store, arn, wanted, SystemClock.now()).await?;
        let current = world.aws.secrets_manager().get_secret_value();
        let current = current.secret_id(arn).send().await?.secret_string.unwrap();
        let current: Value = serde_json::from_str(&current)?;
        assert_eq!(current["lob_webhook_secret"], LOB_SECRET);
        let both = world
            .until(async || Ok(delivered(&secret(5)).await? == 200))
            .await?;
        assert!(both);
        assert_eq!(delivered(LOB_SECRET).await?, 200);
        let logged = world
            .logged("WebhookIngressFunction", "secret_refreshed")
            .await?;
        assert!(
            !logged.is_empty(),
            "logs can be read, and secrets looked for in them"
        );
        Ok(())
    });
}
