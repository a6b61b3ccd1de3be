//! Compiles the C shims and generates the bindings, both with the flags `pkg-config libdpdk` reports, and links what it
//! reports. No library list and no CPU type of our own: a build follows the DPDK that is installed.

use std::env;
use std::path::PathBuf;
use std::process::Command;

use bindgen::callbacks::{EnumVariantValue, ParseCallbacks};

/// Oldest DPDK whose API the bindings and wrappers are written for.
const DPDK: &str = "22.11";

/// Functions that capsule or sluice call. `_rte_*` and `sluice_*` are the shims.
const FUNCTIONS: &str = "_rte_.*|sluice_log_to|rte_strerror|rte_version\
    |rte_eal_(init|cleanup|hotplug_add)|rte_thread_(set_affinity|register|unregister)\
    |rte_socket_(id|count|id_by_idx)\
    |rte_pktmbuf_(pool_create|free_bulk)|rte_mempool_(free|in_use_count|avail_count)\
    |rte_eth_dev_(socket_id|get_port_by_name|info_get|adjust_nb_rx_tx_desc|configure|start|stop|close|get_mtu)\
    |rte_eth_dev_(rss_reta_query|rss_hash_conf_get)\
    |rte_eth_(rx|tx)_queue_setup|rte_eth_macaddr_get|rte_eth_link_get_nowait|rte_eth_stats_get\
    |rte_eth_(promiscuous|allmulticast)_(enable|disable)";

/// Types that no function above mentions but capsule names.
const TYPES: &str = "rte_cpuset_t|rte_eth_rx_mq_mode|rte_ether_addr";

/// Constants; the plain ones of DPDK and those spelled out in bindings.h.
const CONSTANTS: &str = "ETH_RSS_.*|DEV_TX_OFFLOAD_.*|SLUICE_.*|RTE_MBUF_DEFAULT_BUF_SIZE|RTE_PKTMBUF_HEADROOM\
    |RTE_ETHER_HDR_LEN|RTE_ETHER_CRC_LEN|RTE_ETH_RETA_GROUP_SIZE|RTE_LOG_(ERR|WARNING|NOTICE|INFO)";

/// Gives the enum variant that capsule uses its name of DPDK 19.11.
#[derive(Debug)]
struct OldNames;

impl ParseCallbacks for OldNames {
    fn enum_variant_name(&self, _: Option<&str>, variant: &str, _: EnumVariantValue) -> Option<String> {
        (variant == "RTE_ETH_MQ_RX_RSS").then(|| "ETH_MQ_RX_RSS".to_owned())
    }
}

/// The compiler flags DPDK's headers need, among them `-include rte_config.h` and the CPU baseline DPDK was built for.
/// The pkg-config crate reports include paths and defines only.
fn cflags() -> Vec<String> {
    let program = env::var("PKG_CONFIG").unwrap_or_else(|_| "pkg-config".to_owned());
    let output = Command::new(&program)
        .args(["--cflags", "libdpdk"])
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} --cflags libdpdk: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("compiler flags are text").split_whitespace().map(str::to_owned).collect()
}

fn main() {
    for file in ["build.rs", "src/bindings.h", "src/shim.h", "src/shim.c"] {
        println!("cargo:rerun-if-changed={file}");
    }
    // Also prints the libraries to link.
    if let Err(error) = pkg_config::Config::new().atleast_version(DPDK).probe("libdpdk") {
        panic!("DPDK {DPDK} or later is needed (Debian: apt-get install libdpdk-dev): {error}");
    }
    let mut cflags = cflags();
    // cpu_set_t and fopencookie.
    cflags.push("-D_GNU_SOURCE".to_owned());

    let mut shim = cc::Build::new();
    shim.file("src/shim.c").opt_level(3);
    for flag in &cflags {
        shim.flag(flag);
    }
    shim.compile("sluice_dpdk_shim");

    let out = PathBuf::from(env::var("OUT_DIR").expect("cargo sets OUT_DIR")).join("bindings.rs");
    bindgen::Builder::default()
        .header("src/bindings.h")
        .clang_args(&cflags)
        .rust_edition(bindgen::RustEdition::Edition2024)
        .allowlist_function(FUNCTIONS)
        .allowlist_type(TYPES)
        .allowlist_var(CONSTANTS)
        // Structures that are both packed and aligned, or whose bit fields bindgen cannot lay out.
        .opaque_type("rte_arp_.*|rte_l2tpv2_.*|rte_gtp_.*")
        // DPDK's comments are Doxygen's, which rustdoc takes for broken links.
        .generate_comments(false)
        .derive_default(true)
        .default_enum_style(bindgen::EnumVariation::ModuleConsts)
        .parse_callbacks(Box::new(OldNames))
        .layout_tests(false)
        .formatter(bindgen::Formatter::None)
        .generate()
        .unwrap_or_else(|error| panic!("bindings to DPDK: {error}"))
        .write_to_file(&out)
        .unwrap_or_else(|error| panic!("{}: {error}", out.display()));
}
