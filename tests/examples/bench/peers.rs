//! Compares ingress with other implementations of its job (`make peers` builds them). The goals are shares of their
//! figures in the same run, because absolute figures depend on the machine.

use serde_json::Value;

use crate::kinds::{Kind, LARGE, SMALL};

/// The quantity, the figure's name, the event's size, and the goals as shares of Node's and of untuned Rust's figures.
type Goal = (&'static str, &'static str, usize, f64, Option<f64>);

const GOALS: [Goal; 10] = [
    (
        "init + first event, Minstr",
        "cold_minstr",
        SMALL,
        0.03,
        None,
    ),
    (
        "init + first event, CPU ms",
        "cold_cpu_ms",
        SMALL,
        0.035,
        Some(0.16),
    ),
    (
        "first event as in Lambda, ms",
        "first_ms",
        SMALL,
        0.02,
        None,
    ),
    ("init as in Lambda, ms", "init_ms", SMALL, 0.10, None),
    ("warm, kinstr", "warm_kinstr", SMALL, 0.20, Some(0.65)),
    ("warm, CPU us p50", "cpu_p50_us", SMALL, 0.18, Some(0.27)),
    ("warm 59 KB, kinstr", "warm_kinstr", LARGE, 0.28, None),
    (
        "warm as in Lambda, ms p50",
        "limited_p50_ms",
        SMALL,
        0.15,
        None,
    ),
    (
        "warm as in Lambda, ms p99",
        "limited_p99_ms",
        SMALL,
        0.10,
        None,
    ),
    ("RSS MB", "peak_mb", SMALL, 0.10, None),
];

/// The lines of a table: our figure, and for each peer its figure, our share and the goal.
pub(crate) fn table(kinds: &[Value]) -> Vec<String> {
    let figure = |kind: Kind, name: &str| {
        let known = kinds.iter().find(|known| known["name"] == kind.name());
        known.and_then(|known| known[name].as_f64())
    };
    let line = |(what, name, bytes, of_node, of_naive): Goal| {
        let ours = figure(Kind::Accepted(bytes), name)?;
        let against = |peer, most: Option<f64>| {
            let Some(theirs) = figure(peer, name) else {
                return format!("{:>10} {:>7} {:>16}", "-", "", "");
            };
            let share = ours / theirs;
            let verdict = most.map_or(String::new(), |most| match share <= most {
                true => format!("<= {most}, met"),
                false => format!("<= {most}, missed"),
            });
            format!("{theirs:>10} {share:>7.3} {verdict:>16}")
        };
        let node = against(Kind::Node(bytes), Some(of_node));
        let naive = against(Kind::Naive(bytes), of_naive);
        Some(format!("{what:32} {ours:>10} | {node} | {naive}"))
    };
    GOALS.into_iter().filter_map(line).collect()
}
