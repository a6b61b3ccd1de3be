//! Ports and pools together, with DPDK running: one process, so one test.

use std::ffi::CString;
use std::os::raw::c_char;

use capsule_ffi as ffi;

/// capsule forgets a port whose second queue could not be set up; the first one's device has the pool by then.
#[test]
fn a_port_that_nobody_closed_is_closed_before_its_pool_is_freed() {
    let prefix = format!("sluice-ffi-{}", std::process::id());
    let arguments = ["t", "--no-huge", "-m", "64", "--no-pci", "--no-telemetry", "--no-shconf", "--vdev", "net_null0"];
    let arguments: Vec<CString> = arguments
        .into_iter()
        .chain(["--file-prefix", &prefix, "-l", "0"])
        .map(|argument| CString::new(argument).unwrap())
        .collect();
    let mut pointers: Vec<*mut c_char> = arguments.iter().map(|argument| argument.as_ptr().cast_mut()).collect();
    let mut info = ffi::rte_eth_dev_info::default();
    // SAFETY: the EAL starts on this thread alone, and what follows is in the order that DPDK wants: a pool, a port of it that
    // never receives, then their end. The places written to are ours.
    unsafe {
        assert!(ffi::rte_eal_init(i32::try_from(pointers.len()).unwrap(), pointers.as_mut_ptr()) >= 0);
        let pool = ffi::rte_pktmbuf_pool_create(c"pool".as_ptr(), 1023, 0, 0, 2176, 0);
        assert!(!pool.is_null());
        assert_eq!(ffi::rte_eth_dev_configure(0, 1, 1, &ffi::rte_eth_conf::default()), 0);
        assert_eq!(ffi::rte_eth_rx_queue_setup(0, 0, 64, 0, std::ptr::null(), pool), 0);
        assert_eq!(ffi::rte_eth_dev_info_get(0, &mut info), 0);
        ffi::rte_mempool_free(pool);
        assert!(ffi::rte_eth_dev_info_get(0, &mut info) < 0, "the port is gone");
        ffi::rte_eal_cleanup();
    }
    // Where DPDK keeps its lock and sockets.
    let _ = std::fs::remove_dir_all(format!("/var/run/dpdk/{prefix}"));
}
