//! Which worker owns a flow.
//!
//! A flow belongs to one worker for life. Where the device spreads flows itself (RSS), the worker that receives a client's
//! segment owns its flow, and upstream connections get source ports whose answers hash to the same worker: Toeplitz with the
//! device's own key and redirection table. Where it does not (virtual devices, single queues), owners are computed from the
//! packet, the same by every worker, and frames that came to another are handed over: clients by the flow table's keyed
//! hash, upstreams by our own port, which their owner chose to name it.

use sluice_filters::addr::{Addr, FlowKey};
use sluice_filters::units::{PortId, WorkerId};
use sluice_tcpstack::net::Division;

use crate::dpdk::RssInfo;

/// The rule for one appliance, shared by its workers.
#[derive(Debug)]
pub struct Steer {
    workers: u8,
    /// By port; none where the device does not spread TCP flows over all workers.
    spreads: Vec<Option<Spread>>,
    in_software: bool,
}

impl Steer {
    /// For `workers` workers and ports with what their devices do.
    #[must_use]
    pub fn new(workers: u8, rss: Vec<Option<RssInfo>>) -> Steer {
        // One port without RSS is enough: its frames must find flows that another port's RSS placed.
        let in_software = workers > 1 && rss.iter().any(Option::is_none);
        let spreads = rss.into_iter().map(|rss| rss.map(Spread::new)).collect();
        Steer { workers: workers.max(1), spreads, in_software }
    }

    /// Whether frames may arrive at a worker that does not own their flow.
    #[inline]
    #[must_use]
    pub fn in_software(&self) -> bool {
        self.in_software
    }

    /// The owner of a client's flow with this keyed hash, which arrived at `here`.
    #[inline]
    #[must_use]
    pub fn client(&self, hash: u64, here: WorkerId) -> WorkerId {
        if self.in_software { WorkerId((hash >> 32).checked_rem(self.workers.into()).unwrap_or(0) as u8) } else { here }
    }

    /// The owner of an upstream's flow towards our port `dst_port`, which arrived at `here`.
    #[inline]
    #[must_use]
    pub fn upstream(&self, dst_port: u16, here: WorkerId) -> WorkerId {
        if self.in_software { WorkerId(dst_port.checked_rem(self.workers.into()).unwrap_or(0) as u8) } else { here }
    }

    /// The owner of a flow whose segments have `key` (as received on `port`) and this keyed hash, whoever received what is about it.
    /// `service` says that the flow is a client's.
    #[must_use]
    pub fn owner(&self, key: &FlowKey, hash: u64, port: PortId, service: bool, here: WorkerId) -> WorkerId {
        if self.in_software {
            return if service { self.client(hash, here) } else { self.upstream(key.dst_port, here) };
        }
        self.spread(port).and_then(|spread| spread.owner(toeplitz(&spread.rss.key, key))).unwrap_or(here)
    }

    /// How our ports are divided among workers, of flows whose segments have `key` (as received on `port`) but for our port.
    #[must_use]
    pub fn division(&self, key: &FlowKey, port: PortId) -> Division {
        let spread = if self.in_software { None } else { self.spread(port) };
        let word = spread.map_or(0, |spread| toeplitz(&spread.rss.key, &FlowKey { dst_port: 0, ..*key }));
        Division { port, v4: key.src.is_v4() && key.dst.is_v4(), word }
    }

    /// The owner of an upstream's flow towards our port `dst_port`, where all are `here` that nothing divides.
    #[must_use]
    #[allow(clippy::indexing_slicing, reason = "an octet's place in a table of 256")]
    pub fn port_owner(&self, division: &Division, dst_port: u16, here: WorkerId) -> WorkerId {
        if self.in_software {
            return self.upstream(dst_port, here);
        }
        let Some(spread) = self.spread(division.port) else { return here };
        let [high, low] = dst_port.to_be_bytes();
        // The hash is linear: what each octet of the port adds to it does not depend on the rest.
        let [highs, lows] = if division.v4 { &*spread.ports4 } else { &*spread.ports6 };
        let hash = division.word ^ highs[usize::from(high)] ^ lows[usize::from(low)];
        spread.owner(hash).unwrap_or(here)
    }

    /// How the device spreads; none when all comes to one queue.
    fn spread(&self, port: PortId) -> Option<&Spread> {
        self.spreads.get(usize::from(port.0))?.as_ref().filter(|_| self.workers > 1)
    }
}

/// What octets of our port add to a hash, first the high one's.
type PortHashes = Box<[[u32; 256]; 2]>;

/// How a device spreads flows over the workers.
#[derive(Debug)]
struct Spread {
    rss: RssInfo,
    ports4: PortHashes,
    ports6: PortHashes,
}

impl Spread {
    #[allow(clippy::indexing_slicing, reason = "an octet's place in a table of 256")]
    fn new(rss: RssInfo) -> Spread {
        let hashes = |addr: Addr| {
            let none = FlowKey { src: addr, dst: addr, src_port: 0, dst_port: 0 };
            let without = toeplitz(&rss.key, &none);
            let added = |dst_port| toeplitz(&rss.key, &FlowKey { dst_port, ..none }) ^ without;
            let mut hashes = Box::new([[0; 256]; 2]);
            for octet in 0..=255_u8 {
                hashes[0][usize::from(octet)] = added(u16::from(octet) << 8);
                hashes[1][usize::from(octet)] = added(u16::from(octet));
            }
            hashes
        };
        let (ports4, ports6) = (hashes(Addr::v4(0)), hashes(Addr::v6([0; 16])));
        Spread { rss, ports4, ports6 }
    }

    /// Whose queue a hash names.
    fn owner(&self, hash: u32) -> Option<WorkerId> {
        let table = &self.rss.table;
        let queue = table.get(hash as usize & table.len().wrapping_sub(1))?;
        u8::try_from(*queue).ok().map(WorkerId)
    }
}

/// The hash that network adapters compute over addresses and ports (Microsoft's RSS specification, "RSS hashing functions").
#[must_use]
#[allow(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "places known here in an array of known length"
)]
fn toeplitz(secret: &[u8], key: &FlowKey) -> u32 {
    let mut input = [0; 36];
    let addresses = if key.src.is_v4() && key.dst.is_v4() {
        input[..4].copy_from_slice(&key.src.v4_bits().to_be_bytes());
        input[4..8].copy_from_slice(&key.dst.v4_bits().to_be_bytes());
        8
    } else {
        input[..16].copy_from_slice(&key.src.octets());
        input[16..32].copy_from_slice(&key.dst.octets());
        32
    };
    input[addresses..addresses + 2].copy_from_slice(&key.src_port.to_be_bytes());
    input[addresses + 2..addresses + 4].copy_from_slice(&key.dst_port.to_be_bytes());

    let mut hash = 0;
    // The 32 bits of the secret that stand under the current input bit.
    let mut octets = secret.iter().copied().chain(std::iter::repeat(0));
    let mut window = octets.by_ref().take(4).fold(0_u32, |bits, octet| bits << 8 | u32::from(octet));
    for (octet, coming) in input[..addresses + 4].iter().zip(octets) {
        for bit in (0..8).rev() {
            if octet >> bit & 1 == 1 {
                hash ^= window;
            }
            window = window << 1 | u32::from(coming >> bit & 1);
        }
    }
    hash
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::dpdk::HashTypes;

    /// The key and the vectors of Microsoft's "Verifying the RSS hash calculation".
    const KEY: [u8; 40] = [
        0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0, 0xd0, 0xca,
        0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c, 0x6a, 0x42, 0xb7, 0x3b,
        0xbe, 0xac, 0x01, 0xfa,
    ];

    fn key(src: &str, src_port: u16, dst: &str, dst_port: u16) -> FlowKey {
        let addr = |text: &str| text.parse::<IpAddr>().unwrap().into();
        FlowKey { src: addr(src), dst: addr(dst), src_port, dst_port }
    }

    #[test]
    fn toeplitz_gives_the_published_values() {
        let vectors = [
            (key("66.9.149.187", 2794, "161.142.100.80", 1766), 0x51cc_c178),
            (key("199.92.111.2", 14230, "65.69.140.83", 4739), 0xc626_b0ea),
            (key("24.19.198.95", 12898, "12.22.207.184", 38024), 0x5c2b_394a),
            (key("3ffe:2501:200:1fff::7", 2794, "3ffe:2501:200:3::1", 1766), 0x4020_7d3d),
            (key("3ffe:501:8::260:97ff:fe40:efab", 14230, "ff02::1", 4739), 0xdde5_1bbf),
        ];
        for (key, hash) in vectors {
            assert_eq!(toeplitz(&KEY, &key), hash, "{key:?}");
        }
    }

    #[test]
    fn every_port_has_one_owner_in_software() {
        let steer = Steer::new(3, vec![None]);
        for port in 1024..2048 {
            let key = key("10.0.0.1", 80, "10.0.0.2", port);
            let division = steer.division(&key, PortId(0));
            let owner = steer.port_owner(&division, port, WorkerId(9));
            assert!(owner.0 < 3);
            assert_eq!(owner, steer.owner(&key, 0, PortId(0), false, WorkerId(9)));
        }
    }

    #[test]
    fn with_rss_the_redirection_table_names_the_owner() {
        let rss = RssInfo {
            key: KEY.to_vec(),
            table: vec![0, 1, 0, 1],
            hash_types: HashTypes { ipv4: true, tcp4: true, ipv6: true, tcp6: true },
        };
        let steer = Steer::new(2, vec![Some(rss)]);
        assert!(!steer.in_software());
        // 0x51ccc178 & 3 = 0: queue 0.
        let key = key("66.9.149.187", 2794, "161.142.100.80", 1766);
        let division = steer.division(&key, PortId(0));
        assert_eq!(steer.port_owner(&division, key.dst_port, WorkerId(1)), WorkerId(0));
        assert_eq!(steer.owner(&key, 0, PortId(0), true, WorkerId(1)), WorkerId(0));
    }

    /// The owner computed from a pair's word and a port's is the one that the device's hash of the whole names.
    #[test]
    fn a_ports_owner_is_the_queue_of_its_flow() {
        let rss = |seed: u8| RssInfo {
            key: (0..40).map(|at: u8| at.wrapping_mul(seed).rotate_left(3) ^ 0x5a).collect(),
            table: (0..128).map(|at: u16| (at * 7 + u16::from(seed)) % 5).collect(),
            hash_types: HashTypes { ipv4: true, tcp4: true, ipv6: true, tcp6: true },
        };
        let steer = Steer::new(5, vec![Some(rss(31)), Some(rss(77))]);
        for (upstream, source) in [("10.0.0.5", "10.0.0.2"), ("fd00::5", "2001:db8::7:2")] {
            for port in [PortId(0), PortId(1)] {
                for upstream_port in [1, 80, 65_535] {
                    let division = steer.division(&key(upstream, upstream_port, source, 4_711), port);
                    for ours in 0..=u16::MAX {
                        let whole = key(upstream, upstream_port, source, ours);
                        let expected = steer.owner(&whole, 0, port, false, WorkerId(9));
                        assert_eq!(steer.port_owner(&division, ours, WorkerId(9)), expected, "{whole:?}");
                    }
                }
            }
        }
    }
}
