//! Packet pools: capsule creates one per NUMA node of its cores; this module sizes their buffers, remembers them, and
//! keeps them alive for as long as a frame is out.

use std::os::raw::{c_char, c_int, c_uint};
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::bindings::{self, rte_mempool};
use crate::port;

/// A pool that exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolRef {
    /// The pool.
    pub pool: *mut rte_mempool,
    /// Its NUMA node.
    pub node: c_int,
}

// SAFETY: the pointer is only a name here. What may be done with it, and when, is up to the unsafe functions it is
// passed to; DPDK's pools themselves may be used from any thread (their rings are multi-producer and multi-consumer, DPDK's
// default).
unsafe impl Send for PoolRef {}

static POOLS: Mutex<Vec<PoolRef>> = Mutex::new(Vec::new());
static DATA_ROOM: AtomicU16 = AtomicU16::new(0);
static IN_USE: AtomicBool = AtomicBool::new(false);

fn registry() -> MutexGuard<'static, Vec<PoolRef>> {
    POOLS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The pools that exist, oldest first.
#[must_use]
pub fn all() -> Vec<PoolRef> {
    registry().clone()
}

/// Sets the least data room (headroom and frame, octets) of the pools that are created from now on.
pub fn set_data_room(octets: u16) {
    DATA_ROOM.store(octets, Ordering::Release);
}

/// Whether a pool was left alone because frames of it were still out.
#[must_use]
pub fn any_in_use() -> bool {
    IN_USE.load(Ordering::Acquire)
}

/// Creates a pool with the asked-for data room, or with that of [`set_data_room`] if it is larger.
///
/// # Safety
/// As DPDK's function: the EAL must run and `name` must be a C string.
pub unsafe fn rte_pktmbuf_pool_create(
    name: *const c_char,
    n: c_uint,
    cache_size: c_uint,
    priv_size: u16,
    data_room_size: u16,
    socket_id: c_int,
) -> *mut rte_mempool {
    let room = data_room_size.max(DATA_ROOM.load(Ordering::Acquire));
    // SAFETY: the caller's promise is the callee's requirement.
    let pool = unsafe { bindings::rte_pktmbuf_pool_create(name, n, cache_size, priv_size, room, socket_id) };
    if !pool.is_null() {
        registry().push(PoolRef { pool, node: socket_id });
    }
    pool
}

/// Frees a pool, unless frames of it are still out: then it stays, and [`crate::rte_eal_cleanup`] will leave DPDK's memory
/// mapped, so that a forgotten frame is a leak at the end of the process and not a use after free. Ports that are still open
/// are closed first, so that none receives into it.
///
/// # Safety
/// As DPDK's function: `pool` came from [`rte_pktmbuf_pool_create`], and no thread allocates from it or uses a port's queues
/// any more.
pub unsafe fn rte_mempool_free(pool: *mut rte_mempool) {
    // SAFETY: the caller vouches that nobody uses the ports.
    unsafe { port::close_left() };
    registry().retain(|known| known.pool != pool);
    // SAFETY: the caller hands over a live pool.
    if unsafe { bindings::rte_mempool_in_use_count(pool) } > 0 {
        IN_USE.store(true, Ordering::Release);
        return;
    }
    // SAFETY: as above, no open port receives into it, and none of its objects is referenced from anywhere.
    unsafe { bindings::rte_mempool_free(pool) }
}
