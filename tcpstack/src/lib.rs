//! sluice's TCP: cookies, flows, terminate mode, PROXY headers, timers. Knows nothing of DPDK.

#![forbid(unsafe_code)]

pub mod cookie;
pub mod counters;
pub mod flow;
mod options;
pub mod ports;
pub mod proxy;
pub mod record;
pub mod segment;
pub mod translate;
pub mod wheel;
