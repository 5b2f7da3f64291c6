//! `billhook orders`: show orders, list and clear reviews, and the repairs that only a person can decide on: a refund
//! outside Stripe, a PaymentIntent that the checkout failed to store.

use anyhow::{Result, bail};
use billhook_adapters::clock::SystemClock;
use billhook_core::entity::kind::StatedFacts;
use billhook_core::entity::manual::ManualEdits;
use billhook_core::entity::payment::access::{DownloadAccess, decide_download_access};
use billhook_core::entity::payment::status::{OrderStatus, PaymentStatus};
use billhook_core::entity::{Entity, EntityKey};
use billhook_core::ids::{OrderId, PaymentIntentId, TenantId};
use billhook_core::ports::Clock as _;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::application_tables::ORDERS;
use crate::audit::ChangeAuthor;
use crate::confirm::ChangeArgs;
use crate::entity_repair::{payment_record_facts, repair_entity};
use crate::exit::CommandExit;
use crate::intent_backfill::{BackfillScope, RivalPolicy, backfill_from_timelines, backfill_order};
use crate::output::{OutputWriter, print_notice};
use crate::review::{RELINK, accept_amounts, clear_review};
use crate::row_json::{RowDetail, read_column, read_text};
use crate::row_standing::{describe_row_standing, load_entity, row_of_state, show_row};
use crate::session::StackSession;
use crate::time_argument::TimeArgument;

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
    /// Store the PaymentIntent in an order that has none, and link its payment, however old it is
    #[command(
        after_help = "--from-timelines does it for all orders that lost theirs, if the application's own entries in the timeline name \
        it; without --yes it only shows them. It goes on after an error, and can be repeated.\nA PaymentIntent that another order or \
        statement bears is refused. The exit code is 4 if one was refused.\n\nExamples:\n  \
        billhook orders backfill-payment-intent ord_1 pi_1 --reason 'checkout crashed'\n  \
        billhook orders backfill-payment-intent --from-timelines --since 2026-05-01 --reason 'lost by the release of May' --yes"
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
    #[command(flatten)]
    change: ChangeArgs,
}

#[derive(Args, Debug)]
pub(crate) struct OrdersBackfillArgs {
    /// The order id
    #[arg(value_parser = OrderId::parse, required_unless_present = "from_timelines", requires = "intent")]
    id: Option<OrderId>,
    /// The PaymentIntent id, from Stripe's dashboard
    #[arg(value_parser = PaymentIntentId::parse)]
    intent: Option<PaymentIntentId>,
    /// Take it from another order or statement that bears it; later events keep that decision
    #[arg(long, conflicts_with = "from_timelines")]
    force: bool,
    /// All orders without a PaymentIntent whose timeline names one in the `meta` of the application's entries
    #[arg(long, conflicts_with_all = ["id", "intent"])]
    from_timelines: bool,
    /// Only orders of this tenant
    #[arg(long, value_parser = TenantId::parse, conflicts_with = "id")]
    tenant: Option<TenantId>,
    /// Only orders that were made then or later (`createdAt`)
    #[arg(long, value_parser = TimeArgument::parse, conflicts_with = "id")]
    since: Option<TimeArgument>,
    /// Only orders that were made before then
    #[arg(long, value_parser = TimeArgument::parse, conflicts_with = "id")]
    until: Option<TimeArgument>,
    /// At most this many orders
    #[arg(long, default_value_t = 1000, conflicts_with = "id")]
    limit: usize,
    #[command(flatten)]
    change: ChangeArgs,
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
            clear_review(session, &EntityKey::Order(clear.id), clear.change).await?;
        }
        OrdersCommand::Review(OrdersReviewCommand::Accept(accept)) => {
            accept_amounts(session, &EntityKey::Order(accept.id), accept.change).await?;
        }
        OrdersCommand::MarkRefunded(refund) => {
            let key = EntityKey::Order(refund.id);
            let facts = |entity: &Entity, _: &ChangeAuthor| mark_refunded_facts(entity);
            repair_entity(session, &key, "mark-refunded", refund.change, facts).await?;
            print_notice(&format!("marked {key} as refunded"));
        }
        OrdersCommand::MarkPaid(paid) => {
            let key = EntityKey::Order(paid.id);
            repair_entity(
                session,
                &key,
                "mark-paid",
                paid.change,
                payment_record_facts,
            )
            .await?;
            print_notice(&format!("recorded a payment outside Stripe for {key}"));
        }
        OrdersCommand::BackfillPaymentIntent(backfill) => {
            backfill_payment_intents(session, output, backfill).await?
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

async fn backfill_payment_intents(
    session: &StackSession,
    output: OutputWriter,
    args: OrdersBackfillArgs,
) -> Result<()> {
    if let (Some(id), Some(intent)) = (&args.id, &args.intent) {
        let what = format!("order {id} would get {intent}, and with it the payment");
        let audit = args.change.confirm(session, &what, Some(1)).await?;
        let policy = match args.force {
            true => RivalPolicy::TakeFromThem,
            false => RivalPolicy::Refuse,
        };
        let order = backfill_order(session, id, intent, policy, &audit).await?;
        output.print_object(&order);
        return Ok(());
    }
    let now = SystemClock.now();
    let scope = BackfillScope {
        tenant: args.tenant,
        since: args.since.map(|since| since.resolve(now)),
        until: args.until.map(|until| until.resolve(now)),
        limit: args.limit,
    };
    backfill_from_timelines(session, output, &scope, &args.change).await
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
