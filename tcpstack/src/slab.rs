//! A slab whose entries can be taken out for the length of a call, so that the rest of the owner stays free to be borrowed.

/// Values by small stable indices; the lowest free index is not guaranteed to be used first.
#[derive(Debug)]
pub(crate) struct Slab<T> {
    entries: Vec<Option<Box<T>>>,
    free: Vec<u32>,
}

impl<T> Slab<T> {
    /// An empty slab whose table need not move for `most` values: address space is taken at once, memory as it fills.
    pub(crate) fn new(most: usize) -> Slab<T> {
        Slab { entries: Vec::with_capacity(most), free: Vec::with_capacity(most) }
    }

    /// Reserves an index, to be filled by [`Slab::put`] or given back by [`Slab::release`].
    pub(crate) fn reserve(&mut self) -> u32 {
        self.free.pop().unwrap_or_else(|| {
            self.entries.push(None);
            // Indices come from flow table values, which have 30 bits.
            self.entries.len().saturating_sub(1) as u32
        })
    }

    /// Fills a reserved index, or one whose value was taken.
    pub(crate) fn put(&mut self, index: u32, value: Box<T>) {
        if let Some(entry) = self.entries.get_mut(index as usize) {
            *entry = Some(value);
        }
    }

    /// Takes the value out; the index stays reserved.
    pub(crate) fn take(&mut self, index: u32) -> Option<Box<T>> {
        self.entries.get_mut(index as usize)?.take()
    }

    /// Gives a reserved index back.
    pub(crate) fn release(&mut self, index: u32) {
        self.free.push(index);
    }

    /// The value at `index`.
    pub(crate) fn get(&self, index: u32) -> Option<&T> {
        self.entries.get(index as usize)?.as_deref()
    }

    /// The value at `index`.
    pub(crate) fn get_mut(&mut self, index: u32) -> Option<&mut T> {
        self.entries.get_mut(index as usize)?.as_deref_mut()
    }

    /// Reserved indices, values taken out included.
    pub(crate) fn len(&self) -> usize {
        self.entries.len().saturating_sub(self.free.len())
    }

    /// Indices from `start` on that hold a value now.
    pub(crate) fn indices_from(&self, start: u32) -> impl Iterator<Item = u32> + '_ {
        let entries = self.entries.get(start as usize..).unwrap_or_default();
        (start..).zip(entries).filter(|(_, entry)| entry.is_some()).map(|(index, _)| index)
    }
}
