//! sluice's packet path: DPDK ports through capsule, layers 2 and 3, and the workers that run the stack. The only crate that
//! links DPDK.

mod appliance;
mod claims;
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
