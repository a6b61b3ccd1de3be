//! Captures: packets out of pcap and pcapng files, and into them.
//!
//! [`Capture`] reads what tcpdump, Wireshark and our own [`SampleWriter`] write, one Ethernet frame after the other and in
//! bounded memory. [`PcapWriter`] keeps packets of a replay, [`SampleWriter`] keeps dropped packets of the running appliance
//! with the verdict as each packet's comment.
//!
//! The formats: draft-ietf-opsawg-pcap and draft-ietf-opsawg-pcapng; link types: the registry of tcpdump.org. The reader is
//! our own: `pcap-file`'s refuses captures made with a snap length, takes no notice of `if_tsresol` and `if_tsoffset`, and
//! cannot tell where in the file it stands. It writes our files, and its files test the reader.

mod classic;
mod error;
mod link;
mod pcapng;
mod read;
mod sample;
mod source;
#[cfg(test)]
mod tests;
mod write;

pub use error::{CaptureError, CaptureFault, Part};
pub use read::{Capture, Packet};
pub use sample::{DroppedPacket, SampleError, SampleWriter};
pub use write::{PcapWriter, WriteError};

/// Largest packet of a capture, octets; the most that tcpdump keeps.
pub const MAX_PACKET: usize = 256 << 10;
