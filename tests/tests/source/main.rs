//! What the sources themselves promise: names that say what they stand for, and files that do not import each other in
//! circles. What is built and installed is locked.

#![cfg(test)]

mod circles;
mod documents;
mod names;
mod providers;
mod supply_chain;

use std::path::{Path, PathBuf};

/// A file of a crate: its module path, crate first, and its items without those of tests.
struct SourceFile {
    module: Vec<String>,
    items: Vec<syn::Item>,
}

/// Every folder in `crates`, so that a new crate is under the same rules.
fn crate_names() -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates");
    let folders = std::fs::read_dir(root).unwrap();
    let mut names: Vec<String> = folders
        .map(|folder| folder.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// The files of `crates/<name>/src`.
fn source_files(name: &str) -> Vec<SourceFile> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates");
    let root = root.join(name).join("src");
    let mut files = Vec::new();
    collect_rust_files(&root, &mut files);
    assert!(!files.is_empty(), "no sources in {}", root.display());
    let parse = |path: &PathBuf| {
        let text = std::fs::read_to_string(path).unwrap();
        let parsed = syn::parse_file(&text);
        let parsed = parsed.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let mut module = vec![name.to_owned()];
        let below = path.strip_prefix(&root).unwrap().with_extension("");
        module.extend(below.iter().map(|part| part.to_str().unwrap().to_owned()));
        // `a/mod.rs` is `a`; `main.rs` and `lib.rs` are the crate.
        if let Some("mod" | "main" | "lib") = module.last().map(String::as_str) {
            module.pop();
        }
        SourceFile {
            module,
            items: parsed.items,
        }
    };
    files.iter().map(parse).collect()
}

fn collect_rust_files(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if path.is_dir() {
            collect_rust_files(&path, files);
        } else if name.ends_with(".rs") && name != "tests.rs" {
            files.push(path);
        }
    }
    files.sort();
}

/// Whether it is compiled for tests alone.
fn is_for_tests(attributes: &[syn::Attribute]) -> bool {
    let is_test = |attribute: &syn::Attribute| {
        attribute.path().is_ident("cfg")
            && matches!(&attribute.meta, syn::Meta::List(list) if list.tokens.to_string() == "test")
    };
    attributes.iter().any(is_test)
}
