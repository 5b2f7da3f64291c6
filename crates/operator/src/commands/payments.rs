//! `billhook payments`: show a payment as billhook knows it, and link it to the order or statement that it is for.

use anyhow::{Result, bail};
use billhook_adapters::clock::SystemClock;
use billhook_core::entity::EntityKey;
use billhook_core::entity::key::{PaymentKey, StateKey};
use billhook_core::entity::payment::linked::LinkState;
use billhook_core::entity::payment::state::PaymentState;
use billhook_core::ids::{AccountId, OrderId, PaymentRef, ProviderId, StatementId};
use billhook_core::worker::batch::{RelinkError, Worker};
use billhook_core::worker::ports::Ledger as _;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::audit::parse_reason;
use crate::entity_repair::write_timeline_note;
use crate::exit::CommandExit;
use crate::output::{OutputWriter, print_notice};
use crate::session::StackSession;
use crate::unclaimed::list_unclaimed;

#[derive(Debug, Subcommand)]
pub(crate) enum PaymentsCommand {
    /// Show what is known of a payment, and what it is linked to
    #[command(after_help = "Examples:\n  billhook payments show pi_1\n  \
        billhook payments show pi_1 --account acct_1\n  billhook payments show ch_1 --account acct_1")]
    Show(PaymentsShowArgs),
    /// List the payments that have money and to which nothing has been linked for a day
    #[command(
        after_help = "Amounts are in the currency's minor unit.\n\nExample:\n  billhook payments unclaimed"
    )]
    Unclaimed(PaymentsUnclaimedArgs),
    /// Decide which order or statement a payment is linked to
    #[command(
        after_help = "Later events, replays and rebuilds keep the decision; the next one replaces it.\n\nExample:\n  \
        billhook payments relink pi_1 --account acct_1 --order ord_1 --reason 'the shop sent a wrong order id'"
    )]
    Relink(PaymentsRelinkArgs),
}

#[derive(Args, Debug)]
pub(crate) struct PaymentsShowArgs {
    #[command(flatten)]
    payment: PaymentName,
}

#[derive(Args, Debug)]
pub(crate) struct PaymentsUnclaimedArgs {
    /// Show at most this many payments
    #[arg(long, default_value_t = 100)]
    limit: usize,
}

#[derive(Args, Debug)]
pub(crate) struct PaymentsRelinkArgs {
    #[command(flatten)]
    payment: PaymentName,
    #[command(flatten)]
    to: LinkTarget,
    /// The reason; the command writes it to the payment and to the timeline
    #[arg(long, value_parser = parse_reason)]
    reason: String,
}

#[derive(Args, Debug)]
struct PaymentName {
    /// The PaymentIntent, charge or Checkout Session; or the whole key, `payment#acct_1#pi_1`
    payment: String,
    /// The payment's connected account; without this option, the platform's own
    #[arg(long, value_parser = AccountId::parse)]
    account: Option<AccountId>,
}

#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
struct LinkTarget {
    /// The order that it is linked to from now on
    #[arg(long, value_parser = OrderId::parse)]
    order: Option<OrderId>,
    /// The statement that it is linked to from now on
    #[arg(long, value_parser = StatementId::parse)]
    statement: Option<StatementId>,
}

impl LinkTarget {
    fn key(self) -> Option<EntityKey> {
        let statement = self.statement.map(EntityKey::Statement);
        self.order.map(EntityKey::Order).or(statement)
    }
}

impl PaymentName {
    fn key(&self) -> Result<PaymentKey> {
        if let Some(key) = PaymentKey::parse(&self.payment) {
            return Ok(key);
        }
        Ok(PaymentKey {
            account: self.account.clone(),
            payment: PaymentRef::parse(&self.payment)?,
        })
    }
}

pub(crate) async fn run_payments(
    command: PaymentsCommand,
    session: &StackSession,
    output: OutputWriter,
) -> Result<()> {
    match command {
        PaymentsCommand::Show(show) => {
            let payment = load_payment(session, show.payment.key()?).await?;
            output.print_object(&describe_payment(&payment));
        }
        PaymentsCommand::Unclaimed(unclaimed) => {
            list_unclaimed(session, output, unclaimed.limit).await?;
        }
        PaymentsCommand::Relink(relink) => {
            let payment = load_payment(session, relink.payment.key()?).await?;
            let audit = session.start_audit(relink.reason).await?;
            let worker = Worker {
                provider: ProviderId::Stripe,
                rules: session.stack.interpret_rules()?,
                ledger: session.ledger(ProviderId::Stripe)?,
                clock: SystemClock,
            };
            let Some(to) = &relink.to.key() else {
                bail!("name an order or a statement");
            };
            let key = &payment.key;
            let linked = worker
                .relink_payment(key, to, &audit.actor, &audit.reason)
                .await;
            match linked {
                Ok(_) => {}
                Err(error @ RelinkError::TargetUnknown) => {
                    return Err(CommandExit::NotFound(format!("{to}: {error}")).into());
                }
                Err(error @ RelinkError::OtherTenant) => {
                    return Err(CommandExit::Refused(format!("{to}: {error}")).into());
                }
                Err(error) => bail!("cannot link {key} to {to}: {error}"),
            }
            write_timeline_note(session, to, "relink", &audit).await?;
            let now = load_payment(session, key.clone()).await?;
            output.print_object(&describe_payment(&now));
            let outdated: Vec<String> = now
                .outdated_copies()
                .keys()
                .map(ToString::to_string)
                .collect();
            if !outdated.is_empty() {
                print_notice(&format!(
                    "the copy in {} could not be updated yet; the sweep retries",
                    outdated.join(", ")
                ));
            }
        }
    }
    Ok(())
}

/// The payment of this name; of an alias the payment that it leads to.
async fn load_payment(session: &StackSession, key: PaymentKey) -> Result<PaymentState> {
    let ledger = session.ledger(ProviderId::Stripe)?;
    let mut key = key;
    loop {
        let state = StateKey::Payment(key.clone());
        let mut rows = ledger.load_rows(&[state.clone()].into()).await?;
        if let Some(reason) = rows.unreadable.remove(&state) {
            bail!("cannot read {key}: {reason}");
        }
        let Some((payment, _)) = rows.payments.remove(&key) else {
            let stack = &session.stack.name;
            return Err(CommandExit::NotFound(format!(
                "no event of {key} has arrived in {stack}; for a payment of a connected account, add --account"
            ))
            .into());
        };
        match payment.alias_of.clone() {
            Some(alias_of) => key = alias_of,
            None => return Ok(payment),
        }
    }
}

fn describe_payment(payment: &PaymentState) -> Value {
    let states = payment.link_states();
    let links = states.iter().map(|(key, link)| {
        let word = match link {
            LinkState::Linked => "linked",
            LinkState::Conflict(_) => "conflict",
            LinkState::Elsewhere => "elsewhere",
        };
        let sources = payment.facts.links.get(key);
        json!({ "entity": key, "link": word, "sources": sources, "copied": payment.copied.get(key) })
    });
    json!({
        "payment": payment.key,
        "version": payment.version,
        "facts_version": payment.facts_version,
        "names": payment.facts.names,
        "invoices": payment.facts.invoices,
        "named": payment.facts.named,
        "recipients": payment.facts.recipients,
        "denied": payment.denied,
        "links": links.collect::<Vec<_>>(),
        "relink": payment.facts.relink,
        "open_since": payment.open_since,
        "facts": payment.facts.money,
        "event_ids": payment.history.event_ids,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payment_is_named_by_its_id_or_by_its_key() {
        let named = |payment: &str, account: Option<&str>| {
            let account = account.map(|id| AccountId::parse(id).unwrap());
            let payment = payment.to_owned();
            let name = PaymentName { payment, account };
            name.key().unwrap().to_string()
        };
        assert_eq!(named("pi_1", None), "payment#platform#pi_1");
        assert_eq!(named("ch_1", Some("acct_1")), "payment#acct_1#ch_1");
        assert_eq!(named("payment#acct_1#cs_1", None), "payment#acct_1#cs_1");
    }
}
