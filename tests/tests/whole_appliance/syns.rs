//! SYNs of every shape get a working connection.

use std::thread;

use sluice_tests::appliance::{Mode, Service, Setup, Sluice};
use sluice_tests::frames::flags;
use sluice_tests::lab::{CLIENT4, Family, Lab};
use sluice_tests::peer::{DOWN, Ear, Ending, Pattern, Route, UP, client_closes_first, send, sha256};
use sluice_tests::rawtcp::{RawTcp, Shape};

use crate::basics::SOON;

both_modes![unusual_syns_get_a_working_connection, kernels_without_timestamps_scaling_or_sack_transfer_intact,];

/// More than one window of every shape below.
const ANSWER: usize = 120_000;

fn shapes() -> Vec<(&'static str, Shape)> {
    vec![
        ("no options at all", Shape::plain()),
        ("as Linux", Shape::usual()),
        ("as Windows: no timestamps", Shape { timestamps: false, wscale: Some(8), ..Shape::usual() }),
        ("window scale 14", Shape { wscale: Some(14), window: 4, ..Shape::usual() }),
        ("window scale 0", Shape { wscale: Some(0), window: 30_000, ..Shape::usual() }),
        ("MSS 1", Shape { mss: Some(1), ..Shape::plain() }),
        ("MSS 47 with timestamps", Shape { mss: Some(47), ..Shape::usual() }),
        ("MSS 48", Shape { mss: Some(48), ..Shape::plain() }),
        ("MSS 48 with timestamps", Shape { mss: Some(48), ..Shape::usual() }),
        ("MSS 8960", Shape { mss: Some(8960), ..Shape::usual() }),
        ("MSS 65535", Shape { mss: Some(65_535), ..Shape::plain() }),
        ("data on the SYN", Shape { payload: b"early".to_vec(), ..Shape::usual() }),
        ("ECN", Shape { flags: flags::ECE | flags::CWR, ..Shape::usual() }),
        (
            "unknown options",
            Shape { extra: vec![253, 4, 1, 2, 30, 12, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0], ..Shape::usual() },
        ),
        ("TCP fast open's request", Shape { extra: vec![34, 2], ..Shape::usual() }),
        ("fragment headers on whole packets", Shape { atomic: true, ..Shape::usual() }),
        ("a window scale past the limit", Shape { wscale: Some(15), window: 4, ..Shape::usual() }),
    ]
}

fn unusual_syns_get_a_working_connection(mode: Mode) {
    let lab = Lab::two_arms();
    // Clients whose segments would be mostly headers are terminated, and nobody else is.
    let sluice = Sluice::start(&lab, &Setup::of([Service::new("raw", 7001)]).mode(mode)).may_fall_back();
    let mut tiny = 0;
    let listener = Route::v4(&lab, 7001).listen();
    let expected = Pattern::heard(DOWN, ANSWER as u64, Ending::Eof);
    for family in Family::BOTH {
        for (number, (what, shape)) in shapes().into_iter().enumerate() {
            let what = format!("{what} ({family:?})");
            let me = (family.raw_client(), 33_000 + u16::try_from(number).expect("few")).into();
            // RFC 9293 section 3.7.1: what to assume of a client that does not say, and what the link carries.
            let (default, link) = if family == Family::V4 { (536, 1460) } else { (1220, 1440) };
            // As kernels do, none is sent less than 48 octets.
            let mss = usize::from(shape.mss.unwrap_or(default)).clamp(48, link);
            let offered = (shape.wscale, shape.sack, shape.timestamps);
            tiny += u64::from(mode == Mode::Splice && mss < 536);
            let request = &b"early bird"[shape.payload.len()..];
            let answer = thread::scope(|scope| {
                let serving = scope.spawn(|| {
                    let server = sluice_tests::peer::accept(&listener);
                    assert_eq!(Ear::default().hear(&server, 10), None, "the request arrives");
                    send(&server, DOWN, ANSWER as u64).expect("the answer can be sent");
                });
                let tcp = RawTcp::connect(&lab.client, "c0", me, family.service(7001), shape);
                let mut tcp = tcp.unwrap_or_else(|error| panic!("{what}: {error}"));
                let offer = tcp.offer().clone();
                assert!(offer.wscale.is_none() || offered.0.is_some(), "{what}: {offer:?} answers what was not asked");
                assert!(offer.sack <= offered.1 && offer.timestamps <= offered.2, "{what}: {offer:?}");
                assert_eq!((offer.wscale.is_some(), offer.sack), (offered.0.is_some(), offered.1), "{what}: {offer:?}");
                assert!(offer.mss.is_some_and(|mss| mss >= 1200), "{what}: {offer:?}");
                let answer = tcp.ask(request, ANSWER).unwrap_or_else(|error| panic!("{what}: {error}"));
                assert!(tcp.largest_segment() <= mss, "{what}: a segment of {} octets", tcp.largest_segment());
                serving.join().expect("the server's thread");
                tcp.close().unwrap_or_else(|error| panic!("{what}: closing: {error}"));
                answer
            });
            assert_eq!(sha256(&answer), expected.sha256, "{what}");
            let record = sluice.record_of(me, SOON);
            assert_eq!((record.cause.as_str(), record.bytes_to_upstream), ("closed", 10), "{what}: {record:?}");
        }
    }
    let metrics = sluice.metrics();
    assert_eq!(metrics.sum("sluice_splice_fallbacks_total", &[]), tiny, "{metrics}");
}

fn kernels_without_timestamps_scaling_or_sack_transfer_intact(mode: Mode) {
    let octets = 4 << 20;
    let lab = Lab::two_arms();
    let sluice = Sluice::start(&lab, &Setup::of([Service::new("raw", 7001)]).mode(mode));
    // Each on top of those before: in the end the client offers nothing but an MSS.
    for settings in ["tcp_ecn=1", "tcp_timestamps=0", "tcp_sack=0", "tcp_window_scaling=0", "tcp_timestamps=1"] {
        lab.client.sh(&format!("sysctl -qw net.ipv4.{settings}"));
        let seen = client_closes_first(&Route::v4(&lab, 7001), octets);
        assert_eq!(seen.by_server, Pattern::heard(UP, octets, Ending::Eof), "{settings}");
        assert_eq!(seen.by_client, Pattern::heard(DOWN, octets, Ending::Eof), "{settings}");
        assert_eq!(sluice.record_of(seen.client.0, SOON).client.ip(), CLIENT4);
    }
}
