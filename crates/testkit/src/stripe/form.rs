//! Parses Stripe's form encoding (`a[b]=c`, `a[]=c`, `a[0][b]=c`) to JSON. Values stay text, as Stripe receives them.

use serde_json::{Map, Value};

/// Deeper nesting is refused; Stripe's own parameters are far less deep.
const DEPTH_MAX: usize = 8;

/// A query or body as an object; `None` if it is not a form that Stripe understands.
pub(super) fn parse(text: &str) -> Option<Map<String, Value>> {
    let mut root = Value::Object(Map::new());
    for (key, value) in form_urlencoded::parse(text.as_bytes()) {
        let path: Vec<&str> = key
            .split('[')
            .map(|part| part.trim_end_matches(']'))
            .collect();
        if path.len() > DEPTH_MAX {
            return None;
        }
        insert(&mut root, &path, Value::String(value.into_owned()))?;
    }
    match root {
        Value::Object(map) => Some(map),
        _ => None,
    }
}

fn insert(into: &mut Value, path: &[&str], value: Value) -> Option<()> {
    let Some((first, rest)) = path.split_first() else {
        *into = value;
        return Some(());
    };
    let is_list = first.is_empty() || first.bytes().all(|b| b.is_ascii_digit());
    if into.is_null() {
        *into = if is_list {
            Value::Array(Vec::new())
        } else {
            Value::Object(Map::new())
        };
    }
    match into {
        Value::Object(map) => insert(
            map.entry((*first).to_owned()).or_insert(Value::Null),
            rest,
            value,
        ),
        Value::Array(list) if is_list => {
            let at = first.parse().unwrap_or(list.len());
            if at > list.len() {
                return None;
            }
            if at == list.len() {
                list.push(Value::Null);
            }
            insert(list.get_mut(at)?, rest, value)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn brackets_become_objects_and_lists() {
        let form = parse("a=1&m[k]=v&l[]=x&l[]=y&i[0][p]=q&created%5Bgte%5D=5").unwrap();
        assert_eq!(
            Value::Object(form),
            json!({"a": "1", "m": {"k": "v"}, "l": ["x", "y"], "i": [{"p": "q"}], "created": {"gte": "5"}})
        );
    }

    #[test]
    fn contradicting_shapes_are_refused() {
        assert!(parse("a=1&a[b]=2").is_none());
        assert!(parse("l[5]=x").is_none());
        assert!(parse(&format!("a{}=1", "[b]".repeat(100))).is_none());
    }
}
