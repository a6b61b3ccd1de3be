//! What workers say to each other: frames whose flow another one owns, frames for a device another one serves, news of
//! neighbours. Bounded queues, one reader each; a full one costs the frame, and a counter.

use crossbeam::queue::ArrayQueue;
use sluice_filters::addr::Addr;
use sluice_filters::units::{PortId, WorkerId};
use sluice_tcpstack::unanswered::Record;

use crate::dpdk::Transfer;
use crate::net::Learned;

/// Letters one worker's box holds.
const CAPACITY: usize = 4096;

/// One message.
#[derive(Debug)]
pub(crate) enum Letter {
    /// A received frame, for the flow's owner. Its checksums were verified, the filters let it through, and a rule exempted it from
    /// what they ask later, or none did. `by` is who did all this.
    Received { frame: Transfer, port: PortId, exempt: Option<u16>, by: WorkerId },
    /// A segment that was handed over had a valid cookie: for the worker whose filters looked at it. One that is lost costs no more than
    /// the count of a client, until its next connection.
    Proved(Addr),
    /// A SYN that another worker has answered, for the owner of its flow.
    Answered(Record),
    /// A finished frame, for the worker that serves the port.
    Transmit(Transfer, PortId),
    /// What ARP or NDP told.
    Learned(Learned),
}

/// All workers' boxes.
#[derive(Debug)]
pub(crate) struct Mailboxes(Vec<ArrayQueue<Letter>>);

impl Mailboxes {
    pub(crate) fn new(workers: usize) -> Mailboxes {
        Mailboxes((0..workers).map(|_| ArrayQueue::new(CAPACITY)).collect())
    }

    /// Puts a letter into `to`'s box; gives it back when there is no room.
    pub(crate) fn post(&self, to: WorkerId, letter: Letter) -> Result<(), Letter> {
        match self.0.get(usize::from(to.0)) {
            Some(letterbox) => letterbox.push(letter),
            None => Err(letter),
        }
    }

    /// Tells all workers but `from`. A full box misses it: neighbours are asked again.
    pub(crate) fn tell_others(&self, from: WorkerId, learned: Learned) {
        for (index, letterbox) in self.0.iter().enumerate() {
            if index != usize::from(from.0) {
                let _ = letterbox.push(Letter::Learned(learned));
            }
        }
    }

    /// The next letter for `worker`.
    pub(crate) fn next(&self, worker: WorkerId) -> Option<Letter> {
        self.0.get(usize::from(worker.0))?.pop()
    }

    /// Letters waiting for `worker`.
    pub(crate) fn waiting(&self, worker: WorkerId) -> usize {
        self.0.get(usize::from(worker.0)).map_or(0, ArrayQueue::len)
    }
}
