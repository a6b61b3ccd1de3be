//! Whatever bytes arrive, the parser does not panic, and what it accepts is what it says: checked by a second, naive reading
//! of the frame that shares no code with the first.

use std::net::IpAddr;

use proptest::collection::vec;
use proptest::prelude::*;
use sluice_filters::addr::Addr;
use sluice_filters::testkit::{self, Opt, fix_checksums};
use sluice_filters::{
    ChecksumState, Datagram, DropReason, FRAGMENT_HEADER, Flags, Glimpse, Parsed, RxChecksums, Segment, TcpOptions,
    glance, parse, unwrap_atomic,
};

/// The ones' complement sum, one word at a time (RFC 1071).
fn naive_sum(octets: &[u8]) -> u32 {
    let mut sum = 0u32;
    for pair in octets.chunks(2) {
        sum += u32::from(pair[0]) << 8 | pair.get(1).copied().map_or(0, u32::from);
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum
}

fn be16(frame: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([frame[at], frame[at + 1]])
}

fn be32(frame: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([frame[at], frame[at + 1], frame[at + 2], frame[at + 3]])
}

/// Source, destination, protocol and the bounds of what follows the IP header, naively.
fn naive_ip(frame: &[u8], ip: usize, checksums: RxChecksums) -> (IpAddr, IpAddr, u8, usize, usize) {
    match frame[ip] >> 4 {
        4 => {
            assert_eq!(frame[ip], 0x45);
            if checksums.ip != ChecksumState::Good {
                assert_eq!(naive_sum(&frame[ip..ip + 20]), 0xffff);
            }
            assert_eq!(be16(frame, ip + 6) & !0x4000, 0);
            let addr = |at| <[u8; 4]>::try_from(&frame[at..at + 4]).unwrap().into();
            let end = ip + usize::from(be16(frame, ip + 2));
            (addr(ip + 12), addr(ip + 16), frame[ip + 9], ip + 20, end)
        }
        6 => {
            let addr = |at| <[u8; 16]>::try_from(&frame[at..at + 16]).unwrap().into();
            let end = ip + 40 + usize::from(be16(frame, ip + 4));
            (addr(ip + 8), addr(ip + 24), frame[ip + 6], ip + 40, end)
        }
        version => panic!("version {version}"),
    }
}

fn naive_unicast(addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(a) => !(a.octets()[0] == 0 || a.is_loopback() || a.is_multicast() || a.octets()[0] >= 240),
        IpAddr::V6(a) => !(a.is_unspecified() || a.is_loopback() || a.is_multicast() || a.to_ipv4_mapped().is_some()),
    }
}

fn naive_legal(flags: Flags) -> bool {
    let f = |flag: Flags| flags.contains(flag);
    if f(Flags::SYN) {
        return !(f(Flags::FIN) || f(Flags::RST) || f(Flags::ACK) && f(Flags::URG));
    }
    if f(Flags::RST) {
        return !f(Flags::FIN) && !f(Flags::URG);
    }
    f(Flags::ACK)
}

fn check_segment(frame: &[u8], segment: &Segment, checksums: RxChecksums) {
    let glanced = (segment.l2.len == 14).then(|| Glimpse {
        src: segment.key.src,
        dst: segment.key.dst,
        dst_port: segment.key.dst_port,
        ip_length: (segment.end() - segment.l3()) as u16,
        opens: segment.flags.is_initial_syn(),
    });
    assert_eq!(glance(frame), glanced);
    let ip = usize::from(segment.l2.len);
    assert_eq!(ip, if be16(frame, 12) == 0x8100 { 18 } else { 14 });
    assert_eq!(segment.l2.vlan, if ip == 18 { be16(frame, 14) & 0xfff } else { 0 });
    let (src, dst, protocol, l4, end) = naive_ip(frame, ip, checksums);
    assert_eq!(protocol, 6);
    assert!(end <= frame.len());
    assert_eq!((segment.l3(), segment.l4(), segment.end()), (ip, l4, end));
    assert_eq!(segment.is_v4(), src.is_ipv4());
    assert_eq!((segment.key.src, segment.key.dst), (Addr::from(src), Addr::from(dst)));
    assert_eq!((segment.key.src.to_ip(), segment.key.dst.to_ip()), (src, dst));
    assert!(naive_unicast(src) && naive_unicast(dst) && src != dst, "{src} {dst}");
    assert_eq!((frame[0] | frame[6]) & 1, 0);
    assert_eq!((segment.key.src_port, segment.key.dst_port), (be16(frame, l4), be16(frame, l4 + 2)));
    assert!(segment.key.src_port != 0 && segment.key.dst_port != 0);
    assert_eq!((segment.seq.0, segment.ack.0), (be32(frame, l4 + 4), be32(frame, l4 + 8)));
    assert_eq!(usize::from(segment.tcp_len), usize::from(frame[l4 + 12] >> 4) * 4);
    assert!((20..=60).contains(&segment.tcp_len));
    assert_eq!(segment.flags.0, frame[l4 + 13]);
    assert!(naive_legal(segment.flags), "{:?}", segment.flags);
    assert_eq!(segment.window, be16(frame, l4 + 14));
    assert_eq!(segment.payload(frame), &frame[l4 + usize::from(segment.tcp_len)..end]);
    assert_eq!(segment.payload(frame).len(), usize::from(segment.payload_len));
    assert_eq!(segment.packet(frame), &frame[ip..end]);
    if checksums.l4 != ChecksumState::Good {
        let octets = |ip: IpAddr| match ip {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        let tcp = &frame[l4..end];
        let pseudo = [octets(src), octets(dst), (tcp.len() as u32).to_be_bytes().to_vec(), vec![0, 6]].concat();
        assert_eq!(naive_sum(&[&pseudo[..], tcp].concat()), 0xffff);
    }
    check_options(frame, segment);
}

fn check_options(frame: &[u8], segment: &Segment) {
    let options = segment.options(frame);
    let place = segment.options_range();
    assert_eq!(place, segment.l4() + 20..segment.payload_start());
    assert!(options.wscale.is_none_or(|shift| shift <= 14));
    assert!(options.mss != Some(0));
    if let Some((value, echo)) = options.timestamp {
        let at = usize::from(options.timestamp_at);
        assert!(place.start <= at - 2 && at + 8 <= place.end);
        assert_eq!((frame[at - 2], frame[at - 1]), (8, 10));
        assert_eq!((be32(frame, at), be32(frame, at + 4)), (value, echo));
    }
    let blocks = options.sack_blocks();
    assert!(blocks.len() <= 4);
    if !blocks.is_empty() {
        let at = usize::from(options.sack_at);
        assert!(place.start <= at - 2 && at + 8 * blocks.len() <= place.end);
        assert_eq!((frame[at - 2], usize::from(frame[at - 1])), (5, 2 + 8 * blocks.len()));
        for (i, (left, right)) in blocks.iter().enumerate() {
            assert_eq!((be32(frame, at + 8 * i), be32(frame, at + 8 * i + 4)), (left.0, right.0));
        }
    }
}

fn check_datagram(frame: &[u8], datagram: &Datagram, protocol: u8, checksums: RxChecksums) {
    let (src, dst, found, l4, end) = naive_ip(frame, usize::from(datagram.l2.len), checksums);
    assert_eq!(found, protocol);
    assert!(l4 + 8 <= end && end <= frame.len());
    assert_eq!((usize::from(datagram.l4), usize::from(datagram.end)), (l4, end));
    assert_eq!((datagram.src, datagram.dst), (src.into(), dst.into()));
    assert!(naive_unicast(src) || (protocol == 58 && src.is_unspecified() && dst.is_multicast()));
    assert!(naive_unicast(dst) || (protocol == 58 && dst.is_multicast()));
    assert_eq!(datagram.message(frame), &frame[l4..end]);
    assert_eq!(datagram.packet(frame), &frame[usize::from(datagram.l2.len)..end]);
}

fn check(frame: &[u8], checksums: RxChecksums) {
    match parse(frame, checksums) {
        Ok(Parsed::Tcp(segment)) => check_segment(frame, &segment, checksums),
        Ok(Parsed::Icmp(datagram)) => check_datagram(frame, &datagram, 1, checksums),
        Ok(Parsed::Icmp6(datagram)) => check_datagram(frame, &datagram, 58, checksums),
        Ok(Parsed::Arp(l2)) => assert!(usize::from(l2.len) <= frame.len()),
        Err(_) => {}
    }
}

fn any_checksums() -> impl Strategy<Value = RxChecksums> {
    let state = prop_oneof![Just(ChecksumState::Unknown), Just(ChecksumState::Good), Just(ChecksumState::Bad)];
    (state.clone(), state).prop_map(|(ip, l4)| RxChecksums { ip, l4 })
}

fn any_option() -> impl Strategy<Value = Opt> {
    prop_oneof![
        any::<u16>().prop_map(Opt::Mss),
        any::<u8>().prop_map(Opt::WindowScale),
        Just(Opt::SackPermitted),
        any::<(u32, u32)>().prop_map(|(value, echo)| Opt::Timestamp(value, echo)),
        vec(any::<(u32, u32)>(), 0..=4).prop_map(Opt::Sack),
        Just(Opt::Nop),
        Just(Opt::End),
        vec(any::<u8>(), 0..12).prop_map(Opt::Raw),
    ]
}

/// A valid frame, and now and then one that is not quite.
fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    let tcp = (
        any::<bool>(),
        any::<(u16, u16, u8, u32, u32, u16, u8)>(),
        vec(any_option(), 0..5),
        vec(any::<u8>(), 0..200),
        prop::option::of(any::<u16>()),
        0usize..90,
    )
        .prop_map(|(v6, (src_port, dst_port, flags, seq, ack, window, hops), options, payload, tag, pad)| {
            let (src, dst) = if v6 { ("2001:db8::7", "2001:db8::10") } else { ("192.0.2.7", "198.51.100.10") };
            let at = |addr: &str, port| (addr.parse::<IpAddr>().unwrap(), port);
            let mut options = options;
            let len = |options: &[Opt]| testkit::tcp(CLIENT, CLIENT).options(options).options_len();
            while len(&options) > 40 {
                options.pop();
            }
            let frame = testkit::tcp(at(src, src_port), at(dst, dst_port))
                .flags(Flags(flags))
                .seq(seq)
                .ack(ack)
                .window(window)
                .hop_limit(hops)
                .options(&options)
                .payload(payload)
                .pad_to(pad);
            if let Some(tag) = tag { frame.vlan(tag).build() } else { frame.build() }
        });
    let icmp = (any::<bool>(), vec(any::<u8>(), 0..80)).prop_map(|(v6, payload)| {
        let (src, dst, protocol) = if v6 { ("fe80::7", "ff02::1", 58) } else { ("192.0.2.7", "198.51.100.10", 1) };
        testkit::ip(src, dst, protocol).payload(payload).build()
    });
    prop_oneof![8 => tcp, 1 => icmp]
}

/// Octets that often are options, among them the layouts that the reader has a short way for, one octet off or not.
fn any_options() -> impl Strategy<Value = Vec<u8>> {
    let nonsense = vec(prop_oneof![4 => 0u8..12, 1 => any::<u8>()], 0..=40);
    let layout =
        (any::<[u8; 11]>(), any::<bool>(), prop::option::of((0usize..20, 0u8..12))).prop_map(|(x, syn, change)| {
            let stamp = [&[8, 10][..], &x[..8]].concat();
            let mut octets = if syn {
                [&[2, 4, x[8] & 1, x[9] & 1, 4, 2][..], &stamp, &[1, 3, 3, x[10]]].concat()
            } else {
                [&[1, 1][..], &stamp].concat()
            };
            if let Some((at, value)) = change {
                octets.iter_mut().skip(at).take(1).for_each(|octet| *octet = value);
            }
            octets
        });
    prop_oneof![nonsense, layout]
}

const CLIENT: &str = "192.0.2.7:40000";

#[derive(Clone, Debug)]
enum Mutation {
    Set(usize, u8),
    Flip(usize, u8),
    Cut(usize),
    Extend(Vec<u8>),
    Insert(usize, u8),
    Remove(usize),
}

fn any_mutation() -> impl Strategy<Value = Mutation> {
    // Most of them among the headers.
    let at = || prop_oneof![4 => 0usize..80, 1 => 0usize..400];
    prop_oneof![
        (at(), any::<u8>()).prop_map(|(at, value)| Mutation::Set(at, value)),
        (at(), 0u8..8).prop_map(|(at, bit)| Mutation::Flip(at, bit)),
        at().prop_map(Mutation::Cut),
        vec(any::<u8>(), 0..40).prop_map(Mutation::Extend),
        (at(), any::<u8>()).prop_map(|(at, value)| Mutation::Insert(at, value)),
        at().prop_map(Mutation::Remove),
    ]
}

fn mutate(frame: &mut Vec<u8>, mutation: &Mutation) {
    match mutation {
        Mutation::Set(at, value) => frame.iter_mut().skip(*at).take(1).for_each(|octet| *octet = *value),
        Mutation::Flip(at, bit) => frame.iter_mut().skip(*at).take(1).for_each(|octet| *octet ^= 1 << bit),
        Mutation::Cut(at) => frame.truncate(*at),
        Mutation::Extend(tail) => frame.extend(tail),
        Mutation::Insert(at, value) if *at <= frame.len() => frame.insert(*at, *value),
        Mutation::Remove(at) if *at < frame.len() => drop(frame.remove(*at)),
        Mutation::Insert(..) | Mutation::Remove(_) => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_000, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_never_panic(frame in vec(any::<u8>(), 0..300), checksums in any_checksums()) {
        check(&frame, checksums);
    }

    #[test]
    fn random_bytes_behind_an_ip_ether_type_never_panic(
        mut frame in vec(any::<u8>(), 14..300),
        v6 in any::<bool>(),
        checksums in any_checksums(),
    ) {
        frame[12..14].copy_from_slice(if v6 { &[0x86, 0xdd] } else { &[0x08, 0x00] });
        check(&frame, checksums);
    }

    #[test]
    fn mutated_frames_keep_the_promises(
        mut frame in any_frame(),
        mutations in vec(any_mutation(), 0..4),
        repair in any::<bool>(),
        checksums in any_checksums(),
    ) {
        mutations.iter().for_each(|mutation| mutate(&mut frame, mutation));
        if repair {
            fix_checksums(&mut frame);
        }
        check(&frame, checksums);
    }

    #[test]
    fn a_built_frame_parses_to_what_was_asked_for(
        v6 in any::<bool>(),
        ports in (1u16.., 1u16..),
        seq in any::<u32>(),
        ack in any::<u32>(),
        window in any::<u16>(),
        tos in any::<u8>(),
        hops in 1u8..,
        mss in 1u16..,
        shift in any::<u8>(),
        stamp in any::<(u32, u32)>(),
        payload in vec(any::<u8>(), 0..1500),
        vlan in prop::option::of(1u16..4095),
    ) {
        let (src, dst): (IpAddr, IpAddr) = if v6 {
            ("2001:db8::7".parse().unwrap(), "2001:db8::10".parse().unwrap())
        } else {
            ("192.0.2.7".parse().unwrap(), "198.51.100.10".parse().unwrap())
        };
        let builder = testkit::tcp((src, ports.0), (dst, ports.1))
            .flags(Flags::SYN | Flags::PSH).seq(seq).ack(ack).window(window).tos(tos).hop_limit(hops)
            .options([Opt::Mss(mss), Opt::SackPermitted, Opt::Timestamp(stamp.0, stamp.1), Opt::WindowScale(shift)])
            .payload(&payload).pad_to(60);
        let frame = if let Some(vlan) = vlan { builder.vlan(vlan).build() } else { builder.build() };
        let Ok(Parsed::Tcp(segment)) = parse(&frame, RxChecksums::default()) else { panic!("{frame:02x?}") };
        check_segment(&frame, &segment, RxChecksums::default());
        prop_assert_eq!(segment.key.remote(), (src, ports.0).into());
        prop_assert_eq!(segment.key.local(), (dst, ports.1).into());
        prop_assert_eq!((segment.seq.0, segment.ack.0, segment.window), (seq, ack, window));
        prop_assert_eq!((segment.tos, segment.hop_limit), (tos, hops));
        prop_assert_eq!(segment.l2.vlan, vlan.unwrap_or(0));
        prop_assert_eq!(segment.payload(&frame), &payload[..]);
        prop_assert_eq!(segment.seq_len() as usize, payload.len() + 1);
        let options = segment.options(&frame);
        prop_assert_eq!(options.mss, Some(mss));
        prop_assert_eq!(options.wscale, Some(shift.min(14)));
        prop_assert!(options.sack_permitted);
        prop_assert_eq!(options.timestamp, Some(stamp));
    }

    #[test]
    fn an_atomic_fragment_is_the_packet_that_it_holds_and_no_other_fragment_is(
        payload in vec(any::<u8>(), 0..1400),
        vlan in prop::option::of(1u16..4095),
        reserved in 0u16..4,
        part in any::<u16>(),
        identification in any::<u32>(),
        next in any::<u8>(),
        kept in 0usize..80,
    ) {
        let builder = testkit::tcp("[2001:db8::7]:9", "[2001:db8::10]:443").payload(&payload);
        let whole = vlan.map_or(builder.clone(), |vlan| builder.vlan(vlan)).build();
        let l3 = if vlan.is_some() { 18 } else { 14 };
        let fragment = |next: u8, part: u16| {
            let mut frame = whole.clone();
            let length = be16(&frame, l3 + 4) + 8;
            frame[l3 + 4..l3 + 6].copy_from_slice(&length.to_be_bytes());
            frame[l3 + 6] = 44;
            let header = [&[next, 7][..], &part.to_be_bytes(), &identification.to_be_bytes()].concat();
            frame.splice(l3 + 40..l3 + 40, header);
            frame
        };
        // Two bits of the field mean nothing.
        let mut atomic = fragment(6, reserved << 1);
        prop_assert_eq!(parse(&atomic, RxChecksums::default()), Err(DropReason::Fragment));
        prop_assert!(unwrap_atomic(&mut atomic));
        prop_assert_eq!(&atomic[FRAGMENT_HEADER..], &whole[..]);

        for mut other in [fragment(6, part | 1), fragment(6, part | 8), fragment(if next == 6 { 7 } else { next }, 0), whole.clone()] {
            let before = other.clone();
            prop_assert!(!unwrap_atomic(&mut other));
            prop_assert_eq!(other, before, "untouched");
        }
        let mut short = fragment(6, 0);
        short.truncate(kept);
        prop_assert_eq!(unwrap_atomic(&mut short), kept >= l3 + 48);
    }

    #[test]
    fn options_agree_with_a_naive_reader(bytes in any_options()) {
        let options = TcpOptions::read(&bytes, 34);
        let (mut at, mut mss, mut wscale, mut sack_permitted, mut stamp, mut sack) = (0, None, None, false, None, (0, 0));
        while at < bytes.len() && bytes[at] != 0 {
            if bytes[at] == 1 {
                at += 1;
                continue;
            }
            let Some(len) = bytes.get(at + 1).map(|&len| usize::from(len)) else { break };
            if len < 2 || at + len > bytes.len() {
                break;
            }
            match (bytes[at], len) {
                (2, 4) => mss = Some(be16(&bytes, at + 2)).filter(|&mss| mss > 0),
                (3, 3) => wscale = Some(bytes[at + 2].min(14)),
                (4, 2) => sack_permitted = true,
                (5, 10 | 18 | 26 | 34) => sack = (at + 2, (len - 2) / 8),
                (8, 10) => stamp = Some((at + 2, (be32(&bytes, at + 2), be32(&bytes, at + 6)))),
                _ => {}
            }
            at += len;
        }
        prop_assert_eq!((options.mss, options.wscale, options.sack_permitted), (mss, wscale, sack_permitted));
        prop_assert_eq!(options.timestamp, stamp.map(|(_, stamp)| stamp));
        if let Some((at, _)) = stamp {
            prop_assert_eq!(usize::from(options.timestamp_at), 34 + at);
        }
        prop_assert_eq!(options.sack_blocks().len(), sack.1);
        if sack.1 > 0 {
            prop_assert_eq!(usize::from(options.sack_at), 34 + sack.0);
            prop_assert_eq!(options.sack_blocks()[0].0.0, be32(&bytes, sack.0));
        }
    }
}

#[test]
fn every_flag_combination_agrees_with_a_naive_rule() {
    for flags in (0..=u8::MAX).map(Flags) {
        assert_eq!(flags.is_legal(), naive_legal(flags), "{flags:?}");
    }
}
