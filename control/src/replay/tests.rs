use sluice_filters::Flags;
use sluice_filters::testkit::{Opt, TcpBuilder, tcp};

use super::*;
use crate::filters::load;

const CONFIG: &str = r#"
[[port]]
name = "wan"
device = "net_null0"
addresses = ["198.51.100.2/24", "2001:db8::2/64"]
gateway = ["198.51.100.1", "2001:db8::1"]
[[service]]
name = "web"
listen = ["198.51.100.10:443", "[2001:db8::10]:443"]
[[service.upstream]]
address = "198.51.100.5:80"
"#;

const WEB: &str = "198.51.100.10:443";
const CLIENT: &str = "203.0.113.7:40000";
const SEED: [u8; 32] = [7; 32];
/// When the captures begin, since 1970.
const BEGIN: Duration = Duration::from_secs(1_767_323_045);

struct Tape {
    replay: Replay,
    report: Report,
    time: Duration,
}

impl Tape {
    fn new(text: &str) -> Tape {
        Tape::with_bans(text, vec![])
    }

    fn with_bans(text: &str, bans: Vec<Ban>) -> Tape {
        let config = sluice_config::parse("test.toml", &format!("{CONFIG}{text}")).unwrap();
        let filters = load("test.toml", &config, 1).unwrap();
        Tape { replay: Replay::new(Arc::new(config), filters, SEED, bans), report: Report::default(), time: BEGIN }
    }

    fn at_ms(&mut self, ms: u64) -> &mut Tape {
        self.time = BEGIN + Duration::from_millis(ms);
        self
    }

    fn rx(&mut self, frame: &TcpBuilder) -> Outcome {
        self.octets(&frame.build())
    }

    fn octets(&mut self, frame: &[u8]) -> Outcome {
        let outcome = self.replay.packet(self.time, frame, frame.len() as u32);
        self.report.add(outcome, self.time, (frame.len(), frame.len() as u32));
        outcome
    }
}

fn dropped(reason: DropReason) -> Outcome {
    Outcome::Dropped(reason.index() as u8, None)
}

fn by_rule(rule: u16) -> Outcome {
    Outcome::Dropped(DropReason::Rule.index() as u8, Some(rule))
}

fn syn(from: &str) -> TcpBuilder {
    tcp(from, WEB).flags(Flags::SYN).seq(100).options([Opt::Mss(1460)])
}

fn syn_ack(to: &str) -> TcpBuilder {
    tcp(WEB, to).flags(Flags::SYN | Flags::ACK).seq(500).ack(101)
}

fn ack(from: &str, ack: u32) -> TcpBuilder {
    tcp(from, WEB).flags(Flags::ACK).seq(101).ack(ack)
}

#[test]
fn a_handshake_with_another_server_is_taken_for_one_with_us() {
    let mut t = Tape::new("");
    assert_eq!(t.rx(&syn(CLIENT)), Outcome::Answered);
    assert_eq!(t.rx(&syn_ack(CLIENT)), Outcome::FromService);
    assert_eq!(t.rx(&ack(CLIENT, 777)), dropped(DropReason::BadCookie), "not what the server sent");
    assert_eq!(t.rx(&ack(CLIENT, 501)), Outcome::Opened);
    assert_eq!(t.rx(&ack(CLIENT, 501).payload("GET ")), Outcome::Connection);
    assert_eq!(t.rx(&ack(CLIENT, 501).flags(Flags::RST)), Outcome::Connection);
    assert_eq!(t.rx(&ack(CLIENT, 501).seq(105)), dropped(DropReason::BadCookie), "it was reset");
}

#[test]
fn what_a_port_received_was_not_sent_by_a_service_nor_by_whom_its_route_does_not_lead_to() {
    let mut t = Tape::new("[[port]]\nname = \"lan\"\ndevice = \"net_null1\"\naddresses = [\"10.0.0.2/24\"]\n");
    let answer = tcp("198.51.100.5:80", "198.51.100.2:50000").flags(Flags::SYN | Flags::ACK).seq(1).ack(2);
    assert_eq!(t.rx(&syn_ack(CLIENT)), Outcome::FromService);
    assert_eq!(t.rx(&answer), Outcome::FromUpstream);
    t.replay.come_by(Some(0));
    assert_eq!(t.rx(&syn_ack(CLIENT)), dropped(DropReason::OwnSource));
    assert_eq!(t.rx(&answer), Outcome::FromUpstream);
    t.replay.come_by(Some(1));
    assert_eq!(t.rx(&answer), dropped(DropReason::UpstreamSource));
    t.replay.come_by(None);
    assert_eq!(t.rx(&tcp("198.51.100.2:9", WEB).flags(Flags::SYN)), dropped(DropReason::OwnSource));
}

#[test]
fn of_a_capture_of_one_direction_the_client_is_believed() {
    let mut t = Tape::new("");
    assert_eq!(t.rx(&syn(CLIENT)), Outcome::Answered);
    assert_eq!(t.rx(&ack(CLIENT, 777).seq(150)), dropped(DropReason::BadCookie), "not its next number");
    assert_eq!(t.rx(&ack(CLIENT, 777)), Outcome::Opened);
}

#[test]
fn an_ack_out_of_nowhere_has_a_bad_cookie() {
    let mut t = Tape::new("");
    assert_eq!(t.rx(&ack(CLIENT, 777)), dropped(DropReason::BadCookie));
    assert_eq!(t.rx(&ack(CLIENT, 777).flags(Flags::RST)), dropped(DropReason::NoFlow));
    assert_eq!(t.rx(&tcp(CLIENT, "198.51.100.10:81")), dropped(DropReason::NotAService));
}

#[test]
fn cookies_of_the_same_seed_are_right_and_grow_old() {
    let mut jar = Jar::new(SEED, Duration::from_secs(64));
    jar.tick(BEGIN);
    let frame = ack(CLIENT, 0).build();
    let Ok(Parsed::Tcp(segment)) = parse(&frame, RxChecksums::default()) else { panic!() };
    let cookie = jar.mint(&segment.key, Seq(100), Offer { mss: 1_460, wscale: None, sack: true });
    let mut t = Tape::new("");
    assert_eq!(t.rx(&ack(CLIENT, cookie.plus(1).0)), Outcome::Opened);
    let mut t = Tape::new("");
    assert_eq!(t.at_ms(200_000).rx(&ack(CLIENT, cookie.plus(1).0)), dropped(DropReason::BadCookie));
}

#[test]
fn connections_from_before_the_capture_are_known_by_what_the_service_sends() {
    let mut t = Tape::new("");
    assert_eq!(t.rx(&ack(CLIENT, 9).payload("x")), dropped(DropReason::BadCookie));
    assert_eq!(t.rx(&tcp(WEB, CLIENT).flags(Flags::ACK).payload("data")), Outcome::FromService);
    assert_eq!(t.rx(&ack(CLIENT, 9).payload("x")), Outcome::Connection);
}

#[test]
fn limits_follow_the_captures_clock_which_may_step_back() {
    let mut t = Tape::new("[filters.per_address]\nsyns = \"2/s\"\n");
    let over = dropped(DropReason::SourceSyns);
    assert_eq!([0; 3].map(|_| t.rx(&syn(CLIENT))), [Outcome::Answered, Outcome::Answered, over]);
    assert_eq!(t.at_ms(500).rx(&syn(CLIENT)), Outcome::Answered);
    assert_eq!(t.at_ms(400).rx(&syn(CLIENT)), over);
    assert_eq!(t.at_ms(1_500).rx(&syn(CLIENT)), Outcome::Answered);
}

#[test]
fn any_time_that_a_capture_may_bear_is_borne() {
    for began in [Duration::MAX, Duration::from_secs(u64::MAX), Duration::ZERO] {
        let mut t = Tape::with_bans(
            "[bans]\n",
            vec![Ban {
                prefix: "203.0.113.7/32".parse().unwrap(),
                until: Some(SystemTime::UNIX_EPOCH + BEGIN),
                reason: String::new(),
            }],
        );
        for time in [began, Duration::ZERO, Duration::MAX, BEGIN, Duration::from_nanos(u64::MAX)] {
            t.time = time;
            t.rx(&syn(CLIENT));
            t.rx(&ack(CLIENT, 5));
        }
        assert_eq!(t.report.packets(), 10);
        assert!(!t.report.table(&t.replay).is_empty() && t.report.json(&t.replay).is_object());
    }
}

#[test]
fn bans_count_from_the_captures_time() {
    let ban = |prefix: &str, until: Option<Duration>| Ban {
        prefix: prefix.parse().unwrap(),
        until: until.map(|until| SystemTime::UNIX_EPOCH + until),
        reason: String::new(),
    };
    let bans = vec![
        ban("203.0.113.7/32", Some(BEGIN + Duration::from_secs(10))),
        ban("203.0.113.8/32", Some(BEGIN - Duration::from_secs(10))),
        ban("203.0.113.9/32", None),
    ];
    let mut t = Tape::with_bans("[bans]\n", bans);
    let banned = dropped(DropReason::Banned);
    let froms = ["203.0.113.7:1", "203.0.113.8:1", "203.0.113.9:1"];
    assert_eq!(froms.map(|from| t.rx(&syn(from))), [banned, Outcome::Answered, banned]);
    t.at_ms(11_000);
    assert_eq!(froms.map(|from| t.rx(&syn(from))), [Outcome::Answered, Outcome::Answered, banned]);
}

const RULES: &str = r#"
[[rule]]
name = "trial"
hop_limit = "-63"
flags = "syn !ack"
action = "drop"
dry_run = true
[[rule]]
name = "low"
hop_limit = "-9"
action = "drop"
"#;

#[test]
fn a_report_counts_by_outcome_and_by_rule() {
    let mut t = Tape::new(RULES);
    t.rx(&syn(CLIENT).hop_limit(50));
    t.rx(&ack(CLIENT, 1));
    for port in 1..4 {
        assert_eq!(t.rx(&syn(&format!("203.0.113.9:{port}")).hop_limit(3)), by_rule(1));
    }
    t.at_ms(2_500).rx(&ack("203.0.113.10:1", 5));
    assert_eq!((t.report.packets(), t.report.dropped(), t.report.passed()), (6, 4, 2));
    let lines: Vec<(String, u64)> =
        t.report.lines(&t.replay).into_iter().map(|line| (line.outcome, line.packets)).collect();
    assert_eq!(
        lines,
        [
            ("SYN answered with a cookie".to_owned(), 1),
            ("cookie right, connection opens".to_owned(), 1),
            ("dropped: rule \"low\"".to_owned(), 3),
            ("dropped: bad_cookie".to_owned(), 1),
        ]
    );
    let json = t.report.json(&t.replay);
    assert_eq!((&json["packets"], &json["seconds"], &json["dropped_packets"]), (&6.into(), &2.5.into(), &4.into()));
    assert_eq!((&json["outcomes"][2]["reason"], &json["outcomes"][2]["rule"]), (&"rule".into(), &"low".into()));
    assert_eq!(json["rules"][0]["cut_packets"], 4);
    assert_eq!(json["rules"][0]["cut_clients"], 1);
    assert_eq!(json["rules"][1]["cut_packets"], 3);
    let table = t.report.table(&t.replay);
    assert!(table.starts_with("6 packets, ") && table.contains("dropped: rule \"low\""), "{table}");
}

#[test]
fn packets_that_were_cut_short_by_the_capture_are_judged_by_their_headers() {
    let mut t = Tape::new("");
    let whole = syn(CLIENT).payload([9; 100]).build();
    assert_eq!(t.replay.packet(BEGIN, &whole, whole.len() as u32), Outcome::Answered);
    assert_eq!(t.replay.packet(BEGIN, &whole[..80], whole.len() as u32), Outcome::Answered);
    assert_eq!(t.octets(&whole[..80]), dropped(DropReason::Truncated), "cut short on the wire");
}

/// A SYN as Linux sends it, and where its options begin in the frame.
fn linux_syn() -> Vec<u8> {
    use Opt::{Mss, Nop, SackPermitted, Timestamp, WindowScale};
    let frame = syn(CLIENT).options([Mss(1_460), SackPermitted, Timestamp(77, 0), Nop, WindowScale(7)]).build();
    assert_eq!(frame.len(), 74);
    frame
}

fn cut(t: &mut Tape, frame: &[u8], kept: usize) -> Outcome {
    let outcome = t.replay.packet(t.time, &frame[..kept], frame.len() as u32);
    t.report.add(outcome, t.time, (kept, frame.len() as u32));
    outcome
}

#[test]
fn a_header_that_the_capture_cut_is_truncated_wherever_it_was_cut() {
    let whole = linux_syn();
    let v6 = tcp("[2001:db8:7::7]:40000", "[2001:db8::10]:443").flags(Flags::SYN).build();
    for frame in [&whole, &v6, &syn(CLIENT).vlan(5).build()] {
        for kept in 0..frame.len() {
            let mut t = Tape::new("");
            assert_eq!(cut(&mut t, frame, kept), dropped(DropReason::Truncated), "{kept} of {}", frame.len());
        }
    }
    // A rule for SYNs without timestamps, and one that looks where options would be.
    for rule in ["timestamps = false", "pcap = \"tcp[34:2] = 0\"", "mss = \"none\""] {
        let mut t = Tape::new(&format!("[[rule]]\nname = \"r\"\n{rule}\naction = \"drop\"\n"));
        assert_eq!(cut(&mut t, &whole, 64), dropped(DropReason::Truncated), "{rule}");
        assert_ne!(t.octets(&whole), dropped(DropReason::Truncated), "{rule}");
    }
}

#[test]
fn headers_that_the_appliance_looks_into_no_further_may_be_cut_behind_their_number() {
    let whole = tcp("[2001:db8:7::7]:40000", "[2001:db8::10]:443").flags(Flags::SYN).build();
    for (next, reason) in [(0, DropReason::Ipv6Extension), (60, DropReason::Ipv6Extension), (44, DropReason::Fragment)]
    {
        let mut frame = whole.clone();
        frame[14 + 6] = next;
        let mut t = Tape::new("");
        assert_eq!((t.octets(&frame), cut(&mut t, &frame, 54)), (dropped(reason), dropped(reason)), "{next}");
    }
}

#[test]
fn an_ipv6_packet_with_a_fragment_header_that_is_whole_is_an_ordinary_one() {
    let whole = tcp("[2001:db8:7::7]:40000", "[2001:db8::10]:443").flags(Flags::SYN).build();
    let mut atomic = whole.clone();
    atomic[14 + 5] += 8;
    atomic[14 + 6] = 44;
    atomic.splice(14 + 40..14 + 40, [6, 0, 0, 0, 1, 2, 3, 4]);
    let mut t = Tape::new("");
    assert_eq!(t.octets(&atomic), Outcome::Answered);
    assert_eq!(cut(&mut t, &atomic, atomic.len() - 1), dropped(DropReason::Truncated));
    atomic[14 + 43] = 1;
    assert_eq!(t.octets(&atomic), dropped(DropReason::Fragment), "the first of several");
}

#[test]
fn an_ip_headers_checksum_is_verified_though_the_payload_was_cut() {
    let mut t = Tape::new("");
    let mut whole = syn(CLIENT).payload([9; 100]).build();
    whole[24] ^= 1;
    assert_eq!(cut(&mut t, &whole, 80), dropped(DropReason::BadIpChecksum));
    // And TCP's where only the frame's padding was cut.
    let mut padded = tcp(CLIENT, WEB).flags(Flags::SYN).build();
    padded.resize(60, 0);
    assert_eq!(cut(&mut t, &padded, 54), Outcome::Answered);
    padded[50] ^= 1;
    assert_eq!(cut(&mut t, &padded, 54), dropped(DropReason::BadTcpChecksum));
}

#[test]
fn what_hangs_on_payload_that_was_not_captured_cannot_be_told() {
    const LOOKS: &str = r#"
[[rule]]
name = "proven"
source = ["192.0.2.0/24"]
action = "pass"
[[rule]]
name = "zeroes"
payload = [{ hex = "0000", offset = 20 }]
action = "drop"
[[rule]]
name = "long"
payload_length = "90-"
hop_limit = 9
action = "drop"
"#;
    let mut t = Tape::new(LOOKS);
    let frame = |source: &str| syn(source).payload([9; 100]).build();
    assert_eq!(cut(&mut t, &frame(CLIENT), 58 + 20), Outcome::CannotTell(1));
    assert_eq!(cut(&mut t, &frame(CLIENT), 58 + 21), Outcome::Answered, "the octet that is there is wrong");
    assert_eq!(cut(&mut t, &frame("192.0.2.1:5"), 58), Outcome::Answered, "a rule before it decided");
    let short = syn(CLIENT).payload([9; 20]).build();
    assert_eq!(cut(&mut t, &short, 58), Outcome::Answered, "no segment so short matches");
    let far = syn(CLIENT).hop_limit(9).payload([0; 100]).build();
    assert_eq!(cut(&mut t, &far, 58), Outcome::CannotTell(1), "dropped by this rule, or by the next");
    assert_eq!(t.octets(&far), Outcome::Dropped(DropReason::Rule.index() as u8, Some(1)));
    assert_eq!((t.report.packets(), t.report.untold(), t.report.passed(), t.report.dropped()), (6, 2, 3, 1));
    let warning = t.report.warning().unwrap();
    assert!(warning.starts_with("5 of 6 packets were cut by the capture, and of 2 of them"), "{warning}");
    let table = t.report.table(&t.replay);
    assert!(table.contains("cannot tell: rule \"zeroes\" looks at payload that was not captured"), "{table}");
}

#[test]
fn an_expression_sees_what_was_kept_and_the_length_that_was_sent() {
    for (expression, outcome) in [
        ("tcp[24] = 0", Outcome::Answered),
        ("tcp[24] = 9", Outcome::Answered),
        ("greater 158", Outcome::Dropped(DropReason::Rule.index() as u8, Some(0))),
        ("less 157", Outcome::Answered),
    ] {
        let mut t = Tape::new(&format!("[[rule]]\nname = \"r\"\npcap = \"{expression}\"\naction = \"drop\"\n"));
        assert_eq!(cut(&mut t, &syn(CLIENT).payload([9; 100]).build(), 58), outcome, "{expression}");
    }
}

#[test]
fn arp_is_the_appliances_own_matter_and_broken_frames_are_dropped() {
    let mut t = Tape::new("");
    let arp = sluice_filters::testkit::ethernet([0xff; 6], [2; 6], None, 0x0806, &[0; 28]);
    assert_eq!(t.octets(&arp), Outcome::Local);
    let mut broken = syn(CLIENT).build();
    broken[40] ^= 1;
    assert_eq!(t.octets(&broken), dropped(DropReason::BadTcpChecksum));
}

#[test]
fn a_diff_lists_what_would_change_by_rule_names_not_places() {
    let mut now = Tape::new(RULES);
    // The same rule in another place, and the trial in earnest.
    let then = RULES.replace("dry_run = true\n", "").replace("hop_limit = \"-63\"", "hop_limit = \"10-63\"");
    let mut then = Tape::new(&then);
    let mut diff = Diff::default();
    for (number, frame) in [syn(CLIENT), syn(CLIENT).hop_limit(50), syn(CLIENT).hop_limit(3), syn(CLIENT).hop_limit(51)]
        .iter()
        .zip(1..)
        .map(|(frame, number)| (number, frame))
    {
        let outcomes = [now.rx(frame), then.rx(frame)];
        diff.add([now.replay.config(), then.replay.config()], outcomes, number, || format!("packet {number}"));
    }
    let changes = diff.changes();
    assert_eq!(changes.len(), 1, "{changes:?}");
    assert_eq!((changes[0].packets, changes[0].first, &*changes[0].example), (2, 2, "packet 2"));
    assert_eq!((&*changes[0].now, &*changes[0].then), ("SYN answered with a cookie", "dropped: rule \"trial\""));
    assert!(diff.table().contains("dropped: rule \"trial\""));
    assert!(!diff.is_empty() && Diff::default().is_empty());
}
