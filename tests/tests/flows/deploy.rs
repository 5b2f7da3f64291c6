//! The life of several stacks side by side: create, update, roll back, delete.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::process::Stdio;

use aws_sdk_dynamodb::types::BillingMode;
use billhook_testkit::local::{DeployOptions, Stack, deploy};
use billhook_testkit::stripe::Config as StripeConfig;

use super::operator::{CommandOutcome, command_for, wait_for_exit};
use super::*;

/// Everything in the account whose name has this in it, as `kind name`; tables with their protection.
fn inventory(stage: &Stage, having: &str) -> Result<BTreeSet<String>> {
    let output = Command::new(repository().join(".venv/bin/python"))
        .arg(repository().join("tests/tools/inventory.py"))
        .arg(having)
        .env_clear()
        .envs(stage.aws.env())
        .output()?;
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let text = String::from_utf8(output.stdout)?;
    Ok(text.lines().map(str::to_owned).collect())
}

/// As a team would, before it has put any key anywhere.
async fn deploy_stack(stage: &Stage, name: &str, parameters: &[(&str, &str)]) -> Result<World> {
    let base = stage.stripe.base_url();
    let local = [("StripeApiBase", base.as_str())];
    let options = DeployOptions::new(name, &[&local, parameters].concat());
    let aws = Arc::clone(&stage.aws);
    let stack = tokio::task::spawn_blocking(move || deploy(&aws, &options)).await??;
    World::around(&stage.aws, stack, &base)
}

/// Nobody has stored a key or a secret: no delivery can be proven, nothing is asked, and nothing of that is an error.
async fn check_without_keys(world: &World) -> Result<()> {
    let at = world.now_s();
    let stripe = sign_stripe(b"{}", "whsec_1", at);
    let at = at.to_string();
    let lob = sign_lob(b"{}", "lob_secret", &at);
    for (path, headers) in [
        ("/webhooks/stripe", vec![("Stripe-Signature", &*stripe)]),
        (
            "/webhooks/lob",
            vec![("Lob-Signature", &*lob), ("Lob-Signature-Timestamp", &*at)],
        ),
    ] {
        let answer = world.request("POST", path, &headers, b"{}").await?;
        assert_eq!(
            (answer.status, answer.body["error"].as_str()),
            (400, Some("signature_invalid")),
            "{path}: {answer:?}"
        );
    }
    let reconciled = scheduled::run_task(world, &json!({ "task": "reconcile" })).await?;
    assert_eq!(reconciled["no_key"], true, "{reconciled}");
    let cleaned = scheduled::run_task(world, &json!({ "task": "cleanup" })).await?;
    assert_eq!(cleaned["failed"], 0, "{cleaned}");
    for function in ["WebhookIngressFunction", "CleanupFailedPaymentsFunction"] {
        let lines = world.logs(function).await?;
        let is_error = |line: &&String| line.contains(r#""level":"ERROR""#);
        let errors: Vec<_> = lines.iter().filter(is_error).collect();
        assert!(errors.is_empty(), "{errors:?}");
    }
    Ok(())
}

#[test]
fn stacks_stand_beside_each_other_and_leave_only_what_is_kept() {
    flow(false, async |stage| {
        let app = format!("bank{}", std::process::id());
        let (second_app, live_env) = (format!("{app}-second"), format!("l{app}"));
        let own_orders = format!("{app}-own-orders");
        // Environments of their own names, so that no other stack has their orders tables.
        let test = [("AppName", &*app), ("Env", &*app), ("LobQuietHours", "5")];
        let live = [
            ("AppName", &*app),
            ("Env", &*live_env),
            ("LiveMode", "true"), // kept, whatever its name
            ("StripeApiBase", "https://api.stripe.com"), // not called, because there is no key
            ("ApiGatewayLogRole", "existing"),
        ];
        let second = [
            ("AppName", &*second_app),
            ("Env", &*app),
            ("OrdersTableName", &*own_orders),
            ("ApiGatewayLogRole", "existing"),
            ("StripeEndpoints", "none"),
            ("Lob", "off"),
        ];
        let names = ["test", "live", "second"].map(|stack| format!("{app}-stack-{stack}"));
        assert_eq!(inventory(stage, &app)?, BTreeSet::new());

        let (first, other, beside) = tokio::join!(
            deploy_stack(stage, &names[0], &test),
            deploy_stack(stage, &names[1], &live),
            deploy_stack(stage, &names[2], &second),
        );
        let worlds = [first?, other?, beside?];
        let [first, other, beside] = &worlds;
        for world in &worlds {
            assert_eq!(world.request("GET", "/health", &[], b"").await?.status, 200);
            let step = world.stack.output("Step1PutKeys")?;
            assert!(
                step.contains(&format!("--stack {}", world.stack.name)),
                "{step}"
            );
            order(world, &format!("ord_of_{}", world.stack.name), None).await?;
        }
        assert_eq!(beside.stack.output("OrdersTable")?, own_orders);
        for world in &worlds {
            check_without_keys(world).await?;
        }
        // Of the providers that it does not use it has no alarm, but of what is not theirs alone.
        let alarms = inventory(stage, &second_app)?;
        let mut alarms: Vec<_> = alarms
            .iter()
            .filter_map(|line| line.strip_prefix(&format!("alarm {second_app}-{app}-")))
            .filter(|name| name.starts_with("stripe-") || name.starts_with("lob-"))
            .collect();
        alarms.retain(|name| !name.ends_with("waf-blocked"));
        let shared = [
            "lob-row-trouble",
            "stripe-index-fallback",
            "stripe-row-trouble",
        ];
        assert_eq!(alarms, shared);
        assert!(beside.stack.output("StripeWebhookEndpointState").is_err());
        // Each has its own rows and none of the others'.
        for (world, whose) in worlds
            .iter()
            .flat_map(|world| worlds.each_ref().map(|whose| (world, whose)))
        {
            let row = world.order(&format!("ord_of_{}", whose.stack.name)).await;
            assert_eq!(row.is_ok(), world.stack.name == whose.stack.name);
        }

        let before = inventory(stage, &app)?;
        let changed = [&test[..2], &[("LobQuietHours", "0")]].concat();
        deploy_stack(stage, &first.stack.name, &changed).await?;
        let quiet = format!("alarm {app}-{app}-lob-no-deliveries");
        let gone: Vec<_> = before
            .difference(&inventory(stage, &app)?)
            .cloned()
            .collect();
        assert_eq!(gone, [quiet]);

        // A test key at a live stage: its endpoints cannot be made, and nothing else of the update stays either.
        let keys = json!({ "stripe_secret_key": TEST_KEY }).to_string();
        let put = other.aws.secrets_manager().put_secret_value();
        let arn = other.stack.output("AppSecretArn")?;
        put.secret_id(arn).secret_string(keys).send().await?;
        let before = inventory(stage, &app)?;
        let failing = [
            &live[..],
            &[("RotationToken", "2"), ("StripeQuietHours", "0")],
        ]
        .concat();
        let failed = deploy_stack(stage, &other.stack.name, &failing).await;
        let failed = format!("{:#}", failed.unwrap_err());
        assert!(failed.contains("ROLLBACK"), "{failed}");
        assert_eq!(inventory(stage, &app)?, before);
        let after = Stack::read(&stage.aws, &other.stack.name)?;
        assert_eq!(after.outputs, other.stack.outputs);
        let put = other.aws.secrets_manager().put_secret_value();
        put.secret_id(arn).secret_string("{}").send().await?;

        for world in &worlds {
            let row = world.order(&format!("ord_of_{}", world.stack.name)).await?;
            assert_eq!(row["amountTotal"], 4200);
        }
        let destroy = async |world: &World| {
            run_stack_tool(stage, "destroy", &world.stack.name, &["--yes"]).await
        };
        let refusal = destroy(other).await?.unwrap_err();
        assert!(refusal.contains("has rows"), "{refusal}");
        for world in [first, beside] {
            let told = destroy(world).await?.unwrap();
            assert!(told.contains("deleted."), "{told}");
        }
        let (aws, live_stack) = (Arc::clone(&stage.aws), other.stack.name.clone());
        tokio::task::spawn_blocking(move || delete(&aws, &live_stack)).await??;
        let tables = [
            "jobs",
            "lob-events",
            "entities",
            "statements",
            "stripe-events",
            "tenants",
        ];
        let tables = tables.map(|table| format!("table {app}-{live_env}-{table} protected"));
        let mut kept = BTreeSet::from(tables);
        kept.insert(format!("table Orders-{live_env} protected"));
        let secrets = ["App", "Inbound", "SealPublic", "StateSeal"];
        kept.extend(secrets.map(|name| format!("secret {app}/{live_env}/{name}")));
        let mut left = inventory(stage, &app)?;
        // The account's, by which other APIs may be logging.
        left.retain(|line| !line.contains("ApiGatewayLogsRole"));
        assert_eq!(left, kept);

        // A stack that was deleted by mistake gets its tables and keys back.
        let secrets = secrets.map(|name| {
            let arn = other.stack.output(&format!("{name}SecretArn")).unwrap();
            (format!("Existing{name}SecretArn"), arn.to_owned())
        });
        let live_name = &other.stack.name;
        let env = format!("Env={live_env}");
        let of_live = [&*format!("AppName={app}"), &env, "LiveMode=true"];
        let told = run_stack_tool(stage, "import", live_name, &of_live)
            .await?
            .unwrap();
        for (parameter, arn) in &secrets {
            assert!(told.contains(&format!("{parameter}={arn}")), "{told}");
        }
        let refusal = run_stack_tool(stage, "import", live_name, &of_live)
            .await?
            .unwrap_err();
        assert!(refusal.contains("exists (IMPORT_COMPLETE)"), "{refusal}");
        // The account has its role since the first of these stacks.
        let parameters = run_stack_tool(stage, "parameters", live_name, &of_live)
            .await?
            .unwrap();
        assert!(
            parameters.contains("ApiGatewayLogRole=existing"),
            "{parameters}"
        );
        let given = secrets.each_ref();
        let given = given.map(|(parameter, arn)| (parameter.as_str(), arn.as_str()));
        let again = [&live[..], &given].concat();
        let again = deploy_stack(stage, live_name, &again).await?;
        let row = again.order(&format!("ord_of_{live_name}")).await?;
        assert_eq!(row["amountTotal"], 4200);
        let tables = |stack: &Stack| {
            let outputs = stack.outputs.clone().into_iter();
            let tables = outputs.filter(|(key, _)| {
                key.ends_with("Table") || key.ends_with("SecretArn") && !key.starts_with("Stripe")
            });
            tables.collect::<BTreeMap<_, _>>()
        };
        assert_eq!(tables(&again.stack), tables(&other.stack));
        let (aws, live_stack) = (Arc::clone(&stage.aws), live_name.clone());
        tokio::task::spawn_blocking(move || delete(&aws, &live_stack)).await??;
        let mut left = inventory(stage, &app)?;
        left.retain(|line| !line.contains("ApiGatewayLogsRole"));
        assert_eq!(left, kept);
        Ok(())
    });
}

/// A command of `billhook` on another stack than the stage's own.
pub(super) async fn billhook_on(
    stage: &'static Stage,
    stack: &str,
    line: &str,
    input: &str,
) -> Result<CommandOutcome> {
    let mut command = command_for(&stage.aws, &stage.tool_proxy, stack, line);
    let mut child = command.stdin(Stdio::piped()).spawn()?;
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    wait_for_exit(child).await
}

/// The stack's status once CloudFormation is done with it.
async fn settled_status(stage: &Stage, stack: &str) -> Result<String> {
    let program = "import boto3, sys; print(boto3.client('cloudformation').describe_stacks(StackName=sys.argv[1])['Stacks'][0]['StackStatus'])";
    loop {
        let output = Command::new(repository().join(".venv/bin/python"))
            .args(["-c", program, stack])
            .env_clear()
            .envs(stage.aws.env())
            .output()?;
        let status = String::from_utf8(output.stdout)?.trim().to_owned();
        if !status.ends_with("IN_PROGRESS") {
            return Ok(status);
        }
    }
}

/// "Deploy to AWS" of the README, as far as there is no AWS: without and with a key, with a key that Stripe refuses and
/// back, deleted and deployed again.
#[test]
fn a_fresh_stack_gets_its_keys_loses_one_and_is_deleted_and_deployed_again() {
    flow(false, async |stage| {
        let app = format!("fresh{}", std::process::id());
        let name = format!("{app}-stack");
        // Of its own: the endpoints that are left would get the events of the other flows.
        let stripe = LocalStripe::start(StripeConfig::default()).await?;
        let base = stripe.base_url();
        let parameters = [
            ("StripeApiBase", &*base),
            ("AppName", &*app),
            ("Env", &*app),
            ("ApiGatewayLogRole", "existing"),
            ("AlarmEmail", "ops@example.com"),
        ];
        let world = deploy_stack(stage, &name, &parameters).await?;
        let url = world.stack.url("/webhooks/stripe");
        let endpoints = || {
            let ids = rotation::endpoints(&stripe, &url).into_keys();
            ids.collect::<BTreeSet<_>>()
        };
        let state = world.stack.output("StripeWebhookEndpointState")?;
        assert!(state.starts_with("not created yet"), "{state}");
        // A rotation without a key is not done.
        let run = async |line: &str, input: &str| billhook_on(stage, &name, line, input).await;
        let rotate = "secrets rotate stripe --reason new --yes";
        run(rotate, "")
            .await?
            .assert_exit(1, "StripePlatformWebhookEndpointState is: not created yet");
        let looked = run("doctor --read-only", "").await?;
        assert_eq!(looked.code, 4, "{}", looked.stdout);
        assert!(
            looked.stdout.contains("secrets put stripe-key"),
            "{}",
            looked.stdout
        );

        let key = "sk_test_freshstack0123456789";
        let put = "secrets put stripe-key --reason new --yes";
        run(put, key).await?.assert_exit(1, "nothing was stored");
        stripe.admit_key(key, None);
        run(put, key).await?.assert_exit(0, "stored;");
        run(
            "secrets put lob --reason new --yes",
            "fresh_lob_secret_0001",
        )
        .await?
        .assert_exit(0, "stored;");
        run(rotate, "").await?.assert_exit(
            0,
            "done: the endpoints at Stripe are replaced: nothing by we_",
        );
        let first = endpoints();
        assert_eq!(first.len(), 2);
        let looked = run("doctor", "").await?;
        let bad = looked.stdout.lines().filter(|line| line.contains(" bad "));
        let bad: Vec<&str> = bad.collect();
        // Nobody confirms the mail, and the local AWS does not say that tables recover.
        let tolerated = [
            "alarm topic has a subscriber",
            "recovers to a point in time",
        ];
        let is_tolerated = |line: &&&str| tolerated.iter().any(|text| line.contains(text));
        assert!(
            bad.iter().all(|line| is_tolerated(&line)),
            "{}",
            looked.stdout
        );

        // A key that Stripe refuses: the update fails, its rollback does not, and the endpoints still deliver.
        stripe.revoke_key(key);
        let failed = run(rotate, "").await?;
        failed.assert_exit(1, "failed with UPDATE_ROLLBACK");
        let status = settled_status(stage, &name).await?;
        assert_eq!(status, "UPDATE_ROLLBACK_COMPLETE");
        assert_eq!(endpoints(), first);
        let looked = run("doctor --read-only", "").await?;
        assert!(looked.stdout.contains("401"), "{}", looked.stdout);
        stripe.admit_key(key, None);
        run(rotate, "").await?.assert_exit(0, "done: ");
        let second = endpoints();
        assert!(
            second.len() == 2 && second.is_disjoint(&first),
            "{second:?}"
        );

        // A deletion needs no key that works; what it leaves at Stripe it says.
        stripe.revoke_key(key);
        let told = run_stack_tool(stage, "destroy", &name, &["--yes"])
            .await?
            .unwrap();
        assert!(told.contains("deleted."), "{told}");
        assert_eq!(endpoints(), second);
        let mut left = inventory(stage, &app)?;
        left.retain(|line| !line.contains("ApiGatewayLogsRole"));
        assert_eq!(left, BTreeSet::new());

        // What the application made has no tag of the stack, whatever it is called: nobody imports or deletes it.
        let of_stack = [
            &*format!("AppName={app}"),
            &format!("Env={app}"),
            "LiveMode=false",
        ];
        let orders = format!("Orders-{app}");
        make_table(&world, &orders).await?;
        for command in ["destroy", "import"] {
            let arguments = [&of_stack[..], &["--yes"]].concat();
            let refusal = run_stack_tool(stage, command, &name, &arguments)
                .await?
                .unwrap_err();
            assert!(refusal.contains("billhook-stack"), "{refusal}");
        }
        let tables = inventory(stage, &orders)?;
        assert_eq!(tables, BTreeSet::from([format!("table {orders}")]));
        let delete = world.aws.dynamodb().delete_table();
        delete.table_name(&orders).send().await?;

        // A production stack whose tables have nothing but the endpoints' notes can be taken back, as after a first deployment
        // that failed.
        let stuck = format!("{app}-stuck");
        let live = [
            ("AppName", &*stuck),
            ("Env", &*app),
            ("LiveMode", "true"),
            ("StripeApiBase", "https://api.stripe.com"), // not called, because there is no key
            ("ApiGatewayLogRole", "existing"),
        ];
        deploy_stack(stage, &stuck, &live).await?;
        let told = run_stack_tool(stage, "destroy", &stuck, &["--yes"])
            .await?
            .unwrap();
        assert!(told.contains("deleted."), "{told}");

        stripe.admit_key(key, None);
        deploy_stack(stage, &name, &parameters).await?;
        run(put, key).await?.assert_exit(0, "stored;");
        run(rotate, "").await?.assert_exit(0, "done: ");
        // Those of the deleted stack have its name in their tags.
        let looked = run("doctor --read-only", "").await?;
        for stray in &second {
            assert!(looked.stdout.contains(stray), "{}", looked.stdout);
        }
        run_stack_tool(stage, "destroy", &name, &["--yes"])
            .await?
            .unwrap();
        assert_eq!(endpoints(), second, "and its own are gone");
        Ok(())
    });
}

/// A table of orders as an application makes it.
async fn make_table(world: &World, name: &str) -> Result<()> {
    let id = AttributeDefinition::builder()
        .attribute_name("id")
        .attribute_type(ScalarAttributeType::S)
        .build()?;
    let key = KeySchemaElement::builder()
        .attribute_name("id")
        .key_type(KeyType::Hash)
        .build()?;
    let create = world.aws.dynamodb().create_table().table_name(name);
    create
        .attribute_definitions(id)
        .key_schema(key)
        .billing_mode(BillingMode::PayPerRequest)
        .send()
        .await?;
    Ok(())
}

/// Runs `tests/tools/stack.py`: what it printed, or its error. In a thread of its own: the local Stripe answers on this one.
async fn run_stack_tool(
    stage: &'static Stage,
    command: &str,
    stack: &str,
    arguments: &[&str],
) -> Result<Result<String, String>> {
    let mut tool = Command::new(repository().join(".venv/bin/python"));
    tool.arg(repository().join("tests/tools/stack.py"))
        .args([command, stack])
        .args(arguments)
        .env_clear()
        .envs(stage.aws.env());
    let output = tokio::task::spawn_blocking(move || tool.output()).await??;
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(if output.status.success() {
        Ok(told)
    } else {
        Err(errors)
    })
}
