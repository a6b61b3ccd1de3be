//! Which worker owns a flow.
//!
//! A flow belongs to one worker for life. Where the device spreads flows itself (RSS), the worker that receives a client's
//! segment owns its flow, and upstream connections get source ports whose answers hash to the same worker: Toeplitz with the
//! device's own key and redirection table. Where it does not (virtual devices, single queues), owners are computed from the
//! packet, the same by every worker, and frames that came to another are handed over: clients by the flow table's keyed
//! hash, upstreams by our own port, which their owner chose to name it.

use sluice_filters::addr::FlowKey;
use sluice_filters::units::{PortId, WorkerId};

use crate::dpdk::RssInfo;

/// The rule for one appliance, shared by its workers.
#[derive(Debug)]
pub struct Steer {
    workers: u8,
    /// By port; none where the device does not spread TCP flows over all workers.
    rss: Vec<Option<RssInfo>>,
    in_software: bool,
}

impl Steer {
    /// For `workers` workers and ports with what their devices do.
    #[must_use]
    pub fn new(workers: u8, rss: Vec<Option<RssInfo>>) -> Steer {
        // One port without RSS is enough: its frames must find flows that another port's RSS placed.
        let in_software = workers > 1 && rss.iter().any(Option::is_none);
        Steer { workers: workers.max(1), rss, in_software }
    }

    /// Whether frames may arrive at a worker that does not own their flow.
    #[inline]
    #[must_use]
    pub fn in_software(&self) -> bool {
        self.in_software
    }

    /// Whether the answer of [`Steer::owns`] depends on the port.
    #[must_use]
    pub fn depends_on_port(&self) -> bool {
        self.workers > 1 && !self.in_software
    }

    /// The owner of a client's flow with this keyed hash, which arrived at `here`.
    #[inline]
    #[must_use]
    pub fn client(&self, hash: u64, here: WorkerId) -> WorkerId {
        if self.in_software { WorkerId(((hash >> 32) % u64::from(self.workers)) as u8) } else { here }
    }

    /// The owner of an upstream's flow towards our port `dst_port`, which arrived at `here`.
    #[inline]
    #[must_use]
    pub fn upstream(&self, dst_port: u16, here: WorkerId) -> WorkerId {
        if self.in_software { WorkerId((dst_port % u16::from(self.workers)) as u8) } else { here }
    }

    /// The owner of a flow whose segments have `key` (as received on `port`) and this keyed hash, whoever received what is about it.
    /// `service` says that the flow is a client's.
    #[must_use]
    pub fn owner(&self, key: &FlowKey, hash: u64, port: PortId, service: bool, here: WorkerId) -> WorkerId {
        if self.in_software {
            return if service { self.client(hash, here) } else { self.upstream(key.dst_port, here) };
        }
        self.queue(key, port).and_then(|queue| u8::try_from(queue).ok()).map_or(here, WorkerId)
    }

    /// Whether segments with `key` (as received) that arrive on `port` come to `worker`.
    #[must_use]
    pub fn owns(&self, key: &FlowKey, port: PortId, worker: WorkerId) -> bool {
        if self.in_software {
            return self.upstream(key.dst_port, worker) == worker;
        }
        self.queue(key, port).is_none_or(|queue| queue == u16::from(worker.0))
    }

    /// The queue that the device puts segments with `key` into; none when it has only one.
    fn queue(&self, key: &FlowKey, port: PortId) -> Option<u16> {
        let rss = self.rss.get(usize::from(port.0))?.as_ref().filter(|_| self.workers > 1)?;
        let hash = toeplitz(&rss.key, key);
        rss.table.get(hash as usize & rss.table.len().wrapping_sub(1)).copied()
    }
}

/// The hash that network adapters compute over addresses and ports (Microsoft's RSS specification, "RSS hashing functions").
#[must_use]
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
            let owners = (0..3).filter(|worker| steer.owns(&key, PortId(0), WorkerId(*worker))).count();
            assert_eq!(owners, 1);
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
        assert!(steer.owns(&key, PortId(0), WorkerId(0)));
        assert!(!steer.owns(&key, PortId(0), WorkerId(1)));
        assert_eq!(steer.owner(&key, 0, PortId(0), true, WorkerId(1)), WorkerId(0));
    }
}
