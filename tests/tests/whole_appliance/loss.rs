//! A link that loses and reorders.

use std::sync::atomic::Ordering;
use std::time::Instant;

use sluice_tests::appliance::{Service, Setup, Sluice};
use sluice_tests::lab::{Arms, Lab};
use sluice_tests::peer::{DOWN, Ending, Pattern, Route, UP, client_closes_first};
use sluice_tests::wire::Impairment;

use crate::basics::SOON;

#[test]
fn a_hundred_mebibytes_each_way_survive_one_percent_loss_and_reordering() {
    let lab = Lab::new(Arms::Two, Some(Impairment { duplicate: 0.001, ..Impairment::LOSSY }));
    let sluice = Sluice::start(&lab, &Setup::of([Service::new("raw", 7001)]));
    let octets = 100 << 20;
    let began = Instant::now();
    let seen = client_closes_first(&Route::v4(&lab, 7001), octets);
    eprintln!("100 MiB up, then down, over the lossy wire: {:?}", began.elapsed());
    assert_eq!(seen.by_server, Pattern::heard(UP, octets, Ending::Eof));
    assert_eq!(seen.by_client, Pattern::heard(DOWN, octets, Ending::Eof));
    let record = sluice.record_of(seen.client.0, SOON);
    assert_eq!((record.cause.as_str(), record.bytes_to_client), ("closed", octets));
    let counts = lab.wire().expect("a wire").counts();
    let (received, lost) = (counts.received.load(Ordering::Relaxed), counts.lost.load(Ordering::Relaxed));
    assert!(lost * 200 > received && counts.held.load(Ordering::Relaxed) > 0, "{lost} of {received} lost");
}
