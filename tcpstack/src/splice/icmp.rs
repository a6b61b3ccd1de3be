//! ICMP errors about a spliced session's segments, passed on to the host whose segment it was.
//!
//! An error counts only when it quotes a segment that is on its way now: a number between what its receiver has acknowledged and what
//! was sent (RFC 5927 section 4.1), so that a forger has to guess both ports and a number in the window. It never ends a
//! session: what to make of it is for the end host's TCP, which takes all of them for hints. Only a dial is given up when its SYN
//! cannot reach the upstream.

use sluice_filters::DropReason;
use sluice_filters::addr::FlowKey;
use sluice_filters::icmp::{self, IcmpError, IcmpKind};
use sluice_filters::units::{Micros, Seq};

use super::flow;
use crate::counters::DialFailure;
use crate::net::Lower;
use crate::stack::{FlowRef, Side, Stack};

/// The least MTU of each family (RFC 791 section 3.2, RFC 8200 section 5).
const MTU_MIN_V4: u32 = 68;
const MTU_MIN_V6: u32 = 1_280;
/// What an upstream is told at least: it remembers a path's MTU for all connections to us, whichever client's router spoke.
const MTU_MIN_UPSTREAM: u32 = 1_280;
const IP_HEADER_DIFFERENCE: u32 = 20;

impl Stack {
    /// Takes an ICMP error about a segment of ours.
    ///
    /// # Errors
    /// [`DropReason::BadIcmp`] when no spliced session has such a segment on its way, and no such SYN-ACK may be
    /// repeated.
    pub fn icmp_error<N: Lower>(
        &mut self,
        error: &IcmpError,
        hash: u64,
        now: Micros,
        net: &mut N,
    ) -> Result<(), DropReason> {
        let Some(FlowRef::Splice(receiver, index)) = self.flows.find(hash, &error.key).map(FlowRef::from_value) else {
            return self.syn_ack_unreachable(error, hash);
        };
        let Some((client, listen, ours, upstream)) = self.ends(index) else { return Err(DropReason::BadIcmp) };
        if let Some(target) = self.dialled(index)
            && receiver == Side::Upstream
        {
            let isn = self.splices.get(index).and_then(|splice| splice.dialling());
            if isn != Some(error.seq) || !matches!(error.kind, IcmpKind::Unreachable(_)) {
                return Err(DropReason::BadIcmp);
            }
            self.dial_failed_spliced(index, target, DialFailure::Unreachable, now, net);
            return Ok(());
        }
        let Some(splice) = self.splices.get_mut(index) else { return Err(DropReason::BadIcmp) };
        if !splice.is_connected() {
            return Err(DropReason::BadIcmp);
        }
        let (acknowledged, sent, sender, key, seq): (Seq, Seq, Side, FlowKey, Seq) = match receiver {
            Side::Client => (
                splice.client.ack,
                splice.upstream.snd_max,
                Side::Upstream,
                flow(upstream, ours),
                Seq(error.seq.0.wrapping_sub(splice.seq_delta)),
            ),
            Side::Upstream => {
                (splice.upstream.ack, splice.client.snd_max, Side::Client, flow(client, listen), error.seq)
            }
        };
        if error.seq.precedes(acknowledged) || sent.precedes(error.seq) {
            return Err(DropReason::BadIcmp);
        }
        let v4 = key.src.is_v4();
        let kind = match error.kind {
            // Nothing that fits was too big.
            IcmpKind::TooBig(mtu) if mtu >= u32::from(error.len) => return Err(DropReason::BadIcmp),
            IcmpKind::TooBig(mtu) => {
                let mtu = translated_mtu(mtu, error.key.src.is_v4(), v4);
                IcmpKind::TooBig(if sender == Side::Upstream { mtu.max(MTU_MIN_UPSTREAM) } else { mtu })
            }
            unreachable @ IcmpKind::Unreachable(_) => unreachable,
        };
        let way = splice.way(sender);
        let len = translated_len(error.len, error.key.src.is_v4(), v4);
        net.send(way, icmp::error_len(v4), |packet| icmp::write_error(packet, &key, seq, len, kind));
        Ok(())
    }
}

/// A link's MTU as the other family's packets feel it.
fn translated_mtu(mtu: u32, from_v4: bool, to_v4: bool) -> u32 {
    match (from_v4, to_v4) {
        (true, true) if mtu == 0 => 0,
        (true, true) => mtu.max(MTU_MIN_V4),
        (false, false) => mtu.max(MTU_MIN_V6),
        (true, false) => mtu.saturating_add(IP_HEADER_DIFFERENCE).max(MTU_MIN_V6),
        (false, true) => mtu.saturating_sub(IP_HEADER_DIFFERENCE).max(MTU_MIN_V4),
    }
}

/// A packet's length with the header of the other family.
fn translated_len(len: u16, from_v4: bool, to_v4: bool) -> u16 {
    match (from_v4, to_v4) {
        (true, false) => len.saturating_add(IP_HEADER_DIFFERENCE as u16),
        (false, true) => len.saturating_sub(IP_HEADER_DIFFERENCE as u16),
        _ => len,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mtus_grow_and_shrink_with_the_header_of_the_family() {
        assert_eq!(translated_mtu(1_400, true, true), 1_400);
        assert_eq!(translated_mtu(0, true, true), 0);
        assert_eq!(translated_mtu(1_400, true, false), 1_420);
        assert_eq!(translated_mtu(600, true, false), 1_280);
        assert_eq!(translated_mtu(1_400, false, true), 1_380);
        assert_eq!(translated_mtu(1_000, false, false), 1_280);
    }
}
