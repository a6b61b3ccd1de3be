//! Neighbours, echo and moved MAC addresses.

use std::time::Duration;

use sluice_tests::appliance::{Service, Setup, Sluice};
use sluice_tests::echo::answers;
use sluice_tests::lab::{Family, LAN4, LAN6, Lab, SERVICE4, SERVICE6, WAN4, WAN6};
use sluice_tests::peer::{Route, exchange};

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

#[test]
fn established_connections_survive_neighbours_whose_mac_moves() {
    let lab = Lab::two_arms();
    let _sluice = Sluice::start(&lab, &Setup::of([Service::new("raw", 7001)]));
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
