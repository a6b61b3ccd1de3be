//! Arrays that DPDK fills with mbufs.
//!
//! A count says how many slots DPDK filled, and nothing else does. Calls that give fewer mbufs than asked for may have written to
//! the rest of the array all the same: an allocation in bulk copies pointers out of the lcore's cache before it finds that the
//! pool has too few (`rte_mempool_do_generic_get`), and drivers that work on four descriptors at a time store four pointers
//! before they know how many frames are complete. Those mbufs belong to the pool or to the device.

use std::fmt;
use std::mem::MaybeUninit;

use capsule_ffi as ffi;

use super::frame::Frame;

/// Room for `N` mbufs. The slots below the count hold frames of ours, or null where one was taken. What stands in the others is
/// never looked at and never freed.
pub(super) struct Slots<const N: usize> {
    slots: [MaybeUninit<Option<Frame>>; N],
    count: usize,
}

impl<const N: usize> Slots<N> {
    /// No frames.
    pub(super) const fn new() -> Slots<N> {
        Slots { slots: [const { MaybeUninit::uninit() }; N], count: 0 }
    }

    /// Slots that were filled, whether their frames were taken since or not.
    #[inline]
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// The filled slots.
    #[inline]
    pub(super) fn filled(&self) -> &[Option<Frame>] {
        // SAFETY: `count` is at most N, and the slots below it were initialised by `fill`. A `MaybeUninit` has the layout of what it
        // may hold.
        unsafe { std::slice::from_raw_parts(self.slots.as_ptr().cast(), self.count) }
    }

    /// The filled slots, to be changed.
    #[inline]
    pub(super) fn filled_mut(&mut self) -> &mut [Option<Frame>] {
        // SAFETY: as in `filled`.
        unsafe { std::slice::from_raw_parts_mut(self.slots.as_mut_ptr().cast(), self.count) }
    }

    /// Takes the frame out of the last filled slot, which counts no longer.
    #[inline]
    pub(super) fn pop(&mut self) -> Option<Frame> {
        let frame = self.filled_mut().last_mut()?.take();
        // There is a last one.
        self.count = self.count.wrapping_sub(1);
        frame
    }

    /// Frees what was not taken.
    #[inline]
    pub(super) fn clear(&mut self) {
        for slot in self.filled_mut() {
            *slot = None;
        }
        self.count = 0;
    }

    /// Empties the slots, lets `give` write mbufs to them, and returns how many it wrote. `give` gets the first slot and their number.
    ///
    /// # Safety
    /// `give` must return how many slots it filled from the front on, N at most, each with null or with a live mbuf that is ours
    /// alone from then on: count 1, a buffer no other mbuf writes to (its own, or one attached to it alone), which nobody else
    /// uses or frees. Its `data_off` must be within the buffer; its `data_len` may say anything. `give` may write anything to
    /// the other slots.
    #[inline]
    pub(super) unsafe fn fill(&mut self, give: impl FnOnce(*mut *mut ffi::rte_mbuf, u16) -> u16) -> usize {
        const { assert!(N <= u16::MAX as usize) };
        self.clear();
        // `Frame` is a transparent `NonNull`, so `Option<Frame>` is a nullable pointer: what DPDK writes is a frame, or none.
        let given = give(self.slots.as_mut_ptr().cast(), N as u16);
        self.count = usize::from(given).min(N);
        self.count
    }
}

impl<const N: usize> Drop for Slots<N> {
    fn drop(&mut self) {
        self.clear();
    }
}

impl<const N: usize> fmt::Debug for Slots<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.filled()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::ptr;

    use super::*;

    const JUNK: *mut ffi::rte_mbuf = ptr::without_provenance_mut(0x5a5a_5a5a_5a40);

    /// Writes one mbuf to the front, junk everywhere else, and says that it gave `count`.
    fn one_and_junk(mbuf: *mut ffi::rte_mbuf, count: u16) -> impl FnOnce(*mut *mut ffi::rte_mbuf, u16) -> u16 {
        move |slots, room| {
            for index in 0..usize::from(room) {
                // SAFETY: there are `room` slots.
                unsafe { slots.add(index).write(if index == 0 { mbuf } else { JUNK }) };
            }
            count
        }
    }

    /// An mbuf of no pool: its frame must be forgotten, not dropped.
    fn mbuf() -> Box<ffi::rte_mbuf> {
        Box::new(ffi::rte_mbuf { nb_segs: 1, data_len: 60, ..ffi::rte_mbuf::default() })
    }

    #[test]
    fn junk_beyond_the_count_is_neither_seen_nor_freed() {
        let mut mbuf = mbuf();
        let mut slots = Slots::<8>::new();
        // SAFETY: the slots below the count get live mbufs, which nobody else uses meanwhile.
        unsafe {
            assert_eq!(slots.fill(one_and_junk(&mut *mbuf, 0)), 0);
            assert!(slots.filled().is_empty() && slots.pop().is_none());
            assert_eq!(slots.fill(one_and_junk(&mut *mbuf, 1)), 1);
        }
        assert_eq!(format!("{slots:?}"), "[Some(Frame { port: 0, len: 60, .. })]");
        let frame = slots.pop().unwrap();
        assert_eq!(frame.len(), 60);
        std::mem::forget(frame);
        assert!(slots.pop().is_none());
        // SAFETY: as above; freeing junk here, or when the slots are dropped, would end the process.
        assert_eq!(unsafe { slots.fill(one_and_junk(ptr::null_mut(), 0)) }, 0);
    }

    #[test]
    fn a_taken_frame_s_slot_stays_and_is_empty() {
        let mut mbuf = mbuf();
        let mut slots = Slots::<8>::new();
        // SAFETY: as above.
        unsafe { slots.fill(one_and_junk(&mut *mbuf, 1)) };
        std::mem::forget(slots.filled_mut()[0].take());
        assert_eq!((slots.count(), slots.filled().len()), (1, 1));
        assert!(slots.filled()[0].is_none());
    }

    #[test]
    fn no_more_slots_count_than_there_are() {
        let mut slots = Slots::<8>::new();
        let nulls = |slots: *mut *mut ffi::rte_mbuf, room: u16| {
            for index in 0..usize::from(room) {
                // SAFETY: there are `room` slots.
                unsafe { slots.add(index).write(ptr::null_mut()) };
            }
            room + 1
        };
        // SAFETY: null is allowed.
        assert_eq!(unsafe { slots.fill(nulls) }, 8);
        assert!(slots.filled().iter().all(Option::is_none));
    }
}
