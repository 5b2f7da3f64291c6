use billhook_core::ids::PaymentRef;
use billhook_core::provider::stripe::objects::{PaymentAtStripe, read_payment_at_stripe};
use billhook_testkit::stripe::{Config, Fault, LocalStripe, PayerAction, PayerStep, TEST_KEY};
use rstest::rstest;
use serde_json::{Value, json};

use super::*;

async fn local() -> (LocalStripe, StripeClient) {
    let local = LocalStripe::start(Config::default()).await.unwrap();
    let mut stripe = StripeClient::new(&local.base_url(), TEST_KEY.into(), false).unwrap();
    stripe.retry_delays = [Duration::ZERO; 2];
    (local, stripe)
}

const METADATA: &[(&str, &str)] = &[("stack", "arn:aws:x/y"), ("id", "Hook")];

fn events() -> Vec<String> {
    vec!["charge.refunded".to_owned(), "charge.failed".to_owned()]
}

fn endpoint(enabled_events: &[String]) -> NewEndpoint<'_> {
    NewEndpoint {
        url: "http://127.0.0.1:1/webhooks/stripe?a=1&b=é",
        connect: true,
        enabled_events,
        api_version: API_VERSION,
        description: "of a test",
        metadata: METADATA,
    }
}

fn calls(local: &LocalStripe) -> usize {
    local
        .state()
        .get("calls")
        .and_then(Value::as_array)
        .map_or(0, Vec::len)
}

fn fault(status: u16) -> Fault {
    Fault {
        status: Some(status),
        ..Fault::default()
    }
}

#[rstest]
#[case("sk_live_x", true, "fits")]
#[case("rk_live_x", true, "fits")]
#[case("sk_test_x", false, "fits")]
#[case("rk_test_x", false, "fits")]
#[case(
    "sk_live_x",
    false,
    "the stripe key is a live key and the environment is test"
)]
#[case(
    "rk_test_x",
    true,
    "the stripe key is a test key and the environment is live"
)]
#[case("pk_test_x", false, "the stripe key is not a secret or restricted key")]
#[case("", true, "the stripe key is not a secret or restricted key")]
fn a_key_of_the_other_mode_is_refused(#[case] key: &str, #[case] live: bool, #[case] said: &str) {
    let made = StripeClient::new(STRIPE_API, key.into(), live);
    assert_eq!(
        made.map_or_else(|error| error.to_string(), |_| "fits".to_owned()),
        said
    );
}

#[test]
fn a_live_key_goes_to_stripe_alone() {
    let made = |base, key: &str, live| StripeClient::new(base, key.into(), live);
    assert!(made("https://api.stripe.com/", "sk_live_x", true).is_ok());
    assert!(made("http://127.0.0.1:1", "sk_test_x", false).is_ok());
    for base in ["http://127.0.0.1:1", "https://api.stripe.com@a.example", ""] {
        let refused = made(base, "sk_live_x", true);
        assert!(matches!(refused, Err(StripeError::NotStripe(_))), "{base}");
    }
}

#[tokio::test]
async fn an_endpoint_is_made_listed_changed_and_deleted() {
    let (_local, stripe) = local().await;
    let made = stripe
        .create_webhook_endpoint(&endpoint(&events()), "k1")
        .await
        .unwrap();
    assert!(made.secret.unwrap().0.expose_secret().starts_with("whsec_"));

    let listed = stripe.list_webhook_endpoints().await.unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].id, made.id);
    assert_eq!(listed[0].url, endpoint(&[]).url);
    assert_eq!(listed[0].enabled_events, events());
    assert_eq!(listed[0].metadata["stack"], "arn:aws:x/y");

    let all = ["*".to_owned()];
    let url = "http://127.0.0.1:2/";
    let changed = stripe
        .update_webhook_endpoint(&made.id, url, &all, "k2")
        .await;
    assert_eq!(changed.unwrap(), UpdateResult::Done);
    assert_eq!(
        stripe.list_webhook_endpoints().await.unwrap()[0].enabled_events,
        all
    );

    stripe.delete_webhook_endpoint(&made.id).await.unwrap();
    stripe.delete_webhook_endpoint(&made.id).await.unwrap();
    let changed = stripe
        .update_webhook_endpoint(&made.id, url, &all, "k3")
        .await;
    assert_eq!(changed.unwrap(), UpdateResult::Gone);
}

#[tokio::test]
async fn a_create_whose_answer_was_lost_makes_one_endpoint() {
    let (local, stripe) = local().await;
    local.fault(Fault {
        carried_out: true,
        ..Fault::default()
    });
    let made = stripe
        .create_webhook_endpoint(&endpoint(&events()), "k1")
        .await
        .unwrap();
    let listed = stripe.list_webhook_endpoints().await.unwrap();
    assert_eq!(listed.iter().map(|e| &e.id).collect::<Vec<_>>(), [&made.id]);
}

#[tokio::test]
async fn a_key_used_for_something_else_is_refused() {
    let (_local, stripe) = local().await;
    stripe
        .create_webhook_endpoint(&endpoint(&events()), "k1")
        .await
        .unwrap();
    let error = stripe
        .create_webhook_endpoint(&endpoint(&["*".to_owned()]), "k1")
        .await
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("400 idempotency_error (request req_local"),
        "{error}"
    );
    assert_eq!(error.disposition(), Disposition::Permanent);
}

#[rstest]
#[case(fault(500), None, 2)]
#[case(fault(409), None, 2)]
#[case(fault(429), None, 1)]
#[case(fault(400), None, 1)]
#[case(fault(503), Some(false), 1)]
#[case(fault(429), Some(true), 2)]
#[case(Fault { code: Some("lock_timeout".to_owned()), ..fault(429) }, None, 2)]
#[case(Fault::default(), None, 2)]
#[tokio::test]
async fn stripe_says_what_is_tried_again(
    #[case] fault: Fault,
    #[case] should_retry: Option<bool>,
    #[case] tries: usize,
) {
    let (local, stripe) = local().await;
    local.fault(Fault {
        should_retry,
        ..fault
    });
    let listed = stripe.list_webhook_endpoints().await;
    assert_eq!((calls(&local), listed.is_ok()), (tries, tries == 2));
}

#[tokio::test]
async fn after_three_tries_it_ends() {
    let (local, stripe) = local().await;
    for _ in 0..5 {
        local.fault(fault(503));
    }
    assert!(stripe.list_webhook_endpoints().await.is_err());
    assert_eq!(calls(&local), 3);
}

#[tokio::test]
async fn an_intent_is_cancelled_or_says_why_not() {
    let (local, stripe) = local().await;
    let intent = |status: &str| json!({"id": format!("pi_{status}"), "object": "payment_intent", "status": status});
    let account = Some("acct_1");
    for status in ["requires_action", "succeeded", "canceled", "processing"] {
        local.put(account, intent(status));
    }
    let cancel = async |id: &str| stripe.cancel_payment_intent(id, account, id).await.unwrap();
    let forbids = |status: &str| {
        CancelResult::StateForbids(IntentSnapshot {
            status: IntentStatus::parse(status),
            next_action: None,
            created: None,
        })
    };
    assert_eq!(cancel("pi_requires_action").await, CancelResult::Done);
    assert_eq!(cancel("pi_none").await, CancelResult::Missing);
    assert_eq!(cancel("pi_succeeded").await, forbids("succeeded"));
    assert_eq!(cancel("pi_canceled").await, forbids("canceled"));
    assert_eq!(cancel("pi_processing").await, forbids("processing"));
    let read = async |id: &str, account| stripe.get_payment_intent(id, account).await.unwrap();
    let canceled = read("pi_requires_action", account).await.unwrap();
    assert_eq!(canceled.status, IntentStatus::Canceled);
    // In another account there is none of this name.
    assert_eq!(read("pi_succeeded", None).await, None);
    let voucher = json!({"id": "pi_voucher", "object": "payment_intent", "status": "requires_action",
        "created": 1_781_000_000, "next_action": {"type": "oxxo_display_details"}});
    local.put(None, voucher);
    let voucher = read("pi_voucher", None).await.unwrap();
    let oxxo = NextActionType::Other("oxxo_display_details".to_owned());
    assert_eq!(voucher.next_action, Some(oxxo));
    assert_eq!(voucher.created, Timestamp::from_unix_s(1_781_000_000).ok());
    // An id is no path.
    assert_eq!(read("../../webhook_endpoints", account).await, None);
}

#[tokio::test]
async fn a_session_is_expired_or_says_where_it_stands() {
    let (local, stripe) = local().await;
    let session = |id: &str, status: &str| json!({"id": id, "object": "checkout.session", "status": status, "payment_intent": "pi_1"});
    local.put(None, session("cs_open", "open"));
    local.put(None, session("cs_done", "complete"));
    let found = stripe.list_checkout_sessions("pi_1", None).await.unwrap();
    assert_eq!(found.len(), 2);
    assert!(
        stripe
            .list_checkout_sessions("pi_2", None)
            .await
            .unwrap()
            .is_empty()
    );
    let expire = async |id: &str| stripe.expire_checkout_session(id, None, id).await.unwrap();
    assert_eq!(expire("cs_open").await, Some(SessionStatus::Expired));
    assert_eq!(expire("cs_done").await, Some(SessionStatus::Complete));
    assert_eq!(expire("cs_none").await, None);
    let read = async |id: &str| stripe.get_checkout_session(id, None).await.unwrap();
    assert_eq!(read("cs_done").await, Some(SessionStatus::Complete));
    assert_eq!(read("cs_none").await, None);
}

#[tokio::test]
async fn nothing_is_repeated_that_may_hold_a_secret() {
    let local = LocalStripe::start(Config::default()).await.unwrap();
    let canary = "sk_test_canary0123456789";
    let stripe = StripeClient::new(&local.base_url(), canary.into(), false).unwrap();
    let error = stripe.list_webhook_endpoints().await.unwrap_err();
    let shown = format!("{stripe:?} {error} {error:?}");
    assert!(shown.contains("401 invalid_request_error"), "{shown}");
    assert!(
        !shown.contains("canary") && !shown.contains("Invalid API Key"),
        "{shown}"
    );

    assert!(
        !is_safe_to_log("bad key sk_test_x")
            && !is_safe_to_log("mail a@b")
            && !is_safe_to_log("a\nb")
    );
    assert_eq!(known_word(Some("sk_test_x")), "unknown");
    assert_eq!(known_word(Some("what is this")), "unknown");
}

async fn no_answer() -> reqwest::Error {
    StripeClient::new("http://127.0.0.1:1", TEST_KEY.into(), false).unwrap();
    reqwest::get("http://127.0.0.1:1").await.unwrap_err()
}

#[tokio::test]
async fn every_failure_says_what_is_left_to_do() {
    let refused = |status, mutates| {
        StripeError::Refused(Box::new(StripeRefusal {
            doing: String::new(),
            status,
            code: String::new(),
            request_id: String::new(),
            message: String::new(),
            mutates,
        }))
    };
    let doing = String::new;
    let request_id = String::new;
    let source = no_answer().await;
    let table = [
        (
            StripeError::KeyOfOtherMode { live_mode: true },
            Disposition::Permanent,
        ),
        (StripeError::NotSecretKey, Disposition::Permanent),
        (
            StripeError::NotStripe("http://127.0.0.1:1".to_owned()),
            Disposition::Permanent,
        ),
        (
            StripeError::TooMany { doing: doing() },
            Disposition::Permanent,
        ),
        (
            StripeError::SetUp(no_answer().await),
            Disposition::Permanent,
        ),
        (
            StripeError::Unreachable {
                doing: doing(),
                may_have_happened: true,
                source,
            },
            Disposition::OutcomeUnknown,
        ),
        (
            StripeError::Unreachable {
                doing: doing(),
                may_have_happened: false,
                source: no_answer().await,
            },
            Disposition::RetryLater,
        ),
        (
            StripeError::Unreadable {
                doing: doing(),
                may_have_happened: true,
                request_id: request_id(),
            },
            Disposition::OutcomeUnknown,
        ),
        (
            StripeError::Unreadable {
                doing: doing(),
                may_have_happened: false,
                request_id: request_id(),
            },
            Disposition::RetryLater,
        ),
        (refused(400, true), Disposition::Permanent),
        (refused(401, false), Disposition::Permanent),
        (refused(402, true), Disposition::Permanent),
        (refused(403, false), Disposition::Permanent),
        (refused(404, true), Disposition::Permanent),
        (refused(409, true), Disposition::RetryLater),
        (refused(424, true), Disposition::OutcomeUnknown),
        (refused(429, true), Disposition::RetryLater),
        (refused(500, true), Disposition::OutcomeUnknown),
        (refused(500, false), Disposition::RetryLater),
        (refused(302, false), Disposition::Permanent),
    ];
    for (error, expected) in table {
        assert_eq!(error.disposition(), expected, "{error:?}");
    }
}

#[tokio::test]
async fn events_are_listed_by_type_time_and_account_page_by_page_as_stripe_wrote_them() {
    let (local, stripe) = local().await;
    let event = |id: &str, kind: &str, created: i64| {
        json!({ "id": id, "object": "event", "type": kind, "created": created, "livemode": false,
            "data": { "object": { "id": "ch_1", "amount": 1_u64 << 60, "rate": "0.10" } } })
    };
    for n in 0..150 {
        let event = event(&format!("evt_{n}"), "charge.refunded", 1_000 + n);
        local.put(None, event);
    }
    local.put(None, event("evt_other", "customer.created", 1_100));
    local.put(
        Some("acct_1"),
        event("evt_theirs", "charge.refunded", 1_100),
    );
    let types = ["charge.refunded", "review.opened"];
    let (from_s, until_s) = (1_010, 1_139);
    let first = stripe.list_events(None, &types, from_s, until_s, None);
    let first = first.await.unwrap();
    assert_eq!((first.events.len(), first.has_more), (100, true));
    let ids = |page: &EventsPage| {
        let id = |event: &FetchedEvent| {
            let body = event.verified().raw_body();
            serde_json::from_slice::<Value>(body).unwrap()["id"].to_string()
        };
        page.events.iter().map(id).collect::<Vec<_>>()
    };
    assert_eq!(ids(&first)[0], "\"evt_139\"");
    let after = Some("evt_40");
    let rest = stripe.list_events(None, &types, from_s, until_s, after);
    let rest = rest.await.unwrap();
    assert_eq!((rest.events.len(), rest.has_more), (30, false));
    assert_eq!(ids(&rest)[29], "\"evt_10\"");
    let account = AccountId::parse("acct_1").unwrap();
    let theirs = stripe.list_events(Some(&account), &types, 0, 2_000, None);
    assert_eq!(ids(&theirs.await.unwrap()), ["\"evt_theirs\""]);
    let forgotten = stripe.list_events(None, &types, 0, 2_000, Some("evt_gone"));
    let StripeError::Refused(refusal) = forgotten.await.unwrap_err() else {
        panic!("not refused");
    };
    assert_eq!((refusal.status, &*refusal.code), (400, "resource_missing"));
}

/// An object of `pi_1` and `ch_1`.
fn object(kind: &str, id: &str, created: i64) -> Value {
    let mut object = json!({ "id": id, "object": kind, "created": created, "livemode": false, "currency": "usd",
        "amount": 10, "status": "succeeded", "payment_intent": "pi_1", "charge": "ch_1" });
    let more = match kind {
        "payment_intent" => json!({ "amount_received": 4200, "metadata": { "order_id": "ord_1" } }),
        "charge" => json!({ "amount_captured": 4200, "amount_refunded": 10 }),
        "checkout.session" => {
            json!({ "status": "complete", "payment_status": "paid", "amount_total": 4200 })
        }
        "dispute" => json!({ "status": "lost" }),
        _ => json!({}),
    };
    object
        .as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    object
}

/// The ids of each kind: PaymentIntents, charges, refunds, disputes, sessions.
fn ids_of(payment: &PaymentAtStripe) -> [Vec<String>; 5] {
    let PaymentAtStripe {
        intents,
        charges,
        refunds,
        disputes,
        sessions,
    } = payment;
    [intents, charges, refunds, disputes, sessions].map(|objects| {
        let id = |raw: &RawValue| {
            let object: Value = serde_json::from_str(raw.get()).unwrap();
            object["id"].as_str().unwrap().to_owned()
        };
        objects.iter().map(|raw| id(raw)).collect()
    })
}

async fn fetch_payment(
    stripe: &StripeClient,
    account: Option<&AccountId>,
    id: &str,
) -> Result<Option<PaymentAtStripe>, StripeError> {
    let payment = PaymentRef::parse(id).unwrap();
    stripe.get_payment_at_stripe(account, &payment).await
}

#[tokio::test]
async fn a_payment_is_fetched_with_all_that_belongs_to_it_and_nothing_else() {
    let (local, stripe) = local().await;
    let others = |kind: &str, id: &str| {
        let mut object = object(kind, id, 2);
        object["payment_intent"] = json!("pi_2");
        object["charge"] = json!("ch_2");
        object
    };
    for (kind, id) in [
        ("payment_intent", "pi"),
        ("charge", "ch"),
        ("refund", "re"),
        ("dispute", "du"),
        ("checkout.session", "cs"),
    ] {
        local.put(None, object(kind, &format!("{id}_1"), 1));
        local.put(None, others(kind, &format!("{id}_2")));
    }
    let no = Vec::<&str>::new;
    for (id, expected, calls) in [
        (
            "pi_1",
            [
                vec!["pi_1"],
                vec!["ch_1"],
                vec!["re_1"],
                vec!["du_1"],
                vec!["cs_1"],
            ],
            vec![
                "GET /v1/payment_intents/pi_1",
                "GET /v1/charges",
                "GET /v1/refunds",
                "GET /v1/disputes",
                "GET /v1/checkout/sessions",
            ],
        ),
        (
            "ch_1",
            [no(), vec!["ch_1"], vec!["re_1"], vec!["du_1"], no()],
            vec![
                "GET /v1/charges/ch_1",
                "GET /v1/refunds",
                "GET /v1/disputes",
            ],
        ),
        (
            "cs_1",
            [no(), no(), no(), no(), vec!["cs_1"]],
            vec!["GET /v1/checkout/sessions/cs_1"],
        ),
    ] {
        let before = local.state()["calls"].as_array().unwrap().len();
        let fetched = fetch_payment(&stripe, None, id).await;
        let fetched = fetched.unwrap().unwrap();
        assert_eq!(ids_of(&fetched), expected, "{id}");
        assert_eq!(
            local.state()["calls"].as_array().unwrap()[before..],
            calls,
            "{id}"
        );
        assert!(read_payment_at_stripe(&fetched).is_ok(), "{id}");
    }
}

#[tokio::test]
async fn a_payment_of_a_connected_account_is_asked_for_in_its_name() {
    let (local, stripe) = local().await;
    let account = AccountId::parse("acct_1").unwrap();
    for (kind, id) in [
        ("payment_intent", "pi_1"),
        ("charge", "ch_1"),
        ("refund", "re_1"),
    ] {
        local.put(Some("acct_1"), object(kind, id, 1));
    }
    // The platform has a refund of another payment with this id.
    local.put(None, object("refund", "re_platform", 1));
    let fetched = fetch_payment(&stripe, Some(&account), "pi_1");
    let fetched = fetched.await.unwrap().unwrap();
    assert_eq!(ids_of(&fetched)[2], ["re_1"]);

    let other = AccountId::parse("acct_2").unwrap();
    for account in [None, Some(&other)] {
        let fetched = fetch_payment(&stripe, account, "pi_1");
        assert!(fetched.await.unwrap().is_none(), "{account:?}");
    }
}

#[tokio::test]
async fn a_payments_lists_are_read_page_by_page_and_not_without_end() {
    let (local, stripe) = local().await;
    local.put(None, object("payment_intent", "pi_1", 1));
    for n in 0..150 {
        local.put(None, object("refund", &format!("re_{n}"), 1_000 + n));
    }
    let fetched = fetch_payment(&stripe, None, "pi_1");
    let [.., refunds, _, _] = ids_of(&fetched.await.unwrap().unwrap());
    let newest_first: Vec<String> = (0..150).rev().map(|n| format!("re_{n}")).collect();
    assert_eq!(refunds, newest_first);
    let asked = local.state()["calls"].to_string();
    assert_eq!(asked.matches("GET /v1/refunds").count(), 2, "{asked}");

    for n in 150..501 {
        local.put(None, object("refund", &format!("re_{n}"), 1_000 + n));
    }
    let fetched = fetch_payment(&stripe, None, "pi_1");
    assert_eq!(
        fetched.await.unwrap_err().to_string(),
        "list the refunds of pi_1: more than 5 pages"
    );
}

#[rstest]
#[case::intent("pi_1")]
#[case::charge("ch_1")]
#[case::session("cs_1")]
#[tokio::test]
async fn only_a_missing_object_is_missing(#[case] id: &str) {
    let (local, stripe) = local().await;
    let fetched = fetch_payment(&stripe, None, id).await;
    assert!(fetched.unwrap().is_none());
    for (status, disposition) in [
        (404, Disposition::Permanent),
        (401, Disposition::Permanent),
        (403, Disposition::Permanent),
        (429, Disposition::RetryLater),
    ] {
        local.fault(fault(status));
        let fetched = fetch_payment(&stripe, None, id).await;
        let error = fetched.unwrap_err();
        assert_eq!(error.disposition(), disposition, "{error}");
    }
}

#[tokio::test]
async fn a_list_that_fails_fails_the_whole_payment() {
    let (local, stripe) = local().await;
    local.put(None, object("payment_intent", "pi_1", 1));
    for after in 1..5 {
        local.fault(Fault {
            after,
            code: Some("resource_missing".to_owned()),
            ..fault(404)
        });
        let fetched = fetch_payment(&stripe, None, "pi_1");
        let error = fetched.await.unwrap_err().to_string();
        assert!(error.starts_with("list the "), "{error}");
    }
}

#[test]
fn calls_that_want_to_begin_at_once_begin_at_even_distances() {
    let begun = Instant::now();
    let pace = RateLimiter {
        distance: Duration::from_secs(1) / 20,
        next: Mutex::new(begun),
    };
    let turns: Vec<_> = (0..41).map(|_| pace.next_slot(begun) - begun).collect();
    assert!(
        turns
            .windows(2)
            .all(|pair| pair[1] - pair[0] == Duration::from_millis(50))
    );
    assert_eq!(turns[40], Duration::from_secs(2));
    // Unused time is not saved.
    let later = begun + Duration::from_secs(10);
    let turns = [(); 3].map(|()| pace.next_slot(later) - later);
    assert_eq!(turns, [0, 50, 100].map(Duration::from_millis));
}

#[tokio::test]
async fn whose_a_key_and_whose_an_event_is_stripe_says() {
    let (local, stripe) = local().await;
    let platform = stripe.find_own_account().await.unwrap().unwrap();
    assert_eq!(platform.as_str(), "acct_platform");
    // A restricted key without the permission.
    local.fault(fault(403));
    assert_eq!(stripe.find_own_account().await.unwrap(), None);
    local.fault(fault(401));
    assert!(stripe.find_own_account().await.is_err());

    for (account, id) in [(None, "evt_own"), (Some("acct_1"), "evt_theirs")] {
        let event = json!({ "id": id, "object": "event", "type": "refund.created", "created": 1 });
        local.put(account, event);
    }
    let has = async |id: &str| stripe.has_event(&EventId::parse(id).unwrap()).await;
    assert!(has("evt_own").await.unwrap());
    assert!(!has("evt_theirs").await.unwrap());
    local.fault(fault(401));
    assert!(has("evt_own").await.is_err());
}

#[tokio::test]
async fn an_account_that_was_disconnected_refuses_every_call() {
    let (local, stripe) = local().await;
    local.put(
        Some("acct_1"),
        json!({"id": "pi_1", "object": "payment_intent", "status": "processing"}),
    );
    local.refuse("acct_1", true);
    let error = stripe
        .get_payment_intent("pi_1", Some("acct_1"))
        .await
        .unwrap_err();
    assert!(error.is_access_refused(), "{error}");
    assert!(error.to_string().contains("403 account_invalid"), "{error}");
    local.refuse("acct_1", false);
    let found = stripe.get_payment_intent("pi_1", Some("acct_1")).await;
    assert!(found.unwrap().is_some());
    // A 404 that names no object says nothing about one.
    local.fault(Fault {
        status: Some(404),
        ..Fault::default()
    });
    let error = stripe.get_payment_intent("pi_1", None).await.unwrap_err();
    assert!(!error.is_access_refused(), "{error}");
}

#[tokio::test]
async fn the_money_of_a_destination_charge_arrives_as_a_charge_of_its_transfer() {
    let (local, stripe) = local().await;
    local.put(None, json!({"id": "pi_1", "object": "payment_intent", "amount": 4200, "currency": "usd", "created": 1,
        "status": "requires_payment_method", "transfer_data": { "destination": "acct_1" }}));
    let pay = PayerAction {
        account: None,
        livemode: false,
        of: "pi_1".to_owned(),
        does: PayerStep::Pay,
    };
    local.act(&pay).unwrap();
    let account = AccountId::parse("acct_1").unwrap();
    let arrived = PaymentRef::parse("py_1").unwrap();
    let found = stripe.get_payment_at_stripe(Some(&account), &arrived).await;
    let charge = found.unwrap().unwrap().charges.remove(0);
    let charge: Value = serde_json::from_str(charge.get()).unwrap();
    assert_eq!(
        (&charge["source_transfer"], &charge["amount_captured"]),
        (&json!("tr_1"), &json!(4200))
    );
}

#[tokio::test]
async fn a_voucher_completes_its_session_and_nothing_ends_it() {
    let (local, stripe) = local().await;
    local.put(None, json!({"id": "pi_1", "object": "payment_intent", "amount": 4200, "status": "requires_payment_method"}));
    local.put(None, json!({"id": "cs_1", "object": "checkout.session", "status": "open", "payment_intent": "pi_1"}));
    let act = |of: &str, does| {
        local.act(&PayerAction {
            account: None,
            livemode: false,
            of: of.to_owned(),
            does,
        })
    };
    let intent = async || {
        stripe
            .get_payment_intent("pi_1", None)
            .await
            .unwrap()
            .unwrap()
    };
    act("cs_1", PayerStep::ThreeDSecure).unwrap();
    assert_eq!(
        intent().await.next_action,
        Some(NextActionType::UseStripeSdk)
    );
    act("cs_1", PayerStep::Oxxo).unwrap();
    let waits = intent().await;
    assert_eq!(waits.status, IntentStatus::RequiresAction);
    let oxxo = NextActionType::Other("oxxo_display_details".to_owned());
    assert_eq!(waits.next_action, Some(oxxo));
    let expired = stripe.expire_checkout_session("cs_1", None, "k1").await;
    assert_eq!(expired.unwrap(), Some(SessionStatus::Complete));
    act("pi_1", PayerStep::Fail).unwrap();
    let failed = intent().await;
    let cancelled = stripe.cancel_payment_intent("pi_1", None, "k2").await;
    assert_eq!(cancelled.unwrap(), CancelResult::StateForbids(failed));
    act("pi_1", PayerStep::Debit).unwrap();
    assert_eq!(intent().await.status, IntentStatus::Processing);
    act("pi_1", PayerStep::Pay).unwrap();
    assert_eq!(intent().await.status, IntentStatus::Succeeded);
    assert!(act("pi_1", PayerStep::Boleto).is_err());
    assert!(act("pi_none", PayerStep::Pay).is_err());
}
