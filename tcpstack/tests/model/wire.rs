//! Segments as ends read and write them, and as frames.

use std::sync::LazyLock;

use sluice_filters::addr::Addr;
use sluice_filters::checksum;
use sluice_filters::testkit::{OUR_MAC, PEER_MAC};
use sluice_filters::{Flags, Segment};

use super::random::Random;

/// Where the IP packet starts in a frame.
pub const L3: usize = 14;

/// SACK blocks, at most four.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sacks {
    blocks: [(u32, u32); 4],
    len: u8,
}

impl Sacks {
    /// Adds a block, if there is room for one more and fewer than `most`.
    pub fn push(&mut self, block: (u32, u32), most: usize) {
        if usize::from(self.len) < most.min(4) {
            self.blocks[usize::from(self.len)] = block;
            self.len += 1;
        }
    }

    pub fn as_slice(&self) -> &[(u32, u32)] {
        &self.blocks[..usize::from(self.len)]
    }
}

/// A segment's header, in the numbers of the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seg {
    pub seq: u32,
    pub ack: u32,
    pub flags: Flags,
    pub window: u16,
    pub mss: Option<u16>,
    pub wscale: Option<u8>,
    pub sack_permitted: bool,
    pub timestamp: Option<(u32, u32)>,
    pub sacks: Sacks,
    /// Bytes of payload.
    pub len: u16,
}

impl Seg {
    /// One that was received.
    pub fn of(segment: &Segment, frame: &[u8]) -> Seg {
        let options = segment.options(frame);
        let mut sacks = Sacks::default();
        for (left, right) in options.sack_blocks() {
            sacks.push((left.0, right.0), 4);
        }
        Seg {
            seq: segment.seq.0,
            ack: segment.ack.0,
            flags: segment.flags,
            window: segment.window,
            mss: options.mss,
            wscale: options.wscale,
            sack_permitted: options.sack_permitted,
            timestamp: options.timestamp,
            sacks,
            len: segment.payload_len,
        }
    }

    /// Bytes of options in front of the payload.
    fn options_len(&self) -> usize {
        let syn = if self.mss.is_some() { 4 } else { 0 }
            + if self.wscale.is_some() { 4 } else { 0 }
            + if self.sack_permitted { 4 } else { 0 };
        let sacks = self.sacks.as_slice().len();
        syn + if self.timestamp.is_some() { 12 } else { 0 } + if sacks > 0 { 4 + 8 * sacks } else { 0 }
    }

    /// Writes the segment as a frame from `src` to `dst` over `frame`. Its payload is the first `len` bytes of `payload`.
    pub fn frame(&self, src: (Addr, u16), dst: (Addr, u16), payload: &[u8], frame: &mut Vec<u8>) {
        let v4 = src.0.is_v4();
        let options = self.options_len();
        let payload = &payload[..usize::from(self.len)];
        let tcp_len = 20 + options + payload.len();
        frame.clear();
        frame.extend_from_slice(&OUR_MAC);
        frame.extend_from_slice(&PEER_MAC);
        if v4 {
            frame.extend_from_slice(&[0x08, 0x00]);
            let mut header = [0; 20];
            header[0] = 0x45;
            header[2..4].copy_from_slice(&((20 + tcp_len) as u16).to_be_bytes());
            header[6] = 0x40;
            header[8] = 64;
            header[9] = checksum::TCP;
            header[12..16].copy_from_slice(&src.0.v4_bits().to_be_bytes());
            header[16..20].copy_from_slice(&dst.0.v4_bits().to_be_bytes());
            checksum::fill_ipv4_header(&mut header);
            frame.extend_from_slice(&header);
        } else {
            frame.extend_from_slice(&[0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend_from_slice(&(tcp_len as u16).to_be_bytes());
            frame.extend_from_slice(&[checksum::TCP, 64]);
            frame.extend_from_slice(&src.0.octets());
            frame.extend_from_slice(&dst.0.octets());
        }
        let l4 = frame.len();
        frame.extend_from_slice(&src.1.to_be_bytes());
        frame.extend_from_slice(&dst.1.to_be_bytes());
        frame.extend_from_slice(&self.seq.to_be_bytes());
        frame.extend_from_slice(&self.ack.to_be_bytes());
        frame.extend_from_slice(&[((20 + options) as u8) << 2, self.flags.0]);
        frame.extend_from_slice(&self.window.to_be_bytes());
        frame.extend_from_slice(&[0; 4]);
        if let Some(mss) = self.mss {
            frame.extend_from_slice(&[2, 4]);
            frame.extend_from_slice(&mss.to_be_bytes());
        }
        if self.sack_permitted {
            frame.extend_from_slice(&[1, 1, 4, 2]);
        }
        if let Some((value, echo)) = self.timestamp {
            frame.extend_from_slice(&[1, 1, 8, 10]);
            frame.extend_from_slice(&value.to_be_bytes());
            frame.extend_from_slice(&echo.to_be_bytes());
        }
        if let Some(shift) = self.wscale {
            frame.extend_from_slice(&[1, 3, 3, shift]);
        }
        let sacks = self.sacks.as_slice();
        if !sacks.is_empty() {
            frame.extend_from_slice(&[1, 1, 5, 2 + 8 * sacks.len() as u8]);
            for (left, right) in sacks {
                frame.extend_from_slice(&left.to_be_bytes());
                frame.extend_from_slice(&right.to_be_bytes());
            }
        }
        frame.extend_from_slice(payload);
        checksum::fill_tcp(&mut frame[l4..], src.0, dst.0);
    }
}

/// What is written for a trace: one segment, numbers less where the connection began.
pub fn shown(seg: &Seg) -> String {
    let sacks: String = seg.sacks.as_slice().iter().map(|(left, right)| format!(" [{left}..{right}]")).collect();
    let stamp = seg.timestamp.map_or(String::new(), |(value, echo)| format!(" ts {value}/{echo}"));
    format!("{:?} seq {} len {} ack {} win {}{stamp}{sacks}", seg.flags, seg.seq, seg.len, seg.ack, seg.window)
}

/// Payload that says where in its stream it stands: any cut of it can be written, and checked, without a copy of the stream.
pub struct Pattern;

/// A prime, so that no power of two repeats it.
const PERIOD: u64 = 32_749;
/// The longest cut.
const CUT: usize = 9_216;

static BYTES: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut random = Random::new(7);
    let mut bytes: Vec<u8> = (0..PERIOD).map(|_| random.word() as u8).collect();
    bytes.extend_from_within(..CUT);
    bytes
});

impl Pattern {
    /// Up to 9,216 bytes from position `at` of stream `stream`.
    pub fn at(stream: u64, at: u64) -> &'static [u8] {
        let start = ((stream % PERIOD + at % PERIOD) % PERIOD) as usize;
        &BYTES[start..start + CUT]
    }
}
