//! A host in user space, segment by segment: an address and a MAC of its own that no kernel knows. It answers ARP and NDP for
//! them; what it says otherwise is up to the test. [`crate::rawtcp`] makes a TCP of it.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use etherparse::{
    EtherType, Ethernet2Header, NetSlice, PacketBuilder, SlicedPacket, TcpOptionElement, TcpSlice, TransportSlice,
};

use crate::flood::resolve;
use crate::frames::{Segment, atomic_fragment};
use crate::link::Link;
use crate::netns::Ns;

/// A segment to send.
#[derive(Clone, Debug, Default)]
pub struct Say<'a> {
    /// Flags, see [`crate::frames::flags`].
    pub flags: u8,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgment number.
    pub ack: u32,
    /// The window field.
    pub window: u16,
    /// Options, raw.
    pub options: &'a [u8],
    /// Payload.
    pub payload: &'a [u8],
    /// IPv6 packets bear a fragment header, though they are whole (RFC 6946).
    pub atomic: bool,
}

/// A received segment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Arrived {
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgment number; also read where the flag is not set.
    pub ack: u32,
    /// SYN.
    pub syn: bool,
    /// ACK.
    pub acks: bool,
    /// FIN.
    pub fin: bool,
    /// RST.
    pub rst: bool,
    /// ECE.
    pub ece: bool,
    /// The window field.
    pub window: u16,
    /// MSS option.
    pub mss: Option<u16>,
    /// Window scale option.
    pub wscale: Option<u8>,
    /// SACK-permitted option.
    pub sack: bool,
    /// TSval and TSecr.
    pub clock: Option<(u32, u32)>,
    /// Payload.
    pub payload: Vec<u8>,
}

/// Where a host in user space stands, and with whom it speaks.
pub struct Station {
    link: Link,
    mac: [u8; 6],
    me: SocketAddr,
    /// The other end and the MAC address it is reached by; a listening station has none yet.
    peer: Option<(SocketAddr, [u8; 6])>,
}

impl Station {
    /// A station at `me`, which no kernel may own, on `interface` of `ns`. Its peer is the first that sends it a SYN.
    #[must_use]
    pub fn listen(ns: &Ns, interface: &str, mac: [u8; 6], me: SocketAddr) -> Station {
        Station { link: Link::open(ns, interface), mac, me, peer: None }
    }

    /// A station that speaks with `peer`.
    ///
    /// # Errors
    /// When nobody says where `peer` is.
    pub fn towards(
        ns: &Ns,
        interface: &str,
        mac: [u8; 6],
        me: SocketAddr,
        peer: SocketAddr,
    ) -> Result<Station, String> {
        let peer_mac = ns.run(|| resolve(peer.ip()))?;
        Ok(Station::over(Link::open(ns, interface), mac, me, (peer, peer_mac)))
    }

    /// A station on an open link.
    #[must_use]
    pub fn over(link: Link, mac: [u8; 6], me: SocketAddr, peer: (SocketAddr, [u8; 6])) -> Station {
        Station { link, mac, me, peer: Some(peer) }
    }

    /// Its own address.
    #[must_use]
    pub fn me(&self) -> SocketAddr {
        self.me
    }

    /// Whom it speaks with.
    ///
    /// # Panics
    /// Before anybody has sent a SYN.
    #[must_use]
    pub fn peer(&self) -> SocketAddr {
        self.peer.expect("somebody has dialled").0
    }

    /// Waits for a SYN of whomever and speaks with its sender from now on.
    pub fn next_syn(&mut self, patience: Duration) -> Option<Arrived> {
        self.peer = None;
        let deadline = Instant::now() + patience;
        while let Some(left) = deadline.checked_duration_since(Instant::now()) {
            let Some((from, mac, arrived)) = self.receive(left) else { continue };
            if arrived.syn && !arrived.acks {
                self.peer = Some((from, mac));
                return Some(arrived);
            }
        }
        None
    }

    /// The next segment of its peer, if one comes within `patience`. Neighbours who ask get their answer.
    pub fn next(&mut self, patience: Duration) -> Option<Arrived> {
        let deadline = Instant::now() + patience;
        while let Some(left) = deadline.checked_duration_since(Instant::now()) {
            match self.receive(left) {
                Some((from, _, arrived)) if self.peer.is_some_and(|(peer, _)| peer == from) => return Some(arrived),
                _ => {}
            }
        }
        None
    }

    /// Sends a segment to its peer.
    ///
    /// # Panics
    /// Before anybody has sent a SYN.
    pub fn say(&mut self, say: &Say<'_>) {
        let (to, to_mac) = self.peer.expect("somebody has dialled");
        let segment = Segment {
            from_mac: self.mac,
            to_mac,
            from: self.me,
            to,
            seq: say.seq,
            ack: say.ack,
            flags: say.flags,
            window: say.window,
            options: say.options,
            payload: say.payload,
        };
        let frame = segment.frame();
        self.link.send(&if say.atomic { atomic_fragment(&frame) } else { frame });
    }

    /// The next frame, when it is a segment for us; its sender and the MAC address it came from.
    fn receive(&mut self, patience: Duration) -> Option<(SocketAddr, [u8; 6], Arrived)> {
        let frame = self.link.receive(patience)?.to_vec();
        let packet = SlicedPacket::from_ethernet(&frame).ok()?;
        if let Some(answer) = neighbour_answer(&packet, &frame, self.me.ip(), self.mac) {
            self.link.send(&answer);
            return None;
        }
        let (from, to): (IpAddr, IpAddr) = match &packet.net {
            Some(NetSlice::Ipv4(ip)) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
            Some(NetSlice::Ipv6(ip)) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
            _ => return None,
        };
        let Some(TransportSlice::Tcp(tcp)) = &packet.transport else { return None };
        let from = SocketAddr::new(from, tcp.source_port());
        let mac = frame.get(6..12)?.try_into().ok()?;
        (SocketAddr::new(to, tcp.destination_port()) == self.me).then(|| (from, mac, Arrived::new(tcp)))
    }
}

impl Arrived {
    /// The number behind its last.
    #[must_use]
    pub fn end(&self) -> u32 {
        let length = u32::try_from(self.payload.len()).expect("a frame is short");
        self.seq.wrapping_add(length).wrapping_add(u32::from(self.syn) + u32::from(self.fin))
    }

    fn new(tcp: &TcpSlice<'_>) -> Arrived {
        let mut arrived = Arrived {
            seq: tcp.sequence_number(),
            ack: tcp.acknowledgment_number(),
            syn: tcp.syn(),
            acks: tcp.ack(),
            fin: tcp.fin(),
            rst: tcp.rst(),
            ece: tcp.ece(),
            window: tcp.window_size(),
            payload: tcp.payload().to_vec(),
            ..Arrived::default()
        };
        for option in tcp.options_iterator().flatten() {
            match option {
                TcpOptionElement::MaximumSegmentSize(mss) => arrived.mss = Some(mss),
                TcpOptionElement::WindowScale(scale) => arrived.wscale = Some(scale),
                TcpOptionElement::SelectiveAcknowledgementPermitted => arrived.sack = true,
                TcpOptionElement::Timestamp(value, echo) => arrived.clock = Some((value, echo)),
                _ => {}
            }
        }
        arrived
    }
}

/// The answer to "who has `me`?" in ARP or NDP; none when the frame asks something else.
fn neighbour_answer(packet: &SlicedPacket<'_>, frame: &[u8], me: IpAddr, mac: [u8; 6]) -> Option<Vec<u8>> {
    let asker: [u8; 6] = frame.get(6..12)?.try_into().ok()?;
    match (&packet.net, me) {
        (Some(NetSlice::Arp(arp)), IpAddr::V4(me)) => {
            if arp.operation().0 != 1 || arp.target_protocol_addr() != me.octets() {
                return None;
            }
            let header = Ethernet2Header { source: mac, destination: asker, ether_type: EtherType::ARP };
            let mut answer = header.to_bytes().to_vec();
            answer.extend_from_slice(&[0, 1, 8, 0, 6, 4, 0, 2]);
            answer.extend_from_slice(&mac);
            answer.extend_from_slice(&me.octets());
            answer.extend_from_slice(arp.sender_hw_addr());
            answer.extend_from_slice(arp.sender_protocol_addr());
            Some(answer)
        }
        (Some(NetSlice::Ipv6(ip)), IpAddr::V6(me)) => {
            let message = frame.get(54..78)?;
            if frame[20] != 58 || message[0] != 135 || message[8..24] != me.octets() {
                return None;
            }
            let mut body = me.octets().to_vec();
            body.extend_from_slice(&[2, 1]);
            body.extend_from_slice(&mac);
            let builder = PacketBuilder::ethernet2(mac, asker).ipv6(me.octets(), ip.header().source(), 255).icmpv6_raw(
                136,
                0,
                [0x60, 0, 0, 0],
            );
            let mut answer = Vec::new();
            builder.write(&mut answer, &body).ok()?;
            Some(answer)
        }
        _ => None,
    }
}
