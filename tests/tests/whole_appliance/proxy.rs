//! PROXY headers: the upstream learns the client's real address and port.

use sluice_tests::appliance::{Mode, Service, Setup, Sluice};
use sluice_tests::lab::{FAR_CLIENT4, Family, Lab};
use sluice_tests::servers::{Fetched, curl, haproxy, nginx, nginx_log, url};

use crate::basics::SOON;

both_modes![
    nginx_logs_the_clients_real_address_and_port,
    haproxy_knows_the_clients_real_address_and_port,
    the_header_comes_once_for_many_requests_and_when_dialled_on_data,
];

/// Services for v1 and v2 towards upstreams of both families on `port`: (port, service).
fn services(port: u16) -> Vec<(u16, Service)> {
    let mut services = Vec::new();
    for (index, version) in ["v1", "v2"].into_iter().enumerate() {
        for (offset, family) in Family::BOTH.into_iter().enumerate() {
            let listen = 8100 + u16::try_from(10 * index + offset).expect("small");
            let service = Service::new(&format!("{version}-{family:?}"), listen)
                .proxy_protocol(version)
                .upstreams(&[family.server(port)]);
            services.push((listen, service));
        }
    }
    services
}

fn who(fetched: &Fetched) -> String {
    assert_eq!(fetched.exit, 0, "{}", fetched.text());
    let local = fetched.local.expect("curl connected");
    format!("{} {}", local.ip(), local.port())
}

fn nginx_logs_the_clients_real_address_and_port(mode: Mode) {
    let lab = Lab::two_arms();
    let _nginx = nginx(&lab, 8080, 8081);
    let services = services(8080);
    let sluice = Sluice::start(&lab, &Setup::of(services.iter().map(|(_, service)| service.clone())).mode(mode));
    for (port, _) in &services {
        for v6 in [false, true] {
            let fetched = curl(&lab, &url(v6, *port, "/who"), &[]);
            let local = who(&fetched);
            assert_eq!(fetched.text(), format!("{local}\n"), "port {port}, v6 {v6}");
            assert!(nginx_log(&lab).contains(&format!("/who {local} ")), "{}", nginx_log(&lab));
            let record = sluice.record_of(fetched.local.expect("curl connected"), SOON);
            assert_eq!((record.cause.as_str(), record.blame.as_str()), ("closed", "nobody"));
            assert_eq!(record.listen.port(), *port);
            assert_eq!(record.upstream.expect("an upstream").port(), 8080);
        }
    }
    // A client two networks away is answered through the gateway it came from.
    let fetched = curl(&lab, &url(false, services[0].0, "/who"), &["--interface", &FAR_CLIENT4.to_string()]);
    assert_eq!(fetched.text(), format!("{}\n", who(&fetched)));
    assert_eq!(fetched.local.expect("curl connected").ip(), FAR_CLIENT4);
}

fn haproxy_knows_the_clients_real_address_and_port(mode: Mode) {
    let lab = Lab::two_arms();
    let haproxy = haproxy(&lab, 8090);
    let services = services(8090);
    let _sluice = Sluice::start(&lab, &Setup::of(services.iter().map(|(_, service)| service.clone())).mode(mode));
    for (port, _) in &services {
        for v6 in [false, true] {
            let fetched = curl(&lab, &url(v6, *port, "/"), &[]);
            let local = who(&fetched);
            assert_eq!(fetched.text(), format!("{local}\n"), "port {port}, v6 {v6}");
            assert!(haproxy.text().contains(&format!("request from {local}")), "{}", haproxy.text());
        }
    }
}

fn the_header_comes_once_for_many_requests_and_when_dialled_on_data(mode: Mode) {
    let lab = Lab::two_arms();
    let _nginx = nginx(&lab, 8080, 8081);
    let service = Service::new("on-data", 8100)
        .proxy_protocol("v2")
        .key("connect", "\"on-data\"")
        .upstreams(&[Family::V4.server(8080)]);
    let _sluice = Sluice::start(&lab, &Setup::of([service]).mode(mode));
    let address = url(false, 8100, "/who");
    // Two requests on one connection.
    let fetched = curl(&lab, &address, &[&address]);
    let local = who(&fetched);
    let first = local.split('\n').next().expect("a line");
    assert_eq!(fetched.text(), format!("{first}\n{first}\n"));
}
