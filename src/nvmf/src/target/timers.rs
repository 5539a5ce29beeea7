//! Deadlines: keep-alive, closing connections, parked Connects.

use super::{ConnId, Event, Target};
use forebay_io::{Buf, Instant};

impl<B: Buf> Target<B> {
    /// When to call [`Target::handle_timeout`]; [`Instant::NEVER`] for not at all. May be early.
    #[must_use]
    pub const fn next_deadline(&self) -> Instant {
        self.deadline
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        if now < self.deadline {
            return;
        }
        self.deadline = Instant::NEVER;
        self.check_keep_alive(now);
        self.check_closing(now);
        let parked: Vec<(usize, Instant)> = self
            .conns
            .iter()
            .filter_map(|slot| slot.conn.as_deref())
            .filter_map(|conn| conn.parked.map(|(_, until)| (conn.ctrl, until)))
            .collect();
        for (ctrl, until) in parked {
            self.wake_at(until);
            self.mark_dirty(ctrl);
        }
        self.settle(now);
    }

    fn check_keep_alive(&mut self, now: Instant) {
        for at in 0..self.controllers.len() {
            let Some(ctrl) = self.controllers[at].as_deref() else { continue };
            let Some(silence) = ctrl.silence_max().filter(|_| !ctrl.ending) else { continue };
            // Traffic counts (TBKAS): the latest of what any of its queues heard.
            let queues = ctrl.admin.iter().chain(ctrl.io.iter().map(|(_, id)| id));
            let heard = queues
                .filter_map(|id| self.conn(*id).filter(|conn| !conn.dead))
                .map(|conn| conn.heard)
                .fold(ctrl.heard, Instant::max);
            if now < heard + silence {
                self.wake_at(heard + silence);
                continue;
            }
            let event =
                Event::KeepAliveExpired { cntlid: ctrl.cntlid, hostnqn: ctrl.hostnqn.clone() };
            self.stats.keep_alive_expired += 1;
            self.events.push_back(event);
            self.end_controller(at, now);
        }
    }

    /// Connections that could not send their last bytes in time close all the same.
    fn check_closing(&mut self, now: Instant) {
        let closing: Vec<(ConnId, Instant)> = self
            .conns
            .iter()
            .filter_map(|slot| slot.conn.as_deref())
            .filter(|conn| !conn.dead && !conn.close_told)
            .filter_map(|conn| conn.closing.map(|until| (conn.id, until)))
            .collect();
        for (id, until) in closing {
            if now < until {
                self.wake_at(until);
            } else if let Some(conn) = self.conn_mut(id) {
                conn.close_told = true;
                self.events.push_back(Event::Close(id));
            }
        }
    }
}
