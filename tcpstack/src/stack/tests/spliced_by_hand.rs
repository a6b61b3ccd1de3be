//! Spliced sessions whose client and upstream are made by hand, segment by segment.

use sluice_filters::icmp::{IcmpError, IcmpKind, Unreachable};
use sluice_filters::testkit::{Opt, tcp};
use sluice_filters::units::Seq;
use sluice_filters::{Flags, Segment, TcpOptions};

use super::super::*;
use super::lab::*;
use crate::counters::{DialFailure, Missing};
use crate::record::EndCause;

pub(super) const UPSTREAM: &str = "10.0.0.5:80";
pub(super) const PINNED: &str =
    "mode = \"splice\"\npromise = { probe = \"0s\", mss = 1200, window_scale = 7, sack = true, timestamps = true }";
pub(super) const HEADER_LEN: u32 = b"PROXY TCP4 203.0.113.99 198.51.100.10 5000 443\r\n".len() as u32;
/// The client's and the upstream's first numbers: both wrap soon.
pub(super) const ISN: u32 = u32::MAX - 20;
pub(super) const THEIR_ISN: u32 = u32::MAX - 5;
/// The upstream's clock.
pub(super) const THEIR_CLOCK: u32 = u32::MAX - 1_000;

/// Everything an upstream can accept.
pub(super) fn all() -> [Opt; 5] {
    [Opt::Mss(1460), Opt::SackPermitted, Opt::Timestamp(THEIR_CLOCK, 500), Opt::Nop, Opt::WindowScale(7)]
}

/// A session's ends, by hand. The client's timestamps count from 500.
pub(super) struct Talk {
    pub(super) lab: Lab,
    /// Our first number towards the client.
    pub(super) cookie: u32,
    /// TSval of our SYN-ACK.
    pub(super) our_stamp: u32,
    /// Our end towards the upstream.
    pub(super) ours: String,
    /// The dial's first number.
    pub(super) dial: u32,
}

/// A packet sent: to whom, and what.
pub(super) type Sent = (Way, Segment, TcpOptions, Vec<u8>);

impl Talk {
    /// A client that completed its handshake with every option; the dial's SYN is on its way.
    pub(super) fn new(extra: &str) -> Talk {
        let mut talk = Talk::shaken(extra);
        talk.client(Flags::ACK, 0, 0, b"");
        talk.find_dial();
        talk
    }

    /// A client whose SYN was answered.
    pub(super) fn shaken(extra: &str) -> Talk {
        let mut lab = Lab::new(extra);
        lab.client_answers = false;
        lab.server_answers = false;
        lab.stack.begin_turn(lab.now, Duration::from_micros(lab.now.0));
        let options = [Opt::Mss(1460), Opt::SackPermitted, Opt::Timestamp(500, 0), Opt::Nop, Opt::WindowScale(3)];
        lab.receive(&tcp(HAND, SERVICE).flags(Flags::SYN).seq(ISN).options(options).build());
        let (_, packet) = lab.below.sent.pop_back().unwrap();
        let (answer, options) = read(&packet);
        Talk {
            lab,
            cookie: answer.seq.0,
            our_stamp: options.timestamp.map_or(0, |(value, _)| value),
            ours: String::new(),
            dial: 0,
        }
    }

    pub(super) fn find_dial(&mut self) {
        if let Some((_, syn, ..)) = self.sent().into_iter().rev().find(|(_, segment, ..)| segment.flags == Flags::SYN) {
            self.ours = syn.key.local_of_reversed();
            self.dial = syn.seq.0;
        }
    }

    /// The same with an upstream that accepted with every option.
    pub(super) fn connected(extra: &str) -> Talk {
        let mut talk = Talk::new(extra);
        talk.accept(&all());
        talk
    }

    /// The upstream's SYN-ACK.
    pub(super) fn accept(&mut self, options: &[Opt]) {
        let frame = tcp(UPSTREAM, &*self.ours)
            .flags(Flags::SYN | Flags::ACK)
            .seq(THEIR_ISN)
            .ack(self.dial.wrapping_add(1))
            .window(60_000)
            .options(options)
            .build();
        self.lab.receive(&frame);
    }

    /// A client's segment, `seq` octets after its first and acknowledging `ack` of ours.
    pub(super) fn client(&mut self, flags: Flags, seq: u32, ack: u32, payload: &[u8]) {
        self.client_stamped(flags, seq, ack, payload, 510, self.our_stamp);
    }

    pub(super) fn client_stamped(&mut self, flags: Flags, seq: u32, ack: u32, payload: &[u8], value: u32, echo: u32) {
        let frame = tcp(HAND, SERVICE)
            .flags(flags)
            .seq(ISN.wrapping_add(1).wrapping_add(seq))
            .ack(self.cookie.wrapping_add(1).wrapping_add(ack))
            .window(2_000)
            .options([Opt::Nop, Opt::Nop, Opt::Timestamp(value, echo)])
            .payload(payload)
            .build();
        self.lab.receive(&frame);
    }

    /// An upstream's segment, `seq` octets after its first and acknowledging so much of what came after the dial's SYN.
    pub(super) fn upstream(&mut self, flags: Flags, seq: u32, ack: u32, payload: &[u8]) {
        let frame = tcp(UPSTREAM, &*self.ours)
            .flags(flags)
            .seq(THEIR_ISN.wrapping_add(1).wrapping_add(seq))
            .ack(self.dial.wrapping_add(1).wrapping_add(ack))
            .window(500)
            .options([Opt::Nop, Opt::Nop, Opt::Timestamp(THEIR_CLOCK.wrapping_add(3_000), 510)])
            .payload(payload)
            .build();
        self.lab.receive(&frame);
    }

    /// What was sent since it was last asked, in order.
    pub(super) fn sent(&mut self) -> Vec<Sent> {
        let packets: Vec<_> = self.lab.below.sent.drain(..).collect();
        packets
            .into_iter()
            .map(|(way, packet)| {
                let (segment, options) = read(&packet);
                let payload = segment.payload(&Lab::framed(&packet)).to_vec();
                (way, segment, options, payload)
            })
            .collect()
    }

    pub(super) fn one(&mut self) -> Sent {
        let mut sent = self.sent();
        assert_eq!(sent.len(), 1, "{sent:?}");
        sent.remove(0)
    }

    pub(super) fn wait_ms(&mut self, ms: u64) {
        for _ in 0..ms {
            self.lab.now.0 += 1_000;
            self.lab.stack.begin_turn(self.lab.now, Duration::from_micros(self.lab.now.0));
            self.lab.stack.run_timers(self.lab.now, 256, &mut self.lab.below);
            self.lab.stack.serve(self.lab.now, &mut self.lab.below);
        }
    }

    pub(super) fn dropped(&mut self) -> Option<DropReason> {
        self.lab.drops.pop()
    }
}

pub(super) trait Reversed {
    fn local_of_reversed(&self) -> String;
}

impl Reversed for FlowKey {
    /// The sender of a packet of ours.
    fn local_of_reversed(&self) -> String {
        self.remote().to_string()
    }
}

pub(super) fn to_client(sent: &Sent) -> bool {
    matches!(sent.0, Way::Reply { .. })
}

#[test]
fn the_dial_offers_what_the_client_offered() {
    let mut lab = Talk::new(&format!("{PINNED}\nproxy_protocol = \"v1\""));
    lab.wait_ms(200);
    let (way, syn, options, _) = lab.one();
    assert!(matches!(way, Way::Neighbor { .. }));
    assert_eq!((syn.flags, syn.seq), (Flags::SYN, Seq(ISN.wrapping_sub(HEADER_LEN))));
    assert_eq!((options.mss, options.wscale, options.sack_permitted), (Some(1460), Some(3), true));
    assert_eq!(options.timestamp, Some((510, 0)));
}

#[test]
fn the_header_is_repeated_until_it_is_acknowledged() {
    let mut talk = Talk::connected(&format!("{PINNED}\nproxy_protocol = \"v1\""));
    let (_, first, options, payload) = talk.one();
    assert!(payload.starts_with(b"PROXY TCP4 203.0.113.99 "));
    assert_eq!((first.seq, first.ack), (Seq(ISN.wrapping_sub(HEADER_LEN).wrapping_add(1)), Seq(THEIR_ISN).plus(1)));
    assert_eq!(options.timestamp, Some((510, THEIR_CLOCK)));
    for pause in [200, 400, 800] {
        talk.wait_ms(pause + 1);
        assert_eq!(talk.one().3, payload, "after {pause} ms");
    }
    talk.upstream(Flags::ACK, 0, HEADER_LEN, b"");
    let (way, ack, options, _) = talk.one();
    assert!(matches!(way, Way::Reply { .. }));
    assert_eq!((ack.seq, ack.ack), (Seq(talk.cookie).plus(1), Seq(ISN).plus(1)));
    // Our clock when the upstream accepted, and three seconds of theirs.
    assert_eq!(options.timestamp, Some((talk.our_stamp.wrapping_add(3_000), 510)));
    talk.wait_ms(5_000);
    assert!(talk.sent().is_empty());
}

#[test]
fn early_payload_follows_the_header_once_and_in_order() {
    let mut talk = Talk::new(&format!("{PINNED}\nproxy_protocol = \"v1\""));
    talk.client(Flags::ACK, 0, 0, b"one");
    talk.client(Flags::ACK | Flags::PSH, 3, 0, b"two");
    talk.client(Flags::ACK, 0, 0, b"one");
    talk.client(Flags::ACK | Flags::FIN, 6, 0, b"");
    assert!(talk.sent().is_empty(), "nothing is acknowledged in the upstream's name");
    talk.accept(&all());
    let sent = talk.sent();
    let payloads: Vec<&[u8]> = sent.iter().map(|(.., payload)| &payload[..]).collect();
    assert!(payloads[0].starts_with(b"PROXY "));
    assert_eq!(payloads[1..], [&b"one"[..], b"two", b""]);
    assert!(sent[3].1.flags.fin());
    for (_, segment, options, _) in &sent {
        assert_eq!(segment.ack, Seq(THEIR_ISN).plus(1));
        assert_eq!(options.timestamp.map(|(_, echo)| echo), Some(THEIR_CLOCK), "never older than the upstream's own");
    }
    talk.lab.stack.publish(talk.lab.now);
    assert_eq!(talk.lab.counters.held_bytes.get(), 0);
}

#[test]
fn what_is_held_is_bounded_and_the_rest_is_the_clients_to_repeat() {
    let mut talk = Talk::new(PINNED);
    for n in 0..40 {
        talk.client(Flags::ACK, n * 10, 0, b"0123456789");
    }
    assert_eq!(talk.lab.drops.len(), 24);
    assert!(talk.lab.drops.iter().all(|reason| *reason == DropReason::DialBacklog));
    talk.accept(&all());
    assert_eq!(talk.sent().len(), 16);
    // The seventeenth, repeated, is the next in sequence.
    talk.client(Flags::ACK, 160, 0, b"0123456789");
    assert_eq!(talk.one().1.seq, Seq(ISN).plus(161));
}

#[test]
fn a_server_that_speaks_first_is_heard_and_its_acks_never_go_back() {
    let mut talk = Talk::connected(&format!("{PINNED}\nproxy_protocol = \"v1\""));
    talk.sent();
    // Before the header arrived there.
    talk.upstream(Flags::ACK | Flags::PSH, 0, 0, b"SSH-2.0");
    let (_, segment, _, payload) = talk.one();
    assert_eq!((segment.ack, &payload[..]), (Seq(ISN).plus(1), &b"SSH-2.0"[..]));
    // The header's octets came out of the window: 500 << 7, less those, in units of 128.
    assert_eq!(segment.window, 499);
    // Bare acknowledgments of less than the header are not for the client; the third brings the header again.
    for n in 0..3 {
        assert!(talk.sent().is_empty(), "{n}");
        talk.upstream(Flags::ACK, 7, 0, b"");
    }
    assert!(talk.one().3.starts_with(b"PROXY "));
    talk.client(Flags::ACK, 0, 7, b"");
    assert_eq!(talk.one().1.ack, Seq(THEIR_ISN).plus(8));
}

#[test]
fn an_old_connection_at_the_upstream_is_reset_and_the_syn_sent_again() {
    let mut talk = Talk::new(PINNED);
    let stray = tcp(UPSTREAM, &*talk.ours).flags(Flags::ACK).seq(77).ack(999).build();
    talk.lab.receive(&stray);
    assert_eq!(talk.dropped(), Some(DropReason::BadAck));
    let (_, reset, ..) = talk.one();
    assert_eq!((reset.flags, reset.seq), (Flags::RST, Seq(999)));
    talk.wait_ms(7);
    let (_, syn, ..) = talk.one();
    assert_eq!((syn.flags, syn.seq), (Flags::SYN, Seq(talk.dial)));
}

#[test]
fn a_refusal_must_acknowledge_the_syn() {
    let mut talk = Talk::new(PINNED);
    let reset = |ack: u32| tcp(UPSTREAM, &*talk.ours).flags(Flags::RST | Flags::ACK).seq(0).ack(ack).build();
    let (blind, right) = (reset(talk.dial), reset(talk.dial.wrapping_add(1)));
    talk.lab.receive(&blind);
    assert_eq!(talk.dropped(), Some(DropReason::BadRst));
    assert_eq!(talk.lab.stack.sessions(), 1);
    talk.lab.receive(&right);
    assert_eq!(talk.lab.counters.services[0].dial_failures[0][DialFailure::Refused as usize].get(), 1);
    assert_eq!(talk.lab.ended(EndCause::DialFailed), 1);
    let (_, reset, ..) = talk.one();
    assert!(reset.flags.rst());
    assert_eq!((reset.seq, reset.ack), (Seq(talk.cookie).plus(1), Seq(ISN).plus(1)));
}

#[test]
fn blind_segments_are_refused_by_name_and_the_session_lives() {
    let mut talk = Talk::connected(PINNED);
    talk.upstream(Flags::ACK, 0, 0, b"");
    talk.sent();
    let refused = [
        (Flags::RST, 100, 0, &b""[..], DropReason::BadRst),
        (Flags::RST, 0x4000_0000, 0, b"", DropReason::BadRst),
        (Flags::ACK, 0x2000_0000, 0, b"evil", DropReason::OutOfWindow),
        (Flags::ACK, 0xf000_0000, 0, b"evil", DropReason::OutOfWindow),
        (Flags::ACK, 0, 0x1000_0000, b"evil", DropReason::BadAck),
        (Flags::ACK, 0, 0xf000_0000, b"evil", DropReason::OldAck),
        (Flags::SYN | Flags::ACK, 0, 0, b"", DropReason::SynOnFlow),
    ];
    for (flags, seq, ack, payload, reason) in refused {
        talk.client(flags, seq, ack, payload);
        assert_eq!(talk.dropped(), Some(reason), "{flags:?} {seq:x} {ack:x}");
        assert!(talk.sent().iter().all(to_client), "nothing reaches the upstream");
    }
    // Timestamps are for the end hosts to compare: they do it exactly.
    talk.client_stamped(Flags::ACK, 0, 0, b"late", 400, 0);
    assert_eq!(talk.one().3, b"late");
    // The true client goes on.
    talk.client(Flags::ACK, 0, 0, b"hello");
    assert_eq!(talk.one().3, b"hello");
}

#[test]
fn a_challenge_says_where_the_other_end_is_and_challenges_are_few() {
    let mut talk = Talk::connected(PINNED);
    talk.upstream(Flags::ACK, 0, 0, b"abc");
    talk.sent();
    for _ in 0..50 {
        talk.client(Flags::RST, 100, 0, b"");
    }
    let (_, challenge, options, _) = talk.one();
    // What the client has acknowledged: what was only seen may be a forger's.
    assert_eq!((challenge.flags, challenge.seq), (Flags::ACK, Seq(talk.cookie).plus(1)));
    assert_eq!(challenge.ack, Seq(ISN).plus(1));
    assert_eq!(options.timestamp.map(|(_, echo)| echo), Some(510));
    talk.wait_ms(600);
    talk.client(Flags::RST, 100, 0, b"");
    talk.one();
}

#[test]
fn a_reset_at_the_acknowledged_number_ends_the_session() {
    let mut talk = Talk::connected(PINNED);
    talk.client(Flags::ACK, 0, 0, b"hello");
    talk.upstream(Flags::ACK, 0, 5, b"");
    talk.sent();
    talk.client(Flags::RST, 5, 0, b"");
    let (way, reset, ..) = talk.one();
    assert!(matches!(way, Way::Neighbor { .. }));
    assert_eq!((reset.flags, reset.seq), (Flags::RST, Seq(ISN).plus(6)));
    assert_eq!(talk.lab.ended(EndCause::ClientReset), 1);
    // The upstream did not get it, and asks: the answer is exact.
    talk.upstream(Flags::ACK, 0, 5, b"");
    let (_, again, ..) = talk.one();
    assert_eq!((again.flags, again.seq), (Flags::RST, Seq(ISN).plus(6)));
}

#[test]
fn a_late_copy_of_the_first_segment_opens_no_second_session() {
    let mut talk = Talk::connected(PINNED);
    talk.client(Flags::ACK, 0, 0, b"pay");
    talk.upstream(Flags::ACK, 0, 3, b"");
    talk.sent();
    talk.client(Flags::RST, 3, 0, b"");
    talk.sent();
    talk.client(Flags::ACK, 0, 0, b"pay");
    assert_eq!(talk.dropped(), Some(DropReason::NoFlow));
    assert_eq!(talk.lab.stack.sessions(), 0);
    assert_eq!(talk.lab.counters.services[0].opened.get(), 1);
}

#[test]
fn an_upstream_that_accepts_less_falls_back_to_terminate_with_nothing_lost() {
    let all = all();
    let without = |missing: usize| -> Vec<Opt> {
        all.iter().enumerate().filter(|(at, _)| *at != missing).map(|(_, option)| option.clone()).collect()
    };
    let cases = [
        (Missing::Sack, without(1)),
        (Missing::Timestamps, without(2)),
        (Missing::WindowScale, without(4)),
        (Missing::Mss, [&[Opt::Mss(1000)], &all[1..]].concat()),
    ];
    for (missing, options) in cases {
        let mut talk = Talk::new(&format!("{PINNED}\nproxy_protocol = \"v1\""));
        talk.client(Flags::ACK | Flags::PSH, 0, 0, b"hello");
        talk.accept(&options);
        let (_, reset, ..) = talk.one();
        assert!(reset.flags.rst(), "the half-open connection is ended");
        assert_eq!(talk.lab.counters.services[0].fallbacks[missing as usize].get(), 1, "{missing:?}");
        assert_eq!((talk.lab.stack.sessions(), talk.lab.stack.splices.len()), (1, 0));
        // The session's own dial, to a server of smoltcp's.
        talk.lab.server_answers = true;
        let server = talk.lab.server.listen(80);
        let mut got = Vec::new();
        assert!(talk.lab.run(3_000, |lab| {
            lab.server.read(server, &mut got);
            got.ends_with(b"hello")
        }));
        assert_eq!(got.len() as u32, HEADER_LEN + 5);
        // The client's windows are scaled as it was promised.
        let acks: Vec<Vec<u8>> = talk.lab.client.wire.incoming.drain(..).collect();
        let (ack, _) = read(acks.last().expect("an ACK"));
        assert_eq!(ack.ack, Seq(ISN).plus(6));
        assert!(ack.window <= 65_535 >> 7, "{}", ack.window);
        assert_eq!(talk.lab.counters.services[0].opened.get(), 1);
        assert_eq!(talk.lab.counters.services[0].active.get(), 1);
    }
}

#[test]
fn icmp_errors_reach_the_sender_of_the_segment_with_its_own_numbers() {
    let mut talk = Talk::connected(PINNED);
    talk.client(Flags::ACK, 0, 0, b"a large segment");
    talk.sent();
    let ours = talk.ours.clone();
    let error = |talk: &mut Talk, key: FlowKey, seq: u32, kind| {
        let error = IcmpError { kind, key, seq: Seq(seq), len: 1_500 };
        let hash = talk.lab.stack.hash(&key);
        talk.lab.stack.icmp_error(&error, hash, PortId(0), talk.lab.now, &mut talk.lab.below)
    };
    let too_big = IcmpKind::TooBig(1_400);
    let towards_upstream = flow(UPSTREAM, &ours);
    // Before, within and behind what is on its way.
    assert_eq!(error(&mut talk, towards_upstream, ISN, too_big), Err(DropReason::BadIcmp));
    assert_eq!(error(&mut talk, towards_upstream, ISN.wrapping_add(100), too_big), Err(DropReason::BadIcmp));
    assert_eq!(error(&mut talk, flow(UPSTREAM, "10.0.0.2:9"), ISN.wrapping_add(1), too_big), Err(DropReason::BadIcmp));
    assert_eq!(error(&mut talk, towards_upstream, ISN.wrapping_add(1), too_big), Ok(()));
    let (way, packet) = talk.lab.below.sent.pop_back().unwrap();
    assert!(matches!(way, Way::Reply { .. }));
    let frame = Lab::framed(&packet);
    let Ok(sluice_filters::Parsed::Icmp(datagram)) =
        sluice_filters::parse(&frame, sluice_filters::RxChecksums::default())
    else {
        panic!("no ICMP")
    };
    let told = IcmpError::read(&frame, &datagram).expect("an error the client reads");
    // The client sent it to the service.
    assert_eq!((told.key, told.seq, told.kind), (flow(SERVICE, HAND), Seq(ISN).plus(1), too_big));

    talk.upstream(Flags::ACK, 0, 15, b"an answer");
    talk.lab.below.sent.clear();
    let towards_client = flow(HAND, SERVICE);
    let seq = talk.cookie.wrapping_add(1);
    assert_eq!(error(&mut talk, towards_client, seq, IcmpKind::Unreachable(Unreachable::Host)), Ok(()));
    let (way, packet) = talk.lab.below.sent.pop_back().unwrap();
    assert!(matches!(way, Way::Neighbor { .. }));
    let frame = Lab::framed(&packet);
    let Ok(sluice_filters::Parsed::Icmp(datagram)) =
        sluice_filters::parse(&frame, sluice_filters::RxChecksums::default())
    else {
        panic!("no ICMP")
    };
    let told = IcmpError::read(&frame, &datagram).expect("an error the upstream reads");
    assert_eq!((told.key, told.seq), (flow(&ours, UPSTREAM), Seq(THEIR_ISN).plus(1)));
    assert_eq!(talk.lab.stack.sessions(), 1);
}

#[test]
fn an_unreachable_upstream_is_given_up_by_an_icmp_error_about_the_syn() {
    let mut talk = Talk::new(PINNED);
    let key = flow(UPSTREAM, &talk.ours);
    let hash = talk.lab.stack.hash(&key);
    let about = |talk: &mut Talk, seq: u32, kind| {
        let error = IcmpError { kind, key, seq: Seq(seq), len: 60 };
        talk.lab.stack.icmp_error(&error, hash, PortId(0), talk.lab.now, &mut talk.lab.below)
    };
    let dial = talk.dial;
    let unreachable = IcmpKind::Unreachable(Unreachable::Host);
    assert_eq!(about(&mut talk, dial.wrapping_add(1), unreachable), Err(DropReason::BadIcmp));
    assert_eq!(about(&mut talk, dial, IcmpKind::TooBig(1_000)), Err(DropReason::BadIcmp));
    assert_eq!(about(&mut talk, dial, unreachable), Ok(()));
    assert_eq!(talk.lab.counters.services[0].dial_failures[0][DialFailure::Unreachable as usize].get(), 1);
    assert_eq!(talk.lab.ended(EndCause::DialFailed), 1);
}

#[test]
fn windows_are_rescaled_where_the_upstreams_scale_is_another() {
    let mut talk = Talk::new(PINNED);
    talk.accept(&[Opt::Mss(1460), Opt::SackPermitted, Opt::Timestamp(THEIR_CLOCK, 500), Opt::Nop, Opt::WindowScale(9)]);
    talk.sent();
    talk.upstream(Flags::ACK, 0, 0, b"");
    assert_eq!(talk.one().1.window, 500 << 2);
}

#[test]
fn a_far_clients_upstream_learns_no_round_trip_from_the_handshake() {
    let mut talk = Talk::shaken(&format!("{PINNED}\nproxy_protocol = \"v1\""));
    talk.wait_ms(40);
    talk.client(Flags::ACK, 0, 0, b"hello");
    talk.find_dial();
    talk.accept(&all());
    let sent = talk.sent();
    // The SYN again, so that its answer's time means nothing; an ACK to go with it; then all the rest.
    assert_eq!((sent[0].1.flags, sent[0].1.seq), (Flags::SYN, Seq(talk.dial)));
    assert_eq!((sent[1].1.flags, sent[1].1.seq, sent[1].2.timestamp), (Flags::ACK, Seq(talk.dial).plus(1), None));
    assert!(sent[2].3.starts_with(b"PROXY "));
    assert_eq!((sent.len(), &sent[3].3[..]), (4, &b"hello"[..]));
    // The answer to the second SYN is acknowledged, with a timestamp now; nothing is repeated for it.
    talk.accept(&all());
    let (_, ack, options, payload) = talk.one();
    assert_eq!((ack.flags, ack.ack, payload.len()), (Flags::ACK, Seq(THEIR_ISN).plus(1), 0));
    assert!(options.timestamp.is_some());
    // A third one means that we were not heard.
    talk.accept(&all());
    assert!(talk.one().3.starts_with(b"PROXY "));
}

#[test]
fn an_upstreams_syn_ack_that_comes_again_is_answered_with_its_own_timestamp() {
    for extra in [PINNED, RAW, &format!("{PINNED}\nproxy_protocol = \"v1\"")] {
        let mut talk = Talk::shaken(extra);
        talk.client(Flags::ACK, 0, 0, b"");
        talk.wait_ms(1);
        talk.find_dial();
        talk.accept(&all());
        talk.wait_ms(1);
        talk.sent();
        talk.wait_ms(600);
        let [mss, sack, _, nop, scale] = all();
        talk.accept(&[mss, sack, Opt::Timestamp(THEIR_CLOCK.wrapping_add(1_000), 500), nop, scale]);
        let sent = talk.sent();
        let (_, ack, options, _) = sent.last().expect("an answer");
        assert_eq!(ack.ack, Seq(THEIR_ISN.wrapping_add(1)), "{extra}");
        assert_eq!(options.timestamp.map(|(_, echo)| echo), Some(THEIR_CLOCK.wrapping_add(1_000)), "{extra}");
    }
}

#[test]
fn a_worker_holds_32_mebibytes_of_early_segments_at_most() {
    let mut talk = Talk::new(PINNED);
    talk.lab.stack.held.fill((32 << 20) - 10);
    talk.client(Flags::ACK, 0, 0, b"0123456789");
    assert_eq!(talk.dropped(), Some(DropReason::DialBacklog));
    talk.lab.stack.held.fill((32 << 20) - 200);
    talk.client(Flags::ACK, 0, 0, b"0123456789");
    assert_eq!(talk.dropped(), None);
}

#[test]
fn a_clients_dscp_and_ecn_go_no_further_and_an_upstreams_dscp_does() {
    let mut talk = Talk::connected(PINNED);
    talk.sent();
    let ends = [
        (tcp(HAND, SERVICE), ISN, talk.cookie, (510, talk.our_stamp), 0),
        (tcp(UPSTREAM, &*talk.ours), THEIR_ISN, talk.dial, (THEIR_CLOCK.wrapping_add(9), 510), 0xfc),
    ];
    for (from, isn, acked, (value, echo), passes) in ends {
        let from = from.flags(Flags::ACK).seq(isn.wrapping_add(1)).ack(acked.wrapping_add(1)).window(500).tos(0xff);
        let stamp = [Opt::Nop, Opt::Nop, Opt::Timestamp(value, echo)];
        talk.lab.receive(&from.options(stamp).payload(b"abc").build());
        assert_eq!(talk.one().1.tos, passes);
    }
}
