//! Limits that all workers share: connections of a service, and of one source. Touched when a connection opens or ends, never
//! per packet; the locks are sharded by source and held for one map access.
//!
//! A source, and a prefix (IPv4 /24, IPv6 /48), may hold as much of a service as it likes while there is plenty. When only a quarter is left,
//! those that hold their share already get no more of it: whoever takes all that there is takes it from nobody.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use siphasher::sip::SipHasher13;
use sluice_config::{Config, Service};
use sluice_filters::addr::Addr;
use sluice_filters::units::ServiceId;

use crate::ports;

/// Sources whose counts one lock holds, on average and at most: what a table copies when it grows is bounded.
const SHARD: usize = 512;
/// Prefixes that share: those of the ceiling of SYN-ACKs.
const PREFIX_V4: u8 = 24;
const PREFIX_V6: u8 = 48;

/// Why a validated client is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// `limits.connections`
    Connections,
    /// `limits.connections_per_source`
    Source,
    /// `limits.share`
    Share,
}

/// One service's limits.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    connections: u32,
    /// 0 = none.
    per_source: u32,
    /// Connections from which on what is left is for those below their share.
    scarce: u32,
    share: u32,
}

impl Bounds {
    fn of(service: &Service) -> Bounds {
        let limits = service.limits;
        // Each connection takes a port.
        let ports = u32::try_from(service.source_pairs()).unwrap_or(u32::MAX).saturating_mul(ports::COUNT);
        let capacity = limits.connections.min(ports);
        let share = (u64::from(capacity).saturating_mul(u64::from(limits.share)) / 100).max(1) as u32;
        Bounds {
            connections: limits.connections,
            per_source: limits.connections_per_source,
            scarce: if limits.share >= 100 { u32::MAX } else { capacity.saturating_sub(capacity / 4) },
            share,
        }
    }
}

/// Counts of live connections, shared by all workers.
#[derive(Debug)]
pub struct SharedLimits {
    bounds: Vec<Bounds>,
    active: Vec<AtomicU32>,
    // Source addresses are an attacker's choice: the hash has a secret key. Bounded by `connections`.
    shards: Vec<Mutex<Counts>>,
    keyed: Keyed,
    source_v6: u8,
}

/// Connections of a service's prefix, all of it or one source of it.
type Counts = HashMap<(ServiceId, Addr, Whole), u32, Keyed>;

/// Whether a count is a whole prefix's.
type Whole = bool;

#[derive(Clone, Copy)]
struct Keyed([u64; 2]);

impl std::fmt::Debug for Keyed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Keyed(..)")
    }
}

impl BuildHasher for Keyed {
    type Hasher = SipHasher13;

    fn build_hasher(&self) -> SipHasher13 {
        SipHasher13::new_with_keys(self.0[0], self.0[1])
    }
}

impl SharedLimits {
    /// No connections yet. `secret` keys the map of sources.
    #[must_use]
    pub fn new(config: &Config, secret: [u64; 2]) -> SharedLimits {
        let bounds: Vec<Bounds> = config.services.iter().map(Bounds::of).collect();
        SharedLimits::with(bounds, config.filters.source_prefix_v6, Keyed(secret))
    }

    fn with(bounds: Vec<Bounds>, source_v6: u8, keyed: Keyed) -> SharedLimits {
        let most: usize = bounds.iter().map(|bounds| bounds.connections as usize).sum();
        let shards = (most / SHARD).next_power_of_two().clamp(64, 1 << 16);
        SharedLimits {
            active: bounds.iter().map(|_| AtomicU32::new(0)).collect(),
            bounds,
            shards: (0..shards).map(|_| Mutex::new(HashMap::with_hasher(keyed))).collect(),
            keyed,
            source_v6,
        }
    }

    /// Counts one connection more, if there may be one. A `source` that is not known yet is [named](SharedLimits::name) later.
    ///
    /// # Errors
    /// The limit that stands against it; nothing was counted then.
    pub fn open(&self, service: ServiceId, source: Option<Addr>) -> Result<(), Refusal> {
        let (Some(bounds), Some(active)) = (self.bounds(service), self.active.get(usize::from(service.0))) else {
            return Err(Refusal::Connections);
        };
        if active.fetch_add(1, Ordering::Relaxed) >= bounds.connections {
            active.fetch_sub(1, Ordering::Relaxed);
            return Err(Refusal::Connections);
        }
        if let Some(source) = source
            && let Err(refusal) = self.name(service, source)
        {
            active.fetch_sub(1, Ordering::Relaxed);
            return Err(refusal);
        }
        Ok(())
    }

    /// Counts a connection that is already open among its source's and its prefix's.
    ///
    /// # Errors
    /// [`Refusal::Source`] or [`Refusal::Share`]; it was not counted then.
    pub fn name(&self, service: ServiceId, source: Addr) -> Result<(), Refusal> {
        let (Some(bounds), Some(active)) = (self.bounds(service), self.active.get(usize::from(service.0))) else {
            return Ok(());
        };
        let scarce = active.load(Ordering::Relaxed) > bounds.scarce;
        let keys = self.keys(service, source);
        let mut shard = self.shard(&keys);
        let [of_source, of_prefix] = keys.map(|key| shard.get(&key).copied().unwrap_or(0));
        if bounds.per_source > 0 && of_source >= bounds.per_source {
            return Err(Refusal::Source);
        }
        if scarce && of_source.max(of_prefix) >= bounds.share {
            return Err(Refusal::Share);
        }
        for key in keys {
            let count = shard.entry(key).or_insert(0);
            *count = count.saturating_add(1);
        }
        Ok(())
    }

    /// Counts one connection less, of the source it was counted for.
    pub fn close(&self, service: ServiceId, source: Option<Addr>) {
        let Some(active) = self.active.get(usize::from(service.0)) else { return };
        active.fetch_sub(1, Ordering::Relaxed);
        let Some(source) = source else { return };
        let keys = self.keys(service, source);
        let mut shard = self.shard(&keys);
        for key in keys {
            if let Some(count) = shard.get_mut(&key) {
                *count = count.saturating_sub(1);
                if *count == 0 {
                    shard.remove(&key);
                }
            }
        }
    }

    fn bounds(&self, service: ServiceId) -> Option<&Bounds> {
        self.bounds.get(usize::from(service.0))
    }

    /// A source's count and its prefix's.
    fn keys(&self, service: ServiceId, source: Addr) -> [(ServiceId, Addr, Whole); 2] {
        let prefix = source.prefix(PREFIX_V4, PREFIX_V6.min(self.source_v6));
        [(service, source.source(self.source_v6), false), (service, prefix, true)]
    }

    /// Where both counts are.
    #[allow(clippy::indexing_slicing, reason = "there is a power of two of them, and less than that is asked for")]
    fn shard(&self, [_, of_prefix]: &[(ServiceId, Addr, Whole); 2]) -> MutexGuard<'_, Counts> {
        let hash = self.keyed.hash_one(of_prefix);
        let shard = &self.shards[hash as usize & self.shards.len().wrapping_sub(1)];
        shard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(connections: u32, per_source: u32, share: u32) -> SharedLimits {
        let scarce = connections - connections / 4;
        SharedLimits::with(vec![Bounds { connections, per_source, scarce, share }], 64, Keyed([1, 2]))
    }

    const S: ServiceId = ServiceId(0);

    fn v6(hi: u64, lo: u64) -> Addr {
        Addr { hi, lo }
    }

    #[test]
    fn a_service_takes_its_limit_and_no_more() {
        let limits = limits(2, 0, 2);
        assert_eq!(limits.open(S, Some(Addr::v4(1))), Ok(()));
        assert_eq!(limits.open(S, Some(Addr::v4(1))), Ok(()));
        assert_eq!(limits.open(S, Some(Addr::v4(2))), Err(Refusal::Connections));
        limits.close(S, Some(Addr::v4(1)));
        assert_eq!(limits.open(S, Some(Addr::v4(2))), Ok(()));
    }

    #[test]
    fn a_source_at_its_limit_does_not_use_up_the_service() {
        let limits = limits(2, 1, 2);
        assert_eq!(limits.open(S, Some(Addr::v4(1))), Ok(()));
        for _ in 0..10 {
            assert_eq!(limits.open(S, Some(Addr::v4(1))), Err(Refusal::Source));
        }
        assert_eq!(limits.open(S, Some(Addr::v4(2))), Ok(()));
    }

    /// One host with 60 addresses of its /64 opened 60 connections at a limit of 5.
    #[test]
    fn all_addresses_of_a_64_are_one_source() {
        let limits = limits(1_000, 5, 1_000);
        let opened = (0..60).filter(|lo| limits.open(S, Some(v6(0x2001_0db8_0000_0001, *lo))).is_ok()).count();
        assert_eq!(opened, 5);
        assert_eq!(limits.open(S, Some(v6(0x2001_0db8_0000_0002, 1))), Ok(()));
        for lo in 0..5 {
            limits.close(S, Some(v6(0x2001_0db8_0000_0001, lo)));
        }
        assert_eq!(limits.open(S, Some(v6(0x2001_0db8_0000_0001, 99))), Ok(()));
    }

    #[test]
    fn the_last_quarter_is_for_those_below_their_share() {
        for hog in [
            (0..1_000).map(|_| Addr::v4(0x0a00_0001)).collect::<Vec<_>>(),
            (0..1_000).map(|n| Addr::v4(0x0a00_0000 | n & 0xff)).collect(),
            (0..1_000).map(|n| v6(0x2001_0db8_0007_0000 | n, n)).collect(),
        ] {
            let limits = limits(100, 0, 10);
            let opened: Vec<Addr> =
                hog.iter().copied().filter(|source| limits.open(S, Some(*source)).is_ok()).collect();
            assert_eq!(opened.len(), 75, "while there is plenty, anybody may have it");
            assert_eq!(limits.open(S, Some(hog[0])), Err(Refusal::Share));
            // Each of the others up to its share.
            let small = (0..2).map(|n| Addr::v4(0xc633_6401 + 0x100 * n));
            for source in small {
                let opened = (0..20).take_while(|_| limits.open(S, Some(source)).is_ok()).count();
                assert_eq!(opened, 10);
            }
            for _ in 0..5 {
                assert_eq!(limits.open(S, Some(Addr::v4(1))), Ok(()));
            }
            assert_eq!(limits.open(S, Some(Addr::v4(1))), Err(Refusal::Connections));
        }
    }

    #[test]
    fn sources_are_forgotten_with_their_last_connection() {
        let limits = limits(10, 5, 10);
        for _ in 0..3 {
            limits.open(S, Some(Addr::v4(9))).unwrap();
        }
        for _ in 0..3 {
            limits.close(S, Some(Addr::v4(9)));
        }
        assert!(limits.shards.iter().all(|shard| shard.lock().unwrap().is_empty()));
    }

    #[test]
    fn what_a_service_can_have_is_bounded_by_its_ports_too() {
        let text = |extra: &str| {
            format!(
                "[[port]]\nname = \"p\"\ndevice = \"net_null0\"\naddresses = [\"198.51.100.2/24\"]\n[[service]]\nname = \"s\"\nlisten = [\"198.51.100.10:443\"]\nlimits = {{ {extra} }}\n[[service.upstream]]\naddress = \"198.51.100.5:80\"\n"
            )
        };
        let bounds = |extra: &str| Bounds::of(&sluice_config::parse("t", &text(extra)).unwrap().services[0]);
        let few = bounds("connections = 1000");
        assert_eq!((few.scarce, few.share), (750, 100));
        let many = bounds("connections = 1000000");
        assert_eq!((many.scarce, many.share), (ports::COUNT - ports::COUNT / 4, ports::COUNT / 10));
        assert_eq!(bounds("connections = 1000, share = 100").scarce, u32::MAX);
        assert_eq!(bounds("connections = 1").scarce, 1);
    }
}
