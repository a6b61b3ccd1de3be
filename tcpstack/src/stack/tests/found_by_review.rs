//! What a hostile reading of the stack found, each once a fault.

use sluice_filters::testkit::tcp;
use sluice_filters::{Flags, Parsed, RxChecksums, Segment, parse};

use super::super::*;
use super::lab::*;
use crate::record::EndCause;

/// So many turns with a client that says nothing of its own accord.
fn turns(lab: &mut Lab, n: u64) {
    for _ in 0..n {
        lab.turn();
        lab.client.wire.outgoing.clear();
        lab.now.0 += 1000;
    }
}
/// What the client was sent since the last look.
fn last_to_client(lab: &mut Lab) -> Vec<Segment> {
    lab.client
        .wire
        .incoming
        .drain(..)
        .filter_map(|p| match parse(&Lab::framed(&p), RxChecksums::default()) {
            Ok(Parsed::Tcp(s)) => Some(s),
            _ => None,
        })
        .collect()
}

#[test]
fn a_client_fin_reaches_a_slow_upstream_even_when_the_client_is_gone() {
    let (mut lab, mut hand, server) = with_hand();
    // server reader stopped; client sends 70 KB > 20,000 (server's rx) so that some stays in the client's rx buffer
    let total = 100_000_usize; // 65535 client rx full after upstream tx 65535 + server 20000? send until accepted
    let mut sent = 0_usize;
    for _ in 0..3000 {
        if sent < total {
            let n = 1000.min(total - sent);
            hand.says(&mut lab, Flags::ACK, 0, 0, &vec![5; n]);
            sent += n;
            hand.next = hand.next.wrapping_add(n as u32);
        } else {
            break;
        }
        turns(&mut lab, 1);
    }
    hand.says(&mut lab, Flags::FIN | Flags::ACK, 0, 0, b"");
    hand.next = hand.next.wrapping_add(1);
    turns(&mut lab, 20);
    lab.server.get(server).close(); // upstream half-closes, still reads
    turns(&mut lab, 20);
    hand.ack = hand.ack.wrapping_add(1);
    hand.says(&mut lab, Flags::ACK, 0, 0, b""); // ACK of our FIN: LAST-ACK -> CLOSED
    turns(&mut lab, 20);
    let mut got = Vec::new();
    let done = lab.run(5_000, |lab| {
        lab.server.read(server, &mut got);
        lab.stack.sessions() == 0
    });
    assert!(done && got.len() == sent && lab.ended(EndCause::Closed) == 1);
}

#[test]
fn time_wait_keeps_payload_that_a_slow_upstream_has_not_read() {
    let (mut lab, mut hand, server) = with_hand();
    lab.server.get(server).close(); // upstream's FIN first; it still reads, slowly
    turns(&mut lab, 10);
    hand.ack = hand.ack.wrapping_add(1);
    let total = 100_000_usize;
    let mut sent = 0_usize;
    while sent < total {
        hand.says(&mut lab, Flags::ACK, 0, 0, &[5; 1000]);
        sent += 1000;
        hand.next = hand.next.wrapping_add(1000);
        turns(&mut lab, 1);
    }
    hand.says(&mut lab, Flags::FIN | Flags::ACK, 0, 0, b"");
    turns(&mut lab, 5_000); // the reader sleeps 5 s
    let mut got = Vec::new();
    let done = lab.run(20_000, |lab| {
        lab.server.read(server, &mut got);
        lab.stack.sessions() == 0
    });
    assert!(got.len() == sent && done && lab.ended(EndCause::Closed) == 1);
}

#[test]
fn resets_at_shutdown_leave_even_when_the_device_is_busy() {
    let (mut lab, _hand, _server) = with_hand();
    lab.below.sent.clear();
    lab.below.room = false;
    lab.stack.drain();
    lab.stack.reset_some(lab.now, &mut lab.below);
    assert_eq!(lab.below.sent.len(), 2);
}

#[test]
fn a_fast_retransmission_without_room_is_not_forgotten() {
    let (mut lab, hand, server) = with_hand();
    lab.server.get(server).send_slice(&[7; 900]).unwrap();
    turns(&mut lab, 10);
    assert!(last_to_client(&mut lab).iter().any(|s| s.payload_len > 0));
    // three duplicate ACKs while the device is full
    lab.below.room = false;
    for _ in 0..4 {
        hand.says(&mut lab, Flags::ACK, 0, 0, b"");
    }
    lab.below.room = true;
    last_to_client(&mut lab);
    turns(&mut lab, 10_000);
    let again = last_to_client(&mut lab).iter().filter(|s| s.payload_len > 0).count();
    assert!(again > 0, "never retransmitted in 10 s");
}

#[test]
fn a_fin_behind_payload_received_before_is_taken() {
    let (mut lab, hand, server) = with_hand();
    hand.says(&mut lab, Flags::FIN | Flags::ACK, 3, 0, b"def");
    turns(&mut lab, 5);
    hand.says(&mut lab, Flags::ACK, 0, 0, b"abc");
    turns(&mut lab, 5);
    for _ in 0..10 {
        hand.says(&mut lab, Flags::FIN | Flags::ACK, 3, 0, b"def");
        turns(&mut lab, 300);
    }
    let mut got = Vec::new();
    lab.server.read(server, &mut got);
    assert_eq!(got, b"abcdef");
    assert!(!lab.server.get(server).may_recv(), "FIN never taken");
}

#[test]
fn a_blind_ack_with_a_wild_sequence_number_changes_nothing() {
    let (mut lab, hand, server) = with_hand();
    lab.server.get(server).send_slice(&[7; 900]).unwrap();
    turns(&mut lab, 10);
    last_to_client(&mut lab); // lost on its way
    hand.says(&mut lab, Flags::ACK, 0x4000_0000, 800, b""); // forged: ack lands in flight, seq far outside the window
    hand.says(&mut lab, Flags::ACK, 0, 0, b""); // the client's own
    turns(&mut lab, 3_000);
    let first = last_to_client(&mut lab).iter().filter(|s| s.payload_len > 0).map(|s| s.seq.0).min();
    assert_eq!(first, Some(hand.ack), "octets the client never got were thrown away");
}

#[test]
fn a_late_copy_of_the_first_segment_does_not_replay_it_upstream() {
    let (mut lab, mut hand, server) = with_hand();
    let copy = tcp(HAND, SERVICE).flags(Flags::ACK).seq(hand.next).ack(hand.ack).window(1000).payload(b"BUY").build();
    lab.receive(&copy);
    hand.next = hand.next.wrapping_add(3);
    turns(&mut lab, 10);
    hand.says(&mut lab, Flags::FIN | Flags::ACK, 0, 0, b"");
    hand.next = hand.next.wrapping_add(1);
    turns(&mut lab, 10);
    lab.server.get(server).close();
    turns(&mut lab, 10);
    hand.ack = hand.ack.wrapping_add(1);
    hand.says(&mut lab, Flags::ACK, 0, 0, b"");
    turns(&mut lab, 10);
    assert_eq!((lab.stack.sessions(), lab.ended(EndCause::Closed)), (0, 1));
    let second = lab.server.listen(80);
    lab.receive(&copy);
    turns(&mut lab, 50);
    let mut got = Vec::new();
    lab.server.read(second, &mut got);
    assert_eq!((lab.stack.sessions(), got.len()), (0, 0), "replayed");
}

#[test]
fn a_slow_reader_who_acknowledges_is_not_cut_as_half_closed() {
    let (mut lab, mut hand, server) = with_hand();
    let mut sent = 0;
    lab.run(200, |lab| {
        let s = lab.server.get(server);
        if sent < 30_000 && s.can_send() {
            sent += s.send_slice(&vec![7; 30_000 - sent]).unwrap();
        }
        lab.client.wire.outgoing.clear();
        false
    });
    lab.server.get(server).close();
    // the client takes 500 octets a second
    for _ in 0..45 {
        turns(&mut lab, 1000);
        last_to_client(&mut lab);
        hand.ack = hand.ack.wrapping_add(500);
        hand.says(&mut lab, Flags::ACK, 0, 0, b"");
    }
    assert_eq!(lab.stack.sessions(), 1);
}

#[test]
fn a_client_that_missed_our_reset_gets_another() {
    let (mut lab, hand, server) = with_hand();
    lab.server.get(server).send_slice(&[7; 900]).unwrap();
    turns(&mut lab, 10);
    last_to_client(&mut lab); // data lost
    lab.stack.reset_some(lab.now, &mut lab.below);
    lab.deliver();
    assert_eq!(last_to_client(&mut lab).iter().filter(|segment| segment.flags.rst()).count(), 1);
    hand.says(&mut lab, Flags::ACK, 0, 0, b""); // its challenge ACK (RFC 5961 3.2)
    lab.deliver();
    let again = last_to_client(&mut lab).len();
    assert_eq!(again, 1);
}

#[test]
fn clients_that_reset_during_the_dial_do_not_use_up_the_source_ports() {
    let mut lab = Lab::new(RAW);
    lab.client_answers = false;
    lab.below.only_ports = Some(5000..5010);
    lab.server.listen(80);
    for round in 0..10 {
        let hand = Hand::shake_from(&mut lab, round * 1000); // dialled in this very turn
        assert_eq!(lab.stack.sessions(), 1);
        hand.says(&mut lab, Flags::RST, 0, 0, b"");
        assert_eq!(lab.stack.sessions(), 0);
        turns(&mut lab, 3);
    }
    turns(&mut lab, 5_000);
    Hand::shake_from(&mut lab, 77_777);
    assert_eq!(
        lab.stack.sessions(),
        1,
        "dial failures {:?}",
        lab.counters.services[0].dial_failures[0].iter().map(Counter::get).collect::<Vec<_>>()
    );
}

#[test]
fn a_late_copy_of_the_handshake_ack_opens_nothing_in_time_wait() {
    let (mut lab, mut hand, server) = with_hand();
    let copy = tcp(HAND, SERVICE).flags(Flags::ACK).seq(hand.next).ack(hand.ack).window(1000).build();
    lab.server.get(server).close();
    turns(&mut lab, 5);
    hand.ack = hand.ack.wrapping_add(1);
    hand.says(&mut lab, Flags::FIN | Flags::ACK, 0, 0, b"");
    turns(&mut lab, 50);
    assert_eq!(lab.stack.sessions(), 0);
    lab.server.listen(80);
    lab.receive(&copy);
    assert_eq!(lab.stack.sessions(), 0);
}

#[test]
fn sessions_with_nothing_to_send_are_not_served_again_and_again() {
    let (mut lab, hand, _) = with_hand();
    lab.below.room = false;
    hand.says(&mut lab, Flags::ACK, 0, 0, b"");
    for _ in 0..5 {
        lab.stack.serve(lab.now, &mut lab.below);
    }
    assert_eq!(lab.stack.dirty.len(), 0, "an idle session stays on the list while there is no room");
}

#[test]
fn a_fin_alone_on_its_way_is_sent_again_whatever_acks_come() {
    let (mut lab, mut hand, server) = with_hand();
    lab.server.get(server).send_slice(b"0123456789").unwrap();
    lab.server.get(server).close();
    turns(&mut lab, 20);
    assert!(last_to_client(&mut lab).iter().any(|segment| segment.flags.fin()));
    // The client has the payload and says so more than once; the FIN was lost.
    hand.ack = hand.ack.wrapping_add(10);
    for _ in 0..6 {
        hand.says(&mut lab, Flags::ACK, 0, 0, b"");
        turns(&mut lab, 1);
    }
    turns(&mut lab, 2_000);
    let fins: Vec<_> = last_to_client(&mut lab).into_iter().filter(|segment| segment.flags.fin()).collect();
    assert!(!fins.is_empty(), "the client waits for the end for ever");
    assert!(fins.iter().all(|fin| fin.seq_end().0 == hand.ack.wrapping_add(1)));
}

#[test]
fn an_old_segment_sets_no_timestamp() {
    let (mut lab, server, ack) = with_stamped_hand(9_999, b"one ");
    // Behind the window, as a forger's who knows it roughly may be; also one that ends just before it.
    for (seq, payload) in [(4_000, &b"x"[..]), (9_000, b""), (10_003, b"")] {
        lab.receive(&stamped(Flags::ACK, seq, ack, 1_000 + (1 << 30), payload));
        lab.stack.serve(lab.now, &mut lab.below);
    }
    lab.drops.clear();
    lab.receive(&stamped(Flags::ACK, 10_004, ack, 1_002, b"two"));
    assert_eq!(lab.drops, []);
    let mut got = Vec::new();
    assert!(lab.run(100, |lab| {
        lab.server.read(server, &mut got);
        got == b"one two"
    }));
}

#[test]
fn a_reset_from_an_upstream_that_has_closed_in_order_is_no_reset() {
    let (mut lab, hand, server) = with_hand();
    lab.server.get(server).send_slice(b"goodbye").unwrap();
    lab.server.get(server).close();
    hand.says(&mut lab, Flags::ACK | Flags::FIN, 0, 0, b"");
    let mut last = None;
    for _ in 0..50 {
        lab.turn();
        lab.client.wire.incoming.clear();
        last = lab.server.wire.incoming.back().cloned().or(last);
        lab.now.0 += 1_000;
    }
    // Both FINs went to and fro there. A late segment of ours finds nobody.
    let last = read(&last.unwrap()).0;
    let from = last.key.local().to_string();
    let reset = tcp(&*from, &*last.key.remote().to_string()).flags(Flags::RST).seq(last.ack.0).build();
    lab.receive(&reset);
    assert_eq!(lab.drops.pop(), Some(DropReason::BadRst));
    turns(&mut lab, 5);
    assert_eq!(lab.ended(EndCause::UpstreamReset), 0);
    let hand = Hand { next: hand.next.wrapping_add(1), ack: hand.ack.wrapping_add(8) };
    hand.says(&mut lab, Flags::ACK, 0, 0, b"");
    turns(&mut lab, 5);
    assert_eq!(lab.ended(EndCause::Closed), 1);
}

#[test]
fn a_window_closed_by_a_late_ack_is_probed() {
    let (mut lab, hand, server) = with_hand();
    lab.server.get(server).send_slice(b"0123456789").unwrap();
    turns(&mut lab, 20);
    last_to_client(&mut lab);
    // Lost on its way; and an ACK from when the client's buffer was full comes late. It is the last that the client has to say.
    let late = tcp(HAND, SERVICE).flags(Flags::ACK).seq(hand.next).ack(hand.ack).window(0).build();
    lab.receive(&late);
    lab.stack.serve(lab.now, &mut lab.below);
    turns(&mut lab, 5_000);
    assert!(last_to_client(&mut lab).iter().any(|segment| segment.payload_len > 0), "nobody asks the client");
}

#[test]
fn an_old_ack_sets_no_timestamp() {
    let (mut lab, server, ack) = with_stamped_hand(9_999, b"one ");
    // The number is right by chance, what it acknowledges is from long ago.
    lab.receive(&stamped(Flags::ACK, 10_004, ack.wrapping_sub(20_000), 1_000 + (1 << 30), b""));
    lab.stack.serve(lab.now, &mut lab.below);
    lab.drops.clear();
    lab.receive(&stamped(Flags::ACK, 10_004, ack, 1_002, b"two"));
    assert_eq!(lab.drops, []);
    let mut got = Vec::new();
    assert!(lab.run(100, |lab| {
        lab.server.read(server, &mut got);
        got == b"one two"
    }));
}
