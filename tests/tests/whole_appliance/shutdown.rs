//! SIGTERM: what is under way may finish, nothing new begins, the rest is reset.

use std::io::{Read, Write};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use sluice_tests::appliance::{Mode, Service, Setup, Sluice};
use sluice_tests::lab::{Family, Lab};
use sluice_tests::peer::{Ear, Ending, Route, UP, ending, send};

use crate::basics::SOON;

both_modes![
    a_transfer_under_way_finishes_and_nothing_new_begins,
    what_does_not_finish_is_reset_when_the_drain_ends,
    a_second_signal_ends_the_drain_and_resets_what_is_open,
];

fn a_transfer_under_way_finishes_and_nothing_new_begins(mode: Mode) {
    let lab = Lab::two_arms();
    let mut sluice = Sluice::start(&lab, &Setup::of([Service::new("raw", 7001)]).mode(mode).drain("20s"));
    let route = Route::v4(&lab, 7001);
    let listener = route.listen();
    let (client, server, address) = route.connect(&listener);
    send(&client, UP, 100_000).expect("the connection stands");
    let mut ear = Ear::default();
    assert_eq!(ear.hear(&server, 100_000), None);

    sluice.process().signal(Signal::SIGTERM);
    thread::sleep(Duration::from_millis(500));
    assert!(sluice.process().ended().is_none(), "it waits for the transfer");
    let refused = lab.client.run(|| std::net::TcpStream::connect_timeout(&route.dial, Duration::from_millis(1500)));
    assert!(refused.is_err(), "no new connection while draining");

    let rest = thread::spawn(move || {
        let _ = send(&client, UP, 1_000_000);
        drop(client);
    });
    let heard = ear.finish(&server);
    rest.join().expect("the client's thread");
    assert_eq!((heard.octets, heard.ending), (1_100_000, Ending::Eof));
    drop(server);
    let began = Instant::now();
    let status = sluice.process().wait(Duration::from_secs(10));
    assert_eq!(status.code(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(5), "nothing is left to wait for");
    let record = sluice.record_of(address, SOON);
    assert_eq!((record.cause.as_str(), record.bytes_to_upstream), ("closed", 1_100_001));
}

fn what_does_not_finish_is_reset_when_the_drain_ends(mode: Mode) {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let lab = Lab::two_arms();
        let mut sluice = Sluice::start(&lab, &Setup::of([Service::new("raw", 7001)]).mode(mode).drain("2s"));
        let route = Route::of(&lab, Family::V6, 7001);
        let listener = route.listen();
        let (mut client, mut server, address) = route.connect(&listener);
        let began = Instant::now();
        sluice.process().signal(signal);
        thread::sleep(Duration::from_millis(1000));
        // Still alive in both directions.
        client.write_all(b"up").expect("draining keeps what stands");
        server.read_exact(&mut [0; 2]).expect("draining keeps what stands");
        assert_eq!((ending(&client), ending(&server)), (Ending::Reset, Ending::Reset));
        let drained = began.elapsed();
        assert!((Duration::from_millis(1900)..Duration::from_secs(5)).contains(&drained), "{drained:?}");
        assert_eq!(sluice.process().wait(SOON).code(), Some(0));
        let record = sluice.record_of(address, SOON);
        assert_eq!((record.cause.as_str(), record.blame.as_str()), ("shutdown", "operator"));
    }
}

fn a_second_signal_ends_the_drain_and_resets_what_is_open(mode: Mode) {
    let lab = Lab::two_arms();
    // Nobody waits that long here.
    let mut sluice = Sluice::start(&lab, &Setup::of([Service::new("raw", 7001)]).mode(mode).drain("3600s"));
    let route = Route::v4(&lab, 7001);
    let listener = route.listen();
    let (client, server, address) = route.connect(&listener);
    sluice.process().signal(Signal::SIGTERM);
    sluice.logged(&["draining"], SOON);
    sluice.process().signal(Signal::SIGTERM);
    assert_eq!((ending(&client), ending(&server)), (Ending::Reset, Ending::Reset));
    assert_eq!(sluice.process().wait(SOON).code(), Some(0));
    let record = sluice.record_of(address, SOON);
    assert_eq!((record.cause.as_str(), record.blame.as_str()), ("shutdown", "operator"));
}

#[test]
fn signals_that_mean_nothing_harm_nobody() {
    let lab = Lab::two_arms();
    let mut sluice = Sluice::start(&lab, &Setup::of([Service::new("raw", 7001)]));
    let route = Route::v4(&lab, 7001);
    let listener = route.listen();
    let (client, server, _) = route.connect(&listener);
    for signal in [Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGALRM, Signal::SIGHUP] {
        sluice.process().signal(signal);
    }
    // It is taken in its turn: what was sent before has been taken too.
    sluice.logged(&["SIGHUP"], SOON);
    send(&client, UP, 100_000).expect("the connection stands");
    assert_eq!(Ear::default().hear(&server, 100_000), None);
    assert!(sluice.process().ended().is_none());
}

#[test]
fn an_idle_appliance_ends_at_once() {
    let lab = Lab::two_arms();
    let mut sluice = Sluice::start(&lab, &Setup::of([Service::new("raw", 7001)]).drain("60s"));
    let began = Instant::now();
    assert_eq!(sluice.terminate(Duration::from_secs(10)).code(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
}
