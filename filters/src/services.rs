//! Which service listens at an address and port.
//!
//! An open-addressed table with linear probing and a multiplicative hash. The hash has no secret: only the operator's own
//! `listen` entries are ever inserted, so nobody outside can choose keys that collide, and the table is at most a quarter full.
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

use sluice_config::Service;

use crate::addr::Addr;
use crate::units::ServiceId;

/// From (address, port) to service. Built at start, read only.
#[derive(Clone, Debug)]
pub struct ServiceMap {
    /// A power of two of them, at least one free.
    slots: Box<[Slot]>,
    /// `64 - log2(slots.len())`: the hash's upper bits are its good ones.
    shift: u32,
    /// Every address that a service listens at, sorted.
    addresses: Box<[(u64, u64)]>,
}

/// Port 0 marks a free slot: nothing listens there.
#[derive(Clone, Copy, Debug)]
struct Slot {
    addr: Addr,
    port: u16,
    service: ServiceId,
}

const FREE: Slot = Slot { addr: Addr { hi: 0, lo: 0 }, port: 0, service: ServiceId(0) };

impl ServiceMap {
    /// The map of all `listen` entries; a service's id is its index. Entries with port 0 are left out, and of equal entries
    /// the first counts (the configuration has neither).
    #[must_use]
    pub fn new(services: &[Service]) -> ServiceMap {
        let entries = services.iter().zip(0u16..).flat_map(|(service, id)| {
            service.listen.iter().map(move |at| (Addr::from(at.ip()), at.port(), ServiceId(id)))
        });
        ServiceMap::from_entries(entries.collect())
    }

    fn from_entries(entries: Vec<(Addr, u16, ServiceId)>) -> ServiceMap {
        // A quarter full at most, and never so small that the shift would be 64.
        let size = entries.len().saturating_mul(4).next_power_of_two().max(8);
        let mut map = ServiceMap {
            slots: vec![FREE; size].into(),
            shift: 64u32.saturating_sub(size.trailing_zeros()),
            addresses: Box::default(),
        };
        let mut addresses: Vec<_> = entries.iter().map(|&(addr, ..)| (addr.hi, addr.lo)).collect();
        addresses.sort_unstable();
        addresses.dedup();
        map.addresses = addresses.into();
        for (addr, port, service) in entries {
            map.insert(Slot { addr, port, service });
        }
        map
    }

    fn insert(&mut self, new: Slot) {
        if new.port == 0 || self.get(new.addr, new.port).is_some() {
            return;
        }
        let start = self.home(new.addr, new.port);
        let (before, from) = self.slots.split_at_mut(start);
        if let Some(slot) = from.iter_mut().chain(before).find(|slot| slot.port == 0) {
            *slot = new;
        }
    }

    /// The service that listens at `addr` and `port`.
    #[inline]
    #[must_use]
    pub fn get(&self, addr: Addr, port: u16) -> Option<ServiceId> {
        let mut at = self.home(addr, port);
        loop {
            let slot = self.slots.get(at)?;
            if slot.port == 0 {
                return None;
            }
            if slot.port == port && slot.addr == addr {
                return Some(slot.service);
            }
            at = at.wrapping_add(1) & self.slots.len().wrapping_sub(1);
        }
    }

    /// Whether some service listens at `addr`, on whatever port: the addresses we answer for in ARP, NDP and ICMP.
    #[must_use]
    pub fn is_service_address(&self, addr: Addr) -> bool {
        self.addresses.binary_search(&(addr.hi, addr.lo)).is_ok()
    }

    /// The addresses that services listen at, each once.
    pub fn addresses(&self) -> impl Iterator<Item = Addr> + '_ {
        self.addresses.iter().map(|&(hi, lo)| Addr { hi, lo })
    }

    /// Where the search for a key starts: below `slots.len()`.
    #[inline]
    fn home(&self, addr: Addr, port: u16) -> usize {
        let key = addr.hi.rotate_left(29) ^ addr.lo ^ u64::from(port).rotate_left(40);
        (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> self.shift) as usize
    }
}
