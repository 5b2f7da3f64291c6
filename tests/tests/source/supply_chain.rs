//! Supply chain: what is built and installed is what the lock files name, and each function's bill of materials (SBOM) has
//! what is in its binary.

use std::collections::BTreeSet;
use std::fs::{read_dir, read_to_string};
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

use super::documents::repository;

/// The builds of Stripe's CLI for other machines than those of CI: the registry from which the lock file was made lacks them,
/// so there `npm ci` takes what the registry gives. They only judge in tests.
const WITHOUT_HASH: [&str; 4] = [
    "node_modules/@stripe/cli-darwin-arm64",
    "node_modules/@stripe/cli-darwin-x64",
    "node_modules/@stripe/cli-linux-arm64",
    "node_modules/@stripe/cli-win32-x64",
];

/// The one build that cannot be locked: it adds libFuzzer to a copy of the lock file.
const UNLOCKED: &str = "cd tests/fuzz && ";

#[test]
fn cargo_takes_what_its_lock_file_names() {
    let files = ["Makefile", ".ci/run", "README.md", "events/README.md"].map(PathBuf::from);
    let mut files: Vec<PathBuf> = files.map(|file| repository().join(file)).into();
    for folder in ["docs", "docs/runbook", ".github"] {
        let entries = read_dir(repository().join(folder)).unwrap();
        files.extend(entries.map(|entry| entry.unwrap().path()));
    }
    let resolving = ["build", "clippy", "doc", "install", "run", "test"];
    let mut calls = 0;
    for file in files.iter().filter(|file| file.is_file()) {
        let Ok(text) = read_to_string(file) else {
            continue; // an image
        };
        let lines = text.lines().filter(|line| !line.contains(UNLOCKED));
        for line in lines.filter(|line| !line.starts_with("# ")) {
            for call in line.split("cargo ").skip(1) {
                let mut words = call.split_whitespace();
                if words.next().is_some_and(|word| resolving.contains(&word)) {
                    let is_locked = words.next() == Some("--locked") || call.contains("--locked ");
                    // In prose a command may be named alone.
                    let is_named = call
                        .split('`')
                        .next()
                        .is_some_and(|rest| !rest.contains(' '));
                    assert!(is_locked || is_named, "{}: {line}", file.display());
                    calls += 1;
                }
            }
        }
    }
    assert!(calls > 30, "{calls}");
}

#[test]
fn pip_installs_nothing_without_its_hash() {
    let mut packages = 0;
    for entry in read_dir(repository().join("tests/tools")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if !name.starts_with("requirements") {
            continue;
        }
        let text = read_to_string(&path).unwrap();
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let one_each = lines.collect::<Vec<_>>().join("\n").replace("\\\n", " ");
        for line in one_each.lines() {
            let (package, hashes) = line.split_once(' ').unwrap_or((line, ""));
            assert!(package.contains("=="), "{name}: {package} is not pinned");
            let mut hashes = hashes.split_whitespace().filter(|word| *word != ";");
            let is_hash = |word: &str| word.starts_with("--hash=sha256:") && word.len() == 78;
            assert!(hashes.next().is_some_and(is_hash), "{name}: {package}");
            assert!(hashes.all(is_hash), "{name}: {line}");
            packages += 1;
        }
    }
    assert!(packages > 150, "{packages}");
    let makefile = read_to_string(repository().join("Makefile")).unwrap();
    for line in makefile.lines().filter(|line| line.contains("pip install")) {
        assert!(line.contains("$(PINNED)"), "{line}");
    }
    assert!(
        makefile
            .contains("PINNED := --quiet --disable-pip-version-check --no-deps --require-hashes")
    );
}

#[test]
fn npm_installs_nothing_without_its_hash() {
    for file in [
        "tests/tools/package-lock.json",
        "tests/peers/node/package-lock.json",
    ] {
        let lock = read_to_string(repository().join(file)).unwrap();
        let lock: Value = serde_json::from_str(&lock).unwrap();
        let packages = lock["packages"].as_object().unwrap();
        for (name, package) in packages.iter().filter(|(name, _)| !name.is_empty()) {
            let hash = package["integrity"].as_str().unwrap_or_default();
            let is_hashed = hash.starts_with("sha512-");
            let is_known = WITHOUT_HASH.contains(&name.as_str());
            assert_ne!(is_hashed, is_known, "{file}: {name}");
        }
        assert!(packages.len() > 1, "{file}");
    }
}

#[test]
fn the_compiler_is_the_one_that_the_workspace_asks_for() {
    let channel = read_to_string(repository().join("rust-toolchain.toml")).unwrap();
    let workspace = read_to_string(repository().join("Cargo.toml")).unwrap();
    let value = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap();
        line.split('"').nth(1).unwrap().to_owned()
    };
    let (channel, minimum) = (
        value(&channel, "channel"),
        value(&workspace, "rust-version"),
    );
    assert_eq!(channel, format!("{minimum}.0"));
}

#[test]
fn each_bill_of_materials_has_what_cargo_builds_into_the_binary() {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("sbom");
    for (architecture, target) in [
        ("arm64", "aarch64-unknown-linux-gnu"),
        ("x86_64", "x86_64-unknown-linux-gnu"),
    ] {
        let written = Command::new(repository().join(".venv/bin/python"))
            .arg(repository().join("tests/tools/sbom.py"))
            .arg(&folder)
            .arg(format!("Architecture={architecture}"))
            .status();
        assert!(written.unwrap().success());
        let mut binaries = BTreeSet::new();
        for entry in read_dir(&folder).unwrap() {
            let binary = entry.unwrap().file_name().into_string().unwrap();
            let bill = folder.join(&binary).join("bootstrap.cdx.json");
            let bill: Value = serde_json::from_str(&read_to_string(bill).unwrap()).unwrap();
            check_bill(&bill, &binary, target);
            binaries.insert(binary);
        }
        let functions = [
            "cleanup-failed-payments",
            "lob-worker",
            "stripe-worker",
            "webhook-ingress",
            "webhook-secret",
        ];
        assert_eq!(binaries, functions.map(str::to_owned).into());
    }
}

#[track_caller]
fn check_bill(bill: &Value, binary: &str, target: &str) {
    let package = match binary {
        "stripe-worker" | "lob-worker" => "event-worker",
        other => other,
    };
    let tree = Command::new(env!("CARGO"))
        .args(["tree", "--locked", "-e", "normal", "-p", package])
        .args(["--target", target, "--prefix", "none", "--no-dedupe"])
        .current_dir(repository())
        .output()
        .unwrap();
    let tree = String::from_utf8(tree.stdout).unwrap();
    let built: BTreeSet<String> = tree
        .lines()
        .map(|line| {
            let mut words = line.split_whitespace();
            let (name, version) = (words.next().unwrap(), words.next().unwrap());
            format!("{name}@{}", version.trim_start_matches('v'))
        })
        .collect();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let main = &bill["metadata"]["component"];
    assert_eq!(main["name"], binary);
    let components = bill["components"].as_array().unwrap();
    let mut listed: BTreeSet<String> = components.iter().map(|it| text(&it["bom-ref"])).collect();
    assert_eq!(listed.len(), components.len(), "{binary}");
    listed.insert(text(&main["bom-ref"]));
    assert_eq!(listed, built, "{binary} for {target}");
    assert!(listed.iter().any(|it| it.starts_with("ring@")), "{binary}");
    let lock = read_to_string(repository().join("Cargo.lock")).unwrap();
    for component in components {
        assert!(
            component["licenses"][0]["expression"].is_string(),
            "{component}"
        );
        // Those of the workspace come from no registry.
        let own = text(&component["name"]).starts_with("billhook-");
        match component["hashes"][0]["content"].as_str() {
            Some(hash) => assert!(!own && lock.contains(hash), "{component}"),
            None => assert!(own, "{component}"),
        }
    }
    let dependencies = bill["dependencies"].as_array().unwrap();
    let of: BTreeSet<String> = dependencies.iter().map(|it| text(&it["ref"])).collect();
    assert_eq!(of, built, "{binary}: each has its own dependencies");
}
