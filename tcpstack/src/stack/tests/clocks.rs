//! A wall clock that is set by an hour, either way, while connections open and live.

use super::lab::*;
use crate::proxy::{self, UnixMillis};
use crate::record::EndCause;
use std::time::Duration;

/// 2026-01-02T03:04:05Z.
const START: Duration = Duration::from_secs(1_767_323_045);
const HOUR: Duration = Duration::from_secs(3_600);
const SIGNED: &str = "proxy_protocol = \"v2\"\nproxy_header = { authenticate = true }";
const MODES: [&str; 2] = ["", "mode = \"splice\"\npromise = { probe = \"0s\" }\n"];

/// By both modes and both directions: a lab at [`START`], and the offset that it will be told of.
fn labs(extra: &str) -> Vec<(Lab, Duration)> {
    let mut labs = Vec::new();
    for mode in MODES {
        for unix in [START - HOUR, START + HOUR] {
            let mut lab = Lab::new(&format!("{mode}{extra}"));
            lab.unix = START;
            labs.push((lab, unix));
        }
    }
    labs
}

#[test]
fn client_whose_syn_ack_was_sent_before_the_step_gets_through_and_its_header_is_signed_with_the_new_time() {
    for (mut lab, unix) in labs(SIGNED) {
        let server = lab.server.listen(80);
        let client = lab.dial();
        assert!(lab.run(100, |lab| lab.counters.cookies_sent.get() == 1));
        assert_eq!(lab.counters.services[0].opened.get(), 0, "the SYN-ACK is on its way");
        lab.unix = unix;
        assert!(lab.run(2_000, |lab| lab.client.get(client).may_send() && lab.server.get(server).may_send()));
        assert_eq!((lab.counters.cookies_sent.get(), lab.drops.len()), (1, 0), "{:?}", lab.drops);
        lab.client.get(client).send_slice(b"hello").unwrap();
        let mut got = Vec::new();
        assert!(lab.run(2_000, |lab| {
            lab.server.read(server, &mut got);
            got.ends_with(b"hello")
        }));
        let now = UnixMillis(u64::try_from(unix.as_millis()).unwrap() + lab.now.0 / 1_000);
        assert_eq!(
            proxy::verify(&got, &keys().current(), now, Duration::from_secs(10)).map(|signed| signed.key),
            Ok(7)
        );
        let before = UnixMillis(u64::try_from(START.as_millis()).unwrap() + lab.now.0 / 1_000);
        assert!(proxy::verify(&got, &keys().current(), before, Duration::from_secs(10)).is_err());
    }
}

#[test]
fn connections_live_through_a_step_and_none_of_their_timers_notices() {
    for (mut lab, unix) in labs(RAW) {
        let (client, server) = established(&mut lab);
        let opened = lab.now;
        lab.unix = unix;
        lab.idle(500);
        assert_eq!(lab.stack.sessions(), 1);
        lab.client.get(client).send_slice(b"hello").unwrap();
        lab.client.get(client).close();
        let mut got = Vec::new();
        assert!(lab.run(2_000, |lab| {
            lab.server.read(server, &mut got);
            if lab.server.get(server).may_send() && got == b"hello" {
                lab.server.get(server).close();
            }
            lab.stack.sessions() == 0
        }));
        assert_eq!(lab.ended(EndCause::Closed), 1);
        let record = lab.record();
        assert!(record.opened <= opened && record.ended <= lab.now, "{record:?}");
        assert!(record.ended.since(record.opened) < Duration::from_secs(5), "{record:?}");
    }
}
