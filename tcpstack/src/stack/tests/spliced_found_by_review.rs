//! What a hostile reading of splice mode found, each mended.

use crate::counters::Missing;
use crate::record::EndCause;
use crate::splice::promise::Accepted;
use sluice_filters::Flags;
use sluice_filters::icmp::{IcmpError, IcmpKind};
use sluice_filters::testkit::{Opt, tcp};

use super::super::*;
use super::lab::*;
use super::spliced_by_hand::*;

/// A session in which the client has sent a hundred octets, all acknowledged.
pub(super) fn settled() -> Talk {
    let mut talk = Talk::connected(PINNED);
    talk.client(Flags::ACK, 0, 0, &[b'a'; 100]);
    talk.upstream(Flags::ACK, 0, 100, b"");
    talk.sent();
    talk
}

pub(super) fn v1() -> String {
    format!("{PINNED}\nproxy_protocol = \"v1\"")
}

/// A client's segment, no options.
pub(super) fn plain(talk: &mut Talk, flags: Flags, seq: u32, ack: u32, payload: &[u8]) {
    let frame = tcp(HAND, SERVICE)
        .flags(flags)
        .seq(ISN.wrapping_add(1).wrapping_add(seq))
        .ack(talk.cookie.wrapping_add(1).wrapping_add(ack))
        .window(2_000)
        .payload(payload)
        .build();
    talk.lab.receive(&frame);
}

#[test]
fn a_client_cannot_write_into_the_headers_numbers() {
    let mut talk = Talk::connected(&v1());
    talk.sent();
    // The header was lost. The client sends one of its own, in the same place.
    let forged = b"PROXY TCP4 192.0.2.111 198.51.100.10 5000 443\r\n";
    let at = HEADER_LEN.wrapping_neg();
    talk.client(Flags::ACK | Flags::PSH, at, 0, &[&forged[..], b"x"].concat());
    let sent = talk.sent();
    let hits: Vec<_> = sent.iter().filter(|s| !to_client(s) && s.3.starts_with(b"PROXY TCP4 192.0.2.111")).collect();
    assert!(hits.is_empty(), "forwarded at {:?}, dial {:?}", hits[0].1.seq, talk.dial);
}

#[test]
fn a_client_cannot_have_a_header_of_its_own_held() {
    let mut talk = Talk::new(&v1());
    talk.client(Flags::ACK | Flags::PSH, HEADER_LEN.wrapping_neg(), 0, b"PROXY TCP4 192.0.2.111");
    talk.accept(&all());
    let sent = talk.sent();
    assert!(!sent.iter().any(|s| s.3.starts_with(b"PROXY TCP4 192.0.2.111")), "held and forwarded behind the header");
}

#[test]
fn a_challenge_while_dialling_keeps_the_timestamp_clock() {
    let mut talk = Talk::new(PINNED);
    // Off path, any numbers: a SYN-ACK with the client's address.
    plain(&mut talk, Flags::SYN | Flags::ACK, 0x1234_5678, 0x2222_2222, b"");
    let challenge = talk.one();
    assert!(to_client(&challenge));
    let value = challenge.2.timestamp.unwrap().0;
    assert!(value.wrapping_sub(talk.our_stamp) < 10_000, "TSval {value}, SYN-ACK's {}", talk.our_stamp);
}

#[test]
fn an_old_forged_fin_does_not_end_the_clients_stream() {
    let mut talk = settled();
    // 60,000 octets before the window: no receiver looks at it.
    plain(&mut talk, Flags::ACK | Flags::FIN, 60_000_u32.wrapping_neg(), 0, b"");
    assert_eq!(talk.dropped(), Some(DropReason::OutOfWindow));
    talk.sent();
    talk.client(Flags::ACK, 100, 0, b"legitimate");
    assert_eq!(talk.dropped(), None);
}

#[test]
fn an_old_forged_fin_starts_no_timeout() {
    let mut talk = settled();
    plain(&mut talk, Flags::ACK | Flags::FIN, 60_000_u32.wrapping_neg(), 0, b"");
    for _ in 0..40 {
        talk.client(Flags::ACK, 100, 0, b"legitimate");
        talk.wait_ms(1_000);
    }
    assert_eq!(talk.lab.stack.sessions(), 1, "cut by one forged segment");
}

#[test]
fn a_forged_bare_ack_does_not_poison_paws() {
    let mut talk = settled();
    let at = 60_000_u32.wrapping_neg();
    talk.client_stamped(Flags::ACK, at, 0, b"", 510 + 0x7fff_0000, 0);
    talk.sent();
    talk.client_stamped(Flags::ACK, 100, 0, b"legitimate", 700, talk.our_stamp);
    assert_eq!(talk.dropped(), None);
}

#[test]
fn held_payload_is_not_older_than_the_header() {
    let mut talk = Talk::new(&v1());
    let echo = talk.our_stamp;
    talk.client_stamped(Flags::ACK, 0, 0, b"one", 510, echo);
    talk.client_stamped(Flags::ACK, 3, 0, b"two", 511, echo);
    talk.wait_ms(300);
    // The client's own timer.
    talk.client_stamped(Flags::ACK, 0, 0, b"one", 810, echo);
    talk.sent();
    talk.accept(&all());
    let sent = talk.sent();
    let stamps: Vec<u32> = sent.iter().map(|s| s.2.timestamp.unwrap().0).collect();
    assert!(stamps.is_sorted(), "header, one, two: {stamps:?}");
}

#[test]
fn on_data_dials_though_nothing_can_be_held() {
    let mut talk = Talk::new(&format!("{PINNED}\nconnect = \"on-data\""));
    talk.lab.stack.held.fill(32 << 20);
    for _ in 0..10 {
        talk.client(Flags::ACK, 0, 0, b"hello");
        talk.wait_ms(200);
    }
    assert!(talk.sent().iter().any(|s| s.1.flags == Flags::SYN), "drops {:?}", talk.lab.drops);
}

#[test]
fn a_client_that_speaks_after_more_than_an_hour_has_its_header_sent_again_like_any_other() {
    let mut talk = Talk::new(&format!("{}\nconnect = \"on-data\"\ntimeouts = {{ client_idle = \"3h\" }}", v1()));
    talk.lab.now.0 += 73 * 60 * 1_000_000;
    talk.wait_ms(1);
    talk.client(Flags::ACK, 0, 0, b"hello");
    talk.wait_ms(10);
    talk.find_dial();
    talk.accept(&all());
    assert!(talk.sent().iter().any(|sent| sent.3.starts_with(b"PROXY ")));
    talk.wait_ms(2_000);
    assert!(talk.sent().iter().any(|sent| sent.3.starts_with(b"PROXY ")), "it was lost");
    assert_eq!(talk.lab.stack.sessions(), 1);
}

#[test]
fn a_reset_while_the_header_is_out_is_repeated() {
    let mut talk = Talk::connected(&v1());
    talk.sent();
    // The header was lost; the client goes away.
    talk.client(Flags::RST | Flags::ACK, 0, 0, b"");
    assert_eq!(talk.lab.stack.sessions(), 0);
    talk.sent();
    // RST in the window, not exact: the upstream's challenge ACK.
    talk.upstream(Flags::ACK, 0, 0, b"");
    assert!(talk.sent().iter().any(|s| s.1.flags.rst()), "the upstream keeps its connection");
}

#[test]
fn a_stream_without_lulls_outlives_the_timestamp_clock() {
    let mut talk = Talk::connected(PINNED);
    talk.upstream(Flags::ACK, 0, 0, b"");
    talk.sent();
    let mut ts = THEIR_CLOCK.wrapping_add(3_000);
    let mut at = 0_u32;
    // One segment is always on its way; a segment a day.
    for _ in 0..30 {
        ts = ts.wrapping_add(86_400_000);
        let frame = tcp(UPSTREAM, &*talk.ours)
            .flags(Flags::ACK)
            .seq(THEIR_ISN.wrapping_add(1).wrapping_add(at))
            .ack(talk.dial.wrapping_add(1))
            .window(500)
            .options([Opt::Nop, Opt::Nop, Opt::Timestamp(ts, 510)])
            .payload([b'q'; 10])
            .build();
        talk.lab.receive(&frame);
        assert_eq!(talk.dropped(), None, "segment at {at}");
        talk.client(Flags::ACK, 0, at, b"");
        at += 10;
    }
}

#[test]
fn the_promised_scale_is_that_of_the_syn_ack() {
    let mut lab = Lab::new("mode = \"splice\"\npromise = { probe = \"0s\" }");
    lab.client_answers = false;
    lab.server_answers = false;
    lab.stack.begin_turn(lab.now, Duration::from_micros(lab.now.0));
    let options = [Opt::Mss(1460), Opt::SackPermitted, Opt::Timestamp(500, 0), Opt::Nop, Opt::WindowScale(3)];
    lab.receive(&tcp(HAND, SERVICE).flags(Flags::SYN).seq(ISN).options(options).build());
    let (_, packet) = lab.below.sent.pop_back().unwrap();
    let (answer, options) = read(&packet);
    assert_eq!(options.wscale, Some(7));
    // The upstream was seen not to scale.
    let unscaled =
        Accepted { mss: 1_460, window: 60_000, wscale: Some(None), sack: Some(true), timestamps: Some(true) };
    lab.shared.board.learn(ServiceId(0), 0, unscaled);
    let stamp = options.timestamp.unwrap().0;
    let mut talk = Talk { lab, cookie: answer.seq.0, our_stamp: stamp, ours: String::new(), dial: 0 };
    talk.client(Flags::ACK, 0, 0, b"");
    talk.find_dial();
    talk.accept(&all());
    talk.sent();
    talk.upstream(Flags::ACK, 0, 0, b"");
    let window = u32::from(talk.one().1.window) << 7;
    assert_eq!(window, 500 << 7, "what the client believes to be open");
}

#[test]
fn a_host_that_only_acknowledges_is_not_hammered() {
    let mut talk = Talk::new(PINNED);
    talk.sent();
    let mut syns = 0;
    for _ in 0..1_000 {
        talk.wait_ms(1);
        let sent = talk.sent();
        for s in sent {
            if s.1.flags == Flags::SYN {
                syns += 1;
                talk.upstream(Flags::ACK, 0, 0x1000_0000, b"");
            }
        }
    }
    assert!(syns < 10, "{syns} SYNs in a second");
}

#[test]
fn a_forged_segment_in_the_window_does_not_cut_an_idle_session() {
    let mut talk = settled();
    plain(&mut talk, Flags::ACK, 5_000, 0, b"x");
    // The upstream's answer: it still waits for octet 100.
    talk.upstream(Flags::ACK, 0, 100, b"");
    talk.wait_ms(100_000);
    assert_eq!(talk.lab.ended(EndCause::UpstreamTimeout), 0);
}

#[test]
fn timestamps_nobody_agreed_on_are_not_judged() {
    let mut lab = Lab::new("mode = \"splice\"\npromise = { probe = \"0s\" }");
    lab.client_answers = false;
    lab.server_answers = false;
    let hand = Hand::shake(&mut lab);
    let frame = tcp(HAND, SERVICE)
        .flags(Flags::ACK)
        .seq(hand.next)
        .ack(hand.ack)
        .window(1000)
        .options([Opt::Nop, Opt::Nop, Opt::Timestamp(0x9000_0000, 0)])
        .payload(b"hello")
        .build();
    lab.drops.clear();
    lab.receive(&frame);
    assert_eq!(lab.drops, []);
}

#[test]
fn a_fallback_counts_octets_once() {
    let mut talk = Talk::new(PINNED);
    talk.client(Flags::ACK, 0, 0, b"hello");
    let server = talk.lab.server.listen(80);
    talk.accept(&[]);
    talk.sent();
    talk.lab.server_answers = true;
    let mut got = Vec::new();
    assert!(talk.lab.run(3_000, |lab| {
        lab.server.read(server, &mut got);
        got == b"hello"
    }));
    assert_eq!(talk.lab.counters.services[0].bytes_to_upstream.get(), 5);
}

#[test]
fn a_fallback_keeps_the_evidence() {
    let extra = format!("{PINNED}\nproxy_protocol = \"v2\"\nproxy_header = {{ evidence = true, unique_id = true }}");
    let mut lab = Lab::new(&extra);
    lab.client_answers = false;
    lab.server_answers = false;
    lab.stack.begin_turn(lab.now, Duration::from_micros(lab.now.0));
    let options = [Opt::Mss(1460), Opt::SackPermitted, Opt::Timestamp(500, 0), Opt::Nop, Opt::WindowScale(3)];
    lab.receive(&tcp(HAND, SERVICE).flags(Flags::SYN).seq(ISN).options(options).build());
    let (_, packet) = lab.below.sent.pop_back().unwrap();
    let (answer, options) = read(&packet);
    let mut talk =
        Talk { cookie: answer.seq.0, our_stamp: options.timestamp.unwrap().0, lab, ours: String::new(), dial: 0 };
    talk.wait_ms(80);
    talk.sent();
    talk.client(Flags::ACK, 0, 0, b"");
    talk.find_dial();
    let server = talk.lab.server.listen(80);
    talk.accept(&[]);
    talk.sent();
    talk.lab.server_answers = true;
    let mut got = Vec::new();
    assert!(talk.lab.run(3_000, |lab| {
        lab.server.read(server, &mut got);
        crate::proxy::read(&got).is_ok()
    }));
    let evidence = crate::proxy::read(&got).unwrap().evidence().unwrap();
    assert_eq!(evidence.rtt_ms, Some(80), "{evidence:?}");
}

#[test]
fn a_guessed_cookie_does_not_end_a_session_that_is_in_use() {
    let mut talk = Talk::connected(PINNED);
    talk.client(Flags::ACK, 0, 0, b"hello");
    talk.upstream(Flags::ACK, 0, 5, b"");
    talk.sent();
    // What a forger hits with one of 2^23 ACKs; here with the SYN's answer, which it would not see.
    talk.lab.receive(&tcp(HAND, SERVICE).flags(Flags::SYN).seq(77).options([Opt::Mss(1460)]).build());
    let cookie = talk.one().1.seq.0;
    talk.lab.receive(&tcp(HAND, SERVICE).flags(Flags::ACK).seq(78).ack(cookie.wrapping_add(1)).window(1).build());
    assert_eq!(talk.lab.ended(EndCause::ClientRestarted), 0);
}

#[test]
fn a_client_does_not_shrink_the_upstreams_path_for_all() {
    let mut talk = Talk::connected(PINNED);
    talk.sent();
    talk.upstream(Flags::ACK, 0, 0, &[b'd'; 1_000]);
    let seq = talk.one().1.seq;
    let key = flow(HAND, SERVICE);
    let told = |talk: &mut Talk, mtu, len| {
        let error = IcmpError { kind: IcmpKind::TooBig(mtu), key, seq, len };
        let hash = talk.lab.stack.hash(&key);
        talk.lab.stack.icmp_error(&error, hash, PortId(0), talk.lab.now, &mut talk.lab.below)?;
        let (_, packet) = talk.lab.below.sent.pop_back().unwrap();
        Ok(u16::from_be_bytes([packet[26], packet[27]]))
    };
    assert_eq!(told(&mut talk, 1_500, 1_052), Err(DropReason::BadIcmp), "it fitted");
    assert_eq!(told(&mut talk, 1, 1_052), Ok(1_280));
    assert_eq!(told(&mut talk, 1_400, 1_450), Ok(1_400));
}

#[test]
fn a_client_with_a_tiny_mss_is_terminated() {
    let mut lab = Lab::new(PINNED);
    lab.client_answers = false;
    lab.server_answers = false;
    lab.stack.begin_turn(lab.now, Duration::from_micros(lab.now.0));
    lab.receive(&tcp(HAND, SERVICE).flags(Flags::SYN).seq(ISN).options([Opt::Mss(48)]).build());
    let (_, packet) = lab.below.sent.pop_back().unwrap();
    let (answer, _) = read(&packet);
    let mut talk = Talk { cookie: answer.seq.0, our_stamp: 0, lab, ours: String::new(), dial: 0 };
    plain(&mut talk, Flags::ACK, 0, 0, b"");
    assert_eq!(talk.lab.stack.splices.len(), 0);
    talk.wait_ms(1);
    let sent = talk.sent();
    let syn = sent.iter().find(|sent| sent.1.flags == Flags::SYN).expect("a dial of terminate mode's");
    assert_eq!(syn.2.mss, Some(1_460), "our own");
}

#[test]
fn a_forged_fin_ahead_does_not_end_the_clients_stream() {
    let mut talk = settled();
    plain(&mut talk, Flags::ACK | Flags::FIN, 500, 0, b"");
    talk.sent();
    talk.client(Flags::ACK, 100, 0, &[b'l'; 600]);
    assert_eq!(talk.dropped(), None);
}

#[test]
fn a_window_too_small_for_the_promised_scale_falls_back() {
    let pinned = "promise = { probe = \"0s\", mss = 1200, window_scale = 14, sack = true, timestamps = true }";
    let mut talk = Talk::new(&format!("mode = \"splice\"\n{pinned}"));
    let frame = tcp(UPSTREAM, &*talk.ours)
        .flags(Flags::SYN | Flags::ACK)
        .seq(THEIR_ISN)
        .ack(talk.dial.wrapping_add(1))
        .window(16_383)
        .options(all())
        .build();
    talk.lab.receive(&frame);
    assert_eq!(talk.lab.counters.services[0].fallbacks[Missing::WindowScale as usize].get(), 1);
}

#[test]
fn a_server_reads_our_header_though_it_was_lost_and_forged() {
    let mut lab = Lab::new("mode = \"splice\"\npromise = { probe = \"0s\" }\nproxy_protocol = \"v1\"");
    lab.client_answers = false;
    let server = lab.server.listen(80);
    let hand = Hand::shake(&mut lab);
    lab.turn(); // the SYN arrives
    lab.server.poll(lab.now);
    for packet in lab.server.wire.outgoing.drain(..).collect::<Vec<_>>() {
        lab.receive(&Lab::framed(&packet));
    }
    // One loss: the header.
    assert!(lab.below.sent.iter().any(|(_, p)| p.windows(6).any(|w| w == b"PROXY ")));
    lab.below.sent.clear();
    let forged = b"PROXY TCP4 10.99.99.99 198.51.100.10 50000 443\r\n";
    assert_eq!(forged.len() as u32, HEADER_LEN);
    hand.says(&mut lab, Flags::ACK | Flags::PSH, HEADER_LEN.wrapping_neg(), 0, forged);
    let mut got = Vec::new();
    lab.run(2_000, |lab| {
        lab.server.read(server, &mut got);
        false
    });
    assert!(!got.starts_with(b"PROXY TCP4 10.99.99.99"), "{}", got.escape_ascii());
}

#[test]
fn challenges_of_one_end_do_not_silence_the_other() {
    let mut talk = Talk::connected(PINNED);
    talk.sent();
    plain(&mut talk, Flags::SYN | Flags::ACK, 0x1234_5678, 0x2222_2222, b"");
    talk.sent();
    // Our ACK of its SYN-ACK was lost.
    talk.accept(&all());
    assert!(talk.sent().iter().any(|s| !to_client(s)), "the upstream asks in vain");
}

/// More next hops than a session can name are refused by configuration; should it come to it, no other connection suffers.
#[test]
fn a_dial_that_a_session_cannot_name_gives_back_its_own_port_and_leaves_others_alone() {
    let mut lab = Lab::with("mode = \"splice\"\npromise = { probe = \"0s\" }", &["10.0.0.5:80", "10.0.0.6:80"]);
    (lab.client_answers, lab.server_answers) = (false, false);
    // The same port towards either upstream.
    lab.below.only_ports = Some(2_000..2_001);
    let dials = |lab: &mut Lab, client: &str| {
        lab.stack.begin_turn(lab.now, Duration::from_micros(lab.now.0));
        lab.receive(&tcp(client, SERVICE).flags(Flags::SYN).seq(7).options([Opt::Mss(1_460)]).build());
        let ack = read(&lab.below.sent.pop_back().unwrap().1).0.seq.0.wrapping_add(1);
        lab.receive(&tcp(client, SERVICE).flags(Flags::ACK).seq(8).ack(ack).build());
        let sent = lab.below.sent.drain(..).filter(|(way, _)| matches!(way, Way::Neighbor { .. }));
        sent.map(|(_, packet)| read(&packet).0).collect::<Vec<_>>()
    };
    let syn = dials(&mut lab, HAND)[0];
    lab.below.hop = 1 << 16;
    assert_eq!(dials(&mut lab, "203.0.113.98:5000"), [], "nothing is said to anybody's upstream");
    assert_eq!((lab.ended(EndCause::Internal), lab.stack.sessions()), (1, 1));
    assert_eq!(lab.stack.source_ports.ports().in_use(), 1);
    // The other's upstream accepts.
    let accepted = tcp(&*syn.key.local().to_string(), &*syn.key.remote().to_string())
        .flags(Flags::SYN | Flags::ACK)
        .seq(99)
        .ack(syn.seq.0.wrapping_add(1))
        .options([Opt::Mss(1_460)]);
    lab.receive(&accepted.build());
    assert_eq!(lab.drops, []);
    assert_eq!(lab.counters.services[0].ended.iter().map(|count| count.get()).sum::<u64>(), 1);
    // And what was leased in vain can be had again.
    lab.below.hop = 0;
    lab.below.sent.clear();
    assert_eq!(dials(&mut lab, "203.0.113.97:5000").len(), 1);
}
