//! ARP over Ethernet: RFC 826, with RFC 5227's announcements, probes and defence, and RFC 1122 section 2.3.2.
//!
//! Invariants: only a request for an address of ours creates a neighbour; a reply counts as an answer only while we ask;
//! everything else may at most change a neighbour we have, which is then asked itself before it is trusted for long.
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
use sluice_filters::{DropReason, L2, src_mac};

use super::neighbor::{Claim, Heard, Learned};
use super::wire::{self, Draft, MacAddr};
use super::{Net, NetAction, PortNet};

/// Length of an ARP packet for IPv4 over Ethernet.
const LEN: usize = 28;
const REQUEST: u16 = 1;
const REPLY: u16 = 2;
/// Hardware type Ethernet, protocol type IPv4, their address lengths.
const ETHERNET_IPV4: [u8; 6] = [0, 1, 0x08, 0x00, 6, 4];
const NOBODY: Addr = Addr::v4(0);

/// The fields that vary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Packet {
    op: u16,
    sender_mac: MacAddr,
    sender: Addr,
    target_mac: MacAddr,
    target: Addr,
}

impl Packet {
    fn read(bytes: &[u8]) -> Option<Packet> {
        if wire::get(bytes, 0)? != ETHERNET_IPV4 {
            return None;
        }
        Some(Packet {
            op: u16::from_be_bytes(wire::get(bytes, 6)?),
            sender_mac: wire::get(bytes, 8)?,
            sender: Addr::v4(u32::from_be_bytes(wire::get(bytes, 14)?)),
            target_mac: wire::get(bytes, 18)?,
            target: Addr::v4(u32::from_be_bytes(wire::get(bytes, 24)?)),
        })
    }

    fn bytes(&self) -> [u8; LEN] {
        let mut draft = Draft::<LEN>::new();
        draft.push(&ETHERNET_IPV4);
        draft.push(&self.op.to_be_bytes());
        draft.push(&self.sender_mac);
        draft.push(&self.sender.v4_bits().to_be_bytes());
        draft.push(&self.target_mac);
        draft.push(&self.target.v4_bits().to_be_bytes());
        draft.into_bytes()
    }
}

impl Net {
    /// Serves a received ARP frame. `frame` is what was received, and after it whatever room its buffer has; with 60 octets or
    /// more, replies are padded to Ethernet's minimum. `learned` is told what the other workers should [`Net::apply`].
    ///
    /// # Errors
    /// [`DropReason::BadArp`], [`DropReason::Truncated`], [`DropReason::WrongVlan`], [`DropReason::NotOurMac`], and
    /// [`DropReason::NotOurs`] for ARP among others.
    pub fn arp(
        &mut self,
        port: PortId,
        frame: &mut [u8],
        l2: L2,
        now: Micros,
        learned: &mut impl FnMut(Learned),
    ) -> Result<NetAction, DropReason> {
        self.accepts(port, frame, l2)?;
        let body = frame.get(usize::from(l2.len)..).filter(|b| b.len() >= LEN).ok_or(DropReason::Truncated)?;
        let arp = Packet::read(body).ok_or(DropReason::BadArp)?;
        let from = src_mac(frame).ok_or(DropReason::Truncated)?;
        let known_op = matches!(arp.op, REQUEST | REPLY);
        if !known_op || !wire::is_station(from) || !wire::is_station(arp.sender_mac) {
            return Err(DropReason::BadArp);
        }
        if self.is_our_mac(arp.sender_mac) {
            return Err(DropReason::BadArp); // our own, come back
        }
        let here = self.port(port).ok_or(DropReason::NotOurs)?;
        let mac = here.mac;
        let for_us = here.answers_for(arp.target);
        let claims_ours = here.answers_for(arp.sender);
        let neighbor = here.on_link(arp.sender);
        if claims_ours {
            // RFC 5227 section 2.4 (c): defend, but not against every frame of a misconfigured station.
            let defend = self.conflict(port, arp.sender, arp.sender_mac, now);
            if !defend {
                return Ok(NetAction::Consumed);
            }
            return rewrite(frame, l2, mac, wire::BROADCAST, &Packet::announcement(mac, arp.sender));
        }
        if arp.sender == NOBODY {
            // RFC 5227 section 1.1: a probe. There is nothing to learn from it.
            if !(for_us && arp.op == REQUEST) {
                return Err(if arp.op == REQUEST { DropReason::NotOurs } else { DropReason::BadArp });
            }
        } else if neighbor {
            let claim = match (for_us, arp.op) {
                (true, REQUEST) => Claim::Request,
                (true, _) => Claim::Reply,
                (false, _) => Claim::Overheard,
            };
            let news = Learned { port, addr: arp.sender, mac: Some(arp.sender_mac), claim };
            let heard = self.hear(news, now, learned);
            if !for_us {
                return if heard == Heard::Updated { Ok(NetAction::Consumed) } else { Err(DropReason::NotOurs) };
            }
        } else if !for_us {
            return Err(DropReason::NotOurs);
        }
        if arp.op == REPLY {
            return if neighbor { Ok(NetAction::Consumed) } else { Err(DropReason::BadArp) };
        }
        let reply =
            Packet { op: REPLY, sender_mac: mac, sender: arp.target, target_mac: arp.sender_mac, target: arp.sender };
        rewrite(frame, l2, mac, arp.sender_mac, &reply)
    }
}

impl Packet {
    /// RFC 5227 section 1.1: a request for one's own address, from it.
    fn announcement(mac: MacAddr, addr: Addr) -> Packet {
        Packet { op: REQUEST, sender_mac: mac, sender: addr, target_mac: [0; 6], target: addr }
    }
}

/// Turns the received frame into an answer, its tag kept.
fn rewrite(frame: &mut [u8], l2: L2, own: MacAddr, to: MacAddr, arp: &Packet) -> Result<NetAction, DropReason> {
    let start = usize::from(l2.len);
    let end = start.saturating_add(LEN);
    wire::put(frame, start, arp.bytes()).ok_or(DropReason::Truncated)?;
    wire::put(frame, 0, to).ok_or(DropReason::Truncated)?;
    wire::put(frame, 6, own).ok_or(DropReason::Truncated)?;
    let Some(padding) = frame.get_mut(end..wire::MIN_FRAME) else { return Ok(NetAction::Reply(end)) };
    padding.fill(0);
    Ok(NetAction::Reply(wire::MIN_FRAME))
}

impl PortNet {
    /// Asks `mac`, or everyone, who has `target`.
    pub(super) fn arp_request(
        &self,
        source: Addr,
        target: Addr,
        mac: Option<MacAddr>,
        emit: &mut impl FnMut(PortId, &[u8]),
    ) {
        let arp = Packet { op: REQUEST, sender_mac: self.mac, sender: source, target_mac: [0; 6], target };
        self.emit_arp(&arp, mac.unwrap_or(wire::BROADCAST), emit);
    }

    /// Asks whether anyone else uses `addr` (RFC 5227 section 2.1.1).
    pub(super) fn arp_probe(&self, addr: Addr, emit: &mut impl FnMut(PortId, &[u8])) {
        self.arp_request(NOBODY, addr, None, emit);
    }

    /// Says that `addr` is ours (RFC 5227 section 2.3).
    pub(super) fn arp_announce(&self, addr: Addr, emit: &mut impl FnMut(PortId, &[u8])) {
        self.emit_arp(&Packet::announcement(self.mac, addr), wire::BROADCAST, emit);
    }

    fn emit_arp(&self, arp: &Packet, to: MacAddr, emit: &mut impl FnMut(PortId, &[u8])) {
        let mut draft = self.ethernet::<{ wire::MIN_FRAME }>(to, wire::ARP);
        draft.push(&arp.bytes());
        draft.pad();
        emit(self.id, draft.bytes());
    }
}
