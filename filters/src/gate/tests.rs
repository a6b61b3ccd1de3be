use std::net::IpAddr;
use std::sync::Arc;

use super::*;
use crate::engine::{FilterCounters, Plan, Step, Unseen};
use crate::testkit::tcp;
use crate::{Flags, Parsed, RxChecksums, parse};

const TWO_ARM: &str = r#"
[[port]]
name = "wan"
device = "net_null0"
addresses = ["198.51.100.2/24", "2001:db8::2/64"]
gateway = ["198.51.100.1", "2001:db8::1"]
[[port]]
name = "lan"
device = "net_null1"
addresses = ["10.0.0.2/24", "fd00::2/64"]
[[route]]
to = "10.9.0.0/16"
via = "10.0.0.1"
port = "lan"
[[service]]
name = "web"
listen = ["198.51.100.10:443", "[2001:db8::10]:443"]
source = ["10.0.0.20"]
[[service.upstream]]
address = "10.0.0.5:80"
[[service.upstream]]
address = "[fd00::5]:80"
[[service.upstream]]
address = "192.0.2.50:80"
"#;

const WAN: Option<PortId> = Some(PortId(0));
const LAN: Option<PortId> = Some(PortId(1));
const WEB: &str = "198.51.100.10:443";
const WEB6: &str = "[2001:db8::10]:443";

fn ip(text: &str) -> Addr {
    Addr::from(text.parse::<IpAddr>().unwrap())
}

struct Door {
    gate: Gate,
    engine: Engine,
}

impl Door {
    fn of(text: &str) -> Door {
        let config = sluice_config::parse("test.toml", text).unwrap_or_else(|mistakes| panic!("{mistakes}"));
        let plan = Plan::compile("test.toml", &config, &[], 1).unwrap();
        let engine = Engine::new(Arc::new(plan), [0; 2], Arc::new(FilterCounters::new(&config)));
        Door { gate: Gate::new(&config, [ip("fe80::ff:fe00:2")]), engine }
    }

    fn two_arm(more: &str) -> Door {
        Door::of(&format!("{TWO_ARM}{more}"))
    }

    /// With another `source_check` on both ports.
    fn checking(check: &str) -> Door {
        let ports = TWO_ARM.replace("device = ", &format!("source_check = \"{check}\"\ndevice = "));
        Door::of(&ports)
    }

    fn rx(&mut self, port: Option<PortId>, from: &str, to: &str, flags: Flags) -> Result<Addressee, DropReason> {
        self.traced(port, from, to, flags, &mut Unseen)
    }

    fn traced(
        &mut self,
        port: Option<PortId>,
        from: &str,
        to: &str,
        flags: Flags,
        trace: &mut impl Trace,
    ) -> Result<Addressee, DropReason> {
        let frame = tcp(from, to).flags(flags).build();
        let Ok(Parsed::Tcp(segment)) = parse(&frame, RxChecksums::default()) else { panic!("{from} > {to}") };
        let came = Came { port, frame: &frame, now: Micros(1_000_000) };
        self.gate.judge(&mut self.engine, &segment, came, trace)
    }

    fn source(&self, port: Option<PortId>, source: &str) -> Result<(), DropReason> {
        self.gate.source(ip(source), port)
    }
}

const SERVICE: Result<Addressee, DropReason> = Ok(Addressee::Service(ServiceId(0)));

#[test]
fn a_client_is_let_in_by_whatever_port_and_an_upstreams_answer_by_its_own() {
    let mut door = Door::two_arm("");
    for flags in [Flags::SYN, Flags::ACK, Flags::RST, Flags::FIN | Flags::ACK] {
        assert_eq!(door.rx(WAN, "203.0.113.7:4000", WEB, flags), SERVICE);
        assert_eq!(door.rx(LAN, "[2001:db8:7::7]:4000", WEB6, flags), SERVICE);
    }
    for (from, to, right, wrong) in [
        ("10.0.0.5:80", "10.0.0.2:50000", LAN, WAN),
        ("10.0.0.5:80", "10.0.0.20:50000", LAN, WAN),
        ("10.0.0.5:80", "198.51.100.10:50000", LAN, WAN),
        ("[fd00::5]:80", "[fd00::2]:50000", LAN, WAN),
        ("192.0.2.50:80", "198.51.100.2:50000", WAN, LAN),
    ] {
        for flags in [Flags::SYN | Flags::ACK, Flags::ACK, Flags::RST] {
            assert_eq!(door.rx(right, from, to, flags), Ok(Addressee::Dialler), "{from}");
            assert_eq!(door.rx(wrong, from, to, flags), Err(DropReason::UpstreamSource), "{from}");
            assert_eq!(door.rx(None, from, to, flags), Ok(Addressee::Dialler), "{from}");
        }
        assert_eq!(door.rx(right, from, to, Flags::SYN), Err(DropReason::NotAService), "nobody dials us there");
    }
}

#[test]
fn what_is_for_no_service_and_from_no_upstreams_port_is_nobodys() {
    let mut door = Door::two_arm("");
    for flags in [Flags::SYN, Flags::SYN | Flags::ACK, Flags::ACK, Flags::RST] {
        for (from, to) in [
            ("203.0.113.7:4000", "198.51.100.10:444"),
            ("203.0.113.7:80", "198.51.100.2:50000"),
            ("203.0.113.7:4000", "198.51.100.99:443"),
            ("[2001:db8:7::7]:4000", "[2001:db8::10]:444"),
        ] {
            assert_eq!(door.rx(WAN, from, to, flags), Err(DropReason::NotAService), "{from} > {to}");
        }
        assert_eq!(door.rx(LAN, "10.0.0.5:81", "10.0.0.2:50000", flags), Err(DropReason::NotAService));
        assert_eq!(door.rx(LAN, "10.0.0.5:80", "10.0.0.77:50000", flags), Err(DropReason::NotAService));
    }
}

#[test]
fn an_upstream_may_be_a_client_on_the_port_that_leads_to_it_and_nowhere_else() {
    let mut door = Door::two_arm("");
    assert_eq!(door.rx(LAN, "10.0.0.5:4000", WEB, Flags::SYN), SERVICE);
    assert_eq!(door.rx(WAN, "10.0.0.5:4000", WEB, Flags::SYN), Err(DropReason::UpstreamSource));
    // One that is reached through the clients' port.
    assert_eq!(door.rx(WAN, "192.0.2.50:4000", WEB, Flags::SYN), SERVICE);
    assert_eq!(door.rx(LAN, "192.0.2.50:4000", WEB, Flags::SYN), Err(DropReason::UpstreamSource));
    // Whatever is asked of others.
    let mut door = Door::checking("off");
    assert_eq!(door.rx(WAN, "10.0.0.5:4000", WEB, Flags::SYN), Err(DropReason::UpstreamSource));
}

#[test]
fn nobody_speaks_from_our_addresses_nor_from_broadcast_ones_whatever_the_check() {
    for check in ["off", "loose", "strict"] {
        let mut door = Door::checking(check);
        for port in [WAN, LAN, None] {
            for own in ["198.51.100.2:9", "198.51.100.10:9", "10.0.0.2:9", "10.0.0.20:9"] {
                let to = if own.starts_with("198.51.100.10") { "198.51.100.2:443" } else { WEB };
                let own_source = Err(DropReason::OwnSource);
                assert_eq!(door.rx(port, own, to, Flags::SYN), own_source, "{check} {own}");
                assert_eq!(door.rx(port, own, to, Flags::ACK), own_source, "{check} {own}");
                assert_eq!(door.rx(port, own, "198.51.100.11:444", Flags::ACK), own_source, "{check} {own}");
            }
            for own in ["[fd00::2]:9", "[2001:db8::2]:9", "[fe80::ff:fe00:2]:9"] {
                assert_eq!(door.rx(port, own, WEB6, Flags::SYN), Err(DropReason::OwnSource), "{check} {own}");
            }
            for edge in ["198.51.100.255:9", "198.51.100.0:9", "10.0.0.255:9", "10.0.0.0:9"] {
                assert_eq!(door.rx(port, edge, WEB, Flags::SYN), Err(DropReason::MartianSource), "{check} {edge}");
            }
        }
    }
}

#[test]
fn a_loose_check_asks_for_a_route_and_a_strict_one_for_a_route_through_the_port() {
    let inside = ["198.51.100.7", "10.0.0.7", "10.9.1.1", "2001:db8::7", "fd00::7"];
    let outside = ["203.0.113.7", "2001:db8:7::7"];
    let strict = Door::checking("strict");
    for source in ["198.51.100.7", "203.0.113.7", "2001:db8::7", "2001:db8:7::7", "fe80::7"] {
        assert_eq!(strict.source(WAN, source), Ok(()), "{source}");
    }
    for source in ["10.0.0.7", "10.9.1.1", "fd00::7", "fe80::7"] {
        assert_eq!(strict.source(LAN, source), Ok(()), "{source}");
    }
    for source in ["10.0.0.7", "10.9.1.1", "fd00::7"] {
        assert_eq!(strict.source(WAN, source), Err(DropReason::SourceRoute), "{source}");
    }
    for source in ["198.51.100.7", "203.0.113.7", "2001:db8::7", "2001:db8:7::7"] {
        assert_eq!(strict.source(LAN, source), Err(DropReason::SourceRoute), "{source}");
    }
    for (check, without) in
        [("loose", Err(DropReason::SourceRoute)), ("strict", Err(DropReason::SourceRoute)), ("off", Ok(()))]
    {
        // No gateway: the outside has no route.
        let text =
            TWO_ARM.replace("gateway = [\"198.51.100.1\", \"2001:db8::1\"]\n", "").replace("192.0.2.50", "10.0.0.50");
        let door = Door::of(&text.replace("device = ", &format!("source_check = \"{check}\"\ndevice = ")));
        for source in outside {
            for port in [WAN, LAN, None] {
                assert_eq!(door.source(port, source), without, "{check} {source}");
            }
        }
        for source in inside {
            assert_eq!(door.source(None, source), Ok(()), "{check} {source}");
        }
    }
    let loose = Door::two_arm("");
    for source in inside.into_iter().chain(outside) {
        assert_eq!([WAN, LAN].map(|port| loose.source(port, source)), [Ok(()); 2], "{source}");
    }
}

#[test]
fn with_two_gateways_a_strict_check_takes_clients_from_either() {
    let text = TWO_ARM
        .replace("addresses = [\"10.0.0.2/24\"", "gateway = \"10.0.0.1\"\naddresses = [\"10.0.0.2/24\"")
        .replace("device = ", "source_check = \"strict\"\ndevice = ");
    let door = Door::of(&text);
    assert_eq!([WAN, LAN].map(|port| door.source(port, "203.0.113.7")), [Ok(()); 2]);
    assert_eq!(door.source(LAN, "2001:db8:7::7"), Err(DropReason::SourceRoute), "its gateway is on the other");
}

#[test]
fn lists_bans_and_limits_ask_what_is_for_no_service_and_rules_do_not() {
    let mut door = Door::two_arm(
        "[filters]\ndeny = [\"203.0.113.0/24\"]\n[filters.per_address]\npackets = \"1/h burst 2\"\n[bans]\n\
         [[rule]]\nname = \"all\"\naction = \"drop\"\n",
    );
    door.engine.ban("192.0.2.7/32".parse().unwrap(), Micros(u64::MAX), 0).unwrap();
    let closed = "198.51.100.10:444";
    for flags in [Flags::SYN, Flags::ACK, Flags::RST] {
        assert_eq!(door.rx(WAN, "203.0.113.7:4", closed, flags), Err(DropReason::DenyList));
        assert_eq!(door.rx(WAN, "192.0.2.7:4", closed, flags), Err(DropReason::Banned));
    }
    let mut steps: Vec<Step> = Vec::new();
    let said = [(); 3].map(|()| door.traced(WAN, "192.0.2.8:4", closed, Flags::ACK, &mut steps));
    let not = Err(DropReason::NotAService);
    assert_eq!(said, [not, not, Err(DropReason::SourcePackets)]);
    assert!(steps.iter().all(|step| matches!(step, Step::Limit(..))), "{steps:?}");
    assert_eq!(door.rx(WAN, "192.0.2.9:4", WEB, Flags::ACK), Err(DropReason::Rule));
}

#[test]
fn filters_are_for_clients_and_an_upstreams_answer_is_asked_nothing() {
    let mut door = Door::two_arm("[filters]\nallow = [\"203.0.113.0/24\"]\n[filters.per_address]\npackets = \"1/h\"\n");
    for _ in 0..10 {
        assert_eq!(door.rx(LAN, "10.0.0.5:80", "10.0.0.2:50000", Flags::ACK), Ok(Addressee::Dialler));
    }
    assert_eq!(door.rx(LAN, "10.0.0.5:4000", WEB, Flags::SYN), Err(DropReason::NotAllowed), "as a client it is one");
}

#[test]
fn an_icmp_error_about_an_upstream_comes_by_its_port() {
    let door = Door::two_arm("");
    let upstream = (ip("10.0.0.5"), 80);
    let client = (ip("203.0.113.7"), 4000);
    let about = |source: &str, peer, port: Option<PortId>| door.gate.error_about(ip(source), peer, port.unwrap());
    assert_eq!(about("10.7.7.7", upstream, LAN), Ok(()), "a router with whatever address");
    assert_eq!(about("203.0.113.1", upstream, WAN), Err(DropReason::UpstreamSource));
    assert_eq!(about("10.0.0.5", client, WAN), Err(DropReason::UpstreamSource));
    assert_eq!(about("203.0.113.1", client, WAN), Ok(()));
    assert_eq!(about("198.51.100.2", client, WAN), Err(DropReason::OwnSource));
    assert_eq!(about("10.0.0.255", client, WAN), Err(DropReason::MartianSource));
}
