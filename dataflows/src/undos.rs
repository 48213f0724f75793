//! The undo data of the steps of a batch.

/// The data needed to undo the steps of a batch, by entry. A step has any number of items. Those of all steps are stored
/// one after the other: there are millions of steps in un-final batches, and an allocation for each would cost more than
/// the steps themselves.
///
/// ```text
///   entries   0 ·········· 1     2 (no step)   3 ·····
///   items     a   b   c    d                   e   f
/// ```
pub(crate) struct Undos<U> {
    spans: Vec<Span>,
    /// `None`: taken.
    items: Vec<Option<U>>,
}

/// The place of the items of an entry.
#[derive(Clone, Copy, Default)]
struct Span {
    start: u32,
    len: u32,
    /// False if the entry is not a step, or not any more.
    is_step: bool,
}

impl Span {
    fn range(self) -> std::ops::Range<usize> {
        self.start as usize..self.start as usize + self.len as usize
    }
}

impl<U> Default for Undos<U> {
    fn default() -> Self {
        Undos { spans: Vec::new(), items: Vec::new() }
    }
}

impl<U> Undos<U> {
    /// Returns true if it has far more space than these numbers of entries and items need.
    pub fn is_oversized(&self, entries: usize, items: usize) -> bool {
        self.spans.capacity() + self.items.capacity() > 16 * (entries + items) + (1 << 12)
    }

    /// Reserves space for these numbers of entries and items.
    pub fn reserve(&mut self, entries: usize, items: usize) {
        self.spans.reserve_exact(entries);
        self.items.reserve_exact(items);
    }

    /// Removes all steps, and keeps the space.
    pub fn clear(&mut self) {
        self.spans.clear();
        self.items.clear();
    }

    /// Returns the number of all items.
    pub fn items(&self) -> usize {
        self.items.len()
    }

    /// Returns true if the entry is a step.
    pub fn is_step(&self, entry: usize) -> bool {
        self.spans.get(entry).is_some_and(|span| span.is_step)
    }

    /// Adds a step after all others. `make` appends its items.
    #[inline]
    pub fn push(&mut self, entry: usize, make: impl FnOnce(&mut Vec<Option<U>>)) {
        let Undos { spans, items } = self;
        spans.resize(entry, Span::default());
        let start = items.len();
        make(items);
        spans.push(Span { start: index(start), len: index(items.len() - start), is_step: true });
    }

    /// Makes an entry a step with these items, in place of those that it had.
    pub fn set(&mut self, entry: usize, again: &mut Vec<Option<U>>) {
        if self.spans.len() <= entry {
            self.spans.resize(entry + 1, Span::default());
        }
        let span = &mut self.spans[entry];
        self.items[span.range()].fill_with(|| None);
        if again.len() > span.len as usize {
            // Other rules judge the event than before.
            span.start = index(self.items.len());
            self.items.resize_with(self.items.len() + again.len(), || None);
        }
        span.len = index(again.len());
        span.is_step = true;
        for (item, again) in self.items[span.range()].iter_mut().zip(again.drain(..)) {
            *item = again;
        }
    }

    /// Takes the items of an entry, which is no step from now on. Returns `None` if it was none.
    pub fn take(&mut self, entry: usize) -> Option<impl DoubleEndedIterator<Item = U> + '_> {
        let span = self.spans.get_mut(entry).filter(|span| span.is_step)?;
        span.is_step = false;
        Some(self.items[span.range()].iter_mut().filter_map(Option::take))
    }
}

impl<U: Clone> Undos<U> {
    /// Returns copies of the items of an entry; `None` if it is not a step.
    pub fn copy(&self, entry: usize) -> Option<impl DoubleEndedIterator<Item = U> + '_> {
        let span = self.spans.get(entry).filter(|span| span.is_step)?;
        Some(self.items[span.range()].iter().flatten().cloned())
    }
}

fn index(len: usize) -> u32 {
    u32::try_from(len).expect("a batch has fewer than 2^32 undo items")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copied(undos: &Undos<&'static str>, entry: usize) -> Option<Vec<&'static str>> {
        undos.copy(entry).map(Iterator::collect)
    }

    #[test]
    fn steps_have_any_number_of_items() {
        let mut undos = Undos::default();
        undos.push(1, |items| items.extend([Some("a"), Some("b")]));
        undos.push(3, |_| {});
        let all = |undos: &Undos<_>| [0, 1, 2, 3, 4].map(|entry| copied(undos, entry));
        assert_eq!(all(&undos), [None, Some(vec!["a", "b"]), None, Some(vec![]), None]);
        assert_eq!([0, 1, 2, 3, 4].map(|entry| undos.is_step(entry)), [false, true, false, true, false]);
    }

    #[test]
    fn a_step_that_is_made_again_takes_no_more_space() {
        let mut undos = Undos::default();
        undos.push(0, |items| items.extend([Some("a"), Some("b")]));
        undos.push(1, |items| items.push(Some("c")));
        for _ in 0..3 {
            assert_eq!(undos.take(0).expect("a step").rev().collect::<Vec<_>>().len(), 2);
            assert!(!undos.is_step(0) && undos.take(0).is_none());
            undos.set(0, &mut vec![Some("d"), Some("e")]);
        }
        assert_eq!(undos.items(), 3);
        undos.set(0, &mut vec![Some("f"), Some("g"), Some("h")]);
        undos.set(1, &mut vec![]);
        undos.set(4, &mut vec![Some("i")]);
        let all = [0, 1, 2, 3, 4].map(|entry| copied(&undos, entry));
        assert_eq!(all, [Some(vec!["f", "g", "h"]), Some(vec![]), None, None, Some(vec!["i"])]);
    }
}
