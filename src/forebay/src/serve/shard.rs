//! The shard of a running node: the core's, over the reactor's buffers.

use forebay_io::{BufPool, Instant};
use forebay_node::Shard;
use forebay_nvmf::target::ConnId;
use forebay_reactor::{Pool, PoolBuf, PoolUsage};
use std::cell::RefCell;
use std::ops::{Deref, DerefMut};
use std::rc::Rc;

/// The reactor's pool, lent to target and engines at once: they never hold it across a call.
#[derive(Clone)]
pub(crate) struct SharedPool(Rc<RefCell<Pool>>);

impl SharedPool {
    pub(crate) fn new(pool: Pool) -> Self {
        Self(Rc::new(RefCell::new(pool)))
    }

    pub(crate) fn usage(&self) -> PoolUsage {
        self.0.borrow_mut().usage()
    }
}

impl BufPool for SharedPool {
    type Buf = PoolBuf;

    fn alloc(&mut self, len: usize) -> Option<PoolBuf> {
        self.0.borrow_mut().alloc(len)
    }
}

/// The shard, with the one call that needs what it does not show.
pub(crate) struct NodeShard(pub(crate) Shard<PoolBuf, SharedPool>);

impl NodeShard {
    pub(crate) fn conn_closed(&mut self, conn: ConnId, now: Instant) {
        self.0.target.conn_closed(conn, now);
    }
}

impl Deref for NodeShard {
    type Target = Shard<PoolBuf, SharedPool>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl DerefMut for NodeShard {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.0
    }
}
