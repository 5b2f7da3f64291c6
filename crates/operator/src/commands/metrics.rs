//! `billhook metrics export`: counts stored events in the Prometheus exposition format.

use std::collections::BTreeMap;

use anyhow::Result;
use billhook_adapters::clock::SystemClock;
use billhook_core::ids::ProviderId;
use billhook_core::ports::Clock as _;
use clap::{Args, Subcommand};

use crate::event_filter::EventFilter;
use crate::event_lookup::list_events;
use crate::events_table::EventSummary;
use crate::output::print_text;
use crate::row_json::read_text;
use crate::session::StackSession;
use crate::time_argument::TimeArgument;

#[derive(Debug, Subcommand)]
pub(crate) enum MetricsCommand {
    /// Count stored events in the Prometheus text format
    #[command(
        after_help = "Each event is stored once: only CloudWatch counts duplicates and refused deliveries.\n\nExample:\n  billhook metrics export --since 2026-11-01 > billhook.prom"
    )]
    Export(MetricsExportArgs),
}

#[derive(Args, Debug)]
pub(crate) struct MetricsExportArgs {
    /// Count events received since then
    #[arg(long, default_value = "1d", value_parser = TimeArgument::parse)]
    since: TimeArgument,
    /// The format
    #[arg(long, default_value = "prometheus", value_parser = ["prometheus"])]
    format: String,
}

pub(crate) async fn run_metrics(command: MetricsCommand, session: &StackSession) -> Result<()> {
    let MetricsCommand::Export(export) = command;
    let selection =
        EventFilter::received_since(export.since).resolve(Vec::new(), SystemClock.now());
    let found = list_events(session, &selection, usize::MAX).await?;
    print_text(&render_exposition(&found));
    Ok(())
}

fn render_exposition(events: &[EventSummary]) -> String {
    let mut accepted = BTreeMap::<(String, &str), u64>::new();
    let mut outcomes = BTreeMap::<(String, String, String), u64>::new();
    for event in events {
        let of = |name: &str| escape_label_value(read_text(&event.row, name).unwrap_or_default());
        let (event_type, outcome) = (of("event_type"), of("processing_outcome"));
        if event.provider == ProviderId::Stripe {
            *accepted
                .entry((event_type.clone(), "accepted"))
                .or_default() += 1;
            if outcome == "failed" {
                *accepted.entry((event_type.clone(), "failed")).or_default() += 1;
            }
        }
        *outcomes
            .entry((event.provider.to_string(), event_type, outcome))
            .or_default() += 1;
    }
    let mut lines =
        "# HELP stripe_webhook_events_total Stripe events accepted, and those that failed.\n\
        # TYPE stripe_webhook_events_total counter\n"
            .to_owned();
    for ((event_type, result), count) in accepted {
        lines.push_str(&format!(
            "stripe_webhook_events_total{{event_type=\"{event_type}\",result=\"{result}\"}} {count}\n"
        ));
    }
    lines.push_str(
        "# HELP billhook_events Stored events by outcome.\n# TYPE billhook_events gauge\n",
    );
    for ((provider, event_type, outcome), count) in outcomes {
        lines.push_str(&format!(
            "billhook_events{{provider=\"{provider}\",event_type=\"{event_type}\",outcome=\"{outcome}\"}} {count}\n"
        ));
    }
    lines
}

/// Label values come from senders: a quote or a backslash in an event type would break the exposition format.
fn escape_label_value(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"")
}

#[cfg(test)]
mod tests {
    use aws_sdk_dynamodb::types::AttributeValue;
    use billhook_adapters::dynamodb::attributes::{Item, string_value};

    use super::*;

    #[test]
    fn events_are_counted_by_type_and_outcome() {
        let event = |provider, id: &str, event_type: &str, outcome: &str| {
            let item = Item::from([
                ("event_id".to_owned(), string_value(id)),
                ("event_type".to_owned(), string_value(event_type)),
                ("group".to_owned(), string_value("g")),
                (
                    "processed".to_owned(),
                    AttributeValue::Bool(outcome == "processed"),
                ),
                ("processing_outcome".to_owned(), string_value(outcome)),
            ]);
            EventSummary::from_item(provider, &item).unwrap()
        };
        let events = [
            event(ProviderId::Stripe, "evt_1", "charge.refunded", "processed"),
            event(ProviderId::Stripe, "evt_2", "charge.refunded", "failed"),
            event(ProviderId::Lob, "evt_3", "letter.\"x\"", "parked"),
        ];
        insta::assert_snapshot!(render_exposition(&events));
    }
}
