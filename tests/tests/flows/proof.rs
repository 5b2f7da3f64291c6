//! `billhook prove` over thousands of orders: what it names is damaged, all that is damaged is named, and what can be
//! mended is as before.

mod clones;
mod damages;
mod scale;

mod templates;

use std::collections::BTreeSet;
use std::io::Write as _;
use std::process::Child;
use std::time::Instant;

use clones::{Item, OrderRows, all_rows, put_orders, text};
use damages::{DAMAGES, DamageKind, DamagedOrder, EventsLeft};
use templates::{ACCOUNT, TENANT, TemplateOrders, token};

use super::operator::{CommandOutcome, command_for, interrupt_billhook, wait_for_exit};
use super::*;

/// An environment of its own, whose tables have only what this file puts there.
struct ProofStage {
    world: World,
    name: String,
    stripe: LocalStripe,
    aws: Arc<LocalAws>,
    /// Counts the calls of `billhook`.
    proxy: Proxy,
}

impl ProofStage {
    async fn deploy(label: &str) -> Result<Self> {
        let app = format!("{label}{}", std::process::id());
        let name = format!("{app}-test");
        let stripe = LocalStripe::start(Config::default()).await?;
        let (aws, _) = start_recorded_aws(label).await?;
        let proxy = start_tool_proxy(label, &aws).await?;
        let parameters = [("AppName", app.as_str()), ("Env", "test")];
        let world = World::deploy(&aws, &name, &parameters, &stripe.base_url()).await?;
        let row = json!({ "tenant_id": TENANT, "stripe_connected_account_id": ACCOUNT });
        world.put("TenantsTable", row).await?;
        Ok(Self {
            world,
            name,
            stripe,
            aws,
            proxy,
        })
    }

    fn start(&self, line: &str) -> Result<Child> {
        Ok(command_for(&self.aws, &self.proxy, &self.name, line).spawn()?)
    }

    fn calls(&self, operation: &str) -> usize {
        self.proxy
            .calls()
            .get(operation)
            .copied()
            .unwrap_or_default()
    }

    async fn billhook(&self, line: &str) -> Result<CommandOutcome> {
        let begun = Instant::now();
        let done = wait_for_exit(self.start(line)?).await?;
        println!(
            "{:?}: billhook {}",
            begun.elapsed(),
            &line[..line.len().min(60)]
        );
        for line in done.stderr.lines().take(4) {
            println!("  {line}");
        }
        Ok(done)
    }
}

#[test]
fn proof_names_all_that_is_damaged_and_nothing_else() {
    RUNTIME
        .block_on(async {
            let arena = ProofStage::deploy("proof").await?;
            prove_damaged_orders(&arena).await?;
            arena.world.keeps_its_secrets().await
        })
        .unwrap();
}

/// Orders of one proof; of each kind of damage there are so many.
const ORDERS: usize = 2_000;
const DAMAGED_OF_KIND: usize = 100;
/// Everything arrived today, or shortly before midnight.
const ALL: &str = "prove --all --since 2d";

/// All that was planted.
struct PlantedOrders {
    damaged: Vec<DamagedOrder>,
    whole: Vec<OrderRows>,
}

impl PlantedOrders {
    fn of(templates: &TemplateOrders) -> Self {
        let damaged = DAMAGED_OF_KIND * DAMAGES.len();
        let whole = (damaged..ORDERS).map(|number| {
            let kind = number % templates.kinds.len();
            let token = token(['A', 'B', 'C', 'D'][kind], number + 1);
            let mut rows = templates.kinds[kind].rows.clone_as(&token, 0);
            EventsLeft::of(number / templates.kinds.len()).apply(&mut rows);
            rows
        });
        Self {
            whole: whole.collect(),
            damaged: (0..damaged)
                .map(|number| DamagedOrder::plant(templates, number, 0))
                .collect(),
        }
    }

    async fn put(&self, world: &World) -> Result<()> {
        put_orders(world, &self.whole).await?;
        let after: Vec<OrderRows> = self.damaged.iter().map(|of| of.after.clone()).collect();
        put_orders(world, &after).await
    }
}

/// What a run found: all that is not equal, by the key of its state.
struct ProofOutput(BTreeMap<String, Value>);

impl ProofOutput {
    fn read(outcome: &CommandOutcome) -> Self {
        let document: Value = serde_json::from_str(&outcome.stdout).unwrap();
        let states = document["states"].as_array().unwrap().iter();
        let by_key =
            states.map(|state| (state["state"].as_str().unwrap().to_owned(), state.clone()));
        Self(by_key.collect())
    }

    /// What several runs found, each a part.
    fn read_all(outcomes: &[CommandOutcome]) -> Self {
        let mut all = BTreeMap::new();
        for Self(found) in outcomes.iter().map(Self::read) {
            assert!(!found.is_empty());
            for (key, state) in found {
                assert!(all.insert(key, state).is_none());
            }
        }
        Self(all)
    }

    /// Those of one order, its payment and the payment's other names.
    fn of_order<'f>(&'f self, token: &'f str) -> impl Iterator<Item = &'f Value> {
        let of_order = self.0.iter().filter(move |(key, _)| key.contains(token));
        of_order.map(|(_, state)| state)
    }
}

fn differences(state: &Value) -> impl Iterator<Item = &Value> {
    state["differences"].as_array().unwrap().iter()
}

async fn prove_damaged_orders(arena: &ProofStage) -> Result<()> {
    let world = &arena.world;
    let begun = Instant::now();
    let templates = TemplateOrders::make(world).await?;
    world.drained().await?;
    println!("{:?}: templates", begun.elapsed());
    let whole = arena.billhook(ALL).await?;
    whole.assert_exit(0, " equal, 0 edited, 0 unprovable, 0 different");

    let planted = PlantedOrders::of(&templates);
    planted.put(world).await?;
    println!("{:?}: planted", begun.elapsed());

    let proven = run_in_two_parts(arena, &format!("{ALL} --output json")).await?;
    stop_by_an_outage(arena).await?;
    let found = ProofOutput::read_all(&proven);
    check_named(&planted, &found);
    check_sources(&planted, &found);
    let before = UntouchedRows::read(world).await?;
    check_at_stripe(arena, &planted).await?;
    check_named_state(arena, &planted).await?;

    let repair = format!("{ALL} --repair --reason 'the tables were damaged' --yes --output json");
    let repaired = run_in_two_parts(arena, &repair).await?;
    check_mended(world, &planted).await?;
    before.check(world).await?;
    let again = arena.billhook(&format!("{ALL} --output json")).await?;
    again.assert_exit(4, "different");
    check_left(&planted, &ProofOutput::read(&again));

    let undecided = planted.damaged.iter().filter(|order| order.is_undecided());
    let decided: Vec<OrderRows> = undecided.map(DamagedOrder::decide).collect();
    put_orders(world, &decided).await?;
    let last = arena.billhook(&format!("{ALL} --output json")).await?;
    last.assert_exit(0, " 0 edited, ");
    assert_eq!(ProofOutput::read(&last).0, BTreeMap::new());
    for document in proven.iter().chain(&repaired).chain([&again, &last]) {
        check_form(&document.stdout).await?;
    }
    assert_eq!(
        arena.calls("SendMessage") + arena.calls("SendMessageBatch"),
        0
    );
    Ok(())
}

/// One payment that lost its state, by its key and the events that came since then. A filter that would not count is
/// refused.
async fn check_named_state(arena: &ProofStage, planted: &PlantedOrders) -> Result<()> {
    let is_lost = |order: &&DamagedOrder| {
        let (damage, variant) = (order.damage, order.variant);
        (damage, variant, order.events_left) == (DamageKind::StateMissing, 0, EventsLeft::All)
    };
    let lost = planted.damaged.iter().find(is_lost).unwrap();
    let key = lost.before.payment_key("#pi_");
    let proven = arena
        .billhook(&format!("prove {key} --since 2d --output json"))
        .await?;
    proven.assert_exit(4, "different");
    let found = ProofOutput::read(&proven);
    let mut places = differences(&found.0[&key]).map(|difference| &difference["place"]);
    assert!(places.any(|place| place == "state"), "{:?}", found.0);
    for (line, refusal) in [
        (
            format!("prove {key} --type charge.refunded"),
            "--account and --since",
        ),
        (format!("{ALL} --tenant ten_1"), "only --since"),
        ("prove --sample 1 --since 2d".to_owned(), "no filter"),
        ("prove".to_owned(), "name states"),
    ] {
        arena.billhook(&line).await?.assert_exit(1, refusal);
    }
    let unknown = arena.billhook("prove order#ord_nowhere").await?;
    unknown.assert_exit(3, "there is no order#ord_nowhere");
    Ok(())
}

/// What is left is a person's, and says what has to be decided.
fn check_left(planted: &PlantedOrders, left: &ProofOutput) {
    for order in &planted.damaged {
        let mut about = left.of_order(order.token()).flat_map(differences);
        if !order.is_undecided() {
            assert_eq!(about.next(), None, "{}", order.what());
            continue;
        }
        let about: Vec<&Value> = about.collect();
        assert!(!about.is_empty(), "{}", order.what());
        let is_decided = |of: &&Value| of["decision"].is_string();
        assert!(about.iter().all(is_decided), "{}: {about:?}", order.what());
    }
}

/// Checks a document against its schema, which operators read.
async fn check_form(document: &str) -> Result<()> {
    const CHECK: &str = "import json, sys, jsonschema\n\
        schema = json.load(open(sys.argv[1]))\n\
        jsonschema.Draft202012Validator.check_schema(schema)\n\
        jsonschema.Draft202012Validator(schema).validate(json.load(sys.stdin))";
    let mut python = Command::new(repository().join(".venv/bin/python"));
    python
        .args(["-c", CHECK])
        .arg(repository().join("docs/proof.schema.json"))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut child = python.spawn()?;
    child.stdin.take().unwrap().write_all(document.as_bytes())?;
    let done = tokio::task::spawn_blocking(move || child.wait_with_output()).await??;
    let errors = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{errors}");
    Ok(())
}

/// What no proof and no repair may change.
struct UntouchedRows {
    events: BTreeMap<String, Item>,
    worker_lines: usize,
}

impl UntouchedRows {
    async fn read(world: &World) -> Result<Self> {
        Ok(Self {
            events: all_rows(world, STRIPE, "event_id").await?,
            worker_lines: world.logs("StripeWorkerFunction").await?.len(),
        })
    }

    /// Nothing went to a queue, and no event was processed again but those whose outcome was altered.
    async fn check(&self, world: &World) -> Result<()> {
        let now = Self::read(world).await?;
        assert_eq!(now.worker_lines, self.worker_lines, "the worker was busy");
        world.drained().await?;
        let changed = self
            .events
            .iter()
            .filter(|(id, event)| now.events[*id] != **event);
        let mut reprocessed = 0;
        for (id, event) in changed {
            let after = &now.events[id];
            assert_ne!(text(event, "processing_outcome"), "processed", "{after:?}");
            assert_eq!(text(after, "processing_outcome"), "processed", "{after:?}");
            reprocessed += 1;
        }
        assert_eq!(reprocessed, DAMAGED_OF_KIND);
        assert_eq!(now.events.len(), self.events.len());
        Ok(())
    }
}

/// Of orders with events, those with facts that are wrong everywhere are seen by the events alone.
fn check_sources(planted: &PlantedOrders, found: &ProofOutput) {
    let mut kinds = BTreeSet::new();
    for order in planted.damaged.iter().filter(|of| of.is_everywhere()) {
        if order.is_only_at_stripe() {
            continue;
        }
        let about = found.of_order(order.token());
        let sources: BTreeSet<&str> = about
            .flat_map(differences)
            .map(|of| of["source"].as_str().unwrap())
            .collect();
        assert_eq!(sources, BTreeSet::from(["events"]), "{}", order.token());
        kinds.insert(order.damage);
    }
    let expected = [
        DamageKind::FactDropped,
        DamageKind::FactAltered,
        DamageKind::AmountMisread,
    ];
    assert_eq!(kinds, BTreeSet::from(expected));
}

/// Without events, what is wrong everywhere is unprovable, and Stripe's own objects show it.
async fn check_at_stripe(arena: &ProofStage, planted: &PlantedOrders) -> Result<()> {
    let mut only: Vec<&DamagedOrder> = planted.damaged.iter().collect();
    only.retain(|order| order.is_only_at_stripe());
    let kinds: BTreeSet<DamageKind> = only.iter().map(|order| order.damage).collect();
    assert!(kinds.len() >= 2, "{kinds:?}");
    let mut intents = Vec::new();
    for order in &only {
        for object in order.stripe_objects() {
            arena.stripe.put(None, object);
        }
        intents.push(format!("pi_{}", order.token()));
    }
    let line = format!("prove {} --output json", intents.join(" "));
    let without = arena.billhook(&line).await?;
    let document = without.json();
    let summary = &document["summary"];
    assert_eq!(
        (&document["states"], &summary["different"]),
        (&json!([]), &json!(0))
    );
    // The payment; the others have no events.
    assert_eq!(summary["unprovable"], json!(only.len()), "{summary}");

    let with = arena
        .billhook(&format!("{line} --with-stripe --rate 100"))
        .await?;
    with.assert_exit(4, "different");
    let found = ProofOutput::read(&with);
    assert_eq!(found.0.len(), only.len());
    for order in only {
        let token = order.token();
        let state = &found.0[&order.before.payment_key("#pi_")];
        let place = match order.damage {
            DamageKind::FactDropped => format!("refund re_{token} state"),
            DamageKind::FactAltered => format!("refund re_{token} amount"),
            _ => format!("payment pi_{token} received"),
        };
        assert!(
            differences(state).any(|of| of["place"] == *place),
            "{state}"
        );
        for of in differences(state) {
            assert!(
                of["source"] == "stripe" && of["decision"].is_string(),
                "{of}"
            );
        }
    }
    Ok(())
}

/// Ctrl-C ends a run after a part of it, of which a repair mends what it has found; the command that it prints does the
/// rest.
async fn run_in_two_parts(arena: &ProofStage, command: &str) -> Result<[CommandOutcome; 2]> {
    let before = arena.calls("Scan");
    let running = arena.start(command)?;
    // The second part has begun.
    let has_begun = async || Ok(arena.calls("Scan") > before + 1);
    assert!(arena.world.until(has_begun).await?);
    let cut = interrupt_billhook(running).await?;
    cut.assert_exit(130, "interrupted after ");
    let (_, command) = cut
        .raw_stderr
        .trim()
        .rsplit_once("continue with: ")
        .unwrap();
    let command = command.strip_prefix("billhook ").unwrap();
    let rest = arena.billhook(command).await?;
    rest.assert_exit(4, "different");
    Ok([cut, rest])
}

/// A failure ends a run too, and it says what it has found and how to continue.
async fn stop_by_an_outage(arena: &ProofStage) -> Result<()> {
    let before = arena.calls("Scan");
    let running = arena.start(&format!("{ALL} --output json"))?;
    let has_begun = async || Ok(arena.calls("Scan") > before + 1);
    assert!(arena.world.until(has_begun).await?);
    arena.proxy.cut("DynamoDB");
    let stopped = wait_for_exit(running).await;
    arena.proxy.heal();
    let stopped = stopped?;
    stopped.assert_exit(1, "continue with: billhook ");
    assert!(
        stopped.stderr.contains("stopped after "),
        "{}",
        stopped.stderr
    );
    check_form(&stopped.stdout).await
}

/// Everything that is not left to people is as it was before the damage.
async fn check_mended(world: &World, planted: &PlantedOrders) -> Result<()> {
    let orders = all_rows(world, "OrdersTable", "id").await?;
    let states = all_rows(world, "EntitiesTable", "entity").await?;
    let mut wrong = BTreeMap::<String, usize>::new();
    for order in &planted.damaged {
        if order.is_only_at_stripe() || order.is_undecided() {
            continue;
        }
        let what = order.what();
        let mut compare = |where_: &str, before: Value, after: Value| {
            if before != after {
                let count = wrong
                    .entry(what.split(" (").next().unwrap().to_owned())
                    .or_default();
                *count += 1;
                if *count == 1 {
                    println!(
                        "{what} {} {where_}\n  before {before}\n  after {after}\n",
                        order.token()
                    );
                }
            }
        };
        let before = &order.before;
        let after = &orders[&before.order_id()];
        for column in COMPARED {
            compare(
                column,
                json_of(before.order.get(column)),
                json_of(after.get(column)),
            );
        }
        for (key, state) in &before.states {
            let Some(after) = states.get(key) else {
                compare(key, json!("a state"), Value::Null);
                continue;
            };
            for name in ["facts", "derived", "alias_of", "copied"] {
                let place = format!("{key} {name}");
                let (mut before, mut after) = (facts_of(state, name), facts_of(after, name));
                // Which ids the metadata named only the payment's events say. Of a payment that was lost they are gone; it
                // is linked all the same.
                if what.starts_with("StateMissing") && what.contains("with events None") {
                    for facts in [&mut before, &mut after] {
                        facts.as_object_mut().map(|facts| facts.remove("named"));
                    }
                }
                compare(&place, before, after);
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    Ok(())
}

/// Columns of an order that billhook writes.
const COMPARED: [&str; 9] = [
    "status",
    "paymentStatus",
    "requiresReview",
    "reviewReasons",
    "amountRefunded",
    "stripePaymentIntentId",
    "stripeCheckoutSessionId",
    "userId",
    "tenantId",
];

fn json_of(value: Option<&AttributeValue>) -> Value {
    value.map_or(Value::Null, |value| {
        serde_dynamo::from_attribute_value(value.clone()).unwrap()
    })
}

/// Without the numbers of versions, which a repair raises.
fn facts_of(state: &Item, name: &str) -> Value {
    let mut facts = json_of(state.get(name));
    if name == "copied" {
        let keys = facts
            .as_object()
            .map(|copied| copied.keys().cloned().collect::<Vec<_>>());
        return json!(keys);
    }
    // A link whose event is gone is only known since another event.
    if let Some(Value::Object(links)) = facts.get_mut("links") {
        for sources in links.values_mut() {
            *sources = Value::Null;
        }
    }
    if let Some(Value::Object(payments)) = facts.get_mut("payments") {
        for copy in payments.values_mut() {
            copy.as_object_mut().unwrap().remove("version");
        }
        // What is left of a copy that the order lost.
        payments.retain(|_, copy| copy["link"] != "elsewhere");
    }
    // Whether these columns are billhook's, which nobody can say of an older copy or after a loss.
    if let (Some(derived), "derived") = (facts.as_object_mut(), name) {
        derived.retain(|name, _| !["intent", "session", "user"].contains(&name.as_str()));
    }
    // An alias keeps the names of those that had a copy under its name.
    if state.contains_key("alias_of") && name == "facts" {
        return facts["money"].clone();
    }
    facts
}

/// Every damaged order is named with its place, and no other is.
fn check_named(planted: &PlantedOrders, found: &ProofOutput) {
    let mut wrong = Vec::new();
    let mut tokens: Vec<&str> = Vec::new();
    for order in &planted.damaged {
        tokens.push(order.token());
        let about: Vec<&Value> = found.of_order(order.token()).collect();
        let what = order.what();
        let Some(named) = order.named() else {
            if !about.is_empty() {
                wrong.push(format!("{what}: seen without Stripe: {about:?}"));
            }
            continue;
        };
        let is_named = |state: &&Value| {
            state["state"] == named.state.as_str()
                && state["result"] == named.result
                && differences(state)
                    .any(|of| of["place"].as_str().unwrap().starts_with(named.place))
        };
        if !about.iter().any(is_named) {
            wrong.push(format!(
                "{what}: {} {} is not named: {about:?}",
                named.state, named.place
            ));
        }
    }
    for key in found.0.keys() {
        if !tokens.iter().any(|token| key.contains(token)) {
            wrong.push(format!("named without a damage: {}", found.0[key]));
        }
    }
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for text in &wrong {
        let kind = text.split(" (").next().unwrap().to_owned();
        let count = seen.entry(kind).or_default();
        *count += 1;
        if *count == 1 {
            println!("{text}\n");
        }
    }
    assert!(wrong.is_empty(), "{} are wrong: {seen:#?}", wrong.len());
}
