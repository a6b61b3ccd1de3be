//! `check`, `explain` and `replay` as their users and scripts see them: output, standard error and exit codes.

mod common;

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Instant;

use common::{WEB, anywhere, capture, clients, config, connection, flood, sluice_in, syn, text};
use sluice_control::capture::{Capture, DroppedPacket, SampleWriter};
use sluice_filters::testkit::tcp;

/// Rules that meet every kind of fate.
const RULES: &str = r#"
[[set]]
name = "offices"
prefixes = ["203.0.113.0/28"]
[[rule]]
name = "offices"
action = "pass"
source = "@offices"
[[rule]]
name = "tool"
action = "drop"
flags = "syn !ack"
options = "none"
hop_limit = "200-255"
[[rule]]
name = "trial"
action = "drop"
dry_run = true
window = 512
"#;

fn place() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

/// Code, standard output, standard error.
fn told(output: &Output) -> (i32, String, String) {
    (output.status.code().unwrap(), text(&output.stdout).to_owned(), text(&output.stderr).to_owned())
}

fn run(folder: &Path, arguments: &[&str]) -> (i32, String, String) {
    told(&sluice_in(folder, arguments))
}

/// A folder with `sluice.toml` and `mixed.pcap`: 40 clients and 500 SYNs of a flood tool.
fn mixed() -> tempfile::TempDir {
    let folder = place();
    config(folder.path(), "sluice.toml", RULES);
    let tool = flood(500, |n| syn(&anywhere(n)).options([]).hop_limit(240));
    capture(&folder.path().join("mixed.pcap"), &[&clients(), &tool]);
    capture(&folder.path().join("clients.pcap"), &[&clients()]);
    capture(&folder.path().join("tool.pcap"), &[&tool]);
    folder
}

fn packets(file: &Path) -> u64 {
    let mut capture = Capture::open(file).unwrap();
    let mut count = 0;
    while capture.next().unwrap().is_some() {
        count += 1;
    }
    count
}

#[test]
fn check_says_what_sets_hold() {
    let folder = place();
    std::fs::write(folder.path().join("list"), "192.0.2.0/25\n192.0.2.128/25\n2001:db8::/32\n").unwrap();
    let list = folder.path().join("list");
    config(folder.path(), "sluice.toml", &format!("[[set]]\nname = \"bad\"\nfiles = \"{}\"", list.display()));
    let (code, said, error) = run(folder.path(), &["check", "-c", "sluice.toml"]);
    assert_eq!((code, error.as_str()), (0, ""));
    assert!(said.contains("\nset bad: 3 prefixes in 2 ranges\n"), "{said}");
}

#[test]
fn check_names_file_and_line_of_what_is_wrong_and_exits_2() {
    let folder = place();
    let root = folder.path().display().to_string();
    std::fs::write(folder.path().join("list"), "192.0.2.0/24\n# fine\noops\n").unwrap();
    std::fs::write(folder.path().join("empty"), "").unwrap();
    std::fs::write(folder.path().join("bans"), "192.0.2.7 never\n192.0.2.8 soon\n").unwrap();
    std::fs::write(folder.path().join("geo.mmdb"), "no database").unwrap();
    for (ending, wanted) in [
        (
            format!("[[set]]\nname = \"s\"\nfiles = \"{root}/list\""),
            format!("set \"s\": {root}/list:3: \"oops\" is no address"),
        ),
        (
            format!("[[set]]\nname = \"s\"\nfiles = \"{root}/empty\""),
            format!("set \"s\": {root}/empty: has no prefix, as after"),
        ),
        (format!("[[set]]\nname = \"s\"\nfiles = \"{root}/gone\""), format!("set \"s\": {root}/gone: ")),
        (
            format!("[[set]]\nname = \"s\"\ndatabase = \"{root}/geo.mmdb\"\ncountries = \"DE\""),
            format!("set \"s\": {root}/geo.mmdb: is no MaxMind database"),
        ),
        (format!("[bans]\nfile = \"{root}/bans\""), format!("bans.file: {root}/bans:2: \"soon\" is no time")),
        (
            "[[rule]]\nname = \"r\"\naction = \"drop\"\nsource = \"@nobody\"".into(),
            "sluice.toml:17: rule \"r\": source: there is no set \"nobody\"".into(),
        ),
        (
            "[[rule]]\nname = \"r\"\naction = \"drop\"\npcap = \"tcp port 443 and (\"".into(),
            "sluice.toml:17: rule \"r\": pcap: ".into(),
        ),
        (
            "[[rule]]\nname = \"r\"\naction = \"drop\"\nwindow = 70000".into(),
            "sluice.toml:17: rule \"r\": window".into(),
        ),
    ] {
        config(folder.path(), "sluice.toml", &ending);
        let (code, said, error) = run(folder.path(), &["check", "-c", "sluice.toml"]);
        assert_eq!((code, said.as_str()), (2, ""), "{ending}: {error}");
        assert!(error.starts_with(&wanted), "{ending}: {error}");
    }
}

#[test]
fn explain_tells_the_way_of_a_packet() {
    let folder = mixed();
    let explain = |packet: &str| {
        let (code, said, error) = run(folder.path(), &["explain", "-c", "sluice.toml", packet]);
        assert_eq!((code, error.as_str()), (0, ""), "{packet}");
        said
    };
    for (packet, wanted) in [
        ("192.0.2.7:4 > 198.51.100.10:443", "rule       2 \"tool\" does not match: hop_limit is 64, wanted 200-255\n"),
        (
            "192.0.2.7:4 > 198.51.100.10:443 ttl=240",
            "does not match: options are mss sack-permitted timestamps nop window-scale, wanted none\n",
        ),
        (
            "192.0.2.7:4 > 198.51.100.10:443 flags=.",
            "rule       2 \"tool\" does not match: flags are ack, wanted syn !ack\n",
        ),
        (
            "192.0.2.7:4 > 198.51.100.10:443 ttl=240 options=none",
            "\"tool\" matches: dropped\n           1 more not asked\nverdict    dropped: rule \"tool\"\n",
        ),
        ("192.0.2.7:4 > 198.51.100.10:443 win=512", "\"trial\" matches: would be dropped; dry run, on to the next\n"),
        (
            "203.0.113.5:4 > 198.51.100.10:443",
            "\"offices\" matches (source in @offices): passes, and no limit of [filters] is asked\n",
        ),
        ("[2001:db8:7::1]:4 > [2001:db8::10]:443", "does not match: source 2001:db8:7::1 is not in @offices\n"),
        ("[2001:db8:7::1]:4 > [2001:db8::10]:443", "relayed to 198.51.100.50:443\n"),
        (
            "192.0.2.7:4 > 198.51.100.10:444",
            "service    none listens on 198.51.100.10:444\nverdict    dropped: not_a_service\n",
        ),
        (
            "192.0.2.7:4 > 198.51.100.10:444 flags=R",
            "service    none listens on 198.51.100.10:444\nverdict    dropped: not_a_service\n",
        ),
        (
            "198.51.100.50:443 > 198.51.100.2:50000 flags=.",
            "upstream   198.51.100.50:443 is one, and filters are for clients\nverdict    goes to the connection that dialled it;",
        ),
        (
            "198.51.100.2:4 > 198.51.100.10:443",
            "source     198.51.100.2 is the appliance's own address\nverdict    dropped: own_source\n",
        ),
        (
            "198.51.100.10:443 > 192.0.2.7:4 flags=S.",
            "source     198.51.100.10 is the appliance's own address\nverdict    dropped: own_source, where the appliance receives it\n",
        ),
        (
            "198.51.100.255:4 > 198.51.100.10:443",
            "source     198.51.100.255 is a network's own or its broadcast address\nverdict    dropped: martian_source\n",
        ),
        ("192.0.2.7:4 > 198.51.100.10:443 flags=SF", "parser     not acceptable\nverdict    dropped: bad_flags\n"),
    ] {
        let said = explain(packet);
        assert!(said.contains(wanted), "{packet}: {said}");
    }
}

#[test]
fn explain_and_replay_check_a_source_as_on_the_port_that_is_named() {
    let folder = place();
    let lan =
        "[[port]]\nname = \"lan\"\ndevice = \"net_null0\"\naddresses = [\"10.0.0.2/24\"]\nsource_check = \"strict\"\n";
    config(folder.path(), "sluice.toml", lan);
    let explain = |port: &[&str], packet: &str| {
        let arguments = [&["explain", "-c", "sluice.toml"], port, &[packet]].concat();
        let (code, said, error) = run(folder.path(), &arguments);
        assert_eq!((code, error.as_str()), (0, ""), "{packet}");
        said
    };
    let client = "203.0.113.7:4 > 198.51.100.10:443";
    for port in [&[][..], &["--port", "wan"]] {
        assert!(explain(port, client).contains("verdict    SYN-ACK"), "{port:?}");
    }
    let said = explain(&["--port", "lan"], client);
    let wanted = "source     the best route to 203.0.113.7 does not leave by port \"lan\", whose source_check is \"strict\"\n\
                  verdict    dropped: source_route\n";
    assert!(said.contains(wanted), "{said}");
    let said = explain(&["--port", "lan"], "198.51.100.50:443 > 198.51.100.2:50000 flags=.");
    let wanted = "source     198.51.100.50 is an upstream's address, and its route does not leave by port \"lan\"\n\
                  verdict    dropped: upstream_source\n";
    assert!(said.contains(wanted), "{said}");

    let one = vec![(0, tcp("203.0.113.7:4", WEB).flags(sluice_filters::Flags::SYN).build())];
    capture(&folder.path().join("one.pcap"), &[&one]);
    for (port, wanted) in [("wan", "SYN answered with a cookie"), ("lan", "dropped: source_route")] {
        let (_, said, _) = run(folder.path(), &["replay", "-c", "sluice.toml", "--port", port, "one.pcap"]);
        assert!(said.contains(wanted), "{port}: {said}");
    }
    for command in [
        &["explain", "-c", "sluice.toml", "--port", "dmz", client][..],
        &["replay", "-c", "sluice.toml", "--port", "dmz", "one.pcap"],
    ] {
        let (code, _, error) = run(folder.path(), command);
        assert_eq!((code, error.as_str()), (2, "sluice: --port dmz: no port has this name; the ports are wan, lan\n"));
    }
}

#[test]
fn explain_says_of_every_condition_what_the_packet_has_and_what_is_wanted() {
    let folder = place();
    for (condition, packet, wanted) in [
        ("source = [\"192.0.2.0/24\", \"10.0.0.0/8\"]", "", "source 203.0.113.7 is not in 192.0.2.0/24 or 10.0.0.0/8"),
        ("not_source = \"203.0.113.0/24\"", "", "source 203.0.113.7 is in 203.0.113.0/24, which not_source names"),
        ("ip_version = 6", "", "ip_version is 4, wanted 6"),
        ("service = \"ssh\"", "", "service is web, wanted ssh"),
        ("source_port = [53, \"1-40\"]", "", "source_port is 5000, wanted 53 or 1-40"),
        ("destination_port = 22", "", "destination_port is 443, wanted 22"),
        ("ip_length = \"-40\"", "", "ip_length is 60, wanted 40"),
        ("payload_length = \"1-\"", "", "payload_length is 0, wanted 1-65535"),
        ("window = 1024", "", "window is 64240, wanted 1024"),
        ("mss = 1400", "", "mss is 1460, wanted 1400"),
        ("mss = \"none\"", "", "mss is 1460, wanted none"),
        ("window_scale = \"any\"", "options=none", "window_scale is none, wanted 0-14"),
        ("sack = false", "", "sack is true, wanted false"),
        ("timestamps = true", "options=none", "timestamps is false, wanted true"),
        ("options = \"mss 34\"", "mss=1460", "options are mss, wanted mss 34"),
        ("payload = { text = \"GET \" }", "", "there is no payload, wanted payload at 0 \"GET \""),
        (
            "payload = { text = \"GET \" }",
            "flags=. payload=\"HEAD /\\r\\n\"",
            "payload begins with \"HEAD /\\r\\n\", wanted payload at 0 \"GET \"",
        ),
        (
            "payload = { text = \"GET \" }",
            "flags=. payload=hex:1603010a",
            "payload begins with 16 03 01 0a, wanted payload at 0 \"GET \"",
        ),
        ("pcap = \"ip[8] < 20\"", "", "pcap \"ip[8] < 20\" does not hold"),
    ] {
        let ssh = "[[service]]\nname = \"ssh\"\nlisten = [\"198.51.100.10:22\"]\n[[service.upstream]]\naddress = \"198.51.100.51:22\"";
        config(folder.path(), "sluice.toml", &format!("{ssh}\n[[rule]]\nname = \"r\"\naction = \"drop\"\n{condition}"));
        let packet = format!("203.0.113.7:5000 > {WEB} {packet}");
        let (code, said, error) = run(folder.path(), &["explain", "-c", "sluice.toml", &packet]);
        assert_eq!(code, 0, "{condition}: {error}");
        assert!(said.contains(&format!("rule       1 \"r\" does not match: {wanted}\n")), "{condition}: {said}");
    }
}

#[test]
fn explain_takes_words_from_a_shell_and_packets_from_captures() {
    let folder = mixed();
    let words = ["explain", "-c", "sluice.toml", "192.0.2.7:4", ">", WEB, "flags=P.", "payload=GET / x"];
    let (code, said, error) = run(folder.path(), &words);
    assert_eq!(code, 0, "{error}");
    assert!(said.contains("payload=\"GET / x\"\n"), "{said}");
    let (_, first, _) = run(folder.path(), &["explain", "-c", "sluice.toml", "clients.pcap"]);
    assert!(first.starts_with("packet     203.0.113.1:40000 > 198.51.100.10:443 flags=S seq=100 "), "{first}");
    let (_, third, _) = run(folder.path(), &["explain", "-c", "sluice.toml", "--number", "3", "clients.pcap"]);
    assert!(third.contains("flags=. seq=101 ack=5001 "), "{third}");
    let octets = std::fs::read(folder.path().join("clients.pcap")).unwrap();
    std::fs::write(folder.path().join("none.pcap"), &octets[..24]).unwrap();
    std::fs::write(folder.path().join("empty.pcap"), "").unwrap();
    for (arguments, wanted) in [
        (vec!["none.pcap"], "sluice: none.pcap: holds no packet; name a capture with at least one"),
        (vec!["empty.pcap"], "sluice: empty.pcap: is empty; capture again"),
        (
            vec!["gone.pcap"],
            "sluice: gone.pcap: neither a file nor a packet; name a capture, or write a packet as in '",
        ),
        (
            vec!["-n", "361", "clients.pcap"],
            "sluice: clients.pcap: has 360 packets and no packet 361; give a --number from 1 to 360",
        ),
        (
            vec!["-n", "2", "192.0.2.7:4 > 198.51.100.10:443"],
            "sluice: --number counts the packets of a capture; name one",
        ),
        (
            vec!["192.0.2.7:4 > 198.51.100.10:443 flag=S"],
            "sluice: the packet: \"flag=S\": no word of a packet is \"flag\"; did you mean flags?",
        ),
        (
            vec!["192.0.2.7 > 198.51.100.10:443"],
            "sluice: the packet: \"192.0.2.7\": the port is missing; write 192.0.2.7:443",
        ),
        (
            vec!["192.0.2.7:4 > 198.51.100.10:443 ttl=300"],
            "sluice: the packet: \"ttl=300\": \"300\" is no number from 0 to 255",
        ),
    ] {
        let (code, said, error) = run(folder.path(), &[&["explain", "-c", "sluice.toml"], &arguments[..]].concat());
        assert_eq!((code, said.as_str()), (2, ""), "{arguments:?}");
        assert!(error.starts_with(wanted), "{arguments:?}: {error}");
    }
}

#[test]
fn the_sample_of_dropped_packets_can_be_explained_and_replayed() {
    let folder = mixed();
    let root = folder.path().display().to_string();
    let sample = format!("[sample]\nfile = \"{root}/dropped.pcapng\"\nsnap = 128");
    config(folder.path(), "sample.toml", &sample);
    let parsed = sluice_config::load(&folder.path().join("sample.toml")).unwrap();
    let mut writer = SampleWriter::open(parsed.sample.as_ref().unwrap(), &["wan".to_owned()], "0").unwrap();
    let long = tcp("192.0.2.7:4", WEB).window(512).payload([7; 900]).build();
    for _ in 0..3 {
        let (wire_len, verdict) = (long.len() as u32, "drop: bad_cookie");
        let packet = DroppedPacket { port: 0, time: common::BEGIN, frame: &long, wire_len, verdict };
        writer.write(&packet, Instant::now()).unwrap();
    }
    let (code, said, error) = run(folder.path(), &["explain", "-c", "sluice.toml", "-n", "2", "dropped.pcapng"]);
    assert_eq!(code, 0, "{error}");
    assert!(
        said.starts_with("capture    kept 128 of 954 octets; the rest is not known\npacket     192.0.2.7:4 "),
        "{said}"
    );
    assert!(said.contains("\"trial\" matches: would be dropped"), "{said}");
    let (code, said, _) = run(folder.path(), &["replay", "-c", "sluice.toml", "--expect", "dropped", "dropped.pcapng"]);
    assert_eq!(code, 0);
    assert!(said.contains("\ndropped: bad_cookie             3  100.0% "), "{said}");
}

#[test]
fn replay_counts_by_outcome_and_rule_and_the_json_has_the_documented_fields() {
    let folder = mixed();
    let (code, said, error) = run(folder.path(), &["replay", "-c", "sluice.toml", "mixed.pcap"]);
    assert_eq!((code, error.as_str()), (0, ""));
    assert!(said.starts_with("860 packets, ") && said.contains("\ndropped: rule \"tool\" "), "{said}");
    let (_, again, _) = run(folder.path(), &["replay", "-c", "sluice.toml", "mixed.pcap"]);
    assert_eq!(said, again);

    let (code, said, _) = run(folder.path(), &["replay", "-c", "sluice.toml", "--json", "mixed.pcap"]);
    assert_eq!(code, 0);
    let report: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!((&report["packets"], &report["dropped_packets"]), (&860.into(), &500.into()));
    assert!(report["bytes"].is_u64() && report["seconds"].is_f64());
    let outcomes = report["outcomes"].as_array().unwrap();
    let sum: u64 = outcomes.iter().map(|line| line["packets"].as_u64().unwrap()).sum();
    assert_eq!(sum, 860);
    let dropped = outcomes.last().unwrap();
    assert_eq!((&dropped["reason"], &dropped["rule"]), (&"rule".into(), &"tool".into()));
    assert!(dropped["outcome"].is_string() && dropped["bytes"].is_u64());
    let rule = report["rules"][1].as_object().unwrap();
    for field in ["matched_packets", "matched_bytes", "cut_packets", "cut_bytes", "cut_clients"] {
        assert!(rule[field].is_u64(), "{field}");
    }
    assert_eq!((&rule["rule"], &rule["action"], &rule["dry_run"]), (&"tool".into(), &"drop".into(), &false.into()));
    assert_eq!(rule["cut_packets"], 500);
}

#[test]
fn passed_dropped_and_what_services_sent_add_up() {
    let folder = mixed();
    let outputs = ["--write-passed", "passed.pcap", "--write-dropped", "dropped.pcap"];
    let (code, _, _) = run(folder.path(), &[&["replay", "-c", "sluice.toml", "mixed.pcap"], &outputs[..]].concat());
    assert_eq!(code, 0);
    let of = |name: &str| packets(&folder.path().join(name));
    assert_eq!((of("passed.pcap"), of("dropped.pcap"), of("mixed.pcap")), (320, 500, 860));
    let expect =
        |fate: &str, name: &str| run(folder.path(), &["replay", "-c", "sluice.toml", "--expect", fate, name]).0;
    assert_eq!((expect("dropped", "dropped.pcap"), expect("passed", "dropped.pcap")), (0, 3));
}

#[test]
fn expect_exits_3_and_names_the_first_packet_that_fared_otherwise() {
    let folder = mixed();
    let expect = |fate: &str, name: &str| run(folder.path(), &["replay", "-c", "sluice.toml", "--expect", fate, name]);
    assert_eq!(expect("passed", "clients.pcap").0, 0);
    assert_eq!(expect("dropped", "tool.pcap").0, 0);
    let (code, said, error) = expect("passed", "mixed.pcap");
    assert_eq!(code, 3);
    assert!(said.starts_with("860 packets"), "{said}");
    assert!(error.starts_with("sluice: 500 packets dropped, none should; the first is #2 "), "{error}");
    assert!(error.ends_with(": dropped: rule \"tool\"\n"), "{error}");
    let (code, _, error) = expect("dropped", "mixed.pcap");
    assert_eq!(code, 3);
    assert!(
        error.starts_with("sluice: 320 packets passed, none should; the first is #1 203.0.113.1:40000 > "),
        "{error}"
    );
}

#[test]
fn diff_exits_0_without_changes_and_3_with_them() {
    let folder = mixed();
    config(folder.path(), "other.toml", "");
    let diff = |other: &str, more: &[&str]| {
        run(folder.path(), &[&["replay", "-c", "sluice.toml", "--diff", other, "mixed.pcap"], more].concat())
    };
    assert_eq!(diff("sluice.toml", &[]), (0, "nothing changes\n".into(), String::new()));
    let (code, said, error) = diff("other.toml", &[]);
    assert_eq!((code, error.as_str()), (3, ""));
    assert!(said.contains("         500  dropped: rule \"tool\"  -> SYN answered with a cookie  #2 "), "{said}");
    let (code, said, _) = diff("other.toml", &["--json"]);
    assert_eq!(code, 3);
    let report: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!((&report["now"]["dropped_packets"], &report["then"]["dropped_packets"]), (&500.into(), &0.into()));
    let change = &report["changes"][0];
    assert_eq!((&change["packets"], &change["first"]), (&500.into(), &2.into()));
    assert!(change["now"].is_string() && change["then"].is_string() && change["example"].is_string());
}

#[test]
fn a_limit_in_all_is_whole_whatever_the_number_of_workers() {
    let folder = mixed();
    let rule = "[[rule]]\nname = \"all\"\naction = \"limit\"\nlimit = \"1/h burst 100\"\nper = \"global\"";
    for cores in ["[1]", "[1, 2, 3, 4]"] {
        config(folder.path(), "sluice.toml", &format!("[runtime]\ncores = {cores}\n{rule}"));
        let (_, said, _) = run(folder.path(), &["replay", "-c", "sluice.toml", "--json", "tool.pcap"]);
        let report: serde_json::Value = serde_json::from_str(&said).unwrap();
        assert_eq!(report["dropped_packets"], 400, "{cores}");
    }
}

#[test]
fn a_broken_capture_is_named_with_place_and_remedy_after_what_came_before_it_was_counted() {
    let folder = mixed();
    let octets = std::fs::read(folder.path().join("clients.pcap")).unwrap();
    std::fs::write(folder.path().join("cut.pcap"), &octets[..1_000]).unwrap();
    let (code, said, error) = run(folder.path(), &["replay", "-c", "sluice.toml", "cut.pcap"]);
    assert_eq!(code, 2);
    assert!(said.starts_with("12 packets, "), "{said}");
    assert!(
        error.starts_with("cut.pcap: truncated in packet 13 at octet ") && error.contains("; capture again"),
        "{error}"
    );
    for (name, wanted) in [
        ("sluice.toml", "sluice.toml: is no capture: it begins with "),
        ("gone.pcap", "gone.pcap: cannot be opened: "),
        (".", ".: cannot be opened: "),
    ] {
        let (code, said, error) = run(folder.path(), &["replay", "-c", "sluice.toml", name]);
        assert_eq!((code, said.as_str()), (2, ""), "{name}");
        assert!(error.starts_with(wanted), "{name}: {error}");
    }
}

#[test]
fn outputs_that_cannot_be_written_exit_1_and_what_is_read_is_never_overwritten() {
    let folder = mixed();
    let write = |more: &[&str]| run(folder.path(), &[&["replay", "-c", "sluice.toml", "mixed.pcap"], more].concat());
    let (code, _, error) = write(&["--write-passed", "/nonexistent/passed.pcap"]);
    assert_eq!(code, 1);
    assert!(error.starts_with("/nonexistent/passed.pcap: cannot be written: "), "{error}");
    let before = std::fs::read(folder.path().join("mixed.pcap")).unwrap();
    std::os::unix::fs::symlink("mixed.pcap", folder.path().join("link.pcap")).unwrap();
    for (more, wanted) in [
        (vec!["--write-passed", "./mixed.pcap"], "sluice: --write-passed ./mixed.pcap: would overwrite what is read"),
        (vec!["--write-dropped", "link.pcap"], "sluice: --write-dropped link.pcap: would overwrite what is read"),
        (vec!["--write-dropped", "sluice.toml"], "sluice: --write-dropped sluice.toml: would overwrite what is read"),
        (
            vec!["--write-passed", "o.pcap", "--write-dropped", "./o.pcap"],
            "sluice: --write-dropped ./o.pcap: is written already",
        ),
        (vec!["--write-passed", "-"], "sluice: --write-passed -: the report goes to standard output"),
    ] {
        let (code, said, error) = write(&more);
        assert_eq!((code, said.as_str()), (2, ""), "{more:?}");
        assert!(error.starts_with(wanted), "{more:?}: {error}");
    }
    assert_eq!(std::fs::read(folder.path().join("mixed.pcap")).unwrap(), before);
}

#[test]
fn a_capture_may_come_through_standard_input_and_the_report_go_into_a_closed_pipe() {
    let folder = mixed();
    let spawn = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sluice"));
        command.args(["replay", "-c", "sluice.toml", "-"]).current_dir(folder.path());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let octets = std::fs::read(folder.path().join("mixed.pcap")).unwrap();
    let mut child = spawn();
    child.stdin.take().unwrap().write_all(&octets).unwrap();
    let (code, said, error) = told(&child.wait_with_output().unwrap());
    assert_eq!((code, error.as_str()), (0, ""));
    assert_eq!(said, run(folder.path(), &["replay", "-c", "sluice.toml", "mixed.pcap"]).1);

    let mut child = spawn();
    drop(child.stdout.take());
    child.stdin.take().unwrap().write_all(&octets).unwrap();
    let (code, _, error) = told(&child.wait_with_output().unwrap());
    assert_eq!((code, error.as_str()), (0, ""));
}

#[test]
fn a_connection_on_its_own_opens_and_goes_on() {
    let folder = place();
    config(folder.path(), "sluice.toml", "");
    capture(&folder.path().join("one.pcap"), &[&connection("203.0.113.7:40000", 0)]);
    let (code, said, _) = run(folder.path(), &["replay", "-c", "sluice.toml", "--expect", "passed", "one.pcap"]);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("cookie right, connection opens             1 "), "{said}");
}
