//! What the control plane reads of a running appliance.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::SystemTime;

use sluice_dataplane::counters::WorkerCounters;
use sluice_dataplane::{DroppedPacket, PoolUse, PortStats, View};
use sluice_filters::units::Micros;
use sluice_tcpstack::record::SessionRecord;

/// The appliance as its observers see it. [`View`] is the real one; tests bring their own. Nothing here waits for a worker.
pub trait Source: Send + Sync {
    /// One set of counters a worker, in the order of `runtime.cores`.
    fn workers(&self) -> &[Arc<WorkerCounters>];
    /// The next ended connection, of any worker.
    fn next_record(&self) -> Option<SessionRecord>;
    /// Ended connections that wait for [`Source::next_record`].
    fn records_waiting(&self) -> usize;
    /// The next dropped packet of the sample.
    fn next_sample(&self) -> Option<DroppedPacket>;
    /// Frames of the packet pool.
    fn pool(&self) -> PoolUse;
    /// The device's own counters of the port with this index.
    fn port_stats(&self, port: usize) -> PortStats;
    /// A moment of the workers' clock as wall-clock time, as far as is known by now.
    fn wall_clock(&self, at: Micros) -> SystemTime;
    /// How often the wall clock was set since the start.
    fn clock_steps(&self) -> u64;
}

impl Source for View {
    fn workers(&self) -> &[Arc<WorkerCounters>] {
        View::workers(self)
    }

    fn next_record(&self) -> Option<SessionRecord> {
        View::next_record(self)
    }

    fn records_waiting(&self) -> usize {
        View::records_waiting(self)
    }

    fn next_sample(&self) -> Option<DroppedPacket> {
        View::next_sample(self)
    }

    fn pool(&self) -> PoolUse {
        View::pool(self)
    }

    fn port_stats(&self, port: usize) -> PortStats {
        View::port_stats(self, port)
    }

    fn wall_clock(&self, at: Micros) -> SystemTime {
        View::wall_clock(self, at)
    }

    fn clock_steps(&self) -> u64 {
        View::clock_steps(self)
    }
}

impl Debug for dyn Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Source").field("workers", &self.workers().len()).finish_non_exhaustive()
    }
}
