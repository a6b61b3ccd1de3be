//! Every file in `tests/bad` is refused, with exactly the mistakes that its first lines announce:
//! `# expect: LINE | KEY AND FOUND FRAGMENT | REMEDY FRAGMENT`, one line per mistake, in file order.

use std::fs;
use std::path::Path;

#[test]
fn every_bad_file_is_refused_with_line_key_and_remedy() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bad");
    let mut files: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 30, "{}", files.len());
    let mut failures = String::new();
    for path in files {
        let text = fs::read_to_string(&path).unwrap();
        let expected: Vec<Vec<&str>> = text
            .lines()
            .map_while(|line| line.strip_prefix("# expect: "))
            .map(|line| line.splitn(3, " | ").collect())
            .collect();
        assert!(!expected.is_empty(), "{} announces nothing", path.display());
        let errors = match sluice_config::load(&path) {
            Ok(_) => {
                failures += &format!("{}: accepted\n", path.display());
                continue;
            }
            Err(errors) => errors,
        };
        let shown = errors.to_string();
        let shown: Vec<&str> = shown.lines().collect();
        let as_announced = errors.mistakes().len() == expected.len()
            && errors.mistakes().iter().zip(&expected).zip(&shown).all(|((mistake, parts), shown)| {
                let [line, found, remedy] = parts.as_slice() else { panic!("{}: {parts:?}", path.display()) };
                shown.starts_with(&format!("{}:{line}: {found}", path.display())) && mistake.remedy.contains(remedy)
            });
        if !as_announced {
            failures += &format!("{}:\n  expected {expected:?}\n  found    {shown:#?}\n", path.display());
        }
    }
    assert!(failures.is_empty(), "{failures}");
}
