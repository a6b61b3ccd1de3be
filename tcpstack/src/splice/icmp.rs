//! ICMP errors about a spliced session's segments, passed on to the host whose segment it was.
//!
//! An error counts only when it quotes a segment that is on its way now: a number between what its receiver has acknowledged and what
//! was sent (RFC 5927 section 4.1), so that a forger has to guess both ports and a number in the window. It never ends a
//! session: what to make of it is for the end host's TCP, which takes all of them for hints. Only a dial is given up when its SYN
//! cannot reach the upstream.

use sluice_filters::DropReason;
use sluice_filters::addr::FlowKey;
use sluice_filters::icmp::{self, IcmpError, IcmpKind};
use sluice_filters::units::{Micros, PortId, Seq};

use super::flow;
use crate::counters::DialFailure;
use crate::net::Lower;
use crate::path_mtu::{self, PathMtu, PathSource};
use crate::stack::{Side, Stack};

/// The least MTU of each family (RFC 791 section 3.2, RFC 8200 section 5).
const MTU_MIN_V4: u32 = 68;
const MTU_MIN_V6: u32 = 1_280;
/// The smallest path to a client that an upstream is told of: it remembers a path's MTU for all connections to us, whichever client's
/// router spoke. What does not fit a smaller one is cut (`path_mtu::Whole`).
const MTU_MIN_UPSTREAM: u32 = 1_280;
const IP_HEADER_DIFFERENCE: u32 = 20;

impl Stack {
    /// An ICMP error about a segment to the end of `receiver`, received on `port`.
    ///
    /// # Errors
    /// As [`Stack::icmp_error`]'s.
    pub(crate) fn spliced_error<N: Lower>(
        &mut self,
        (receiver, index): (Side, u32),
        error: &IcmpError,
        port: PortId,
        now: Micros,
        net: &mut N,
    ) -> Result<(), DropReason> {
        if receiver == Side::Upstream && self.splices.get(index).is_none_or(|splice| splice.upstream.port != port) {
            return Err(DropReason::WrongPort);
        }
        let Some((client, listen, ours, upstream)) = self.ends(index) else { return Err(DropReason::BadIcmp) };
        if let Some(target) = self.dialled(index)
            && receiver == Side::Upstream
        {
            let isn = self.splices.get(index).and_then(|splice| splice.dialling());
            if isn != Some(error.seq) || !matches!(error.kind, IcmpKind::Unreachable(_)) {
                return Err(DropReason::BadIcmp);
            }
            self.dial_denied(index, target, DialFailure::Unreachable, now, net);
            return Ok(());
        }
        let Some(splice) = self.splices.get_mut(index) else { return Err(DropReason::BadIcmp) };
        // Where nothing is known of the numbers, any would do.
        if !splice.is_connected() || splice.is_unsure() {
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
                let path_v4 = error.key.src.is_v4();
                let told = told_mtu(mtu, path_v4, v4, sender);
                // Smaller than its sender may be told, or about a piece, which its sender does not know of: this flow's segments are cut for
                // the path.
                if translated_mtu(mtu, path_v4, v4) < told || splice.path(receiver).unpack(now).is_cut() {
                    let mtu = u16::try_from(mtu).unwrap_or(u16::MAX).max(path_mtu::least(path_v4));
                    splice.change_path(receiver, now, |path| path.told(mtu));
                    // The client knows the numbers of what goes to the upstream, and could say so in a router's name.
                    if receiver == Side::Client {
                        self.path_mtus.learn(error.key.src, PathMtu { mtu, source: PathSource::Router }, now);
                    }
                }
                if sender == Side::Upstream {
                    // Its SYN-ACKs will say so, too.
                    self.shared.board.tell(upstream.addr, u16::try_from(told).unwrap_or(u16::MAX), now);
                }
                IcmpKind::TooBig(told)
            }
            unreachable @ IcmpKind::Unreachable(_) => unreachable,
        };
        let way = splice.way(sender);
        let len = translated_len(error.len, error.key.src.is_v4(), v4);
        net.send(way, icmp::error_len(v4), |packet| icmp::write_error(packet, &key, seq, len, kind));
        Ok(())
    }
}

/// What the `sender` of a packet that met a path of `mtu` bytes is told. The limits are those of the family that the number is of: the
/// path's before it is translated, the sender's after that.
fn told_mtu(mtu: u32, path_v4: bool, sender_v4: bool, sender: Side) -> u32 {
    // A router from before RFC 1191 does not say; a client's kernel guesses for itself alone, an upstream's would for all of them.
    if mtu == 0 && path_v4 && sender_v4 && sender == Side::Client {
        return 0;
    }
    let least = match sender {
        Side::Client if path_v4 => MTU_MIN_V4,
        Side::Client => MTU_MIN_V6,
        Side::Upstream => MTU_MIN_UPSTREAM,
    };
    let least_told = if sender_v4 { MTU_MIN_V4 } else { MTU_MIN_V6 };
    translated_mtu(mtu.max(least), path_v4, sender_v4).max(least_told)
}

/// A path's MTU as the other family's packets feel it.
fn translated_mtu(mtu: u32, path_v4: bool, sender_v4: bool) -> u32 {
    match (path_v4, sender_v4) {
        (true, false) => mtu.saturating_add(IP_HEADER_DIFFERENCE),
        (false, true) => mtu.saturating_sub(IP_HEADER_DIFFERENCE),
        (true, true) | (false, false) => mtu,
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
        let to_client = |mtu, path_v4, sender_v4| told_mtu(mtu, path_v4, sender_v4, Side::Client);
        assert_eq!(to_client(1_400, true, true), 1_400);
        assert_eq!(to_client(0, true, true), 0);
        assert_eq!(to_client(1_400, true, false), 1_420);
        assert_eq!(to_client(600, true, false), 1_280);
        assert_eq!(to_client(1_400, false, true), 1_380);
        assert_eq!(to_client(1_000, false, false), 1_280);
        assert_eq!(to_client(1_000, false, true), 1_260);
        assert_eq!(to_client(40, true, true), 68);
    }

    #[test]
    fn an_upstream_is_told_no_path_below_1280_in_the_clients_family() {
        let to_upstream = |mtu, path_v4, sender_v4| told_mtu(mtu, path_v4, sender_v4, Side::Upstream);
        assert_eq!(to_upstream(600, true, true), 1_280);
        assert_eq!(to_upstream(0, true, true), 1_280, "a path that no router measured");
        assert_eq!(to_upstream(1_299, true, true), 1_299);
        assert_eq!(to_upstream(600, true, false), 1_300);
        for mtu in 1_280..1_300 {
            assert_eq!(to_upstream(mtu, false, true), mtu - 20, "an IPv6 client behind {mtu}");
        }
        assert_eq!(to_upstream(1_280, false, false), 1_280);
    }
}
