//! Paths behind the ports that are smaller than they are: routers that say so, and routers that do not.

use std::time::Duration;

use sluice_filters::icmp::{IcmpError, IcmpKind, Unreachable};
use sluice_filters::testkit::{Opt, tcp};
use sluice_filters::units::Seq;
use sluice_filters::{DropReason, Flags};

use super::super::*;
use super::lab::*;
use crate::counters::DialFailure;
use crate::record::EndCause;

const SPLICED: &str = "mode = \"splice\"\npromise = { probe = \"0s\" }";

/// Sends 300 kB each way, from the client's port on, past these routers; how many packets were too big, and how long it took. One way
/// after the other: smoltcp's hosts take no acknowledgment from a segment sent again.
fn transfer(lab: &mut Lab, port: u16, hops: [Option<Hop>; 2]) -> (usize, Duration) {
    lab.hops = hops;
    let (before, begun) = (lab.too_big, lab.now);
    let data = bytes(300_000);
    for (port, up, down) in [(port, &data[..], &[][..]), (port + 1, &[], &data)] {
        let ends = established_from(lab, port);
        exchange_between(lab, ends, up, up, down, 60_000);
    }
    (lab.too_big - before, lab.now.since(begun))
}

#[test]
fn three_hundred_kilobytes_each_way_pass_any_small_router_soon() {
    for extra in [RAW, SPLICED] {
        for lab in [Lab::new as fn(&str) -> Lab, Lab::of_ipv6] {
            let (_, plain) = transfer(&mut lab(extra), 40_000, [None; 2]);
            for mtu in [1_400, 1_280] {
                for silent in [false, true] {
                    let hop = Some(Hop { mtu, silent });
                    for hops in [[hop, None], [None, hop], [hop, hop]] {
                        let (too_big, took) = transfer(&mut lab(extra), 40_000, hops);
                        assert!(too_big > 0, "{extra} {hops:?}");
                        // smoltcp's hosts wait one second, then two, and do not listen to routers.
                        let more = if extra == SPLICED { 7 } else { 3 };
                        assert!(took < plain + Duration::from_secs(more), "{extra} {hops:?}: {took:?}, not {plain:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_path_that_takes_no_more_than_the_least_is_found_in_steps() {
    for extra in [RAW, SPLICED] {
        for silent in [false, true] {
            let hop = Some(Hop { mtu: 576, silent });
            let (_, took) = transfer(&mut Lab::new(extra), 40_000, [hop, hop]);
            assert!(took < Duration::from_secs(20), "{extra}, silent {silent}: {took:?}");
        }
    }
}

#[test]
fn a_router_that_takes_no_more_than_552_bytes_of_ipv4_is_believed() {
    for extra in [RAW, SPLICED] {
        let hop = Some(Hop { mtu: 552, silent: false });
        let (too_big, _) = transfer(&mut Lab::new(extra), 40_000, [hop, hop]);
        assert!(too_big > 0, "{extra}");
    }
}

#[test]
fn the_next_connection_of_a_peer_begins_with_what_is_known_of_its_path() {
    for (extra, silent) in [(RAW, false), (RAW, true), (SPLICED, true)] {
        let hop = Some(Hop { mtu: 1_280, silent });
        // A spliced connection teaches nobody of its upstream's path.
        let hops = if extra == SPLICED { [hop, None] } else { [hop; 2] };
        let mut lab = Lab::new(extra);
        assert!(transfer(&mut lab, 40_000, hops).0 > 0);
        assert_eq!(transfer(&mut lab, 40_002, hops).0, 0, "{extra}, silent {silent}");
        lab.idle(1);
        // Ten minutes later the path may be another.
        lab.now = lab.now.after(Duration::from_secs(601));
        lab.idle(1);
        assert!(transfer(&mut lab, 40_004, hops).0 > 0, "{extra}, silent {silent}");
    }
}

#[test]
fn a_lossy_wire_is_no_small_path() {
    for extra in [RAW, SPLICED] {
        let mut lab = Lab::new(extra);
        lab.loss = 10;
        transfer(&mut lab, 40_000, [None; 2]);
        lab.loss = 0;
        // One byte over what would be tried.
        assert_eq!(transfer(&mut lab, 40_002, [None; 2]).0, 0);
        assert_eq!(lab.stack.path_mtus.get("203.0.113.7".parse::<std::net::IpAddr>().unwrap().into(), lab.now), None);
    }
}

/// A hand that was sent a full segment, and the key of errors about it.
fn with_segment_on_its_way(lab: &mut Lab) -> (Hand, FlowKey) {
    lab.client_answers = false;
    let server = lab.server.listen(80);
    let hand = Hand::shake_with(lab, 7, 1_460);
    assert!(lab.run(100, |lab| lab.server.get(server).may_send()));
    lab.server.get(server).send_slice(&bytes(900)).unwrap();
    lab.idle(3);
    lab.client.wire.incoming.clear();
    (hand, flow(HAND, SERVICE))
}

fn tell(lab: &mut Lab, key: FlowKey, kind: IcmpKind, seq: u32, len: u16) -> Result<(), DropReason> {
    let error = IcmpError { kind, key, seq: Seq(seq), len };
    let hash = lab.stack.hash(&key);
    lab.stack.icmp_error(&error, hash, PortId(0), lab.now, &mut lab.below)
}

#[test]
fn only_a_report_about_a_segment_on_its_way_that_was_larger_is_believed() {
    let mut lab = Lab::new(RAW);
    let (hand, key) = with_segment_on_its_way(&mut lab);
    let known = |lab: &mut Lab| lab.stack.path_mtus.get(key.src, lab.now).map(|path| path.mtu);
    for wrong in [1_u32.wrapping_neg(), 901, 1 << 31] {
        let seq = hand.ack.wrapping_add(wrong);
        assert_eq!(tell(&mut lab, key, IcmpKind::TooBig(600), seq, 940), Err(DropReason::BadIcmp));
    }
    assert_eq!(tell(&mut lab, key, IcmpKind::TooBig(940), hand.ack, 940), Err(DropReason::BadIcmp), "it fitted");
    assert_eq!(tell(&mut lab, key, IcmpKind::TooBig(70_000), hand.ack, 940), Err(DropReason::BadIcmp));
    assert_eq!(known(&mut lab), None);
    assert_eq!(tell(&mut lab, key, IcmpKind::TooBig(700), hand.ack, 940), Ok(()));
    assert_eq!(known(&mut lab), Some(700));
    assert_eq!(tell(&mut lab, key, IcmpKind::TooBig(68), hand.ack, 940), Ok(()));
    assert_eq!(known(&mut lab), Some(552), "no path is smaller");
    // What was too big comes again in pieces that fit.
    lab.below.sent.clear();
    assert!(lab.run(3_000, |lab| !lab.client.wire.incoming.is_empty()));
    let pieces: Vec<_> = lab.client.wire.incoming.iter().map(|packet| (packet.len(), read(packet).0)).collect();
    assert_eq!(pieces.iter().map(|(_, piece)| piece.payload_len).collect::<Vec<_>>(), [512, 388]);
    assert_eq!(pieces.iter().map(|(_, piece)| piece.seq.0.wrapping_sub(hand.ack)).collect::<Vec<_>>(), [0, 512]);
    assert!(pieces.iter().all(|(len, _)| *len <= 552));
    // All is acknowledged: nothing is on its way that could be too big.
    hand.says(&mut lab, Flags::ACK, 0, 900, b"");
    assert_eq!(tell(&mut lab, key, IcmpKind::TooBig(600), hand.ack.wrapping_add(900), 940), Err(DropReason::BadIcmp));
}

#[test]
fn a_router_that_does_not_know_the_size_is_taken_to_mean_the_next_usual_one() {
    let mut lab = Lab::new(RAW);
    let (hand, key) = with_segment_on_its_way(&mut lab);
    assert_eq!(tell(&mut lab, key, IcmpKind::TooBig(0), hand.ack, 940), Ok(()));
    assert_eq!(lab.stack.path_mtus.get(key.src, lab.now).map(|path| path.mtu), Some(576));
}

#[test]
fn a_dial_that_a_router_cannot_deliver_goes_to_the_next_upstream() {
    let mut lab = Lab::with(RAW, &["10.0.0.9:80", "10.0.0.5:80"]);
    lab.server.listen(80);
    let client = lab.dial();
    let mut told = false;
    assert!(lab.run(1_000, |lab| {
        // Nobody is at the first upstream's address.
        if let Some(packet) = lab.server.wire.incoming.iter().find(|packet| packet[16..20] == [10, 0, 0, 9]) {
            let (syn, _) = read(packet);
            let key =
                FlowKey { src: syn.key.dst, dst: syn.key.src, src_port: syn.key.dst_port, dst_port: syn.key.src_port };
            let kind = IcmpKind::Unreachable(Unreachable::Host);
            assert_eq!(tell(lab, key, kind, syn.seq.0.wrapping_add(1), 60), Err(DropReason::BadIcmp), "not its number");
            assert_eq!(tell(lab, key, kind, syn.seq.0, 60), Ok(()));
            told = true;
            lab.server.wire.incoming.clear();
        }
        lab.client.get(client).may_send() && lab.stack.sessions() == 1 && told
    }));
    lab.idle(50);
    let failures = &lab.counters.services[0].dial_failures[0];
    assert_eq!(failures[DialFailure::Unreachable as usize].get(), 1);
    assert!(lab.now < Micros(2_500_000), "it waited for a timeout: {:?}", lab.now);
    assert_eq!(lab.ended(EndCause::DialFailed), 0);
}

#[test]
fn what_a_client_sent_before_the_upstream_accepted_fits_the_upstreams_port() {
    let mut lab = Lab::new(SPLICED);
    lab.client_answers = false;
    lab.server_answers = false;
    lab.stack.begin_turn(lab.now, Duration::from_micros(lab.now.0));
    lab.receive(&tcp(HAND, SERVICE).flags(Flags::SYN).seq(7).options([Opt::Mss(8_960)]).build());
    let ack = read(&lab.below.sent.pop_back().unwrap().1).0.seq.0.wrapping_add(1);
    let data = bytes(1_850);
    lab.receive(&tcp(HAND, SERVICE).flags(Flags::ACK).seq(8).ack(ack).payload(data.clone()).build());
    let syn = read(&lab.below.sent.pop_back().unwrap().1).0;
    let ours = syn.key.remote().to_string();
    let answer =
        tcp("10.0.0.5:80", ours.as_str()).flags(Flags::SYN | Flags::ACK).seq(99).ack(syn.seq.0.wrapping_add(1));
    lab.receive(&answer.options([Opt::Mss(1_460)]).build());
    let mut got = Vec::new();
    for (_, packet) in lab.below.sent.drain(..) {
        assert!(packet.len() <= 1_500, "{} bytes", packet.len());
        let (segment, _) = read(&packet);
        got.extend_from_slice(&packet[40..40 + usize::from(segment.payload_len)]);
    }
    assert!(got == data, "{} bytes arrive", got.len());
}
