//! Which sources may speak to us: the operator's `deny` and `allow`.
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

use ipnet::IpNet;

use crate::DropReason;
use crate::addr::Addr;
use crate::sets::AddressSet;

/// `[filters] deny` and `allow`: a source that `allow` covers passes; else one that `deny` covers is dropped; else it passes,
/// unless there is an `allow` without any `deny`, which is a closed list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceFilter {
    deny: AddressSet,
    allow: AddressSet,
    /// Whether there is anything to ask: the one branch that the common case pays.
    active: bool,
}

impl SourceFilter {
    /// A filter for these prefixes.
    #[must_use]
    pub fn new(deny: &[IpNet], allow: &[IpNet]) -> SourceFilter {
        let (deny, allow) = (AddressSet::new(deny), AddressSet::new(allow));
        let active = !(deny.is_empty() && allow.is_empty());
        SourceFilter { deny, allow, active }
    }

    /// Whether `source` may send to us.
    ///
    /// # Errors
    /// [`DropReason::DenyList`] or [`DropReason::NotAllowed`].
    #[inline]
    pub fn check(&self, source: Addr) -> Result<(), DropReason> {
        if self.active { self.look_up(source) } else { Ok(()) }
    }

    fn look_up(&self, source: Addr) -> Result<(), DropReason> {
        if self.allow.contains(source) {
            Ok(())
        } else if self.deny.is_empty() {
            Err(DropReason::NotAllowed)
        } else if self.deny.contains(source) {
            Err(DropReason::DenyList)
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    fn nets(nets: &[&str]) -> Vec<IpNet> {
        nets.iter().map(|net| net.parse().unwrap()).collect()
    }

    fn addr(addr: &str) -> Addr {
        addr.parse::<IpAddr>().unwrap().into()
    }

    #[test]
    fn without_lists_everybody_passes() {
        let filter = SourceFilter::new(&[], &[]);
        assert_eq!(filter, SourceFilter::default());
        assert_eq!(filter.check(addr("192.0.2.1")), Ok(()));
        assert_eq!(filter.check(addr("2001:db8::1")), Ok(()));
    }

    #[test]
    fn deny_drops_what_it_covers() {
        let filter = SourceFilter::new(&nets(&["192.0.2.0/24"]), &[]);
        assert_eq!(filter.check(addr("192.0.2.1")), Err(DropReason::DenyList));
        assert_eq!(filter.check(addr("192.0.3.1")), Ok(()));
        assert_eq!(filter.check(addr("2001:db8::1")), Ok(()));
    }

    #[test]
    fn allow_wins_over_deny() {
        let filter = SourceFilter::new(&nets(&["192.0.2.0/24"]), &nets(&["192.0.2.7/32"]));
        assert_eq!(filter.check(addr("192.0.2.7")), Ok(()));
        assert_eq!(filter.check(addr("192.0.2.8")), Err(DropReason::DenyList));
        assert_eq!(filter.check(addr("192.0.3.1")), Ok(()));
    }

    #[test]
    fn allow_without_deny_is_a_closed_list() {
        let filter = SourceFilter::new(&[], &nets(&["192.0.2.0/24"]));
        assert_eq!(filter.check(addr("192.0.2.7")), Ok(()));
        assert_eq!(filter.check(addr("192.0.3.1")), Err(DropReason::NotAllowed));
        assert_eq!(filter.check(addr("2001:db8::1")), Err(DropReason::NotAllowed));
    }
}
