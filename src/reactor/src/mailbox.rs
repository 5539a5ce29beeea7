//! A bounded lock-free queue into a reactor, which wakes it only if it sleeps.

use crate::gate::{Gate, Signal};
use crate::wait::EventFd;
use core::fmt;
use crossbeam_queue::ArrayQueue;
use std::io;
use std::sync::Arc;

impl Signal for EventFd {
    fn signal(&self) {
        EventFd::signal(self);
    }
}

pub(crate) struct Shared<M> {
    queue: ArrayQueue<M>,
    gate: Gate<EventFd>,
}

/// The end that a reactor receives from; there is one.
pub struct Mailbox<M> {
    shared: Arc<Shared<M>>,
}

/// An end that anyone sends to a reactor with.
pub struct MailSender<M> {
    shared: Arc<Shared<M>>,
}

/// A mailbox of `capacity` messages (at least one) and its first sender.
///
/// # Errors
/// Where the kernel gives no eventfd (file descriptors are used up).
pub fn mailbox<M>(capacity: usize) -> io::Result<(MailSender<M>, Mailbox<M>)> {
    let shared = Arc::new(Shared {
        queue: ArrayQueue::new(capacity.max(1)),
        gate: Gate::new(EventFd::new()?),
    });
    Ok((MailSender { shared: Arc::clone(&shared) }, Mailbox { shared }))
}

impl<M> MailSender<M> {
    /// Sends a message, waking the receiver if it sleeps. Takes no lock; one fence and one load while
    /// the receiver is awake.
    ///
    /// # Errors
    /// The message, where the mailbox is full: the sender keeps it in a bounded queue of its own and
    /// tries again, or refuses.
    pub fn send(&self, message: M) -> Result<(), M> {
        let sent = self.shared.queue.push(message);
        self.shared.gate.sent();
        sent
    }

    /// Makes the receiver run at least one loop from now on, without a message.
    pub fn wake(&self) {
        self.shared.gate.signal().signal();
    }
}

impl<M> Clone for MailSender<M> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<M> Mailbox<M> {
    /// The next message.
    #[must_use]
    pub fn receive(&self) -> Option<M> {
        self.shared.queue.pop()
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.shared.queue.is_empty()
    }

    /// One more sender to this mailbox.
    #[must_use]
    pub fn sender(&self) -> MailSender<M> {
        MailSender { shared: Arc::clone(&self.shared) }
    }

    pub(crate) fn gate(&self) -> &Gate<EventFd> {
        &self.shared.gate
    }
}

impl<M> fmt::Debug for Mailbox<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mailbox").field("waiting", &self.shared.queue.len()).finish()
    }
}

impl<M> fmt::Debug for MailSender<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MailSender").field("waiting", &self.shared.queue.len()).finish()
    }
}
