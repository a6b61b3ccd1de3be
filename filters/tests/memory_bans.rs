//! The table of bans against a plain map, and what a map would not show.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use proptest::collection::vec;
use proptest::prelude::*;
use sluice_filters::addr::Addr;
use sluice_filters::memory::{Ban, Bans, Full};
use sluice_filters::units::Micros;

const FOREVER: Micros = Micros(u64::MAX);

/// Addresses that share prefixes of many lengths, and the ends of both families.
fn addresses() -> impl Strategy<Value = IpAddr> {
    let v4 = prop_oneof![(0u32..8, 0u32..32).prop_map(|(n, shift)| 0xc000_0200 ^ n << shift), Just(0), Just(u32::MAX),];
    let v6 = prop_oneof![
        (0u128..8, 0u32..128).prop_map(|(n, shift)| 0x2001_0db8 << 96 ^ n << shift),
        Just(0),
        Just(u128::MAX),
    ];
    prop_oneof![
        v4.prop_map(|bits| IpAddr::from(Ipv4Addr::from(bits))),
        v6.prop_filter("no mapped addresses", |bits| bits >> 32 != 0xffff)
            .prop_map(|bits| IpAddr::from(Ipv6Addr::from(bits))),
    ]
}

fn prefixes() -> impl Strategy<Value = IpNet> {
    (addresses(), 0u8..=128, 0u8..=32).prop_map(|(addr, v6, v4)| match addr {
        IpAddr::V4(addr) => Ipv4Net::new(addr, v4).unwrap().into(),
        IpAddr::V6(addr) => Ipv6Net::new(addr, v6).unwrap().into(),
    })
}

#[derive(Clone, Debug)]
enum Step {
    Ban(IpNet, u64, u32),
    /// Ban again, or unban, one of those there are.
    BanAgain(usize, u64, u32),
    UnbanOne(usize),
    Unban(IpNet),
    Wait(u64),
    Sweep(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let until = prop_oneof![0u64..300, Just(u64::MAX)];
    let step = prop_oneof![
        8 => (prefixes(), until.clone(), any::<u32>()).prop_map(|(net, until, why)| Step::Ban(net, until, why)),
        2 => (any::<usize>(), until, any::<u32>()).prop_map(|(n, until, why)| Step::BanAgain(n, until, why)),
        3 => any::<usize>().prop_map(Step::UnbanOne),
        1 => prefixes().prop_map(Step::Unban),
        2 => (0u64..30).prop_map(Step::Wait),
        2 => (0usize..20).prop_map(Step::Sweep),
    ];
    vec(step, 1..250)
}

/// What covers `addr`, by asking every ban.
fn covering(model: &HashMap<IpNet, (u64, u32)>, addr: IpAddr, now: u64) -> Option<Ban> {
    let live = model.iter().filter(|(net, (until, _))| *until > now && net.contains(&addr));
    let (net, &(until, reason)) = live.max_by_key(|(net, _)| net.prefix_len())?;
    Some(Ban { prefix_len: net.prefix_len(), until: Micros(until), reason })
}

fn nth(model: &HashMap<IpNet, (u64, u32)>, n: usize) -> Option<IpNet> {
    let mut nets: Vec<_> = model.keys().copied().collect();
    nets.sort();
    nets.get(n % nets.len().max(1)).copied()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn the_table_agrees_with_a_map(
        steps in steps(),
        asked in vec(addresses(), 20),
        // Small ones wrap, crowd and fill up.
        capacity in prop_oneof![1usize..12, Just(40), Just(1000)],
        secret in any::<[u64; 2]>(),
    ) {
        let mut bans = Bans::new(capacity, secret);
        let memory = bans.memory();
        let (mut model, mut now) = (HashMap::<IpNet, (u64, u32)>::new(), 0);
        for step in steps {
            match step {
                Step::Ban(net, until, why) => {
                    let net = net.trunc();
                    let fits = model.contains_key(&net) || model.len() < capacity;
                    prop_assert_eq!(bans.ban(net, Micros(until), why), if fits { Ok(()) } else { Err(Full) });
                    if fits {
                        model.insert(net, (until, why));
                    }
                }
                Step::BanAgain(n, until, why) => if let Some(net) = nth(&model, n) {
                    prop_assert_eq!(bans.ban(net, Micros(until), why), Ok(()));
                    model.insert(net, (until, why));
                },
                Step::UnbanOne(n) => if let Some(net) = nth(&model, n) {
                    prop_assert!(bans.unban(net));
                    model.remove(&net);
                },
                Step::Unban(net) => prop_assert_eq!(bans.unban(net), model.remove(&net.trunc()).is_some()),
                Step::Wait(time) => now += time,
                Step::Sweep(budget) => {
                    let ended = model.values().filter(|(until, _)| *until <= now).count();
                    let removed = bans.sweep(Micros(now), budget);
                    prop_assert!(removed <= budget.min(ended));
                    prop_assert_eq!(bans.len(), model.len() - removed);
                    // Which ones went depends on the order inside: two more rounds take the others, and the model follows.
                    let rest = bans.sweep(Micros(now), usize::MAX) + bans.sweep(Micros(now), usize::MAX);
                    prop_assert_eq!(removed + rest, ended);
                    model.retain(|_, (until, _)| *until > now);
                }
            }
            prop_assert_eq!(bans.len(), model.len());
            prop_assert_eq!(bans.is_empty(), model.is_empty());
            let networks = model.keys().map(|net| net.network()).take(20);
            for addr in asked.iter().copied().chain(networks) {
                let expected = covering(&model, addr, now);
                prop_assert_eq!(bans.lookup(addr.into(), Micros(now)), expected, "{} at {}", addr, now);
            }
        }
        prop_assert_eq!(bans.memory(), memory);
    }
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn addr(text: &str) -> Addr {
    text.parse::<IpAddr>().unwrap().into()
}

#[test]
fn every_prefix_length_can_be_banned_at_once() {
    let mut bans = Bans::new(200, [1, 2]);
    for len in 0..=32 {
        bans.ban(IpNet::new(addr("255.255.255.255").to_ip(), len).unwrap(), FOREVER, len.into()).unwrap();
    }
    for len in 0..=128 {
        let all_ones = Ipv6Addr::from(u128::MAX);
        bans.ban(IpNet::new(all_ones.into(), len).unwrap(), FOREVER, 100 + u32::from(len)).unwrap();
    }
    for len in 0..=32u8 {
        let first_zero = u32::MAX ^ 0x8000_0000u32.checked_shr(len.into()).unwrap_or(0);
        let ban = bans.lookup(Addr::v4(first_zero), Micros(0)).unwrap();
        assert_eq!((ban.prefix_len, ban.reason), (len, len.into()));
    }
    for len in 0..=128u8 {
        let first_zero = u128::MAX ^ (1u128 << 127).checked_shr(len.into()).unwrap_or(0);
        let ban = bans.lookup(Addr::v6(first_zero.to_be_bytes()), Micros(0)).unwrap();
        assert_eq!((ban.prefix_len, ban.reason), (len, 100 + u32::from(len)));
    }
}

#[test]
fn families_are_apart() {
    let mut bans = Bans::new(10, [1, 2]);
    bans.ban(net("::/0"), FOREVER, 6).unwrap();
    bans.ban(net("::ffff:0:0/96"), FOREVER, 7).unwrap();
    assert_eq!(bans.lookup(addr("192.0.2.1"), Micros(0)), None);
    bans.ban(net("0.0.0.0/0"), FOREVER, 4).unwrap();
    assert_eq!(bans.lookup(addr("192.0.2.1"), Micros(0)).map(|ban| ban.reason), Some(4));
    assert_eq!(bans.lookup(addr("2001:db8::1"), Micros(0)).map(|ban| ban.reason), Some(6));
}

#[test]
fn a_shorter_ban_holds_when_the_longer_one_has_ended() {
    let mut bans = Bans::new(10, [1, 2]);
    bans.ban(net("198.51.100.7/24"), Micros(100), 1).unwrap();
    bans.ban(net("198.51.100.7/32"), Micros(10), 2).unwrap();
    let reason =
        |bans: &Bans, now| bans.lookup(addr("198.51.100.7"), Micros(now)).map(|ban| (ban.prefix_len, ban.reason));
    assert_eq!([9, 10, 99, 100].map(|now| reason(&bans, now)), [Some((32, 2)), Some((24, 1)), Some((24, 1)), None]);
}

#[test]
fn a_full_table_refuses_and_forgets_nobody() {
    let mut bans = Bans::new(1000, [1, 2]);
    let one = |n: u32| IpNet::from(IpAddr::from(Ipv4Addr::from(n)));
    assert!((0..1000).all(|n| bans.ban(one(n), Micros(50), n).is_ok()));
    assert_eq!(bans.ban(one(1000), FOREVER, 0), Err(Full));
    assert_eq!(bans.ban(one(999), FOREVER, 7), Ok(()));
    assert!((0..1000).all(|n| bans.lookup(Addr::v4(n), Micros(49)).is_some()));
    assert!(bans.sweep(Micros(50), 300) > 0);
    assert_eq!(bans.ban(one(1000), FOREVER, 0), Ok(()));
    assert!(bans.lookup(Addr::v4(999), Micros(50)).is_some() && bans.lookup(Addr::v4(998), Micros(50)).is_none());
}

/// A few removals a turn, for ever, leave the table as a new one would be: what was banned is found, what was not is not.
#[test]
fn a_million_bans_that_come_and_go_leave_no_trace() {
    let mut bans = Bans::new(2000, [1, 2]);
    let one = |n: u32| IpNet::from(IpAddr::from(Ipv4Addr::from(n)));
    for n in 0..1_000_000u32 {
        let now = Micros(n.into());
        bans.ban(one(n), Micros(u64::from(n) + 500), n).unwrap();
        bans.sweep(now, 10);
        assert!(bans.len() < 1000, "{}", bans.len());
        if n % 1000 == 0 {
            for back in 0..1200.min(n) {
                assert_eq!(bans.lookup(Addr::v4(n - back), now).is_some(), back < 500);
            }
        }
    }
    bans.sweep(FOREVER, usize::MAX);
    bans.sweep(FOREVER, usize::MAX);
    assert!(bans.is_empty());
}

#[test]
fn a_million_bans_take_66_million_octets() {
    let bans = Bans::new(1_000_000, [1, 2]);
    assert!((66_000_000..66_100_000).contains(&bans.memory()), "{}", bans.memory());
}
