//! What the documents say of the sources is true: each word of `docs/CONTRIBUTING.md`'s map is found where it says, and
//! each name of `docs/GLOSSARY.md` exists. `events/README.md` lists the samples that are there, and their answers.

use std::collections::BTreeSet;
use std::fs::{read_dir, read_to_string};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::collect_rust_files;

pub(super) fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The cells of every row of a page's tables.
fn table_rows(page: &str) -> Vec<Vec<String>> {
    let text = read_to_string(repository().join(page)).unwrap();
    let rows = text.lines().filter(|line| line.starts_with('|'));
    rows.map(|row| {
        let cells = row.trim_matches('|').split('|');
        cells.map(|cell| cell.trim().to_owned()).collect()
    })
    .collect()
}

fn names_in_backticks(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

/// The `//!` of a file, in one line.
fn module_head(file: &str) -> String {
    let text = read_to_string(repository().join(file));
    let text = text.unwrap_or_else(|error| panic!("{file}: {error}"));
    let head = text.lines().filter_map(|line| line.strip_prefix("//!"));
    head.map(str::trim)
        .collect::<Vec<_>>()
        .join(" ")
        .to_lowercase()
}

#[test]
fn every_question_of_the_map_is_answered_by_searching_its_words() {
    let rows = table_rows("docs/CONTRIBUTING.md");
    let questions = rows
        .iter()
        .filter(|row| row.len() == 3 && row[0].ends_with('?'));
    let mut count = 0;
    for row in questions {
        let (words, file) = (&row[1], row[2].trim_matches('`'));
        assert!(
            module_head(file).contains(words.as_str()),
            "{}: the head of {file} does not say {words:?}",
            row[0]
        );
        count += 1;
    }
    assert_eq!(count, 20);
}

#[test]
fn every_example_of_running_some_tests_selects_some() {
    let text = read_to_string(repository().join("docs/CONTRIBUTING.md")).unwrap();
    let mut files = Vec::new();
    collect_rust_files(&repository().join("crates"), &mut files);
    collect_rust_files(&repository().join("tests/tests"), &mut files);
    let named = |word: &str| {
        let names_module = |file: &PathBuf| {
            file.components().any(|part| {
                part.as_os_str()
                    .to_str()
                    .is_some_and(|part| part.trim_end_matches(".rs") == word)
            })
        };
        let names_test = |file: &PathBuf| {
            let text = read_to_string(file).unwrap();
            let mut functions = text.lines().filter_map(|line| line.split_once("fn "));
            functions.any(|(_, rest)| {
                rest.split('(')
                    .next()
                    .is_some_and(|name| name.contains(word))
            })
        };
        files
            .iter()
            .any(|file| names_module(file) || names_test(file))
    };
    let mut count = 0;
    for line in text.lines().filter(|line| line.starts_with("cargo test ")) {
        let command = line.split('#').next().unwrap_or_default();
        let filter = command.split_whitespace().last().unwrap_or_default();
        assert!(filter.starts_with("billhook-") || named(filter), "{line}");
        count += 1;
    }
    assert!(count > 4, "only {count} examples");
}

#[test]
fn every_name_of_the_glossary_exists() {
    let mut files = Vec::new();
    collect_rust_files(&repository().join("crates"), &mut files);
    let mut sources: String = files
        .iter()
        .map(|file| read_to_string(file).unwrap())
        .collect();
    sources.push_str(&read_to_string(repository().join("template.yaml")).unwrap());
    let mut count = 0;
    for row in table_rows("docs/GLOSSARY.md") {
        let Some(cell) = row.get(2) else { continue };
        for name in names_in_backticks(cell) {
            // Commands, crates and paths are no identifiers.
            if name.contains([' ', '-', '/', '*']) {
                continue;
            }
            let last = name.rsplit("::").next().unwrap_or(name);
            assert!(
                sources.contains(last),
                "{}: nothing is called {name}",
                row[0]
            );
            count += 1;
        }
    }
    assert!(count > 60, "only {count} names");
}

#[test]
fn every_sample_has_an_expected_answer_and_a_row_in_the_readme() {
    let answers = billhook_tests::sam_local::read_answers().unwrap();
    let text = read_to_string(repository().join("events/README.md")).unwrap();
    for (folder, samples) in answers.as_object().unwrap() {
        let expected: BTreeSet<String> = samples.as_object().unwrap().keys().cloned().collect();
        let files = read_dir(repository().join("events").join(folder)).unwrap();
        let files: BTreeSet<String> = files
            .map(|file| file.unwrap().file_name().into_string().unwrap())
            .map(|name| name.trim_end_matches(".json").to_owned())
            .collect();
        assert_eq!(expected, files, "{folder}: answers.json and the files");

        let heading = format!("## `{folder}/`");
        let (_, part) = text.split_once(&heading).unwrap();
        let part = part.split("\n## ").next().unwrap();
        let mut listed = BTreeSet::new();
        for row in part.lines().filter(|line| line.starts_with("| `")) {
            let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
            for file in names_in_backticks(cells[0]) {
                let sample = file.trim_end_matches(".json");
                listed.insert(sample.to_owned());
                if folder == "webhook-ingress" {
                    assert_eq!(cells[2], ingress_answer(&samples[sample]), "{file}");
                }
            }
        }
        assert_eq!(listed, expected, "{folder}: the README and answers.json");
    }
}

/// What the README says of an answer: the one to a current signature, if the sample has a signature.
fn ingress_answer(expected: &Value) -> String {
    let answer = expected.get("signed_now").unwrap_or(&expected["answer"]);
    let status = &answer["statusCode"];
    match answer["body"]["error"].as_str() {
        Some(error) => format!("{status} `{error}`"),
        None => status.to_string(),
    }
}

#[test]
fn documents_and_template_repeat_the_lists_of_the_code() {
    let outdated = billhook_tests::catalogue::find_outdated(&repository()).unwrap();
    let names: Vec<_> = outdated.into_iter().map(|(name, _)| name).collect();
    assert!(names.is_empty(), "{names:?}: run `make catalogue`");
}

#[test]
fn every_threat_names_the_tests_of_its_control() {
    let rows = table_rows("docs/threat-model.md");
    let threats: Vec<_> = rows.iter().skip(2).collect();
    assert!((20..=25).contains(&threats.len()), "{}", threats.len());
    for threat in threats {
        assert_eq!(threat.len(), 5, "{threat:?}");
        let shown_by: Vec<&str> = names_in_backticks(&threat[3]).collect();
        assert!(!shown_by.is_empty(), "{}: shown by nothing", threat[1]);
        for file in shown_by {
            assert!(repository().join(file).is_file(), "{}: {file}", threat[1]);
        }
    }
}
