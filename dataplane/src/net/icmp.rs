//! ICMP and ICMPv6 echo: RFC 792, RFC 4443 section 4, RFC 1122 section 3.2.2.6; and where ICMPv6 messages go.
//!
//! Invariants: one reply per request, no longer than it, to its sender by the way it came; none to or from a group or
//! broadcast address; together at most `filters.icmp_rate` a second and worker.
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
use sluice_filters::{Datagram, DropReason, checksum, src_mac};

use super::neighbor::Learned;
use super::wire;
use super::{Net, NetAction};

const ECHO_REPLY: u8 = 0;
const ECHO_REQUEST: u8 = 8;
const ECHO_REQUEST6: u8 = 128;
const ECHO_REPLY6: u8 = 129;
const ROUTER_SOLICITATION: u8 = 133;
const REDIRECT: u8 = 137;
/// What our replies start with.
const HOP_LIMIT: u8 = 64;

impl Net {
    /// Serves a received ICMP message: echo requests to our addresses are answered in place. Errors ("unreachable", "too
    /// big") are dropped: the stack's own timers and segment sizes serve a flow whose packets are lost.
    ///
    /// # Errors
    /// [`DropReason::BadIcmp`], [`DropReason::NotOurs`], [`DropReason::IcmpRate`], [`DropReason::MartianSource`],
    /// [`DropReason::WrongVlan`], [`DropReason::NotOurMac`], [`DropReason::Truncated`].
    pub fn icmp(
        &mut self,
        port: PortId,
        frame: &mut [u8],
        packet: &Datagram,
        now: Micros,
    ) -> Result<NetAction, DropReason> {
        self.accepts(port, frame, packet.l2)?;
        if packet.message(frame).first_chunk() != Some(&[ECHO_REQUEST, 0]) {
            return Err(DropReason::BadIcmp);
        }
        self.may_echo(port, frame, packet, now)?;
        if !checksum::sum(packet.message(frame)).is_valid() {
            return Err(DropReason::BadIcmp);
        }
        self.icmp.take(now);
        self.echo4(port, frame, packet).ok_or(DropReason::Truncated)
    }

    /// Serves a received ICMPv6 message: neighbour discovery (see [`Net::arp`] for `learned`), and echo requests to our
    /// addresses, answered in place. `frame` should have [`REPLY_ROOM`](super::REPLY_ROOM) octets, received ones included; an
    /// advertisement that does not fit is not made. Errors and what only routers serve are dropped.
    ///
    /// # Errors
    /// [`DropReason::BadNdp`] and those of [`Net::icmp`].
    pub fn icmp6(
        &mut self,
        port: PortId,
        frame: &mut [u8],
        packet: &Datagram,
        now: Micros,
        learned: &mut impl FnMut(Learned),
    ) -> Result<NetAction, DropReason> {
        self.accepts(port, frame, packet.l2)?;
        let kind: [u8; 2] = wire::get(packet.message(frame), 0).ok_or(DropReason::Truncated)?;
        match kind {
            [ROUTER_SOLICITATION..=REDIRECT, _] => self.ndp(port, frame, packet, now, learned),
            [ECHO_REQUEST6, 0] => {
                self.may_echo(port, frame, packet, now)?;
                if !valid6(frame, packet) {
                    return Err(DropReason::BadIcmp);
                }
                self.icmp.take(now);
                self.echo6(port, frame, packet).ok_or(DropReason::Truncated)
            }
            _ => Err(DropReason::BadIcmp),
        }
    }

    /// Whether an echo request is for us, from someone who can be answered, and within the rate. Asked before its checksum is
    /// computed: that is what a flood of big ones would cost.
    fn may_echo(&mut self, port: PortId, frame: &[u8], packet: &Datagram, now: Micros) -> Result<(), DropReason> {
        let here = self.port(port).ok_or(DropReason::NotOurs)?;
        let to: [u8; 6] = wire::get(frame, 0).ok_or(DropReason::Truncated)?;
        // RFC 1122 section 3.3.6: a unicast packet in a frame to everyone was not meant for us alone.
        if !self.is_local(packet.dst) || to != here.mac {
            return Err(DropReason::NotOurs);
        }
        let from = src_mac(frame).ok_or(DropReason::Truncated)?;
        let answerable = super::is_destination(packet.src) && !here.is_broadcast(packet.src);
        if !answerable || self.is_local(packet.src) || !wire::is_station(from) {
            return Err(DropReason::MartianSource);
        }
        if self.icmp.ready(now) { Ok(()) } else { Err(DropReason::IcmpRate) }
    }

    fn echo4(&self, port: PortId, frame: &mut [u8], packet: &Datagram) -> Option<NetAction> {
        self.turn_round(port, frame)?;
        let header = frame.get_mut(usize::from(packet.l2.len)..)?.first_chunk_mut::<20>()?;
        // A fresh time to live; addresses swapped.
        wire::put(header, 8, [HOP_LIMIT])?;
        wire::put(header, 12, packet.dst.v4_bits().to_be_bytes())?;
        wire::put(header, 16, packet.src.v4_bits().to_be_bytes())?;
        checksum::fill_ipv4_header(header);
        let message = frame.get_mut(usize::from(packet.l4)..usize::from(packet.end))?;
        wire::put(message, 0, [ECHO_REPLY])?;
        // Anew, not by difference: a reply can be all zeros, where the difference gives the wrong zero.
        let check = checksum::icmp_checksum(message);
        wire::put(message, 2, check.to_be_bytes())?;
        Some(NetAction::Reply(reply_len(frame, packet)))
    }

    fn echo6(&self, port: PortId, frame: &mut [u8], packet: &Datagram) -> Option<NetAction> {
        self.turn_round(port, frame)?;
        let header = frame.get_mut(usize::from(packet.l2.len)..)?;
        wire::put(header, 7, [HOP_LIMIT])?;
        wire::put(header, 8, packet.dst.octets())?;
        wire::put(header, 24, packet.src.octets())?;
        let message = frame.get_mut(usize::from(packet.l4)..usize::from(packet.end))?;
        let old = u16::from_be_bytes(wire::get(message, 2)?);
        // The pseudo-header's sum does not care which address comes first.
        let check = checksum::update16(old, 0, u16::from(ECHO_REQUEST6) << 8, u16::from(ECHO_REPLY6) << 8);
        wire::put(message, 0, [ECHO_REPLY6])?;
        wire::put(message, 2, check.to_be_bytes())?;
        Some(NetAction::Reply(reply_len(frame, packet)))
    }

    /// Sends a frame back to the station it came from.
    fn turn_round(&self, port: PortId, frame: &mut [u8]) -> Option<()> {
        let to = src_mac(frame)?;
        wire::put(frame, 0, to)?;
        wire::put(frame, 6, self.port(port)?.mac)
    }
}

/// The reply without what followed the IP packet, but not below Ethernet's minimum if the request reached it.
fn reply_len(frame: &mut [u8], packet: &Datagram) -> usize {
    let end = usize::from(packet.end);
    let Some(padding) = frame.get_mut(end..wire::MIN_FRAME) else { return end };
    padding.fill(0);
    wire::MIN_FRAME
}

/// Whether an ICMPv6 message's checksum is right.
pub(super) fn valid6(frame: &[u8], packet: &Datagram) -> bool {
    let message = packet.message(frame);
    checksum::pseudo_header(packet.src, packet.dst, checksum::ICMP6, message.len()).bytes(message).is_valid()
}

/// An IPv6 header, 40 octets, for `len` octets of `next`.
pub(super) fn ipv6_header(src: Addr, dst: Addr, next: u8, len: u16, hop_limit: u8) -> [u8; 40] {
    let mut draft = wire::Draft::<40>::new();
    draft.push(&[0x60, 0, 0, 0]);
    draft.push(&len.to_be_bytes());
    draft.push(&[next, hop_limit]);
    draft.push(&src.octets());
    draft.push(&dst.octets());
    draft.into_bytes()
}
