//! Structured logging (each log line is one JSON object), the EMF metric lines, and the X-Ray trace header of the
//! invocation.
//!
//! Guarantees: one line per log event whatever the values contain (control characters are escaped, values are cut after
//! 1,000 bytes, so nobody can inject a line); each line has the fields of the surrounding spans; no name occurs twice
//! (the innermost value wins). Of other crates only warnings and errors are logged, because their finer lines may
//! contain headers and bodies. A panic is a line too. It does not remove secrets from the values that it gets.
//!
//! Log format, shortened; `write_line` has the order of the fields:
//!
//! ```text
//! {"timestamp":"2026-06-09T10:13:20.000Z","level":"INFO","message":"event_processed correlation_id=0197…",
//!  "function":"stripe-worker","correlation_id":"0197…","event_id":"evt_1","event_type":"charge.refunded",…}
//! ```
//!
//! `metrics` has the list of metrics, `lambda` calls this module.

use std::cell::{Cell, RefCell};
use std::error::Error;
use std::fmt::{self, Debug, Display, Write as _};
use std::io::Write as _;
use std::panic::PanicHookInfo;
use std::sync::OnceLock;

use billhook_core::error::error_chain;
use billhook_core::ports::Clock;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

use crate::clock::SystemClock;
use crate::config::{EnvLookup, read_environment_name, read_log_level};
use crate::metrics;

/// Longer values are cut: they help nobody, and CloudWatch charges by the byte. So a line stays far below the 1 MB
/// limit of a log event.
const VALUE_BYTES_MAX: usize = 1000;

/// Prefixes of our own targets, which follow `LOG_LEVEL`.
const OURS: [&str; 5] = [
    "billhook",
    "webhook_ingress",
    "event_worker",
    "cleanup_failed_payments",
    "webhook_secret",
];

/// This layer logs a panic once more, after the panic hook and `lambda::serve_events`, and its text may contain a
/// payload.
const SILENCED: &str = "lambda_runtime::layers::panic";

static ENVIRONMENT: OnceLock<metrics::MetricEnvironment> = OnceLock::new();

thread_local! {
    static CLOSING: Cell<bool> = const { Cell::new(false) };
    static TRACE: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Logs to standard output from now on. Only the first call has an effect.
pub fn init_logging(function: &'static str, lookup: &EnvLookup<'_>) {
    let (app_name, env) = read_environment_name(lookup);
    let environment = ENVIRONMENT.get_or_init(|| metrics::MetricEnvironment::new(&app_name, &env));
    let level = read_log_level(lookup);
    let lines = build_subscriber(
        function,
        environment.clone(),
        level,
        SystemClock,
        write_stdout,
    );
    if tracing::subscriber::set_global_default(lines).is_ok() {
        std::panic::set_hook(Box::new(log_panic));
    }
}

/// Call it at the beginning of each invocation. `trace` is the X-Ray header; messages sent from now on carry it.
pub fn begin_invocation(trace: Option<String>) {
    TRACE.set(trace);
}

pub fn current_trace() -> Option<String> {
    TRACE.with_borrow(Clone::clone)
}

/// Writes an invocation's last line and puts the metrics into it, because one line costs less than two. Use it only
/// when no work is left: what is counted later cannot be in this line.
pub fn write_final_line(write_line: impl FnOnce()) {
    /// A guard, so that the flag is reset also after a panic; otherwise every later line would take metrics.
    struct FinalLineGuard;
    impl Drop for FinalLineGuard {
        fn drop(&mut self) {
            CLOSING.set(false);
        }
    }
    CLOSING.set(true);
    let _closed = FinalLineGuard;
    write_line();
}

/// Call it at the end of each invocation: writes the metrics that are not in its last line.
pub fn flush_metrics() {
    if let Some(environment) = ENVIRONMENT.get() {
        write_stdout(metrics::drain_lines(environment, SystemClock.now()).as_bytes());
    }
}

fn write_stdout(lines: &[u8]) {
    if lines.is_empty() {
        return;
    }
    // If standard output cannot be written, there is no place to report it.
    drop(std::io::stdout().lock().write_all(lines));
}

fn log_panic(panic: &PanicHookInfo<'_>) {
    // A literal contains no data. A formatted message may contain any, for example the value that failed to parse
    // (`bad jane@example.com`), so only the place is logged.
    let literal = panic.payload().downcast_ref::<&'static str>();
    let message = literal.copied().unwrap_or("(message withheld)");
    let location = panic.location().map(ToString::to_string);
    tracing::error!(location = location.unwrap_or_default(), "panic: {message}");
}

/// Calls `write` once per line.
pub fn build_subscriber<C: Clock + 'static>(
    function: &'static str,
    environment: metrics::MetricEnvironment,
    level: LevelFilter,
    clock: C,
    write: impl Fn(&[u8]) + Send + Sync + 'static,
) -> impl Subscriber + Send + Sync {
    tracing_subscriber::registry().with(JsonLineLayer {
        function,
        environment,
        level,
        clock,
        write,
    })
}

struct JsonLineLayer<C, W> {
    function: &'static str,
    environment: metrics::MetricEnvironment,
    level: LevelFilter,
    clock: C,
    write: W,
}

/// A span's fields, with the values already as JSON: a span is written once and read by every line inside it.
#[derive(Default)]
struct SpanFields(Vec<(&'static str, String)>);

#[derive(Default)]
struct LineScratch {
    line: String,
    names: Vec<&'static str>,
}

thread_local! {
    static SCRATCH: RefCell<LineScratch> = RefCell::default();
}

impl<S, C, W> Layer<S> for JsonLineLayer<C, W>
where
    S: Subscriber + for<'l> LookupSpan<'l>,
    C: Clock + 'static,
    W: Fn(&[u8]) + 'static,
{
    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        let target = metadata.target();
        if OURS.iter().any(|ours| target.starts_with(ours)) {
            return *metadata.level() <= self.level;
        }
        *metadata.level() <= self.level.min(LevelFilter::WARN) && target != SILENCED
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.level)
    }

    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        if let Some(span) = context.span(id) {
            let mut fields = SpanFields::default();
            attributes.record(&mut FieldVisitor(|name, value: FieldValue<'_>| {
                fields.set(name, value)
            }));
            span.extensions_mut().insert(fields);
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(fields) = span.extensions_mut().get_mut::<SpanFields>()
        {
            values.record(&mut FieldVisitor(|name, value: FieldValue<'_>| {
                fields.set(name, value)
            }));
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        SCRATCH.with(|scratch| match scratch.try_borrow_mut() {
            Ok(mut scratch) => self.write_line(event, &context, &mut scratch),
            // The `Debug` of a value logged or panicked while its own line was written, so the buffer is in use.
            Err(_) => self.write_line(event, &context, &mut LineScratch::default()),
        });
    }
}

impl<C: Clock, W: Fn(&[u8])> JsonLineLayer<C, W> {
    fn write_line<S>(&self, event: &Event<'_>, context: &Context<'_, S>, scratch: &mut LineScratch)
    where
        S: Subscriber + for<'l> LookupSpan<'l>,
    {
        let LineScratch { line, names } = scratch;
        line.clear();
        names.clear();
        names.extend(["timestamp", "level", "message", "function"]);
        let (now, level) = (self.clock.now(), event.metadata().level());
        // Writing to a `String` cannot fail.
        let _ = write!(
            line,
            r#"{{"timestamp":"{now}","level":"{level}","message":"#
        );
        let before = line.len();
        event.record(&mut FieldVisitor(|name, value: FieldValue<'_>| {
            if name == "message" {
                value.write(line);
            }
        }));
        if line.len() == before {
            line.push_str("\"\"");
        }
        line.push_str(r#","function":"#);
        FieldValue::Text(self.function).write(line);
        event.record(&mut FieldVisitor(|name, value: FieldValue<'_>| {
            if claim_name(names, name) {
                push_member_name(line, name);
                value.write(line);
            }
        }));
        for span in context.event_scope(event).into_iter().flatten() {
            if let Some(SpanFields(fields)) = span.extensions().get() {
                for (name, json) in fields {
                    if claim_name(names, name) {
                        push_member_name(line, name);
                        line.push_str(json);
                    }
                }
            }
        }
        if CLOSING.get() {
            metrics::drain_into_line(line, &self.environment, now);
        }
        line.push_str("}\n");
        (self.write)(line.as_bytes());
    }
}

impl SpanFields {
    fn set(&mut self, name: &'static str, value: FieldValue<'_>) {
        let mut json = String::new();
        value.write(&mut json);
        match self.0.iter_mut().find(|(known, _)| *known == name) {
            Some((_, old)) => *old = json,
            None => self.0.push((name, json)),
        }
    }
}

fn claim_name(names: &mut Vec<&'static str>, name: &'static str) -> bool {
    let new = !names.contains(&name);
    if new {
        names.push(name);
    }
    new
}

fn push_member_name(line: &mut String, name: &str) {
    line.push(',');
    FieldValue::Text(name).write(line);
    line.push(':');
}

enum FieldValue<'a> {
    /// A number or a boolean: its text is JSON.
    Plain(&'a dyn Display),
    Text(&'a str),
    Debug(&'a dyn Debug),
}

impl FieldValue<'_> {
    fn write(&self, line: &mut String) {
        if let Self::Plain(value) = self {
            let _ = write!(line, "{value}");
            return;
        }
        line.push('"');
        let mut quoted = QuotedWriter {
            line,
            bytes_left: Some(VALUE_BYTES_MAX),
        };
        let _ = match self {
            Self::Text(text) => quoted.write_str(text),
            Self::Plain(value) => write!(quoted, "{value}"),
            Self::Debug(value) => write!(quoted, "{value:?}"),
        };
        line.push('"');
    }
}

/// Writes the inside of a JSON string; `bytes_left` is `None` once the value was cut.
struct QuotedWriter<'a> {
    line: &'a mut String,
    bytes_left: Option<usize>,
}

impl fmt::Write for QuotedWriter<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for character in text.chars() {
            let Some(left) = self.bytes_left else {
                return Ok(());
            };
            self.bytes_left = left.checked_sub(character.len_utf8());
            match character {
                _ if self.bytes_left.is_none() => self.line.push('…'),
                '"' => self.line.push_str("\\\""),
                '\\' => self.line.push_str("\\\\"),
                '\n' => self.line.push_str("\\n"),
                // U+2028 and U+2029 are line ends for some readers of JSON lines, so they are escaped like control
                // characters.
                c if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') => {
                    write!(self.line, "\\u{:04x}", u32::from(c))?;
                }
                c => self.line.push(c),
            }
        }
        Ok(())
    }
}

struct FieldVisitor<F>(F);

impl<F: FnMut(&'static str, FieldValue<'_>)> Visit for FieldVisitor<F> {
    fn record_i64(&mut self, field: &Field, value: i64) {
        (self.0)(field.name(), FieldValue::Plain(&value));
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        (self.0)(field.name(), FieldValue::Plain(&value));
    }
    fn record_bool(&mut self, field: &Field, value: bool) {
        (self.0)(field.name(), FieldValue::Plain(&value));
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        (self.0)(field.name(), FieldValue::Text(value));
    }
    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        (self.0)(field.name(), FieldValue::Text(&error_chain(value)));
    }
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        (self.0)(field.name(), FieldValue::Debug(value));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use billhook_core::ids::ProviderId;
    use billhook_core::time::Timestamp;
    use serde_json::{Value as Json, json};
    use uuid::Uuid;

    use super::*;

    struct Fixed;

    impl Clock for Fixed {
        fn now(&self) -> Timestamp {
            Timestamp::from_unix_ms(1_781_000_000_042).unwrap()
        }
        fn new_id(&self) -> Uuid {
            Uuid::nil()
        }
    }

    fn lines(level: LevelFilter, act: impl FnOnce()) -> Vec<String> {
        let written = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&written);
        let write = move |line: &[u8]| sink.lock().unwrap().extend_from_slice(line);
        let stage = metrics::MetricEnvironment::new("billhook", "test");
        let subscriber = build_subscriber("stripe-worker", stage, level, Fixed, write);
        tracing::subscriber::with_default(subscriber, act);
        let text = String::from_utf8(written.lock().unwrap().clone()).unwrap();
        text.split_terminator('\n').map(str::to_owned).collect()
    }

    #[test]
    fn a_line_is_one_flat_object_in_a_fixed_order() {
        let lines = lines(LevelFilter::INFO, || {
            let span = tracing::info_span!(
                "message",
                correlation_id = "c-1",
                tenant_id = tracing::field::Empty
            );
            span.record("tenant_id", "t-0");
            span.record("tenant_id", "t-1");
            let _outer = span.entered();
            let _inner = tracing::info_span!("record", attempt = 2, tenant_id = "t-2").entered();
            tracing::info!(event_id = %"evt_1", live = true, amount = -5, "event_processed id={}", 7);
        });
        assert_eq!(
            lines,
            [concat!(
                r#"{"timestamp":"2026-06-09T10:13:20.042Z","level":"INFO","message":"event_processed id=7","#,
                r#""function":"stripe-worker","event_id":"evt_1","live":true,"amount":-5,"attempt":2,"#,
                r#""tenant_id":"t-2","correlation_id":"c-1"}"#
            )]
        );
    }

    #[test]
    fn the_closing_line_takes_what_was_counted_and_no_other_does() {
        let lines = lines(LevelFilter::INFO, || {
            metrics::STUCK_EVENTS.add(ProviderId::Lob, 3);
            tracing::info!("first");
            write_final_line(|| tracing::debug!("of no interest"));
            write_final_line(|| tracing::info!("last"));
            tracing::info!("after it");
        });
        let lines: Vec<Json> = lines
            .iter()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let stuck: Vec<_> = lines.iter().map(|line| line.get("StuckEvents")).collect();
        assert_eq!(stuck, [None, Some(&json!(3)), None]);
        assert_eq!(lines[1]["message"], "last");
        assert_eq!(lines[1]["_aws"]["Timestamp"], 1_781_000_000_042_i64);
    }

    #[test]
    fn hostile_values_stay_within_their_line_and_their_field() {
        let hostile = "\",\"level\":\"INFO\n\r\0\u{1b}[0m\u{2028}\\ ü";
        let long = "é".repeat(600);
        let lines = lines(LevelFilter::INFO, || {
            tracing::error!(hostile, long = long.as_str(), level = "forged", "{hostile}");
        });
        assert_eq!(lines.len(), 1);
        assert!(!lines[0].contains(|c: char| c.is_control() || c == '\u{2028}'));
        let line: Json = serde_json::from_str(&lines[0]).unwrap();
        assert_eq!(line["hostile"], json!(hostile));
        assert_eq!(line["message"], json!(hostile));
        assert_eq!(line["level"], "ERROR");
        assert_eq!(line["long"], json!(format!("{}…", "é".repeat(500))));
    }

    #[test]
    fn other_crates_speak_only_to_warn_and_never_in_the_panic_layer() {
        let lines = lines(LevelFilter::TRACE, || {
            tracing::info!("ours");
            tracing::info!(target: "hyper::proto", "a header");
            tracing::error!(target: "lambda_runtime::layers::panic", "a payload");
            tracing::warn!(target: "aws_smithy_runtime", "theirs");
        });
        let messages: Vec<Json> = lines
            .iter()
            .map(|line| serde_json::from_str::<Json>(line).unwrap()["message"].clone())
            .collect();
        assert_eq!(messages, ["ours", "theirs"]);
        assert!(super::tests::lines(LevelFilter::WARN, || tracing::info!("quiet")).is_empty());
    }

    #[test]
    fn a_panic_is_one_error_line_without_what_it_may_hold() {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(log_panic));
        let lines = lines(LevelFilter::ERROR, || {
            let _delivery = tracing::error_span!("delivery", correlation_id = "c-1").entered();
            let value = "jane@example.com";
            for panic in [|_| panic!("no row"), |value| panic!("bad {value}\n{value}")] {
                let _ = std::panic::catch_unwind(|| panic(value));
            }
        });
        std::panic::set_hook(before);
        let lines: Vec<Json> = lines
            .iter()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let told = |line: &Json| {
            assert!(line["location"].as_str().unwrap().contains("telemetry.rs"));
            [&line["level"], &line["message"], &line["correlation_id"]]
                .map(|v| v.as_str().unwrap().to_owned())
        };
        assert_eq!(
            lines.iter().map(told).collect::<Vec<_>>(),
            [
                ["ERROR", "panic: no row", "c-1"],
                ["ERROR", "panic: (message withheld)", "c-1"]
            ]
        );
    }

    #[test]
    fn an_error_shows_its_chain_and_a_failing_number_is_no_json_number() {
        let lines = lines(LevelFilter::INFO, || {
            let error: &dyn Error = &std::io::Error::other("out of reach");
            tracing::info!(error, ratio = f64::NAN);
        });
        let line: Json = serde_json::from_str(&lines[0]).unwrap();
        assert_eq!(line["error"], "out of reach");
        assert_eq!(line["ratio"], "NaN");
        assert_eq!(line["message"], "");
    }
}
