//! Why a frame was dropped. Each reason is a counter an operator can read.

/// The label values of `sluice_dropped_packets_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum DropReason {
    /// Shorter than its own headers say.
    Truncated,
}

impl DropReason {
    /// Every reason, in counter order.
    pub const ALL: [DropReason; 1] = [DropReason::Truncated];
}
