//! sluice's packet path: DPDK ports through capsule, layers 2 and 3, and the workers that run the stack. The only crate that
//! links DPDK.

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
#[allow(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "builds and stops the appliance: no packet is looked at"
)]
mod appliance;
mod claims;
#[allow(clippy::arithmetic_side_effects, reason = "the clocks' own moments: no packet is looked at")]
mod clock;
pub mod counters;
pub mod dpdk;
mod egress;
pub mod error;
mod mailbox;
pub mod net;
mod orders;
pub mod runtime;
mod sample;
pub mod steer;
mod worker;

pub use appliance::{Appliance, PoolUse, PortSummary, View};
pub use clock::Clock;
pub use dpdk::PortStats;
pub use dpdk::eal::dpdk_version;
pub use error::StartError;
pub use orders::{Busy, Orders};
pub use sample::DroppedPacket;
