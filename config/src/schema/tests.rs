//! The documented keys and defaults against the schema, and what single keys take.

use std::net::IpAddr;

use ipnet::IpNet;

use super::*;
use crate::Shortest;
use crate::model::{
    Action, Balance, Bans, Config, Congestion, Connect, Expression, Filters, FlagMatch, Geo, KeepAlive, KeepAlives,
    Limit, Limits, Matches, Measure, Mode, OnError, OptionMatch, PayloadMatch, Peace, Per, Port, PortAddress, Promise,
    ProxyHeaderExtras, ProxyProtocol, Rate, Rule, Sample, Service, Set, SourceCheck, SourceLimits, Sources, Timeouts,
    Upstream,
};
use crate::{Place, parse};

const DOCUMENT: &str = include_str!("../../../docs/configuration.md");

const MINIMAL: &str = r#"
[[port]]
name = "wan"
device = "0000:03:00.0"
addresses = ["198.51.100.2/24"]

[[service]]
name = "web"
listen = ["198.51.100.10:443"]

[[service.upstream]]
address = "198.51.100.50:443"
"#;

fn spliced(text: &str) -> String {
    text.replace("[[service]]\n", "[[service]]\nmode = \"splice\"\n")
}

const SET: &str = "[[set]]\nname = \"s\"\n";

const RULE: &str = "[[rule]]\nname = \"r\"\naction = \"limit\"\nlimit = \"100/s\"\n";

/// The documented keys of a section with their defaults, from the table below its heading.
fn documented(section: &str) -> Vec<(String, String)> {
    let headings = [format!("\n## [{section}]\n"), format!("\n## [[{section}]]\n")];
    let (_, after) = headings.iter().find_map(|h| DOCUMENT.split_once(h.as_str())).expect(section);
    let body = after.split("\n## ").next().unwrap();
    let rows = body.lines().filter_map(|line| line.strip_prefix("| `"));
    rows.map(|row| {
        let cells: Vec<&str> = row.split(" | ").collect();
        (cells[0].trim_end_matches('`').to_owned(), cells[2].to_owned())
    })
    .collect()
}

#[test]
fn document_and_schema_name_the_same_keys() {
    for (section, keys) in &SCHEMA[1..] {
        let documented: Vec<String> = documented(section).into_iter().map(|(key, _)| key).collect();
        assert_eq!(documented, *keys, "docs/configuration.md, {section}");
    }
}

#[test]
fn writing_a_documented_default_changes_nothing() {
    for (section, _) in &SCHEMA[1..] {
        for (key, default) in documented(section) {
            let Some(default) = default.strip_prefix('`').and_then(|d| d.strip_suffix('`')) else { continue };
            let (header, reference) = match *section {
                "port" => ("[[port]]\n", MINIMAL.to_owned()),
                "service" => ("[[service]]\n", MINIMAL.to_owned()),
                "service.upstream" => ("[[service.upstream]]\n", MINIMAL.to_owned()),
                "set" if key == "files" => (SET, format!("{MINIMAL}{SET}prefixes = [\"192.0.2.0/24\"]\n")),
                "set" => (SET, format!("{MINIMAL}{SET}files = [\"/etc/sluice/list\"]\n")),
                "rule" if key.starts_with("prefix_") => (RULE, format!("{MINIMAL}{RULE}per = \"prefix\"\n")),
                "rule" => (RULE, format!("{MINIMAL}{RULE}")),
                "rule.payload" => ("", format!("{MINIMAL}{RULE}[[rule.payload]]\nhex = \"00\"\n")),
                "sample" => ("", format!("{MINIMAL}[sample]\nfile = \"/var/log/sluice/dropped.pcapng\"\n")),
                "service.promise" => ("", format!("{}[service.promise]\n", spliced(MINIMAL))),
                "service.keepalive.client" => ("", format!("{MINIMAL}[{section}]\ninterval = \"60s\"\n")),
                other => ("", format!("{MINIMAL}[{other}]\n")),
            };
            let line = format!("{key} = {default}\n");
            let written = match header {
                "" => format!("{reference}{line}"),
                header => reference.replace(header, &format!("{header}{line}")),
            };
            let written = parse("written", &written).unwrap_or_else(|e| panic!("{e}\n{written}"));
            assert_eq!(written, parse("reference", &reference).unwrap(), "{section}.{key}");
        }
    }
}

#[test]
fn minimal_file_has_every_default() {
    let secs = Duration::from_secs;
    let expected = Config {
        runtime: Runtime {
            cores: vec![1],
            control_core: 0,
            hugepages: Hugepages::Auto,
            dpdk_args: String::new(),
            drain: secs(5),
            mbufs: 65_535,
            rx_descriptors: 1_024,
            tx_descriptors: 1_024,
            idle: Idle::Spin,
            state: "/var/lib/sluice".into(),
        },
        ports: vec![Port {
            name: "wan".into(),
            device: "0000:03:00.0".into(),
            args: String::new(),
            addresses: vec![PortAddress {
                address: "198.51.100.2".parse().unwrap(),
                network: "198.51.100.0/24".parse().unwrap(),
            }],
            gateways: vec![],
            vlan: 0,
            mtu: 1500,
            promiscuous: false,
            source_check: SourceCheck::Loose,
        }],
        routes: vec![],
        services: vec![Service {
            name: "web".into(),
            listen: vec!["198.51.100.10:443".parse().unwrap()],
            mode: Mode::Terminate,
            proxy_protocol: ProxyProtocol::Off,
            proxy_header: ProxyHeaderExtras::default(),
            accept_proxy: vec![],
            connect: Connect::OnAccept,
            balance: Balance::RoundRobin,
            source: vec![],
            congestion: Congestion::Reno,
            upstream_congestion: Congestion::None,
            buffer: 65_535,
            keepalive: KeepAlives::default(),
            timeouts: Timeouts {
                connect: secs(5),
                client_idle: Some(secs(300)),
                upstream_idle: Some(secs(300)),
                half_closed: Some(secs(300)),
                first_data: Duration::ZERO,
                unacknowledged: secs(60),
            },
            limits: Limits::default(),
            promise: Promise { mss: None, window_scale: None, sack: None, timestamps: None, probe: secs(10) },
            upstreams: vec![Upstream { address: "198.51.100.50:443".parse().unwrap(), weight: 1 }],
        }],
        sets: vec![],
        rules: vec![],
        filters: Filters {
            deny: vec![],
            allow: vec![],
            icmp_rate: 1_000,
            source_prefix_v6: 64,
            shortest_prefix: Shortest { v4: 8, v6: 19 },
            syn_ack_ceiling: Some(Rate { amount: 20_000, every: secs(1), burst: 40_000 }),
            records: 262_144,
            per_address: SourceLimits::default(),
            per_subnet: SourceLimits::default(),
            per_site: SourceLimits::default(),
        },
        bans: None,
        sample: None,
        cookies: Cookies { seed_file: None, epoch: secs(64) },
        peace: Peace {
            syns: Rate { amount: 2_000, every: secs(1), burst: 8_000 },
            flowless: Rate { amount: 1_000, every: secs(1), burst: 2_000 },
            repeats: Some(Rate::per_second(100)),
            resets: Some(Rate::per_second(100)),
        },
        proxy_keys: None,
        metrics: None,
        log: Log { level: Level::Info, connections: ConnectionLog::Stdout },
        warnings: vec![],
    };
    assert_eq!(parse("minimal.toml", MINIMAL), Ok(expected));
    let config = parse("minimal.toml", &format!("{MINIMAL}[metrics]\n")).unwrap();
    assert_eq!(config.metrics.unwrap().listen, "127.0.0.1:9150".parse().unwrap());
}

#[test]
fn gateway_is_a_text_or_a_list() {
    for gateway in [r#""198.51.100.1""#, r#"["198.51.100.1"]"#] {
        let text = MINIMAL.replace("[[service]]", &format!("gateway = {gateway}\n[[service]]"));
        assert_eq!(parse("f", &text).unwrap().ports[0].gateways, ["198.51.100.1".parse::<IpAddr>().unwrap()]);
    }
}

#[test]
fn first_data_is_switched_off_by_any_zero() {
    for zero in [r#""0""#, r#""0s""#, "0", r#""0ms""#] {
        let text = format!("{MINIMAL}[service.timeouts]\nfirst_data = {zero}\n");
        assert_eq!(parse("f", &text).unwrap().services[0].timeouts.first_data, Duration::ZERO);
        let text = format!("{MINIMAL}[service.timeouts]\nhalf_closed = {zero}\n");
        assert!(parse("f", &text).is_err());
    }
}

#[test]
fn dpdk_arguments_may_map_cores() {
    assert!(dpdk_args("--lcores 0@1,1@1 --log-level=8", Hugepages::Auto).is_ok());
    assert!(dpdk_args("--no-huge", Hugepages::Off).is_ok());
    assert!(dpdk_args("--no-huge", Hugepages::Auto).is_err());
    assert!(dpdk_args("a\0b", Hugepages::Off).is_err());
}

#[test]
fn dpdk_arguments_choose_no_other_kind_of_packet_pool() {
    for args in
        ["--mbuf-pool-ops-name=stack", "--log-level=8 --mbuf-pool-ops-name ring_sp_sc", "--mbuf=stack", "--mb stack"]
    {
        assert!(dpdk_args(args, Hugepages::Off).is_err(), "{args}");
    }
}

#[test]
fn a_link_local_gateway_is_on_link_with_any_ipv6_address() {
    let six = MINIMAL.replace("/24\"]", "/24\", \"2001:db8::2/64\"]");
    let with = |text: &str| text.replace("[[service]]", "gateway = \"fe80::1\"\n[[service]]");
    assert!(parse("f", &with(&six)).is_ok());
    assert!(parse("f", &with(MINIMAL)).is_err());
}

#[test]
fn a_routed_listen_address_may_be_a_source() {
    let text = MINIMAL.replace("198.51.100.10:443\"]", "192.0.2.10:443\"]\nsource = [\"192.0.2.10\"]");
    assert!(parse("f", &text).is_ok());
    assert!(parse("f", &text.replace("source = [\"192.0.2.10\"]", "source = [\"192.0.2.11\"]")).is_err());
}

/// A service that asks for every extension.
const EXTRAS: &str = r#"
[service.proxy_header]
unique_id = true
crc32c = true
authority = "www.example.com"
evidence = true
authenticate = true
[proxy_keys]
file = "/etc/sluice/proxy.keys"
"#;

#[test]
fn header_extensions_are_for_version_2() {
    let v2 = MINIMAL.replace("[[service]]", "[[service]]\nproxy_protocol = \"v2\"");
    let config = parse("f", &format!("{v2}{EXTRAS}")).unwrap();
    let extras = ProxyHeaderExtras {
        unique_id: true,
        crc32c: true,
        authority: Some("www.example.com".into()),
        evidence: true,
        authenticate: true,
    };
    assert_eq!((&config.services[0].proxy_header, extras.is_empty()), (&extras, false));
    assert_eq!(config.proxy_keys, Some("/etc/sluice/proxy.keys".into()));
    for version in ["off", "v1"] {
        let errors = parse("f", &format!("{v2}{EXTRAS}").replace("\"v2\"", &format!("{version:?}"))).unwrap_err();
        assert_eq!(errors.mistakes().len(), 5, "{errors}");
    }
    let off = EXTRAS.replace("true", "false").replace("authority", "# authority");
    assert!(parse("f", &format!("{MINIMAL}{off}")).unwrap().services[0].proxy_header.is_empty());
}

#[test]
fn a_wrong_key_file_is_one_mistake() {
    let v2 = MINIMAL.replace("[[service]]", "[[service]]\nproxy_protocol = \"v2\"");
    let errors = parse("f", &format!("{v2}{EXTRAS}").replace("/etc", "etc")).unwrap_err();
    assert_eq!(errors.mistakes().len(), 1, "{errors}");
}

#[test]
fn proxies_in_front_are_prefixes() {
    let text = MINIMAL.replace("[[service]]", "[[service]]\naccept_proxy = [\"10.0.0.0/8\", \"2001:db8::7\"]");
    let config = parse("f", &text).unwrap();
    let expected: Vec<IpNet> = vec!["10.0.0.0/8".parse().unwrap(), "2001:db8::7/128".parse().unwrap()];
    assert_eq!(config.services[0].accept_proxy, expected);
}

#[test]
fn consequences_of_a_mistake_are_not_reported() {
    // The port's address is wrong, so nothing is on-link; only the address is to blame.
    let text = MINIMAL.replace("198.51.100.2/24", "198.51.100.2/33");
    let errors = parse("f", &text).unwrap_err();
    assert_eq!(errors.mistakes().len(), 1, "{errors}");
}

/// Everything that a rule, a set and the sections beside them can say.
const FULL: &str = r#"
[[set]]
name = "blocklist"
prefixes = ["192.0.2.0/24", "2001:db8:bad::/48", "203.0.113.9"]
files = "/etc/sluice/blocklist.txt"
database = "/var/lib/GeoIP/GeoLite2-Country.mmdb"
countries = ["RU", "BY"]
asns = [64500, "AS64501"]

[[set]]
name = "allowlist"
prefixes = ["198.51.100.128/25"]

[[rule]]
name = "botnet"
action = "drop"
dry_run = true
source = ["@blocklist", "203.0.113.0/24"]
not_source = "@allowlist"
ip_version = 4
service = "web"
source_port = "1024-"
destination_port = [443, "8000-8999"]
flags = "syn !ack"
hop_limit = "-40"
ip_length = "40-60"
payload_length = 0
window = 1024
mss = "none"
window_scale = "0-14"
sack = false
timestamps = false
options = "nop window-scale 34"
payload = []
pcap = "ip[8] < 64"

[[rule]]
name = "greeting"
action = "pass"
mss = 1460
window_scale = "any"
payload = [{ text = "GET " }, { offset = 4, hex = "2f 00", mask = "ff f0" }]

[[rule]]
name = "slow"
action = "limit"
limit = "10MiB/s burst 20MiB"
of = "bytes"
per = "prefix"
prefix_v4 = 28
payload = { hex = "16" }

[filters]
syn_ack_ceiling = "off"
records = 1024
[filters.per_address]
syns = "50/s burst 100"
flowless_acks = "30/min"
[filters.per_subnet]
connections = "20/s"
packets = "20000/s"
[filters.per_site]
bytes = "100MiB/s burst 200MiB"

[bans]
file = "/var/lib/sluice/bans"
capacity = 5

[sample]
file = "/var/log/sluice/dropped.pcapng"
rate = "10/s"
snap = 128
max_size = "1GiB"
"#;

#[test]
fn sets_are_made_of_prefixes_files_and_a_database() {
    let config = parse("f", &format!("{MINIMAL}{FULL}")).unwrap_or_else(|e| panic!("{e}"));
    let nets = |texts: &[&str]| -> Vec<IpNet> { texts.iter().map(|text| text.parse().unwrap()).collect() };
    let blocklist = Set {
        name: "blocklist".into(),
        prefixes: nets(&["192.0.2.0/24", "2001:db8:bad::/48", "203.0.113.9/32"]),
        files: vec!["/etc/sluice/blocklist.txt".into()],
        on_error: OnError::KeepLast,
        shortest: Shortest::default(),
        geo: Some(Geo {
            database: "/var/lib/GeoIP/GeoLite2-Country.mmdb".into(),
            countries: vec!["RU".into(), "BY".into()],
            asns: vec![64_500, 64_501],
        }),
    };
    let allowlist = Set {
        name: "allowlist".into(),
        prefixes: nets(&["198.51.100.128/25"]),
        files: vec![],
        on_error: OnError::KeepLast,
        shortest: Shortest::default(),
        geo: None,
    };
    assert_eq!(config.sets, [blocklist, allowlist]);
}

#[test]
fn every_condition_of_a_rule_is_read() {
    let text = format!("{MINIMAL}{FULL}");
    let config = parse("f", &text).unwrap_or_else(|e| panic!("{e}"));
    let line = text.lines().position(|line| line.starts_with("pcap")).unwrap() + 1;
    let botnet = Matches {
        source: Sources { sets: vec![0], prefixes: vec!["203.0.113.0/24".parse().unwrap()] },
        not_source: Sources { sets: vec![1], prefixes: vec![] },
        ip_version: Some(4),
        services: vec![0],
        source_ports: vec![1_024..=65_535],
        destination_ports: vec![443..=443, 8_000..=8_999],
        flags: Some(FlagMatch { set: 0x02, clear: 0x10 }),
        hop_limit: Some(1..=40),
        ip_length: Some(40..=60),
        payload_length: Some(0..=0),
        window: Some(1_024..=1_024),
        mss: Some(OptionMatch::Absent),
        window_scale: Some(OptionMatch::Within(0..=14)),
        sack: Some(false),
        timestamps: Some(false),
        option_order: Some(vec![1, 3, 34]),
        payload: vec![],
        pcap: Some(Expression { text: "ip[8] < 64".into(), place: Place { line, column: 8 } }),
    };
    let botnet = Rule { name: "botnet".into(), matches: botnet, action: Action::Drop, dry_run: true };
    let greeting = Matches {
        mss: Some(OptionMatch::Within(1_460..=1_460)),
        window_scale: Some(OptionMatch::Within(0..=14)),
        payload: vec![
            PayloadMatch { offset: 0, value: b"GET ".to_vec(), mask: vec![0xff; 4] },
            PayloadMatch { offset: 4, value: vec![0x2f, 0], mask: vec![0xff, 0xf0] },
        ],
        ..Matches::default()
    };
    let greeting = Rule { name: "greeting".into(), matches: greeting, action: Action::Pass, dry_run: false };
    let payload = vec![PayloadMatch { offset: 0, value: vec![0x16], mask: vec![0xff] }];
    let limit = Limit {
        rate: Rate { burst: 20 << 20, ..Rate::per_second(10 << 20) },
        of: Measure::Bytes,
        per: Per::Prefix { v4: 28, v6: 64 },
    };
    let slow = Rule {
        name: "slow".into(),
        matches: Matches { payload, ..Matches::default() },
        action: Action::Limit(limit),
        dry_run: false,
    };
    assert_eq!(config.rules, [botnet, greeting, slow]);
}

#[test]
fn limits_bans_and_samples_are_read() {
    let config = parse("f", &format!("{MINIMAL}{FULL}")).unwrap_or_else(|e| panic!("{e}"));
    let per_second = Rate::per_second;
    let filters = Filters {
        syn_ack_ceiling: None,
        records: 1_024,
        per_address: SourceLimits {
            syns: Some(Rate { burst: 100, ..per_second(50) }),
            flowless_acks: Some(Rate { amount: 30, every: Duration::from_secs(60), burst: 1 }),
            ..SourceLimits::default()
        },
        per_subnet: SourceLimits {
            connections: Some(per_second(20)),
            packets: Some(per_second(20_000)),
            ..SourceLimits::default()
        },
        per_site: SourceLimits {
            bytes: Some(Rate { burst: 200 << 20, ..per_second(100 << 20) }),
            ..SourceLimits::default()
        },
        ..Filters::default()
    };
    assert_eq!(config.filters, filters);
    assert_eq!(
        config.bans,
        Some(Bans {
            file: Some("/var/lib/sluice/bans".into()),
            on_error: OnError::KeepLast,
            shortest: Shortest::default(),
            capacity: 5,
        })
    );
    let sample =
        Sample { file: "/var/log/sluice/dropped.pcapng".into(), rate: per_second(10), snap: 128, max_size: 1 << 30 };
    assert_eq!(config.sample, Some(sample));
    let config = parse("f", &format!("{MINIMAL}[bans]\n")).unwrap();
    let bans = Bans { file: None, on_error: OnError::KeepLast, shortest: Shortest::default(), capacity: 1_000_000 };
    assert_eq!(config.bans, Some(bans));
}

#[test]
fn peace_has_its_rates_and_repeats_and_resets_can_be_off() {
    let text = "[peace]\nsyns = \"5/s\"\nflowless = \"30/min burst 7\"\nrepeats = \"off\"\nresets = \"9/s\"\n";
    let config = parse("f", &format!("{MINIMAL}{text}")).unwrap_or_else(|e| panic!("{e}"));
    let peace = Peace {
        syns: Rate::per_second(5),
        flowless: Rate { amount: 30, every: Duration::from_secs(60), burst: 7 },
        repeats: None,
        resets: Some(Rate::per_second(9)),
    };
    assert_eq!(config.peace, peace);
    let errors = parse("f", &format!("{MINIMAL}[peace]\nresets = \"none\"\n")).unwrap_err().to_string();
    assert!(errors.contains("peace.resets: \"none\" is not a rate; write \"off\" for none"), "{errors}");
    for wrong in ["\"on\"", "\"Off\"", "true", "0"] {
        let errors = parse("f", &format!("{MINIMAL}[peace]\nresets = {wrong}\n")).unwrap_err().to_string();
        assert!(errors.contains("write a rate as in \"100/s\", or \"off\" for none"), "{errors}");
    }
}

#[test]
fn an_ipv6_address_that_ends_like_a_port_is_asked_what_was_meant() {
    let text = MINIMAL.replace("198.51.100.10:443", "2001:db8::1:10:443");
    assert_ne!(text, MINIMAL);
    let errors = parse("f", &text).unwrap_err().to_string();
    assert!(errors.contains("\"[2001:db8::1:10]:443\" if 443 is the port"), "{errors}");
    assert!(errors.contains("\"[2001:db8::1:10:443]:443\" if it is not"), "{errors}");
}

#[test]
fn a_catch_all_may_stand_last_or_only_count() {
    let rule = |name: &str, keys: &str| format!("[[rule]]\nname = \"{name}\"\n{keys}\n");
    let drop = "action = \"drop\"";
    let limit = "action = \"limit\"\nlimit = \"1/s\"";
    let one = rule("a", &format!("{drop}\nhop_limit = 9"));
    for sound in [
        format!("{one}{}", rule("z", drop)),
        format!("{}{}{}", rule("b", limit), rule("c", &format!("{drop}\ndry_run = true")), rule("z", drop)),
    ] {
        assert!(parse("f", &format!("{MINIMAL}{sound}")).is_ok(), "{sound}");
    }
    let errors = parse("f", &format!("{MINIMAL}{}{one}", rule("z", drop))).unwrap_err();
    assert_eq!(errors.mistakes().len(), 1, "{errors}");
}

#[test]
fn rules_sets_and_dry_runs_have_their_bounds() {
    let many = |n: usize, of: &dyn Fn(usize) -> String| (0..n).map(of).collect::<String>();
    let rule = |n| format!("[[rule]]\nname = \"r{n}\"\naction = \"drop\"\nhop_limit = 9\n");
    let set = |n| format!("[[set]]\nname = \"s{n}\"\nprefixes = [\"192.0.2.1\"]\n");
    let dry = |n| format!("{}dry_run = true\n", rule(n));
    let bounded: [(usize, &dyn Fn(usize) -> String); 3] = [(1_024, &rule), (1_024, &set), (63, &dry)];
    for (most, of) in bounded {
        assert!(parse("f", &format!("{MINIMAL}{}", many(most, of))).is_ok());
        let errors = parse("f", &format!("{MINIMAL}{}", many(most + 1, of))).unwrap_err();
        assert_eq!(errors.mistakes().len(), 1, "{errors}");
        assert!(errors.to_string().contains(&most.to_string()), "{errors}");
    }
}

#[test]
fn countries_and_networks_are_written_one_way() {
    let asked = |keys: &str| parse("f", &format!("{MINIMAL}{SET}database = \"/a.mmdb\"\n{keys}\n"));
    for keys in ["countries = \"DE\"", "asns = 4294967295", "asns = [1, \"AS2\"]", "asns = \"AS1\""] {
        assert!(asked(keys).is_ok(), "{keys}");
    }
    for (keys, remedy) in [
        ("countries = \"de\"", "\"DE\""),
        ("countries = \"UK\"", "\"GB\""),
        ("countries = \"DEU\"", "two capital letters"),
        ("countries = \"D1\"", "two capital letters"),
        ("countries = \"é\"", "two capital letters"),
        ("countries = [1]", "quotes"),
        ("asns = 0", "1 to 4294967295"),
        ("asns = 4294967296", "1 to 4294967295"),
        ("asns = \"64500\"", "64500 without quotes"),
        ("asns = \"as64500\"", "\"AS64500\""),
        ("asns = \"ASAS1\"", "\"AS1\""),
        ("asns = \"AS0\"", "\"AS64500\""),
        ("asns = \"AS\"", "\"AS64500\""),
        ("asns = \"AS+1\"", "\"AS64500\""),
    ] {
        let errors = asked(keys).expect_err(keys);
        let [mistake] = errors.mistakes() else { panic!("{errors}") };
        assert!(mistake.remedy.contains(remedy), "{keys}: {errors}");
    }
}

#[test]
fn idle_timeouts_can_be_off_and_half_closed_follows_them() {
    let timeouts = |lines: &str| {
        let text = format!("{MINIMAL}[service.timeouts]\n{lines}");
        parse("f", &text).map(|config| config.services[0].timeouts).map_err(|errors| errors.to_string())
    };
    let secs = |n| Some(Duration::from_secs(n));
    let read = timeouts("client_idle = \"10m\"\n").unwrap();
    assert_eq!((read.client_idle, read.upstream_idle, read.half_closed), (secs(600), secs(300), secs(600)));
    let read = timeouts("upstream_idle = \"off\"\n").unwrap();
    assert_eq!((read.client_idle, read.upstream_idle, read.half_closed), (secs(300), None, None));
    let read = timeouts("client_idle = \"off\"\nupstream_idle = \"off\"\nhalf_closed = \"30s\"\n").unwrap();
    assert_eq!((read.client_idle, read.upstream_idle, read.half_closed), (None, None, secs(30)));
    for wrong in ["client_idle = \"0s\"", "half_closed = \"169h\""] {
        let error = timeouts(wrong).unwrap_err();
        assert!(error.contains("write \"off\", or a duration from \"1ms\" to \"168h\""), "{error}");
    }
    assert!(timeouts("unacknowledged = \"off\"").unwrap_err().contains("unacknowledged"));
}

#[test]
fn each_side_may_be_asked_whether_it_is_there() {
    let read = |lines: &str| {
        let text = format!("{MINIMAL}[service.keepalive]\n{lines}\n");
        parse("f", &text).map(|config| config.services[0].keepalive).map_err(|errors| errors.to_string())
    };
    let asked = |interval, count| Some(KeepAlive { interval: Duration::from_secs(interval), count });
    let both = read("client = { interval = \"30s\" }\nupstream = { interval = \"2m\", count = 9 }").unwrap();
    assert_eq!(both, KeepAlives { client: asked(30, 4), upstream: asked(120, 9) });
    assert_eq!(asked(30, 4).unwrap().patience(), Duration::from_secs(150));
    assert_eq!(read("upstream = { interval = \"1s\" }").unwrap().client, None);
    for (wrong, told) in [
        ("client = { count = 3 }", "keepalive.client.interval: is missing; write interval = \"60s\""),
        ("client = { interval = \"1ms\" }", "\"1ms\" is too short"),
        ("client = { interval = \"1s\", count = 0 }", "keepalive.client.count"),
        ("client = \"30s\"", "keepalive.client"),
        ("server = { interval = \"1s\" }", "unknown key"),
    ] {
        let error = read(wrong).unwrap_err();
        assert!(error.contains(told), "{wrong}: {error}");
    }
}

#[test]
fn host_bits_below_a_prefix_warn_wherever_one_stands_and_say_what_is_covered() {
    let text = format!(
        "{MINIMAL}\n[filters]\ndeny = [\"192.0.2.7/24\"]\nshortest_prefix_v4 = 0\n[[set]]\nname = \"s\"\non_error = \"skip-line\"\n\
         prefixes = [\"2001:db8::1/32\"]\n[[rule]]\nname = \"r\"\nsource = [\"@s\", \"10.1.2.3/8\"]\naction = \"drop\"\n"
    );
    let config = parse("f", &text).unwrap_or_else(|e| panic!("{e}"));
    let said: Vec<String> = config.warnings.iter().map(ToString::to_string).collect();
    let ends = [
        "filters.deny[0]: \"192.0.2.7/24\" has bits set after its first 24: it covers 192.0.2.0/24; \
         write \"192.0.2.0/24\", or \"192.0.2.7\" for the one address",
        "set \"s\": prefixes[0]: \"2001:db8::1/32\" has bits set after its first 32: it covers 2001:db8::/32; \
         write \"2001:db8::/32\", or \"2001:db8::1\" for the one address",
        "rule \"r\": source[1]: \"10.1.2.3/8\" has bits set after its first 8: it covers 10.0.0.0/8; \
         write \"10.0.0.0/8\", or \"10.1.2.3\" for the one address",
    ];
    assert_eq!(said.len(), 3, "{said:?}");
    for (said, end) in said.iter().zip(ends) {
        assert!(said.starts_with("f:") && said.ends_with(end), "{said}");
    }
    assert_eq!(config.filters.deny, ["192.0.2.0/24".parse::<IpNet>().unwrap()]);
    assert_eq!((config.sets[0].on_error, config.sets[0].shortest), (OnError::SkipLine, Shortest { v4: 0, v6: 19 }));
}
