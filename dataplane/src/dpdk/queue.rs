//! Receive and transmit queues of started ports.

use std::marker::PhantomData;

use capsule_ffi as ffi;

use super::frame::{Burst, Frame};

/// Frames a [`TxBuffer`] holds.
pub const TX_BUFFER: usize = 64;

/// One receive queue, used by one worker: neither `Clone` nor `Send`.
#[derive(Debug)]
pub struct RxQueue {
    port: u16,
    queue: u16,
    one_thread: PhantomData<*const ()>,
}

impl RxQueue {
    /// A handle to a queue.
    ///
    /// # Safety
    /// The port must be started and have the queue, which may have no other handle, and the port may be stopped only when
    /// the handle is gone.
    #[must_use]
    pub(crate) unsafe fn new(port: u16, queue: u16) -> RxQueue {
        RxQueue { port, queue, one_thread: PhantomData }
    }

    /// Receives up to [`super::BURST`] frames; what the burst still held is freed. Returns how many.
    #[inline]
    pub fn burst(&mut self, burst: &mut Burst) -> usize {
        // SAFETY: `slots` has room for `count` pointers. The queue is set up, its port runs, and this handle is its only
        // user. A device hands over mbufs with reference count 1, fresh from its pool.
        unsafe { burst.fill(|slots, count| ffi::_rte_eth_rx_burst(self.port, self.queue, slots, count)) }
    }
}

/// What became of a transmit burst.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Frames the device took.
    pub frames: usize,
    /// Octets of those.
    pub bytes: usize,
    /// Frames left in the buffer because the device had no room.
    pub left: usize,
}

/// One transmit queue, used by one worker: neither `Clone` nor `Send`.
#[derive(Debug)]
pub struct TxQueue {
    port: u16,
    queue: u16,
    one_thread: PhantomData<*const ()>,
}

impl TxQueue {
    /// A handle to a queue.
    ///
    /// # Safety
    /// As [`RxQueue::new`].
    #[must_use]
    pub(crate) unsafe fn new(port: u16, queue: u16) -> TxQueue {
        TxQueue { port, queue, one_thread: PhantomData }
    }

    /// Offers all frames of the buffer to the device, once. What it does not take stays in the buffer, in order.
    #[inline]
    pub fn offer(&mut self, buffer: &mut TxBuffer) -> Sent {
        let Some(frames) = buffer.frames.get_mut(..buffer.len) else { return Sent::default() };
        if frames.is_empty() {
            return Sent::default();
        }
        // SAFETY: `Option<Frame>` is a nullable pointer, and the first `len` are not null. The queue is set up, its port
        // runs, and this handle is its only user. Frames own direct mbufs with reference count 1, as devices may require.
        let taken =
            unsafe { ffi::_rte_eth_tx_burst(self.port, self.queue, frames.as_mut_ptr().cast(), frames.len() as u16) };
        let taken = usize::from(taken).min(frames.len());
        let (gone, left) = frames.split_at_mut(taken);
        // SAFETY: these now belong to the device: their slots are emptied without freeing. Null is `None`.
        unsafe { gone.as_mut_ptr().write_bytes(0, gone.len()) };
        let left_bytes: usize = left.iter().flatten().map(Frame::len).sum();
        let sent = Sent { frames: taken, bytes: buffer.bytes.saturating_sub(left_bytes), left: left.len() };
        if sent.left > 0 {
            frames.rotate_left(taken);
        }
        buffer.len = sent.left;
        buffer.bytes = left_bytes;
        sent
    }
}

/// Frames waiting for a transmit queue. Dropping it frees them.
#[derive(Debug)]
pub struct TxBuffer {
    frames: [Option<Frame>; TX_BUFFER],
    len: usize,
    bytes: usize,
}

impl TxBuffer {
    /// No frames.
    #[must_use]
    pub fn new() -> TxBuffer {
        TxBuffer { frames: [const { None }; TX_BUFFER], len: 0, bytes: 0 }
    }

    /// Frames waiting.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether none wait.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether [`Self::push`] would fail.
    #[inline]
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.len >= TX_BUFFER
    }

    /// Appends a frame.
    ///
    /// # Errors
    /// Hands the frame back if the buffer is full.
    #[inline(always)]
    pub fn push(&mut self, frame: Frame) -> Result<(), Frame> {
        let Some(slot) = self.frames.get_mut(self.len) else { return Err(frame) };
        self.bytes = self.bytes.wrapping_add(frame.len());
        *slot = Some(frame);
        self.len = self.len.wrapping_add(1);
        Ok(())
    }
}

impl Default for TxBuffer {
    fn default() -> TxBuffer {
        TxBuffer::new()
    }
}
