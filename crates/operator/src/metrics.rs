//! `billhook metrics export`: counters of the events table, for whoever scrapes Prometheus.

use std::collections::BTreeMap;

use anyhow::Result;
use billhook_adapters::clock::SystemClock;
use billhook_core::ids::ProviderId;
use billhook_core::ports::Clock as _;
use clap::{Args, Subcommand};

use crate::filter::{Filter, text};
use crate::moment::Moment;
use crate::output::Output;
use crate::session::Session;
use crate::store::Listed;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Count the events received since a time, as Prometheus reads it
    #[command(
        after_help = "The table knows each event once: duplicates and refused deliveries are counted by CloudWatch \
        alone.\n\nExample:\n  billhook metrics export --since 2026-11-01 > billhook.prom"
    )]
    Export(Export),
}

#[derive(Args, Debug)]
pub(crate) struct Export {
    /// From when on
    #[arg(long, default_value = "1d", value_parser = Moment::parse)]
    since: Moment,
    /// The form
    #[arg(long, default_value = "prometheus", value_parser = ["prometheus"])]
    format: String,
}

pub(crate) async fn run(command: Command, session: &Session) -> Result<()> {
    let Command::Export(export) = command;
    let selection = Filter::since(export.since).select(Vec::new(), SystemClock.now());
    let mut found = Vec::new();
    for provider in selection.providers() {
        found.extend(
            session
                .events(provider)?
                .list(&selection, usize::MAX)
                .await?,
        );
    }
    Output::text(&exposition(&found));
    Ok(())
}

fn exposition(events: &[Listed]) -> String {
    let mut accepted = BTreeMap::<(String, &str), u64>::new();
    let mut outcomes = BTreeMap::<(String, String, String), u64>::new();
    for listed in events {
        let of = |name: &str| label(text(&listed.row, name).unwrap_or_default());
        let (event_type, outcome) = (of("event_type"), of("processing_outcome"));
        if listed.provider == ProviderId::Stripe {
            *accepted
                .entry((event_type.clone(), "accepted"))
                .or_default() += 1;
            if outcome == "failed" {
                *accepted.entry((event_type.clone(), "failed")).or_default() += 1;
            }
        }
        *outcomes
            .entry((listed.provider.to_string(), event_type, outcome))
            .or_default() += 1;
    }
    let mut lines =
        "# HELP stripe_webhook_events_total Events of Stripe taken in, and those that failed.\n\
        # TYPE stripe_webhook_events_total counter\n"
            .to_owned();
    for ((event_type, result), count) in accepted {
        lines.push_str(&format!(
            "stripe_webhook_events_total{{event_type=\"{event_type}\",result=\"{result}\"}} {count}\n"
        ));
    }
    lines.push_str(
        "# HELP billhook_events Events by what became of them.\n# TYPE billhook_events gauge\n",
    );
    for ((provider, event_type, outcome), count) in outcomes {
        lines.push_str(&format!(
            "billhook_events{{provider=\"{provider}\",event_type=\"{event_type}\",outcome=\"{outcome}\"}} {count}\n"
        ));
    }
    lines
}

/// A label's value: backslash and quote are the form's own.
fn label(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"")
}

#[cfg(test)]
mod tests {
    use aws_sdk_dynamodb::types::AttributeValue;
    use billhook_adapters::dynamodb::attributes::{Item, string_value};

    use super::*;

    #[test]
    fn events_are_counted_by_type_and_by_what_became_of_them() {
        let listed = |provider, id: &str, event_type: &str, outcome: &str| {
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
            Listed::read(provider, &item).unwrap()
        };
        let events = [
            listed(ProviderId::Stripe, "evt_1", "charge.refunded", "processed"),
            listed(ProviderId::Stripe, "evt_2", "charge.refunded", "failed"),
            listed(ProviderId::Lob, "evt_3", "letter.\"x\"", "parked"),
        ];
        insta::assert_snapshot!(exposition(&events));
    }
}
