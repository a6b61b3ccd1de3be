//! What the programs at both ends do: how much they say, when, and how they take leave.

use super::Time;
use super::engine::{State, Tcp};

/// How a program takes leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    /// `shutdown` behind its last byte, whatever the other end does.
    AfterSending,
    /// After the other end's FIN.
    AfterEof,
    /// When all the other end has to say was read; the socket is closed for good.
    AfterAll,
    /// Resets when everything it sent was acknowledged.
    AbortAtEnd,
    /// Resets with data in flight.
    AbortInFlight,
    /// Closes with bytes unread, which resets.
    CloseUnread,
}

impl Leave {
    pub fn resets(self) -> bool {
        matches!(self, Leave::AbortAtEnd | Leave::AbortInFlight | Leave::CloseUnread)
    }
}

/// A program.
#[derive(Clone, Debug)]
pub struct Script {
    /// Bytes it has to say, and those it is to hear.
    pub says: i64,
    pub hears: i64,
    /// It says them in so many turns, each after a share of what it is to hear.
    pub turns: i64,
    /// It begins.
    pub first: bool,
    pub thinks: Time,
    pub leave: Leave,
    /// Before it takes leave.
    pub lingers: Time,
    /// Bytes it reads at once, and how long it rests between.
    pub reads: i64,
    pub rests: Time,
}

/// A program that runs.
#[derive(Clone, Debug)]
pub struct App {
    pub script: Script,
    said: i64,
    turn: i64,
    pub heard: i64,
    next_write: Option<Time>,
    next_read: Time,
    leave_at: Option<Time>,
    pub left: bool,
}

impl App {
    pub fn new(script: Script) -> App {
        App { script, said: 0, turn: 0, heard: 0, next_write: None, next_read: 0, leave_at: None, left: false }
    }

    /// Does what there is to do now; when it wants to be asked again, though nothing arrived.
    pub fn run(&mut self, tcp: &mut Tcp, now: Time) -> Option<Time> {
        if tcp.state != State::Open && !(tcp.state == State::TimeWait && tcp.unread() > 0) {
            return None;
        }
        if !tcp.greeted() {
            return None;
        }
        let mut wakes: Option<Time> = None;
        let mut later = |at: Time| wakes = Some(wakes.map_or(at, |wakes| wakes.min(at)));
        let script = self.script.clone();

        if tcp.unread() > 0 && script.leave != Leave::CloseUnread {
            if now >= self.next_read {
                self.heard += tcp.read(script.reads, now);
                self.next_read = now + script.rests;
            }
            if tcp.unread() > 0 {
                later(self.next_read.max(now + 1));
            }
        }
        let heard = if script.leave == Leave::CloseUnread { tcp.received() } else { self.heard };

        if self.turn < script.turns {
            let before = if script.first { self.turn } else { self.turn + 1 };
            let gate = script.hears * before / script.turns;
            if heard >= gate {
                let at = *self.next_write.get_or_insert(now + script.thinks);
                if now >= at {
                    self.turn += 1;
                    let until = script.says * self.turn / script.turns;
                    let bytes = until - self.said;
                    self.said = until;
                    self.next_write = None;
                    if bytes > 0 {
                        tcp.write(bytes, now);
                    }
                    later(now + 1);
                } else {
                    later(at);
                }
            }
        }
        if self.left {
            return wakes;
        }
        let said_all = self.turn >= script.turns;
        let ready = match script.leave {
            Leave::AfterSending => said_all,
            Leave::AfterEof => said_all && tcp.eof && tcp.unread() == 0,
            Leave::AfterAll => said_all && self.heard >= script.hears,
            Leave::AbortAtEnd => said_all && tcp.all_acknowledged(),
            Leave::AbortInFlight => said_all,
            Leave::CloseUnread => said_all && (tcp.unread() > 0 || tcp.eof || script.hears == 0),
        };
        if ready {
            let at = *self.leave_at.get_or_insert(now + script.lingers);
            if now >= at {
                self.left = true;
                match script.leave {
                    Leave::AfterSending | Leave::AfterEof => tcp.shut_down(now),
                    Leave::AfterAll | Leave::CloseUnread => tcp.close(now),
                    Leave::AbortAtEnd | Leave::AbortInFlight => tcp.abort(now),
                }
            } else {
                later(at);
            }
        }
        wakes
    }
}
