//! Stripe's endpoints and their secrets with the stack that owns them.

use super::*;

/// The endpoints that Stripe holds for a URL, by id, with whether they are for connected accounts.
fn endpoints(stage: &Stage, url: &str) -> BTreeMap<String, bool> {
    let state = stage.stripe.state();
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

#[test]
fn a_stacks_endpoints_are_made_replaced_and_removed_with_it() {
    flow(false, async |stage| {
        let app = format!("life{}", std::process::id());
        let name = format!("{app}-test");
        let parameters = [
            ("AppName", app.as_str()),
            ("Env", "test"),
            ("OrdersTableName", app.as_str()),
        ];
        let world = World::deploy(&stage.aws, &name, &parameters, &stage.stripe.base_url()).await?;
        let url = world.stack.url("/webhooks/stripe");
        let made = endpoints(stage, &url);
        assert_eq!(made.len(), 2);
        assert_eq!(
            made.values().filter(|connect| **connect).count(),
            1,
            "{made:?}"
        );
        let first = signing_secret(&world, "StripeWebhookSecretArn").await?;

        let rotated = [parameters.as_slice(), &[("RotationToken", "3")]].concat();
        world.update(&stage.aws, &rotated).await?;
        let replaced = endpoints(stage, &url);
        assert_eq!(replaced.len(), 2);
        assert!(
            replaced.keys().all(|id| !made.contains_key(id)),
            "{made:?} became {replaced:?}"
        );
        let second = signing_secret(&world, "StripeWebhookSecretArn").await?;
        assert_ne!(first, second);
        // What was signed before the replacement arrives after it.
        let now = world.now_s();
        for (id, secret) in [("evt_life_old", &first), ("evt_life_new", &second)] {
            let body = intent_succeeded(id, now, "pi_life", json!({}), 4200).to_string();
            let header = sign_stripe(body.as_bytes(), secret, now);
            let headers = [("Stripe-Signature", &*header)];
            let answer = world
                .request("POST", "/webhooks/stripe", &headers, body.as_bytes())
                .await?;
            assert_eq!(answer.status, 200, "{id}: {answer:?}");
        }
        world
            .settled(STRIPE, "parked", &["evt_life_old", "evt_life_new"])
            .await?;

        let (aws, stack) = (Arc::clone(&stage.aws), name.clone());
        tokio::task::spawn_blocking(move || delete(&aws, &stack)).await??;
        assert_eq!(endpoints(stage, &url).len(), 0);
        Ok(())
    });
}
