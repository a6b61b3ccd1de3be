//! What the stack counts. One set a worker, one writer; the control plane reads and sums.

use sluice_config::Config;
use sluice_filters::counter::Counter;

pub use crate::path_mtu::PathSource;
use crate::record::EndCause;
use crate::splice::promise::SynOffers;

/// Everything one worker's stack counts.
#[derive(Debug)]
pub struct StackCounters {
    /// SYN-ACKs that carried a cookie.
    pub cookies_sent: Counter,
    /// ACKs without a flow, by [`AckResult`].
    pub cookie_acks: [Counter; AckResult::ALL.len()],
    /// By service, in the configuration's order.
    pub services: Vec<ServiceCounters>,
    /// Challenge ACKs sent (RFC 5961).
    pub challenge_acks: Counter,
    /// RSTs built by us for flows we refuse or have lost.
    pub resets_sent: Counter,
    /// RSTs and ACKs to segments of no connection that the ceiling of such answers kept back.
    pub answers_withheld: Counter,
    /// Gauge: flow table entries.
    pub flow_entries: Counter,
    /// Gauge: connections in TIME-WAIT, their sockets already gone.
    pub time_wait: Counter,
    /// Gauge: octets leased for socket buffers.
    pub buffer_bytes: Counter,
    /// Gauge: octets of clients' segments held until an upstream accepts.
    pub held_bytes: Counter,
    /// Gauge: armed timers.
    pub timers: Counter,
    /// Ended connections whose log line found the queue full.
    pub records_lost: Counter,
    /// Upstream source ports in use or resting (gauge).
    pub source_ports: Counter,
    /// Source ports taken out of TIME-WAIT.
    pub ports_reused: Counter,
    /// Rests of source ports that ended early for want of room.
    pub rests_cut_short: Counter,
    /// Gauge: few SYNs come, so that answered ones are noted, 0 or 1.
    pub peace: Counter,
    /// Gauge: SYN-ACKs that may be repeated.
    pub unanswered: Counter,
    /// Records of SYN-ACKs that gave way to newer ones.
    pub unanswered_displaced: Counter,
    /// SYN-ACKs sent again.
    pub syn_acks_repeated: Counter,
    /// Repeats not sent for their ceiling, or because the device was full.
    pub repeats_withheld: Counter,
    /// Keep-alive probes that proved a cookie.
    pub keep_alives: Counter,
    /// Paths to peers found to be smaller than thought, by [`PathSource`].
    pub paths_narrowed: [Counter; PathSource::ALL.len()],
    /// RSTs sent in answer to segments of no connection; part of `resets_sent`.
    pub strangers_reset: Counter,
    /// RSTs not sent in answer to such segments, by [`Withheld`].
    pub resets_withheld: [Counter; Withheld::ALL.len()],
}

/// One service's share.
#[derive(Debug)]
pub struct ServiceCounters {
    /// SYNs answered.
    pub syns: Counter,
    /// Gauge: many more SYNs than clients, 0 or 1.
    pub under_attack: Counter,
    /// Sessions opened.
    pub opened: Counter,
    /// Gauge: sessions alive.
    pub active: Counter,
    /// Sessions ended, by [`EndCause`].
    pub ended: [Counter; EndCause::ALL.len()],
    /// Payload octets from client to upstream.
    pub bytes_to_upstream: Counter,
    /// Payload octets from upstream to client.
    pub bytes_to_client: Counter,
    /// Validated clients refused by `limits.connections`.
    pub refused_limit: Counter,
    /// Validated clients refused by `limits.connections_per_source`.
    pub refused_source_limit: Counter,
    /// Validated clients refused by `limits.share`.
    pub refused_share: Counter,
    /// Dial failures: by upstream, then by [`DialFailure`].
    pub dial_failures: Vec<[Counter; DialFailure::ALL.len()]>,
    /// Spliced sessions that went on in terminate mode, by [`Missing`].
    pub fallbacks: [Counter; Missing::ALL.len()],
    /// What the service's SYN-ACKs say.
    pub offers: OfferGauges,
    /// Probes: by upstream, then by [`ProbeResult`].
    pub probes: Vec<[Counter; ProbeResult::ALL.len()]>,
    /// By upstream: whether it keeps nothing of a SYN, 0 or 1 (gauge).
    pub syn_cookies: Vec<Counter>,
}

/// What a service's SYN-ACKs say (gauges).
#[derive(Debug, Default)]
pub struct OfferGauges {
    /// Maximum segment size, octets, where the port allows it.
    pub mss: Counter,
    /// Window field.
    pub window: Counter,
    /// Window scale, plus one; 0 = none.
    pub window_scale: Counter,
    /// SACK permitted.
    pub sack: Counter,
    /// Timestamps.
    pub timestamps: Counter,
}

impl OfferGauges {
    pub(crate) fn show(&self, offers: &SynOffers) {
        self.mss.set(u64::from(offers.mss));
        self.window.set(u64::from(offers.window));
        self.window_scale.set(offers.wscale.map_or(0, |scale| u64::from(scale).saturating_add(1)));
        self.sack.set(u64::from(offers.sack));
        self.timestamps.set(u64::from(offers.timestamps));
    }
}

/// What a dialled upstream did not accept although the client had been promised it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// Segments as large.
    Mss,
    /// Window scaling.
    WindowScale,
    /// Selective acknowledgments.
    Sack,
    /// Timestamps.
    Timestamps,
}

impl Missing {
    /// All of them, in counter order.
    pub const ALL: [Missing; 4] = [Missing::Mss, Missing::WindowScale, Missing::Sack, Missing::Timestamps];

    /// The metric's label value.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Missing::Mss => "mss",
            Missing::WindowScale => "window_scale",
            Missing::Sack => "sack",
            Missing::Timestamps => "timestamps",
        }
    }
}

/// What became of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeResult {
    /// The upstream accepted.
    Answered,
    /// It answered with RST.
    Refused,
    /// It did not answer.
    Silent,
}

impl ProbeResult {
    /// Every result, in counter order.
    pub const ALL: [ProbeResult; 3] = [ProbeResult::Answered, ProbeResult::Refused, ProbeResult::Silent];

    /// The metric's label value.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            ProbeResult::Answered => "answered",
            ProbeResult::Refused => "refused",
            ProbeResult::Silent => "silent",
        }
    }
}

/// What became of an ACK that belongs to no flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AckResult {
    /// The cookie was ours: a session opened.
    Accepted,
    /// The cookie was not ours, or too old.
    BadCookie,
    /// The cookie was ours, a limit refused the session.
    Limit,
    /// The cookie was ours, the appliance is draining.
    Draining,
}

impl AckResult {
    /// Every result, in counter order.
    pub const ALL: [AckResult; 4] = [AckResult::Accepted, AckResult::BadCookie, AckResult::Limit, AckResult::Draining];

    /// The metric's label value.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            AckResult::Accepted => "accepted",
            AckResult::BadCookie => "bad_cookie",
            AckResult::Limit => "limit",
            AckResult::Draining => "draining",
        }
    }
}

/// Why a segment of no connection got no RST.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Withheld {
    /// Too many SYNs or segments of no connection come, or the appliance is draining.
    Pressure,
    /// For the last two epochs it is not known whose SYNs were answered.
    Unknown,
    /// A SYN of its sender's was answered, so that the ACK of the handshake may still come.
    Answered,
    /// Its prefix gets as many as it may.
    Ceiling,
}

impl Withheld {
    /// Every reason, in counter order.
    pub const ALL: [Withheld; 4] = [Withheld::Pressure, Withheld::Unknown, Withheld::Answered, Withheld::Ceiling];

    /// The metric's label value.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Withheld::Pressure => "pressure",
            Withheld::Unknown => "unknown",
            Withheld::Answered => "answered",
            Withheld::Ceiling => "ceiling",
        }
    }
}

/// Why a dial did not become a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DialFailure {
    /// The upstream answered with RST.
    Refused,
    /// No answer within `timeouts.connect`.
    Timeout,
    /// No route, or the next hop does not answer ARP/NDP.
    Unreachable,
    /// No source port free.
    NoSourcePort,
}

impl DialFailure {
    /// Every reason, in counter order.
    pub const ALL: [DialFailure; 4] =
        [DialFailure::Refused, DialFailure::Timeout, DialFailure::Unreachable, DialFailure::NoSourcePort];

    /// The metric's label value.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            DialFailure::Refused => "refused",
            DialFailure::Timeout => "timeout",
            DialFailure::Unreachable => "unreachable",
            DialFailure::NoSourcePort => "no_source_port",
        }
    }
}

impl StackCounters {
    /// Zeroed counters with the shape of `config`'s services and upstreams.
    #[must_use]
    pub fn new(config: &Config) -> StackCounters {
        let services = config
            .services
            .iter()
            .map(|service| ServiceCounters {
                syns: Counter::default(),
                under_attack: Counter::default(),
                opened: Counter::default(),
                active: Counter::default(),
                ended: Default::default(),
                bytes_to_upstream: Counter::default(),
                bytes_to_client: Counter::default(),
                refused_limit: Counter::default(),
                refused_source_limit: Counter::default(),
                refused_share: Counter::default(),
                dial_failures: service.upstreams.iter().map(|_| Default::default()).collect(),
                fallbacks: Default::default(),
                offers: OfferGauges::default(),
                probes: service.upstreams.iter().map(|_| Default::default()).collect(),
                syn_cookies: service.upstreams.iter().map(|_| Counter::default()).collect(),
            })
            .collect();
        StackCounters {
            cookies_sent: Counter::default(),
            cookie_acks: Default::default(),
            services,
            challenge_acks: Counter::default(),
            resets_sent: Counter::default(),
            answers_withheld: Counter::default(),
            flow_entries: Counter::default(),
            time_wait: Counter::default(),
            buffer_bytes: Counter::default(),
            held_bytes: Counter::default(),
            timers: Counter::default(),
            records_lost: Counter::default(),
            source_ports: Counter::default(),
            peace: Counter::default(),
            unanswered: Counter::default(),
            unanswered_displaced: Counter::default(),
            syn_acks_repeated: Counter::default(),
            repeats_withheld: Counter::default(),
            keep_alives: Counter::default(),
            ports_reused: Counter::default(),
            rests_cut_short: Counter::default(),
            paths_narrowed: Default::default(),
            strangers_reset: Counter::default(),
            resets_withheld: Default::default(),
        }
    }
}
