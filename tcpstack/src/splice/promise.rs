//! What SYN-ACKs promise, by service and cookie epoch.
//!
//! A SYN is answered before anyone has asked an upstream, and what the answer says cannot be taken back. The cookie has room for what the
//! client offered, not for what we promised: our window scale, window and MSS. So a promise is a value of (service, epoch). The
//! first worker that needs one fixes it for all, on the [`Board`], from what is pinned and what probes have found by then; no
//! later finding, configuration or worker changes it. The parity bit of an ACK's cookie tells whose epoch's promise it has.
//!
//! - A worker keeps the promises of the two live epochs at hand; the board keeps those of [`KEPT`], so that a worker whose turn comes
//!   later, or a clock that is set back, finds what was said.
//! - An epoch that nobody has promised anything in takes up what is learned until then: a start waits for nothing.
//! - A cookie of an epoch that began before the appliance started, or of a sibling with the same seed, is taken at what this appliance
//!   would have promised: right for what is pinned, and where the upstreams have not changed meanwhile. Whether windows are scaled and SACK
//!   is spoken, the cookie itself says.
//! - What clients share is learned from probes alone ([`super::probe`]), whose numbers no client knows: it chooses those of its dial.
//! - A promise of a window is one of a buffer: no window is larger than what a session falling back has room for.
//!
//! Where nothing is known, a promise is what nearly every host accepts, and a dial that finds less falls back.

use crossbeam::queue::ArrayQueue;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use sluice_config::{Config, Mode, Service};
use sluice_filters::addr::Addr;
use sluice_filters::units::{Micros, PortId, ServiceId};
use sluice_filters::{Segment, TcpOptions};

use crate::cookie::Offer;
use crate::counters::Missing;
use crate::net::Route;
use crate::segment;
use crate::stack::header::longest;
use crate::stack::{Stack, advertised};

/// Where nothing is known: what fits Ethernet, the window scale Linux has by default, and a window that every server opens.
const MTU_ASSUMED: u16 = 1_500;
const SCALE_ASSUMED: u8 = 7;
const WINDOW_ASSUMED: u16 = 8_192;
/// No less is learned: smaller segments would be mostly headers, and every host takes these (RFC 9293 section 3.7.1).
const MSS_MIN: u16 = 536;
/// MSS of a SYN-ACK without that option (RFC 9293 section 3.7.1).
const MSS_DEFAULT_V4: u16 = 536;
const MSS_DEFAULT_V6: u16 = 1_220;
/// No window in a SYN-ACK of ours is smaller: a client with nothing to go on would not begin.
const WINDOW_MIN: u16 = 536;
/// What timestamps take of a segment.
const TIMESTAMP_LEN: u32 = 12;
/// Epochs whose promises are kept: a quarter of an hour, as long as a client repeats what it sends.
const KEPT: usize = 16;
/// How long an upstream may remember a path's MTU that it was told of: twice what Linux does.
const TOLD_LIFE: Duration = Duration::from_secs(1_200);
/// An upstream that left a SYN unanswered counts as strained for so long.
const STRAINED: Duration = Duration::from_secs(10);

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

impl SynOffers {
    /// Nothing was promised in this epoch yet, as far as this worker knows. No promise is like this.
    pub(crate) const OPEN: SynOffers = SynOffers { mss: 0, wscale: None, window: 0, sack: false, timestamps: false };

    /// The window scale of a client that was promised one.
    pub(crate) fn shift(&self) -> u8 {
        self.wscale.unwrap_or(SCALE_ASSUMED)
    }
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
    pub(super) wscale: bool,
    pub(super) sack: bool,
    pub(super) timestamps: bool,
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

    /// What it lacks of what was offered, a client's segments of `mss` bytes, a header of `header_len` and windows that are told in
    /// units of `unit` bytes. An MSS down to `told` is our own word about the way back, and nothing missing.
    pub(crate) fn missing(
        &self,
        offered: &Offered,
        mss: u16,
        told: Option<u16>,
        header_len: u32,
        unit: u32,
    ) -> Option<Missing> {
        let least = told.map_or(mss, |told| told.min(mss));
        if self.mss < least || u32::from(self.mss) < header_len.saturating_add(TIMESTAMP_LEN) {
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
    known.map_or(0, |yes| u64::from(yes).wrapping_add(1))
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

/// A promise and its epoch in one word: `fixed (1) | epoch / KEPT (25) | mss (16) | window (16) | wscale (4; 15 = none) | SACK | timestamps`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Fixed(u64);

const SCALE_NONE: u8 = 15;
const EPOCH_SHIFT: u32 = 38;
const EPOCH_SHIFT_ABOVE: u32 = EPOCH_SHIFT + 1;

impl Fixed {
    fn tag(epoch: u64) -> u64 {
        1 << 63 | epoch.checked_div(KEPT as u64).unwrap_or(0) << EPOCH_SHIFT_ABOVE >> 1
    }

    fn of(epoch: u64, offers: &SynOffers) -> Fixed {
        let scale = offers.wscale.map_or(SCALE_NONE, |scale| scale.min(14));
        Fixed(
            Fixed::tag(epoch)
                | u64::from(offers.mss) << 22
                | u64::from(offers.window) << 6
                | u64::from(scale) << 2
                | u64::from(offers.sack) << 1
                | u64::from(offers.timestamps),
        )
    }

    /// The promise, if it is that of `epoch`.
    fn in_epoch(self, epoch: u64) -> Option<SynOffers> {
        let scale = (self.0 >> 2 & 0xf) as u8;
        (self.0 >> EPOCH_SHIFT == Fixed::tag(epoch) >> EPOCH_SHIFT).then_some(SynOffers {
            mss: (self.0 >> 22) as u16,
            window: (self.0 >> 6) as u16,
            wscale: (scale != SCALE_NONE).then_some(scale),
            sack: self.0 & 2 != 0,
            timestamps: self.0 & 1 != 0,
        })
    }
}

/// What all workers know of one upstream.
#[derive(Debug, Default)]
struct Upstream {
    note: AtomicU64,
    /// It does not repeat a SYN-ACK: it keeps nothing of a SYN (RFC 4987 section 3.6).
    forgets: AtomicBool,
    /// Until then it is taken for one that may have begun to.
    strained: AtomicU64,
    /// Somebody wants it to be asked.
    wanted: AtomicBool,
}

#[derive(Debug)]
struct Promises {
    upstreams: Vec<Upstream>,
    /// By epoch, modulo their number.
    fixed: [AtomicU64; KEPT],
}

/// What all workers know of all upstreams, and what they promised.
#[derive(Debug)]
pub struct Board {
    services: Vec<Promises>,
    /// By upstreams' addresses: `MTU (16) | milliseconds (48)`, the least MTU of a path to us that we told of, and when.
    told: HashMap<Addr, AtomicU64>,
    /// Counts what is new.
    news: AtomicU64,
    /// The upstreams that somebody wants to be asked, each once.
    wishes: ArrayQueue<(ServiceId, u16)>,
}

impl Board {
    /// Nothing known, nothing promised.
    #[must_use]
    pub fn new(config: &Config) -> Board {
        let services = config.services.iter().map(|service| Promises {
            upstreams: service.upstreams.iter().map(|_| Upstream::default()).collect(),
            fixed: Default::default(),
        });
        let upstreams = config.services.iter().flat_map(|service| &service.upstreams);
        let most = upstreams.clone().count().max(1);
        let told = upstreams.map(|upstream| (Addr::from(upstream.address.ip()), AtomicU64::new(0))).collect();
        Board { services: services.collect(), told, news: AtomicU64::new(0), wishes: ArrayQueue::new(most) }
    }

    fn upstream(&self, service: ServiceId, upstream: u16) -> Option<&Upstream> {
        self.services.get(usize::from(service.0))?.upstreams.get(usize::from(upstream))
    }

    fn slot(&self, service: ServiceId, epoch: u64) -> Option<&AtomicU64> {
        self.services.get(usize::from(service.0))?.fixed.get(epoch.checked_rem(KEPT as u64)? as usize)
    }

    /// What SYN-ACKs of an epoch promise, if anybody has needed it yet.
    pub(crate) fn fixed(&self, service: ServiceId, epoch: u64) -> Option<SynOffers> {
        Fixed(self.slot(service, epoch)?.load(Ordering::Relaxed)).in_epoch(epoch)
    }

    /// The same, and if nobody has, it is `offers` from now on.
    pub(crate) fn fix(&self, service: ServiceId, epoch: u64, offers: &SynOffers) -> Option<SynOffers> {
        let slot = self.slot(service, epoch)?;
        // One word is all there is: no other memory has to be seen with it.
        let new = Fixed::of(epoch, offers);
        let fixed = slot.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |found| {
            Fixed(found).in_epoch(epoch).is_none().then_some(new.0)
        });
        match fixed {
            Ok(_) => {
                self.tell_news();
                new.in_epoch(epoch)
            }
            Err(earlier) => Fixed(earlier).in_epoch(epoch),
        }
    }

    fn tell_news(&self) {
        self.news.fetch_add(1, Ordering::Release);
    }

    /// What an upstream accepted of a probe.
    pub(crate) fn note(&self, service: ServiceId, upstream: u16) -> Option<Accepted> {
        Note(self.upstream(service, upstream)?.note.load(Ordering::Relaxed)).read()
    }

    /// Notes what an upstream accepted of a probe, which offers everything.
    pub(crate) fn learn(&self, service: ServiceId, upstream: u16, mut now: Accepted) {
        let Some(known) = self.upstream(service, upstream) else { return };
        now.mss = now.mss.max(MSS_MIN);
        let new = Note::of(&now).0;
        if known.note.swap(new, Ordering::Relaxed) != new {
            self.tell_news();
        }
    }

    /// Asks the worker that sends probes for one, soon.
    pub(crate) fn want_probe(&self, service: ServiceId, upstream: u16) {
        if let Some(known) = self.upstream(service, upstream)
            && !known.wanted.swap(true, Ordering::Relaxed)
        {
            // There is room for each upstream; one that was granted and is wanted anew may stand in it twice.
            let _ = self.wishes.push((service, upstream));
        }
    }

    /// The next upstream that somebody wants to be asked.
    pub(crate) fn wish(&self) -> Option<(ServiceId, u16)> {
        self.wishes.pop()
    }

    /// Whether this upstream is to be asked.
    pub(crate) fn is_wanted(&self, service: ServiceId, upstream: u16) -> bool {
        self.upstream(service, upstream).is_some_and(|known| known.wanted.load(Ordering::Relaxed))
    }

    /// This upstream was asked, and has answered.
    pub(crate) fn grant(&self, service: ServiceId, upstream: u16) {
        if let Some(known) = self.upstream(service, upstream) {
            known.wanted.store(false, Ordering::Relaxed);
        }
    }

    /// Notes whether an upstream keeps nothing of a SYN.
    pub(crate) fn learn_forgets(&self, service: ServiceId, upstream: u16, forgets: bool) {
        if let Some(known) = self.upstream(service, upstream) {
            known.forgets.store(forgets, Ordering::Relaxed);
        }
    }

    /// Notes that an upstream left a SYN unanswered: its backlog may be full.
    pub(crate) fn strain(&self, service: ServiceId, upstream: u16, now: Micros) {
        if let Some(known) = self.upstream(service, upstream) {
            known.strained.store(now.after(STRAINED).0, Ordering::Relaxed);
        }
    }

    /// Whether an upstream may know no more of a handshake than the ACK that ends it says.
    pub(crate) fn may_forget(&self, service: ServiceId, upstream: u16, now: Micros) -> bool {
        self.upstream(service, upstream).is_some_and(|known| {
            known.forgets.load(Ordering::Relaxed) || now.0 < known.strained.load(Ordering::Relaxed)
        })
    }

    /// Notes that an upstream was told of a path to us for packets of `mtu` octets at most.
    pub(crate) fn tell(&self, upstream: Addr, mtu: u16, now: Micros) {
        if let Some(told) = self.told.get(&upstream) {
            let least = self.told(upstream, now).map_or(mtu, |before| before.min(mtu));
            let at = (now.0 / 1_000) & (u64::MAX >> 16);
            told.store(u64::from(least) << 48 | at, Ordering::Relaxed);
        }
    }

    /// The least MTU that an upstream was told of and may remember.
    pub(crate) fn told(&self, upstream: Addr, now: Micros) -> Option<u16> {
        let told = self.told.get(&upstream)?.load(Ordering::Relaxed);
        let at = Micros((told & (u64::MAX >> 16)).saturating_mul(1_000));
        (told != 0 && now < at.after(TOLD_LIFE)).then_some((told >> 48) as u16)
    }

    /// What a service would promise now; packets on all ports may have `mtu` octets.
    pub(crate) fn offers(&self, service: ServiceId, settings: &Service, mtu: u16) -> SynOffers {
        match settings.mode {
            Mode::Terminate => terminated_offers(settings),
            Mode::Splice => {
                let upstreams = (0_u16..).take(settings.upstreams.len());
                promise(upstreams.filter_map(|upstream| self.note(service, upstream)), settings, mtu)
            }
        }
    }
}

/// What a terminated service's SYN-ACKs say: what this stack can do.
fn terminated_offers(settings: &Service) -> SynOffers {
    SynOffers { mss: u16::MAX, wscale: Some(0), window: advertised(settings.buffer), sack: true, timestamps: true }
}

/// What is pinned, and else the least that all known upstreams accept.
fn promise(known: impl Iterator<Item = Accepted> + Clone, settings: &Service, mtu: u16) -> SynOffers {
    let pinned = &settings.promise;
    let all = |accepts: fn(Accepted) -> Option<bool>| known.clone().all(|upstream| accepts(upstream) != Some(false));
    let scales = all(|upstream| upstream.wscale.map(|scale| scale.is_some()));
    let largest = known.clone().filter_map(|upstream| upstream.wscale.flatten()).max().unwrap_or(SCALE_ASSUMED);
    let v4 = settings.upstreams.iter().all(|upstream| upstream.address.is_ipv4());
    let assumed = segment::mss_of(mtu.min(MTU_ASSUMED), v4).max(MSS_MIN);
    let window = known.clone().map(|upstream| upstream.window).min().unwrap_or(WINDOW_ASSUMED);
    // The header comes out of the window, and is known to fit only with room to spare.
    let window = window.saturating_sub(longest(settings).unwrap_or(0));
    SynOffers {
        mss: pinned.mss.unwrap_or_else(|| known.clone().map(|upstream| upstream.mss).min().unwrap_or(assumed)),
        wscale: pinned.window_scale.or(scales.then_some(largest)),
        window: window.min(advertised(settings.buffer)).max(WINDOW_MIN),
        sack: pinned.sack.unwrap_or_else(|| all(|upstream| upstream.sack)),
        timestamps: pinned.timestamps.unwrap_or_else(|| all(|upstream| upstream.timestamps)),
    }
}

/// What is shown of promises.
pub(crate) struct Shown {
    /// By service.
    offers: Vec<SynOffers>,
    /// The board's news that are shown, or being shown.
    news: Option<u64>,
    /// The service to be shown next, and how many are to be shown.
    next: usize,
    left: usize,
}

impl Shown {
    /// Nothing, of so many services.
    pub(crate) fn nothing(services: usize) -> Shown {
        Shown { offers: vec![SynOffers::OPEN; services], news: None, next: 0, left: services }
    }
}

/// Services shown at once.
const SHOWN: usize = 64;

impl Stack {
    /// Another epoch mints: what was promised in the two that cookies are of now is asked of the board when somebody needs it.
    #[cold]
    pub(crate) fn forget_promises(&mut self) {
        for list in [&self.offers, &self.other_offers] {
            for offers in list {
                offers.set(SynOffers::OPEN);
            }
        }
        self.shown.news = None;
    }

    /// What the SYN-ACKs of `epoch` promised, as [`Jar::epoch_of`](crate::cookie::Jar::epoch_of) tells it.
    pub(crate) fn promised(&self, service: ServiceId, epoch: u64) -> Option<SynOffers> {
        let (minting, other) = self.jar.epochs();
        let list = if epoch == minting {
            &self.offers
        } else if epoch == other {
            &self.other_offers
        } else if let Some(offers) = self.shared.board.fixed(service, epoch) {
            // From before the clock was set.
            return Some(offers);
        } else {
            &self.offers
        };
        match list.get(usize::from(service.0))?.get() {
            SynOffers::OPEN => self.fix_promise(service, epoch != other),
            offers => Some(offers),
        }
    }

    /// Makes the first promise of an epoch, the one that mints or the other; or takes up another worker's.
    #[cold]
    pub(crate) fn fix_promise(&self, service: ServiceId, minting: bool) -> Option<SynOffers> {
        let epochs = self.jar.epochs();
        let epoch = if minting { epochs.0 } else { epochs.1 };
        let index = usize::from(service.0);
        let offers = self.shared.board.offers(service, self.config.services.get(index)?, self.least_mtu());
        let fixed = self.shared.board.fix(service, epoch, &offers)?;
        let list = if minting { &self.offers } else { &self.other_offers };
        list.get(index)?.set(fixed);
        Some(fixed)
    }

    fn least_mtu(&self) -> u16 {
        self.mtus.iter().copied().min().unwrap_or(MTU_ASSUMED)
    }

    /// Shows what SYN-ACKs promise, of a few hundred services, if anything is new. Cheap otherwise.
    pub(crate) fn refresh_offers(&mut self) {
        let news = self.shared.board.news.load(Ordering::Acquire);
        let services = self.config.services.len();
        if self.shown.news != Some(news) {
            (self.shown.news, self.shown.left) = (Some(news), services);
        }
        for _ in 0..self.shown.left.min(SHOWN) {
            self.show_offer(ServiceId(self.shown.next as u16));
            self.shown.next = self.shown.next.wrapping_add(1).checked_rem(services).unwrap_or(0);
            self.shown.left = self.shown.left.saturating_sub(1);
        }
    }

    /// A service whose SYN-ACKs changed since they were last asked for, for the log: its name, and what they promise.
    pub fn changed_offer(&mut self) -> Option<(String, String)> {
        let service = self.changed.pop()?;
        let SynOffers { mss, wscale, window, sack, timestamps } = self.shown.offers.get(usize::from(service.0))?;
        let name = self.config.services.get(usize::from(service.0))?.name.clone();
        let scale = wscale.map_or("none".to_owned(), |scale| scale.to_string());
        let on = |promised: &bool| if *promised { "on" } else { "off" };
        let (sack, timestamps) = (on(sack), on(timestamps));
        Some((name, format!("MSS {mss}, window {window}, window scale {scale}, SACK {sack}, timestamps {timestamps}")))
    }

    /// Forgets the services that [`Stack::changed_offer`] has yet to name; how many they are.
    pub fn forget_changed_offers(&mut self) -> usize {
        self.changed.drain(..).count()
    }

    /// Shows what is promised in this epoch; until it is, what would be.
    pub(crate) fn show_offer(&mut self, service: ServiceId) {
        let index = usize::from(service.0);
        let Some(settings) = self.config.services.get(index) else { return };
        let board = &self.shared.board;
        let fixed = board.fixed(service, self.jar.epochs().0);
        let offers = fixed.unwrap_or_else(|| board.offers(service, settings, self.least_mtu()));
        if let Some(counters) = self.counters.services.get(index) {
            counters.offers.show(&offers);
        }
        if let Some(shown) = self.shown.offers.get_mut(index)
            && *shown != offers
        {
            *shown = offers;
            if settings.mode == Mode::Splice && !self.changed.contains(&service) {
                self.changed.push(service);
            }
        }
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
    use proptest::prelude::*;
    use sluice_config::Config;

    use super::*;

    const ALL: Accepted =
        Accepted { mss: 1_460, window: 65_160, wscale: Some(Some(7)), sack: Some(true), timestamps: Some(true) };
    const SERVICE: ServiceId = ServiceId(0);

    fn config(extra: &str, upstream: &str) -> Config {
        let text = format!(
            r#"
[[port]]
name = "p"
device = "net_null0"
addresses = ["198.51.100.2/24", "10.0.0.2/8", "fd00::2/64"]
[[service]]
name = "s"
listen = ["198.51.100.10:443"]
proxy_protocol = "off"
mode = "splice"
{extra}
[[service.upstream]]
address = "{upstream}"
"#
        );
        sluice_config::parse("test.toml", &text).unwrap_or_else(|errors| panic!("{errors}"))
    }

    fn promised(known: &[Accepted], extra: &str) -> SynOffers {
        promise(known.iter().copied(), &config(extra, "10.0.0.5:80").services[0], 1_500)
    }

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
    fn where_nothing_is_known_what_nearly_every_host_accepts_is_promised() {
        let expected = SynOffers { mss: 1_460, wscale: Some(7), window: 8_192, sack: true, timestamps: true };
        assert_eq!(promised(&[], ""), expected);
        let v6 = config("", "[fd00::5]:80");
        assert_eq!(promise(std::iter::empty(), &v6.services[0], 1_500).mss, 1_440);
        assert_eq!(promise(std::iter::empty(), &v6.services[0], 9_000).mss, 1_440);
        assert_eq!(promise(std::iter::empty(), &v6.services[0], 1_400).mss, 1_340);
    }

    #[test]
    fn the_least_of_all_upstreams_is_promised_and_the_largest_scale() {
        let small = Accepted { mss: 1_400, window: 30_000, wscale: Some(Some(9)), sack: Some(false), ..ALL };
        let expected = SynOffers { mss: 1_400, wscale: Some(9), window: 30_000, sack: false, timestamps: true };
        assert_eq!(promised(&[ALL, small], ""), expected);
        let unscaled = Accepted { wscale: Some(None), ..ALL };
        assert_eq!(promised(&[ALL, unscaled], "").wscale, None);
    }

    #[test]
    fn pinned_values_stand_whatever_is_known() {
        let pinned = "promise = { mss = 1200, window_scale = 8, sack = true, timestamps = false }";
        for known in [&[][..], &[ALL], &[Accepted { mss: 536, wscale: Some(None), sack: Some(false), ..ALL }]] {
            let promised = promised(known, pinned);
            assert_eq!((promised.mss, promised.wscale), (1_200, Some(8)));
            assert!(promised.sack && !promised.timestamps);
        }
    }

    #[test]
    fn no_window_is_promised_that_the_buffer_does_not_hold() {
        assert_eq!(promised(&[ALL], "buffer = \"4KiB\"").window, 4_096);
        assert_eq!(promised(&[], "buffer = \"4KiB\"").window, 4_096);
        assert_eq!(promised(&[Accepted { window: 3_000, ..ALL }], "buffer = \"4KiB\"").window, 3_000);
        assert_eq!(promised(&[Accepted { window: 0, ..ALL }], "").window, 536);
    }

    #[test]
    fn no_mss_below_536_is_learned() {
        let config = config("", "10.0.0.5:80");
        let board = Board::new(&config);
        board.learn(SERVICE, 0, Accepted { mss: 1, ..ALL });
        assert_eq!(board.offers(SERVICE, &config.services[0], 1_500).mss, 536);
    }

    #[test]
    fn the_first_promise_of_an_epoch_is_everybodys_until_the_next() {
        let board = Board::new(&config("", "10.0.0.5:80"));
        let (first, second) = (promised(&[], ""), promised(&[ALL], "promise = { window_scale = 3 }"));
        assert_eq!(board.fixed(SERVICE, 9), None);
        assert_eq!(board.fix(SERVICE, 9, &first), Some(first));
        assert_eq!(board.fix(SERVICE, 9, &second), Some(first));
        assert_eq!(board.fix(SERVICE, 10, &second), Some(second), "a scale may shrink");
        assert_eq!((board.fixed(SERVICE, 9), board.fixed(SERVICE, 10)), (Some(first), Some(second)));
    }

    #[test]
    fn a_clock_set_back_a_quarter_of_an_hour_finds_what_was_promised() {
        let board = Board::new(&config("", "10.0.0.5:80"));
        let promise = |scale| SynOffers { wscale: Some(scale), ..promised(&[ALL], "") };
        for epoch in 0..30_u64 {
            board.fix(SERVICE, epoch, &promise((epoch % 15) as u8));
            for back in 0..=epoch.min(KEPT as u64 - 1) {
                let then = epoch - back;
                assert_eq!(
                    board.fix(SERVICE, then, &promise(14)),
                    Some(promise((then % 15) as u8)),
                    "{then} at {epoch}"
                );
            }
        }
        assert_eq!(board.fixed(SERVICE, 0), None);
    }

    #[test]
    fn what_an_upstream_was_told_it_may_remember_for_a_while() {
        let board = Board::new(&config("", "10.0.0.5:80"));
        let (upstream, now) = ("10.0.0.5".parse::<std::net::IpAddr>().unwrap().into(), Micros(5_000_000));
        assert_eq!(board.told(upstream, now), None);
        board.tell(upstream, 1_300, now);
        board.tell(upstream, 1_400, now);
        assert_eq!(board.told(upstream, now), Some(1_300));
        assert_eq!(board.told(upstream, now.after(Duration::from_secs(1_100))), Some(1_300));
        assert_eq!(board.told(upstream, now.after(Duration::from_secs(1_201))), None);
    }

    #[test]
    fn what_an_upstream_lacks_is_named() {
        let offered = Offered { wscale: true, sack: true, timestamps: true };
        assert_eq!(ALL.missing(&offered, 1_460, None, 52, 128), None);
        assert_eq!(ALL.missing(&offered, 1_461, None, 52, 128), Some(Missing::Mss));
        assert_eq!(ALL.missing(&offered, 8_960, Some(1_460), 52, 128), None, "it has it from us");
        assert_eq!(ALL.missing(&offered, 8_960, Some(1_461), 52, 128), Some(Missing::Mss));
        assert_eq!(Accepted { mss: 100, ..ALL }.missing(&offered, 50, None, 89, 128), Some(Missing::Mss));
        assert_eq!(Accepted { window: 127, ..ALL }.missing(&offered, 1_460, None, 52, 128), Some(Missing::WindowScale));
        let without = |change: fn(&mut Accepted)| {
            let mut accepted = ALL;
            change(&mut accepted);
            accepted.missing(&offered, 1_460, None, 52, 128)
        };
        assert_eq!(without(|a| a.wscale = Some(None)), Some(Missing::WindowScale));
        assert_eq!(without(|a| a.sack = Some(false)), Some(Missing::Sack));
        assert_eq!(without(|a| a.timestamps = Some(false)), Some(Missing::Timestamps));
        let unasked = Offered { wscale: false, sack: false, timestamps: false };
        let plain = Accepted { wscale: None, sack: None, timestamps: None, ..ALL };
        assert_eq!(plain.missing(&unasked, 1_460, None, 52, 1), None);
    }

    proptest! {
        #[test]
        fn a_promise_reads_back_in_its_own_epoch_only(
            mss: u16, window: u16, wscale in prop::option::of(0_u8..=14), sack: bool, timestamps: bool,
            epoch in 0_u64..1 << 29, other in 0_u64..1 << 29,
        ) {
            let offers = SynOffers { mss, wscale, window, sack, timestamps };
            let fixed = Fixed::of(epoch, &offers);
            prop_assert_eq!(fixed.in_epoch(epoch), Some(offers));
            // Slots are told apart by the rest.
            if other % KEPT as u64 == epoch % KEPT as u64 && other != epoch {
                prop_assert_eq!(fixed.in_epoch(other), None);
            }
            prop_assert_eq!(fixed.in_epoch(epoch + KEPT as u64), None);
            prop_assert_eq!(Fixed(0).in_epoch(epoch), None);
        }
    }
}
