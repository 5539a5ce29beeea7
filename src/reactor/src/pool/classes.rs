//! The sizes that buffers come in.

use forebay_hugepages::{HUGE_PAGE, PAGE};

/// A chunk is the unit that belongs to one size class at a time: one hugepage.
pub(crate) const CHUNK: usize = HUGE_PAGE;

/// Pages in a chunk.
pub(crate) const CHUNK_PAGES: usize = CHUNK / PAGE;

/// The largest buffer, in bytes.
pub const MAX_BUFFER: usize = CHUNK;

/// Buffer sizes in pages: powers of two for data alone, and those with a little more for data with
/// one or several header blocks in front (journal batches, fills).
pub(crate) const CLASS_PAGES: [u16; 10] = [1, 2, 4, 9, 17, 33, 66, 144, 256, 512];

/// How many classes there are.
pub(crate) const CLASSES: usize = CLASS_PAGES.len();

/// The class for a number of pages.
const CLASS_OF_PAGES: [u8; CHUNK_PAGES + 1] = {
    let mut table = [0u8; CHUNK_PAGES + 1];
    let mut class = 0u8;
    let mut size = 0usize;
    let mut pages = 0;
    while pages <= CHUNK_PAGES {
        if pages > CLASS_PAGES[size] as usize {
            class += 1;
            size += 1;
        }
        table[pages] = class;
        pages += 1;
    }
    table
};

/// The smallest class whose buffers hold `len` bytes; `None` where even the largest does not.
pub(crate) fn class_of(len: usize) -> Option<usize> {
    CLASS_OF_PAGES.get(len.div_ceil(PAGE)).map(|class| usize::from(*class))
}

/// Pages of a buffer of this class.
pub(crate) fn pages_of(class: usize) -> usize {
    usize::from(CLASS_PAGES[class])
}

/// Buffers of this class in a chunk.
pub(crate) fn per_chunk(class: usize) -> usize {
    CHUNK_PAGES / pages_of(class)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_gets_the_smallest_class_that_holds_it() {
        for len in (0..=MAX_BUFFER).step_by(512).chain([1, 4097, MAX_BUFFER]) {
            let class = class_of(len).unwrap();
            assert!(pages_of(class) * PAGE >= len, "{len}");
            assert!(class == 0 || pages_of(class - 1) * PAGE < len, "{len}");
        }
        assert_eq!(class_of(MAX_BUFFER + 1), None);
        let waste: Vec<_> =
            (0..CLASSES).map(|c| CHUNK_PAGES - per_chunk(c) * pages_of(c)).collect();
        assert!(waste.iter().all(|pages| *pages <= 80), "{waste:?}");
    }
}
