//! One end of a TCP connection, close to what kernels do, Linux first of all: RFC 9293 with SACK (RFC 2018, 6675), RACK and tail loss
//! probes (RFC 8985), timestamps and PAWS (RFC 7323), challenge ACKs (RFC 5961), delayed ACKs, Nagle, zero-window probes and
//! keep-alives. No I/O and no clock: segments and times go in, segments come out.
//!
//! Numbers are positions in the stream, 0 being the SYN and 1 the first byte of payload; only [`Seg`] has the wire's. Payload is not
//! stored: it is a [`Pattern`], so a sender cuts it anew and a receiver checks it as it arrives.

mod receive;
mod send;

pub use self::receive::reset_for;

use std::collections::VecDeque;

use sluice_filters::Flags;

use super::Time;
use super::wire::{Pattern, Sacks, Seg};

pub const MS: Time = 1_000;
pub const SECOND: Time = 1_000 * MS;

/// How an end's TCP is made and set.
#[derive(Clone, Debug)]
pub struct Habits {
    /// What it announces.
    pub mss: u16,
    pub wscale: Option<u8>,
    pub sack: bool,
    pub timestamps: bool,
    /// Bytes it takes that its application has not read.
    pub receive_buffer: i64,
    pub nagle: bool,
    pub delayed_ack: Time,
    pub keep_alive: Option<Time>,
    /// Keep-alives carry a byte of nothing, as those of Windows do.
    pub keep_alive_byte: bool,
    /// Probes of a closed window carry its next byte, as those of BSD and Windows do.
    pub probe_with_byte: bool,
    pub repack: Repack,
    /// The longest pause before a retransmission (Linux' `tcp_rto_max_ms`).
    pub rto_max: Time,
    pub retries: u32,
}

/// What a retransmission may be made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repack {
    /// Segments as they were sent first.
    Never,
    /// Several small ones in one (Linux' `tcp_retrans_collapse`).
    Whole,
    /// Whatever bytes come next, as BSD and Windows do.
    Bytes,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    SynSent,
    SynReceived,
    /// ESTABLISHED and all closing states; which one, the FINs tell.
    Open,
    TimeWait,
    Closed(End),
}

/// Why an end is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Both FINs were acknowledged.
    Done,
    /// Its peer reset it.
    Reset,
    /// Its peer refused it.
    Refused,
    /// Its peer does not answer.
    Timeout,
    /// It reset the connection itself.
    Aborted,
}

/// A segment of the retransmission queue.
#[derive(Clone, Copy, Debug)]
struct Chunk {
    start: i64,
    /// Behind its last number, a FIN's included.
    end: i64,
    fin: bool,
    sent_at: Time,
    times: u32,
    sacked: bool,
    /// To be sent again.
    lost: bool,
}

impl Chunk {
    fn len(&self) -> i64 {
        self.end - self.start
    }
}

/// Bytes that wait for what lies before them.
#[derive(Clone, Copy, Debug)]
struct Island {
    start: i64,
    end: i64,
    /// They are the stream's.
    true_bytes: bool,
}

/// A segment to send.
#[derive(Clone, Copy, Debug)]
pub struct Emitted {
    pub seg: Seg,
    /// Where its payload stands in the stream of payload; none for a byte of nothing.
    pub from: Option<u64>,
}

/// One end.
pub struct Tcp {
    pub habits: Habits,
    pub state: State,
    pub out: Vec<Emitted>,
    /// The number of its stream's, and of its peer's.
    streams: (u64, u64),
    /// What its peer's stream begins with.
    prefix: Vec<u8>,
    isn: u32,
    peer_isn: u32,

    una: i64,
    nxt: i64,
    /// Payload its application has written, the position behind its last byte.
    written: i64,
    closing: bool,
    /// Its application does not read any more.
    deaf: bool,
    window: i64,
    /// The segment that told the window: its number.
    window_seq: i64,
    window_max: i64,
    window_edge: i64,
    shift: u8,
    peer_shift: u8,
    peer_mss: i64,
    path_mss: i64,
    /// Timeouts without progress, and where they began.
    stuck: (u32, i64),
    cwnd: i64,
    ssthresh: i64,
    sent: VecDeque<Chunk>,
    duplicates: u32,
    recover: Option<i64>,
    rto: Time,
    srtt: Time,
    rttvar: Time,
    min_rtt: Time,
    backoff: u32,
    retries: u32,
    rack_sent_at: Time,
    probed: bool,

    rcv_nxt: i64,
    /// What was acknowledged last.
    acked: i64,
    rcv_edge: i64,
    read: i64,
    islands: Vec<Island>,
    newest_island: i64,
    duplicate: Option<(i64, i64)>,
    fin_at: Option<i64>,
    /// The peer's FIN came in order.
    pub eof: bool,
    eof_first: bool,
    /// A foreign byte was taken for the stream's.
    pub corrupt: bool,
    ack_now: bool,
    quick: u32,
    largest: i64,

    stamps: bool,
    sacks: bool,
    scales: bool,
    clock_offset: u32,
    recent: u32,
    /// TSvals of the first and last SYN or SYN-ACK.
    syn_stamps: (u32, u32),
    syn_sent_at: Option<Time>,

    rto_at: Option<Time>,
    tlp_at: Option<Time>,
    persist_at: Option<Time>,
    reorder_at: Option<Time>,
    delack_at: Option<Time>,
    keep_at: Option<Time>,
    keep_tries: u32,
    gone_at: Option<Time>,
    dup_ack_at: Option<Time>,
}

/// Out-of-window segments and challenges are answered once in so long (Linux' `tcp_invalid_ratelimit`).
const DUP_ACK_PAUSE: Time = 500 * MS;
const RTO_MIN: Time = 200 * MS;
const RTO_FIRST: Time = SECOND;
const TIME_WAIT: Time = 60 * SECOND;
/// Unanswered keep-alives before an end gives up: more than by default, since legs may lose half of all.
const KEEP_ALIVES: u32 = 60;

impl Tcp {
    fn new(habits: Habits, streams: (u64, u64), isn: u32, clock_offset: u32) -> Tcp {
        let receive_buffer = habits.receive_buffer;
        let mss = i64::from(habits.mss);
        let (sacks, stamps, shift) = (habits.sack, habits.timestamps, habits.wscale.unwrap_or(0));
        let scales = habits.wscale.is_some();
        Tcp {
            habits,
            state: State::SynSent,
            out: Vec::new(),
            streams,
            prefix: Vec::new(),
            isn,
            peer_isn: 0,
            una: 0,
            nxt: 1,
            written: 1,
            closing: false,
            deaf: false,
            window: 0,
            window_seq: 0,
            window_max: 0,
            window_edge: 1,
            shift,
            peer_shift: 0,
            peer_mss: 536,
            path_mss: mss,
            stuck: (0, 0),
            cwnd: 0,
            ssthresh: i64::MAX,
            sent: VecDeque::new(),
            duplicates: 0,
            recover: None,
            rto: RTO_FIRST,
            srtt: 0,
            rttvar: 0,
            min_rtt: Time::MAX,
            backoff: 0,
            retries: 0,
            rack_sent_at: 0,
            probed: false,
            rcv_nxt: 0,
            acked: 0,
            rcv_edge: 1 + receive_buffer.min(65_535),
            read: 1,
            islands: Vec::new(),
            newest_island: 0,
            duplicate: None,
            fin_at: None,
            eof: false,
            eof_first: false,
            corrupt: false,
            ack_now: false,
            quick: 16,
            largest: 536,
            stamps,
            sacks,
            scales,
            clock_offset,
            recent: 0,
            syn_stamps: (0, 0),
            syn_sent_at: None,
            rto_at: None,
            tlp_at: None,
            persist_at: None,
            reorder_at: None,
            delack_at: None,
            keep_at: None,
            keep_tries: 0,
            gone_at: None,
            dup_ack_at: None,
        }
    }

    /// A client that connects. `streams` are its own and its peer's.
    pub fn connect(habits: Habits, streams: (u64, u64), isn: u32, clock_offset: u32, now: Time) -> Tcp {
        let mut tcp = Tcp::new(habits, streams, isn, clock_offset);
        tcp.syn_stamps.0 = tcp.stamp(now);
        tcp.syn_sent_at = Some(now);
        tcp.send_syn(now);
        tcp
    }

    /// A server that has got a SYN.
    pub fn accept(habits: Habits, streams: (u64, u64), isn: u32, clock_offset: u32, syn: &Seg, now: Time) -> Tcp {
        let mut tcp = Tcp::new(habits, streams, isn, clock_offset);
        tcp.state = State::SynReceived;
        tcp.agree(syn);
        tcp.syn_stamps.0 = tcp.stamp(now);
        tcp.syn_sent_at = Some(now);
        tcp.send_syn(now);
        tcp
    }

    /// Expects `prefix` in front of its peer's stream. Its application never sees it.
    pub fn expect(&mut self, prefix: Vec<u8>) {
        self.read += prefix.len() as i64;
        self.prefix = prefix;
    }

    /// What it expects in front has come.
    pub fn greeted(&self) -> bool {
        self.rcv_nxt > self.prefix.len() as i64
    }

    /// Whether `bytes` are what the peer's stream has at `at`.
    fn is_true(&self, at: i64, bytes: &[u8]) -> bool {
        let at = (at - 1) as usize;
        let ours = bytes.len().min(self.prefix.len().saturating_sub(at));
        let (head, rest) = bytes.split_at(ours);
        let from = (at + ours - self.prefix.len()) as u64;
        head == &self.prefix[at.min(self.prefix.len())..][..ours]
            && rest == &Pattern::at(self.streams.1, from)[..rest.len()]
    }

    /// Takes the peer's SYN or SYN-ACK in.
    fn agree(&mut self, syn: &Seg) {
        self.peer_isn = syn.seq;
        (self.rcv_nxt, self.acked) = (1, 1);
        self.stamps &= syn.timestamp.is_some();
        self.sacks &= syn.sack_permitted;
        if let (Some(_), Some(shift)) = (self.habits.wscale, syn.wscale) {
            self.peer_shift = shift.min(14);
        } else {
            (self.shift, self.scales) = (0, false);
        }
        if let Some((value, _)) = syn.timestamp {
            self.recent = value;
        }
        self.peer_mss = i64::from(syn.mss.unwrap_or(536));
        self.set_window(i64::from(syn.window), 0);
        self.cwnd = 10 * self.mss();
    }

    fn set_window(&mut self, window: i64, seq: i64) {
        self.window = window;
        self.window_seq = seq;
        self.window_max = self.window_max.max(window);
        self.window_edge = self.una.max(1) + window;
    }

    fn stamp(&self, now: Time) -> u32 {
        ((now / MS) as u32).wrapping_add(self.clock_offset)
    }

    fn send_syn(&mut self, now: Time) {
        let server = self.state == State::SynReceived;
        let stamp = self.stamp(now);
        self.syn_stamps.1 = stamp;
        let seg = Seg {
            seq: self.isn,
            ack: if server { self.peer_isn.wrapping_add(1) } else { 0 },
            flags: if server { Flags::SYN | Flags::ACK } else { Flags::SYN },
            window: self.habits.receive_buffer.min(65_535) as u16,
            mss: Some(self.habits.mss),
            // A server whose client does not scale says nothing of it.
            wscale: self.habits.wscale.filter(|_| self.scales),
            sack_permitted: self.sacks,
            timestamp: self.stamps.then_some((stamp, if server { self.recent } else { 0 })),
            ..Seg::default()
        };
        self.out.push(Emitted { seg, from: None });
        self.rto_at = Some(now + (RTO_FIRST << self.backoff.min(6)).min(self.habits.rto_max.max(RTO_FIRST)));
    }

    /// A position of ours as the wire's number.
    fn number(&self, position: i64) -> u32 {
        self.isn.wrapping_add(position as u32)
    }

    /// The position closest to `near` that has this number.
    fn position(isn: u32, number: u32, near: i64) -> i64 {
        near + i64::from(number.wrapping_sub(isn.wrapping_add(near as u32)) as i32)
    }

    /// What a segment carries at most, its options allowed for.
    fn mss(&self) -> i64 {
        let stamps = if self.stamps { 12 } else { 0 };
        let blocks = self.blocks();
        let sacks = if blocks > 0 { 4 + 8 * blocks as i64 } else { 0 };
        (self.peer_mss.min(self.path_mss) - stamps - sacks).max(64)
    }

    /// SACK blocks that the next segment carries.
    fn blocks(&self) -> usize {
        if !self.sacks {
            return 0;
        }
        let most = if self.stamps { 3 } else { 4 };
        (self.islands.len() + usize::from(self.duplicate.is_some())).min(most)
    }

    /// A segment with all that goes with it: it acknowledges.
    fn segment(&mut self, flags: Flags, at: i64, len: i64, now: Time) -> Seg {
        let window = self.advertise();
        let mut sacks = Sacks::default();
        if self.sacks {
            let most = if self.stamps { 3 } else { 4 };
            let number = |position: i64| self.peer_isn.wrapping_add(position as u32);
            if let Some((start, end)) = self.duplicate.take() {
                sacks.push((number(start), number(end)), most);
            }
            // The newest first (RFC 2018 section 4).
            let newest = self.newest_island;
            let is_newest = |island: &&Island| island.start <= newest && newest < island.end;
            for island in self.islands.iter().filter(is_newest) {
                sacks.push((number(island.start), number(island.end)), most);
            }
            for island in self.islands.iter().filter(|island| !is_newest(island)) {
                sacks.push((number(island.start), number(island.end)), most);
            }
        }
        self.acked = self.rcv_nxt;
        self.ack_now = false;
        self.delack_at = None;
        Seg {
            seq: self.number(at),
            ack: self.peer_isn.wrapping_add(self.rcv_nxt as u32),
            flags,
            window,
            timestamp: self.stamps.then(|| (self.stamp(now), self.recent)),
            sacks,
            len: len as u16,
            ..Seg::default()
        }
    }

    /// The window field. Its edge never moves back, and forward only by something worthwhile.
    fn advertise(&mut self) -> u16 {
        let free = self.free();
        let mut edge = self.rcv_nxt + free;
        let worthwhile = (self.habits.receive_buffer / 2).min(self.largest);
        if edge < self.rcv_edge
            || (edge - self.rcv_edge < worthwhile && edge != self.rcv_nxt + self.habits.receive_buffer)
        {
            edge = self.rcv_edge.max(self.rcv_nxt);
        }
        let unit = 1_i64 << self.shift;
        let mut field = (edge - self.rcv_nxt) / unit;
        if self.rcv_nxt + field * unit < self.rcv_edge {
            field = (edge - self.rcv_nxt + unit - 1) / unit;
        }
        let field = field.min(65_535);
        self.rcv_edge = self.rcv_edge.max(self.rcv_nxt + field * unit);
        field as u16
    }

    fn free(&self) -> i64 {
        (self.habits.receive_buffer - self.unread()).max(0)
    }

    /// Bytes received in order that the application has not read.
    pub fn unread(&self) -> i64 {
        (self.rcv_nxt - i64::from(self.eof) - self.read).max(0)
    }

    /// Bytes of payload received in order, what it expects in front of them not counted.
    pub fn received(&self) -> i64 {
        (self.rcv_nxt - 1 - i64::from(self.eof) - self.prefix.len() as i64).max(0)
    }

    /// Bytes of payload that the peer acknowledged.
    pub fn acknowledged(&self) -> i64 {
        (self.una - 1).clamp(0, self.written - 1)
    }

    /// Bytes of payload sent so far.
    pub fn sent(&self) -> i64 {
        (self.nxt - 1).clamp(0, self.written - 1)
    }

    pub fn is_open(&self) -> bool {
        self.state == State::Open
    }

    /// Nothing more is to come from this end of its own accord.
    pub fn is_over(&self) -> bool {
        matches!(self.state, State::TimeWait | State::Closed(_))
    }

    fn fin_sent(&self) -> bool {
        self.closing && self.nxt > self.written
    }

    fn fin_acked(&self) -> bool {
        self.closing && self.una > self.written
    }

    /// All payload it wrote, and its FIN if it closed, were acknowledged.
    pub fn all_acknowledged(&self) -> bool {
        self.una >= self.written + i64::from(self.closing)
    }

    /// What it sends and expects next, as the wire has it.
    pub fn view(&self) -> View {
        View {
            next: self.number(self.nxt),
            expects: self.peer_isn.wrapping_add(self.rcv_nxt as u32),
            peer_isn: self.peer_isn,
            isn: self.isn,
            stamp_recent: self.recent,
        }
    }

    pub fn clock(&self, now: Time) -> u32 {
        self.stamp(now)
    }

    // The application.

    /// Writes so many bytes more.
    pub fn write(&mut self, bytes: i64, now: Time) {
        self.written += bytes;
        self.push(now);
    }

    /// Reads up to so many bytes; how many there were.
    pub fn read(&mut self, most: i64, now: Time) -> i64 {
        let bytes = most.min(self.unread());
        self.read += bytes;
        let worthwhile = (self.habits.receive_buffer / 2).min(2 * self.largest);
        if bytes > 0 && self.is_open() && !self.eof && self.rcv_nxt + self.free() - self.rcv_edge >= worthwhile {
            self.ack(now);
        }
        bytes
    }

    /// Sends a FIN behind what was written.
    pub fn shut_down(&mut self, now: Time) {
        self.closing = true;
        self.push(now);
    }

    /// Reads no more either: what was not read, or comes later, is answered with a RST.
    pub fn close(&mut self, now: Time) {
        if self.unread() > 0 {
            self.abort(now);
            return;
        }
        self.deaf = true;
        self.shut_down(now);
    }

    /// Resets the connection.
    pub fn abort(&mut self, now: Time) {
        if matches!(self.state, State::Open | State::SynReceived) {
            let at = self.nxt;
            let seg = self.segment(Flags::RST | Flags::ACK, at, 0, now);
            self.out.push(Emitted {
                seg: Seg { sacks: Sacks::default(), window: 0, timestamp: seg.timestamp, ..seg },
                from: None,
            });
        }
        self.end(End::Aborted);
    }

    fn end(&mut self, end: End) {
        self.state = State::Closed(end);
        self.sent.clear();
        self.silence();
    }

    fn silence(&mut self) {
        self.rto_at = None;
        self.tlp_at = None;
        self.persist_at = None;
        self.reorder_at = None;
        self.delack_at = None;
        self.keep_at = None;
        self.gone_at = None;
    }

    /// Goes where both FINs lead.
    fn step(&mut self, now: Time) {
        if self.state == State::Open && self.eof && self.fin_acked() {
            self.silence();
            if self.eof_first {
                self.state = State::Closed(End::Done);
            } else {
                self.state = State::TimeWait;
                self.gone_at = Some(now + TIME_WAIT);
            }
        }
    }

    // Time.

    /// When this end wants to be called, if nothing arrives.
    pub fn wakes_at(&self) -> Option<Time> {
        [self.rto_at, self.tlp_at, self.persist_at, self.reorder_at, self.delack_at, self.keep_at, self.gone_at]
            .into_iter()
            .flatten()
            .min()
    }

    pub fn wake(&mut self, now: Time) {
        let due = |at: &mut Option<Time>| at.take_if(|at| *at <= now).is_some();
        if due(&mut self.gone_at) {
            self.end(End::Done);
        }
        if due(&mut self.delack_at) {
            self.ack(now);
        }
        if due(&mut self.reorder_at) {
            self.find_losses(now);
            self.push(now);
        }
        if due(&mut self.tlp_at) {
            self.probe_tail(now);
        }
        if due(&mut self.rto_at) {
            self.retransmission_due(now);
        }
        if due(&mut self.persist_at) {
            self.probe_window(now);
        }
        if due(&mut self.keep_at) {
            self.keep_alive(now);
        }
    }

    fn keep_alive(&mut self, now: Time) {
        if self.state != State::Open {
            return;
        }
        if self.sent.is_empty() {
            if self.keep_tries >= KEEP_ALIVES {
                self.end(End::Timeout);
                return;
            }
            self.keep_tries += 1;
            let at = self.una - 1;
            let len = i64::from(self.habits.keep_alive_byte);
            let seg = self.segment(Flags::ACK, at, len, now);
            self.out.push(Emitted { seg, from: None });
        }
        self.keep_at = self.habits.keep_alive.map(|pause| now + pause);
    }

    fn ack(&mut self, now: Time) {
        let at = self.nxt;
        let seg = self.segment(Flags::ACK, at, 0, now);
        self.out.push(Emitted { seg, from: None });
    }

    /// An ACK that says where this end is, to whom may be lost or a forger.
    fn dup_ack(&mut self, now: Time) {
        if self.dup_ack_at.is_none_or(|at| now >= at + DUP_ACK_PAUSE) {
            self.dup_ack_at = Some(now);
            self.ack(now);
        }
    }
}

/// Where an end stands, in the wire's numbers.
#[derive(Clone, Copy, Debug)]
pub struct View {
    pub next: u32,
    pub expects: u32,
    pub peer_isn: u32,
    pub isn: u32,
    pub stamp_recent: u32,
}
