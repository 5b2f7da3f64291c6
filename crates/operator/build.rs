//! Lists the sample payloads of `events/payloads`, so that `billhook send` contains all of them, whoever adds one.

#![allow(
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a build script: a panic is its error message, and Cargo tells it by variables where it writes"
)]

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

fn main() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../events/payloads");
    println!("cargo::rerun-if-changed={}", root.display());
    let mut list = "&[".to_owned();
    for folder in sorted_entries(&root) {
        println!("cargo::rerun-if-changed={}", folder.display());
        for file in sorted_entries(&folder) {
            let (folder, name) = (folder.file_name(), file.file_stem());
            writeln!(
                list,
                "({:?}, {:?}, include_str!({:?})),",
                folder.expect("a name"),
                name.expect("a name"),
                file.canonicalize().expect("a file")
            )
            .expect("a string takes everything");
        }
    }
    list.push(']');
    let target = std::env::var("OUT_DIR").expect("Cargo sets it");
    fs::write(Path::new(&target).join("samples.rs"), list).expect("the folder can be written");
}

fn sorted_entries(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("the folder can be read");
    let mut paths: Vec<_> = entries
        .map(|entry| entry.expect("an entry").path())
        .collect();
    paths.sort();
    paths
}
