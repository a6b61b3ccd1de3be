//! One scripted frame for each rule of the parser, and its near miss that passes: IPv4 and IPv6, each with and without an
//! 802.1Q tag and Ethernet padding.

use std::collections::HashSet;

use sluice_filters::testkit::{self, Opt, TcpBuilder, fix_checksums};
use sluice_filters::{ChecksumState, DropReason, Flags, Parsed, RxChecksums, parse};

use DropReason::*;

const CLIENT4: &str = "192.0.2.7:40000";
const SERVER4: &str = "198.51.100.10:443";
const CLIENT6: &str = "[2001:db8::7]:40000";
const SERVER6: &str = "[2001:db8::10]:443";

const ETHERNET_ALL: [u8; 6] = [0xff; 6];
const ETHERNET_GROUP: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];

/// Where the headers of untagged frames start.
const IP: usize = 14;
const TCP4: usize = 34;
const TCP6: usize = 54;

/// What the parser makes of a frame, without the details.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Is {
    Tcp,
    Arp,
    Icmp,
    Icmp6,
    Dropped(DropReason),
}

struct Case {
    rule: &'static str,
    frame: Vec<u8>,
    is: Is,
}

fn what(frame: &[u8], checksums: RxChecksums) -> Is {
    match parse(frame, checksums) {
        Ok(Parsed::Tcp(_)) => Is::Tcp,
        Ok(Parsed::Arp(_)) => Is::Arp,
        Ok(Parsed::Icmp(_)) => Is::Icmp,
        Ok(Parsed::Icmp6(_)) => Is::Icmp6,
        Err(reason) => Is::Dropped(reason),
    }
}

fn syn4() -> TcpBuilder {
    testkit::tcp(CLIENT4, SERVER4).flags(Flags::SYN).seq(7).ack(0)
}

fn syn6() -> TcpBuilder {
    testkit::tcp(CLIENT6, SERVER6).flags(Flags::SYN).seq(7).ack(0)
}

/// `frame` after `change`, its checksums made right again.
fn edited(frame: &TcpBuilder, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut frame = frame.build();
    change(&mut frame);
    fix_checksums(&mut frame);
    frame
}

/// The same without the repair.
fn damaged(frame: &TcpBuilder, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut frame = frame.build();
    change(&mut frame);
    frame
}

#[derive(Default)]
struct Table(Vec<Case>);

impl Table {
    fn add(&mut self, rule: &'static str, frame: Vec<u8>, is: Is) {
        self.0.push(Case { rule, frame, is });
    }

    fn passes(&mut self, rule: &'static str, frame: Vec<u8>) {
        self.add(rule, frame, Is::Tcp);
    }

    fn drops(&mut self, rule: &'static str, reason: DropReason, frame: Vec<u8>) {
        self.add(rule, frame, Is::Dropped(reason));
    }

    fn ethernet(&mut self) {
        let mac = testkit::PEER_MAC;
        for (syn, family) in [(syn4(), [0x08, 0x00]), (syn6(), [0x86, 0xdd])] {
            self.passes("a plain SYN passes", syn.build());
            self.drops(
                "TCP to the Ethernet broadcast is dropped",
                EthernetMulticast,
                syn.clone().dst_mac(ETHERNET_ALL).build(),
            );
            self.drops(
                "TCP to an Ethernet group is dropped",
                EthernetMulticast,
                syn.clone().dst_mac(ETHERNET_GROUP).build(),
            );
            self.drops(
                "a group as Ethernet source is dropped",
                BadEthernetSource,
                syn.clone().src_mac(ETHERNET_GROUP).build(),
            );
            self.passes(
                "someone else's MAC is the port's business",
                syn.clone().dst_mac([0x02, 9, 9, 9, 9, 9]).build(),
            );
            for tag in [[0x88, 0xa8], [0x91, 0x00]] {
                let frame = edited(&syn, |f| drop(f.splice(12..12, [tag[0], tag[1], 0, 5])));
                self.drops("a service tag is dropped", VlanStacked, frame);
            }
            let other = [family[0] ^ 0x8e, family[1] ^ 0xdd];
            let frame = damaged(&syn, |f| f[12..14].copy_from_slice(&other));
            self.drops("EtherType and IP version must agree", BadIpHeader, frame);
        }
        let arp = |dst| testkit::ethernet(dst, mac, None, 0x0806, &[0; 28]);
        self.add("ARP to the broadcast passes", arp(ETHERNET_ALL), Is::Arp);
        self.add("ARP to us passes", arp(testkit::OUR_MAC), Is::Arp);
        let from_group = testkit::ethernet(ETHERNET_ALL, ETHERNET_GROUP, None, 0x0806, &[0; 28]);
        self.drops("ARP from a group is dropped", BadEthernetSource, from_group);
        for ether_type in [0x0000, 0x0026, 0x0801, 0x0805, 0x0807, 0x86dc, 0x86de, 0x88cc, 0x9000] {
            let frame = testkit::ethernet(testkit::OUR_MAC, mac, None, ether_type, &[0; 46]);
            self.drops("other protocols are dropped", UnknownEtherType, frame);
        }
    }

    fn ipv4(&mut self) {
        let with_type = |byte: u8| damaged(&syn4(), |f| f[IP] = byte);
        self.drops("an IPv4 header below five words is dropped", BadIpHeader, with_type(0x44));
        self.drops("version 6 in IPv4's EtherType is dropped", BadIpHeader, with_type(0x65));
        self.drops("version 0 in IPv4's EtherType is dropped", BadIpHeader, with_type(0x05));
        for words in [0x46, 0x4f] {
            self.drops("IPv4 options are dropped", IpOptions, with_type(words));
        }
        let total =
            |total: u16| edited(&syn4().payload([1; 8]), |f| f[IP + 2..IP + 4].copy_from_slice(&total.to_be_bytes()));
        self.drops("an IPv4 packet shorter than its header is dropped", BadIpLength, total(19));
        self.drops("an IPv4 packet of no octets is dropped", BadIpLength, total(0));
        self.drops("an IPv4 packet of a header only has no TCP", BadTcpLength, total(20));
        self.drops("an IPv4 packet one octet short of TCP's header is dropped", BadTcpLength, total(39));
        self.passes("an IPv4 packet of two headers passes", total(40));
        self.passes("an IPv4 packet that ends before the frame passes", total(47));
        let flags = |flags: u16| edited(&syn4(), |f| f[IP + 6..IP + 8].copy_from_slice(&flags.to_be_bytes()));
        for fragment in [0x2000, 0x6000, 0x0001, 0x1fff, 0x2001, 0x4001, 0xa000, 0x0100] {
            self.drops("IPv4 fragments are dropped", Fragment, flags(fragment));
        }
        self.drops("IPv4's reserved flag is dropped", BadIpHeader, flags(0x8000));
        self.drops("IPv4's reserved flag with DF is dropped", BadIpHeader, flags(0xc000));
        self.passes("IPv4 without DF passes", flags(0x0000));
        self.passes("IPv4 with DF passes", flags(0x4000));
        self.drops("TTL 0 is dropped", TtlExceeded, syn4().hop_limit(0).build());
        self.passes("TTL 1 passes", syn4().hop_limit(1).build());
        for at in [IP + 1, IP + 4, IP + 8, IP + 10, IP + 11, IP + 12, IP + 19] {
            self.drops("a damaged IPv4 header is dropped", BadIpChecksum, damaged(&syn4(), |f| f[at] ^= 0x01));
        }
        self.passes("any TOS passes", syn4().tos(0xff).build());
    }

    fn ipv6(&mut self) {
        self.drops("version 4 in IPv6's EtherType is dropped", BadIpHeader, damaged(&syn6(), |f| f[IP] = 0x45));
        self.drops("version 7 in IPv6's EtherType is dropped", BadIpHeader, damaged(&syn6(), |f| f[IP] = 0x70));
        let length =
            |len: u16| edited(&syn6().payload([1; 8]), |f| f[IP + 4..IP + 6].copy_from_slice(&len.to_be_bytes()));
        self.drops("an IPv6 packet without payload has no TCP", BadTcpLength, length(0));
        self.drops("an IPv6 packet one octet short of TCP's header is dropped", BadTcpLength, length(19));
        self.passes("an IPv6 packet of two headers passes", length(20));
        self.passes("an IPv6 packet that ends before the frame passes", length(27));
        let next = |next: u8| damaged(&syn6(), |f| f[IP + 6] = next);
        self.drops("IPv6 fragments are dropped, or looked at again if they are whole", Fragment, next(44));
        for header in [0, 43, 50, 51, 60, 135, 139, 140, 253, 254] {
            self.drops("IPv6 extension headers are dropped", Ipv6Extension, next(header));
        }
        let jumbo = damaged(&syn6(), |f| {
            f[IP + 4..IP + 7].copy_from_slice(&[0, 0, 0]);
        });
        self.drops("jumbograms are dropped", Ipv6Extension, jumbo);
        for protocol in [1, 4, 17, 41, 59, 132] {
            self.drops("IPv6 without TCP or ICMPv6 is dropped", NotTcp, next(protocol));
        }
        // RFC 8200 section 3: the packet's destination should not discard it for this.
        self.passes("hop limit 0 at its destination passes", syn6().hop_limit(0).build());
        self.passes(
            "any traffic class and flow label pass",
            edited(&syn6(), |f| f[IP..IP + 4].copy_from_slice(&[0x6f, 0xff, 0xff, 0xff])),
        );
    }

    fn addresses(&mut self) {
        let from4 = |src: &str| testkit::tcp(format!("{src}:40000").as_str(), SERVER4).build();
        let to4 = |dst: &str| testkit::tcp(CLIENT4, format!("{dst}:443").as_str()).build();
        for src in ["0.0.0.0", "0.255.255.255", "127.0.0.1", "127.255.255.255", "240.0.0.0", "255.255.255.255"] {
            self.drops("martian IPv4 sources are dropped", MartianSource, from4(src));
        }
        for src in ["224.0.0.0", "239.255.255.255"] {
            self.drops("multicast IPv4 sources are dropped", MulticastSource, from4(src));
        }
        for dst in ["0.0.0.0", "0.0.0.1", "127.0.0.1", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255"] {
            self.drops("non-unicast IPv4 destinations are dropped", BadDestination, to4(dst));
        }
        for near in
            ["1.0.0.0", "126.255.255.255", "128.0.0.0", "223.255.255.255", "10.0.0.1", "169.254.3.4", "192.168.0.1"]
        {
            self.passes("unicast IPv4 sources pass", from4(near));
            self.passes("unicast IPv4 destinations pass", to4(near));
        }
        let from6 = |src: &str| testkit::tcp(format!("[{src}]:40000").as_str(), SERVER6).build();
        let to6 = |dst: &str| testkit::tcp(CLIENT6, format!("[{dst}]:443").as_str()).build();
        for src in ["::", "::1", "::ffff:192.0.2.7", "::192.0.2.7", "::ffff:ffff:ffff:ffff"] {
            self.drops("martian IPv6 sources are dropped", MartianSource, from6(src));
            self.drops("IPv6 destinations that are never on the wire are dropped", BadDestination, to6(src));
        }
        for group in ["ff00::", "ff02::1", "ffff:ffff::1"] {
            self.drops("multicast IPv6 sources are dropped", MulticastSource, from6(group));
            self.drops("multicast IPv6 destinations are dropped", BadDestination, to6(group));
        }
        for near in ["0:0:0:1::", "fe80::1", "feff::1", "fd00::1", "64:ff9b::192.0.2.7", "fec0::1"] {
            self.passes("unicast IPv6 sources pass", from6(near));
            self.passes("unicast IPv6 destinations pass", to6(near));
        }
        self.drops("LAND is dropped", Land, testkit::tcp(SERVER4, SERVER4).build());
        self.drops("LAND from another port is dropped", Land, testkit::tcp("198.51.100.10:444", SERVER4).build());
        self.passes("the address next door passes", testkit::tcp("198.51.100.11:443", SERVER4).build());
        self.drops("LAND is dropped", Land, testkit::tcp(SERVER6, SERVER6).build());
        self.drops("LAND from another port is dropped", Land, testkit::tcp("[2001:db8::10]:444", SERVER6).build());
        self.passes("the address next door passes", testkit::tcp("[2001:db8::11]:443", SERVER6).build());
        self.passes("half an address the same passes", testkit::tcp("[2001:db9::10]:443", SERVER6).build());
    }

    fn tcp(&mut self) {
        for (syn, tcp) in [(syn4(), TCP4), (syn6(), TCP6)] {
            let offset = |syn: &TcpBuilder, words: u8| edited(syn, |f| f[tcp + 12] = words << 4);
            for words in [0, 1, 4] {
                self.drops(
                    "a data offset below 5 is dropped",
                    BadTcpLength,
                    offset(&syn.clone().payload([1; 60]), words),
                );
            }
            self.passes("a data offset of 5 passes", offset(&syn, 5));
            self.drops("a data offset past the segment is dropped", BadTcpLength, offset(&syn, 6));
            let three = syn.clone().payload([1; 3]);
            self.drops("a data offset one octet past the segment is dropped", BadTcpLength, offset(&three, 6));
            self.passes("a data offset at the segment's end passes", offset(&syn.clone().payload([1; 4]), 6));
            self.passes("a data offset of 15 passes", offset(&syn.clone().payload([1; 40]), 15));
            let short = syn.clone().payload([1; 39]);
            self.drops("a data offset of 15 in too short a segment is dropped", BadTcpLength, offset(&short, 15));

            let ports =
                |at: usize, port: u16| edited(&syn, |f| f[tcp + at..tcp + at + 2].copy_from_slice(&port.to_be_bytes()));
            for at in [0, 2] {
                self.drops("port 0 is dropped", ZeroPort, ports(at, 0));
                for port in [1, 0x0100, 0x00ff, 0xffff] {
                    self.passes("other ports pass", ports(at, port));
                }
            }

            for at in [tcp, tcp + 5, tcp + 11, tcp + 14, tcp + 16, tcp + 17, tcp + 18, tcp + 20, tcp + 27, tcp + 28] {
                let frame = damaged(&syn.clone().payload([1; 9]), |f| f[at] ^= 0x10);
                self.drops("a damaged segment is dropped", BadTcpChecksum, frame);
            }
            let swapped = damaged(&syn.clone().payload([1, 2]), |f| {
                f.swap(tcp + 20, tcp + 21);
            });
            self.drops("swapped octets are noticed", BadTcpChecksum, swapped);
            for payload in 0..70usize {
                let payload: Vec<u8> = (0..payload).map(|i| i as u8 | 0x80).collect();
                self.passes("data on a SYN passes, of any length", syn.clone().payload(&payload).build());
                let last = damaged(&syn.clone().payload(&payload), |f| *f.last_mut().expect("not empty") ^= 0x80);
                self.drops("a damaged last octet is dropped", BadTcpChecksum, last);
            }
            // The lowest reserved bit is AE (RFC 9768); the others must be ignored (RFC 9293 section 3.1).
            for bits in [0x01, 0x0f] {
                self.passes("AE and the reserved bits pass", edited(&syn, |f| f[tcp + 12] |= bits));
            }
            self.passes("an urgent pointer without URG passes", syn.clone().urgent(9).build());
            self.passes("options of nonsense pass", syn.clone().options([Opt::Raw(vec![2, 0, 99, 200])]).build());
        }
    }

    fn flags(&mut self) {
        use Flags as F;
        let legal = [
            F::SYN,
            F::SYN | F::ECE | F::CWR,
            F::SYN | F::PSH,
            F::SYN | F::ACK,
            F::SYN | F::ACK | F::ECE,
            F::ACK,
            F::ACK | F::PSH,
            F::ACK | F::URG,
            F::ACK | F::FIN,
            F::ACK | F::FIN | F::PSH,
            F::ACK | F::FIN | F::PSH | F::URG,
            F::ACK | F::ECE,
            F::ACK | F::CWR | F::PSH,
            F::RST,
            F::RST | F::ACK,
            F::RST | F::ACK | F::PSH,
        ];
        let illegal = [
            F(0),
            F::ECE,
            F::CWR | F::ECE,
            F::PSH,
            F::URG,
            F::PSH | F::URG,
            F::FIN,
            F::FIN | F::PSH,
            F::FIN | F::PSH | F::URG,
            F::SYN | F::FIN,
            F::SYN | F::FIN | F::ACK,
            F::SYN | F::RST,
            F::SYN | F::RST | F::ACK,
            F::RST | F::FIN,
            F::RST | F::FIN | F::ACK,
            F::RST | F::URG,
            F::SYN | F::ACK | F::URG,
            F(0xff),
            F(0x3f),
        ];
        for syn in [syn4(), syn6()] {
            for flags in legal {
                self.passes("flags that some TCP sends pass", syn.clone().flags(flags).build());
            }
            for flags in illegal {
                self.drops("flags that no TCP sends are dropped", BadFlags, syn.clone().flags(flags).build());
            }
        }
    }

    fn icmp(&mut self) {
        let echo = [8, 0, 0, 0, 0, 1, 0, 1];
        let v4 = |dst: &str| testkit::ip("192.0.2.7", dst, 1).payload(echo);
        self.add("ICMP passes", v4("198.51.100.10").build(), Is::Icmp);
        self.drops("ICMP to a broadcast is dropped", BadDestination, v4("255.255.255.255").build());
        self.drops("ICMP to a group is dropped", BadDestination, v4("224.0.0.1").build());
        let to_all = v4("198.51.100.10").dst_mac(ETHERNET_ALL).build();
        self.drops("ICMP to the Ethernet broadcast is dropped", EthernetMulticast, to_all);
        self.drops("ICMP to its sender is dropped", Land, v4("192.0.2.7").build());
        self.drops(
            "ICMP of seven octets is dropped",
            BadIcmp,
            v4("198.51.100.10").payload([8, 0, 0, 0, 0, 1, 0]).build(),
        );
        self.drops(
            "ICMP from a group is dropped",
            MulticastSource,
            testkit::ip("224.0.0.9", "198.51.100.10", 1).payload(echo).build(),
        );
        for protocol in [0, 2, 4, 17, 41, 47, 50, 58, 132, 255] {
            let frame = testkit::ip("192.0.2.7", "198.51.100.10", protocol).payload([0; 20]).build();
            self.drops("IPv4 without TCP or ICMP is dropped", NotTcp, frame);
        }
        let v6 = |src: &str, dst: &str| testkit::ip(src, dst, 58).payload([135, 0, 0, 0, 0, 0, 0, 0]);
        self.add("ICMPv6 passes", v6("fe80::7", "2001:db8::10").build(), Is::Icmp6);
        let solicited = v6("fe80::7", "ff02::1:ff00:10").dst_mac(ETHERNET_GROUP).build();
        self.add("ICMPv6 to a group passes", solicited, Is::Icmp6);
        self.add("duplicate address detection passes", v6("::", "ff02::1:ff00:10").build(), Is::Icmp6);
        self.drops("ICMPv6 from nobody to one address is dropped", MartianSource, v6("::", "fe80::10").build());
        self.drops("ICMPv6 from the loopback is dropped", MartianSource, v6("::1", "fe80::10").build());
        self.drops("ICMPv6 from a mapped address is dropped", MartianSource, v6("::ffff:1.2.3.4", "ff02::1").build());
        self.drops("ICMPv6 from a group is dropped", MulticastSource, v6("ff02::1", "fe80::10").build());
        self.drops("ICMPv6 to the loopback is dropped", BadDestination, v6("fe80::7", "::1").build());
        self.drops("ICMPv6 to its sender is dropped", Land, v6("fe80::7", "fe80::7").build());
        self.drops("ICMPv6 of seven octets is dropped", BadIcmp, v6("fe80::7", "fe80::10").payload([128; 7]).build());
    }
}

fn table() -> Vec<Case> {
    let mut table = Table::default();
    table.ethernet();
    table.ipv4();
    table.ipv6();
    table.addresses();
    table.tcp();
    table.flags();
    table.icmp();
    table.0
}

/// The frame with an 802.1Q tag: priority 5, VLAN 100.
fn tagged(frame: &[u8]) -> Vec<u8> {
    [&frame[..12], &[0x81, 0x00, 0xa0, 0x64], &frame[12..]].concat()
}

#[test]
fn every_rule_holds_with_and_without_tag_and_padding() {
    for Case { rule, frame, is } in table() {
        assert_eq!(what(&frame, RxChecksums::default()), is, "{rule}: {frame:02x?}");
        assert_eq!(what(&tagged(&frame), RxChecksums::default()), is, "{rule}, tagged: {frame:02x?}");
        for padding in [1, 6, 300] {
            // Not zeros: padding must not be looked at.
            let padded = [&frame[..], &vec![0xa5; padding]].concat();
            assert_eq!(what(&padded, RxChecksums::default()), is, "{rule}, padded by {padding}: {frame:02x?}");
            assert_eq!(
                what(&tagged(&padded), RxChecksums::default()),
                is,
                "{rule}, tagged, padded by {padding}: {frame:02x?}"
            );
        }
    }
}

#[test]
fn every_reason_of_the_parser_has_a_rule() {
    let seen: HashSet<_> = table().iter().map(|case| case.is).collect();
    for reason in DropReason::ALL.into_iter().take(OwnSource.index()).filter(|&reason| reason != Truncated) {
        assert!(seen.contains(&Is::Dropped(reason)), "{reason:?}");
    }
}

#[test]
fn a_frame_cut_anywhere_is_truncated() {
    for syn in [syn4(), syn6(), syn4().payload([7; 33]), syn6().options([Opt::Mss(1460)])] {
        for frame in [syn.build(), tagged(&syn.build())] {
            for len in 0..frame.len() {
                assert_eq!(
                    what(&frame[..len], RxChecksums::default()),
                    Is::Dropped(Truncated),
                    "{len} of {frame:02x?}"
                );
            }
            assert_eq!(what(&frame, RxChecksums::default()), Is::Tcp);
        }
    }
}

#[test]
fn two_tags_are_dropped() {
    for tag in [[0x81, 0x00], [0x88, 0xa8], [0x91, 0x00]] {
        let mut frame = tagged(&tagged(&syn4().build()));
        frame[16..18].copy_from_slice(&tag);
        assert_eq!(what(&frame, RxChecksums::default()), Is::Dropped(VlanStacked));
    }
}

#[test]
fn a_tag_gives_its_vlan_and_a_priority_tag_none() {
    for (tag, vlan) in [(0x0064, 100), (0xe064, 100), (0xffff, 4095), (0xe000, 0)] {
        let Ok(Parsed::Tcp(segment)) = parse(&syn4().vlan(tag).build(), RxChecksums::default()) else {
            panic!("{tag:04x}")
        };
        assert_eq!((segment.l2.len, segment.l2.vlan), (18, vlan));
    }
    let Ok(Parsed::Arp(l2)) =
        parse(&testkit::ethernet([0xff; 6], [2; 6], Some(7), 0x0806, &[]), RxChecksums::default())
    else {
        panic!()
    };
    assert_eq!((l2.len, l2.vlan), (18, 7));
}

#[test]
fn a_checksum_the_nic_vouches_for_is_not_verified_again() {
    let ip = RxChecksums { ip: ChecksumState::Good, l4: ChecksumState::Unknown };
    let l4 = RxChecksums { ip: ChecksumState::Unknown, l4: ChecksumState::Good };
    let bad_ip = damaged(&syn4(), |f| f[IP + 10] ^= 1);
    let bad_l4 = damaged(&syn4(), |f| f[TCP4 + 16] ^= 1);
    let bad_l4_v6 = damaged(&syn6(), |f| f[TCP6 + 16] ^= 1);
    assert_eq!(what(&bad_ip, ip), Is::Tcp);
    assert_eq!(what(&bad_ip, l4), Is::Dropped(BadIpChecksum));
    for bad in [bad_l4, bad_l4_v6] {
        assert_eq!(what(&bad, l4), Is::Tcp);
        assert_eq!(what(&bad, ip), Is::Dropped(BadTcpChecksum));
        assert_eq!(what(&bad, RxChecksums::GOOD), Is::Tcp);
    }
}

#[test]
fn a_checksum_the_nic_calls_bad_is_decided_in_software() {
    let bad = RxChecksums { ip: ChecksumState::Bad, l4: ChecksumState::Bad };
    for syn in [syn4(), syn6()] {
        assert_eq!(what(&syn.build(), bad), Is::Tcp);
        assert_eq!(what(&damaged(&syn, |f| *f.last_mut().expect("not empty") ^= 1), bad), Is::Dropped(BadTcpChecksum));
    }
    assert_eq!(what(&damaged(&syn4(), |f| f[IP + 4] ^= 1), bad), Is::Dropped(BadIpChecksum));
}

#[test]
fn all_ones_is_a_valid_checksum_where_zero_is() {
    // A segment whose checksum comes out as zero; some senders write the other zero (RFC 1624 section 3).
    let zero = (0..=u16::MAX)
        .map(|window| syn4().window(window).build())
        .find(|frame| frame[TCP4 + 16..TCP4 + 18] == [0, 0])
        .expect("some window gives it");
    assert_eq!(what(&zero, RxChecksums::default()), Is::Tcp);
    let mut ones = zero;
    ones[TCP4 + 16..TCP4 + 18].copy_from_slice(&[0xff, 0xff]);
    assert_eq!(what(&ones, RxChecksums::default()), Is::Tcp);
}

#[test]
fn the_longest_packets_keep_their_offsets() {
    let frame = testkit::tcp(CLIENT6, SERVER6).payload(vec![3; 65_515]).vlan(3).build();
    let Ok(Parsed::Tcp(segment)) = parse(&frame, RxChecksums::default()) else { panic!() };
    assert_eq!((segment.payload_len, segment.end()), (65_515, frame.len()));
    // ICMP offsets have 16 bits: longer than any buffer of a port is refused, never wrapped.
    let frame = testkit::ip("fe80::7", "fe80::10", 58).payload(vec![128; 65_535]).build();
    assert_eq!(what(&frame, RxChecksums::default()), Is::Dropped(BadIpLength));
    let frame = testkit::ip("192.0.2.7", "192.0.2.8", 1).payload(vec![8; 65_501]).build();
    assert_eq!(frame.len(), 65_535);
    assert_eq!(what(&frame, RxChecksums::default()), Is::Icmp);
}
