//! ICMP errors about a terminated session's segments.
//!
//! An error counts only when it quotes a segment that is on its way now (RFC 5927 section 4.1). "Too big" narrows the path of that peer: what
//! the socket emits is cut from then on. "Unreachable" ends a dial, which then goes to the next upstream; to a connection it is a hint that
//! its own timers follow better (RFC 5927 section 6).

use sluice_filters::DropReason;
use sluice_filters::icmp::{IcmpError, IcmpKind};
use sluice_filters::units::{Micros, PortId};

use super::session::Phase;
use crate::path_mtu::{self, PathMtu, PathSource};
use crate::stack::{Side, Stack};

impl Stack {
    /// An ICMP error about a segment to the end of `receiver`, received on `port`.
    ///
    /// # Errors
    /// As [`Stack::icmp_error`]'s.
    pub(crate) fn terminated_error(
        &mut self,
        (receiver, index): (Side, u32),
        error: &IcmpError,
        port: PortId,
        now: Micros,
    ) -> Result<(), DropReason> {
        let Some(session) = self.sessions.get_mut(index) else { return Err(DropReason::BadIcmp) };
        let dialing = receiver == Side::Upstream && matches!(session.phase, Phase::Dialing { .. });
        let Some(endpoint) = session.endpoint(receiver) else { return Err(DropReason::BadIcmp) };
        if receiver == Side::Upstream && endpoint.leg.way.port() != port {
            return Err(DropReason::WrongPort);
        }
        if endpoint.reset || !endpoint.leg.guard.is_on_its_way(error.seq) {
            return Err(DropReason::BadIcmp);
        }
        match error.kind {
            IcmpKind::TooBig(mtu) => {
                let v4 = error.key.src.is_v4();
                let mtu = path_mtu::told(mtu, error.len, v4).ok_or(DropReason::BadIcmp)?;
                endpoint.leg.path.told(mtu);
                self.path_mtus.learn(error.key.src, PathMtu { mtu, source: PathSource::Router }, now);
            }
            IcmpKind::Unreachable(_) if dialing && error.seq == endpoint.leg.isn() => {
                endpoint.unreachable = true;
                session.mark(index, &mut self.dirty);
            }
            IcmpKind::Unreachable(_) => return Err(DropReason::BadIcmp),
        }
        Ok(())
    }
}
