//! Limits that all workers share: connections of a service, and of one source. Touched when a connection opens or ends, never
//! per packet; the locks are sharded by source and held for one map access.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use siphasher::sip::SipHasher13;
use sluice_config::{Config, Limits};
use sluice_filters::addr::Addr;
use sluice_filters::units::ServiceId;

const SHARDS: usize = 64;

/// Why a validated client is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// `limits.connections`
    Connections,
    /// `limits.connections_per_source`
    Source,
}

/// Counts of live connections, shared by all workers.
#[derive(Debug)]
pub struct SharedLimits {
    limits: Vec<Limits>,
    active: Vec<AtomicU32>,
    // Source addresses are an attacker's choice: the hash has a secret key. Bounded by `connections`.
    sources: Vec<Mutex<Sources>>,
    keyed: Keyed,
}

type Sources = HashMap<(ServiceId, Addr), u32, Keyed>;

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
        let keyed = Keyed(secret);
        SharedLimits {
            limits: config.services.iter().map(|service| service.limits).collect(),
            active: config.services.iter().map(|_| AtomicU32::new(0)).collect(),
            sources: (0..SHARDS).map(|_| Mutex::new(HashMap::with_hasher(keyed))).collect(),
            keyed,
        }
    }

    /// Counts one connection more, if there may be one. A `source` that is not known yet is [named](SharedLimits::name) later.
    ///
    /// # Errors
    /// The limit that stands against it; nothing was counted then.
    pub fn open(&self, service: ServiceId, source: Option<Addr>) -> Result<(), Refusal> {
        let (Some(limits), Some(active)) =
            (self.limits.get(usize::from(service.0)), self.active.get(usize::from(service.0)))
        else {
            return Err(Refusal::Connections);
        };
        if active.fetch_add(1, Ordering::Relaxed) >= limits.connections {
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

    /// Counts a connection that is already open among its source's.
    ///
    /// # Errors
    /// [`Refusal::Source`]; it was not counted then.
    pub fn name(&self, service: ServiceId, source: Addr) -> Result<(), Refusal> {
        let most = self.limits.get(usize::from(service.0)).map_or(0, |limits| limits.connections_per_source);
        if most > 0 {
            let mut shard = self.shard(service, source).lock().unwrap_or_else(PoisonError::into_inner);
            let count = shard.entry((service, source)).or_insert(0);
            if *count >= most {
                return Err(Refusal::Source);
            }
            *count += 1;
        }
        Ok(())
    }

    /// Counts one connection less, of the source it was counted for.
    pub fn close(&self, service: ServiceId, source: Option<Addr>) {
        let (Some(limits), Some(active)) =
            (self.limits.get(usize::from(service.0)), self.active.get(usize::from(service.0)))
        else {
            return;
        };
        active.fetch_sub(1, Ordering::Relaxed);
        if let Some(source) = source.filter(|_| limits.connections_per_source > 0) {
            let mut shard = self.shard(service, source).lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(count) = shard.get_mut(&(service, source)) {
                *count -= 1;
                if *count == 0 {
                    shard.remove(&(service, source));
                }
            }
        }
    }

    fn shard(&self, service: ServiceId, source: Addr) -> &Mutex<Sources> {
        let hash = self.keyed.hash_one((service, source));
        &self.sources[hash as usize % SHARDS]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(connections: u32, per_source: u32) -> SharedLimits {
        let keyed = Keyed([1, 2]);
        SharedLimits {
            limits: vec![Limits { connections, connections_per_source: per_source }],
            active: vec![AtomicU32::new(0)],
            sources: (0..SHARDS).map(|_| Mutex::new(HashMap::with_hasher(keyed))).collect(),
            keyed,
        }
    }

    const S: ServiceId = ServiceId(0);

    #[test]
    fn a_service_takes_its_limit_and_no_more() {
        let limits = limits(2, 0);
        assert_eq!(limits.open(S, Some(Addr::v4(1))), Ok(()));
        assert_eq!(limits.open(S, Some(Addr::v4(1))), Ok(()));
        assert_eq!(limits.open(S, Some(Addr::v4(2))), Err(Refusal::Connections));
        limits.close(S, Some(Addr::v4(1)));
        assert_eq!(limits.open(S, Some(Addr::v4(2))), Ok(()));
    }

    #[test]
    fn a_source_at_its_limit_does_not_use_up_the_service() {
        let limits = limits(2, 1);
        assert_eq!(limits.open(S, Some(Addr::v4(1))), Ok(()));
        for _ in 0..10 {
            assert_eq!(limits.open(S, Some(Addr::v4(1))), Err(Refusal::Source));
        }
        assert_eq!(limits.open(S, Some(Addr::v4(2))), Ok(()));
    }

    #[test]
    fn sources_are_forgotten_with_their_last_connection() {
        let limits = limits(10, 5);
        for _ in 0..3 {
            limits.open(S, Some(Addr::v4(9))).unwrap();
        }
        for _ in 0..3 {
            limits.close(S, Some(Addr::v4(9)));
        }
        assert!(limits.sources.iter().all(|shard| shard.lock().unwrap().is_empty()));
    }
}
