//! Requests to `webhook-secret` of whoever may invoke it (`lambda:InvokeFunction`), as CloudFormation does, and sends it what
//! they like.

use std::io::ErrorKind;
use std::net::TcpListener;

use super::*;

/// What such a request could change: the endpoints at Stripe, every secret, and the notes of what was applied.
async fn outside(stage: &Stage) -> Result<String> {
    let world = &stage.world;
    let mut all = stage.stripe.state()["endpoints"].to_string();
    let spaces = stage.stripe.state()["spaces"].clone();
    let objects = spaces.as_array().unwrap().iter();
    let objects = objects.flat_map(|space| space["objects"].as_array().unwrap());
    for endpoint in objects.filter(|object| object["object"] == "webhook_endpoint") {
        all += &endpoint.to_string();
    }
    let variables = world.variables(world.stack.output("WebhookSecretFunction")?);
    let variables = variables.await?;
    let arns = variables.iter().filter(|(name, _)| name.ends_with("_ARN"));
    for (_, arn) in arns {
        let get = world.aws.secrets_manager().get_secret_value();
        let secret = get.secret_id(arn).send().await?;
        let (text, version) = (secret.secret_string, secret.version_id);
        all += &format!("{text:?} {version:?}");
    }
    for resource in ["StripeWebhookEndpoint", "StripePlatformWebhookEndpoint"] {
        let id = format!("endpoint#{resource}");
        let row = world.row("JobsTable", JOB_ID, &id).await?;
        all += &row.unwrap().to_string();
    }
    Ok(all)
}

#[test]
fn a_forged_request_changes_no_endpoint_no_secret_and_no_note_and_reaches_no_other_host() {
    flow(true, async |stage| {
        let world = &stage.world;
        let function = world.stack.output("WebhookSecretFunction")?;
        let variables = world.variables(function).await?;
        let statements = [
            json!({ "Effect": "Allow", "Action": "lambda:InvokeFunction",
            "Resource": format!("arn:aws:lambda:*:*:function:{function}") }),
        ];
        let attacker = world.attacker("invoker", &statements).await?;
        let listener = TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        // The local AWS is 127.0.0.1, so this is another host.
        let attackers_url = format!("http://localhost:{}/", listener.local_addr()?.port());
        let of_local_aws = format!("{}/_ministack/cfn-response/forged", stage.aws.endpoint());
        // As CloudFormation would ask for a rotation.
        let properties = |token: &str| {
            json!({ "ServiceToken": "arn", "Url": variables["STRIPE_WEBHOOK_URL"], "Connect": "false",
                "SecretArn": variables["STRIPE_PLATFORM_WEBHOOK_SECRET_ARN"], "RotationToken": token })
        };
        let endpoint = world.stack.output("StripePlatformWebhookEndpointState")?;
        let rotation = json!({
            "RequestType": "Update", "RequestId": "forged", "ResponseURL": of_local_aws,
            "StackId": variables["STACK_ID"], "ResourceType": "Custom::StripeWebhookEndpoint",
            "LogicalResourceId": "StripePlatformWebhookEndpoint", "PhysicalResourceId": endpoint,
            "ResourceProperties": properties("forged"), "OldResourceProperties": properties("1"),
        });
        let other_stack = json!("arn:aws:cloudformation:us-east-1:000000000000:stack/other/1");
        let before = outside(stage).await?;
        for changes in [
            json!({ "/StackId": other_stack }),
            json!({ "/StackId": other_stack, "/RequestType": "Create" }),
            json!({ "/StackId": other_stack, "/RequestType": "Delete" }),
            json!({ "/LogicalResourceId": "Another" }),
            json!({ "/ResourceProperties/Url": attackers_url }),
            json!({ "/ResourceProperties/Url": "https://attacker.example/", "/RequestType": "Create" }),
            json!({ "/ResourceProperties/EnabledEvents": ["*"] }),
            json!({ "/ResourceProperties/SecretArn": variables["STRIPE_WEBHOOK_SECRET_ARN"] }),
            json!({ "/ResourceProperties/Connect": "true" }),
            json!({ "/ResourceType": "Custom::SealKeys" }),
            json!({ "/ResourceType": "Custom::SealKeys", "/LogicalResourceId": "SealKeys", "/StackId": other_stack }),
            json!({ "/ResponseURL": attackers_url }),
            json!({ "/ResponseURL": attackers_url, "/RequestType": "Delete" }),
        ] {
            let mut forged = rotation.clone();
            for (place, value) in changes.as_object().unwrap() {
                let (parent, name) = place.rsplit_once('/').unwrap();
                forged.pointer_mut(parent).unwrap()[name] = value.clone();
            }
            let (status, answer) = attacker.invoke(function, &forged).await?;
            assert_eq!(status, 200, "{answer}");
            let is_unanswered = changes.get("/ResponseURL").is_some();
            assert_eq!(
                answer.get("errorMessage").is_some(),
                is_unanswered,
                "{answer}"
            );
            assert_eq!(outside(stage).await?, before, "{changes}");
        }
        let reached = listener.accept().map(|(_, from)| from);
        assert_eq!(
            reached.map_err(|error| error.kind()),
            Err(ErrorKind::WouldBlock)
        );
        let refused = world
            .logged("WebhookSecretFunction", "refused, and nothing was changed")
            .await?;
        assert!(refused.len() >= 13, "{refused:?}");
        Ok(())
    });
}
