use std::time::Duration;

use super::*;
use crate::sets::AddressSet;
use crate::testkit::{Opt, TcpBuilder, tcp};
use crate::units::ServiceId;
use crate::{Flags, Parsed, RxChecksums, glance, parse};

const PORTS_AND_SERVICES: &str = r#"
[[port]]
name = "wan"
device = "net_null0"
addresses = ["198.51.100.2/24", "2001:db8::2/64"]
[[service]]
name = "web"
listen = ["198.51.100.10:443", "[2001:db8::10]:443"]
[[service.upstream]]
address = "198.51.100.5:80"
[[service]]
name = "ssh"
listen = ["198.51.100.11:22"]
[[service.upstream]]
address = "198.51.100.5:22"
"#;

const WEB: &str = "198.51.100.10:443";
const WEB6: &str = "[2001:db8::10]:443";
const CLIENT: &str = "203.0.113.7:40000";
const CLIENT6: &str = "[2001:db8:7::1]:40000";

/// An engine under a virtual clock.
struct Script {
    engine: Engine,
    config: sluice_config::Config,
    counters: Arc<FilterCounters>,
    now: Micros,
}

impl Script {
    fn new(text: &str) -> Script {
        Script::of(text, &[], 1)
    }

    fn of(text: &str, sets: &[AddressSet], workers: usize) -> Script {
        let config = sluice_config::parse("test.toml", &format!("{PORTS_AND_SERVICES}{text}")).unwrap();
        let counters = Arc::new(FilterCounters::new(&config));
        let plan = Plan::compile("test.toml", &config, sets, workers).unwrap();
        let engine = Engine::new(Arc::new(plan), [1, 2], Arc::clone(&counters));
        Script { engine, config, counters, now: Micros(1_000_000) }
    }

    fn after(&mut self, time: Duration) -> &mut Script {
        self.now = self.now.after(time);
        self
    }

    fn with<R>(&mut self, frame: &TcpBuilder, serve: impl FnOnce(&mut Engine, &Facts<'_>, Micros) -> R) -> R {
        let frame = frame.build();
        let Ok(Parsed::Tcp(segment)) = parse(&frame, RxChecksums::default()) else { panic!() };
        let ports = &self.config.services;
        let service = ports.iter().position(|s| s.listen.contains(&segment.key.local())).expect("a service");
        let facts = Facts { segment: &segment, frame: &frame, service: ServiceId(service as u16) };
        serve(&mut self.engine, &facts, self.now)
    }

    /// What the engine says of a segment on arrival.
    fn rx(&mut self, frame: &TcpBuilder) -> Result<(), DropReason> {
        self.with(frame, |engine, facts, now| engine.check(facts, now))
    }

    /// How many of `count` segments pass on arrival.
    fn passed(&mut self, frame: &TcpBuilder, count: usize) -> usize {
        (0..count).filter(|_| self.rx(frame).is_ok()).count()
    }

    /// A client returns a cookie that is right; whether it may open a connection.
    fn opens(&mut self, from: &str, to: &str) -> Result<(), DropReason> {
        let ack = tcp(from, to).flags(Flags::ACK);
        self.with(&ack, |engine, facts, now| {
            engine.check(facts, now)?;
            engine.flowless(facts.segment.key.src, now)?;
            engine.verified(facts.segment.key.src, now);
            engine.open(facts, now)
        })
    }

    fn rule(&self, index: usize) -> [u64; 5] {
        let rule = &self.counters.rules[index];
        [&rule.matched_packets, &rule.matched_bytes, &rule.cut_packets, &rule.cut_bytes, &rule.clients].map(|c| c.get())
    }
}

fn syn(from: &str, to: &str) -> TcpBuilder {
    tcp(from, to).flags(Flags::SYN).options([Opt::Mss(1460)])
}

fn addr(text: &str) -> Addr {
    text.parse::<std::net::IpAddr>().unwrap().into()
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn without_filters_everything_passes() {
    let mut t = Script::new("");
    assert_eq!(t.rx(&syn(CLIENT, WEB)), Ok(()));
    assert_eq!(t.opens(CLIENT6, WEB6), Ok(()));
}

#[test]
fn deny_drops_allow_excepts_and_a_lone_allow_is_closed() {
    let mut t = Script::new("[filters]\ndeny = [\"203.0.113.0/24\"]\nallow = [\"203.0.113.7\"]\n");
    assert_eq!(t.rx(&syn("203.0.113.8:1", WEB)), Err(DropReason::DenyList));
    assert_eq!(t.rx(&syn(CLIENT, WEB)), Ok(()));
    assert_eq!(t.rx(&syn(CLIENT6, WEB6)), Ok(()));
    let mut t = Script::new("[filters]\nallow = [\"203.0.113.7\"]\n");
    assert_eq!(t.rx(&syn(CLIENT, WEB)), Ok(()));
    assert_eq!(t.rx(&syn("203.0.113.8:1", WEB)), Err(DropReason::NotAllowed));
    assert_eq!(t.rx(&syn(CLIENT6, WEB6)), Err(DropReason::NotAllowed));
}

#[test]
fn the_first_rule_that_drops_or_passes_decides() {
    let mut t = Script::new(
        r#"
[[rule]]
name = "friends"
source = "203.0.113.7"
action = "pass"
[[rule]]
name = "neighbours"
source = "203.0.113.0/24"
action = "drop"
[[rule]]
name = "never asked of them"
source = "203.0.113.0/24"
action = "drop"
"#
        .replace("never asked of them", "late")
        .as_str(),
    );
    assert_eq!(t.rx(&syn(CLIENT, WEB)), Ok(()));
    assert_eq!((t.engine.rule(), t.engine.exempt()), (Some(0), Some(0)));
    assert_eq!(t.rx(&syn("203.0.113.8:1", WEB)), Err(DropReason::Rule));
    assert_eq!((t.engine.rule(), t.engine.exempt()), (Some(1), None));
    assert_eq!(t.rx(&syn(CLIENT6, WEB6)), Ok(()));
    assert_eq!((t.engine.rule(), t.engine.exempt()), (None, None));
    assert_eq!(t.rule(0), [1, 44, 0, 0, 0]);
    assert_eq!(t.rule(1), [1, 44, 1, 44, 0]);
    assert_eq!(t.rule(2), [0; 5]);
}

#[test]
fn what_is_within_a_limit_goes_on_to_the_next_rule() {
    let mut t = Script::new(
        r#"
[[rule]]
name = "each"
flags = "syn !ack"
action = "limit"
limit = "10/s"
[[rule]]
name = "low"
hop_limit = "-9"
action = "drop"
"#,
    );
    let low = syn(CLIENT, WEB).hop_limit(5);
    for _ in 0..10 {
        assert_eq!(t.rx(&low), Err(DropReason::Rule));
    }
    assert_eq!(t.rx(&low), Err(DropReason::RuleLimit), "over the limit before the second rule is asked");
    assert_eq!(t.engine.rule(), Some(0));
    assert_eq!(t.rx(&syn("203.0.113.8:1", WEB)), Ok(()), "another source has its own");
    assert_eq!(t.rule(0)[0], 12);
    assert_eq!(t.rule(0)[2], 1);
    t.after(SECOND);
    assert_eq!(t.passed(&syn(CLIENT, WEB), 20), 10);
}

#[test]
fn limits_are_kept_per_prefix_per_service_or_for_all() {
    let limit = |per: &str| format!("[[rule]]\nname = \"l\"\naction = \"limit\"\nlimit = \"5/s\"\n{per}\n");
    let (near, far) = (syn("203.0.113.200:1", WEB), syn("203.0.114.1:1", WEB));
    let ssh = syn("203.0.114.1:1", "198.51.100.11:22");

    let mut t = Script::new(&limit("per = \"prefix\""));
    assert_eq!((t.passed(&syn(CLIENT, WEB), 9), t.passed(&near, 9), t.passed(&far, 9)), (5, 0, 5));
    let mut t = Script::new(&limit("per = \"prefix\"\nprefix_v4 = 16\nprefix_v6 = 32"));
    assert_eq!((t.passed(&syn(CLIENT, WEB), 9), t.passed(&far, 9)), (5, 0));
    assert_eq!((t.passed(&syn(CLIENT6, WEB6), 9), t.passed(&syn("[2001:db8:ffff::1]:1", WEB6), 9)), (5, 0));
    let mut t = Script::new(&limit("per = \"service\""));
    assert_eq!((t.passed(&syn(CLIENT, WEB), 9), t.passed(&far, 9), t.passed(&ssh, 9)), (5, 0, 5));
    let mut t = Script::new(&limit("per = \"global\""));
    assert_eq!((t.passed(&syn(CLIENT, WEB), 9), t.passed(&ssh, 9)), (5, 0));
}

#[test]
fn a_limit_for_all_is_divided_among_the_workers_and_a_sources_is_not() {
    let text = |per: &str| format!("[[rule]]\nname = \"l\"\naction = \"limit\"\nlimit = \"40/s\"\nper = \"{per}\"\n");
    assert_eq!(Script::of(&text("global"), &[], 4).passed(&syn(CLIENT, WEB), 99), 10);
    assert_eq!(Script::of(&text("source"), &[], 4).passed(&syn(CLIENT, WEB), 99), 40);
}

#[test]
fn octets_are_those_of_the_ip_packet() {
    let mut t = Script::new(
        "[[rule]]\nname = \"l\"\naction = \"limit\"\nlimit = \"1000B/s\"\nof = \"bytes\"\nper = \"global\"\n",
    );
    let data = tcp(CLIENT, WEB).payload([0; 60]);
    assert_eq!(t.passed(&data, 20), 10, "100 octets each");
}

#[test]
fn connections_are_limited_when_they_open() {
    let mut t = Script::new(
        "[[rule]]\nname = \"l\"\naction = \"limit\"\nlimit = \"2/s\"\nof = \"connections\"\nservice = \"web\"\n",
    );
    assert_eq!(t.passed(&syn(CLIENT, WEB), 20), 20);
    assert_eq!(t.opens(CLIENT, WEB), Ok(()));
    assert_eq!(t.opens(CLIENT, WEB), Ok(()));
    assert_eq!(t.opens(CLIENT, WEB), Err(DropReason::RuleLimit));
    assert_eq!(t.opens(CLIENT, "198.51.100.11:22"), Ok(()));
}

#[test]
fn a_rule_on_trial_drops_nothing_and_counts_each_proved_client_once() {
    let mut t = Script::new(
        "[[rule]]\nname = \"trial\"\nhop_limit = \"-63\"\naction = \"drop\"\ndry_run = true\n\
         [[rule]]\nname = \"real\"\nhop_limit = \"-9\"\naction = \"drop\"\n",
    );
    let low = |from: &str| syn(from, WEB).hop_limit(50);
    // Nobody has proved to be somebody yet.
    assert_eq!(t.rx(&low(CLIENT)), Ok(()));
    assert_eq!(t.rx(&low("203.0.113.8:1")), Ok(()));
    assert_eq!(t.rule(0), [2, 88, 2, 88, 0]);
    // The first one does, from behind a TTL that the rule does not match: its SYN is remembered.
    assert_eq!(t.opens(CLIENT, WEB), Ok(()));
    assert_eq!(t.rule(0)[4], 1);
    // More of its packets make it no second client.
    assert_eq!(t.rx(&low(CLIENT)), Ok(()));
    assert_eq!(t.opens(CLIENT, WEB), Ok(()));
    assert_eq!(t.rule(0)[4], 1);
    // A client that is known already counts with its first packet that the rule would have cut.
    assert_eq!(t.opens("203.0.113.9:1", WEB), Ok(()));
    assert_eq!(t.rule(0)[4], 1);
    assert_eq!(t.rx(&low("203.0.113.9:1")), Ok(()));
    assert_eq!(t.rule(0)[4], 2);
    // Rules after it are asked as if it were not there.
    assert_eq!(t.rx(&syn(CLIENT, WEB).hop_limit(5)), Err(DropReason::Rule));
    assert_eq!(t.engine.rule(), Some(1));
}

#[test]
fn the_worker_that_checked_a_client_counts_it_when_another_has_found_it_proved() {
    let rules = "[[rule]]\nname = \"trial\"\nhop_limit = \"-63\"\naction = \"drop\"\ndry_run = true\n";
    let (mut receiver, mut owner) = (Script::new(rules), Script::new(rules));
    let ack = tcp(CLIENT, WEB).flags(Flags::ACK).hop_limit(50);
    assert_eq!(receiver.rx(&ack), Ok(()));
    owner.engine.resume(None);
    assert_eq!(owner.engine.proved_client(), None);
    owner.with(&ack, |engine, facts, now| engine.verified(facts.segment.key.src, now));
    let client = owner.engine.proved_client().expect("its cookie was right");
    receiver.engine.verified(client, receiver.now);
    assert_eq!((receiver.rule(0)[4], owner.rule(0)[4]), (1, 0));
    owner.engine.resume(None);
    assert_eq!(owner.engine.proved_client(), None, "that was the segment before");
}

#[test]
fn a_pass_on_trial_exempts_nobody() {
    let mut t = Script::new(
        "[[rule]]\nname = \"trial\"\nsource = \"203.0.113.0/24\"\naction = \"pass\"\ndry_run = true\n\
         [filters.per_address]\nsyns = \"3/s\"\n",
    );
    assert_eq!(t.passed(&syn(CLIENT, WEB), 9), 3);
    assert_eq!(t.rule(0), [9, 396, 0, 0, 0]);
}

#[test]
fn a_source_is_limited_by_address_subnet_and_site() {
    let mut t = Script::new(
        "[filters.per_address]\nsyns = \"3/s\"\n[filters.per_subnet]\nsyns = \"5/s\"\n[filters.per_site]\nsyns = \"7/s\"\n",
    );
    assert_eq!(t.passed(&syn(CLIENT, WEB), 9), 3);
    assert_eq!(t.rx(&syn(CLIENT, WEB)), Err(DropReason::SourceSyns));
    assert_eq!(t.passed(&syn("203.0.113.8:1", WEB), 9), 2, "five from its /24");
    assert_eq!(t.passed(&syn("203.0.114.8:1", WEB), 9), 3);
    assert_eq!(t.passed(&syn("[2001:db8:7::1]:1", WEB6), 9), 3);
    assert_eq!(t.passed(&syn("[2001:db8:7::2]:1", WEB6), 9), 2, "five from its /64");
    assert_eq!(t.passed(&syn("[2001:db8:7:1::1]:1", WEB6), 9), 2, "seven from its /48");
    assert_eq!(t.passed(&syn("[2001:db8:8::1]:1", WEB6), 9), 3);
    // Only SYNs count as such.
    assert_eq!(t.passed(&tcp(CLIENT, WEB), 50), 50);
}

#[test]
fn packets_octets_flowless_acks_and_connections_have_limits_of_their_own() {
    let mut t = Script::new("[filters.per_address]\npackets = \"4/s\"\n");
    assert_eq!((t.passed(&tcp(CLIENT, WEB), 9), t.rx(&syn(CLIENT, WEB))), (4, Err(DropReason::SourcePackets)));
    let mut t = Script::new("[filters.per_address]\nbytes = \"1000B/s\"\n");
    assert_eq!(t.passed(&tcp(CLIENT, WEB).payload([0; 460]), 9), 2);
    assert_eq!(t.rx(&tcp(CLIENT, WEB)), Err(DropReason::SourceBytes));
    let mut t = Script::new("[filters.per_address]\nflowless_acks = \"2/s\"\n");
    assert_eq!(
        [0; 4].map(|_| t.opens(CLIENT, WEB)),
        [Ok(()), Ok(()), Err(DropReason::SourceFlowlessAcks), Err(DropReason::SourceFlowlessAcks)]
    );
    let mut t = Script::new("[filters.per_address]\nconnections = \"1/min\"\n");
    assert_eq!([0; 2].map(|_| t.opens(CLIENT, WEB)), [Ok(()), Err(DropReason::SourceConnections)]);
    t.after(Duration::from_secs(59));
    assert_eq!(t.opens(CLIENT, WEB), Err(DropReason::SourceConnections));
    t.after(SECOND);
    assert_eq!(t.opens(CLIENT, WEB), Ok(()));
}

#[test]
fn who_a_rule_passes_meets_no_limit() {
    let mut t = Script::new(
        "[[rule]]\nname = \"friends\"\nsource = \"203.0.113.7\"\naction = \"pass\"\n\
         [filters]\nsyn_ack_ceiling = \"1/s\"\n\
         [filters.per_address]\nsyns = \"1/s\"\nflowless_acks = \"1/s\"\nconnections = \"1/s\"\n",
    );
    for _ in 0..5 {
        assert_eq!(t.rx(&syn(CLIENT, WEB)), Ok(()));
        assert_eq!(t.engine.answer(addr("203.0.113.7"), t.now), Ok(()));
        assert_eq!(t.opens(CLIENT, WEB), Ok(()));
    }
    // What another worker found out holds here, too.
    t.engine.resume(Some(0));
    assert_eq!(t.engine.flowless(addr("203.0.113.7"), t.now), Ok(()));
    t.engine.resume(None);
    assert_eq!([0; 2].map(|_| t.engine.flowless(addr("203.0.113.7"), t.now).is_ok()), [true, false]);
}

#[test]
fn a_limit_of_connections_holds_for_whom_a_later_rule_passes_and_not_for_whom_an_earlier_one_does() {
    let conns =
        |name| format!("[[rule]]\nname = \"{name}\"\naction = \"limit\"\nlimit = \"1/min\"\nof = \"connections\"\n");
    let pass = "[[rule]]\nname = \"friends\"\nsource = \"203.0.113.0/24\"\naction = \"pass\"\n";
    let tight = "[filters.per_address]\nconnections = \"1/min\"\n";
    let mut t = Script::new(&format!("{}{pass}", conns("conns")));
    assert_eq!([0; 2].map(|_| t.opens(CLIENT, WEB)), [Ok(()), Err(DropReason::RuleLimit)]);
    assert_eq!((t.engine.rule(), t.engine.exempt()), (Some(0), None));
    let mut t = Script::new(&format!("{pass}{}{tight}", conns("conns")));
    assert_eq!([0; 2].map(|_| t.opens(CLIENT, WEB)), [Ok(()), Ok(())]);
    assert_eq!(t.rule(1), [0; 5], "it was not asked");
    // The same when another worker asked the rules.
    let mut t = Script::new(&format!("{}{pass}{tight}", conns("conns")));
    let ack = tcp(CLIENT, WEB).flags(Flags::ACK);
    let opened = [0; 2].map(|_| {
        t.with(&ack, |engine, facts, now| {
            engine.resume(Some(1));
            engine.open(facts, now)
        })
    });
    assert_eq!(opened, [Ok(()), Err(DropReason::RuleLimit)]);
}

#[test]
fn no_prefix_gets_more_answers_than_the_ceiling_but_proved_clients_are_answered() {
    let mut t = Script::new("[filters]\nsyn_ack_ceiling = \"100/s\"\n");
    assert_eq!(t.opens(CLIENT, WEB), Ok(()));
    let answered = |t: &mut Script, from: &str| {
        let now = t.now;
        (0..300).filter(|_| t.engine.answer(addr(from), now).is_ok()).count()
    };
    assert_eq!(answered(&mut t, "203.0.113.9"), 100);
    assert_eq!(answered(&mut t, "203.0.113.77"), 0, "the same /24");
    assert_eq!(answered(&mut t, "203.0.113.7"), 100, "this one has proved itself: as many again");
    assert_eq!(answered(&mut t, "203.0.113.7"), 0, "but it is no victim without a ceiling");
    assert_eq!(answered(&mut t, "203.0.114.9"), 100);
    assert_eq!(answered(&mut t, "2001:db8:7:1::1"), 100);
    assert_eq!(answered(&mut t, "2001:db8:7:2::1"), 0, "the same /48");
    assert_eq!(answered(&mut t, "2001:db8:8::1"), 100);
}

#[test]
fn bans_end_by_themselves_or_are_lifted_and_allow_is_stronger() {
    let mut t = Script::new("[bans]\n[filters]\ndeny = [\"192.0.2.0/24\"]\nallow = [\"203.0.113.9\"]\n");
    let until = t.now.after(SECOND * 10);
    t.engine.ban("203.0.113.0/24".parse().unwrap(), until, 0).unwrap();
    assert_eq!(t.rx(&syn(CLIENT, WEB)), Err(DropReason::Banned));
    assert_eq!(t.rx(&syn("203.0.113.9:1", WEB)), Ok(()));
    assert_eq!(t.rx(&syn(CLIENT6, WEB6)), Ok(()));
    t.after(SECOND * 11);
    assert_eq!(t.rx(&syn(CLIENT, WEB)), Ok(()));
    t.engine.ban("203.0.113.7/32".parse().unwrap(), Micros(u64::MAX), 0).unwrap();
    assert_eq!(t.rx(&syn(CLIENT, WEB)), Err(DropReason::Banned));
    assert!(t.engine.unban("203.0.113.7/32".parse().unwrap()));
    assert_eq!(t.rx(&syn(CLIENT, WEB)), Ok(()));
    assert!(!t.engine.unban("203.0.113.7/32".parse().unwrap()));
}

#[test]
fn bans_end_by_the_wall_clock_which_may_be_set_either_way() {
    const HOUR: u64 = 3_600_000_000;
    // 2026-01-02T03:04:05Z.
    const START: u64 = 1_767_323_045_000_000;
    let mut t = Script::new("[bans]\n");
    t.engine.set_wall_ahead(START);
    t.engine.ban("203.0.113.0/24".parse().unwrap(), Micros(START + HOUR / 2), 0).unwrap();
    let verdicts = |t: &mut Script| (foreseen(t, &syn(CLIENT, WEB)), t.rx(&syn(CLIENT, WEB)));
    let banned = (Some(Foregone::Banned), Err(DropReason::Banned));
    assert_eq!(verdicts(&mut t), banned);
    t.engine.set_wall_ahead(START + HOUR);
    assert_eq!(verdicts(&mut t), (None, Ok(())));
    // Back, before anybody cleared it away: it is not over yet.
    for ahead in [START, START - HOUR, 0] {
        t.engine.set_wall_ahead(ahead);
        t.engine.sweep(t.now);
        assert_eq!(verdicts(&mut t), banned);
    }
}

#[test]
fn without_room_for_bans_there_are_none() {
    let mut t = Script::new("");
    assert!(t.engine.ban("203.0.113.0/24".parse().unwrap(), Micros(u64::MAX), 0).is_err());
    assert_eq!((t.rx(&syn(CLIENT, WEB)), t.counters.bans_refused.get()), (Ok(()), 1));
}

#[test]
fn new_contents_of_a_set_are_in_force_at_once_and_limits_keep_their_memory() {
    let text = "[[set]]\nname = \"bad\"\nprefixes = [\"192.0.2.0/24\"]\n\
                [[rule]]\nname = \"bad\"\nsource = \"@bad\"\naction = \"drop\"\n\
                [[rule]]\nname = \"not-good\"\nnot_source = [\"@bad\", \"2001:db8::/32\"]\naction = \"limit\"\nlimit = \"2/s\"\n";
    let set = |nets: &[&str]| AddressSet::new(&nets.iter().map(|net| net.parse().unwrap()).collect::<Vec<_>>());
    let mut t = Script::of(text, &[set(&["192.0.2.0/24"])], 1);
    assert_eq!(t.rx(&syn("192.0.2.9:1", WEB)), Err(DropReason::Rule));
    assert_eq!(t.passed(&syn(CLIENT, WEB), 5), 2);
    assert_eq!(t.passed(&syn(CLIENT6, WEB6), 5), 5);

    let plan = t.engine.plan().with_sets(&t.config, &[set(&["203.0.113.99/32"])]).unwrap();
    let old = t.engine.replace(Arc::new(plan));
    assert_eq!(Arc::strong_count(&old), 1, "nobody else holds it");
    assert_eq!(t.rx(&syn("203.0.113.99:1", WEB)), Err(DropReason::Rule));
    assert_eq!(t.rx(&syn("192.0.2.9:1", WEB)), Ok(()));
    assert_eq!(t.passed(&syn(CLIENT, WEB), 5), 0, "its limit is used up still");
}

/// What a glimpse of a frame decides.
fn foreseen(t: &Script, frame: &TcpBuilder) -> Option<Foregone> {
    t.engine.foresee(&glance(&frame.build()).expect("TCP"), t.now)
}

#[test]
fn what_the_source_alone_decides_is_foreseen_and_accounted_for_alike() {
    let drops = "[[rule]]\nname = \"bad\"\nsource = \"203.0.113.0/24\"\naction = \"drop\"\n";
    let mut t = Script::new(drops);
    assert_eq!(foreseen(&t, &syn(CLIENT, WEB)), Some(Foregone::Rule(0)));
    assert_eq!(foreseen(&t, &syn("192.0.2.7:1", WEB)), None);
    assert_eq!(t.rx(&syn(CLIENT, WEB)), Err(DropReason::Rule));
    let asked = t.rule(0);
    assert_eq!(t.engine.forego(Foregone::Rule(0), 44), DropReason::Rule);
    assert_eq!((t.rule(0), t.engine.rule()), (asked.map(|count| count * 2), Some(0)));

    // Anything before it that might decide, or count, has to be asked.
    for before in [
        "[[rule]]\nname = \"b\"\nsource = \"203.0.113.0/28\"\nhop_limit = 9\naction = \"pass\"\n",
        "[[rule]]\nname = \"b\"\nsource = \"203.0.113.7\"\naction = \"drop\"\ndry_run = true\n",
        "[[rule]]\nname = \"b\"\naction = \"limit\"\nlimit = \"1/s\"\n",
    ] {
        let t = Script::new(&format!("{before}{drops}"));
        assert_eq!(foreseen(&t, &syn(CLIENT, WEB)), None, "{before}");
    }
    // What is counted when connections open does not stand before it.
    let opening = "[[rule]]\nname = \"b\"\naction = \"limit\"\nlimit = \"1/s\"\nof = \"connections\"\n";
    let t = Script::new(&format!("{opening}{drops}"));
    assert_eq!(foreseen(&t, &syn(CLIENT, WEB)), Some(Foregone::Rule(1)));
    // Nor is a rule with other conditions foreseen.
    let t = Script::new(&format!("{drops}hop_limit = 9\n"));
    assert_eq!(foreseen(&t, &syn(CLIENT, WEB)), None);
}

#[test]
fn lists_and_bans_are_foreseen_in_their_order() {
    let mut t = Script::new(
        "[bans]\n[filters]\ndeny = [\"203.0.113.0/24\"]\nallow = [\"203.0.113.7\"]\n\
         [[rule]]\nname = \"bad\"\nsource = [\"203.0.113.7\", \"192.0.2.7\"]\naction = \"drop\"\n",
    );
    for prefix in ["203.0.113.0/24", "192.0.2.0/24"] {
        t.engine.ban(prefix.parse().unwrap(), Micros(u64::MAX), 0).unwrap();
    }
    assert_eq!(foreseen(&t, &syn("203.0.113.8:1", WEB)), Some(Foregone::Denied));
    assert_eq!(foreseen(&t, &syn("203.0.113.7:1", WEB)), Some(Foregone::Rule(0)));
    assert_eq!(foreseen(&t, &syn("192.0.2.7:1", WEB)), Some(Foregone::Banned));
    assert_eq!(foreseen(&t, &syn("198.18.0.1:1", WEB)), None);
    let t = Script::new("[filters]\nallow = [\"203.0.113.7\"]\n");
    assert_eq!(foreseen(&t, &syn("203.0.113.8:1", WEB)), Some(Foregone::NotAllowed));
    assert_eq!(foreseen(&t, &syn(CLIENT, WEB)), None);
}

#[test]
fn touching_ahead_changes_nothing() {
    let mut t = Script::new("[filters.per_address]\nsyns = \"3/s\"\n[filters.per_site]\npackets = \"9/s\"\n");
    assert!(t.engine.looks_far());
    for frame in [syn(CLIENT, WEB), tcp(CLIENT6, WEB6)] {
        let glimpse = glance(&frame.build()).expect("TCP");
        assert!((0..50).all(|_| t.engine.foresee(&glimpse, t.now).is_none()));
    }
    assert_eq!(t.passed(&syn(CLIENT, WEB), 9), 3);
    assert!(!Script::new("").engine.looks_far());
}

#[test]
fn the_steps_of_a_verdict_are_told_in_their_order() {
    let mut t = Script::new(
        "[[rule]]\nname = \"trial\"\nflags = \"syn\"\naction = \"drop\"\ndry_run = true\n\
         [[rule]]\nname = \"each\"\naction = \"limit\"\nlimit = \"1/s\"\n\
         [filters.per_address]\nsyns = \"9/s\"\npackets = \"9/s\"\n",
    );
    let steps = |t: &mut Script| {
        t.with(&syn(CLIENT, WEB), |engine, facts, now| {
            let mut steps: Vec<Step> = Vec::new();
            let verdict = engine.check_traced(facts, now, &mut steps);
            if verdict.is_ok() {
                engine.answer_traced(facts.segment.key.src, now, &mut steps).unwrap();
            }
            (verdict, steps)
        })
    };
    let trial = Step::Rule(0, RuleStep::WouldCut);
    assert_eq!(
        steps(&mut t),
        (
            Ok(()),
            vec![
                trial,
                Step::Rule(1, RuleStep::Within(Measure::Packets)),
                Step::Limit(Level::Address, Limited::Syns, true),
                Step::Limit(Level::Address, Limited::Packets, true),
                Step::Ceiling(true),
            ]
        )
    );
    assert_eq!(
        steps(&mut t),
        (Err(DropReason::RuleLimit), vec![trial, Step::Rule(1, RuleStep::Over(Measure::Packets))])
    );
}

#[test]
fn a_worker_has_so_many_records_as_many_again_for_connections_and_262144_clients() {
    let records = |limits: &str| {
        let Engine { meters, proved, .. } =
            Script::new(&format!("[filters]\nrecords = 4096\n[filters.per_address]\n{limits}")).engine;
        [meters.records(), proved.records()]
    };
    let none = Meters::new(0, [0; 2]).records();
    assert_eq!(records("packets = \"1/s\"\n"), [4_096, none]);
    assert_eq!(records("packets = \"1/s\"\nconnections = \"1/s\"\n"), [4_096; 2]);
    assert_eq!(CLIENTS, 262_144);
}
