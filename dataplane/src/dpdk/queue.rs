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
        // SAFETY: `slots` has room for `count` pointers. The queue is set up, its port runs, and this handle is its only user. A
        // device hands over as many mbufs as it answers, each ours alone: count 1, a buffer no other mbuf writes to (its own, or
        // one attached to it alone). What it wrote behind those is left alone.
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
        if buffer.is_empty() {
            return Sent::default();
        }
        // SAFETY: the queue is set up, its port runs, and this handle is its only user. Frames own mbufs of reference count 1,
        // and `push` took whole ones only: devices may require both. A device owns the first ones, as many as it answers, and
        // leaves us the rest.
        unsafe { buffer.give(|frames, count| ffi::_rte_eth_tx_burst(self.port, self.queue, frames, count)) }
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

    /// Whether [`Self::push`] would fail whatever the frame.
    #[inline]
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.len >= TX_BUFFER
    }

    /// Appends a frame.
    ///
    /// # Errors
    /// Hands the frame back if the buffer is full, or if the frame is not [whole](Frame::is_whole): a device sends several
    /// segments only if it was set up for them, and octets behind a buffer's end are another's.
    #[inline(always)]
    pub fn push(&mut self, frame: Frame) -> Result<(), Frame> {
        if !frame.is_whole() {
            return Err(frame);
        }
        let Some(slot) = self.frames.get_mut(self.len) else { return Err(frame) };
        self.bytes = self.bytes.wrapping_add(frame.len());
        *slot = Some(frame);
        self.len = self.len.wrapping_add(1);
        Ok(())
    }

    /// Lets `send` take frames; what it does not take stays, in order. `send` gets the first frame's place and their number.
    ///
    /// # Safety
    /// `send` must return how many of the frames it took, and those must be the first ones: it owns them then. The places of the others
    /// must hold the others when it returns.
    #[inline]
    unsafe fn give(&mut self, send: impl FnOnce(*mut *mut ffi::rte_mbuf, u16) -> u16) -> Sent {
        let Some(frames) = self.frames.get_mut(..self.len) else { return Sent::default() };
        const { assert!(TX_BUFFER <= u16::MAX as usize) };
        // `Option<Frame>` is a nullable pointer, and the first `len` are not null.
        let taken = send(frames.as_mut_ptr().cast(), frames.len() as u16);
        let taken = usize::from(taken).min(frames.len());
        let (gone, left) = frames.split_at_mut(taken);
        // SAFETY: these now belong to the device: their slots are emptied without freeing. Null is `None`.
        unsafe { gone.as_mut_ptr().write_bytes(0, gone.len()) };
        let left_bytes: usize = left.iter().flatten().map(Frame::len).sum();
        let sent = Sent { frames: taken, bytes: self.bytes.saturating_sub(left_bytes), left: left.len() };
        if sent.left > 0 {
            frames.rotate_left(taken);
        }
        self.len = sent.left;
        self.bytes = left_bytes;
        sent
    }
}

impl Default for TxBuffer {
    fn default() -> TxBuffer {
        TxBuffer::new()
    }
}

#[cfg(test)]
mod tests {
    use std::mem::{self, ManuallyDrop};

    use super::super::frame::tests::Made;
    use super::*;

    /// A buffer with frames of no pool, of so many octets each: they must be gone before it is dropped.
    fn buffer(mbufs: &mut [ffi::rte_mbuf], lengths: &[u16]) -> TxBuffer {
        let mut buffer = TxBuffer::new();
        for (mbuf, len) in mbufs.iter_mut().zip(lengths) {
            (mbuf.nb_segs, mbuf.data_len, mbuf.buf_len) = (1, *len, *len);
            let mut burst = Burst::new();
            let first = |slots: *mut *mut ffi::rte_mbuf, _| {
                // SAFETY: there is a first slot.
                unsafe { slots.write(mbuf) };
                1
            };
            // SAFETY: a live mbuf, which nobody else uses.
            unsafe { burst.fill(first) };
            buffer.push(burst.take(0).unwrap()).unwrap();
        }
        buffer
    }

    #[test]
    fn a_device_that_takes_none_some_or_claims_too_many_leaves_the_rest_in_order() {
        let mut mbufs: [ffi::rte_mbuf; 3] = std::array::from_fn(|_| ffi::rte_mbuf::default());
        let mut buffer = buffer(&mut mbufs, &[60, 70, 80]);
        // SAFETY: the frames taken are of no pool, and nobody frees them.
        unsafe {
            assert_eq!(buffer.give(|_, _| 0), Sent { frames: 0, bytes: 0, left: 3 });
            assert_eq!(buffer.give(|_, count| count - 2), Sent { frames: 1, bytes: 60, left: 2 });
            let next = buffer.frames[0].as_ref().map(Frame::len);
            assert_eq!((next, buffer.len()), (Some(70), 2));
            assert_eq!(buffer.give(|_, count| count + 1), Sent { frames: 2, bytes: 150, left: 0 });
        }
        assert!(buffer.is_empty() && buffer.frames.iter().all(Option::is_none));
    }

    /// Whether a buffer takes an mbuf's frame, which is gone after this.
    fn is_taken(made: &mut Made) -> bool {
        let mut buffer = TxBuffer::new();
        let pushed = buffer.push(ManuallyDrop::into_inner(made.frame()));
        // SAFETY: a frame that was taken is of no pool, and nobody frees it.
        let sent = unsafe { buffer.give(|_, count| count) };
        let taken = pushed.is_ok();
        assert_eq!(sent.frames, usize::from(taken));
        pushed.unwrap_or_else(mem::forget);
        taken
    }

    #[test]
    fn a_frame_of_several_segments_is_handed_back() {
        let mut made = Made::new(60);
        assert!(is_taken(&mut made));
        made.mbuf.nb_segs = 2;
        assert!(!is_taken(&mut made));
    }

    #[test]
    fn a_frame_that_says_more_octets_than_its_buffer_has_is_handed_back() {
        assert!(is_taken(&mut Made::new(128)));
        assert!(!is_taken(&mut Made::new(129)));
    }
}
