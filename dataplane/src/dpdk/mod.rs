//! DPDK, made safe: the only room of sluice besides `capsule-ffi` where unsafe code lives.
//!
//! Invariants the unsafe code rests on:
//!
//! - A [`Frame`] is the only owner of its mbuf (reference count 1). It is freed exactly once: by being dropped, by
//!   [`FreeList`], or by a device that took it in [`TxQueue::offer`].
//! - Frames never outlive the memory they are in: a pool with frames still out is not freed, and DPDK's memory then stays
//!   mapped until the process ends (`capsule_ffi::pool`).
//! - What DPDK writes to an array or a structure counts only as far as its answer says: a count, or 0 for success. The rest may
//!   hold anything, mbufs of others among it (`slots`).
//! - A queue of a port has one handle, [`RxQueue`] or [`TxQueue`], which is neither `Clone` nor `Send`: made by
//!   [`crate::runtime`] on the thread of the worker that uses it, after the port was started, and dropped before it stops.
//! - Functions that only this crate sees (`pub(crate)`) and that call DPDK rely on [`crate::runtime`] for their order: it
//!   starts DPDK, finds, configures, starts and describes the ports, gives out the seats, runs the workers, and undoes all of
//!   that the other way round. They are safe to call in this order, and only there.

pub mod eal;
pub mod frame;
pub mod pool;
pub mod port;
pub mod queue;
pub mod seat;
pub(crate) mod signal;
mod slots;

pub use frame::{BURST, Burst, Frame, FreeList, Transfer};
pub use pool::{Pool, PoolMonitor, PoolUsage};
pub use port::{HashTypes, Link, PortInfo, PortMonitor, PortStats, RssInfo};
pub use queue::{RxQueue, Sent, TX_BUFFER, TxBuffer, TxQueue};
pub use seat::{PortQueues, WorkerQueues};
