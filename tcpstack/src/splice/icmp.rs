//! ICMP errors about a spliced session's segments.

/// To come.
#[derive(Clone, Copy, Debug)]
pub struct IcmpError;
