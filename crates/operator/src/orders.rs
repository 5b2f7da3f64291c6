//! `billhook orders` and `billhook statements`: looking at rows, and the repairs that a person has to decide.

use anyhow::{Context as _, Result, bail};
use aws_sdk_dynamodb::error::ProvideErrorMetadata as _;
use billhook_adapters::clock::SystemClock;
use billhook_adapters::dynamodb::attributes::string_value;
use billhook_core::entity::merge::MinRegister;
use billhook_core::entity::payment::facts::{ManualEdits, PaymentFacts};
use billhook_core::entity::{Entity, EntityFacts, EntityKey};
use billhook_core::ids::{EventId, OrderId, PaymentIntentId, ProviderId, StatementId};
use billhook_core::ports::Clock as _;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::audit::{self, By};
use crate::entity::{ORDERS, STATEMENTS, column, repair};
use crate::output::Output;
use crate::session::Session;
use crate::{Stop, replay};

#[derive(Debug, Subcommand)]
pub(crate) enum Orders {
    /// Show an order and its timeline
    #[command(
        after_help = "Columns of the application that billhook does not know may hold anything; --raw shows them, \
        and the merged facts.\n\nExample:\n  billhook orders show ord_1"
    )]
    Show(Show),
    /// Orders that a person has to look at
    #[command(subcommand)]
    Review(Review),
    /// Record that an order was refunded outside Stripe
    #[command(
        after_help = "From then on it is refunded in full whatever Stripe says; its events never undo that.\n\n\
        Example:\n  billhook orders mark-refunded ord_1 --reason 'paid back by bank transfer'"
    )]
    MarkRefunded(Repair),
    /// Write the PaymentIntent into an order that has none, and release the events that wait for it
    #[command(
        after_help = "Example:\n  billhook orders backfill-payment-intent ord_1 pi_1 --reason 'checkout crashed'"
    )]
    BackfillPaymentIntent(Backfill),
    /// Say whether a download of what was ordered would be granted, and by which rule
    #[command(
        after_help = "granted: completed, and no review stands. locked (423): completed, and a review stands. \
        disabled (403): everything else.\nThe exit code is 4 unless it is granted.\n\nExample:\n  billhook orders access ord_1"
    )]
    Access(One),
}

#[derive(Args, Debug)]
pub(crate) struct One {
    /// The order
    #[arg(value_parser = OrderId::parse)]
    id: OrderId,
}

#[derive(Args, Debug)]
pub(crate) struct Show {
    /// The order or statement
    id: String,
    /// Show every column
    #[arg(long)]
    raw: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Review {
    /// List orders whose review stands; reads the whole table
    #[command(after_help = "Example:\n  billhook orders review list --limit 20")]
    List(List),
    /// Clear the reasons that now stand; a new one flags the order again
    #[command(
        after_help = "Example:\n  billhook orders review clear ord_1 --reason 'dispute answered'"
    )]
    Clear(Repair),
}

#[derive(Args, Debug)]
pub(crate) struct List {
    /// At most so many
    #[arg(long, default_value_t = 100)]
    limit: usize,
}

#[derive(Args, Debug)]
pub(crate) struct Repair {
    /// The order
    #[arg(value_parser = OrderId::parse)]
    id: OrderId,
    /// Why; it stands in the order's timeline
    #[arg(long, value_parser = audit::reason)]
    reason: String,
}

#[derive(Args, Debug)]
pub(crate) struct Backfill {
    /// The order
    #[arg(value_parser = OrderId::parse)]
    id: OrderId,
    /// The PaymentIntent, as in Stripe's dashboard
    #[arg(value_parser = PaymentIntentId::parse)]
    intent: PaymentIntentId,
    /// Why
    #[arg(long, value_parser = audit::reason)]
    reason: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Statements {
    /// Show a statement and its timeline
    #[command(after_help = "Example:\n  billhook statements show st_1")]
    Show(Show),
    /// List statements whose mail or payment a person has to look at; reads the whole table
    #[command(after_help = "Example:\n  billhook statements attention")]
    Attention(List),
}

pub(crate) async fn orders(command: Orders, session: &Session, output: Output) -> Result<()> {
    match command {
        Orders::Show(show) => output.one(&ORDERS.row(session, &show.id, show.raw).await?),
        Orders::Review(Review::List(list)) => {
            let rows = ORDERS
                .scan(session, &["requiresReview"], list.limit)
                .await?;
            let columns = [
                "id",
                "tenantId",
                "status",
                "paymentStatus",
                "reviewReasons",
                "updatedAt",
            ];
            output.list(&columns, &rows);
        }
        Orders::Review(Review::Clear(clear)) => {
            let by = by(session, clear.reason).await?;
            let key = EntityKey::Order(clear.id);
            repair(session, &key, "review clear", &by, cleared).await?;
            Output::tell(&format!("the review of {key} is cleared"));
        }
        Orders::MarkRefunded(refund) => {
            let by = by(session, refund.reason).await?;
            let key = EntityKey::Order(refund.id);
            repair(session, &key, "mark-refunded", &by, refunded).await?;
            Output::tell(&format!("{key} is refunded"));
        }
        Orders::BackfillPaymentIntent(backfill) => backfilled(session, backfill).await?,
        Orders::Access(one) => {
            let row = ORDERS.row(session, one.id.as_str(), false).await?;
            let access = Access::of(&row);
            output.one(&access.shown(one.id.as_str()));
            if access != Access::Granted {
                return Err(Stop::No(format!("access to {} is not granted", one.id)).into());
            }
        }
    }
    Ok(())
}

pub(crate) async fn statements(
    command: Statements,
    session: &Session,
    output: Output,
) -> Result<()> {
    match command {
        Statements::Show(show) => {
            StatementId::parse(&show.id)?;
            output.one(&STATEMENTS.row(session, &show.id, show.raw).await?);
        }
        Statements::Attention(list) => {
            let rows = STATEMENTS
                .scan(session, &["needs_attention", "requires_review"], list.limit)
                .await?;
            let columns = [
                "statement_id",
                "tenant_id",
                "mail_status",
                "attention_reason",
                "payment_status",
                "review_reasons",
            ];
            output.list(&columns, &rows);
        }
    }
    Ok(())
}

async fn by(session: &Session, reason: String) -> Result<By> {
    let actor = session.actor().await?;
    Ok(By { actor, reason })
}

fn cleared(entity: &Entity) -> Result<EntityFacts> {
    let standing = &entity.derived.review_reasons;
    if entity.columns.requires_review != Some(true) {
        bail!("no review of {} stands", entity.key);
    }
    let now = MinRegister(SystemClock.now());
    Ok(stated(ManualEdits {
        cleared: standing
            .iter()
            .map(|reason| (reason.clone(), now.clone()))
            .collect(),
        ..ManualEdits::default()
    }))
}

fn refunded(entity: &Entity) -> Result<EntityFacts> {
    if entity.facts.payment.manual.refunded.is_some() {
        bail!("{} was marked as refunded before", entity.key);
    }
    Ok(stated(ManualEdits {
        refunded: Some(MinRegister(SystemClock.now())),
        ..ManualEdits::default()
    }))
}

fn stated(manual: ManualEdits) -> EntityFacts {
    EntityFacts {
        payment: PaymentFacts {
            manual,
            ..PaymentFacts::default()
        },
        ..EntityFacts::default()
    }
}

/// Whether a download would be granted.
#[derive(Debug, PartialEq, Eq)]
enum Access {
    Granted,
    Locked { reasons: String },
    Disabled { because: String },
}

impl Access {
    fn of(row: &Value) -> Self {
        let (status, payment) = (column(row, "status"), column(row, "paymentStatus"));
        if status != "completed" || payment == "charged_back" || payment == "refunded" {
            let because = format!("status {status}, paymentStatus {payment}");
            return Self::Disabled { because };
        }
        if row.get("requiresReview") == Some(&json!(true)) {
            let reasons = column(row, "reviewReasons");
            return Self::Locked { reasons };
        }
        Self::Granted
    }

    fn shown(&self, order: &str) -> Value {
        match self {
            Self::Granted => json!({ "order": order, "access": "granted", "status": 200 }),
            Self::Locked { reasons } => {
                json!({ "order": order, "access": "locked", "status": 423, "locked_by": order,
                "reasons": reasons,
                "do": format!("billhook orders review clear {order} --reason …") })
            }
            Self::Disabled { because } => {
                json!({ "order": order, "access": "disabled", "status": 403, "because": because })
            }
        }
    }
}

async fn backfilled(session: &Session, backfill: Backfill) -> Result<()> {
    let (id, intent) = (&backfill.id, &backfill.intent);
    let row = ORDERS.row(session, id.as_str(), false).await?;
    let bears = column(&row, "stripePaymentIntentId");
    if !bears.is_empty() && bears != intent.as_str() {
        bail!("{id} bears {bears} already: find out at Stripe which of the two is the order's");
    }
    let table = session.stack.output(ORDERS.output)?;
    let update = session
        .dynamodb
        .update_item()
        .table_name(table)
        .key("id", string_value(id.as_str()))
        .update_expression("SET stripePaymentIntentId = :intent")
        .condition_expression(
            "attribute_exists(id) AND (attribute_not_exists(stripePaymentIntentId) OR stripePaymentIntentId = :intent)",
        )
        .expression_attribute_values(":intent", string_value(intent.as_str()))
        .send()
        .await;
    match update {
        Ok(_) => Output::tell(&format!("{id} bears {intent}")),
        Err(error) if error.code() == Some("ConditionalCheckFailedException") => {
            bail!("{id} changed meanwhile: look at it, and try again")
        }
        Err(error) => return Err(error).with_context(|| format!("cannot write {id} of {table}")),
    }
    let waiting = waiting(session, intent, &column(&row, "tenantId")).await?;
    let events = session.events(ProviderId::Stripe)?.rows(&waiting).await?;
    let events: Vec<_> = events
        .into_iter()
        .filter(|listed| !listed.stored.processed)
        .collect();
    if events.is_empty() {
        Output::tell("no event waits for it");
    }
    replay::release(session, &events, backfill.reason).await
}

/// The events that wait for a payment of the platform, or of the tenant's account.
async fn waiting(
    session: &Session,
    intent: &PaymentIntentId,
    tenant: &str,
) -> Result<Vec<EventId>> {
    let mut accounts = vec!["platform".to_owned()];
    if !tenant.is_empty() {
        let row = crate::entity::TENANTS.find(session, tenant, false).await?;
        accounts.extend(row.map(|row| column(&row, "stripe_connected_account_id")));
    }
    let table = session.stack.output("PaymentsTable")?;
    let mut events = Vec::new();
    for account in accounts {
        let get = session.dynamodb.get_item().table_name(table);
        let got = get
            .key("payment_id", string_value(format!("{account}#{intent}")))
            .consistent_read(true)
            .send()
            .await;
        let item = got
            .with_context(|| format!("cannot read {table}"))?
            .item
            .unwrap_or_default();
        let waiting = item.get("waiting").and_then(|waiting| waiting.as_ss().ok());
        events.extend(
            waiting
                .into_iter()
                .flatten()
                .filter_map(|id| EventId::parse(id).ok()),
        );
    }
    Ok(events)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn access_follows_the_money_and_then_the_review() {
        for (status, payment, review, expected) in [
            ("completed", "paid", false, 200),
            ("completed", "disputed", false, 200),
            ("completed", "paid", true, 423),
            ("completed", "disputed", true, 423),
            ("completed", "charged_back", true, 403),
            ("completed", "charged_back", false, 403),
            ("refunded", "refunded", false, 403),
            ("cancelled", "failed", false, 403),
            ("payment_failed", "failed", false, 403),
            ("pending", "unpaid", false, 403),
            ("pending", "unpaid", true, 403),
            ("", "", false, 403),
        ] {
            let row =
                json!({ "status": status, "paymentStatus": payment, "requiresReview": review });
            let shown = Access::of(&row).shown("ord_1");
            assert_eq!(shown["status"], expected, "{row}");
        }
    }
}
