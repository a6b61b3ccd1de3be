//! Packet pools: a worker's own handle to allocate frames, and a monitor for the control plane.

use std::fmt;
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use capsule_ffi as ffi;

use super::eal::Lifetime;
use super::frame::{BURST, Frame, free_all};
use super::slots::Slots;

/// A worker's handle to the pool of its NUMA node, with a small stock of its own: one call into DPDK for 32 frames.
pub struct Pool {
    pool: NonNull<ffi::rte_mempool>,
    stock: Slots<BURST>,
    /// Frames in stock, for the monitor, which does not count them as in use.
    published: Arc<AtomicUsize>,
    one_thread: PhantomData<*const ()>,
}

impl Pool {
    /// A handle.
    ///
    /// # Safety
    /// `pool` must be a packet pool that lives for as long as the handle.
    pub(crate) unsafe fn new(pool: NonNull<ffi::rte_mempool>, published: Arc<AtomicUsize>) -> Pool {
        Pool { pool, stock: Slots::new(), published, one_thread: PhantomData }
    }

    /// An empty frame: no octets, headroom of 128, tailroom for the largest frame any port sends. `None` if the pool is
    /// exhausted.
    #[inline]
    pub fn alloc(&mut self) -> Option<Frame> {
        if self.stock.count() == 0 {
            self.refill();
        }
        let frame = self.stock.pop();
        self.published.store(self.stock.count(), Ordering::Relaxed);
        frame
    }

    #[cold]
    fn refill(&mut self) {
        let pool = self.pool.as_ptr();
        // SAFETY: the pool is alive, and `slots` has room for `count`. With 0, DPDK wrote that many fresh mbufs of reference count 1.
        // Otherwise it gives none, whatever it wrote: the pointers it copied out of the cache before it failed are the cache's still.
        let in_bulk = |slots, count: u16| match unsafe { ffi::_rte_pktmbuf_alloc_bulk(pool, slots, count.into()) } {
            0 => count,
            _ => 0,
        };
        // SAFETY: see above.
        if unsafe { self.stock.fill(in_bulk) } > 0 {
            return;
        }
        // Fewer than that are left: take one.
        let single = |slots: *mut *mut ffi::rte_mbuf, _| {
            // SAFETY: the pool is alive. The result is null or a fresh mbuf of reference count 1, and there is a first slot.
            unsafe {
                let mbuf = ffi::_rte_pktmbuf_alloc(pool);
                slots.write(mbuf);
                u16::from(!mbuf.is_null())
            }
        };
        // SAFETY: see above.
        unsafe { self.stock.fill(single) };
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        free_all(self.stock.filled_mut());
        self.published.store(0, Ordering::Relaxed);
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("stocked", &self.stock.count()).finish_non_exhaustive()
    }
}

/// How full a pool is, in frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolUsage {
    /// Frames in the pool when nobody uses it.
    pub capacity: usize,
    /// Frames that could be allocated now, by one worker or another.
    pub available: usize,
    /// Frames held: by devices, by workers' queues and buffers, on their way between workers.
    pub in_use: usize,
}

/// Tells a pool's usage, from any thread.
#[derive(Clone, Debug)]
pub struct PoolMonitor {
    name: String,
    node: i32,
    pool: ffi::pool::PoolRef,
    capacity: usize,
    stocks: Vec<Arc<AtomicUsize>>,
    lifetime: Lifetime,
}

// SAFETY: `rte_mempool_avail_count` only reads counts (aligned words, perhaps a little old), and only while `lifetime` says that
// the pool lives.
unsafe impl Sync for PoolMonitor {}

impl PoolMonitor {
    /// A monitor of a pool, which counts what is in `stocks` as available.
    ///
    /// # Safety
    /// `pool` must live for as long as `lifetime` says that DPDK runs.
    pub(crate) unsafe fn new(
        name: String,
        pool: ffi::pool::PoolRef,
        capacity: usize,
        stocks: Vec<Arc<AtomicUsize>>,
        lifetime: Lifetime,
    ) -> PoolMonitor {
        PoolMonitor { name, node: pool.node, pool, capacity, stocks, lifetime }
    }

    /// Its name, for metrics.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its NUMA node.
    #[must_use]
    pub fn node(&self) -> i32 {
        self.node
    }

    /// Its usage, or `None` once the runtime has ended. Slow (it visits every lcore's cache): for metrics.
    #[must_use]
    pub fn usage(&self) -> Option<PoolUsage> {
        // SAFETY: DPDK runs while the closure does, so the pool is alive.
        let free = self.lifetime.while_alive(|| unsafe { ffi::rte_mempool_avail_count(self.pool.pool) })?;
        let stocked: usize = self.stocks.iter().map(|stock| stock.load(Ordering::Relaxed)).sum();
        let available = (free as usize).saturating_add(stocked).min(self.capacity);
        Some(PoolUsage { capacity: self.capacity, available, in_use: self.capacity.saturating_sub(available) })
    }
}
