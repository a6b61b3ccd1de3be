//! Octets of a capture, in order, through one buffer that never grows.

use std::fmt;
use std::io::{self, Read};

use super::MAX_PACKET;
use super::error::{CaptureFault, Part};

/// Twice the largest packet and its headers: most refills move little.
const BUFFER: usize = 2 * MAX_PACKET + 4096;

/// A buffered stream that knows its position.
pub(super) struct Source {
    input: Box<dyn Read + Send>,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    /// Where `start` is in the stream.
    at: u64,
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source").field("at", &self.at).finish_non_exhaustive()
    }
}

impl Source {
    pub(super) fn new(input: Box<dyn Read + Send>) -> Source {
        Source { input, buffer: vec![0; BUFFER].into_boxed_slice(), start: 0, end: 0, at: 0 }
    }

    /// Octets taken.
    pub(super) fn at(&self) -> u64 {
        self.at
    }

    /// The next `n` octets, which stay where they are; fewer only when the stream ends. `n` is at most the buffer's length.
    pub(super) fn peek(&mut self, n: usize) -> Result<&[u8], CaptureFault> {
        if self.end - self.start < n {
            self.fill(n).map_err(|cause| CaptureFault::Read { at: self.at + (self.end - self.start) as u64, cause })?;
        }
        Ok(&self.buffer[self.start..self.end.min(self.start + n)])
    }

    fn fill(&mut self, n: usize) -> io::Result<()> {
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        while self.end < n {
            match self.input.read(&mut self.buffer[self.end..]) {
                Ok(0) => break,
                Ok(read) => self.end += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The next `N` octets, all of them, which stay where they are.
    pub(super) fn need<const N: usize>(&mut self, part: Part) -> Result<[u8; N], CaptureFault> {
        self.need_slice(N, part)?;
        Ok(std::array::from_fn(|index| self.buffer[self.start + index]))
    }

    /// The next `n` octets, all of them, which stay where they are.
    pub(super) fn need_slice(&mut self, n: usize, part: Part) -> Result<&[u8], CaptureFault> {
        let there = self.peek(n)?.len();
        if there < n {
            return Err(CaptureFault::Truncated { part, at: self.at, there: there as u64, needed: n as u64 });
        }
        Ok(&self.buffer[self.start..self.start + n])
    }

    /// Takes `n` octets that were peeked at, and gives them.
    pub(super) fn take(&mut self, n: usize) -> &[u8] {
        let n = n.min(self.end - self.start);
        self.start += n;
        self.at += n as u64;
        &self.buffer[self.start - n..self.start]
    }

    /// Takes `n` octets without looking at them.
    pub(super) fn skip(&mut self, n: u64, part: Part) -> Result<(), CaptureFault> {
        let at = self.at;
        let mut left = n;
        while left > 0 {
            let piece = usize::try_from(left).map_or(BUFFER, |left| left.min(BUFFER));
            let there = self.peek(piece.min((self.end - self.start).max(1)))?.len();
            if there == 0 {
                return Err(CaptureFault::Truncated { part, at, there: n - left, needed: n });
            }
            self.take(there);
            left -= there as u64;
        }
        Ok(())
    }
}

/// Fields of either byte order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Big,
    Little,
}

impl Order {
    pub(super) fn u16(self, octets: [u8; 2]) -> u16 {
        match self {
            Order::Big => u16::from_be_bytes(octets),
            Order::Little => u16::from_le_bytes(octets),
        }
    }

    pub(super) fn u32(self, octets: [u8; 4]) -> u32 {
        match self {
            Order::Big => u32::from_be_bytes(octets),
            Order::Little => u32::from_le_bytes(octets),
        }
    }

    pub(super) fn i64(self, octets: [u8; 8]) -> i64 {
        match self {
            Order::Big => i64::from_be_bytes(octets),
            Order::Little => i64::from_le_bytes(octets),
        }
    }

    /// The 32-bit words of a header.
    pub(super) fn words<const N: usize>(self, octets: &[u8]) -> [u32; N] {
        let (words, _) = octets.as_chunks::<4>();
        std::array::from_fn(|index| words.get(index).map_or(0, |word| self.u32(*word)))
    }
}
