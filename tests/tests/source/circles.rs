//! Files import each other in one direction: whoever reads a file can stop at what it imports.

use std::collections::{BTreeMap, BTreeSet};

use proc_macro2::{TokenStream, TokenTree};
use syn::visit::{self, Visit};

use super::{SourceFile, crate_names, is_for_tests, source_files};

type ImportGraph = BTreeMap<String, BTreeSet<String>>;

/// Every path of a file that may lead into its own crate.
struct OwnPaths<'m> {
    module: &'m [String],
    found: Vec<Vec<String>>,
}

impl OwnPaths<'_> {
    fn add(&mut self, path: &[String]) {
        let supers = path.iter().take_while(|part| *part == "super").count();
        let (parent, rest) = match path.first().map(String::as_str) {
            Some("crate") => (&self.module[..1], &path[1..]),
            Some("self") => (self.module, &path[1..]),
            Some("super") => (&self.module[..self.module.len() - supers], &path[supers..]),
            // `worker::batch::Worker` in the file that says `mod worker;`.
            Some(_) if path.len() > 1 => (self.module, path),
            _ => return,
        };
        self.found.push([parent, rest].concat());
    }

    fn add_use(&mut self, tree: &syn::UseTree, mut path: Vec<String>) {
        match tree {
            syn::UseTree::Path(next) => {
                path.push(next.ident.to_string());
                self.add_use(&next.tree, path);
            }
            syn::UseTree::Group(group) => {
                for tree in &group.items {
                    self.add_use(tree, path.clone());
                }
            }
            syn::UseTree::Name(name) => {
                path.push(name.ident.to_string());
                self.add(&path);
            }
            syn::UseTree::Rename(name) => {
                path.push(name.ident.to_string());
                self.add(&path);
            }
            syn::UseTree::Glob(_) => self.add(&path),
        }
    }

    /// Paths within a macro's arguments, which are tokens only.
    fn add_tokens(&mut self, tokens: TokenStream) {
        let mut path: Vec<String> = Vec::new();
        for token in tokens {
            match token {
                TokenTree::Ident(name) => path.push(name.to_string()),
                TokenTree::Punct(punct) if punct.as_char() == ':' => {}
                // `pub(super)` imports nothing.
                TokenTree::Group(_) if path == ["pub"] => path.clear(),
                TokenTree::Group(group) => {
                    self.add(&std::mem::take(&mut path));
                    self.add_tokens(group.stream());
                }
                TokenTree::Punct(_) | TokenTree::Literal(_) => self.add(&std::mem::take(&mut path)),
            }
        }
        self.add(&path);
    }
}

impl<'ast> Visit<'ast> for OwnPaths<'_> {
    fn visit_item_mod(&mut self, module: &'ast syn::ItemMod) {
        if !is_for_tests(&module.attrs) {
            visit::visit_item_mod(self, module);
        }
    }
    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.add_use(&item.tree, Vec::new());
    }
    fn visit_path(&mut self, path: &'ast syn::Path) {
        let parts: Vec<String> = path
            .segments
            .iter()
            .map(|part| part.ident.to_string())
            .collect();
        self.add(&parts);
        visit::visit_path(self, path);
    }
    /// `pub(super)` imports nothing.
    fn visit_visibility(&mut self, _: &'ast syn::Visibility) {}
    fn visit_macro(&mut self, called: &'ast syn::Macro) {
        self.add_tokens(called.tokens.clone());
    }
}

fn import_graph(files: &[SourceFile]) -> ImportGraph {
    let name = |module: &[String]| module.join("::");
    let modules: BTreeSet<String> = files.iter().map(|file| name(&file.module)).collect();
    let mut graph = ImportGraph::new();
    for file in files {
        let mut paths = OwnPaths {
            module: &file.module,
            found: Vec::new(),
        };
        for item in &file.items {
            paths.visit_item(item);
        }
        let own = name(&file.module);
        let imports = paths.found.iter().filter_map(|path| {
            let mut prefixes = (1..=path.len()).rev().map(|length| name(&path[..length]));
            prefixes.find(|prefix| modules.contains(prefix))
        });
        let imports: BTreeSet<String> = imports.filter(|module| *module != own).collect();
        // `lib.rs` and `main.rs` are one module.
        graph.entry(own).or_default().extend(imports);
    }
    graph
}

/// The files that can be reached from a file, itself only by a circle.
fn reachable<'g>(graph: &'g ImportGraph, from: &str) -> BTreeSet<&'g str> {
    let mut found: BTreeSet<&str> = BTreeSet::new();
    let mut open: Vec<&str> = vec![from];
    while let Some(file) = open.pop() {
        for next in graph.get(file).into_iter().flatten() {
            if found.insert(next) {
                open.push(next);
            }
        }
    }
    found
}

fn files_in_circles(graph: &ImportGraph) -> Vec<&String> {
    let is_in_circle = |file: &&String| reachable(graph, file).contains(file.as_str());
    graph.keys().filter(is_in_circle).collect()
}

#[test]
fn a_circle_is_found_however_long_it_is() {
    let graph = |arrows: &[(&str, &str)]| {
        let mut graph = ImportGraph::new();
        for (from, to) in arrows {
            graph
                .entry((*from).to_owned())
                .or_default()
                .insert((*to).to_owned());
        }
        graph
    };
    let straight = graph(&[("a", "b"), ("b", "c"), ("a", "c")]);
    assert_eq!(files_in_circles(&straight), Vec::<&String>::new());
    let circle = graph(&[("a", "b"), ("b", "c"), ("c", "b"), ("d", "a")]);
    assert_eq!(files_in_circles(&circle), ["b", "c"]);
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    let (mut files, mut imports) = (0, 0);
    for name in crate_names().into_iter().filter(|name| name != "testkit") {
        let graph = import_graph(&source_files(&name));
        files += graph.len();
        imports += graph.values().map(BTreeSet::len).sum::<usize>();
        let circle = files_in_circles(&graph);
        assert!(
            circle.is_empty(),
            "these files of {name} import each other: {circle:?}"
        );
    }
    assert!(imports > files, "only {imports} imports in {files} files");
}

/// What two of them share is a module beside them: else whoever changes one command changes another one.
#[test]
fn no_command_of_the_operator_imports_another_one() {
    let command_of = |file: &str| {
        let rest = file.strip_prefix("operator::commands::")?;
        rest.split("::").next().map(str::to_owned)
    };
    let graph = import_graph(&source_files("operator"));
    let commands: BTreeSet<_> = graph.keys().filter_map(|file| command_of(file)).collect();
    assert!(commands.len() > 10, "{commands:?}");
    for (file, imports) in &graph {
        for import in imports {
            if let (Some(from), Some(to)) = (command_of(file), command_of(import)) {
                assert_eq!(from, to, "{file} imports {import}");
            }
        }
    }
}
