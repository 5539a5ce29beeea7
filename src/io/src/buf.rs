//! Owned byte buffers that can be shared without a copy, and the pool they come from.

use std::sync::Arc;

/// An owned buffer of bytes. A clone shares the same memory and costs a reference count.
///
/// A buffer is filled while it has one owner and read-only from its first clone on, so that data
/// can be on its way to a device, to a host and in the memory tier at once.
pub trait Buf: Clone + Send + 'static {
    /// The length in bytes that was asked of the pool.
    fn len(&self) -> usize {
        self.as_slice().len()
    }

    /// Whether the length is zero.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes.
    fn as_slice(&self) -> &[u8];

    /// The bytes, writable; `None` while the memory is shared.
    fn as_mut_slice(&mut self) -> Option<&mut [u8]>;
}

/// Where buffers come from. Bounded: a pool may be empty, and the caller waits or refuses.
pub trait BufPool {
    /// The kind of buffer.
    type Buf: Buf;

    /// A buffer of exactly `len` bytes whose content is unspecified, aligned for device I/O;
    /// `None` while the pool has no room.
    fn alloc(&mut self, len: usize) -> Option<Self::Buf>;
}

/// A buffer in ordinary memory, for the simulator and for tests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeapBuf(Arc<[u8]>);

impl HeapBuf {
    /// A buffer with these bytes.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Self {
        Self(bytes.into())
    }
}

impl Buf for HeapBuf {
    fn as_slice(&self) -> &[u8] {
        &self.0
    }

    fn as_mut_slice(&mut self) -> Option<&mut [u8]> {
        Arc::get_mut(&mut self.0)
    }
}

/// A pool of [`HeapBuf`]s that fills fresh buffers with a pattern, so that a reader of memory that
/// was never written is noticed.
#[derive(Clone, Copy, Debug, Default)]
pub struct HeapPool;

impl BufPool for HeapPool {
    type Buf = HeapBuf;

    fn alloc(&mut self, len: usize) -> Option<HeapBuf> {
        Some(HeapBuf(std::iter::repeat_n(0xa5, len).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_writable_until_it_is_shared() {
        let mut buf = HeapPool.alloc(8).unwrap();
        assert_eq!(buf.len(), 8);
        buf.as_mut_slice().unwrap()[0] = 1;
        let other = buf.clone();
        assert!(buf.as_mut_slice().is_none());
        drop(other);
        assert_eq!(buf.as_mut_slice().unwrap()[0], 1);
    }
}
