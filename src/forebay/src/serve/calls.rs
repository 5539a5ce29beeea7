//! Calls of the control plane into reactors: a closure over, an answer back.

use super::service::{Message, NodeService};
use forebay_control::error::{ControlError, ErrorKind, Result};
use forebay_reactor::{Context, MailSender};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// How long a reactor may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// The reactors' mailboxes, from the control plane's side.
#[derive(Clone)]
pub(crate) struct Reactors {
    senders: Vec<MailSender<Message>>,
}

impl Reactors {
    pub(crate) fn new(senders: Vec<MailSender<Message>>) -> Self {
        Self { senders }
    }

    pub(crate) fn count(&self) -> u32 {
        u32::try_from(self.senders.len()).unwrap_or(u32::MAX)
    }

    /// Runs `work` on a reactor, between two polls, and waits for its answer.
    ///
    /// # Errors
    /// A reactor that has ended or does not answer in time.
    pub(crate) fn call<R, F>(&self, reactor: u32, work: F) -> Result<R>
    where
        R: Send + 'static,
        F: FnOnce(&mut NodeService, &Context) -> R + Send + 'static,
    {
        let sender = usize::try_from(reactor).ok().and_then(|at| self.senders.get(at));
        let Some(sender) = sender else {
            return Err(ControlError::failed(format!("there is no reactor {reactor}")));
        };
        let (answer, answers) = mpsc::sync_channel(1);
        let mut message = Message::Call(Box::new(move |service, context| {
            // Nobody may be waiting any more.
            let _ = answer.send(work(service, context));
        }));
        let until = Instant::now() + PATIENCE;
        while let Err(back) = sender.send(message) {
            if Instant::now() >= until {
                return Err(silent(reactor));
            }
            message = back;
            std::thread::sleep(Duration::from_millis(1));
        }
        answers.recv_timeout(PATIENCE).map_err(|_| silent(reactor))
    }

    /// Runs the same on every reactor, in order.
    ///
    /// # Errors
    /// The first that does not answer.
    pub(crate) fn each<R, F>(&self, work: F) -> Result<Vec<R>>
    where
        R: Send + 'static,
        F: Fn(&mut NodeService, &Context) -> R + Clone + Send + 'static,
    {
        (0..self.count()).map(|reactor| self.call(reactor, work.clone())).collect()
    }
}

fn silent(reactor: u32) -> ControlError {
    ControlError::new(ErrorKind::TimedOut, format!("reactor {reactor} does not answer"))
        .remedy("see whether its core is taken by something else (`top -H`), and the log")
}
