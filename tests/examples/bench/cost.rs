//! Computes the cost of a million deliveries in dollars, by component, from the measurements. `docs/cost.md` has the
//! formulas, and the source and date of each price.

use serde_json::Value;

/// Lambda polls a FIFO queue for batches of at most 10.
const BATCH: f64 = 5.0;
const COLD_STARTS: f64 = 0.01;
const GATEWAY_REST: f64 = 3.50;
const LAMBDA_REQUESTS: f64 = 0.20;
const LAMBDA_ARM_GB_S: f64 = 13.3334;
const WRITE_UNITS: f64 = 0.625;
const READ_UNITS: f64 = 0.125;
const SQS_FIFO_REQUESTS: f64 = 0.50;
/// One byte per delivery is one MB per million.
const LOG_BYTES: f64 = 0.50e-3;
/// An access log line of the gateway in the template's format.
const ACCESS_LINE_BYTES: f64 = 460.0;

/// Dollars per million, for an accepted delivery and its share of the worker's batch of 10.
pub(crate) fn bill(ingress: &Value, worker: &Value) -> Vec<(&'static str, f64)> {
    let of = |kind: &Value, name: &str| kind[name].as_f64().unwrap();
    let record = |name: &str| of(worker, name) / 10.0;
    let gb_s = |ms: f64| ms / 1000.0 * 128.0 / 1024.0 * LAMBDA_ARM_GB_S;
    let event_units = |kind: &Value| {
        let units = kind["units"]["StripeEventsTable"].as_array().unwrap();
        units
            .iter()
            .map(|units| units.as_f64().unwrap())
            .sum::<f64>()
    };
    let cold_ms = of(ingress, "init_ms") + of(ingress, "first_ms");
    let event = event_units(ingress) + event_units(worker) / 10.0;
    let all = of(ingress, "table_units") + of(ingress, "index_units");
    let all = all + record("table_units") + record("index_units");
    let mut bill = vec![
        ("API Gateway, REST", GATEWAY_REST),
        ("Lambda, requests", LAMBDA_REQUESTS * (1.0 + 1.0 / BATCH)),
        (
            "Lambda, ingress's time",
            gb_s(of(ingress, "limited_p50_ms") + COLD_STARTS * cold_ms),
        ),
        ("Lambda, worker's time", gb_s(record("limited_p50_ms"))),
        ("DynamoDB, writes of the event", event * WRITE_UNITS),
        (
            "DynamoDB, reads",
            (of(ingress, "read_units") + record("read_units")) * READ_UNITS,
        ),
        ("SQS, send", SQS_FIFO_REQUESTS),
        ("SQS, receive and delete", SQS_FIFO_REQUESTS * 2.0 / BATCH),
        (
            "logs, functions",
            (of(ingress, "log_bytes") + record("log_bytes")) * LOG_BYTES,
        ),
        ("logs, gateway", ACCESS_LINE_BYTES * LOG_BYTES),
    ];
    bill.push(("to here", bill.iter().map(|(_, dollars)| dollars).sum()));
    bill.push((
        "DynamoDB, writes of order and payment",
        (all - event) * WRITE_UNITS,
    ));
    bill
}
