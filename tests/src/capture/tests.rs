//! A conversation that keeps every rule, and the same one with one thing wrong at a time.

use std::time::Duration;

use super::{Captured, Conversation, Leg, Legs, Rule};
use crate::frames::{Segment, flags};

const HEADER: &[u8] = b"PROXY TCP4 192.0.2.1 192.0.2.2 4000 443\r\n";
const CLIENT_ISN: u32 = u32::MAX - 3;
const COOKIE: u32 = 1_000_000;
const DIAL_ISN: u32 = CLIENT_ISN.wrapping_sub(HEADER.len() as u32);
const UPSTREAM_ISN: u32 = u32::MAX - 10;
/// What is added to the upstream's clock on the way to the client.
const CLOCK: u32 = 77_000;

/// One segment of the story, in offsets into the streams where it has a SYN's number to count from.
#[derive(Clone, Debug)]
struct Line {
    leg: Leg,
    up: bool,
    flags: u8,
    seq: u32,
    ack: u32,
    window: u16,
    clock: (u32, u32),
    sack: Vec<(u32, u32)>,
    payload: Vec<u8>,
    /// This octet of the frame is spoilt after the checksums were computed.
    spoilt: Option<usize>,
}

fn line(leg: Leg, up: bool, offset: i32, ack: i32, payload: &[u8]) -> Line {
    let number = |up: bool, offset: i32| {
        let isn = match (leg, up) {
            (Leg::Client, true) => CLIENT_ISN,
            (Leg::Client, false) => COOKIE,
            (Leg::Server, true) => CLIENT_ISN,
            (Leg::Server, false) => UPSTREAM_ISN,
        };
        isn.wrapping_add(1).wrapping_add_signed(offset)
    };
    Line {
        leg,
        up,
        flags: flags::ACK,
        seq: number(up, offset),
        ack: number(!up, ack),
        window: 100,
        clock: (0, 0),
        sack: Vec::new(),
        payload: payload.to_vec(),
        spoilt: None,
    }
}

/// A client that speaks first through sluice with a PROXY header; one of its segments is lost on the way and repeated, a duplicate is
/// reported, both sides close. The clock of each side ticks with every segment of the story.
fn story() -> Vec<Line> {
    let with = |line: Line, more: u8| Line { flags: line.flags | more, ..line };
    let sacked = |line: Line, first: i32, last: i32| {
        let first_octet = line.ack.wrapping_sub(line_ack_offset(&line).cast_unsigned());
        Line { sack: vec![(first_octet.wrapping_add_signed(first), first_octet.wrapping_add_signed(last))], ..line }
    };
    let (client, server) = (Leg::Client, Leg::Server);
    let (up, down) = (true, false);
    let header = HEADER.len() as i32;
    let dial = Line { seq: DIAL_ISN, flags: flags::SYN, ack: 0, window: 6400, ..line(server, up, 0, 0, b"") };
    let answer = Line { ack: DIAL_ISN.wrapping_add(1), window: 6400, ..line(server, down, -1, 0, b"") };
    let mut story = vec![
        Line { flags: flags::SYN, ack: 0, window: 6400, ..line(client, up, -1, 0, b"") }, // 0
        with(Line { window: 6400, ..line(client, down, -1, 0, b"") }, flags::SYN),
        line(client, up, 0, 0, b""),
        dial,
        with(answer, flags::SYN),
        line(server, up, -header, 0, HEADER), // 5
        line(server, down, 0, 0, b""),
        line(client, up, 0, 0, b"hello "),
        line(server, up, 0, 0, b"hello "),
        line(client, up, 6, 0, b"lost "),
        line(client, up, 11, 0, b"world"), // 10
        line(server, up, 11, 0, b"world"),
        sacked(line(server, down, 0, 6, b""), 11, 16),
        sacked(line(client, down, 0, 6, b""), 11, 16),
        line(client, up, 6, 0, b"lost "),
        line(server, up, 6, 0, b"lost "), // 15
        line(server, down, 0, 16, b"well"),
        line(client, down, 0, 16, b"well"),
        sacked(line(server, down, 4, 16, b" done"), 6, 11),
        sacked(line(client, down, 4, 16, b" done"), 6, 11),
        with(line(client, up, 16, 9, b""), flags::FIN), // 20
        with(line(server, up, 16, 9, b""), flags::FIN),
        with(line(server, down, 9, 17, b""), flags::FIN),
        with(line(client, down, 9, 17, b""), flags::FIN),
        line(client, up, 17, 10, b""),
        line(server, up, 17, 10, b""), // 25
    ];
    // Clocks: forwarded segments carry what came in, upstream's moved; echoes are the newest heard on the leg.
    let mut newest = [[0; 2]; 2];
    for (tick, line) in (1..).zip(&mut story) {
        let (leg, me) = (line.leg as usize, usize::from(!line.up));
        let forwarded = line.up == (line.leg == server);
        let value = match (forwarded, line.up) {
            (false, true) => 5_000 + tick,
            (false, false) => (u32::MAX - 12).wrapping_add(tick),
            (true, true) => newest[0][0],
            // The cookie's clock goes on as the upstream's does.
            (true, false) if newest[1][1] == 0 => (u32::MAX - 12).wrapping_add(CLOCK),
            (true, false) => newest[1][1].wrapping_add(CLOCK),
        };
        line.clock = (value, if line.flags & flags::ACK == 0 { 0 } else { newest[leg][usize::from(line.up)] });
        newest[leg][me] = value;
    }
    story
}

fn line_ack_offset(line: &Line) -> i32 {
    let first = if line.leg == Leg::Client || !line.up { CLIENT_ISN } else { UPSTREAM_ISN };
    line.ack.wrapping_sub(first.wrapping_add(1)).cast_signed()
}

fn conversation() -> Conversation {
    Conversation {
        client: "192.0.2.1:4000".parse().unwrap(),
        service: "192.0.2.2:443".parse().unwrap(),
        source: "[2001:db8::2]:5000".parse().unwrap(),
        upstream: "[2001:db8::3]:443".parse().unwrap(),
        header: HEADER.len() as u32,
    }
}

fn told(story: &[Line]) -> Legs {
    let ends = conversation();
    let mut legs = Legs::default();
    for (time, line) in story.iter().enumerate() {
        let (near, far) = match line.leg {
            Leg::Client => (ends.client, ends.service),
            Leg::Server => (ends.source, ends.upstream),
        };
        let (from, to) = if line.up { (near, far) } else { (far, near) };
        let mut options = vec![1, 1, 8, 10];
        options.extend_from_slice(&line.clock.0.to_be_bytes());
        options.extend_from_slice(&line.clock.1.to_be_bytes());
        if line.flags & flags::SYN != 0 {
            options.extend_from_slice(&[1, 3, 3, 6]);
        }
        if !line.sack.is_empty() {
            options.extend_from_slice(&[1, 1, 5, u8::try_from(2 + 8 * line.sack.len()).unwrap()]);
            for (first, last) in &line.sack {
                options.extend_from_slice(&first.to_be_bytes());
                options.extend_from_slice(&last.to_be_bytes());
            }
        }
        let segment = Segment {
            from_mac: [2; 6],
            to_mac: [4; 6],
            from,
            to,
            seq: line.seq,
            ack: line.ack,
            flags: line.flags,
            window: line.window,
            options: &options,
            payload: &line.payload,
        };
        let mut frame = segment.frame();
        if let Some(at) = line.spoilt {
            frame[at] ^= 0x10;
        }
        let captured = Captured { at: Duration::from_micros(time as u64), frame };
        match line.leg {
            Leg::Client => legs.client.push(captured),
            Leg::Server => legs.server.push(captured),
        }
    }
    legs
}

/// What is found when `spoil` has been at the story: (leg, packet, rule).
fn found(spoil: impl FnOnce(&mut Vec<Line>)) -> Vec<(Leg, usize, Rule)> {
    let mut story = story();
    spoil(&mut story);
    told(&story).check(&conversation()).into_iter().map(|it| (it.leg, it.packet, it.rule)).collect()
}

/// Number of line `index` of the story in its leg's record.
fn packet(index: usize) -> usize {
    let story = story();
    story[..=index].iter().filter(|line| line.leg == story[index].leg).count()
}

#[test]
fn a_conversation_that_keeps_the_rules_has_no_breach() {
    let legs = told(&story());
    assert_eq!(legs.check(&conversation()), []);
    assert_eq!(legs.sack_blocks(&conversation()), (2, 2));
}

#[test]
fn a_wrong_checksum_is_named() {
    // The urgent pointer, which nobody reads.
    assert_eq!(found(|story| story[7].spoilt = Some(14 + 20 + 18)), [(Leg::Client, packet(7), Rule::TcpChecksum)]);
    // The TTL.
    assert_eq!(found(|story| story[7].spoilt = Some(22)), [(Leg::Client, packet(7), Rule::IpChecksum)]);
    assert_eq!(found(|story| story[8].spoilt = Some(14 + 40 + 18)), [(Leg::Server, packet(8), Rule::TcpChecksum)]);
}

#[test]
fn a_frame_that_is_no_segment_is_named() {
    let mut legs = told(&story());
    legs.server[3].frame.truncate(60);
    let found = legs.check(&conversation());
    assert_eq!((found[0].leg, found[0].packet, found[0].rule), (Leg::Server, 4, Rule::Parses));
}

#[test]
fn a_missing_or_doubled_handshake_is_named() {
    let rules = found(|story| drop(story.remove(1)));
    assert!(rules.contains(&(Leg::Client, 2, Rule::Handshake)), "{rules:?}");
    // A second SYN with another number, once the stream has begun.
    let rules = found(|story| {
        let again = Line { seq: story[4].seq.wrapping_add(5), ..story[4].clone() };
        story.insert(17, again);
    });
    assert!(rules.contains(&(Leg::Server, 10, Rule::Handshake)), "{rules:?}");
}

#[test]
fn a_dial_with_other_numbers_than_the_clients_is_named() {
    let rules = found(|story| story[3].seq = DIAL_ISN.wrapping_add(1));
    assert!(rules.contains(&(Leg::Server, 1, Rule::ClientNumbers)), "{rules:?}");
}

#[test]
fn a_gap_that_is_never_filled_is_named() {
    // Lost on both legs, never repeated.
    let rules = found(|story| {
        story.remove(15);
        story.remove(14);
        story.remove(9);
    });
    assert!(
        rules.contains(&(Leg::Client, 0, Rule::NoGap)) && rules.contains(&(Leg::Server, 0, Rule::NoGap)),
        "{rules:?}"
    );
    // Came in, never went out, and nothing behind it did.
    let rules = found(|story| {
        story.remove(19);
    });
    assert!(rules.contains(&(Leg::Server, 0, Rule::NoGap)), "{rules:?}");
    // The end of the header never went out.
    let rules = found(|story| story[5].payload.truncate(20));
    assert!(rules.contains(&(Leg::Server, 0, Rule::NoGap)), "{rules:?}");
}

#[test]
fn a_changed_octet_is_named() {
    assert_eq!(found(|story| story[8].payload[4] = b'0'), [(Leg::Server, packet(8), Rule::SameOctets)]);
    assert_eq!(found(|story| story[17].payload[0] = b'W'), [(Leg::Client, packet(17), Rule::SameOctets)]);
    // The repetition of a segment says something else.
    let rules = found(|story| {
        let again = Line { payload: b"hellO ".to_vec(), ..story[8].clone() };
        story.insert(9, again);
    });
    assert_eq!(rules, [(Leg::Server, 6, Rule::SameOctets), (Leg::Server, 6, Rule::SameOctets)]);
}

#[test]
fn octets_that_never_came_in_are_named() {
    // Forwarded before it arrived.
    let rules = found(|story| story.swap(7, 8));
    assert!(rules.contains(&(Leg::Server, packet(8), Rule::NothingInvented)), "{rules:?}");
    // Below the first octet of the stream: the header's place on the client's leg.
    let rules = found(|story| story[17].seq = story[17].seq.wrapping_sub(4));
    assert!(rules.contains(&(Leg::Client, packet(17), Rule::NothingInvented)), "{rules:?}");
}

#[test]
fn a_header_that_reaches_the_client_is_named() {
    let rules = found(|story| story[17].payload = HEADER.to_vec());
    assert!(rules.contains(&(Leg::Client, 0, Rule::HeaderStaysInside)), "{rules:?}");
    // One that the server itself repeats is its data.
    let rules = found(|story| [16, 17].into_iter().for_each(|at| story[at].payload = HEADER.to_vec()));
    assert!(!rules.iter().any(|(_, _, rule)| *rule == Rule::HeaderStaysInside), "{rules:?}");
}

#[test]
fn streams_that_end_at_different_octets_are_named() {
    let rules = found(|story| story[21].seq = story[21].seq.wrapping_sub(1));
    assert!(rules.contains(&(Leg::Server, 0, Rule::SameEnd)), "{rules:?}");
    let rules = found(|story| story[23].flags &= !flags::FIN);
    assert!(rules.contains(&(Leg::Server, 0, Rule::SameEnd)), "{rules:?}");
}

#[test]
fn a_clock_that_goes_back_is_named() {
    for (at, back) in [(17, 30), (19, 1)] {
        let rules = found(|story| {
            // Echoes of what is spoilt are not what this test is about.
            let value = story[at].clock.0;
            story[at].clock.0 = story[13].clock.0.wrapping_sub(if at == 17 { back } else { 0 });
            if at == 19 {
                story[at].clock.0 = story[17].clock.0.wrapping_sub(back);
            }
            story.iter_mut().filter(|line| line.clock.1 == value).for_each(|line| line.clock.1 = COOKIE_CLOCK);
        });
        assert_eq!(rules, [(Leg::Client, packet(at), Rule::ClockForward)]);
    }
}

const COOKIE_CLOCK: u32 = (u32::MAX - 12).wrapping_add(CLOCK);

#[test]
fn acknowledgments_that_overtook_each_other_before_sluice_are_right_and_others_are_not() {
    // Two acknowledgments of the client come late, in the wrong order, and go out as they came.
    let late = |story: &mut Vec<Line>, legs: &[usize]| {
        for leg in legs {
            let last = story[24 + leg].clone();
            story.push(Line { clock: (last.clock.0 - 3, last.clock.1), ..last });
        }
    };
    assert_eq!(found(|story| late(story, &[0, 1])), []);
    assert_eq!(found(|story| late(story, &[1])), [(Leg::Server, 14, Rule::ClockForward)]);
    // One came late, two went out late.
    assert_eq!(found(|story| late(story, &[0, 1, 1])), [(Leg::Server, 15, Rule::ClockForward)]);
    // Another one than the one that came late.
    let rules = found(|story| {
        late(story, &[0, 1]);
        story[27].ack = story[27].ack.wrapping_sub(1);
    });
    assert_eq!(rules, [(Leg::Server, 14, Rule::ClockForward)]);
}

#[test]
fn an_acknowledgment_a_tick_late_is_named_however_long_the_transfer() {
    let rules = found(|story| {
        for _ in 0..5_000 {
            for leg in [24, 25] {
                story.push(story[leg].clone());
            }
        }
        let last = story[25].clone();
        story.push(Line { clock: (last.clock.0 - 1, last.clock.1), ..last });
    });
    assert_eq!(rules, [(Leg::Server, 5_014, Rule::ClockForward)]);
}

#[test]
fn a_reset_that_no_end_sent_is_named() {
    let reset = |line: &Line| Line { flags: flags::RST | flags::ACK, ..line.clone() };
    let rules = found(|story| {
        let ours = reset(&story[17]);
        story.push(ours);
    });
    assert_eq!(rules, [(Leg::Client, 14, Rule::NothingInvented)]);
    // The upstream's own, passed on.
    let rules = found(|story| {
        let (theirs, ours) = (reset(&story[16]), reset(&story[17]));
        story.extend([theirs, ours]);
    });
    assert_eq!(rules, []);
}

#[test]
fn an_echo_of_a_clock_never_heard_on_the_leg_is_named() {
    assert_eq!(found(|story| story[21].clock.1 = 1), [(Leg::Server, packet(21), Rule::EchoKnown)]);
    // What the other leg's end sent is not what this leg's end heard.
    let rules = found(|story| story[21].clock.1 = story[20].clock.1);
    assert_eq!(rules, [(Leg::Server, packet(21), Rule::EchoKnown)]);
}

#[test]
fn sack_blocks_outside_the_window_are_named() {
    let shifted = |at: usize, by: u32| {
        found(|story| {
            let (first, last) = story[at].sack[0];
            story[at].sack[0] = (first.wrapping_add(by), last.wrapping_add(by));
        })
    };
    // Past what was sent, across the acknowledgment, before the stream's begin.
    assert_eq!(shifted(13, 1), [(Leg::Client, packet(13), Rule::SackInWindow)]);
    assert_eq!(shifted(13, 8_u32.wrapping_neg()), [(Leg::Client, packet(13), Rule::SackInWindow)]);
    assert_eq!(shifted(19, 12_u32.wrapping_neg()), [(Leg::Client, packet(19), Rule::SackInWindow)]);
    // Untranslated from the other leg, and upside down.
    assert_eq!(shifted(13, COOKIE), [(Leg::Client, packet(13), Rule::SackInWindow)]);
    let rules = found(|story| story[13].sack[0] = (story[13].sack[0].1, story[13].sack[0].0));
    assert_eq!(rules, [(Leg::Client, packet(13), Rule::SackInWindow)]);
    // Only the first block may report a duplicate, unless the server did as much.
    let repeats = |story: &mut Vec<Line>, at: usize| {
        let duplicate = story[at].sack[0];
        story[at].sack.push(duplicate);
    };
    assert_eq!(found(|story| repeats(story, 19)), [(Leg::Client, packet(19), Rule::SackInWindow)]);
    assert_eq!(found(|story| [18, 19].into_iter().for_each(|at| repeats(story, at))), []);
}

#[test]
fn a_window_past_the_far_ends_is_named() {
    assert_eq!(found(|story| story[17].window -= 1), []);
    let rules = found(|story| story[17].window += 1);
    assert_eq!(rules, [(Leg::Client, packet(17), Rule::WindowOfFarEnd)]);
    let rules = found(|story| story[19].window = 200);
    assert_eq!(rules, [(Leg::Client, packet(19), Rule::WindowOfFarEnd)]);
    let rules = found(|story| story[8].window = 200);
    assert_eq!(rules, [(Leg::Server, packet(8), Rule::WindowOfFarEnd)]);
    // The scale of one leg used on the other: twice the window.
    let rules = found(|story| story[25].window *= 2);
    assert_eq!(rules, [(Leg::Server, packet(25), Rule::WindowOfFarEnd)]);
}

#[test]
fn an_acknowledgment_of_what_was_not_sent_is_named() {
    let rules = found(|story| story[16].ack = story[16].ack.wrapping_add(1));
    assert_eq!(rules[0], (Leg::Server, packet(16), Rule::AckOfSent));
    let rules = found(|story| story[17].ack = story[17].ack.wrapping_add(1));
    assert!(rules.contains(&(Leg::Client, packet(17), Rule::AckOfSent)), "{rules:?}");
    // The header's octets are none of the client's.
    let rules = found(|story| story[13].ack = CLIENT_ISN);
    assert!(rules.contains(&(Leg::Client, packet(13), Rule::AckOfSent)), "{rules:?}");
}

#[test]
fn an_acknowledgment_the_far_end_did_not_give_is_named() {
    let rules = found(|story| {
        story[13].ack = story[13].ack.wrapping_add(5);
        story[13].window -= 1;
        story[13].sack.clear();
    });
    assert_eq!(rules, [(Leg::Client, packet(13), Rule::AckOfFarEnd)]);
}
