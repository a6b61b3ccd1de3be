//! The classic pcap format: one header, then records of one link type.

use std::time::Duration;

use super::MAX_PACKET;
use super::error::{CaptureFault, Part};
use super::link::Link;
use super::read::Record;
use super::source::{Order, Source};

/// What the header of a pcap file says.
#[derive(Debug)]
pub(super) struct Classic {
    order: Order,
    /// Nanoseconds in a unit of the second half of a time stamp.
    unit: u64,
    /// 16, or 24 in the variant of some old Linux systems.
    record: usize,
    link: Link,
}

impl Classic {
    /// What the first four octets announce: byte order, nanoseconds in a unit, record header.
    fn announced(magic: [u8; 4]) -> Option<(Order, u64, usize)> {
        let kind = |magic: u32| match magic {
            0xa1b2_c3d4 => Some((1000, 16)),
            0xa1b2_3c4d => Some((1, 16)),
            0xa1b2_cd34 => Some((1000, 24)),
            _ => None,
        };
        let with = |order| move |(unit, record)| (order, unit, record);
        let little = kind(u32::from_le_bytes(magic)).map(with(Order::Little));
        little.or_else(|| kind(u32::from_be_bytes(magic)).map(with(Order::Big)))
    }

    /// Whether a pcap file may begin with `start`, at most four octets.
    pub(super) fn begins(start: &[u8]) -> bool {
        let magics = [0xa1b2_c3d4_u32, 0xa1b2_3c4d, 0xa1b2_cd34];
        magics.iter().any(|magic| magic.to_le_bytes().starts_with(start) || magic.to_be_bytes().starts_with(start))
    }

    /// Reads the header.
    pub(super) fn open(source: &mut Source) -> Result<Classic, CaptureFault> {
        let header = source.need::<24>(Part::Header)?;
        let &[m0, m1, m2, m3, j0, j1, n0, n1, ..] = &header;
        let Some((order, unit, record)) = Classic::announced([m0, m1, m2, m3]) else {
            return Err(CaptureFault::NotACapture { found: format!("{:02x?}", [m0, m1, m2, m3]) });
        };
        let (major, minor) = (order.u16([j0, j1]), order.u16([n0, n1]));
        if major != 2 || !(3..=4).contains(&minor) {
            return Err(CaptureFault::Version { format: "pcap", major, minor });
        }
        let [network] = order.words(&header[20..]);
        // The upper bits say whether a frame check sequence follows each packet. For us it is padding.
        let number = network & 0x03ff_ffff;
        let link = Link::from_number(number).ok_or(CaptureFault::LinkType { packet: None, number })?;
        source.take(header.len());
        Ok(Classic { order, unit, record, link })
    }

    /// Goes to the octets of the next packet, which is packet `number`.
    pub(super) fn advance(&mut self, source: &mut Source, number: u64) -> Result<Option<Record>, CaptureFault> {
        if source.peek(1)?.is_empty() {
            return Ok(None);
        }
        let (at, part) = (source.at(), Part::Packet(number));
        let [seconds, fraction, captured, wire_len] = self.order.words(source.need_slice(self.record, part)?);
        let octets = captured as usize;
        if octets > MAX_PACKET {
            return Err(CaptureFault::TooLong { packet: number, at, octets: captured });
        }
        source.take(self.record);
        source.need_slice(octets, part)?;
        // A fraction above one second, which no known program writes, carries.
        let time = Duration::from_secs(seconds.into()) + Duration::from_nanos(u64::from(fraction) * self.unit);
        Ok(Some(Record { time, captured: octets, wire_len, link: self.link, interface: 0 }))
    }
}
