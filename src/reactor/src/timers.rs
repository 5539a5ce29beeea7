//! A cancellable deadline heap that allocates only while it grows.

use forebay_io::Instant;

/// Names a timer; stale once it has fired or was cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimerId {
    slot: u32,
    generation: u32,
}

struct Slot<T> {
    generation: u32,
    /// Where in the heap; meaningless while `value` is `None`.
    position: usize,
    value: Option<T>,
}

#[derive(Clone, Copy)]
struct Entry {
    at: Instant,
    /// Order among equal deadlines: the one that was set first fires first.
    sequence: u64,
    slot: u32,
}

impl Entry {
    fn before(&self, other: &Self) -> bool {
        (self.at, self.sequence) < (other.at, other.sequence)
    }
}

/// Timers of one reactor, by deadline; equal ones fire in the order in which they were set.
pub struct Timers<T> {
    heap: Vec<Entry>,
    slots: Vec<Slot<T>>,
    vacant: Vec<u32>,
    sequence: u64,
}

impl<T> Timers<T> {
    /// No timers, with room for `capacity` before anything is allocated.
    #[must_use]
    pub fn with_capacity(capacity: usize) -> Self {
        Self {
            heap: Vec::with_capacity(capacity),
            slots: Vec::with_capacity(capacity),
            vacant: Vec::with_capacity(capacity),
            sequence: 0,
        }
    }

    /// How many timers are set.
    #[must_use]
    pub fn len(&self) -> usize {
        self.heap.len()
    }

    /// Whether none is set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.heap.is_empty()
    }

    /// The earliest deadline; [`Instant::NEVER`] without timers.
    #[must_use]
    pub fn next_deadline(&self) -> Instant {
        self.heap.first().map_or(Instant::NEVER, |entry| entry.at)
    }

    /// Sets a timer.
    pub fn set(&mut self, at: Instant, value: T) -> TimerId {
        let slot = self.vacant.pop().unwrap_or_else(|| {
            self.slots.push(Slot { generation: 0, position: 0, value: None });
            u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX)
        });
        let position = self.heap.len();
        self.sequence += 1;
        self.heap.push(Entry { at, sequence: self.sequence, slot });
        let place = &mut self.slots[index(slot)];
        (place.position, place.value) = (position, Some(value));
        let generation = place.generation;
        self.rise(position);
        TimerId { slot, generation }
    }

    /// Cancels a timer and gives its value back; `None` where it has fired or was cancelled already.
    pub fn cancel(&mut self, id: TimerId) -> Option<T> {
        let place = self.slots.get(index(id.slot))?;
        if place.generation != id.generation || place.value.is_none() {
            return None;
        }
        self.remove(place.position)
    }

    /// Takes one timer whose deadline has come.
    pub fn pop_due(&mut self, now: Instant) -> Option<T> {
        if self.heap.first()?.at > now {
            return None;
        }
        self.remove(0)
    }

    fn remove(&mut self, position: usize) -> Option<T> {
        let entry = self.heap.swap_remove(position);
        if position < self.heap.len() {
            self.place(position);
            self.sink(position);
            self.rise(position);
        }
        let place = &mut self.slots[index(entry.slot)];
        place.generation = place.generation.wrapping_add(1);
        self.vacant.push(entry.slot);
        place.value.take()
    }

    fn rise(&mut self, mut position: usize) {
        while position > 0 {
            let parent = (position - 1) / 2;
            if !self.heap[position].before(&self.heap[parent]) {
                break;
            }
            self.swap(position, parent);
            position = parent;
        }
    }

    fn sink(&mut self, mut position: usize) {
        loop {
            let left = 2 * position + 1;
            let Some(mut least) = (left < self.heap.len()).then_some(left) else { break };
            if left + 1 < self.heap.len() && self.heap[left + 1].before(&self.heap[left]) {
                least = left + 1;
            }
            if !self.heap[least].before(&self.heap[position]) {
                break;
            }
            self.swap(position, least);
            position = least;
        }
    }

    fn swap(&mut self, a: usize, b: usize) {
        self.heap.swap(a, b);
        self.place(a);
        self.place(b);
    }

    fn place(&mut self, position: usize) {
        let slot = self.heap[position].slot;
        self.slots[index(slot)].position = position;
    }
}

impl<T> core::fmt::Debug for Timers<T> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Timers").field("set", &self.heap.len()).finish()
    }
}

fn index(slot: u32) -> usize {
    usize::try_from(slot).unwrap_or(usize::MAX)
}

#[cfg(not(loom))]
#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn timers_behave_as_a_sorted_list(
            steps in proptest::collection::vec((0u8..4, 0u64..50), 1..200)
        ) {
            let mut timers = Timers::with_capacity(4);
            let mut model: Vec<(u64, usize, TimerId)> = Vec::new();
            for (number, (step, value)) in steps.into_iter().enumerate() {
                match step {
                    0 | 1 => {
                        let id = timers.set(Instant(value), number);
                        model.push((value, number, id));
                    }
                    2 if !model.is_empty() => {
                        let (_, number, id) = model.remove(number % model.len());
                        prop_assert_eq!(timers.cancel(id), Some(number));
                        prop_assert_eq!(timers.cancel(id), None);
                    }
                    _ => {
                        model.sort_by_key(|(at, number, _)| (*at, *number));
                        let due = model.first().filter(|(at, ..)| *at <= value).copied();
                        prop_assert_eq!(timers.pop_due(Instant(value)), due.map(|due| due.1));
                        if let Some((_, _, id)) = due {
                            model.remove(0);
                            prop_assert_eq!(timers.cancel(id), None);
                        }
                    }
                }
                let next = model.iter().map(|(at, ..)| *at).min();
                prop_assert_eq!(timers.next_deadline(), next.map_or(Instant::NEVER, Instant));
                prop_assert_eq!(timers.len(), model.len());
            }
        }
    }
}
