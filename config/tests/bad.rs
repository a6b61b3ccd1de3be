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

/// 256 source addresses of a spliced service, and 256 upstreams; of another service so many more upstreams.
fn pairs(mode: &str, more: usize) -> String {
    let sources: Vec<String> = (0..256).map(|n| format!("\"10.0.1.{n}\"")).collect();
    let upstreams: String =
        (0..256).map(|n| format!("[[service.upstream]]\naddress = \"10.0.0.5:{}\"\n", 2_000 + n)).collect();
    let others: String =
        (0..more).map(|n| format!("[[service.upstream]]\naddress = \"10.0.0.6:{}\"\n", 2_000 + n)).collect();
    let head = "[[port]]\nname = \"wan\"\ndevice = \"net_null0\"\naddresses = [\"198.51.100.2/24\", \"10.0.0.2/16\"]\n";
    let other = format!("[[service]]\nname = \"other\"\nlisten = [\"198.51.100.11:443\"]\n{others}");
    format!(
        "{head}[[service]]\nname = \"many\"\nlisten = [\"198.51.100.10:443\"]\nmode = \"{mode}\"\nsource = [{}]\n{upstreams}{}",
        sources.join(", "),
        if more > 0 { other } else { String::new() },
    )
}

#[test]
fn more_pairs_of_source_and_upstream_than_a_spliced_connection_can_name_are_refused() {
    sluice_config::parse("most.toml", &pairs("splice", 0)).unwrap_or_else(|errors| panic!("{errors}"));
    let text = pairs("splice", 2);
    let errors = sluice_config::parse("more.toml", &text).unwrap_err();
    let [mistake] = errors.mistakes() else { panic!("{errors}") };
    let line = 1 + text.lines().position(|line| line.contains("10.0.0.6:2000")).unwrap();
    let expected = format!("more.toml:{line}: service \"other\": upstream[0].address");
    assert!(errors.to_string().starts_with(&expected), "{errors}");
    assert!(errors.to_string().contains("makes more than 65536 pairs of a source address and an upstream"), "{errors}");
    assert!(mistake.remedy.contains("terminate"), "{errors}");
    // Terminated connections name them in full.
    sluice_config::parse("terminated.toml", &pairs("terminate", 2)).unwrap_or_else(|errors| panic!("{errors}"));
}
