//! Sessions between well-behaved hosts: payload, closes, resets, dials, timeouts, limits.

use sluice_filters::Flags;
use sluice_filters::icmp::{IcmpError, IcmpKind, Unreachable};
use sluice_filters::testkit::tcp;
use sluice_filters::units::Seq;

use super::super::linger::Left;
use super::super::*;
use super::lab::*;
use crate::counters::{AckResult, DialFailure};
use crate::net::Reach;
use crate::record::EndCause;
use crate::unanswered;

#[test]
fn payload_and_close_travel_both_ways() {
    let mut lab = Lab::new(RAW);
    exchange(&mut lab, &bytes(300_000), &bytes(200_000), 20_000);
    let record = lab.record();
    assert_eq!((record.bytes_to_upstream, record.bytes_to_client), (300_000, 200_000));
    assert_eq!(record.client.to_string(), "203.0.113.7:40000");
    assert_eq!(record.target.unwrap().to_string(), "10.0.0.5:80");
}

#[test]
fn payload_survives_a_wire_that_loses_one_in_thirty() {
    let mut lab = Lab::new(RAW);
    lab.loss = 33;
    exchange(&mut lab, &bytes(200_000), &bytes(200_000), 600_000);
}

#[test]
fn everything_an_ended_connection_held_is_given_back() {
    let mut lab = Lab::new(RAW);
    exchange(&mut lab, b"up", b"down", 5_000);
    lab.stack.publish(lab.now);
    assert_eq!(lab.counters.buffer_bytes.get(), 0);
    assert_eq!(lab.counters.services[0].active.get(), 0);
    lab.idle(11_000);
    lab.stack.publish(lab.now);
    assert_eq!(lab.counters.flow_entries.get(), 0);
    assert_eq!(lab.counters.time_wait.get(), 0);
    assert_eq!(lab.counters.timers.get(), 0);
}

#[test]
fn the_proxy_header_comes_first_and_once() {
    for (version, start) in
        [("v1", &b"PROXY TCP4 203.0.113.7 198.51.100.10 40000 443\r\n"[..]), ("v2", b"\r\n\r\n\0\r\nQUIT\n\x21\x11")]
    {
        let mut lab = Lab::new(&format!("proxy_protocol = \"{version}\""));
        let (client, server) = established(&mut lab);
        lab.client.get(client).send_slice(b"hello").unwrap();
        let mut got = Vec::new();
        lab.run(100, |lab| {
            lab.server.read(server, &mut got);
            false
        });
        assert!(got.starts_with(start), "{}", got.escape_ascii());
        assert!(got.ends_with(b"hello"));
        let header = if version == "v1" { start.len() } else { 28 };
        assert_eq!(got.len(), header + 5);
    }
}

#[test]
fn a_syn_keeps_no_state() {
    let mut lab = Lab::new(RAW);
    for source in 0..1000_u32 {
        let from = format!("203.0.{}.{}:1024", source / 250, source % 250 + 1);
        lab.receive(&tcp(&*from, "198.51.100.10:443").flags(Flags::SYN).seq(source).build());
    }
    lab.stack.publish(lab.now);
    assert_eq!(lab.below.sent.len(), 1000);
    assert_eq!(lab.counters.cookies_sent.get(), 1000);
    assert_eq!((lab.stack.sessions(), lab.counters.flow_entries.get()), (0, 0));
}

#[test]
fn an_ack_without_our_cookie_opens_nothing() {
    let mut lab = Lab::new(RAW);
    for ack in 0..1000 {
        lab.receive(&tcp("203.0.113.7:1024", "198.51.100.10:443").flags(Flags::ACK).ack(ack * 77_777).build());
    }
    assert_eq!(lab.stack.sessions(), 0);
    assert_eq!(lab.counters.cookie_acks[AckResult::BadCookie as usize].get(), 1000);
    assert!(lab.below.sent.is_empty(), "no answer to a flood");
}

#[test]
fn a_client_reset_reaches_the_upstream() {
    let mut lab = Lab::new(RAW);
    let (client, server) = established(&mut lab);
    lab.client.get(client).abort();
    assert!(lab.run(1000, |lab| lab.stack.sessions() == 0 && !lab.server.get(server).is_open()));
    assert_eq!(lab.ended(EndCause::ClientReset), 1);
}

#[test]
fn an_upstream_reset_reaches_the_client_after_what_came_before_it() {
    let mut lab = Lab::new(RAW);
    let (client, server) = established(&mut lab);
    lab.server.get(server).send_slice(b"last words").unwrap();
    lab.idle(2);
    lab.server.get(server).abort();
    let mut got = Vec::new();
    assert!(lab.run(1000, |lab| {
        lab.client.read(client, &mut got);
        !lab.client.get(client).is_open()
    }));
    assert_eq!(got, b"last words");
    assert_eq!(lab.ended(EndCause::UpstreamReset), 1);
}

#[test]
fn half_close_by_the_client_leaves_the_other_direction_open() {
    let mut lab = Lab::new(RAW);
    let (client, server) = established(&mut lab);
    lab.client.get(client).send_slice(b"question").unwrap();
    lab.client.get(client).close();
    let mut got = Vec::new();
    assert!(lab.run(1000, |lab| {
        lab.server.read(server, &mut got);
        !lab.server.get(server).may_recv()
    }));
    assert_eq!(got, b"question");
    lab.server.get(server).send_slice(b"answer").unwrap();
    lab.server.get(server).close();
    let mut answer = Vec::new();
    assert!(lab.run(1000, |lab| {
        lab.client.read(client, &mut answer);
        lab.stack.sessions() == 0
    }));
    assert_eq!(answer, b"answer");
    assert_eq!(lab.ended(EndCause::Closed), 1);
}

#[test]
fn a_refused_dial_goes_to_the_next_upstream_with_nothing_lost() {
    let mut lab = Lab::with(RAW, &["10.0.0.5:81", "10.0.0.5:80"]);
    let server = lab.server.listen(80);
    let client = lab.dial();
    assert!(lab.run(1000, |lab| lab.client.get(client).may_send()));
    lab.client.get(client).send_slice(b"early").unwrap();
    let mut got = Vec::new();
    assert!(lab.run(1000, |lab| {
        lab.server.read(server, &mut got);
        got == b"early"
    }));
    let refused: u64 =
        lab.counters.services[0].dial_failures.iter().map(|f| f[DialFailure::Refused as usize].get()).sum();
    assert!(refused <= 1);
}

#[test]
fn a_client_whose_upstreams_are_all_down_gets_a_reset() {
    let mut lab = Lab::with(RAW, &["10.0.0.5:81", "10.0.0.5:82"]);
    let client = lab.dial();
    assert!(lab.run(1000, |lab| lab.ended(EndCause::DialFailed) == 1 && !lab.client.get(client).is_open()));
    lab.stack.publish(lab.now);
    assert_eq!(lab.counters.source_ports.get(), 0, "a refused port need not rest");
}

#[test]
fn a_silent_upstream_is_given_up_after_the_connect_timeout() {
    let mut lab = Lab::new("proxy_protocol = \"off\"\n[service.timeouts]\nconnect = \"2s\"");
    lab.server_answers = false;
    let client = lab.dial();
    let begun = lab.now;
    assert!(lab.run(5000, |lab| lab.ended(EndCause::DialFailed) == 1 && !lab.client.get(client).is_open()));
    let took = lab.now.since(begun);
    assert!((Duration::from_secs(2)..Duration::from_millis(2100)).contains(&took), "{took:?}");
    assert_eq!(lab.counters.services[0].dial_failures[0][DialFailure::Timeout as usize].get(), 1);
}

#[test]
fn an_upstream_without_route_or_neighbour_is_unreachable() {
    for routed in [false, true] {
        let mut lab = Lab::new(RAW);
        lab.below.routed = routed;
        lab.below.reach = Reach::Failed;
        lab.server_answers = false;
        let client = lab.dial();
        assert!(lab.run(1000, |lab| lab.ended(EndCause::DialFailed) == 1 && !lab.client.get(client).is_open()));
        assert_eq!(lab.counters.services[0].dial_failures[0][DialFailure::Unreachable as usize].get(), 1);
    }
}

#[test]
fn connect_on_data_dials_with_the_first_payload_and_not_before() {
    let mut lab = Lab::new("proxy_protocol = \"off\"\nconnect = \"on-data\"");
    let server = lab.server.listen(80);
    let client = lab.dial();
    lab.idle(500);
    assert!(lab.client.get(client).may_send());
    assert!(lab.server.get(server).is_listening());
    lab.client.get(client).send_slice(b"now").unwrap();
    let mut got = Vec::new();
    assert!(lab.run(1000, |lab| {
        lab.server.read(server, &mut got);
        got == b"now"
    }));
}

#[test]
fn a_client_that_never_speaks_is_cut() {
    let mut lab = Lab::new("proxy_protocol = \"off\"\n[service.timeouts]\nfirst_data = \"1s\"");
    let (client, server) = established(&mut lab);
    assert!(lab.run(1200, |lab| !lab.client.get(client).is_open() && !lab.server.get(server).is_open()));
    assert_eq!(lab.ended(EndCause::FirstData), 1);
}

#[test]
fn idle_sides_and_forgotten_half_closes_are_cut_in_their_time() {
    for (keys, close, cause) in [
        ("client_idle = \"2s\"", false, EndCause::ClientIdle),
        ("upstream_idle = \"2s\"", false, EndCause::UpstreamIdle),
        ("half_closed = \"2s\"", true, EndCause::HalfClosed),
    ] {
        let mut lab = Lab::new(&format!("proxy_protocol = \"off\"\n[service.timeouts]\n{keys}"));
        let (client, _) = established(&mut lab);
        if close {
            lab.client.get(client).close();
        }
        lab.idle(1900);
        assert_eq!(lab.ended(cause), 0, "{keys}");
        lab.idle(300);
        assert_eq!(lab.ended(cause), 1, "{keys}");
        assert_eq!(lab.stack.sessions(), 0);
    }
}

#[test]
fn a_peer_that_stops_acknowledging_is_gone_in_its_time() {
    let mut lab = Lab::new("proxy_protocol = \"off\"\n[service.timeouts]\nunacknowledged = \"3s\"");
    let (client, _) = established(&mut lab);
    lab.server_answers = false;
    lab.client.get(client).send_slice(b"into the void").unwrap();
    lab.idle(2800);
    assert_eq!(lab.ended(EndCause::UpstreamTimeout), 0);
    assert!(lab.run(400, |lab| lab.ended(EndCause::UpstreamTimeout) == 1));
}

#[test]
fn a_reader_that_stops_holds_the_writer_and_loses_nothing() {
    let mut lab = Lab::new(RAW);
    let (client, server) = established(&mut lab);
    let data = bytes(500_000);
    let mut sent = 0;
    lab.run(5000, |lab| {
        let socket = lab.client.get(client);
        if socket.can_send() && sent < data.len() {
            sent += socket.send_slice(&data[sent..]).unwrap();
        }
        false
    });
    assert!(sent < data.len(), "the writer is held: {sent}");
    let mut got = Vec::new();
    assert!(lab.run(60_000, |lab| {
        let socket = lab.client.get(client);
        if socket.can_send() && sent < data.len() {
            sent += socket.send_slice(&data[sent..]).unwrap();
        }
        lab.server.read(server, &mut got);
        got.len() == data.len()
    }));
    assert!(got == data);
}

#[test]
fn a_device_without_room_delays_payload_and_loses_none() {
    let mut lab = Lab::new(RAW);
    let (client, server) = established(&mut lab);
    lab.below.room = false;
    lab.client.get(client).send_slice(b"patience").unwrap();
    let mut got = Vec::new();
    lab.run(50, |lab| {
        lab.server.read(server, &mut got);
        false
    });
    assert!(got.is_empty());
    lab.below.room = true;
    assert!(lab.run(50, |lab| {
        lab.server.read(server, &mut got);
        got == b"patience"
    }));
}

#[test]
fn limits_refuse_with_a_reset_and_are_counted() {
    let mut lab = Lab::new("proxy_protocol = \"off\"\n[service.limits]\nconnections = 1");
    established(&mut lab);
    let second = lab.client.connect(("203.0.113.7", 40_001), ("198.51.100.10", 443));
    assert!(lab.run(1000, |lab| lab.counters.services[0].refused_limit.get() == 1));
    assert!(lab.run(1000, |lab| !lab.client.get(second).is_open()));
    assert_eq!(lab.stack.sessions(), 1);
}

#[test]
fn draining_lets_nobody_in_and_lets_the_rest_finish() {
    let mut lab = Lab::new(RAW);
    let (client, server) = established(&mut lab);
    lab.stack.drain();
    let late = lab.client.connect(("203.0.113.7", 40_001), ("198.51.100.10", 443));
    lab.client.get(client).send_slice(b"still").unwrap();
    let mut got = Vec::new();
    assert!(lab.run(1000, |lab| {
        lab.server.read(server, &mut got);
        got == b"still"
    }));
    assert!(!lab.client.get(late).may_send());
    lab.stack.reset_some(lab.now, &mut lab.below);
    lab.deliver();
    assert!(lab.run(1000, |lab| !lab.client.get(client).is_open() && !lab.server.get(server).is_open()));
    assert_eq!(lab.ended(EndCause::Shutdown), 1);
}

#[test]
fn ipv6_clients_reach_ipv4_upstreams() {
    let mut lab = Lab::new("proxy_protocol = \"v2\"");
    lab.client = Host::new("2001:db8:7::7/64");
    let server = lab.server.listen(80);
    let client = lab.client.connect(("2001:db8:7::7", 40_000), ("2001:db8::10", 443));
    assert!(lab.run(1000, |lab| lab.client.get(client).may_send()));
    lab.client.get(client).send_slice(b"six").unwrap();
    let mut got = Vec::new();
    assert!(lab.run(1000, |lab| {
        lab.server.read(server, &mut got);
        got.ends_with(b"six")
    }));
    assert_eq!(got[12..16], [0x21, 0x21, 0, 36]);
}

#[test]
fn a_reset_of_ours_is_sent_again_to_a_peer_that_only_waits() {
    for extra in [RAW, "mode = \"splice\"\npromise = { probe = \"0s\" }"] {
        let mut lab = Lab::new(extra);
        lab.client_answers = false;
        // Nobody listens upstream. The client waits for the server's first word, and every RST is lost but the last.
        let _ = Hand::shake(&mut lab);
        let mut resets = Vec::new();
        for _ in 0..9_000 {
            lab.turn();
            let now = lab.now.0;
            resets.extend(
                lab.client.wire.incoming.drain(..).filter(|p| read(p).0.flags.rst()).map(|p| (now, read(&p).0)),
            );
            lab.now.0 += 1_000;
        }
        assert_eq!(resets.len(), 3, "{extra}");
        let pauses: Vec<u64> = resets.windows(2).map(|pair| (pair[1].0 - pair[0].0) / 100_000).collect();
        assert_eq!(pauses, [10, 20]);
        assert!(resets.iter().all(|(_, reset)| reset.seq == resets[0].1.seq));
        // Then it is forgotten.
        lab.idle(4_000);
        lab.stack.publish(lab.now);
        assert_eq!(lab.counters.time_wait.get(), 0);
    }
}

#[test]
fn a_full_flow_table_refuses_with_a_reset_and_is_counted() {
    for mode in [RAW, "mode = \"splice\"\npromise = { probe = \"0s\" }"] {
        let mut lab = Lab::new(mode);
        lab.client_answers = false;
        lab.stack.flows = FlowTable::new(1, [0; 16]);
        let other = FlowKey { src: Addr::v4(1), dst: Addr::v4(2), src_port: 3, dst_port: 4 };
        lab.stack.flows.insert(lab.stack.hash(&other), &other, FlowRef::Probe(0).value()).unwrap();
        Hand::shake(&mut lab);
        assert_eq!((lab.stack.sessions(), &*lab.drops), (0, &[DropReason::ConnectionLimit][..]), "{mode}");
        assert_eq!(lab.counters.cookie_acks[AckResult::Limit as usize].get(), 1);
        assert_eq!(lab.counters.services[0].active.get(), 0);
        assert!(read(&lab.below.sent.pop_back().expect("a RST").1).0.flags.rst());
    }
}

#[test]
fn no_more_ended_connections_are_remembered_than_there_is_room_for() {
    let (mut lab, ..) = with_hand();
    let index = lab.stack.sessions.indices_from(0).next().expect("a session");
    let session = lab.stack.sessions.take(index).expect("a session");
    let mut lingers = Lingers::new();
    let mut keep = || lingers.keep(Lingers::entry(&session.client, Left::Closed, 7, Micros(0)));
    assert!((0..131_072).all(|_| keep().is_some()));
    assert_eq!(keep(), None);
}

#[test]
fn a_worker_keeps_16384_syn_acks_of_64_bytes() {
    assert_eq!((unanswered::RECORDS, size_of::<unanswered::Record>()), (16_384, 64));
}

#[test]
fn an_ended_connection_that_finds_no_room_in_the_queue_is_lost_to_the_log_and_counted() {
    let mut lab = Lab::new(RAW);
    exchange(&mut lab, b"up", b"down", 5_000);
    let record = lab.record();
    while lab.shared.records.push(record).is_ok() {}
    assert_eq!(lab.counters.records_lost.get(), 0);
    lab.server.listen(80);
    let client = lab.client.connect(("203.0.113.7", 40_001), ("198.51.100.10", 443));
    assert!(lab.run(1_000, |lab| lab.client.get(client).may_send()));
    lab.client.get(client).abort();
    assert!(lab.run(1_000, |lab| lab.ended(EndCause::ClientReset) == 1));
    assert_eq!(lab.counters.records_lost.get(), 1);
}

#[test]
fn without_a_source_port_the_next_address_and_the_next_upstream_serve_and_then_the_client_is_reset() {
    let two_addresses = format!("{RAW}\nsource = [\"10.0.0.3\", \"10.0.0.4\"]");
    for (extra, upstreams) in [(RAW, &["10.0.0.5:80", "10.0.0.5:81"][..]), (&two_addresses, &["10.0.0.5:80"])] {
        let mut lab = Lab::with(extra, upstreams);
        lab.below.only_ports = Some(5000..5001);
        for port in [80, 80, 81] {
            lab.server.listen(port);
        }
        for number in 0..2 {
            let client = lab.client.connect(("203.0.113.7", 40_000 + number), ("198.51.100.10", 443));
            assert!(lab.run(1_000, |lab| lab.client.get(client).may_send()));
            lab.idle(20);
            assert_eq!(lab.stack.sessions(), usize::from(number) + 1);
        }
        let client = lab.client.connect(("203.0.113.7", 40_002), ("198.51.100.10", 443));
        assert!(lab.run(1_000, |lab| lab.ended(EndCause::DialFailed) == 1 && !lab.client.get(client).is_open()));
        let failures = &lab.counters.services[0].dial_failures;
        assert!(failures.iter().all(|upstream| upstream[DialFailure::NoSourcePort as usize].get() == 1));
    }
}

#[test]
fn our_first_number_towards_an_upstream_is_a_clock_and_a_keyed_hash() {
    let mut lab = Lab::new(RAW);
    (lab.client_answers, lab.server_answers) = (false, false);
    Hand::shake(&mut lab);
    let mut sent = lab.below.sent.iter().map(|(_, packet)| read(packet).0);
    let syn = sent.rfind(|segment| segment.flags == Flags::SYN).expect("a dial");
    let FlowKey { src, dst, src_port, dst_port } = syn.key;
    let key = FlowKey { src: dst, dst: src, src_port: dst_port, dst_port: src_port };
    let at = |lab: &Lab, key: &FlowKey, us| lab.stack.initial_sequence_number(key, Micros(us));
    assert_eq!(syn.seq, at(&lab, &key, lab.now.0));
    let first = at(&lab, &key, 0);
    assert_eq!(at(&lab, &key, 4_000_000).minus(first), 1_000_000);
    assert_ne!(at(&lab, &FlowKey { dst_port: key.dst_port ^ 1, ..key }, 0), first);
    lab.stack.isn_key[0] ^= 1;
    assert_ne!(at(&lab, &key, 0), first);
}

#[test]
fn an_unreachable_about_a_terminated_connection_ends_nothing() {
    let (mut lab, hand, server) = with_hand();
    lab.server.get(server).send_slice(&[7; 900]).unwrap();
    lab.idle(5);
    let key = flow(HAND, SERVICE);
    let hash = lab.stack.hash(&key);
    // About what is on its way.
    let error = IcmpError { kind: IcmpKind::Unreachable(Unreachable::Host), key, seq: Seq(hand.ack), len: 940 };
    let heard = lab.stack.icmp_error(&error, hash, PortId(0), lab.now, &mut lab.below);
    assert_eq!((heard, lab.stack.sessions()), (Err(DropReason::BadIcmp), 1));
}

#[test]
fn a_terminated_dial_that_is_refused_shuns_its_upstream_for_five_seconds() {
    let mut lab = Lab::with(RAW, &["10.0.0.5:81", "10.0.0.5:80"]);
    let mut visits = 0;
    for (pause, count, refused) in [(0, 4, 1), (5_000, 4, 2)] {
        lab.idle(pause);
        for _ in 0..count {
            lab.server.listen(80);
            let client = lab.client.connect(("203.0.113.7", 40_000 + visits), ("198.51.100.10", 443));
            assert!(lab.run(1_000, |lab| lab.client.get(client).may_send()));
            lab.idle(20);
            visits += 1;
        }
        let failures = &lab.counters.services[0].dial_failures[0];
        assert_eq!(failures[DialFailure::Refused as usize].get(), refused);
    }
    assert_eq!(lab.stack.sessions(), 8);
}
