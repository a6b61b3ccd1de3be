//! One prefix opens connection after connection to a spliced service with a single upstream, which closes each of them first, so that every
//! source port comes to rest in TIME-WAIT; beside it, honest clients connect.

mod spliced;

use sluice_filters::Flags;
use sluice_filters::addr::Addr;
use sluice_tcpstack::counters::DialFailure;

use self::spliced::{Lab, Session, config};

const DIALS: u32 = 1_000_000;
/// Every so many dials, an honest client comes.
const EVERY: u32 = 50;

#[test]
fn no_honest_client_is_refused_beside_a_prefix_that_uses_up_every_source_port() {
    let mut lab = Lab::with(config(100_000, 7, 1));
    for n in 0..DIALS {
        if n % 64 == 0 {
            lab.turn();
        }
        let hog = (Addr::v4(0x0b00_0000 | n & 0xff), (10_000 + (n >> 8) % 50_000) as u16);
        let knocked = lab.knock_from(hog, n);
        let session = lab.dialled(knocked);
        closed_by_upstream(&mut lab, &session);
        if n % EVERY == 0 {
            let honest = (Addr::v4(0xc000_0000 + n), 50_000);
            let knocked = lab.knock_from(honest, n ^ 0x5555_5555);
            let session = lab.dialled(knocked);
            closed_by_upstream(&mut lab, &session);
        }
    }
    lab.turn();
    assert_eq!(lab.stack.sessions(), 0);
    let failures = &lab.counters.services[0].dial_failures[0];
    assert_eq!(failures[DialFailure::NoSourcePort as usize].get(), 0);
    let reused = lab.counters.ports_reused.get();
    println!("{DIALS} dials, {reused} from ports in TIME-WAIT");
    assert!(reused > u64::from(DIALS) / 2);
}

/// The upstream says all it has to say and closes; then the client does.
fn closed_by_upstream(lab: &mut Lab, session: &Session) {
    lab.forwarded(session.down(0).flags(Flags::ACK | Flags::FIN).build(), false);
    let fin = session.up(0).flags(Flags::ACK | Flags::FIN).ack(session.cookie.wrapping_add(2)).build();
    lab.forwarded(fin, true);
    lab.forwarded(session.down(1).ack(session.client_isn.wrapping_add(2)).build(), false);
}
