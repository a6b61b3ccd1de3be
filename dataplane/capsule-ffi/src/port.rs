//! Ports: merges what sluice wants of a port into what capsule asks of DPDK.
//!
//! capsule gives each core a queue pair of each of its ports and knows no other shape. A [`Profile`] says how many queues
//! the device really gets: capsule is told that there are enough, and set-up calls for queues beyond the real ones
//! succeed without doing anything. Nobody may send or receive on those; capsule itself never does, because sluice's
//! workers do not use its `PortQueue`.
//!
//! "All the functions of the Ethernet Device API [...] assume to not be invoked in parallel on different logical cores to
//! work on the same target object" (rte_ethdev.h). Starting, stopping and closing a port, and asking for its counters and
//! its link, come from several threads: here one such call at a time is let through.

use std::os::raw::{c_int, c_uint};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::bindings::{
    self, DEV_TX_OFFLOAD_MBUF_FAST_FREE, rte_eth_conf, rte_eth_dev_info, rte_eth_link, rte_eth_rx_mq_mode,
    rte_eth_rxconf, rte_eth_stats, rte_eth_txconf, rte_mempool,
};
use crate::pool;

/// How one port is to be configured, whatever capsule asks for.
#[derive(Clone, Copy, Debug)]
pub struct Profile {
    /// Receive queues the device gets.
    pub rx_queues: u16,
    /// Transmit queues the device gets.
    pub tx_queues: u16,
    /// Receive offloads; must be within the device's.
    pub rx_offloads: u64,
    /// Transmit offloads; must be within the device's.
    pub tx_offloads: u64,
    /// Largest IP packet.
    pub mtu: u32,
    /// RSS hash functions; must be within the device's. Not used with a single receive queue.
    pub rss_functions: u64,
    /// RSS key, as long as the device wants it. DPDK keeps the pointer.
    pub rss_key: &'static [u8],
}

static PROFILES: Mutex<Vec<(u16, Profile)>> = Mutex::new(Vec::new());

fn profiles() -> MutexGuard<'static, Vec<(u16, Profile)>> {
    PROFILES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sets a port's profile; to be called before the port is configured.
pub fn set_profile(port: u16, profile: Profile) {
    let mut profiles = profiles();
    profiles.retain(|(known, _)| *known != port);
    profiles.push((port, profile));
}

fn profile(port: u16) -> Option<Profile> {
    profiles().iter().find(|(known, _)| *known == port).map(|(_, profile)| *profile)
}

/// The ports that were configured and not closed since. Locked during the calls that must not meet.
static OPEN: Mutex<Vec<u16>> = Mutex::new(Vec::new());

fn open() -> MutexGuard<'static, Vec<u16>> {
    OPEN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `wanted` with the profile's settings in the place of its own.
fn merged(wanted: &rte_eth_conf, profile: &Profile, pools: usize) -> rte_eth_conf {
    let mut conf = *wanted;
    conf.rxmode.mtu = profile.mtu;
    conf.rxmode.offloads = profile.rx_offloads;
    conf.txmode.offloads |= profile.tx_offloads;
    if pools != 1 {
        // It promises that all frames of a transmit queue come from one pool.
        conf.txmode.offloads &= !DEV_TX_OFFLOAD_MBUF_FAST_FREE;
    }
    if profile.rx_queues > 1 && profile.rss_functions != 0 {
        conf.rxmode.mq_mode = rte_eth_rx_mq_mode::ETH_MQ_RX_RSS;
        conf.rx_adv_conf.rss_conf.rss_hf = profile.rss_functions;
        conf.rx_adv_conf.rss_conf.rss_key = profile.rss_key.as_ptr().cast_mut();
        conf.rx_adv_conf.rss_conf.rss_key_len = u8::try_from(profile.rss_key.len()).unwrap_or(u8::MAX);
    } else {
        conf.rxmode.mq_mode = rte_eth_rx_mq_mode::RTE_ETH_MQ_RX_NONE;
        conf.rx_adv_conf.rss_conf.rss_hf = 0;
    }
    conf
}

/// Configures a port as capsule wants it, with its profile's settings and queue counts if it has one.
///
/// # Safety
/// As DPDK's function: the EAL must run, the port be stopped and `conf` point to a configuration.
pub unsafe fn rte_eth_dev_configure(port: u16, rx: u16, tx: u16, conf: *const rte_eth_conf) -> c_int {
    let pools = pool::all().len();
    let mut open = open();
    let result = match profile(port) {
        // SAFETY: the caller's promise is the callee's requirement.
        None => unsafe { bindings::rte_eth_dev_configure(port, rx, tx, conf) },
        Some(profile) => {
            // SAFETY: the caller vouches for `conf`.
            let conf = merged(unsafe { &*conf }, &profile, pools);
            // SAFETY: the caller vouches for the EAL and the stopped port; DPDK copies `conf` but keeps the key's pointer,
            // 'static, and drivers only read it.
            unsafe { bindings::rte_eth_dev_configure(port, profile.rx_queues, profile.tx_queues, &conf) }
        }
    };
    if result == 0 && !open.contains(&port) {
        open.push(port);
    }
    result
}

/// Tells about a port; one with a profile has as many queues as anybody could ask for.
///
/// # Safety
/// As DPDK's function: the EAL must run and `info` be writable.
pub unsafe fn rte_eth_dev_info_get(port: u16, info: *mut rte_eth_dev_info) -> c_int {
    // SAFETY: the caller's promise is the callee's requirement.
    let result = unsafe { bindings::rte_eth_dev_info_get(port, info) };
    if result == 0 && profile(port).is_some() {
        // SAFETY: the caller vouches for `info`, which DPDK just filled.
        let info = unsafe { &mut *info };
        info.max_rx_queues = u16::MAX;
        info.max_tx_queues = u16::MAX;
    }
    result
}

/// Tells about a port as it is, profile or not.
///
/// # Safety
/// As [`rte_eth_dev_info_get`].
pub unsafe fn real_info(port: u16, info: *mut rte_eth_dev_info) -> c_int {
    // SAFETY: the caller's promise is the callee's requirement.
    unsafe { bindings::rte_eth_dev_info_get(port, info) }
}

/// Sets up a receive queue, or does nothing for one that the profile does not have. With several queues a full one drops
/// its own frames instead of stalling the others.
///
/// # Safety
/// As DPDK's function: the port must be configured, `pool` be alive until the port is closed, and `conf` be null or valid.
pub unsafe fn rte_eth_rx_queue_setup(
    port: u16,
    queue: u16,
    descriptors: u16,
    socket: c_uint,
    conf: *const rte_eth_rxconf,
    pool: *mut rte_mempool,
) -> c_int {
    let profile = profile(port);
    if profile.is_some_and(|profile| queue >= profile.rx_queues) {
        return 0;
    }
    let mut info = rte_eth_dev_info::default();
    let several = profile.is_some_and(|profile| profile.rx_queues > 1);
    // SAFETY: the caller vouches for the port; `info` is ours.
    if several && conf.is_null() && unsafe { bindings::rte_eth_dev_info_get(port, &mut info) } == 0 {
        info.default_rxconf.rx_drop_en = 1;
        // SAFETY: the caller's promise is the callee's requirement; the configuration is the device's own but for one flag.
        return unsafe {
            bindings::rte_eth_rx_queue_setup(port, queue, descriptors, socket, &info.default_rxconf, pool)
        };
    }
    // SAFETY: the caller's promise is the callee's requirement.
    unsafe { bindings::rte_eth_rx_queue_setup(port, queue, descriptors, socket, conf, pool) }
}

/// Sets up a transmit queue, or does nothing for one that the profile does not have.
///
/// # Safety
/// As DPDK's function: the port must be configured and `conf` be null or valid.
pub unsafe fn rte_eth_tx_queue_setup(
    port: u16,
    queue: u16,
    descriptors: u16,
    socket: c_uint,
    conf: *const rte_eth_txconf,
) -> c_int {
    if profile(port).is_some_and(|profile| queue >= profile.tx_queues) {
        return 0;
    }
    // SAFETY: the caller's promise is the callee's requirement.
    unsafe { bindings::rte_eth_tx_queue_setup(port, queue, descriptors, socket, conf) }
}

/// The NUMA node of a port, or -1 if it has none or no pool is there: capsule then takes that of the port's first core
/// instead of failing.
///
/// # Safety
/// The EAL must run.
#[must_use]
pub unsafe fn rte_eth_dev_socket_id(port: u16) -> c_int {
    // SAFETY: the EAL runs; an unknown port is answered with -1.
    let node = unsafe { bindings::rte_eth_dev_socket_id(port) };
    if pool::all().iter().any(|pool| pool.node == node) { node } else { -1 }
}

/// Starts a port.
///
/// # Safety
/// As DPDK's function: the EAL must run and the port be configured.
pub unsafe fn rte_eth_dev_start(port: u16) -> c_int {
    let _open = open();
    // SAFETY: the caller's promise is the callee's requirement.
    unsafe { bindings::rte_eth_dev_start(port) }
}

/// Stops a port.
///
/// # Safety
/// As DPDK's function: the EAL must run, and no thread use the port's queues during the call or until its next start.
pub unsafe fn rte_eth_dev_stop(port: u16) -> c_int {
    let _open = open();
    // SAFETY: the caller's promise is the callee's requirement.
    unsafe { bindings::rte_eth_dev_stop(port) }
}

/// Closes a port, stopping it first if need be. (DPDK refuses to close one that runs.)
///
/// # Safety
/// As DPDK's function: no thread uses the port's queues during or after the call.
pub unsafe fn rte_eth_dev_close(port: u16) -> c_int {
    let mut open = open();
    // SAFETY: the caller's promise covers both; stopping a stopped port does nothing. A port that does not stop is not
    // closed; it holds mbufs, so its pool stays.
    let result = unsafe {
        bindings::rte_eth_dev_stop(port);
        bindings::rte_eth_dev_close(port)
    };
    if result == 0 {
        open.retain(|known| *known != port);
    }
    result
}

/// Closes the ports that were configured and that nobody closed: capsule forgets one whose set-up fails half-way, when the
/// device knows its packet pool already.
///
/// # Safety
/// As [`rte_eth_dev_close`], for each of them.
pub(crate) unsafe fn close_left() {
    let left = open().clone();
    for port in left {
        // SAFETY: the caller's promise is the callee's requirement.
        unsafe { rte_eth_dev_close(port) };
    }
}

/// Tells a port's counters.
///
/// # Safety
/// As DPDK's function: the EAL must run and `stats` be writable.
pub unsafe fn rte_eth_stats_get(port: u16, stats: *mut rte_eth_stats) -> c_int {
    let _open = open();
    // SAFETY: the caller's promise is the callee's requirement.
    unsafe { bindings::rte_eth_stats_get(port, stats) }
}

/// Tells the state of a port's link, without waiting for it to come up.
///
/// # Safety
/// As DPDK's function: the EAL must run and `link` be writable.
pub unsafe fn rte_eth_link_get_nowait(port: u16, link: *mut rte_eth_link) -> c_int {
    let _open = open();
    // SAFETY: the caller's promise is the callee's requirement.
    unsafe { bindings::rte_eth_link_get_nowait(port, link) }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use super::*;

    const PROFILE: Profile = Profile {
        rx_queues: 2,
        tx_queues: 2,
        rx_offloads: bindings::SLUICE_RX_OFFLOAD_TCP_CKSUM,
        tx_offloads: bindings::SLUICE_TX_OFFLOAD_TCP_CKSUM,
        mtu: 1400,
        rss_functions: bindings::SLUICE_RSS_IPV4_TCP,
        rss_key: &[7; 40],
    };

    fn wanted() -> rte_eth_conf {
        let mut conf = rte_eth_conf::default();
        conf.txmode.offloads = DEV_TX_OFFLOAD_MBUF_FAST_FREE;
        conf
    }

    #[test]
    fn profile_is_merged_into_what_capsule_asks_for() {
        let conf = merged(&wanted(), &PROFILE, 1);
        assert_eq!(conf.rxmode.mtu, 1400);
        assert_eq!(conf.rxmode.offloads, PROFILE.rx_offloads);
        assert_eq!(conf.txmode.offloads, PROFILE.tx_offloads | DEV_TX_OFFLOAD_MBUF_FAST_FREE);
        assert_eq!(conf.rxmode.mq_mode, rte_eth_rx_mq_mode::ETH_MQ_RX_RSS);
        assert_eq!(conf.rx_adv_conf.rss_conf.rss_hf, PROFILE.rss_functions);
        assert_eq!(conf.rx_adv_conf.rss_conf.rss_key_len, 40);
    }

    #[test]
    fn fast_free_is_off_when_frames_may_come_from_several_pools() {
        assert_eq!(merged(&wanted(), &PROFILE, 2).txmode.offloads, PROFILE.tx_offloads);
    }

    #[test]
    fn calls_about_ports_wait_for_one_another() {
        // No port has this number: DPDK refuses it, whether it runs or not.
        const NONE: u16 = u16::MAX;
        // SAFETY: the places written to are ours, and there is no port that could be in use.
        let calls: [fn() -> c_int; 5] = unsafe {
            [
                || rte_eth_dev_start(NONE),
                || rte_eth_dev_stop(NONE),
                || rte_eth_dev_close(NONE),
                || rte_eth_stats_get(NONE, &mut rte_eth_stats::default()),
                || rte_eth_link_get_nowait(NONE, &mut rte_eth_link::default()),
            ]
        };
        for call in calls {
            let (done, result) = mpsc::channel();
            let held = open();
            let caller = thread::spawn(move || done.send(call()));
            assert_eq!(result.recv_timeout(Duration::from_millis(50)), Err(mpsc::RecvTimeoutError::Timeout));
            drop(held);
            assert!(result.recv().unwrap() < 0);
            caller.join().unwrap().unwrap();
        }
    }

    #[test]
    fn one_receive_queue_needs_no_rss() {
        let conf = merged(&wanted(), &Profile { rx_queues: 1, ..PROFILE }, 1);
        assert_eq!(conf.rxmode.mq_mode, rte_eth_rx_mq_mode::RTE_ETH_MQ_RX_NONE);
        assert_eq!(conf.rx_adv_conf.rss_conf.rss_hf, 0);
    }
}
