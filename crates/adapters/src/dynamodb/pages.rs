//! The facts of a state in several rows ("pages"), once they are too large for one: a payment with thousands of refunds,
//! an order with thousands of sessions.
//!
//! A write then costs the pages that it changes, and not all facts. Which facts are together does not matter, because
//! the facts are the union of all pages: an entry's page follows from its path's hash, and a page that grows too large
//! becomes two.
//!
//! Pages have no condition of their own. Every write of a page also writes the state's row, on condition of its version.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use aws_sdk_dynamodb::types::AttributeValue;
use billhook_core::entity::schema::STATE_KEY;
use sha2::{Digest as _, Sha256};

use super::attributes::{Item, attribute_size, read_integer, read_text};

/// The facts of one row. With the rest of a state (200 event ids, 16 writes) a row stays below 64 KiB.
const FACTS_BYTES_MAX: usize = 48 * 1024;
/// A larger map is taken apart; its entries then go to different pages.
const ENTRY_BYTES_MAX: usize = 4 * 1024;
/// At most this many halvings; a page that is still too large has a single entry.
const DEPTH_MAX: usize = 32;

/// The facts of each page, by the first bits of the entries' hashes: `0`, `10`, `110` …
pub(super) type FactPages = BTreeMap<String, Item>;

/// The key of a page's row, which is no key of a state.
pub(super) fn page_key(page: &str, state: &str) -> String {
    format!("page#{page}#{state}")
}

/// The pages that a state's row names.
pub(super) fn named_pages(state: &Item) -> &[String] {
    let pages = state.get("pages").and_then(|pages| pages.as_ss().ok());
    pages.map_or(&[], Vec::as_slice)
}

/// Puts the facts of its pages back into a state. `None` if another writer changed the pages since the state was read.
pub(super) fn join_pages(state: &mut Item, rows: &mut HashMap<String, Item>) -> Option<FactPages> {
    let names = named_pages(state).to_vec();
    let key = read_text(state, STATE_KEY)?.to_owned();
    let version = read_integer(state, "version");
    let mut pages = FactPages::new();
    let mut facts = Item::new();
    for page in names {
        let row = rows.remove(&page_key(&page, &key))?;
        if read_integer(&row, "version") > version {
            return None;
        }
        let its = row.get("facts")?.as_m().ok()?.clone();
        join_facts(&mut facts, its.clone());
        pages.insert(page, its);
    }
    state.insert("facts".to_owned(), AttributeValue::M(facts));
    Some(pages)
}

/// Takes the facts out of a state that is about to be written, if they are too large for its row. `known` are the pages
/// that it has.
pub(super) fn split_pages(state: &mut Item, known: &FactPages) -> FactPages {
    let is_large = |facts: &AttributeValue| attribute_size("", facts) > FACTS_BYTES_MAX;
    let Some(AttributeValue::M(facts)) = state.get("facts").filter(|facts| is_large(facts)) else {
        state.remove("pages");
        return FactPages::new();
    };
    let mut entries = Vec::new();
    collect_entries(facts, &mut Vec::new(), &mut entries);
    let mut pages = FactPages::new();
    let known: BTreeSet<&str> = known.keys().map(String::as_str).collect();
    for page in ["0", "1"] {
        let its = entries.iter().filter(|entry| entry.bits.starts_with(page));
        split_page(page.to_owned(), its.collect(), &known, &mut pages);
    }
    let names = AttributeValue::Ss(pages.keys().cloned().collect());
    state.insert("pages".to_owned(), names);
    state.insert("facts".to_owned(), AttributeValue::M(Item::new()));
    pages
}

/// A member of the facts that is never taken apart.
struct PageEntry<'a> {
    path: Vec<&'a str>,
    value: &'a AttributeValue,
    bytes: usize,
    /// Of the path's hash.
    bits: String,
}

fn collect_entries<'a>(facts: &'a Item, path: &mut Vec<&'a str>, entries: &mut Vec<PageEntry<'a>>) {
    for (name, value) in facts {
        path.push(name);
        let bytes = attribute_size(name, value);
        match value {
            AttributeValue::M(members) if bytes > ENTRY_BYTES_MAX => {
                collect_entries(members, path, entries);
            }
            _ => {
                let digest = Sha256::digest(path.join("\n"));
                let bits = digest.iter().take(DEPTH_MAX / 8);
                entries.push(PageEntry {
                    path: path.clone(),
                    value,
                    bytes: bytes + path.iter().map(|name| name.len()).sum::<usize>(),
                    bits: bits.map(|byte| format!("{byte:08b}")).collect(),
                });
            }
        }
        path.pop();
    }
}

/// A page that was halved once stays halved: put together again it would soon be too large.
fn split_page(
    page: String,
    entries: Vec<&PageEntry<'_>>,
    known: &BTreeSet<&str>,
    pages: &mut FactPages,
) {
    let bytes: usize = entries.iter().map(|entry| entry.bytes).sum();
    let was_halved = known
        .iter()
        .any(|known| known.len() > page.len() && known.starts_with(&page));
    let is_divisible = entries.len() > 1 && page.len() < DEPTH_MAX;
    if is_divisible && (bytes > FACTS_BYTES_MAX || was_halved) {
        for bit in ["0", "1"] {
            let half = format!("{page}{bit}");
            let its = entries.iter().filter(|entry| entry.bits.starts_with(&half));
            split_page(half.clone(), its.copied().collect(), known, pages);
        }
    } else if !entries.is_empty() {
        let mut facts = Item::new();
        for entry in entries {
            insert_entry(&mut facts, &entry.path, entry.value.clone());
        }
        pages.insert(page, facts);
    }
}

fn insert_entry(facts: &mut Item, path: &[&str], value: AttributeValue) {
    match path {
        [] => {}
        [name] => drop(facts.insert((*name).to_owned(), value)),
        [name, rest @ ..] => {
            let members = facts.entry((*name).to_owned());
            let members = members.or_insert_with(|| AttributeValue::M(Item::new()));
            if let AttributeValue::M(members) = members {
                insert_entry(members, rest, value);
            }
        }
    }
}

fn join_facts(facts: &mut Item, other: Item) {
    for (name, value) in other {
        match (facts.get_mut(&name), value) {
            (Some(AttributeValue::M(known)), AttributeValue::M(more)) => join_facts(known, more),
            (_, value) => drop(facts.insert(name, value)),
        }
    }
}

#[cfg(test)]
mod tests {
    use billhook_core::entity::key::StateKey;
    use proptest::prelude::*;

    use super::super::attributes::{item_size, number_value, string_value};
    use super::*;

    fn state(refunds: usize) -> Item {
        let refund = |n: usize| {
            let value = AttributeValue::S(format!("{n:0200}"));
            (
                format!("re_{n}"),
                AttributeValue::M(Item::from([("of".to_owned(), value)])),
            )
        };
        let facts = Item::from([
            ("reference".to_owned(), string_value("user_1")),
            ("charges".to_owned(), AttributeValue::M(Item::new())),
            (
                "refunds".to_owned(),
                AttributeValue::M((0..refunds).map(refund).collect()),
            ),
        ]);
        Item::from([
            (STATE_KEY.to_owned(), string_value("payment#platform#pi_1")),
            ("version".to_owned(), number_value(7)),
            ("facts".to_owned(), AttributeValue::M(facts)),
        ])
    }

    fn rows(state: &Item, pages: &FactPages) -> HashMap<String, Item> {
        let key = read_text(state, STATE_KEY).unwrap();
        let pages = pages.iter().map(|(page, facts)| {
            let row = Item::from([
                ("facts".to_owned(), AttributeValue::M(facts.clone())),
                ("version".to_owned(), state["version"].clone()),
            ]);
            (page_key(page, key), row)
        });
        pages.collect()
    }

    #[test]
    fn what_was_split_is_joined_again_and_no_row_is_too_large() {
        let mut known = FactPages::new();
        for refunds in [1, 100, 300, 1000, 5000] {
            let whole = state(refunds);
            let mut row = whole.clone();
            let pages = split_pages(&mut row, &known);
            assert_eq!(pages.is_empty(), refunds < 300, "{refunds}");
            for (page, facts) in &pages {
                let bytes = item_size(facts);
                assert!(bytes < 64 * 1024, "{refunds} {page}: {bytes}");
            }
            if !pages.is_empty() {
                let mut rows = rows(&row, &pages);
                let joined = join_pages(&mut row, &mut rows);
                assert_eq!(joined.as_ref(), Some(&pages));
                row.remove("pages");
            }
            assert_eq!(row, whole);
            known = pages;
        }
    }

    /// Facts of any depth, with members of any size, empty maps included.
    fn any_facts() -> impl Strategy<Value = Item> {
        let text = (0_usize..9_000).prop_map(|bytes| string_value("x".repeat(bytes)));
        let names = || "[a-c]{1,3}";
        let value = text.prop_recursive(4, 300, 12, move |inner| {
            let members = prop::collection::hash_map(names(), inner, 0..12);
            members.prop_map(AttributeValue::M)
        });
        prop::collection::hash_map(names(), value, 0..20)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]

        /// So no law of the facts can depend on whether they are in pages.
        #[test]
        fn pages_are_another_form_of_the_same_facts(history in prop::collection::vec(any_facts(), 1..4)) {
            let mut known = FactPages::new();
            for facts in history {
                let mut whole = state(0);
                whole.insert("facts".to_owned(), AttributeValue::M(facts));
                let mut row = whole.clone();
                let pages = split_pages(&mut row, &known);
                prop_assert!(item_size(&row) < 64 * 1024);
                for facts in pages.values() {
                    prop_assert!(item_size(facts) < 64 * 1024);
                }
                if !pages.is_empty() {
                    let mut rows = rows(&row, &pages);
                    let joined = join_pages(&mut row, &mut rows);
                    prop_assert_eq!(joined.as_ref(), Some(&pages));
                    prop_assert!(rows.is_empty());
                    row.remove("pages");
                }
                prop_assert_eq!(row, whole);
                known = pages;
            }
        }
    }

    #[test]
    fn one_more_refund_changes_one_page() {
        let known = split_pages(&mut state(5000), &FactPages::new());
        let next = split_pages(&mut state(5001), &known);
        let changed = next
            .iter()
            .filter(|(page, facts)| known.get(*page) != Some(facts));
        assert!((1..=3).contains(&changed.count()));
    }

    #[test]
    fn pages_of_another_time_are_not_read() {
        let mut row = state(5000);
        let pages = split_pages(&mut row, &FactPages::new());
        let mut newer = rows(&row, &pages);
        for page in newer.values_mut() {
            page.insert("version".to_owned(), number_value(8));
        }
        assert_eq!(join_pages(&mut row.clone(), &mut newer), None);
        let mut gone = rows(&row, &pages);
        let first = gone.keys().next().unwrap().clone();
        gone.remove(&first);
        assert_eq!(join_pages(&mut row, &mut gone), None);
    }

    #[test]
    fn a_pages_key_is_no_states_key() {
        for state in ["order#ord_1", "payment#platform#pi_1", "page#1#x"] {
            assert_eq!(StateKey::parse(&page_key("010", state)), None);
        }
    }
}
