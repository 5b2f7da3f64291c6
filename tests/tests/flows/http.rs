//! The HTTP answers of the API: malformed requests, large bodies, signatures made by Stripe's own library.

use super::*;

#[test]
fn bad_requests_are_answered_as_promised_through_the_gateway() {
    flow(false, async |stage| {
        let world = &stage.world;
        let health = world.request("GET", "/health", &[], b"").await?;
        assert_eq!((health.status, &health.body["status"]), (200, &json!("ok")));
        for path in ["/webhooks/stripe", "/webhooks/lob"] {
            let get = world.request("GET", path, &[], b"").await?;
            assert_eq!(
                (get.status, get.body["error"].as_str()),
                (405, Some("method_not_allowed")),
                "{path}"
            );
            let unsigned = world.request("POST", path, &[], b"{}").await?;
            assert_eq!(
                (unsigned.status, unsigned.body["error"].as_str()),
                (400, Some("signature_invalid")),
                "{path}"
            );
        }
        // Bytes that no text survives: the gateway hands them over as they are, or the signature would not fit.
        let secret = signing_secret(world, "StripeWebhookSecretArn").await?;
        for body in [
            &b"\xff\xfe\x00 not json"[..],
            b"{\"id\":\"evt_\xf0\x9f\x98\x80\"}",
            b"\r\n{}\n",
        ] {
            let header = sign_stripe(body, &secret, world.now_s());
            let headers = [
                ("Stripe-Signature", &*header),
                ("Content-Type", "application/json"),
            ];
            let answer = world
                .request("POST", "/webhooks/stripe", &headers, body)
                .await?;
            assert_eq!(
                (answer.status, answer.body["error"].as_str()),
                (400, Some("body_malformed")),
                "{answer:?}"
            );
        }
        Ok(())
    });
}

#[test]
fn what_the_official_library_signs_is_accepted() {
    flow(false, async |stage| {
        let world = &stage.world;
        let secret = signing_secret(world, "StripePlatformWebhookSecretArn").await?;
        order(world, "ord_official", None).await?;
        let body = intent_succeeded(
            "evt_official",
            world.now_s(),
            "pi_official",
            named("ord_official"),
            4200,
        )
        .to_string();
        let program = "import sys, time, stripe; body = sys.stdin.read(); \
            print(stripe.WebhookSignature.generate_signature_header(payload=body, secret=sys.argv[1]))";
        let mut python = Command::new(repository().join(".venv/bin/python"))
            .args(["-c", program, &secret])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        std::io::Write::write_all(&mut python.stdin.take().unwrap(), body.as_bytes())?;
        let header = String::from_utf8(python.wait_with_output()?.stdout)?;
        let headers = [("Stripe-Signature", header.trim())];
        let answer = world
            .request("POST", "/webhooks/stripe", &headers, body.as_bytes())
            .await?;
        assert_eq!(answer.status, 200, "{answer:?}");
        world
            .settled(STRIPE, "processed", &["evt_official"])
            .await?;
        Ok(())
    });
}

#[test]
fn a_body_near_the_limit_is_taken_and_processed() {
    flow(false, async |stage| {
        let world = &stage.world;
        order(world, "ord_large", None).await?;
        let mut paid = intent_succeeded(
            "evt_large",
            world.now_s(),
            "pi_large",
            named("ord_large"),
            4200,
        );
        // Random enough that compression does not help: only the fields we read are kept.
        let mut state = 7_u64;
        let noise: String = (0..110_000)
            .map(|_| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                format!("{:08x}", state >> 32)
            })
            .collect();
        paid["data"]["object"]["description"] = json!(noise);
        let answers = world.stripe(&paid, 1).await?;
        assert_eq!(answers[0].status, 200, "{answers:?}");
        world.settled(STRIPE, "processed", &["evt_large"]).await?;
        assert_eq!(
            event(world, STRIPE, "evt_large").await?["payload_truncated"],
            true
        );
        assert_eq!(world.order("ord_large").await?["status"], "completed");
        Ok(())
    });
}
