//! No code names the providers but the list in `ids.rs` and their own modules: what is done for each of them is done
//! over `ProviderId::ALL`, and a `match` on one has an arm for each, so that the compiler or a test asks about a new one.

use billhook_core::ids::ProviderId;
use syn::visit::{self, Visit};

use super::{crate_names, source_files};

/// Lists of providers, and matches that would take a new provider for another one.
#[derive(Default)]
struct HiddenLists(Vec<String>);

fn variant_of_provider(path: &syn::Path) -> Option<String> {
    let parts: Vec<String> = path
        .segments
        .iter()
        .map(|part| part.ident.to_string())
        .collect();
    match parts.as_slice() {
        [.., of, variant] if of == "ProviderId" && variant != "ALL" => Some(variant.clone()),
        _ => None,
    }
}

#[derive(Default)]
struct NamedProviders(Vec<String>);

impl<'ast> Visit<'ast> for NamedProviders {
    fn visit_path(&mut self, path: &'ast syn::Path) {
        self.0.extend(variant_of_provider(path));
        visit::visit_path(self, path);
    }

    /// A name that begins with the provider's: `stripe`, `stripe_worker`, `StripeEventsTable`, `stripe-events`.
    fn visit_lit_str(&mut self, text: &'ast syn::LitStr) {
        let text = text.value();
        let named = ProviderId::ALL.iter().find(|provider| {
            let rest = text.strip_prefix(provider.as_str());
            let rest = rest.or_else(|| text.strip_prefix(provider.title()));
            rest.is_some_and(|rest| !rest.starts_with(char::is_lowercase) && !text.contains(' '))
        });
        self.0
            .extend(named.map(|provider| provider.title().to_owned()));
    }
}

impl NamedProviders {
    fn count(mut self) -> usize {
        self.0.sort();
        self.0.dedup();
        self.0.len()
    }
}

impl<'ast> Visit<'ast> for HiddenLists {
    fn visit_item_mod(&mut self, module: &'ast syn::ItemMod) {
        if !super::is_for_tests(&module.attrs) {
            visit::visit_item_mod(self, module);
        }
    }

    fn visit_expr_array(&mut self, array: &'ast syn::ExprArray) {
        let mut named = NamedProviders::default();
        named.visit_expr_array(array);
        if named.count() > 1 {
            let fault = "a list of providers, or of names of theirs: iterate over ProviderId::ALL";
            self.0.push(fault.to_owned());
        }
        visit::visit_expr_array(self, array);
    }

    /// `vec![…]` and the like: tokens only.
    fn visit_expr_macro(&mut self, called: &'ast syn::ExprMacro) {
        let elements = called.mac.parse_body_with(
            syn::punctuated::Punctuated::<syn::Expr, syn::Token![,]>::parse_terminated,
        );
        let mut named = NamedProviders::default();
        for element in elements.iter().flatten() {
            named.visit_expr(element);
        }
        if named.count() > 1 {
            self.0
                .push("a list of providers in a macro: iterate over ProviderId::ALL".to_owned());
        }
    }

    fn visit_expr_match(&mut self, matched: &'ast syn::ExprMatch) {
        let mut named = NamedProviders::default();
        for arm in &matched.arms {
            named.visit_pat(&arm.pat);
        }
        let is_rest = |arm: &syn::Arm| match &arm.pat {
            syn::Pat::Tuple(parts) => parts.elems.iter().all(is_wildcard),
            other => is_wildcard(other),
        };
        if named.count() > 0 && matched.arms.iter().any(is_rest) {
            let fault =
                "a match on a provider and anything else: a new one would be taken for another";
            self.0.push(fault.to_owned());
        }
        visit::visit_expr_match(self, matched);
    }
}

fn is_wildcard(pattern: &syn::Pat) -> bool {
    matches!(pattern, syn::Pat::Wild(_) | syn::Pat::Ident(_))
}

fn find_hidden_lists(items: &[syn::Item]) -> Vec<String> {
    let mut found = HiddenLists::default();
    for item in items {
        found.visit_item(item);
    }
    found.0
}

#[test]
fn nobody_but_the_list_names_the_providers() {
    let mut faults = Vec::new();
    for name in crate_names() {
        for file in source_files(&name) {
            let module = file.module.join("::");
            let is_own = |provider: &ProviderId| {
                format!("{module}::").starts_with(&format!("core::provider::{provider}::"))
            };
            if ProviderId::ALL.iter().any(is_own) {
                continue;
            }
            let found = find_hidden_lists(&file.items).into_iter();
            faults.extend(found.map(|fault| format!("{module}: {fault}")));
        }
    }
    assert!(faults.is_empty(), "{faults:#?}");
}

#[test]
fn a_hidden_list_is_seen() {
    for (code, faults) in [
        (
            "fn f() { for p in [ProviderId::Stripe, ProviderId::Lob] {} }",
            1,
        ),
        (
            "const A: [(ProviderId, u8); 2] = [(ProviderId::Stripe, 1), (ProviderId::Lob, 2)];",
            1,
        ),
        (r#"const WORDS: [&str; 2] = ["stripe", "lob"];"#, 1),
        (
            r#"const URLS: [&str; 2] = ["StripeEventsQueueUrl", "LobEventsQueueUrl"];"#,
            1,
        ),
        (
            r#"fn f(n: &str) -> u8 { match n { "LobEventsDlq" => 1, _ => 2 } }"#,
            1,
        ),
        (
            r#"const KEYS: [&str; 2] = ["StripeWebhookSecretArn", "AppSecretArn"];"#,
            0,
        ),
        (
            r#"const TEXTS: [&str; 2] = ["stripe is slow", "Lobby"];"#,
            0,
        ),
        (
            "fn f(p: ProviderId) -> u8 { match p { ProviderId::Lob => 1, _ => 2 } }",
            1,
        ),
        (
            "fn f(p: ProviderId) -> u8 { match p { ProviderId::Lob => 1, ProviderId::Stripe => 2 } }",
            0,
        ),
        (
            "fn f() { for p in vec![ProviderId::Stripe, ProviderId::Lob] {} }",
            1,
        ),
        (
            "fn f(p: ProviderId) -> u8 { match (p, 1) { (ProviderId::Lob, _) => 1, (_, _) => 2 } }",
            1,
        ),
        ("fn f() { for p in ProviderId::ALL {} }", 0),
        ("fn f(p: ProviderId) -> bool { p == ProviderId::Stripe }", 0),
    ] {
        let file = syn::parse_file(code).unwrap();
        assert_eq!(find_hidden_lists(&file.items).len(), faults, "{code}");
    }
}

/// A body that nobody verified is proven by TLS alone, so only the client of Stripe's API may say that it read one there.
#[test]
fn only_stripes_client_says_that_it_read_an_event_from_stripe() {
    let mut files = Vec::new();
    let crates = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates");
    super::collect_rust_files(&crates, &mut files);
    let callers = files.iter().filter(|file| {
        let text = std::fs::read_to_string(file).unwrap();
        text.contains("from_stripe_api(")
    });
    let callers: std::collections::BTreeSet<_> = callers
        .map(|file| file.strip_prefix(&crates).unwrap().to_str().unwrap())
        .collect();
    let expected = [
        "adapters/src/stripe.rs",
        "core/src/provider/signature.rs",
        "testkit/src/events.rs",
    ];
    assert_eq!(callers, expected.into());
}
