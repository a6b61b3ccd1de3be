//! Neighbours, echo and moved MAC addresses.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use sluice_tests::appliance::{Mode, Service, Setup, Sluice};
use sluice_tests::crowd::Echo;
use sluice_tests::echo::answers;
use sluice_tests::lab::{Family, LAN4, LAN6, Lab, SERVICE4, SERVICE6, WAN4, WAN6};
use sluice_tests::link::Link;
use sluice_tests::peer::{Route, exchange};
use sluice_tests::rawtcp::{MAC, RawTcp, Shape};

both_modes![
    established_connections_survive_neighbours_whose_mac_moves,
    a_tagged_port_speaks_in_its_vlan_and_hears_nothing_else,
];

const PACE: Duration = Duration::from_millis(10);

#[test]
fn port_and_service_addresses_answer_echo_up_to_the_rate() {
    let lab = Lab::two_arms();
    let sluice = Sluice::start(&lab, &Setup::of([Service::new("raw", 7001)]).filters("icmp_rate = 200"));
    for address in [WAN4.into(), SERVICE4.into(), WAN6.into(), SERVICE6.into()] {
        assert_eq!(answers(&lab.client, address, 3, PACE), 3, "{address}\n{}", sluice.metrics());
    }
    for address in [LAN4.into(), LAN6.into()] {
        assert_eq!(answers(&lab.server, address, 3, PACE), 3, "{address}\n{}", sluice.metrics());
    }
    assert_eq!(answers(&lab.client, [198, 51, 100, 11].into(), 1, PACE), 0, "nobody has that address");
    let answered = answers(&lab.client, SERVICE4.into(), 500, Duration::from_millis(1));
    assert!(answered < 300, "{answered} of 500 in about half a second at 200 a second");
    assert!(sluice.metrics().sum("sluice_dropped_packets_total", &[("reason", "icmp_rate")]) > 0);
}

fn established_connections_survive_neighbours_whose_mac_moves(mode: Mode) {
    let lab = Lab::two_arms();
    let _sluice = Sluice::start(&lab, &Setup::of([Service::new("raw", 7001)]).mode(mode));
    for family in Family::BOTH {
        let route = Route::of(&lab, family, 7001);
        let listener = route.listen();
        let (client, server, _) = route.connect(&listener);
        exchange(&client, &server);
        // The kernels announce their new addresses, as a host that takes over from another does.
        for (ns, interface, mac) in [(&lab.server, "s0", "02:00:00:00:05:0"), (&lab.client, "c0", "02:00:00:00:01:0")] {
            let digit = if family == Family::V4 { '1' } else { '2' };
            ns.sh(&format!(
                "sysctl -qw net.ipv4.conf.{interface}.arp_notify=1 net.ipv6.conf.{interface}.ndisc_notify=1\n\
                 ip link set {interface} address {mac}{digit}"
            ));
        }
        exchange(&client, &server);
        let (new_client, new_server, _) = route.connect(&listener);
        exchange(&new_client, &new_server);
    }
}

/// The MAC address that answers ARP for `address` on a link, if one does within a second.
fn arp(link: &mut Link, me: Ipv4Addr, address: Ipv4Addr) -> Option<[u8; 6]> {
    let request = [
        &[0xff; 6][..],
        &MAC,
        &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1],
        &MAC,
        &me.octets(),
        &[0; 6],
        &address.octets(),
        &[0; 18],
    ];
    assert!(link.send(&request.concat()));
    let until = Instant::now() + Duration::from_secs(1);
    while let Some(left) = until.checked_duration_since(Instant::now()) {
        let Some(frame) = link.receive(left) else { continue };
        if frame.get(12..22) == Some(&[8, 6, 0, 1, 8, 0, 6, 4, 0, 2]) && frame.get(28..32) == Some(&address.octets()) {
            return frame.get(22..28)?.try_into().ok();
        }
    }
    None
}

fn a_tagged_port_speaks_in_its_vlan_and_hears_nothing_else(mode: Mode) {
    let lab = Lab::two_arms();
    let _echo = Echo::start(&lab.server, Family::V4.server(7));
    let sluice = Sluice::start(&lab, &Setup::of([Service::new("echo", 7)]).mode(mode).wan_vlan(7));
    let me = |family: Family| SocketAddr::new(family.raw_client(), 40_007);
    let IpAddr::V4(my_address) = Family::V4.raw_client() else { unreachable!("it is IPv4's") };
    let open = || Link::open(&lab.client, "c0");
    for mut stranger in [open(), open().tagged(8)] {
        assert_eq!(arp(&mut stranger, my_address, SERVICE4), None);
    }
    let mac = arp(&mut open().tagged(7), my_address, SERVICE4).expect("an answer in VLAN 7");
    for family in Family::BOTH {
        let peer = family.service(7);
        let mut client = RawTcp::over(open().tagged(7), mac, me(family), peer, Shape::usual()).expect("a connection");
        assert_eq!(client.ask(b"tagged", 6).expect("an echo"), b"tagged");
        client.close().expect("an orderly end");
    }
    assert!(sluice.metrics().sum("sluice_dropped_packets_total", &[("reason", "wrong_vlan")]) >= 2);
}
