//! The operator's guide (docs/filters.md) is true: every block of configuration is accepted, every command prints what the guide shows,
//! and every recipe cuts its attack and none of the clients.

mod common;

use std::net::IpAddr;
use std::path::Path;

use common::{Tape, WEB, anywhere, capture, clients, connection, flood, sluice_in, syn, text};
use sluice_control::capture::Capture;
use sluice_filters::testkit::mmdb::{Mmdb, country};
use sluice_filters::testkit::{Opt, tcp};
use sluice_filters::{DropReason, Flags, Parsed, RxChecksums, parse};

const GUIDE: &str = include_str!("../../docs/filters.md");

/// A fenced block of the guide.
#[derive(Debug)]
struct Block {
    /// The heading above it.
    heading: String,
    language: String,
    body: String,
    /// Of the fence, from 1.
    line: usize,
}

fn blocks() -> Vec<Block> {
    let (mut blocks, mut heading, mut open) = (Vec::new(), String::new(), None::<Block>);
    for (number, line) in GUIDE.lines().enumerate() {
        match (&mut open, line.strip_prefix("```")) {
            (None, Some(language)) => {
                let (language, line) = (language.to_owned(), number + 1);
                open = Some(Block { heading: heading.clone(), language, body: String::new(), line });
            }
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (Some(block), None) => {
                block.body.push_str(line);
                block.body.push('\n');
            }
            (None, None) => {
                if let Some(title) = line.strip_prefix("## ").or_else(|| line.strip_prefix("### ")) {
                    title.clone_into(&mut heading);
                }
            }
        }
    }
    blocks
}

/// The configurations below a heading.
fn recipes(heading: &str) -> Vec<String> {
    let recipes: Vec<String> = blocks()
        .into_iter()
        .filter(|block| block.language == "toml" && block.heading == heading)
        .map(|block| block.body)
        .collect();
    assert!(!recipes.is_empty(), "no recipe {heading:?}");
    recipes
}

/// A folder with the files that the guide's sets name. Absolute paths of configurations lead into it.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Place {
        let place = Place(tempfile::tempdir().unwrap());
        let root = place.path();
        for folder in ["etc/sluice", "var/lib/GeoIP", "var/lib/sluice", "var/log/sluice"] {
            std::fs::create_dir_all(root.join(folder)).unwrap();
        }
        std::fs::write(root.join("etc/sluice/blocklist.txt"), "198.18.0.0/15\n2001:db8:bad::/48\n").unwrap();
        std::fs::write(root.join("etc/sluice/customers.txt"), "# ours\n203.0.113.0/24\n2001:db8:c::/48\n").unwrap();
        let database = Mmdb::new("GeoLite2-Country")
            .insert("203.0.113.0/25", &country("DE", "DE"))
            .insert("203.0.113.128/26", &country("AT", "AT"))
            .insert("203.0.113.192/26", &country("CH", "CH"))
            .insert("2.0.0.0/8", &country("FR", "FR"))
            .insert("3.0.0.0/8", &country("US", "US"));
        std::fs::write(root.join("var/lib/GeoIP/GeoLite2-Country.mmdb"), database.build()).unwrap();
        place
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn config(&self, name: &str, ending: &str) {
        let root = self.path().display();
        let ending = ending.replace("\"/", &format!("\"{root}/"));
        common::config(self.path(), name, &ending);
    }

    /// The binary's answer, without this place's name in it.
    fn answer(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let output = sluice_in(self.path(), arguments);
        let said = format!("{}{}", text(&output.stdout), text(&output.stderr));
        (output.status.code(), said.replace(&self.path().display().to_string(), ""))
    }
}

/// What became of an attack among clients.
#[derive(Debug, Default, PartialEq)]
struct Fate {
    attack: u64,
    attack_dropped: u64,
    clients_dropped: u64,
    /// The reason of most drops.
    reason: String,
}

const CLIENTS: &str = "203.0.113.0/24";

fn source(frame: &[u8]) -> IpAddr {
    match parse(frame, RxChecksums::default()) {
        Ok(Parsed::Tcp(segment)) => segment.key.src.to_ip(),
        other => panic!("{other:?}"),
    }
}

/// Replays `attack` amid clients through the binary.
fn among_clients(recipe: &str, attack: &Tape) -> Fate {
    among(recipe, attack, &clients())
}

fn among(recipe: &str, attack: &Tape, clients: &Tape) -> Fate {
    let place = Place::new();
    place.config("sluice.toml", recipe);
    capture(&place.path().join("mixed.pcap"), &[clients, attack]);
    let arguments = ["replay", "-c", "sluice.toml", "--json", "--write-dropped", "dropped.pcap", "mixed.pcap"];
    let (code, said) = place.answer(&arguments);
    assert_eq!(code, Some(0), "{said}");
    let report: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(report["packets"], clients.len() + attack.len());
    let outcomes = report["outcomes"].as_array().unwrap();
    let dropped = outcomes.iter().filter(|line| !line["reason"].is_null());
    let most = dropped.max_by_key(|line| line["packets"].as_u64());
    let reason = most.map_or(String::new(), |line| line["reason"].as_str().unwrap().to_owned());

    let net: ipnet::IpNet = CLIENTS.parse().unwrap();
    let mut fate = Fate { attack: attack.len() as u64, reason, ..Fate::default() };
    let mut written = Capture::open(&place.path().join("dropped.pcap")).unwrap();
    while let Some(packet) = written.next().unwrap() {
        if net.contains(&source(packet.frame)) { fate.clients_dropped += 1 } else { fate.attack_dropped += 1 }
    }
    assert_eq!(report["dropped_packets"], fate.attack_dropped + fate.clients_dropped);
    fate
}

/// The recipe with its rules armed.
fn armed(recipe: &str) -> String {
    recipe.replace("dry_run = true\n", "")
}

/// A recipe whose rule is on trial first: it drops nothing, counts all of the attack and no client, and armed it cuts exactly that.
fn cuts_when_armed(heading: &str, attack: &Tape) {
    let recipe = &recipes(heading)[0];
    let place = Place::new();
    place.config("sluice.toml", recipe);
    capture(&place.path().join("mixed.pcap"), &[&clients(), attack]);
    let (_, said) = place.answer(&["replay", "-c", "sluice.toml", "--json", "mixed.pcap"]);
    let report: serde_json::Value = serde_json::from_str(&said).unwrap();
    let rule = &report["rules"][0];
    assert_eq!((report["dropped_packets"].as_u64(), rule["dry_run"].as_bool()), (Some(0), Some(true)), "{heading}");
    assert_eq!((&rule["cut_packets"], &rule["cut_clients"]), (&attack.len().into(), &0.into()), "{heading}");
    all_cut(heading, &armed(recipe), attack, "rule");
}

fn all_cut(heading: &str, recipe: &str, attack: &Tape, reason: &str) {
    let fate = among_clients(recipe, attack);
    let count = attack.len() as u64;
    let wanted = Fate { attack: count, attack_dropped: count, clients_dropped: 0, reason: reason.to_owned() };
    assert_eq!(fate, wanted, "{heading}");
}

/// A recipe with a limit: what is within passes, and no client suffers.
fn held_to(heading: &str, recipe: &str, attack: &Tape, within: std::ops::RangeInclusive<u64>, reason: &str) {
    let fate = among_clients(recipe, attack);
    assert_eq!((fate.clients_dropped, fate.reason.as_str()), (0, reason), "{heading}: {fate:?}");
    let passed = fate.attack - fate.attack_dropped;
    assert!(within.contains(&passed), "{heading}: {passed} of {} passed", fate.attack);
}

/// SYNs of a flood tool: without options, window 1024.
fn tool_syns(count: u64) -> Tape {
    flood(count, |n| syn(&anywhere(n)).options([]).window(1_024).hop_limit(240))
}

#[test]
fn every_block_of_configuration_is_accepted() {
    for block in blocks().iter().filter(|block| block.language == "toml") {
        let place = Place::new();
        place.config("sluice.toml", &block.body);
        let (code, said) = place.answer(&["check", "-c", "sluice.toml"]);
        assert_eq!(code, Some(0), "docs/filters.md:{}: {said}\n{}", block.line, block.body);
    }
}

#[test]
fn every_command_that_is_shown_prints_what_is_shown() {
    let (mut configuration, mut shown) = (String::new(), 0);
    for block in blocks() {
        if block.language == "toml" {
            configuration = block.body;
            continue;
        }
        if block.language != "console" {
            continue;
        }
        let place = Place::new();
        place.config("sluice.toml", &configuration);
        capture(&place.path().join("botnet.pcap"), &[&clients(), &tool_syns(2_000)]);
        if block.body.contains("blocklist.txt:2:") {
            std::fs::write(place.path().join("etc/sluice/blocklist.txt"), "192.0.2.0/24\n192.0.2.300\n").unwrap();
        }
        for example in block.body.split("$ sluice ").skip(1) {
            let (command, wanted) = example.split_once('\n').unwrap();
            // One argument in single quotes at most.
            let mut arguments = Vec::new();
            for (index, part) in command.split('\'').enumerate() {
                if index % 2 == 1 { arguments.push(part) } else { arguments.extend(part.split_whitespace()) }
            }
            let (_, said) = place.answer(&arguments);
            assert_eq!(said, wanted, "docs/filters.md:{}: {command}", block.line);
            shown += 1;
        }
    }
    assert!(shown >= 4, "{shown}");
}

#[test]
fn every_drop_reason_is_explained() {
    let (_, explained) = GUIDE.split_once("\n## Every drop reason explained\n").unwrap();
    let rows: Vec<&str> = explained.lines().filter_map(|line| line.strip_prefix("| `")).collect();
    for reason in DropReason::ALL {
        let name = format!("`{}`", reason.as_str());
        let rows =
            rows.iter().filter(|row| format!("`{row}").split('|').next().is_some_and(|cell| cell.contains(&name)));
        assert_eq!(rows.count(), 1, "{name}");
    }
}

#[test]
fn every_recipe_says_how_to_try_it_and_what_to_watch() {
    let (_, cookbook) = GUIDE.split_once("\n## Cookbook\n").unwrap();
    let (cookbook, _) = cookbook.split_once("\n## ").unwrap();
    for recipe in cookbook.split("\n### ").skip(1) {
        for part in ["```toml\n", "\n*Try:* ", "\n*Watch:* "] {
            assert!(recipe.contains(part), "{part:?} is missing in {}", recipe.lines().next().unwrap());
        }
    }
}

#[test]
fn links_within_the_guide_lead_to_its_headings() {
    let anchors: Vec<String> = GUIDE
        .lines()
        .filter_map(|line| line.strip_prefix("## ").or_else(|| line.strip_prefix("### ")))
        .map(|title| title.to_lowercase().replace(' ', "-").replace([',', '.'], ""))
        .collect();
    for link in GUIDE.split("](#").skip(1) {
        let (anchor, _) = link.split_once(')').unwrap();
        assert!(anchors.iter().any(|known| known == anchor), "#{anchor}");
    }
}

#[test]
fn syns_without_an_mss_are_cut_and_clients_are_not() {
    cuts_when_armed("SYN flood from random sources", &tool_syns(5_000));
}

#[test]
fn few_flooding_sources_are_held_to_their_limit() {
    let recipe = &recipes("SYN flood from few sources")[0];
    let attack = flood(20_000, |n| syn(&format!("192.0.2.{}:{}", n % 3, 1_024 + n % 60_000)));
    // Three sources with a burst of 60, and 20 a second for four seconds.
    held_to("few", recipe, &attack, 180..=3 * (60 + 80), "source_syns");
}

#[test]
fn bots_of_one_make_are_cut_and_a_client_like_them_is_counted_as_collateral() {
    let options = [Opt::Mss(1_440), Opt::Nop, Opt::Nop, Opt::SackPermitted];
    let bot = |from: &str| syn(from).options(options.clone()).window(8_192).hop_limit(110);
    let heading = "Botnet with one fingerprint";
    let attack = flood(5_000, |n| bot(&anywhere(n)));
    cuts_when_armed(heading, &attack);

    let place = Place::new();
    place.config("sluice.toml", &recipes(heading)[0]);
    let mut like_them = connection("203.0.113.200:40000", 0);
    like_them[0].1 = bot("203.0.113.200:40000").build();
    capture(&place.path().join("mixed.pcap"), &[&clients(), &attack, &like_them]);
    let (_, said) = place.answer(&["replay", "-c", "sluice.toml", "--json", "mixed.pcap"]);
    let report: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(report["rules"][0]["cut_clients"], 1, "{said}");
}

#[test]
fn flowless_acks_are_held_to_their_limit_and_the_rest_fails_the_cookie() {
    let recipe = &recipes("ACK flood")[0];
    let ack = |n: u64| tcp(format!("192.0.2.{}:{}", n % 2, 1_024 + n % 60_000).as_str(), WEB).seq(n as u32);
    all_cut("ACK flood", recipe, &flood(10_000, ack), "source_flowless_acks");
    let spread = flood(10_000, |n| tcp(anywhere(n).as_str(), WEB));
    all_cut("ACK flood", recipe, &spread, "bad_cookie");
}

#[test]
fn rsts_are_held_to_their_limit_and_the_rest_has_no_connection() {
    let rst = |n: u64| tcp(format!("192.0.2.{}:{}", n % 2, 1_024 + n % 60_000).as_str(), WEB).flags(Flags::RST);
    all_cut("RST flood", &recipes("RST flood")[0], &flood(10_000, rst), "rule_limit");
}

#[test]
fn a_victims_network_gets_no_more_answers_than_the_ceiling() {
    let recipe = &recipes("The appliance as reflector")[0];
    let attack = flood(20_000, |n| syn(&format!("192.0.2.{}:{}", n % 256, 1_024 + n % 60_000)));
    held_to("ceiling", recipe, &attack, 1_000..=3_000, "syn_ack_ceiling");
}

#[test]
fn clients_of_the_victims_network_that_proved_themselves_are_answered_over_the_ceiling() {
    let recipe = &recipes("The appliance as reflector")[0];
    // The clients' own network is the victim; each client comes once before the flood and once during it.
    let before: Tape = clients();
    let during =
        (0..40).flat_map(|n| connection(&format!("203.0.113.{}:{}", n + 1, 50_000 + n), 5_000_000 + n * 50_000));
    let victim: Tape = flood(20_000, |n| syn(&format!("203.0.113.{}:{}", 100 + n % 100, 1_024 + n % 60_000)))
        .into_iter()
        .map(|(at, frame)| (at + 4_500_000, frame))
        .collect();
    let place = Place::new();
    place.config("sluice.toml", recipe);
    capture(&place.path().join("mixed.pcap"), &[&before, &during.collect(), &victim]);
    let (_, said) = place.answer(&["replay", "-c", "sluice.toml", "--json", "mixed.pcap"]);
    let report: serde_json::Value = serde_json::from_str(&said).unwrap();
    let of = |outcome: &str| {
        let lines = report["outcomes"].as_array().unwrap();
        lines.iter().find(|line| line["outcome"] == outcome).map_or(0, |line| line["packets"].as_u64().unwrap())
    };
    assert_eq!(of("cookie right, connection opens"), 80, "{said}");
    assert!(of("dropped: syn_ack_ceiling") > 15_000, "{said}");
}

#[test]
fn reflected_syn_acks_are_cut_by_the_rule() {
    let syn_ack = |n: u64| tcp(anywhere(n).as_str(), WEB).flags(Flags::SYN | Flags::ACK).options([Opt::Mss(1_460)]);
    all_cut("reflection", &recipes("Reflection towards us")[0], &flood(5_000, syn_ack), "rule");
}

#[test]
fn a_country_lock_cuts_foreign_and_unknown_addresses_and_spares_home_and_travellers() {
    let attack = flood(2_000, |n| syn(&format!("{}.{}.7.9:{}", 2 + n % 3, n % 250, 1_024 + n)));
    cuts_when_armed("Country lock", &attack);
    let recipe = armed(&recipes("Country lock")[0]);
    let travellers = connection("192.0.2.70:40000", 0);
    let fate = among(&recipe, &travellers, &vec![]);
    assert_eq!(fate.attack_dropped, 0, "{fate:?}");
}

#[test]
fn under_attack_customers_pass_and_strangers_share_what_is_left() {
    let [shared, closed] = &recipes("Allow-list under attack")[..] else { panic!() };
    let attack = flood(20_000, |n| syn(&anywhere(n)));
    held_to("shared", shared, &attack, 500..=2_500, "rule_limit");
    all_cut("closed", closed, &attack, "not_allowed");
}

#[test]
fn connection_floods_are_held_to_their_limit() {
    let recipe = &recipes("Slow clients and connection floods")[0];
    let opening = |n: u64| {
        let from = format!("192.0.2.7:{}", 10_000 + n);
        connection(&from, n * 4_000).into_iter().take(3).collect::<Tape>()
    };
    let attack: Tape = (0..900).flat_map(opening).collect();
    let fate = among_clients(recipe, &attack);
    assert_eq!((fate.clients_dropped, fate.reason.as_str()), (0, "source_connections"), "{fate:?}");
    // Of 900 attempts 30 at once and 5 a second for 3.6 seconds.
    assert!((848..=870).contains(&fate.attack_dropped), "{fate:?}");
}

#[test]
fn a_hog_is_held_to_its_rate() {
    let recipe = &recipes("Bandwidth hogs")[0];
    let mut attack = connection("192.0.2.7:40000", 0);
    attack.truncate(3);
    let data = |n: u64| tcp("192.0.2.7:40000", WEB).seq(101 + n as u32 * 1_400).ack(5_001).payload(vec![7; 1_400]);
    attack.extend((0..20_000).map(|n| (30_000 + n * 190, data(n).build())));
    // 2 MiB at once and 1 MiB a second for 3.8 seconds, in packets of 1,440 octets.
    let all = (2 << 20) + (4 << 20);
    held_to("hog", recipe, &attack, 3_000..=all / 1_440, "source_bytes");
}

#[test]
fn a_scanner_is_refused_and_shut_out_by_its_ban() {
    let place = Place::new();
    place.config("sluice.toml", &recipes("Scanning")[0]);
    let bans = "192.0.2.7 2026-12-01T00:00:00Z scanner\n";
    std::fs::write(place.path().join("var/lib/sluice/bans"), bans).unwrap();
    let scan =
        flood(1_000, |n| tcp("192.0.2.7:40000", format!("198.51.100.10:{}", 1_000 + n).as_str()).flags(Flags::SYN));
    capture(&place.path().join("scan.pcap"), &[&clients(), &scan, &connection("192.0.2.7:40001", 0)]);
    let (_, said) = place.answer(&["replay", "-c", "sluice.toml", "scan.pcap"]);
    let count = |outcome: &str| {
        let line = said.lines().find_map(|line| line.strip_prefix(outcome)).unwrap_or_default();
        line.split_whitespace().next().and_then(|packets| packets.parse::<u64>().ok())
    };
    assert_eq!(
        (count("dropped: not_a_service"), count("dropped: banned")),
        (None, Some(1_008)),
        "a ban is asked first: {said}"
    );
    let (_, said) = place.answer(&[
        "explain",
        "-c",
        "sluice.toml",
        "--time",
        "2026-11-01T00:00:00Z",
        "192.0.2.7:1 > 198.51.100.10:443",
    ]);
    assert!(
        said.contains("\nban        192.0.2.7/32 until 2026-12-01T00:00:00Z: scanner\nverdict    dropped: banned\n"),
        "{said}"
    );
    // Customers are exempt, and the list that exempts them shuts nobody out.
    let exempt =
        recipes("Scanning").join("\n").replace("203.0.113.0/24", "192.0.2.7").replace("192.0.2.0/24", "192.0.2.128/25");
    place.config("sluice.toml", &exempt);
    let (_, said) = place.answer(&["replay", "-c", "sluice.toml", "scan.pcap"]);
    assert!(!said.contains("banned") && !said.contains("not_allowed"), "{said}");
}
