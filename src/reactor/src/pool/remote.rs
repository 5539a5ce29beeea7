//! The way home for buffers that are freed on another thread: a stack with many pushers and one
//! taker, and the rule by which the last buffer of a pool that is gone frees what they share.

use crate::sync::{AtomicIsize, AtomicPtr, Ordering};
use core::ptr::{self, NonNull};

/// Something that can be linked into a [`RemoteStack`].
pub(crate) trait Link: Sized {
    /// The link field, used by nobody else while the node is on the stack.
    fn next(&self) -> &AtomicPtr<Self>;
}

/// The taker is gone; the node was not taken.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Closed;

/// Many threads push; the owner takes everything at once, so that no ABA problem exists.
pub(crate) struct RemoteStack<N> {
    head: AtomicPtr<N>,
}

impl<N: Link> RemoteStack<N> {
    pub(crate) fn new() -> Self {
        Self { head: AtomicPtr::new(ptr::null_mut()) }
    }

    /// The head of a stack whose taker is gone: an address that no node has.
    fn closed() -> *mut N {
        ptr::without_provenance_mut(1)
    }

    /// Pushes a node.
    ///
    /// # Safety
    /// The node is valid until the taker has taken it, and on no stack.
    pub(crate) unsafe fn push(&self, node: NonNull<N>) -> Result<(), Closed> {
        let mut head = self.head.load(Ordering::Relaxed);
        loop {
            if head == Self::closed() {
                return Err(Closed);
            }
            // SAFETY: the caller says that the node is valid.
            unsafe { node.as_ref() }.next().store(head, Ordering::Relaxed);
            // Release: the taker sees the link and all that was done to the buffer before.
            match self.head.compare_exchange_weak(
                head,
                node.as_ptr(),
                Ordering::Release,
                Ordering::Relaxed,
            ) {
                Ok(_) => return Ok(()),
                Err(now) => head = now,
            }
        }
    }

    /// Takes all nodes, linked by [`Link::next`]; null if there are none.
    pub(crate) fn take(&self) -> *mut N {
        if self.head.load(Ordering::Relaxed).is_null() {
            return ptr::null_mut();
        }
        self.head.swap(ptr::null_mut(), Ordering::Acquire)
    }

    /// Takes all nodes for the last time: every later push is refused.
    pub(crate) fn close(&self) -> *mut N {
        self.head.swap(Self::closed(), Ordering::AcqRel)
    }
}

/// Counts the buffers that outlive their pool, from both sides, so that exactly one party learns that
/// it was the last one whatever the order.
pub(crate) struct Orphans(AtomicIsize);

impl Orphans {
    pub(crate) fn new() -> Self {
        Self(AtomicIsize::new(0))
    }

    /// The pool is gone and `count` buffers are still out (some may have been returned already).
    /// True if there are none left.
    pub(crate) fn announce(&self, count: isize) -> bool {
        self.0.fetch_add(count, Ordering::AcqRel) + count == 0
    }

    /// A buffer came back after the stack was closed. True if it was the last one.
    pub(crate) fn returned(&self) -> bool {
        self.0.fetch_sub(1, Ordering::AcqRel) == 1
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use crate::sync::{AtomicU32, Ordering};
    use loom::sync::Arc;
    use loom::thread;

    struct Node {
        next: AtomicPtr<Node>,
        value: loom::cell::UnsafeCell<u32>,
    }

    impl Link for Node {
        fn next(&self) -> &AtomicPtr<Node> {
            &self.next
        }
    }

    // SAFETY: `value` is written by the pusher before the push and read by the taker after the take.
    unsafe impl Send for Node {}
    // SAFETY: as above.
    unsafe impl Sync for Node {}

    fn node() -> NonNull<Node> {
        NonNull::from(Box::leak(Box::new(Node {
            next: AtomicPtr::new(ptr::null_mut()),
            value: loom::cell::UnsafeCell::new(0),
        })))
    }

    struct Shared {
        stack: RemoteStack<Node>,
        orphans: Orphans,
        freed: AtomicU32,
    }

    /// Walks and frees what was taken; returns how many and adds up the values.
    fn reap(mut head: *mut Node, sum: &mut u32) -> isize {
        let mut count = 0;
        while let Some(node) = NonNull::new(head) {
            // SAFETY: the node was leaked by `node` and is now ours alone.
            let owned = unsafe { Box::from_raw(node.as_ptr()) };
            // SAFETY: the taker is the only user of the value.
            *sum += owned.value.with(|value| unsafe { *value });
            head = owned.next.load(Ordering::Relaxed);
            count += 1;
        }
        count
    }

    #[test]
    fn loom_every_pushed_node_is_taken_once_with_its_content() {
        loom::model(|| {
            let stack = Arc::new(RemoteStack::<Node>::new());
            let threads: Vec<_> = [1u32, 2]
                .into_iter()
                .map(|value| {
                    let stack = Arc::clone(&stack);
                    thread::spawn(move || {
                        let node = node();
                        // SAFETY: the node is new, so nobody else has it.
                        unsafe { node.as_ref() }.value.with_mut(|cell| unsafe { *cell = value });
                        // SAFETY: the node is leaked: valid until taken.
                        assert_eq!(unsafe { stack.push(node) }, Ok(()));
                    })
                })
                .collect();
            let mut sum = 0;
            let early = reap(stack.take(), &mut sum);
            for thread in threads {
                thread.join().unwrap();
            }
            assert_eq!(early + reap(stack.take(), &mut sum), 2);
            assert_eq!(sum, 3);
        });
    }

    #[test]
    fn loom_exactly_one_party_frees_a_closed_pool() {
        loom::model(|| {
            let shared = Arc::new(Shared {
                stack: RemoteStack::new(),
                orphans: Orphans::new(),
                freed: AtomicU32::new(0),
            });
            let threads: Vec<_> = (0..2)
                .map(|_| {
                    let shared = Arc::clone(&shared);
                    thread::spawn(move || {
                        let node = node();
                        // SAFETY: the node is leaked: valid until taken.
                        if unsafe { shared.stack.push(node) }.is_err() {
                            // SAFETY: a refused node is still ours.
                            drop(unsafe { Box::from_raw(node.as_ptr()) });
                            if shared.orphans.returned() {
                                shared.freed.fetch_add(1, Ordering::Relaxed);
                            }
                        }
                    })
                })
                .collect();
            let back = reap(shared.stack.close(), &mut 0);
            if shared.orphans.announce(2 - back) {
                shared.freed.fetch_add(1, Ordering::Relaxed);
            }
            for thread in threads {
                thread.join().unwrap();
            }
            assert_eq!(shared.freed.load(Ordering::Relaxed), 1);
        });
    }
}
