//! ICMP errors about segments of ours: whose they are, and what either mode makes of them.

use sluice_filters::DropReason;
use sluice_filters::icmp::IcmpError;
use sluice_filters::units::{Micros, PortId};

use super::{FlowRef, Stack};
use crate::net::Lower;

impl Stack {
    /// Takes an ICMP error about a segment of ours, received on `port`.
    ///
    /// # Errors
    /// [`DropReason::BadIcmp`] when no session has such a segment on its way or none reacts to such an error, and no such SYN-ACK may be
    /// repeated, [`DropReason::WrongPort`] when nobody on that port can have seen it.
    pub fn icmp_error<N: Lower>(
        &mut self,
        error: &IcmpError,
        hash: u64,
        port: PortId,
        now: Micros,
        net: &mut N,
    ) -> Result<(), DropReason> {
        match self.flows.find(hash, &error.key).map(FlowRef::from_value) {
            Some(FlowRef::Splice(receiver, index)) => self.spliced_error((receiver, index), error, port, now, net),
            Some(FlowRef::Session(receiver, index)) => self.terminated_error((receiver, index), error, port, now),
            Some(FlowRef::Linger(_) | FlowRef::Probe(_)) | None => self.syn_ack_unreachable(error, hash),
        }
    }
}
