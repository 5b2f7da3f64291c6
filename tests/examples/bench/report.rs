//! Prints the figures as tables, JSON and a plot (SVG).

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use flate2::Compression;
use flate2::write::ZlibEncoder;
use serde_json::{Value, json};

use crate::Figures;
use crate::cost;
use crate::kinds::{Kind, LARGE, SMALL};
use crate::lambda::Counter;
use crate::peers;
use crate::units::Units;

pub(crate) fn write(
    all: &[(Kind, Figures)],
    counter: Counter,
    release: &Path,
    micro: &[(&'static str, usize, f64)],
) {
    let kinds: Vec<Value> = all
        .iter()
        .map(|(kind, figures)| summary(*kind, figures))
        .collect();
    let binaries: Vec<Value> = binaries(all, release);
    let micro: Vec<Value> = micro
        .iter()
        .map(|(step, bytes, ns)| json!({ "step": step, "bytes": bytes, "ns": ns.round() }))
        .collect();
    let result = json!({
        "instructions": match counter {
            Counter::Perf => "user and kernel, by perf",
            Counter::Valgrind => "user, by valgrind, whose CPU has no instructions for SHA",
            Counter::Nothing => "not counted: neither perf with a hardware counter nor valgrind is here",
        },
        "cpu_quota": match all.iter().all(|(_, figures)| figures.limited) {
            true => "memory / 1769 MB of a CPU after init, by cgroup",
            false => "none: the cgroup of the CPU cannot be written here",
        },
        "kinds": kinds, "binaries": binaries, "micro": micro,
    });
    println!("instructions: {}", result["instructions"].as_str().unwrap());
    println!("CPU quota: {}\n", result["cpu_quota"].as_str().unwrap());
    let columns = [
        ("init ms", "init_ms"),
        ("first ms", "first_ms"),
        ("p50 ms", "limited_p50_ms"),
        ("p99 ms", "limited_p99_ms"),
        ("cold CPU ms", "cold_cpu_ms"),
        ("cold Minstr", "cold_minstr"),
        ("first calls", "first_calls"),
        ("RSS MB", "peak_mb"),
    ];
    println!("As in Lambda: TLS, 3 ms added to each call, that quota");
    print!("{}", table(&kinds, &columns));
    let columns = [
        ("kinstr", "warm_kinstr"),
        ("x echo", "kinstr_x_echo"),
        ("CPU us p50", "cpu_p50_us"),
        ("x echo", "cpu_x_echo"),
        ("p99", "cpu_p99_us"),
        ("wall us p50", "wall_p50_us"),
        ("p99", "wall_p99_us"),
        ("threads", "threads"),
    ];
    println!("\nWarm: plain HTTP, no delay, no quota");
    print!("{}", table(&kinds, &columns));
    let columns = [
        ("calls", "calls"),
        ("units: tables", "table_units"),
        ("indexes", "index_units"),
        ("read units", "read_units"),
        ("message bytes", "message_bytes"),
        ("log bytes", "log_bytes"),
        ("lines", "log_lines"),
    ];
    println!("\nOf one event (a worker's is a batch of 10)");
    print!("{}", table(&kinds, &columns));
    if all
        .iter()
        .any(|(kind, _)| matches!(kind, Kind::Naive(_) | Kind::Node(_)))
    {
        println!(
            "\nIngress, accepted 2.6 KB, against the peers: theirs, our share, and the most it is to be"
        );
        println!(
            "{:32} {:>10} | {:>10} {:25} | {:>10}",
            "", "ours", "Node", "", "naive Rust"
        );
        peers::table(&kinds)
            .iter()
            .for_each(|line| println!("{line}"));
    }
    println!("\nWrite units by table: of the rows, and of their indexes");
    for kind in &kinds {
        for (name, units) in kind["units"].as_object().into_iter().flatten() {
            println!(
                "  {:32} {name:20} {} + {}",
                kind["name"].as_str().unwrap(),
                units[0],
                units[1]
            );
        }
    }
    for bytes in [SMALL, LARGE] {
        let find = |kind: Kind| kinds.iter().find(|known| known["name"] == kind.name());
        let worker = find(Kind::StripeBatch(bytes));
        if let (Some(ingress), Some(worker)) = (find(Kind::Accepted(bytes)), worker) {
            println!("\nDollars for a million deliveries of {bytes} bytes");
            for (component, dollars) in cost::bill(ingress, worker) {
                println!("  {component:40} {dollars:6.2}");
            }
        }
    }
    println!("\nBinaries, MB: stripped, deflated");
    for binary in &binaries {
        println!(
            "  {:26} {} {}",
            binary["name"].as_str().unwrap(),
            binary["mb"],
            binary["deflated_mb"]
        );
    }
    println!("\nSteps, ns");
    for step in &micro {
        println!(
            "  {:32} {:>6} bytes {:>8}",
            step["step"].as_str().unwrap(),
            step["bytes"],
            step["ns"]
        );
    }
    let target = release.parent().unwrap();
    let json = serde_json::to_string_pretty(&result).unwrap();
    fs::write(target.join("bench.json"), json + "\n").unwrap();
    fs::write(target.join("bench.svg"), plot(&kinds)).unwrap();
    println!("\nWritten: {0}/bench.json, {0}/bench.svg", target.display());

    fn table(kinds: &[Value], columns: &[(&str, &str)]) -> String {
        let mut text = format!("{:32}", "");
        for (title, _) in columns {
            let _ = write!(text, " {title:>13}");
        }
        for kind in kinds {
            let ratios = ratios(kind, &kinds[0]);
            let _ = write!(text, "\n{:32}", kind["name"].as_str().unwrap());
            for (_, name) in columns {
                let value = kind.get(name).or_else(|| ratios.get(name));
                let _ = write!(
                    text,
                    " {:>13}",
                    value
                        .filter(|v| !v.is_null())
                        .map_or("-".to_owned(), Value::to_string)
                );
            }
        }
        text + "\n"
    }
}

fn ratios(kind: &Value, echo: &Value) -> Value {
    let ratio = |name: &str| Some(rounded(kind[name].as_f64()? / echo[name].as_f64()?));
    json!({ "kinstr_x_echo": ratio("warm_kinstr"), "cpu_x_echo": ratio("cpu_p50_us") })
}

fn summary(kind: Kind, figures: &Figures) -> Value {
    let at = |list: &[f64], percent| rounded(percentile(&mut list.to_vec(), percent));
    let each = |sum: usize| rounded(sum as f64 / figures.warm_events as f64);
    let units: serde_json::Map<String, Value> = figures
        .asked
        .units
        .iter()
        .map(|(name, units)| {
            (
                name.clone(),
                json!([each(units.table), each(units.indexes)]),
            )
        })
        .collect();
    let mut sum = Units::default();
    figures.asked.units.values().for_each(|units| sum += *units);
    let by_operation: serde_json::Map<String, Value> = figures
        .asked
        .calls
        .iter()
        .map(|(operation, calls)| (operation.clone(), json!(each(*calls))))
        .collect();
    json!({
        "name": kind.name(),
        "init_ms": at(&figures.init_ms, 50), "first_ms": at(&figures.first_ms, 50),
        "cold_cpu_ms": at(&figures.cold_cpu_ms, 50), "cold_minstr": figures.cold_minstr.map(rounded),
        "first_calls": figures.first_calls,
        "limited_p50_ms": at(&figures.limited_ms, 50), "limited_p99_ms": at(&figures.limited_ms, 99),
        "peak_mb": rounded(figures.peak_kib as f64 / 1024.0),
        "warm_kinstr": figures.warm_kinstr.map(rounded),
        "cpu_p50_us": at(&figures.cpu_us, 50), "cpu_p99_us": at(&figures.cpu_us, 99),
        "wall_p50_us": at(&figures.wall_us, 50), "wall_p99_us": at(&figures.wall_us, 99),
        "threads": figures.threads,
        "calls": each(figures.asked.calls.values().sum()), "calls_by_operation": by_operation,
        "table_units": each(sum.table), "index_units": each(sum.indexes), "units": units,
        "read_units": rounded(figures.asked.read_halves as f64 / 2.0 / figures.warm_events as f64),
        "message_bytes": each(figures.asked.message_bytes),
        "log_bytes": each(usize::try_from(figures.log_bytes).unwrap()), "log_lines": each(figures.log_lines),
    })
}

fn binaries(all: &[(Kind, Figures)], release: &Path) -> Vec<Value> {
    // Node has no binary.
    let kinds = all.iter().map(|(kind, _)| kind);
    let kinds = kinds.filter(|kind| !matches!(kind, Kind::Node(_)));
    let mut names: Vec<&str> = kinds.map(|kind| kind.binary()).collect();
    names.dedup();
    names
        .into_iter()
        .map(|name| {
            let bytes = fs::read(release.join(name)).unwrap();
            let mut deflated = ZlibEncoder::new(Vec::new(), Compression::best());
            std::io::Write::write_all(&mut deflated, &bytes).unwrap();
            let deflated = deflated.finish().unwrap().len();
            let mb = |bytes: usize| rounded(bytes as f64 / 1e6);
            json!({ "name": name, "mb": mb(bytes.len()), "deflated_mb": mb(deflated) })
        })
        .collect()
}

/// At most three significant digits.
fn rounded(value: f64) -> f64 {
    let places = if value < 10.0 { 100.0 } else { 10.0 };
    match value < 100.0 {
        true => (value * places).round() / places,
        false => value.round(),
    }
}

pub(crate) fn percentile(list: &mut [f64], percent: usize) -> f64 {
    list.sort_by(f64::total_cmp);
    let last = list.len().saturating_sub(1);
    list.get(last * percent / 100).copied().unwrap_or(f64::NAN)
}

/// A bar chart of the first event and the median as in Lambda, without the creation of an endpoint, which waits 15 s on
/// purpose.
fn plot(kinds: &[Value]) -> String {
    let kinds = kinds
        .iter()
        .filter(|kind| kind["name"] != Kind::Create.name());
    let kinds: Vec<&Value> = kinds.collect();
    let ms = |kind: &Value, name: &str| kind[name].as_f64().unwrap();
    let most = kinds
        .iter()
        .map(|kind| ms(kind, "first_ms").max(ms(kind, "limited_p50_ms")));
    let scale = 420.0 / most.fold(1.0, f64::max);
    let mut rows = String::new();
    for (n, kind) in kinds.iter().enumerate() {
        let y = 44 + n * 34;
        let _ = writeln!(
            rows,
            "<text x='210' y='{}' text-anchor='end'>{}</text>",
            y + 16,
            kind["name"].as_str().unwrap()
        );
        for (class, name, y) in [("first", "first_ms", y), ("warm", "limited_p50_ms", y + 12)] {
            let (value, width) = (ms(kind, name), ms(kind, name) * scale);
            let _ = writeln!(
                rows,
                "<rect class='{class}' x='218' y='{y}' width='{width:.1}' height='10'/>"
            );
            let _ = writeln!(
                rows,
                "<text class='value' x='{:.1}' y='{}'>{value}</text>",
                222.0 + width,
                y + 9
            );
        }
    }
    let height = 50 + kinds.len() * 34;
    format!(
        "<svg xmlns='http://www.w3.org/2000/svg' width='700' height='{height}' font-family='sans-serif' font-size='12'>\n\
         <style>.first{{fill:#f0a030}}.warm{{fill:#3070b0}}.value{{font-size:9px}}text{{fill:#444}}\
         svg{{background:#fff}}</style>\n<rect width='700' height='{height}' fill='#fff'/>\n\
         <rect class='first' x='218' y='14' width='10' height='10'/><text x='232' y='23'>first event, ms</text>\n\
         <rect class='warm' x='338' y='14' width='10' height='10'/><text x='352' y='23'>median of warm events, ms</text>\n\
         {rows}</svg>\n"
    )
}
