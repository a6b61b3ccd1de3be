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

/// The examples, with the files that they name in a folder of the test's own.
fn examples(folder: &Path) -> Vec<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    let here = folder.to_str().unwrap();
    for (name, text) in
        [("cookie.seed", "0123456789abcdef".repeat(4)), ("proxy.keys", format!("1 {}", "0123456789abcdef".repeat(4)))]
    {
        let path = folder.join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    }
    let there = ["/etc/sluice", "/var/log/sluice", "/var/lib/sluice"];
    let copy = |path: PathBuf| {
        let text = std::fs::read_to_string(&path).unwrap();
        let text = there.iter().fold(text, |text, folder| text.replace(folder, here));
        let copy = folder.join(path.file_name().unwrap());
        std::fs::write(&copy, text).unwrap();
        copy
    };
    config_files("examples").into_iter().map(copy).collect()
}

#[test]
fn check_of_a_right_file_prints_what_it_understood_and_exits_0() {
    let folder = tempfile::tempdir().unwrap();
    for path in examples(folder.path()) {
        let output = sluice(&["check", "-c", path.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(0), "{}: {}", path.display(), text(&output.stderr));
        assert!(text(&output.stdout).contains("service "), "{}", path.display());
        assert!(output.stderr.is_empty(), "{}", text(&output.stderr));
    }
}

/// What `run` would refuse of the files that a configuration names, `check` refuses with the same words.
#[test]
fn check_refuses_the_files_that_run_refuses() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let path = examples(folder.path()).into_iter().find(|path| path.ends_with("splice.toml")).unwrap();
    for (file, key) in [("cookie.seed", "cookies.seed_file"), ("proxy.keys", "proxy_keys.file")] {
        let mode = |mode| {
            std::fs::set_permissions(folder.path().join(file), std::fs::Permissions::from_mode(mode)).unwrap();
        };
        mode(0o644);
        for command in ["check", "run"] {
            let output = sluice(&[command, "-c", path.to_str().unwrap()]);
            assert_ne!(output.status.code(), Some(0), "{command}");
            let error = text(&output.stderr);
            assert!(error.contains(key) && error.contains("chmod 600"), "{command}: {error}");
        }
        mode(0o600);
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
gateway = "198.51.100.1"
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

#[test]
fn unusable_key_file_ends_the_start_with_exit_code_1() {
    let folder = tempfile::tempdir().unwrap();
    let path = right(folder.path(), "[proxy_keys]\nfile = \"/nonexistent/proxy.keys\"");
    let output = sluice(&["run", "-c", path.to_str().unwrap()]);
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.starts_with("sluice: proxy_keys.file: /nonexistent/proxy.keys cannot be read"), "{error}");
    assert!(output.stdout.is_empty());
}

/// A file of keys, and one with a header that the first of them signed at 1767323045678.
fn signed_header(folder: &Path) -> (String, String) {
    use std::os::unix::fs::PermissionsExt;

    use sluice_tcpstack::proxy::{Evidence, Extras, Header, Keys, OptionKinds, UnixMillis};

    let keys = folder.join("proxy.keys");
    let line = b"7 000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f\n";
    std::fs::write(&keys, line).unwrap();
    std::fs::set_permissions(&keys, std::fs::Permissions::from_mode(0o600)).unwrap();
    let signer = Keys::new(&sluice_config::read_proxy_keys(&keys).unwrap());
    let evidence = Evidence {
        mss: 1_460,
        wscale: Some(7),
        sack: true,
        tsval: Some(16_909_060),
        hop_limit: 57,
        window: 502,
        options: OptionKinds::new([1, 1, 8]),
        rtt_ms: None,
        under_attack: false,
    };
    let extras = Extras {
        authority: Some("trade.example"),
        unique_id: Some(*b"0123456789abcdef"),
        evidence: Some(evidence),
        sign: Some((&signer, UnixMillis(1_767_323_045_678))),
        crc32c: true,
    };
    let (client, listen) = ("203.0.113.7:51000".parse().unwrap(), "198.51.100.10:443".parse().unwrap());
    let header = folder.join("header.bin");
    std::fs::write(&header, Header::v2_with(client, listen, &extras).as_slice()).unwrap();
    (keys.to_str().unwrap().to_owned(), header.to_str().unwrap().to_owned())
}

const FACTS: &str = "\
version: 2
client: 203.0.113.7:51000
destination: 198.51.100.10:443
authority: trade.example
unique id: 30313233343536373839616263646566
mss: 1460
window scale: 7
sack permitted: yes
timestamp: 16909060
ttl: 57
window: 502
options: 1 1 8
round trip: unknown
under attack: no
key: 7
signed: 2026-01-02T03:04:05.678Z
age: 322 ms
";

#[test]
fn authentic_header_is_told_one_fact_a_line_and_exits_0() {
    let folder = tempfile::tempdir().unwrap();
    let (keys, header) = signed_header(folder.path());
    let output = sluice(&["proxy-header", "verify", "--keys", &keys, "--at", "1767323046000", &header]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), FACTS);
    assert!(output.stderr.is_empty());
}

#[test]
fn header_may_come_in_hexadecimal_digits_on_standard_input() {
    use std::io::Write;
    use std::process::Stdio;

    let folder = tempfile::tempdir().unwrap();
    let (keys, header) = signed_header(folder.path());
    let digits: Vec<String> = std::fs::read(header).unwrap().iter().map(|octet| format!("{octet:02X}")).collect();
    let mut child = Command::new(env!("CARGO_BIN_EXE_sluice"))
        .args(["proxy-header", "verify", "--keys", &keys, "--hex", "--at", "1767323046000"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(digits.join(" ").as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(0), FACTS), "{}", text(&output.stderr));
}

#[test]
fn header_that_is_not_authentic_exits_1_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let (keys, header) = signed_header(folder.path());
    let verify = |arguments: &[&str]| {
        let output = sluice(&[&["proxy-header", "verify", "--keys", &keys], arguments].concat());
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert!(output.stdout.is_empty(), "{}", text(&output.stdout));
        text(&output.stderr).to_owned()
    };
    let error = verify(&[&header]);
    assert!(error.starts_with("sluice: not authentic: the header was signed ") && error.contains("ms ago"), "{error}");
    let error = verify(&["--max-age", "1s", "--at", "1767323040000", &header]);
    assert!(error.contains("5678 ms in the future, more than the 1000 ms allowed"), "{error}");

    let changed = folder.path().join("changed.bin");
    let mut octets = std::fs::read(&header).unwrap();
    octets[16] ^= 1;
    std::fs::write(&changed, &octets).unwrap();
    let error = verify(&["--at", "1767323046000", changed.to_str().unwrap()]);
    assert_eq!(error, "sluice: not authentic: the PROXY header is malformed: its CRC32C is wrong\n");
    std::fs::write(&changed, &octets[..40]).unwrap();
    assert_eq!(verify(&[changed.to_str().unwrap()]), "sluice: not authentic: the header is not complete\n");
}

#[test]
fn header_or_keys_that_cannot_be_read_exit_2() {
    let folder = tempfile::tempdir().unwrap();
    let (keys, header) = signed_header(folder.path());
    let nowhere = "/nonexistent/file";
    for (arguments, complaint) in [
        (vec!["--keys", nowhere, header.as_str()], "sluice: proxy_keys.file: /nonexistent/file cannot be read"),
        (vec!["--keys", &header, &header], "sluice: proxy_keys.file: "),
        (vec!["--keys", &keys, nowhere], "sluice: /nonexistent/file: cannot be read"),
        (vec!["--keys", &keys, "--hex", &header], "sluice: "),
        (vec!["--keys", &keys, "--max-age", "soon", &header], "error: invalid value 'soon'"),
        (vec![header.as_str()], "error: "),
    ] {
        let output = sluice(&[&["proxy-header", "verify"], &arguments[..]].concat());
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {error}");
        assert!(error.starts_with(complaint) && output.stdout.is_empty(), "{arguments:?}: {error}");
    }
    let help = sluice(&["proxy-header", "verify", "--help"]);
    assert_eq!(help.status.code(), Some(0));
    assert!(text(&help.stdout).contains("Exit codes:") && text(&help.stdout).contains("Examples:"));
}
