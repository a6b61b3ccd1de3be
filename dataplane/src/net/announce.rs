//! Making ourselves known, once per appliance: probes and announcements of our addresses (RFC 5227 section 2, RFC 4861 section
//! 7.2.6, RFC 4862 section 5.4), and MLDv2 reports of our solicited-node groups (RFC 3810, RFC 3590), without which a
//! snooping switch would keep solicitations from us.
//!
//! Two rounds two seconds apart (ANNOUNCE_NUM, ANNOUNCE_INTERVAL), then reports for ever. Those are sent unasked, because
//! queries carry a hop-by-hop option and the parser takes no extension headers; the interval is below the 125 s of a querier, so
//! a switch that forgets a silent member after 260 s never forgets us. Invariant: at most [`BATCH`] frames a millisecond.

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

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::super::script::*;

    use super::*;

    /// The frames of the next `seconds`, in order, with the second they were sent in.
    fn collect(t: &mut Script, seconds: u64) -> Vec<(u64, PortId, Vec<u8>)> {
        let start = t.now.0;
        let mut sent = Vec::new();
        for _ in 0..seconds * 100 {
            let second = (t.now.0 - start) / 1_000_000;
            sent.extend(t.poll().into_iter().map(|(port, frame)| (second, port, frame)));
            t.wait_ms(10);
        }
        sent
    }

    /// (groups, record type) of an MLD report; its headers are checked.
    fn report(frame: &[u8], l2: usize) -> Option<(HashSet<Addr>, u8)> {
        let p = &frame[l2..];
        if p[0] >> 4 != 6 || p[6] != 0 {
            return None;
        }
        assert_eq!(frame[..6], [0x33, 0x33, 0, 0, 0, 0x16]);
        assert_eq!(usize::from(u16::from_be_bytes([p[4], p[5]])), p.len() - 40);
        assert_eq!(p[7], 1, "hop limit");
        let src = Addr::v6(p[8..24].try_into().unwrap());
        assert!(wire::is_link_local(src));
        assert_eq!(p[24..40], ROUTERS.octets());
        assert_eq!(p[40..48], [58, 0, 5, 2, 0, 0, 1, 0]);
        let m = &p[48..];
        assert!(checksum::pseudo_header(src, ROUTERS, 58, m.len()).bytes(m).is_valid());
        assert_eq!((m[0], m[1]), (143, 0));
        let records: Vec<&[u8]> = m[8..].chunks(20).collect();
        assert_eq!(usize::from(u16::from_be_bytes([m[6], m[7]])), records.len());
        assert!(records.iter().all(|r| r[0] == records[0][0] && r[1..4] == [0, 0, 0]));
        Some((records.iter().map(|r| Addr::v6(r[4..20].try_into().unwrap())).collect(), records[0][0]))
    }

    #[test]
    fn nothing_is_announced_until_asked_for() {
        let mut t = Script::two_arm();
        assert_eq!(collect(&mut t, 300), []);
    }

    #[test]
    fn every_ipv4_address_is_probed_once_and_announced_twice_where_it_is_on_link() {
        let mut t = Script::two_arm();
        t.net.announce(t.now);
        let sent = collect(&mut t, 300);
        for (port, at, mac, addr) in [
            (WAN, 14, WAN_MAC, "198.51.100.2"),
            (WAN, 14, WAN_MAC, "198.51.100.10"),
            (LAN, 18, LAN_MAC, "10.0.0.2"),
            (LAN, 18, LAN_MAC, "10.0.0.20"),
        ] {
            let arp: Vec<(u64, Arp)> = sent
                .iter()
                .filter(|(_, p, f)| *p == port && f[at - 2..at] == [8, 6])
                .map(|(s, _, f)| (*s, Arp::read(f, at)))
                .filter(|(_, a)| a.tpa == ip(addr))
                .collect();
            let announcement = Arp { op: 1, sha: mac, spa: ip(addr), tha: [0; 6], tpa: ip(addr) };
            let probe = Arp { spa: ip("0.0.0.0"), ..announcement };
            assert_eq!(arp, [(0, probe), (0, announcement), (2, announcement)], "{addr}");
        }
        let arp = sent.iter().filter(|(_, _, f)| f[12..14] == [8, 6] || f[16..18] == [8, 6]).count();
        assert_eq!(arp, 4 * 3, "and no other, the routed address above all");
    }

    #[test]
    fn every_ipv6_address_is_probed_once_and_announced_twice() {
        let mut t = Script::two_arm();
        t.net.announce(t.now);
        let sent = collect(&mut t, 10);
        let wan: Vec<&Vec<u8>> = sent
            .iter()
            .filter(|(_, p, f)| *p == WAN && f[12..14] == [0x86, 0xdd] && report(f, 14).is_none())
            .map(|(_, _, f)| f)
            .collect();
        assert_eq!(wan.len(), 3 * 3); // own, link-local, the service's
        for addr in ["2001:db8::2", "2001:db8::10", "fe80::ff:fe00:2"] {
            let nd: Vec<Nd> = wan.iter().map(|f| Nd::read(f)).filter(|n| n.target == ip(addr)).collect();
            let group = wire::solicited_node(ip(addr));
            let probe = Nd {
                to: wire::group_mac(group),
                from: WAN_MAC,
                src: ip("::"),
                dst: group,
                kind: 135,
                flags: 0,
                target: ip(addr),
                option: None,
            };
            let announcement = Nd {
                to: [0x33, 0x33, 0, 0, 0, 1],
                src: ip(addr),
                dst: ip("ff02::1"),
                kind: 136,
                flags: 0x20,
                option: Some((2, WAN_MAC)),
                ..probe
            };
            assert_eq!(nd, [probe, announcement, announcement], "{addr}");
        }
    }

    #[test]
    fn groups_are_reported_twice_at_once_and_then_for_ever() {
        let mut t = Script::two_arm();
        t.net.announce(t.now);
        let sent = collect(&mut t, 310);
        for (port, l2) in [(WAN, 14), (LAN, 18)] {
            let reports: Vec<_> = sent
                .iter()
                .filter(|(_, p, _)| *p == port)
                .filter_map(|(s, _, f)| report(f, l2).map(|(groups, kind)| (*s, groups, kind)))
                .collect();
            let times: Vec<_> = reports.iter().map(|(s, _, kind)| (*s, *kind)).collect();
            assert_eq!(times, [(0, JOINING), (2, JOINING), (102, LISTENING), (202, LISTENING), (302, LISTENING)]);
            if port == WAN {
                assert_eq!(reports[0].1, HashSet::from(["ff02::1:ff00:2", "ff02::1:ff00:10"].map(ip)));
            }
        }
    }

    #[test]
    fn a_port_without_ipv6_sends_none() {
        let mut t = Script::one_arm();
        t.net.announce(t.now);
        let sent = collect(&mut t, 300);
        assert_eq!(sent.len(), 3 * 3);
        assert!(sent.iter().all(|(_, _, f)| f[12..14] == [8, 6]));
    }

    #[test]
    fn many_addresses_are_announced_a_few_a_millisecond() {
        let listen: Vec<String> = (1..=200).map(|n| format!("\"[2001:db8::1:{n:x}]:443\"")).collect();
        let config = format!(
            "[[port]]\nname = \"wan\"\ndevice = \"net_null0\"\naddresses = [\"2001:db8::2/64\"]\n\
             [[service]]\nname = \"web\"\nlisten = [{}]\n[[service.upstream]]\naddress = \"[2001:db8::5]:443\"\n",
            listen.join(", ")
        );
        let mut t = Script::of(&config, &[WAN_MAC]);
        t.net.announce(t.now);
        let (mut sent, mut groups) = (0, HashSet::new());
        for _ in 0..200 {
            let batch = t.poll();
            assert!(batch.len() <= BATCH && t.poll().is_empty());
            sent += batch.len();
            groups.extend(batch.iter().filter_map(|(_, f)| report(f, 14)).flat_map(|(groups, _)| groups));
            assert!(batch.iter().all(|(_, f)| f.len() <= 14 + 1280));
            t.wait_ms(1);
        }
        assert_eq!((sent, groups.len()), (202 * 2 + 202_usize.div_ceil(GROUPS), 201)); // own and link-local end alike
    }

    #[test]
    fn whoever_answers_a_probe_is_a_conflict() {
        let mut t = Script::two_arm();
        let reply = Arp::reply("198.51.100.10", "0.0.0.0", WAN_MAC).from(OTHER).frame(WAN_MAC);
        assert!(t.rx(WAN, &reply).unwrap().is_some());
        let nodes = [0x33, 0x33, 0, 0, 0, 1];
        let message = nd(136, 0x20, "2001:db8::10", Some((2, OTHER)));
        assert!(t.rx(WAN, &icmp6("2001:db8::10", "ff02::1", 255, nodes, &message)).unwrap().is_some());
        assert_eq!(t.net.conflicts(), 2);
    }
}
