//! A link that loses and reorders.

use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use sluice_tests::appliance::{Mode, Service, Setup, Sluice};
use sluice_tests::lab::{Arms, Lab};
use sluice_tests::peer::{DOWN, Ending, Pattern, Route, Stalled, UP, client_stalls, server_stalls};
use sluice_tests::wire::Impairment;

use crate::basics::SOON;

both_modes![a_hundred_mebibytes_each_way_survive_one_percent_loss_and_reordering,];

fn a_hundred_mebibytes_each_way_survive_one_percent_loss_and_reordering(mode: Mode) {
    let lab = Lab::new(Arms::Two, Some(Impairment { duplicate: 0.001, ..Impairment::LOSSY }));
    let sluice = Sluice::start(&lab, &Setup::of([Service::new("up", 7001), Service::new("down", 7002)]).mode(mode));
    let octets = 100 << 20;
    let timed = |what: &str, transfer: &dyn Fn() -> Stalled| {
        let began = Instant::now();
        let seen = transfer();
        eprintln!("100 MiB {what} over the lossy wire: {:?}", began.elapsed());
        seen
    };
    // Readers that stop for no time at all: one direction each, both at once.
    let (up, down) = thread::scope(|scope| {
        let up = scope.spawn(|| timed("up", &|| server_stalls(&Route::v4(&lab, 7001), octets, Duration::ZERO)));
        let down = timed("down", &|| client_stalls(&Route::v4(&lab, 7002), octets, Duration::ZERO));
        (up.join().expect("the upload's thread"), down)
    });
    assert_eq!(up.heard, Pattern::heard(UP, octets, Ending::Eof));
    assert_eq!(down.heard, Pattern::heard(DOWN, octets, Ending::Eof));
    for (client, sent) in [(up.client.0, (octets + 1, 0)), (down.client.0, (1, octets))] {
        let record = sluice.record_of(client, SOON);
        assert_eq!((record.cause.as_str(), (record.bytes_to_upstream, record.bytes_to_client)), ("closed", sent));
    }
    let counts = lab.wire().expect("a wire").counts();
    let (received, lost) = (counts.received.load(Ordering::Relaxed), counts.lost.load(Ordering::Relaxed));
    assert!(lost * 200 > received && counts.held.load(Ordering::Relaxed) > 0, "{lost} of {received} lost");
}
