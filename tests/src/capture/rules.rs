//! The checker: replays both legs in the order of time and holds each segment against the rules.
//!
//! Numbers are offsets into the two streams, so that both legs speak of the same octet: the client's first octet is 0 on
//! either leg, the PROXY header in front of it has negative offsets, a FIN counts as one octet.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::{Conversation, Heard, Leg, Legs, Rule, Violation, segments, unreadable};

/// What one end of a leg has sent on it.
#[derive(Debug, Default)]
struct Sent {
    /// Initial sequence number.
    isn: Option<u32>,
    /// Of its SYN.
    scale: Option<u8>,
    /// Offset of the stream's first octet: below zero for a stream that begins with the PROXY header.
    origin: i64,
    /// One past the last octet, FIN included.
    highest: i64,
    octets: Vec<u8>,
    /// Which of them have been seen: first to one past the last.
    seen: BTreeMap<i64, i64>,
    fin: Option<i64>,
    /// Every TSval.
    clocks: HashSet<u32>,
    /// The newest TSval of segments in order.
    clock: Option<u32>,
    /// Acknowledgments without data whose clock was behind: their place, what they acknowledged, how many.
    late: HashMap<(i64, i64), usize>,
    /// It has sent a RST.
    reset: bool,
    /// How far it has acknowledged the other end's stream.
    acked: Option<i64>,
    /// Up to where it was willing to take the other end's stream.
    edge: Option<i64>,
    /// SACK blocks it sent for what it had acknowledged already.
    old_blocks: HashSet<(i64, i64)>,
}

impl Sent {
    /// Where in the stream `seq` is. `highest` is never half the number space away from it.
    fn offset(&self, seq: u32) -> Option<i64> {
        let first = self.isn?.wrapping_add(1);
        let next = first.wrapping_add((self.highest - self.origin) as u32);
        Some(self.highest + i64::from(seq.wrapping_sub(next).cast_signed()))
    }

    fn has(&self, from: i64, to: i64) -> bool {
        self.seen.range(..=from).next_back().is_some_and(|(_, end)| *end >= to)
    }

    /// Takes octets in, not before the origin; the offset of the first that differs from its earlier copy.
    fn take(&mut self, from: i64, payload: &[u8]) -> Option<i64> {
        let to = from + payload.len() as i64;
        let end = (to - self.origin) as usize;
        if self.octets.len() < end {
            self.octets.resize(end, 0);
        }
        let mut differs = None;
        // The first copy of an octet stays.
        let mut new_from = from;
        let overlaps = self.seen.range(..to).map(|(first, last)| ((*first).max(from), (*last).min(to)));
        for (first, last) in overlaps.filter(|(first, last)| first < last).chain([(to, to)]) {
            let at = |offset: i64| (offset - self.origin) as usize;
            let new = &payload[(first - from) as usize..(last - from) as usize];
            let differing = self.octets[at(first)..at(last)].iter().zip(new).position(|(old, new)| old != new);
            differs = differs.or(differing.map(|position| first + position as i64));
            let unseen = &payload[(new_from - from) as usize..(first - from) as usize];
            self.octets[at(new_from)..at(first)].copy_from_slice(unseen);
            new_from = last;
        }
        let (mut first, mut last) = (from, to);
        while let Some((begin, end)) = self.seen.range(..=last).next_back().map(|(begin, end)| (*begin, *end)) {
            if end < first {
                break;
            }
            self.seen.remove(&begin);
            (first, last) = (first.min(begin), last.max(end));
        }
        self.seen.insert(first, last);
        differs
    }

    /// One past the last octet that came without a gap.
    fn complete(&self) -> i64 {
        self.seen.get(&self.origin).copied().unwrap_or(self.origin)
    }
}

struct Checker<'a> {
    conversation: &'a Conversation,
    /// `[leg][0]` is sent by the end on the client's side, `[leg][1]` by the other.
    sent: [[Sent; 2]; 2],
    found: Vec<Violation>,
    /// The segment being judged.
    leg: Leg,
    packet: usize,
}

pub(super) fn check(legs: &Legs, conversation: &Conversation) -> Vec<Violation> {
    let mut checker =
        Checker { conversation, sent: Default::default(), found: Vec::new(), leg: Leg::Client, packet: 0 };
    let proxied = &mut checker.sent[Leg::Server as usize][0];
    proxied.origin = -i64::from(conversation.header);
    proxied.highest = proxied.origin;
    for (leg, frames) in [(Leg::Client, &legs.client), (Leg::Server, &legs.server)] {
        for number in unreadable(frames) {
            (checker.leg, checker.packet) = (leg, number);
            checker.breach(Rule::Parses, "no TCP segment in an IP packet".to_owned());
        }
    }
    let client = segments(&legs.client, conversation.client_leg()).into_iter().map(|heard| (Leg::Client, heard));
    let server = segments(&legs.server, conversation.server_leg()).into_iter().map(|heard| (Leg::Server, heard));
    let mut all: Vec<_> = client.chain(server).collect();
    // Stable, so that a leg keeps its own order.
    all.sort_by_key(|(_, heard)| heard.at);
    for (leg, heard) in &all {
        (checker.leg, checker.packet) = (*leg, heard.number);
        checker.judge(heard);
    }
    checker.at_the_end();
    checker.found
}

impl Checker<'_> {
    fn breach(&mut self, rule: Rule, detail: String) {
        self.found.push(Violation { leg: self.leg, packet: self.packet, rule, detail });
    }

    fn judge(&mut self, heard: &Heard<'_>) {
        if heard.ip_sum_wrong {
            self.breach(Rule::IpChecksum, "the IPv4 header's sum is not zero".to_owned());
        }
        if heard.tcp_sum_wrong {
            self.breach(Rule::TcpChecksum, format!("seq {} with {} octets", heard.seq, heard.payload.len()));
        }
        let (leg, me, other) = (self.leg as usize, usize::from(!heard.up), usize::from(heard.up));
        if heard.syn {
            self.syn(heard);
        } else if let Some(offset) = self.sent[leg][me].offset(heard.seq) {
            // What a reset says beyond its number, nobody reads.
            if !heard.rst {
                self.clock(heard, offset);
                self.stream(heard, offset);
            }
        } else {
            self.breach(Rule::Handshake, format!("seq {} before a SYN of this end", heard.seq));
        }
        if let Some((value, _)) = heard.clock {
            self.sent[leg][me].clocks.insert(value);
        }
        if heard.rst {
            self.sent[leg][me].reset = true;
            if self.forwarded(heard) && !self.sent[1 - leg][me].reset {
                self.breach(Rule::NothingInvented, "a RST that no end sent".to_owned());
            }
            return;
        }
        let Some(ack) = heard.ack else { return };
        let Some(ack) = self.sent[leg][other].offset(ack) else {
            self.breach(Rule::Handshake, format!("ack {ack} before a SYN of the other end"));
            return;
        };
        self.ack(heard, ack);
    }

    fn syn(&mut self, heard: &Heard<'_>) {
        let (leg, me) = (self.leg as usize, usize::from(!heard.up));
        let sent = &mut self.sent[leg][me];
        let known = sent.isn.replace(heard.seq);
        let began = sent.highest > sent.origin || !sent.seen.is_empty();
        sent.scale = heard.scale;
        // A repeated SYN may be answered with another cookie; the client goes by the last, before it has said anything.
        if known.is_some_and(|known| known != heard.seq) && (heard.up || began) {
            self.breach(Rule::Handshake, format!("SYN {} after SYN {}", heard.seq, known.unwrap_or_default()));
        }
        if let (Leg::Server, true, Some(client)) = (self.leg, heard.up, self.sent[0][0].isn) {
            let expected = client.wrapping_sub(self.conversation.header);
            if heard.seq != expected {
                let header = self.conversation.header;
                let detail = format!("SYN {} instead of {client} - {header} = {expected}", heard.seq);
                self.breach(Rule::ClientNumbers, detail);
            }
        }
    }

    /// Whether sluice sent this segment in place of the end on the other leg.
    fn forwarded(&self, heard: &Heard<'_>) -> bool {
        heard.up == (self.leg == Leg::Server)
    }

    fn clock(&mut self, heard: &Heard<'_>, offset: i64) {
        let Some((value, echo)) = heard.clock else { return };
        let (leg, me) = (self.leg as usize, usize::from(!heard.up));
        if heard.ack.is_some() && !self.sent[leg][usize::from(heard.up)].clocks.contains(&echo) {
            self.breach(Rule::EchoKnown, format!("TSecr {echo} was never the other end's TSval on this leg"));
        }
        let forwarded = self.forwarded(heard);
        let acked = heard.ack.and_then(|ack| self.sent[leg][usize::from(heard.up)].offset(ack));
        let sent = &mut self.sent[leg][me];
        if offset < sent.highest {
            return;
        }
        let newest = *sent.clock.get_or_insert(value);
        if value.wrapping_sub(newest).cast_signed() >= 0 {
            sent.clock = Some(value);
            return;
        }
        // Acknowledgments that overtook each other before they reached sluice leave it in the order they came: the very ones, no others.
        let bare = acked.filter(|_| heard.payload.is_empty() && !heard.fin).map(|acked| (offset, acked));
        if let Some(bare) = bare {
            *sent.late.entry(bare).or_default() += 1;
        }
        let came_late = bare.and_then(|bare| self.sent[1 - leg][me].late.get_mut(&bare)).filter(|left| **left > 0);
        if !forwarded {
            return;
        }
        match came_late {
            Some(left) => *left -= 1,
            None => {
                let octets = heard.payload.len();
                self.breach(Rule::ClockForward, format!("TSval {value} after {newest}, {octets} octets"));
            }
        }
    }

    fn stream(&mut self, heard: &Heard<'_>, offset: i64) {
        let (leg, me) = (self.leg as usize, usize::from(!heard.up));
        let end = offset + heard.payload.len() as i64;
        let sent = &mut self.sent[leg][me];
        sent.highest = sent.highest.max(end + i64::from(heard.fin));
        if heard.fin {
            let known = *sent.fin.get_or_insert(end);
            if known != end {
                self.breach(Rule::SameEnd, format!("FIN at {end}, before at {known}"));
            }
        }
        if heard.payload.is_empty() {
            return;
        }
        let sent = &mut self.sent[leg][me];
        if offset < sent.origin {
            let detail = format!("octets from {offset}, before the stream's begin at {}", sent.origin);
            self.breach(Rule::NothingInvented, detail);
            return;
        }
        if let Some(at) = sent.take(offset, heard.payload) {
            self.breach(Rule::SameOctets, format!("octet {at} differs from its copy sent before"));
        }
        if !self.forwarded(heard) || end <= 0 {
            return;
        }
        // The part of it that is not the PROXY header came in on the other leg.
        let from = offset.max(0);
        let source = &self.sent[1 - leg][me];
        if !source.has(from, end) {
            self.breach(Rule::NothingInvented, format!("octets {from} to {end} did not come in before"));
            return;
        }
        let theirs = &source.octets[from as usize..end as usize];
        let ours = &heard.payload[(from - offset) as usize..];
        if let Some(at) = theirs.iter().zip(ours).position(|(theirs, ours)| theirs != ours) {
            let detail =
                format!("octet {} went out as {:#04x}, came in as {:#04x}", from + at as i64, ours[at], theirs[at]);
            self.breach(Rule::SameOctets, detail);
        }
    }

    fn ack(&mut self, heard: &Heard<'_>, ack: i64) {
        let (leg, me, other) = (self.leg as usize, usize::from(!heard.up), usize::from(heard.up));
        let (origin, highest) = (self.sent[leg][other].origin, self.sent[leg][other].highest);
        if ack > highest {
            self.breach(Rule::AckOfSent, format!("ack of {ack}, sent up to {highest}"));
        }
        if ack < origin {
            self.breach(Rule::AckOfSent, format!("ack of {ack}, the stream begins at {origin}"));
        }
        self.sack(heard, ack);
        let scales = (self.sent[leg][me].scale, self.sent[leg][other].scale);
        let scale = if let (Some(scale), Some(_), false) = (scales.0, scales.1, heard.syn) { scale } else { 0 };
        let edge = ack + (i64::from(heard.window) << scale);
        // The cookie's SYN-ACK is sluice's own, and so is what it says until the far end has spoken.
        let far = &self.sent[1 - leg][me];
        if let (true, false, Some(far_acked), Some(far_edge)) = (self.forwarded(heard), heard.syn, far.acked, far.edge)
        {
            // While the far end acknowledges the header, the client has not been heard yet.
            let far_acked = far_acked.max(0);
            if ack > far_acked {
                self.breach(Rule::AckOfFarEnd, format!("ack of {ack}, the far end's goes to {far_acked}"));
            }
            if edge > far_edge.max(0) {
                let detail = format!(
                    "ack {ack} + window {} << {scale} = {edge}, the far end's ends at {far_edge}",
                    heard.window
                );
                self.breach(Rule::WindowOfFarEnd, detail);
            }
        }
        let sent = &mut self.sent[leg][me];
        sent.acked = Some(sent.acked.map_or(ack, |old| old.max(ack)));
        sent.edge = Some(sent.edge.map_or(edge, |old| old.max(edge)));
    }

    fn sack(&mut self, heard: &Heard<'_>, ack: i64) {
        let stream = &self.sent[self.leg as usize][usize::from(heard.up)];
        let (origin, highest) = (stream.origin, stream.highest);
        let blocks: Vec<_> = heard
            .sack
            .iter()
            .map(|(first, last)| (stream.offset(*first).unwrap_or(i64::MAX), stream.offset(*last).unwrap_or(i64::MAX)))
            .collect();
        let (leg, me) = (self.leg as usize, usize::from(!heard.up));
        for (index, (first, last)) in blocks.into_iter().enumerate() {
            let duplicate = index == 0 && last <= ack && first >= origin;
            if first < ack && !duplicate {
                self.sent[leg][me].old_blocks.insert((first, last));
            }
            // Kernels do repeat old blocks; what sluice says in an end's place, that end has said.
            let repeated = last <= ack && self.sent[1 - leg][me].old_blocks.contains(&(first, last));
            let old = first < ack && !duplicate && !repeated;
            if self.forwarded(heard) && (first >= last || last > highest || old) {
                let detail = format!("block {first} to {last} with ack {ack}, sent up to {highest}");
                self.breach(Rule::SackInWindow, detail);
            }
        }
    }

    fn at_the_end(&mut self) {
        self.packet = 0;
        for leg in [Leg::Client, Leg::Server] {
            self.leg = leg;
            for me in [0, 1] {
                let sent = &self.sent[leg as usize][me];
                let (who, isn) = (if me == 0 { "the client's" } else { "the server's" }, sent.isn);
                let (complete, last) =
                    (sent.complete(), sent.seen.last_key_value().map_or(sent.origin, |(_, end)| *end));
                if isn.is_none() {
                    self.breach(Rule::Handshake, format!("{who} side never sent a SYN"));
                } else if complete < last {
                    let detail = format!("{who} stream is complete up to {complete}, its last octet is {last}");
                    self.breach(Rule::NoGap, detail);
                }
            }
        }
        self.leg = Leg::Server;
        for (me, who) in [(0, "the client's"), (1, "the server's")] {
            let ends = [0, 1].map(|leg: usize| self.sent[leg][me].fin);
            let complete = [0, 1].map(|leg: usize| self.sent[leg][me].complete());
            if ends[0] != ends[1] {
                self.breach(Rule::SameEnd, format!("{who} stream has its FIN at {:?} and {:?}", ends[0], ends[1]));
            } else if ends[0].is_some() && complete[0] != complete[1] {
                let detail = format!("of {who} stream, {} and {} octets were seen", complete[0], complete[1]);
                self.breach(Rule::NoGap, detail);
            }
        }
        self.leg = Leg::Client;
        let header = self.conversation.header as usize;
        let (down, proxied) = (&self.sent[0][1].octets, &self.sent[1][0].octets);
        let header = proxied.get(..header).unwrap_or_default();
        // A server may well repeat it; then it came in on the other leg too.
        let found = |octets: &[u8]| octets.windows(header.len().max(1)).position(|window| window == header);
        if let (Some(at), None, false) = (found(down), found(&self.sent[1][1].octets), header.is_empty()) {
            self.breach(Rule::HeaderStaysInside, format!("octet {at} of what the client gets begins the header"));
        }
    }
}
