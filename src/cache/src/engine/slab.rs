//! A table of reused places, so that steady I/O allocates nothing.

/// Names a place of a [`Slab`] and its generation: a late use of a freed place is noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Handle {
    index: u32,
    generation: u32,
}

impl Handle {
    /// As the token of a device operation.
    pub(super) const fn token(self) -> u64 {
        (self.generation as u64) << 32 | self.index as u64
    }

    /// Back from a token.
    #[expect(clippy::cast_possible_truncation, reason = "the two halves of a token")]
    pub(super) const fn from_token(token: u64) -> Self {
        Self { index: token as u32, generation: (token >> 32) as u32 }
    }
}

#[derive(Debug)]
struct Place<T> {
    generation: u32,
    used: bool,
    value: T,
}

/// Values in reused places; a freed value is kept, so that its vectors keep their capacity.
#[derive(Debug)]
pub(super) struct Slab<T> {
    places: Vec<Place<T>>,
    free: Vec<u32>,
}

impl<T: Default> Slab<T> {
    pub(super) fn new() -> Self {
        Self { places: Vec::new(), free: Vec::new() }
    }

    /// Takes a place whose value is what the last user left; `None` beyond 2³² places.
    pub(super) fn take(&mut self) -> Option<(Handle, &mut T)> {
        let index = match self.free.pop() {
            Some(index) => index,
            None => {
                let index = u32::try_from(self.places.len()).ok()?;
                self.places.push(Place { generation: 0, used: false, value: T::default() });
                index
            }
        };
        let place = self.places.get_mut(index as usize)?;
        place.used = true;
        Some((Handle { index, generation: place.generation }, &mut place.value))
    }

    pub(super) fn get(&self, handle: Handle) -> Option<&T> {
        let place = self.places.get(handle.index as usize)?;
        (place.used && place.generation == handle.generation).then_some(&place.value)
    }

    pub(super) fn get_mut(&mut self, handle: Handle) -> Option<&mut T> {
        let place = self.places.get_mut(handle.index as usize)?;
        (place.used && place.generation == handle.generation).then_some(&mut place.value)
    }

    /// Gives the place back; its value stays for the next user to clear.
    pub(super) fn free(&mut self, handle: Handle) {
        if let Some(place) = self.places.get_mut(handle.index as usize)
            && place.used
            && place.generation == handle.generation
        {
            place.used = false;
            place.generation = place.generation.wrapping_add(1);
            self.free.push(handle.index);
        }
    }

    pub(super) fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    /// What is in use, in order of the places.
    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.places.iter().filter(|place| place.used).map(|place| &place.value)
    }

    /// The places in use, in order of their index.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (Handle, &mut T)> {
        self.places.iter_mut().enumerate().filter(|(_, place)| place.used).filter_map(
            |(index, place)| {
                let index = u32::try_from(index).ok()?;
                Some((Handle { index, generation: place.generation }, &mut place.value))
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_freed_place_is_not_found_by_its_old_handle() {
        let mut slab: Slab<u32> = Slab::new();
        let (first, value) = slab.take().unwrap();
        *value = 7;
        assert_eq!(slab.get(Handle::from_token(first.token())), Some(&7));
        slab.free(first);
        slab.free(first);
        assert_eq!((slab.get(first), slab.len()), (None, 0));
        let (second, _) = slab.take().unwrap();
        assert_ne!(first, second);
        assert_eq!(slab.get_mut(first), None);
        assert_eq!((slab.iter_mut().count(), slab.iter().count()), (1, 1));
    }
}
