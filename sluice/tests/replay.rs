//! `sluice replay` as a script sees it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use sluice_control::capture::PcapWriter;
use sluice_filters::Flags;
use sluice_filters::testkit::tcp;

fn replay(config: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sluice")).args(["replay", "-c"]).arg(config).args(arguments).output().unwrap()
}

fn config(folder: &Path, ending: &str) -> PathBuf {
    let path = folder.join("sluice.toml");
    let text = format!(
        r#"
[runtime]
cores = [1, 2, 3, 4]
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

/// A capture of `count` SYNs of one moment.
fn syns(folder: &Path, count: u16) -> PathBuf {
    let path = folder.join("syns.pcap");
    let mut writer = PcapWriter::create(&path).unwrap();
    for port in 1..=count {
        let frame = tcp(&*format!("203.0.113.7:{port}"), "198.51.100.10:80").flags(Flags::SYN).build();
        writer.write(Duration::from_secs(1_767_323_045), &frame, frame.len() as u32).unwrap();
    }
    writer.finish().unwrap();
    path
}

#[test]
fn a_limit_that_workers_share_is_whole_for_a_replay() {
    let folder = tempfile::tempdir().unwrap();
    let rule = "[[rule]]\nname = \"all\"\naction = \"limit\"\nlimit = \"40/s burst 40\"\nper = \"global\"\n";
    let (config, capture) = (config(folder.path(), rule), syns(folder.path(), 50));
    let output = replay(&config, &["--json", capture.to_str().unwrap()]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&json["packets"], &json["dropped_packets"]), (&50.into(), &10.into()));
}

#[test]
fn packets_are_not_written_over_the_capture_they_come_from_nor_over_one_another() {
    let folder = tempfile::tempdir().unwrap();
    let (config, capture) = (config(folder.path(), ""), syns(folder.path(), 3));
    let before = std::fs::read(&capture).unwrap();
    let (name, link, other) = (capture.to_str().unwrap(), folder.path().join("link"), folder.path().join("other"));
    std::os::unix::fs::symlink(&capture, &link).unwrap();
    let other = other.to_str().unwrap();
    for arguments in [
        ["--write-dropped", name].as_slice(),
        &["--write-passed", link.to_str().unwrap()],
        &["--write-passed", other, "--write-dropped", other],
    ] {
        let output = replay(&config, &[arguments, &[name]].concat());
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {error}");
        assert!(error.contains("; name another file"), "{error}");
        assert_eq!(std::fs::read(&capture).unwrap(), before, "{arguments:?}");
    }
}
