//! PROXY headers that say more than addresses, and those that come to the appliance.

use std::fs;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use sluice_tests::appliance::{Mode, Service, Setup, Sluice, binary};
use sluice_tests::lab::{CLIENT4, FAR_CLIENT4, Family, Lab, SERVICE4};
use sluice_tests::peer::accept_with_header;
use sluice_tests::process::Process;
use sluice_tests::servers::{curl, haproxy_with, nginx, url};

use crate::basics::SOON;

both_modes![real_servers_accept_headers_that_carry_everything, headers_are_authentic_and_keys_rotate_without_a_restart,];

const EVERYTHING: &str =
    "{ unique_id = true, crc32c = true, authority = \"mt5.example.com\", evidence = true, authenticate = true }";
const FIRST_KEY: &str = "7 00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff\n";
const SECOND_KEY: &str = "8 ffeeddccbbaa99887766554433221100ffeeddccbbaa99887766554433221101\n";

/// The lab's file of keys.
fn keys(lab: &Lab, text: &str) -> String {
    let path = lab.write("proxy.keys", text);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("a mode for the keys");
    path
}

fn setup(lab: &Lab, services: Vec<Service>, mode: Mode) -> Setup {
    let path = keys(lab, FIRST_KEY);
    Setup::of(services).mode(mode).tables(&format!("[proxy_keys]\nfile = \"{path}\""))
}

fn service(name: &str, port: u16, upstream: SocketAddr) -> Service {
    Service::new(name, port).proxy_protocol("v2").key("proxy_header", EVERYTHING).upstreams(&[upstream])
}

fn real_servers_accept_headers_that_carry_everything(mode: Mode) {
    let lab = Lab::two_arms();
    let _nginx = nginx(&lab, 8080, 8081);
    let _haproxy = haproxy_with(&lab, 8090, "%[src] %[src_port] %[fc_pp_authority] %[fc_pp_unique_id,length]");
    let services = vec![
        service("nginx", 8100, Family::V4.server(8080)),
        service("haproxy", 8101, Family::V4.server(8090)),
        service("haproxy6", 8102, Family::V6.server(8090)),
    ];
    let _sluice = Sluice::start(&lab, &setup(&lab, services, mode));
    for v6 in [false, true] {
        let fetched = curl(&lab, &url(v6, 8100, "/who"), &[]);
        let local = fetched.local.expect("curl connected");
        assert_eq!(fetched.text(), format!("{} {}\n", local.ip(), local.port()));
        for port in [8101, 8102] {
            let fetched = curl(&lab, &url(v6, port, "/"), &[]);
            let local = fetched.local.expect("curl connected");
            assert_eq!(fetched.text(), format!("{} {} mt5.example.com 16\n", local.ip(), local.port()));
        }
    }
}

fn headers_are_authentic_and_keys_rotate_without_a_restart(mode: Mode) {
    let lab = Lab::two_arms();
    let listener = lab.server.listen(Family::V4.server(7100));
    let _sluice = Sluice::start(&lab, &setup(&lab, vec![service("raw", 7100, Family::V4.server(7100))], mode));
    // What the server reads first of a new connection, and what the verifier says of it under `file`.
    let verified = |file: &str| -> (bool, String) {
        let mut client = lab.client.connect((SERVICE4, 7100).into()).expect("a connection");
        client.write_all(b"!").expect("an octet sent");
        let (mut server, octets) = accept_with_header(&listener);
        let mut said = [0];
        server.read_exact(&mut said).expect("what the client said");
        assert_eq!(&said, b"!");
        fs::write(lab.path("header"), &octets).expect("the header kept");
        let output = lab.server.output(&binary(), &["proxy-header", "verify", "--keys", file, &lab.path("header")]);
        let text = [output.stdout, output.stderr].concat();
        let client = client.local_addr().expect("an address").to_string();
        let text = String::from_utf8(text).expect("text");
        assert!(!output.status.success() || text.contains(&client), "{client} is in:\n{text}");
        (output.status.success(), text)
    };
    let path = lab.path("proxy.keys");
    let (authentic, text) = verified(&path);
    assert!(authentic, "{text}");
    assert!(text.contains("mt5.example.com"), "{text}");

    // Another key signs from now on; the first one still verifies, if the file says so.
    let only_new = lab.write("only-new.keys", SECOND_KEY);
    fs::set_permissions(&only_new, fs::Permissions::from_mode(0o600)).expect("a mode for the keys");
    assert!(!verified(&only_new).0, "signed by a key that this file does not have");
    keys(&lab, &format!("{SECOND_KEY}{FIRST_KEY}"));
    let deadline = Instant::now() + SOON;
    while !verified(&only_new).0 {
        assert!(Instant::now() < deadline, "the new key does not sign");
        std::thread::sleep(Duration::from_millis(200));
    }
    // A broken file leaves the keys in force.
    keys(&lab, "nonsense\n");
    std::thread::sleep(Duration::from_millis(1_500));
    assert!(verified(&only_new).0);
}

/// haproxy in front of sluice, on the client's machine: it sends `send` to sluice's service.
fn balancer(lab: &Lab, port: u16, service: u16, send: &str) -> Process {
    let config = lab.write(
        "balancer.cfg",
        &format!(
            "defaults\n  mode tcp\n  timeout client 30s\n  timeout server 30s\n  timeout connect 5s\n\
             listen l\n  bind 127.0.0.1:{port}\n  server s {SERVICE4}:{service} {send} source {CLIENT4}\n",
        ),
    );
    let mut process = Process::start(&lab.client, "haproxy", &["-db", "-f", &config]);
    let deadline = Instant::now() + SOON;
    while lab.client.sh(&format!("ss -Htln 'sport = :{port}'")).trim().is_empty() {
        assert!(process.ended().is_none() && Instant::now() < deadline, "{}", process.text());
        std::thread::sleep(Duration::from_millis(20));
    }
    process
}

#[test]
fn a_trusted_balancers_clients_are_named_and_others_cannot_name_themselves() {
    let lab = Lab::two_arms();
    let _nginx = nginx(&lab, 8080, 8081);
    let service = Service::new("web", 8100)
        .proxy_protocol("v2")
        .key("accept_proxy", &format!("[\"{CLIENT4}/32\"]"))
        .upstreams(&[Family::V4.server(8080)]);
    let sluice = Sluice::start(&lab, &Setup::of([service]));
    for send in ["send-proxy", "send-proxy-v2"] {
        let _balancer = balancer(&lab, 9000, 8100, send);
        let fetched = curl(&lab, "http://127.0.0.1:9000/who", &[]);
        let local = fetched.local.expect("curl connected");
        assert_eq!(fetched.text(), format!("{} {}\n", local.ip(), local.port()), "{send}");
        let record = sluice.record_of(local, SOON);
        assert_eq!(record.via.expect("a balancer").ip(), CLIENT4);
    }
    // The balancer without a header is refused; so is anybody else with one. Anybody else without is a client.
    let refused = |fetched: sluice_tests::servers::Fetched| assert_eq!(fetched.exit, 56, "{}", fetched.text());
    refused(curl(&lab, &url(false, 8100, "/who"), &[]));
    let far = FAR_CLIENT4.to_string();
    let from_afar = ["--interface", &far];
    refused(curl(&lab, &url(false, 8100, "/who"), &[&from_afar[..], &["--haproxy-protocol"]].concat()));
    let fetched = curl(&lab, &url(false, 8100, "/who"), &from_afar);
    let local = fetched.local.expect("curl connected");
    assert_eq!(fetched.text(), format!("{far} {}\n", local.port()));
    let metrics = sluice.metrics();
    let causes = [("service", "web"), ("cause", "proxy_header")];
    assert_eq!(metrics.sum("sluice_sessions_ended_total", &causes), 2);
}
