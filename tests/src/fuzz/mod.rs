//! Fuzz targets: functions of any bytes that panic if a promise is broken. `make test` runs them on seeded mutations of
//! the samples, `make fuzz` under libFuzzer (coverage-guided). `docs/reliability.md` lists what each target checks.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a broken promise is a panic"
)]

mod endpoint;
mod ingress;
mod mapping;
mod mutate;
mod queue;

use std::cell::RefCell;
use std::path::Path;
use std::sync::Once;

use billhook_adapters::clock::SystemClock;
use billhook_adapters::{metrics, telemetry};
use billhook_core::ids::ProviderId;
use billhook_core::ports::Clock as _;
use billhook_testkit::local::repository;
use serde_json::Value;

pub use mutate::mutate;

/// The secrets of the samples, and the time at which they were signed.
const STRIPE_SECRET: &str = "whsec_sample_apigw_secret_0001";
const LOB_SECRET: &str = "sample_lob_webhook_secret_0001";
const NOW_S: i64 = 1_781_000_000;

/// Texts that no log line may contain, whatever the input.
const SECRETS: [&str; 3] = ["whsec_", "sample_lob_webhook_secret", "sk_test_"];
/// Personal data of the samples.
const PERSONAL: [&str; 8] = [
    "PAT SAMPLE",
    "Pat Sample",
    "SAMPLE ST",
    "Sample St",
    "SPRINGFIELD",
    "@example.com",
    "_secret_SampleOnly",
    "AOB934RVNwzk6xtn",
];
/// Log fields that repeat names given by the sender. If a mutation moves a person's name into one of them, it is
/// logged.
const NAMES: [&str; 7] = [
    "event_id",
    "stripe_event_id",
    "event_type",
    "tenant_hint",
    "tenant_id",
    "entity",
    "request_id",
];
const LINE_BYTES_MAX: usize = 16 * 1024;

fn stage() -> metrics::MetricEnvironment {
    metrics::MetricEnvironment::new("app", "test")
}

/// A fuzz target.
pub struct Target {
    /// `make fuzz TARGET=…`
    pub name: &'static str,
    /// Panics if a promise is broken; returns whether the input was processed to the end.
    pub run: fn(&[u8]) -> bool,
    /// The inputs to start with.
    pub corpus: fn() -> Vec<Vec<u8>>,
}

pub const TARGETS: [Target; 7] = [
    Target {
        name: "header",
        run: ingress::header,
        corpus: ingress::headers,
    },
    Target {
        name: "body",
        run: ingress::body,
        corpus: payloads,
    },
    Target {
        name: "proxy_event",
        run: ingress::proxy_event,
        corpus: || samples("webhook-ingress"),
    },
    Target {
        name: "queue_batch",
        run: queue::batch,
        corpus: || [samples("stripe-worker"), samples("lob-worker")].concat(),
    },
    Target {
        name: "custom_resource",
        run: endpoint::custom_resource,
        corpus: || samples("webhook-secret"),
    },
    Target {
        name: "stripe_mapping",
        run: mapping::stripe,
        corpus: mapping::histories_of_stripe,
    },
    Target {
        name: "lob_mapping",
        run: mapping::lob,
        corpus: mapping::histories_of_lob,
    },
];

thread_local! {
    static LINES: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    static RUNTIME: tokio::runtime::Runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
}

/// Runs a handler and checks its log lines.
fn watched<T>(handler: impl Future<Output = T>) -> T {
    static LOG: Once = Once::new();
    LOG.call_once(|| {
        // The most detailed level that an operator can choose.
        let level = tracing::level_filters::LevelFilter::TRACE;
        let lines = telemetry::build_subscriber("fuzzed", stage(), level, SystemClock, |line| {
            LINES.with_borrow_mut(|lines| lines.extend_from_slice(line));
        });
        tracing::subscriber::set_global_default(lines).unwrap();
    });
    let done = RUNTIME.with(|runtime| runtime.block_on(handler));
    let lines = LINES.take();
    let metrics = metrics::drain_lines(&stage(), SystemClock.now());
    let lines = String::from_utf8(lines).unwrap();
    for line in lines.lines().chain(metrics.lines()) {
        check_line(line);
    }
    done
}

fn check_line(line: &str) {
    assert!(line.len() <= LINE_BYTES_MAX, "{} bytes: {line}", line.len());
    let mut json: Value = serde_json::from_str(line).unwrap();
    let members = json.as_object_mut().unwrap();
    check_secrets(line);
    members.retain(|name, _| !NAMES.contains(&name.as_str()));
    let rest = json.to_string();
    for canary in PERSONAL {
        assert!(!rest.contains(canary), "{canary} stands in {line}");
    }
}

fn check_secrets(text: &str) {
    for canary in SECRETS {
        assert!(!text.contains(canary), "{canary} stands in {text}");
    }
}

/// The files of a folder of `events/`.
fn files(folder: impl AsRef<Path>) -> Vec<Vec<u8>> {
    let folder = repository().join("events").join(folder);
    let mut paths: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    paths
        .iter()
        .map(|path| std::fs::read(path).unwrap())
        .collect()
}

/// The sample invocations of a function, without white space.
fn samples(function: &str) -> Vec<Vec<u8>> {
    files(function).iter().map(|file| compact(file)).collect()
}

fn compact(json: &[u8]) -> Vec<u8> {
    let json: Value = serde_json::from_slice(json).unwrap();
    json.to_string().into_bytes()
}

/// The samples of all providers' events.
fn payloads() -> Vec<Vec<u8>> {
    let providers = ProviderId::ALL.iter();
    providers
        .flat_map(|provider| payloads_of(*provider))
        .collect()
}

fn payloads_of(provider: ProviderId) -> Vec<Vec<u8>> {
    let all = files(Path::new("payloads").join(provider.to_string()));
    all.iter().map(|file| compact(file)).collect()
}
