//! What a device's medium holds: pages shared until one of them is written, so that thousands of
//! images of one device cost little.

use std::rc::Rc;

/// Bytes of a page.
const PAGE: usize = 4096;

type Page = Rc<[u8; PAGE]>;

/// The bytes of a device.
#[derive(Clone)]
pub struct Medium {
    pages: Vec<Page>,
    size: u64,
}

impl Medium {
    /// `size` bytes of zeroes.
    #[must_use]
    pub fn new(size: u64) -> Self {
        let zero: Page = Rc::new([0; PAGE]);
        let pages = usize::try_from(size.div_ceil(PAGE as u64)).unwrap_or(0);
        Self { pages: vec![zero; pages], size }
    }

    /// Bytes.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    fn runs(offset: u64, len: usize) -> impl Iterator<Item = (usize, usize, usize, usize)> {
        let mut done = 0;
        std::iter::from_fn(move || {
            if done >= len {
                return None;
            }
            let at = usize::try_from(offset).unwrap_or(usize::MAX) + done;
            let (page, within) = (at / PAGE, at % PAGE);
            let n = (PAGE - within).min(len - done);
            done += n;
            Some((page, within, done - n, n))
        })
    }

    /// Fills `out` from `offset`.
    pub fn read(&self, offset: u64, out: &mut [u8]) {
        for (page, within, at, n) in Self::runs(offset, out.len()) {
            out[at..at + n].copy_from_slice(&self.pages[page][within..within + n]);
        }
    }

    /// The bytes of a range.
    #[must_use]
    pub fn bytes(&self, offset: u64, len: u64) -> Vec<u8> {
        let mut out = vec![0; usize::try_from(len).unwrap_or(0)];
        self.read(offset, &mut out);
        out
    }

    /// Writes `data` at `offset`.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        for (page, within, at, n) in Self::runs(offset, data.len()) {
            if n == PAGE {
                let whole: [u8; PAGE] = data[at..at + n].try_into().unwrap_or([0; PAGE]);
                self.pages[page] = Rc::new(whole);
            } else {
                Rc::make_mut(&mut self.pages[page])[within..within + n]
                    .copy_from_slice(&data[at..at + n]);
            }
        }
    }

    /// The pages that differ from an earlier copy.
    #[must_use]
    pub fn changed(&self, before: &Self) -> Vec<u64> {
        let both = self.pages.iter().zip(&before.pages).zip(0..);
        both.filter(|((a, b), _)| !Rc::ptr_eq(a, b) && a != b).map(|(_, page)| page).collect()
    }

    /// Whether two media hold the same, as far as pages that are not shared tell.
    #[must_use]
    pub fn same(&self, other: &Self) -> bool {
        self.size == other.size
            && self.pages.iter().zip(&other.pages).all(|(a, b)| Rc::ptr_eq(a, b) || a == b)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_does_not_see_later_writes() {
        let mut a = Medium::new(3 * 4096 + 512);
        a.write(4000, &[7; 300]);
        let b = a.clone();
        a.write(4096, &[9; 512]);
        a.write(4096 * 3, &[5; 512]);
        assert_eq!(b.bytes(4000, 300), vec![7; 300]);
        assert_eq!(a.bytes(4000, 96), vec![7; 96]);
        assert_eq!(a.bytes(4096, 512), vec![9; 512]);
        assert!(!a.same(&b));
        assert!(a.same(&a.clone()));
    }
}
