//! Adoption: a stack is given the tables of an application that has used them for years, with columns and words of its
//! own. Nothing is written into a row before an event comes to it, and nothing is flagged only because it was there.

use std::collections::HashMap;

use aws_sdk_dynamodb::types::{PutRequest, WriteRequest};
use billhook_testkit::events::dispute;

use super::operator::run_billhook;
use super::*;

type Item = HashMap<String, AttributeValue>;

const ROWS: usize = 1_000;
/// Runs a command of the AWS command line as `doctor` prints it, which is not installed here.
const AWS_COMMAND: &str = r#"
import json, re, shlex, sys, boto3
def camel(word): return "".join(part.capitalize() for part in word.split("-"))
def value(text):
    if text[:1] in "{[": return json.loads(text)
    pairs = [dict(pair.split("=") for pair in one.split(",")) for one in text.split() if "=" in one]
    if not pairs: return text
    typed = [{k: v == "true" if v in ("true", "false") else v for k, v in one.items()} for one in pairs]
    return typed
words = shlex.split(sys.argv[1])
assert words[:2] == ["aws", "dynamodb"], words
client, call, given = boto3.client("dynamodb"), words[2].replace("-", "_"), {}
for name, text in zip(words[3::2], words[4::2]):
    parsed = value(text)
    if name == "--point-in-time-recovery-specification": parsed = parsed[0]
    given[re.sub("^--", "", name)] = parsed
getattr(client, call)(**{camel(name): text for name, text in given.items()})
"#;

async fn aws_command(stage: &'static Stage, command: &str) -> Result<()> {
    let mut python = Command::new(repository().join(".venv/bin/python"));
    python
        .args(["-c", AWS_COMMAND, command])
        .env_clear()
        .envs(stage.aws.env());
    let output = tokio::task::spawn_blocking(move || python.output()).await??;
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {errors}");
    Ok(())
}

/// A table with a hash key of text, and indexes of one column each with its name. It is encrypted with a key of KMS, so
/// that `doctor` asks whose key that is.
async fn make_table(world: &World, name: &str, key: &str, indexes: &[(&str, &str)]) -> Result<()> {
    let text = |column: &str| {
        let attribute = AttributeDefinition::builder().attribute_name(column);
        attribute.attribute_type(ScalarAttributeType::S).build()
    };
    let hash = |column: &str| {
        let element = KeySchemaElement::builder().attribute_name(column);
        element.key_type(KeyType::Hash).build()
    };
    let encrypted = aws_sdk_dynamodb::types::SseSpecification::builder().enabled(true);
    let mut create = world
        .aws
        .dynamodb()
        .create_table()
        .table_name(name)
        .sse_specification(encrypted.build())
        .attribute_definitions(text(key)?)
        .key_schema(hash(key)?)
        .billing_mode(aws_sdk_dynamodb::types::BillingMode::PayPerRequest);
    for (index, column) in indexes {
        let projection = Projection::builder().projection_type(ProjectionType::KeysOnly);
        let index = aws_sdk_dynamodb::types::GlobalSecondaryIndex::builder()
            .index_name(*index)
            .key_schema(hash(column)?)
            .projection(projection.build());
        create = create
            .attribute_definitions(text(column)?)
            .global_secondary_indexes(index.build()?);
    }
    create.send().await?;
    Ok(())
}

async fn put_all(world: &World, table: &str, rows: &[Value]) -> Result<()> {
    for rows in rows.chunks(25) {
        let write = |row: &Value| {
            let put = PutRequest::builder().set_item(Some(serde_dynamo::to_item(row)?));
            anyhow::Ok(WriteRequest::builder().put_request(put.build()?).build())
        };
        let writes: Vec<WriteRequest> = rows.iter().map(write).collect::<Result<_>>()?;
        let done = world.aws.dynamodb().batch_write_item();
        let done = done.request_items(table, writes).send().await?;
        assert!(done.unprocessed_items().is_none_or(HashMap::is_empty));
    }
    Ok(())
}

/// All rows as DynamoDB has them, by key.
async fn items(world: &World, table: &str, key: &str) -> Result<BTreeMap<String, Item>> {
    let mut items = BTreeMap::new();
    let scan = world.aws.dynamodb().scan().table_name(table);
    let mut pages = scan.into_paginator().send();
    while let Some(page) = pages.next().await {
        for item in page?.items.unwrap_or_default() {
            items.insert(item[key].as_s().unwrap().clone(), item);
        }
    }
    Ok(items)
}

/// An order of the application's own shape; the number says which.
fn order_row(number: usize, now: i64) -> Value {
    let id = format!("adopt_{number}");
    let (year_ago, tomorrow) = (now - 365 * 24 * 3600, now + 24 * 3600);
    let iso = |second: i64| json!(Timestamp::from_unix_s(second).unwrap().to_string());
    let created_at = match number % 7 {
        0 | 1 => iso(year_ago),
        2 => json!(year_ago),
        3 => json!(year_ago * 1000),
        4 => json!(year_ago.to_string()),
        5 => iso(tomorrow),
        _ => Value::Null,
    };
    let (status, payment) = [
        ("completed", json!("paid")),
        ("pending", Value::Null),
        ("completed", Value::Null),
        ("refunded", json!("refunded")),
        ("cancelled", json!("unpaid")),
        ("payment_failed", json!("failed")),
        ("shipped", json!("paid")),
        ("draft", json!("not yet")),
    ][number % 8]
        .clone();
    let mut row = json!({
        "id": id, "status": status, "paymentStatus": payment, "createdAt": created_at,
        "amountTotal": 4200, "currency": "USD", "version": number, "userId": "Pat Sample",
        "stripePaymentIntentId": format!("pi_{id}"),
        "lines": [{ "sku": "A-1", "price": 19.99 }, { "sku": "B-2", "gift": true }],
        "address": { "street": null, "city": "Ulm" }, "coupon": null, "tags": [],
    });
    match number % 5 {
        0 => row["currency"] = Value::Null,
        1 => row["amountTotal"] = json!(42.5),
        2 => row["tags"] = json!(["vip", "b2b"]),
        3 => row["requiresReview"] = json!(number.is_multiple_of(2)),
        _ => {}
    }
    row
}

/// An order of which the flow knows what comes.
fn known_order(id: &str, created_at: i64, columns: Value) -> Value {
    let mut row = json!({ "id": id, "amountTotal": 4200, "currency": "usd", "version": 40,
        "createdAt": created_at, "stripePaymentIntentId": format!("pi_{id}"), "shelf": "A3" });
    row.as_object_mut()
        .unwrap()
        .extend(columns.as_object().unwrap().clone());
    row
}

/// What an event made of an order: status, payment status, amount refunded, the words of its reasons.
async fn outcome(world: &World, id: &str) -> Result<String> {
    let row = world.order(id).await?;
    let text = |name: &str| row[name].as_str().unwrap_or("-").to_owned();
    let reasons = row["reviewReasons"].as_array().cloned().unwrap_or_default();
    let words: Vec<&str> = reasons
        .iter()
        .map(|reason| reason.as_str().unwrap().split(':').next().unwrap())
        .collect();
    assert_eq!(row["requiresReview"], json!(!words.is_empty()), "{row}");
    // What is the application's own stays.
    assert_eq!(
        (&row["shelf"], &row["version"]),
        (&json!("A3"), &json!(40)),
        "{row}"
    );
    let of_status = format!("{}/{}", text("status"), text("paymentStatus"));
    Ok(
        format!("{of_status} {} {}", row["amountRefunded"], words.join("+"))
            .trim_end()
            .to_owned(),
    )
}

/// The findings of `doctor` by their checks.
async fn doctor(stage: &'static Stage, stack: &str) -> Result<BTreeMap<String, Value>> {
    let line = format!("doctor --read-only --output json --stack {stack}");
    let looked = run_billhook(stage, &line).await?;
    let found: Vec<Value> = serde_json::from_str(&looked.stdout)?;
    Ok(found
        .into_iter()
        .map(|finding| (finding["check"].as_str().unwrap().to_owned(), finding))
        .collect())
}

struct AdoptedTables {
    orders: String,
    statements: String,
    tenants: String,
}

impl AdoptedTables {
    async fn make(here: &World, app: &str) -> Result<Self> {
        let tables = Self {
            orders: format!("{app}-Shop.Orders"),
            statements: format!("{app}-shop_statements"),
            tenants: format!("{app}-tenants-of-old"),
        };
        // Somebody has yet to make `PaymentIntentIndex`, and made one of the name on another column.
        let indexes = [("StatusIndex", "status"), ("ByUser", "userId")];
        make_table(here, &tables.orders, "id", &indexes).await?;
        let indexes = [
            ("PaymentIntentIndex", "intent"),
            ("LobLetterIndex", "lob_letter_id"),
        ];
        make_table(here, &tables.statements, "statement_id", &indexes).await?;
        let index = "stripe_connected_account_id";
        make_table(here, &tables.tenants, "tenant_id", &[(index, index)]).await?;
        Ok(tables)
    }
}

#[test]
fn a_table_of_years_is_adopted_and_nothing_is_flagged_or_lost() {
    flow(true, async |stage| {
        let app = format!("adopt{}", std::process::id());
        let stack = format!("{app}-test");
        let here = &stage.world;
        let now = here.now_s();
        let tables = AdoptedTables::make(here, &app).await?;
        let rows: Vec<Value> = (0..ROWS).map(|number| order_row(number, now)).collect();
        put_all(here, &tables.orders, &rows).await?;

        let (before, after) = (now - 7 * 24 * 3600, now + 3600);
        let completed = || json!({ "status": "completed", "paymentStatus": "paid" });
        let reviewed =
            json!({ "status": "completed", "requiresReview": true, "reviewReasons": ["ask Pat"] });
        let known = [
            known_order("ad_pending", before, json!({ "status": "pending" })),
            known_order("ad_refund", before * 1000, completed()),
            known_order(
                "ad_partial",
                before,
                json!({ "status": "completed", "amountRefunded": 300 }),
            ),
            known_order("ad_dispute", before, completed()),
            known_order("ad_reviewed", before, reviewed),
            known_order("ad_refunded", before, json!({ "status": "refunded" })),
            known_order("ad_cancelled", before, json!({ "status": "cancelled" })),
            known_order(
                "ad_shipped",
                before,
                json!({ "status": "shipped", "paymentStatus": "paid" }),
            ),
            known_order("ad_later_paid", after, completed()),
            known_order("ad_later", after, completed()),
            known_order(
                "ad_undated",
                before,
                json!({ "status": "completed", "createdAt": "in May" }),
            ),
        ];
        put_all(here, &tables.orders, &known).await?;
        let sent = json!({ "statement_id": "ad_st", "amount_due": 4200, "currency": "usd",
            "lob_letter_id": "ltr_adopt", "payment_status": "settled in cash" });
        put_all(here, &tables.statements, &[sent]).await?;
        let tenant = json!({ "tenant_id": "ten_ad", "stripe_connected_account_id": "acct_adopt", "version": 9 });
        put_all(here, &tables.tenants, &[tenant]).await?;

        // A Stripe of its own: the stage's sends to every endpoint it has.
        let stripe = LocalStripe::start(Config::default()).await?;
        let adopted_before = Timestamp::from_unix_s(now)?.to_string();
        let parameters = [
            ("AppName", app.as_str()),
            ("Env", "test"),
            ("ExistingOrdersTableName", &tables.orders),
            ("ExistingStatementsTableName", &tables.statements),
            ("ExistingTenantsTableName", &tables.tenants),
            ("AdoptedBefore", &adopted_before),
            ("VersionColumn", "billhookVersion"),
            ("ApiGatewayLogRole", "existing"),
        ];
        let world = World::deploy(&stage.aws, &stack, &parameters, &stripe.base_url()).await?;
        assert_eq!(world.stack.output("OrdersTable")?, tables.orders);
        let made = world.aws.dynamodb().list_tables().send().await?;
        for own in [
            format!("{app}-test-statements"),
            format!("{app}-test-tenants"),
        ] {
            assert!(!made.table_names().contains(&own), "{own}");
        }

        // What the tables lack is said, and mended by the commands that are printed.
        let found = doctor(stage, &stack).await?;
        for check in [
            "OrdersTable has the key id",
            "OrdersTable has StatusIndex on status",
            "StatementsTable has LobLetterIndex on lob_letter_id",
            "TenantsTable has stripe_connected_account_id on stripe_connected_account_id",
            "TenantsTable rows are as billhook reads them",
            "AdoptedBefore and VersionColumn can be used",
            "no row with a state is missing",
            "no column of billhook has another owner's value",
        ] {
            assert_eq!(found[check]["result"], "ok", "{check}: {:?}", found[check]);
        }
        for (check, detail) in [
            (
                "OrdersTable has PaymentIntentIndex on stripePaymentIntentId",
                "it is missing",
            ),
            (
                "StatementsTable has PaymentIntentIndex on stripe_payment_intent_id",
                "its key is intent (S)",
            ),
            ("OrdersTable recovers to a point in time", ""),
            (
                "OrdersTable rows: status has a word that billhook knows",
                "(draft, shipped)",
            ),
            (
                "OrdersTable rows: paymentStatus has a word that billhook knows",
                "(not yet)",
            ),
            (
                "OrdersTable rows: currency is there, so that a payment can match it",
                "of 1000 rows sampled",
            ),
            (
                "OrdersTable rows: amountTotal is a whole number of the currency's minor unit",
                "(42.5)",
            ),
            (
                "OrdersTable rows: createdAt is a time, so that the row can be adopted",
                "1000 rows sampled",
            ),
            (
                "StatementsTable rows: payment_status has a word that billhook knows",
                "such as ad_st",
            ),
        ] {
            let finding = &found[check];
            assert_eq!(finding["result"], "bad", "{check}: {finding}");
            assert!(
                finding["detail"].as_str().unwrap().contains(detail),
                "{finding}"
            );
            let fix = finding["fix"].as_str().unwrap();
            assert!(
                fix.contains("aws dynamodb ") && fix.contains("--table-name"),
                "{fix}"
            );
        }
        assert!(!found.contains_key(
            "OrdersTable rows: version is billhook's version, and not the application's"
        ));
        for check in [
            "OrdersTable has PaymentIntentIndex on stripePaymentIntentId",
            "StatementsTable has PaymentIntentIndex on stripe_payment_intent_id",
            "OrdersTable recovers to a point in time",
        ] {
            let fix = found[check]["fix"].as_str().unwrap();
            let commands = &fix[fix.find("aws dynamodb ").unwrap()..];
            // The others wait in a loop of the shell.
            for command in commands
                .split(" && ")
                .filter(|it| it.starts_with("aws dynamodb "))
            {
                aws_command(stage, command).await?;
            }
        }
        assert!(is_indexed(&world, "OrdersTable", "PaymentIntentIndex", true).await?);
        let found = doctor(stage, &stack).await?;
        for check in [
            "OrdersTable has PaymentIntentIndex on stripePaymentIntentId",
            "StatementsTable has PaymentIntentIndex on stripe_payment_intent_id",
            "OrdersTable recovers to a point in time",
        ] {
            assert_eq!(found[check]["result"], "ok", "{:?}", found[check]);
        }

        // The scheduled tasks change nothing, although `StatusIndex` lists a hundred failed orders.
        let untouched = items(&world, &tables.orders, "id").await?;
        let is_failed =
            |item: &&Item| item["status"] == AttributeValue::S("payment_failed".to_owned());
        let failed = untouched.values().filter(is_failed).count();
        assert!(failed >= 100, "{failed}");
        let function = "CleanupFailedPaymentsFunction";
        let cleaned = invoke(&world, function, &json!({ "task": "cleanup" })).await?;
        let counts = ["scanned", "skipped", "cancelled"].map(|name| &cleaned[name]);
        assert_eq!(
            counts,
            [&json!(failed), &json!(failed), &json!(0)],
            "{cleaned}"
        );
        invoke(&world, function, &json!({ "task": "sweep" })).await?;
        assert_eq!(items(&world, &tables.orders, "id").await?, untouched);

        let paid = |event: &str, order: &str| {
            intent_succeeded(event, now + 5, &format!("pi_{order}"), json!({}), 4200)
        };
        let back = |event: &str, order: &str, cents: i64| {
            let (charge, intent) = (format!("ch_{order}"), format!("pi_{order}"));
            charge_refunded(event, now + 6, &charge, Some(&intent), cents)
        };
        let events = [
            (
                paid("evt_ad_1", "ad_pending"),
                "ad_pending",
                "completed/paid 0",
            ),
            (
                back("evt_ad_2", "ad_refund", 4200),
                "ad_refund",
                "refunded/refunded 4200",
            ),
            (
                back("evt_ad_3", "ad_partial", 1200),
                "ad_partial",
                "completed/paid 1200",
            ),
            (
                dispute("evt_ad_4", now, "dp_ad", "pi_ad_dispute", "needs_response"),
                "ad_dispute",
                "completed/disputed 0 dispute_open",
            ),
            (
                paid("evt_ad_5", "ad_reviewed"),
                "ad_reviewed",
                "completed/paid 0 ask Pat",
            ),
            (
                paid("evt_ad_6", "ad_refunded"),
                "ad_refunded",
                "refunded/refunded 0",
            ),
            (
                intent_failed("evt_ad_7", now, "pi_ad_cancelled", json!({}), "ch_ad_c"),
                "ad_cancelled",
                "cancelled/failed 0",
            ),
            (
                back("evt_ad_8", "ad_shipped", 100),
                "ad_shipped",
                "shipped/paid 100",
            ),
            // Made after the adoption: paid is what Stripe proves.
            (
                paid("evt_ad_9", "ad_later_paid"),
                "ad_later_paid",
                "completed/paid 0",
            ),
            (
                back("evt_ad_10", "ad_later", 100),
                "ad_later",
                "completed/paid 100 paid_unproven",
            ),
            (
                back("evt_ad_11", "ad_undated", 100),
                "ad_undated",
                "completed/paid 100 paid_unproven",
            ),
        ];
        for (event, _, _) in &events {
            world.stripe(event, 2).await?;
        }
        for (event, order, expected) in &events {
            let id = event["id"].as_str().unwrap();
            world.settled(STRIPE, "processed", &[id]).await?;
            assert_eq!(outcome(&world, order).await?, *expected, "{order}");
        }
        let cleaned = invoke(&world, function, &json!({ "task": "cleanup" })).await?;
        assert_eq!(cleaned["cancelled"], 0, "{cleaned}");
        let mut rest = items(&world, &tables.orders, "id").await?;
        let mut was = untouched;
        for (_, order, _) in &events {
            rest.remove(*order);
            was.remove(*order);
        }
        assert_eq!(rest.len(), ROWS);
        assert!(rest == was, "rows without an event changed");

        // The other tables are found by their indexes, too.
        let mail = letter("evt_ad_l", "2026-01-01T00:00:00Z", "ltr_adopt", "mailed");
        assert_eq!(world.lob(&mail).await?.status, 200);
        world.settled(LOB, "processed", &["evt_ad_l"]).await?;
        let statement = world.statement("ad_st").await?;
        assert_eq!(
            (&statement["mail_status"], &statement["payment_status"]),
            (&json!("mailed"), &json!("settled in cash"))
        );
        let account = json!({ "id": "acct_adopt", "object": "account", "charges_enabled": true, "payouts_enabled": true });
        let account = billhook_testkit::events::stripe("evt_ad_a", "account.updated", now, account);
        world
            .stripe(&from_account(account, "acct_adopt"), 1)
            .await?;
        world.settled(STRIPE, "processed", &["evt_ad_a"]).await?;
        let tenant = world.row("TenantsTable", "tenant_id", "ten_ad").await?;
        let tenant = tenant.unwrap();
        let columns = ["stripe_status", "version", "billhookVersion"].map(|name| &tenant[name]);
        assert_eq!(columns, [&json!("connected"), &json!(9), &json!(1)]);

        // A row of the application's own words, and one that it deletes, are listed.
        scheduled::delete_row(&world, "OrdersTable", "id", "ad_later").await?;
        // A row that another stack wrote.
        let entries = json!([{ "actor": "billhook", "at": "2026-01-01T00:00:00.000Z" }]);
        let other =
            json!({ "statement_id": "ad_other", "billhookVersion": 3, "timeline": entries });
        world.put("StatementsTable", other).await?;
        world.stripe(&back("evt_ad_12", "ad_later", 200), 1).await?;
        world.settled(STRIPE, "processed", &["evt_ad_12"]).await?;
        let found = doctor(stage, &stack).await?;
        for (check, entity) in [
            ("no row with a state is missing", "order#ad_later"),
            (
                "no column of billhook has another owner's value",
                "order#ad_shipped",
            ),
        ] {
            let finding = &found[check];
            assert_eq!(finding["result"], "bad", "{finding}");
            let named = finding["entities"].as_array().unwrap();
            assert!(named.contains(&json!(entity)), "{finding}");
            assert_eq!(finding["count"], json!(named.len()));
            let since = finding["since"].as_str().unwrap();
            assert!(Timestamp::parse(since).is_ok(), "{since}");
            let fix = finding["fix"].as_str().unwrap();
            assert!(fix.contains("docs/runbook/row-trouble.md"), "{fix}");
        }
        let check = "a row that billhook wrote has its state in this stack";
        let other = &found[&format!("StatementsTable rows: {check}")];
        assert_eq!(
            (&other["ids"], &other["result"]),
            (&json!(["ad_other"]), &json!("bad"))
        );
        // Of the other rows that have billhook's version, the state is there.
        assert!(!found.contains_key(&format!("OrdersTable rows: {check}")));
        let tenants = &found["TenantsTable rows are as billhook reads them"];
        assert_eq!(tenants["result"], "ok", "{tenants}");
        let shown = format!("orders show ad_pending --output json --stack {stack}");
        let shown = run_billhook(stage, &shown).await?.json();
        assert_eq!(
            (&shown["billhookVersion"], shown.get("version")),
            (&json!(1), None),
            "{shown}"
        );
        an_orm_counts_its_own_saves(&world, now).await?;
        world.drained().await
    });
}

/// An ORM loads a row, changes it and saves it whole, on condition that its own version is as loaded; beside it come the
/// events of a payment.
async fn an_orm_counts_its_own_saves(world: &World, now: i64) -> Result<()> {
    let row = json!({ "id": "ad_orm", "status": "pending", "amountTotal": 4200, "currency": "usd",
        "stripePaymentIntentId": "pi_orm", "version": 1, "saves": 0 });
    world.put("OrdersTable", row).await?;
    let paid = intent_succeeded("evt_orm_0", now, "pi_orm", json!({}), 4200);
    world.stripe(&paid, 1).await?;
    let mut ids = vec!["evt_orm_0".to_owned()];
    for save in 1..=40 {
        let mut loaded = world.order("ad_orm").await?;
        if save % 4 == 0 {
            let id = format!("evt_orm_{save}");
            let refund = charge_refunded(&id, now + save, "ch_orm", Some("pi_orm"), save);
            world.stripe(&refund, 1).await?;
            ids.push(id);
        }
        loaded["saves"] = json!(save);
        let version = loaded["version"].as_i64().unwrap();
        loaded["version"] = json!(version + 1);
        let saved = world
            .aws
            .dynamodb()
            .put_item()
            .table_name(world.stack.output("OrdersTable")?)
            .set_item(Some(serde_dynamo::to_item(loaded)?))
            .condition_expression("version = :loaded")
            .expression_attribute_values(":loaded", AttributeValue::N(version.to_string()));
        saved.send().await?;
    }
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    // Parked as `state_behind` is what it would be under the same name.
    world.settled(STRIPE, "processed", &ids).await?;
    let last = charge_refunded("evt_orm_last", now + 60, "ch_orm", Some("pi_orm"), 60);
    world.stripe(&last, 1).await?;
    world
        .settled(STRIPE, "processed", &["evt_orm_last"])
        .await?;
    let row = world.order("ad_orm").await?;
    let columns = [
        "status",
        "amountRefunded",
        "requiresReview",
        "saves",
        "version",
    ];
    let columns = columns.map(|name| &row[name]);
    assert_eq!(
        columns,
        [
            &json!("completed"),
            &json!(60),
            &json!(false),
            &json!(40),
            &json!(41)
        ],
        "{row}"
    );
    assert_eq!(row.get("reviewReasons"), None, "{row}");
    Ok(())
}
