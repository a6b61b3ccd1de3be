//! A worker's queues and pool, made on the worker's own thread.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use capsule_ffi as ffi;
use sluice_filters::units::WorkerId;

use super::eal::Lifetime;
use super::pool::{Pool, PoolMonitor};
use super::port::PortInfo;
use super::queue::{RxQueue, TxQueue};

/// One port, as one worker sees it. A device may have fewer queues than there are workers: then only the first workers
/// have some, and the others' frames go through those.
#[derive(Debug)]
pub struct PortQueues {
    /// The worker's receive queue.
    pub rx: Option<RxQueue>,
    /// The worker's transmit queue.
    pub tx: Option<TxQueue>,
}

/// All that a worker needs of DPDK.
#[derive(Debug)]
pub struct WorkerQueues {
    /// Whose they are.
    pub worker: WorkerId,
    /// By port, in the configuration's order.
    pub ports: Vec<PortQueues>,
    /// Where frames come from.
    pub pool: Pool,
}

/// A worker's place, kept for it until its thread runs. There is one for each worker, so that each queue gets one handle.
#[derive(Debug)]
pub(crate) struct Seat {
    worker: WorkerId,
    ports: Vec<SeatPort>,
    pool: ffi::pool::PoolRef,
    stocked: Arc<AtomicUsize>,
}

#[derive(Debug)]
struct SeatPort {
    id: u16,
    rx: bool,
    tx: bool,
}

impl Seat {
    /// Makes the queues' and the pool's handles. On the worker's thread, which [`crate::runtime`] runs only while the ports
    /// run and ends before it stops them and frees the pools.
    pub(crate) fn take(self) -> Option<WorkerQueues> {
        let queue = u16::from(self.worker.0);
        // SAFETY: queue numbers are worker numbers, and a worker has one seat, which is consumed here: these are the only
        // handles. `rx` and `tx` compare with the counts the port was configured with: they say that the queues exist. The
        // runtime keeps the promise in this function's description.
        let ports = unsafe {
            let handles = |port: &SeatPort| PortQueues {
                rx: port.rx.then(|| RxQueue::new(port.id, queue)),
                tx: port.tx.then(|| TxQueue::new(port.id, queue)),
            };
            self.ports.iter().map(handles).collect()
        };
        let pool = NonNull::new(self.pool.pool)?;
        // SAFETY: the runtime frees the pools after its workers ended.
        let pool = unsafe { Pool::new(pool, self.stocked) };
        Some(WorkerQueues { worker: self.worker, ports, pool })
    }
}

/// Makes the seats of workers on the CPUs `cores`, and the pools' monitors. Each worker allocates from its NUMA node's pool.
///
/// To be called once, when all ports run.
pub(crate) fn assign(
    cores: &[u16],
    ports: &[PortInfo],
    capacity: u32,
    lifetime: &Lifetime,
) -> (Vec<Seat>, Vec<PoolMonitor>) {
    let pools = ffi::pool::all();
    let mut stocks: Vec<Vec<Arc<AtomicUsize>>> = vec![Vec::new(); pools.len()];
    let mut seats = Vec::new();
    for (worker, &cpu) in (0..=u8::MAX).zip(cores) {
        // SAFETY: the EAL runs.
        let node = unsafe { ffi::eal::node_of(usize::from(cpu)) };
        let own = pools.iter().position(|pool| pool.node == node).unwrap_or(0);
        let (Some(pool), Some(stock)) = (pools.get(own), stocks.get_mut(own)) else { break };
        let stocked = Arc::new(AtomicUsize::new(0));
        stock.push(Arc::clone(&stocked));
        let queue = u16::from(worker);
        let port = |port: &PortInfo| SeatPort { id: port.id, rx: queue < port.rx_queues, tx: queue < port.tx_queues };
        seats.push(Seat { worker: WorkerId(worker), ports: ports.iter().map(port).collect(), pool: *pool, stocked });
    }
    let monitors = pools.iter().zip(stocks).enumerate().map(|(i, (pool, stocks))| {
        // SAFETY: the runtime ends `lifetime` before it frees the pools.
        unsafe { PoolMonitor::new(format!("pool{i}"), *pool, capacity as usize, stocks, lifetime.clone()) }
    });
    (seats, monitors.collect())
}
