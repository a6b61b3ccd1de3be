//! Whose turn it is: the sessions that segments and timers concern.

use sluice_filters::units::Micros;

use super::Stack;
use crate::net::Lower;
use crate::terminate::session::Relayed;

/// Sessions served a turn.
const SERVED: usize = 1024;

impl Stack {
    /// Serves the sessions that the turn's segments and timers concern, 1,024 of them at most: relays, emits, ends.
    pub fn serve<N: Lower>(&mut self, now: Micros, net: &mut N) {
        let mut round = std::mem::take(&mut self.dirty);
        let served = round.len().min(SERVED);
        for index in round.drain(..served) {
            let Some(mut session) = self.sessions.take(index) else { continue };
            session.dirty = false;
            let over = match self.advance(index, &mut session, now, net) {
                Relayed::Goes => self.wake_later(index, &mut session, now, net),
                Relayed::Over(cause) => Some(cause),
            };
            match over {
                None => self.sessions.put(index, session),
                Some(cause) => self.end(index, session, cause, now, net),
            }
        }
        // Sessions with more to emit were put on the list anew: they come next turn, after those that had no turn yet.
        round.append(&mut self.dirty);
        self.dirty = round;
    }

    /// Marks the sessions whose timers are due, `budget` of them at most, for the next [`Stack::serve`]; spliced ones, as many, are
    /// served at once. Repeats a few SYN-ACKs that are due.
    pub fn run_timers<N: Lower>(&mut self, now: Micros, budget: usize, net: &mut N) {
        let mut due = std::mem::take(&mut self.due);
        self.wheel.advance(now, budget, &mut due);
        for id in due.drain(..) {
            let index = id >> 1;
            if id & 1 == 1 {
                self.linger_due(index, now, net);
            } else if let Some(session) = self.sessions.get_mut(index) {
                session.wakes = None;
                session.mark(index, &mut self.dirty);
            }
        }
        self.splice_wheel.advance(now, budget, &mut due);
        for index in due.drain(..) {
            self.splice_due(index, now, net);
        }
        self.due = due;
        self.repeat_syn_acks(now, net);
    }
}
