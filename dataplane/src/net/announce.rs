//! Making ourselves known, once per appliance: probes and announcements of our addresses (RFC 5227 section 2, RFC 4861 section
//! 7.2.6, RFC 4862 section 5.4), and MLDv2 reports of our solicited-node groups (RFC 3810, RFC 3590), without which a
//! snooping switch would keep solicitations from us.
//!
//! Two rounds two seconds apart (ANNOUNCE_NUM, ANNOUNCE_INTERVAL), then reports for ever. Those are sent unasked, because
//! queries carry a hop-by-hop option and the parser takes no extension headers; the interval is below the 125 s of a querier, so
//! a switch that forgets a silent member after 260 s never forgets us. Invariant: at most [`BATCH`] frames a millisecond.
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

use std::collections::VecDeque;
use std::time::Duration;

use sluice_filters::addr::Addr;
use sluice_filters::checksum;
use sluice_filters::units::{Micros, PortId};

use super::PortNet;
use super::icmp::ipv6_header;
use super::wire::{self, Draft};

/// Frames per [`PAUSE`].
const BATCH: usize = 8;
const PAUSE: Duration = Duration::from_millis(1);
/// RFC 5227 section 1.1: ANNOUNCE_INTERVAL.
const AGAIN: Duration = Duration::from_secs(2);
const REPORT_EVERY: Duration = Duration::from_secs(100);
/// Groups per report: fits IPv6's smallest MTU.
const GROUPS: usize = 32;
/// ff02::16, all MLDv2 routers.
const ROUTERS: Addr = Addr { hi: 0xff02_0000_0000_0000, lo: 0x16 };
/// MODE_IS_EXCLUDE and CHANGE_TO_EXCLUDE_MODE, of nothing: listening to all (RFC 3810 section 5.2.12).
const LISTENING: u8 = 2;
const JOINING: u8 = 4;
const MLD2_REPORT: u8 = 143;
/// A hop-by-hop header (length 8) with a router alert for MLD (RFC 2711) and padding; ICMPv6 follows.
const ROUTER_ALERT: [u8; 8] = [checksum::ICMP6, 0, 5, 2, 0, 0, 1, 0];
const HOP_BY_HOP: u8 = 0;

#[derive(Clone, Copy, Debug)]
enum Job {
    Probe(usize, Addr),
    Announce(usize, Addr),
    /// The groups from this one on.
    Report(usize, usize, u8),
}

/// See the module. Silent until started.
#[derive(Debug, Default)]
pub(super) struct Announcer {
    jobs: VecDeque<Job>,
    /// When the next batch of `jobs` may go.
    next: Micros,
    /// When the next round begins; none = not started.
    round_at: Option<Micros>,
    round: u8,
}

impl Announcer {
    /// Begins with the first round.
    pub(super) fn start(&mut self, now: Micros) {
        *self = Announcer { round_at: Some(now), next: now, ..Announcer::default() };
    }

    /// Sends what is due.
    pub(super) fn poll(&mut self, ports: &[PortNet], now: Micros, emit: &mut impl FnMut(PortId, &[u8])) {
        let Some(at) = self.round_at else { return };
        if now >= at && self.jobs.is_empty() {
            self.plan(ports);
            self.round_at = Some(now.after(if self.round == 0 { AGAIN } else { REPORT_EVERY }));
            self.round = self.round.saturating_add(1).min(2);
        }
        if self.jobs.is_empty() || now < self.next {
            return;
        }
        self.next = now.after(PAUSE);
        for job in self.jobs.drain(..BATCH.min(self.jobs.len())) {
            job.run(ports, emit);
        }
    }

    fn plan(&mut self, ports: &[PortNet]) {
        let addresses = || ports.iter().enumerate().flat_map(|(i, p)| p.answers.iter().map(move |&a| (i, a)));
        let kind = if self.round < 2 { JOINING } else { LISTENING };
        for (i, port) in ports.iter().enumerate() {
            let starts = (0..groups(port).count()).step_by(GROUPS);
            self.jobs.extend(starts.map(|first| Job::Report(i, first, kind)));
        }
        if self.round == 0 {
            self.jobs.extend(addresses().map(|(i, a)| Job::Probe(i, a)));
        }
        if self.round < 2 {
            self.jobs.extend(addresses().map(|(i, a)| Job::Announce(i, a)));
        }
    }
}

impl Job {
    fn run(self, ports: &[PortNet], emit: &mut impl FnMut(PortId, &[u8])) {
        let (Job::Probe(i, _) | Job::Announce(i, _) | Job::Report(i, ..)) = self;
        let Some(port) = ports.get(i) else { return };
        match self {
            Job::Probe(_, addr) if addr.is_v4() => port.arp_probe(addr, emit),
            Job::Probe(_, addr) => port.ndp_probe(addr, emit),
            Job::Announce(_, addr) if addr.is_v4() => port.arp_announce(addr, emit),
            Job::Announce(_, addr) => port.ndp_announce(addr, emit),
            Job::Report(_, first, kind) => report(port, first, kind, emit),
        }
    }
}

/// The groups to listen to on a port. Addresses that end alike share one; naming it twice does no harm.
fn groups(port: &PortNet) -> impl Iterator<Item = Addr> {
    port.answers.iter().filter(|a| !a.is_v4()).map(|&a| wire::solicited_node(a))
}

/// Sends an MLDv2 report (RFC 3810 section 5.2) of up to [`GROUPS`] groups.
fn report(port: &PortNet, first: usize, kind: u8, emit: &mut impl FnMut(PortId, &[u8])) {
    let Some(source) = port.addresses.iter().map(|a| a.addr).find(|&a| wire::is_link_local(a)) else { return };
    let mut records = Draft::<{ 20 * GROUPS }>::new();
    let mut count = 0_u16;
    for group in groups(port).skip(first).take(GROUPS) {
        records.push(&[kind, 0, 0, 0]);
        records.push(&group.octets());
        count = count.saturating_add(1);
    }
    let mut message = Draft::<{ 8 + 20 * GROUPS }>::new();
    message.push(&[MLD2_REPORT, 0, 0, 0, 0, 0]);
    message.push(&count.to_be_bytes());
    message.push(records.bytes());
    let check = checksum::icmp6_checksum(message.bytes(), source, ROUTERS);
    message.put(2, check.to_be_bytes());
    let len = u16::try_from(message.bytes().len()).unwrap_or(0).saturating_add(8);
    let mut frame = port.ethernet::<{ 18 + 40 + 8 + 8 + 20 * GROUPS }>(wire::group_mac(ROUTERS), wire::IPV6);
    frame.push(&ipv6_header(source, ROUTERS, HOP_BY_HOP, len, 1));
    frame.push(&ROUTER_ALERT);
    frame.push(message.bytes());
    emit(port.id, frame.bytes());
}
