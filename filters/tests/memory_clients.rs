//! A client is counted once for each dry-run rule that would have cut it, and a flood forgets no client.

use std::collections::HashMap;
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use sluice_filters::addr::Addr;
use sluice_filters::memory::{Clients, DRY_RUN_RULES, VERIFIED_FOR};
use sluice_filters::units::Micros;

fn at(seconds: u64) -> Micros {
    Micros(seconds * 1_000_000)
}

const HOUR: u64 = VERIFIED_FOR.as_secs();

#[derive(Clone, Debug)]
enum Step {
    Verified(u8),
    WouldCut(u8, u32),
    Wait(u64),
    ForgetRules,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0u8..20).prop_map(Step::Verified),
        8 => (0u8..20, prop_oneof![0u32..5, Just(62), Just(63), Just(64), Just(u32::MAX)])
            .prop_map(|(who, rule)| Step::WouldCut(who, rule)),
        2 => prop_oneof![0u64..100, HOUR / 2 - 2..HOUR / 2 + 2, HOUR - 2..HOUR + 4].prop_map(Step::Wait),
        1 => Just(Step::ForgetRules),
    ];
    vec(step, 1..200)
}

/// What the table says, for each source in a map: when it was seen, whether it is verified, and its rules.
#[derive(Default)]
struct Model(HashMap<u8, (u64, bool, u64)>);

impl Model {
    fn forget_past(&mut self, now: u64) {
        self.0.retain(|_, &mut (seen, verified, rules)| now - seen <= HOUR && (verified || rules != 0));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_table_with_room_agrees_with_a_map(steps in steps(), start in 0u64..10_000_000) {
        let mut clients = Clients::new(65_536, [5, 6]);
        let (mut model, mut now) = (Model::default(), start);
        for step in steps {
            model.forget_past(now);
            match step {
                Step::Verified(who) => {
                    let entry = model.0.entry(who).or_insert((now, false, 0));
                    let before = if entry.1 { 0 } else { entry.2 };
                    (entry.0, entry.1) = (now, true);
                    prop_assert_eq!(clients.verified(Addr::v4(who.into()), at(now)), before);
                }
                Step::WouldCut(who, rule) => {
                    let mut counts = false;
                    if rule < DRY_RUN_RULES {
                        let entry = model.0.entry(who).or_insert((now, false, 0));
                        counts = entry.1 && entry.2 & 1 << rule == 0;
                        entry.2 |= 1 << rule;
                        entry.0 = if entry.1 { entry.0 } else { now };
                    }
                    prop_assert_eq!(clients.would_cut(Addr::v4(who.into()), rule, at(now)), counts);
                }
                Step::Wait(seconds) => now += seconds,
                Step::ForgetRules => {
                    clients.forget_rules();
                    model.0.values_mut().for_each(|entry| entry.2 = 0);
                }
            }
            model.forget_past(now);
            for who in 0..20 {
                let verified = model.0.get(&who).is_some_and(|entry| entry.1);
                prop_assert_eq!(clients.is_verified(Addr::v4(who.into()), at(now)), verified);
            }
        }
    }
}

#[test]
fn a_client_whose_syn_matched_is_counted_when_its_ack_proves_it() {
    let mut clients = Clients::new(64, [5, 6]);
    let addr = Addr::v4(1);
    assert!(!clients.would_cut(addr, 3, at(1)) && !clients.would_cut(addr, 5, at(2)));
    assert_eq!(clients.verified(addr, at(3)), 1 << 3 | 1 << 5);
    assert_eq!(clients.verified(addr, at(4)), 0);
    assert!(
        !clients.would_cut(addr, 3, at(5)) && clients.would_cut(addr, 4, at(5)) && !clients.would_cut(addr, 4, at(6))
    );
}

#[test]
fn a_flood_of_unverified_sources_displaces_no_client() {
    let mut clients = Clients::new(4096, [5, 6]);
    let client = |n: u32| Addr { hi: 0x2001_0db8 << 32, lo: n.into() };
    for n in 0..100 {
        clients.verified(client(n), at(1));
    }
    for n in 0..1_000_000 {
        assert!(!clients.would_cut(Addr::v4(n), n % DRY_RUN_RULES, at(HOUR - 1)));
    }
    // Nor are their marks touched.
    for n in 0..100 {
        assert!(clients.is_verified(client(n), at(HOUR)) && clients.would_cut(client(n), 7, at(HOUR)));
    }
    assert!(!clients.is_verified(client(0), at(HOUR + 2)));
}

#[test]
fn a_flood_does_not_keep_new_clients_out() {
    let mut clients = Clients::new(64, [5, 6]);
    for n in 0..10_000 {
        clients.would_cut(Addr::v4(n), 0, at(10));
    }
    clients.verified(Addr::v4(1 << 20), at(10));
    assert!(clients.is_verified(Addr::v4(1 << 20), at(10)));
}

#[test]
fn the_oldest_of_a_kind_gives_way() {
    let one_line = || Clients::new(4, [5, 6]);
    let (a, b) = (Addr::v4, |n: u32| Addr::v4(100 + n));
    let mut clients = one_line();
    for n in 0..4 {
        clients.verified(a(n), at([20, 10, 40, 30][n as usize]));
    }
    clients.verified(b(0), at(50));
    let verified: Vec<_> = (0..4).map(|n| clients.is_verified(a(n), at(50))).collect();
    assert_eq!(verified, [true, false, true, true]);

    // Two clients and two notes: the older note goes first, then the other, then the notes of newcomers.
    let mut clients = one_line();
    clients.verified(a(0), at(1));
    clients.verified(a(1), at(2));
    clients.would_cut(a(2), 0, at(4));
    clients.would_cut(a(3), 0, at(3));
    clients.would_cut(b(0), 0, at(5));
    assert_eq!((clients.verified(a(3), at(6)), clients.is_verified(a(3), at(6))), (0, true), "its note was given up");
    assert_eq!(clients.verified(b(0), at(6)), 1, "its note was kept");
    assert!([a(0), a(1), a(3), b(0)].iter().all(|&addr| clients.is_verified(addr, at(6))));
}

#[test]
fn spoofed_packets_do_not_prolong_a_clients_hour() {
    let mut clients = Clients::new(64, [5, 6]);
    let start = at(100);
    clients.verified(Addr::v4(1), start);
    clients.would_cut(Addr::v4(1), 0, start.after(VERIFIED_FOR - Duration::from_secs(1)));
    assert!(clients.is_verified(Addr::v4(1), start.after(VERIFIED_FOR)));
    assert!(!clients.is_verified(Addr::v4(1), start.after(VERIFIED_FOR + Duration::from_secs(2))));
}
