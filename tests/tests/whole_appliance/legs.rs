//! Both legs of spliced connections, recorded: what goes out on one is what came in on the other, and each end could believe
//! that it speaks with a TCP of the other's ability.

use std::net::Shutdown;
use std::thread;
use std::time::Duration;

use sluice_tests::appliance::{Service, Setup, Sluice};
use sluice_tests::capture::{Conversation, Legs, Taps};
use sluice_tests::lab::{Arms, Family, Lab};
use sluice_tests::peer::{DOWN, Ear, Ending, Pattern, Route, UP, accept_within, both_send, exchange, hear, send};
use sluice_tests::wire::Impairment;

use crate::basics::SOON;

const MIB: u64 = 1 << 20;
/// A PROXY v2 header about IPv4 addresses, and one about IPv6 addresses.
pub const V2_IPV4: usize = 28;
pub const V2_IPV6: usize = 52;

/// Octets in both directions at once over a wire that loses, repeats and reorders; both legs recorded and checked.
fn both_send_over_a_lossy_wire(service: Service, family: Family, header: usize) {
    let lab = Lab::new(Arms::Two, Some(Impairment { duplicate: 0.001, ..Impairment::LOSSY }));
    let sluice = Sluice::start(&lab, &Setup::of([service.splice_pinned()]));
    let taps = Taps::start(&lab, 7001, 7001);
    let octets = 16 * MIB;
    let seen = both_send(&Route::of(&lab, family, 7001).behind_header(header), octets);
    assert_eq!(seen.by_server, Pattern::heard(UP, octets, Ending::Eof));
    assert_eq!(seen.by_client, Pattern::heard(DOWN, octets, Ending::Eof));
    let record = sluice.record_of(seen.client.0, SOON);
    assert_eq!(
        (record.cause.as_str(), record.bytes_to_upstream, record.bytes_to_client),
        ("closed", octets + 1, octets)
    );
    let legs = taps.finish();
    let conversation = Conversation::of(&record, u32::try_from(header).expect("short"));
    sacks(&legs, &conversation);
    legs.expect_clean(&conversation);
}

/// SACK blocks went over both legs: the ends repaired the losses between themselves.
fn sacks(legs: &Legs, conversation: &Conversation) {
    let (client, server) = legs.sack_blocks(conversation);
    eprintln!("{} and {} frames, SACK blocks in {client} and {server}", legs.client.len(), legs.server.len());
    assert!(client > 10 && server > 10, "SACK blocks in {client} and {server} segments");
}

#[test]
fn nothing_is_wrong_on_either_leg_with_a_proxy_header_and_a_lossy_wire() {
    both_send_over_a_lossy_wire(Service::new("raw", 7001).proxy_protocol("v2"), Family::V4, V2_IPV4);
}

#[test]
fn nothing_is_wrong_on_either_leg_between_an_ipv6_client_and_an_ipv4_upstream() {
    both_send_over_a_lossy_wire(Service::new("raw", 7001).proxy_protocol("v2"), Family::V6, V2_IPV6);
}

#[test]
fn nothing_is_wrong_on_either_leg_when_the_server_speaks_first() {
    let lab = Lab::new(Arms::Two, Some(Impairment::LOSSY));
    let service = Service::new("raw", 7001).upstreams(&[Family::V6.server(7001)]);
    let sluice = Sluice::start(&lab, &Setup::of([service.splice_pinned()]));
    let taps = Taps::start(&lab, 7001, 7001);
    let octets = 4 * MIB;
    let route = Route { serve: Family::V6.server(7001), ..Route::v4(&lab, 7001) };
    let listener = route.listen();
    // The client says nothing: when its handshake's last ACK is lost, somebody has to say the SYN-ACK again.
    let client = route.dial();
    let server = accept_within(&listener, Duration::from_secs(60)).expect("the connection reaches the server");
    let serving = thread::spawn(move || {
        send(&server, DOWN, octets).expect("the client takes it");
        server.shutdown(Shutdown::Write).expect("the connection stands");
        hear(&server)
    });
    assert_eq!(hear(&client), Pattern::heard(DOWN, octets, Ending::Eof));
    send(&client, UP, octets).expect("the server takes it");
    client.shutdown(Shutdown::Write).expect("the connection stands");
    assert_eq!(serving.join().expect("the server's thread"), Pattern::heard(UP, octets, Ending::Eof));
    let record = sluice.record_of(client.local_addr().expect("an address"), SOON);
    let conversation = Conversation::of(&record, 0);
    let legs = taps.finish();
    sacks(&legs, &conversation);
    legs.expect_clean(&conversation);
}

/// Probes, as an operator has them, in place of pinned promises; and connections that follow each other.
#[test]
fn nothing_is_wrong_on_either_leg_of_short_connections_with_learned_promises() {
    let lab = Lab::two_arms();
    let route = Route::v4(&lab, 7001).behind_header(V2_IPV4);
    let listener = route.listen();
    let sluice = Sluice::start(&lab, &Setup::of([Service::new("raw", 7001).splice().proxy_protocol("v2")]));
    let taps = Taps::start(&lab, 7001, 7001);
    let mut clients = Vec::new();
    for _ in 0..20 {
        let (client, server, address) = route.connect(&listener);
        exchange(&client, &server);
        drop(client);
        assert_eq!(Ear::default().hear(&server, 1), Some(Ending::Eof));
        clients.push(address);
    }
    let records: Vec<_> = clients.into_iter().map(|client| sluice.record_of(client, SOON)).collect();
    let legs = taps.finish();
    for record in &records {
        legs.expect_clean(&Conversation::of(record, V2_IPV4 as u32));
    }
}
