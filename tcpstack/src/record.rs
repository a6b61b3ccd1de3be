//! The record of an ended connection: what the connection log writes.

use std::net::SocketAddr;

use sluice_filters::units::{Micros, ServiceId, WorkerId};

/// Why a session ended. The label of `sluice_sessions_ended_total` and the log's `cause`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndCause {
    /// Both directions closed with FIN.
    Closed,
    /// RST from the client.
    ClientReset,
    /// RST from the upstream.
    UpstreamReset,
    /// Every upstream refused, stayed silent or was out of reach.
    DialFailed,
    /// No segment from the client for `client_idle`.
    ClientIdle,
    /// No segment from the upstream for `upstream_idle`.
    UpstreamIdle,
    /// Half-closed for too long.
    HalfClosed,
    /// The client never spoke.
    FirstData,
    /// A PROXY header that was malformed, missing or late, or came from a sender who is not to send one.
    ProxyHeader,
    /// The client named in a PROXY header has too many connections.
    SourceLimit,
    /// The client stopped acknowledging.
    ClientTimeout,
    /// The upstream stopped acknowledging.
    UpstreamTimeout,
    /// The client came back with a new connection from the same port.
    ClientRestarted,
    /// Our shut-down cut it.
    Shutdown,
    /// A fault or limit of ours.
    Internal,
}

/// Whose doing the end was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// Nobody's: an orderly close.
    Nobody,
    /// The client's.
    Client,
    /// The upstream's.
    Upstream,
    /// The operator's.
    Operator,
    /// Ours.
    Sluice,
}

impl EndCause {
    /// Every cause, in counter order.
    pub const ALL: [EndCause; 15] = [
        EndCause::Closed,
        EndCause::ClientReset,
        EndCause::UpstreamReset,
        EndCause::DialFailed,
        EndCause::ClientIdle,
        EndCause::UpstreamIdle,
        EndCause::HalfClosed,
        EndCause::FirstData,
        EndCause::ProxyHeader,
        EndCause::SourceLimit,
        EndCause::ClientTimeout,
        EndCause::UpstreamTimeout,
        EndCause::ClientRestarted,
        EndCause::Shutdown,
        EndCause::Internal,
    ];

    /// The label and log value.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            EndCause::Closed => "closed",
            EndCause::ClientReset => "client_reset",
            EndCause::UpstreamReset => "upstream_reset",
            EndCause::DialFailed => "dial_failed",
            EndCause::ClientIdle => "client_idle",
            EndCause::UpstreamIdle => "upstream_idle",
            EndCause::HalfClosed => "half_closed",
            EndCause::FirstData => "first_data",
            EndCause::ProxyHeader => "proxy_header",
            EndCause::SourceLimit => "source_limit",
            EndCause::ClientTimeout => "client_timeout",
            EndCause::UpstreamTimeout => "upstream_timeout",
            EndCause::ClientRestarted => "client_restarted",
            EndCause::Shutdown => "shutdown",
            EndCause::Internal => "internal",
        }
    }

    /// Whose doing it was.
    #[must_use]
    pub fn blame(self) -> Blame {
        match self {
            EndCause::Closed | EndCause::HalfClosed => Blame::Nobody,
            EndCause::ClientReset
            | EndCause::ClientIdle
            | EndCause::FirstData
            | EndCause::ProxyHeader
            | EndCause::SourceLimit
            | EndCause::ClientTimeout
            | EndCause::ClientRestarted => Blame::Client,
            EndCause::UpstreamReset | EndCause::DialFailed | EndCause::UpstreamIdle | EndCause::UpstreamTimeout => {
                Blame::Upstream
            }
            EndCause::Shutdown => Blame::Operator,
            EndCause::Internal => Blame::Sluice,
        }
    }
}

impl Blame {
    /// The log value.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Blame::Nobody => "nobody",
            Blame::Client => "client",
            Blame::Upstream => "upstream",
            Blame::Operator => "operator",
            Blame::Sluice => "sluice",
        }
    }
}

/// One ended connection. Times are on the worker's clock; the control plane turns them into wall-clock time.
#[derive(Clone, Copy, Debug)]
pub struct SessionRecord {
    /// The worker that held it.
    pub worker: WorkerId,
    /// The service.
    pub service: ServiceId,
    /// Index of the last upstream dialled; none when no dial began.
    pub upstream: Option<u16>,
    /// The client's address, as the appliance saw it or a trusted proxy named it.
    pub client: SocketAddr,
    /// The trusted proxy that named the client.
    pub via: Option<SocketAddr>,
    /// Address the client connected to.
    pub listen: SocketAddr,
    /// Our address towards the upstream; none when no dial began.
    pub source: Option<SocketAddr>,
    /// The upstream's address; none when no dial began.
    pub target: Option<SocketAddr>,
    /// When the cookie was validated.
    pub opened: Micros,
    /// When the upstream accepted; none when it never did.
    pub connected: Option<Micros>,
    /// When the session ended.
    pub ended: Micros,
    /// Payload octets from client to upstream (the PROXY header is not counted).
    pub bytes_to_upstream: u64,
    /// Payload octets from upstream to client.
    pub bytes_to_client: u64,
    /// Why it ended.
    pub cause: EndCause,
}
