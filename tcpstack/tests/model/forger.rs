//! A forger: sends in both ends' names, knows addresses, ports and windows roughly, and sees nothing.
//!
//! He sends what plain TCP survives (the same run without the stack is the control). So he spares the receiver, which no stack
//! between could protect: his payload and FINs lie where the stream never comes, behind it, or carry an acknowledgment that no TCP
//! takes; his bare ACKs acknowledge what is old or was never sent; his RSTs miss the number that is expected; far timestamps come
//! only with numbers that do not count.

use sluice_filters::Flags;
use sluice_filters::icmp::{IcmpKind, Unreachable};

use super::Time;
use super::engine::{MS, Tcp, View};
use super::plan::Plan;
use super::random::Random;
use super::wire::Seg;

/// A forged message.
#[derive(Clone, Copy, Debug)]
pub struct Forged {
    /// In the client's name, or about what was sent to it.
    pub from_client: bool,
    pub message: Message,
}

#[derive(Clone, Copy, Debug)]
pub enum Message {
    Segment(Seg),
    Icmp { kind: IcmpKind, number: u32, len: u16 },
}

pub struct Forger {
    random: Random,
    left: u32,
    left_side: bool,
}

/// How far his numbers may be off: what he takes the windows for.
const REACH: u64 = 60_000;

/// What he knows of the end in whose name he sends.
struct Victim {
    /// Its own numbers.
    me: View,
    /// Behind the last number it will ever send, FIN included.
    end: u32,
    /// What its peer expects, in the same numbers.
    expected: u32,
    /// Before the first number of what it may acknowledge.
    oldest: u32,
    /// Behind the last number of what it will ever acknowledge.
    newest: u32,
    /// The newest timestamp its peer holds of it.
    clock: u32,
}

impl Forger {
    pub fn new(mut random: Random) -> Forger {
        let left = 1 + random.below(10) as u32;
        Forger { left_side: random.percent(50), random, left }
    }

    /// Until he strikes next.
    pub fn pause(&mut self) -> Time {
        match self.random.below(4) {
            0 => self.random.below(3 * MS),
            1 => self.random.below(40 * MS),
            2 => self.random.below(300 * MS),
            _ => self.random.below(4_000 * MS),
        }
    }

    /// A few messages, which belong together.
    pub fn forge(&mut self, plan: &Plan, client: &Tcp, server: Option<&Tcp>, header: usize, now: Time) -> Vec<Forged> {
        if self.left == 0 {
            return Vec::new();
        }
        self.left -= 1;
        let from_client = self.left_side;
        if !from_client && server.is_none() {
            return Vec::new();
        }
        let (up, down) = (plan.scripts.0.says as u32, plan.scripts.1.says as u32);
        let me = client.view();
        let them = server.map(Tcp::view);
        let victim = if from_client {
            Victim {
                me,
                end: me.isn.wrapping_add(up + 2),
                // Until there is a server nobody expects anything else than the first.
                expected: them.map_or(me.isn.wrapping_add(1), |them| them.expects),
                oldest: me.peer_isn,
                newest: me.peer_isn.wrapping_add(down + 2),
                clock: client.clock(now),
            }
        } else {
            let (Some(me), Some(server)) = (them, server) else { return Vec::new() };
            let header = header as u32;
            let client = client.view();
            Victim {
                me,
                end: me.isn.wrapping_add(down + 2),
                expected: me.isn.wrapping_add(client.expects.wrapping_sub(client.peer_isn)),
                oldest: me.peer_isn,
                newest: me.peer_isn.wrapping_add(up + 2 + header),
                clock: server.clock(now),
            }
        };
        let random = &mut self.random;
        if random.percent(12) {
            return vec![Forged { from_client, message: icmp(random, &victim) }];
        }
        segments(random, &victim)
            .into_iter()
            // A listener takes any SYN.
            .filter(|seg| server.is_some() || !seg.flags.syn())
            .map(|seg| Forged { from_client, message: Message::Segment(seg) })
            .collect()
    }
}

/// An error about what was sent to the victim.
fn icmp(random: &mut Random, victim: &Victim) -> Message {
    let kind = match random.below(4) {
        0 => IcmpKind::Unreachable(Unreachable::Host),
        1 => IcmpKind::Unreachable(Unreachable::Port),
        2 => IcmpKind::Unreachable(Unreachable::Prohibited),
        _ => IcmpKind::TooBig(random.within(500, 1_499) as u32),
    };
    // Around what the victim expects, which lies among what its peer has on its way, or near.
    let number = victim.me.expects.wrapping_add(random.below(2 * REACH) as u32).wrapping_sub(REACH as u32);
    Message::Icmp { kind, number, len: 1_500 }
}

/// Segments in the victim's name.
fn segments(random: &mut Random, victim: &Victim) -> Vec<Seg> {
    let ahead = |random: &mut Random| {
        let off = if random.percent(30) { random.below(100) } else { random.below(REACH) };
        victim.end.wrapping_add(1 + off as u32)
    };
    let behind = |random: &mut Random, len: u32| victim.expected.wrapping_sub(len + 1 + random.below(REACH) as u32);
    // Anywhere in the window, but at the next number.
    let about = |random: &mut Random| {
        let number = victim.me.next.wrapping_add(random.below(REACH) as u32).wrapping_sub(2_000);
        if number == victim.expected || number == victim.me.next { number.wrapping_add(1) } else { number }
    };
    let old_ack = |random: &mut Random| victim.oldest.wrapping_sub(random.below(REACH) as u32);
    let future_ack = |random: &mut Random| {
        let off = if random.percent(50) { random.below(REACH) } else { random.below(1 << 30) };
        victim.newest.wrapping_add(1 + off as u32)
    };
    let acks = |random: &mut Random| if random.percent(50) { old_ack(random) } else { future_ack(random) };
    let stamp = |random: &mut Random| {
        let value = match random.below(5) {
            0 => return None,
            1 => victim.clock,
            2 => victim.clock.wrapping_sub(1 + random.below(1 << 30) as u32),
            3 => victim.clock.wrapping_add((1 << 29) + random.below(1 << 29) as u32),
            _ => victim.clock.wrapping_add(random.word() as u32 & 0x7fff_ffff),
        };
        let anything = random.word() as u32;
        Some((value, random.pick(&[0, victim.me.stamp_recent, anything])))
    };
    let window = random.pick(&[0, 1, 1_000, 65_535]);
    let make = |random: &mut Random, flags: Flags, seq: u32, len: u16| Seg {
        seq,
        ack: acks(random),
        flags,
        window,
        timestamp: stamp(random),
        len,
        ..Seg::default()
    };
    let ack = Flags::ACK;
    let push = ack | Flags::PSH;
    let fin = ack | Flags::FIN;
    let reset = |random: &mut Random| if random.percent(50) { Flags::RST } else { Flags::RST | ack };
    match random.below(16) {
        // Bare ACKs anywhere, twice perhaps.
        0 | 1 => {
            let seq = about(random);
            let first = make(random, ack, seq, 0);
            let next = seq.wrapping_add(random.below(2_000) as u32);
            let second = make(random, ack, next, 0);
            vec![first, Seg { ack: first.ack, ..second }]
        }
        2 => {
            let seq = behind(random, 0);
            vec![make(random, ack, seq, 0)]
        }
        3 => {
            let seq = ahead(random);
            let len = random.pick(&[1, 1, 100, 1_300]);
            vec![make(random, push, seq, len)]
        }
        4 => {
            let seq = behind(random, 1_300);
            let len = random.pick(&[1, 100, 1_300]);
            vec![make(random, push, seq, len)]
        }
        // In the middle of the window, with an acknowledgment that nobody takes.
        5 => {
            let seq = about(random);
            let len = random.pick(&[1, 100, 1_300]);
            let seg = make(random, push, seq, len);
            vec![Seg { ack: future_ack(random), ..seg }]
        }
        6 => {
            let seq = ahead(random);
            let len = random.pick(&[0, 0, 1, 500]);
            vec![make(random, fin, seq, len)]
        }
        7 => {
            let seq = behind(random, 501);
            let len = random.pick(&[0, 0, 1, 500]);
            vec![make(random, fin, seq, len)]
        }
        8 => {
            let seq = about(random);
            let seg = make(random, fin, seq, 0);
            vec![Seg { ack: future_ack(random), ..seg }]
        }
        9 => {
            let seq = ahead(random);
            let flags = reset(random);
            vec![make(random, flags, seq, 0)]
        }
        10 => {
            let seq = behind(random, 0);
            let flags = reset(random);
            vec![make(random, flags, seq, 0)]
        }
        11 => {
            let seq = random.word() as u32;
            let flags = if random.percent(50) { Flags::SYN } else { Flags::SYN | ack };
            let seg = make(random, flags, seq, 0);
            let open = Seg { mss: Some(1_460), wscale: Some(7), sack_permitted: true, ..seg };
            vec![if flags == Flags::SYN { Seg { ack: 0, ..open } } else { open }]
        }
        // Where a RST will be, something first: an ACK there, a byte or a FIN before it.
        12..=14 => {
            let seq = ahead(random);
            let first = match random.below(3) {
                0 => make(random, ack, seq, 0),
                1 => make(random, push, seq.wrapping_sub(1), 1),
                _ => make(random, fin, seq.wrapping_sub(1), 0),
            };
            let flags = reset(random);
            vec![first, make(random, flags, seq, 0)]
        }
        // Anywhere at all.
        _ => {
            let seq = victim.end.wrapping_add(REACH as u32 * 8 + random.below(1 << 30) as u32);
            let flags = random.pick(&[ack, push, fin, Flags::RST]);
            vec![make(random, flags, seq, 0)]
        }
    }
}
