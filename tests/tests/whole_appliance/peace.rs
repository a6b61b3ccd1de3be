//! What the appliance does only while little comes: SYN-ACKs again, RSTs to strangers.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use sluice_tests::appliance::{Service, Setup, Sluice};
use sluice_tests::frames::flags;
use sluice_tests::lab::{Family, Lab};
use sluice_tests::peer::Route;
use sluice_tests::rawtcp::MAC;
use sluice_tests::station::{Arrived, Say, Station};

use crate::basics::SOON;

/// Connections from as many ports: with two workers, the one that answers a SYN seldom owns all of them.
const PORTS: u16 = 6;
const ISN: u32 = 4_000_000_000;

#[test]
fn a_syn_ack_is_sent_again_until_the_ack_comes_with_one_worker() {
    a_syn_ack_is_sent_again_until_the_ack_comes(1);
}

#[test]
fn a_syn_ack_is_sent_again_until_the_ack_comes_with_two_workers() {
    a_syn_ack_is_sent_again_until_the_ack_comes(2);
}

fn a_syn_ack_is_sent_again_until_the_ack_comes(workers: u8) {
    let lab = Lab::two_arms();
    let sluice = Sluice::start(&lab, &Setup::of([Service::new("raw", 7001)]).workers(workers));
    let _listener = Route::v4(&lab, 7001).listen();
    let mut stations: Vec<Station> = Family::BOTH
        .into_iter()
        .flat_map(|family| (0..PORTS).map(move |n| (family, 34_000 + n)))
        .map(|(family, port)| {
            let me = SocketAddr::new(family.raw_client(), port);
            Station::towards(&lab.client, "c0", MAC, me, family.service(7001)).expect("ARP and NDP are answered")
        })
        .collect();
    let connections = stations.len() as u64;
    for station in &mut stations {
        station.say(&Say { flags: flags::SYN, seq: ISN, window: 60_000, ..Say::default() });
        let first = station.next(SOON).expect("an answer");
        assert!(first.syn && first.acks && first.ack == ISN.wrapping_add(1), "{first:?}");
        let asked = Instant::now();
        let again = station.next(SOON).expect("the same again");
        assert_eq!(again, first);
        assert!(asked.elapsed() > Duration::from_millis(800), "not at once");
        station.say(&Say { flags: flags::ACK, seq: first.ack, ack: first.seq.wrapping_add(1), ..Say::default() });
    }
    sluice.metrics_when("all connections open", SOON, |metrics| {
        metrics.sum("sluice_sessions_opened_total", &[]) == connections
            && metrics.sum("sluice_unanswered_syns", &[]) == 0
    });
    let metrics = sluice.metrics();
    assert_eq!(metrics.sum("sluice_syn_acks_repeated_total", &[]), connections, "{metrics}");
    assert!(stations.iter_mut().all(|station| !matches!(hear(station), Some(Arrived { syn: true, .. }))));
}

fn hear(station: &mut Station) -> Option<Arrived> {
    station.next(Duration::from_millis(200))
}

#[test]
fn a_stranger_is_reset_two_epochs_after_the_start_and_not_while_its_syn_may_be_acknowledged() {
    let lab = Lab::two_arms();
    let epochs = "[cookies]\nepoch = \"4s\"";
    let sluice = Sluice::start(&lab, &Setup::of([Service::new("raw", 7001)]).workers(2).tables(epochs));
    let station = |port| {
        let me = SocketAddr::new(Family::V4.raw_client(), port);
        Station::towards(&lab.client, "c0", MAC, me, Family::V4.service(7001)).expect("ARP is answered")
    };
    let data = Say { flags: flags::ACK | flags::PSH, seq: 7, ack: 77, window: 9, payload: b"?", ..Say::default() };
    for port in 35_000..35_000 + PORTS {
        let mut stranger = station(port);
        let deadline = Instant::now() + Duration::from_secs(20);
        let reset = loop {
            assert!(Instant::now() < deadline, "no RST: {}", sluice.metrics());
            stranger.say(&data);
            if let Some(reset) = hear(&mut stranger) {
                break reset;
            }
        };
        assert!(reset.rst && reset.seq == 77, "{reset:?}");
    }
    for port in 36_000..36_000 + PORTS {
        let mut client = station(port);
        client.say(&Say { flags: flags::SYN, seq: ISN, window: 60_000, ..Say::default() });
        client.next(SOON).expect("an answer");
        // Its second segment of data comes first.
        client.say(&Say { seq: ISN + 100, ..data.clone() });
        let heard = hear(&mut client);
        assert!(!heard.as_ref().is_some_and(|heard| heard.rst), "{heard:?}");
    }
    let metrics = sluice.metrics();
    let withheld = |reason| metrics.sum("sluice_flowless_resets_withheld_total", &[("reason", reason)]);
    assert_eq!(withheld("answered"), u64::from(PORTS), "{metrics}");
    assert!(metrics.sum("sluice_flowless_resets_total", &[]) >= u64::from(PORTS), "{metrics}");
}
