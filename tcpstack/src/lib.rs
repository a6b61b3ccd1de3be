//! sluice's TCP: cookies, flows, terminate and splice mode, PROXY headers, timers. Knows nothing of DPDK.

#![forbid(unsafe_code)]
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
mod answered;
pub mod cookie;
pub mod counters;
pub mod flow;
pub mod limits;
#[allow(clippy::arithmetic_side_effects, reason = "sums over a configuration: no packet is looked at")]
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
