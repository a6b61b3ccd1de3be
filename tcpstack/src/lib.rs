//! sluice's TCP: cookies, flows, terminate and splice mode, PROXY headers, timers. Knows nothing of DPDK.

#![forbid(unsafe_code)]

mod answered;
pub mod cookie;
pub mod counters;
pub mod flow;
pub mod limits;
pub mod memory;
pub mod net;
mod options;
mod path_mtu;
pub mod ports;
pub mod proxy;
pub mod record;
pub mod segment;
mod sip;
mod slab;
mod splice;
pub mod stack;
mod terminate;
pub mod translate;
pub mod unanswered;
pub mod wheel;
