//! The example files are what operators copy: each must parse, and mean what its comments say.

use std::fs;
use std::path::{Path, PathBuf};

fn examples() -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let mut files: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

#[test]
fn every_example_parses_and_its_summary_names_every_item() {
    let files = examples();
    assert!(files.len() >= 7, "{files:?}");
    for file in files {
        let config = sluice_config::load(&file).unwrap_or_else(|errors| panic!("{errors}"));
        let summary = config.summary();
        let starts = |start: String| assert!(summary.lines().any(|l| l.starts_with(&start)), "{start}\n{summary}");
        for port in &config.ports {
            starts(format!("port {}: {}", port.name, port.device));
        }
        for route in &config.routes {
            starts(format!("route {}: via {}", route.to, route.via));
        }
        for service in &config.services {
            starts(format!("service {}: listens on {}", service.name, service.listen[0]));
            for upstream in &service.upstreams {
                starts(format!("upstream {} of {}: weight {}", upstream.address, service.name, upstream.weight));
            }
        }
        for set in &config.sets {
            starts(format!("set {}: ", set.name));
        }
        for (index, rule) in config.rules.iter().enumerate() {
            starts(format!("rule {} {:?}: {}", index + 1, rule.name, rule.action));
        }
        assert!(config.bans.is_none() || summary.contains("\nbans: "), "{summary}");
        assert!(config.sample.is_none() || summary.contains("\nsample: "), "{summary}");
        for section in ["runtime: ", "filters: ", "cookies: ", "metrics: ", "log: "] {
            starts(section.to_owned());
        }
    }
}
