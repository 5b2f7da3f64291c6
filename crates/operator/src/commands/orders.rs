//! `billhook orders`: show orders, list and clear reviews, and the repairs that only a person can decide on: a refund
//! outside Stripe, a PaymentIntent that the checkout failed to store.

use anyhow::{Context as _, Result, bail};
use aws_sdk_dynamodb::error::ProvideErrorMetadata as _;
use billhook_adapters::clock::SystemClock;
use billhook_adapters::dynamodb::attributes::string_value;
use billhook_core::entity::kind::StatedFacts;
use billhook_core::entity::manual::ManualEdits;
use billhook_core::entity::payment::access::{DownloadAccess, decide_download_access};
use billhook_core::entity::payment::status::{OrderStatus, PaymentStatus};
use billhook_core::entity::{Entity, EntityKey};
use billhook_core::ids::{OrderId, PaymentIntentId, ProviderId, TenantId};
use billhook_core::ports::Clock as _;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::application_tables::ORDERS;
use crate::audit::parse_reason;
use crate::entity_repair::{payment_record_facts, repair_entity, write_timeline_note};
use crate::exit::CommandExit;
use crate::output::{OutputWriter, print_notice};
use crate::payment_lookup::{load_payments, load_tenant_accounts, send_payment};
use crate::review::{RELINK, accept_amounts, clear_review};
use crate::row_json::{RowDetail, read_column, read_text};
use crate::row_standing::{describe_row_standing, load_entity, row_of_state, show_row};
use crate::session::StackSession;

#[derive(Debug, Subcommand)]
pub(crate) enum OrdersCommand {
    /// Show an order and its timeline
    #[command(
        after_help = "Columns that billhook does not know belong to the application and may hold personal data; --raw shows them, \
        and the merged facts.\n\nExample:\n  billhook orders show ord_1"
    )]
    Show(OrdersShowArgs),
    /// List orders that require a review, and clear reviews
    #[command(subcommand)]
    Review(OrdersReviewCommand),
    /// Record that an order was refunded outside Stripe
    #[command(
        after_help = "From then on the order counts as refunded in full; no event of Stripe undoes that.\n\n\
        Example:\n  billhook orders mark-refunded ord_1 --reason 'paid back by bank transfer'"
    )]
    MarkRefunded(OrderRepairArgs),
    /// Record that an order was paid outside Stripe
    #[command(
        after_help = "From then on the order counts as paid in full, and a later payment at Stripe, or one of the same amount, as too much (paid_twice, overpaid).\n\n\
        Example:\n  billhook orders mark-paid ord_1 --reason 'cash, receipt 4711'"
    )]
    MarkPaid(OrderRepairArgs),
    /// Store the PaymentIntent in an order that has none, and reprocess the events that wait for it
    #[command(
        after_help = "Example:\n  billhook orders backfill-payment-intent ord_1 pi_1 --reason 'checkout crashed'"
    )]
    BackfillPaymentIntent(OrdersBackfillArgs),
    /// Show whether the customer may download what was ordered, and why
    #[command(
        after_help = "granted: the order is completed and has no open review. locked (423): the order is completed and has an open \
        review. disabled (403): everything else.\nThe exit code is 4 unless access is granted.\n\nExample:\n  billhook orders access ord_1"
    )]
    Access(OrdersAccessArgs),
}

#[derive(Args, Debug)]
pub(crate) struct OrdersAccessArgs {
    /// The order id
    #[arg(value_parser = OrderId::parse)]
    id: OrderId,
}

#[derive(Args, Debug)]
pub(crate) struct OrdersShowArgs {
    /// The order id
    id: String,
    /// Show every column, personal data included
    #[arg(long)]
    raw: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum OrdersReviewCommand {
    /// List orders with an open review; reads the whole table
    #[command(after_help = "Example:\n  billhook orders review list --limit 20")]
    List(OrdersReviewListArgs),
    /// Clear the current review reasons; a new reason opens the review again
    #[command(
        after_help = "Example:\n  billhook orders review clear ord_1 --reason 'dispute answered'"
    )]
    Clear(OrderRepairArgs),
    /// Accept what was paid as what was due: ends `amount_mismatch`, `overpaid` and `due_changed`
    #[command(
        after_help = "A payment that was too little, or in another currency, pays the order from then on. What is more than was due \
        stays ours.\n\nExample:\n  billhook orders review accept ord_1 --reason 'a tip'"
    )]
    Accept(OrderRepairArgs),
}

#[derive(Args, Debug)]
pub(crate) struct OrdersReviewListArgs {
    /// Show at most this many orders
    #[arg(long, default_value_t = 100)]
    limit: usize,
}

#[derive(Args, Debug)]
pub(crate) struct OrderRepairArgs {
    /// The order id
    #[arg(value_parser = OrderId::parse)]
    id: OrderId,
    /// The reason; the command writes it to the order's timeline
    #[arg(long, value_parser = parse_reason)]
    reason: String,
}

#[derive(Args, Debug)]
pub(crate) struct OrdersBackfillArgs {
    /// The order id
    #[arg(value_parser = OrderId::parse)]
    id: OrderId,
    /// The PaymentIntent id, from Stripe's dashboard
    #[arg(value_parser = PaymentIntentId::parse)]
    intent: PaymentIntentId,
    /// The reason; the command writes it to the timeline
    #[arg(long, value_parser = parse_reason)]
    reason: String,
}

pub(crate) async fn run_orders(
    command: OrdersCommand,
    session: &StackSession,
    output: OutputWriter,
) -> Result<()> {
    match command {
        OrdersCommand::Show(show) => {
            let key = EntityKey::Order(OrderId::parse(&show.id)?);
            let row = ORDERS.find_row(session, &show.id, RowDetail::by_flag(show.raw));
            show_row(session, output, &key, row.await?).await?;
        }
        OrdersCommand::Review(OrdersReviewCommand::List(list)) => {
            let rows = ORDERS
                .scan_rows(session, &["requiresReview"], list.limit)
                .await?;
            let columns = [
                "id",
                "tenantId",
                "status",
                "paymentStatus",
                "amountPaid",
                "reviewReasons",
                "disputeDueBy",
                "updatedAt",
            ];
            output.print_list(&columns, &rows);
        }
        OrdersCommand::Review(OrdersReviewCommand::Clear(clear)) => {
            clear_review(session, &EntityKey::Order(clear.id), clear.reason).await?;
        }
        OrdersCommand::Review(OrdersReviewCommand::Accept(accept)) => {
            accept_amounts(session, &EntityKey::Order(accept.id), accept.reason).await?;
        }
        OrdersCommand::MarkRefunded(refund) => {
            let audit = session.start_audit(refund.reason).await?;
            let key = EntityKey::Order(refund.id);
            repair_entity(session, &key, "mark-refunded", &audit, mark_refunded_facts).await?;
            print_notice(&format!("marked {key} as refunded"));
        }
        OrdersCommand::MarkPaid(paid) => {
            let audit = session.start_audit(paid.reason).await?;
            let key = EntityKey::Order(paid.id);
            let facts = |entity: &Entity| payment_record_facts(entity, &audit);
            repair_entity(session, &key, "mark-paid", &audit, facts).await?;
            print_notice(&format!("recorded a payment outside Stripe for {key}"));
        }
        OrdersCommand::BackfillPaymentIntent(backfill) => {
            backfill_payment_intent(session, backfill).await?
        }
        OrdersCommand::Access(args) => {
            let mut row = ORDERS
                .read_row(session, args.id.as_str(), RowDetail::Known)
                .await?;
            let entity = load_entity(session, &EntityKey::Order(args.id.clone())).await?;
            if let Some((entity, standing)) = entity
                .as_ref()
                .and_then(|entity| Some((entity, describe_row_standing(entity)?)))
            {
                print_notice(&standing);
                row = row_of_state(entity, row);
            }
            let access = decide_row_access(&row);
            output.print_object(&render_access(access, args.id.as_str(), &row));
            if access != DownloadAccess::Granted {
                return Err(
                    CommandExit::Refused(format!("access to {} is not granted", args.id)).into(),
                );
            }
        }
    }
    Ok(())
}

fn mark_refunded_facts(entity: &Entity) -> Result<StatedFacts> {
    let update = entity.apply_facts([], SystemClock.now());
    let status = update.payment().map(|payment| payment.payment_status);
    if status == Some(PaymentStatus::Refunded) {
        bail!("{} is already refunded", entity.key());
    }
    Ok(StatedFacts::Manual(ManualEdits {
        refunded: [SystemClock.now()].into(),
        ..ManualEdits::default()
    }))
}

fn decide_row_access(row: &Value) -> DownloadAccess {
    decide_download_access(
        read_text(row, "status").and_then(OrderStatus::parse),
        read_text(row, "paymentStatus").and_then(PaymentStatus::parse),
        row.get("requiresReview") == Some(&json!(true)),
    )
}

fn render_access(access: DownloadAccess, order: &str, row: &Value) -> Value {
    let of = |name| read_column(row, name);
    match access {
        DownloadAccess::Granted => json!({ "order": order, "access": "granted", "status": 200 }),
        DownloadAccess::Locked => {
            let command = match of("reviewReasons").contains("link_conflict:") {
                true => RELINK.to_owned(),
                false => format!("billhook orders review clear {order} --reason …"),
            };
            json!({ "order": order, "access": "locked", "status": 423, "locked_by": order,
            "reasons": of("reviewReasons"),
            "do": command })
        }
        DownloadAccess::Disabled => {
            let because = format!(
                "status {}, paymentStatus {}",
                of("status"),
                of("paymentStatus")
            );
            json!({ "order": order, "access": "disabled", "status": 403, "because": because })
        }
    }
}

async fn backfill_payment_intent(
    session: &StackSession,
    backfill: OrdersBackfillArgs,
) -> Result<()> {
    let (id, intent) = (&backfill.id, &backfill.intent);
    let row = ORDERS
        .read_row(session, id.as_str(), RowDetail::Known)
        .await?;
    let current = read_column(&row, "stripePaymentIntentId");
    if !current.is_empty() && current != intent.as_str() {
        bail!(
            "{id} already has {current}: find out at Stripe which of the two belongs to the order"
        );
    }
    let audit = session.start_audit(backfill.reason).await?;
    let key = EntityKey::Order(id.clone());
    write_timeline_note(session, &key, "backfill-payment-intent", &audit).await?;
    let table = ORDERS.name(session)?;
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
        Ok(_) => print_notice(&format!("{id} has {intent} now")),
        Err(error) if error.code() == Some("ConditionalCheckFailedException") => {
            bail!(
                "{id} was changed by others meanwhile: check it with `billhook orders show {id}`, then try again"
            )
        }
        Err(error) => return Err(error).with_context(|| format!("cannot write {id} to {table}")),
    }
    // The order does not say whether it was paid through the platform or through its tenant's account.
    let ledger = session.ledger(ProviderId::Stripe)?;
    let tenant = TenantId::parse(&read_column(&row, "tenantId")).ok();
    let accounts = load_tenant_accounts(&ledger, tenant).await?;
    let payments = load_payments(&ledger, intent, accounts).await?;
    if payments.is_empty() {
        print_notice("no event of this PaymentIntent has arrived yet");
    }
    let queue = session.queues()?;
    for payment in payments {
        send_payment(&queue, &payment.key).await?;
        print_notice(&format!(
            "{} was sent to the worker; check the result with `billhook trace {id}`",
            payment.key
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn access_is_read_from_the_row_and_says_why() {
        let locked = json!({ "status": "completed", "paymentStatus": "disputed", "requiresReview": true,
            "reviewReasons": ["dispute_open:du_1"] });
        for (row, expected) in [
            (
                json!({ "status": "completed", "paymentStatus": "paid", "requiresReview": false }),
                json!({ "order": "ord_1", "access": "granted", "status": 200 }),
            ),
            (
                locked,
                json!({ "order": "ord_1", "access": "locked", "status": 423, "locked_by": "ord_1",
                    "reasons": "[\"dispute_open:du_1\"]",
                    "do": "billhook orders review clear ord_1 --reason …" }),
            ),
            (
                json!({ "status": "completed", "paymentStatus": "paid", "requiresReview": true,
                    "reviewReasons": ["link_conflict:pi_1"] }),
                json!({ "order": "ord_1", "access": "locked", "status": 423, "locked_by": "ord_1",
                    "reasons": "[\"link_conflict:pi_1\"]", "do": RELINK }),
            ),
            (
                json!({ "status": "completed", "paymentStatus": "charged_back", "requiresReview": true }),
                json!({ "order": "ord_1", "access": "disabled", "status": 403,
                    "because": "status completed, paymentStatus charged_back" }),
            ),
            (
                json!({}),
                json!({ "order": "ord_1", "access": "disabled", "status": 403,
                    "because": "status , paymentStatus " }),
            ),
        ] {
            assert_eq!(
                render_access(decide_row_access(&row), "ord_1", &row),
                expected
            );
        }
    }
}
