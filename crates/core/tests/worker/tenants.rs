//! Whose an event of a connected account is: what a cache and an index say is a hint, and the tenant's row decides.

use billhook_core::entity::tenant::{AccountHits, TenantHit};
use billhook_core::worker::ports::TenantLookup;
use billhook_testkit::events::refund;

use super::*;

fn account(id: &str) -> AccountId {
    AccountId::parse(id).unwrap()
}

fn tenant(id: &str) -> TenantId {
    TenantId::parse(id).unwrap()
}

/// The application gives these accounts to these tenants.
fn assign(tables: &MemoryTables, tenants: &[(&str, &str)]) {
    let pairs = tenants.iter().map(|(of, to)| (account(of), tenant(to)));
    *tables.tenants.lock().unwrap() = pairs.collect();
}

/// The tenant's row says that it had the account before, and reconcile or a command noted that.
fn had_before(tables: &MemoryTables, of: &str, before: &str) {
    let pair = (account(of), tenant(before));
    tables
        .previous_accounts
        .lock()
        .unwrap()
        .insert(pair.clone());
    tables.account_notes.lock().unwrap().insert(pair);
}

/// What a cache or the index says, whatever the rows say.
fn says(tables: &MemoryTables, lookup: TenantLookup, of: &str, hits: &[TenantHit]) {
    let hits = AccountHits {
        present: hits.iter().cloned().collect(),
        previous: BTreeSet::new(),
        is_cached: lookup == TenantLookup::MayBeCached,
    };
    let mut stale = tables.stale_tenants.lock().unwrap();
    stale.insert((account(of), lookup), hits);
}

fn paid(event: &str, payment: &str, order: &str) -> Value {
    let paid = intent_succeeded(event, T, payment, named(order), 4200);
    from_account(paid, "acct_a")
}

#[tokio::test]
async fn an_account_that_moved_this_second_is_not_credited_to_its_former_tenant() {
    let former = TenantHit::Tenant(tenant("ten_a"));
    for (does_index_lag, expected) in [(true, "tenant_unknown"), (false, "cross_tenant")] {
        let tables = tables();
        assign(&tables, &[("acct_a", "ten_b")]);
        let of_former = std::slice::from_ref(&former);
        says(&tables, TenantLookup::MayBeCached, "acct_a", of_former);
        if does_index_lag {
            says(&tables, TenantLookup::Fresh, "acct_a", of_former);
        }
        let event = paid("evt_1", "pi_1", "ord_a");
        deliver(&tables, ProviderId::Stripe, &[event]).await;
        assert_eq!(outcome(&tables, "evt_1"), parked(expected));
        assert_eq!(entity(&tables, &order("ord_a")).version(), 0);
    }
}

#[tokio::test]
async fn an_event_of_an_account_that_moved_waits_until_the_index_shows_it() {
    let tables = tables();
    assign(&tables, &[("acct_b", "ten_a")]);
    let lagging = TenantHit::Tenant(tenant("ten_b"));
    for lookup in [TenantLookup::MayBeCached, TenantLookup::Fresh] {
        says(&tables, lookup, "acct_b", std::slice::from_ref(&lagging));
    }
    let event = intent_succeeded("evt_1", T, "pi_1", named("ord_a"), 4200);
    let message = keep(&tables, ProviderId::Stripe, &from_account(event, "acct_b")).await;
    let messages = [message];
    work(&tables, ProviderId::Stripe, &messages).await;
    assert_eq!(outcome(&tables, "evt_1"), parked("tenant_unknown"));
    // The cache is still the old one, and the sweep sends the event again.
    let fresh = (account("acct_b"), TenantLookup::Fresh);
    tables.stale_tenants.lock().unwrap().remove(&fresh);
    work(&tables, ProviderId::Stripe, &messages).await;
    assert_eq!(outcome(&tables, "evt_1"), processed());
    assert_eq!(status(&tables, "ord_a").0, "completed");
}

#[tokio::test]
async fn a_late_refund_on_an_account_that_the_tenant_had_before_still_finds_it() {
    let tables = tables();
    deliver(
        &tables,
        ProviderId::Stripe,
        &[paid("evt_1", "pi_1", "ord_a")],
    )
    .await;
    assign(&tables, &[("acct_new", "ten_a")]);
    let late = |id: &str, refund_id: &str| {
        let refund = refund(id, T + 60, refund_id, ("pi_1", "ch_1"), 1000, "succeeded");
        from_account(refund, "acct_a")
    };
    // The application forgot the old account: nobody can say whose it is.
    deliver(&tables, ProviderId::Stripe, &[late("evt_2", "re_1")]).await;
    assert_eq!(outcome(&tables, "evt_2"), parked("tenant_unknown"));
    had_before(&tables, "acct_a", "ten_a");
    deliver(&tables, ProviderId::Stripe, &[late("evt_3", "re_2")]).await;
    assert_eq!(outcome(&tables, "evt_3"), processed());
    let order = entity(&tables, &order("ord_a"));
    let refunded = order.linked_payment_facts().unwrap().merge_linked_facts();
    assert_eq!(refunded.refunds.len(), 2);
    // What the note says is only a hint too.
    tables.previous_accounts.lock().unwrap().clear();
    deliver(&tables, ProviderId::Stripe, &[late("evt_4", "re_3")]).await;
    assert_eq!(outcome(&tables, "evt_4"), parked("tenant_unknown"));
}

#[tokio::test]
async fn an_account_that_another_tenant_has_now_is_not_that_of_who_had_it_before() {
    let tables = tables();
    assign(&tables, &[("acct_new", "ten_a"), ("acct_a", "ten_b")]);
    had_before(&tables, "acct_a", "ten_a");
    deliver(
        &tables,
        ProviderId::Stripe,
        &[paid("evt_1", "pi_1", "ord_a")],
    )
    .await;
    assert_eq!(outcome(&tables, "evt_1"), parked("cross_tenant"));
    // The index does not show the new one yet: the row of the former one says that it had the account before, and that
    // decides nothing while the index is behind.
    let former = [TenantHit::Tenant(tenant("ten_a"))];
    says(&tables, TenantLookup::MayBeCached, "acct_a", &former);
    says(&tables, TenantLookup::Fresh, "acct_a", &former);
    deliver(
        &tables,
        ProviderId::Stripe,
        &[paid("evt_2", "pi_2", "ord_a")],
    )
    .await;
    assert_eq!(outcome(&tables, "evt_2"), parked("tenant_unknown"));
    assert_eq!(entity(&tables, &order("ord_a")).version(), 0);
}

#[tokio::test]
async fn two_tenants_of_one_account_are_ambiguous_even_if_one_id_cannot_be_read() {
    let unreadable = || TenantHit::Unreadable("Bäckerei Müller".to_owned());
    for (hits, expected) in [
        (
            vec![TenantHit::Tenant(tenant("ten_a")), unreadable()],
            "tenant_ambiguous",
        ),
        (vec![unreadable()], "tenant_unknown"),
    ] {
        let tables = tables();
        says(&tables, TenantLookup::MayBeCached, "acct_a", &hits);
        says(&tables, TenantLookup::Fresh, "acct_a", &hits);
        deliver(
            &tables,
            ProviderId::Stripe,
            &[paid("evt_1", "pi_1", "ord_a")],
        )
        .await;
        assert_eq!(outcome(&tables, "evt_1"), parked(expected));
        assert_eq!(entity(&tables, &order("ord_a")).version(), 0);
    }
}

#[tokio::test]
async fn the_row_of_a_tenant_is_read_without_a_call_of_its_own() {
    let calls = async |event: Value| {
        let tables = tables();
        deliver(&tables, ProviderId::Stripe, &[event]).await;
        let calls = tables.calls.lock().unwrap().clone();
        (calls["rows"], calls.get("tenants_of").copied())
    };
    let platforms = intent_succeeded("evt_1", T, "pi_1", named("ord_1"), 4200);
    let (of_platform, none) = calls(platforms).await;
    let (of_tenant, asked) = calls(paid("evt_1", "pi_1", "ord_a")).await;
    assert_eq!((of_tenant, none, asked), (of_platform, None, Some(1)));
}

#[tokio::test]
async fn a_tenant_whose_state_a_newer_release_wrote_still_has_its_payments() {
    let tables = tables();
    let state = StateKey::parse("tenant#ten_a").unwrap();
    tables.newer.lock().unwrap().insert(state);
    deliver(
        &tables,
        ProviderId::Stripe,
        &[paid("evt_1", "pi_1", "ord_a")],
    )
    .await;
    assert_eq!(outcome(&tables, "evt_1"), processed());
    assert_eq!(status(&tables, "ord_a").0, "completed");
}

fn ignored(reason: &str) -> (EventOutcome, Option<String>) {
    (EventOutcome::Ignored, Some(reason.to_owned()))
}

fn mute(tables: &MemoryTables, id: &str) {
    tables.muted.lock().unwrap().insert(tenant(id));
}

/// Replays an event that is done, as `billhook replay --force` does.
async fn replay(tables: &MemoryTables, event: &str) {
    let id = EventId::parse(event).unwrap();
    {
        let mut events = tables.events.lock().unwrap();
        let row = &mut events.get_mut(&id).unwrap().stored;
        (row.processed, row.outcome) = (false, EventOutcome::Pending);
    }
    let message = ReceivedMessage {
        message_id: format!("m-{event}"),
        body: json!({ "event_id": event }).to_string(),
        receive_count: 1,
        is_last_receive: false,
    };
    work(tables, ProviderId::Stripe, &[message]).await;
}

/// `acct_b` floods, with junk and with events that cannot be read; `acct_a` must not notice, before nor after the mute.
#[tokio::test]
async fn the_events_of_a_muted_tenant_end_quietly_and_those_of_the_others_count() {
    let flood = |id: &str, payment: &str| {
        let junk = intent_succeeded(id, T, payment, named("ord_nobody"), 1);
        from_account(junk, "acct_b")
    };
    let malformed = |id: &str| {
        let mut event = flood(id, "pi_m");
        event["data"]["object"]["amount_received"] = json!(-1);
        event
    };
    let tables = tables();
    let batch = [flood("evt_1", "pi_1"), malformed("evt_2")];
    deliver(&tables, ProviderId::Stripe, &batch).await;
    assert_eq!(outcome(&tables, "evt_1"), parked("order_unknown"));
    assert_eq!(outcome(&tables, "evt_2"), parked("amount_malformed"));
    let victims = view(&tables, &order("ord_a"));

    mute(&tables, "ten_b");
    let batch = [
        flood("evt_3", "pi_3"),
        malformed("evt_4"),
        paid("evt_a", "pi_a", "ord_a"),
    ];
    let reports = deliver(&tables, ProviderId::Stripe, &batch).await;
    for id in ["evt_3", "evt_4"] {
        assert_eq!(outcome(&tables, id), ignored("muted"), "{id}");
        assert_eq!(reports[&format!("m-{id}")].tenant, Some(tenant("ten_b")));
    }
    let key = PaymentKey::parse("payment#acct_b#pi_3").unwrap();
    assert!(!tables.payments.lock().unwrap().contains_key(&key));
    assert_eq!(outcome(&tables, "evt_a"), processed());
    assert_eq!(status(&tables, "ord_a").0, "completed");
    assert_ne!(view(&tables, &order("ord_a")), victims);
    // What was parked before ends as well, once the sweep sends it.
    replay(&tables, "evt_1").await;
    assert_eq!(outcome(&tables, "evt_1"), ignored("muted"));
    // The malformed ones alone: their tenant is found all the same.
    deliver(&tables, ProviderId::Stripe, &[malformed("evt_5")]).await;
    assert_eq!(outcome(&tables, "evt_5"), ignored("muted"));
}

#[tokio::test]
async fn money_that_was_muted_comes_back_with_a_replay() {
    let tables = tables();
    mute(&tables, "ten_a");
    let before = view(&tables, &order("ord_a"));
    deliver(
        &tables,
        ProviderId::Stripe,
        &[paid("evt_1", "pi_1", "ord_a")],
    )
    .await;
    assert_eq!(outcome(&tables, "evt_1"), ignored("muted"));
    assert_eq!(view(&tables, &order("ord_a")), before);
    tables.muted.lock().unwrap().clear();
    replay(&tables, "evt_1").await;
    assert_eq!(outcome(&tables, "evt_1"), processed());
    assert_eq!(status(&tables, "ord_a").0, "completed");
}

#[tokio::test]
async fn a_mute_costs_no_call() {
    let calls = async |is_muted: bool| {
        let tables = tables();
        if is_muted {
            mute(&tables, "ten_a");
        }
        deliver(
            &tables,
            ProviderId::Stripe,
            &[paid("evt_1", "pi_1", "ord_a")],
        )
        .await;
        tables.calls.lock().unwrap().values().sum::<usize>()
    };
    assert_eq!(calls(true).await, calls(false).await);
}
