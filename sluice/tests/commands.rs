//! The command as its users and scripts see it: output, standard error and exit codes. No root and no devices needed.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn sluice(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sluice")).args(arguments).env_remove("SLUICE_LOG").output().unwrap()
}

fn text(octets: &[u8]) -> &str {
    std::str::from_utf8(octets).unwrap()
}

fn config_files(folder: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config").join(folder);
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let files: Vec<PathBuf> = files.filter(|path| path.extension().is_some_and(|end| end == "toml")).collect();
    assert!(!files.is_empty());
    files
}

#[test]
fn check_of_a_right_file_prints_what_it_understood_and_exits_0() {
    for path in config_files("examples") {
        let output = sluice(&["check", "-c", path.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(0), "{}: {}", path.display(), text(&output.stderr));
        assert!(text(&output.stdout).contains("service "), "{}", path.display());
        assert!(output.stderr.is_empty(), "{}", text(&output.stderr));
    }
}

#[test]
fn check_and_run_of_a_wrong_file_name_file_line_and_key_and_exit_2() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("wrong.toml");
    std::fs::write(&path, "[runtime]\ncores = [1]\ncolour = \"red\"\n").unwrap();
    for command in ["check", "run"] {
        let output = sluice(&[command, "-c", path.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(2));
        assert!(output.stdout.is_empty(), "{}", text(&output.stdout));
        let error = text(&output.stderr);
        assert!(error.contains(&format!("{}:3", path.display())) && error.contains("colour"), "{error}");
    }
}

#[test]
fn every_bad_example_is_refused_by_check_with_exit_code_2() {
    for path in config_files("tests/bad") {
        let output = sluice(&["check", "-c", path.to_str().unwrap()]);
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{}: {error}", path.display());
        assert!(error.contains(path.file_name().unwrap().to_str().unwrap()), "{}: {error}", path.display());
    }
}

#[test]
fn missing_file_is_a_configuration_error() {
    let output = sluice(&["check", "-c", "/nonexistent/sluice.toml"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("/nonexistent/sluice.toml"), "{}", text(&output.stderr));
}

#[test]
fn wrong_command_line_exits_2_and_help_exits_0() {
    assert_eq!(sluice(&[]).status.code(), Some(2));
    assert_eq!(sluice(&["check"]).status.code(), Some(2));
    assert_eq!(sluice(&["scrub"]).status.code(), Some(2));
    for help in [vec!["--help"], vec!["run", "--help"], vec!["check", "--help"]] {
        assert_eq!(sluice(&help).status.code(), Some(0));
    }
    let help = sluice(&["--help"]);
    assert!(text(&help.stdout).contains("Exit codes:") && text(&help.stdout).contains("Examples:"));
}

#[test]
fn version_names_sluice_and_dpdk() {
    let output = sluice(&["--version"]);
    assert_eq!(output.status.code(), Some(0));
    let version = text(&output.stdout);
    assert!(version.starts_with(&format!("sluice {} (DPDK ", env!("CARGO_PKG_VERSION"))), "{version}");
}

/// A configuration that is right, ending in what the test is about.
fn right(folder: &Path, ending: &str) -> PathBuf {
    let path = folder.join("right.toml");
    let text = format!(
        r#"
[runtime]
hugepages = "off"
[[port]]
name = "wan"
device = "net_null0"
addresses = ["198.51.100.2/24"]
[[service]]
name = "web"
listen = ["198.51.100.10:80"]
[[service.upstream]]
address = "198.51.100.5:80"
{ending}
"#
    );
    std::fs::write(&path, text).unwrap();
    path
}

#[test]
fn busy_metrics_port_ends_the_start_with_exit_code_1_before_any_device_is_touched() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let folder = tempfile::tempdir().unwrap();
    let path = right(folder.path(), &format!("[metrics]\nlisten = \"{address}\""));
    let output = sluice(&["run", "-c", path.to_str().unwrap()]);
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.starts_with(&format!("sluice: metrics.listen: cannot listen on {address}")), "{error}");
    assert!(output.stdout.is_empty());
}

#[test]
fn connection_log_that_cannot_be_opened_ends_the_start_with_exit_code_1() {
    let folder = tempfile::tempdir().unwrap();
    let path = right(folder.path(), "[log]\nconnections = \"/nonexistent/connections.log\"");
    let output = sluice(&["run", "-c", path.to_str().unwrap()]);
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.starts_with("sluice: log.connections: cannot append to /nonexistent/connections.log"), "{error}");
}

#[test]
fn log_filter_that_is_none_ends_the_start_with_exit_code_1() {
    let folder = tempfile::tempdir().unwrap();
    let path = right(folder.path(), "");
    let output = Command::new(env!("CARGO_BIN_EXE_sluice"))
        .args(["run", "-c", path.to_str().unwrap()])
        .env("SLUICE_LOG", "sluice=loud")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).starts_with("sluice: SLUICE_LOG: \"sluice=loud\""), "{}", text(&output.stderr));
}
