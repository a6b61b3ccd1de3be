//! Terminate mode: the client's TCP ends here, its payload is relayed over a connection of ours.
//!
//! A segment is judged by the guard and fed to the connection's own smoltcp socket; its session is then served once at the end of
//! the burst: payload moves, both sockets emit, the timer wheel is told.

pub(crate) mod clock;
mod device;
pub(crate) mod endpoint;
pub(crate) mod guard;
mod icmp;
mod ingress;
mod liveness;
mod serve;
pub(crate) mod session;
