//! The rules of names in `docs/CONTRIBUTING.md`: a type says what it is without its path.

use std::collections::BTreeMap;

use proc_macro2::{Delimiter, TokenStream, TokenTree};
use syn::visit::{self, Visit};

use super::{crate_names, is_for_tests, source_files};

/// One word may be enough where it is a term of the field.
const TERMS: [(&str, &str); 15] = [
    ("Checkpoint", "where a scheduled task goes on"),
    ("Clock", "the port that tells the time"),
    ("Currency", "ISO 4217"),
    ("Disposition", "what a failure leaves to do"),
    (
        "Entity",
        "domain-driven design: what has an identity and a state",
    ),
    ("Item", "DynamoDB's word for a row's attributes"),
    ("Ledger", "where events and entities are read and committed"),
    ("Merge", "the operation of a join-semilattice"),
    ("Metric", "CloudWatch"),
    ("Money", "an amount and its currency"),
    ("Pause", "the port that waits"),
    ("SecretsManager", "AWS Secrets Manager"),
    ("Timestamp", "a moment"),
    ("Verified", "a body whose provider is proven"),
    ("Worker", "takes messages from a queue"),
];
/// They say nothing: a name that ends with one counts as what stands before it.
const EMPTY_SUFFIXES: [&str; 6] = ["Info", "Data", "Item", "Helper", "Manager", "Util"];
const ONE_WORD_PERCENT_MAX: usize = 20;
#[derive(Default)]
struct TypeNames(Vec<String>);

impl<'ast> Visit<'ast> for TypeNames {
    fn visit_item_mod(&mut self, module: &'ast syn::ItemMod) {
        if !is_for_tests(&module.attrs) {
            visit::visit_item_mod(self, module);
        }
    }
    fn visit_item_struct(&mut self, item: &'ast syn::ItemStruct) {
        self.0.push(item.ident.to_string());
    }
    fn visit_item_enum(&mut self, item: &'ast syn::ItemEnum) {
        self.0.push(item.ident.to_string());
    }
    fn visit_item_trait(&mut self, item: &'ast syn::ItemTrait) {
        self.0.push(item.ident.to_string());
    }
    fn visit_item_type(&mut self, item: &'ast syn::ItemType) {
        self.0.push(item.ident.to_string());
    }
    fn visit_item_macro(&mut self, item: &'ast syn::ItemMacro) {
        if item.ident.is_none() && !item.mac.path.is_ident("merge_fields") {
            self.0.extend(types_of_macro(item.mac.tokens.clone()));
        }
    }
}

/// What our own macros define: `Name = "prefix", …;` or `Name { … }`.
fn types_of_macro(tokens: TokenStream) -> Vec<String> {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let defined = tokens.windows(2).filter_map(|pair| match pair {
        [TokenTree::Ident(name), TokenTree::Punct(equals)] if equals.as_char() == '=' => {
            Some(name.to_string())
        }
        [TokenTree::Ident(name), TokenTree::Group(body)]
            if body.delimiter() == Delimiter::Brace =>
        {
            Some(name.to_string())
        }
        _ => None,
    });
    // A constant is in capitals, a field in small letters.
    let is_type =
        |name: &String| name.starts_with(char::is_uppercase) && name.contains(char::is_lowercase);
    defined.filter(is_type).collect()
}

/// Every type outside tests and the testkit, with its crate.
fn type_names() -> Vec<(String, String)> {
    let mut all = Vec::new();
    for name in crate_names().into_iter().filter(|name| name != "testkit") {
        for file in source_files(&name) {
            let mut names = TypeNames::default();
            for item in &file.items {
                names.visit_item(item);
            }
            all.extend(names.0.into_iter().map(|found| (found, name.clone())));
        }
    }
    all
}

fn is_one_word(name: &str) -> bool {
    let suffix = EMPTY_SUFFIXES
        .iter()
        .find(|suffix| name != **suffix && name.ends_with(**suffix));
    let stem = suffix.map_or(name, |suffix| name.trim_end_matches(suffix));
    stem.chars().filter(|letter| letter.is_uppercase()).count() < 2
}

#[test]
fn words_are_counted_by_their_capitals_and_empty_suffixes_count_as_nothing() {
    for (name, expected) in [
        ("Open", true),
        ("EventData", true),
        ("Item", true),
        ("EventRecord", false),
        ("EventRecordInfo", false),
    ] {
        assert_eq!(is_one_word(name), expected, "{name}");
    }
}

#[test]
fn a_type_says_what_it_is_without_its_path() {
    let names = type_names();
    assert!(names.len() > 300, "only {} types found", names.len());
    let one_word: Vec<_> = names.iter().filter(|(name, _)| is_one_word(name)).collect();
    let unknown: Vec<_> = one_word
        .iter()
        .filter(|(name, _)| TERMS.iter().all(|(term, _)| term != name))
        .collect();
    assert!(
        unknown.is_empty(),
        "these types are one plain word; name them by what they are, or list the term of the field in TERMS: {unknown:?}"
    );
    let percent = one_word.len() * 100 / names.len();
    println!(
        "{} of {} type names are one word",
        one_word.len(),
        names.len()
    );
    assert!(percent <= ONE_WORD_PERCENT_MAX, "{percent} % are one word");
    let unused: Vec<_> = TERMS
        .iter()
        .filter(|(term, _)| names.iter().all(|(name, _)| name != term))
        .collect();
    assert!(unused.is_empty(), "no type is called {unused:?}");
}

#[test]
fn no_name_stands_for_two_types() {
    let mut by_name: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, of) in type_names() {
        by_name.entry(name).or_default().push(of);
    }
    by_name.retain(|_, crates| crates.len() > 1);
    assert!(by_name.is_empty(), "{by_name:?}");
}
