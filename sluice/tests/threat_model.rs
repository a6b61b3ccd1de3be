//! docs/threat-model.md names the test behind each claim: the tests that it names exist.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// A word with so many underscores is a test's name, unless it is a metric's.
const UNDERSCORES: usize = 4;
/// Claims with a name, at least.
const NAMES: usize = 100;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The tests that a text names in backticks.
fn named(text: &str) -> BTreeSet<&str> {
    let is_name = |word: &&str| {
        word.matches('_').count() >= UNDERSCORES
            && word.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
            && !word.starts_with("sluice_")
    };
    text.split('`').skip(1).step_by(2).filter(is_name).collect()
}

/// The functions in the Rust files below `folder`.
fn functions(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let (path, name) = entry.map(|entry| (entry.path(), entry.file_name())).unwrap();
        if path.is_dir() && name != "target" && name != ".git" {
            functions(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let names = text.split("fn ").skip(1).filter_map(|rest| rest.split(['(', '<']).next());
            found.extend(names.map(str::to_owned));
        }
    }
}

#[test]
fn every_test_that_the_threat_model_names_exists() {
    let text = fs::read_to_string(root().join("docs/threat-model.md")).unwrap();
    assert_eq!(named("(`a_b_c_d_e`) `sluice_a_b_c_d` `A_b_c_d_e` `a_b_c_d`"), BTreeSet::from(["a_b_c_d_e"]));
    let names = named(&text);
    assert!(names.len() >= NAMES, "{} names", names.len());
    let mut found = BTreeSet::new();
    functions(&root(), &mut found);
    let missing: Vec<_> = names.into_iter().filter(|name| !found.contains(*name)).collect();
    assert!(missing.is_empty(), "docs/threat-model.md names tests that do not exist: {missing:?}");
}
