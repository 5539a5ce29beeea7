//! The loop: messages, the service's poll, sleep; threads and their pinning.

use crate::clock::{LoopTime, MonotonicClock, to_instant};
use crate::mailbox::{MailSender, Mailbox};
use crate::stats::ReactorStats;
use crate::wait::WaitSet;
use core::fmt;
use core::time::Duration;
use forebay_io::Instant;
use std::os::fd::AsRawFd;
use std::os::unix::thread::JoinHandleExt;
use std::sync::{Arc, mpsc};
use std::thread::{Builder, JoinHandle};
use std::{io, thread};

/// What a loop of a service came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Something was done; poll again at once.
    Busy,
    /// Nothing was there to do.
    Idle,
    /// The service has ended; the reactor does, too.
    Stop,
}

/// What a reactor runs. Everything is called on the reactor's thread, and nothing may block.
pub trait Service {
    /// What others send it.
    type Message: Send + 'static;

    /// One message; as many as wait are handed over at the start of a loop, up to a bound.
    fn message(&mut self, message: Self::Message, context: &Context);

    /// One loop: receive, poll devices, timers, send.
    fn poll(&mut self, context: &Context) -> Progress;

    /// When it must be polled at the latest although nothing happens; [`Instant::NEVER`] if never, and
    /// any instant that has passed to be polled at once (a device that completes only when polled).
    fn next_deadline(&self) -> Instant;
}

/// What a service sees of its reactor during a loop.
#[derive(Debug)]
pub struct Context {
    /// When this loop began; the only clock of the loop.
    pub now: Instant,
    /// The same, to share with devices.
    pub time: LoopTime,
    /// What wakes the reactor while it sleeps.
    pub wait: WaitSet,
}

/// What is at hand where a service is made, on the reactor's thread.
#[derive(Debug)]
pub struct Setup<M> {
    /// The reactor's loop time.
    pub time: LoopTime,
    /// What wakes the reactor while it sleeps: rings and sets of sockets go in here.
    pub wait: WaitSet,
    /// A sender to the reactor itself.
    pub own: MailSender<M>,
}

/// What a reactor does when there is nothing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PollMode {
    /// Polls on.
    Busy,
    /// Polls on for this long after the last work, then sleeps until something happens.
    Adaptive {
        /// How long to poll without work.
        spin: Duration,
    },
}

impl PollMode {
    /// Adaptive with a bound that covers the turnaround of a busy host and costs little otherwise.
    pub const ADAPTIVE: Self = Self::Adaptive { spin: Duration::from_micros(50) };
}

/// How a reactor runs.
#[derive(Clone, Debug)]
pub struct ReactorConfig {
    /// The thread's name, at most 15 bytes of it shown by the system.
    pub name: String,
    /// The core to pin the thread to, by the system's number; `None`: not pinned.
    pub core: Option<usize>,
    /// What to do when there is nothing to do.
    pub poll: PollMode,
}

/// Why a reactor did not start.
#[derive(Debug)]
pub enum SpawnError<E> {
    /// No thread.
    Thread(io::Error),
    /// No descriptors to wait with.
    Wait(io::Error),
    /// The core does not exist or is not allowed to this process; the allowed ones.
    Core {
        /// The core that was asked for.
        core: usize,
        /// Those that could be had.
        allowed: Vec<usize>,
    },
    /// The service could not be made.
    Service(E),
    /// The thread panicked before the service was made.
    Panicked,
}

impl<E: fmt::Display> fmt::Display for SpawnError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Thread(error) => write!(f, "cannot start a reactor thread: {error}"),
            Self::Wait(error) => write!(f, "cannot make a reactor's epoll set: {error}"),
            Self::Core { core, allowed } => {
                write!(f, "core {core} is not available; this process may use cores {allowed:?}")
            }
            Self::Service(error) => error.fmt(f),
            Self::Panicked => f.write_str("the reactor's thread panicked while it started"),
        }
    }
}

impl<E: fmt::Debug + fmt::Display> core::error::Error for SpawnError<E> {}

/// A running reactor.
#[derive(Debug)]
pub struct ReactorHandle {
    thread: JoinHandle<()>,
    stats: Arc<ReactorStats>,
}

impl ReactorHandle {
    /// What it does with its time.
    #[must_use]
    pub fn stats(&self) -> &Arc<ReactorStats> {
        &self.stats
    }

    /// Whether its thread has ended.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits for its end, which the service decides on (by a message).
    ///
    /// # Errors
    /// The panic of its thread.
    pub fn join(self) -> thread::Result<()> {
        self.thread.join()
    }

    /// The processor time that its thread has used; `None` once the thread has ended.
    #[must_use]
    pub fn cpu_time(&self) -> Option<Duration> {
        if self.thread.is_finished() {
            return None;
        }
        let mut clock = 0;
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the handle keeps the thread's id valid (it is joined only by value); both places are
        // valid for the answers.
        let failed = unsafe {
            libc::pthread_getcpuclockid(self.thread.as_pthread_t(), &raw mut clock) != 0
                || libc::clock_gettime(clock, &raw mut time) != 0
        };
        (!failed).then(|| to_instant(time).since(Instant(0)))
    }
}

/// Starts a reactor: a thread, pinned if asked for, on which `build` makes the service.
///
/// # Errors
/// [`SpawnError`]; the thread has then ended.
pub fn spawn<S, E, F>(
    config: ReactorConfig,
    mailbox: Mailbox<S::Message>,
    build: F,
) -> Result<ReactorHandle, SpawnError<E>>
where
    S: Service,
    E: Send + 'static,
    F: FnOnce(&Setup<S::Message>) -> Result<S, E> + Send + 'static,
{
    let (started, starting) = mpsc::channel();
    let stats = Arc::new(ReactorStats::default());
    let shared = Arc::clone(&stats);
    let name = config.name.replace('\0', "");
    let body = move || match Reactor::new(&config, mailbox, shared, build) {
        Ok(mut reactor) => {
            // The starter may be gone; the reactor runs all the same.
            let _ = started.send(Ok(()));
            reactor.run();
        }
        Err(error) => {
            let _ = started.send(Err(error));
        }
    };
    let thread = Builder::new().name(name).spawn(body).map_err(SpawnError::Thread)?;
    match starting.recv() {
        Ok(Ok(())) => Ok(ReactorHandle { thread, stats }),
        Ok(Err(error)) => Err(error),
        Err(mpsc::RecvError) => Err(SpawnError::Panicked),
    }
}

/// A deadline that is closer than this is polled for: going to sleep and waking costs about as much.
const WORTH_SLEEPING: Duration = Duration::from_micros(5);

/// The most messages that are handed over in one loop, so that I/O is not starved by them.
const MESSAGES_PER_LOOP: usize = 256;

struct Reactor<S: Service> {
    service: S,
    mailbox: Mailbox<S::Message>,
    context: Context,
    poll: PollMode,
    stats: Arc<ReactorStats>,
    clock: MonotonicClock,
    /// The end of the last loop that did something.
    last_work: Instant,
    events: Vec<crate::wait::Event>,
}

impl<S: Service> Reactor<S> {
    fn new<E>(
        config: &ReactorConfig,
        mailbox: Mailbox<S::Message>,
        stats: Arc<ReactorStats>,
        build: impl FnOnce(&Setup<S::Message>) -> Result<S, E>,
    ) -> Result<Self, SpawnError<E>> {
        if let Some(core) = config.core {
            pin(core)?;
        }
        precise_timers();
        let wait = WaitSet::new().map_err(SpawnError::Wait)?;
        // Edge-triggered: the counter of the eventfd is never read.
        wait.add_edge(mailbox.gate().signal().as_raw_fd()).map_err(SpawnError::Wait)?;
        let clock = MonotonicClock;
        let now = clock.now();
        let time = LoopTime::new(now);
        let setup = Setup { time: time.clone(), wait: wait.clone(), own: mailbox.sender() };
        let service = build(&setup).map_err(SpawnError::Service)?;
        Ok(Self {
            service,
            mailbox,
            context: Context { now, time, wait },
            poll: config.poll,
            stats,
            clock,
            last_work: now,
            events: Vec::with_capacity(crate::wait::MAX_EVENTS),
        })
    }

    fn run(&mut self) {
        self.begin_loop();
        loop {
            let began = self.context.now;
            let messages = self.take_messages();
            let progress = self.service.poll(&self.context);
            self.begin_loop();
            let span = nanos(self.context.now.since(began));
            self.stats.loops.add(1);
            match progress {
                Progress::Stop => return,
                Progress::Idle if messages == 0 => {
                    self.stats.spinning.add(span);
                    self.idle();
                }
                Progress::Busy | Progress::Idle => {
                    self.stats.busy.add(span);
                    self.last_work = self.context.now;
                }
            }
        }
    }

    /// Reads the clock, once per loop.
    fn begin_loop(&mut self) {
        self.context.now = self.clock.now();
        self.context.time.set(self.context.now);
    }

    fn take_messages(&mut self) -> usize {
        for count in 0..MESSAGES_PER_LOOP {
            let Some(message) = self.mailbox.receive() else {
                self.stats.messages.add(u64::try_from(count).unwrap_or(0));
                return count;
            };
            self.service.message(message, &self.context);
        }
        self.stats.messages.add(u64::try_from(MESSAGES_PER_LOOP).unwrap_or(0));
        MESSAGES_PER_LOOP
    }

    /// Sleeps if the mode says so, it is time to and nothing came in the meantime.
    fn idle(&mut self) {
        let PollMode::Adaptive { spin } = self.poll else {
            core::hint::spin_loop();
            return;
        };
        if self.context.now.since(self.last_work) < spin {
            core::hint::spin_loop();
            return;
        }
        let deadline = self.service.next_deadline();
        let limit = match deadline {
            Instant::NEVER => None,
            at if at <= self.context.now + WORTH_SLEEPING => return,
            at => Some(at.since(self.context.now)),
        };
        let gate = self.mailbox.gate();
        gate.prepare();
        if self.mailbox.is_empty() {
            // An error here would be a bug of ours (a bad descriptor); polling on is always right.
            let _ = self.context.wait.wait(limit, &mut self.events);
        }
        self.mailbox.gate().awake();
        let before = self.context.now;
        self.begin_loop();
        self.stats.asleep.add(nanos(self.context.now.since(before)));
        self.stats.sleeps.add(1);
    }
}

fn nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}

/// Pins this thread to a core.
fn pin<E>(core: usize) -> Result<(), SpawnError<E>> {
    let allowed = core_affinity::get_core_ids().unwrap_or_default();
    let found = allowed.iter().find(|id| id.id == core);
    if found.is_some_and(|id| core_affinity::set_for_current(*id)) {
        return Ok(());
    }
    Err(SpawnError::Core { core, allowed: allowed.iter().map(|id| id.id).collect() })
}

/// Lets this thread's waits end when they should: the system's default adds up to 50 microseconds.
fn precise_timers() {
    // SAFETY: no memory is passed; the calling thread's own slack is set, in nanoseconds.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1_000usize, 0usize, 0usize, 0usize) };
}

#[cfg(test)]
mod tests;
