//! Short connections over links that lose: whoever closes first, whatever is lost, both ends get every byte and see the end.
//! `scripts/night.sh` puts the same to more connections and more loss, and to HAProxy (docs/testing.md).

use std::time::Duration;

use sluice_tests::appliance::Mode;
use sluice_tests::closings::{Cell, Closing, Header, Load};
use sluice_tests::trial::{Between, Trial};

both_modes![
    every_connection_completes_over_links_that_lose_one_percent,
    three_thousand_that_echo_at_once_through_rings_that_overflow_complete,
];

/// No connection takes a quarter of this, on a busy machine too. One that does hangs.
const HANGS: Duration = Duration::from_secs(90);

fn every_connection_completes_over_links_that_lose_one_percent(mode: Mode) {
    let trial = Trial {
        between: Between::Sluice(mode),
        cells: Cell::all(&Closing::SHORT, &Header::BOTH),
        load: Load { count: 300, at_once: 300, patience: HANGS },
        per_mille: 10,
        ring: Trial::RING,
    };
    let outcome = trial.run();
    eprintln!("lost {:?}, {} segments sent again", outcome.lost, outcome.repeated);
    outcome.expect_all(mode.as_str());
}

fn three_thousand_that_echo_at_once_through_rings_that_overflow_complete(mode: Mode) {
    let trial = Trial {
        between: Between::Sluice(mode),
        cells: Cell::all(&[Closing::Echo], &[Header::None]),
        load: Load { count: 3000, at_once: 3000, patience: HANGS },
        per_mille: 0,
        // A few milliseconds of what the clients can send.
        ring: 256,
    };
    let outcome = trial.run();
    eprintln!("{} segments sent again", outcome.repeated);
    // Nothing but rings loses here.
    assert!(outcome.repeated > 100, "the rings were to overflow, and {} segments were sent again", outcome.repeated);
    outcome.expect_all(mode.as_str());
}
