//! The whole appliance: a real `sluice` on DPDK ports in network namespaces, real clients and servers around it.
//!
//! [`basics`] holds what must work however the appliance is attached; it runs with one worker, with two workers that hand frames over
//! to each other, and on one arm, in either mode. The other modules go deeper with one worker; what holds in both modes is a rule that
//! [`both_modes`] makes two tests of.

#![forbid(unsafe_code)]

/// Each rule, a function of [`Mode`](sluice_tests::appliance::Mode), as tests `RULE::terminate` and `RULE::splice`.
macro_rules! both_modes {
    ($($rule:ident),+ $(,)?) => {
        $(mod $rule {
            use sluice_tests::appliance::Mode;

            #[test]
            fn terminate() {
                super::$rule(Mode::Terminate);
            }

            #[test]
            fn splice() {
                super::$rule(Mode::Splice);
            }
        })+
    };
}

mod basics;
mod clock;
mod closings;
mod crowds;
mod endings;
mod filter_files;
mod filters;
mod floods;
mod headers;
mod legs;
mod limits;
mod loss;
mod network;
mod path_mtu;
mod peace;
mod promises;
mod proxy;
mod shutdown;
mod splice;
mod startup;
mod syns;
mod verdicts;

use sluice_tests::appliance::{Mode, Service, Setup};
use sluice_tests::lab::{Arms, Lab};

/// How the appliance is attached and serves in a run of the basics.
#[derive(Clone, Copy, Debug)]
struct Bench {
    mode: Mode,
    arms: Arms,
    workers: u8,
}

impl Bench {
    fn lab(self) -> Lab {
        Lab::new(self.arms, None)
    }

    fn setup(self, services: impl IntoIterator<Item = Service>) -> Setup {
        Setup::of(services).mode(self.mode).workers(self.workers)
    }
}

/// The basics as tests, once for each mode and way to attach the appliance.
macro_rules! basics {
    ($($bench:ident: $mode:expr, $arms:expr, $workers:literal, [$($rule:ident),+ $(,)?];)+) => {
        $(mod $bench {
            use sluice_tests::appliance::Mode;
            use sluice_tests::lab::Arms;
            $(#[test]
            fn $rule() {
                crate::basics::$rule(crate::Bench { mode: $mode, arms: $arms, workers: $workers });
            })+
        })+
    };
}

basics! {
    one_worker: Mode::Terminate, Arms::Two, 1, [
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
    two_workers: Mode::Terminate, Arms::Two, 2, [
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
    one_arm: Mode::Terminate, Arms::One, 1, [
        http_works_over_ipv4_and_ipv6,
        ssh_works_though_the_server_speaks_first,
        iperf3_runs_both_ways,
        half_closes_and_simultaneous_data_arrive_as_over_a_cable,
        resets_travel_to_the_other_side,
    ];    one_worker_splice: Mode::Splice, Arms::Two, 1, [
        http_works_over_ipv4_and_ipv6,
        a_gibibyte_up_then_down_arrives_intact,
        ssh_works_though_the_server_speaks_first,
        iperf3_runs_both_ways,
        half_closes_and_simultaneous_data_arrive_as_over_a_cable,
        resets_travel_to_the_other_side,
        five_thousand_connections_come_and_leave_nothing_behind,
        a_transfer_survives_a_syn_flood,
    ];
    two_workers_splice: Mode::Splice, Arms::Two, 2, [
        http_works_over_ipv4_and_ipv6,
        iperf3_runs_both_ways,
        half_closes_and_simultaneous_data_arrive_as_over_a_cable,
        resets_travel_to_the_other_side,
        five_thousand_connections_come_and_leave_nothing_behind,
    ];
    one_arm_splice: Mode::Splice, Arms::One, 1, [
        http_works_over_ipv4_and_ipv6,
        ssh_works_though_the_server_speaks_first,
        half_closes_and_simultaneous_data_arrive_as_over_a_cable,
        resets_travel_to_the_other_side,
    ];
}
