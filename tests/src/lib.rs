//! The lab in which the whole appliance is tested: a real `sluice` process on DPDK `net_af_packet` ports between network
//! namespaces, with real clients and servers on both sides.
//!
//! - [`lab`] builds namespaces and links and takes them away again, also after a panic; [`netns`] runs code and processes inside them.
//! - [`appliance`] writes configurations, starts `sluice`, reads its metrics ([`metrics`]) and its connection log.
//! - [`servers`] starts nginx, haproxy, sshd and iperf3; [`peer`] and [`crowd`] are small TCP peers for behaviour that
//!   ready-made programs do not show on request (half-close, reset, stalled readers, thousands of connections).
//! - [`echo`] pings. [`link`] is a raw Ethernet interface; on it stand [`flood`] (floods and [`malformed`] frames), [`wire`] (a lossy,
//!   reordering wire in user space), [`station`] (a host in user space) and [`rawtcp`] (its TCP, either end of a connection, whose
//!   segments can look like anything).
//! - [`capture`] records both legs of a connection and checks them against each other.
//!
//! Rules: needs root, says so in one clear line otherwise. Every load is bounded in count and time. Only processes this
//! crate started are ended, by their id. A test that fails inside the harness panics with what was expected and what was found.

#![forbid(unsafe_code)]

pub mod appliance;
pub mod capture;
pub mod closings;
pub mod crowd;
pub mod echo;
pub mod flood;
pub mod frames;
pub mod lab;
pub mod link;
pub mod loss;
pub mod malformed;
pub mod metrics;
pub mod netns;
pub mod peer;
pub mod process;
pub mod rawtcp;
pub mod servers;
pub mod small_paths;
pub mod station;
pub mod trial;
pub mod wire;
