//! A capture's packets through the appliance's parser, filters, limits and cookies, on the capture's own clock.
//!
//! Octets that the capture did not keep are not made up. A packet whose headers were cut is `truncated`; a checksum over what is missing
//! is not asked; expressions see as much as was kept, as libpcap's do. Where a rule's verdict hangs on missing payload, nobody can tell.
//!
//! What is real: the parser, the check of sources, the address sets, rules, limits and bans of the configuration, and the cookies: the
//! first verdict is [`Gate::judge`]'s, as in the running appliance. What is not there: neighbours (MAC addresses and VLANs are not
//! compared), our link-local addresses, which come from MAC addresses, sessions, upstreams, and `service.limits`. All packets meet
//! one worker; several would each keep the limits per source for themselves. Where the port is not known that a packet came in by,
//! what depends on it is taken to be right.
//!
//! A capture was rarely taken on an appliance with the same cookie seed. So a client's ACK counts as an answer to our SYN-ACK when the
//! capture has that client's SYN, which was answered, and, where the capture has the server's own SYN-ACK, acknowledges that one: its
//! acknowledgment number is then replaced by our cookie's and the cookie is checked. An ACK out of nowhere has no such excuse. Connections
//! that were open before the capture began are known by the server's segments in it.

mod connections;
mod diff;
mod report;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sluice_config::Config;
use sluice_filters::engine::{Engine, FilterCounters, Plan, Trace, Unseen};
use sluice_filters::gate::{Addressee, Came, Gate};
use sluice_filters::rules::{Facts, naive};
use sluice_filters::sets::AddressSet;
use sluice_filters::units::{Micros, PortId, Seq};
use sluice_filters::{ChecksumState, DropReason, FRAGMENT_HEADER, Parsed, RxChecksums, Segment, parse, unwrap_atomic};
use sluice_tcpstack::cookie::{Jar, Offer};

use self::connections::{Connections, Known};
use crate::filters::Loaded;
use crate::filters::bans::Ban;

pub use self::diff::{Change, Diff};
pub use self::report::{Line, Report, RuleLine};

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Outcome {
    /// A SYN that is answered with a cookie.
    Answered,
    /// A cookie that is right: a connection opens.
    Opened,
    /// A segment of an open connection.
    Connection,
    /// ARP and ICMP, which the appliance serves itself.
    Local,
    /// Sent by a service: what the appliance would send.
    FromService,
    /// From an upstream to an address of ours: for a connection that the appliance dialled, or a rest of one.
    FromUpstream,
    /// Whether this rule matches depends on payload that the capture did not keep.
    CannotTell(u16),
    /// Dropped for this reason, as an index into [`DropReason::ALL`], by this rule.
    Dropped(u8, Option<u16>),
}

impl Outcome {
    /// Whether the packet was dropped.
    #[must_use]
    pub fn is_drop(self) -> bool {
        matches!(self, Outcome::Dropped(..))
    }

    /// Why, if it was dropped.
    #[must_use]
    pub fn reason(self) -> Option<DropReason> {
        match self {
            Outcome::Dropped(reason, _) => DropReason::ALL.get(usize::from(reason)).copied(),
            _ => None,
        }
    }

    /// As tables show it.
    #[must_use]
    pub fn describe(self, config: &Config) -> String {
        match self {
            Outcome::Answered => "SYN answered with a cookie".into(),
            Outcome::Opened => "cookie right, connection opens".into(),
            Outcome::Connection => "part of a connection".into(),
            Outcome::Local => "ARP or ICMP, served by the appliance".into(),
            Outcome::FromService => "sent by a service, not judged".into(),
            Outcome::FromUpstream => "sent by an upstream".into(),
            Outcome::CannotTell(rule) => {
                let name = config.rules.get(usize::from(rule)).map_or("", |rule| rule.name.as_str());
                format!("cannot tell: rule {name:?} looks at payload that was not captured")
            }
            Outcome::Dropped(_, rule) => {
                let reason = self.reason().map_or("", DropReason::as_str);
                match rule.and_then(|rule| config.rules.get(usize::from(rule))) {
                    Some(rule) => format!("dropped: {reason} {:?}", rule.name),
                    None => format!("dropped: {reason}"),
                }
            }
        }
    }
}

/// One configuration's appliance, without ports and upstreams.
pub struct Replay {
    config: Arc<Config>,
    gate: Gate,
    /// Where packets come in; none when nobody knows.
    port: Option<PortId>,
    engine: Engine,
    counters: Arc<FilterCounters>,
    jar: Jar,
    connections: Connections,
    /// The first packet's time.
    began: Option<Duration>,
    now: Micros,
    /// Those that wait for the first packet's time.
    bans: Vec<Ban>,
    sets: Vec<AddressSet>,
    /// To fill up packets in that the capture cut short.
    room: Vec<u8>,
}

/// The clock of the first packet: late enough for the clock to have no past that wraps.
const START: Micros = Micros(1_000_000);
/// Longest frame, octets.
pub(crate) const LONGEST: usize = 65_535 + 18;
/// The secret of tables that nobody attacks.
const SECRET: [u64; 2] = [0x7265_706c_6179, 0x736c_7569_6365];

impl Replay {
    /// For a configuration with its compiled filters, its cookies' seed and its bans.
    #[must_use]
    pub fn new(config: Arc<Config>, filters: Loaded, seed: [u8; 32], bans: Vec<Ban>) -> Replay {
        let Loaded { sets, plan, .. } = filters;
        let counters = Arc::new(FilterCounters::new(&config));
        Replay {
            gate: Gate::new(&config, []),
            port: None,
            engine: Engine::new(Arc::new(plan), SECRET, Arc::clone(&counters)),
            counters,
            jar: Jar::new(seed, config.cookies.epoch),
            connections: Connections::new(),
            began: None,
            now: START,
            bans,
            sets,
            room: Vec::new(),
            config,
        }
    }

    /// Lays the bans that are in force at the first packet's time.
    fn lay_bans(&mut self, begin: Duration) {
        // A capture may say that it was taken when no clock of ours will ever be.
        let left = |until: SystemTime| until.duration_since(UNIX_EPOCH).ok()?.checked_sub(begin);
        for ban in std::mem::take(&mut self.bans) {
            if let Some(left) = ban.until.map_or(Some(Duration::MAX), left) {
                // One there is no room for is not enforced by an appliance either.
                let _ = self.engine.ban(ban.prefix, START.after(left), 0);
            }
        }
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &Arc<Config> {
        &self.config
    }

    /// The filters in force.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        self.engine.plan()
    }

    /// What the rules counted.
    #[must_use]
    pub fn counters(&self) -> &FilterCounters {
        &self.counters
    }

    /// The port that the next packets come in by, an index into the configuration's; none when nobody knows. What an appliance's port
    /// receives was not sent by its services.
    pub fn come_by(&mut self, port: Option<usize>) {
        self.port = port.and_then(|port| u8::try_from(port).ok()).map(PortId);
    }

    /// Takes the next packet: an Ethernet frame, of `wire_len` octets when it was sent.
    pub fn packet(&mut self, time: Duration, frame: &[u8], wire_len: u32) -> Outcome {
        self.packet_traced(time, frame, wire_len, &mut Unseen)
    }

    /// [`Replay::packet`] with its steps told.
    pub fn packet_traced(&mut self, time: Duration, frame: &[u8], wire_len: u32, trace: &mut impl Trace) -> Outcome {
        self.tick(time);
        let captured = Captured::new(frame, wire_len);
        let mut room = std::mem::take(&mut self.room);
        let parsed = captured.parse(&mut room);
        self.room = room;
        let verdict = parsed.and_then(|parsed| self.judge(&parsed, &captured.frame, trace));
        match verdict {
            Ok(outcome) => outcome,
            Err(reason) => {
                let by_rule = matches!(reason, DropReason::Rule | DropReason::RuleLimit);
                let rule = self.engine.rule().filter(|_| by_rule);
                Outcome::Dropped(u8::try_from(reason.index()).unwrap_or(u8::MAX), rule)
            }
        }
    }

    /// Follows the capture's clock, which may step back but takes us nowhere then.
    fn tick(&mut self, time: Duration) {
        if self.began.is_none() {
            self.lay_bans(time);
        }
        let began = *self.began.get_or_insert(time);
        let elapsed = time.saturating_sub(began);
        self.now = self.now.max(START.after(elapsed));
        self.jar.tick(time);
        self.engine.sweep(self.now);
    }

    fn judge<T: Trace>(&mut self, parsed: &Parsed, frame: &[u8], trace: &mut T) -> Result<Outcome, DropReason> {
        let segment = match parsed {
            Parsed::Tcp(segment) => *segment,
            Parsed::Arp(_) | Parsed::Icmp(_) | Parsed::Icmp6(_) => return Ok(Outcome::Local),
        };
        let key = segment.key;
        let came = Came { port: self.port, frame, now: self.now };
        let judged = self.gate.judge(&mut self.engine, &segment, came, trace);
        if frame.len() < segment.end()
            && let Some(rule) = self.hangs_on_missing(&segment, frame, &judged)
        {
            return Ok(Outcome::CannotTell(rule));
        }
        let service = match judged {
            Ok(Addressee::Service(service)) => service,
            Ok(Addressee::Dialler) => return Ok(Outcome::FromUpstream),
            Err(DropReason::OwnSource) if self.gate.services().get(key.src, key.src_port).is_some() => {
                self.connections.heard_service(&segment, self.now);
                return if self.port.is_none() { Ok(Outcome::FromService) } else { Err(DropReason::OwnSource) };
            }
            Err(reason) => return Err(reason),
        };
        let facts = Facts { segment: &segment, frame, service };
        if segment.flags.is_initial_syn() {
            self.engine.answer_traced(key.src, self.now, trace)?;
            self.connections.answered(&segment, self.now);
            return Ok(Outcome::Answered);
        }
        if self.connections.take(&segment, self.now) {
            return Ok(Outcome::Connection);
        }
        self.unknown(&facts, trace)
    }

    /// The rule on which the verdict on a packet hangs whose payload was cut: it would match if the payload were right, and no rule before
    /// it decided.
    fn hangs_on_missing(&self, segment: &Segment, frame: &[u8], judged: &Result<Addressee, DropReason>) -> Option<u16> {
        let service = self.gate.services().get(segment.key.dst, segment.key.dst_port)?;
        let facts = Facts { segment, frame, service };
        let decided = match judged {
            Err(DropReason::Rule | DropReason::RuleLimit) => self.engine.rule(),
            Err(_) => return None,
            Ok(_) => self.engine.exempt(),
        };
        let asked = decided.map_or(self.config.rules.len(), usize::from);
        let rules = self.config.rules.iter().enumerate().take(asked);
        let mut hanging = rules.filter(|(index, rule)| {
            !rule.dry_run && naive::hangs_on_missing(self.engine.plan().rules(), *index, rule, &self.sets, &facts)
        });
        hanging.next().and_then(|(index, _)| u16::try_from(index).ok())
    }

    fn unknown<T: Trace>(&mut self, facts: &Facts<'_>, trace: &mut T) -> Result<Outcome, DropReason> {
        let segment = facts.segment;
        self.engine.flowless_traced(segment.key.src, self.now, trace)?;
        let flags = segment.flags;
        if !flags.ack() || flags.syn() || flags.rst() {
            return Err(DropReason::NoFlow);
        }
        if self.offer(segment, facts.frame).is_none() {
            return Err(DropReason::BadCookie);
        }
        self.engine.verified(segment.key.src, self.now);
        self.engine.open_traced(facts, self.now, trace)?;
        self.connections.opened(segment, self.now);
        Ok(Outcome::Opened)
    }

    /// What the cookie says that an ACK brings, or would bring had the client talked to us.
    fn offer(&self, segment: &Segment, frame: &[u8]) -> Option<Offer> {
        let first = self.offer_after(Seq(segment.seq.0.wrapping_sub(1)), segment, frame);
        // A keep-alive probe is numbered one before (`Stack::check_keep_alive`).
        let probe = segment.payload_len <= 1 && !segment.flags.fin();
        first.or_else(|| probe.then(|| self.offer_after(segment.seq, segment, frame)).flatten())
    }

    /// The same for a client that began with `isn`.
    fn offer_after(&self, isn: Seq, segment: &Segment, frame: &[u8]) -> Option<Offer> {
        let as_captured = self.jar.check(&segment.key, isn, segment.ack);
        as_captured.or_else(|| {
            let Known { isn: known, answer, .. } = self.connections.handshake(&segment.key)?;
            let answers = known == isn && answer.is_none_or(|answer| answer.plus(1) == segment.ack);
            if !answers {
                return None;
            }
            let options = segment.options(frame);
            let offer = Offer { mss: options.mss.unwrap_or(1_460), wscale: None, sack: false };
            let cookie = self.jar.mint(&segment.key, isn, offer);
            self.jar.check(&segment.key, isn, cookie.plus(1))
        })
    }
}

/// A frame as a capture has it.
pub(crate) struct Captured<'a> {
    /// What was kept. Of an IPv6 packet that bears a fragment header though it is whole (RFC 6946), without that header: the appliance
    /// takes it out.
    pub(crate) frame: Cow<'a, [u8]>,
    /// Its octets when it was sent, [`LONGEST`] at most.
    pub(crate) len: usize,
}

impl<'a> Captured<'a> {
    /// `frame` had `wire_len` octets.
    pub(crate) fn new(frame: &'a [u8], wire_len: u32) -> Captured<'a> {
        let frame = unfragmented(frame).map_or(Cow::Borrowed(frame), Cow::Owned);
        let less = if matches!(frame, Cow::Owned(_)) { FRAGMENT_HEADER } else { 0 };
        let len = (wire_len as usize).saturating_sub(less).min(LONGEST).max(frame.len());
        Captured { frame, len }
    }

    /// Octets that were not kept.
    pub(crate) fn missing(&self) -> usize {
        self.len.saturating_sub(self.frame.len())
    }

    /// Parses it; `room` is to fill it up in.
    ///
    /// # Errors
    /// As [`parse`], and [`DropReason::Truncated`] when a header was cut: its fields would be made up.
    pub(crate) fn parse(&self, room: &mut Vec<u8>) -> Result<Parsed, DropReason> {
        let frame = &*self.frame;
        if self.missing() == 0 {
            return parse(frame, RxChecksums::default());
        }
        if headers_end(frame).is_none_or(|end| end > frame.len()) {
            return Err(DropReason::Truncated);
        }
        room.clear();
        room.extend_from_slice(frame);
        room.resize(self.len, 0);
        // A checksum over octets that the capture did not keep says nothing; the IPv4 header's is of what was kept.
        match parse(room, RxChecksums { ip: ChecksumState::Unknown, l4: ChecksumState::Good })? {
            // Only padding was cut.
            Parsed::Tcp(segment) if segment.end() <= frame.len() => parse(frame, RxChecksums::default()),
            parsed => Ok(parsed),
        }
    }
}

fn unfragmented(frame: &[u8]) -> Option<Vec<u8>> {
    let l3 = if frame.get(12..14)? == [0x81, 0x00] { 18 } else { 14 };
    if *frame.get(l3 + 6)? != 44 {
        return None;
    }
    let mut frame = frame.to_vec();
    unwrap_atomic(&mut frame).then(|| frame.split_off(FRAGMENT_HEADER))
}

/// Where the headers end that the parser looks into, TCP's options or the first octets of another message included; none when the frame
/// ends before that is known.
fn headers_end(frame: &[u8]) -> Option<usize> {
    let kind = |at: usize| Some(u16::from_be_bytes(*frame.get(at..)?.first_chunk()?));
    let (ether_type, l3) = match kind(12)? {
        0x8100 | 0x88a8 => (kind(16)?, 18),
        ether_type => (ether_type, 14),
    };
    let (next, l4) = match ether_type {
        0x0800 => (*frame.get(l3 + 9)?, l3 + usize::from(*frame.get(l3)? & 0xf) * 4),
        0x86dd => (*frame.get(l3 + 6)?, l3 + 40),
        // ARP, or nothing that the appliance looks into.
        0x0806 => return Some(l3 + 28),
        _ => return Some(l3),
    };
    match next {
        6 => Some(l4 + usize::from(*frame.get(l4 + 12)? >> 4).max(5) * 4),
        1 | 58 => Some(l4 + 8),
        _ => Some(l4),
    }
}
