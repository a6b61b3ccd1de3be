//! What a spliced service's SYN-ACKs may promise: only what its upstreams were seen to accept.
//!
//! The client's SYN is answered before anyone has asked an upstream, and what the answer says cannot be taken back. So each worker
//! notes what upstreams accept, from the dials of its sessions and, the first worker, from probes: handshakes that end in a
//! RST as soon as the SYN-ACK has come. The notes are on one [`Board`] for all workers. A promise is the least of what all
//! known upstreams of the service accept; where nothing is known, nothing is promised. Pinned values stand in any case.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use sluice_config::{Config, Mode, Promise, Service};
use sluice_filters::units::{Micros, PortId, Seq, ServiceId};
use sluice_filters::{DropReason, Flags, Segment, TcpOptions};

use crate::cookie::Offer;
use crate::counters::{DialFailure, Missing};
use crate::net::{Lower, Route};
use crate::segment::{self, Direction, PACKET_MAX, SynSegment, TcpChecksum};
use crate::stack::dial::Rest;
use crate::stack::ending::Target;
use crate::stack::header::longest;
use crate::stack::{FlowRef, Outcome, Stack, send_bare};

/// Where nothing is known: the least MSS that every host takes (RFC 9293 section 3.7.1), and a window that every server opens.
const MSS_UNKNOWN: u16 = 536;
const WINDOW_UNKNOWN: u16 = 8_192;
/// MSS of a SYN-ACK without that option (RFC 9293 section 3.7.1).
const MSS_DEFAULT_V4: u16 = 536;
const MSS_DEFAULT_V6: u16 = 1_220;
/// No window in a SYN-ACK of ours is smaller: a client with nothing to go on would not begin.
const WINDOW_MIN: u16 = 536;
/// What timestamps take of a segment.
const TIMESTAMP_LEN: u32 = 12;
/// SYNs of one probe, and the pause between them.
const PROBE_SYNS: u8 = 3;
const PROBE_PAUSE: Duration = Duration::from_millis(300);
/// The window shift that probes offer; any will do.
const PROBE_SCALE: u8 = 7;

/// How a service answers SYNs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SynOffers {
    /// Most a client may send in one segment; ports allow less.
    pub(crate) mss: u16,
    pub(crate) wscale: Option<u8>,
    pub(crate) window: u16,
    pub(crate) sack: bool,
    pub(crate) timestamps: bool,
}

/// What an upstream accepted of what a SYN offered; none: it was not offered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Accepted {
    pub(crate) mss: u16,
    pub(crate) window: u16,
    pub(crate) wscale: Option<Option<u8>>,
    pub(crate) sack: Option<bool>,
    pub(crate) timestamps: Option<bool>,
}

/// What a SYN offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Offered {
    wscale: bool,
    sack: bool,
    timestamps: bool,
}

impl Accepted {
    /// What a dial's SYN offers: what the client was promised.
    pub(crate) fn offered(offer: &Offer, timestamps: bool) -> Offered {
        Offered { wscale: offer.wscale.is_some(), sack: offer.sack, timestamps }
    }

    /// What a SYN-ACK accepts.
    pub(crate) fn of(segment: &Segment, options: &TcpOptions, offered: &Offered) -> Accepted {
        let default = if segment.is_v4() { MSS_DEFAULT_V4 } else { MSS_DEFAULT_V6 };
        Accepted {
            mss: options.mss.unwrap_or(default),
            window: segment.window,
            wscale: offered.wscale.then_some(options.wscale),
            sack: offered.sack.then_some(options.sack_permitted),
            timestamps: offered.timestamps.then_some(options.timestamp.is_some()),
        }
    }

    /// Takes into account what the way there allows.
    pub(crate) fn fit(&mut self, route: Route, v4: bool) {
        self.mss = self.mss.min(segment::mss_of(route.mtu, v4));
    }

    /// What it lacks of what was offered, a client's segments of `mss` octets, a header of `header_len` and windows that are told in
    /// units of `unit` octets.
    pub(crate) fn missing(&self, offered: &Offered, mss: u16, header_len: u32, unit: u32) -> Option<Missing> {
        if self.mss < mss || u32::from(self.mss) < header_len.saturating_add(TIMESTAMP_LEN) {
            Some(Missing::Mss)
        } else if offered.wscale && (self.wscale.flatten().is_none() || u32::from(self.window) < unit) {
            Some(Missing::WindowScale)
        } else if offered.sack && self.sack != Some(true) {
            Some(Missing::Sack)
        } else if offered.timestamps && self.timestamps != Some(true) {
            Some(Missing::Timestamps)
        } else {
            None
        }
    }
}

/// What is known of one upstream, in one word: `known (1) | mss (16) | window (16) | three answers, two bits each | wscale (4)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Note(u64);

/// A two-bit answer: 0 unknown, 1 no, 2 yes.
fn answer(known: Option<bool>) -> u64 {
    known.map_or(0, |yes| 1 + u64::from(yes))
}

impl Note {
    fn of(accepted: &Accepted) -> Note {
        let scale = accepted.wscale.flatten().unwrap_or(0);
        Note(
            1 << 63
                | u64::from(accepted.mss) << 32
                | u64::from(accepted.window) << 16
                | answer(accepted.wscale.map(|scale| scale.is_some())) << 8
                | answer(accepted.sack) << 6
                | answer(accepted.timestamps) << 4
                | u64::from(scale & 0xf),
        )
    }

    fn read(self) -> Option<Accepted> {
        let yes = |shift: u32| match self.0 >> shift & 3 {
            0 => None,
            found => Some(found == 2),
        };
        (self.0 >> 63 == 1).then(|| Accepted {
            mss: (self.0 >> 32) as u16,
            window: (self.0 >> 16) as u16,
            wscale: yes(8).map(|scales| scales.then_some((self.0 & 0xf) as u8)),
            sack: yes(6),
            timestamps: yes(4),
        })
    }
}

/// What all workers know of all upstreams.
#[derive(Debug)]
pub struct Board {
    services: Vec<Vec<AtomicU64>>,
    /// By service: the largest window scale ever promised.
    scales: Vec<AtomicU8>,
    /// Counts the notes that said something new.
    news: AtomicU64,
}

/// Who asked an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// A session's dial, which offers what its client did.
    Dial,
    /// A probe, which offers everything.
    Probe,
}

impl Board {
    /// Nothing known.
    #[must_use]
    pub fn new(config: &Config) -> Board {
        let services = config
            .services
            .iter()
            .map(|service| service.upstreams.iter().map(|_| AtomicU64::new(0)).collect())
            .collect();
        let scales = config.services.iter().map(|_| AtomicU8::new(0)).collect();
        Board { services, scales, news: AtomicU64::new(0) }
    }

    /// Notes what an upstream accepted. What was not offered this time stays as it was known.
    pub(crate) fn learn(&self, service: ServiceId, upstream: u16, mut now: Accepted, source: Source) {
        let Some(note) = self.services.get(usize::from(service.0)).and_then(|list| list.get(usize::from(upstream)))
        else {
            return;
        };
        // Two workers may note at once; each notes what it saw, and the next dial notes again.
        if let Some(before) = Note(note.load(Ordering::Relaxed)).read() {
            now.wscale = now.wscale.or(before.wscale);
            now.sack = now.sack.or(before.sack);
            now.timestamps = now.timestamps.or(before.timestamps);
            // Hosts open windows that depend on what a SYN offers; only probes always offer the same.
            if source == Source::Dial {
                now.window = now.window.min(before.window);
            }
        }
        let new = Note::of(&now).0;
        if note.swap(new, Ordering::Relaxed) != new {
            self.news.fetch_add(1, Ordering::Release);
        }
    }

    /// The largest window scale that was ever promised for the service: what the windows of a client that scales are about.
    pub(crate) fn promised_scale(&self, service: ServiceId) -> u8 {
        self.scales.get(usize::from(service.0)).map_or(0, |scale| scale.load(Ordering::Relaxed))
    }

    /// Notes a window scale that is promised from now on.
    fn promise_scale(&self, service: ServiceId, scale: Option<u8>) {
        if let (Some(scale), Some(largest)) = (scale, self.scales.get(usize::from(service.0))) {
            largest.fetch_max(scale, Ordering::Relaxed);
        }
    }

    /// What a service may promise.
    pub(crate) fn offers(&self, service: ServiceId, settings: &Service) -> SynOffers {
        let known: Vec<Accepted> = self
            .services
            .get(usize::from(service.0))
            .into_iter()
            .flatten()
            .filter_map(|note| Note(note.load(Ordering::Relaxed)).read())
            .collect();
        promise(&known, &settings.promise)
    }
}

/// The least that all known upstreams accept, and what is pinned.
fn promise(known: &[Accepted], pinned: &Promise) -> SynOffers {
    let all = |accepts: &dyn Fn(&Accepted) -> Option<bool>| {
        !known.is_empty() && known.iter().all(|upstream| accepts(upstream) == Some(true))
    };
    let scales = all(&|upstream| upstream.wscale.map(|scale| scale.is_some()));
    let largest = known.iter().filter_map(|upstream| upstream.wscale.flatten()).max();
    SynOffers {
        // Larger segments than an upstream takes are of no use to anybody, pinned or not.
        mss: pinned.mss.into_iter().chain(known.iter().map(|upstream| upstream.mss)).min().unwrap_or(MSS_UNKNOWN),
        wscale: pinned.window_scale.or(largest.filter(|_| scales)),
        window: known.iter().map(|upstream| upstream.window).min().unwrap_or(WINDOW_UNKNOWN).max(WINDOW_MIN),
        sack: pinned.sack.unwrap_or_else(|| all(&|upstream| upstream.sack)),
        timestamps: pinned.timestamps.unwrap_or_else(|| all(&|upstream| upstream.timestamps)),
    }
}

/// A probe of one upstream.
pub(crate) struct Probe {
    service: ServiceId,
    upstream: u16,
    due: Micros,
    asked: Option<Asked>,
}

/// A probe's handshake.
#[derive(Clone, Copy)]
struct Asked {
    target: Target,
    isn: Seq,
    syns: u8,
}

/// The probes of a configuration: every upstream of every spliced service that does not forgo them.
pub(crate) fn probes(config: &Config, now: Micros) -> Vec<Probe> {
    let services = config.services.iter().zip(0_u16..);
    let spliced = services.filter(|(service, _)| service.mode == Mode::Splice && !service.promise.probe.is_zero());
    spliced
        .flat_map(|(service, id)| {
            let upstreams = (0_u16..).take(service.upstreams.len());
            upstreams.map(move |upstream| Probe { service: ServiceId(id), upstream, due: now, asked: None })
        })
        .collect()
}

impl Stack {
    /// Takes over what all workers have learned, if there is anything new, and shows it. Cheap otherwise.
    pub(crate) fn refresh_offers(&mut self) {
        let news = self.shared.board.news.load(Ordering::Acquire);
        if self.known_news != Some(news) {
            self.known_news = Some(news);
            for service in 0..self.config.services.len() {
                self.refresh_offer(ServiceId(service as u16));
            }
        }
    }

    /// A service whose SYN-ACKs changed since they were last asked for, for the log: its name, and what they promise.
    pub fn changed_offer(&mut self) -> Option<(String, String)> {
        let service = self.changed.pop()?;
        let SynOffers { mss, wscale, window, sack, timestamps } = self.offers.get(usize::from(service.0))?;
        let name = self.config.services.get(usize::from(service.0))?.name.clone();
        let scale = wscale.map_or("none".to_owned(), |scale| scale.to_string());
        let on = |promised: &bool| if *promised { "on" } else { "off" };
        let (sack, timestamps) = (on(sack), on(timestamps));
        Some((name, format!("MSS {mss}, window {window}, window scale {scale}, SACK {sack}, timestamps {timestamps}")))
    }

    fn refresh_offer(&mut self, service: ServiceId) {
        let index = usize::from(service.0);
        if let (Some(settings), Some(offers)) = (self.config.services.get(index), self.offers.get_mut(index)) {
            if settings.mode == Mode::Splice {
                let before = *offers;
                *offers = self.shared.board.offers(service, settings);
                // Never a smaller one than before: cookies do not tell which it was, and windows read as too small only slow down.
                let promised = self.shared.board.promised_scale(service);
                offers.wscale = offers.wscale.map(|scale| scale.max(promised));
                self.shared.board.promise_scale(service, offers.wscale);
                // The header comes out of the window, and is known to fit only with room to spare.
                if let Some(header) = longest(settings) {
                    offers.window = offers.window.saturating_sub(header).max(WINDOW_MIN);
                }
                if *offers != before && !self.changed.contains(&service) {
                    self.changed.push(service);
                }
            }
            if let Some(counters) = self.counters.services.get(index) {
                counters.offers.show(offers);
            }
        }
    }

    /// Asks upstreams whose turn it is. Cheap when it is nobody's.
    pub fn probe<N: Lower>(&mut self, now: Micros, net: &mut N) {
        if now < self.next_probe {
            return;
        }
        let config = self.config.clone();
        let mut next = Micros(u64::MAX);
        for index in 0..self.probes.len() {
            if let Some(probe) = self.probes.get(index)
                && now >= probe.due
                && let Some(settings) = config.services.get(usize::from(probe.service.0))
            {
                self.ask(index, settings, now, net);
            }
            if let Some(probe) = self.probes.get(index) {
                next = next.min(probe.due);
            }
        }
        self.next_probe = next;
    }

    fn ask<N: Lower>(&mut self, index: usize, settings: &Service, now: Micros, net: &mut N) {
        let Some(probe) = self.probes.get(index) else { return };
        let (service, upstream) = (probe.service, probe.upstream);
        let asked = match probe.asked {
            Some(asked) if asked.syns >= PROBE_SYNS => {
                self.probe_over(index, settings, Rest::Brief, now);
                return;
            }
            Some(asked) => asked,
            None => {
                let Some(address) = settings.upstreams.get(usize::from(upstream)).map(|upstream| upstream.address)
                else {
                    return;
                };
                // Not counted as a failed dial: no client was waiting.
                let aimed: Result<Target, DialFailure> = self.aim(service, settings, upstream, address, now, net);
                let Ok(target) = aimed else {
                    self.put_off(index, settings, now);
                    return;
                };
                let value = FlowRef::Probe(index as u32).value();
                if self.flows.insert(target.hash, &target.key, value).is_err() {
                    self.source_ports.release(target.lease, Rest::None, now);
                    self.put_off(index, settings, now);
                    return;
                }
                Asked { target, isn: self.initial_sequence_number(&target.key, now), syns: 0 }
            }
        };
        let Target { route, key, .. } = asked.target;
        let syn = SynSegment {
            key,
            direction: Direction::ToPeer,
            isn: asked.isn,
            mss: segment::mss_of(route.mtu, key.src.is_v4()),
            wscale: Some(PROBE_SCALE),
            sack: true,
            timestamp: Some(self.timestamp_ms.wrapping_add(self.keyed(&key, 1) as u32)),
            window: u16::MAX,
        };
        let mut packet = [0; PACKET_MAX];
        if let Some(octets) =
            segment::synthesize_syn(&syn, &mut packet, TcpChecksum::Full).and_then(|len| packet.get(..len))
        {
            net.send(route.way, octets.len(), |out| out.copy_from_slice(octets));
        }
        if let Some(probe) = self.probes.get_mut(index) {
            probe.asked = Some(Asked { syns: asked.syns.saturating_add(1), ..asked });
            probe.due = now.after(PROBE_PAUSE);
        }
    }

    /// An upstream's answer to a probe.
    pub(crate) fn probed<N: Lower>(
        &mut self,
        index: u32,
        segment: &Segment,
        options: &TcpOptions,
        now: Micros,
        net: &mut N,
    ) -> Result<Outcome, DropReason> {
        let config = self.config.clone();
        let Some(probe) = self.probes.get(index as usize) else { return Err(DropReason::NoFlow) };
        let (service, upstream) = (probe.service, probe.upstream);
        let (Some(asked), Some(settings)) = (probe.asked, config.services.get(usize::from(service.0))) else {
            return Err(DropReason::NoFlow);
        };
        if !segment.flags.ack() || segment.ack != asked.isn.plus(1) {
            return Err(DropReason::BadAck);
        }
        if segment.flags.rst() {
            self.probe_over(index as usize, settings, Rest::None, now);
            return Ok(Outcome::Consumed);
        }
        if !segment.flags.contains(Flags::SYN) {
            return Err(DropReason::BadAck);
        }
        let offered = Offered { wscale: true, sack: true, timestamps: true };
        let mut accepted = Accepted::of(segment, options, &offered);
        accepted.fit(asked.target.route, asked.target.key.src.is_v4());
        self.shared.board.learn(service, upstream, accepted, Source::Probe);
        self.refresh_offers();
        if let Some(reset) = segment::reset_for(segment) {
            send_bare(&reset, asked.target.route.way, net);
        }
        self.probe_over(index as usize, settings, Rest::Brief, now);
        Ok(Outcome::Consumed)
    }

    fn probe_over(&mut self, index: usize, settings: &Service, rest: Rest, now: Micros) {
        if let Some(Asked { target, .. }) = self.probes.get_mut(index).and_then(|probe| probe.asked.take()) {
            self.flows.remove(target.hash, &target.key);
            self.source_ports.release(target.lease, rest, now);
        }
        self.put_off(index, settings, now);
    }

    fn put_off(&mut self, index: usize, settings: &Service, now: Micros) {
        if let Some(probe) = self.probes.get_mut(index) {
            // Until something is known, an upstream is asked more often.
            let known = self.shared.board.services.get(usize::from(probe.service.0)).is_some_and(|list| {
                list.get(usize::from(probe.upstream)).is_some_and(|note| note.load(Ordering::Relaxed) != 0)
            });
            let pause = settings.promise.probe;
            probe.due = now.after(if known { pause } else { pause.min(Duration::from_secs(1)) });
        }
        self.next_probe = now;
    }

    /// What the SYN-ACK of `service` says on `port`.
    #[inline(always)]
    pub(crate) fn mss_on(&self, offers: &SynOffers, port: PortId, v4: bool) -> u16 {
        let mtu = self.mtus.get(usize::from(port.0)).copied().unwrap_or(1500);
        segment::mss_of(mtu, v4).min(offers.mss)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Accepted =
        Accepted { mss: 1_460, window: 65_160, wscale: Some(Some(7)), sack: Some(true), timestamps: Some(true) };
    const FREE: Promise =
        Promise { mss: None, window_scale: None, sack: None, timestamps: None, probe: Duration::from_secs(10) };

    #[test]
    fn a_note_reads_back() {
        for accepted in [
            ALL,
            Accepted { wscale: Some(None), sack: Some(false), timestamps: Some(false), ..ALL },
            Accepted { wscale: None, sack: None, timestamps: None, mss: u16::MAX, window: u16::MAX },
            Accepted { wscale: Some(Some(14)), ..ALL },
        ] {
            assert_eq!(Note::of(&accepted).read(), Some(accepted));
        }
        assert_eq!(Note(0).read(), None);
    }

    #[test]
    fn nothing_known_is_nothing_promised() {
        let expected = SynOffers { mss: 536, wscale: None, window: 8_192, sack: false, timestamps: false };
        assert_eq!(promise(&[], &FREE), expected);
    }

    #[test]
    fn the_least_of_all_upstreams_is_promised_and_the_largest_scale() {
        let small = Accepted { mss: 1_400, window: 30_000, wscale: Some(Some(9)), sack: Some(false), ..ALL };
        let expected = SynOffers { mss: 1_400, wscale: Some(9), window: 30_000, sack: false, timestamps: true };
        assert_eq!(promise(&[ALL, small], &FREE), expected);
        let unscaled = Accepted { wscale: Some(None), ..ALL };
        assert_eq!(promise(&[ALL, unscaled], &FREE).wscale, None);
    }

    #[test]
    fn what_was_never_offered_is_not_promised() {
        let unasked = Accepted { wscale: None, sack: None, timestamps: None, ..ALL };
        let promised = promise(&[ALL, unasked], &FREE);
        assert_eq!((promised.wscale, promised.sack, promised.timestamps), (None, false, false));
    }

    #[test]
    fn pinned_values_stand_whatever_is_known() {
        let pinned =
            Promise { mss: Some(1_200), window_scale: Some(8), sack: Some(true), timestamps: Some(false), ..FREE };
        let promised = promise(&[], &pinned);
        assert_eq!((promised.mss, promised.wscale), (1_200, Some(8)));
        assert!(promised.sack && !promise(&[ALL], &pinned).timestamps);
    }

    #[test]
    fn what_an_upstream_lacks_is_named() {
        let offered = Offered { wscale: true, sack: true, timestamps: true };
        assert_eq!(ALL.missing(&offered, 1_460, 52, 128), None);
        assert_eq!(ALL.missing(&offered, 1_461, 52, 128), Some(Missing::Mss));
        assert_eq!(Accepted { mss: 100, ..ALL }.missing(&offered, 50, 89, 128), Some(Missing::Mss));
        assert_eq!(Accepted { window: 127, ..ALL }.missing(&offered, 1_460, 52, 128), Some(Missing::WindowScale));
        let without = |change: fn(&mut Accepted)| {
            let mut accepted = ALL;
            change(&mut accepted);
            accepted.missing(&offered, 1_460, 52, 128)
        };
        assert_eq!(without(|a| a.wscale = Some(None)), Some(Missing::WindowScale));
        assert_eq!(without(|a| a.sack = Some(false)), Some(Missing::Sack));
        assert_eq!(without(|a| a.timestamps = Some(false)), Some(Missing::Timestamps));
        let unasked = Offered { wscale: false, sack: false, timestamps: false };
        let plain = Accepted { wscale: None, sack: None, timestamps: None, ..ALL };
        assert_eq!(plain.missing(&unasked, 1_460, 52, 1), None);
    }
}
