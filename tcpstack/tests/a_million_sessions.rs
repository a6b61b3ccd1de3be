//! A million spliced sessions in one worker, each opened by its handshake: what they cost in memory, and that they work.

#![cfg(target_os = "linux")]

mod spliced;

use std::fs;

use sluice_filters::testkit::Opt;
use sluice_filters::units::Seq;
use sluice_filters::{DropReason, Flags};

use self::spliced::{Lab, SERVICE, Session, read};

const SESSIONS: u32 = 1_000_000;
/// Every so many sessions, one is tried.
const STEP: u32 = 997;
/// What one may cost, octets.
const SHARE: f64 = 256.0;
const SCALE: u8 = 14;
const PAYLOAD: &[u8] = b"one segment each way";

#[test]
fn a_million_sessions_take_256_octets_each_at_most() {
    let mut tried = Vec::with_capacity((SESSIONS / STEP + 1) as usize);
    let before = resident();
    let mut lab = Lab::new(SESSIONS, SCALE);
    for n in 0..SESSIONS {
        let session = lab.open(n);
        if n % STEP == 0 {
            tried.push((session, segments_each_way(&mut lab, &session)));
        }
    }
    let each = (resident() - before) as f64 / f64::from(SESSIONS);
    println!("{each:.1} octets a session");

    assert_eq!(lab.stack.sessions(), SESSIONS as usize);
    assert_eq!(lab.counters.services[0].active.get(), u64::from(SESSIONS));
    let (_, mut ack) = lab.knock(SESSIONS);
    assert_eq!(lab.receive(&mut ack, true), Err(DropReason::ConnectionLimit));
    // With all the others around, and as a copy now, a segment's way is the same.
    for (session, passed) in &tried {
        assert_eq!(segments_each_way(&mut lab, session), *passed);
    }
    assert!(each <= SHARE, "{each:.1} octets a session");
}

/// One segment in each direction, and that what arrives is as it should be; the frames.
fn segments_each_way(lab: &mut Lab, session: &Session) -> [Vec<u8>; 2] {
    let down = session.down(0).flags(Flags::ACK | Flags::PSH).payload(PAYLOAD).build();
    let down = lab.forwarded(down, false);
    let (segment, options) = read(&down);
    assert_eq!((segment.key.src, segment.key.src_port), SERVICE);
    assert_eq!((segment.key.dst, segment.key.dst_port), session.client);
    assert_eq!((segment.seq, segment.ack), (Seq(session.cookie).plus(1), Seq(session.client_isn).plus(1)));
    assert_eq!(segment.payload(&down), PAYLOAD);
    // Handshake and dial were in one turn of the clock: the upstream's first timestamp is our SYN-ACK's to the client.
    assert_eq!(options.timestamp, Some((session.our_stamp, session.client_stamp)));

    let up = session
        .up(0)
        .ack(session.cookie.wrapping_add(1).wrapping_add(PAYLOAD.len() as u32))
        .options([
            Opt::Timestamp(session.client_stamp.wrapping_add(1), session.our_stamp),
            Opt::Sack(vec![(session.cookie, session.cookie.wrapping_add(1))]),
        ])
        .payload(PAYLOAD)
        .build();
    let up = lab.forwarded(up, true);
    let (segment, options) = read(&up);
    assert_eq!((segment.key.src, segment.key.src_port), session.source);
    assert_eq!((segment.key.dst, segment.key.dst_port), session.upstream);
    let theirs = Seq(session.upstream_isn);
    assert_eq!((segment.seq, segment.ack), (Seq(session.client_isn).plus(1), theirs.plus(1 + PAYLOAD.len() as u32)));
    assert_eq!(segment.payload(&up), PAYLOAD);
    assert_eq!(options.timestamp, Some((session.client_stamp.wrapping_add(1), session.upstream_stamp)));
    assert_eq!(options.sack_blocks(), [(theirs, theirs.plus(1))]);
    [down, up]
}

/// Octets of memory that this process has in use.
fn resident() -> u64 {
    const PAGE: u64 = 4096;
    let statm = fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * PAGE
}
