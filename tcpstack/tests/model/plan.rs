//! One connection as its seed has it: both ends' habits, what they say, how they take leave, and what the way does to it.

use sluice_filters::addr::FlowKey;
use sluice_tcpstack::stack::Stack;

use super::Time;
use super::app::{Leave, Script};
use super::engine::{Habits, MS, Repack, SECOND};
use super::leg::{Kind, Nature};
use super::middle::Place;
use super::random::Random;

/// What a run is about.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Without the stack: the legs lead from end to end.
    pub plain: bool,
    /// Somebody sends segments in the ends' names.
    pub forger: bool,
    /// The stack repeats its SYN-ACK, so the handshake's last ACK may be lost where the client waits for the server.
    pub repeats: bool,
    /// What the modes are: terminated only, spliced only, or both.
    pub modes: Modes,
    /// Called before each segment that the stack gets.
    pub hook: Option<Hook>,
}

/// May do to the stack what life does: forget what a session's tracking knows, to begin with the `key`'s next segment anew.
pub type Hook = fn(stack: &mut Stack, key: &FlowKey, random: &mut Random);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Modes {
    Both,
    Terminate,
    Splice,
}

/// What the server's host does with a SYN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Welcome {
    Accepts,
    /// Nobody listens.
    Refuses,
    /// The backlog is full for the first few.
    Late(u32),
}

/// One connection.
#[derive(Clone, Debug)]
pub struct Plan {
    pub starts: Time,
    pub isns: (u32, u32),
    pub clocks: (u32, u32),
    pub habits: (Habits, Habits),
    pub scripts: (Script, Script),
    pub welcome: Welcome,
    /// Client to middle and back, middle to server and back.
    pub legs: [Nature; 4],
    pub hop: Option<Hop>,
    pub random: Random,
}

/// A router on the way, both ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    /// Before the client, or before the server.
    pub client_side: bool,
    /// The largest IP packet it takes.
    pub mtu: u16,
    /// It does not say so.
    pub silent: bool,
}

impl Plan {
    pub fn draw(seed: u64, place: &Place, settings: &Settings) -> Plan {
        let random = Random::new(seed);
        let legs = legs(&mut random.fork(1));
        let client = habits(&mut random.fork(2), place, place.client_v4);
        let mut server = habits(&mut random.fork(3), place, place.upstream_v4);
        let mut lesser = random.fork(7);
        if place.splice && !lesser.percent(5) {
            // It accepts what was promised in its name. The others' connections fall back to terminate mode.
            server.wscale = Some(server.wscale.unwrap_or(0));
            (server.sack, server.timestamps) = (true, place.timestamps);
        }
        let mut way = random.fork(4);
        let isn = |way: &mut Random| {
            // Near the wrap, often.
            if way.percent(30) { 0_u32.wrapping_sub(way.below(60_000) as u32) } else { way.word() as u32 }
        };
        let isns = (isn(&mut way), isn(&mut way));
        let clocks = (isn(&mut way), isn(&mut way));
        let welcome = match way.below(100) {
            0 => Welcome::Refuses,
            1..=3 => Welcome::Late(1 + way.below(4) as u32),
            _ => Welcome::Accepts,
        };
        let scripts = scripts(&mut random.fork(5), place);
        let mut plan = Plan {
            starts: 2 * SECOND + way.below(4 * SECOND),
            isns,
            clocks,
            habits: (client, server),
            scripts,
            welcome,
            legs,
            hop: hop(&mut random.fork(8)),
            random: random.fork(6),
        };
        plan.adjust(settings);
        plan
    }

    fn adjust(&mut self, settings: &Settings) {
        // Payload that is too large for its window, or for what is lost of it, takes for ever.
        let lossy = self.legs.iter().any(|leg| leg.loss > 50_000);
        for script in [&mut self.scripts.0, &mut self.scripts.1] {
            script.says = script.says.min(if lossy { 30_000 } else { i64::MAX });
        }
        for (habits, script) in [(&self.habits.1, &mut self.scripts.0), (&self.habits.0, &mut self.scripts.1)] {
            if habits.receive_buffer < 8_192 {
                script.says = script.says.min(6 * habits.receive_buffer);
            }
        }
        let (client, server) = (&mut self.scripts.0, &mut self.scripts.1);
        (client.hears, server.hears) = (server.says, client.says);
        // The end that a lost RST leaves alone notices by its keep-alives, or never: without a stack between, too.
        if client.leave.resets() || server.leave.resets() {
            for habits in [&mut self.habits.0, &mut self.habits.1] {
                habits.keep_alive.get_or_insert(3 * SECOND);
            }
        }
        // After `close` a segment of payload in the window resets: plain TCP does not survive the forger there.
        if settings.forger {
            (client.leave, server.leave) = match (client.leave, server.leave) {
                (Leave::AfterAll, _) => (Leave::AfterSending, Leave::AfterEof),
                (_, Leave::AfterAll) => (Leave::AfterEof, Leave::AfterSending),
                as_they_are => as_they_are,
            };
        }
    }

    /// Whether the client says nothing before the server does.
    pub fn client_waits(&self) -> bool {
        let client = &self.scripts.0;
        for turn in 0..client.turns {
            let gate = client.hears * (turn + i64::from(!client.first)) / client.turns;
            if gate > 0 {
                return true;
            }
            if client.says * (turn + 1) / client.turns > 0 {
                return false;
            }
        }
        client.leave != Leave::AfterSending
    }
}

fn habits(random: &mut Random, place: &Place, v4: bool) -> Habits {
    let header = if v4 { 40 } else { 60 };
    let receive_buffer = match random.below(10) {
        // Windows that close.
        0 => random.within(1_000, 8_000),
        1..=3 => random.within(16_000, 65_535),
        _ => random.within(65_536, 400_000),
    } as i64;
    // A window is told in units that fit into it, an upstream's in those that were promised for it too.
    let receive_buffer = receive_buffer.max(if place.splice { 4 << place.scale } else { 0 });
    let mut wscale = (!random.percent(10)).then(|| random.pick(&[0, 2, 7, 8, 10]));
    while let Some(scale) = wscale.filter(|scale| receive_buffer >> scale < 8) {
        wscale = Some(scale - 1);
    }
    Habits {
        mss: if random.percent(70) {
            1500 - header
        } else {
            random.within(1_400, 1_460).min(u64::from(1500 - header)) as u16
        },
        wscale,
        sack: !random.percent(15),
        timestamps: place.timestamps && !random.percent(30),
        receive_buffer,
        nagle: random.percent(50),
        delayed_ack: random.pick(&[5 * MS, 40 * MS, 200 * MS]),
        keep_alive: random.percent(15).then(|| random.within(200, 8_000) * MS),
        keep_alive_byte: random.percent(30),
        probe_with_byte: random.percent(40),
        repack: random.pick(&[Repack::Never, Repack::Whole, Repack::Whole, Repack::Bytes]),
        rto_max: 8 * SECOND,
        retries: 60,
    }
}

fn scripts(random: &mut Random, place: &Place) -> (Script, Script) {
    let size = |random: &mut Random| match random.below(100) {
        0..=19 => 0,
        20..=49 => random.within(1, 2_000),
        50..=84 => random.within(1, 20_000),
        85..=97 => random.within(1, 100_000),
        _ => random.within(1, 600_000),
    } as i64;
    let (mut up, down) = (size(random), size(random));
    let server_first = random.percent(30) && !place.on_data;
    if place.on_data {
        // Something in the first turn already.
        up = up.max(10);
    }
    let turns = if random.percent(60) { 1 } else { random.within(2, 6) as i64 };
    let end = |random: &mut Random, says: i64, first: bool| Script {
        says,
        hears: 0,
        turns,
        first,
        thinks: if random.percent(70) { 0 } else { random.below(400) * MS },
        leave: Leave::AfterSending,
        lingers: if random.percent(80) { 0 } else { random.below(300) * MS },
        reads: if random.percent(85) { i64::MAX } else { random.within(100, 4_000) as i64 },
        rests: if random.percent(85) { 0 } else { random.below(60) * MS },
    };
    let mut client = end(random, up, !server_first);
    let mut server = end(random, down, server_first);
    for (script, says) in [(&mut client, down), (&mut server, up)] {
        // A slow reader is not to take hours.
        if script.rests > 0 {
            script.reads = script.reads.max(says / 200 + 1);
        }
    }
    (client.leave, server.leave) = match random.below(100) {
        0..=24 => (Leave::AfterSending, Leave::AfterEof),
        25..=44 => (Leave::AfterEof, Leave::AfterSending),
        45..=64 => (Leave::AfterSending, Leave::AfterSending),
        65..=74 => (Leave::AfterAll, Leave::AfterAll),
        75..=79 => (Leave::AfterAll, Leave::AfterEof),
        80..=84 => (Leave::AfterEof, Leave::AfterAll),
        85..=87 => (Leave::AbortAtEnd, Leave::AfterEof),
        88..=90 => (Leave::AfterEof, Leave::AbortAtEnd),
        91..=93 => (Leave::AbortInFlight, Leave::AfterEof),
        94..=96 => (Leave::AfterEof, Leave::AbortInFlight),
        97 if !place.on_data => (Leave::CloseUnread, Leave::AfterEof),
        98 => (Leave::AfterEof, Leave::CloseUnread),
        _ => (Leave::AbortAtEnd, Leave::AbortAtEnd),
    };
    // Who reads nothing has nothing to answer, and nobody waits for it.
    let closer = match (client.leave, server.leave) {
        (Leave::CloseUnread, _) => Some((&mut client, &mut server)),
        (_, Leave::CloseUnread) => Some((&mut server, &mut client)),
        _ => None,
    };
    if let Some((closer, other)) = closer {
        (closer.says, closer.turns, other.turns, other.first) = (0, 0, 1, true);
    }
    // Who leaves behind its last byte, before it was asked for it, hears the rest all the same. Dialled on data, it has to say some.
    (client, server)
}

fn hop(random: &mut Random) -> Option<Hop> {
    let hop =
        Hop { client_side: random.percent(50), mtu: random.within(1_280, 1_490) as u16, silent: random.percent(40) };
    random.percent(12).then_some(hop)
}

fn legs(random: &mut Random) -> [Nature; 4] {
    let loss = match random.below(10) {
        0..=2 => 0,
        3..=5 => random.below(20_000),
        6..=8 => random.below(60_000),
        _ => random.below(200_000),
    } as u32;
    let far = match random.below(4) {
        0 => random.within(50, 2_000),
        1 => random.within(2_000, 20_000),
        2 => random.within(20_000, 80_000),
        _ => random.within(200, 40_000),
    };
    let near = if random.percent(70) { random.within(20, 1_000) } else { random.within(1_000, 50_000) };
    let shaky = random.percent(50);
    let doomed = random.below(4);
    let mut leg = |index: u64, delay: Time| {
        let burst = if random.percent(20) { 1 + random.below(8) as u32 } else { 1 };
        Nature {
            delay,
            jitter: if random.percent(50) { 0 } else { random.below(delay + 1) },
            // As many in all, whatever the bursts.
            loss: if random.percent(70) { 2 * loss / (burst + 1) } else { 0 },
            duplicated: if shaky { random.below(30_000) as u32 } else { 0 },
            reordered: if shaky { random.below(100_000) as u32 } else { 0 },
            late: random.below(6 * (far + near)),
            burst,
            doom: (random.percent(25) || (doomed == index && random.percent(50))).then(|| {
                let kinds = [Kind::Syn, Kind::Bare, Kind::Data, Kind::Fin, Kind::Fin, Kind::Fin, Kind::Bare];
                let kind = random.pick(&kinds);
                let after = if kind == Kind::Bare || kind == Kind::Data { random.below(6) } else { 0 };
                (kind, after as u32, random.within(1, 3) as u32)
            }),
        }
    };
    [leg(0, far), leg(1, far), leg(2, near), leg(3, near)]
}
