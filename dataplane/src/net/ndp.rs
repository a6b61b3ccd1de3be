//! Neighbour discovery: RFC 4861 section 7 and RFC 4862 section 5.4 for a node with static addresses that is no router.
//!
//! Invariants: a message with a hop limit below 255 came from off-link and changes nothing (RFC 4861 section 11.2); only a
//! solicitation of an address of ours creates a neighbour; advertisements change only what we have. Router advertisements
//! and redirects are dropped: routes are the operator's.
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

use sluice_filters::addr::Addr;
use sluice_filters::units::{Micros, PortId};
use sluice_filters::{Datagram, DropReason, L2, checksum, src_mac};

use super::icmp::{ipv6_header, valid6};
use super::neighbor::{Claim, Learned};
use super::wire::{self, Draft, MacAddr};
use super::{Net, NetAction, PortNet};

/// Length of our neighbour advertisements and solicitations, IPv6 header included.
pub(super) const ADVERTISEMENT: usize = 40 + MESSAGE;
/// Type to target, and one link-layer address option.
const MESSAGE: usize = 24 + 8;
/// A probe carries no option.
const PROBE: usize = 24;

const SOLICIT: u8 = 135;
const ADVERTISE: u8 = 136;
const SOURCE_OPTION: u8 = 1;
const TARGET_OPTION: u8 = 2;
const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;
const MAX_HOPS: u8 = 255;

/// A solicitation or advertisement, checked as RFC 4861 sections 7.1.1 and 7.1.2 ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Message {
    kind: u8,
    flags: u8,
    target: Addr,
    /// The link-layer address option of its kind.
    mac: Option<MacAddr>,
}

impl Message {
    fn read(bytes: &[u8]) -> Option<Message> {
        let [kind, code, _, _, flags, ..] = wire::get::<8>(bytes, 0)?;
        let target = Addr::v6(wire::get(bytes, 8)?);
        let wanted = match kind {
            SOLICIT => SOURCE_OPTION,
            ADVERTISE => TARGET_OPTION,
            _ => return None,
        };
        let mac = read_options(bytes.get(24..)?, wanted)?;
        (code == 0 && !wire::is_multicast6(target)).then_some(Message { kind, flags, target, mac })
    }

    fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// The link-layer address in the option of type `wanted`. `None` when an option is malformed (RFC 4861 section 4.6) or names
/// an address no station can have.
fn read_options(mut options: &[u8], wanted: u8) -> Option<Option<MacAddr>> {
    let mut found = None;
    while !options.is_empty() {
        let [kind, eights] = wire::get(options, 0)?;
        let (option, rest) = options.split_at_checked(usize::from(eights).saturating_mul(8))?;
        if option.is_empty() {
            return None;
        }
        if kind == wanted {
            let mac: MacAddr = wire::get(option, 2)?;
            if !wire::is_station(mac) {
                return None;
            }
            found.get_or_insert(mac);
        }
        options = rest;
    }
    Some(found)
}

impl Net {
    /// Serves types 133 to 137.
    pub(super) fn ndp(
        &mut self,
        port: PortId,
        frame: &mut [u8],
        packet: &Datagram,
        now: Micros,
        learned: &mut impl FnMut(Learned),
    ) -> Result<NetAction, DropReason> {
        if packet.hop_limit != MAX_HOPS || !valid6(frame, packet) {
            return Err(DropReason::BadNdp);
        }
        let message = Message::read(packet.message(frame)).ok_or(DropReason::BadNdp)?;
        let from = src_mac(frame).ok_or(DropReason::Truncated)?;
        // One of our MAC addresses: our own, come back.
        if !wire::is_station(from) || self.is_our_mac(from) || message.mac.is_some_and(|m| self.is_our_mac(m)) {
            return Err(DropReason::BadNdp);
        }
        if message.kind == SOLICIT {
            self.solicitation(port, frame, packet, message, from, now, learned)
        } else {
            self.advertisement(port, frame, packet, message, from, now, learned)
        }
    }

    #[allow(clippy::too_many_arguments)] // one caller, and each is a fact about the same frame
    fn solicitation(
        &mut self,
        port: PortId,
        frame: &mut [u8],
        packet: &Datagram,
        message: Message,
        from: MacAddr,
        now: Micros,
        learned: &mut impl FnMut(Learned),
    ) -> Result<NetAction, DropReason> {
        let probe = packet.src == wire::UNSPECIFIED;
        if probe && (message.mac.is_some() || packet.dst != wire::solicited_node(message.target)) {
            return Err(DropReason::BadNdp);
        }
        let here = self.port(port).ok_or(DropReason::NotOurs)?;
        let own = here.mac;
        if !here.answers_for(message.target) {
            return Err(DropReason::NotOurs);
        }
        if probe {
            // RFC 4861 section 7.2.4: whoever probes cannot be addressed yet.
            let na = advertise(message.target, wire::ALL_NODES, OVERRIDE, own);
            return rewrite(frame, packet.l2, own, wire::group_mac(wire::ALL_NODES), &na);
        }
        if here.answers_for(packet.src) {
            return self.defend(port, frame, packet.l2, packet.src, message.mac.unwrap_or(from), now);
        }
        let neighbor = here.on_link(packet.src);
        if !neighbor && !super::is_destination(packet.src) {
            return Err(DropReason::BadNdp);
        }
        if let (true, Some(mac)) = (neighbor, message.mac) {
            let news = Learned { port, addr: packet.src, mac: Some(mac), claim: Claim::Request };
            self.hear(news, now, learned);
        }
        // The option may be missing when we alone are asked; then we may know the station, and the frame came from it.
        let to = message.mac.or_else(|| self.table.peek(port, packet.src)).unwrap_or(from);
        let na = advertise(message.target, packet.src, SOLICITED | OVERRIDE, own);
        rewrite(frame, packet.l2, own, to, &na)
    }

    #[allow(clippy::too_many_arguments)] // as above
    fn advertisement(
        &mut self,
        port: PortId,
        frame: &mut [u8],
        packet: &Datagram,
        message: Message,
        from: MacAddr,
        now: Micros,
        learned: &mut impl FnMut(Learned),
    ) -> Result<NetAction, DropReason> {
        let solicited = message.has(SOLICITED);
        if solicited && wire::is_multicast6(packet.dst) {
            return Err(DropReason::BadNdp);
        }
        let here = self.port(port).ok_or(DropReason::NotOurs)?;
        if here.answers_for(message.target) {
            return self.defend(port, frame, packet.l2, message.target, message.mac.unwrap_or(from), now);
        }
        let for_us = wire::is_multicast6(packet.dst) || here.answers_for(packet.dst);
        if !for_us || !here.on_link(message.target) {
            return Err(DropReason::NotOurs);
        }
        let claim = Claim::Advert { solicited, overrides: message.has(OVERRIDE) };
        self.hear(Learned { port, addr: message.target, mac: message.mac, claim }, now, learned);
        Ok(NetAction::Consumed)
    }

    /// Someone else uses our `addr`: tell all nodes whose it is, though not for every frame (as RFC 5227 section 2.4 (c);
    /// RFC 4862 leaves it to us).
    fn defend(
        &mut self,
        port: PortId,
        frame: &mut [u8],
        l2: L2,
        addr: Addr,
        mac: MacAddr,
        now: Micros,
    ) -> Result<NetAction, DropReason> {
        if !self.conflict(port, addr, mac, now) {
            return Ok(NetAction::Consumed);
        }
        let own = self.port(port).ok_or(DropReason::NotOurs)?.mac;
        let na = advertise(addr, wire::ALL_NODES, OVERRIDE, own);
        rewrite(frame, l2, own, wire::group_mac(wire::ALL_NODES), &na)
    }
}

/// An advertisement of `target`, from its IPv6 header on.
fn advertise(target: Addr, dst: Addr, flags: u8, own: MacAddr) -> [u8; ADVERTISEMENT] {
    message([ADVERTISE, flags], target, dst, target, (TARGET_OPTION, own))
}

/// A solicitation or advertisement with a link-layer address option, from its IPv6 header on.
fn message(
    [kind, flags]: [u8; 2],
    src: Addr,
    dst: Addr,
    target: Addr,
    (option, own): (u8, MacAddr),
) -> [u8; ADVERTISEMENT] {
    let mut body = Draft::<MESSAGE>::new();
    body.push(&[kind, 0, 0, 0, flags, 0, 0, 0]);
    body.push(&target.octets());
    body.push(&[option, 1]);
    body.push(&own);
    let mut draft = Draft::<ADVERTISEMENT>::new();
    draft.push(&ipv6_header(src, dst, checksum::ICMP6, MESSAGE as u16, MAX_HOPS));
    draft.push(&sealed(body.into_bytes(), src, dst));
    draft.into_bytes()
}

/// The message with its checksum.
pub(super) fn sealed<const N: usize>(mut message: [u8; N], src: Addr, dst: Addr) -> [u8; N] {
    let check = checksum::icmp6_checksum(&message, src, dst);
    let _: Option<()> = wire::put(&mut message, 2, check.to_be_bytes());
    message
}

/// Turns the received frame into an answer, its tag kept.
fn rewrite(
    frame: &mut [u8],
    l2: L2,
    own: MacAddr,
    to: MacAddr,
    packet: &[u8; ADVERTISEMENT],
) -> Result<NetAction, DropReason> {
    let start = usize::from(l2.len);
    wire::put(frame, start, *packet).ok_or(DropReason::Truncated)?;
    wire::put(frame, 0, to).ok_or(DropReason::Truncated)?;
    wire::put(frame, 6, own).ok_or(DropReason::Truncated)?;
    Ok(NetAction::Reply(start.saturating_add(ADVERTISEMENT)))
}

impl PortNet {
    /// Asks `mac`, or the target's solicited-node group, for `target` (RFC 4861 section 7.2.2).
    pub(super) fn ndp_solicit(
        &self,
        source: Addr,
        target: Addr,
        mac: Option<MacAddr>,
        emit: &mut impl FnMut(PortId, &[u8]),
    ) {
        let group = wire::solicited_node(target);
        let (dst, to) = mac.map_or((group, wire::group_mac(group)), |mac| (target, mac));
        self.emit_ipv6(to, &message([SOLICIT, 0], source, dst, target, (SOURCE_OPTION, self.mac)), emit);
    }

    /// Asks whether anyone else uses `addr` (RFC 4862 section 5.4.2).
    pub(super) fn ndp_probe(&self, addr: Addr, emit: &mut impl FnMut(PortId, &[u8])) {
        let group = wire::solicited_node(addr);
        let mut body = Draft::<PROBE>::new();
        body.push(&[SOLICIT, 0, 0, 0, 0, 0, 0, 0]);
        body.push(&addr.octets());
        let mut packet = Draft::<{ 40 + PROBE }>::new();
        packet.push(&ipv6_header(wire::UNSPECIFIED, group, checksum::ICMP6, PROBE as u16, MAX_HOPS));
        packet.push(&sealed(body.into_bytes(), wire::UNSPECIFIED, group));
        self.emit_ipv6(wire::group_mac(group), packet.bytes(), emit);
    }

    /// Says that `addr` is ours (RFC 4861 section 7.2.6).
    pub(super) fn ndp_announce(&self, addr: Addr, emit: &mut impl FnMut(PortId, &[u8])) {
        let na = advertise(addr, wire::ALL_NODES, OVERRIDE, self.mac);
        self.emit_ipv6(wire::group_mac(wire::ALL_NODES), &na, emit);
    }

    fn emit_ipv6(&self, to: MacAddr, packet: &[u8], emit: &mut impl FnMut(PortId, &[u8])) {
        let mut draft = self.ethernet::<{ 18 + ADVERTISEMENT }>(to, wire::IPV6);
        draft.push(packet);
        emit(self.id, draft.bytes());
    }
}
