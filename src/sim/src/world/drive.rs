//! One poll of the world: time goes on, devices and messages arrive, actions are carried out.

use super::World;
use super::ask::Asked;
use crate::buffer::SimBuf;
use crate::config::id_of;
use crate::oracle::{Seen, recognise};
use crate::script::RICHER_FROM;
use forebay_cache::engine::{Action, Event, Source};
use forebay_cache::format::batch::BatchView;
use forebay_cache::format::record::Kind;
use forebay_io::{Buf, Instant, Lsn, OpKind};
use forebay_node::shard::ShardEvent;

impl World {
    /// One poll: time goes on to the next thing that happens.
    pub fn step(&mut self) {
        let mut next = self.now + 1_000_000;
        for disk in core::iter::once(&self.cache).chain(&self.backing).chain(&self.journal) {
            next = next.min(disk.next_ready());
        }
        next = next.min(self.mail.iter().map(|mail| mail.0).min().unwrap_or(u64::MAX));
        next = next.min(self.shard.next_deadline().0);
        // A poll costs at least two microseconds, and several things may happen in one.
        self.now = next.max(self.now + 2_000) + self.rng.below(3) * 3_000;
        let now = Instant(self.now);
        // Requests come before what the devices have done, or after it.
        let late = self.config.seed >= RICHER_FROM && self.rng.one_in(2);
        if !late {
            self.take_mail();
        }
        while let Some(done) = self.cache.take_ready(self.now) {
            self.note_done("cache", done.token, done.result.err().map(|e| e.to_string()));
            self.shard.handle_device(0, Source::Cache, done, now);
            self.pump();
        }
        for n in 0..self.backing.len() {
            while let Some(done) = self.take_backing(n) {
                self.note_done("backing", done.token, done.result.err().map(|e| e.to_string()));
                self.shard.handle_device(0, Source::Backing(id_of(n)), done, now);
                self.pump();
            }
        }
        while let Some(done) = self.journal.as_mut().and_then(|disk| disk.take_ready(self.now)) {
            self.note_done("journal", done.token, done.result.err().map(|e| e.to_string()));
            self.shard.handle_device(0, Source::Journal(id_of(0)), done, now);
            self.pump();
        }
        if late {
            self.take_mail();
        }
        if self.shard.next_deadline() <= now {
            self.shard.handle_timeout(now);
            self.pump();
        }
        self.shard.end_of_poll(now);
        self.pump();
        self.check_bounds();
        self.check_alive();
    }

    /// Takes the messages that are due, in any order.
    fn take_mail(&mut self) {
        while let Some(at) = self.mail.iter().position(|mail| mail.0 <= self.now) {
            let (_, message, tag) = self.mail.swap_remove(at);
            self.line(|| format!("mail   {tag} arrives"));
            self.shard.handle_message(message, Instant(self.now));
            self.pump();
        }
    }

    pub(super) fn note_done(&mut self, device: &str, token: u64, error: Option<String>) {
        self.sum(token ^ self.now.rotate_left(32));
        self.line(|| format!("device {device} done {token:x} {}", error.unwrap_or_default()));
    }

    /// The next completion of a backing device, whose order of versions is judged.
    pub(super) fn take_backing(&mut self, n: usize) -> Option<forebay_io::Completion<SimBuf>> {
        if self.backing[n].next_ready() > self.now {
            return None;
        }
        let before = self.backing[n].bytes.clone();
        let done = self.backing[n].take_ready(self.now);
        let changed = self.backing[n].bytes.changed(&before);
        for page in changed {
            self.judge_order(n, page, &before);
        }
        done
    }

    /// Carries actions to the devices, messages and events to the hosts.
    pub(super) fn pump(&mut self) {
        let now = Instant(self.now);
        loop {
            self.shard.settle(now);
            let mut any = false;
            while let Some((to, message)) = self.shard.poll_message() {
                any = true;
                self.answered(to, message);
            }
            while let Some(event) = self.shard.poll_event() {
                any = true;
                self.happened(event);
            }
            while let Some(action) = self.shard.poll_action(0) {
                any = true;
                self.carry_out(action);
            }
            if !any {
                break;
            }
        }
        if self.moments.is_some() {
            self.keep_touches();
        }
    }

    pub(super) fn carry_out(&mut self, action: Action<SimBuf>) {
        let (name, op) = match &action {
            Action::Cache(op) => ("cache".to_owned(), op),
            Action::Backing(id, op) => (format!("backing{}", id.0 - 3), op),
            Action::Journal(id, op) => (format!("journal{}", id.0 - 3), op),
        };
        let (kind, token, offset, len, fua) = (op.kind, op.token, op.offset, op.len, op.fua);
        self.sum(token ^ offset.rotate_left(20) ^ len.rotate_left(44) ^ kind as u64);
        self.line(|| {
            let fua = if fua { " FUA" } else { "" };
            format!("device {name} {kind:?} {offset}+{len}{fua} as {token:x}")
        });
        self.learn(&action);
        match action {
            Action::Cache(op) => self.cache.submit(op, self.now),
            Action::Backing(id, op) => {
                let n = usize::try_from(id.0 - 3).unwrap_or(0);
                self.backing[n].submit(op, self.now);
            }
            Action::Journal(id, op) => match &mut self.journal {
                Some(disk) => disk.submit(op, self.now),
                None => self.fail(format!("volume {id} has no ordered journal")),
            },
        }
    }

    /// Notes the LSN of what enters the log: the order in which the backing devices must get it.
    fn learn(&mut self, action: &Action<SimBuf>) {
        let Action::Cache(op) = action else { return };
        let Some(data) = op.buf.as_ref().filter(|_| op.kind == OpKind::Write).map(Buf::as_slice)
        else {
            return;
        };
        let mut at = 0;
        while let Some(view) = data.get(at..at + 4096).and_then(|b| BatchView::parse(b).ok()) {
            for (record, _) in view.records().filter(|(record, _)| record.kind == Kind::Write) {
                let from = at + usize::from(record.slot.saturating_sub(view.slot)) * 4096;
                let sectors =
                    data.get(from..from + record.data_blocks() * 4096).unwrap_or_default();
                for (place, sector) in (record.block * 8..).zip(sectors.chunks(512)) {
                    if let Seen::Write(write) = recognise(place, sector) {
                        self.versions.entry((place, write)).or_insert(record.lsn.0);
                    }
                }
            }
            at += (1 + usize::from(view.blocks)) * 4096;
        }
    }

    pub(super) fn happened(&mut self, event: ShardEvent) {
        self.line(|| format!("engine {event:?}"));
        match event {
            ShardEvent::CommitFault { volume, run } => {
                self.fail(format!("commits of {volume} out of order: {run:?}"));
            }
            ShardEvent::Engine { event, .. } => {
                match &event {
                    Event::Attached { volume } => {
                        let committed = self.engine().committed_lsn(*volume).unwrap_or(Lsn(0));
                        self.shard.serve(*volume, 0, committed);
                    }
                    Event::CacheFailed { error } => {
                        self.cache_failed = true;
                        if !self.tolerance.lost {
                            self.fail(format!("the cache device counts as failed: {error}"));
                        }
                        self.engine().cache_failure_noted();
                    }
                    Event::DirtyLost { volume, block, .. } if !self.tolerance.lost => {
                        self.fail(format!("block {block} of {volume} counts as lost"));
                    }
                    Event::DamageLeft { .. } if !self.tolerance.lost => {
                        self.fail(format!("{event:?}, and nothing was damaged"));
                    }
                    Event::Drained { volume } => {
                        let n = Self::volume_of(*volume);
                        let changes = |a: &Asked| a.ask.volume == n && a.ask.changes();
                        self.drained[n] = !self.asked.values().any(changes);
                    }
                    _ => {}
                }
                self.events.push(event);
            }
        }
    }
}
