//! smoltcp's device: one received packet in, packets out through the translator and the guard onto the wire.

use smoltcp::phy::{ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;

use super::endpoint::Leg;
use crate::net::Lower;

/// One endpoint's device for the length of one poll.
pub(crate) struct Wire<'a, N> {
    /// The layers below.
    pub(crate) net: &'a mut N,
    /// Where packets go and how their numbers change on the way.
    pub(crate) leg: &'a mut Leg,
    /// A received packet, already translated, to feed.
    pub(crate) received: Option<&'a [u8]>,
    /// Keep what smoltcp emits from the wire: its SYN-ACK, which the cookie has answered already.
    pub(crate) swallow: bool,
    /// The interface's MTU, octets of IP.
    pub(crate) mtu: usize,
    /// Room for one packet of that size, to cut it in.
    pub(crate) scratch: &'a mut [u8],
}

/// Capabilities of an interface of `mtu` octets. Checksums are verified by the parser and written after translation.
pub(crate) fn capabilities(mtu: usize) -> DeviceCapabilities {
    let mut capabilities = DeviceCapabilities::default();
    capabilities.medium = Medium::Ip;
    capabilities.max_transmission_unit = mtu;
    capabilities.checksum = ChecksumCapabilities::ignored();
    capabilities
}

impl<N> Wire<'_, N> {
    fn outgoing(&mut self) -> Outgoing<'_, N> {
        Outgoing { net: self.net, leg: self.leg, swallow: self.swallow, scratch: self.scratch }
    }
}

impl<'a, N: Lower> Device for Wire<'a, N> {
    type RxToken<'b>
        = Received<'a>
    where
        Self: 'b;
    type TxToken<'b>
        = Outgoing<'b, N>
    where
        Self: 'b;

    fn receive(&mut self, _: Instant) -> Option<(Received<'a>, Outgoing<'_, N>)> {
        let packet = self.received.take()?;
        Some((Received(packet), self.outgoing()))
    }

    fn transmit(&mut self, _: Instant) -> Option<Outgoing<'_, N>> {
        // Whether there is room is asked before smoltcp is polled: one that is refused in the middle of a dispatch has already
        // disarmed its timers.
        Some(self.outgoing())
    }

    fn capabilities(&self) -> DeviceCapabilities {
        capabilities(self.mtu)
    }
}

/// The received packet.
pub(crate) struct Received<'a>(&'a [u8]);

impl RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

/// Leave to send one packet.
pub(crate) struct Outgoing<'a, N> {
    net: &'a mut N,
    leg: &'a mut Leg,
    swallow: bool,
    scratch: &'a mut [u8],
}

impl<N: Lower> TxToken for Outgoing<'_, N> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let Outgoing { net, leg, swallow, scratch } = self;
        if swallow {
            // A SYN-ACK: 40 octets of IPv6, 20 of TCP, 40 of options at most.
            let mut scratch = [0; 100];
            if let Some(packet) = scratch.get_mut(..len) {
                let result = f(packet);
                leg.swallowed(packet);
                return result;
            }
        }
        // A segment sent again may show that it is too large, so it is looked at before it leaves.
        if leg.path.may_cut(len)
            && let Some(packet) = scratch.get_mut(..len)
        {
            let result = f(packet);
            leg.outgoing(packet);
            leg.send_within_path(packet, net);
            return result;
        }
        net.send(leg.way, len, |packet| {
            let result = f(packet);
            leg.outgoing(packet);
            result
        })
    }
}

/// Stands in where smoltcp only wants to know the capabilities.
pub(crate) struct Blueprint(pub(crate) usize);

impl Device for Blueprint {
    type RxToken<'a> = Received<'a>;
    type TxToken<'a> = Nowhere;

    fn receive(&mut self, _: Instant) -> Option<(Received<'_>, Nowhere)> {
        None
    }

    fn transmit(&mut self, _: Instant) -> Option<Nowhere> {
        None
    }

    fn capabilities(&self) -> DeviceCapabilities {
        capabilities(self.0)
    }
}

/// Never made.
pub(crate) enum Nowhere {}

impl TxToken for Nowhere {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, _: usize, _: F) -> R {
        match self {}
    }
}
