//! Packet pools: a worker's own handle to allocate frames, and a monitor for the control plane.

use std::fmt;
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use capsule_ffi as ffi;

use super::eal::Lifetime;
use super::frame::{BURST, Frame, free_all};

/// A worker's handle to the pool of its NUMA node, with a small stock of its own: one call into DPDK for 32 frames.
pub struct Pool {
    pool: NonNull<ffi::rte_mempool>,
    stock: [Option<Frame>; BURST],
    stocked: usize,
    /// `stocked`, for the monitor, which does not count frames in stock as in use.
    published: Arc<AtomicUsize>,
    one_thread: PhantomData<*const ()>,
}

impl Pool {
    /// A handle.
    ///
    /// # Safety
    /// `pool` must be a packet pool that lives for as long as the handle.
    pub(crate) unsafe fn new(pool: NonNull<ffi::rte_mempool>, published: Arc<AtomicUsize>) -> Pool {
        Pool { pool, stock: [const { None }; BURST], stocked: 0, published, one_thread: PhantomData }
    }

    /// An empty frame: no octets, headroom of 128, tailroom for the largest frame any port sends. `None` if the pool is
    /// exhausted.
    #[inline]
    pub fn alloc(&mut self) -> Option<Frame> {
        if self.stocked == 0 {
            self.refill();
        }
        let last = self.stocked.checked_sub(1)?;
        self.stocked = last;
        self.published.store(last, Ordering::Relaxed);
        self.stock.get_mut(last)?.take()
    }

    #[cold]
    fn refill(&mut self) {
        let slots = self.stock.as_mut_ptr().cast();
        // SAFETY: the pool is alive. `stock` has room for BURST nullable pointers (`Option<Frame>` is one), all null as
        // nothing is in stock; DPDK fills all of them with fresh mbufs of reference count 1, or none.
        if unsafe { ffi::_rte_pktmbuf_alloc_bulk(self.pool.as_ptr(), slots, BURST as u32) } == 0 {
            self.stocked = BURST;
            return;
        }
        // Fewer than that are left: take one.
        // SAFETY: the pool is alive; the result is null or a fresh mbuf of reference count 1.
        let frame = unsafe { NonNull::new(ffi::_rte_pktmbuf_alloc(self.pool.as_ptr())).map(|m| Frame::from_raw(m)) };
        if let (Some(frame), Some(slot)) = (frame, self.stock.first_mut()) {
            *slot = Some(frame);
            self.stocked = 1;
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        free_all(self.stock.get_mut(..self.stocked).unwrap_or_default());
        self.stocked = 0;
        self.published.store(0, Ordering::Relaxed);
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("stocked", &self.stocked).finish_non_exhaustive()
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

// SAFETY: the pool is only read, by a DPDK function that may run on any thread, and only while `lifetime` says it lives.
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
