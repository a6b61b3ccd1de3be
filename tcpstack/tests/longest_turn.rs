//! The longest turn of a worker's stack and filters, in instructions: each piece of work that comes once in a while, at the size of a large
//! configuration, counted by callgrind.
//!
//! Each scenario is a test of its own that is ignored unless it is asked for by name: this program runs itself under valgrind, which
//! counts what `measured_turn` does, call by call. `cargo test --release --test longest_turn -- --nocapture` prints the figures of
//! docs/performance.md.

mod spliced;

use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use sluice_config::Config;
use sluice_filters::Flags;
use sluice_filters::engine::Plan;
use sluice_filters::sets::AddressSet;
use sluice_filters::units::Micros;
use sluice_tcpstack::stack::Outcome;

use self::spliced::{Lab, Session};

/// The most that a turn may take, instructions: with a debug build's checks some three times what a release takes.
const MOST: u64 = if cfg!(debug_assertions) { 2_500_000 } else { 800_000 };

/// A service for each of the configuration's largest number of them.
const SERVICES: u32 = 4_096 / TENTH;
const UPSTREAMS: u32 = 16;
/// Sizes of the release's figures, and a tenth of them, which shows whether a turn grows with it.
const TENTH: u32 = if cfg!(debug_assertions) { 10 } else { 1 };
const SESSIONS: u32 = 40_000 / TENTH;
const PREFIXES: u32 = 1_000_000 / TENTH;
const BANS: u32 = PREFIXES;

/// What a turn has to do besides what comes every time.
type Work<'a> = &'a mut dyn FnMut(&mut Lab);

/// A turn as a worker has it. Counted by name.
#[inline(never)]
pub fn measured_turn(lab: &mut Lab, work: Work<'_>) {
    lab.stack.begin_turn(lab.now, Duration::from_micros(lab.now.0));
    work(lab);
    lab.stack.probe(lab.now, &mut lab.wire);
    lab.stack.run_timers(lab.now, 256, &mut lab.wire);
    lab.stack.serve(lab.now, &mut lab.wire);
    lab.stack.filters.sweep(lab.now);
    // Every turn, though a worker does it a few times a second.
    lab.stack.publish(lab.now);
    lab.stack.forget_changed_offers();
}

fn turns(lab: &mut Lab, count: u32, step: u64, mut work: impl FnMut(&mut Lab, u32)) {
    for turn in 0..count {
        lab.now.0 += step;
        measured_turn(lab, &mut |lab| work(lab, turn));
    }
}

/// Many services, all of them spliced.
fn many(extra: &str) -> Arc<Config> {
    let services: String = (0..SERVICES)
        .map(|n| {
            let upstreams: String = (0..UPSTREAMS)
                .map(|m| format!("[[service.upstream]]\naddress = \"10.1.{}.{}:{}\"\n", n >> 8, n & 255, 8000 + m))
                .collect();
            let listen = if n == 0 { "198.51.100.10:443".to_owned() } else { format!("203.{}.{}.1:443", n >> 8, n & 255) };
            format!("[[service]]\nname = \"s{n}\"\nlisten = [\"{listen}\"]\nmode = \"splice\"\nlimits = {{ connections = 60000 }}\n{extra}{upstreams}")
        })
        .collect();
    let text = format!(
        "[[port]]\nname = \"wan\"\ndevice = \"net_null0\"\naddresses = [\"198.51.100.2/24\"]\ngateway = \"198.51.100.1\"\n\
         [[port]]\nname = \"lan\"\ndevice = \"net_null1\"\naddresses = [\"10.0.0.2/8\"]\n{services}"
    );
    Arc::new(sluice_config::parse("many.toml", &text).unwrap_or_else(|errors| panic!("{errors}")))
}

/// A spliced session that its upstream closes first.
fn closed(lab: &mut Lab, session: &Session) {
    lab.forwarded(session.down(0).flags(Flags::ACK | Flags::FIN).build(), false);
    let fin = session.up(0).flags(Flags::ACK | Flags::FIN).ack(session.cookie.wrapping_add(2)).build();
    lab.forwarded(fin, true);
    lab.forwarded(session.down(1).ack(session.client_isn.wrapping_add(2)).build(), false);
}

const PINNED: &str = "promise = { probe = \"0s\", mss = 1460, window_scale = 7, sack = true, timestamps = true }\n";

#[test]
#[ignore = "counted by callgrind"]
fn epochs_of_thousands_of_services_begin() {
    let mut lab = Lab::with(many(PINNED));
    turns(&mut lab, 200, 1_000_000, |_, _| {});
}

#[test]
#[ignore = "counted by callgrind"]
fn thousands_of_upstreams_are_probed() {
    let mut lab = Lab::with(many(""));
    // All at once, then all in vain: nobody answers.
    turns(&mut lab, 2_000, 1_000, |_, _| {});
}

#[test]
#[ignore = "counted by callgrind"]
fn the_first_dial_is_made_between_two_addresses() {
    let mut lab = Lab::with(many(PINNED));
    turns(&mut lab, 40, 1_000, |lab, n| lab.dialled_by(n));
}

#[test]
#[ignore = "counted by callgrind"]
fn every_source_port_of_a_pair_is_taken() {
    let mut lab = Lab::with(spliced::config(100_000, 7, 1));
    // All there are, in the release.
    for n in 0..64_512 / TENTH {
        let session = lab.open(n);
        closed(&mut lab, &session);
    }
    turns(&mut lab, 100, 1_000, |lab, n| lab.dialled_by(100_000 + n));
}

#[test]
#[ignore = "counted by callgrind"]
fn a_set_of_a_million_prefixes_is_exchanged() {
    let config = spliced::config(1_000, 7, 1);
    let plan = |from: u32| {
        let ranges = (0..PREFIXES).map(|n| (from + n * 512, from + n * 512 + 255)).collect();
        let mut config = Config::clone(&config);
        let set = "[[set]]\nname = \"x\"\nprefixes = [\"192.0.2.0/24\"]\n[[rule]]\nname = \"r\"\nsource = [\"@x\"]\naction = \"drop\"\n";
        let text = format!(
            "[[port]]\nname = \"p\"\ndevice = \"net_null0\"\naddresses = [\"198.51.100.2/24\"]\n[[service]]\nname = \"s\"\nlisten = [\"198.51.100.10:443\"]\n[[service.upstream]]\naddress = \"198.51.100.5:80\"\n{set}"
        );
        let with = sluice_config::parse("set.toml", &text).unwrap_or_else(|errors| panic!("{errors}"));
        (config.sets, config.rules) = (with.sets, with.rules);
        Arc::new(Plan::compile("set.toml", &config, &[AddressSet::from_ranges(ranges, Vec::new())], 1).unwrap())
    };
    let (one, two) = (plan(0x0100_0000), plan(0x0200_0000));
    let mut lab = Lab::with(config.clone());
    turns(&mut lab, 6, 1_000, |lab, n| {
        drop(lab.stack.filters.replace(Arc::clone(if n % 2 == 0 { &one } else { &two })))
    });
}

#[test]
#[ignore = "counted by callgrind"]
fn a_million_bans_come_and_end() {
    let mut config = Config::clone(&spliced::config(1_000, 7, 1));
    config.bans = Some(sluice_config::Bans {
        file: None,
        on_error: sluice_config::OnError::KeepLast,
        shortest: sluice_config::Shortest::default(),
        capacity: BANS,
    });
    let mut lab = Lab::with(Arc::new(config));
    let ban = |lab: &mut Lab, n: u32, until: u64| {
        let net = std::net::Ipv4Addr::from(0x0b00_0000 + n * 7);
        lab.stack.filters.ban(ipnet::IpNet::new(net.into(), 32).unwrap(), Micros(until), 0).unwrap();
    };
    for n in 0..BANS - 3_200 {
        ban(&mut lab, n, 3_000_000);
    }
    // As many as a turn follows orders; then all of them end.
    turns(&mut lab, 100, 1_000, |lab, n| (0..32).for_each(|m| ban(lab, BANS - 3_200 + 32 * n + m, 3_000_000)));
    turns(&mut lab, 100, 3_000_000, |_, _| {});
}

#[test]
#[ignore = "counted by callgrind"]
fn tables_grow_with_their_sessions() {
    let mut lab = Lab::with(spliced::config(100_000, 7, 20));
    // All of a power of two, at which tables would move.
    let mut n = 0;
    for boundary in [1 << 10, 1 << 11, 1 << 12, (1 << 15) / TENTH.next_power_of_two()] {
        while n < boundary - 4 {
            lab.open(n);
            n += 1;
        }
        turns(&mut lab, 8, 1_000, |lab, _| {
            lab.dialled_by(n);
            n += 1;
        });
    }
}

#[test]
#[ignore = "counted by callgrind"]
fn all_timers_are_due_and_all_sessions_are_reset() {
    let mut lab = Lab::with(spliced::config(100_000, 7, 20));
    for n in 0..SESSIONS {
        lab.open(n);
    }
    // Once a quarter of `unacknowledged` each session looks after itself.
    turns(&mut lab, 50, 15_000_000, |_, _| {});
    turns(&mut lab, 50, 1_000, |lab, _| lab.stack.reset_some(lab.now, &mut lab.wire));
}

impl Lab {
    /// The dial of client number `n`, whose handshake is made before.
    fn dialled_by(&mut self, n: u32) {
        let (_, mut ack) = self.knock_from((sluice_filters::addr::Addr::v4(0x0c00_0000 + n), 50_000), n);
        assert_eq!(self.receive(&mut ack, true), Ok(Outcome::Consumed));
    }
}

/// Instructions of each call of `measured_turn` in a scenario.
fn count(scenario: &str) -> Vec<u64> {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let out = dir.path().join("out");
    let me = std::env::current_exe().expect("this program");
    let run = Command::new("valgrind")
        .arg("--tool=callgrind")
        .arg(format!("--callgrind-out-file={}", out.display()))
        .args(["--toggle-collect=longest_turn::measured_turn", "--dump-after=longest_turn::measured_turn"])
        .arg(me)
        .args(["--exact", scenario, "--ignored"])
        .output()
        .expect("valgrind runs");
    assert!(run.status.success(), "{scenario}: {}", String::from_utf8_lossy(&run.stderr));
    let files = std::fs::read_dir(dir.path()).expect("callgrind's files");
    let totals = files.filter_map(|file| {
        let text = std::fs::read_to_string(file.ok()?.path()).ok()?;
        let line = text.lines().find(|line| line.starts_with("summary:") || line.starts_with("totals:"))?;
        line.split_whitespace().nth(1)?.parse().ok()
    });
    totals.filter(|instructions| *instructions > 0).collect()
}

/// The longest turn of a scenario that has so many.
fn longest(scenario: &str, at_least: usize) -> u64 {
    let counts = count(scenario);
    assert!(counts.len() >= at_least, "{scenario}: {} turns were counted", counts.len());
    let longest = counts.iter().copied().max().unwrap_or(0);
    println!("{scenario}: {longest} instructions at most in {} turns", counts.len());
    longest
}

#[test]
fn no_turn_takes_more_than_its_time_whatever_comes_up() {
    let scenarios = [
        ("epochs_of_thousands_of_services_begin", 200),
        ("thousands_of_upstreams_are_probed", 2_000),
        ("the_first_dial_is_made_between_two_addresses", 40),
        ("every_source_port_of_a_pair_is_taken", 100),
        ("a_set_of_a_million_prefixes_is_exchanged", 6),
        ("a_million_bans_come_and_end", 200),
        ("tables_grow_with_their_sessions", 32),
        ("all_timers_are_due_and_all_sessions_are_reset", 100),
    ];
    let longest = scenarios.map(|(scenario, at_least)| (scenario, longest(scenario, at_least)));
    let too_long: Vec<_> = longest.into_iter().filter(|(_, instructions)| *instructions > MOST).collect();
    assert!(too_long.is_empty(), "more than {MOST} instructions: {too_long:?}");
}
