//! Broken frames, one or more for every reason the parser and the ports have for dropping one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use sluice_filters::DropReason;

use crate::frames::{Segment, flags, seal};

/// A frame that must be dropped, and under which reason.
#[derive(Clone, Debug)]
pub struct Broken {
    /// What is wrong with it.
    pub what: &'static str,
    /// The reason it is to be counted under.
    pub reason: DropReason,
    /// The frame.
    pub frame: Vec<u8>,
}

/// Offset of the IP header.
const IP: usize = 14;
/// Offset of TCP in an IPv4 frame without options.
const TCP4: usize = 34;
/// Offset of TCP in an IPv6 frame.
const TCP6: usize = 54;

/// The corpus: frames for the appliance at `to_mac` and its services at `v4` and `v6`, which come from strangers behind `from_mac`.
/// `stray` is an address of the service's network that is nobody's.
#[must_use]
pub fn corpus(from_mac: [u8; 6], to_mac: [u8; 6], v4: SocketAddr, v6: SocketAddr, stray: Ipv4Addr) -> Vec<Broken> {
    let syn = |from: IpAddr, to: SocketAddr, flags: u8| {
        Segment {
            from_mac,
            to_mac,
            from: SocketAddr::new(from, 40_000),
            to,
            seq: 1_000_000,
            ack: 0,
            flags,
            window: 64_000,
            options: &[2, 4, 5, 180],
            payload: b"",
        }
        .frame()
    };
    let stranger4 = IpAddr::V4(Ipv4Addr::new(11, 22, 33, 44));
    let stranger6 = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xf, 0, 0, 0, 0, 9));
    let four = || syn(stranger4, v4, flags::SYN);
    let six = || syn(stranger6, v6, flags::SYN);
    let mut all = Vec::new();
    // Changes a good frame, makes its checksums right again and files it.
    let mut broken = |what, reason, mut frame: Vec<u8>, change: &dyn Fn(&mut Vec<u8>)| {
        change(&mut frame);
        seal(&mut frame);
        all.push(Broken { what, reason, frame });
    };
    use DropReason as R;

    broken("IPv4 total length past the frame", R::Truncated, four(), &|f| f[IP + 3] = 200);
    broken("IPv6 payload length past the frame", R::Truncated, six(), &|f| f[IP + 5] = 200);
    broken("EtherType of LLDP", R::UnknownEtherType, four(), &|f| f[12..14].copy_from_slice(&[0x88, 0xcc]));
    // The kernel takes one tag off before DPDK's af_packet sees the frame: three leave two.
    broken("stacked VLAN tags", R::VlanStacked, four(), &|f| {
        drop(f.splice(12..12, [0x81, 0, 0, 7, 0x81, 0, 0, 8, 0x81, 0, 0, 9]));
    });
    broken("another VLAN", R::WrongVlan, four(), &|f| drop(f.splice(12..12, [0x81, 0, 0, 7])));
    broken("group address as Ethernet source", R::BadEthernetSource, four(), &|f| f[6] |= 1);
    broken("TCP to an Ethernet group", R::EthernetMulticast, four(), &|f| f[0] |= 1);
    broken("IPv6 TCP to an Ethernet group", R::EthernetMulticast, six(), &|f| f[0] |= 1);
    broken("another station's MAC", R::NotOurMac, four(), &|f| f[5] ^= 0x55);
    broken("IPv4 version 5", R::BadIpHeader, four(), &|f| f[IP] = 0x55);
    broken("IPv4 header of 16 octets", R::BadIpHeader, four(), &|f| f[IP] = 0x44);
    broken("IPv4 reserved flag", R::BadIpHeader, four(), &|f| f[IP + 6] |= 0x80);
    broken("IPv6 version 4", R::BadIpHeader, six(), &|f| f[IP] = 0x40);
    broken("IPv4 total length 19", R::BadIpLength, four(), &|f| f[IP + 3] = 19);
    broken("IPv4 options", R::IpOptions, four(), &|f| {
        f[IP] = 0x46;
        f[IP + 3] += 4;
        drop(f.splice(TCP4..TCP4, [1, 1, 1, 0]));
    });
    broken("IPv6 hop-by-hop header", R::Ipv6Extension, six(), &|f| f[IP + 6] = 0);
    broken("IPv6 routing header", R::Ipv6Extension, six(), &|f| f[IP + 6] = 43);
    // Of whole fragments the kernel keeps for itself what DPDK's af_packet asks it to reassemble; those cut short it passes on.
    broken("IPv4 first fragment", R::Fragment, four(), &|f| f[IP + 3..IP + 7].copy_from_slice(&[200, 0, 1, 0x20]));
    broken("IPv4 later fragment", R::Fragment, four(), &|f| f[IP + 3..IP + 8].copy_from_slice(&[200, 0, 1, 0, 0x10]));
    broken("IPv6 fragment header", R::Fragment, six(), &|f| f[IP + 6] = 44);
    broken("TTL 0", R::TtlExceeded, four(), &|f| f[IP + 8] = 0);
    broken("UDP", R::NotTcp, four(), &|f| f[IP + 9] = 17);
    broken("UDP over IPv6", R::NotTcp, six(), &|f| f[IP + 6] = 17);
    for source in [Ipv4Addr::LOCALHOST, Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST, Ipv4Addr::new(240, 0, 0, 1)] {
        broken("IPv4 source nobody has", R::MartianSource, syn(source.into(), v4, flags::SYN), &|_| {});
    }
    for source in [Ipv6Addr::LOCALHOST, Ipv6Addr::UNSPECIFIED, Ipv4Addr::new(11, 22, 33, 44).to_ipv6_mapped()] {
        broken("IPv6 source nobody has", R::MartianSource, syn(source.into(), v6, flags::SYN), &|_| {});
    }
    broken(
        "IPv4 multicast source",
        R::MulticastSource,
        syn(Ipv4Addr::new(224, 0, 0, 9).into(), v4, flags::SYN),
        &|_| {},
    );
    let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 9);
    broken("IPv6 multicast source", R::MulticastSource, syn(group.into(), v6, flags::SYN), &|_| {});
    broken("destination 127.0.0.1", R::BadDestination, four(), &|f| {
        f[IP + 16..IP + 20].copy_from_slice(&[127, 0, 0, 1])
    });
    broken("destination ff02::9", R::BadDestination, six(), &|f| f[IP + 24..IP + 40].copy_from_slice(&group.octets()));
    broken("IPv4 source = destination", R::Land, syn(v4.ip(), v4, flags::SYN), &|_| {});
    broken("IPv6 source = destination", R::Land, syn(v6.ip(), v6, flags::SYN), &|_| {});
    broken("TCP data offset 4", R::BadTcpLength, four(), &|f| f[TCP4 + 12] = 0x40);
    broken("TCP data offset past the segment", R::BadTcpLength, four(), &|f| f[TCP4 + 12] = 0xf0);
    broken("12 octets of TCP", R::BadTcpLength, four(), &|f| {
        f.truncate(TCP4 + 12);
        f[IP + 3] = 32;
    });
    broken("12 octets of TCP over IPv6", R::BadTcpLength, six(), &|f| {
        f.truncate(TCP6 + 12);
        f[IP + 5] = 12;
    });
    broken("source port 0", R::ZeroPort, four(), &|f| f[TCP4..TCP4 + 2].fill(0));
    broken("destination port 0", R::ZeroPort, six(), &|f| f[TCP6 + 2..TCP6 + 4].fill(0));
    for (what, odd) in [
        ("no flags", 0),
        ("SYN and FIN", flags::SYN | flags::FIN),
        ("SYN and RST", flags::SYN | flags::RST),
        ("FIN alone", flags::FIN),
        ("FIN and RST", flags::FIN | flags::RST | flags::ACK),
        ("all flags", 0xff),
    ] {
        broken(what, R::BadFlags, syn(stranger4, v4, odd), &|_| {});
    }
    broken("SYN to a port without a service", R::NotAService, four(), &|f| {
        f[TCP4 + 2..TCP4 + 4].copy_from_slice(&[0, 9])
    });
    broken("SYN to a port without a service, IPv6", R::NotAService, six(), &|f| {
        f[TCP6 + 2..TCP6 + 4].copy_from_slice(&[0, 9]);
    });
    broken("ACK that answers no cookie", R::BadCookie, syn(stranger4, v4, flags::ACK), &|_| {});
    broken("ACK that answers no cookie, IPv6", R::BadCookie, syn(stranger6, v6, flags::ACK), &|_| {});
    for (what, flags) in [
        ("RST of no flow", flags::RST),
        ("RST and ACK of no flow", flags::RST | flags::ACK),
        ("SYN-ACK of no flow", flags::SYN | flags::ACK),
    ] {
        broken(what, R::NoFlow, syn(stranger4, v4, flags), &|_| {});
    }
    broken("ICMP echo with a bad checksum", R::BadIcmp, four(), &|f| {
        f[IP + 9] = 1;
        f[TCP4..TCP4 + 8].copy_from_slice(&[8, 0, 1, 2, 3, 4, 5, 6]);
    });
    broken("ICMP echo to a stranger", R::NotOurs, four(), &|f| {
        f[IP + 9] = 1;
        f[IP + 16..IP + 20].copy_from_slice(&stray.octets());
        f.truncate(TCP4);
        f[IP + 3] = 28;
        f.extend_from_slice(&[8, 0, 0xf7, 0xff, 0, 0, 0, 0]);
    });
    broken("ARP cut short", R::Truncated, four(), &|f| {
        f[12..14].copy_from_slice(&[0x08, 0x06]);
        f.truncate(20);
    });
    broken("ARP with hardware addresses of 8 octets", R::BadArp, four(), &|f| {
        f[12..14].copy_from_slice(&[0x08, 0x06]);
        f[IP..IP + 8].copy_from_slice(&[0, 1, 8, 0, 8, 4, 0, 1]);
    });

    // Wrong checksums last: `seal` would make them right.
    let mut spoiled = |what, reason, mut frame: Vec<u8>, at: usize| {
        frame[at] ^= 0x5a;
        all.push(Broken { what, reason, frame });
    };
    spoiled("IPv4 header checksum", R::BadIpChecksum, four(), IP + 10);
    spoiled("TCP checksum", R::BadTcpChecksum, four(), TCP4 + 16);
    spoiled("TCP checksum over IPv6", R::BadTcpChecksum, six(), TCP6 + 16);
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluice_filters::RxChecksums;
    use sluice_filters::parse;

    /// The parser's own verdict, for those reasons that are the parser's.
    #[test]
    fn the_parser_gives_each_frame_the_reason_it_was_made_for() {
        let corpus = corpus(
            [2, 0, 0, 0, 0, 1],
            [2, 0, 0, 0, 0, 2],
            "198.51.100.10:443".parse().unwrap(),
            "[2001:db8:1::10]:443".parse().unwrap(),
            Ipv4Addr::new(198, 51, 100, 200),
        );
        let last_of_the_parser = DropReason::BadTcpChecksum.index();
        for broken in &corpus {
            let verdict = parse(&broken.frame, RxChecksums::default());
            // What is inside ARP is not the parser's to judge.
            if broken.reason.index() <= last_of_the_parser && !broken.what.starts_with("ARP") {
                assert_eq!(verdict.unwrap_err(), broken.reason, "{}", broken.what);
            } else {
                assert!(verdict.is_ok(), "{}: {verdict:?}", broken.what);
            }
        }
        for reason in &DropReason::ALL[..=last_of_the_parser] {
            assert!(corpus.iter().any(|broken| broken.reason == *reason), "no frame for {reason:?}");
        }
    }
}
