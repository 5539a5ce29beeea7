#![cfg(not(loom))]

use super::*;
use crate::mailbox::mailbox;
use crate::pool::{Pool, PoolBuf, PoolConfig, RegionTable};
use forebay_io::{Buf, BufPool};
use std::sync::atomic::{AtomicU64, Ordering};

enum Message {
    Ball { round: u64, data: PoolBuf },
    Peer(MailSender<Message>),
    Stop,
}

/// Plays a buffer to its peer and back; keeps what does not fit and sends it in the next loop.
struct Player {
    pool: Pool,
    peer: Option<MailSender<Message>>,
    held: Option<Message>,
    bounces: Arc<AtomicU64>,
    stop: bool,
    deadline: Instant,
    woken: Arc<AtomicU64>,
}

impl Service for Player {
    type Message = Message;

    fn message(&mut self, message: Message, _: &Context) {
        match message {
            Message::Stop => self.stop = true,
            Message::Peer(peer) => {
                let mut data = self.pool.alloc(4096).unwrap();
                data.as_mut_slice().unwrap().fill(0);
                self.held = Some(Message::Ball { round: 0, data });
                self.peer = Some(peer);
            }
            Message::Ball { round, data } => {
                assert_eq!(data.as_slice()[..8], round.to_le_bytes());
                drop(data);
                self.bounces.fetch_add(1, Ordering::Relaxed);
                let mut data = self.pool.alloc(4096).unwrap();
                data.as_mut_slice().unwrap()[..8].copy_from_slice(&(round + 1).to_le_bytes());
                self.held = Some(Message::Ball { round: round + 1, data });
            }
        }
    }

    fn poll(&mut self, context: &Context) -> Progress {
        if self.stop {
            return Progress::Stop;
        }
        if context.now >= self.deadline {
            self.deadline = context.now + Duration::from_millis(20);
            self.woken.fetch_add(1, Ordering::Relaxed);
        }
        let (Some(peer), Some(message)) = (&self.peer, self.held.take()) else {
            return Progress::Idle;
        };
        self.held = peer.send(message).err();
        Progress::Busy
    }

    fn next_deadline(&self) -> Instant {
        self.deadline
    }
}

struct Running {
    handle: ReactorHandle,
    sender: MailSender<Message>,
    bounces: Arc<AtomicU64>,
    woken: Arc<AtomicU64>,
}

fn start(
    name: &str,
    core: Option<usize>,
    poll: PollMode,
    peer: Option<MailSender<Message>>,
) -> Running {
    let (sender, inbox) = mailbox(16).unwrap();
    let (bounces, woken) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let (counted, timed) = (Arc::clone(&bounces), Arc::clone(&woken));
    let config = ReactorConfig { name: name.into(), core, poll };
    let handle = spawn(config, inbox, move |setup| {
        let table = Arc::new(RegionTable::new());
        Ok::<_, io::Error>(Player {
            pool: Pool::new(PoolConfig::bounded(4 << 20), table),
            peer,
            held: None,
            bounces: counted,
            stop: false,
            deadline: setup.time.now(),
            woken: timed,
        })
    })
    .unwrap();
    Running { handle, sender, bounces, woken }
}

impl Running {
    fn stop(self) {
        assert!(self.sender.send(Message::Stop).is_ok());
        self.handle.join().unwrap();
    }
}

/// Two reactors, one buffer at a time between them, in every combination of modes: with one message in
/// flight every hop meets a receiver that is about to sleep or asleep.
#[test]
fn two_reactors_exchange_buffers_and_lose_no_wake_up() {
    let busy = PollMode::Busy;
    let eager = PollMode::Adaptive { spin: Duration::ZERO };
    for (first, second) in [(eager, eager), (PollMode::ADAPTIVE, eager), (busy, PollMode::ADAPTIVE)]
    {
        let left = start("left", Some(0), first, None);
        let right = start("right", Some(1), second, Some(left.sender.clone()));
        assert!(left.sender.send(Message::Peer(right.sender.clone())).is_ok());
        let begun = std::time::Instant::now();
        while right.bounces.load(Ordering::Relaxed) < 5_000 {
            assert!(begun.elapsed() < Duration::from_secs(60), "stuck: {:?}", right.handle.stats());
            thread::sleep(Duration::from_millis(1));
        }
        let stats = right.handle.stats().snapshot();
        assert!(stats.messages >= 5_000 && stats.busy > Duration::ZERO, "{stats:?}");
        left.stop();
        right.stop();
    }
}

/// An idle reactor with a timer every 20 ms uses less than 1 % of a core, and still wakes for each.
#[test]
fn an_idle_adaptive_reactor_sleeps() {
    let idle = start("idle", None, PollMode::ADAPTIVE, None);
    thread::sleep(Duration::from_millis(100));
    let (cpu, begun) = (idle.handle.cpu_time().unwrap(), std::time::Instant::now());
    let woken = idle.woken.load(Ordering::Relaxed);
    thread::sleep(Duration::from_secs(2));
    let used = idle.handle.cpu_time().unwrap() - cpu;
    let share = used.as_secs_f64() / begun.elapsed().as_secs_f64();
    println!("idle reactor: {:.3} % of a core", share * 100.0);
    assert!(share < 0.01, "{used:?} used");
    assert!(idle.woken.load(Ordering::Relaxed) - woken >= 50, "timers fire while it sleeps");
    assert!(idle.handle.stats().snapshot().busy_share(&Default::default()) < 0.5);
    idle.stop();
}

#[test]
fn a_reactor_that_cannot_start_says_why() {
    let (_, inbox) = mailbox::<Message>(1).unwrap();
    let config = ReactorConfig { name: "none".into(), core: Some(9_999), poll: PollMode::ADAPTIVE };
    let error = spawn(config.clone(), inbox, |_| Err::<Player, _>("not reached")).unwrap_err();
    assert!(matches!(error, SpawnError::Core { core: 9_999, .. }), "{error}");
    assert!(error.to_string().contains("may use cores [0"), "{error}");
    let (_, inbox) = mailbox::<Message>(1).unwrap();
    let config = ReactorConfig { core: None, ..config };
    let error = spawn(config, inbox, |_| Err::<Player, _>("no pool")).unwrap_err();
    assert_eq!(error.to_string(), "no pool");
}

#[test]
fn a_full_mailbox_gives_the_message_back() {
    let (sender, inbox) = mailbox(2).unwrap();
    assert_eq!((sender.send(1), sender.send(2), sender.send(3)), (Ok(()), Ok(()), Err(3)));
    assert_eq!((inbox.receive(), sender.send(3)), (Some(1), Ok(())));
    assert_eq!((inbox.receive(), inbox.receive(), inbox.receive()), (Some(2), Some(3), None));
}
