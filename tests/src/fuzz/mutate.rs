//! Mutates a fuzz input: the structure if it is JSON, else its bytes.

use billhook_testkit::random::Random;
use serde_json::{Value, json};

/// Texts that byte mutations would hardly ever produce.
const TOKENS: [&str; 28] = [
    "t=",
    "v1=",
    "v0=",
    ",",
    "=",
    "\n",
    "\r\n",
    "0",
    "-1",
    "1781000000",
    "1781000300",
    "9223372036854775807",
    "9223372036854775808",
    "1e309",
    "0.5",
    "null",
    "{}",
    "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[",
    "\"id\":",
    "\"type\":",
    "\"data\":{\"object\":{",
    "\\u0000",
    "\\ud800",
    "\u{feff}",
    "\u{1f4a9}",
    "\u{ffff}",
    "\0",
    "evt_1",
];

/// Applies one to four changes.
pub fn mutate(input: &[u8], others: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut changed = input.to_vec();
    for _ in 0..=random.below(4) {
        changed = match serde_json::from_slice(&changed) {
            Ok(json) if random.per_mille(700) => {
                let other = random
                    .pick(others)
                    .and_then(|other| serde_json::from_slice(other).ok());
                structure(json, &other.unwrap_or_default(), random)
                    .to_string()
                    .into_bytes()
            }
            _ => bytes(changed, random),
        };
    }
    changed
}

fn structure(mut json: Value, other: &Value, random: &mut Random) -> Value {
    let at = random.below(count(&json));
    let from = random.below(count(&json));
    let own = node(&mut json, from).clone();
    let mut other = other.clone();
    let from = random.below(count(&other));
    let foreign = node(&mut other, from).clone();
    let target = node(&mut json, at);
    match random.below(8) {
        0 | 1 => *target = interesting(random),
        2 => *target = own,
        3 => *target = foreign,
        4 => *target = json!([target.take()]),
        5 => *target = json!(target.to_string()),
        _ => match target {
            Value::Object(members) => {
                let keys: Vec<String> = members.keys().cloned().collect();
                let Some(key) = random.pick(&keys) else {
                    return json;
                };
                let value = members.remove(key).unwrap_or_default();
                match random.below(5) {
                    0 => drop(members.insert(key.to_uppercase(), value)),
                    1 => drop(members.insert(format!("{key}\u{0}"), value)),
                    2 => drop(members.insert(key.clone() + &"é".repeat(600), value)),
                    _ => {}
                }
            }
            Value::Array(items) if random.per_mille(500) => {
                items.extend(std::iter::repeat_n(own, random.below(20)));
            }
            Value::Array(items) => drop(items.pop()),
            Value::Number(number) => {
                let near = number.as_i64().unwrap_or_default();
                *target =
                    json!(near.wrapping_add([-1, 1, near.wrapping_neg(), near][random.below(4)]));
            }
            Value::String(text) => text.push_str(random.pick(&TOKENS).copied().unwrap_or_default()),
            Value::Bool(truth) => *truth = !*truth,
            Value::Null => *target = own,
        },
    }
    json
}

fn interesting(random: &mut Random) -> Value {
    match random.below(18) {
        0 => Value::Null,
        1 => json!(true),
        2 => json!(0),
        3 => json!(-1),
        4 => json!(i64::MAX),
        5 => json!(i64::MIN),
        6 => json!(u64::MAX),
        7 => json!(0.5),
        8 => json!(1e300),
        9 => json!(""),
        10 => json!("\u{0}\u{1f}\u{7f}\r\n\"\\"),
        11 => json!("\u{ffff}\u{1f4a9}\u{202e}"),
        12 => json!("x".repeat(300)),
        13 => json!("é".repeat(20_000)),
        14 => json!({}),
        15 => json!([]),
        16 => (0..100).fold(json!(1), |inner, _| json!([inner])),
        _ => json!("REDACTED"),
    }
}

fn count(json: &Value) -> usize {
    1 + match json {
        Value::Array(items) => items.iter().map(count).sum(),
        Value::Object(members) => members.values().map(count).sum(),
        _ => 0,
    }
}

/// The value at this position, counted from the outermost.
fn node(json: &mut Value, mut at: usize) -> &mut Value {
    let inner = |json: &Value, at: &mut usize| -> Option<usize> {
        let sizes: Vec<usize> = match json {
            Value::Array(items) => items.iter().map(count).collect(),
            Value::Object(members) => members.values().map(count).collect(),
            _ => Vec::new(),
        };
        *at = at.checked_sub(1)?;
        for (n, size) in sizes.into_iter().enumerate() {
            if *at < size {
                return Some(n);
            }
            *at -= size;
        }
        None
    };
    let Some(n) = inner(json, &mut at) else {
        return json;
    };
    match json {
        Value::Array(items) => node(&mut items[n], at),
        Value::Object(members) => match members.values_mut().nth(n) {
            Some(value) => node(value, at),
            None => unreachable!("it was counted"),
        },
        _ => unreachable!("it has values"),
    }
}

fn bytes(mut input: Vec<u8>, random: &mut Random) -> Vec<u8> {
    let at = random.below(input.len() + 1);
    let end = (at + random.below(32)).min(input.len());
    match random.below(7) {
        0 if at < input.len() => input[at] ^= 1 << random.below(8),
        1 if at < input.len() => input[at] = random.next_u64().to_le_bytes()[0],
        2 => input.truncate(at),
        3 => drop(input.drain(at..end)),
        4 => {
            let again = input[at..end].to_vec();
            drop(input.splice(at..at, again));
        }
        _ => {
            let token = random.pick(&TOKENS).copied().unwrap_or_default();
            drop(input.splice(at..at, token.bytes()));
        }
    }
    input
}
