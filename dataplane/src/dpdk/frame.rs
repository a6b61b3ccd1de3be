//! Frames: DPDK's packet buffers as owned values.
//!
//! A frame's octets are one contiguous range of its first segment, with headroom before and tailroom behind. Ports are
//! configured so that every frame fits one segment; should a device chain segments all the same,
//! [`Frame::is_single_segment`] says so, and the rest of such a frame is out of reach here.

use std::fmt;
use std::ptr::NonNull;

use capsule_ffi as ffi;
use sluice_filters::{ChecksumState, RxChecksums};

use super::slots::Slots;

/// Most frames of one receive burst.
pub const BURST: usize = 32;

/// The network layer of a frame whose checksums the device is to fill in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IpVersion {
    /// IPv4: the device fills in the header checksum too.
    V4,
    /// IPv6.
    V6,
}

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

    /// Octets in the first segment.
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
        // SAFETY: `data_off + data_len <= buf_len` always holds, the buffer lives as long as the mbuf, and its memory came
        // zeroed from the kernel, so every octet of it is initialised.
        unsafe { std::slice::from_raw_parts(self.start(), self.len()) }
    }

    /// The octets, to be changed.
    #[inline]
    #[must_use]
    pub fn data_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `data`; the mbuf is direct with one reference, so nobody else sees the buffer.
        unsafe { std::slice::from_raw_parts_mut(self.start(), self.len()) }
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

    /// Whether all of the frame is in [`Self::data`].
    #[inline]
    #[must_use]
    pub fn is_single_segment(&self) -> bool {
        self.mbuf().nb_segs == 1
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

    /// Asks the device to fill in the TCP checksum, and the IPv4 header checksum with [`IpVersion::V4`], when the frame is
    /// sent. Only for ports whose [`super::PortInfo::tx_checksums`] is set. The TCP checksum field must hold the
    /// pseudo-header's sum (not inverted), the IPv4 one zero. Lengths in octets: `l2_len` below 128, `l3_len` below 512.
    #[inline]
    pub fn request_tx_checksum(&mut self, l2_len: usize, l3_len: usize, version: IpVersion) {
        let mbuf = self.mbuf_mut();
        mbuf.ol_flags |= ffi::SLUICE_MBUF_TX_TCP_CKSUM
            | match version {
                IpVersion::V4 => ffi::SLUICE_MBUF_TX_IPV4 | ffi::SLUICE_MBUF_TX_IP_CKSUM,
                IpVersion::V6 => ffi::SLUICE_MBUF_TX_IPV6,
            };
        // Bits 0 to 6 and 7 to 15 of the offload word.
        mbuf.__bindgen_anon_3.tx_offload = (l2_len as u64 & 0x7f) | ((l3_len as u64 & 0x1ff) << 7);
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

// SAFETY: the mbuf has one owner, the transfer, and DPDK's pools may be used from any thread, so it may be used and freed
// wherever the transfer arrives. (Frames are kept off other threads by design, not by need.)
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
