//! Spliced sessions: what a segment says of its sender binds nobody until the other end has acknowledged it. What honest ends send
//! after any loss always passes, and what a forger sends who does not know the exact numbers changes nothing.

use sluice_filters::icmp::{IcmpError, IcmpKind};
use sluice_filters::testkit::tcp;
use sluice_filters::units::Seq;
use sluice_filters::{DropReason, Flags};

use super::super::*;
use super::lab::*;
use super::spliced_by_hand::*;
use super::spliced_found_by_review::{plain, settled, v1};
use crate::record::EndCause;

const FIN: Flags = Flags(Flags::ACK.0 | Flags::FIN.0);

/// Both ends have their connection, with and without a PROXY header; the header is acknowledged. What the upstream acknowledges counts
/// from there: see [`Open::up`].
struct Open {
    talk: Talk,
    header: u32,
}

impl Open {
    fn both() -> [Open; 2] {
        [(PINNED.to_owned(), 0), (v1(), HEADER_LEN)].map(|(extra, header)| {
            let mut talk = Talk::connected(&extra);
            talk.upstream(Flags::ACK, 0, header, b"");
            talk.sent();
            Open { talk, header }
        })
    }

    fn up(&mut self, flags: Flags, seq: u32, ack: u32, payload: &[u8]) {
        self.talk.upstream(flags, seq, self.header + ack, payload);
    }

    fn reaches_upstream(&mut self) {
        let sent = self.talk.sent();
        assert!(sent.iter().any(|sent| !to_client(sent)), "{:?}", self.talk.lab.drops);
    }

    fn reaches_client(&mut self) {
        let sent = self.talk.sent();
        assert!(sent.iter().any(to_client), "{:?}", self.talk.lab.drops);
    }

    fn record(&mut self) -> SessionRecord {
        self.talk.lab.record()
    }
}

#[test]
fn a_fin_lost_with_the_last_payload_passes_when_it_is_sent_again() {
    for mut open in Open::both() {
        open.talk.client(Flags::ACK, 0, 0, b"hello");
        // "world" and the FIN are lost before us; the ACK of what the upstream says is not.
        open.up(Flags::ACK, 0, 5, b"greeting");
        open.talk.client(Flags::ACK, 11, 8, b"");
        open.talk.sent();
        open.talk.client(FIN, 5, 8, b"world");
        open.reaches_upstream();
        // The other way round: the same of the upstream.
        open.up(Flags::ACK, 12, 11, b"");
        open.talk.sent();
        open.up(FIN, 8, 11, b"bye");
        open.reaches_client();
        open.talk.client(Flags::ACK, 11, 12, b"");
        assert_eq!(open.talk.lab.ended(EndCause::Closed), 1, "{:?}", open.talk.lab.drops);
        let record = open.record();
        assert_eq!((record.bytes_to_upstream, record.bytes_to_client), (10, 11));
    }
}

#[test]
fn a_bare_ack_that_overtakes_a_fin_does_not_stop_it() {
    for mut open in Open::both() {
        open.talk.client(Flags::ACK, 1_301, 0, b"");
        open.talk.sent();
        open.talk.client(FIN, 0, 0, &[b'x'; 1_300]);
        open.reaches_upstream();
        open.up(Flags::ACK, 1_301, 1_301, b"");
        open.up(FIN, 0, 1_301, &[b'y'; 1_300]);
        open.reaches_client();
    }
}

#[test]
fn a_number_that_was_only_claimed_ends_no_session() {
    // A bare ACK numbered ahead, or a byte just before that number; then a RST with it.
    for (seq, payload) in [(5_000, &b""[..]), (4_999, b"x")] {
        let mut talk = settled();
        plain(&mut talk, Flags::ACK, seq, 0, payload);
        plain(&mut talk, Flags::RST, 5_000, 0, b"");
        talk.sent();
        assert_eq!(talk.lab.stack.sessions(), 1);
        // The client is idle. It is asked, and answers what any keep-alive is answered.
        for _ in 0..5 {
            talk.wait_ms(4_000);
            if talk.sent().iter().any(to_client) {
                talk.client(Flags::ACK, 100, 0, b"");
            }
        }
        assert_eq!(talk.lab.stack.sessions(), 1);
        talk.client(Flags::ACK, 100, 0, b"still here");
        assert!(talk.sent().iter().any(|sent| sent.3 == b"still here"));
    }
}

#[test]
fn a_client_that_sends_and_resets_is_asked_and_its_reset_believed() {
    let mut talk = Talk::connected(PINNED);
    talk.client(Flags::ACK, 0, 0, b"hello");
    talk.sent();
    talk.client(Flags::RST, 5, 0, b"");
    let (way, reset, ..) = talk.one();
    assert!(matches!(way, Way::Neighbor { .. }), "the upstream judges it");
    assert_eq!((reset.flags, reset.seq), (Flags::RST, Seq(ISN).plus(6)));
    talk.wait_ms(1_100);
    let asked = talk.sent().into_iter().find(to_client).expect("a keep-alive").1;
    assert_eq!((asked.seq, asked.flags), (Seq(talk.cookie), Flags::ACK));
    // Nobody is there any more.
    let answer = tcp(HAND, SERVICE).flags(Flags::RST).seq(asked.ack.0).build();
    talk.lab.receive(&answer);
    assert_eq!(talk.lab.ended(EndCause::ClientReset), 1);
}

#[test]
fn a_client_that_sends_resets_and_is_gone_is_given_up() {
    for acknowledged in [false, true] {
        let mut talk = Talk::connected(PINNED);
        talk.client(Flags::ACK, 0, 0, b"hello");
        talk.client(Flags::RST, 5, 0, b"");
        if acknowledged {
            // It crossed the RST.
            talk.upstream(Flags::ACK, 0, 5, b"");
        }
        talk.sent();
        talk.wait_ms(31_000);
        assert_eq!(talk.lab.ended(EndCause::ClientReset), 1);
        assert_eq!(talk.lab.stack.sessions(), 0);
        // The upstream is told as well, with a number that fits: it may have refused the one that went by.
        let resets: Vec<_> = talk.sent().into_iter().filter(|sent| !to_client(sent) && sent.1.flags.rst()).collect();
        let fits = Seq(ISN).plus(if acknowledged { 6 } else { 1 });
        assert!(resets.iter().any(|sent| sent.1.seq == fits), "{resets:?}");
    }
}

#[test]
fn a_reset_while_dialling_that_does_not_fit_is_asked_again() {
    let mut talk = Talk::new(PINNED);
    talk.client(Flags::ACK, 0, 0, b"hello");
    talk.client(Flags::RST, 5, 0, b"");
    assert_eq!(talk.lab.stack.sessions(), 1);
    let challenge = talk.one();
    assert!(to_client(&challenge));
    talk.lab.receive(&tcp(HAND, SERVICE).flags(Flags::RST).seq(challenge.1.ack.0).build());
    assert_eq!(talk.lab.ended(EndCause::ClientReset), 1);
}

#[test]
fn timestamps_far_ahead_freeze_nobody() {
    let mut talk = settled();
    for ahead in [1 << 29, (1 << 30) - 1] {
        for _ in 0..2 {
            talk.client_stamped(Flags::ACK, 9_000, 0, b"", 510 + ahead, talk.our_stamp);
        }
    }
    talk.sent();
    talk.client(Flags::ACK, 100, 0, b"true");
    assert_eq!(talk.one().3, b"true");
}

#[test]
fn a_forged_byte_far_ahead_keeps_no_fin_out() {
    let mut talk = settled();
    plain(&mut talk, Flags::ACK, 60_000, 0, b"x");
    talk.sent();
    talk.client(FIN, 100, 0, b"the end");
    assert_eq!(talk.one().3, b"the end");
    talk.upstream(Flags::ACK, 0, 108, b"");
    talk.upstream(FIN, 0, 108, b"");
    talk.client(Flags::ACK, 108, 1, b"");
    // Somebody lied about what the client sent, so the end is waited for a little.
    assert_eq!(talk.lab.stack.sessions(), 1);
    talk.wait_ms(2_500);
    assert_eq!(talk.lab.ended(EndCause::Closed), 1);
    let record = talk.lab.record();
    assert_eq!((record.bytes_to_upstream, record.bytes_to_client), (107, 0));
}

#[test]
fn a_fin_among_what_was_sent_does_not_cut_the_stream_short() {
    let mut open = {
        let [raw, _] = Open::both();
        raw
    };
    // The upstream has closed, the client goes on. A forger's FIN has a number that will be acknowledged.
    open.up(FIN, 0, 0, b"");
    open.talk.client(Flags::ACK, 0, 1, &[b'a'; 1_000]);
    open.talk.client(Flags::ACK, 1_000, 1, &[b'b'; 1_000]);
    plain(&mut open.talk, FIN, 999, 1, b"");
    open.up(Flags::ACK, 1, 1_000, b"");
    open.talk.wait_ms(1_000);
    open.up(Flags::ACK, 1, 2_000, b"");
    open.talk.wait_ms(3_000);
    open.talk.sent();
    open.talk.client(Flags::ACK, 2_000, 1, b"more");
    open.reaches_upstream();
    assert_eq!(open.talk.lab.stack.sessions(), 1);
}

#[test]
fn a_claim_is_no_data_and_is_not_counted() {
    let mut talk = Talk::connected(&format!("{PINNED}\n[service.timeouts]\nfirst_data = \"1s\""));
    plain(&mut talk, Flags::ACK, 1, 0, b"");
    plain(&mut talk, Flags::ACK, 50_000, 0, b"x");
    talk.upstream(Flags::ACK, 0, 0, b"");
    talk.wait_ms(1_100);
    assert_eq!(talk.lab.ended(EndCause::FirstData), 1);
    let record = talk.lab.record();
    assert_eq!((record.bytes_to_upstream, record.bytes_to_client), (0, 0));
    assert_eq!(talk.lab.counters.services[0].bytes_to_upstream.get(), 0);
}

#[test]
fn a_client_that_closes_without_a_word_has_spoken() {
    let mut talk = Talk::connected(&format!("{PINNED}\n[service.timeouts]\nfirst_data = \"1s\""));
    talk.client(FIN, 0, 0, b"");
    talk.upstream(Flags::ACK, 0, 1, b"");
    talk.wait_ms(3_000);
    assert_eq!(talk.lab.ended(EndCause::FirstData), 0);
}

#[test]
fn a_client_never_writes_where_the_header_stands() {
    let [_, mut open] = Open::both();
    let evil = [b'e'; 10];
    plain(&mut open.talk, Flags::ACK, 10_u32.wrapping_neg(), 0, &evil);
    plain(&mut open.talk, Flags::ACK, 5_u32.wrapping_neg(), 0, &evil);
    assert!(open.talk.sent().iter().all(to_client));
    // Later too, while as much was sent as the window reaches back.
    open.talk.client(Flags::ACK, 0, 0, &[b'a'; 1_000]);
    open.up(Flags::ACK, 0, 1_000, b"");
    open.talk.sent();
    plain(&mut open.talk, Flags::ACK, 5_u32.wrapping_neg(), 0, &evil);
    assert!(open.talk.sent().iter().all(to_client));
    open.talk.client(Flags::ACK, 0, 0, &[b'a'; 1_000]);
    open.reaches_upstream();
}

#[test]
fn a_keep_alive_with_a_byte_of_garbage_keeps_alive_though_nothing_was_sent_before() {
    for mut open in Open::both() {
        // Without the byte: its place is the header's, or before the stream.
        open.talk.client(Flags::ACK, 1_u32.wrapping_neg(), 0, b"?");
        let sent = open.talk.sent();
        assert!(matches!(&sent[..], [probe] if !to_client(probe) && probe.1.payload_len == 0), "{sent:?}");
        let silent = |open: &Open| open.talk.lab.stack.splices.get(0).unwrap().client_silent(open.talk.lab.now);
        assert_eq!(silent(&open), Duration::ZERO);
        open.talk.lab.now.0 += 60_000_000;
        assert!(silent(&open) >= Duration::from_secs(59));
        open.up(Flags::ACK, 1_u32.wrapping_neg(), 0, b"?");
        let sent = open.talk.sent();
        assert!(matches!(&sent[..], [probe] if to_client(probe) && probe.1.payload_len == 0), "{sent:?}");
        open.talk.client(Flags::ACK, 0, 0, b"hello");
        open.up(Flags::ACK, 0, 5, b"");
        open.talk.sent();
        open.talk.client(Flags::ACK, 4, 0, b"?");
        open.reaches_upstream();
    }
}

#[test]
fn our_own_segments_carry_numbers_that_were_acknowledged() {
    let mut talk = settled();
    // A forger raises what the upstream seems to have sent, and asks us to say so.
    let forged = tcp(UPSTREAM, &*talk.ours)
        .flags(Flags::ACK)
        .seq(THEIR_ISN.wrapping_add(30_000))
        .ack(talk.dial.wrapping_add(101))
        .window(500)
        .payload([b'x'; 10])
        .build();
    talk.lab.receive(&forged);
    talk.sent();
    plain(&mut talk, Flags::RST, 5_000, 0, b"");
    let (_, challenge, ..) = talk.one();
    assert_eq!(challenge.seq, Seq(talk.cookie).plus(1));
}

#[test]
fn an_idle_end_is_reset_with_the_number_it_waits_for_or_the_one_behind_what_is_on_its_way() {
    let mut talk = Talk::connected(&format!("{PINNED}\n[service.timeouts]\nclient_idle = \"2s\""));
    talk.upstream(Flags::ACK, 0, 0, b"abc");
    talk.sent();
    talk.wait_ms(2_500);
    let resets: Vec<_> =
        talk.sent().into_iter().filter(|sent| to_client(sent) && sent.1.flags.rst()).map(|sent| sent.1.seq).collect();
    assert_eq!(resets, [Seq(talk.cookie).plus(1), Seq(talk.cookie).plus(4)]);
}

#[test]
fn one_segment_is_enough_to_go_on() {
    // Whichever end speaks first after everything was forgotten, and whatever it says.
    for first in 0..6 {
        let mut talk = settled();
        talk.client(Flags::ACK, 100, 0, b"lost behind us");
        talk.sent();
        let key = flow(HAND, SERVICE);
        assert!(talk.lab.stack.lose_tracking(&key));
        match first {
            0 => talk.client(Flags::ACK, 100, 0, b"lost behind us"),
            1 => talk.client(Flags::ACK, 114, 0, b""),
            2 => talk.client(FIN, 114, 0, b""),
            3 => talk.upstream(Flags::ACK, 0, 100, b""),
            4 => talk.upstream(Flags::ACK, 0, 100, b"abc"),
            _ => talk.upstream(FIN, 3, 100, b""),
        }
        assert_eq!(talk.dropped(), None, "{first}");
        assert_eq!(talk.sent().len(), 1, "{first}");
        for (from_client, flags, seq, ack, payload) in [
            (true, Flags::ACK, 100, 0, &b"lost behind us"[..]),
            (false, Flags::ACK, 0, 100, b"abc"),
            (true, FIN, 114, 0, b""),
            (false, Flags::ACK, 0, 115, b"abc"),
            (true, Flags::ACK, 115, 3, b""),
            (false, FIN, 3, 115, b""),
            (true, Flags::ACK, 115, 4, b""),
        ] {
            if from_client {
                talk.client(flags, seq, ack, payload);
            } else {
                talk.upstream(flags, seq, ack, payload);
            }
            assert_eq!(talk.dropped(), None, "{first}: {flags:?} {seq} {ack}");
            assert_eq!(talk.sent().len(), 1);
        }
        talk.wait_ms(3_000);
        assert_eq!(talk.lab.ended(EndCause::Closed), 1, "{first}");
    }
}

#[test]
fn a_late_copy_or_a_forgers_segment_is_no_start_to_stay_with() {
    for from_client in [true, false] {
        let mut talk = settled();
        let key = flow(HAND, SERVICE);
        assert!(talk.lab.stack.lose_tracking(&key));
        // Anywhere in the number space.
        if from_client {
            plain(&mut talk, Flags::ACK, 0x4000_0000, 0x7000_0000, b"x");
        } else {
            talk.upstream(Flags::ACK, 0x4000_0000, 0x7000_0000, b"x");
        }
        talk.sent();
        talk.client(Flags::ACK, 100, 0, b"true");
        assert_eq!(talk.one().3, b"true");
        talk.upstream(Flags::ACK, 0, 104, b"");
        talk.sent();
        // From here on both ends agree.
        plain(&mut talk, Flags::ACK, 0x4000_0000, 0x7000_0000, b"x");
        assert!(talk.dropped().is_some());
        talk.client(Flags::ACK, 104, 0, b"true again");
        assert!(talk.sent().iter().any(|sent| sent.3 == b"true again"));
    }
}

#[test]
fn a_path_too_small_to_be_told_still_carries_data() {
    let mut talk = Talk::connected(PINNED);
    talk.sent();
    let payload: Vec<u8> = (0..1_000_u32).map(|n| n as u8).collect();
    talk.upstream(Flags::ACK, 0, 0, &payload);
    let seq = talk.one().1.seq;
    let key = flow(HAND, SERVICE);
    let error = IcmpError { kind: IcmpKind::TooBig(600), key, seq, len: 1_052 };
    let hash = talk.lab.stack.hash(&key);
    talk.lab.stack.icmp_error(&error, hash, PortId(0), talk.lab.now, &mut talk.lab.below).unwrap();
    talk.lab.below.sent.clear();
    // The upstream's segments are no larger than it was told; they are cut for this path alone.
    talk.upstream(Flags(FIN.0 | Flags::PSH.0), 0, 0, &payload);
    let pieces = talk.sent();
    let mut next = seq;
    let mut whole = Vec::new();
    for (at, (_, segment, options, piece)) in pieces.iter().enumerate() {
        assert!(segment.payload_len > 0 && 52 + piece.len() <= 600, "{}", piece.len());
        assert_eq!(segment.seq, next);
        assert_eq!(segment.flags.fin(), at + 1 == pieces.len());
        assert!(options.timestamp.is_some());
        next = next.plus(u32::from(segment.payload_len));
        whole.extend_from_slice(piece);
    }
    assert_eq!(whole, payload);
    // Other sessions' segments are whole, and so are small ones.
    talk.upstream(Flags::ACK, 0, 0, &payload[..500]);
    assert_eq!(talk.sent().len(), 1);
}

#[test]
fn without_options_a_reset_while_data_is_on_its_way_is_believed_too() {
    let mut lab = Lab::new("mode = \"splice\"\npromise = { probe = \"0s\" }");
    let (client, server) = established(&mut lab);
    lab.idle(5);
    lab.client.get(client).send_slice(b"data").unwrap();
    lab.turn();
    lab.client.get(client).abort();
    assert!(lab.run(12_000, |lab| lab.ended(EndCause::ClientReset) == 1), "{:?}", lab.drops);
    lab.idle(5);
    assert!(!lab.server.get(server).is_open());
}

#[test]
fn a_segment_without_numbers_that_fit_is_refused_before_it_can_claim() {
    let mut talk = settled();
    plain(&mut talk, FIN, 0x2000_0000, 0, b"x");
    assert_eq!(talk.dropped(), Some(DropReason::OutOfWindow));
}

#[test]
fn a_reset_before_the_header_arrived_acknowledges_nothing_the_client_does_not_know() {
    let mut talk = Talk::connected(&v1());
    talk.sent();
    talk.upstream(Flags(Flags::RST.0 | Flags::ACK.0), 0, 0, b"");
    let sent = talk.sent();
    let reset = sent.iter().find(|sent| to_client(sent)).unwrap();
    assert_eq!((reset.1.seq, reset.1.ack), (Seq(talk.cookie).plus(1), Seq(ISN).plus(1)));
    assert_eq!(talk.lab.ended(EndCause::UpstreamReset), 1);
}

#[test]
fn a_fin_or_a_reset_does_not_put_off_the_header() {
    for flags in [FIN, Flags::RST] {
        let mut talk = Talk::connected(&v1());
        // The header is lost, and something goes by that makes the session look at its limits.
        talk.client(Flags::ACK, 0, 0, b"hello");
        plain(&mut talk, flags, 5, 0, b"");
        talk.sent();
        talk.wait_ms(250);
        assert!(talk.sent().iter().any(|sent| sent.3.starts_with(b"PROXY ")), "{flags:?}");
    }
}

#[test]
fn a_clients_keep_alive_is_answered_while_nobody_was_dialled() {
    for payload in [&b""[..], b"?"] {
        let mut talk = Talk::new(&format!("{PINNED}\nconnect = \"on-data\""));
        talk.sent();
        talk.client(Flags::ACK, 1_u32.wrapping_neg(), 0, payload);
        let (_, answer, ..) = talk.one();
        assert_eq!((answer.seq, answer.ack), (Seq(talk.cookie).plus(1), Seq(ISN).plus(1)));
    }
}

#[test]
fn an_answer_before_the_dial_closes_no_window_that_the_syn_ack_opened() {
    let wide = PINNED.replace("window_scale = 7", "window_scale = 14");
    let mut talk = Talk::new(&format!("{wide}\nconnect = \"on-data\""));
    talk.sent();
    talk.client(Flags::ACK, 1_u32.wrapping_neg(), 0, b"");
    assert!(talk.one().1.window > 0);
}

#[test]
fn what_is_held_for_an_upstream_is_first_data() {
    let extra = format!("{PINNED}\n[service.timeouts]\nfirst_data = \"1s\"\nconnect = \"5s\"");
    let mut talk = Talk::new(&extra);
    talk.client(Flags::ACK, 0, 0, b"hello");
    talk.wait_ms(2_000);
    assert_eq!(talk.lab.ended(EndCause::FirstData), 0);
}

#[test]
fn time_before_the_upstream_accepted_is_not_time_it_did_not_answer_in() {
    let extra = format!("{PINNED}\n[service.timeouts]\nunacknowledged = \"1s\"\nconnect = \"9s\"");
    let mut talk = Talk::new(&extra);
    talk.client(Flags::ACK, 0, 0, b"hello");
    talk.wait_ms(300);
    talk.client(Flags::ACK, 0, 0, b"hello");
    talk.wait_ms(3_000);
    talk.accept(&all());
    talk.wait_ms(500);
    assert_eq!(talk.lab.ended(EndCause::UpstreamTimeout), 0);
    talk.upstream(Flags::ACK, 0, 5, b"");
    talk.wait_ms(2_000);
    assert_eq!(talk.lab.stack.sessions(), 1);
}

#[test]
fn a_path_that_no_router_measured_shrinks_no_upstreams_path_for_all() {
    let mut talk = Talk::connected(PINNED);
    talk.sent();
    talk.upstream(Flags::ACK, 0, 0, &[b'd'; 1_000]);
    let seq = talk.one().1.seq;
    let key = flow(HAND, SERVICE);
    let error = IcmpError { kind: IcmpKind::TooBig(0), key, seq, len: 1_052 };
    let hash = talk.lab.stack.hash(&key);
    talk.lab.stack.icmp_error(&error, hash, PortId(0), talk.lab.now, &mut talk.lab.below).unwrap();
    let (_, packet) = talk.lab.below.sent.pop_back().unwrap();
    assert_eq!(u16::from_be_bytes([packet[26], packet[27]]), 1_280);
    talk.upstream(Flags::ACK, 0, 0, &[b'd'; 1_000]);
    assert!(talk.sent().len() > 1, "this flow's segments are cut");
}
