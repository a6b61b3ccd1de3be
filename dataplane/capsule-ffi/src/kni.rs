//! The kernel network interface (KNI), which DPDK has deprecated, Debian does not build and sluice does not use. capsule
//! mentions it, so its names are here; every call fails.

#![allow(non_camel_case_types, reason = "C's names")]

use std::os::raw::{c_char, c_int, c_uint};

use crate::bindings::{rte_ether_addr, rte_mbuf, rte_mempool};

const ENOTSUP: c_int = 95;

/// A kernel interface; none exists.
#[derive(Debug)]
#[repr(C)]
pub struct rte_kni {
    _none: [u8; 0],
}

/// What capsule fills in to ask for one.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct rte_kni_conf {
    /// Interface name.
    pub name: [c_char; 32],
    /// Group.
    pub group_id: u16,
    /// Buffer size.
    pub mbuf_size: c_uint,
    /// MAC address.
    pub mac_addr: rte_ether_addr,
}

/// The callbacks capsule offers.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct rte_kni_ops {
    /// Port.
    pub port_id: u16,
    /// MTU changed.
    pub change_mtu: Option<unsafe extern "C" fn(u16, c_uint) -> c_int>,
    /// Up or down.
    pub config_network_if: Option<unsafe extern "C" fn(u16, u8) -> c_int>,
    /// MAC address changed.
    pub config_mac_address: Option<unsafe extern "C" fn(u16, *mut u8) -> c_int>,
    /// Promiscuity changed.
    pub config_promiscusity: Option<unsafe extern "C" fn(u16, u8) -> c_int>,
}

/// Fails.
///
/// # Safety
/// None needed; unsafe because capsule calls it so.
#[must_use]
pub unsafe fn rte_kni_init(_max: c_uint) -> c_int {
    -ENOTSUP
}

/// Fails.
///
/// # Safety
/// None needed.
#[must_use]
pub unsafe fn rte_kni_alloc(_: *mut rte_mempool, _: *const rte_kni_conf, _: *mut rte_kni_ops) -> *mut rte_kni {
    std::ptr::null_mut()
}

/// Fails.
///
/// # Safety
/// None needed.
#[must_use]
pub unsafe fn rte_kni_release(_: *mut rte_kni) -> c_int {
    -ENOTSUP
}

/// Fails.
///
/// # Safety
/// None needed.
#[must_use]
pub unsafe fn rte_kni_handle_request(_: *mut rte_kni) -> c_int {
    -ENOTSUP
}

/// Receives nothing.
///
/// # Safety
/// None needed.
#[must_use]
pub unsafe fn rte_kni_rx_burst(_: *mut rte_kni, _: *mut *mut rte_mbuf, _: c_uint) -> c_uint {
    0
}

/// Takes nothing.
///
/// # Safety
/// None needed.
#[must_use]
pub unsafe fn rte_kni_tx_burst(_: *mut rte_kni, _: *mut *mut rte_mbuf, _: c_uint) -> c_uint {
    0
}

/// Does nothing.
///
/// # Safety
/// None needed.
pub unsafe fn rte_kni_close() {}
