//! What is done only while little comes: SYN-ACKs again, keep-alive probes that prove a cookie, RSTs to strangers.

use sluice_filters::Flags;
use sluice_filters::icmp::{IcmpError, IcmpKind, Unreachable};
use sluice_filters::testkit::{Opt, tcp};
use sluice_filters::units::Seq;

use super::super::*;
use super::lab::*;
use crate::counters::{AckResult, Withheld};

const SERVICE6: &str = "[2001:db8::10]:443";
const HAND6: &str = "[2001:db8::99]:5000";
const ISN: u32 = u32::MAX - 2;
const SPLICE: &str = "mode = \"splice\"\npromise = { probe = \"0s\" }";

/// When SYN-ACKs are sent again, milliseconds after the first.
const PAUSES: [u64; 5] = [1_125, 3_375, 7_875, 16_875, 34_875];

/// What was sent to clients: when, and the packet.
type Heard = Vec<(u64, Vec<u8>)>;

/// A lab whose client is made by hand.
fn by_hand(extra: &str) -> Lab {
    let mut lab = Lab::new(extra);
    lab.client_answers = false;
    lab.stack.begin_turn(lab.now, lab.unix + Duration::from_micros(lab.now.0));
    lab
}

/// The same, two epochs after its start: it knows whose SYNs it answered.
fn settled(extra: &str) -> Lab {
    let mut lab = by_hand(extra);
    assert!(pass(&mut lab, 130_000).is_empty());
    lab
}

/// So many milliseconds of turns, with the accounts that a worker makes of them; what clients hear.
fn pass(lab: &mut Lab, ms: u64) -> Heard {
    let mut heard = heard(lab);
    let until = lab.now.0 + ms * 1_000;
    while lab.now.0 < until {
        lab.now.0 = (lab.now.0 + 25_000).min(until);
        lab.stack.begin_turn(lab.now, lab.unix + Duration::from_micros(lab.now.0));
        if lab.server_answers {
            lab.server.poll(lab.now);
            for packet in std::mem::take(&mut lab.server.wire.outgoing) {
                lab.receive(&Lab::framed(&packet));
            }
        }
        lab.stack.run_timers(lab.now, 256, &mut lab.below);
        lab.stack.serve(lab.now, &mut lab.below);
        lab.stack.publish(lab.now);
        heard.extend(self::heard(lab));
    }
    heard
}

/// What clients hear now; upstreams get theirs.
fn heard(lab: &mut Lab) -> Heard {
    let mut heard = Vec::new();
    for (way, packet) in std::mem::take(&mut lab.below.sent) {
        match way {
            Way::Reply { port: PortId(0), mac: CLIENT_MAC } => heard.push((lab.now.0 / 1_000, packet)),
            Way::Reply { .. } => panic!("the way back is another"),
            Way::Neighbor { .. } => lab.server.wire.incoming.push_back(packet),
        }
    }
    heard
}

/// Of what was heard, when SYN-ACKs came, milliseconds after `from`.
fn syn_acks(heard: &Heard, from: Micros) -> Vec<u64> {
    let syn_ack = |packet: &[u8]| read(packet).0.flags == Flags::SYN | Flags::ACK;
    heard.iter().filter(|(_, packet)| syn_ack(packet)).map(|(at, _)| at - from.0 / 1_000).collect()
}

fn linux() -> [Opt; 5] {
    [Opt::Mss(1460), Opt::SackPermitted, Opt::Timestamp(500, 0), Opt::Nop, Opt::WindowScale(7)]
}

/// The answer to a SYN that has just come.
fn shake(lab: &mut Lab, from: &str, to: &str, isn: u32, options: &[Opt]) -> Vec<u8> {
    lab.receive(&tcp(from, to).flags(Flags::SYN).seq(isn).options(options).build());
    let mut answers = heard(lab);
    assert_eq!(answers.len(), 1, "a SYN is answered at once");
    answers.pop().unwrap().1
}

fn cookie(answer: &[u8]) -> u32 {
    read(answer).0.seq.0
}

/// A segment of a client's whose next byte is `offset` bytes behind its first.
fn segment(lab: &mut Lab, flags: Flags, offset: u32, cookie: u32, payload: &[u8]) {
    let seq = ISN.wrapping_add(1).wrapping_add(offset);
    let frame = tcp(HAND, SERVICE).flags(flags).seq(seq).ack(cookie.wrapping_add(1)).window(1000).payload(payload);
    lab.receive(&frame.build());
    lab.stack.serve(lab.now, &mut lab.below);
}

fn stranger(lab: &mut Lab, from: &str) -> Heard {
    lab.receive(&tcp(from, SERVICE).flags(Flags::ACK | Flags::PSH).seq(7).ack(77).payload(b"still there?").build());
    heard(lab)
}

/// Keeps what a repeat may change out of a comparison: TSval, and TCP's checksum.
fn but_for_the_time(packet: &[u8]) -> Vec<u8> {
    let (segment, options) = read(packet);
    let mut same = packet.to_vec();
    let l4 = segment.l4() - 14;
    same[l4 + 16..l4 + 18].fill(0);
    if options.timestamp.is_some() {
        let at = usize::from(options.timestamp_at) - 14;
        same[at..at + 4].fill(0);
    }
    same
}

#[test]
fn a_syn_ack_that_nobody_answers_is_sent_again_after_1_3_7_15_and_31_seconds() {
    for (from, to) in [(HAND, SERVICE), (HAND6, SERVICE6)] {
        for options in [vec![], vec![Opt::Mss(1000)], linux().to_vec(), vec![Opt::Mss(8960), Opt::SackPermitted]] {
            for mode in [RAW, SPLICE] {
                let mut lab = by_hand(mode);
                let began = lab.now;
                let first = shake(&mut lab, from, to, ISN, &options);
                let again = pass(&mut lab, 60_000);
                assert_eq!(syn_acks(&again, began), PAUSES);
                assert_eq!(again.len(), 5);
                for (at, packet) in &again {
                    assert_eq!(but_for_the_time(packet), but_for_the_time(&first));
                    let stamps = [&first, packet].map(|packet| read(packet).1.timestamp);
                    if let [Some((then, _)), Some((now, echo))] = stamps {
                        assert_eq!((u64::from(now.wrapping_sub(then)), echo), (at - began.0 / 1_000, 500));
                    }
                }
                assert_eq!(lab.counters.syn_acks_repeated.get(), 5);
                assert_eq!(lab.counters.unanswered.get(), 0, "nothing is left");
                assert_eq!(lab.stack.sessions(), 0, "and it admitted nobody");
            }
        }
    }
}

#[test]
fn a_vlan_is_its_port_s_and_the_way_back_the_syn_s() {
    let mut lab = by_hand(RAW);
    let mut syn = tcp(HAND, SERVICE).flags(Flags::SYN).seq(ISN).options(linux()).build();
    // A tag in front, as on a port with a VLAN, from another station.
    drop(syn.splice(12..12, [0x81, 0x00, 0, 9]));
    syn[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 0x77]);
    let Ok(sluice_filters::Parsed::Tcp(parsed)) = sluice_filters::parse(&syn, sluice_filters::RxChecksums::default())
    else {
        panic!()
    };
    syn.resize(200, 0);
    let len = lab.stack.answer_syn(&mut syn, &parsed, ServiceId(0), PortId(0), OUR_MAC).unwrap();
    let answer = syn[18..len].to_vec();
    lab.now.0 += 1_125_000;
    lab.stack.begin_turn(lab.now, lab.unix + Duration::from_micros(lab.now.0));
    lab.stack.run_timers(lab.now, 256, &mut lab.below);
    let (way, again) = lab.below.sent.pop_front().expect("a second later");
    assert_eq!(way, Way::Reply { port: PortId(0), mac: [2, 0, 0, 0, 0, 0x77] });
    assert_eq!(but_for_the_time(&again), but_for_the_time(&answer));
}

#[test]
fn the_ack_ends_the_repeats() {
    for mode in [RAW, SPLICE] {
        let mut lab = by_hand(mode);
        let _server = lab.server.listen(80);
        let began = lab.now;
        let cookie = cookie(&shake(&mut lab, HAND, SERVICE, ISN, &linux()));
        assert_eq!(syn_acks(&pass(&mut lab, 1_500), began), PAUSES[..1]);
        assert_eq!(lab.counters.unanswered.get(), 1);
        segment(&mut lab, Flags::ACK, 0, cookie, b"");
        assert_eq!(lab.stack.sessions(), 1);
        assert_eq!(syn_acks(&pass(&mut lab, 40_000), began), [0; 0]);
        assert_eq!(lab.counters.unanswered.get(), 0);
    }
}

#[test]
fn an_ack_of_the_last_repeat_opens_the_connection() {
    let mut lab = by_hand(RAW);
    let _server = lab.server.listen(80);
    shake(&mut lab, HAND, SERVICE, ISN, &linux());
    let again = pass(&mut lab, 35_000);
    let (segment, options) = read(&again.last().unwrap().1);
    let (value, _) = options.timestamp.unwrap();
    let ack = tcp(HAND, SERVICE).flags(Flags::ACK).seq(segment.ack.0).ack(segment.seq.0.wrapping_add(1));
    lab.receive(&ack.options([Opt::Nop, Opt::Nop, Opt::Timestamp(34_900, value)]).build());
    assert_eq!(lab.stack.sessions(), 1);
}

#[test]
fn a_client_whose_ack_was_lost_hears_its_server_who_speaks_first() {
    for mode in [RAW, SPLICE] {
        let mut lab = Lab::new(mode);
        let server = lab.server.listen(80);
        let client = lab.dial();
        // The client has our SYN-ACK, and its ACK gets lost.
        lab.turn();
        lab.client.poll(lab.now);
        assert!(lab.client.get(client).may_send());
        assert_eq!(lab.client.wire.outgoing.drain(..).count(), 1);
        let mut got = Vec::new();
        assert!(
            lab.run(1_200, |lab| {
                let socket = lab.server.get(server);
                if socket.may_send() && got.is_empty() && socket.send_queue() == 0 {
                    socket.send_slice(b"220 ready\r\n").unwrap();
                }
                lab.client.read(client, &mut got);
                got.len() >= 11
            }),
            "{mode}"
        );
        assert_eq!(got[..11], *b"220 ready\r\n");
    }
}

#[test]
fn a_new_syn_replaces_the_one_before_and_is_answered_at_once() {
    let mut lab = by_hand(RAW);
    shake(&mut lab, HAND, SERVICE, 1_000, &linux());
    pass(&mut lab, 2_500);
    let began = lab.now;
    // The same again, then another connection's.
    shake(&mut lab, HAND, SERVICE, 1_000, &linux());
    let answer = shake(&mut lab, HAND, SERVICE, 2_000, &linux());
    let again = pass(&mut lab, 60_000);
    assert_eq!(syn_acks(&again, began), PAUSES);
    assert!(again.iter().all(|(_, packet)| cookie(packet) == cookie(&answer)));
}

#[test]
fn a_rst_ends_the_repeats_only_with_the_number_that_the_syn_ack_asked_for() {
    for (seq, ends) in [(ISN.wrapping_add(1), true), (ISN, false), (ISN.wrapping_add(2), false)] {
        let mut lab = by_hand(RAW);
        let began = lab.now;
        shake(&mut lab, HAND, SERVICE, ISN, &linux());
        lab.receive(&tcp(HAND, SERVICE).flags(Flags::RST).seq(seq).build());
        let repeats = if ends { &[] } else { &PAUSES[..3] };
        assert_eq!(syn_acks(&pass(&mut lab, 10_000), began), repeats);
    }
}

/// A lab that keeps what is left of a connection of the hand's, which was refused upstream.
fn with_a_rest() -> Lab {
    let mut lab = by_hand(RAW);
    let cookie = cookie(&shake(&mut lab, HAND, SERVICE, ISN, &[]));
    segment(&mut lab, Flags::ACK, 0, cookie, b"hello");
    pass(&mut lab, 3_500);
    assert_eq!((lab.stack.sessions(), lab.stack.lingers.len() > 0), (0, true));
    lab
}

#[test]
fn what_is_left_of_an_older_connection_changes_nothing_in_the_repeats_of_the_next_one() {
    for ends in [false, true] {
        let mut lab = with_a_rest();
        let began = lab.now;
        let isn = ISN.wrapping_sub(50_000);
        shake(&mut lab, HAND, SERVICE, isn, &linux());
        if ends {
            lab.receive(&tcp(HAND, SERVICE).flags(Flags::RST).seq(isn.wrapping_add(1)).build());
        }
        let repeats = if ends { &[] } else { &PAUSES[..2] };
        assert_eq!(syn_acks(&pass(&mut lab, 5_000), began), repeats);
    }
}

#[test]
fn a_client_that_lost_its_state_has_its_syn_ack_repeated_beside_its_old_connection() {
    for mode in [RAW, SPLICE] {
        let mut lab = Lab::new(mode);
        lab.client_answers = false;
        let server = lab.server.listen(80);
        pass(&mut lab, 100);
        let old = cookie(&shake(&mut lab, HAND, SERVICE, ISN, &[]));
        segment(&mut lab, Flags::ACK, 0, old, b"hello");
        pass(&mut lab, 2_000);
        assert_eq!(lab.stack.sessions(), 1);
        // It comes back from the same port; its ACK is lost, and it says nothing before its server does.
        let isn = ISN.wrapping_add(1_000_000);
        lab.server.listen(80);
        let began = lab.now;
        let new = cookie(&shake(&mut lab, HAND, SERVICE, isn, &[]));
        let heard = pass(&mut lab, 1_500);
        let repeats: Heard = heard.into_iter().filter(|(_, packet)| cookie(packet) == new).collect();
        assert_eq!(syn_acks(&repeats, began), PAUSES[..1], "{mode}");
        let ack = tcp(HAND, SERVICE).flags(Flags::ACK).seq(isn.wrapping_add(1)).ack(new.wrapping_add(1));
        lab.receive(&ack.window(1_000).build());
        pass(&mut lab, 500);
        assert_eq!((lab.stack.sessions(), lab.ended(EndCause::ClientRestarted)), (1, 1), "{mode}");
        let _ = server;
    }
}

#[test]
fn the_next_connection_s_first_ack_is_not_taken_for_a_late_one_of_what_is_left() {
    // Before and behind the old one's numbers.
    for isn in [ISN.wrapping_sub(50_000), ISN.wrapping_add(3), ISN.wrapping_add(50_000)] {
        let mut lab = with_a_rest();
        let server = lab.server.listen(80);
        let cookie = cookie(&shake(&mut lab, HAND, SERVICE, isn, &[]));
        let first = tcp(HAND, SERVICE).seq(isn.wrapping_add(1)).ack(cookie.wrapping_add(1)).flags(Flags::ACK);
        lab.receive(&first.window(1_000).payload(b"again").build());
        pass(&mut lab, 500);
        let mut got = Vec::new();
        lab.server.read(server, &mut got);
        assert_eq!(got.escape_ascii().to_string(), "again");
    }
}

#[test]
fn an_unreachable_client_is_not_asked_again_if_the_router_quotes_the_syn_ack() {
    for (off, kind, ends) in [
        (0, IcmpKind::Unreachable(Unreachable::Host), true),
        (0, IcmpKind::Unreachable(Unreachable::Port), true),
        (1, IcmpKind::Unreachable(Unreachable::Host), false),
        (0, IcmpKind::TooBig(40), false),
    ] {
        let mut lab = by_hand(RAW);
        let began = lab.now;
        let answer = shake(&mut lab, HAND, SERVICE, ISN, &linux());
        let (segment, _) = read(&answer);
        // The flow as received is the reverse of the answer's.
        let key = FlowKey {
            src: segment.key.dst,
            dst: segment.key.src,
            src_port: segment.key.dst_port,
            dst_port: segment.key.src_port,
        };
        let error = IcmpError { kind, key, seq: Seq(segment.seq.0.wrapping_add(off)), len: 60 };
        let hash = lab.stack.hash(&key);
        assert_eq!(lab.stack.icmp_error(&error, hash, PortId(0), lab.now, &mut lab.below).is_ok(), ends);
        assert_eq!(syn_acks(&pass(&mut lab, 10_000), began).is_empty(), ends);
    }
}

#[test]
fn repeats_end_with_the_cookie_s_life() {
    let mut lab = by_hand(&format!("{RAW}\n[cookies]\nepoch = \"4s\""));
    let began = lab.now;
    shake(&mut lab, HAND, SERVICE, ISN, &linux());
    let times = syn_acks(&pass(&mut lab, 60_000), began);
    assert_eq!(times, PAUSES[..2], "from second 1 of the epoch: good until second 7.5");
}

#[test]
fn an_address_gets_ten_repeats_a_second_and_its_prefix_a_hundred() {
    let mut lab = by_hand(RAW);
    for port in 0..30 {
        shake(&mut lab, &format!("203.0.113.99:{}", 5_000 + port), SERVICE, ISN, &linux());
    }
    assert_eq!(pass(&mut lab, 1_900).len(), 10);
    assert_eq!(lab.counters.repeats_withheld.get(), 20);
    let mut lab = by_hand(RAW);
    for host in 1..=150 {
        shake(&mut lab, &format!("203.0.113.{host}:5000"), SERVICE, ISN, &linux());
        shake(&mut lab, &format!("[2001:db8:0:{host}::9]:5000"), SERVICE6, ISN, &linux());
    }
    shake(&mut lab, "198.18.0.1:5000", SERVICE, ISN, &linux());
    lab.now.0 += 1_125_000;
    lab.stack.begin_turn(lab.now, lab.unix + Duration::from_micros(lab.now.0));
    for _ in 0..20 {
        lab.stack.run_timers(lab.now, 256, &mut lab.below);
    }
    assert_eq!(heard(&mut lab).len(), 201, "a /24, a /48, and a neighbour of neither");
}

#[test]
fn an_address_that_was_proved_gets_as_many_repeats_as_its_prefix() {
    let mut lab = by_hand(RAW);
    lab.stack.filters.verified("203.0.113.99".parse::<std::net::IpAddr>().unwrap().into(), lab.now);
    for port in 0..150 {
        shake(&mut lab, &format!("203.0.113.99:{}", 5_000 + port), SERVICE, ISN, &linux());
    }
    // A second's worth, and what comes to it while they are sent.
    let repeats = pass(&mut lab, 1_900).len();
    assert!((100..=120).contains(&repeats), "{repeats}");
}

#[test]
fn a_repeat_that_is_withheld_is_not_lost() {
    let mut lab = by_hand(RAW);
    let began = lab.now;
    for port in 0..30 {
        shake(&mut lab, &format!("203.0.113.99:{}", 5_000 + port), SERVICE, ISN, &linux());
    }
    let first = |port: u16, heard: &Heard| {
        let of_it: Heard = heard.iter().filter(|(_, packet)| read(packet).0.key.dst_port == port).cloned().collect();
        syn_acks(&of_it, began)
    };
    let heard = pass(&mut lab, 120_000);
    for port in 5_000..5_030 {
        let at = first(port, &heard);
        assert!(at.len() == 5 && at[0] <= 10_000, "{port}: {at:?}");
    }
}

#[test]
fn whoever_was_banned_or_denied_meanwhile_is_not_asked_again() {
    let mut lab = by_hand(&format!("{RAW}\n[bans]"));
    let began = lab.now;
    shake(&mut lab, HAND, SERVICE, ISN, &linux());
    shake(&mut lab, "203.0.113.100:5000", SERVICE, ISN, &linux());
    assert_eq!(syn_acks(&pass(&mut lab, 1_500), began), [1_125, 1_125]);
    lab.stack.filters.ban("203.0.113.99/32".parse().unwrap(), Micros(u64::MAX), 0).unwrap();
    assert_eq!(syn_acks(&pass(&mut lab, 20_000), began), PAUSES[1..4], "the neighbour only");
}

#[test]
fn a_flood_ends_the_peace_at_once_and_nothing_of_it_is_repeated() {
    let mut lab = by_hand(RAW);
    shake(&mut lab, HAND, SERVICE, ISN, &linux());
    // Between two looks at the clock.
    for n in 0..10_000_u32 {
        let from = format!("198.18.{}.{}:{}", n >> 8 & 15, n & 0xff, 1024 + n);
        shake(&mut lab, &from, SERVICE, n, &linux());
    }
    assert_eq!(lab.counters.cookies_sent.get(), 10_001, "every one is answered");
    assert!(pass(&mut lab, 1_900).is_empty(), "but not twice");
    assert_eq!((lab.counters.peace.get(), lab.counters.unanswered.get()), (0, 0));
    // Peace returns, and forgets.
    assert!(pass(&mut lab, 8_000).is_empty());
    assert_eq!(lab.counters.peace.get(), 1);
    let began = lab.now;
    shake(&mut lab, HAND, SERVICE, ISN, &linux());
    assert_eq!(syn_acks(&pass(&mut lab, 10_000), began), PAUSES[..3]);
}

#[test]
fn however_many_clients_prove_themselves_there_is_peace() {
    let mut lab = by_hand(RAW);
    for n in 0..30_000_u32 {
        lab.now.0 += 100;
        let answer = shake(&mut lab, HAND, SERVICE, n * 100_000, &[]);
        let (seq, ack) = (n.wrapping_mul(100_000).wrapping_add(1), cookie(&answer).wrapping_add(1));
        lab.receive(&tcp(HAND, SERVICE).flags(Flags::ACK).seq(seq).ack(ack).window(1_000).build());
        lab.receive(&tcp(HAND, SERVICE).flags(Flags::RST | Flags::ACK).seq(seq).ack(ack).build());
        lab.stack.serve(lab.now, &mut lab.below);
        if n % 500 == 0 {
            pass(&mut lab, 50);
        }
    }
    assert_eq!(lab.counters.services[0].opened.get(), 30_000);
    pass(&mut lab, 2_500);
    let began = lab.now;
    shake(&mut lab, HAND, SERVICE, ISN, &linux());
    assert_eq!(syn_acks(&pass(&mut lab, 5_000), began), PAUSES[..2]);
}

#[test]
fn a_flood_that_goes_on_is_no_peace() {
    let mut lab = by_hand(RAW);
    // 1,500 a second, less than the rate but more than half of it, after a burst beyond all measure.
    for n in 0..9_000_u32 {
        shake(&mut lab, &format!("198.18.{}.{}:1024", n >> 8, n & 0xff), SERVICE, n, &[]);
    }
    for n in 0..200_u32 {
        for port in 0..75 {
            shake(&mut lab, &format!("198.18.0.{n}:{}", 2_000 + port), SERVICE, n, &[]);
        }
        assert!(pass(&mut lab, 50).is_empty());
        assert_eq!(lab.counters.peace.get(), 0);
    }
}

#[test]
fn repeats_can_be_switched_off_and_end_with_the_drain() {
    let mut lab = by_hand(&format!("{RAW}\n[peace]\nrepeats = \"off\""));
    shake(&mut lab, HAND, SERVICE, ISN, &linux());
    assert!(pass(&mut lab, 40_000).is_empty());
    let mut lab = by_hand(RAW);
    shake(&mut lab, HAND, SERVICE, ISN, &linux());
    lab.stack.drain();
    assert!(pass(&mut lab, 40_000).is_empty());
    lab.receive(&tcp(HAND, SERVICE).flags(Flags::SYN).seq(ISN).build());
    assert_eq!(lab.drops, [DropReason::Draining]);
}

#[test]
fn a_keep_alive_probe_proves_the_cookie_and_shifts_nothing() {
    for mode in [RAW, SPLICE] {
        for garbage in [&b""[..], b"\0"] {
            let mut lab = by_hand(mode);
            let server = lab.server.listen(80);
            let cookie = cookie(&shake(&mut lab, HAND, SERVICE, ISN, &[]));
            // Numbered as the SYN was.
            segment(&mut lab, Flags::ACK, u32::MAX, cookie, garbage);
            assert_eq!((lab.stack.sessions(), lab.counters.keep_alives.get()), (1, 1), "{mode} {garbage:?}");
            assert_eq!(lab.counters.cookie_acks[AckResult::Accepted as usize].get(), 1);
            pass(&mut lab, 500);
            segment(&mut lab, Flags::ACK | Flags::PSH, 0, cookie, b"hello");
            pass(&mut lab, 500);
            segment(&mut lab, Flags::ACK | Flags::PSH, 5, cookie, b" again");
            pass(&mut lab, 500);
            let mut got = Vec::new();
            lab.server.read(server, &mut got);
            assert_eq!(got.escape_ascii().to_string(), "hello again", "{mode} {garbage:?}");
        }
    }
}

#[test]
fn nothing_but_a_keep_alive_probe_may_be_numbered_one_before() {
    let mut lab = by_hand(RAW);
    let cookie = cookie(&shake(&mut lab, HAND, SERVICE, ISN, &[]));
    segment(&mut lab, Flags::ACK, u32::MAX, cookie, b"ab");
    segment(&mut lab, Flags::ACK | Flags::FIN, u32::MAX, cookie, b"");
    segment(&mut lab, Flags::ACK, u32::MAX - 1, cookie, b"");
    assert_eq!(lab.stack.sessions(), 0);
    assert_eq!(lab.drops, [DropReason::BadCookie; 3]);
}

#[test]
fn under_a_flood_of_segments_of_no_connection_no_keep_alive_probe_is_tried() {
    let mut lab = by_hand(RAW);
    let cookie = cookie(&shake(&mut lab, HAND, SERVICE, ISN, &[]));
    for n in 0..2_001_u32 {
        lab.receive(&tcp("198.18.0.1:1024", SERVICE).flags(Flags::ACK).ack(n).build());
    }
    segment(&mut lab, Flags::ACK, u32::MAX, cookie, b"");
    assert_eq!(lab.stack.sessions(), 0);
    // It ends, and the next probe is heard.
    pass(&mut lab, 5_000);
    segment(&mut lab, Flags::ACK, u32::MAX, cookie, b"");
    assert_eq!(lab.stack.sessions(), 1);
}

#[test]
fn what_a_syn_was_answered_is_kept_where_its_flow_is_owned() {
    let extra = format!("{RAW}\n[peace]");
    let (mut receiver, mut owner) = (by_hand(&extra), by_hand(&extra));
    receiver.stack.share_answered();
    let _server = owner.server.listen(80);
    let began = owner.now;
    let answer = shake(&mut receiver, HAND, SERVICE, ISN, &linux());
    let (_, record) = receiver.stack.next_answered().expect("for another worker");
    assert!(receiver.stack.next_answered().is_none());
    owner.stack.keep_answered(record);
    let again = pass(&mut owner, 1_500);
    assert_eq!(syn_acks(&again, began), PAUSES[..1]);
    assert_eq!(but_for_the_time(&again[0].1), but_for_the_time(&answer));
    assert!(pass(&mut receiver, 40_000).is_empty(), "the receiver does not care");
    // The ACK is handed over to the owner as well.
    segment(&mut owner, Flags::ACK, 0, cookie(&answer), b"");
    assert_eq!(owner.stack.sessions(), 1);
    assert_eq!(syn_acks(&pass(&mut owner, 40_000), began), [0; 0]);
}

#[test]
fn a_segment_of_no_connection_is_reset() {
    let mut lab = settled(RAW);
    let reset = stranger(&mut lab, HAND);
    let (segment, _) = read(&reset[0].1);
    assert_eq!((segment.flags, segment.seq), (Flags::RST, Seq(77)), "RFC 9293 section 3.10.7.1");
    assert_eq!(lab.drops, [DropReason::BadCookie]);
    lab.receive(&tcp(HAND6, SERVICE6).flags(Flags::SYN | Flags::ACK).seq(7).ack(78).build());
    let (segment, _) = read(&heard(&mut lab)[0].1);
    assert_eq!((segment.flags, segment.seq), (Flags::RST, Seq(78)));
    lab.receive(&tcp(HAND, SERVICE).flags(Flags::RST | Flags::ACK).seq(7).ack(79).build());
    lab.receive(&tcp(HAND, SERVICE).flags(Flags::RST).seq(7).build());
    assert!(heard(&mut lab).is_empty(), "never in answer to a RST");
    assert_eq!((lab.counters.strangers_reset.get(), lab.counters.resets_sent.get()), (2, 2));
}

#[test]
fn nobody_is_reset_before_two_epochs_are_known() {
    let mut lab = by_hand(RAW);
    assert!(stranger(&mut lab, HAND).is_empty());
    pass(&mut lab, 127_900);
    assert!(stranger(&mut lab, HAND).is_empty());
    assert_eq!(lab.counters.resets_withheld[Withheld::Unknown as usize].get(), 2);
    pass(&mut lab, 100);
    assert_eq!(stranger(&mut lab, HAND).len(), 1);
}

#[test]
fn a_client_whose_second_data_segment_comes_first_is_not_reset_and_its_connection_completes() {
    for mode in [RAW, SPLICE] {
        let mut lab = settled(mode);
        let server = lab.server.listen(80);
        let cookie = cookie(&shake(&mut lab, HAND, SERVICE, ISN, &[]));
        // The handshake's ACK is lost, and the first segment of data.
        segment(&mut lab, Flags::ACK, 5, cookie, b" again");
        assert!(heard(&mut lab).is_empty(), "no RST");
        assert_eq!(lab.drops, [DropReason::BadCookie]);
        assert_eq!(lab.counters.resets_withheld[Withheld::Answered as usize].get(), 1);
        segment(&mut lab, Flags::ACK, 0, cookie, b"hello");
        pass(&mut lab, 500);
        segment(&mut lab, Flags::ACK, 5, cookie, b" again");
        pass(&mut lab, 500);
        let mut got = Vec::new();
        lab.server.read(server, &mut got);
        assert_eq!(got.escape_ascii().to_string(), "hello again");
    }
}

#[test]
fn a_cookie_s_life_long_and_no_longer_than_three_epochs_its_4_tuple_is_not_reset() {
    for at in [0, 1_000, 30_000, 63_950] {
        let mut lab = settled(RAW);
        pass(&mut lab, at);
        shake(&mut lab, HAND, SERVICE, ISN, &[]);
        for _ in 0..128 {
            segment(&mut lab, Flags::ACK, 5, 1, b"x");
            // What is heard besides are repeats.
            let heard = pass(&mut lab, 1_000);
            assert!(heard.iter().all(|(_, packet)| !read(packet).0.flags.rst()));
        }
        pass(&mut lab, 64_000);
        segment(&mut lab, Flags::ACK, 5, 1, b"x");
        assert_eq!(heard(&mut lab).len(), 1);
    }
}

#[test]
fn after_the_clock_was_set_nobody_is_reset_while_a_cookie_of_before_is_good() {
    const MINUTE: Duration = Duration::from_secs(60);
    let wall = Duration::from_secs(64_000);
    for (step, epochs) in [(wall - MINUTE, 2), (wall + MINUTE, 1), (wall - 60 * MINUTE, 1), (wall + 60 * MINUTE, 1)] {
        let mut lab = by_hand(RAW);
        // Answered at an epoch's beginning by the wall clock, and just before what it is noted in is no longer the newest.
        lab.unix = wall - Duration::from_secs(190);
        pass(&mut lab, 191_000);
        let cookie = cookie(&shake(&mut lab, HAND, SERVICE, ISN, &[]));
        let answered = lab.now;
        pass(&mut lab, 61_000);
        lab.unix = step - Duration::from_secs(190);
        pass(&mut lab, 50);
        let key = flow(HAND, SERVICE);
        while lab.stack.jar.check(&key, Seq(ISN), Seq(cookie.wrapping_add(1))).is_some() {
            segment(&mut lab, Flags::ACK, 5, cookie, b" again");
            let heard = pass(&mut lab, 1_000);
            assert!(heard.iter().all(|(_, packet)| !read(packet).0.flags.rst()), "after {:?}", lab.now.since(answered));
        }
        assert!(lab.now.since(answered) > Duration::from_secs(64) * epochs, "{:?}", lab.now.since(answered));
        pass(&mut lab, 192_000);
        assert_eq!(stranger(&mut lab, "198.51.100.77:4000").len(), 1, "it is known again");
    }
}

#[test]
fn a_client_that_writes_to_a_connection_that_was_forgotten_is_reset() {
    let mut lab = settled(&format!("{RAW}\ntimeouts = {{ client_idle = \"2s\" }}"));
    let _server = lab.server.listen(80);
    let cookie = cookie(&shake(&mut lab, HAND, SERVICE, ISN, &[]));
    segment(&mut lab, Flags::ACK, 0, cookie, b"");
    pass(&mut lab, 200_000);
    assert_eq!(lab.ended(EndCause::ClientIdle), 1);
    segment(&mut lab, Flags::ACK, 0, cookie, b"still there?");
    let (reset, _) = read(&heard(&mut lab).pop().expect("a RST").1);
    assert_eq!((reset.flags, reset.seq.0), (Flags::RST, cookie.wrapping_add(1)));
}

#[test]
fn resets_have_a_ceiling_for_each_prefix() {
    let mut lab = settled(RAW);
    let resets: usize = (0..250).map(|n| stranger(&mut lab, &format!("203.0.113.{n}:5000")).len()).sum();
    assert_eq!(resets, 100);
    assert_eq!(lab.counters.resets_withheld[Withheld::Ceiling as usize].get(), 150);
    assert_eq!(stranger(&mut lab, "203.0.112.1:5000").len(), 1);
}

#[test]
fn a_flood_of_segments_of_no_connection_is_not_answered() {
    let mut lab = settled(RAW);
    let mut resets = 0;
    for n in 0..20_000_u32 {
        resets += stranger(&mut lab, &format!("198.{}.{}.1:5000", n >> 8, n & 0xff)).len();
    }
    assert_eq!(resets, 2_000, "a burst's worth");
    assert_eq!(lab.counters.resets_withheld[Withheld::Pressure as usize].get(), 18_000);
    pass(&mut lab, 5_000);
    assert_eq!(stranger(&mut lab, HAND).len(), 1);
}

#[test]
fn after_a_flood_of_syns_nobody_is_reset_for_two_epochs() {
    let mut lab = settled(RAW);
    for n in 0..9_000_u32 {
        shake(&mut lab, &format!("198.18.{}.{}:1024", n >> 8, n & 0xff), SERVICE, n, &[]);
    }
    assert!(stranger(&mut lab, HAND).is_empty());
    assert_eq!(lab.counters.resets_withheld[Withheld::Pressure as usize].get(), 1);
    pass(&mut lab, 10_000);
    assert!(stranger(&mut lab, HAND).is_empty());
    assert_eq!(lab.counters.resets_withheld[Withheld::Unknown as usize].get(), 1);
    pass(&mut lab, 125_000);
    assert_eq!(stranger(&mut lab, HAND).len(), 1);
}

#[test]
fn a_syn_that_its_flow_s_owner_could_not_note_keeps_all_workers_from_resetting() {
    let mut lab = settled(RAW);
    lab.stack.miss_answered();
    assert!(stranger(&mut lab, HAND).is_empty());
    pass(&mut lab, 127_900);
    assert!(stranger(&mut lab, HAND).is_empty());
    pass(&mut lab, 200);
    assert_eq!(stranger(&mut lab, HAND).len(), 1);
}

#[test]
fn resets_can_be_switched_off_and_end_with_the_drain() {
    let mut lab = settled(&format!("{RAW}\n[peace]\nresets = \"off\""));
    assert!(stranger(&mut lab, HAND).is_empty());
    let mut lab = settled(RAW);
    lab.stack.drain();
    assert!(stranger(&mut lab, HAND).is_empty());
}

#[test]
fn whoever_is_denied_banned_or_over_a_limit_is_not_reset() {
    let limits = "[filters]\ndeny = [\"203.0.113.1\"]\n[filters.per_address]\nflowless_acks = \"1/h\"\n[bans]";
    let mut lab = settled(&format!("{RAW}\n{limits}"));
    lab.stack.filters.ban("203.0.113.2/32".parse().unwrap(), Micros(u64::MAX), 0).unwrap();
    assert!(stranger(&mut lab, "203.0.113.1:5000").is_empty());
    assert!(stranger(&mut lab, "203.0.113.2:5000").is_empty());
    assert_eq!(stranger(&mut lab, "203.0.113.3:5000").len(), 1);
    assert!(stranger(&mut lab, "203.0.113.3:5000").is_empty());
    use DropReason::{BadCookie, Banned, DenyList, SourceFlowlessAcks};
    assert_eq!(lab.drops, [DenyList, Banned, BadCookie, SourceFlowlessAcks]);
}
