//! Spliced sessions between well-behaved hosts, and with hosts made by hand.

use sluice_filters::Flags;

use super::super::*;
use super::lab::*;
use crate::counters::DialFailure;
use crate::net::Reach;
use crate::record::EndCause;

/// The hosts' sockets serve one connection each, so a probe would stand in its way.
const SPLICE: &str = "mode = \"splice\"\npromise = { probe = \"0s\" }";
const SPLICE_V1: &str = "mode = \"splice\"\npromise = { probe = \"0s\" }\nproxy_protocol = \"v1\"";
const HEADER: &[u8] = b"PROXY TCP4 203.0.113.7 198.51.100.10 40000 443\r\n";

#[test]
fn payload_and_close_travel_both_ways() {
    for extra in [SPLICE, SPLICE_V1] {
        let mut lab = Lab::new(extra);
        let (up, down) = (bytes(300_000), bytes(200_000));
        let up_expected = if extra == SPLICE { up.clone() } else { [HEADER, &up].concat() };
        exchange_as(&mut lab, &up, &up_expected, &down, 20_000);
        let record = lab.record();
        assert_eq!((record.bytes_to_upstream, record.bytes_to_client), (300_000, 200_000));
        assert_eq!(record.client.to_string(), "203.0.113.7:40000");
        assert_eq!(record.target.unwrap().to_string(), "10.0.0.5:80");
        assert!(record.connected.is_some());
        assert_eq!(lab.counters.buffer_bytes.get(), 0, "no socket of ours");
    }
}

#[test]
fn payload_survives_a_wire_that_loses_one_in_thirty() {
    let mut lab = Lab::new(SPLICE_V1);
    lab.loss = 33;
    let (up, down) = (bytes(100_000), bytes(100_000));
    let expected = [HEADER, &up].concat();
    exchange_as(&mut lab, &up, &expected, &down, 600_000);
}

#[test]
fn everything_an_ended_session_held_is_given_back() {
    let mut lab = Lab::new(SPLICE);
    exchange(&mut lab, b"up", b"down", 5_000);
    lab.stack.publish(lab.now);
    assert_eq!(lab.counters.services[0].active.get(), 0);
    lab.idle(11_000);
    lab.stack.publish(lab.now);
    assert_eq!((lab.counters.flow_entries.get(), lab.counters.time_wait.get()), (0, 0));
    assert_eq!((lab.counters.timers.get(), lab.counters.held_bytes.get()), (0, 0));
}

#[test]
fn a_probe_teaches_what_syn_acks_may_promise() {
    let mut lab = Lab::new("mode = \"splice\"");
    lab.server.listen(80);
    lab.idle(20);
    lab.stack.publish(lab.now);
    let offers = &lab.counters.services[0].offers;
    // smoltcp's server: no timestamps, MSS of its MTU.
    assert_eq!((offers.mss.get(), offers.sack.get(), offers.timestamps.get()), (1_460, 1, 0));
    assert_eq!(offers.window_scale.get(), 1, "a scale of 0 is one");
}

#[test]
fn a_client_whose_upstreams_are_all_down_gets_a_reset() {
    let mut lab = Lab::new(SPLICE);
    let client = lab.dial();
    assert!(lab.run(3_000, |lab| lab.ended(EndCause::DialFailed) == 1));
    lab.idle(5);
    assert!(!lab.client.get(client).is_open());
    assert_eq!(lab.counters.services[0].dial_failures[0][DialFailure::Refused as usize].get(), 1);
    assert_eq!(lab.stack.sessions(), 0);
}

#[test]
fn a_silent_upstream_is_a_timeout_and_the_next_one_is_dialled() {
    let mut lab =
        Lab::with(&format!("{SPLICE}\n[service.timeouts]\nconnect = \"1s\""), &["10.0.0.9:80", "10.0.0.5:80"]);
    lab.server.interface.set_any_ip(false);
    let server = lab.server.listen(80);
    let client = lab.dial();
    assert!(lab.run(5_000, |lab| lab.server.get(server).may_send() && lab.client.get(client).may_send()));
    lab.client.get(client).send_slice(b"hello").unwrap();
    let mut got = Vec::new();
    assert!(lab.run(2_000, |lab| {
        lab.server.read(server, &mut got);
        got == b"hello"
    }));
}

#[test]
fn an_unreachable_next_hop_fails_the_dial() {
    let mut lab = Lab::new(SPLICE);
    lab.below.reach = Reach::Failed;
    lab.server_answers = false;
    lab.dial();
    assert!(lab.run(1_000, |lab| lab.ended(EndCause::DialFailed) == 1));
    assert_eq!(lab.counters.services[0].dial_failures[0][DialFailure::Unreachable as usize].get(), 1);
}

#[test]
fn on_data_dials_only_when_the_client_has_spoken() {
    let mut lab = Lab::new(&format!("{SPLICE_V1}\nconnect = \"on-data\""));
    let server = lab.server.listen(80);
    let client = lab.dial();
    lab.idle(200);
    assert!(lab.client.get(client).may_send());
    assert!(!lab.server.get(server).may_send());
    lab.client.get(client).send_slice(b"hello").unwrap();
    let mut got = Vec::new();
    assert!(lab.run(1_000, |lab| {
        lab.server.read(server, &mut got);
        got.ends_with(b"hello")
    }));
    assert_eq!(got, [HEADER, b"hello"].concat());
}

#[test]
fn resets_travel_and_end_the_session() {
    for from_client in [true, false] {
        let mut lab = Lab::new(SPLICE);
        let (client, server) = established(&mut lab);
        lab.idle(5);
        if from_client {
            lab.client.get(client).abort();
        } else {
            lab.server.get(server).abort();
        }
        let cause = if from_client { EndCause::ClientReset } else { EndCause::UpstreamReset };
        assert!(lab.run(1_000, |lab| lab.ended(cause) == 1));
        lab.idle(5);
        assert!(!lab.client.get(client).is_open() && !lab.server.get(server).is_open());
        assert_eq!(lab.counters.resets_sent.get(), 0, "it was passed on");
    }
}

#[test]
fn an_idle_session_is_reset_at_both_ends() {
    let mut lab = Lab::new(&format!("{SPLICE}\n[service.timeouts]\nclient_idle = \"2s\""));
    let (client, server) = established(&mut lab);
    assert!(lab.run(5_000, |lab| lab.ended(EndCause::ClientIdle) == 1));
    lab.idle(5);
    assert!(!lab.client.get(client).is_open() && !lab.server.get(server).is_open());
    assert!(lab.now.0 < 1_000_000 + 2_200_000, "at {:?}", lab.now);
}

#[test]
fn a_half_closed_session_is_cut_when_nothing_moves() {
    let mut lab = Lab::new(&format!("{SPLICE}\n[service.timeouts]\nhalf_closed = \"2s\""));
    let (client, server) = established(&mut lab);
    lab.client.get(client).close();
    // As long as something moves it lives.
    for _ in 0..4 {
        lab.idle(1_000);
        lab.server.get(server).send_slice(b"still here").unwrap();
    }
    assert_eq!(lab.ended(EndCause::HalfClosed), 0);
    assert!(lab.run(5_000, |lab| lab.ended(EndCause::HalfClosed) == 1));
    lab.idle(5);
    assert!(!lab.server.get(server).is_open());
}

#[test]
fn a_client_that_never_speaks_is_cut() {
    let mut lab = Lab::new(&format!("{SPLICE}\n[service.timeouts]\nfirst_data = \"1s\"\nunacknowledged = \"1s\""));
    let (client, _) = established(&mut lab);
    assert!(lab.run(3_000, |lab| lab.ended(EndCause::FirstData) == 1));
    lab.idle(5);
    assert!(!lab.client.get(client).is_open());
}

#[test]
fn an_upstream_that_stops_acknowledging_is_given_up() {
    let mut lab = Lab::new(&format!("{SPLICE}\n[service.timeouts]\nunacknowledged = \"2s\""));
    let (client, _) = established(&mut lab);
    lab.server_answers = false;
    lab.client.get(client).send_slice(b"hello").unwrap();
    assert!(lab.run(5_000, |lab| lab.ended(EndCause::UpstreamTimeout) == 1));
}

#[test]
fn the_dials_first_number_is_the_clients_less_the_headers_length() {
    let mut lab = Lab::new(SPLICE_V1);
    lab.client_answers = false;
    lab.server_answers = false;
    let hand = Hand::shake(&mut lab);
    let sent: Vec<_> = std::mem::take(&mut lab.below.sent).into();
    let (way, syn) = sent.last().expect("a SYN");
    assert!(matches!(way, Way::Neighbor { .. }));
    let (segment, options) = read(syn);
    assert_eq!(segment.flags, Flags::SYN);
    let header = b"PROXY TCP4 203.0.113.99 198.51.100.10 5000 443\r\n".len() as u32;
    assert_eq!(segment.seq.0, hand.next.wrapping_sub(1).wrapping_sub(header));
    assert_eq!(options.mss, Some(536), "rounded down by the cookie");
    assert_eq!((options.wscale, options.sack_permitted, options.timestamp), (None, false, None));
}
