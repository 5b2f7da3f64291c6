//! Stores a PaymentIntent in an order that lost it, and links the payment, however old it is: for one order, or for all
//! orders whose timeline names it.
//!
//! The payment is linked first, which writes the column too, and what was linked is read back. So whoever repeats the
//! command after it died finds the orders that are left, and nothing is done twice. A PaymentIntent that another order or
//! statement bears is refused: two that bear it would need a person's decision (`link_conflict`).

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, bail};
use aws_sdk_dynamodb::error::ProvideErrorMetadata as _;
use aws_sdk_dynamodb::types::AttributeValue;
use billhook_adapters::dynamodb::attributes::{Item, read_text, string_value};
use billhook_core::entity::columns::EntitySchema;
use billhook_core::entity::key::{EntityKey, StateKey};
use billhook_core::entity::kind::EntityKind as _;
use billhook_core::entity::order::OrderKind;
use billhook_core::entity::payment::state::PaymentState;
use billhook_core::entity::timeline::ACTOR;
use billhook_core::ids::{OrderId, PaymentIntentId, ProviderId, TenantId};
use billhook_core::time::Timestamp;
use billhook_core::worker::ports::Ledger;
use serde_json::{Value, json};

use crate::application_tables::ORDERS;
use crate::audit::AuditContext;
use crate::confirm::{ChangeArgs, announce_preview};
use crate::entity_repair::write_timeline_note;
use crate::events_table::row_to_json;
use crate::exit::{CommandExit, end_of_several};
use crate::output::{OutputWriter, print_notice};
use crate::payment_lookup::{
    LinkChange, change_link, describe_side, find_rivals, list_entities, load_payments,
    load_tenant_accounts, note_link,
};
use crate::row_json::{RowDetail, read_column};
use crate::session::StackSession;

const SCHEMA: EntitySchema = OrderKind::SCHEMA;
const COLUMN: &str = "stripePaymentIntentId";
const ACTION: &str = "backfill-payment-intent";
/// Orders that are read together, to learn when they were made.
const ORDERS_AT_ONCE: usize = 40;
/// The `actor` of the notes of this tool, which name payments in reasons, and of billhook's own entries.
const NOT_OF_APPLICATION: [&str; 2] = [ACTOR, "operator"];

/// Whether a PaymentIntent is stored that another order or statement bears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RivalPolicy {
    Refuse,
    /// The payment is taken from the other one, by this person's decision.
    TakeFromThem,
}

/// Which orders a bulk backfill looks at.
#[derive(Clone, Debug)]
pub(crate) struct BackfillScope {
    pub(crate) tenant: Option<TenantId>,
    /// When the application made the order: from then on, and before then.
    pub(crate) since: Option<Timestamp>,
    pub(crate) until: Option<Timestamp>,
    pub(crate) limit: usize,
}

/// What is known of a PaymentIntent that an order is to get.
struct IntentStanding {
    payments: Vec<PaymentState>,
    rivals: BTreeSet<EntityKey>,
}

impl IntentStanding {
    async fn load(
        ledger: &impl Ledger,
        order: &OrderId,
        tenant: Option<TenantId>,
        intent: &PaymentIntentId,
    ) -> Result<Self> {
        // The order does not say whether it was paid through the platform or through one of its tenant's accounts.
        let accounts = load_tenant_accounts(ledger, tenant).await?;
        let payments = load_payments(ledger, intent, accounts).await?;
        let own = EntityKey::Order(order.clone());
        let rivals = find_rivals(ledger, intent, &payments, &own).await?;
        Ok(Self { payments, rivals })
    }

    /// Why it is not stored, unless that is forced.
    fn refusal(&self, intent: &PaymentIntentId) -> Option<String> {
        if !self.rivals.is_empty() {
            return Some(format!(
                "{} has {intent}: find out at Stripe whose it is",
                list_entities(&self.rivals)
            ));
        }
        let nobodys = self.payments.iter().find(|payment| payment.is_nobodys());
        nobodys.map(|payment| format!("somebody decided that {} belongs to no order", payment.key))
    }
}

/// Stores a PaymentIntent in an order and links its payment. Returns what the order shows then.
pub(crate) async fn backfill_order(
    session: &StackSession,
    id: &OrderId,
    intent: &PaymentIntentId,
    policy: RivalPolicy,
    audit: &AuditContext,
) -> Result<Value> {
    let row = ORDERS
        .read_row(session, id.as_str(), RowDetail::Known)
        .await?;
    let current = read_column(&row, COLUMN);
    if !current.is_empty() && current != intent.as_str() {
        return Err(CommandExit::Refused(format!(
            "{id} already has {current}: find out at Stripe which of the two belongs to the order"
        ))
        .into());
    }
    let key = EntityKey::Order(id.clone());
    let ledger = session.ledger(ProviderId::Stripe)?;
    let tenant = TenantId::parse(&read_column(&row, SCHEMA.tenant)).ok();
    let standing = IntentStanding::load(&ledger, id, tenant, intent).await?;
    let refusal = standing.refusal(intent);
    let change = match (&refusal, policy) {
        (None, _) => LinkChange::ByColumn(&key),
        (Some(_), RivalPolicy::TakeFromThem) => LinkChange::Decided(Some(&key), audit),
        (Some(refusal), RivalPolicy::Refuse) => {
            return Err(CommandExit::Refused(format!("{refusal}; or repeat with --force")).into());
        }
    };
    // The note comes first: if the command dies in between, a note without a repair can be explained.
    write_timeline_note(session, &key, ACTION, audit).await?;
    let moved = format!("{ACTION}: {intent} goes to {key}");
    note_link(session, &standing.rivals, &moved, audit).await?;
    let mut linked = Vec::new();
    for payment in &standing.payments {
        let now = change_link(session, &payment.key, change).await?;
        if !now.linked_entities().contains(&key) || now.outdated_copies().contains_key(&key) {
            bail!(
                "{} could not be linked to {id}: see `billhook payments show {}`",
                payment.key,
                payment.key
            );
        }
        linked.push(payment.key.to_string());
    }
    write_column(session, id, intent).await?;
    let mut side = describe_side(session, &key).await?;
    if let Some(members) = side.as_object_mut() {
        members.insert("payment_intent".to_owned(), json!(intent));
        members.insert("linked".to_owned(), json!(linked));
    }
    print_notice(&match linked.as_slice() {
        [] => format!(
            "{id} has {intent} now; no event of this PaymentIntent has arrived yet, and the first one will find the order"
        ),
        linked => format!(
            "{id} has {intent} now, and {} is linked to it",
            linked.join(", ")
        ),
    });
    Ok(side)
}

/// Writes the column, unless the link did.
async fn write_column(
    session: &StackSession,
    id: &OrderId,
    intent: &PaymentIntentId,
) -> Result<()> {
    let table = ORDERS.name(session)?;
    let update = session
        .dynamodb
        .update_item()
        .table_name(table)
        .key(SCHEMA.key, string_value(id.as_str()))
        .update_expression("SET #intent = :intent")
        .condition_expression(format!(
            "attribute_exists(#key) AND ({WITHOUT_INTENT} OR #intent = :intent)"
        ))
        .expression_attribute_names("#key", SCHEMA.key)
        .expression_attribute_names("#intent", COLUMN)
        .expression_attribute_values(":intent", string_value(intent.as_str()))
        .expression_attribute_values(":empty", string_value(""))
        .expression_attribute_values(":null", string_value("NULL"))
        .send()
        .await;
    match update {
        Ok(_) => Ok(()),
        Err(error) if error.code() == Some("ConditionalCheckFailedException") => bail!(
            "{id} was changed by others meanwhile: check it with `billhook orders show {id}`, then try again"
        ),
        Err(error) => Err(error).with_context(|| format!("cannot write {id} to {table}")),
    }
}

/// The column is missing, empty or NULL, as ORMs write it.
const WITHOUT_INTENT: &str =
    "(attribute_not_exists(#intent) OR #intent = :empty OR attribute_type(#intent, :null))";

/// An order without a PaymentIntent, whose timeline names one.
struct LostIntent {
    order: OrderId,
    tenant: Option<TenantId>,
    named: NamedIntents,
}

/// The PaymentIntents that the application's entries in a timeline name, and when the first did.
#[derive(Debug, Default, PartialEq, Eq)]
struct NamedIntents {
    intents: BTreeSet<PaymentIntentId>,
    at: Option<String>,
}

/// One line of the preview.
struct BackfillPlan {
    lost: LostIntent,
    /// The PaymentIntent that it gets; or why it gets none.
    decision: Result<PaymentIntentId, String>,
    payments: Vec<PaymentState>,
    rivals: BTreeSet<EntityKey>,
}

/// Backfills all orders whose timeline names a PaymentIntent that they do not bear; unless confirmed it only shows them.
pub(crate) async fn backfill_from_timelines(
    session: &StackSession,
    output: OutputWriter,
    scope: &BackfillScope,
    change: &ChangeArgs,
) -> Result<()> {
    let plans = plan_backfill(session, scope).await?;
    let rows: Vec<Value> = plans.iter().map(BackfillPlan::render).collect();
    let columns = [
        "order",
        "payment_intent",
        "named_at",
        "payment",
        "borne_by",
        "do",
    ];
    output.print_list(&columns, &rows);
    let ready = plans.iter().filter(|plan| plan.decision.is_ok()).count();
    let what = format!(
        "{ready} orders would get their PaymentIntent, {} would not",
        plans.len() - ready
    );
    if !change.is_confirmed() {
        announce_preview(session, &what, change);
        return Ok(());
    }
    let audit = change.start_audit(session, &what, Some(ready)).await?;
    let (mut done, mut errors) = (0, Vec::new());
    for plan in &plans {
        let order = &plan.lost.order;
        let backfilled = match &plan.decision {
            Ok(intent) => backfill_order(session, order, intent, RivalPolicy::Refuse, &audit).await,
            Err(refusal) => Err(CommandExit::Refused(refusal.clone()).into()),
        };
        match backfilled {
            Ok(_) => done += 1,
            Err(error) => {
                print_notice(&format!("{order}: {error:#}"));
                errors.push(error);
            }
        }
    }
    print_notice(&format!(
        "{done} of {} orders have their PaymentIntent now",
        plans.len()
    ));
    end_of_several(done, "backfilled", &errors)
}

async fn plan_backfill(session: &StackSession, scope: &BackfillScope) -> Result<Vec<BackfillPlan>> {
    let ledger = session.ledger(ProviderId::Stripe)?;
    let lost = find_lost_intents(session, &ledger, scope).await?;
    let shared = find_shared(&lost);
    let mut plans = Vec::new();
    for lost in lost {
        let mut plan = BackfillPlan {
            decision: decide_intent(&lost, &shared),
            lost,
            payments: Vec::new(),
            rivals: BTreeSet::new(),
        };
        if let Ok(intent) = plan.decision.clone() {
            let (order, tenant) = (&plan.lost.order, plan.lost.tenant.clone());
            let standing = IntentStanding::load(&ledger, order, tenant, &intent).await?;
            if let Some(refusal) = standing.refusal(&intent) {
                plan.decision = Err(refusal);
            }
            plan.payments = standing.payments;
            plan.rivals = standing.rivals;
        }
        plans.push(plan);
    }
    plans.sort_by(|one, other| one.lost.order.cmp(&other.lost.order));
    Ok(plans)
}

/// The orders whose timelines name the same PaymentIntent.
fn find_shared(lost: &[LostIntent]) -> BTreeMap<PaymentIntentId, BTreeSet<OrderId>> {
    let mut shared: BTreeMap<PaymentIntentId, BTreeSet<OrderId>> = BTreeMap::new();
    for lost in lost {
        for intent in &lost.named.intents {
            let orders = shared.entry(intent.clone()).or_default();
            orders.insert(lost.order.clone());
        }
    }
    shared.retain(|_, orders| orders.len() > 1);
    shared
}

fn decide_intent(
    lost: &LostIntent,
    shared: &BTreeMap<PaymentIntentId, BTreeSet<OrderId>>,
) -> Result<PaymentIntentId, String> {
    let mut intents = lost.named.intents.iter();
    let (Some(intent), None) = (intents.next(), intents.next()) else {
        let all: Vec<&str> = lost
            .named
            .intents
            .iter()
            .map(PaymentIntentId::as_str)
            .collect();
        return Err(format!("its timeline names {}", all.join(" and ")));
    };
    match shared.get(intent) {
        None => Ok(intent.clone()),
        Some(orders) => {
            let others = orders.iter().filter(|order| **order != lost.order);
            let others: Vec<&str> = others.map(OrderId::as_str).collect();
            Err(format!(
                "the timeline of {} names {intent} too",
                others.join(", ")
            ))
        }
    }
}

impl BackfillPlan {
    fn render(&self) -> Value {
        let intents = &self.lost.named.intents;
        let intents: Vec<&str> = intents.iter().map(PaymentIntentId::as_str).collect();
        let payments = self.payments.iter();
        let payments: Vec<String> = payments.map(|payment| payment.key.to_string()).collect();
        json!({
            "order": self.lost.order,
            "payment_intent": intents.join(", "),
            "named_at": self.lost.named.at,
            "payment": (!payments.is_empty()).then(|| payments.join(", ")),
            "borne_by": (!self.rivals.is_empty()).then(|| list_entities(&self.rivals)),
            "do": match &self.decision {
                Ok(_) => "backfill".to_owned(),
                Err(refusal) => format!("refuse: {refusal}"),
            },
        })
    }
}

/// Reads the whole table, because no index has what is missing: acceptable for a repair.
async fn find_lost_intents(
    session: &StackSession,
    ledger: &impl Ledger,
    scope: &BackfillScope,
) -> Result<Vec<LostIntent>> {
    let table = ORDERS.name(session)?;
    let mut found = Vec::new();
    let mut start = None;
    loop {
        let mut filter = format!("attribute_exists(#timeline) AND {WITHOUT_INTENT}");
        let mut scan = session
            .dynamodb
            .scan()
            .table_name(table)
            .projection_expression("#id, #tenant, #timeline")
            .expression_attribute_names("#id", SCHEMA.key)
            .expression_attribute_names("#tenant", SCHEMA.tenant)
            .expression_attribute_names("#timeline", "timeline")
            .expression_attribute_names("#intent", COLUMN)
            .expression_attribute_values(":empty", string_value(""))
            .expression_attribute_values(":null", string_value("NULL"))
            .set_exclusive_start_key(start);
        if let Some(tenant) = &scope.tenant {
            filter.push_str(" AND #tenant = :tenant");
            scan = scan.expression_attribute_values(":tenant", string_value(tenant.as_str()));
        }
        let page = scan.filter_expression(filter).send().await;
        let page = page.with_context(|| format!("cannot read {table}"))?;
        let lost: Vec<LostIntent> = page.items().iter().filter_map(read_lost_intent).collect();
        found.extend(keep_made_within(ledger, lost, scope).await?);
        start = page.last_evaluated_key;
        if start.is_none() || found.len() >= scope.limit {
            found.truncate(scope.limit);
            return Ok(found);
        }
    }
}

fn read_lost_intent(row: &Item) -> Option<LostIntent> {
    let named = read_named_intents(row.get("timeline")?);
    (!named.intents.is_empty()).then_some(())?;
    Some(LostIntent {
        order: OrderId::parse(read_text(row, SCHEMA.key)?).ok()?,
        tenant: read_text(row, SCHEMA.tenant).and_then(|id| TenantId::parse(id).ok()),
        named,
    })
}

/// Those that the application made within the scope, as their rows say. One that does not say it is left out if a time was
/// asked for.
async fn keep_made_within(
    ledger: &impl Ledger,
    lost: Vec<LostIntent>,
    scope: &BackfillScope,
) -> Result<Vec<LostIntent>> {
    if scope.since.is_none() && scope.until.is_none() {
        return Ok(lost);
    }
    let key = |lost: &LostIntent| EntityKey::Order(lost.order.clone());
    let mut made: BTreeMap<EntityKey, Timestamp> = BTreeMap::new();
    for some in lost.chunks(ORDERS_AT_ONCE) {
        let keys = some.iter().map(key).map(StateKey::Entity).collect();
        let rows = ledger.load_rows(&keys).await?;
        let times = rows.entities.into_iter();
        made.extend(times.filter_map(|(key, (entity, _))| Some((key, entity.row().made_at()?))));
    }
    let is_within = |lost: &LostIntent| {
        made.get(&key(lost)).is_some_and(|at| {
            scope.since.is_none_or(|since| since <= *at)
                && scope.until.is_none_or(|until| *at < until)
        })
    };
    Ok(lost.into_iter().filter(is_within).collect())
}

/// The PaymentIntents in the `meta` of the application's entries, under whatever name.
fn read_named_intents(timeline: &AttributeValue) -> NamedIntents {
    let member = "timeline".to_owned();
    let timeline = row_to_json(&Item::from([(member, timeline.clone())]));
    let entries = timeline.get("timeline").and_then(Value::as_array);
    let mut named = NamedIntents::default();
    for entry in entries.into_iter().flatten() {
        let text = |name: &str| entry.get(name).and_then(Value::as_str);
        if text("actor").is_some_and(|actor| NOT_OF_APPLICATION.contains(&actor)) {
            continue;
        }
        let mut intents = BTreeSet::new();
        if let Some(meta) = entry.get("meta") {
            collect_intents(meta, &mut intents);
        }
        if !intents.is_empty() {
            let at = text("at").map(str::to_owned);
            named.at = match (named.at, at) {
                (Some(one), Some(other)) => Some(one.min(other)),
                (one, other) => one.or(other),
            };
        }
        named.intents.extend(intents);
    }
    named
}

fn collect_intents(value: &Value, intents: &mut BTreeSet<PaymentIntentId>) {
    match value {
        Value::String(text) => intents.extend(parse_intent(text)),
        Value::Array(values) => values
            .iter()
            .for_each(|value| collect_intents(value, intents)),
        Value::Object(members) => {
            let values = members.values();
            values.for_each(|value| collect_intents(value, intents));
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// A client secret begins with the id of its PaymentIntent, `pi_1_secret_…`: the application hands it to the browser, and it
/// may be in a timeline too.
fn parse_intent(text: &str) -> Option<PaymentIntentId> {
    let id = text.split_once("_secret_").map_or(text, |(id, _)| id);
    PaymentIntentId::parse(id).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(timeline: Value) -> NamedIntents {
        read_named_intents(&serde_dynamo::to_attribute_value(timeline).unwrap())
    }

    fn intents(ids: &[&str]) -> BTreeSet<PaymentIntentId> {
        ids.iter()
            .map(|id| PaymentIntentId::parse(id).unwrap())
            .collect()
    }

    #[test]
    fn the_application_names_a_payment_intent_under_any_name_and_at_any_depth() {
        for meta in [
            json!({ "paymentIntentId": "pi_1" }),
            json!({ "payment_intent": "pi_1", "amount": 4200, "paid": true }),
            json!({ "stripe": { "ids": ["cs_1", "pi_1"] } }),
            json!({ "clientSecret": "pi_1_secret_abc" }),
        ] {
            let entry = json!({ "type": "checkout_started", "at": "2026-05-01", "meta": meta });
            let found = named(json!([{ "type": "note", "meta": { "by": "Pat" } }, entry]));
            assert_eq!(found.intents, intents(&["pi_1"]), "{meta}");
            assert_eq!(found.at.as_deref(), Some("2026-05-01"));
        }
    }

    #[test]
    fn entries_of_billhook_and_of_an_operator_name_nothing() {
        let entry = |actor: &str| {
            json!({ "type": "note", "at": "2026-05-01", "actor": actor,
                "meta": { "paymentIntentId": "pi_1", "reason": "pi_2" } })
        };
        let found = named(json!([entry("billhook"), entry("operator")]));
        assert_eq!(found, NamedIntents::default());
        assert_eq!(named(json!("no list")), NamedIntents::default());
        let text = json!([{ "type": "pi_3", "actor": "shop", "meta": { "text": "paid by pi_4" } }]);
        assert_eq!(named(text), NamedIntents::default());
    }

    #[test]
    fn an_order_that_names_two_and_two_orders_that_name_one_are_left_to_a_person() {
        let lost = |order: &str, ids: &[&str]| LostIntent {
            order: OrderId::parse(order).unwrap(),
            tenant: None,
            named: NamedIntents {
                intents: intents(ids),
                at: None,
            },
        };
        let all = [
            lost("ord_1", &["pi_1"]),
            lost("ord_2", &["pi_2", "pi_3"]),
            lost("ord_3", &["pi_4"]),
            lost("ord_4", &["pi_4"]),
        ];
        let shared = find_shared(&all);
        let decided = all.iter().map(|lost| decide_intent(lost, &shared));
        let decided: Vec<_> = decided
            .map(|of| of.map(|intent| intent.to_string()))
            .collect();
        assert_eq!(
            decided,
            [
                Ok("pi_1".to_owned()),
                Err("its timeline names pi_2 and pi_3".to_owned()),
                Err("the timeline of ord_4 names pi_4 too".to_owned()),
                Err("the timeline of ord_3 names pi_4 too".to_owned()),
            ]
        );
    }

    #[test]
    fn a_payment_intent_that_another_one_bears_or_that_is_nobodys_is_refused() {
        use billhook_core::entity::key::PaymentKey;
        use billhook_core::entity::merge::MaxRegister;
        use billhook_core::entity::payment::linked::RelinkDecision;
        let intent = PaymentIntentId::parse("pi_1").unwrap();
        let mut standing = IntentStanding {
            payments: vec![PaymentState::new(
                PaymentKey::parse("payment#acct_1#pi_1").unwrap(),
            )],
            rivals: BTreeSet::new(),
        };
        assert_eq!(standing.refusal(&intent), None);
        standing.payments[0].facts.relink = Some(MaxRegister(RelinkDecision {
            number: 1,
            entity: None,
            actor: "pat".to_owned(),
            reason: "another shop's".to_owned(),
        }));
        let refusal = standing.refusal(&intent).unwrap();
        assert!(
            refusal.contains("payment#acct_1#pi_1 belongs to no order"),
            "{refusal}"
        );
        standing.rivals = [EntityKey::parse("order#ord_2").unwrap()].into();
        let refusal = standing.refusal(&intent).unwrap();
        assert!(refusal.starts_with("order#ord_2 has pi_1"), "{refusal}");
    }
}
