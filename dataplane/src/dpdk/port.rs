//! Ports: what a device is and can do, how it is set up, and its counters.

use std::ffi::CStr;
use std::fmt;
use std::os::raw::c_int;
use std::sync::OnceLock;

use capsule_ffi as ffi;
use sluice_config::Port;

use super::eal::{self, Lifetime};
use crate::error::StartError;

/// Octets around an IP packet in the largest frame: Ethernet header, two VLAN tags, FCS.
const FRAME_OVERHEAD: u32 = 26;

/// Longest key any device may want.
const RSS_KEY_ROOM: usize = 255;
/// What a device gets that names no length: enough for IPv6 and its ports.
const RSS_KEY_USUAL: usize = 40;

/// The RSS key of this run. A secret: with a known one, an attacker could aim all flows at one worker.
fn rss_key() -> &'static [u8; RSS_KEY_ROOM] {
    static KEY: OnceLock<[u8; RSS_KEY_ROOM]> = OnceLock::new();
    KEY.get_or_init(|| {
        let mut key = [0; RSS_KEY_ROOM];
        if let Err(error) = getrandom::fill(&mut key) {
            tracing::warn!(%error, "no random RSS key: flows may be aimed at one worker");
            for (index, octet) in (0_u8..).zip(&mut key) {
                *octet = index.wrapping_mul(37).wrapping_add(0x6d);
            }
        }
        key
    })
}

/// Drivers that accept an RSS configuration and then deliver frames by some other rule.
const WITHOUT_REAL_RSS: [&str; 1] = ["net_null"];

/// State of a port's link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Whether it is up.
    pub up: bool,
    /// Megabits per second; `None` if the device does not know.
    pub mbps: Option<u32>,
}

/// What a port is, from its configuration and its device. Read once the port was started.
#[derive(Clone, Debug)]
pub struct PortInfo {
    /// Name in the configuration.
    pub name: String,
    /// Device in the configuration.
    pub device: String,
    /// DPDK's number of the port.
    pub id: u16,
    /// DPDK driver.
    pub driver: String,
    /// MAC address.
    pub mac: [u8; 6],
    /// Largest IP packet.
    pub mtu: u16,
    /// NUMA node; `None` if the device has none (virtual devices).
    pub node: Option<u16>,
    /// Receive queues in use; worker `i` has queue `i` if there are so many.
    pub rx_queues: u16,
    /// Transmit queues in use, likewise.
    pub tx_queues: u16,
    /// Receive queues the device could have.
    pub max_rx_queues: u16,
    /// Transmit queues the device could have.
    pub max_tx_queues: u16,
    /// Whether the device verifies IPv4 and TCP checksums of received frames.
    pub rx_checksums: bool,
    /// Whether the device fills in IPv4 and TCP checksums on request.
    pub tx_checksums: bool,
    /// Entries of the RSS redirection table; 0 without RSS.
    pub reta_size: u16,
    /// Link state when the port was started.
    pub link: Link,
}

impl PortInfo {
    /// The MAC address as text, `02:00:00:00:00:01`.
    #[must_use]
    pub fn mac_text(&self) -> String {
        let [a, b, c, d, e, f] = self.mac;
        format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

impl fmt::Display for PortInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} ({}, {}): MAC {}, MTU {}, {} receive and {} transmit queues, link ",
            self.name,
            self.device,
            self.driver,
            self.mac_text(),
            self.mtu,
            self.rx_queues,
            self.tx_queues
        )?;
        match (self.link.up, self.link.mbps) {
            (false, _) => f.write_str("down"),
            (true, None) => f.write_str("up"),
            (true, Some(mbps)) => write!(f, "up at {mbps} Mb/s"),
        }
    }
}

/// The headers an RSS hash covers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HashTypes {
    /// Addresses of IPv4 packets.
    pub ipv4: bool,
    /// Addresses and ports of TCP over IPv4.
    pub tcp4: bool,
    /// Addresses of IPv6 packets.
    pub ipv6: bool,
    /// Addresses and ports of TCP over IPv6.
    pub tcp6: bool,
}

/// How a device spreads frames over its receive queues: queue = `table[hash % table.len()]`, with a Toeplitz hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RssInfo {
    /// Toeplitz key, 40 octets or more.
    pub key: Vec<u8>,
    /// Redirection table: receive queue, and so worker, by the hash's low bits. A power of two long.
    pub table: Vec<u16>,
    /// What is hashed.
    pub hash_types: HashTypes,
}

/// A device's own counters since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortStats {
    /// Frames received.
    pub rx_packets: u64,
    /// Frames sent.
    pub tx_packets: u64,
    /// Octets received.
    pub rx_bytes: u64,
    /// Octets sent.
    pub tx_bytes: u64,
    /// Frames the device dropped because a receive queue was full.
    pub rx_missed: u64,
    /// Frames received in error.
    pub rx_errors: u64,
    /// Frames that failed to be sent.
    pub tx_errors: u64,
    /// Frames dropped because the packet pool was empty.
    pub rx_no_buffer: u64,
}

/// Tells a port's counters and link state, from any thread.
#[derive(Clone, Debug)]
pub struct PortMonitor {
    id: u16,
    lifetime: Lifetime,
}

impl PortMonitor {
    pub(crate) fn new(id: u16, lifetime: Lifetime) -> PortMonitor {
        PortMonitor { id, lifetime }
    }

    /// The counters, or `None` once the runtime has ended or if the device keeps none.
    #[must_use]
    pub fn stats(&self) -> Option<PortStats> {
        let mut stats = ffi::rte_eth_stats::default();
        // SAFETY: DPDK runs while the closure does; `stats` is ours; `capsule_ffi::port` lets no other call about ports run at
        // the same time.
        let result = self.lifetime.while_alive(|| unsafe { ffi::rte_eth_stats_get(self.id, &mut stats) })?;
        (result == 0).then_some(PortStats {
            rx_packets: stats.ipackets,
            tx_packets: stats.opackets,
            rx_bytes: stats.ibytes,
            tx_bytes: stats.obytes,
            rx_missed: stats.imissed,
            rx_errors: stats.ierrors,
            tx_errors: stats.oerrors,
            rx_no_buffer: stats.rx_nombuf,
        })
    }

    /// The link's state, or `None` once the runtime has ended.
    #[must_use]
    pub fn link(&self) -> Option<Link> {
        self.lifetime.while_alive(|| link(self.id))
    }
}

fn link(id: u16) -> Link {
    let mut link = ffi::rte_eth_link::default();
    // SAFETY: only called while the EAL runs; `link` is ours, an unknown port is refused; for other calls, see `stats`.
    if unsafe { ffi::rte_eth_link_get_nowait(id, &mut link) } != 0 {
        return Link::default();
    }
    // 0 and u32::MAX are DPDK's "none" and "unknown".
    let known = !matches!(link.link_speed, 0 | u32::MAX);
    Link { up: link.link_status() != 0, mbps: known.then_some(link.link_speed) }
}

/// Octets of buffer, headroom included, in which frames of ports with this MTU fit in one piece. Devices count buffers in
/// kilobytes (ixgbe, i40e), so the frame's part is a whole number of those.
#[must_use]
pub(crate) fn data_room(mtu: u16) -> u16 {
    let frame = u32::from(mtu).saturating_add(FRAME_OVERHEAD).max(2048).next_multiple_of(1024);
    u16::try_from(frame.saturating_add(ffi::RTE_PKTMBUF_HEADROOM)).unwrap_or(u16::MAX)
}

/// A device that DPDK took over, ready to be configured.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) id: u16,
    pub(crate) profile: ffi::port::Profile,
    info: Box<ffi::rte_eth_dev_info>,
}

impl Found {
    /// Finds a port's device and works out how to set it up for `workers` workers.
    ///
    /// # Errors
    /// No such port, or one that cannot carry the MTU.
    pub(crate) fn new(config: &Port, workers: u16) -> Result<Found, StartError> {
        let id = eal::find(config)?;
        let mut info = Box::<ffi::rte_eth_dev_info>::default();
        // SAFETY: the EAL runs; `info` is ours.
        let code = unsafe { ffi::port::real_info(id, &mut *info) };
        if code != 0 {
            let (port, device) = (config.name.clone(), config.device.clone());
            return Err(StartError::PortStart { port, device, reason: eal::error_text(code), log: eal::recent_log() });
        }
        check_mtu(config, &info)?;
        let key_len = match usize::from(info.hash_key_size) {
            0 => RSS_KEY_USUAL,
            size => size,
        };
        let wanted_functions =
            ffi::SLUICE_RSS_IPV4 | ffi::SLUICE_RSS_IPV4_TCP | ffi::SLUICE_RSS_IPV6 | ffi::SLUICE_RSS_IPV6_TCP;
        let profile = ffi::port::Profile {
            rx_queues: workers.min(info.max_rx_queues).max(1),
            tx_queues: workers.min(info.max_tx_queues).max(1),
            rx_offloads: info.rx_offload_capa & (ffi::SLUICE_RX_OFFLOAD_IPV4_CKSUM | ffi::SLUICE_RX_OFFLOAD_TCP_CKSUM),
            tx_offloads: info.tx_offload_capa & TX_CHECKSUMS,
            mtu: u32::from(config.mtu),
            rss_functions: info.flow_type_rss_offloads & wanted_functions,
            rss_key: rss_key().get(..key_len).unwrap_or(rss_key()),
        };
        Ok(Found { id, profile, info })
    }

    fn driver(&self) -> String {
        text(self.info.driver_name)
    }

    /// Starts the configured port.
    ///
    /// # Errors
    /// The driver's refusal, with what it logged.
    pub(crate) fn start(&self, config: &Port) -> Result<(), StartError> {
        eal::forget_log();
        // SAFETY: the EAL runs and the port is configured.
        match unsafe { ffi::rte_eth_dev_start(self.id) } {
            0 => Ok(()),
            code => Err(self.refused(config, code)),
        }
    }

    /// Stops the port; no queue handle may be in use.
    pub(crate) fn stop(&self) {
        // SAFETY: the EAL runs; stopping a stopped port does nothing.
        unsafe { ffi::rte_eth_dev_stop(self.id) };
    }

    /// What the started port is.
    ///
    /// # Errors
    /// It tells no MAC address.
    pub(crate) fn describe(&self, config: &Port) -> Result<PortInfo, StartError> {
        let mut mac = ffi::rte_ether_addr::default();
        let mut mtu = 0;
        // SAFETY: the EAL runs; the places written to are ours.
        let (mac_result, mtu_result, node) = unsafe {
            (
                ffi::rte_eth_macaddr_get(self.id, &mut mac),
                ffi::rte_eth_dev_get_mtu(self.id, &mut mtu),
                ffi::rte_eth_dev_socket_id(self.id),
            )
        };
        if mac_result != 0 {
            return Err(self.refused(config, mac_result));
        }
        let both = ffi::SLUICE_RX_OFFLOAD_IPV4_CKSUM | ffi::SLUICE_RX_OFFLOAD_TCP_CKSUM;
        Ok(PortInfo {
            name: config.name.clone(),
            device: config.device.clone(),
            id: self.id,
            driver: self.driver(),
            mac: mac.addr_bytes,
            // One that does not tell has what it was configured with.
            mtu: if mtu_result == 0 { mtu } else { config.mtu },
            node: u16::try_from(node).ok(),
            rx_queues: self.profile.rx_queues,
            tx_queues: self.profile.tx_queues,
            max_rx_queues: self.info.max_rx_queues,
            max_tx_queues: self.info.max_tx_queues,
            rx_checksums: self.profile.rx_offloads & both == both,
            tx_checksums: self.profile.tx_offloads == TX_CHECKSUMS,
            reta_size: self.info.reta_size,
            link: link(self.id),
        })
    }

    /// A port that DPDK could not start, or that does not answer.
    fn refused(&self, config: &Port, code: c_int) -> StartError {
        StartError::PortStart {
            port: config.name.clone(),
            device: config.device.clone(),
            reason: eal::error_text(code),
            log: eal::recent_log(),
        }
    }

    /// How the started port spreads frames over its receive queues; `None` if it has one queue, or several that it fills by
    /// a rule of its own.
    pub(crate) fn rss(&self) -> Option<RssInfo> {
        let real = !WITHOUT_REAL_RSS.contains(&self.driver().as_str());
        if !real || self.profile.rx_queues < 2 || self.profile.rss_functions == 0 {
            return None;
        }
        self.read_rss()
    }

    /// The port's RSS settings, read back from it.
    fn read_rss(&self) -> Option<RssInfo> {
        const GROUP: usize = ffi::RTE_ETH_RETA_GROUP_SIZE as usize;
        let size = usize::from(self.info.reta_size);
        // No queue has this number: an entry that the device leaves alone is not taken for one that names queue 0.
        let unknown = ffi::rte_eth_rss_reta_entry64 { mask: u64::MAX, reta: [u16::MAX; GROUP] };
        let mut groups = vec![unknown; size.div_ceil(GROUP)];
        // SAFETY: the EAL runs; there is a group for each 64 of the table's `reta_size` entries.
        if unsafe { ffi::rte_eth_dev_rss_reta_query(self.id, groups.as_mut_ptr(), self.info.reta_size) } != 0 {
            return None;
        }
        let table: Vec<u16> = groups.iter().flat_map(|group| group.reta).take(size).collect();
        if !table.len().is_power_of_two() || table.iter().any(|&queue| queue >= self.profile.rx_queues) {
            return None;
        }
        let given = self.profile.rss_key;
        let mut told = [0; RSS_KEY_ROOM];
        let rss_key_len = u8::try_from(given.len()).ok()?;
        let mut conf = ffi::rte_eth_rss_conf { rss_key: told.as_mut_ptr(), rss_key_len, rss_hf: 0 };
        // SAFETY: the EAL runs. Drivers write a key of their own length, most without a look at `rss_key_len`
        // (`struct rte_eth_rss_conf`): that length is an octet, and there is room for the longest.
        if unsafe { ffi::rte_eth_dev_rss_hash_conf_get(self.id, &mut conf) } != 0 {
            // It does not tell: then it uses what it was given.
            (told, conf.rss_hf) = ([0; RSS_KEY_ROOM], self.profile.rss_functions);
        }
        let key = key_in_use(&told, given);
        let has = |function: u64| conf.rss_hf & function != 0;
        Some(RssInfo {
            key,
            table,
            hash_types: HashTypes {
                ipv4: has(ffi::SLUICE_RSS_IPV4),
                tcp4: has(ffi::SLUICE_RSS_IPV4_TCP),
                ipv6: has(ffi::SLUICE_RSS_IPV6),
                tcp6: has(ffi::SLUICE_RSS_IPV6_TCP),
            },
        })
    }
}

/// The key that a device uses that was given `given` and tells `told`: a blank one tells nothing.
fn key_in_use(told: &[u8; RSS_KEY_ROOM], given: &[u8]) -> Vec<u8> {
    let told = told.get(..given.len()).unwrap_or(told);
    if told.iter().all(|octet| *octet == 0) { given.to_vec() } else { told.to_vec() }
}

const TX_CHECKSUMS: u64 = ffi::SLUICE_TX_OFFLOAD_IPV4_CKSUM | ffi::SLUICE_TX_OFFLOAD_TCP_CKSUM;

/// Refuses an MTU that `rte_eth_dev_configure` would refuse, by the same reckoning, but says what would be right.
fn check_mtu(config: &Port, info: &ffi::rte_eth_dev_info) -> Result<(), StartError> {
    let max_mtu = u32::from(info.max_mtu);
    let overhead = match info.max_rx_pktlen.checked_sub(max_mtu) {
        Some(overhead) if info.max_mtu != u16::MAX && overhead > 0 => overhead,
        _ => ffi::RTE_ETHER_HDR_LEN.saturating_add(ffi::RTE_ETHER_CRC_LEN),
    };
    let max = max_mtu.min(info.max_rx_pktlen.saturating_sub(overhead));
    let min = u32::from(info.min_mtu);
    if (min..=max).contains(&u32::from(config.mtu)) {
        return Ok(());
    }
    Err(StartError::Mtu { port: config.name.clone(), device: config.device.clone(), mtu: config.mtu, min, max })
}

/// A C string of DPDK's, or nothing.
fn text(pointer: *const std::os::raw::c_char) -> String {
    if pointer.is_null() {
        return String::new();
    }
    // SAFETY: not null, and DPDK's names are terminated and static.
    unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn largest_frame_fits_one_buffer() {
        assert_eq!(data_room(1500), 2048 + 128);
        assert_eq!(data_room(2022), 2048 + 128);
        assert_eq!(data_room(2023), 3072 + 128);
        assert_eq!(data_room(9000), 9216 + 128);
    }

    #[test]
    fn the_rss_key_stays_the_same_and_is_not_blank() {
        assert_eq!(rss_key(), rss_key());
        assert!(rss_key().windows(40).all(|part| part.iter().any(|octet| *octet != part[0])));
    }

    #[test]
    fn a_key_that_a_device_does_not_tell_is_the_one_it_was_given() {
        let given = [7; RSS_KEY_USUAL];
        assert_eq!(key_in_use(&[0; RSS_KEY_ROOM], &given), given);
        let mut told = [0; RSS_KEY_ROOM];
        told[..52].fill(9);
        assert_eq!(key_in_use(&told, &given), [9; RSS_KEY_USUAL]);
    }

    /// `net_null` takes an RSS configuration and tells it, though it delivers frames without regard to it.
    #[test]
    fn rss_settings_are_read_back() {
        use crate::runtime::Runtime;
        use sluice_config as config;
        let config = config::Config {
            runtime: config::Runtime {
                cores: vec![0, 0],
                control_core: 0,
                hugepages: config::Hugepages::Off,
                mbufs: 8191,
                ..config::Runtime::default()
            },
            ports: vec![Port {
                name: "wan".into(),
                device: "net_null0".into(),
                args: String::new(),
                addresses: Vec::new(),
                gateways: Vec::new(),
                vlan: 0,
                mtu: 1500,
                promiscuous: false,
                source_check: config::SourceCheck::Loose,
            }],
            routes: Vec::new(),
            services: Vec::new(),
            sets: Vec::new(),
            warnings: Vec::new(),
            rules: Vec::new(),
            filters: config::Filters::default(),
            bans: None,
            peace: config::Peace::default(),
            sample: None,
            cookies: config::Cookies { seed_file: None, epoch: std::time::Duration::from_secs(64) },
            proxy_keys: None,
            metrics: None,
            log: config::Log { level: config::Level::Info, connections: config::ConnectionLog::Off },
        };
        let runtime = Runtime::build(&config).unwrap();
        assert_eq!(runtime.rss(0), None, "not one to steer by");
        let rss = Found::new(&config.ports[0], 2).unwrap().read_rss().unwrap();
        assert_eq!((rss.key.len(), rss.table.len()), (40, usize::from(runtime.ports()[0].reta_size)));
        assert!(rss.hash_types.tcp4 && rss.hash_types.tcp6);
    }
}
