//! What the stack asks of the layers below it. The dataplane implements it over DPDK ports, tests over vectors.

use sluice_filters::addr::Addr;
use sluice_filters::units::{PortId, WorkerId};

/// The way a packet leaves the appliance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Back to where the client's segment came from, whatever the routes say.
    Reply {
        /// The port it came in by.
        port: PortId,
        /// The Ethernet address it came from.
        mac: [u8; 6],
    },
    /// To a next hop that ARP or NDP resolves.
    Neighbor {
        /// The port that leads there.
        port: PortId,
        /// The neighbour table's own id.
        id: u32,
    },
}

impl Way {
    /// The port it leaves by.
    #[inline]
    #[must_use]
    pub fn port(self) -> PortId {
        match self {
            Way::Reply { port, .. } | Way::Neighbor { port, .. } => port,
        }
    }
}

/// A path to an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// First hop.
    pub way: Way,
    /// Our own address on that port, of the destination's family.
    pub source: Addr,
    /// Largest IP packet on that port, octets.
    pub mtu: u16,
}

/// Whether a [`Way`]'s next hop is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Frames go out.
    Known,
    /// Frames wait, a few of them, for the answer.
    Resolving,
    /// Nobody answers.
    Failed,
}

/// Who receives what comes to a source port of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The appliance, of several that share an address; alone it is number 0.
    pub node: u16,
    /// Its worker.
    pub worker: WorkerId,
}

/// How the source ports between two addresses are divided among workers: what [`Lower::owner`] needs besides the port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Division {
    /// The port that answers arrive on.
    pub port: PortId,
    /// Whether they are IPv4.
    pub v4: bool,
    /// The device's hash of them, but for our port.
    pub word: u32,
}

/// The layers below the stack.
pub trait Lower {
    /// Whether `way` takes another packet of payload now. When not, the stack keeps its data and asks again next turn.
    fn room(&self, way: Way) -> bool;

    /// Sends one IP packet of `len` octets that `fill` writes. `fill` is called in any case, exactly once, on zero or stale
    /// octets; without a frame to put it in the packet is lost, and counted below.
    fn send<R>(&mut self, way: Way, len: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R;

    /// The route to `dst`; none when there is none.
    fn route(&mut self, dst: Addr) -> Option<Route>;

    /// Whether `way`'s next hop is known.
    fn reach(&mut self, way: Way) -> Reach;

    /// How the ports of `source` towards an upstream's address and port are divided among workers. Asked once for each such pair.
    fn division(&self, upstream: (Addr, u16), source: Addr) -> Division;

    /// Who receives what comes to a source port. Asked for each port that is tried.
    fn owner(&self, division: &Division, port: u16) -> Owner;
}
