//! Cookies as clients meet them: what is accepted, what is refused, and what the SYN-ACK looks like.

use std::collections::HashMap;

use proptest::prelude::*;
use sluice_filters::addr::Addr;
use sluice_filters::testkit::{self, Opt};
use sluice_filters::{Parsed, RxChecksums, TcpOptions, checksum, dst_mac, src_mac};

use super::*;

const EPOCH: Duration = Duration::from_secs(64);
/// The start of an epoch, which is even.
const START: Duration = Duration::from_secs(64 * 26_562_500);
const OUR_MAC: [u8; 6] = [2, 0, 0, 0, 0xaa, 0xbb];
const V4: (&str, &str) = ("192.0.2.7:40000", "198.51.100.10:443");
const V6: (&str, &str) = ("[2001:db8:1::7]:40000", "[2001:db8::10]:443");
const PLAIN: Offer = Offer { mss: 1_460, wscale: Some(7), sack: true };

fn jar_at(wall: Duration) -> Jar {
    let mut jar = Jar::new([7; 32], EPOCH);
    jar.tick(wall);
    jar
}

fn profile() -> SynAckProfile {
    SynAckProfile {
        mss: 1_400,
        wscale: Some(9),
        window: 43_210,
        sack: true,
        timestamps: true,
        src_mac: OUR_MAC,
        tcp_checksum: TcpChecksum::Full,
    }
}

fn parse(frame: &[u8]) -> Segment {
    match sluice_filters::parse(frame, RxChecksums::default()) {
        Ok(Parsed::Tcp(segment)) => segment,
        other => panic!("{other:?}"),
    }
}

fn key(ends: (&str, &str)) -> FlowKey {
    parse(&testkit::tcp(ends.0, ends.1).build()).key
}

fn keys() -> impl Strategy<Value = FlowKey> {
    let v4 = (any::<u32>(), any::<u32>()).prop_map(|(src, dst)| (Addr::v4(src), Addr::v4(dst)));
    let v6 = (any::<[u8; 16]>(), any::<[u8; 16]>())
        .prop_map(|(src, dst)| (Addr::v6(src), Addr::v6(dst)))
        .prop_filter("mapped", |(src, dst)| !src.is_v4() && !dst.is_v4());
    (prop_oneof![v4, v6], any::<u16>(), any::<u16>()).prop_map(|((src, dst), src_port, dst_port)| FlowKey {
        src,
        dst,
        src_port,
        dst_port,
    })
}

fn offers() -> impl Strategy<Value = Offer> {
    (MSS_MIN.., prop::option::of(0_u8..=14), any::<bool>()).prop_map(|(mss, wscale, sack)| Offer { mss, wscale, sack })
}

/// The answer to `syn`, parsed, beside its octets.
fn answer(syn: &testkit::TcpBuilder, profile: &SynAckProfile) -> Option<(Vec<u8>, Segment, TcpOptions)> {
    let frame = syn.build();
    let segment = parse(&frame);
    let mut buffer = frame;
    buffer.resize(buffer.len().max(SYN_ACK_MAX), 0xee);
    let len = jar_at(START).answer_syn(&mut buffer, &segment, profile, 1_000)?;
    buffer.truncate(len);
    let answer = parse(&buffer);
    let options = answer.options(&buffer);
    Some((buffer, answer, options))
}

fn syn(ends: (&str, &str), options: &[Opt]) -> testkit::TcpBuilder {
    testkit::tcp(ends.0, ends.1).flags(Flags::SYN).seq(u32::MAX).ack(0).options(options)
}

/// What the cookie in `answer` remembers.
fn remembered(ends: (&str, &str), answer: &Segment) -> Offer {
    jar_at(START).check(&key(ends), Seq(u32::MAX), answer.seq.plus(1)).unwrap()
}

proptest! {
    #[test]
    fn a_cookie_brings_back_what_was_offered(seed: [u8; 32], key in keys(), isn: u32, offer in offers(), wall: u32) {
        let mut jar = Jar::new(seed, EPOCH);
        jar.tick(Duration::from_secs(wall.into()));
        let cookie = jar.mint(&key, Seq(isn), offer);
        let back = jar.check(&key, Seq(isn), cookie.plus(1)).unwrap();
        let table = if key.src.is_v4() { MSS_V4 } else { MSS_V6 };
        prop_assert_eq!(Some(&back.mss), table.iter().rfind(|mss| **mss <= offer.mss));
        prop_assert_eq!((back.wscale, back.sack), (offer.wscale, offer.sack));
    }

    #[test]
    fn jars_with_one_seed_accept_each_others_cookies(seed: [u8; 32], key in keys(), isn: u32, wall in 100_u32..) {
        let [mut one, mut other, mut stranger] = [seed, seed, seed.map(|octet| octet ^ 1)].map(|s| Jar::new(s, EPOCH));
        let wall = Duration::from_secs(wall.into());
        // One was started long ago, the other now.
        one.tick(wall - EPOCH);
        one.tick(wall);
        other.tick(wall);
        stranger.tick(wall);
        let cookie = one.mint(&key, Seq(isn), PLAIN);
        prop_assert_eq!(other.check(&key, Seq(isn), cookie.plus(1)), Some(one.check(&key, Seq(isn), cookie.plus(1)).unwrap()));
        prop_assert_eq!(other.ts_offset(&key, Seq(isn), cookie), one.ts_offset(&key, Seq(isn), cookie));
        prop_assert_ne!(stranger.ts_offset(&key, Seq(isn), cookie), one.ts_offset(&key, Seq(isn), cookie));
        prop_assert_ne!(stranger.mint(&key, Seq(isn), PLAIN), cookie);
    }

    #[test]
    fn answers_to_any_syn_are_valid_or_absent(
        raw in prop::collection::vec(any::<u8>(), 0..=40),
        v6: bool,
        room in 0_usize..SYN_ACK_MAX * 2,
    ) {
        let ends = if v6 { V6 } else { V4 };
        let frame = syn(ends, &[Opt::Raw(raw)]).build();
        let segment = parse(&frame);
        let mut buffer = frame.clone();
        buffer.resize(room, 0);
        let before = buffer.clone();
        match jar_at(START).answer_syn(&mut buffer, &segment, &profile(), 5) {
            Some(len) => {
                let answer = parse(&buffer[..len]);
                prop_assert_eq!(answer.flags, Flags::SYN | Flags::ACK);
                prop_assert!(jar_at(START).check(&segment.key, segment.seq, answer.seq.plus(1)).is_some());
            }
            None => prop_assert_eq!(buffer, before),
        }
    }
}

#[test]
fn every_bit_of_the_cookie_and_of_what_it_covers_counts() {
    for ends in [V4, V6] {
        let (jar, key, isn) = (jar_at(START), key(ends), Seq(0x8000_0001));
        let ack = jar.mint(&key, isn, PLAIN).plus(1);
        assert!(jar.check(&key, isn, ack).is_some());
        for bit in 0..32 {
            let forged = Seq(((ack.0 - 1) ^ 1 << bit) + 1);
            assert_eq!(jar.check(&key, isn, forged), None, "cookie bit {bit}");
            assert_eq!(jar.check(&key, Seq(isn.0 ^ 1 << bit), ack), None, "ISN bit {bit}");
        }
        for bit in 0..16 {
            assert_eq!(jar.check(&FlowKey { src_port: key.src_port ^ 1 << bit, ..key }, isn, ack), None);
            assert_eq!(jar.check(&FlowKey { dst_port: key.dst_port ^ 1 << bit, ..key }, isn, ack), None);
        }
        for bit in 0..if key.src.is_v4() { 32 } else { 64 } {
            let flip = |addr: Addr| Addr { lo: addr.lo ^ 1 << bit, ..addr };
            assert_eq!(jar.check(&FlowKey { src: flip(key.src), ..key }, isn, ack), None);
            assert_eq!(jar.check(&FlowKey { dst: flip(key.dst), ..key }, isn, ack), None);
            let flip = |addr: Addr| Addr { hi: addr.hi ^ 1 << bit, ..addr };
            if !key.src.is_v4() {
                assert_eq!(jar.check(&FlowKey { src: flip(key.src), ..key }, isn, ack), None);
                assert_eq!(jar.check(&FlowKey { dst: flip(key.dst), ..key }, isn, ack), None);
            }
        }
        let swapped = FlowKey { src: key.dst, dst: key.src, src_port: key.dst_port, dst_port: key.src_port };
        assert_eq!(jar.check(&swapped, isn, ack), None);
    }
}

#[test]
fn cookies_of_this_epoch_and_the_last_are_accepted_older_ones_refused() {
    let (key, isn) = (key(V4), Seq(1));
    let at = |seconds: f64| jar_at(START + Duration::from_secs_f64(seconds));
    let accepts = |minted: f64, checked: f64| {
        let ack = at(minted).mint(&key, isn, PLAIN).plus(1);
        at(checked).check(&key, isn, ack).is_some()
    };
    assert!(accepts(0.0, 63.9));
    // Minted in the last epoch: good for seven eighths of this one.
    assert!(accepts(63.9, 64.0));
    assert!(accepts(0.0, 64.0 + 55.9));
    assert!(!accepts(0.0, 64.0 + 56.1));
    assert!(!accepts(63.9, 64.0 + 56.1));
    // Two epochs ago: the parity is this epoch's, the key is not.
    assert!(!accepts(0.0, 128.0));
    assert!(!accepts(0.0, 256.0));
    // From a sibling whose clock runs ahead, by up to an eighth.
    assert!(accepts(64.0, 63.9));
    assert!(accepts(64.0, 56.1));
    assert!(!accepts(64.0, 55.9));
}

#[test]
fn parity_is_the_epochs_and_chooses_the_key() {
    let (key, isn) = (key(V4), Seq(1));
    for (epoch, parity) in [(0, 0), (1, 1), (2, 0)] {
        let cookie = jar_at(START + EPOCH * epoch).mint(&key, isn, PLAIN);
        assert_eq!(cookie.0 >> 31, parity);
    }
}

#[test]
fn a_jar_that_lives_through_epochs_agrees_with_a_new_one() {
    let (key, isn) = (key(V6), Seq(1));
    let mut jar = Jar::new([7; 32], EPOCH);
    for tenths in 0..3_000_u32 {
        let wall = START + Duration::from_millis(100) * tenths;
        jar.tick(wall);
        assert_eq!(jar.mint(&key, isn, PLAIN), jar_at(wall).mint(&key, isn, PLAIN));
    }
    // The operator sets the clock back.
    jar.step(START, EPOCH);
    assert_eq!(jar.mint(&key, isn, PLAIN), jar_at(START).mint(&key, isn, PLAIN));
}

/// Steps of an hour, of less and more than an epoch, onto the same parity and the other, from every part of an epoch.
#[test]
fn cookies_from_before_the_clock_was_set_stay_good_for_an_epoch() {
    let (key, isn) = (key(V4), Seq(1));
    let second = Duration::from_secs(1);
    for set_at in [1, 30, 57, 63] {
        for by in [1_i64, 10, 63, 64, 65, 120, 128, 130, 3_600, 3_600 + 64, 86_400 * 365] {
            for by in [by, -by] {
                let at = |seconds: i64| {
                    START + EPOCH * 1_000_000 + second * set_at - second * 100_000_000
                        + second * u32::try_from(100_000_000 + seconds).unwrap()
                };
                let mut jar = jar_at(at(0));
                let cookie = jar.mint(&key, isn, PLAIN);
                let ts_offset = jar.ts_offset(&key, isn, cookie);
                jar.step(at(by), second * u32::try_from(by.unsigned_abs()).unwrap());
                // New cookies are those of everybody whose clock is right.
                assert_eq!(jar.mint(&key, isn, PLAIN), jar_at(at(by)).mint(&key, isn, PLAIN));
                for later in [0, 1, 10, 30, 55] {
                    jar.tick(at(by + later));
                    let what = format!("set at {set_at} by {by}, {later} s later");
                    assert!(jar.check(&key, isn, cookie.plus(1)).is_some(), "{what}");
                    assert_eq!(jar.ts_offset(&key, isn, cookie), ts_offset, "{what}");
                    assert!(jar.check(&key, isn, cookie.plus(2)).is_none(), "{what}");
                }
                jar.tick(at(by + 130));
                // The step may have been into an epoch that lives to see this.
                let sibling = jar_at(at(by + 130)).check(&key, isn, cookie.plus(1));
                assert_eq!(jar.check(&key, isn, cookie.plus(1)), sibling, "set at {set_at} by {by}");
            }
        }
    }
}

/// As a clock that is set by its daemon, and then a little more exactly.
#[test]
fn a_small_step_behind_a_large_one_does_not_forget_the_cookies_from_before_both() {
    let (key, isn) = (key(V6), Seq(1));
    let hour = Duration::from_secs(3_600);
    for back in [true, false] {
        let mut jar = jar_at(START);
        let old = jar.mint(&key, isn, PLAIN).plus(1);
        let wall = if back { START - hour } else { START + hour };
        jar.step(wall, Duration::from_secs(3_600));
        let between = jar.mint(&key, isn, PLAIN).plus(1);
        jar.step(wall + Duration::from_millis(7), Duration::from_millis(7));
        jar.step(wall - Duration::from_millis(7), Duration::from_millis(14));
        assert!(jar.check(&key, isn, old).is_some() && jar.check(&key, isn, between).is_some());
        // Back to where it was.
        jar.step(START, EPOCH);
        assert!(jar.check(&key, isn, old).is_some() && jar.check(&key, isn, between).is_some());
    }
}

#[test]
fn the_first_time_a_jar_is_told_is_no_step() {
    let mut jar = Jar::new([7; 32], EPOCH);
    jar.step(START, EPOCH);
    assert!(jar.before.is_none());
    assert_eq!(jar.mint(&key(V4), Seq(1), PLAIN), jar_at(START).mint(&key(V4), Seq(1), PLAIN));
}

/// A capture has gaps, and a machine may sleep: time that passes makes cookies old.
#[test]
fn cookies_that_grew_old_are_refused_though_nobody_looked_at_the_clock_meanwhile() {
    let (key, isn) = (key(V4), Seq(1));
    let mut jar = jar_at(START);
    let ack = jar.mint(&key, isn, PLAIN).plus(1);
    jar.tick(START + EPOCH * 10);
    assert_eq!(jar.check(&key, isn, ack), None);
}

#[test]
fn layout_is_parity_mss_scale_sack_mac() {
    let fields = |parity: u32, mss: u32, scale: u32, sack: u32| parity << 8 | mss << 5 | scale << 1 | sack;
    let jar = jar_at(START + EPOCH);
    let bits = |ends, offer| jar.mint(&key(ends), Seq(1), offer).0 >> 23;
    assert_eq!(bits(V4, Offer { mss: 1_460, wscale: Some(7), sack: true }), fields(1, 6, 7, 1));
    assert_eq!(bits(V4, Offer { mss: 48, wscale: None, sack: false }), fields(1, 0, 15, 0));
    assert_eq!(bits(V6, Offer { mss: u16::MAX, wscale: Some(14), sack: false }), fields(1, 7, 14, 0));
    // A scale no client may use counts as the largest, never as "none".
    assert_eq!(bits(V4, Offer { mss: 536, wscale: Some(15), sack: false }), fields(1, 1, 14, 0));
}

#[test]
fn macs_collide_as_often_as_23_random_bits_do() {
    const MINTED: u32 = 1 << 15;
    let jar = jar_at(START);
    for ends in [V4, V6] {
        let mut seen: HashMap<u32, u32> = HashMap::new();
        let mut ones = [0_u32; 23];
        for n in 0..MINTED {
            let mac = jar.mint(&key(ends), Seq(n), PLAIN).0 & MAC_MASK;
            *seen.entry(mac).or_default() += 1;
            ones.iter_mut().enumerate().for_each(|(bit, ones)| *ones += mac >> bit & 1);
        }
        // 2^30 / 2 pairs, each equal with probability 2^-23: 64 expected, deviation 8.
        let pairs: u32 = seen.values().map(|n| n * (n - 1) / 2).sum();
        assert!((24..=104).contains(&pairs), "{pairs} pairs");
        for ones in ones {
            assert!(ones.abs_diff(MINTED / 2) < 600, "{ones} ones");
        }
    }
}

#[test]
fn a_forger_succeeds_about_once_in_2_to_the_23() {
    const TRIES: u32 = 1 << 24;
    let (jar, key) = (jar_at(START), key(V4));
    let accepted = (0..TRIES).filter(|n| jar.check(&key, Seq(*n), Seq(n.wrapping_mul(0x9e37_79b9))).is_some()).count();
    // Two expected. The tries are always the same, so this passes always or never.
    assert!((1..=8).contains(&accepted), "{accepted} accepted");
}

#[test]
fn isn_and_cookie_wrap() {
    let (jar, key) = (jar_at(START), key(V4));
    // The client's ACK has sequence number 0; minus one is its ISN again.
    let cookie = jar.mint(&key, Seq(u32::MAX), PLAIN);
    assert!(jar.check(&key, Seq(0_u32.wrapping_sub(1)), cookie.plus(1)).is_some());
    // An acknowledgment of 0 stands for the cookie 2^32 - 1: refused or not, it must not overflow.
    let _ = jar.check(&key, Seq(0), Seq(0));
}

#[test]
fn answer_goes_back_where_the_syn_came_from() {
    for ends in [V4, V6] {
        let request = syn(ends, &[Opt::Mss(1_460)]).hop_limit(3).tos(0xff);
        let (frame, answer, _) = answer(&request, &profile()).unwrap();
        assert_eq!((dst_mac(&frame), src_mac(&frame)), (Some(testkit::PEER_MAC), Some(OUR_MAC)));
        let key = key(ends);
        assert_eq!((answer.key.src, answer.key.src_port), (key.dst, key.dst_port));
        assert_eq!((answer.key.dst, answer.key.dst_port), (key.src, key.src_port));
        assert_eq!((answer.hop_limit, answer.tos), (64, 0));
        assert_eq!((answer.flags, answer.window), (Flags::SYN | Flags::ACK, 43_210));
        assert_eq!(answer.ack, Seq(0));
        assert_eq!(answer.end(), frame.len());
        if ends == V4 {
            // ID 0, DF.
            assert_eq!(frame[18..22], [0, 0, 0x40, 0]);
        }
    }
}

#[test]
fn answer_keeps_the_vlan_tag() {
    for ends in [V4, V6] {
        let (frame, answer, _) = answer(&syn(ends, &[]).vlan(0x6064), &profile()).unwrap();
        assert_eq!((answer.l2.len, answer.l2.vlan), (18, 0x064));
        assert_eq!(frame[12..16], [0x81, 0, 0x60, 0x64]);
    }
}

#[test]
fn answer_and_cookie_hold_exactly_the_options_both_sides_have() {
    for ends in [V4, V6] {
        for client in 0..8_u8 {
            for service in 0..8_u8 {
                let mut options = vec![Opt::Mss(1_300)];
                let profile = SynAckProfile {
                    wscale: (service & 1 != 0).then_some(9),
                    sack: service & 2 != 0,
                    timestamps: service & 4 != 0,
                    ..profile()
                };
                options.extend((client & 1 != 0).then_some(Opt::WindowScale(14)));
                options.extend((client & 2 != 0).then_some(Opt::SackPermitted));
                options.extend((client & 4 != 0).then_some(Opt::Timestamp(0xaabb_ccdd, 0)));
                let (_, answer, read) = answer(&syn(ends, &options), &profile).unwrap();
                let both = client & service;
                assert_eq!(read.mss, Some(1_400));
                assert_eq!(read.wscale, (both & 1 != 0).then_some(9));
                assert_eq!(read.sack_permitted, both & 2 != 0);
                let isn = Seq(answer.ack.0.wrapping_sub(1));
                let value = 1_000_u32.wrapping_add(jar_at(START).ts_offset(&key(ends), isn, answer.seq));
                assert_eq!(read.timestamp, (both & 4 != 0).then_some((value, 0xaabb_ccdd)));
                let offer = Offer {
                    mss: if ends == V4 { 1_200 } else { 1_220 },
                    wscale: (both & 1 != 0).then_some(14),
                    sack: both & 2 != 0,
                };
                assert_eq!(remembered(ends, &answer), offer);
            }
        }
    }
}

#[test]
fn client_without_options_gets_the_default_mss_and_nothing_else() {
    for (ends, mss) in [(V4, 536), (V6, 1_220)] {
        let (_, answer, options) = answer(&syn(ends, &[]), &profile()).unwrap();
        assert_eq!(answer.tcp_len, 24);
        assert_eq!(options, TcpOptions::read(&[2, 4, 5, 120], 0));
        assert_eq!(remembered(ends, &answer), Offer { mss, wscale: None, sack: false });
    }
}

#[test]
fn unusual_options_are_understood_or_ignored() {
    let offer = |options: &[Opt]| {
        let (_, answer, _) = answer(&syn(V4, options), &profile()).unwrap();
        remembered(V4, &answer)
    };
    let none = Offer { mss: 536, wscale: None, sack: false };
    assert_eq!(offer(&[Opt::Mss(48)]).mss, 48);
    assert_eq!(offer(&[Opt::Mss(535)]).mss, 48);
    assert_eq!(offer(&[Opt::Mss(0)]), none);
    assert_eq!(offer(&[Opt::Mss(8_960)]).mss, 8_960);
    assert_eq!(offer(&[Opt::Mss(65_535)]).mss, 8_960);
    assert_eq!(offer(&[Opt::WindowScale(0)]).wscale, Some(0));
    assert_eq!(offer(&[Opt::WindowScale(14)]).wscale, Some(14));
    for beyond in [15, 16, 255] {
        assert_eq!(offer(&[Opt::WindowScale(beyond)]).wscale, Some(14));
    }
    // TCP Fast Open, MPTCP, an experiment; then the known ones behind them.
    let unknown = [Opt::Raw(vec![34, 2]), Opt::Raw(vec![30, 4, 0, 1]), Opt::Raw(vec![253, 3, 9]), Opt::SackPermitted];
    assert_eq!(offer(&unknown), Offer { sack: true, ..none });
    // Malformed: what came before counts.
    assert_eq!(offer(&[Opt::SackPermitted, Opt::Raw(vec![2, 40, 5])]), Offer { sack: true, ..none });
    assert_eq!(offer(&[Opt::Raw(vec![3, 0]), Opt::Mss(1_460)]), none);
    assert_eq!(offer(&[Opt::End, Opt::Mss(1_460)]), none);
}

#[test]
fn a_client_with_an_mss_below_the_lowest_is_answered_as_one_with_the_lowest() {
    for ends in [V4, V6] {
        for mss in 1..=48 {
            let (_, answer, _) = answer(&syn(ends, &[Opt::Mss(mss)]), &profile()).unwrap();
            assert_eq!(remembered(ends, &answer), Offer { mss: MSS_MIN, wscale: None, sack: false }, "{mss}");
        }
    }
}

#[test]
fn data_and_ecn_on_the_syn_are_not_taken() {
    let request = syn(V4, &[Opt::Mss(1_460)]).payload([0x55; 900]).flags(Flags::SYN | Flags::ECE | Flags::CWR);
    let (frame, answer, _) = answer(&request, &profile()).unwrap();
    assert_eq!((answer.flags, answer.ack, answer.payload_len), (Flags::SYN | Flags::ACK, Seq(0), 0));
    assert_eq!(frame.len(), 14 + 20 + 24);
}

#[test]
fn answers_exceed_their_syns_by_four_octets_at_most() {
    for ends in [V4, V6] {
        for bits in 0..16_u8 {
            let mut options = Vec::new();
            options.extend((bits & 1 != 0).then_some(Opt::Timestamp(1, 0)));
            options.extend((bits & 2 != 0).then_some(Opt::SackPermitted));
            options.extend((bits & 4 != 0).then_some(Opt::WindowScale(7)));
            options.extend((bits & 8 != 0).then_some(Opt::Mss(1_460)));
            let request = syn(ends, &options);
            let (frame, ..) = answer(&request, &profile()).unwrap();
            assert!(frame.len() <= request.build().len() + AMPLIFICATION, "options {bits:04b}");
            assert!(frame.len() <= SYN_ACK_MAX);
        }
    }
}

#[test]
fn offloaded_checksum_is_the_pseudo_headers_sum() {
    for ends in [V4, V6] {
        let linux = [Opt::Mss(1_460), Opt::SackPermitted, Opt::Timestamp(5, 0), Opt::Nop, Opt::WindowScale(7)];
        let frame = syn(ends, &linux).build();
        let segment = parse(&frame);
        let answer = |tcp_checksum| {
            let mut buffer = frame.clone();
            buffer.resize(SYN_ACK_MAX, 0);
            let len = jar_at(START).answer_syn(&mut buffer, &segment, &SynAckProfile { tcp_checksum, ..profile() }, 9);
            buffer.truncate(len.unwrap());
            buffer
        };
        let (full, mut offloaded) = (answer(TcpChecksum::Full), answer(TcpChecksum::Offload));
        let tcp = segment.l4();
        let pseudo = checksum::pseudo_header(segment.key.src, segment.key.dst, checksum::TCP, offloaded.len() - tcp);
        assert_eq!(offloaded[tcp + 16..tcp + 18], pseudo.fold().to_be_bytes());
        let finished = checksum::sum(&offloaded[tcp..]).finish();
        offloaded[tcp + 16..tcp + 18].copy_from_slice(&finished.to_be_bytes());
        assert_eq!(offloaded, full);
    }
}

#[test]
fn timestamp_offsets_differ_between_connections_and_outlive_the_epoch_they_began_in() {
    let one = key(V4);
    let other = FlowKey { src_port: one.src_port ^ 1, ..one };
    let (now, next) = (jar_at(START), jar_at(START + EPOCH));
    let [cookie, another] = [7, 8].map(|isn| now.mint(&one, Seq(isn), PLAIN));
    let offset = now.ts_offset(&one, Seq(7), cookie);
    assert_eq!(next.ts_offset(&one, Seq(7), cookie), offset);
    assert_ne!(now.ts_offset(&one, Seq(8), another), offset);
    assert_ne!(now.ts_offset(&other, Seq(7), now.mint(&other, Seq(7), PLAIN)), offset);
    assert_ne!(now.ts_offset(&key(V6), Seq(7), now.mint(&key(V6), Seq(7), PLAIN)), offset);
}

#[test]
fn debug_output_holds_no_secret() {
    let text = format!("{:?}", jar_at(START));
    assert!(!text.contains("key") && !text.contains("seed"), "{text}");
}

#[test]
fn syns_and_their_answers_are_as_long_as_the_threat_model_says() {
    let linux = [Opt::Mss(1_460), Opt::SackPermitted, Opt::Timestamp(5, 0), Opt::Nop, Opt::WindowScale(7)];
    let mss = [Opt::Mss(1_460)];
    for (ends, options, lengths) in [
        (V4, &linux[..], [74, 74]),
        (V4, &mss, [58, 58]),
        (V4, &[], [54, 58]),
        (V6, &linux, [94, 94]),
        (V6, &mss, [78, 78]),
        (V6, &[], [74, 78]),
    ] {
        let request = syn(ends, options);
        assert_eq!([request.build().len(), answer(&request, &profile()).unwrap().0.len()], lengths);
    }
}
