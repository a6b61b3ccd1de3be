//! Whatever a file holds, reading it ends in a configuration or in mistakes that carry their line.

use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use proptest::prelude::*;
use proptest::sample::Index;

/// The example files and the wrong ones: what to start a mutation from.
static CORPUS: LazyLock<Vec<String>> = LazyLock::new(|| {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files: Vec<_> = ["examples", "tests/bad"]
        .iter()
        .flat_map(|dir| fs::read_dir(here.join(dir)).unwrap())
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    files.iter().map(|path| fs::read_to_string(path).unwrap()).collect()
});

/// A mistake as people and machines make them.
#[derive(Clone, Debug)]
enum Mutation {
    Delete(Index, usize),
    Insert(Index, String),
    Replace(Index, char),
    DropLine(Index),
    RepeatLine(Index),
    SwapLines(Index, Index),
    /// Puts another value after a line's `=`.
    Value(Index, String),
    Cut(Index),
}

fn value() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("\"\"".to_owned()),
        Just("[]".to_owned()),
        Just("{}".to_owned()),
        Just("[[], [1]]".to_owned()),
        Just("{ name = 1 }".to_owned()),
        Just("-1".to_owned()),
        Just("0x7fffffffffffffff".to_owned()),
        Just("99999999999999999999999999999999999999999999".to_owned()),
        Just("nan".to_owned()),
        Just("1e400".to_owned()),
        Just("1979-05-27T07:32:00Z".to_owned()),
        Just("true".to_owned()),
        Just("\"\\u0000\\u001b[31m\"".to_owned()),
        "\"[0-9a-f:./]{0,24}\"",
        "\"[0-9]{0,24} ?[a-zA-Z]{0,3}\"",
        "\\[(\"[0-9a-f:./]{0,24}\", ?){0,3}\\]",
        "\"[@!a-z0-9/, -]{0,24}\"",
        "\"[0-9]{0,12}(B|KiB|GiB)?/(s|min|h)?( burst [0-9]{0,12}(B|KiB|GiB)?)?\"",
        "\"[0-9]{0,5}-[0-9]{0,20}\"",
        "\\[?\\{ (offset = [0-9]{1,5}, )?hex = \"[0-9a-f ]{0,9}\"(, mask = \"[0-9a-f ]{0,9}\")? \\}\\]?",
        any::<i64>().prop_map(|n| n.to_string()),
    ]
}

fn mutation() -> impl Strategy<Value = Mutation> {
    prop_oneof![
        (any::<Index>(), 1..40_usize).prop_map(|(at, n)| Mutation::Delete(at, n)),
        (any::<Index>(), "[\\[\\]\"'=#.,{}\\\\\n\r\t a-z0-9é\u{0}\u{feff}]{1,6}")
            .prop_map(|(at, s)| Mutation::Insert(at, s)),
        (any::<Index>(), any::<char>()).prop_map(|(at, c)| Mutation::Replace(at, c)),
        any::<Index>().prop_map(Mutation::DropLine),
        any::<Index>().prop_map(Mutation::RepeatLine),
        (any::<Index>(), any::<Index>()).prop_map(|(a, b)| Mutation::SwapLines(a, b)),
        (any::<Index>(), value()).prop_map(|(line, v)| Mutation::Value(line, v)),
        any::<Index>().prop_map(Mutation::Cut),
    ]
}

fn apply(text: &str, mutation: &Mutation) -> String {
    let mut chars: Vec<char> = text.chars().collect();
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    if chars.is_empty() || lines.is_empty() {
        return text.to_owned();
    }
    let by_chars = match mutation {
        Mutation::Delete(at, n) => {
            let at = at.index(chars.len());
            chars.drain(at..(at + n).min(chars.len()));
            true
        }
        Mutation::Insert(at, s) => {
            let at = at.index(chars.len());
            chars.splice(at..at, s.chars());
            true
        }
        Mutation::Replace(at, c) => {
            let at = at.index(chars.len());
            chars[at] = *c;
            true
        }
        Mutation::Cut(at) => {
            chars.truncate(at.index(chars.len()));
            true
        }
        Mutation::DropLine(at) => {
            lines.remove(at.index(lines.len()));
            false
        }
        Mutation::RepeatLine(at) => {
            let at = at.index(lines.len());
            lines.insert(at, lines[at].clone());
            false
        }
        Mutation::SwapLines(a, b) => {
            let (a, b) = (a.index(lines.len()), b.index(lines.len()));
            lines.swap(a, b);
            false
        }
        Mutation::Value(at, value) => {
            let at = at.index(lines.len());
            if let Some((key, _)) = lines[at].split_once('=') {
                lines[at] = format!("{key}= {value}");
            }
            false
        }
    };
    if by_chars { chars.into_iter().collect() } else { lines.join("\n") + "\n" }
}

/// Reads `text` and checks what is promised of the outcome.
fn outcome_is_sound(text: &str) {
    match sluice_config::parse("sluice.toml", text) {
        Ok(config) => {
            let summary = config.summary();
            assert!(summary.chars().all(|c| c == '\n' || !c.is_control()), "{summary:?}");
        }
        Err(errors) => {
            assert!(!errors.mistakes().is_empty());
            let lines = text.split('\n').count();
            for mistake in errors.mistakes() {
                let place = mistake.place.expect("a mistake in a text has a place");
                assert!((1..=lines).contains(&place.line) && place.column >= 1, "{mistake:?}");
                assert!(
                    !mistake.key.is_empty() && !mistake.found.is_empty() && !mistake.remedy.is_empty(),
                    "{mistake:?}"
                );
            }
            let shown = errors.to_string();
            assert!(shown.chars().all(|c| c == '\n' || !c.is_control()), "{shown:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn mutated_files_give_a_configuration_or_mistakes_with_lines(
        base in any::<Index>(),
        mutations in prop::collection::vec(mutation(), 1..6),
    ) {
        let text = mutations.iter().fold(CORPUS[base.index(CORPUS.len())].clone(), |text, m| apply(&text, m));
        outcome_is_sound(&text);
    }

    #[test]
    fn random_text_gives_a_configuration_or_mistakes_with_lines(text in "\\PC{0,200}") {
        outcome_is_sound(&text);
    }

    #[test]
    fn text_rich_in_tomls_own_signs_gives_a_configuration_or_mistakes_with_lines(
        text in "[\\[\\]\"'=#.,{}\\\\_+:TZ eéx0-9\n-]{1,12}\\PC{0,60}[\\[\\]\"'=#.,{}\\\\_+:TZ eéx0-9\n-]{0,12}\\PC{0,30}",
    ) {
        outcome_is_sound(&text);
    }
}

#[test]
fn deep_nesting_is_a_mistake_and_no_stack_overflow() {
    outcome_is_sound(&format!("a = {}", "[".repeat(100_000)));
    outcome_is_sound(&format!("a = {}{}", "[".repeat(100_000), "]".repeat(100_000)));
    outcome_is_sound(&format!("a = {}", "{a=".repeat(100_000)));
    outcome_is_sound(&format!("[{}a]\n", "a.".repeat(10_000)));
    outcome_is_sound(&format!("{}a = 1\n", "a.".repeat(10_000)));
}

#[test]
fn empty_keys_are_shown_in_quotes() {
    let errors = sluice_config::parse("sluice.toml", "\"\" = 1\n[runtime]\n'' = 1\n").unwrap_err();
    let keys: Vec<&str> = errors.mistakes().iter().map(|m| m.key.as_str()).collect();
    assert_eq!(keys, ["\"\"", "port", "service", "runtime.\"\""]);
}

#[test]
fn a_hundred_mistakes_are_all_found_and_shown_in_bounded_length() {
    let deny = vec!["\"10.0.0.1/33\""; 100].join(", ");
    let errors = sluice_config::parse("sluice.toml", &format!("[filters]\ndeny = [{deny}]\n")).unwrap_err();
    assert_eq!(errors.mistakes().len(), 102, "and no port, no service");
    let shown = errors.to_string();
    assert_eq!(shown.lines().count(), 51);
    assert!(shown.ends_with("... and 52 more"), "{shown}");
}

#[test]
fn control_characters_of_a_file_do_not_reach_the_terminal() {
    for text in [
        "\"\\u001b[2J\" = 1\n",
        "[runtime]\nhugepages = \"\\u001b[2J\"\n",
        "[[port]]\nname = \"\\u001b\\n\"\n",
        "a = \u{1b}\n",
    ] {
        let shown = sluice_config::parse("sluice.toml", text).unwrap_err().to_string();
        assert!(shown.chars().all(|c| c == '\n' || !c.is_control()), "{shown:?}");
    }
}

#[test]
fn unreadable_files_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("none.toml");
    let shown = sluice_config::load(&missing).unwrap_err().to_string();
    assert!(shown.starts_with(&format!("{}: file: cannot be read", missing.display())), "{shown}");
    assert!(sluice_config::load(dir.path()).is_err());
    let binary = dir.path().join("binary.toml");
    fs::write(&binary, b"[runtime]\nidle = \"\xff\"\n").unwrap();
    let errors = sluice_config::load(&binary).unwrap_err();
    assert_eq!(errors.mistakes()[0].place, Some(sluice_config::Place { line: 2, column: 9 }));
}
