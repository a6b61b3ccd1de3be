//! sluice's TCP: cookies, flows, terminate mode, PROXY headers, timers. Knows nothing of DPDK.

#![forbid(unsafe_code)]

pub mod counters;
pub mod record;
