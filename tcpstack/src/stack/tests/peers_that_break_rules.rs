//! The guard's rules, TIME-WAIT, and whatever else a peer may say.

use proptest::prelude::*;
use sluice_filters::testkit::{Opt, tcp};
use sluice_filters::{Flags, Parsed, RxChecksums, parse};

use super::super::*;
use super::lab::*;
use crate::counters::AckResult;
use crate::record::EndCause;

#[test]
fn a_reset_must_match_exactly() {
    let (mut lab, hand, _) = with_hand();
    hand.says(&mut lab, Flags::RST, 1, 0, b"");
    assert_eq!(lab.drops, [DropReason::BadRst]);
    assert_eq!(lab.counters.challenge_acks.get(), 1, "one inside the window is challenged");
    hand.says(&mut lab, Flags::RST, 0x4000_0000, 0, b"");
    assert_eq!(lab.counters.challenge_acks.get(), 1, "one outside is not");
    assert_eq!(lab.stack.sessions(), 1);
    hand.says(&mut lab, Flags::RST, 0, 0, b"");
    assert_eq!(lab.stack.sessions(), 0);
    assert_eq!(lab.ended(EndCause::ClientReset), 1);
}

#[test]
fn a_reset_right_behind_data_of_the_same_burst_is_exact_too() {
    let (mut lab, hand, _) = with_hand();
    let data = tcp(HAND, SERVICE).flags(Flags::ACK).seq(hand.next).ack(hand.ack).payload(b"data").build();
    let reset = tcp(HAND, SERVICE).flags(Flags::RST).seq(hand.next.wrapping_add(4)).build();
    lab.receive(&data);
    lab.receive(&reset);
    lab.stack.serve(lab.now, &mut lab.below);
    assert_eq!(lab.drops, []);
    assert!(lab.run(1000, |lab| lab.ended(EndCause::ClientReset) == 1));
}

#[test]
fn an_ack_of_data_never_sent_is_challenged() {
    let (mut lab, hand, server) = with_hand();
    hand.says(&mut lab, Flags::ACK, 0, 500, b"evil");
    assert_eq!(lab.drops, [DropReason::BadAck]);
    assert_eq!(lab.counters.challenge_acks.get(), 1);
    let mut got = Vec::new();
    lab.run(20, |lab| {
        lab.server.read(server, &mut got);
        false
    });
    assert!(got.is_empty());
}

#[test]
fn an_ack_older_than_any_window_is_challenged() {
    let (mut lab, hand, server) = with_hand();
    hand.says(&mut lab, Flags::ACK, 0, 0_u32.wrapping_sub(65_536), b"evil");
    assert_eq!(lab.drops, [DropReason::OldAck]);
    assert_eq!(lab.counters.challenge_acks.get(), 1);
    lab.idle(20);
    assert!(!lab.server.get(server).can_recv());
}

#[test]
fn a_blind_segment_outside_the_window_moves_nothing() {
    let (mut lab, mut hand, server) = with_hand();
    lab.server.get(server).send_slice(&[7; 5000]).unwrap();
    lab.idle(5);
    // Someone guessed an acknowledgment number, but not the sequence number: beyond the window, and long before it.
    hand.says(&mut lab, Flags::ACK, 70_000, 2000, b"x");
    hand.says(&mut lab, Flags::ACK, 0_u32.wrapping_sub(200_000), 2000, b"x");
    assert_eq!(lab.drops, [DropReason::OutOfWindow, DropReason::OutOfWindow]);
    // One octet, received before: acknowledged again, and otherwise not believed.
    hand.says(&mut lab, Flags::ACK, 0, 0, b"a");
    hand.next = hand.next.wrapping_add(1);
    hand.says(&mut lab, Flags::ACK, 0_u32.wrapping_sub(1), 2000, b"a");
    // The client has none of it: everything is sent again, from the first octet on.
    lab.client.wire.incoming.clear();
    lab.idle(1500);
    let first = lab.client.wire.incoming.iter().filter_map(|packet| {
        let Ok(Parsed::Tcp(segment)) = parse(&Lab::framed(packet), RxChecksums::default()) else { return None };
        (segment.payload_len > 0).then_some(segment.seq.0)
    });
    assert_eq!(first.min_by_key(|seq| seq.wrapping_sub(hand.ack)), Some(hand.ack));
}

#[test]
fn a_segment_with_an_old_timestamp_is_challenged() {
    let (mut lab, server, ack) = with_stamped_hand(99, b"");
    lab.receive(&stamped(Flags::ACK, 100, ack, 1002, b"new"));
    assert_eq!(lab.drops, []);
    lab.receive(&stamped(Flags::ACK, 103, ack, 999, b"old"));
    assert_eq!(lab.drops, [DropReason::StaleTimestamp]);
    lab.receive(&stamped(Flags::ACK, 103, ack, 1002, b"er"));
    let mut got = Vec::new();
    assert!(lab.run(100, |lab| {
        lab.server.read(server, &mut got);
        got == b"newer"
    }));
}

#[test]
fn a_segment_with_an_older_ack_keeps_its_payload() {
    let (mut lab, mut hand, server) = with_hand();
    lab.server.get(server).send_slice(b"0123456789").unwrap();
    lab.idle(5);
    // The client has taken all ten octets, then a segment it sent before that arrives.
    hand.ack = hand.ack.wrapping_add(10);
    hand.says(&mut lab, Flags::ACK, 0, 0, b"");
    hand.says(&mut lab, Flags::ACK, 0, 0_u32.wrapping_sub(10), b"delayed");
    let mut got = Vec::new();
    lab.run(20, |lab| {
        lab.server.read(server, &mut got);
        false
    });
    assert_eq!(got, b"delayed");
    assert_eq!(lab.drops, []);
}

#[test]
fn a_syn_ack_on_a_connection_is_challenged_and_challenges_are_few() {
    let (mut lab, hand, _) = with_hand();
    for _ in 0..100 {
        hand.says(&mut lab, Flags::SYN | Flags::ACK, 0, 0, b"");
    }
    assert_eq!(lab.drops.len(), 100);
    assert_eq!(lab.counters.challenge_acks.get(), 1);
    assert_eq!(lab.stack.sessions(), 1);
}

#[test]
fn each_connection_has_challenges_of_its_own() {
    let mut lab = Lab::new(RAW);
    lab.stack.begin_turn(lab.now, Duration::from_micros(lab.now.0));
    let ends = [HAND, "203.0.113.98:5000"];
    for from in ends {
        lab.receive(&tcp(from, SERVICE).flags(Flags::SYN).seq(99).build());
        let cookie = read(&lab.below.sent.pop_back().unwrap().1).0.seq.0;
        lab.receive(&tcp(from, SERVICE).flags(Flags::ACK).seq(100).ack(cookie.wrapping_add(1)).build());
    }
    for from in ends {
        lab.receive(&tcp(from, SERVICE).flags(Flags::SYN | Flags::ACK).seq(100).build());
    }
    assert_eq!((lab.stack.sessions(), lab.counters.challenge_acks.get()), (2, 2));
}

#[test]
fn a_fin_beyond_the_window_is_not_taken() {
    let (mut lab, hand, server) = with_hand();
    // 60,000 octets fit the window; a FIN right at its far edge plus one segment does not.
    hand.says(&mut lab, Flags::FIN | Flags::ACK, 65_000, 0, &[1; 900]);
    lab.idle(20);
    assert!(lab.server.get(server).may_recv());
    assert_eq!(lab.stack.sessions(), 1);
}

#[test]
fn a_zero_window_after_our_close_does_not_make_us_talk_without_end() {
    let (mut lab, hand, server) = with_hand();
    lab.server.get(server).send_slice(&[7; 3000]).unwrap();
    lab.server.get(server).close();
    lab.idle(10);
    let zero = tcp(HAND, SERVICE).flags(Flags::ACK).seq(hand.next).ack(hand.ack.wrapping_add(1000)).window(0).build();
    lab.receive(&zero);
    let before = lab.client.wire.incoming.len();
    for _ in 0..200 {
        lab.turn();
        lab.client.wire.outgoing.clear();
        lab.now.0 += 1000;
    }
    let talked = lab.client.wire.incoming.len() - before;
    assert!(talked < 50, "{talked} packets in 200 ms");
}

#[test]
fn a_client_back_from_a_crash_replaces_its_old_connection() {
    let (mut lab, _, _) = with_hand();
    lab.server.listen(80);
    let syn = tcp(HAND, SERVICE).flags(Flags::SYN).seq(77).build();
    lab.receive(&syn);
    let (_, packet) = lab.below.sent.pop_back().unwrap();
    let Ok(Parsed::Tcp(answer)) = parse(&Lab::framed(&packet), RxChecksums::default()) else { panic!() };
    let hand = Hand { next: 78, ack: answer.seq.0.wrapping_add(1) };
    // The old one spoke a moment ago: this may be a forger's guess. Whoever is really back says it again.
    hand.says(&mut lab, Flags::ACK, 0, 0, b"");
    assert_eq!(lab.ended(EndCause::ClientRestarted), 0);
    lab.idle(1_000);
    hand.says(&mut lab, Flags::ACK, 0, 0, b"");
    assert_eq!(lab.ended(EndCause::ClientRestarted), 1);
    assert_eq!(lab.stack.sessions(), 1);
    assert_eq!(lab.counters.cookie_acks[AckResult::Accepted as usize].get(), 2);
}

#[test]
fn guesses_at_the_cookie_of_a_known_flow_are_limited_like_those_without_one() {
    let mut lab = Lab::new(&format!("{RAW}\n[filters.per_address]\nflowless_acks = \"3/min burst 3\"\n"));
    lab.client_answers = false;
    let server = lab.server.listen(80);
    let mut hand = Hand::shake(&mut lab);
    assert!(lab.run(100, |lab| lab.server.get(server).may_send()));
    lab.idle(1_100);
    lab.drops.clear();
    for _ in 0..4 {
        hand.says(&mut lab, Flags::ACK, 1 << 30, 1 << 30, b"");
    }
    let guess = lab.drops[0];
    assert_ne!(guess, DropReason::SourceFlowlessAcks);
    let limited = DropReason::SourceFlowlessAcks;
    assert_eq!(lab.drops, [guess, guess, limited, limited], "the handshake's own was the first of three");

    // The same when the connection is over.
    lab.now.0 += 60_000_000;
    lab.server.get(server).close();
    lab.idle(20);
    hand.ack = hand.ack.wrapping_add(1);
    hand.says(&mut lab, Flags::FIN | Flags::ACK, 0, 0, b"");
    lab.idle(50);
    assert_eq!(lab.stack.sessions(), 0);
    lab.drops.clear();
    for _ in 0..4 {
        hand.says(&mut lab, Flags::ACK, 1 << 30, 1 << 30, b"");
    }
    let no_flow = DropReason::NoFlow;
    assert_eq!(lab.drops, [no_flow, no_flow, no_flow, limited]);
}

#[test]
fn a_fin_whose_ack_was_lost_is_acknowledged_from_time_wait() {
    let (mut lab, mut hand, server) = with_hand();
    lab.server.get(server).close();
    lab.idle(5);
    hand.ack = hand.ack.wrapping_add(1);
    hand.says(&mut lab, Flags::FIN | Flags::ACK, 0, 0, b"");
    assert!(lab.run(1000, |lab| lab.stack.sessions() == 0));
    lab.below.sent.clear();
    hand.says(&mut lab, Flags::FIN | Flags::ACK, 0, 0, b"");
    let (_, packet) = lab.below.sent.pop_front().expect("an ACK");
    let Ok(Parsed::Tcp(answer)) = parse(&Lab::framed(&packet), RxChecksums::default()) else { panic!() };
    assert_eq!(answer.ack.0, hand.next.wrapping_add(1));
    assert_eq!(answer.seq.0, hand.ack);
    // Ten seconds later nobody remembers.
    lab.idle(11_000);
    hand.says(&mut lab, Flags::FIN | Flags::ACK, 0, 0, b"");
    assert!(lab.below.sent.is_empty());
}

#[test]
fn a_connection_on_a_source_port_used_before_outlives_the_time_wait_of_the_first() {
    let mut lab = Lab::new(RAW);
    lab.below.only_ports = Some(5000..5001);
    for round in 0..2 {
        let server = lab.server.listen(80);
        lab.server.get(server).set_tsval_generator(Some(|| 7));
        let client = lab.client.connect(("203.0.113.7", 40_000 + round), ("198.51.100.10", 443));
        assert!(lab.run(2000, |lab| lab.client.get(client).may_send() && lab.server.get(server).may_send()));
        if round == 0 {
            lab.client.get(client).close();
            lab.idle(20);
            lab.server.get(server).close();
            assert!(lab.run(2000, |lab| lab.stack.sessions() == 0));
            assert_eq!(lab.record().source.unwrap().port(), 5000);
            lab.idle(1100);
            continue;
        }
        lab.idle(12_000);
        lab.server.get(server).send_slice(b"still here").unwrap();
        let mut got = Vec::new();
        assert!(lab.run(1000, |lab| {
            lab.client.read(client, &mut got);
            got == b"still here"
        }));
    }
}

#[test]
fn an_upstream_with_a_connection_we_do_not_know_gets_a_reset() {
    let mut lab = Lab::new(RAW);
    let stray = tcp("10.0.0.5:80", "10.0.0.2:2000").flags(Flags::ACK).seq(5).ack(9).payload("old").build();
    lab.receive(&stray);
    let (_, packet) = lab.below.sent.pop_front().expect("a RST");
    let Ok(Parsed::Tcp(answer)) = parse(&Lab::framed(&packet), RxChecksums::default()) else { panic!() };
    assert!(answer.flags.rst());
    lab.receive(&tcp("10.0.0.5:80", "10.0.0.2:2000").flags(Flags::RST).seq(5).build());
    assert!(lab.below.sent.is_empty(), "a RST gets none");
}

#[test]
fn what_is_of_no_connection_is_answered_up_to_a_ceiling_for_each_prefix() {
    let mut lab = Lab::new(RAW);
    let answers = |lab: &mut Lab, from: &str, count: usize| {
        for port in 0..count {
            let to = format!("10.0.0.2:{}", 2_000 + port % 60_000);
            lab.receive(&tcp(from, &*to).flags(Flags::ACK).seq(5).ack(9).payload("old").build());
        }
        std::mem::take(&mut lab.below.sent).len()
    };
    assert_eq!(answers(&mut lab, "10.0.0.5:80", 10_000), 4_000);
    assert_eq!(lab.counters.answers_withheld.get(), 6_000);
    assert_eq!(answers(&mut lab, "10.0.0.77:80", 10), 0, "its neighbours share the ceiling");
    assert_eq!(answers(&mut lab, "10.0.1.5:80", 10), 10, "others have their own");
    lab.now.0 += 1_000_000;
    assert!((999..=1_000).contains(&answers(&mut lab, "10.0.0.5:80", 10_000)), "a thousand a second");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever a peer that knows the connection's numbers says, nothing panics and memory stays bounded.
    #[test]
    fn no_conversation_panics(steps in prop::collection::vec(
        (0_u8..64, prop::num::i32::ANY, -70_000_i32..70_000, prop::num::u16::ANY, 0_usize..1400, 0_u64..400, 0_u8..8), 1..60)) {
        let (mut lab, hand, server) = with_hand();
        for (flags, wild, near, window, len, wait, kind) in steps {
            // Mostly near the connection's own numbers, now and then anywhere.
            let (seq, ack) = match kind {
                0 => (wild as u32, near as u32),
                1 => (near as u32, wild as u32),
                2..=4 => (0, near.rem_euclid(3000) as u32),
                _ => (near as u32, 0),
            };
            let frame = tcp(HAND, SERVICE)
                .flags(Flags(flags & 0x3f))
                .seq(hand.next.wrapping_add(seq))
                .ack(hand.ack.wrapping_add(ack))
                .window(window)
                .payload(vec![kind; len])
                .build();
            lab.receive(&frame);
            if kind == 5 {
                let _ = lab.server.get(server).send_slice(&vec![1; len]);
            }
            if kind == 6 && flags & 1 == 1 {
                lab.server.get(server).close();
            }
            let mut got = Vec::new();
            lab.server.read(server, &mut got);
            for _ in 0..wait.min(3) {
                lab.turn();
                lab.now.0 += 1000;
            }
            lab.now.0 += wait * 1000;
            lab.turn();
            prop_assert!(lab.below.sent.len() < 1000);
            prop_assert!(lab.stack.sessions() <= 1);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Frames of a live conversation with octets changed, cut or repaired, in any order: parser, cookies, guard, translator and smoltcp
    /// with overflow checks.
    #[test]
    fn no_frame_panics(frames in prop::collection::vec(
        (0_u8..6, any::<u8>(), any::<u32>(), any::<u16>(), prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
         prop::option::of(0_usize..120), any::<bool>(), prop::collection::vec(any::<u8>(), 0..40)), 1..40)) {
        let (mut lab, hand, _) = with_hand();
        for (kind, flags, wild, window, changes, cut, repair, options) in frames {
            let (from, to) = match kind {
                0 => ("203.0.113.99:5000", "198.51.100.10:443"),
                1 => ("[2001:db8::77]:5000", "[2001:db8::10]:443"),
                2 => ("10.0.0.5:80", "10.0.0.2:2000"),
                _ => (HAND, SERVICE),
            };
            let near = u32::from(window % 64);
            let mut frame = tcp(from, to)
                .flags(Flags(flags))
                .seq(hand.next.wrapping_add(if kind == 3 { wild } else { near }))
                .ack(hand.ack.wrapping_add(if kind == 4 { wild } else { 0 }))
                .window(window)
                .options([Opt::Raw(options)])
                .payload(vec![kind; usize::from(window % 1200)])
                .build();
            for (at, octet) in changes {
                let at = at.index(frame.len());
                frame[at] = octet;
            }
            if repair {
                sluice_filters::testkit::fix_checksums(&mut frame);
            }
            if let Some(cut) = cut {
                frame.truncate(cut);
            }
            lab.receive(&frame);
            lab.turn();
            lab.now.0 += u64::from(wild % 5000);
        }
        prop_assert!(lab.stack.sessions() <= 2);
    }
}
