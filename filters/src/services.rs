//! Which service listens at an address and port, and other tables of the operator's addresses.
//!
//! An open-addressed table with linear probing and a multiplicative hash. The hash has no secret: only the operator's own
//! addresses and ports are ever inserted, so nobody outside can choose keys that collide, and the table is at most a quarter full.

use sluice_config::Service;

use crate::addr::Addr;
use crate::units::ServiceId;

/// From (address, port) to service. Built at start, read only.
#[derive(Clone, Debug)]
pub struct ServiceMap {
    listens: EndpointMap<ServiceId>,
    /// Every address that a service listens at, sorted.
    addresses: Box<[(u64, u64)]>,
}

/// From (address, port) to something of the operator's. Built at start, read only.
#[derive(Clone, Debug)]
pub(crate) struct EndpointMap<V> {
    /// A power of two of them, at least one free.
    slots: Box<[Slot<V>]>,
    /// `64 - log2(slots.len())`: the hash's upper bits are its good ones.
    shift: u32,
}

/// Port 0 marks a free slot: nothing listens there.
#[derive(Clone, Copy, Debug)]
struct Slot<V> {
    addr: Addr,
    port: u16,
    value: V,
}

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
        let mut addresses: Vec<_> = entries.iter().map(|&(addr, ..)| (addr.hi, addr.lo)).collect();
        addresses.sort_unstable();
        addresses.dedup();
        ServiceMap { listens: EndpointMap::new(&entries, ServiceId(0)), addresses: addresses.into() }
    }

    /// The service that listens at `addr` and `port`.
    #[inline(always)]
    #[must_use]
    pub fn get(&self, addr: Addr, port: u16) -> Option<ServiceId> {
        self.listens.get(addr, port)
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
}

impl<V: Copy> EndpointMap<V> {
    /// The map of `entries`, of which equal ones count once, the first, and those with port 0 not. `none` fills free slots.
    pub(crate) fn new(entries: &[(Addr, u16, V)], none: V) -> EndpointMap<V> {
        // A quarter full at most, and never so small that the shift would be 64.
        let size = entries.len().saturating_mul(4).next_power_of_two().max(8);
        let free = Slot { addr: Addr { hi: 0, lo: 0 }, port: 0, value: none };
        let shift = 64u32.saturating_sub(size.trailing_zeros());
        let mut map = EndpointMap { slots: vec![free; size].into(), shift };
        for &(addr, port, value) in entries {
            map.insert(Slot { addr, port, value });
        }
        map
    }

    fn insert(&mut self, new: Slot<V>) {
        if new.port == 0 || self.get(new.addr, new.port).is_some() {
            return;
        }
        let start = self.home(new.addr, new.port);
        let (before, from) = self.slots.split_at_mut(start);
        if let Some(slot) = from.iter_mut().chain(before).find(|slot| slot.port == 0) {
            *slot = new;
        }
    }

    /// What stands at `addr` and `port`.
    #[inline(always)]
    pub(crate) fn get(&self, addr: Addr, port: u16) -> Option<V> {
        let mut at = self.home(addr, port);
        loop {
            let slot = self.slots.get(at)?;
            if slot.port == 0 {
                return None;
            }
            if slot.port == port && slot.addr == addr {
                return Some(slot.value);
            }
            at = at.wrapping_add(1) & self.slots.len().wrapping_sub(1);
        }
    }

    /// Where the search for a key starts: below `slots.len()`.
    #[inline]
    fn home(&self, addr: Addr, port: u16) -> usize {
        let key = addr.hi.rotate_left(29) ^ addr.lo ^ u64::from(port).rotate_left(40);
        (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> self.shift) as usize
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::net::SocketAddr;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn at(listen: &str) -> (Addr, u16) {
        let listen: SocketAddr = listen.parse().unwrap();
        (listen.ip().into(), listen.port())
    }

    fn map(entries: &[(&str, u16)]) -> ServiceMap {
        let entries = entries.iter().map(|&(listen, id)| (at(listen).0, at(listen).1, ServiceId(id)));
        ServiceMap::from_entries(entries.collect())
    }

    #[test]
    fn a_service_is_found_by_address_and_port_together() {
        let map = map(&[("192.0.2.1:443", 0), ("192.0.2.1:80", 1), ("[2001:db8::1]:443", 0)]);
        let get = |listen| map.get(at(listen).0, at(listen).1);
        assert_eq!(get("192.0.2.1:443"), Some(ServiceId(0)));
        assert_eq!(get("192.0.2.1:80"), Some(ServiceId(1)));
        assert_eq!(get("[2001:db8::1]:443"), Some(ServiceId(0)));
        for nowhere in ["192.0.2.1:81", "192.0.2.2:443", "[2001:db8::1]:80", "[2001:db8::2]:443", "[::]:0", "0.0.0.0:0"]
        {
            assert_eq!(get(nowhere), None, "{nowhere}");
        }
    }

    #[test]
    fn a_service_address_is_one_on_any_port() {
        let map = map(&[("192.0.2.1:443", 0), ("192.0.2.1:80", 1), ("[2001:db8::1]:443", 0)]);
        assert!(map.is_service_address(at("192.0.2.1:9").0));
        assert!(map.is_service_address(at("[2001:db8::1]:9").0));
        assert!(!map.is_service_address(at("192.0.2.2:443").0));
        assert_eq!(map.addresses().count(), 2);
    }

    #[test]
    fn an_empty_map_has_nothing() {
        let map = map(&[]);
        assert_eq!(map.get(at("192.0.2.1:443").0, 443), None);
        assert_eq!(map.get(Addr { hi: 0, lo: 0 }, 0), None);
        assert!(!map.is_service_address(at("192.0.2.1:443").0));
    }

    #[test]
    fn no_start_lies_outside_the_table() {
        for entries in [0u16, 1, 2, 3, 1_000] {
            let entries = (1..=entries).map(|port| (Addr::v4(0xc000_0201), port, ServiceId(port))).collect();
            let map = ServiceMap::from_entries(entries);
            for i in 0..10_000u32 {
                let home = map.listens.home(Addr::v4(i.wrapping_mul(0x9e37_79b9)), i as u16);
                assert!(home < map.listens.slots.len());
            }
        }
    }

    #[test]
    fn the_operators_usual_layouts_do_not_cluster() {
        // 4,096 addresses in a row and one port; one address and 4,096 ports in a row.
        let rows = (0..4_096).map(|i| (Addr::v4(0xc000_0200 + i), 443, ServiceId(0))).collect();
        let ports = (0..4_096).map(|i| (Addr::v4(0xc000_0201), 1_024 + i, ServiceId(0))).collect();
        for entries in [rows, ports] {
            let map = ServiceMap::from_entries(entries);
            let runs = map.listens.slots.split(|slot| slot.port == 0).map(<[Slot<ServiceId>]>::len);
            assert!(runs.max() < Some(32));
        }
    }

    proptest! {
        #[test]
        fn the_map_agrees_with_a_hash_map(
            entries in vec((0u32..40, any::<bool>(), 0u16..6, any::<u16>()), 0..200),
        ) {
            let addr = |n: u32, v6: bool| if v6 { Addr { hi: 0x2001_0db8 << 32, lo: n.into() } } else { Addr::v4(n) };
            let mut model = HashMap::new();
            let mut list = Vec::new();
            for (n, v6, port, id) in entries {
                if port != 0 {
                    model.entry((addr(n, v6), port)).or_insert(ServiceId(id));
                }
                list.push((addr(n, v6), port, ServiceId(id)));
            }
            let map = ServiceMap::from_entries(list.clone());
            for n in 0..50 {
                for v6 in [false, true] {
                    for port in 0..8 {
                        prop_assert_eq!(map.get(addr(n, v6), port), model.get(&(addr(n, v6), port)).copied());
                    }
                    prop_assert_eq!(map.is_service_address(addr(n, v6)), list.iter().any(|e| e.0 == addr(n, v6)));
                }
            }
        }
    }
}
