//! pcapng: sections of either byte order, each with its interfaces and packets, in blocks that end with their length again.

use std::time::Duration;

use super::MAX_PACKET;
use super::error::{CaptureFault, Part};
use super::link::Link;
use super::read::Record;
use super::source::{Order, Source};

const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const OBSOLETE_PACKET: u32 = 2;
const SIMPLE_PACKET: u32 = 3;
const ENHANCED_PACKET: u32 = 6;

/// A pcapng file begins with these octets, in either byte order.
pub(super) const MAGIC: [u8; 4] = SECTION.to_be_bytes();

/// Interfaces of one section; no machine has as many, and a damaged file shall not fill memory.
const MAX_INTERFACES: usize = 65_536;

/// What the current section says.
#[derive(Debug)]
pub(super) struct PcapNg {
    order: Order,
    interfaces: Vec<Interface>,
    /// What is left of the last packet's block.
    pending: Option<Pending>,
    /// The last packet's time, which a packet block without one inherits.
    time: Duration,
}

/// Longest name of an interface that is kept, octets: ports have 63 at most.
const MAX_NAME: u16 = 63;

#[derive(Clone, Debug)]
struct Interface {
    /// `if_name`; empty without one.
    name: String,
    link: u32,
    snap: u32,
    resolution: Resolution,
    /// Seconds to add.
    offset: i64,
}

/// How many units a second has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Resolution {
    Micro,
    Nano,
    /// 10^n
    Decimal(u32),
    /// 2^n
    Binary(u32),
}

impl Resolution {
    fn from_option(octet: u8) -> Resolution {
        match (octet >> 7, u32::from(octet & 0x7f)) {
            (0, 6) => Resolution::Micro,
            (0, 9) => Resolution::Nano,
            (0, power) => Resolution::Decimal(power),
            (_, power) => Resolution::Binary(power),
        }
    }

    fn duration(self, units: u64) -> Duration {
        let wide = u128::from(units) * 1_000_000_000;
        let nanos = match self {
            Resolution::Micro => return Duration::from_micros(units),
            Resolution::Nano => return Duration::from_nanos(units),
            // 10^n past 128 bits: a unit so small that 2^64 of them are no nanosecond.
            Resolution::Decimal(power) => 10_u128.checked_pow(power).map_or(0, |second| wide / second),
            Resolution::Binary(power) => wide >> power,
        };
        let seconds = u64::try_from(nanos / 1_000_000_000).unwrap_or(u64::MAX);
        Duration::new(seconds, (nanos % 1_000_000_000) as u32)
    }
}

#[derive(Clone, Copy, Debug)]
struct Pending {
    /// Octets before the closing length.
    octets: u64,
    total: u32,
    /// Where the block begins.
    at: u64,
    part: Part,
}

/// A block's beginning.
#[derive(Clone, Copy, Debug)]
struct Block {
    kind: u32,
    total: u32,
    at: u64,
    part: Part,
}

impl Block {
    /// Refuses a block too short for its fixed fields.
    fn at_least(self, octets: u32) -> Result<Block, CaptureFault> {
        if self.total < octets {
            return Err(self.corrupt(format!("a block length of {}, where {octets} is the least", self.total)));
        }
        Ok(self)
    }

    fn corrupt(self, found: String) -> CaptureFault {
        CaptureFault::Corrupt { part: self.part, at: self.at, found }
    }
}

impl PcapNg {
    /// Reads the first section header.
    pub(super) fn open(source: &mut Source) -> Result<PcapNg, CaptureFault> {
        let mut file = PcapNg { order: Order::Little, interfaces: Vec::new(), pending: None, time: Duration::ZERO };
        file.section(source, Part::Header)?;
        Ok(file)
    }

    /// Goes to the octets of the next packet, which is packet `number`.
    pub(super) fn advance(&mut self, source: &mut Source, number: u64) -> Result<Option<Record>, CaptureFault> {
        if let Some(pending) = self.pending.take() {
            self.close(source, pending)?;
        }
        loop {
            let at = source.at();
            if source.peek(1)?.is_empty() {
                return Ok(None);
            }
            // A block of unknown kind is no packet's yet, but the next packet is what its reader misses.
            let &kind = source.need_slice(8, Part::Packet(number))?.first_chunk::<4>().unwrap_or(&[0; 4]);
            if kind == MAGIC {
                self.section(source, Part::Block(SECTION))?;
                continue;
            }
            let [kind, total] = self.order.words(source.need_slice(8, Part::Packet(number))?);
            let is_packet = matches!(kind, OBSOLETE_PACKET | SIMPLE_PACKET | ENHANCED_PACKET);
            let part = if is_packet { Part::Packet(number) } else { Part::Block(kind) };
            let block = Block { kind, total, at, part };
            if total % 4 != 0 {
                return Err(block.corrupt(format!("a block length of {total}, which is no multiple of 4")));
            }
            let block = block.at_least(12)?;
            match kind {
                INTERFACE => self.interface(source, block.at_least(20)?)?,
                SIMPLE_PACKET => return self.simple_packet(source, block.at_least(16)?, number).map(Some),
                OBSOLETE_PACKET | ENHANCED_PACKET => {
                    return self.packet(source, block.at_least(32)?, number).map(Some);
                }
                _ => {
                    source.take(8);
                    self.close(source, Pending { octets: u64::from(total) - 12, total, at, part })?;
                }
            }
        }
    }

    /// Skips the rest of a block and compares its closing length.
    fn close(&self, source: &mut Source, block: Pending) -> Result<(), CaptureFault> {
        source.skip(block.octets, block.part)?;
        let closing = self.order.u32(source.need(block.part)?);
        if closing != block.total {
            let found = format!("a block of {} octets that ends with the length {closing}", block.total);
            return Err(CaptureFault::Corrupt { part: block.part, at: block.at, found });
        }
        source.take(4);
        Ok(())
    }

    fn section(&mut self, source: &mut Source, part: Part) -> Result<(), CaptureFault> {
        let at = source.at();
        let header = source.need::<24>(part)?;
        let &[_, _, _, _, _, _, _, _, b0, b1, b2, b3, j0, j1, n0, n1, ..] = &header;
        self.order = match u32::from_be_bytes([b0, b1, b2, b3]) {
            0x1a2b_3c4d => Order::Big,
            0x4d3c_2b1a => Order::Little,
            other => {
                let found = format!("a section with the byte-order mark {other:#010x}");
                return Err(CaptureFault::Corrupt { part, at, found });
            }
        };
        let [kind, total] = self.order.words(&header);
        let block = Block { kind, total, at, part }.at_least(28)?;
        if total % 4 != 0 {
            return Err(block.corrupt(format!("a block length of {total}, which is no multiple of 4")));
        }
        let (major, minor) = (self.order.u16([j0, j1]), self.order.u16([n0, n1]));
        if major != 1 {
            return Err(CaptureFault::Version { format: "pcapng", major, minor });
        }
        self.interfaces.clear();
        source.take(header.len());
        self.close(source, Pending { octets: u64::from(total) - 28, total, at, part })
    }

    fn interface(&mut self, source: &mut Source, block: Block) -> Result<(), CaptureFault> {
        if self.interfaces.len() == MAX_INTERFACES {
            return Err(block.corrupt(format!("more than {MAX_INTERFACES} interfaces")));
        }
        let header = source.need::<16>(block.part)?;
        let &[_, _, _, _, _, _, _, _, l0, l1, _, _, s0, s1, s2, s3] = &header;
        source.take(header.len());
        let mut interface = Interface {
            name: String::new(),
            link: self.order.u16([l0, l1]).into(),
            snap: self.order.u32([s0, s1, s2, s3]),
            resolution: Resolution::Micro,
            offset: 0,
        };
        let mut left = u64::from(block.total) - 20;
        while left >= 4 {
            let [c0, c1, l0, l1] = source.need(block.part)?;
            let (code, len) = (self.order.u16([c0, c1]), self.order.u16([l0, l1]));
            if code == 0 {
                break;
            }
            let whole = 4 + u64::from(len).next_multiple_of(4);
            if whole > left {
                return Err(block.corrupt(format!("an option of {len} octets, which the block has no room for")));
            }
            match (code, len) {
                (2, 1..=MAX_NAME) => {
                    let option = source.need_slice(usize::from(len) + 4, block.part)?;
                    let name = String::from_utf8_lossy(option.get(4..).unwrap_or_default());
                    interface.name = name.trim_end_matches('\0').to_owned();
                }
                (9, 1) => {
                    let [_, _, _, _, resolution, ..] = source.need::<8>(block.part)?;
                    interface.resolution = Resolution::from_option(resolution);
                }
                (14, 8) => {
                    let [_, _, _, _, offset @ ..] = source.need::<12>(block.part)?;
                    interface.offset = self.order.i64(offset);
                }
                _ => {}
            }
            source.skip(whole, block.part)?;
            left -= whole;
        }
        self.interfaces.push(interface);
        self.close(source, Pending { octets: left, total: block.total, at: block.at, part: block.part })
    }

    /// An enhanced packet block, or the obsolete one: it differs in that half of the interface's word counts drops.
    fn packet(&mut self, source: &mut Source, block: Block, number: u64) -> Result<Record, CaptureFault> {
        let header = source.need::<28>(block.part)?;
        let [_, _, word, high, low, captured, wire_len] = self.order.words(&header);
        let index = if block.kind == OBSOLETE_PACKET {
            let &[_, _, _, _, _, _, _, _, i0, i1, ..] = &header;
            self.order.u16([i0, i1]).into()
        } else {
            word
        };
        let (interface, link) = self.of(block, index, number)?;
        let (resolution, offset) = (interface.resolution, interface.offset);
        check_length(block, captured, number)?;
        if u64::from(captured).next_multiple_of(4) > u64::from(block.total) - 32 {
            return Err(block.corrupt(format!("{captured} octets in a block of {}", block.total)));
        }
        let time = resolution.duration(u64::from(high) << 32 | u64::from(low));
        let seconds = time.as_secs().saturating_add_signed(offset);
        self.time = Duration::new(seconds, time.subsec_nanos());
        self.found(source, block, (28, captured), wire_len, (index, link))
    }

    /// A simple packet block: the first interface's, without a time.
    fn simple_packet(&mut self, source: &mut Source, block: Block, number: u64) -> Result<Record, CaptureFault> {
        let header = source.need::<12>(block.part)?;
        let [_, _, wire_len] = self.order.words(&header);
        let (interface, link) = self.of(block, 0, number)?;
        let snap = if interface.snap == 0 { u32::MAX } else { interface.snap };
        let captured = wire_len.min(snap).min(block.total - 16);
        check_length(block, captured, number)?;
        self.found(source, block, (12, captured), wire_len, (0, link))
    }

    fn of(&self, block: Block, index: u32, number: u64) -> Result<(&Interface, Link), CaptureFault> {
        let interface = usize::try_from(index).ok().and_then(|index| self.interfaces.get(index)).ok_or_else(|| {
            block.corrupt(format!("interface {index} of {} that the section describes", self.interfaces.len()))
        })?;
        let link = Link::from_number(interface.link)
            .ok_or(CaptureFault::LinkType { packet: Some(number), number: interface.link })?;
        Ok((interface, link))
    }

    fn found(
        &mut self,
        source: &mut Source,
        block: Block,
        (header, captured): (usize, u32),
        wire_len: u32,
        (interface, link): (u32, Link),
    ) -> Result<Record, CaptureFault> {
        source.take(header);
        source.need_slice(captured as usize, block.part)?;
        let octets = u64::from(block.total) - header as u64 - u64::from(captured) - 4;
        self.pending = Some(Pending { octets, total: block.total, at: block.at, part: block.part });
        Ok(Record { time: self.time, captured: captured as usize, wire_len, link, interface })
    }

    /// The name of an interface of this section, if it has one.
    pub(super) fn interface_name(&self, interface: u32) -> Option<&str> {
        let interface = self.interfaces.get(usize::try_from(interface).ok()?)?;
        Some(interface.name.as_str()).filter(|name| !name.is_empty())
    }
}

fn check_length(block: Block, octets: u32, packet: u64) -> Result<(), CaptureFault> {
    if octets as usize > MAX_PACKET {
        return Err(CaptureFault::TooLong { packet, at: block.at, octets });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_has_as_many_units_as_the_option_says() {
        let second = Duration::from_secs(1);
        for (octet, units) in [(0, 1), (3, 1000), (6, 1_000_000), (9, 1_000_000_000), (12, 1_000_000_000_000)] {
            assert_eq!(Resolution::from_option(octet).duration(units), second, "10^-{octet}");
        }
        for power in [0, 1, 10, 32, 63] {
            assert_eq!(Resolution::from_option(0x80 | power).duration(1 << power), second, "2^-{power}");
        }
        assert_eq!(Resolution::from_option(0x8a).duration(1536), Duration::from_millis(1500));
        for octet in 0..=255 {
            let _ = Resolution::from_option(octet).duration(u64::MAX);
        }
    }
}
