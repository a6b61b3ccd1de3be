//! What is said of a path and is not so: by a client that repeats what arrived, and by a wire that carries nothing for a while.

use sluice_filters::Flags;
use sluice_filters::icmp::{IcmpError, IcmpKind};
use sluice_filters::units::Seq;
use smoltcp::iface::SocketHandle;

use super::super::*;
use super::lab::*;
use super::spliced_by_hand::{ISN, Talk, UPSTREAM};

const SPLICED: &str = "mode = \"splice\"\npromise = { probe = \"0s\" }";
const PATIENT: &str = "[service.timeouts]\nclient_idle = \"off\"\nupstream_idle = \"off\"";
const FULL: usize = 1_400;

/// What is known of the path to an end.
fn known(lab: &mut Lab, end: &str) -> Option<u16> {
    let addr = end.parse::<std::net::SocketAddr>().unwrap().ip().into();
    lab.stack.path_mtus.get(addr, lab.now).map(|path| path.mtu)
}

/// How the client's full segment at `seq` leaves, by the sizes of its pieces.
fn pieces(talk: &mut Talk, seq: u32) -> Vec<usize> {
    talk.client(Flags::ACK, seq, 0, &bytes(FULL));
    talk.sent().iter().map(|sent| sent.3.len()).collect()
}

#[test]
fn what_a_client_repeats_teaches_nobody_of_the_path_to_its_upstream() {
    for pause in [0, 300] {
        let mut talk = Talk::connected(SPLICED);
        talk.sent();
        for _ in 0..4 {
            pieces(&mut talk, 0);
            talk.wait_ms(pause);
        }
        talk.sent();
        talk.upstream(Flags::ACK, 0, FULL as u32, b"");
        assert_eq!(known(&mut talk.lab, UPSTREAM), None, "pause of {pause} ms");
        assert_eq!(talk.lab.stack.path_mtus.learned(), [0; 2]);
    }
}

#[test]
fn a_burst_of_repeats_is_no_silence() {
    let mut talk = Talk::connected(SPLICED);
    talk.sent();
    for _ in 0..8 {
        assert_eq!(pieces(&mut talk, 0), [FULL]);
    }
    // As a sender waits, one that has heard nothing.
    for (pause, cut) in [(200, false), (600, true)] {
        talk.wait_ms(pause);
        talk.sent();
        assert_eq!(pieces(&mut talk, 0).len() > 1, cut, "after {pause} ms more");
    }
}

#[test]
fn a_report_about_what_a_client_sent_cuts_that_connection_alone() {
    let mut talk = Talk::connected(SPLICED);
    talk.sent();
    assert_eq!(pieces(&mut talk, 0), [FULL]);
    let key = flow(UPSTREAM, &talk.ours);
    let error = IcmpError { kind: IcmpKind::TooBig(40), key, seq: Seq(ISN).plus(1), len: FULL as u16 + 52 };
    let hash = talk.lab.stack.hash(&key);
    let Talk { lab, .. } = &mut talk;
    assert_eq!(lab.stack.icmp_error(&error, hash, PortId(0), lab.now, &mut lab.below), Ok(()));
    // The client is told; it may not listen.
    lab.below.sent.clear();
    assert!(pieces(&mut talk, 0).len() > 1);
    assert_eq!(known(&mut talk.lab, UPSTREAM), None);
}

/// Carries `data` from the server to the client, or from the client to the server where `up`; true when all of it arrived. `during` may break
/// things on the way, by what has arrived.
fn carry(
    lab: &mut Lab,
    ends: (SocketHandle, SocketHandle),
    up: bool,
    data: &[u8],
    mut during: impl FnMut(&mut Lab, usize),
) -> bool {
    let (mut sent, mut got) = (0, Vec::new());
    lab.run(60_000, |lab| {
        let (from, to) = if up { (&mut lab.client, &mut lab.server) } else { (&mut lab.server, &mut lab.client) };
        let (source, target) = if up { ends } else { (ends.1, ends.0) };
        let socket = from.get(source);
        if socket.can_send() && sent < data.len() {
            sent += socket.send_slice(&data[sent..]).unwrap();
        }
        to.read(target, &mut got);
        during(lab, got.len());
        got.len() == data.len()
    }) && got == data
}

#[test]
fn an_outage_makes_no_path_small_that_full_packets_got_through() {
    for extra in [RAW, SPLICED] {
        for up in [false, true] {
            let mut lab = Lab::new(extra);
            let ends = established(&mut lab);
            let data = bytes(300_000);
            let mut ends_at = None;
            let carried = carry(&mut lab, ends, up, &data, |lab, got| {
                if ends_at.is_none() && got > 100_000 {
                    (lab.loss, ends_at) = (1_000, Some(lab.now.0 + 1_500_000));
                }
                if ends_at.is_some_and(|at| lab.now.0 >= at) && lab.loss > 0 {
                    (lab.loss, lab.largest) = (0, [0; 2]);
                }
            });
            assert!(carried, "{extra} up {up}");
            // What had to be sent again during the outage went as it was, and so does the rest.
            assert!(lab.largest[usize::from(up)] > 1_280, "{extra} up {up}: {:?}", lab.largest);
            assert_eq!(lab.stack.path_mtus.learned(), [0; 2], "{extra} up {up}");
        }
    }
}

#[test]
fn a_connection_cut_for_a_silent_hop_tries_full_packets_again_after_ten_minutes() {
    for extra in [RAW, SPLICED] {
        for up in [false, true] {
            let mut lab = Lab::new(&format!("{extra}\n{PATIENT}"));
            lab.hops[usize::from(up)] = Some(Hop { mtu: 1_280, silent: true });
            let ends = established(&mut lab);
            let data = bytes(50_000);
            assert!(carry(&mut lab, ends, up, &data, |_, _| {}), "{extra} up {up}");
            for (seconds, limit) in [(500, 1_280), (200, 1_500)] {
                (lab.hops, lab.now.0) = ([None; 2], lab.now.0 + seconds * 1_000_000);
                lab.largest = [0; 2];
                assert!(carry(&mut lab, ends, up, &data, |_, _| {}), "{extra} up {up}");
                assert_eq!(lab.largest[usize::from(up)], limit, "{extra} up {up}, {seconds} s later");
            }
        }
    }
}
