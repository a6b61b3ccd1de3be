//! Paths with a smaller MTU than the port they begin at: what is known of them by peer (RFC 1191, RFC 8201), what a connection finds out when
//! nothing tells ([`path`]), and segments cut to fit.
//!
//! Invariants:
//! - No path is taken to be smaller than [`MIN_V4`] or [`MIN_V6`], whatever anyone says.
//! - [`PathMtus`] holds [`PathMtus::CAPACITY`] peers, each for [`LIFE`] after it was learned, or after a router last said so; of those whose
//!   addresses hash to one set the one that was used longest ago gives way. Only peers with a connection can be learned of.
//! - What is learned of an upstream comes from connections of our own: a client chooses the numbers of a spliced one, what it sends and sends
//!   again, and so what routers and silence say of it.

mod path;

use std::time::Duration;

use siphasher::sip::SipHasher13;
use sluice_filters::Flags;
use sluice_filters::addr::Addr;
use sluice_filters::checksum;
use sluice_filters::units::{Micros, Seq};

use crate::net::{Lower, Way};
use crate::segment::IpHeader;

pub(crate) use self::path::{PackedPath, Path};

/// The least IPv4 path that a router is believed to mean: the least that Linux sends for (`net.ipv4.route.min_pmtu`).
pub(crate) const MIN_V4: u16 = 552;
/// The least MTU of an IPv6 link (RFC 8200 section 5): an MSS of 1,220.
pub(crate) const MIN_V6: u16 = 1_280;
/// How long a path's MTU is believed (RFC 1191 section 6.3).
const LIFE: Duration = Duration::from_secs(600);
/// What every IPv4 host takes (RFC 791): an MSS of 536 (RFC 9293 section 3.7.1).
const EVERY_V4: u16 = 576;
/// What paths have that do not say: Ethernet in PPPoE, IPv6's least and what tunnels leave of Ethernet, a kernel's guess, what every IPv4
/// host takes (RFC 1191 section 7.1, RFC 4821 section 7.6.2); and the least.
const PLATEAUS: [u16; 5] = [1_492, MIN_V6, 1_006, EVERY_V4, MIN_V4];
/// Sizes to try when full segments find no answer: one that nearly every path takes, then one that every host takes.
const ATTEMPTS: [u16; 2] = [MIN_V6, EVERY_V4];

/// The URG flag.
const URGENT: u8 = 0x20;

/// The least path of a family.
pub(crate) fn least(v4: bool) -> u16 {
    if v4 { MIN_V4 } else { MIN_V6 }
}

/// The size to try when packets of `len` bytes have found no answer twice; none when they are as small as can be.
pub(crate) fn attempt_below(len: u16, v4: bool) -> Option<u16> {
    ATTEMPTS.into_iter().find(|size| *size < len && *size >= least(v4))
}

/// The path that a router means which found `len` bytes too big and said `mtu`, 0 when it does not know (RFC 1191 section 5). None when
/// nothing that it can mean is smaller.
pub(crate) fn told(mtu: u32, len: u16, v4: bool) -> Option<u16> {
    let least = least(v4);
    let path = match u16::try_from(mtu) {
        Ok(0) if v4 => PLATEAUS.into_iter().find(|size| *size < len)?,
        Ok(mtu) => mtu.max(least),
        Err(_) => return None,
    };
    (path < len).then_some(path)
}

/// How a path's MTU became known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathSource {
    /// A router told.
    Router,
    /// Smaller segments were answered where larger ones were not.
    Silence,
}

impl PathSource {
    /// All of them, in the order of their counters.
    pub const ALL: [PathSource; 2] = [PathSource::Router, PathSource::Silence];

    /// The label of its metric.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            PathSource::Router => "router",
            PathSource::Silence => "silence",
        }
    }
}

/// What is known of the path to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PathMtu {
    /// The largest IP packet, bytes.
    pub(crate) mtu: u16,
    pub(crate) source: PathSource,
}

#[derive(Clone, Copy)]
struct Entry {
    peer: Addr,
    path: PathMtu,
    /// Before it is believed, and never.
    until: Micros,
    used: Micros,
}

const WAYS: usize = 8;
const SETS: usize = 512;
const NOBODY: Entry = Entry {
    peer: Addr { hi: 0, lo: 0 },
    path: PathMtu { mtu: u16::MAX, source: PathSource::Router },
    until: Micros(0),
    used: Micros(0),
};

/// The paths to peers that are smaller than they could be.
pub(crate) struct PathMtus {
    sets: Box<[[Entry; WAYS]]>,
    random: SipHasher13,
    /// Until when any entry is believed: nearly always there is none, and nobody looks.
    newest: Micros,
    /// How often something was learned that was not known, by its source.
    learned: [u64; PathSource::ALL.len()],
}

impl PathMtus {
    /// Peers that are remembered.
    #[cfg(test)]
    pub(crate) const CAPACITY: usize = WAYS * SETS;

    /// No path known. `key` is secret, so that nobody chooses whom to displace.
    pub(crate) fn new(key: [u64; 2]) -> PathMtus {
        PathMtus {
            sets: vec![[NOBODY; WAYS]; SETS].into_boxed_slice(),
            random: SipHasher13::new_with_keys(key[0], key[1]),
            newest: Micros(0),
            learned: [0; PathSource::ALL.len()],
        }
    }

    /// How often something was learned that was not known, by its source.
    pub(crate) fn learned(&self) -> [u64; PathSource::ALL.len()] {
        self.learned
    }

    /// What is known of the path to `peer`.
    pub(crate) fn get(&mut self, peer: Addr, now: Micros) -> Option<PathMtu> {
        if self.newest <= now {
            return None;
        }
        let entry = self.set(peer)?.iter_mut().find(|entry| entry.peer == peer && entry.until > now)?;
        entry.used = now;
        Some(entry.path)
    }

    /// Remembers a path; of two that are told of one peer the smaller is believed. A router that says again what is known is believed for
    /// longer. Silence says nothing again: what it taught once may since have become wrong, and is tried anew when it lapses.
    pub(crate) fn learn(&mut self, peer: Addr, path: PathMtu, now: Micros) {
        let until = now.after(LIFE);
        let Some(set) = self.set(peer) else { return };
        let known = set.iter_mut().find(|entry| entry.peer == peer && entry.until > now);
        if let Some(entry) = known.filter(|entry| entry.path.mtu <= path.mtu) {
            if path.source == PathSource::Router {
                (entry.until, entry.used) = (until, now);
                self.newest = until;
            }
            return;
        }
        // A larger one of this peer goes first, then the expired, since nothing used them since.
        let place = set.iter_mut().min_by_key(|entry| (entry.peer != peer, entry.until > now, entry.used));
        let Some(entry) = place else { return };
        *entry = Entry { peer, path, until, used: now };
        self.newest = until;
        if let Some(count) = self.learned.get_mut(path.source as usize) {
            *count = count.wrapping_add(1);
        }
    }

    fn set(&mut self, peer: Addr) -> Option<&mut [Entry; WAYS]> {
        let hash = self.random.hash(&peer.octets()) as usize;
        self.sets.get_mut(hash & (SETS - 1))
    }
}

/// A finished segment, checksum apart, to be sent in pieces: where it leaves, and its headers and payload.
pub(crate) struct Whole<'a> {
    pub(crate) way: Way,
    /// Its `len` is not looked at.
    pub(crate) ip: IpHeader,
    /// From the TCP header on.
    pub(crate) tcp: &'a [u8],
    /// Bytes of the TCP header.
    pub(crate) header_len: usize,
}

impl Whole<'_> {
    /// Sends the segment in pieces of IP packets that fit `mtu` bytes: its sender cannot be told of so small a path, or does not listen.
    /// FIN and PSH go with the last one.
    #[cold]
    pub(crate) fn send_in_pieces<N: Lower>(&self, mtu: u16, net: &mut N) {
        let Whole { way, ip, tcp, header_len } = *self;
        let Some((header, payload)) = tcp.split_at_checked(header_len) else { return };
        let room =
            usize::from(mtu.max(least(ip.src.is_v4()))).saturating_sub(ip.size().saturating_add(header_len)).max(1);
        let mut at = 0;
        loop {
            let rest = payload.get(at..).unwrap_or_default();
            let piece = rest.get(..room).unwrap_or(rest);
            let last = piece.len() == rest.len();
            let len = header_len.saturating_add(piece.len());
            let Ok(ip) = u16::try_from(len).map(|len| IpHeader { len, ..ip }) else { return };
            net.send(way, ip.size().saturating_add(len), |packet| {
                ip.write(packet);
                let Some(tcp) = packet.get_mut(ip.size()..) else { return };
                let Some((head, body)) = tcp.split_at_mut_checked(header_len) else { return };
                head.copy_from_slice(header);
                body.copy_from_slice(piece);
                renumber(head, at as u32, last);
                checksum::fill_tcp(tcp, ip.src, ip.dst);
            });
            if last {
                return;
            }
            at = at.saturating_add(room);
        }
    }
}

/// Makes a segment's header that of its piece which begins `offset` bytes into the payload.
fn renumber(head: &mut [u8], offset: u32, last: bool) {
    let Some((fixed, _)) = head.split_first_chunk_mut::<20>() else { return };
    let [_, _, _, _, a, b, c, d, _, _, _, _, _, flags, _, _, _, _, u, v] = fixed;
    let seq = Seq(u32::from_be_bytes([*a, *b, *c, *d]));
    [*a, *b, *c, *d] = seq.plus(offset).0.to_be_bytes();
    if !last {
        *flags &= !(Flags::FIN | Flags::PSH).0;
    }
    // The urgent pointer counts from the piece's own number.
    let urgent = u16::from_be_bytes([*u, *v]).saturating_sub(u16::try_from(offset).unwrap_or(u16::MAX));
    [*u, *v] = urgent.to_be_bytes();
    if urgent == 0 {
        *flags &= !URGENT;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;
    use sluice_filters::testkit::{self, Opt};
    use sluice_filters::units::WorkerId;
    use sluice_filters::{Parsed, RxChecksums, parse};

    use super::*;
    use crate::net::{Division, Owner, Reach, Route};

    /// What was sent.
    struct Sent(Vec<Vec<u8>>);

    impl Lower for Sent {
        fn room(&self, _: Way) -> bool {
            true
        }

        fn send<R>(&mut self, _: Way, len: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
            let mut packet = vec![0xaa; len];
            let result = fill(&mut packet);
            self.0.push(packet);
            result
        }

        fn route(&mut self, _: Addr) -> Option<Route> {
            None
        }

        fn reach(&mut self, _: Way) -> Reach {
            Reach::Known
        }

        fn division(&self, _: (Addr, u16), _: Addr) -> Division {
            Division { port: sluice_filters::units::PortId(0), v4: true, word: 0 }
        }

        fn owner(&self, _: &Division, _: u16) -> Owner {
            Owner { node: 0, worker: WorkerId(0) }
        }
    }

    proptest! {
        #[test]
        fn pieces_say_together_what_the_whole_said(
            v4: bool, seq: u32, payload in prop::collection::vec(any::<u8>(), 0..9_000), mtu in 0_u16..3_000,
            stamped: bool, fin: bool, push: bool, urgent in prop::option::of(any::<u16>()),
        ) {
            let ends = if v4 { ("192.0.2.7:40000", "198.51.100.10:443") } else { ("[2001:db8:1::7]:40000", "[2001:db8::10]:443") };
            let options = if stamped { vec![Opt::Nop, Opt::Nop, Opt::Timestamp(1, 2)] } else { Vec::new() };
            let mut flags = Flags::ACK;
            for (set, flag) in [(fin, Flags::FIN), (push, Flags::PSH), (urgent.is_some(), Flags(URGENT))] {
                if set {
                    flags = flags | flag;
                }
            }
            let mut frame = testkit::tcp(ends.0, ends.1).flags(flags).seq(seq).ack(9).options(options).payload(&payload[..]).build();
            let Ok(Parsed::Tcp(segment)) = parse(&frame, RxChecksums::default()) else { panic!() };
            if let Some(urgent) = urgent {
                frame[segment.l4() + 18..segment.l4() + 20].copy_from_slice(&urgent.to_be_bytes());
            }
            let ip = IpHeader { src: segment.key.src, dst: segment.key.dst, tos: 4, len: 0 };
            let way = Way::Neighbor { port: sluice_filters::units::PortId(0), id: 0 };
            let tcp = &frame[segment.l4()..segment.end()];
            let mut sent = Sent(Vec::new());
            Whole { way, ip, tcp, header_len: usize::from(segment.tcp_len) }.send_in_pieces(mtu, &mut sent);
            let most = usize::from(mtu.max(least(v4)));
            let mut got = Vec::new();
            let count = sent.0.len();
            for (number, packet) in sent.0.iter().enumerate() {
                prop_assert!(packet.len() <= most);
                let frame = testkit::ethernet(testkit::OUR_MAC, testkit::PEER_MAC, None, if v4 { 0x0800 } else { 0x86dd }, packet);
                // The parser verifies both checksums.
                let Ok(Parsed::Tcp(piece)) = parse(&frame, RxChecksums::default()) else { panic!() };
                prop_assert_eq!((piece.key, piece.ack, piece.window), (segment.key, segment.ack, segment.window));
                prop_assert_eq!(piece.seq, Seq(seq).plus(got.len() as u32));
                prop_assert_eq!(piece.options(&frame).timestamp, segment.options(&frame).timestamp);
                let last = number + 1 == count;
                prop_assert_eq!(piece.flags.fin(), fin && last);
                prop_assert_eq!(piece.flags.contains(Flags::PSH), push && last);
                if let Some(urgent) = urgent {
                    let at = piece.l4() + 18;
                    let points = usize::from(u16::from_be_bytes([frame[at], frame[at + 1]]));
                    let left = usize::from(urgent).saturating_sub(got.len());
                    prop_assert_eq!((points, piece.flags.contains(Flags(URGENT))), (left, left > 0));
                }
                got.extend_from_slice(piece.payload(&frame));
            }
            prop_assert!(got == payload);
            // No more of them than it takes.
            let room = most - (if v4 { 20 } else { 40 }) - usize::from(segment.tcp_len);
            prop_assert_eq!(count, payload.len().div_ceil(room).max(1));
        }

        #[test]
        fn nobody_can_say_that_a_path_is_smaller_than_the_least(mtu: u32, len: u16, v4: bool) {
            if let Some(path) = told(mtu, len, v4) {
                prop_assert!(path >= least(v4) && path < len);
                prop_assert!(mtu == 0 || u32::from(path) == mtu.max(u32::from(least(v4))));
            }
            if let Some(size) = attempt_below(len, v4) {
                prop_assert!(size >= least(v4) && size < len);
            }
        }

        #[test]
        fn the_table_knows_what_was_learned_of_the_last_peers(
            steps in prop::collection::vec((0_u32..40, prop::option::of((576_u16..1_500, any::<bool>())), 0_u64..200), 1..200),
        ) {
            let mut paths = PathMtus::new([1, 2]);
            let mut model: HashMap<u32, (u16, u64)> = HashMap::new();
            let mut changes = [0; 2];
            let mut now = 0;
            for (peer, learned, seconds) in steps {
                now += seconds * 1_000_000;
                let addr = Addr::v4(peer);
                model.retain(|_, (_, until)| *until > now);
                if let Some((mtu, silent)) = learned {
                    let source = if silent { PathSource::Silence } else { PathSource::Router };
                    paths.learn(addr, PathMtu { mtu, source }, Micros(now));
                    let known = model.get(&peer).map_or(u16::MAX, |(mtu, _)| *mtu);
                    if mtu < known || !silent {
                        model.insert(peer, (mtu.min(known), now + 600_000_000));
                    }
                    changes[source as usize] += u64::from(mtu < known);
                }
                prop_assert_eq!(paths.learned(), changes);
                let known = paths.get(addr, Micros(now)).map(|path| path.mtu);
                prop_assert_eq!(known, model.get(&peer).map(|(mtu, _)| *mtu));
            }
        }
    }

    #[test]
    fn a_flood_of_peers_displaces_those_that_were_used_longest_ago() {
        let mut paths = PathMtus::new([1, 2]);
        let path = PathMtu { mtu: 1_400, source: PathSource::Router };
        let flood = 4 * PathMtus::CAPACITY as u32;
        for peer in 0..flood {
            let now = Micros(u64::from(peer) + 1);
            paths.learn(Addr::v4(peer), path, now);
            // One that is in use all the time.
            assert_eq!(paths.get(Addr::v4(0), now), Some(path), "after {peer}");
        }
        let now = Micros(u64::from(flood) + 1);
        let known = (0..flood).filter(|peer| paths.get(Addr::v4(*peer), now).is_some()).count();
        assert_eq!(known, PathMtus::CAPACITY);
        // Sets differ by chance; a peer among the last half of what fits is all but sure to be known.
        let newest =
            (flood - PathMtus::CAPACITY as u32 / 4..flood).filter(|peer| paths.get(Addr::v4(*peer), now).is_some());
        assert!(newest.count() > PathMtus::CAPACITY / 4 * 99 / 100);
    }
}
