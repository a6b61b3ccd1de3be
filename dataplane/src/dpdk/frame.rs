//! Frames: DPDK's packet buffers as owned values.
//!
//! A frame's octets are one contiguous range of its first segment, with headroom before and tailroom behind. Ports are
//! configured so that every frame fits one segment; should a device chain segments all the same, or say that a frame has more
//! octets than its buffer, [`Frame::is_whole`] tells, and the rest of such a frame is out of reach here.

use std::fmt;
use std::ptr::NonNull;

use capsule_ffi as ffi;
use sluice_filters::{ChecksumState, RxChecksums};

use super::slots::Slots;

/// Most frames of one receive burst.
pub const BURST: usize = 32;

/// An owned frame, one pointer wide. Dropping it frees it, which costs a call into DPDK: where many are dropped, use
/// [`FreeList`].
///
/// DPDK makes them, in the slots it fills. Not `Send`: to hand one to another worker, turn it into a [`Transfer`].
#[repr(transparent)]
pub struct Frame(NonNull<ffi::rte_mbuf>);

impl Frame {
    #[inline]
    fn mbuf(&self) -> &ffi::rte_mbuf {
        // SAFETY: a frame owns its live mbuf; a shared borrow of the frame excludes writers.
        unsafe { self.0.as_ref() }
    }

    #[inline]
    fn mbuf_mut(&mut self) -> &mut ffi::rte_mbuf {
        // SAFETY: a frame owns its live mbuf; a unique borrow of the frame excludes everybody else.
        unsafe { self.0.as_mut() }
    }

    /// Start of the frame's octets.
    #[inline]
    fn start(&self) -> *mut u8 {
        let mbuf = self.mbuf();
        // SAFETY: DPDK and the methods below keep `data_off <= buf_len`, so the result is within the buffer or at its end.
        unsafe { mbuf.buf_addr.cast::<u8>().add(usize::from(mbuf.data_off)) }
    }

    /// Octets of the first segment that are in its buffer: all, unless the device was told the length by another process, as
    /// memif's are, and was told too much.
    #[inline]
    fn span(&self) -> usize {
        let mbuf = self.mbuf();
        usize::from(mbuf.data_len.min(mbuf.buf_len.saturating_sub(mbuf.data_off)))
    }

    /// Octets in the first segment, as the device says.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        usize::from(self.mbuf().data_len)
    }

    /// Whether there are none.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The octets, from the Ethernet header on, without the FCS.
    #[inline]
    #[must_use]
    pub fn data(&self) -> &[u8] {
        // SAFETY: `span` keeps to the buffer, which lives as long as the mbuf; it is memory that DPDK mapped, so every octet is
        // initialised.
        unsafe { std::slice::from_raw_parts(self.start(), self.span()) }
    }

    /// The octets, to be changed.
    #[inline]
    #[must_use]
    pub fn data_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `data`; the mbuf is ours alone: count 1, and a buffer no other mbuf writes to (its own, or one attached
        // to it alone).
        unsafe { std::slice::from_raw_parts_mut(self.start(), self.span()) }
    }

    /// The octets and all the room behind them, which holds whatever was there before: for writing an answer over what was
    /// received, and then [`Self::set_len`].
    #[inline]
    #[must_use]
    pub fn buffer_mut(&mut self) -> &mut [u8] {
        let mbuf = self.mbuf();
        let room = usize::from(mbuf.buf_len).saturating_sub(usize::from(mbuf.data_off));
        // SAFETY: as in `data_mut`: from `data_off` to `buf_len` everything is the buffer's, initialised, and nobody else's.
        unsafe { std::slice::from_raw_parts_mut(self.start(), room) }
    }

    /// Whether the frame has no segments besides the first.
    #[inline]
    #[must_use]
    pub fn is_single_segment(&self) -> bool {
        self.mbuf().nb_segs == 1
    }

    /// Whether all of the frame is in [`Self::data`]: it has one segment, which is as long as it says.
    #[inline]
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.is_single_segment() & (self.span() == self.len())
    }

    /// DPDK's number of the port that received it.
    #[inline]
    #[must_use]
    pub fn port(&self) -> u16 {
        self.mbuf().port
    }

    /// What the device said about the frame's checksums.
    ///
    /// A frame that never crossed a wire (virtio: "none, but trust me") counts as good: its contents are intact, but the
    /// checksum in it may be unfinished, so it may not be updated incrementally.
    #[inline]
    #[must_use]
    pub fn checksums(&self) -> RxChecksums {
        let flags = self.mbuf().ol_flags;
        let state = |mask: u64, unknown: u64, bad: u64| match flags & mask {
            found if found == unknown => ChecksumState::Unknown,
            found if found == bad => ChecksumState::Bad,
            _ => ChecksumState::Good,
        };
        RxChecksums {
            ip: state(
                ffi::SLUICE_MBUF_RX_IP_CKSUM_MASK,
                ffi::SLUICE_MBUF_RX_IP_CKSUM_UNKNOWN,
                ffi::SLUICE_MBUF_RX_IP_CKSUM_BAD,
            ),
            l4: state(
                ffi::SLUICE_MBUF_RX_L4_CKSUM_MASK,
                ffi::SLUICE_MBUF_RX_L4_CKSUM_UNKNOWN,
                ffi::SLUICE_MBUF_RX_L4_CKSUM_BAD,
            ),
        }
    }

    /// Whether the frame never crossed a wire and its TCP checksum was left to a device that did not compute it.
    #[inline]
    #[must_use]
    pub fn tcp_checksum_unfinished(&self) -> bool {
        // DPDK's "none, but trust me" is both bits.
        self.mbuf().ol_flags & ffi::SLUICE_MBUF_RX_L4_CKSUM_MASK == ffi::SLUICE_MBUF_RX_L4_CKSUM_MASK
    }

    /// Octets that can still be put before the first.
    #[inline]
    #[must_use]
    pub fn headroom(&self) -> usize {
        usize::from(self.mbuf().data_off)
    }

    /// Octets that can still be put behind the last.
    #[inline]
    #[must_use]
    pub fn tailroom(&self) -> usize {
        let mbuf = self.mbuf();
        usize::from(mbuf.buf_len).saturating_sub(usize::from(mbuf.data_off)).saturating_sub(usize::from(mbuf.data_len))
    }

    /// Makes the frame `len` octets long, by cutting its end or by growing into the tailroom, where the new octets are
    /// whatever was there before. False, and nothing happens, if there is not so much room or the frame has several
    /// segments.
    #[inline]
    #[must_use]
    pub fn set_len(&mut self, len: usize) -> bool {
        let mbuf = self.mbuf_mut();
        let limit = usize::from(mbuf.buf_len).saturating_sub(usize::from(mbuf.data_off));
        if len > limit || mbuf.nb_segs != 1 {
            return false;
        }
        // Not above `buf_len`: nothing is lost.
        mbuf.data_len = len as u16;
        mbuf.pkt_len = len as u32;
        true
    }

    /// Puts `n` octets before the first and returns them, to be written; `None`, and nothing happens, without room.
    #[inline]
    pub fn prepend(&mut self, n: usize) -> Option<&mut [u8]> {
        let mbuf = self.mbuf_mut();
        let octets = u16::try_from(n).ok()?;
        let data_off = mbuf.data_off.checked_sub(octets)?;
        let data_len = mbuf.data_len.checked_add(octets)?;
        let pkt_len = mbuf.pkt_len.checked_add(u32::from(octets))?;
        mbuf.data_off = data_off;
        mbuf.data_len = data_len;
        mbuf.pkt_len = pkt_len;
        self.data_mut().get_mut(..n)
    }

    /// Removes the first `n` octets. False, and nothing happens, if there are not so many.
    #[inline]
    #[must_use]
    pub fn adj(&mut self, n: usize) -> bool {
        if n > self.span() {
            return false;
        }
        let mbuf = self.mbuf_mut();
        let Ok(octets) = u16::try_from(n) else { return false };
        let (Some(data_len), Some(pkt_len), Some(data_off)) = (
            mbuf.data_len.checked_sub(octets),
            mbuf.pkt_len.checked_sub(u32::from(octets)),
            mbuf.data_off.checked_add(octets),
        ) else {
            return false;
        };
        mbuf.data_len = data_len;
        mbuf.pkt_len = pkt_len;
        mbuf.data_off = data_off;
        true
    }

    /// Fetches the first octets into the cache, to be read a little later.
    #[inline]
    pub fn prefetch(&self) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a prefetch reads nothing and cannot fault; SSE is part of x86-64.
        unsafe {
            std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(self.start().cast::<i8>());
        }
    }
}

impl AsRef<[u8]> for Frame {
    /// [`Frame::data`].
    #[inline]
    fn as_ref(&self) -> &[u8] {
        self.data()
    }
}

impl Drop for Frame {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: the frame owns its mbuf and is gone after this; its pool is alive (see the module's invariants).
        unsafe { ffi::_rte_pktmbuf_free(self.0.as_ptr()) }
    }
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Frame").field("port", &self.port()).field("len", &self.len()).finish_non_exhaustive()
    }
}

/// A frame on its way to another thread. Dropping it frees the frame.
#[derive(Debug)]
#[repr(transparent)]
pub struct Transfer(Frame);

// SAFETY: the mbuf has one owner, the transfer, and DPDK's pools may be used from any thread (their rings are multi-producer
// and multi-consumer, DPDK's default), so it may be used and freed wherever the transfer arrives. (Frames are kept off other
// threads by design, not by need.)
unsafe impl Send for Transfer {}

impl From<Frame> for Transfer {
    #[inline]
    fn from(frame: Frame) -> Transfer {
        Transfer(frame)
    }
}

impl From<Transfer> for Frame {
    #[inline]
    fn from(transfer: Transfer) -> Frame {
        transfer.0
    }
}

/// Room for the frames of one receive burst. Frames are looked at and taken by index, in any order.
#[derive(Debug)]
pub struct Burst(Slots<BURST>);

impl Burst {
    /// No frames.
    #[must_use]
    pub fn new() -> Burst {
        Burst(Slots::new())
    }

    /// Frames received, taken or not: indices run from 0 to this.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.count()
    }

    /// Whether the burst brought none.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The frame at `i`, unless there is none or it was taken.
    #[inline]
    #[must_use]
    pub fn get(&self, i: usize) -> Option<&Frame> {
        self.0.filled().get(i)?.as_ref()
    }

    /// The frame at `i`, to be changed.
    #[inline]
    #[must_use]
    pub fn get_mut(&mut self, i: usize) -> Option<&mut Frame> {
        self.0.filled_mut().get_mut(i)?.as_mut()
    }

    /// Takes the frame at `i` out.
    #[inline]
    #[must_use]
    pub fn take(&mut self, i: usize) -> Option<Frame> {
        self.0.filled_mut().get_mut(i)?.take()
    }

    /// Fetches the first octets of the frame at `i` into the cache; does nothing if there is none.
    #[inline]
    pub fn prefetch(&self, i: usize) {
        if let Some(frame) = self.get(i) {
            frame.prefetch();
        }
    }

    /// Frees what was not taken.
    #[inline]
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Fills the emptied burst with what `receive` gives.
    ///
    /// # Safety
    /// As [`Slots::fill`].
    #[inline]
    pub(super) unsafe fn fill(&mut self, receive: impl FnOnce(*mut *mut ffi::rte_mbuf, u16) -> u16) -> usize {
        // SAFETY: the caller's promise is the callee's requirement.
        unsafe { self.0.fill(receive) }
    }
}

impl Default for Burst {
    fn default() -> Burst {
        Burst::new()
    }
}

const FREE_LIST: usize = 64;

/// Frames to be freed, in bulk: one call into DPDK for 64 of them. Frees the rest when flushed or dropped.
#[derive(Debug)]
pub struct FreeList {
    frames: [Option<Frame>; FREE_LIST],
    len: usize,
}

impl FreeList {
    /// None.
    #[must_use]
    pub fn new() -> FreeList {
        FreeList { frames: [const { None }; FREE_LIST], len: 0 }
    }

    /// Takes a frame to be freed.
    #[inline]
    pub fn push(&mut self, frame: Frame) {
        if self.len >= FREE_LIST {
            self.flush();
        }
        if let Some(slot) = self.frames.get_mut(self.len) {
            *slot = Some(frame);
            self.len = self.len.wrapping_add(1);
        }
    }

    /// Frees them.
    #[inline]
    pub fn flush(&mut self) {
        free_all(self.frames.get_mut(..self.len).unwrap_or_default());
        self.len = 0;
    }
}

impl Default for FreeList {
    fn default() -> FreeList {
        FreeList::new()
    }
}

impl Drop for FreeList {
    fn drop(&mut self) {
        self.flush();
    }
}

/// Frees frames in bulk, whatever pools they are from, and empties their slots. Empty slots are allowed.
#[inline]
pub(super) fn free_all(frames: &mut [Option<Frame>]) {
    // SAFETY: `Option<Frame>` is a nullable pointer to an mbuf (`Frame` is a transparent `NonNull`), which is what DPDK
    // expects: it skips null. The frames are owned and forgotten right after, so each is freed once.
    unsafe {
        ffi::rte_pktmbuf_free_bulk(frames.as_mut_ptr().cast(), frames.len() as u32);
        frames.as_mut_ptr().write_bytes(0, frames.len());
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::mem::ManuallyDrop;

    use super::*;

    const ROOM: u16 = 256;
    const HEADROOM: u16 = 128;

    /// An mbuf of no pool with a buffer of its own. Its frame must be forgotten, not dropped.
    pub(in super::super) struct Made {
        pub(in super::super) mbuf: Box<ffi::rte_mbuf>,
        _buffer: Box<[u8]>,
    }

    impl Made {
        /// One segment, which says that it has so many octets.
        pub(in super::super) fn new(data_len: u16) -> Made {
            let mut buffer = vec![0_u8; usize::from(ROOM)].into_boxed_slice();
            let mbuf = ffi::rte_mbuf {
                buf_addr: buffer.as_mut_ptr().cast(),
                buf_len: ROOM,
                data_off: HEADROOM,
                data_len,
                pkt_len: u32::from(data_len),
                nb_segs: 1,
                ..ffi::rte_mbuf::default()
            };
            Made { mbuf: Box::new(mbuf), _buffer: buffer }
        }

        pub(in super::super) fn frame(&mut self) -> ManuallyDrop<Frame> {
            ManuallyDrop::new(Frame(NonNull::from(&mut *self.mbuf)))
        }
    }

    #[test]
    fn octets_end_with_the_buffer_whatever_length_the_device_was_told() {
        let mut made = Made::new(u16::MAX);
        let mut frame = made.frame();
        assert_eq!((frame.len(), frame.data().len(), frame.data_mut().len()), (65_535, 128, 128));
        assert!(!frame.is_whole());
        assert!(!frame.adj(129));
        assert!(frame.adj(128));
        assert!(frame.data().is_empty());
        assert!(frame.set_len(0) && frame.is_whole());
    }

    #[test]
    fn a_frame_is_whole_up_to_the_end_of_its_buffer() {
        assert!(Made::new(128).frame().is_whole());
        assert!(!Made::new(129).frame().is_whole());
    }

    #[test]
    fn a_frame_of_several_segments_is_not_whole() {
        let mut made = Made::new(60);
        made.mbuf.nb_segs = 2;
        assert!(!made.frame().is_whole());
    }
}
