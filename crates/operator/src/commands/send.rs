//! `billhook send`: delivers a signed sample event, to the stack's webhook or to any URL.

use anyhow::{Context as _, Result, bail};
use billhook_adapters::clock::SystemClock;
use billhook_core::ids::{EventId, ProviderId};
use billhook_core::ports::Clock as _;
use clap::Args;
use serde_json::{Value, json};

use crate::audit::AuditContext;
use crate::confirm::ChangeArgs;
use crate::events_table::{EventChange, EventChangeResult, EventsTable};
use crate::exit::CommandExit;
use crate::output::OutputWriter;
use crate::provider_argument::provider_parser;
use crate::sample_events::{build_sample_body, load_samples, new_event_id};
use crate::secret_input::read_key_from_stdin;
use crate::session::StackSession;
use crate::webhook_delivery::{post_signed_event, read_webhook_url};

#[derive(Args, Debug)]
#[command(
    after_help = "Each delivery has a new event id and the current time. It is signed with the secret of the stack, or with the \
    first line of standard input if --secret-stdin is given.\nThe event is noted in its row as sent by you. The webhook of a live \
    environment gets no samples: see `billhook doctor`.\n\nExamples:\n  \
    billhook send stripe --type payment_intent.succeeded --set data.object.metadata.order_id=ord_1\n  \
    billhook send lob --type letter.delivered --set reference_id=ltr_1 --reason 'a try' --yes\n  \
    billhook send stripe --list\n  \
    echo whsec_… | billhook send stripe --type refund.created --url http://127.0.0.1:3000/webhooks/stripe --secret-stdin"
)]
pub(crate) struct SendArgs {
    /// The provider to act as
    #[arg(value_parser = provider_parser())]
    provider: ProviderId,
    /// The event type of the sample
    #[arg(long = "type", value_name = "TYPE", required_unless_present = "list")]
    event_type: Option<String>,
    /// List the event types that have a sample
    #[arg(long)]
    list: bool,
    /// Deliver to this URL instead of the webhook of the stack; also needs --secret-stdin
    #[arg(long, requires = "secret_stdin")]
    url: Option<String>,
    /// Set a value in the body, for example data.object.amount=100; text needs no quotes; may be repeated
    #[arg(long, value_name = "PATH=VALUE")]
    set: Vec<String>,
    /// Read the signing secret from standard input
    #[arg(long)]
    secret_stdin: bool,
    #[command(flatten)]
    change: ChangeArgs,
}

/// `open_session` is called only if the stack is needed: with `--url` and `--secret-stdin` the command works without
/// AWS.
pub(crate) async fn run_send<'s>(
    args: SendArgs,
    session: impl AsyncFnOnce() -> Result<&'s StackSession>,
    output: OutputWriter,
) -> Result<()> {
    let provider = args.provider;
    let Some(event_type) = &args.event_type else {
        let rows: Vec<Value> = load_samples(provider)
            .iter()
            .map(|(name, _)| json!({ "type": name }))
            .collect();
        output.print_list(&["type"], &rows);
        return Ok(());
    };
    let known = load_samples(provider);
    let sample = known.iter().find(|(name, _)| name == event_type);
    let (_, sample) = sample.with_context(|| {
        format!("there is no sample of {event_type}: see `billhook send {provider} --list`")
    })?;
    let now = SystemClock.now();
    let id = new_event_id(provider);
    let body = build_sample_body(provider, sample, &id, now, &args.set)?;
    let mut marker = None;
    let (url, keys) = match &args.url {
        // clap asks for --secret-stdin: the stack's secret signs nothing for another URL.
        Some(url) => (url.clone(), read_key_from_stdin()?),
        None => {
            let session = session().await?;
            if session.stack.is_live() {
                return Err(CommandExit::Refused(format!(
                    "{} is live, and a sample event would change orders and money: `billhook doctor` sends an event that changes nothing",
                    session.stack.name
                ))
                .into());
            }
            let url = read_webhook_url(&session.stack, provider)?.to_owned();
            let what = format!(
                "the sample {event_type} would be delivered to {url}, and processed as if {} had sent it",
                provider.title()
            );
            let audit = args.change.confirm(session, &what, Some(1)).await?;
            let keys = if args.secret_stdin {
                read_key_from_stdin()?
            } else {
                session.read_signing_keys(provider).await?
            };
            marker = Some((session.events_table(provider)?, audit));
            (url, keys)
        }
    };
    let answer = post_signed_event(provider, &url, &keys, body).await?;
    let status = answer.status;
    if let (200, Some((events, audit))) = (status, marker) {
        mark_as_sent(&events, &id, &audit).await?;
    }
    let answer = serde_json::from_str(&answer.body).unwrap_or_else(|_| json!(answer.body));
    output.print_object(&json!({ "event_id": id, "event_type": event_type, "url": url, "status": status, "answer": answer }));
    if status == 200 {
        return Ok(());
    }
    Err(CommandExit::Refused(format!("{url} answered {status}")).into())
}

/// Notes in the event's row that it is no event of the provider. The delivery itself says nothing of it: whatever it said,
/// anyone could say who knows the URL.
async fn mark_as_sent(events: &EventsTable, id: &str, audit: &AuditContext) -> Result<()> {
    let note = audit.build_note("send", SystemClock.now(), None);
    let id = EventId::parse(id)?;
    let change = events.apply_change(&id, EventChange::Annotate, note);
    if change.await? == EventChangeResult::NotAllowed {
        bail!(
            "{id} was accepted, but {} has no row of it to note that you sent it",
            events.table
        );
    }
    Ok(())
}
