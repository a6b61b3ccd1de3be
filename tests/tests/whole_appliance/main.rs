//! The whole appliance: a real `sluice` on DPDK ports in network namespaces, real clients and servers around it.
//!
//! [`basics`] holds what must work however the appliance is attached; it runs with one worker, with two workers that hand frames over
//! to each other, and on one arm. The other modules go deeper with one worker.

#![forbid(unsafe_code)]

mod basics;
mod crowds;
mod endings;
mod floods;
mod limits;
mod loss;
mod network;
mod proxy;
mod shutdown;
mod startup;
mod syns;

use sluice_tests::appliance::{Service, Setup};
use sluice_tests::lab::{Arms, Lab};

/// How the appliance is attached in a run of the basics.
#[derive(Clone, Copy, Debug)]
struct Bench {
    arms: Arms,
    workers: u8,
}

impl Bench {
    fn lab(self) -> Lab {
        Lab::new(self.arms, None)
    }

    fn setup(self, services: impl IntoIterator<Item = Service>) -> Setup {
        Setup::of(services).workers(self.workers)
    }
}

/// The basics as tests, once for each way to attach the appliance.
macro_rules! basics {
    ($($bench:ident: $arms:expr, $workers:literal, [$($rule:ident),+ $(,)?];)+) => {
        $(mod $bench {
            use sluice_tests::lab::Arms;
            $(#[test]
            fn $rule() {
                crate::basics::$rule(crate::Bench { arms: $arms, workers: $workers });
            })+
        })+
    };
}

basics! {
    one_worker: Arms::Two, 1, [
        http_works_over_ipv4_and_ipv6,
        a_gibibyte_up_then_down_arrives_intact,
        a_gibibyte_arrives_intact_when_dialled_on_data,
        ssh_works_though_the_server_speaks_first,
        iperf3_runs_both_ways,
        half_closes_and_simultaneous_data_arrive_as_over_a_cable,
        resets_travel_to_the_other_side,
        five_thousand_connections_come_and_leave_nothing_behind,
        a_transfer_survives_a_syn_flood,
    ];
    two_workers: Arms::Two, 2, [
        http_works_over_ipv4_and_ipv6,
        a_gibibyte_up_then_down_arrives_intact,
        a_gibibyte_arrives_intact_when_dialled_on_data,
        ssh_works_though_the_server_speaks_first,
        iperf3_runs_both_ways,
        half_closes_and_simultaneous_data_arrive_as_over_a_cable,
        resets_travel_to_the_other_side,
        five_thousand_connections_come_and_leave_nothing_behind,
        a_transfer_survives_a_syn_flood,
    ];
    one_arm: Arms::One, 1, [
        http_works_over_ipv4_and_ipv6,
        ssh_works_though_the_server_speaks_first,
        iperf3_runs_both_ways,
        half_closes_and_simultaneous_data_arrive_as_over_a_cable,
        resets_travel_to_the_other_side,
    ];
}
