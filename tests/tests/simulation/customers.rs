//! What happens at Stripe, at Lob and in the application: rows are created, customers pay, refunds and disputes follow,
//! letters travel.

use std::time::Duration;

use billhook_core::entity::{Entity, EntityKey};
use billhook_core::ids::{AccountId, OrderId, ProviderId, StatementId, TenantId};
use billhook_core::ports::Clock as _;
use billhook_core::provider::stripe::types::{IntentStatus, NextActionType, SessionStatus};
use billhook_core::time::Timestamp;
use billhook_testkit::events::{
    charge_refunded, dispute, from_account, intent_failed, intent_succeeded, letter, refund,
    session_completed, stripe,
};
use billhook_testkit::memory::entity_of;
use billhook_testkit::sim::stripe::{CheckoutPage, Emitted, End, Intent, Says, naming};
use billhook_testkit::sim::{Sim, World};
use serde_json::{Value, json};

/// What every order and statement asks for.
pub(crate) const DUE: i64 = 4200;
/// Two things that happen to one payment never happen in the same second.
const APART: Duration = Duration::from_millis(1001);

/// Everything that a customer's side does by itself.
#[derive(Clone)]
pub(crate) struct Customers {
    pub(crate) sim: Sim,
    pub(crate) until: Timestamp,
    /// The most that passes between two steps of a payment.
    pub(crate) pace: Duration,
    /// Payments are linked by invoices, by the metadata of charges and to two orders.
    pub(crate) is_entangled: bool,
}

pub(crate) fn tenant(name: &str) -> (TenantId, AccountId) {
    let id = TenantId::parse(&format!("ten_{name}")).unwrap();
    (id, AccountId::parse(&format!("acct_{name}")).unwrap())
}

/// The other order of the same tenant: orders have their tenants by turns of four.
fn rival(key: &EntityKey) -> Option<EntityKey> {
    let number: u64 = key.order()?.as_str().strip_prefix("ord_")?.parse().ok()?;
    let other = match number {
        0..=3 => number + 4,
        _ => number - 4,
    };
    Some(EntityKey::Order(
        OrderId::parse(&format!("ord_{other}")).ok()?,
    ))
}

impl Customers {
    fn is_over(&self) -> bool {
        self.sim.now() >= self.until
    }

    async fn step(&self) {
        self.sim.wait(APART, self.pace).await;
    }

    fn chance(&self, per_mille: u64) -> bool {
        self.sim.world().rng.chance(per_mille)
    }

    /// A tenant and its account are known from now on.
    pub(crate) fn add_tenant(&self, name: &str) {
        let (id, account) = tenant(name);
        let mut world = self.sim.world();
        let now = world.now();
        let columns = json!({ "tenant_id": id, "stripe_connected_account_id": account });
        let row = entity_of(&EntityKey::Tenant(id.clone()), columns);
        world.store.add(now, row);
        world.store.accounts.put(now, id, account);
        world.tell(|| format!("application    adds tenant {name}"));
    }

    /// The application gives a tenant another account, and says in its row which it had; payments on that one go on, and
    /// nobody notes it for the worker but reconcile.
    pub(crate) fn change_account(&self, name: &str) {
        let (id, before) = tenant(name);
        let next = AccountId::parse(&format!("acct_{name}_new")).unwrap();
        let key = EntityKey::Tenant(id.clone());
        let mut world = self.sim.world();
        let now = world.now();
        if let Some(mut row) = world.store.entities.get(&key).cloned()
            && let Entity::Tenant(state) = &mut row.entity
        {
            state.given.account = Some(next.clone());
            state.given.previous.insert(before.clone());
            world.store.entities.put(now, key, row);
        }
        world.store.accounts.put(now, id.clone(), next);
        let previous = world.store.previous_accounts.entry(id).or_default();
        previous.insert(before);
        world.tell(|| format!("application    gives tenant {name} another account"));
    }

    /// An order with its payments; `owner` is its tenant's name, none for the platform's own.
    pub(crate) async fn order(self, name: String, owner: Option<&'static str>, payments: u64) {
        let key = EntityKey::Order(OrderId::parse(&format!("ord_{name}")).unwrap());
        let columns = json!({ "status": "pending" });
        self.with_payments(key, columns, owner, payments).await;
    }

    /// A statement that is paid and mailed.
    pub(crate) async fn statement(self, name: String, owner: Option<&'static str>, payments: u64) {
        let key = EntityKey::Statement(StatementId::parse(&format!("stm_{name}")).unwrap());
        let piece = format!("ltr_{name}");
        let columns = json!({ "lob_letter_id": piece });
        tokio::task::spawn_local(self.clone().mail(key.clone(), piece));
        self.with_payments(key, columns, owner, payments).await;
    }

    async fn with_payments(
        &self,
        key: EntityKey,
        mut columns: Value,
        owner: Option<&'static str>,
        payments: u64,
    ) {
        columns[key.schema().tenant] = json!(owner.map(|name| tenant(name).0));
        // An order's column, and a statement's.
        columns["amountTotal"] = json!(DUE);
        columns["amount_due"] = json!(DUE);
        columns["currency"] = json!("usd");
        let intents: Vec<String> = (0..payments)
            .map(|_| self.sim.world().stripe.id("pi"))
            .collect();
        // One way to tell whose a payment is: in the application's own column.
        let in_column = self.chance(250);
        if in_column && let Some(first) = intents.first() {
            columns[key.schema().payment_intent.unwrap()] = json!(first);
        }
        // A page that the customer left open long ago, and that no event tells of.
        let old_session = key.order().is_some() && !in_column && self.chance(350);
        if old_session {
            let session = self.sim.world().stripe.id("cs");
            columns["stripeCheckoutSessionId"] = json!(session);
            let page = CheckoutPage {
                pays: key.clone(),
                account: owner.map(|name| tenant(name).1),
                intent: None,
                expired_at: None,
            };
            let mut world = self.sim.world();
            world.stripe.pages.insert(session.clone(), page);
            drop(world);
            tokio::task::spawn_local(self.clone().old_session(session));
        }
        let row = entity_of(&key, columns);
        let is_late = self.chance(250);
        let late = self.clone();
        let adding = async move {
            if is_late {
                late.sim.wait(APART, Duration::from_mins(12)).await;
            }
            let mut world = late.sim.world();
            let now = world.now();
            world.tell(|| format!("application    adds {}", row.key()));
            world.store.add(now, row);
        };
        match is_late {
            true => drop(tokio::task::spawn_local(adding)),
            false => adding.await,
        }
        for (number, intent) in intents.into_iter().enumerate() {
            let is_noted = in_column && number == 0;
            let invoice = match self.is_entangled && key.order().is_some() && self.chance(300) {
                true => Some(self.invoice(&key, owner)),
                false => None,
            };
            let is_named = !is_noted && invoice.is_none() && self.chance(600);
            let needs_session = !is_named && !is_noted && invoice.is_none();
            let rival = rival(&key).filter(|_| self.is_entangled && self.chance(300));
            let session = (intent.replace("pi_", "cs_"), SessionStatus::Open);
            let payment = Intent {
                pays: key.clone(),
                account: owner.map(|name| tenant(name).1),
                amount: self.amount(),
                is_named,
                invoice,
                rival,
                session: needs_session.then_some(session),
                created: self.sim.now(),
                next_action: None,
                statuses: Vec::new(),
            };
            self.insert(&intent, payment);
            tokio::task::spawn_local(self.clone().payment(intent));
            self.step().await;
        }
    }

    /// The customer comes back to an old page, or never.
    async fn old_session(self, session: String) {
        self.sim.wait(APART, self.pace * 8).await;
        if self.is_over() || self.chance(400) {
            return;
        }
        let intent = {
            let mut world = self.sim.world();
            let (now, intent) = (world.now(), world.stripe.id("pi"));
            let page = world.stripe.pages.get_mut(&session).unwrap();
            // Stripe shows an expired session to nobody.
            if page.expired_at.is_some() {
                return;
            }
            page.intent = Some(intent.clone());
            let payment = Intent {
                pays: page.pays.clone(),
                account: page.account.clone(),
                amount: DUE,
                is_named: false,
                invoice: None,
                rival: None,
                session: Some((session.clone(), SessionStatus::Open)),
                created: now,
                next_action: None,
                statuses: Vec::new(),
            };
            world.stripe.intents.insert(intent.clone(), payment);
            world.sometimes("old session opened");
            world.tell(|| format!("stripe         {session} gets {intent}"));
            intent
        };
        self.payment(intent).await;
    }

    /// A session in mode `subscription`: it names its order and the invoice that it made, and no payment. It begins with a
    /// trial: nothing is due yet.
    fn invoice(&self, key: &EntityKey, owner: Option<&'static str>) -> String {
        let mut world = self.sim.world();
        let now_s = world.now().unix_s();
        let (id, session) = (world.stripe.id("evt"), world.stripe.id("cs"));
        let invoice = world.stripe.id("in");
        let names = naming(key);
        let free = "no_payment_required";
        let mut event = session_completed(&id, now_s, &session, None, names, free);
        event["data"]["object"]["amount_total"] = Value::Null;
        event["data"]["object"]["invoice"] = json!(invoice);
        let account = owner.map(|name| tenant(name).1.to_string());
        if let Some(account) = &account {
            event = from_account(event, account);
        }
        world.tell(|| format!("stripe         {id} {session} of {key} makes {invoice}"));
        world.stripe.emit(Emitted {
            provider: ProviderId::Stripe,
            id,
            kind: "checkout.session.completed".to_owned(),
            account,
            created_s: now_s,
            body: event.to_string(),
            of: session,
            links: true,
            says: Says::Nothing,
            end: End::In(key.clone()),
        });
        invoice
    }

    /// Mostly what is due; else the half of it, less, or more.
    fn amount(&self) -> i64 {
        let others = [DUE / 2, DUE / 2, DUE - 100, DUE + 300];
        match self.chance(200) {
            true => self.sim.world().rng.pick(&others),
            false => DUE,
        }
    }

    fn insert(&self, id: &str, payment: Intent) {
        let mut world = self.sim.world();
        world.stripe.intents.insert(id.to_owned(), payment);
    }

    fn intent(&self, id: &str) -> Intent {
        self.sim.world().stripe.intents[id].clone()
    }

    async fn payment(self, id: String) {
        let charge = id.replace("pi_", "ch_");
        while !self.is_over() {
            self.step().await;
            if self.intent(&id).status() == IntentStatus::RequiresAction {
                // To the shop and back takes longer than the grace period.
                self.sim.wait(APART, self.pace * 4).await;
            }
            let payment = self.intent(&id);
            match payment.status() {
                IntentStatus::Canceled => return,
                IntentStatus::Succeeded => {
                    return self.afterwards(&id, &charge, payment.amount).await;
                }
                _ if !self.tries(&id, &payment) => return,
                _ => {}
            }
        }
    }

    /// The next step of a payment that is open; whether there will be another.
    fn tries(&self, id: &str, payment: &Intent) -> bool {
        let mut world = self.sim.world();
        let is_complete =
            matches!(&payment.session, Some((_, status)) if *status == SessionStatus::Complete);
        let waits = payment.status() == IntentStatus::RequiresAction;
        match (payment.status(), world.rng.below(11)) {
            (IntentStatus::Processing, 0..=4) => self.pay(&mut world, id, payment),
            (IntentStatus::RequiresAction, 0..=4) => self.pay(&mut world, id, payment),
            (IntentStatus::RequiresAction, 5..=7) => self.fail(&mut world, id, payment),
            // The voucher lies at home.
            (IntentStatus::RequiresAction, _) => {}
            // The debit or voucher of a completed session failed: there is no page any more.
            (IntentStatus::RequiresPaymentMethod, _) if is_complete => return false,
            (_, 5..=7) => self.pay(&mut world, id, payment),
            (_, 0..=3) => self.fail(&mut world, id, payment),
            (_, 4) => {
                world.move_intent(id, IntentStatus::Processing, Says::Processing);
                self.complete_unpaid(&mut world, id, payment);
            }
            (IntentStatus::RequiresPaymentMethod, 8 | 9) => self.act(&mut world, id, payment),
            // The customer goes away.
            _ => return false,
        }
        let is_paid = world.stripe.intents[id].status() == IntentStatus::Succeeded;
        if waits && is_paid {
            world.sometimes("voucher paid late");
        }
        true
    }

    /// The attempt failed.
    fn fail(&self, world: &mut World, id: &str, payment: &Intent) {
        let attempt = world.stripe.id("ch");
        let now = world.now();
        let open = IntentStatus::RequiresPaymentMethod;
        if let Some(known) = world.stripe.intents.get_mut(id) {
            known.statuses.push((now, open));
            known.next_action = None;
        }
        let (metadata, named) = (payment.metadata(), payment.is_named);
        world.emit_about(id, Says::Failed, named, |event, at| {
            intent_failed(event, at, id, metadata, &attempt)
        });
        if let Some((session, SessionStatus::Complete)) = &payment.session {
            let pays = payment.pays.clone();
            world.emit_about(id, Says::Failed, true, |event, at| {
                let names = naming(&pays);
                let mut body = session_completed(event, at, session, Some(id), names, "unpaid");
                body["type"] = json!("checkout.session.async_payment_failed");
                body
            });
        }
    }

    /// The customer takes a voucher, which completes the session unpaid, or is sent to a page of the bank.
    fn act(&self, world: &mut World, id: &str, payment: &Intent) {
        let now = world.now();
        let action = world.rng.pick(&[
            "oxxo_display_details",
            "display_bank_transfer_instructions",
            "use_stripe_sdk",
        ]);
        let action = NextActionType::parse(action);
        let is_page = action == NextActionType::UseStripeSdk;
        let known = world.stripe.intents.get_mut(id).unwrap();
        known.statuses.push((now, IntentStatus::RequiresAction));
        known.next_action = Some(action.clone());
        world.sometimes(if is_page { "bank page" } else { "voucher" });
        world.tell(|| format!("stripe         {id} waits for {}", action.as_str()));
        if !is_page {
            self.complete_unpaid(world, id, payment);
        }
    }

    /// The session is finished, and the money comes later.
    fn complete_unpaid(&self, world: &mut World, id: &str, payment: &Intent) {
        let Some((session, SessionStatus::Open)) = &payment.session else {
            return;
        };
        let known = world.stripe.intents.get_mut(id).unwrap();
        known.session = Some((session.clone(), SessionStatus::Complete));
        let pays = payment.pays.clone();
        world.emit_about(id, Says::Processing, true, |event, at| {
            session_completed(event, at, session, Some(id), naming(&pays), "unpaid")
        });
    }

    fn pay(&self, world: &mut World, id: &str, payment: &Intent) {
        let says = Says::Paid(payment.amount);
        let again = says.clone();
        world.move_intent(id, IntentStatus::Succeeded, says);
        if let Some((session, before)) = &payment.session {
            let is_late = *before == SessionStatus::Complete;
            let known = world.stripe.intents.get_mut(id).unwrap();
            known.session = Some((session.clone(), SessionStatus::Complete));
            let (pays, amount) = (payment.pays.clone(), payment.amount);
            world.emit_about(id, again, true, |event, at| {
                let names = naming(&pays);
                let mut body = session_completed(event, at, session, Some(id), names, "paid");
                body["data"]["object"]["amount_total"] = json!(amount);
                if is_late {
                    body["type"] = json!("checkout.session.async_payment_succeeded");
                }
                body
            });
        } else if world.rng.chance(150) {
            // The same fact under another id.
            let metadata = payment.metadata();
            let amount = payment.amount;
            world.emit_about(id, again, payment.is_named, |event, at| {
                billhook_testkit::events::intent_succeeded(event, at, id, metadata, amount)
            });
        }
    }

    /// Money goes back, comes back, is asked for.
    async fn afterwards(self, id: &str, charge: &str, amount: i64) {
        let (mut left, mut total) = (amount, 0);
        let mut given: Vec<(String, i64)> = Vec::new();
        let mut disputed = None;
        while !self.is_over() {
            self.step().await;
            let mut world = self.sim.world();
            match world.rng.below(10) {
                0..=3 if left > 0 => {
                    let part = if world.rng.chance(500) {
                        left
                    } else {
                        left.min(1000)
                    };
                    (left, total) = (left - part, total + part);
                    let refund_id = world.stripe.id("re");
                    given.push((refund_id.clone(), part));
                    let says = Says::Refund(refund_id.clone(), part, "succeeded");
                    world.emit_about(id, says, false, |event, at| {
                        refund(event, at, &refund_id, (id, charge), part, "succeeded")
                    });
                    if world.rng.chance(700) {
                        world.emit_about(id, Says::Refunded(total, amount), false, |event, at| {
                            let mut body = charge_refunded(event, at, charge, Some(id), total);
                            let object = &mut body["data"]["object"];
                            object["amount"] = json!(amount);
                            object["amount_captured"] = json!(amount);
                            object["refunded"] = json!(total == amount);
                            body
                        });
                    }
                }
                4 if !given.is_empty() => {
                    let (refund_id, part) = given.remove(0);
                    (left, total) = (left + part, total - part);
                    let says = Says::Refund(refund_id.clone(), part, "failed");
                    world.emit_about(id, says, false, |event, at| {
                        refund(event, at, &refund_id, (id, charge), part, "failed")
                    });
                }
                5 => {
                    let known: Option<(String, i64)> = disputed.take();
                    let state = match known {
                        None => "needs_response",
                        Some(_) => world.rng.pick(&["under_review", "won", "lost"]),
                    };
                    let (dispute_id, about) = known.unwrap_or_else(|| {
                        let part = if world.rng.chance(300) { 700 } else { amount };
                        (world.stripe.id("dp"), part)
                    });
                    // After a loss, an appeal may open it again.
                    let is_ended = state == "won" || (state == "lost" && world.rng.chance(500));
                    disputed = Some((dispute_id.clone(), about)).filter(|_| !is_ended);
                    let says = Says::Dispute(dispute_id.clone(), state, about);
                    let by_charge = self.is_entangled && world.rng.chance(500);
                    world.emit_about(id, says, false, |event, at| {
                        let mut body = dispute(event, at, &dispute_id, id, state);
                        body["data"]["object"]["amount"] = json!(about);
                        body["data"]["object"]["charge"] = json!(charge);
                        if by_charge {
                            body["data"]["object"]["payment_intent"] = Value::Null;
                        }
                        body
                    });
                }
                7 if self.is_entangled => {
                    // The same success, under the name of another order.
                    if let Some(rival) = world.stripe.intents[id].rival.clone() {
                        let says = Says::Paid(amount);
                        world.emit_about(id, says, false, |event, at| {
                            let names = naming(&rival);
                            billhook_testkit::events::intent_succeeded(event, at, id, names, amount)
                        });
                    }
                }
                6 if world.rng.chance(300) => {
                    let object = json!({ "id": format!("issfr_{id}"), "payment_intent": id });
                    world.emit_about(id, Says::Warning, false, |event, at| {
                        stripe(event, "radar.early_fraud_warning.created", at, object)
                    });
                }
                9 => return,
                _ => {}
            }
        }
    }

    async fn mail(self, key: EntityKey, piece: String) {
        let ends = ["delivered", "returned_to_sender"];
        let end = self.sim.world().rng.pick(&ends);
        let way = [
            "created",
            "mailed",
            "in_transit",
            "processed_for_delivery",
            end,
        ];
        for (number, stage) in way.into_iter().enumerate() {
            self.step().await;
            if self.is_over() {
                return;
            }
            let mut world = self.sim.world();
            let now = world.now();
            // Beside Stripe's of the same id.
            let id = format!("evt_{:04}", number + 1 + 10 * piece.len());
            let id = match world
                .stripe
                .events
                .iter()
                .any(|e| e.provider == ProviderId::Lob && e.id == id)
            {
                true => world.stripe.id("evt_lob"),
                false => id,
            };
            let mut body = letter(&id, &now.to_string(), &piece, stage);
            body["body"]["to"] = json!(billhook_testkit::sim::stripe::PERSONAL_CANARY);
            world.tell(|| format!("lob            {id} {stage} of {piece}"));
            world.stripe.emit(Emitted {
                provider: ProviderId::Lob,
                id,
                kind: format!("letter.{stage}"),
                account: None,
                created_s: now.unix_s(),
                body: body.to_string(),
                of: piece.clone(),
                links: true,
                says: Says::Mail(stage),
                end: End::In(key.clone()),
            });
        }
    }

    /// An account that goes from tenant to tenant, and is never given back. With each move a payment comes on it that names an
    /// order of the tenant that had it: it is not that one's any more, whatever an index says.
    pub(crate) async fn moving_account(self) {
        let account = AccountId::parse("acct_moving").unwrap();
        let mut had: Option<TenantId> = None;
        for number in 0.. {
            self.sim.wait(APART, self.pace).await;
            if self.is_over() {
                return;
            }
            let mut world = self.sim.world();
            let (now, id) = (world.now(), world.stripe.id("evt"));
            let gets = TenantId::parse(&format!("ten_moving{number}")).unwrap();
            let order = OrderId::parse(&format!("ord_moving{number}")).unwrap();
            let columns = json!({ "tenantId": gets, "amountTotal": DUE, "currency": "usd" });
            let row = entity_of(&EntityKey::Order(order), columns);
            world.store.add(now, row);
            let former = had.replace(gets.clone());
            if let Some(former) = &former {
                let next = AccountId::parse(&format!("acct_of_{former}")).unwrap();
                world.store.accounts.put(now, former.clone(), next);
            }
            world.store.accounts.put(now, gets, account.clone());
            let Some(former) = former else { continue };
            let named = former.as_str().replace("ten_", "ord_");
            world.tell(|| format!("application    takes {account} from {former}"));
            let (of, now_s) = (format!("pi_{id}"), now.unix_s());
            let names = json!({ "orderId": named });
            let paid = intent_succeeded(&id, now_s, &of, names, DUE);
            world.stripe.emit(Emitted {
                provider: ProviderId::Stripe,
                id,
                kind: "payment_intent.succeeded".to_owned(),
                account: Some(account.to_string()),
                created_s: now_s,
                body: from_account(paid, account.as_str()).to_string(),
                of,
                links: false,
                says: Says::Nothing,
                end: End::Parked(""),
            });
        }
    }

    /// Events of a tenant that means harm, and events that nobody expects.
    pub(crate) async fn oddities(self) {
        while !self.is_over() {
            self.sim.wait(APART, self.pace).await;
            let mut world = self.sim.world();
            let (now_s, id) = (world.now().unix_s(), world.stripe.id("evt"));
            let victim = world.stripe.intents.iter().find(|(_, intent)| {
                intent.account.is_some() && intent.account != Some(tenant("b").1)
            });
            let Some((victim, names)) = victim.map(|(id, it)| (id.clone(), naming(&it.pays)))
            else {
                continue;
            };
            let object = |amount: i64, metadata: Value| {
                json!({
                    "id": format!("pi_{id}"), "object": "payment_intent", "status": "succeeded",
                    "amount": amount, "amount_received": amount, "currency": "usd", "metadata": metadata,
                })
            };
            let paid = |amount, metadata| {
                stripe(
                    &id,
                    "payment_intent.succeeded",
                    now_s,
                    object(amount, metadata),
                )
            };
            let (event, end) = match world.rng.below(11) {
                // Tenant B names another's order.
                0 => (
                    from_account(paid(DUE, names), "acct_b"),
                    End::Parked("cross_tenant"),
                ),
                // Tenant B speaks of another's payment.
                1 => {
                    let event = refund(
                        &id,
                        now_s,
                        &format!("re_{id}"),
                        (&victim, "ch_b"),
                        700,
                        "succeeded",
                    );
                    (from_account(event, "acct_b"), End::Unlinked)
                }
                2 => {
                    let mut event = paid(DUE, names);
                    event["livemode"] = json!(true);
                    (event, End::Parked("live_event_on_test_stage"))
                }
                3 => (
                    from_account(paid(DUE, names), "acct_ghost"),
                    End::Parked("tenant_unknown"),
                ),
                4 => (paid(-1, names), End::Parked("amount_malformed")),
                // Another shop sells on the same accounts.
                7 => (
                    paid(DUE, json!({ "order_id": "Order 1001" })),
                    End::Unlinked,
                ),
                8 => {
                    let event = paid(DUE, json!({ "order_id": "Order 1001" }));
                    (from_account(event, "acct_b"), End::Unlinked)
                }
                // The money of a payment for another's order goes to tenant B.
                9 => {
                    let mut event = paid(DUE, names);
                    event["data"]["object"]["transfer_data"] = json!({ "destination": "acct_b" });
                    (event, End::Parked("cross_tenant"))
                }
                // The money of a platform's payment arrives.
                10 => {
                    let object = json!({
                        "id": format!("py_{id}"), "object": "charge", "status": "succeeded", "captured": true,
                        "amount": DUE, "amount_captured": DUE, "amount_refunded": 0, "currency": "usd",
                        "source_transfer": "tr_1", "metadata": names,
                    });
                    let event = stripe(&id, "charge.succeeded", now_s, object);
                    (from_account(event, "acct_b"), End::Ignored)
                }
                5 => {
                    let odd = json!({ "note": "\u{1f4b8}\u{0}\u{ffff}" });
                    (stripe(&id, "customer.updated", now_s, odd), End::Ignored)
                }
                _ => (
                    paid(DUE, json!({ "orderId": "ord_gone" })),
                    End::Parked("order_unknown"),
                ),
            };
            let text = |name: &str| event.get(name).and_then(Value::as_str).map(str::to_owned);
            let (kind, account) = (text("type").unwrap(), text("account"));
            world.tell(|| format!("stripe         {id} {kind} of {account:?}, odd: {end:?}"));
            world.stripe.emit(Emitted {
                provider: ProviderId::Stripe,
                id: id.clone(),
                kind,
                account,
                created_s: now_s,
                body: event.to_string(),
                of: format!("pi_{id}"),
                links: false,
                says: Says::Nothing,
                end,
            });
        }
    }
}
