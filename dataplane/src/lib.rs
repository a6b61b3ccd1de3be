//! placeholder

pub mod net;
pub mod dpdk;
pub mod error;
pub mod runtime;
