//! DPDK 22.11 and later for capsule 0.1.5, which was written for 19.11, and for sluice's own `dpdk` module.
//!
//! Put in the place of the original `capsule-ffi` by `[patch.crates-io]`, so that capsule compiles unmodified. Three layers:
//!
//! - the bindings, generated at build time from the DPDK that is installed, with C shims for static inline functions;
//! - DPDK functions that capsule calls with assumptions that no longer hold or that do not suit us: [`eal`], [`port`] and
//!   [`pool`] define functions of the same names which stand in front of the real ones. There, settings that capsule has
//!   no way to express (checksum offloads, MTU, RSS key, fewer queues than cores) are merged in from a
//!   [`port::Profile`] set beforehand;
//! - [`kni`]: the kernel interface that DPDK dropped; every call fails.
//!
//! capsule's `pcap-dump` and `metrics` features are off, so neither libpcap nor libnuma is linked.

#![cfg(target_os = "linux")]

#[allow(
    missing_docs,
    dead_code,
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    clippy::all,
    clippy::undocumented_unsafe_blocks,
    reason = "generated, with C's names"
)]
mod bindings {
    include!(concat!(env!("OUT_DIR"), "/bindings.rs"));
}

pub mod eal;
pub mod kni;
pub mod pool;
pub mod port;

pub use bindings::*;
// Named imports hide the bindings of the same names.
pub use eal::{numa_node_of_cpu, rte_eal_cleanup, rte_eal_init, rte_thread_set_affinity};
pub use kni::*;
pub use pool::{rte_mempool_free, rte_pktmbuf_pool_create};
pub use port::{
    rte_eth_dev_close, rte_eth_dev_configure, rte_eth_dev_info_get, rte_eth_dev_socket_id, rte_eth_dev_start,
    rte_eth_dev_stop, rte_eth_link_get_nowait, rte_eth_rx_queue_setup, rte_eth_stats_get, rte_eth_tx_queue_setup,
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_dpdk_19_11_have_today_s_values() {
        assert_eq!(rte_eth_rx_mq_mode::ETH_MQ_RX_RSS, 1);
        assert_ne!(ETH_RSS_TCP & SLUICE_RSS_IPV4_TCP, 0);
        assert_ne!(ETH_RSS_TCP & SLUICE_RSS_IPV6_TCP, 0);
        assert_eq!(DEV_TX_OFFLOAD_MBUF_FAST_FREE, 1 << 16);
        assert_eq!(size_of::<rte_cpuset_t>(), 128);
    }
}
