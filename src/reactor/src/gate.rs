//! The sleep and wake protocol between one receiver and many senders.
//!
//! A sender pays one fence and one load per message; it wakes the receiver, with a system call, only
//! if that one said that it sleeps. The receiver says so first and looks at its queues once more then.
//! Either the sender's fence comes first, and the second look finds the message, or the receiver's
//! does, and the sender finds it asleep. Every change of the flag is a read-modify-write, so that all
//! changes are ordered among each other. loom checks the interleavings.

use crate::sync::{AtomicBool, Ordering, fence};

/// Something that ends a receiver's wait.
pub trait Signal {
    /// Ends the current wait, or the next one if none is under way.
    fn signal(&self);
}

/// Whether the receiver sleeps, and how to wake it.
#[derive(Debug)]
pub struct Gate<S> {
    asleep: AtomicBool,
    signal: S,
}

impl<S: Signal> Gate<S> {
    /// A gate whose receiver is awake.
    pub fn new(signal: S) -> Self {
        Self { asleep: AtomicBool::new(false), signal }
    }

    /// Receiver: from now on senders wake it. It must look at everything that is sent to it once more
    /// before it waits, and call [`Gate::awake`] after the wait or instead of it.
    pub fn prepare(&self) {
        self.asleep.swap(true, Ordering::AcqRel);
        fence(Ordering::SeqCst);
    }

    /// Receiver: awake again.
    pub fn awake(&self) {
        self.asleep.swap(false, Ordering::AcqRel);
    }

    /// Sender: call after the message is in the queue.
    pub fn sent(&self) {
        fence(Ordering::SeqCst);
        // The swap lets one of several senders pay for the wake-up.
        if self.asleep.load(Ordering::Relaxed) && self.asleep.swap(false, Ordering::AcqRel) {
            self.signal.signal();
        }
    }

    /// How the receiver is woken.
    pub fn signal(&self) -> &S {
        &self.signal
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use crate::sync::AtomicU32;
    use loom::sync::{Arc, Notify};
    use loom::thread;

    struct Wake(Notify);

    impl Signal for Wake {
        fn signal(&self) {
            self.0.notify();
        }
    }

    /// Receives until `total` messages are there, sleeping in between; loom fails the model with a
    /// deadlock where a wake-up is lost.
    fn receive(queue: &AtomicU32, gate: &Gate<Wake>, total: u32) {
        loop {
            if queue.load(Ordering::Relaxed) == total {
                return;
            }
            gate.prepare();
            if queue.load(Ordering::Relaxed) == total {
                gate.awake();
                return;
            }
            gate.signal().0.wait();
            gate.awake();
        }
    }

    fn model(senders: u32, preemptions: Option<usize>) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = preemptions;
        builder.check(move || {
            let queue = Arc::new(AtomicU32::new(0));
            let gate = Arc::new(Gate::new(Wake(Notify::new())));
            for _ in 0..senders {
                let (queue, gate) = (Arc::clone(&queue), Arc::clone(&gate));
                thread::spawn(move || {
                    queue.fetch_add(1, Ordering::Relaxed);
                    gate.sent();
                });
            }
            receive(&queue, &gate, senders);
        });
    }

    #[test]
    fn loom_no_wake_up_is_lost_with_one_sender() {
        model(1, None);
    }

    #[test]
    fn loom_no_wake_up_is_lost_with_two_senders() {
        // All interleavings of three threads take minutes; those with up to three preemptions, seconds.
        model(2, Some(3));
    }

    #[test]
    fn loom_no_wake_up_is_lost_over_two_messages_of_one_sender() {
        loom::model(|| {
            let queue = Arc::new(AtomicU32::new(0));
            let gate = Arc::new(Gate::new(Wake(Notify::new())));
            let sender = {
                let (queue, gate) = (Arc::clone(&queue), Arc::clone(&gate));
                thread::spawn(move || {
                    for _ in 0..2 {
                        queue.fetch_add(1, Ordering::Relaxed);
                        gate.sent();
                    }
                })
            };
            receive(&queue, &gate, 2);
            sender.join().unwrap();
        });
    }
}
