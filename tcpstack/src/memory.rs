//! The most memory that the stacks of a configuration's workers can take.

use sluice_config::{Config, Mode, Service};

use crate::stack::{FLOWS_MAX, linger};
use crate::{ports, splice};

/// What a terminated connection takes besides its buffers: its session, two sockets with what belongs to them, two flow entries, a timer.
const SESSION: u64 = 4_096;
/// What a spliced one takes, all in all.
const SPLICED: u64 = 256;
/// An end that nothing is left of but a last word, with its flow entry and timer.
const LINGER: u64 = 256;
/// A source port at rest.
const REST: u64 = 40;
/// SYN-ACKs to repeat, filters of answered SYNs, paths: fixed tables.
const TABLES: u64 = 4 << 20;

/// The most memory, bytes, of all workers together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Most {
    /// Terminated connections, with those of spliced services that fell back.
    pub terminated: u64,
    /// Spliced connections.
    pub spliced: u64,
    /// Tables that are there from the start, and what is left of ended connections.
    pub tables: u64,
}

/// What the connections of one service can take: terminated, and spliced.
#[must_use]
pub fn of_service(service: &Service) -> (u64, u64) {
    let terminated = 4 * service.buffer as u64 + SESSION;
    let connections = u64::from(service.limits.connections);
    match service.mode {
        Mode::Terminate => (connections * terminated, 0),
        Mode::Splice => (u64::from(service.fallbacks_max()) * terminated, connections * SPLICED),
    }
}

/// What the stacks of `config` can take.
#[must_use]
pub fn most(config: &Config) -> Most {
    let workers = config.runtime.cores.len() as u64;
    let connections: u64 = config.services.iter().map(|service| u64::from(service.limits.connections)).sum();
    // As `FlowTable::new` has it.
    let flows = (2 * connections).min(FLOWS_MAX as u64) + linger::MAX as u64;
    let slots = (flows * 4 / 3).next_power_of_two() * 16;
    let held = splice::HELD_OCTETS_MAX as u64;
    let left = linger::MAX as u64 * LINGER + ports::RESTS_MAX as u64 * REST;
    let (terminated, spliced) = config.services.iter().map(of_service).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
    Most { terminated, spliced, tables: workers * (slots + held + left + TABLES) }
}
